"""What the coordinator asks of its Flower process, and the line between the two.

The line is a socketpair. Down go jobs, one line of JSON each. Up comes BEGUN when a job is taken
up, then DONE, or LOST when this process can serve no further one; what came of the job is in its
result file. The end of the line ends the process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from coordinator.federation.orders import RoundOrder, RoundResult

BEGUN = b"begun\n"
DONE = b"done\n"
LOST = b"lost\n"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RoundJob(_Model):
    """Carry out a round; the result file holds a RoundResult."""

    task: Literal["round"] = "round"
    result: Path
    order: RoundOrder
    folder: Path
    memory_folder: Path

    def failed(self, why: str) -> RoundResult:
        """The result of a round that came to nothing."""
        order = self.order
        return RoundResult(round=order.round, kind=order.kind, replies=[], failure=why)


class RegisterJob(_Model):
    """Register SuperNode keys by agent id; the result file holds a RegisterResult."""

    task: Literal["registration"] = "registration"
    result: Path
    keys: dict[str, str]

    def failed(self, why: str) -> RegisterResult:
        """The result of a registration that came to nothing."""
        return RegisterResult(failure=why)


class RegisterResult(_Model):
    """Node ids by agent id, or the one line why not."""

    nodes: dict[str, int] = {}
    failure: str | None = None


Job = RoundJob | RegisterJob
JOB: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="task")])
