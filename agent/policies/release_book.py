"""Which policy drives the arm, and where each release is: the content of active.json. Pure.

The promises, whatever the order of offers, kills and commands:
  - the active version goes up, or back by a rollback; only the operator's `use` is free;
  - a digest that was rolled back or refused for its content never returns by itself;
  - `use` is obeyed and pinned: releases wait until `use newest` lifts the pin.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from agent.config import TrialConfig
from agent.policies.errors import NoSuchPolicy
from agent.policies.release_states import ReleaseEvent, ReleaseState, next_state
from protocol.fields import Digest

MAX_RELEASES = 128
MAX_REASON = 300
NEWER = "a newer release came"

_S, _E = ReleaseState, ReleaseEvent


class OfferAnswer(Enum):
    """What to do with an offer."""

    TAKE = "take"
    HERE = "here"  # installed already; its files are looked at
    HOLD = "hold"  # a version is pinned
    LEAVE = "leave"  # barred, or older


class RobotRelease(BaseModel):
    """One release. `difference` is the shadow's mean, in joint units, from what was commanded."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[int, Field(ge=1)]
    state: ReleaseState = ReleaseState.OFFERED
    reason: Annotated[str, Field(max_length=MAX_REASON)] = ""
    episodes: Annotated[int, Field(ge=0)] = 0  # driven well as a canary
    shadow_s: Annotated[float, Field(ge=0)] = 0.0
    difference: float | None = None


