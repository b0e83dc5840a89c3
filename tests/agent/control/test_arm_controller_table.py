"""What the arm controller does in each phase at each event, on two arms as bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from arm_rig import ENERGISED, RELEASED, ArmRig, Script

from agent.errors import Refused

FAULT = "it broke"


def closed(rig: ArmRig) -> None:
    rig.follower.mute = {1, 2, 3, 4, 5, 6}
    rig.step()


def idle(rig: ArmRig) -> None:
    rig.step()


def moving(purpose: str) -> Callable[[ArmRig], None]:
    def prepare(rig: ArmRig) -> None:
        rig.step()
        rig.controller.start_motion(Script(rig.here()), purpose)
        rig.step()

    return prepare


def parking(rig: ArmRig) -> None:
    moving("teleop")(rig)
    rig.controller.start_park()
    rig.step()


def faulty(rig: ArmRig) -> None:
    moving("teleop")(rig)
    rig.controller.fault(FAULT)
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
                rig.step()
                return controller._ended()
            case _:
                rig.follower.unplug()
                return rig.step()

    return event


# (phase, event) -> what is seen afterwards: the phase, or who moves the arm; `!` a fault was
# announced, `no` it was refused and nothing changed.
TABLE = {
    "closed": {
        "teleop": "no",
        "rollout": "no",
        "park": "no",
        "estop": "closed",
        "estop_release": "closed",
        "reset": "no",
        "end": "ended",
        "unplug": "closed",
    },
    "lost": {
        "teleop": "no",
        "rollout": "no",
        "park": "no",
        "estop": "closed",
        "estop_release": "closed",
        "reset": "no",
        "end": "ended",
        "unplug": "closed",
    },
    "idle": {
        "teleop": "teleop",
        "rollout": "rollout",
        "park": "park",
        "estop": "idle",
        "estop_release": "idle",
        "reset": "idle",
        "end": "ended",
        "unplug": "closed!",
    },
    "teleop": {
        "teleop": "no",
        "rollout": "no",
        "park": "park",
        "estop": "holding",
        "estop_release": "idle",
        "reset": "park",
        "end": "park",
        "unplug": "closed!",
    },
    "rollout": {
        "teleop": "no",
        "rollout": "no",
        "park": "park",
        "estop": "holding",
        "estop_release": "idle",
        "reset": "park",
        "end": "park",
        "unplug": "closed!",
    },
    "parking": {
        "teleop": "no",
        "rollout": "no",
        "park": "park",
        "estop": "holding",
        "estop_release": "idle",
        "reset": "park",
        "end": "park",
        "unplug": "closed!",
    },
    "faulty": {
        "teleop": "teleop",
        "rollout": "rollout",
        "park": "park",
        "estop": "holding",
        "estop_release": "idle",
        "reset": "park",
        "end": "park",
        "unplug": "closed",
    },
    "stopped": {
        "teleop": "teleop",
        "rollout": "rollout",
        "park": "park",
        "estop": "holding",
        "estop_release": "idle",
        "reset": "park",
        "end": "ended",
        "unplug": "closed",
    },
}


def seen(rig: ArmRig) -> str:
    """The phase, or who moves the arm."""
    controller = rig.controller
    word = controller.phase.value
    if word == "moving" and controller.purpose is not None:
        word = controller.purpose
    return word + "!" * any(name == "fault" for name, _ in rig.events)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ArmRig]:
    made = ArmRig(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("phase", "event"), [(phase, event) for phase, row in TABLE.items() for event in row]
)
def test_table(rig: ArmRig, phase: str, event: str) -> None:
    PHASES[phase](rig)
    before, torque = seen(rig), rig.torque
    expected = TABLE[phase][event]
    if expected == "no":
        with pytest.raises(Refused):
            say(event)(rig)
        assert (seen(rig), rig.torque) == (before, torque)
        return
    say(event)(rig)
    if expected == "ended":
        assert rig.controller._ended()
        return
    assert seen(rig) == expected
    still_on = expected in ("teleop", "rollout", "park", "holding") or (
        event == "unplug" and phase not in ("closed", "lost", "idle")
    )
    assert rig.torque == (ENERGISED if still_on else RELEASED)
