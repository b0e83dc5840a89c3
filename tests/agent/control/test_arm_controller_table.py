"""What the arm controller does in each phase at each event, on two arms as bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from arm_rig import ENERGISED, RELEASED, ArmRig, Script

from agent.errors import Refused

FAULT = "it broke"


def closed(rig: ArmRig) -> None:
    rig.follower.mute = {1}
    rig.step()


def idle(rig: ArmRig) -> None:
    rig.step()


def moving(purpose: str) -> Callable[[ArmRig], None]:
    def prepare(rig: ArmRig) -> None:
        rig.step()
        rig.controller.start_motion(Script(rig.here()), purpose)
        rig.step()

    return prepare


def takeover(rig: ArmRig) -> None:
    moving("rollout")(rig)
    rig.controller.take_over(Script(rig.here()))
    rig.step()


def abandoned(rig: ArmRig) -> None:
    moving("rollout")(rig)
    rig.controller.lease.begin()
    rig.step(2, dt_s=0.6)
    rig.events.clear()


def parking(rig: ArmRig) -> None:
    moving("teleop")(rig)
    rig.controller.start_park()
    rig.step()


def faulty(rig: ArmRig) -> None:
    moving("teleop")(rig)
    rig.controller.crashed(FAULT)
    rig.step()
    rig.events.clear()


def stopped(rig: ArmRig) -> None:
    moving("teleop")(rig)
    rig.controller.stop_here(release=False)


def lost(rig: ArmRig) -> None:
    rig.step()
    rig.follower.unplug()
    rig.step()
    rig.events.clear()


PHASES = {
    "closed": closed,
    "lost": lost,
    "idle": idle,
    "teleop": moving("teleop"),
    "rollout": moving("rollout"),
    "takeover": takeover,
    "abandoned": abandoned,
    "parking": parking,
    "faulty": faulty,
    "stopped": stopped,
}


def say(word: str) -> Callable[[ArmRig], object]:
    def event(rig: ArmRig) -> object:
        controller = rig.controller
        match word:
            case "teleop" | "rollout":
                return controller.start_motion(Script(rig.here()), word)
            case "park":
                return controller.start_park()
            case "estop":
                return controller.stop_here(release=False)
            case "estop_release":
                return controller.stop_here(release=True)
            case "reset":
                return controller.reset()
            case "end":
                controller.end()
                return rig.step()
            case _:
                rig.follower.unplug()
                return rig.step()

    return event


# (phase, event) -> what is seen afterwards: the phase, or who moves the arm; `!` a fault was
# announced, `no` it was refused and nothing changed. After a stop or a fault nobody but a reset
# takes the arm up again, whatever command comes late.
TABLE = {
    "closed": {
        "teleop": "no",
        "rollout": "no",
        "park": "no",
        "estop": "lost",  # nothing is looked for before the reset
        "estop_release": "lost",
        "reset": "no",
        "end": "ended",
        "unplug": "closed",
    },
    "lost": {
        "teleop": "no",
        "rollout": "no",
        "park": "no",
        "estop": "lost",
        "estop_release": "lost",
        "reset": "no, closed",
        "end": "ended",
        "unplug": "lost",
    },
    "idle": {
        "teleop": "teleop",
        "rollout": "rollout",
        "park": "park",
        "estop": "halted",
        "estop_release": "halted",
        "reset": "idle",
        "end": "ended",
        "unplug": "lost!",
    },
    "teleop": {
        "teleop": "no",
        "rollout": "no",
        "park": "park",
        "estop": "stopped",
        "estop_release": "halted",
        "reset": "park",
        "end": "park",
        "unplug": "lost!",
    },
    "rollout": {
        "teleop": "no",
        "rollout": "no",
        "park": "park",
        "estop": "stopped",
        "estop_release": "halted",
        "reset": "park",
        "end": "park",
        "unplug": "lost!",
    },
    "takeover": {
        "teleop": "no",
        "rollout": "no",
        "park": "park",
        "estop": "stopped",
        "estop_release": "halted",
        "reset": "park",
        "end": "park",
        "unplug": "lost!",
    },
    "abandoned": {
        "teleop": "no",
        "rollout": "no",
        "park": "park",
        "estop": "stopped",
        "estop_release": "halted",
        "reset": "park",
        "end": "park",
        "unplug": "lost!",
    },
    "parking": {
        "teleop": "no",
        "rollout": "no",
        "park": "park",
        "estop": "stopped",
        "estop_release": "halted",
        "reset": "park",
        "end": "park",
        "unplug": "lost!",
    },
    "faulty": {
        "teleop": "no",
        "rollout": "no",
        "park": "park",
        "estop": "stopped",
        "estop_release": "halted",
        "reset": "park",
        "end": "park",
        "unplug": "lost",
    },
    "stopped": {
        "teleop": "no",
        "rollout": "no",
        "park": "no",
        "estop": "stopped",
        "estop_release": "halted",
        "reset": "park",
        "end": "ended",
        "unplug": "lost",
    },
}


def seen(rig: ArmRig) -> str:
    """The phase, or who moves the arm."""
    phase = rig.controller.phase
    return (phase.purpose or phase.value) + "!" * any(name == "fault" for name, _ in rig.events)


@pytest.mark.parametrize(
    ("phase", "event"), [(phase, event) for phase, row in TABLE.items() for event in row]
)
def test_table(rig: ArmRig, phase: str, event: str) -> None:
    PHASES[phase](rig)
    before, torque = seen(rig), rig.torque
    expected = TABLE[phase][event]
    if expected.startswith("no"):
        with pytest.raises(Refused):
            say(event)(rig)
        assert seen(rig) == (expected.removeprefix("no, ") if "," in expected else before)
        assert rig.torque == torque
        return
    say(event)(rig)
    assert seen(rig) == expected
    still_on = expected in ("teleop", "rollout", "takeover", "park", "holding", "stopped") or (
        event == "unplug" and phase not in ("closed", "lost", "idle")
    )
    assert rig.torque == (ENERGISED if still_on else RELEASED)
