"""Paces the loop by absolute deadline, and says what rate was held."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pacer:
    """Deadlines at start + n × period. A tick that is late does not move those after it.

    A tick that ends after its deadline is counted; deadlines that have passed altogether are
    counted too and skipped, never made up for by a burst.
    """

    def __init__(
        self,
        period_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.period_s = period_s
        self.missed = 0
        self._clock = clock
        self._sleep = sleep
        self._deadline_s = clock()

    def restart(self) -> None:
        """Begin anew: the next deadline is one period from now."""
        self._deadline_s = self._clock()

    def wait(self) -> None:
        """Sleep until the next deadline; count those that were missed."""
        self._deadline_s += self.period_s
        remaining_s = self._deadline_s - self._clock()
        if remaining_s > 0:
            self._sleep(remaining_s)
            return
        behind = int(-remaining_s / self.period_s)  # whole periods that passed unused
        self.missed += 1 + behind
        self._deadline_s += behind * self.period_s


class RateMeter:
    """The rate held over a session, from its first tick to its last."""

    def __init__(self) -> None:
        self._first_s = self._last_s = 0.0
        self.ticks = 0

    def restart(self) -> None:
        """A new session begins."""
        self.ticks = 0

    def tick(self, now_s: float) -> None:
        """One tick was made."""
        if self.ticks == 0:
            self._first_s = now_s
        self._last_s = now_s
        self.ticks += 1

    @property
    def rate_hz(self) -> float | None:
        """Ticks a second; None before the second tick."""
        if self.ticks < 2 or self._last_s <= self._first_s:
            return None
        return (self.ticks - 1) / (self._last_s - self._first_s)
