"""The policies that can be trained: one file a kind, and the list of them.

A kind's file holds its sizes (a ``PolicySpec`` of its own) and what differs between it and the
others (a ``PolicyKind``). Neither needs torch to be read, so that the processes that only look at a
specification stay small.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from policy.errors import BadSpec

if TYPE_CHECKING:
    from policy.kinds.adapter import PolicyKind

# LeRobot's name of each policy is the name of its file here.
KINDS = ("act", "diffusion", "smolvla")

# Inputs of graphs besides what the robot sees. A graph that starts from standard normal numbers:
NOISE = "noise"
# One that is pulled to the chunk before (real-time chunking): its actions in raw units, and how
# much each counts, 0..1.
PREVIOUS, PREFIX_WEIGHTS = "previous_chunk", "prefix_weights"
# One that reads the task, as tokens (LeRobot's names) or as one vector.
LANGUAGE = "observation.language"
TOKENS, TOKEN_MASK = f"{LANGUAGE}.tokens", f"{LANGUAGE}.attention_mask"
TASK_VECTOR = f"{LANGUAGE}.vector"
LANGUAGE_INPUTS = frozenset({TOKENS, TOKEN_MASK, TASK_VECTOR})
INTEGER_INPUTS = frozenset({TOKENS, TOKEN_MASK})


def kind_of(name: str) -> PolicyKind[Any]:
    """The adapter of a kind. Raises BadSpec: there is no such kind."""
    if name not in KINDS:
        raise BadSpec(f"kind: {name!r} is not one of {', '.join(KINDS)}")
    adapter: PolicyKind[Any] = importlib.import_module(f"policy.kinds.{name}").KIND
    return adapter
