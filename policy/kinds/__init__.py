"""The policies that can be trained: one file a kind, and the list of them.

A kind's file holds its sizes (a ``PolicySpec`` of its own) and what differs between it and the
others (a ``PolicyKind``). Neither needs torch to be read, so that the processes that only look at a
specification stay small.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from policy.errors import BadSpec, NotExportable

if TYPE_CHECKING:
    from policy.kinds.adapter import PolicyKind
    from policy.spec import PolicySpec

# LeRobot's name of each policy is the name of its file here.
KINDS = ("act", "diffusion", "smolvla")

# The input of a graph that starts from standard normal numbers.
NOISE = "noise"


def kind_of(name: str) -> PolicyKind[Any]:
    """The adapter of a kind. Raises BadSpec: there is no such kind."""
    if name not in KINDS:
        raise BadSpec(f"kind: {name!r} is not one of {', '.join(KINDS)}")
    adapter: PolicyKind[Any] = importlib.import_module(f"policy.kinds.{name}").KIND
    return adapter


def require_exportable(spec: PolicySpec) -> None:
    """Raise NotExportable when no graph can be made of this kind yet."""
    reason = kind_of(spec.kind).not_exportable
    if reason:
        raise NotExportable(f"a policy of kind {spec.kind} cannot drive an arm yet: {reason}")
