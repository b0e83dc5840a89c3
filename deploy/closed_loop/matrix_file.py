"""The file of `armada trials --matrix`: which policies, on which robots, at which tasks."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from deploy.closed_loop.errors import CannotTry
from host.complaints import first_complaint
from protocol.fields import Count, WireModel
from protocol.trials import MAX_TRIALS, TrialLabel

MAX_FILE_BYTES = 1024 * 1024
MAX_SEED = 2**52  # trials count on from it
LATENCY_MS = 60.0  # from an observation to its actions, unless stated
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class MatrixPolicy(WireModel):
    """A policy folder, from the file's own folder. `round`: of the federation it came from."""

    name: TrialLabel
    folder: str
    round: Count | None = None


class MatrixRobot(WireModel):
    """A robot's scene: its seed (none: the plain scene) and the sectors of its placements.

    `seen`: whether the policies were trained on it.
    """

    name: TrialLabel
    seed: Seed | None = None
    sectors: Annotated[tuple[TrialLabel, ...], Field(max_length=64)] = ()
    seen: bool = True


class MatrixTask(WireModel):
    """A task of the twin. `seen`: whether the policies were trained on it."""

    name: TrialLabel
    seen: bool = True


class MatrixPlan(WireModel):
    """`trials`: a cell; `demonstrations`: a cell, by the expert, for the action errors."""

    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] = 10
    demonstrations: Annotated[int, Field(ge=0, le=100)] = 3
    seed: Seed = 1
    latency_ms: Annotated[float, Field(ge=0.0, le=5000.0)] = LATENCY_MS
    sector_count: Annotated[int, Field(ge=1, le=64)] = 3
    policy: Annotated[tuple[MatrixPolicy, ...], Field(min_length=1, max_length=100)]
    robot: Annotated[tuple[MatrixRobot, ...], Field(min_length=1, max_length=100)]
    task: Annotated[tuple[MatrixTask, ...], Field(min_length=1, max_length=20)]

    @model_validator(mode="after")
    def _names_are_unique(self) -> MatrixPlan:
        for what, rows in (("policy", self.policy), ("robot", self.robot), ("task", self.task)):
            names = [row.name for row in rows]
            if len(set(names)) != len(names):
                raise ValueError(f"a {what} has the name of another")
        return self


def read_matrix_file(path: Path) -> MatrixPlan:
    """The plan in a TOML file.

    Raises:
        CannotTry: one line that names the file and the field.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise CannotTry(f"{path}: over {MAX_FILE_BYTES} bytes")
        document = tomllib.loads(content.decode())
        # Lax, because TOML has arrays where the model has tuples; unknown keys are still refused.
        return MatrixPlan.model_validate(document, strict=False)
    except OSError as error:
        raise CannotTry(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CannotTry(f"{path}: not TOML ({error})") from error
    except ValidationError as error:
        raise CannotTry(f"{path}: {first_complaint(error, 'file')}") from error
