"""What a task puts on the table, and into the gripper, as the scene builds it."""

from __future__ import annotations

from dataclasses import dataclass

Rgb = tuple[float, float, float]

CUBE_SIZE_M = 0.025
CUBE_MASS_KG = 0.02
CUBE_RGB: Rgb = (0.9, 0.0, 0.0)
CUBE_START_M = (0.19, 0.0)
MARK_SIZE_M = 0.048

# What shared memory has room for.
MAX_CUBES = 2
MAX_MARKS = 2


@dataclass(frozen=True, slots=True)
class TableCube:
    """A cube that can be moved. ``start_m``: where it lies until it is placed."""

    name: str
    rgb: Rgb
    start_m: tuple[float, float]


@dataclass(frozen=True, slots=True)
class TableMark:
    """A square of paper on the table, which nothing touches."""

    name: str
    rgb: Rgb
    start_m: tuple[float, float]


@dataclass(frozen=True, slots=True)
class SceneObjects:
    """``paddle``: the gripper holds a tool to push with, fixed to its jaw."""

    cubes: tuple[TableCube, ...]
    marks: tuple[TableMark, ...] = ()
    paddle: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.cubes) <= MAX_CUBES or len(self.marks) > MAX_MARKS:
            raise ValueError(f"1 to {MAX_CUBES} cubes and up to {MAX_MARKS} marks have room")

    @property
    def all(self) -> tuple[TableCube | TableMark, ...]:
        """In the order of a layout: cubes, then marks."""
        cubes: tuple[TableCube | TableMark, ...] = self.cubes
        return cubes + self.marks

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of a layout."""
        return tuple(each.name for each in self.all)


RED_CUBE = TableCube("cube", CUBE_RGB, CUBE_START_M)
ONE_CUBE = SceneObjects((RED_CUBE,))
