"""From another recorder's joint numbers to ours: degrees from mid-range, the gripper 0..100. Pure.

A convention is one row of CONVENTIONS: for each of our joints the name it has there, and the line
`ours = scale * theirs + offset`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.dataset.errors import BadForeignDataset
from robot_io.calibration import JOINTS

# A calibration may be off by some degrees, and a gripper pressed beyond its stop.
_DEGREES = (-190.0, 190.0)
_GRIPPER = (-20.0, 120.0)


@dataclass(frozen=True)
class JointLine:
    """`ours = scale * theirs + offset`, for one joint."""

    theirs: str
    scale: float = 1.0
    offset: float = 0.0


type Convention = Mapping[str, JointLine]  # our feature's name -> its line


def _rows(name: str, lines: Mapping[str, tuple[float, float]]) -> Convention:
    return {
        f"{joint}.pos": JointLine(name.format(joint), *lines.get(joint, (1.0, 0.0)))
        for joint in JOINTS
    }


# Half of each joint's travel in the SO-101's description (so101_new_calib.urdf): what 100 means
# where a recorder scaled each joint to its calibrated range. A given arm's own differs by degrees.
_HALF_TRAVEL_DEG = {
    "shoulder_pan": 110.0,
    "shoulder_lift": 100.0,
    "elbow_flex": 96.8,
    "wrist_flex": 95.0,
    "wrist_roll": 160.0,
}

CONVENTIONS: Mapping[str, Convention] = {
    # LeRobot with use_degrees, and Armada itself.
    "degrees": _rows("{}.pos", {}),
    # LeRobot's SO arms by default: -100..100 of each joint's calibrated range.
    "normalised": _rows(
        "{}.pos", {name: (half / 100.0, 0.0) for name, half in _HALF_TRAVEL_DEG.items()}
    ),
    # LeRobot before its hardware redesign (pull request 777); from its page on compatibility.
    "before-777": _rows("main_{}", {"shoulder_lift": (-1.0, 90.0), "elbow_flex": (1.0, -90.0)}),
}


def convention_for(names: tuple[str, ...]) -> str:
    """The convention that the names tell of. Raises BadForeignDataset: none, or more than one."""
    if set(names) == {line.theirs for line in CONVENTIONS["before-777"].values()}:
        return "before-777"
    known = ", ".join(CONVENTIONS)
    if set(names) == set(CONVENTIONS["degrees"]):
        raise BadForeignDataset(
            "its joints may be degrees or per cent of their ranges: "
            "give --convention degrees or --convention normalised"
        )
    raise BadForeignDataset(
        f"its joints are [{', '.join(names)}]; no convention is known for them ({known})"
    )


def to_ours(
    values: NDArray[np.float32], names: tuple[str, ...], convention: str
) -> NDArray[np.float32]:
    """Joint numbers [T, S] of another recorder as ours, float32 [T, 6], in the order of `JOINTS`.

    Raises BadForeignDataset: a joint is not there, or what comes out cannot be a joint's position,
    which is what a wrong convention shows by.
    """
    rows = CONVENTIONS[convention]
    columns = []
    for ours, line in rows.items():
        if line.theirs not in names or names.index(line.theirs) >= values.shape[1]:
            raise BadForeignDataset(
                f"it has no joint {line.theirs!r}, which the convention {convention!r} wants; "
                f"it has [{', '.join(names)}]"
            )
        column = values[:, names.index(line.theirs)] * line.scale + line.offset
        low, high = _GRIPPER if ours == "gripper.pos" else _DEGREES
        if column.min() < low or column.max() > high:
            raise BadForeignDataset(
                f"{ours} would go from {column.min():.0f} to {column.max():.0f}; "
                f"is {convention!r} its convention? ({', '.join(CONVENTIONS)})"
            )
        columns.append(column)
    mapped = np.stack(columns, axis=1).astype(np.float32)
    gripper = list(rows).index("gripper.pos")
    mapped[:, gripper] = np.clip(mapped[:, gripper], 0.0, 100.0)  # as our own driver does
    return mapped
