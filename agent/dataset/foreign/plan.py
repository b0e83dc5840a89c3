"""Which datasets from elsewhere a fleet learns from and is judged by: a TOML file, a row a dataset.

    [robots.stacking]                     what one robot trains on
    dataset = "lerobot/svla_so100_stacking"
    task = "stack the cubes"              instead of the dataset's own words
    convention = "before-777"             see joints.py
    cameras = { top = "observation.images.top" }

    [evaluation.grab]                     never trained on, by any robot
    dataset = "chrvngr/so101_grab"

Plans of that name lie beside this file and are shipped.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.dataset.errors import BadImportPlan
from agent.dataset.foreign.joints import CONVENTIONS
from host.complaints import first_complaint

SHIPPED = Path(__file__).with_name("plans")


class ImportRow(BaseModel):
    """One dataset, and how its features become ours."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: Annotated[str, Field(min_length=1)]
    """A hub's repository id, or a folder."""
    revision: str | None = None
    """Of the repository: a branch, a tag or a commit."""
    task: Annotated[str, Field(max_length=300)] | None = None
    """Instead of the dataset's own words."""
    convention: Annotated[str, Field(pattern=f"^({'|'.join(CONVENTIONS)})$")] | None = None
    """How its joints are numbered; left out where their names tell it."""
    cameras: dict[str, str] = {}
    """Our camera's name -> the dataset's key."""
    note: str = ""


class ImportPlan(BaseModel):
    """A whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    robots: dict[str, ImportRow] = {}
    evaluation: dict[str, ImportRow] = {}

    def row(self, name: str) -> tuple[ImportRow, bool]:
        """The row of this name, and whether it is for evaluation. Raises BadImportPlan."""
        if name in self.robots:
            return self.robots[name], False
        if name in self.evaluation:
            return self.evaluation[name], True
        known = ", ".join([*self.robots, *self.evaluation])
        raise BadImportPlan(f"the plan has no row {name!r}; it has {known or 'none'}")


def read_plan(name_or_path: str) -> ImportPlan:
    """A shipped plan by its name, or a file. Raises BadImportPlan with one line."""
    shipped = SHIPPED / f"{name_or_path}.toml"
    path = shipped if shipped.name in shipped_plans() else Path(name_or_path)
    try:
        plan = ImportPlan.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        known = ", ".join(name.removesuffix(".toml") for name in shipped_plans())
        raise BadImportPlan(f"{path}: {error.strerror}; shipped plans: {known}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadImportPlan(f"{path}: {error}") from error
    except ValidationError as error:
        raise BadImportPlan(f"{path}: {first_complaint(error, 'plan')}") from error
    if both := set(plan.robots) & set(plan.evaluation):
        raise BadImportPlan(f"{path}: {min(both)!r} is both a robot's and an evaluation's")
    trained = {row.dataset for row in plan.robots.values()}
    for name, row in plan.evaluation.items():
        if row.dataset in trained:
            raise BadImportPlan(f"{path}: evaluation.{name} is trained on: {row.dataset}")
    return plan


def row_of(
    row: ImportRow,
    *,
    task: str | None,
    convention: str | None,
    revision: str | None,
    cameras: Iterable[str],
) -> ImportRow:
    """The row, and what a person gave instead; cameras as OURS=THEIRS. Raises BadImportPlan."""
    chosen = dict(row.cameras)
    for text in cameras:
        ours, equals, theirs = text.partition("=")
        if not (ours and equals and theirs):
            raise BadImportPlan(f"--camera {text}: write OURS=THEIRS, such as overhead=top")
        chosen[ours] = theirs
    given = {"task": task, "convention": convention, "revision": revision}
    stated = {name: value for name, value in given.items() if value is not None}
    try:
        return ImportRow.model_validate({**row.model_dump(), **stated, "cameras": chosen})
    except ValidationError as error:
        raise BadImportPlan(first_complaint(error, "import")) from error


def shipped_plans() -> list[str]:
    """File names of the plans that come with Armada."""
    return sorted(path.name for path in SHIPPED.glob("*.toml"))
