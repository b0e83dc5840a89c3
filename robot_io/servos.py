"""What is done to the six servos of an arm as a whole: find them, set them up, let them go."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping

from robot_io.bus import ServoBus
from robot_io.calibration import JOINTS, SERVO_IDS, Calibration, JointCalibration
from robot_io.errors import BusError, BusTimeout, TorqueRefused, WrongServos
from robot_io.sts3215 import MODEL_NUMBER, OperatingMode

log = logging.getLogger(__name__)

JOINT_OF_SERVO: dict[int, str] = dict(zip(SERVO_IDS, JOINTS, strict=True))
GRIPPER_ID = SERVO_IDS[JOINTS.index("gripper")]
# Bit of the Phase register that makes the servo report angles beyond one turn.
_PHASE_MULTI_TURN = 0x10

# What LeRobot 0.6.1 sets on every servo of an SO-101 (configure_motors and SOFollower.configure).
COMMON_SETTINGS: dict[str, int] = {
    "Return_Delay_Time": 0,
    "Maximum_Acceleration": 254,
    "Acceleration": 254,
    "Operating_Mode": OperatingMode.POSITION,
}
# A follower's position loop is softer than the factory's 32/0/32, against shaking.
FOLLOWER_SETTINGS: dict[str, int] = {"P_Coefficient": 16, "I_Coefficient": 0, "D_Coefficient": 32}
# Half of torque and current, so that a gripper closed on something does not burn out.
GRIPPER_SETTINGS: dict[str, int] = {
    "Max_Torque_Limit": 500,
    "Protection_Current": 250,
    "Overload_Torque": 25,
}


def require_servos(bus: ServoBus) -> None:
    """Open the bus if need be and make sure that it carries an SO-101's six servos.

    Raises:
        WrongServos: a servo is missing or of another model; all such are named.
        PortMissing, PortDenied, PortBusy, Unplugged, BusError: the port.
    """
    bus.names.update(JOINT_OF_SERVO)
    bus.open()
    missing: list[int] = []
    foreign: dict[int, int] = {}
    with bus.patient(retries=3):
        for servo_id in SERVO_IDS:
            try:
                bus.ping(servo_id)
                model = bus.read(servo_id, "Model_Number")
            except BusTimeout:
                missing.append(servo_id)
                continue
            if model != MODEL_NUMBER:
                foreign[servo_id] = model
    problems = []
    if missing:
        problems.append(f"servo {_named(missing)} does not answer")
    if foreign:
        models = ", ".join(f"{_named([servo_id])} is {foreign[servo_id]}" for servo_id in foreign)
        problems.append(f"model number of servo {models}, not {MODEL_NUMBER}")
    if problems:
        found = len(SERVO_IDS) - len(missing)
        raise WrongServos(
            f"{bus.port} carries {found} of the 6 servos of an SO-101: {'; '.join(problems)}. "
            "Check power, cables and ids (`lerobot-setup-motors` sets ids)",
            [*missing, *foreign],
        )


def _named(servo_ids: list[int]) -> str:
    return ", ".join(f"{servo_id} ({JOINT_OF_SERVO[servo_id]})" for servo_id in servo_ids)


def torque_states(bus: ServoBus) -> tuple[bool, ...]:
    """Which of the six servos are energised, in the order of `JOINTS`."""
    states = bus.sync_read("Torque_Enable", SERVO_IDS)
    return tuple(states[servo_id] != 0 for servo_id in SERVO_IDS)


def release_torque(bus: ServoBus) -> dict[str, BusError]:
    """Take the torque off every servo that can be reached, whatever the others do.

    Returns:
        The joints that could not be released, with the reason. Empty when all are free.
    """
    failures: dict[str, BusError] = {}
    # One frame for all first: nobody stays energised while a mute servo is waited for.
    with contextlib.suppress(BusError):
        bus.sync_write("Torque_Enable", dict.fromkeys(SERVO_IDS, 0))
    for servo_id, joint in JOINT_OF_SERVO.items():
        try:
            bus.write(servo_id, "Torque_Enable", 0)
        except BusError as error:
            log.warning("%s was not released: %s", joint, error)
            failures[joint] = error
    return failures


def require_released(bus: ServoBus) -> None:
    """Release all servos.

    Raises:
        TorqueRefused: one or more may still be energised; they are named.
    """
    if failures := release_torque(bus):
        raise TorqueRefused(
            f"{', '.join(failures)} on {bus.port} may still be energised: "
            f"{next(iter(failures.values()))}"
        )


@contextlib.contextmanager
def eeprom_unlocked(bus: ServoBus, servo_id: int) -> Iterator[None]:
    """Within it, what is written below address 40 survives a power cycle."""
    bus.write(servo_id, "Lock", 0)
    try:
        yield
    finally:
        # If the servo is gone, the exception that is on its way says so better.
        with contextlib.suppress(BusError):
            bus.write(servo_id, "Lock", 1)


def write_registers(bus: ServoBus, servo_id: int, values: Mapping[str, int]) -> list[str]:
    """Write those of ``values`` that the servo does not hold yet; returns their names.

    EEPROM wears out, so nothing is written twice.
    """
    changed = [name for name, value in values.items() if bus.read(servo_id, name) != value]
    if changed:
        with eeprom_unlocked(bus, servo_id):
            for name in changed:
                bus.write(servo_id, name, values[name])
    return changed


def servo_settings(servo_id: int, *, follower: bool) -> dict[str, int]:
    """What LeRobot sets on this servo, but for its Phase."""
    settings = dict(COMMON_SETTINGS)
    if follower:
        settings |= FOLLOWER_SETTINGS
        if servo_id == GRIPPER_ID:
            settings |= GRIPPER_SETTINGS
    return settings


def configure_servos(bus: ServoBus, *, follower: bool) -> None:
    """Bring the six servos to LeRobot's settings. They are released first and stay so.

    Raises:
        TorqueRefused: a servo could not be released, so nothing was changed.
        BusError: a servo stopped answering; all are released.
    """
    with bus.patient():
        require_released(bus)
        for servo_id in SERVO_IDS:
            settings = servo_settings(servo_id, follower=follower)
            settings["Phase"] = bus.read(servo_id, "Phase") & ~_PHASE_MULTI_TURN
            if changed := write_registers(bus, servo_id, settings):
                log.info("%s: set %s", JOINT_OF_SERVO[servo_id], ", ".join(changed))


def read_calibration(bus: ServoBus) -> dict[str, JointCalibration]:
    """The calibration in the servos' EEPROM, unchecked. The EEPROM holds no drive mode."""
    low = bus.sync_read("Min_Position_Limit", SERVO_IDS)
    high = bus.sync_read("Max_Position_Limit", SERVO_IDS)
    offset = bus.sync_read("Homing_Offset", SERVO_IDS)
    return {
        joint: JointCalibration(servo_id, 0, offset[servo_id], low[servo_id], high[servo_id])
        for servo_id, joint in JOINT_OF_SERVO.items()
    }


def write_calibration(bus: ServoBus, calibration: Calibration) -> None:
    """Write a calibration into the servos' EEPROM; all are released first.

    Raises:
        TorqueRefused: a servo could not be released, so nothing was changed.
        BusError: a servo stopped answering.
    """
    with bus.patient():
        require_released(bus)
        for servo_id, joint in JOINT_OF_SERVO.items():
            entry = calibration.joints[joint]
            write_registers(
                bus,
                servo_id,
                {
                    "Homing_Offset": entry.homing_offset,
                    "Min_Position_Limit": entry.range_min,
                    "Max_Position_Limit": entry.range_max,
                },
            )


def differing_joints(bus: ServoBus, calibration: Calibration) -> list[str]:
    """Joints whose EEPROM holds other values than ``calibration``, as ``name (what)``."""
    found = read_calibration(bus)
    differing = []
    for joint, wanted in calibration.joints.items():
        held = found[joint]
        fields = [
            f"{field} {getattr(held, field)} instead of {getattr(wanted, field)}"
            for field in ("homing_offset", "range_min", "range_max")
            if getattr(held, field) != getattr(wanted, field)
        ]
        if fields:
            differing.append(f"{joint} ({', '.join(fields)})")
    return differing
