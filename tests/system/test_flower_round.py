"""Real SuperLink, three real SuperNodes, TLS with our own authority, nodes known by their keys."""

from __future__ import annotations

import datetime
import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StopRunRequest
from flwr.proto.fab_pb2 import Fab

from agent.federation.supernode import SuperNode
from agent.training.exchange import BaseInfo, TrainingExchange
from coordinator.config import CoordinatorConfig, Ports
from coordinator.federation import flower_runtime
from coordinator.federation.driver import Member, RoundDriver, RoundOrder
from coordinator.federation.errors import FederationError
from coordinator.federation.orders import RoundResult
from coordinator.federation.server_jobs import RoundJob
from coordinator.federation.superlink import (
    FLOWER_ENVIRONMENT,
    superlink_access,
    superlink_command,
)
from coordinator.identity.enrolment import Authority, create_identities, enrol
from coordinator.identity.layout import Layout
from policy.statistics import Normalizer
from policy.weights import load_weights, save_weights, weights_digest
from protocol.bundle import load_bundle
from protocol.contribution import Contribution
from protocol.eligibility import Terms

pytestmark = pytest.mark.system

NODES = 3
START_LIMIT_S = 90.0
BASE = {
    "w": np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32),
    "b": np.array([0.5], np.float32),
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, limit_s=START_LIMIT_S):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def wall():
    return datetime.datetime.now(datetime.UTC)


class RealFleet:
    """One SuperLink and NODES SuperNodes with their exchanges."""

    def __init__(self, folder: Path):
        self.folder = folder
        ports = Ports(mqtt=free_port(), superlink=free_port(), https=free_port())
        self.config = CoordinatorConfig(ports=ports)
        layout = Layout(folder)
        self.authority = Authority.create("test", wall)
        create_identities(layout, self.config, self.authority)
        enrolled = [
            enrol(layout, self.config, f"arm-{i}", folder / f"bundle-{i}", self.authority, 0.0)
            for i in range(NODES)
        ]
        self.members = [Member(agent_id=a.agent_id, public_key=a.public_key) for a in enrolled]
        self.exchanges = [TrainingExchange(folder / f"exchange-{i}") for i in range(NODES)]
        self.access = superlink_access(folder, self.config)
        self.driver = RoundDriver(self.access, folder / "rounds")
        self.nodes = [
            SuperNode(load_bundle(folder / f"bundle-{i}"), folder / f"node-{i}", exchange.folder)
            for i, exchange in enumerate(self.exchanges)
        ]
        self.superlink = None

    def start(self):
        self.start_superlink()
        wait_until(self.registered)
        for node in self.nodes:
            node.start()
        wait_until(lambda: all(node.poll().state == "connected" for node in self.nodes))

    def start_superlink(self):
        command, environment = superlink_command(self.folder, self.config)
        with (self.folder / "superlink.log").open("ab") as log:
            self.superlink = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def registered(self):
        try:
            return len(self.driver.register(self.members)) == NODES
        except FederationError:
            return False

    def stop(self):
        self.driver.close()
        for node in self.nodes:
            node.stop()
        if self.superlink is not None:
            self.superlink.kill()
            self.superlink.wait()

    def order(self, number, kind, **changes):
        path = self.folder / "base.safetensors"
        save_weights(path, BASE)
        fields = {
            "round": number,
            "kind": kind,
            "members": self.members,
            "base_weights": path,
            "base_info": base_info().model_dump(mode="json"),
            "terms": Terms(bases=(weights_digest(BASE),)),
            "reply_timeout_s": 25.0,
            "install_timeout_s": 25.0,
            "precision": "float32",
        }
        return RoundOrder(**fields | changes)

    def gain(self, index, value, examples=100, steps=10):
        delta = {k: np.full(v.shape, value, np.float32) for k, v in BASE.items()}
        meta = Contribution(
            base_digest=weights_digest(BASE), base_round=0, steps=steps, examples=examples,
            loss=0.1, sequence=1,
        )  # fmt: skip
        self.exchanges[index].publish_contribution(delta, meta)

    def forget_merged(self):
        """Every test begins on base 0, with nothing merged."""
        for exchange in self.exchanges:
            (exchange.folder / "merged.json").unlink(missing_ok=True)


def base_info():
    normalizer = Normalizer(features={})
    return BaseInfo(
        digest=weights_digest(BASE),
        round=0,
        spec={},
        normalizer=normalizer.to_json(),
        normalizer_digest=normalizer.digest(),
    )


@pytest.fixture(scope="module")
def real_fleet(tmp_path_factory):
    fleet = RealFleet(tmp_path_factory.mktemp("fleet"))
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.stop()


