"""Training that does not go on says why, in every status of the robot."""

from __future__ import annotations

from agent.training.reasons import training_wait
from protocol.waiting import Reason, Waiting, waiting

SAID = waiting(Reason.STEPS, step=120, steps=400)


def wait(**fields: object) -> Waiting | None:
    well: dict[str, object] = {
        "enabled": True, "allowed": True, "state": "idle", "process": "running", "said": SAID,
    }  # fmt: skip
    return training_wait(**{**well, **fields})  # type: ignore[arg-type]


def text(found: Waiting | None) -> str:
    assert found is not None
    return found.text


def test_an_arm_in_use_is_the_reason_whatever_the_trainer_said_before_it_was_frozen() -> None:
    assert text(wait(allowed=False, state="teleop", process="stopped")) == (
        "trainer frozen because the arm is in use (teleop)"
    )


def test_training_that_is_off_or_a_trainer_that_is_not_there_is_the_reason() -> None:
    assert text(wait(enabled=False, allowed=False)) == "training is off (training.enabled)"
    assert text(wait(process="waiting", said=None)) == "the trainer does not run: waiting"


def test_otherwise_it_is_the_trainers_own_word() -> None:
    assert text(wait()) == "step 120 of 400"
    assert text(wait(process=None)) == "step 120 of 400"
    assert wait(said=None) is None
