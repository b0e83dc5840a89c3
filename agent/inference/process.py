"""The process that runs the policy: `python -m agent.inference.process --config FILE`.

It may hang or die; the control loop does not wait for it. It connects to the inference socket and
answers two things: `load` (a policy folder, checked against its manifest and this robot) and
`infer` (an observation). Of several observations that wait, only the newest is worked on.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2

from agent.child.entry import run_as_child
from agent.child.link import ChildLink
from agent.config import AgentConfig
from agent.inference.channel import InferenceEnd
from agent.inference.errors import BadFrame, ControlGone
from agent.inference.wire import UPCOMING, Array, InferenceMessage
from agent.policies.compatibility import RobotSignature, incompatibilities
from agent.policies.errors import PolicyRefused
from agent.policies.graph import measure_latency_ms, percentile
from agent.policies.host_graph import load_for_host
from policy.errors import BadObservation, PolicyError
from policy.kinds import PREFIX_WEIGHTS, PREVIOUS
from policy.release.folder import PolicyFolder, read_policy_folder
from policy.rtc import prefix_weights, previous_chunk
from policy.session import OnnxPolicy, blank_observation
from policy.spec import PolicySpec

log = logging.getLogger(__name__)

_POLL_S = 0.2  # how long one wait for a request lasts: the heartbeat's period
_RECONNECT_S = 0.2
_STATUS_PERIOD_S = 1.0
_WARM_UP_RUNS = 20
_WARM_UP_S = 2.0

_POLICY_ERRORS = (PolicyRefused, PolicyError)

Reply = tuple[dict[str, Any], dict[str, Array]]


@dataclass(frozen=True)
class _Loaded:
    folder: PolicyFolder
    policy: OnnxPolicy


@dataclass
class _Counts:
    answered: int = 0
    failed: int = 0
    superseded: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=256))


class PolicyServer:
    """Answers frames. Knows no socket."""

    def __init__(self, robot: RobotSignature, threads: int) -> None:
        """Take the robot that policies must fit, and ONNX Runtime's threads."""
        self._robot = robot
        self._threads = threads
        self._loaded: _Loaded | None = None
        self.counts = _Counts()

    def answer(self, frames: list[InferenceMessage]) -> list[Reply]:
        """Answer each load, then the newest observation; older ones get no answer."""
        replies = [self._load(frame) for frame in frames if frame.kind == "load"]
        observations = [frame for frame in frames if frame.kind == "infer"]
        self.counts.superseded += max(0, len(observations) - 1)
        if observations:
            replies.append(self._infer(observations[-1]))
        return replies

    def status(self) -> dict[str, Any]:
        """Return what the agent's status shows of this process."""
        loaded = self._loaded
        times = list(self.counts.latencies_ms)
        return {
            "policy": None if loaded is None else loaded.folder.name,
            "version": None if loaded is None else loaded.folder.manifest.version,
            "answered": self.counts.answered,
            "failed": self.counts.failed,
            "superseded": self.counts.superseded,
            "latency_p50_ms": round(percentile(times, 50), 3) if times else None,
            "latency_p99_ms": round(percentile(times, 99), 3) if times else None,
        }

    def _load(self, frame: InferenceMessage) -> Reply:
        command = frame.header.get("command")
        try:
            loaded, latency_ms = self._open(Path(str(frame.header.get("dir"))))
        except _POLICY_ERRORS as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            log.warning("policy refused: %s", line)
            return {"kind": "refused", "command": command, "error": line}, {}
        self._loaded = loaded
        log.info("policy %s loaded, %.1f ms a chunk", loaded.folder.name, latency_ms)
        return {
            "kind": "loaded",
            "command": command,
            "policy": loaded.folder.name,
            "version": loaded.folder.manifest.version,
            "digest": loaded.folder.onnx_digest,
            "latency_ms": latency_ms,
            "continues": PREVIOUS in loaded.policy.inputs,
            "spec": loaded.folder.spec.to_json(),
        }, {}

    def _open(self, path: Path) -> tuple[_Loaded, float]:
        folder = read_policy_folder(path)
        reasons = incompatibilities(folder.spec, self._robot)
        if reasons:
            raise PolicyRefused(f"policy {folder.name} does not fit: {'; '.join(reasons)}")
        policy = load_for_host(folder, self._threads)
        times = measure_latency_ms(
            policy, blank_observation(folder.spec), runs=_WARM_UP_RUNS, within_s=_WARM_UP_S
        )
        return _Loaded(folder, policy), percentile(times, 50)

    def _infer(self, frame: InferenceMessage) -> Reply:
        request = frame.header.get("id")
        loaded = self._loaded
        begun_s = time.perf_counter()
        try:
            if loaded is None:
                raise PolicyRefused("no policy is loaded")
            if frame.header.get("digest") != loaded.folder.onnx_digest:
                raise PolicyRefused(f"another policy is loaded: {loaded.folder.name}")
            task = str(frame.header.get("task", ""))
            observation = _scaled(_continuing(loaded.policy, frame), loaded.folder.spec)
            actions = loaded.policy.infer(observation, task)
        except _POLICY_ERRORS as error:
            self.counts.failed += 1
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            return {"kind": "failed", "id": request, "error": line}, {}
        took_ms = (time.perf_counter() - begun_s) * 1000.0
        self.counts.answered += 1
        self.counts.latencies_ms.append(took_ms)
        return {"kind": "chunk", "id": request, "inference_ms": took_ms}, {"action": actions}