@pytest.fixture
def fleet(real_fleet):
    real_fleet.forget_merged()
    for exchange in real_fleet.exchanges:
        exchange.install_base(BASE, base_info())
    return real_fleet


def test_a_round_gives_the_weighted_mean_and_every_robot_gets_it(fleet):
    for index, (value, examples) in enumerate([(0.1, 100), (0.4, 200), (-0.2, 50)]):
        fleet.gain(index, value, examples)
    result = fleet.driver.run_round(fleet.order(1, "train", min_replies=3))
    assert result.failure is None
    expected = (0.1 * 100 + 0.4 * 200 - 0.2 * 50) / 350
    weights = load_weights(result.aggregate)
    for name, value in BASE.items():
        np.testing.assert_allclose(weights[name], value + np.float32(expected), atol=1e-6)
    assert sorted(result.installed) == ["arm-0", "arm-1", "arm-2"]
    for exchange in fleet.exchanges:
        info, installed = exchange.base()
        assert info.digest == result.aggregate_digest
        assert info.round == 1
        np.testing.assert_array_equal(installed["w"], weights["w"])
    assert result.seconds < 20.0


def test_statistics_arrive_and_a_robot_without_any_says_so(fleet):
    for index in (0, 2):
        fleet.exchanges[index].publish_sketch({"robot": index})
    (fleet.exchanges[1].folder / "sketch.json").unlink(missing_ok=True)
    result = fleet.driver.run_round(fleet.order(2, "statistics"))
    assert result.failure is None
    assert result.sketches == {"arm-0": {"robot": 0}, "arm-2": {"robot": 2}}
    assert result.replies[1].reason == "no statistics yet: nothing was recorded and ingested"


def test_an_update_that_is_not_finite_is_refused_and_the_others_are_merged(fleet):
    fleet.gain(0, 0.1)
    fleet.gain(1, float("nan"))
    fleet.gain(2, 0.3)
    result = fleet.driver.run_round(fleet.order(3, "train"))
    assert result.failure is None
    assert [reply.accepted for reply in result.replies] == [True, False, True]
    assert "not finite" in result.replies[1].reason
    weights = load_weights(result.aggregate)
    np.testing.assert_allclose(weights["w"], BASE["w"] + np.float32(0.2), atol=1e-6)


def test_a_mute_robot_costs_the_deadline_and_the_others_are_merged(fleet):
    for index in range(NODES):
        fleet.gain(index, 0.1 * (index + 1))
    frozen, _client = fleet.nodes[1].pids
    os.kill(frozen, signal.SIGSTOP)
    try:
        result = fleet.driver.run_round(
            fleet.order(4, "train", reply_timeout_s=9.0, install_timeout_s=6.0)
        )
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert result.failure is None
    assert [reply.accepted for reply in result.replies] == [True, False, True]
    assert result.replies[1].reason == "no answer within 9 s"
    assert sorted(result.installed) == ["arm-0", "arm-2"]
    assert result.not_installed == {"arm-1": "no answer within 6 s"}
    weights = load_weights(result.aggregate)
    np.testing.assert_allclose(weights["w"], BASE["w"] + np.float32(0.2), atol=1e-6)
    assert result.seconds < 25.0
    # And it is with us again in the next round.
    again = fleet.driver.run_round(fleet.order(5, "install", min_replies=3))
    assert again.failure is None, again.not_installed


def test_too_few_replies_fail_this_round_and_not_the_next(fleet):
    for index in range(NODES):
        fleet.gain(index, 0.0, steps=0)
    fleet.gain(0, 0.1)
    failed = fleet.driver.run_round(fleet.order(6, "train", min_replies=2))
    assert failed.failure == "1 of 3 members' work was accepted; 2 are needed"
    assert failed.aggregate is None
    assert fleet.exchanges[0].base_info().digest == weights_digest(BASE)
    fleet.gain(1, 0.1)
    assert fleet.driver.run_round(fleet.order(7, "train", min_replies=2)).failure is None


HOSTILE = """
from pathlib import Path
Path({marker!r}).write_text("executed")
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
app = ClientApp()
server = ServerApp()
"""


def hostile_bundle(marker, server_app):
    code = HOSTILE.format(marker=str(marker))
    config = textwrap.dedent(f"""
        [project]
        name = "hostile"
        version = "1.0.0"
        [tool.flwr.app]
        publisher = "mallory"
        [tool.flwr.app.components]
        serverapp = "{server_app}"
        clientapp = "hostile.app:app"
    """)
    files = {"pyproject.toml": config, "hostile/__init__.py": code, "hostile/app.py": code}
    content = [
        f"{name},{hashlib.sha256(text.encode()).hexdigest()},{8 * len(text)}"
        for name, text in files.items()
    ]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, text in files.items() | {(".info/CONTENT", "\n".join(content))}:
            bundle.writestr(name, text)
    return buffer.getvalue()


