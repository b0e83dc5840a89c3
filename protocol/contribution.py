"""A contribution: what local training gained since a base, and how.

The one record of it from the trainer to the audit log. The trainer writes it beside the delta, the
Flower reply carries it, the coordinator keeps it with what became of it. Everything in it is a
robot's claim: bounded here, judged by the gate.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from protocol.fields import Count, Digest, WireModel

MAX_LOSS = 1e6
WindowName = Annotated[str, Field(min_length=1, max_length=64)]


class Contribution(WireModel):
    """`sequence` grows with every snapshot of one robot.

    steps: optimiser steps since the base. examples: training frames that they were drawn from.
    loss: mean training loss since the last snapshot, without dimension.
    window_id: the window that asked for the work, if one did.
    """

    base_digest: Digest
    base_round: Count
    steps: Count
    examples: Count
    loss: Annotated[float, Field(ge=-MAX_LOSS, le=MAX_LOSS)] | None
    window_id: WindowName | None = None
    sequence: Count
