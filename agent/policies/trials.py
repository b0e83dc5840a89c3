"""The agent's side of a release that is installed: its trial, and the operator's word on it.

The supervisor asks here which policy drives the next episode and with what limits, writes the trial
marker before a canary gets the arm, and says afterwards how the episode went.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from agent.config import TrialConfig
from agent.operations.operation import RAN_ITS_TIME, PolicyToDrive
from agent.policies.errors import NoSuchPolicy
from agent.policies.release_book import ReleaseBook
from agent.policies.release_states import ReleaseEvent, ReleaseState
from agent.policies.store import ACTIVE, LOCAL, PolicyStore

log = logging.getLogger(__name__)

NEWEST = "newest"
BY_OPERATOR = "the operator's word"


class PolicyTrials:
    """See the module. All raise StoreError or OSError where the disk does not do its part."""

    def __init__(self, store: PolicyStore, rules: TrialConfig) -> None:
        self._store = store
        self._rules = rules
        self._armed: PolicyToDrive | None = None  # what the control process has loaded

    def agent_started(self) -> None:
        """The daemon comes up: a canary that had the arm when the last one went down is blamed."""
        if not self._store.folder.is_dir():
            return
        with self._store.change() as book:
            blamed = book.started(
                ReleaseEvent.AGENT_STARTED, "the agent went down while this version had the arm"
            )
        for digest in blamed:
            log.error("policy %d is rolled back: %s", *_said(book, digest))

    def to_drive(self, policy: str) -> PolicyToDrive:
        """What `policy` means now, with its limits; a version on trial is armed by `active` alone.

        Raises NoSuchPolicy.
        """
        folder = self._store.resolve(policy)
        row = self._store.book().of_version(folder.name)
        if row is None:
            return PolicyToDrive(folder)
        digest, record = row
        if record.state.on_trial and (policy != ACTIVE or record.state is ReleaseState.SHADOW):
            raise NoSuchPolicy(
                f"version {folder.name} is on trial ({record.state.value}); arm `active` to "
                f"let it drive, or `armada policy use {folder.name}` to trust it now"
            )
        limits = self._rules.canary_limits if record.state.on_trial else 1.0
        return PolicyToDrive(folder, limits, digest)

    def armed(self, policy: PolicyToDrive) -> None:
        """The control process has loaded it."""
        self._armed = policy

    def drive_begins(self) -> None:
        """Write the trial marker, if what is armed is a canary.

        Raises NoSuchPolicy when it may not drive any more.
        """
        if self._armed is None or self._armed.digest is None:
            return
        with self._store.change() as book:
            record = book.releases.get(self._armed.digest)
            if record is None:
                return
            if not (record.state.trusted or record.state is ReleaseState.CANARY):
                raise NoSuchPolicy(
                    f"version {record.version} is {record.state.value} ({record.reason}); "
                    "arm `active` again"
                )
            book.advance(self._armed.digest, ReleaseEvent.DRIVE, "it has the arm")

    def drive_called_off(self) -> None:
        """The episode did not begin: nothing is learned."""
        self._settle(ReleaseEvent.NOT_COUNTED, "the episode did not begin")

    def drive_ended(self, episode: Mapping[str, Any]) -> None:
        """An episode is over; `episode` is the `rollout` part of the control process's status."""
        event, reason = judge_episode(episode, self._rules)
        self._settle(event, reason)

    def control_died(self, reason: str) -> None:
        """The process that moves the arm died while the canary may have had it."""
        self._settle(ReleaseEvent.FAULT, reason)

    def shadow(self) -> str | None:
        """Name of the version that is to predict beside whoever commands, if one is."""
        trial = self._store.book().on_trial()
        if trial is None or trial[1].state is not ReleaseState.SHADOW:
            return None
        return str(trial[1].version)

    def shadow_seen(self, version: str, report: Mapping[str, Any]) -> None:
        """What a shadow's predictions came to in one motion: seconds, difference, fault."""
        with self._store.change() as book:
            row = book.of_version(version)
            if row is None or row[1].state is not ReleaseState.SHADOW:
                return
            digest, record = row
            if report.get("fault"):
                book.advance(digest, ReleaseEvent.FAULT, f"as a shadow: {report['fault']}")
                return
            seconds, difference = float(report["seconds"]), report.get("difference")
            if difference is not None and seconds > 0:
                before = record.difference or 0.0
                total = record.shadow_s + seconds
                record.difference = (before * record.shadow_s + difference * seconds) / total
            record.shadow_s += seconds
            if record.shadow_s >= self._rules.shadow_s:
                apart = (
                    "" if record.difference is None else f", {record.difference:.2f} units apart"
                )
                reason = f"{record.shadow_s:.0f} s beside whoever commanded{apart}"
                book.promote(digest, self._rules, reason)

    # The operator's word.

    def use(self, name: str) -> dict[str, Any]:
        """Make a policy active and pin it; `newest` lifts the pin."""
        if name == NEWEST:
            with self._store.change() as book:
                book.follow()
        else:
            self._store.use(name)
        return self.table()

    def roll_back(self) -> dict[str, Any]:
        """Take away what is on trial, else the active version."""
        name = self._store.roll_back(BY_OPERATOR)
        return {"rolled_back_to": name, **self.table()}

    def table(self) -> dict[str, Any]:
        """One row a policy, the newest first, and which of them drives."""
        book = self._store.book()
        installed = {path.name for path in self._store.installed()}
        rows = [
            {
                "version": str(record.version),
                "state": record.state.value,
                "why": record.reason,
                "role": _role(book, str(record.version), record.state),
                "installed": str(record.version) in installed and not record.state.arriving,
                "digest": digest,
                "episodes": record.episodes,
                "shadow_s": round(record.shadow_s, 1),
                "difference": record.difference,
            }
            for digest, record in sorted(
                book.releases.items(), key=lambda row: row[1].version, reverse=True
            )
        ]
        named = {row["version"] for row in rows}
        rows += [
            {
                "version": name,
                "state": "local" if name == LOCAL else "installed",
                "why": "this robot's own" if name == LOCAL else "put here by hand",
                "role": _role(book, name, None),
                "installed": True,
            }
            for name in sorted(installed - named)
        ]
        return {
            "active": book.active,
            "previous": book.previous,
            "pinned": book.pinned,
            "policies": rows,
        }

    def _settle(self, event: ReleaseEvent, reason: str) -> None:
        """How an episode of what is armed ended; it says nothing of one that is no canary."""
        if self._armed is None or self._armed.digest is None:
            return
        digest = self._armed.digest
        with self._store.change() as book:
            record = book.releases.get(digest)
            if record is None or record.state is not ReleaseState.DRIVING:
                return
            if event is ReleaseEvent.EPISODE_PASSED:
                book.episode_passed(digest, self._rules)
            elif book.advance(digest, event, reason) is ReleaseState.ROLLED_BACK:
                log.error("policy %d is rolled back: %s", record.version, record.reason)


