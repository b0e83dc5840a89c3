"""The description from which every side builds the same policy."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from policy.errors import BadSpec
from policy.kinds import kind_of

# LeRobot's names for what a policy sees and does.
STATE = "observation.state"
ENVIRONMENT = "observation.environment_state"
IMAGES = "observation.images"
ACTION = "action"
TASK = "task"  # what the episode does, in words

_ASPECT_TOLERANCE = 0.02
LEAST_RATE = 0.05  # of the first: a fleet that goes on for years must still learn


class CameraSpec(BaseModel):
    """One camera that the policy sees: its role and the size of its frames in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    height: int = Field(gt=0, le=4096)
    width: int = Field(gt=0, le=4096)

    @property
    def key(self) -> str:
        return f"{IMAGES}.{self.name}"

    def accepts(self, height: int, width: int) -> bool:
        """Whether frames of this size may be scaled to the policy's: a squeezed one may not."""
        skew = (width * self.height) / (height * self.width)
        return abs(skew - 1.0) <= _ASPECT_TOLERANCE


class PolicySpec(BaseModel):
    """What the policy sees and does, and how it is trained; each kind adds its sizes.

    Names state the order of each vector; joints are in calibrated joint units (degrees, gripper
    0..100).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: str
    """LeRobot's name of the policy, "act" where it is left out; it brings keys of its own."""
    state_names: tuple[str, ...] = Field(min_length=1)
    """From the robots."""
    environment_names: tuple[str, ...] = ()
    """From the robots."""
    action_names: tuple[str, ...] = Field(min_length=1)
    """From the robots."""
    cameras: tuple[CameraSpec, ...] = ()
    """What the policy sees: name, height and width of each, in pixels."""
    fps: int = Field(gt=0, le=1000)
    """From the robots."""
    chunk_size: int = Field(default=30, gt=0, le=1000)
    """Actions that are planned at once."""

    learning_rate: float = Field(default=3e-4, gt=0.0)
    """Of the first round."""
    round_decay: float = Field(default=1.0, gt=0.0, le=1.0)
    """The rate's factor from round to round. Averages of models trained on different data converge
    only if the steps get smaller (Li et al. 2020, "On the convergence of FedAvg on non-IID data").
    """
    weight_decay: float | None = Field(default=None, ge=0.0)
    """Of the optimiser; absent: LeRobot's for the kind."""
    batch_size: int = Field(default=32, gt=0)
    """Frames a step."""

    @model_validator(mode="after")
    def _is_buildable(self) -> Self:
        if not self.environment_names and not self.cameras:
            raise ValueError(
                "the policy sees nothing but its own joints: "
                "give at least one camera or one environment name"
            )
        for label, names in (
            ("state_names", self.state_names),
            ("environment_names", self.environment_names),
            ("action_names", self.action_names),
            ("cameras", tuple(camera.name for camera in self.cameras)),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"{label} has a name twice: {', '.join(names)}")
        return self

    @property
    def vectors(self) -> dict[str, tuple[str, ...]]:
        """Feature name -> names of its components, action last; cameras are not vectors."""
        features = {STATE: self.state_names}
        if self.environment_names:
            features[ENVIRONMENT] = self.environment_names
        features[ACTION] = self.action_names
        return features

    def learning_rate_in(self, round_number: int) -> float:
        """The rate for work on the base of this round; never below a twentieth of the first."""
        return self.learning_rate * max(self.round_decay**round_number, LEAST_RATE)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON values; ``from_json`` gives the same spec back."""
        return self.model_dump(mode="json")

    @staticmethod
    def from_json(data: dict[str, Any] | str | bytes) -> PolicySpec:
        """The spec of its kind from its dictionary or JSON text. Raises BadSpec with the field."""
        try:
            # Through JSON, so that lists become tuples in the same way as over the wire.
            text = data if isinstance(data, (str, bytes)) else json.dumps(data)
            kind = _Kind.model_validate_json(text).kind
            return kind_of(kind).spec.model_validate_json(text)
        except (ValidationError, TypeError) as error:
            raise BadSpec(f"policy spec: {_first_line(error)}") from error

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON: equal specs, equal digests."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


class _Kind(BaseModel):
    """Enough of a spec to know whose fields the others are."""

    kind: str = "act"


def _first_line(error: ValidationError | TypeError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "whole"
        return f"{where}: {first['msg']}"
    return str(error)
