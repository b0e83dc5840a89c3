"""What other threads ask of the loop thread: functions that run between two ticks."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from agent.control.arm_phases import ENDING
from agent.errors import AgentError, Refused
from robot_io.errors import RobotIOError


class LoopCalls:
    """`ask` and `leave` are for other threads, `run` and `close` for the loop's."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._closed = False

    def ask[T](self, function: Callable[[], T], timeout_s: float) -> T:
        """The function's result or exception.

        Raises TimeoutError, and then it is not run any more; Refused when the loop is over.
        """
        future = self.leave(function)
        if self._closed and future.cancel():
            raise Refused(ENDING)
        try:
            return future.result(timeout_s)
        finally:
            future.cancel()

    def leave[T](self, function: Callable[[], T]) -> Future[T]:
        """Have it run; waits for nothing and may be called in a signal handler."""
        future: Future[T] = Future()
        self._calls.put((function, future))
        return future

    def run(self, timeout_s: float | None) -> None:
        """Run what waits; with a time, wait so long for the first.

        An exception that is neither the agent's nor the arm's goes to the asker and is raised as
        well: what the function was about may have been left half done.
        """
        while True:
            try:
                if timeout_s is None:
                    function, future = self._calls.get_nowait()
                else:
                    function, future = self._calls.get(timeout=timeout_s)
            except queue.Empty:
                return
            timeout_s = None
            if not future.set_running_or_notify_cancel():
                continue  # whoever asked waits no more
            try:
                future.set_result(function())
            except (AgentError, RobotIOError) as error:
                future.set_exception(error)
            except Exception as error:
                future.set_exception(error)
                raise

    def close(self) -> None:
        """Refuse what waits, and whoever asks later."""
        self._closed = True
        while not self._calls.empty():
            _, future = self._calls.get()
            if future.set_running_or_notify_cancel():
                future.set_exception(Refused(ENDING))
