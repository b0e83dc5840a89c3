"""When a process that died is started again, and when silence is death. Pure: times come in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """The pause before the next start, by the deaths in a row: `first_s`, doubled up to `last_s`.

    The first `at_once` deaths are followed by no pause. A process that lived for `steady_s` has
    its earlier deaths forgotten.
    """

    first_s: float = 0.5
    last_s: float = 30.0
    steady_s: float = 30.0
    at_once: int = 0

    def pause_s(self, deaths: int) -> float:
        """How long to wait before the next start, after so many deaths in a row."""
        doublings = deaths - self.at_once - 1
        if doublings < 0:
            return 0.0
        return float(min(self.last_s, self.first_s * 2 ** min(doublings, 32)))


class RestartTimer:
    """Counts the deaths of one process in a row and says when it may be started again."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._deaths = 0
        self._not_before_s = float("-inf")

    def due(self, now_s: float) -> bool:
        """May it be started now?"""
        return now_s >= self._not_before_s

    def died(self, now_s: float, lived_s: float = 0.0) -> float:
        """It died unasked, or could not be started; returns the pause before the next start, s."""
        self._deaths = 1 if lived_s >= self._backoff.steady_s else self._deaths + 1
        pause_s = self._backoff.pause_s(self._deaths)
        self._not_before_s = now_s + pause_s
        return pause_s

    def forget(self) -> None:
        """It ended because it was asked to, or it is well: the next start is not delayed."""
        self._deaths = 0
        self._not_before_s = float("-inf")


def is_silent(
    now_s: float, last_beat_s: float | None, limit_s: float, *, frozen: bool = False
) -> bool:
    """Has it been silent for longer than `limit_s`? Not before its first beat, nor while frozen."""
    return last_beat_s is not None and not frozen and now_s - last_beat_s > limit_s
