"""Speaks to a running agent over its Unix socket."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from agent.errors import AgentClientError, AgentUnreachable, RequestFailed

__all__ = ["AgentClient", "AgentClientError", "AgentUnreachable", "RequestFailed"]

TIMEOUT_S = 120.0  # loading a policy on a small host is the slowest answer


class AgentClient:
    """One method a call of `agent.supervisor.api`; each returns the reply's fields.

    Raises AgentClientError: AgentUnreachable when no agent answers, RequestFailed with the
    agent's own line.
    """

    def __init__(self, socket_path: Path, timeout_s: float = TIMEOUT_S) -> None:
        self._socket_path = socket_path
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket_path)),
            base_url="http://agent",
            timeout=timeout_s,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def status(self) -> dict[str, Any]:
        """GET /v1/status."""
        return self._call("GET", "/v1/status", None)

    def post(self, path: str, **fields: Any) -> dict[str, Any]:
        """POST to /v1/<path>."""
        return self._call("POST", f"/v1/{path}", fields)

    def calibrate(self, arm: str, step: str) -> dict[str, Any]:
        """One step: homing, range_start or range_finish."""
        return self.post("calibrate", arm=arm, step=step)

    def teleop_start(self) -> dict[str, Any]:
        """Let the leader take command."""
        return self.post("teleop/start")

    def teleop_stop(self) -> dict[str, Any]:
        """Park, release, go idle."""
        return self.post("teleop/stop")

    def record_start(self, task: str) -> dict[str, Any]:
        """Begin an episode."""
        return self.post("record/start", task=task)

    def record_finish(self) -> dict[str, Any]:
        """Save the episode."""
        return self.post("record/finish")

    def record_discard(self) -> dict[str, Any]:
        """Throw the episode away."""
        return self.post("record/discard")

    def rollout_arm(self, policy: str) -> dict[str, Any]:
        """Load a policy."""
        return self.post("rollout/arm", policy=policy)

    def rollout_start(
        self, seconds: float, task: str | None = None, record: bool = False
    ) -> dict[str, Any]:
        """Begin an episode of the loaded policy."""
        return self.post("rollout/start", seconds=seconds, task=task, record=record)

    def rollout_stop(self) -> dict[str, Any]:
        """End the episode; the arm is parked when this returns."""
        return self.post("rollout/stop")

    def rollout_disarm(self) -> dict[str, Any]:
        """Unload the policy, go idle."""
        return self.post("rollout/disarm")

    def park(self) -> dict[str, Any]:
        """Park and release from wherever the arm is."""
        return self.post("park")

    def estop(self, release: bool = False) -> dict[str, Any]:
        """Stop now."""
        return self.post("estop", release=release)

    def reset(self) -> dict[str, Any]:
        """Leave fault or emergency stop; open the ports again."""
        return self.post("reset")

    def _call(self, method: str, path: str, fields: dict[str, Any] | None) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, json=fields)
        except httpx.TimeoutException as error:
            raise AgentUnreachable(
                f"the agent at {self._socket_path} did not answer {path} in time"
            ) from error
        except httpx.TransportError as error:
            raise AgentUnreachable(
                f"no agent answers at {self._socket_path} ({error}); "
                "start it by `armada agent run --config FILE`"
            ) from error
        try:
            reply = response.json()
        except ValueError as error:
            raise RequestFailed(
                f"{path}: the agent answered {response.status_code} without JSON"
            ) from error
        if response.is_error or not isinstance(reply, dict):
            line = reply.get("error") if isinstance(reply, dict) else None
            raise RequestFailed(str(line or f"{path}: the agent answered {response.status_code}"))
        return reply
