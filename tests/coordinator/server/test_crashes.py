"""A bug on any thread of the coordinator ends it with one line: it is started again."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.config import CoordinatorConfig
from coordinator.errors import CoordinatorError
from coordinator.identity.enrolment import Authority, create_identities
from coordinator.identity.layout import Layout
from coordinator.server.coordinator import Coordinator
from coordinator.server.https import HttpsServer


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    layout = Layout(tmp_path / "c")
    layout.root.mkdir()
    authority = Authority.create("armada", lambda: datetime.datetime.now(datetime.UTC))
    create_identities(layout, CoordinatorConfig(), authority)
    made = Coordinator(layout.root, CoordinatorConfig(), time.time)
    yield made
    made._audit.close()


@pytest.mark.parametrize("executor", ["_round_thread", "_job_thread"])
def test_work_that_dies_ends_the_coordinator_by_name(
    coordinator: Coordinator, executor: str
) -> None:
    def _build(what: str) -> None:
        raise TypeError(what)

    coordinator._submit(getattr(coordinator, executor), _build, "a bug")
    with pytest.raises(CoordinatorError, match=r"^build died: TypeError: a bug$"):
        coordinator._handle(coordinator._calls.get(timeout=5.0))


def test_a_server_thread_that_dies_ends_the_coordinator_by_name(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: Any, **__: Any) -> None:
        raise SystemExit(3)  # uvicorn's way, which a thread ends by without a word

    server = HttpsServer(coordinator._layout, "127.0.0.1", 0, None, coordinator._crashed)
    monkeypatch.setattr(server._server, "run", bug)
    server.start()
    with pytest.raises(CoordinatorError, match=r"^thread https died: SystemExit: 3$"):
        coordinator._handle(coordinator._calls.get(timeout=5.0))
    server.stop()
