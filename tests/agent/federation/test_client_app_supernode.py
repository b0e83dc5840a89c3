"""SuperNode's own reading of its children: what the operator is told, and who is ended when."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from functools import reduce
from itertools import accumulate

import pytest

from agent.federation.supernode import SuperLinkConnection, SuperNode
from protocol.bundle import Bundle, BundleInfo, Endpoint


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def trouble(kind, detail=""):
    return {"kind": "trouble", "trouble": kind, "detail": detail}


@pytest.fixture
def bundle(tmp_path):
    info = BundleInfo(
        agent_id="arm-1",
        fleet="test",
        mqtt=Endpoint(host="127.0.0.1", port=1),
        superlink=Endpoint(host="127.0.0.1", port=free_port()),
        https=Endpoint(host="127.0.0.1", port=2),
    )
    return Bundle(tmp_path / "bundle", info)


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([trouble("certificate")], "its certificate is not from the authority in"),
        ([trouble("tls")], "TLS with the SuperLink at .* failed; see the SuperNode's log"),
        ([trouble("silence")], "no SuperLink answers at .*; trying again"),
        ([trouble("unknown")], "does not know this robot's key"),
        ([trouble("refused", "HTTP 409 something new")], "cannot join .*: HTTP 409 something new$"),
        ([{"kind": "connected", "node_id": 7}, trouble("silence")], "no SuperLink answers"),
        ([], None),
        ([trouble("silence"), {"kind": "connected", "node_id": 7}], None),
        ([{"kind": "connected", "node_id": 7}, trouble("silence"), {"kind": "well"}], None),
        ([{"kind": "something new"}, {"kind": "connected", "node_id": "seven"}], None),
    ],
)
def test_what_the_connection_does_comes_down_to_one_line(bundle, messages, told):
    connection = reduce(SuperLinkConnection.after, messages, SuperLinkConnection())
    line = connection.error(bundle)
    if told is None:
        assert line is None
    else:
        assert line is not None
        assert "\n" not in line
        assert re.search(told, line)


def test_a_connection_that_was_lost_keeps_its_node():
    told = [{"kind": "connected", "node_id": 7}, trouble("silence"), {"kind": "well"}]
    first = SuperLinkConnection()
    seen = list(accumulate(told, SuperLinkConnection.after, initial=first))
    assert [connection.node_id for connection in seen] == [None, 7, 7, 7]


def test_before_start_and_after_stop_nothing_runs(bundle, tmp_path):
    node = SuperNode(bundle, tmp_path / "node", tmp_path / "training")
    assert node.poll().state == "stopped"
    node.stop()
    assert node.pids is None


def test_a_key_that_is_missing_ends_in_a_clear_line_and_another_try(bundle, tmp_path):
    now_s = 0.0
    node = SuperNode(bundle, tmp_path / "node", tmp_path / "training", clock=lambda: now_s)
    node.start()
    try:
        first = node.pids
        deadline = time.monotonic() + 60
        while node.poll().state != "failed":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        status = node.poll()
        assert status.error
        assert "\n" not in status.error
        assert node.pids is None
        now_s = 1.5
        assert node.poll().restarts == 1
        assert node.pids not in (None, first)
    finally:
        node.stop()
    assert node.poll().state == "stopped"


def test_the_children_end_with_the_process_that_started_them(bundle, tmp_path):
    code = f"""
import os, sys, time
from pathlib import Path
from agent.federation.supernode import SuperNode
from protocol.bundle import Bundle, BundleInfo
info = BundleInfo.model_validate_json({bundle.info.model_dump_json()!r})
node = SuperNode(Bundle(Path({str(bundle.folder)!r}), info), Path({str(tmp_path / "node")!r}),
                 Path({str(tmp_path / "training")!r}))
node.start()
print(*node.pids, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(text) for text in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a child outlived its parent"
        time.sleep(0.1)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
