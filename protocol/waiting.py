"""Whatever waits says for what: one list of reasons for both sides; the text follows from them.

A reason travels as its name with the details that its text has places for, so a program can tell
reasons apart and every status shows the same words.
"""

from __future__ import annotations

import string
import time
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from protocol.fields import WireModel

MAX_WAITING = 8  # reasons in one message
MAX_TEXT_CHARS = 300

type Detail = (
    Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
    | Annotated[int, Field(ge=-(2**53), le=2**53)]
    | Annotated[float, Field(ge=-1e11, le=1e11)]
)


class Reason(StrEnum):
    """Name and text. `{n:robot}` counts robots, `{at:clock}` is the viewer's time of day."""

    text: str

    def __new__(cls, name: str, text: str) -> Self:
        """A member whose value is its name on the wire."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.text = text
        return member

    # The trainer of one robot.
    TRAINING_OFF = "training_off", "training is off (training.enabled)"
    TRAINER_DOWN = "trainer_down", "the trainer does not run: {state}"
    IN_USE = "in_use", "trainer frozen because the arm is in use ({state})"
    NO_BASE = "no_base", "no base yet from the coordinator"
    BASE_REFUSED = "base_refused", "base refused: {why}"
    NO_ORDER = "no_order", "in no fleet; `armada train --local` trains on this robot's episodes"
    NO_EPISODES = "no_episodes", "no episode to learn from yet"
    FEW_EPISODES = "few_episodes", "{have:episode} recorded, {need} wanted"
    UNFIT_DATASET = "unfit_dataset", "the policy cannot learn from the dataset: {why}"
    UNFIT_POLICY = "unfit_policy", "no policy can be made for this robot: {why}"
    INGESTING = "ingesting", "{count:episode} still to become part of the dataset"
    PREPARING = "preparing", "pictures are decoded: {have} of {need:file}"
    EVALUATING = "evaluating", "the base is evaluated: {have} of {need:held-out episode}"
    HINDERED = "hindered", "cannot train: {why}"
    STEPS = "steps", "step {step} of {steps}"
    EXPORTING = "exporting", "all {steps:step} done; the policy is exported and tries itself out"
    NO_WORK_ORDER = "no_work_order", "no window has asked for work"
    WINDOW_OVER = "window_over", "window {window}: its time is up"
    WINDOW_DONE = "window_done", "window {window}: {steps:step} done"
    ENOUGH_STEPS = "enough_steps", "{steps:step} since the base: enough until the next one"

    # The robot in its fleet.
    PAUSED = "paused", "paused by the coordinator"
    NO_BUNDLE = "no_bundle", "{why}"
    NO_BROKER = "no_broker", "no connection to the broker: {why}"
    NO_SUPERNODE = "no_supernode", "no connection to the SuperLink: {why}"
    NO_WINDOW = "no_window", "no window is open"
    DECLINED = "declined", "sits this window out: {why}"
    JOINED = "joined", "joined the window of round {round}, which is being collected"
    RELEASE_UNDERWAY = "release_underway", "release {version} is {state}"

    # The campaign.
    NO_SUPERLINK = "no_superlink", "the SuperLink does not know the robots yet"
    MORE_ROBOTS = "more_robots", "waiting for {count:more robot}"
    ROBOT_AWAY = "robot_away", "{robot} is not connected"
    ROBOT_PAUSED = "robot_paused", "{robot} is paused"
    ROBOT_WITHOUT_FLOWER = "robot_without_flower", "{robot} is not connected to the SuperLink"
    ROBOT_FEW_EPISODES = "robot_few_episodes", "{robot} has {have} of {need:episode}"
    ROBOT_WITHOUT_STATISTICS = "robot_without_statistics", "{robot} has sent no statistics yet"
    ROBOT_OTHER_FEATURES = "robot_other_features", "{robot} has other joints, sensors or fps"
    ROBOT_WITHOUT_CAMERA = (
        "robot_without_camera",
        "{robot} has no camera '{camera}', which the policy sees",
    )
    FOR_OTHERS = "for_others", "enough robots; until {at:clock} for the others"
    RETRY = "retry", "again at {at:clock}, after: {why}"
    STATISTICS = "statistics", "the robots' statistics are collected"
    BUILDING = "building", "base is being built"
    INSTALLING = "installing", "the first base goes to the robots"
    LAST_BASE = "last_base", "the last base goes to the robots that missed it"
    NO_ROBOT = "no_robot", "no robot that fits is connected"
    NEXT_WINDOW = "next_window", "no window open, next at {at:clock}"
    UNTIL_READY = (
        "until_ready",
        "no window open, next when every robot gained {steps:step}, at {at:clock} at the latest",
    )
    ROBOT_GAINING = "robot_gaining", "{robot} gained {have} of {need:step}"
    ANSWERS = "answers", "window open until {at:clock}: {have} of {need:robot} answered"
    ROUND = "round", "round {round}: work of {count:robot} is collected"
    EVALUATION = "evaluation", "round {round}: {have} of {need:robot} reported held-out errors"
    RELEASING = "releasing", "release {version} is exported and checked"


class Waiting(WireModel):
    """One thing that is waited for. Raises ValidationError where details do not fit the reason."""

    reason: Annotated[Reason, Field(strict=False)]
    details: Annotated[dict[str, Detail], Field(max_length=8)] = {}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        places = {name for _, name, _, _ in _FORMATTER.parse(self.reason.text) if name}
        if places != self.details.keys():
            raise ValueError(f"{self.reason} has the details {', '.join(sorted(places)) or 'none'}")
        return self

    @property
    def text(self) -> str:
        """One line for people."""
        return _FORMATTER.format(self.reason.text, **self.details)

    def shown(self) -> dict[str, Any]:
        """For a status in JSON: reason, details and text."""
        return {**self.model_dump(mode="json"), "text": self.text}


def waiting(reason: Reason, **details: Detail) -> Waiting:
    """A reason with its details; long texts are cut."""
    cut = {
        name: " ".join(value.split())[:MAX_TEXT_CHARS] if isinstance(value, str) else value
        for name, value in details.items()
    }
    return Waiting(reason=reason, details=cut)


class _Words(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if not format_spec:
            return str(value)
        if not isinstance(value, int | float):
            return str(value)  # a stranger's detail of the wrong kind is shown as it came
        if format_spec == "clock":
            return time.strftime("%H:%M:%S", time.localtime(value))
        return f"{value} {format_spec}{'' if value == 1 else 's'}"


_FORMATTER = _Words()
