"""Question and answer over a grid that is slow, silent, or gone: nobody waits longer than said."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from coordinator.federation import fleet as fleet_module
from coordinator.federation.errors import SuperLinkRefused, SuperLinkUnreachable
from coordinator.federation.fleet import GridFleet

SLACK_S = 3.0  # for a busy machine


def public_key():
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


KEYS = [public_key() for _ in range(3)]


class FakeGrid:
    """The calls of Flower's Grid that we use. `answers`: node id -> what a pull gives for it."""

    def __init__(self, answers):
        self.answers = answers
        self.pushed = {}
        self.nodes = self.list_nodes

    def list_nodes(self):
        return [
            SimpleNamespace(node_id=i, public_key=key.encode()) for i, key in enumerate(KEYS, 1)
        ]

    def get_nodes(self):
        return self.nodes()

    def push_messages(self, messages):
        self.pushed = {f"m{m.metadata.dst_node_id}": m for m in messages}
        return list(self.pushed)

    def pull_messages(self, message_ids):
        (message_id,) = message_ids
        asked = self.pushed[message_id]
        asked.metadata.__dict__["_message_id"] = message_id
        return self.answers[asked.metadata.dst_node_id](asked)


def hang(*_arguments):
    threading.Event().wait(30)


@pytest.fixture(autouse=True)
def task(monkeypatch):
    """Flower gives a message the identity of the task that its process executes."""
    for name, value in (("run_id", 5), ("node_id", 1), ("task_id", 6)):
        monkeypatch.setattr(TaskIdentity, f"_{name}", value, raising=False)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(fleet_module, "RETRY_FOR_S", 0.3)
    monkeypatch.setattr(fleet_module, "PROBE_S", 0.3)


def ask(fleet, timeout_s):
    fleet.connected()
    answers = fleet.ask("train", {key: RecordDict() for key in KEYS}, timeout_s)
    return {KEYS.index(answer.public_key): answer for answer in answers}


def test_each_node_has_one_answer_and_a_mute_one_costs_the_deadline(quick):
    content = RecordDict()
    grid = FakeGrid(
        {
            1: lambda asked: [Message(content, reply_to=asked)],
            2: lambda asked: [Message(Error(0, "nothing gained yet"), reply_to=asked)],
            3: lambda asked: [],
        }
    )
    fleet = GridFleet(grid, "here:1")
    started_s = time.monotonic()
    answers = ask(fleet, 1.0)
    assert time.monotonic() - started_s < 1.0 + SLACK_S
    assert answers[0].problem is None and answers[0].content is not None
    assert (answers[1].content, answers[1].problem) == (None, "nothing gained yet")
    assert answers[2].problem == "no answer within 1 s"
    assert not fleet.lost


def test_a_message_lives_no_longer_than_its_round(quick):
    grid = FakeGrid(dict.fromkeys((1, 2, 3), lambda asked: []))
    ask(GridFleet(grid, "here:1"), 0.5)
    assert {message.metadata.ttl for message in grid.pushed.values()} == {0.5}


def test_a_pull_that_blocks_or_fails_holds_up_nobody_else(quick):
    def fail(_asked):
        raise ValueError("cannot be inflated")

    grid = FakeGrid({1: lambda asked: [Message(RecordDict(), reply_to=asked)], 2: hang, 3: fail})
    answers = ask(GridFleet(grid, "here:1"), 1.0)
    assert answers[0].content is not None
    assert answers[1].problem == "no answer within 1 s"
    assert answers[2].problem == "reply could not be pulled: cannot be inflated"


def test_a_superlink_that_is_silent_is_given_up_and_the_run_with_it(quick):
    grid = FakeGrid({})
    grid.nodes = hang
    fleet = GridFleet(grid, "here:1")
    with pytest.raises(SuperLinkUnreachable, match="no SuperLink answers at here:1"):
        fleet.connected()
    assert fleet.lost


def test_a_superlink_that_dies_while_members_work_is_the_reason_that_is_told(quick):
    grid = FakeGrid(dict.fromkeys((1, 2, 3), lambda asked: []))
    fleet = GridFleet(grid, "here:1")
    fleet.connected()
    answers = fleet.ask("train", {key: RecordDict() for key in KEYS}, 0.5)
    grid.nodes = hang
    assert {answer.problem for answer in answers} == {
        "no SuperLink answers at here:1 (for 0 s); start `armada coordinator superlink`"
    }
    assert fleet.lost


class RunNotRunning(BaseException):
    """As Flower's, which is no Exception."""


def refuse(error):
    def call(*_arguments):
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (httpx.ConnectError("refused"), SuperLinkUnreachable),
        (
            httpx.HTTPStatusError(
                "401", request=httpx.Request("POST", "https://x"), response=httpx.Response(401)
            ),
            SuperLinkRefused,
        ),
        (RunNotRunning(), SuperLinkRefused),
    ],
)
def test_a_run_that_is_over_is_one_clear_line_and_no_more_use(quick, error, raised):
    grid = FakeGrid({})
    grid.nodes = refuse(error)
    fleet = GridFleet(grid, "here:1")
    with pytest.raises(raised) as caught:
        fleet.connected()
    assert "\n" not in str(caught.value)
    assert fleet.lost


def test_a_fault_of_ours_is_not_taken_for_one_of_the_superlink(quick):
    grid = FakeGrid({})
    grid.nodes = refuse(KeyError("ours"))
    with pytest.raises(KeyError):
        GridFleet(grid, "here:1").connected()
