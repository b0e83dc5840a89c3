"""A policy as a source of actions for the control loop.

`begin`, `action` and `end` belong to the loop's thread and never wait: observations are left in
the channel's mailbox, chunks are picked up when they are there. `load` and `unload` wait and
belong to another thread; they are refused while an episode runs.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agent.config import AgentConfig
from agent.control.chunk_scheduler import ChunkScheduler, Offer, ScheduleRules
from agent.control.observation import Observation, SourceAction
from agent.inference.channel import GONE, PolicyChannel
from agent.inference.errors import BadFrame, EpisodeRunning
from agent.inference.wire import UPCOMING, Array, InferenceMessage
from agent.policies.errors import PolicyRefused
from policy.errors import BadSpec
from policy.spec import ENVIRONMENT, STATE, PolicySpec

CONTINUED_BLEND_TICKS = 2  # guidance binds a chunk to the one before nearly, not exactly


@dataclass(frozen=True)
class LoadedPolicy:
    """What the inference process has loaded. `latency_ms` is its median over the warm-up."""

    name: str  # a version, or `local`
    version: int
    digest: str  # SHA-256 hex of policy.onnx
    latency_ms: float
    spec: PolicySpec
    continues: bool = False  # it joins a chunk to the one before by itself

    @property
    def chunk_size(self) -> int:
        """Return the number of actions in a chunk."""
        return self.spec.chunk_size

    @property
    def fps(self) -> int:
        """Return the rate the policy acts at."""
        return self.spec.fps


@dataclass(frozen=True)
class _Ready:
    """What an episode needs of the loaded policy, worked out before it begins."""

    loaded: LoadedPolicy
    scheduler: ChunkScheduler
    environment: tuple[int, ...]  # where the policy's names lie in the observation's
    greeting: int  # the command whose reply tells that a restarted process has loaded it


class PolicySource:
    """An ActionSource. See the module for who may call what."""

    def __init__(
        self,
        channel: PolicyChannel,
        rules: ScheduleRules,
        environment_names: tuple[str, ...] = (),
    ) -> None:
        """Take an open channel, the schedule, and the names of Observation.environment."""
        self._channel = channel
        self._rules = rules
        self._environment_names = environment_names
        self._lock = threading.Lock()  # guards the three below, for a few instructions only
        self._running = False
        self._loading = False
        self._ready: _Ready | None = None
        self._ids = itertools.count(1)
        self.task = ""  # what the next episode is to do, in words; set between episodes
        # Of the running episode; the loop's thread alone.
        self._episode: _Ready | None = None
        self._fault: str | None = None
        self._trouble: str | None = None
        self.blind = False  # the last observation lacked something that the policy needs
        self._asked_s: dict[int, float] = {}
        self._latencies_s: list[float] = []

    @classmethod
    def from_config(cls, config: AgentConfig, channel: PolicyChannel) -> PolicySource:
        """Return a source for this robot, with the schedule of [rollout]."""
        rules = ScheduleRules(
            fps=config.control.fps,
            blend_ticks=config.rollout.blend_ticks,
            latency_percentile=config.rollout.latency_percentile,
            max_hold_s=config.rollout.max_hold_s,
        )
        return cls(channel, rules, config.environment_names)

    @property
    def loaded(self) -> LoadedPolicy | None:
        """Return the policy that the next episode will use."""
        ready = self._ready
        return None if ready is None else ready.loaded

    def load(self, policy_dir: Path, timeout_s: float) -> LoadedPolicy:
        """Have the inference process load a policy folder; wait for it to connect and answer.

        Raises PolicyRefused, with the policy before left in place; EpisodeRunning; InferenceGone,
        InferenceLate or BadFrame, after which the process may have loaded either: an episode that
        meets the wrong one is a fault. All are AgentErrors with one clear line.
        """
        with self._lock:
            if self._running or self._loading:
                raise EpisodeRunning(
                    "a policy is swapped between episodes only; stop the rollout first"
                )
            self._loading = True
        try:
            header = {"kind": "load", "dir": str(policy_dir.resolve())}
            reply = self._channel.request(header, timeout_s)
            if reply.kind != "loaded":
                raise PolicyRefused(str(reply.header.get("error", reply.kind)))
            loaded = _read_loaded(reply.header)
            greeting = self._channel.greet_with(header)  # a restarted process loads it again
            ready = self._make_ready(loaded, greeting)
            self._ready = ready
            return ready.loaded
        finally:
            self._loading = False

    def unload(self) -> None:
        """Forget the policy; the next episode needs a `load`. Raises EpisodeRunning."""
        with self._lock:
            if self._running or self._loading:
                raise EpisodeRunning("a policy is unloaded between episodes only")
            self._ready = None
            self._channel.greet_with(None)

    def begin(self, observation: Observation, now_s: float) -> None:
        """Start an episode with the loaded policy and ask for its first chunk."""
        with self._lock:
            self._running = True
            self._episode = None if self._loading else self._ready
        self._fault = None
        self._trouble = None
        self.blind = False
        self._asked_s.clear()
        self._latencies_s.clear()
        if self._episode is None:
            self._fault = "no policy is loaded; arm the rollout first"
            return
        self._episode.scheduler.begin()
        self._take_replies(self._episode, observation.tick, now_s)
        self._ask(self._episode, observation, now_s)

    def action(self, observation: Observation, now_s: float) -> SourceAction:
        """Return the goal for this tick, a hold, or the fault that ended the episode."""
        episode = self._episode
        if episode is not None and self._fault is None:
            self._take_replies(episode, observation.tick, now_s)
            self._ask(episode, observation, now_s)
            step = episode.scheduler.step(observation.tick, now_s)
            if step.overdue:
                self._fault = f"no action from the policy for {step.held_s:.1f} s: {self._why()}"
            elif self._fault is None:
                return SourceAction(goal=step.action)
        return SourceAction(goal=None, fault=self._fault or "no episode was begun")

    def end(self) -> None:
        """End the episode; what is still on its way is dropped when it comes."""
        self._episode = None
        with self._lock:
            self._running = False

    def status(self) -> dict[str, Any]:
        """Return figures of the running or last episode, for the agent's status."""
        ready = self._ready
        times = sorted(self._latencies_s)
        counts = ready.scheduler.counts if ready is not None else None
        return {
            "policy": None if ready is None else ready.loaded.name,
            "connected": self._channel.connected,
            "fault": None if self.blind else self._fault,
            "asked": 0 if counts is None else counts.asked,
            "joined": 0 if counts is None else counts.joined,
            "dropped": 0 if counts is None else counts.dropped,
            "held_ticks": 0 if counts is None else counts.held_ticks,
            "played_ticks": 0 if counts is None else counts.played_ticks,
            "latency_p50_ms": round(times[len(times) // 2] * 1000.0, 2) if times else None,
            "latency_max_ms": round(times[-1] * 1000.0, 2) if times else None,
        }

    def _make_ready(self, loaded: LoadedPolicy, greeting: int) -> _Ready:
        rules = self._rules.for_chunk(loaded.chunk_size)
        if loaded.continues:
            rules = replace(rules, blend_ticks=min(rules.blend_ticks, CONTINUED_BLEND_TICKS))
        # One tick more than the policy takes: a reply is picked up at the tick after it came.
        expected = math.ceil(loaded.latency_ms / 1000.0 * rules.fps) + 1
        scheduler = ChunkScheduler(
            rules,
            chunk_size=loaded.chunk_size,
            action_size=len(loaded.spec.action_names),
            latencies_ticks=[expected],
            ids=self._ids,
        )
        names = loaded.spec.environment_names
        absent = [name for name in names if name not in self._environment_names]
        if absent:
            raise PolicyRefused(f"the policy needs {', '.join(absent)}, which is not tracked")
        where = tuple(self._environment_names.index(name) for name in names)
        return _Ready(loaded, scheduler, where, greeting)

    def _take_replies(self, episode: _Ready, tick: int, now_s: float) -> None:
        for frame in self._channel.replies():
            match frame.kind:
                case "chunk":
                    self._take_chunk(episode, frame, tick, now_s)
                case "failed":
                    if episode.scheduler.failed(_id_of(frame)):
                        self._trouble = f"the policy failed: {frame.header.get('error')}"
                case "loaded" | "refused" if frame.header.get("command") == episode.greeting:
                    self._fault = self._fault or _misgreeted(frame, episode.loaded)
                case kind if kind == GONE:
                    episode.scheduler.lost()

    def _take_chunk(
        self, episode: _Ready, frame: InferenceMessage, tick: int, now_s: float
    ) -> None:
        request = _id_of(frame)
        actions = frame.arrays.get("action")
        if actions is None or actions.dtype != np.float32:
            episode.scheduler.failed(request)
            self._trouble = "the inference process sent a chunk without actions"
            return
        offer = episode.scheduler.offer(request, actions, tick)
        asked_s = self._asked_s.pop(request, None)
        if asked_s is not None:
            self._latencies_s.append(now_s - asked_s)
        if offer is Offer.JOINED:
            self._trouble = None
        elif offer is Offer.MALFORMED:
            self._trouble = f"the policy gave a chunk {list(actions.shape)} that is no action"
        elif offer is Offer.EXPIRED:
            self._trouble = "the policy is too slow: its chunks are past when they come"

    def _ask(self, episode: _Ready, observation: Observation, now_s: float) -> None:
        if not self._channel.connected or not episode.scheduler.due(observation.tick):
            return
        inputs = self._inputs(episode, observation)
        self.blind = inputs is None
        if inputs is None:
            return
        request = episode.scheduler.ask(observation.tick)
        assert request is not None  # it was due
        self._asked_s[request] = now_s
        header = {
            "kind": "infer",
            "id": request,
            "digest": episode.loaded.digest,
            "task": self.task,
            "delay_ticks": episode.scheduler.latency_ticks,
        }
        inputs[UPCOMING] = episode.scheduler.upcoming(observation.tick)
        self._channel.submit(header, inputs)

    def _inputs(self, episode: _Ready, observation: Observation) -> dict[str, Array] | None:
        """Return the policy's view of the observation, or None when part of it is missing."""
        spec = episode.loaded.spec
        inputs: dict[str, Array] = {STATE: np.array(observation.state, dtype=np.float32)}
        if episode.environment:
            places = observation.environment[list(episode.environment)].astype(np.float32)
            if not np.isfinite(places).all():
                self._trouble = f"{', '.join(spec.environment_names)} is out of sight"
                return None
            inputs[ENVIRONMENT] = places
        for camera in spec.cameras:
            frame = observation.frames.get(camera.name)
            if frame is None:
                self._trouble = f"camera {camera.name} gives no fresh picture"
                return None
            inputs[camera.key] = frame.image
        return inputs

    def _why(self) -> str:
        if not self._channel.connected:
            return "the inference process is gone; it is started again, then try again"
        return self._trouble or "the inference process does not answer (it hangs or is too slow)"


def _id_of(frame: InferenceMessage) -> int:
    request = frame.header.get("id")
    return request if isinstance(request, int) else 0


def _misgreeted(frame: InferenceMessage, loaded: LoadedPolicy) -> str | None:
    """Return why a process that was restarted cannot go on with the episode's policy."""
    if frame.kind == "refused":
        return (
            f"the inference process came back but cannot load {loaded.name}: "
            f"{frame.header.get('error')}"
        )
    if frame.header.get("digest") != loaded.digest:
        return f"the inference process came back with another {loaded.name}; arm the rollout again"
    return None


def _read_loaded(header: Mapping[str, Any]) -> LoadedPolicy:
    try:
        return LoadedPolicy(
            name=str(header["policy"]),
            version=int(header["version"]),
            digest=str(header["digest"]),
            latency_ms=float(header["latency_ms"]),
            spec=PolicySpec.from_json(header["spec"]),
            continues=header.get("continues") is True,
        )
    except (KeyError, TypeError, ValueError, BadSpec) as error:
        raise BadFrame(f"the inference process answered 'loaded' without sense: {error}") from error
