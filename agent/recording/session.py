"""The episode that is being recorded: from a sample to the journal and the tally."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from agent.config import AgentConfig
from agent.errors import JournalError, Refused
from agent.recording.journal import EpisodeMeta, Sample, recover
from agent.recording.recorder import Picture, Recorder
from agent.recording.tally import Tally
from host.threads import OnCrash, only_logged


class Policy(Protocol):
    """What an episode says of the policy that drove it."""

    @property
    def name(self) -> str:
        """A release's version, or `local`."""

    @property
    def digest(self) -> str:
        """SHA-256 hex of its graph."""


class RecordingSession:
    """What the record commands do (they may wait), and where the loop's ticks go."""

    def __init__(
        self,
        config: AgentConfig,
        missed_deadlines: Callable[[], int],
        unix_clock: Callable[[], float] = time.time,
        on_crash: OnCrash = only_logged,
    ) -> None:
        self._config = config
        self._missed_deadlines = missed_deadlines
        self._unix_clock = unix_clock
        self._missed_before = 0
        self.recovered = recover(config.journal_dir)
        self._tally = Tally.of_folder(config.journal_dir)
        self._recorder = Recorder(
            config.journal_dir,
            min_free_mb=config.recording.min_free_mb,
            queue_ticks=config.recording.queue_ticks,
            jpeg_quality=config.recording.jpeg_quality,
            on_crash=on_crash,
        )

    @property
    def active(self) -> bool:
        """True between start and finish or discard."""
        return self._recorder.active is not None

    def append(self, sample: Sample, pictures: Mapping[str, Picture]) -> None:
        """Take one tick into the running episode; never waits."""
        self._recorder.append(sample, pictures)

    def start(self, task: str, calibration_digest: str, policy: Policy | None = None) -> str:
        """Begin an episode, of a rollout where a policy drives; returns its id. Raises Refused."""
        started_unix_s = self._unix_clock()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(started_unix_s))
        meta = EpisodeMeta(
            episode_id=f"{stamp}-{int(started_unix_s * 1000) % 1000:03d}-{secrets.token_hex(3)}",
            task=task,
            fps=self._config.control.fps,
            robot_id=self._config.robot.id,
            state_names=self._config.state_names,
            action_names=self._config.action_names,
            environment_names=self._config.environment_names,
            cameras=self._config.camera_shapes,
            started_unix_s=started_unix_s,
            calibration_digest=calibration_digest,
            source="teleoperation" if policy is None else "rollout",
            policy=None if policy is None else policy.name,
            policy_digest=None if policy is None else policy.digest,
        )
        self._missed_before = self._missed_deadlines()
        try:
            self._recorder.start(meta)
        except JournalError as error:
            raise Refused(str(error)) from error
        return meta.episode_id

    def finish(self, success: bool | None = None) -> dict[str, Any]:
        """Save the episode; it is durable when this returns. Raises Refused."""
        frames = self._recorder.frames
        missed = self._missed_deadlines() - self._missed_before
        try:
            path = self._recorder.finish(missed, success)
        except JournalError as error:
            raise Refused(f"the episode was not saved: {error}") from error
        self._tally.add(frames)
        return {
            "episode": path.name,
            "frames": frames,
            "missed_deadlines": missed,
            "success": success,
        }

    def discard(self) -> None:
        """Throw the episode away. Raises Refused."""
        try:
            self._recorder.discard()
        except JournalError as error:
            raise Refused(str(error)) from error

    def set_aside(self, reason: str) -> None:
        """End a running episode that nobody finished; it is kept as unfinished."""
        if self._recorder.active is None:
            return
        self._recorder.fail(reason)
        try:
            self._recorder.finish(0)
        except JournalError:
            return  # the reason itself, which was logged when it was set

    def fail(self, reason: str) -> None:
        """Mark the running episode as one that cannot be saved; for the loop."""
        self._recorder.fail(reason)

    def close(self) -> None:
        """End the writer; a running episode is kept as unfinished."""
        self._recorder.close()

    def status(self) -> dict[str, Any]:
        """The `recording` part of the status."""
        active = self._recorder.active
        return {
            "active": active is not None,
            "task": None if active is None else active.task,
            "episode_id": None if active is None else active.episode_id,
            "current_frames": 0 if active is None else self._recorder.frames,
            "failure": self._recorder.failure if active is not None else None,
            "episodes": self._tally.episodes,
            "frames": self._tally.frames,
            "session_episodes": self._tally.session_episodes,
            "session_frames": self._tally.session_frames,
        }
