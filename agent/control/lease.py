"""The operator's lease on a rollout: whoever started it must be heard of, or it ends."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

from agent.errors import Refused


class OperatorLease:
    """Held from `begin` to `end`; lost when it is not renewed for `lasts_s`. Safe in any thread."""

    def __init__(self, lasts_s: float, clock: Callable[[], float]) -> None:
        self.lasts_s = lasts_s
        self._clock = clock
        self._lock = threading.Lock()
        self._token: str | None = None
        self._until_s = 0.0

    @property
    def held(self) -> bool:
        """True while an operator has it, also one who is late."""
        return self._token is not None

    def begin(self) -> str:
        """A new operator; the token that renews. Whoever had the lease before has it no more."""
        token = secrets.token_hex(8)
        with self._lock:
            self._token = token
            self._until_s = self._clock() + self.lasts_s
        return token

    def renew(self, token: str) -> None:
        """The operator was heard of. Raises Refused where the token's lease is over."""
        with self._lock:
            if token != self._token:
                raise Refused("this rollout's lease is over; arm it again (rollout/arm)")
            self._until_s = self._clock() + self.lasts_s

    def end(self) -> None:
        """Nobody needs to be heard of any more."""
        with self._lock:
            self._token = None

    def end_if_lost(self) -> bool:
        """True once, when the operator was not heard of in time; the lease is then over."""
        with self._lock:
            lost = self._token is not None and self._clock() > self._until_s
            if lost:
                self._token = None
        return lost
