"""The operator of a rollout, while this process lives: keeps the lease that arming gave."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Any, Self

from agent.client import AgentClient
from agent.errors import AgentUnreachable, RequestFailed
from host.threads import spawn

log = logging.getLogger(__name__)

BEATS_A_LEASE = 5


class RolloutOperator:
    """A context manager. `arm` begins the lease; a thread renews it until the exit."""

    def __init__(self, client: AgentClient) -> None:
        self._client = client
        self._lease: str | None = None
        self._period_s = 0.2
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def arm(self, policy: str = "active") -> dict[str, Any]:
        """Load a policy and hold its lease. Raises AgentClientError."""
        armed = self._client.rollout_arm(policy=policy)
        self._period_s = float(armed["lease_s"]) / BEATS_A_LEASE
        self._lease = str(armed["lease"])
        return armed

    def __enter__(self) -> Self:
        self._thread = spawn("lease", self._renew, self._crashed)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        if self._thread is not None:
            self._thread.join()

    def _crashed(self, line: str) -> None:
        """Nobody renews now, so the arm holds and parks within the lease."""
        del line  # logged where it was caught
        self._lease = None

    def _renew(self) -> None:
        while not self._ending.wait(self._period_s):
            lease = self._lease
            if lease is None:
                continue
            try:
                self._client.rollout_beat(lease=lease)
            except AgentUnreachable as error:
                log.debug("%s", error)  # the next beat may come through
            except RequestFailed as error:
                log.debug("%s", error)  # over: the episode's outcome says why
                if self._lease == lease:
                    self._lease = None
