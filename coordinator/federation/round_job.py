"""The process that carries out one round: `python -m coordinator.federation.round_job`.

Everything is imported first; then one line of JSON is awaited on the standard input, so that a
spare process can stand by warm. The result goes into a file. The standard input stays open as the
lifeline: when the coordinator ends, it closes, and this process ends with it.

Flower may send SIGINT to its own process when the SuperLink no longer knows the task. Here that
ends this one round, and nothing else.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from coordinator.federation.errors import FederationError
from coordinator.federation.orders import RoundOrder, RoundResult, SuperLinkAccess
from host.files import write_durable
from host.logs import set_up_logging

LIFELINE_CUT = 3


class _Job(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    access: SuperLinkAccess
    result: Path


class RoundJob(_Job):
    """Carry out a round; the result file holds a RoundResult."""

    task: Literal["round"] = "round"
    order: RoundOrder
    folder: Path
    memory_folder: Path


class RegisterJob(_Job):
    """Register SuperNode keys by agent id; the result file holds a RegisterResult."""

    task: Literal["register"] = "register"
    keys: dict[str, str]


class RegisterResult(BaseModel):
    """Node ids by agent id, or the one line why not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: dict[str, int] = {}
    failure: str | None = None


Job = Annotated[RoundJob | RegisterJob, Field(discriminator="task")]
JOB: TypeAdapter[RoundJob | RegisterJob] = TypeAdapter(Job)


def run(job: RoundJob | RegisterJob) -> RoundResult | RegisterResult:
    """Do the job; what is wrong with the SuperLink or the round is in the result."""
    # Heavy, and only this process may import Flower's internals.
    from coordinator.federation.flower_runtime import FlowerFleet, register_nodes
    from coordinator.federation.round import conduct

    if isinstance(job, RegisterJob):
        try:
            return RegisterResult(nodes=register_nodes(job.access, job.keys))
        except FederationError as error:
            return RegisterResult(failure=str(error))
    order = job.order
    try:
        with FlowerFleet(job.access) as fleet:
            return conduct(order, fleet, job.folder, job.memory_folder)
    except FederationError as error:
        failure = str(error)
    except KeyboardInterrupt:
        failure = "the SuperLink ended the run: it lost this coordinator, or was restarted"
    return RoundResult(round=order.round, kind=order.kind, replies=[], failure=failure)


def _end_with_lifeline() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(LIFELINE_CUT)


def main() -> None:
    """Warm up, take one job from the standard input, do it, end."""
    set_up_logging()
    import coordinator.federation.round  # noqa: F401  the warm-up

    line = sys.stdin.buffer.readline()
    if not line:
        return
    threading.Thread(target=_end_with_lifeline, daemon=True).start()
    job = JOB.validate_json(line)
    result = run(job)
    write_durable(job.result, result.model_dump_json().encode())
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)  # threads that wait for a dead node's upload are left behind


if __name__ == "__main__":
    main()