HOSTILE_RUN = """
import os, socket, sys, threading
from pathlib import Path
from coordinator.federation import flower_runtime, server_process
from coordinator.federation.server_jobs import DONE
from coordinator.federation.orders import SuperLinkAccess

bundle = Path(sys.argv[3]).read_bytes()
flower_runtime.bundle = lambda: bundle
ours, theirs = socket.socketpair()
ours.sendall(sys.argv[2].encode() + b"\\n")

def end_when_done():
    heard = b""
    while not heard.endswith(DONE):
        heard += ours.recv(64)
    os._exit(0)

threading.Thread(target=end_when_done).start()
server_process.run(SuperLinkAccess.model_validate_json(sys.argv[1]), theirs)
"""


def check_that_it_bites(bundle, marker, folder):
    """The bundle is a live weapon: whoever installs and imports it leaves the marker."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        archive.extractall(folder)
    subprocess.run([sys.executable, "-c", "import hostile.app"], cwd=folder, check=True)
    assert marker.exists()
    marker.unlink()


def test_code_that_comes_with_a_run_is_never_executed_on_a_robot(fleet, tmp_path):
    marker = tmp_path / "executed"
    bundle = tmp_path / "hostile.fab"
    bundle.write_bytes(hostile_bundle(marker, flower_runtime.SERVER_APP))
    check_that_it_bites(bundle.read_bytes(), marker, tmp_path / "installed")
    for index, exchange in enumerate(fleet.exchanges):
        exchange.publish_sketch({"robot": index})
    job = RoundJob(
        result=tmp_path / "result.json",
        order=fleet.order(20, "statistics"),
        folder=tmp_path,
        memory_folder=tmp_path,
    )
    access = fleet.access.model_copy(update={"home": tmp_path / "home"})
    environment = os.environ | FLOWER_ENVIRONMENT | {"FLWR_HOME": str(access.home)}
    arguments = [access.model_dump_json(), job.model_dump_json(), str(bundle)]
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE_RUN, *arguments],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # The nodes were given the bundle, and our own installed app answered.
    result = RoundResult.model_validate_json(job.result.read_bytes())
    assert result.sketches == {f"arm-{i}": {"robot": i} for i in range(NODES)}
    assert not marker.exists()
    for index in range(NODES):
        home = fleet.folder / f"node-{index}"
        assert not list(home.rglob("*hostile*")), "the bundle was unpacked on a robot"


def test_a_run_that_a_stranger_started_is_never_executed_by_the_coordinator(fleet, tmp_path):
    marker = tmp_path / "executed"
    bundle = hostile_bundle(marker, "hostile.app:server")
    check_that_it_bites(bundle, marker, tmp_path / "installed")
    # Nobody is asked who he is at the Control API: being on this host is enough.
    with flower_runtime._control(fleet.access) as control:
        control.StartRun(StartRunRequest(fab=Fab(content=bundle)))
    for index, exchange in enumerate(fleet.exchanges):
        exchange.publish_sketch({"robot": index})
    home = tmp_path / "home"
    access = fleet.access.model_copy(update={"home": home})
    driver = RoundDriver(access, tmp_path / "rounds")
    result = driver.run_round(fleet.order(21, "statistics"))
    driver.close()
    assert result.failure is None
    assert "it is not ours" in (tmp_path / "rounds" / "rounds.log").read_text()
    assert not marker.exists()
    assert not list(home.rglob("*hostile*"))


def test_a_superlink_of_another_authority_is_one_clear_line(fleet, tmp_path):
    stranger = Authority.create("stranger", wall)
    folder = tmp_path / "bundle"
    enrol(Layout(tmp_path / "other"), fleet.config, "arm-9", folder, stranger, 0.0)
    node = SuperNode(load_bundle(folder), tmp_path / "node", tmp_path / "exchange")
    node.start()
    try:
        wait_until(lambda: node.poll().error is not None, 40.0)
        assert "its certificate is not from the authority in" in node.poll().error
        assert "\n" not in node.poll().error
    finally:
        node.stop()


def test_a_robot_that_is_not_registered_is_turned_away_with_a_clear_line(fleet, tmp_path):
    folder = tmp_path / "bundle"
    enrol(Layout(tmp_path / "other"), fleet.config, "arm-9", folder, fleet.authority, 0.0)
    node = SuperNode(load_bundle(folder), tmp_path / "node", tmp_path / "exchange")
    node.start()
    try:
        wait_until(lambda: node.poll().error is not None, 40.0)
        assert "does not know this robot's key" in node.poll().error
    finally:
        node.stop()


def test_the_wrong_secret_gets_no_task(fleet, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 32)
    access = fleet.access.model_copy(update={"secret": secret})
    driver = RoundDriver(access, tmp_path / "rounds")
    result = driver.run_round(fleet.order(8, "statistics"))
    driver.close()
    assert "refused" in result.failure
    assert "\n" not in result.failure


def test_the_wrong_authority_on_the_coordinators_side_is_one_clear_line(fleet, tmp_path):
    stranger = Authority.create("stranger", wall)
    layout = Layout(tmp_path)
    create_identities(layout, fleet.config, stranger)
    access = fleet.access.model_copy(update={"ca": layout.ca_certificate})
    driver = RoundDriver(access, tmp_path / "rounds")
    result = driver.run_round(fleet.order(9, "statistics"))
    driver.close()
    assert result.failure.startswith(f"TLS with the SuperLink at {fleet.access.address} failed")
    assert "\n" not in result.failure


def test_a_robot_that_was_mute_does_not_find_the_orders_that_it_missed(fleet):
    """All rounds are of one run: what was not fetched in time must not wait there."""
    other = {name: value + 1 for name, value in BASE.items()}
    path = fleet.folder / "other.safetensors"
    save_weights(path, other)
    info = base_info().model_dump(mode="json") | {"digest": weights_digest(other), "round": 30}
    missed = fleet.order(30, "install", base_weights=path, base_info=info, install_timeout_s=8.0)
    frozen, _client = fleet.nodes[2].pids
    os.kill(frozen, signal.SIGSTOP)
    try:
        result = fleet.driver.run_round(missed)
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert result.not_installed["arm-2"] == "no answer within 8 s"
    for index, exchange in enumerate(fleet.exchanges):
        exchange.publish_sketch({"robot": index})
    after = fleet.driver.run_round(fleet.order(31, "statistics"))
    assert sorted(after.sketches) == ["arm-0", "arm-1", "arm-2"]
    assert fleet.exchanges[2].base_info().digest == weights_digest(BASE)


def test_a_superlink_that_is_restarted_costs_neither_the_round_nor_the_run(fleet):
    """On the same database, in the middle of a round that a mute robot holds open."""
    for index, exchange in enumerate(fleet.exchanges):
        exchange.publish_sketch({"robot": index})
    server = fleet.driver._server.process.pid
    frozen, _client = fleet.nodes[1].pids
    os.kill(frozen, signal.SIGSTOP)

    def restart():
        fleet.superlink.kill()
        fleet.superlink.wait()
        fleet.start_superlink()
        os.kill(frozen, signal.SIGCONT)

    timer = threading.Timer(4.0, restart)
    timer.start()
    result = fleet.driver.run_round(fleet.order(32, "statistics", reply_timeout_s=60.0))
    timer.join()
    assert result.failure is None
    assert sorted(result.sketches) == ["arm-0", "arm-1", "arm-2"]
    assert fleet.driver._server.process.pid == server
    wait_until(lambda: all(node.poll().state == "connected" for node in fleet.nodes))


def test_a_run_that_is_stopped_between_rounds_costs_the_next_round_nothing(fleet):
    """As after a SuperLink that was away for minutes: it does not know the run any more."""
    server = fleet.driver._server.process.pid
    with flower_runtime._control(fleet.access) as control:
        stopped = 0
        for run_id in control.ListRuns(ListRunsRequest()).run_dict:
            try:
                control.StopRun(StopRunRequest(run_id=run_id))
                stopped += 1
            except httpx.HTTPStatusError:  # over already
                continue
    assert stopped
    result = fleet.driver.run_round(fleet.order(33, "install", min_replies=3))
    assert result.failure is None, result.not_installed
    assert fleet.driver._server.process.pid != server


def test_a_superlink_that_dies_fails_the_round_and_the_next_one_works(fleet):
    """Last: it restarts the SuperLink, on the same database."""
    fleet.superlink.kill()
    fleet.superlink.wait()
    failed = fleet.driver.run_round(fleet.order(10, "statistics"))
    assert "no SuperLink answers" in failed.failure
    wait_until(lambda: all("no SuperLink" in (n.poll().error or "") for n in fleet.nodes), 20.0)
    fleet.start_superlink()
    wait_until(fleet.registered)
    wait_until(lambda: all(node.poll().state == "connected" for node in fleet.nodes))
    order = fleet.order(11, "install", min_replies=3, connect_timeout_s=40.0)
    result = fleet.driver.run_round(order)
    assert result.failure is None, result.not_installed
