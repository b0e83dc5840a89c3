"""The control process: `python -m agent.control.process --config FILE`.

The main thread is the loop. Two threads speak with the supervisor, a few carry out commands, one
writes the journal, one reads each camera. When one of them dies, its last line is a fault; when
the loop dies, the arm holds and the process ends, to be started again.
"""

from __future__ import annotations

import gc
import logging
import os
import queue
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import cv2

from agent.child.entry import run_as_child
from agent.child.link import ChildLink
from agent.config import AgentConfig
from agent.control.arm_controller import ArmController
from agent.control.arms import Arms
from agent.control.cameras import Cameras
from agent.control.commands import Commands
from agent.control.loop import Tick
from agent.control.policy_source import PolicySource
from agent.control.recorded_tick import record_tick
from agent.control.shadow import Shadow
from agent.errors import AgentError, LinkClosed
from agent.inference.channel import PolicyChannel
from agent.recording.session import RecordingSession
from host.threads import exit_process, guarded, spawn
from robot_io.errors import RobotIOError

log = logging.getLogger(__name__)

STATUS_PERIOD_S = 0.2
HEARTBEAT_PERIOD_S = 0.5
LISTEN_S = 0.05
WORKERS = 4


class ControlProcess:
    """Puts the parts together and connects them with the supervisor."""

    def __init__(self, config: AgentConfig, link: ChildLink) -> None:
        self._config = config
        self._link = link
        self._closing = threading.Event()
        self._outbox: queue.SimpleQueue[tuple[str, dict[str, Any]] | None] = queue.SimpleQueue()
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="command")
        self._channel = PolicyChannel(
            config.inference_socket, config.control.realtime_priority, self._crashed
        )
        self._policy = PolicySource.from_config(config, self._channel)
        self._shadow_channel = PolicyChannel(config.shadow_socket, 0, self._crashed)
        self._shadow = Shadow(
            PolicySource.from_config(config, self._shadow_channel), config.control.fps
        )
        self._casting: Future[None] | None = None
        self._recording = RecordingSession(
            config, lambda: self._controller.pacer.missed, on_crash=self._crashed
        )
        self._controller = ArmController(
            config,
            Arms(config, time.monotonic),
            Cameras(config),
            {"recording": self._record, "rollout": self._count, "shadow": self._compare},
            self._on_event,
        )
        self._commands = Commands(config, self._controller, self._recording, self._policy)

    def run(self) -> None:
        """Until SIGTERM, SIGINT or the end of the supervisor; parks first."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        for path in self._recording.recovered:
            log.warning("an unfinished episode is kept aside: %s", path)
        self._channel.open()
        self._shadow_channel.open()
        self._controller.cameras.open()
        threads = [
            spawn("link-in", self._listen, self._crashed),
            spawn("link-out", self._speak, self._crashed),
        ]
        _take_priority(self._config.control.realtime_priority)
        gc.freeze()  # what is loaded stays; the collector need not walk it within a tick
        guarded("the control loop", self._controller.run, exit_process)()
        self._closing.set()
        self._recording.close()
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._channel.close()
        self._shadow_channel.close()
        self._outbox.put(None)
        for thread in threads:
            thread.join(1.0)
        self._link.close()

    def _crashed(self, line: str) -> None:
        """The last word of a thread. Told at once: it may be the one that tells the status."""
        self._controller.crashed(line)
        self._outbox.put(("status", self.status()))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._controller.end()

    # On the loop thread.

    def _record(self, tick: Tick) -> None:
        if self._controller.phase.purpose != "park":
            record_tick(self._recording, tick, intervention=self._commands.corrected_by_person)

    def _count(self, tick: Tick) -> None:
        self._commands.tick(clamped=tick.clamped)

    def _compare(self, tick: Tick) -> None:
        if self._controller.phase.purpose in (None, "park"):
            self._shadow.pause()
        else:
            self._shadow.tick(tick)

    def _on_event(self, name: str, reason: str | None) -> None:
        self._commands.motion_ended(name, reason)
        # The status first, so that whoever hears of the event finds it told.
        self._outbox.put(("status", self.status()))
        self._outbox.put(("event", {"name": name, "reason": reason}))
        if not self._closing.is_set():
            finish = self._commands.finish_recorded_rollout
            self._workers.submit(guarded("saving the rollout", finish, self._crashed))

    # The link.

    def _listen(self) -> None:
        """Commands in; heartbeats and the status out, as long as the loop moves on."""
        status_due_s = beat_due_s = 0.0
        beats = -1
        while not self._closing.is_set():
            try:
                message = self._link.receive(LISTEN_S)
            except LinkClosed:
                log.warning("the supervisor is gone; parking")
                self._controller.end()
                return
            if message is not None and message["kind"] == "command":
                self._submit(message)
            elif message is not None and message["kind"] == "state":
                self._cast_shadow(message.get("shadow"))
            now_s = time.monotonic()
            if now_s >= beat_due_s and self._controller.beats != beats:
                beats = self._controller.beats
                beat_due_s = now_s + HEARTBEAT_PERIOD_S
                self._outbox.put(("heartbeat", {}))
            if now_s >= status_due_s:
                status_due_s = now_s + STATUS_PERIOD_S
                self._outbox.put(("status", self.status()))

    def _cast_shadow(self, folder: str | None) -> None:
        """The supervisor tells which policy is to predict now, again and again."""
        wanted = None if folder is None else Path(folder)
        if self._casting is not None and not self._casting.done():
            return
        want = partial(self._shadow.want, wanted, self._config.rollout.load_timeout_s)
        self._casting = self._workers.submit(guarded("loading the shadow", want, self._crashed))

    def _speak(self) -> None:
        while True:
            item = self._outbox.get()
            if item is None:
                return
            kind, fields = item
            try:
                self._link.send(kind, **fields)
            except LinkClosed:
                return

    def _submit(self, message: dict[str, Any]) -> None:
        name, number = str(message["name"]), int(message["id"])

        def died(line: str) -> None:
            self._crashed(line)
            self._reply(number, {"ok": False, "error": line})

        work = partial(self._carry_out, name, number, message.get("arguments", {}))
        self._workers.submit(guarded(f"command {name}", work, died))

    def _carry_out(self, name: str, number: int, arguments: dict[str, Any]) -> None:
        try:
            result = self._commands.run(name, arguments)
        except (AgentError, RobotIOError, TimeoutError) as error:
            log.info("%s: %s", name, error)
            self._reply(number, {"ok": False, "error": str(error) or f"{name} took too long"})
        else:
            self._reply(number, {"ok": True, "result": result})

    def _reply(self, number: int, reply: dict[str, Any]) -> None:
        # The status first, so that whoever got the reply finds it told.
        self._outbox.put(("status", self.status()))
        self._outbox.put(("reply", {"id": number, **reply}))

    def status(self) -> dict[str, Any]:
        """What the supervisor merges into the agent's status."""
        controller = self._controller
        motion = controller.motion
        reading = None if motion is None else motion.reading
        rate_hz = controller.rate.rate_hz
        calibration = controller.calibration
        place = controller.view.environment
        return {
            "ready": controller.ready,
            "problems": controller.problems(),
            "phase": controller.phase.value,
            "purpose": controller.phase.purpose,
            "torque": controller.phase.energised,
            "rate_hz": None if rate_hz is None else round(rate_hz, 2),
            "ticks": controller.rate.ticks,
            "missed_deadlines": controller.pacer.missed,
            "missed_reads": 0 if motion is None else motion.missed_reads,
            "position": None if reading is None else _rounded(reading.position),
            "temperature_c": None if reading is None else _rounded(reading.temperature_c),
            "voltage_v": None if reading is None else _rounded(reading.voltage_v),
            "environment": {
                name: round(float(value), 4) if value == value else None  # NaN: not seen
                for name, value in zip(self._config.environment_names, place, strict=False)
            },
            "cameras": controller.cameras.status(),
            "calibration": {
                "arm": calibration.busy,
                "recording": calibration.recording,
                "ranges": calibration.ranges,
                "trouble": calibration.trouble,
            },
            "bus": self._bus_stats(),
            "recording": self._recording.status(),
            "rollout": self._commands.rollout_status(),
            "shadow": self._shadow.status(),
        }

    def _bus_stats(self) -> dict[str, dict[str, int]]:
        arms = {"follower": self._controller.arms.follower, "leader": self._controller.arms.leader}
        return {name: arm.bus.stats.as_dict() for name, arm in arms.items() if arm is not None}


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 2) for value in values]


def _take_priority(priority: int) -> None:
    """SCHED_FIFO for the loop's thread, else a better nice value, else one line in the log.

    SCHED_RESET_ON_FORK: what this thread starts later is not real-time.
    """
    if priority == 0:
        return
    try:
        policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except OSError as fifo_error:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -10)
        except OSError:
            log.warning(
                "no real-time priority (%s): the loop shares the CPU with everybody; "
                "allow LimitRTPRIO in the unit, or set control.realtime_priority = 0",
                fifo_error.strerror,
            )


def serve(config: AgentConfig, _path: Path, link: ChildLink) -> None:
    """Until SIGTERM, SIGINT or the end of the supervisor; parks first."""
    cv2.setNumThreads(1)  # pictures are small; the other cores belong to inference and training
    ControlProcess(config, link).run()


if __name__ == "__main__":
    run_as_child(serve)
