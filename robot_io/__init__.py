"""The arm: bytes, units, limits, health, cameras. Needs neither LeRobot nor torch.

LeRobot looks in a plugin's package for the class that belongs to a configuration; these two are
therefore found here as well, and only then is LeRobot imported.
"""

from __future__ import annotations

_LEROBOT_DEVICES = ("ArmadaFollower", "ArmadaLeader")


def __getattr__(name: str) -> object:
    if name in _LEROBOT_DEVICES:
        from robot_io import lerobot_plugin

        return getattr(lerobot_plugin, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