def judge_episode(episode: Mapping[str, Any], rules: TrialConfig) -> tuple[ReleaseEvent, str]:
    """What an episode of a canary says about the policy. Pure.

    Its own faults, limits met too often and a person's stop count against it. What the arm or the
    cameras did wrong does not; nor does an episode that was ended early without a word on it.
    """
    outcome = str(episode.get("outcome"))
    fault = (episode.get("inference") or {}).get("fault")
    ticks, clamped = int(episode.get("ticks") or 0), int(episode.get("clamped_ticks") or 0)
    if fault:
        return ReleaseEvent.FAULT, str(fault)
    if episode.get("success") is False:
        return ReleaseEvent.FAULT, "the operator marked the episode as a failure"
    if "emergency stop" in outcome:
        return ReleaseEvent.FAULT, outcome
    if ticks and clamped > rules.max_clamped * ticks:
        return ReleaseEvent.FAULT, (
            f"the limits met it at {clamped} of {ticks} ticks, allowed are {rules.max_clamped:.0%}"
        )
    if episode.get("intervention_ticks"):
        return ReleaseEvent.NOT_COUNTED, "not counted: a person took over"
    if outcome == RAN_ITS_TIME or episode.get("success"):
        return ReleaseEvent.EPISODE_PASSED, outcome
    return ReleaseEvent.NOT_COUNTED, f"not counted: {outcome}"


def _said(book: ReleaseBook, digest: str) -> tuple[int, str]:
    return book.releases[digest].version, book.releases[digest].reason


def _role(book: ReleaseBook, name: str, state: ReleaseState | None) -> str:
    if state is not None and state.on_trial:
        return "trial"
    if state is not None and (state.arriving or state is ReleaseState.REFUSED):
        return ""
    if name == book.active:
        return "active, pinned" if book.pinned else "active"
    return "previous" if name == book.previous else ""
