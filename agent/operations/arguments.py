"""What an operation takes, one model each; whoever takes a request checks it by these."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.config import AgentConfig
from agent.errors import BadArguments, Refused
from host.complaints import first_complaint

ArmName = Literal["follower", "leader"]
CalibrationStep = Literal["homing", "range_start", "range_finish"]
Task = Annotated[str, Field(min_length=1, max_length=500)]
PolicyName = Annotated[str, Field(min_length=1, max_length=64)]


class Arguments(BaseModel):
    """Base of all. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Check what came. `bytes` are JSON, and none at all no fields.

        Raises BadArguments with one line: the field, what is wrong, which fields there are.
        """
        try:
            if isinstance(raw, bytes):
                return cls.model_validate_json(raw or b"{}")
            return cls.model_validate(raw)
        except ValidationError as error:
            allowed = ", ".join(cls.model_fields) or "none"
            raise BadArguments(f"{first_complaint(error, 'body')} (fields: {allowed})") from error

    def check(self, config: AgentConfig) -> None:
        """Hold the fields against what the configuration allows. Raises Refused."""


class Nothing(Arguments):
    """No fields."""


class Calibrate(Arguments):
    """One step of calibrating one arm."""

    arm: ArmName
    step: CalibrationStep


class RecordStart(Arguments):
    """What the episode shows, in words."""

    task: Task


class RecordFinish(Arguments):
    """Whether the task was done, if the operator says."""

    success: bool | None = None


class RolloutArm(Arguments):
    """Which policy: `active`, `local` or a version."""

    policy: PolicyName = "active"


class RolloutStart(Arguments):
    """One episode of the policy that is armed."""

    seconds: float
    task: Task | None = None
    record: bool = False

    def check(self, config: AgentConfig) -> None:
        """The configuration says how long an episode may be. Raises Refused."""
        longest_s = config.rollout.max_episode_s
        if not 0 < self.seconds <= longest_s:
            raise Refused(f"seconds must be above 0 and at most {longest_s:.0f}")


class RolloutBeat(Arguments):
    """Whose rollout it is: the `lease` that arming it gave."""

    lease: Annotated[str, Field(min_length=1, max_length=64)]


class PolicyUse(Arguments):
    """Which policy is to drive from now on."""

    policy: PolicyName = Field(description="a version, `local`, or `newest` to lift the pin")


class TrainLocal(Arguments):
    """How long to train; absent: training.local_steps. An unfinished order goes on."""

    steps: int | None = Field(default=None, ge=1, le=10**7)
    again: bool = Field(default=False, description="begin anew, also where one is unfinished")


class Estop(Arguments):
    """How to stop."""

    release: bool = Field(default=False, description="torque off: the arm falls")


# What the control process is sent, where that is not what the operator gives.


class Park(Arguments):
    """Without `energise` an arm that is released already stays where it lies."""

    energise: bool


class LoadPolicy(Arguments):
    """A policy that was found, the name it was asked for by, and its share of the arm's limits."""

    folder: Annotated[str, Field(min_length=1, max_length=4096)]
    policy: PolicyName
    limits: Annotated[float, Field(gt=0, le=1)] = 1.0