def _continuing(policy: OnnxPolicy, frame: InferenceMessage) -> dict[str, Array]:
    """The observation; for a policy that continues a chunk, with the one in flight.

    Rows that are played before the answer comes bind it fully, the rest of them less and less.
    Raises BadObservation for rows of another width.
    """
    observation = dict(frame.arrays)
    left = observation.pop(UPCOMING, None)
    if left is None or not len(left) or PREVIOUS not in policy.inputs:
        return observation
    size, width = policy.inputs[PREVIOUS][1][1:]
    if left.ndim != 2 or left.shape[1] != width:
        raise BadObservation(f"{UPCOMING} is {list(left.shape)}, the policy wants [N, {width}]")
    delay = frame.header.get("delay_ticks")
    delay = delay if isinstance(delay, int) else 0
    observation[PREVIOUS] = previous_chunk(left, size)
    observation[PREFIX_WEIGHTS] = prefix_weights(delay, min(len(left), size), size)
    return observation


def _scaled(observation: dict[str, Array], spec: PolicySpec) -> dict[str, Array]:
    """The observation with each picture at the policy's size, made as for its training.

    One that cannot be scaled stays: the policy refuses it.
    """
    for camera in spec.cameras:
        picture = observation.get(camera.key)
        if (
            picture is not None
            and picture.ndim == 3
            and picture.shape[:2] != (camera.height, camera.width)
            and camera.accepts(*picture.shape[:2])
        ):
            observation[camera.key] = cv2.resize(
                picture, (camera.width, camera.height), interpolation=cv2.INTER_AREA
            )
    return observation


def serve(config: AgentConfig, _path: Path, link: ChildLink) -> None:
    """Serve until the supervisor is gone. Raises LinkClosed."""
    serve_at(config.inference_socket, config, link)


def serve_at(socket: Path, config: AgentConfig, link: ChildLink) -> None:
    """Serve whoever listens at `socket`. Raises LinkClosed."""
    server = PolicyServer(RobotSignature.of(config), config.rollout.threads)
    complained = False
    while True:
        link.heartbeat()
        try:
            end = InferenceEnd(socket)
        except ControlGone as error:
            if not complained:
                log.warning("%s; trying again", error)
                complained = True
            link.receive(_RECONNECT_S)
            continue
        complained = False
        log.info("connected to control")
        try:
            _serve_connection(end, server, link)
        except (ControlGone, BadFrame) as error:
            log.warning("%s", error)
        finally:
            end.close()


def _serve_connection(end: InferenceEnd, server: PolicyServer, link: ChildLink) -> None:
    next_status_s = 0.0
    while True:
        link.heartbeat()
        while link.receive() is not None:
            pass  # the supervisor's state changes nothing here; reading it notices its end
        for header, arrays in server.answer(end.receive(_POLL_S)):
            end.send(header, arrays)
        if time.monotonic() >= next_status_s:
            next_status_s = time.monotonic() + _STATUS_PERIOD_S
            link.send("status", **server.status())


if __name__ == "__main__":
    run_as_child(serve)
