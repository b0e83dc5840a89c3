"""The one way to ask an API of ours: JSON over a kept connection, one line for what fails."""

from __future__ import annotations

from types import TracebackType
from typing import Any, ClassVar, Self

import httpx


class JsonClient:
    """A context manager. Subclasses say whom they speak to, and what they raise."""

    whom: ClassVar[str]
    unreachable: ClassVar[type[Exception]]  # nobody answers, or not in time
    failed: ClassVar[type[Exception]]  # the answer is an error; the text is the other side's line

    def __init__(self, http: httpx.Client, where: str, mend: str) -> None:
        """`where` names the address in errors, `mend` what to do when nobody answers there."""
        self._http = http
        self._where = where
        self._mend = mend

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

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The reply's fields. Raises `unreachable` and `failed`, each with one line."""
        try:
            response = self._http.request(method, path, json=body)
        except httpx.TimeoutException as error:
            raise self.unreachable(
                f"the {self.whom} at {self._where} did not answer {path} in time"
            ) from error
        except httpx.HTTPError as error:
            raise self.unreachable(
                f"no {self.whom} answers at {self._where} ({error}); {self._mend}"
            ) from error
        try:
            reply = response.json()
        except ValueError:
            reply = None
        if response.is_error or not isinstance(reply, dict):
            line = reply.get("error") if isinstance(reply, dict) else None
            raise self.failed(
                str(line or f"{path}: the {self.whom} answered {response.status_code} without JSON")
            )
        return reply
