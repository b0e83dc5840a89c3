"""The two arms as the operator knows them: there, or one line that says what is wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable

from agent.config import AgentConfig
from agent.operations.arguments import ArmName
from robot_io.arm import Calibration, Follower, Leader
from robot_io.bus import ServoBus
from robot_io.errors import BusError, NotCalibrated, RobotIOError, Unplugged

log = logging.getLogger(__name__)

# Of a tick's period: an answer that takes longer is a missed read, and the next tick asks again.
REPLY_TIMEOUT_PERIODS = 0.9
RELEASE_RETRIES = 4  # a servo that is asked to let go is asked again before it counts as mute
RELEASE_BUDGET_S = 0.3


class Arms:
    """Opens and closes both arms; keeps one line for each that is not usable.

    Nothing here moves an arm. `connect` releases a follower that is released already and brings
    its servos to our settings; one that it finds energised it leaves so, see `found_energised`.
    """

    def __init__(self, config: AgentConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self.follower: Follower | None = None
        self.leader: Leader | None = None
        self.found_energised = False
        self.problems: dict[ArmName, str] = {"follower": "follower is not connected yet"}
        if config.teleop is not None:
            self.problems["leader"] = "leader is not connected yet"

    def bus(self, arm: ArmName) -> ServoBus:
        """A closed bus on the arm's port. Raises KeyError for a leader that is not configured."""
        reply_timeout_s = REPLY_TIMEOUT_PERIODS / self._config.control.fps
        if arm == "follower":
            port = self._config.robot.port
        elif self._config.teleop is not None:
            port = self._config.teleop.port
        else:
            raise KeyError(arm)
        # No second attempt within a tick: the next tick is one.
        return ServoBus(port, reply_timeout_s=reply_timeout_s, retries=0, clock=self._clock)

    def connect(self) -> None:
        """Connect whatever is not connected; never raises. Not while an arm is calibrated."""
        if self.follower is None:
            self._note("follower", self._connect_follower())
        if self.leader is None and self._config.teleop is not None:
            self._note("leader", self._connect_leader())

    def lose(self, arm: ArmName, line: str) -> None:
        """Close an arm that went wrong; `line` is what the operator reads."""
        if arm == "follower" and self.follower is not None:
            self.follower.close()
            self.follower = None
        if arm == "leader" and self.leader is not None:
            self.leader.close()
            self.leader = None
        self._note(arm, line)

    def release_follower(self) -> dict[str, BusError]:
        """Take the torque off every servo that can be reached; the joints that may keep it."""
        if self.follower is None:
            return {}
        with self.follower.bus.patient(RELEASE_RETRIES, RELEASE_BUDGET_S):
            return self.follower.release()

    def close(self) -> None:
        """Close both ports; torque stays as it is."""
        for arm in (self.follower, self.leader):
            if arm is not None:
                arm.close()
        self.follower = self.leader = None

    def _connect_follower(self) -> str | None:
        bus = self.bus("follower")
        try:
            path = self._config.follower_calibration
            follower = Follower(bus, _load(self._config, "follower"), self._clock)
            follower.connect()
            self.found_energised = any(follower.torque_states())
            if not self.found_energised:
                with bus.patient():
                    follower.configure()
        except RobotIOError as error:
            bus.close()
            return _line("follower", error)
        log.info("follower on %s, calibration %s", bus.port, path.name)
        self.follower = follower
        return None

    def _connect_leader(self) -> str | None:
        bus = self.bus("leader")
        try:
            leader = Leader(bus, _load(self._config, "leader"), self._clock)
            leader.connect()
            with bus.patient():
                leader.configure()
        except RobotIOError as error:
            bus.close()
            return _line("leader", error)
        log.info("leader on %s", bus.port)
        self.leader = leader
        return None

    def _note(self, arm: ArmName, line: str | None) -> None:
        if line is None:
            self.problems.pop(arm, None)
        elif self.problems.get(arm) != line:
            self.problems[arm] = line
            log.warning("%s", line)


def _load(config: AgentConfig, arm: ArmName) -> Calibration | None:
    """The arm's calibration; None where there is no file, so that the port is looked at first."""
    path = config.follower_calibration if arm == "follower" else config.leader_calibration
    assert path is not None  # a leader is configured where it is asked for
    try:
        return Calibration.load(path)
    except NotCalibrated:
        return None


def _line(arm: ArmName, error: RobotIOError) -> str:
    if isinstance(error, Unplugged):
        return f"{arm} unplugged: {error}"
    if isinstance(error, NotCalibrated):
        return f"{arm} is not calibrated: {error} (--arm {arm})"
    return f"{arm}: {error}"