class ReleaseBook(BaseModel):
    """See the module. `floor`: no release up to this version is ever taken on by itself again."""

    model_config = ConfigDict(extra="forbid")

    active: str | None
    previous: str | None
    pinned: bool = False
    floor: Annotated[int, Field(ge=0)] = 0
    releases: Annotated[dict[Digest, RobotRelease], Field(max_length=MAX_RELEASES)] = {}

    # What is.

    def on_trial(self) -> tuple[str, RobotRelease] | None:
        """Digest and record of the release that is on trial, if one is."""
        return next(((d, r) for d, r in self.releases.items() if r.state.on_trial), None)

    def of_version(self, name: str) -> tuple[str, RobotRelease] | None:
        """The release that is installed under this name, or was."""
        found = [(d, r) for d, r in self.releases.items() if str(r.version) == name]
        kept = [row for row in found if row[1].state is not _S.REFUSED] or found
        return kept[-1] if kept else None

    def to_drive(self) -> str | None:
        """Name of the policy that drives the next episode: the canary, else the active one."""
        trial = self.on_trial()
        if trial is not None and trial[1].state is not _S.SHADOW:
            return str(trial[1].version)
        return self.active

    # What arrives.

    def answer(self, digest: str, version: int) -> tuple[OfferAnswer, str]:
        """What to do with an offer, and why. Changes nothing."""
        record = self.releases.get(digest)
        if record is not None and record.state.barred:
            return OfferAnswer.LEAVE, f"{record.state.value} before: {record.reason}"
        if record is not None and (record.state.on_trial or record.state.trusted):
            return OfferAnswer.HERE, ""
        if self.pinned:
            return OfferAnswer.HOLD, (
                f"version {self.active} is pinned by the operator; "
                "`armada policy use newest` follows the releases again"
            )
        known = self.releases.values()
        newest = max([self.floor, *(each.version for each in known if each.state.on_trial)])
        coming = max((each.version for each in known if each.state.arriving), default=0)
        if version <= newest or version < coming:
            why = f"release {version} is not newer than {max(newest, coming)}"
            return OfferAnswer.LEAVE, f"{why}; versions only go up"
        return OfferAnswer.TAKE, ""

    def offer(self, digest: str, version: int) -> tuple[OfferAnswer, str]:
        """Take note of an offer. What was on its way and is not this one is set aside."""
        answer, why = self.answer(digest, version)
        if answer is OfferAnswer.TAKE:
            for other, record in self.releases.items():
                if other != digest:
                    _advance(
                        record, _E.OVERTAKEN, "a newer release came", only=record.state.arriving
                    )
            record = self.releases.setdefault(digest, RobotRelease(version=version))
            _advance(record, _E.OFFER_AGAIN)
            self._forget()
        return answer, why

    def advance(self, digest: str, event: ReleaseEvent, reason: str = "") -> ReleaseState | None:
        """Something happened to a release; its state then. None for one that is not known."""
        record = self.releases.get(digest)
        if record is None:
            return None
        _advance(record, event, reason)
        return record.state

    def promote(self, digest: str, rules: TrialConfig, reason: str = "") -> None:
        """Give a release the next part of its trial: shadow, canary, then trust."""
        record = self.releases[digest]
        if record.state is _S.QUALIFYING and rules.shadow_s > 0:
            event = _E.TO_SHADOW
        elif record.state in (_S.QUALIFYING, _S.SHADOW) and rules.canary_episodes > 0:
            event = _E.TO_CANARY
        else:
            event = _E.TRUST
        if next_state(record.state, event) is record.state:
            return
        if record.state.arriving and (self.pinned or record.version <= self.floor):
            _advance(record, _E.OVERTAKEN, "the operator's choice came meanwhile")
            return
        for other in self.releases.values():
            if other is not record:
                _advance(other, _E.OVERTAKEN, NEWER, only=other.state.on_trial)
        _advance(record, event, reason)
        if event is _E.TRUST:
            self._activate(str(record.version))

    def episode_passed(self, digest: str, rules: TrialConfig) -> None:
        """A canary drove an episode well; after enough of them it is trusted."""
        record = self.releases[digest]
        if record.state is not _S.DRIVING:
            return
        record.episodes += 1
        reason = f"{record.episodes} of {rules.canary_episodes} episodes driven well"
        if record.episodes >= rules.canary_episodes:
            self.promote(digest, rules, reason)
        else:
            _advance(record, _E.EPISODE_PASSED, reason)

    def started(self, event: ReleaseEvent, reason: str) -> list[str]:
        """A process came up: settle what the one before left; the digests that it settled."""
        settled = []
        for digest, record in self.releases.items():
            if next_state(record.state, event) is not record.state:
                _advance(record, event, reason)
                settled.append(digest)
        return settled

    # A person's word.

    def use(self, name: str) -> None:
        """Make an installed policy active and pin it; a trial is set aside."""
        chosen = self.of_version(name)
        for record in self.releases.values():
            _advance(record, _E.REPLACED, f"the operator chose {name}", only=record.state.on_trial)
        if chosen is not None:
            _advance(chosen[1], _E.USE, "the operator's choice")
        self._activate(name)
        self.pinned = True

    def follow(self) -> None:
        """Lift the pin; the newest version that passed its trial is active."""
        self.pinned = False
        passed = [r for r in self.releases.values() if r.state.trusted]
        newest = max(passed, key=lambda record: record.version, default=None)
        if newest is not None and str(newest.version) != self.active:
            _advance(newest, _E.RETURN, "the newest that passed its trial")
            self._activate(str(newest.version))

    def roll_back(self, reason: str, *, by_operator: bool = True) -> str:
        """Take away what is on trial, else the active version; the name of the one that drives now.

        There is then no previous one, so it never goes in circles, and no pin. Raises NoSuchPolicy
        when there is nothing to go back to, or when it is not the operator who lifts a pin.
        """
        if self.pinned and not by_operator:
            raise NoSuchPolicy(f"version {self.active} is pinned by the operator")
        trial = self.on_trial()
        if trial is not None:
            _advance(trial[1], _E.ROLL_BACK, reason)
            return self.active or "none"
        if self.previous is None:
            raise NoSuchPolicy(
                f"nothing to roll back to: no policy was active before {self.active}"
            )
        for name, event in ((self.active, _E.ROLL_BACK), (self.previous, _E.RETURN)):
            row = self.of_version(name or "")
            if row is not None:
                _advance(row[1], event, reason if event is _E.ROLL_BACK else "rolled back to")
        self.active, self.previous, self.pinned = self.previous, None, False
        return self.active

    def _activate(self, name: str) -> None:
        if name == self.active:
            return
        former = self.of_version(self.active or "")
        if former is not None:
            _advance(former[1], _E.REPLACED, f"{name} is active")
        self.active, self.previous = name, self.active
        if name.isdigit():
            self.floor = max(self.floor, int(name))

    def _forget(self) -> None:
        """Keep the book bounded; what is forgotten is barred by its version."""
        ends = (_S.REFUSED, _S.ROLLED_BACK, _S.SET_ASIDE, _S.RETIRED)
        while len(self.releases) > MAX_RELEASES:
            over = [d for d, r in self.releases.items() if r.state in ends]
            oldest = min(over, key=lambda digest: self.releases[digest].version)
            self.floor = max(self.floor, self.releases.pop(oldest).version)


def _advance(
    record: RobotRelease, event: ReleaseEvent, reason: str = "", *, only: bool = True
) -> None:
    state = next_state(record.state, event)
    if only and state is not record.state:
        record.state = state
        record.reason = " ".join(reason.split())[:MAX_REASON]
