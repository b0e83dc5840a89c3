"""Calibration in steps, one request each; the person who moves the arm is asked elsewhere."""

from __future__ import annotations

import logging
from typing import Any

from agent.config import AgentConfig
from agent.control.arms import Arms
from agent.errors import Refused
from agent.operations.arguments import ArmName, CalibrationStep
from robot_io.bus import ServoBus
from robot_io.calibrator import Calibrator
from robot_io.errors import BadCalibration, BusError, RobotIOError

log = logging.getLogger(__name__)


class CalibrationSession:
    """One arm's calibration in progress. For the loop thread alone."""

    def __init__(self, config: AgentConfig, arms: Arms) -> None:
        self._config = config
        self._arms = arms
        self._arm: ArmName | None = None
        self._bus: ServoBus | None = None
        self._calibrator: Calibrator | None = None
        self.recording = False  # a range, by `observe`
        self.ranges: dict[str, tuple[int, int, int]] = {}
        self.trouble: str | None = None

    @property
    def busy(self) -> ArmName | None:
        """The arm whose calibration was begun and not finished."""
        return self._arm

    def step(self, arm: ArmName, step: CalibrationStep) -> dict[str, Any]:
        """Take one step. Raises Refused with one line; what was reached before stays."""
        try:
            if step == "homing":
                return self._homing(arm)
            if arm != self._arm or self._calibrator is None:
                raise Refused(f"the {arm}'s calibration begins with the step homing")
            if step == "range_start":
                self._calibrator.start_range()
                self.recording, self.trouble = True, None
                return {"arm": arm, "step": step}
            return self._finish(arm)
        except RobotIOError as error:
            raise Refused(f"{arm}: {error}") from error

    def observe(self) -> None:
        """Take the joints' places while a range is recorded; call a few times a second."""
        if not self.recording or self._calibrator is None:
            return
        try:
            self.ranges = self._calibrator.observe()
        except BadCalibration as error:
            self.recording, self.trouble = False, str(error)
            log.warning("calibration: %s", error)
        except BusError as error:
            self.trouble = str(error)

    def abandon(self) -> None:
        """End a calibration without a result."""
        if self._bus is not None:
            self._bus.close()
        self._arm = self._bus = self._calibrator = None
        self.recording = False
        self.ranges = {}

    def _homing(self, arm: ArmName) -> dict[str, Any]:
        if self._arm is not None and self._arm != arm:
            raise Refused(f"the {self._arm} is being calibrated; finish it (range_finish) first")
        if arm == "leader" and self._config.teleop is None:
            raise Refused("no leader is configured; add [teleop] to the configuration")
        self.abandon()
        self._arms.lose(arm, f"{arm} is being calibrated")
        self._arm = arm
        self._bus = self._arms.bus(arm)
        self._calibrator = Calibrator(self._bus)
        try:
            offsets = self._calibrator.set_half_turn_homing()
        except RobotIOError:
            self.abandon()
            raise
        return {"arm": arm, "step": "homing", "homing_offsets": offsets}

    def _finish(self, arm: ArmName) -> dict[str, Any]:
        assert self._calibrator is not None
        if self.trouble is not None and not self.recording:
            raise Refused(f"{arm}: {self.trouble}")
        self._calibrator.observe()
        calibration = self._calibrator.finish()
        path = (
            self._config.follower_calibration
            if arm == "follower"
            else self._config.leader_calibration
        )
        assert path is not None  # homing has refused a leader that is not configured
        try:
            calibration.save(path)
        except OSError as error:
            raise Refused(f"{path}: the calibration cannot be saved: {error}") from error
        ranges = {
            name: [joint.range_min, joint.range_max] for name, joint in calibration.joints.items()
        }
        self.abandon()
        self._arms.connect()
        return {"arm": arm, "step": "range_finish", "path": str(path), "ranges": ranges}
