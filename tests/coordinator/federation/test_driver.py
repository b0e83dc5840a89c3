"""The driver never hangs and never raises for what a SuperLink does: it says what was wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator.config import CoordinatorConfig, Ports
from coordinator.federation import driver as driver_module
from coordinator.federation.driver import Member, RoundDriver, RoundOrder, run_round
from coordinator.federation.errors import FederationError
from coordinator.federation.superlink import superlink_access, superlink_command

pytestmark = pytest.mark.system  # each starts a Flower process


def public_key():
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    ).decode()


@pytest.fixture
def listener():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield server


@pytest.fixture
def config(listener):
    return CoordinatorConfig(ports=Ports(superlink=listener.getsockname()[1]))


@pytest.fixture
def access(tmp_path, config):
    ca = tmp_path / "ca" / "ca.pem"
    ca.parent.mkdir()
    key = ec.generate_private_key(ec.SECP384R1())
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA384())
    )
    ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return superlink_access(tmp_path, config)


@pytest.fixture
def order():
    members = [Member(agent_id="arm-1", public_key=public_key())]
    return RoundOrder(round=0, kind="statistics", members=members)


def test_no_superlink_is_one_clear_line(access, order, tmp_path):
    result = run_round(order, tmp_path / "rounds", access)
    assert result.failure.startswith(f"no SuperLink answers at {access.address}")
    assert "armada coordinator superlink" in result.failure
    assert "\n" not in result.failure


def test_registering_without_a_superlink_raises_that_line(access, tmp_path):
    driver = RoundDriver(access, tmp_path / "rounds")
    with pytest.raises(FederationError, match="no SuperLink answers"):
        driver.register([Member(agent_id="arm-1", public_key=public_key())])
    with pytest.raises(FederationError, match="not a public key"):
        driver.register([Member(agent_id="arm-1", public_key="nonsense")])


def test_a_superlink_that_never_answers_costs_the_limit_and_no_more(
    access, order, listener, tmp_path, monkeypatch
):
    listener.listen()  # takes the connection, says nothing
    monkeypatch.setattr(driver_module, "round_limit_s", lambda _order: 6.0)
    started = time.monotonic()
    result = run_round(order, tmp_path / "rounds", access)
    assert time.monotonic() - started < 15.0
    assert "took more than 6 s" in result.failure


def test_close_ends_a_round_under_way(access, order, listener, tmp_path):
    listener.listen()
    driver = RoundDriver(access, tmp_path / "rounds")
    threading.Timer(1.0, driver.close).start()
    result = driver.run_round(order)
    assert result.failure == "the coordinator is being stopped"
    assert driver.run_round(order).failure == "the coordinator is being stopped"


def test_the_process_ends_with_the_driver(access, tmp_path):
    driver = RoundDriver(access, tmp_path / "rounds")
    driver.prepare()
    server = driver._server
    assert server is not None and server.process.poll() is None
    driver.close()
    assert server.process.poll() is not None
    driver.prepare()
    assert driver._server is server, "a closed driver starts nothing"


def test_the_process_ends_with_a_coordinator_that_is_killed(access, tmp_path):
    code = f"""
import time
from pathlib import Path
from coordinator.federation.driver import RoundDriver, SuperLinkAccess
access = SuperLinkAccess.model_validate_json({access.model_dump_json()!r})
driver = RoundDriver(access, Path({str(tmp_path / "rounds")!r}))
driver.prepare()
print(driver._server.process.pid, flush=True)
time.sleep(60)
"""
    coordinator = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    server = psutil.Process(int(coordinator.stdout.readline()))
    coordinator.kill()
    coordinator.wait()
    server.wait(30)


def test_a_process_that_died_between_rounds_costs_the_next_round_nothing(access, order, tmp_path):
    driver = RoundDriver(access, tmp_path / "rounds")
    driver.prepare()
    first = driver._server
    first.process.signal_group(signal.SIGSTOP)  # it is there, but will never take up a job
    threading.Timer(1.0, first.process.kill).start()
    result = driver.run_round(order)
    assert result.failure.startswith("no SuperLink answers"), "asked of a second process"
    assert driver._server is not first
    driver.close()


def test_a_process_that_dies_in_a_round_fails_that_round_alone(access, order, listener, tmp_path):
    listener.listen()  # takes the connection, says nothing
    driver = RoundDriver(access, tmp_path / "rounds")
    driver.prepare()
    threading.Timer(6.0, driver._server.process.kill).start()
    result = driver.run_round(order)
    assert result.failure.startswith("the round was ended by its process: SIGKILL")
    assert driver._server.process.poll() is None, "the next one stands by"
    driver.close()


def test_the_superlinks_command_is_on_loopback_with_node_authentication(tmp_path, config):
    command, environment = superlink_command(tmp_path, config)
    text = " ".join(command)
    assert "--host 127.0.0.1" in text
    assert "--enable-supernode-auth" in command
    assert "--isolation process" in text
    assert "--insecure" not in command
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    secret = superlink_access(tmp_path, config).secret
    assert os.stat(secret).st_mode & 0o077 == 0
    kept = secret.read_bytes()
    superlink_command(tmp_path, config)
    assert secret.read_bytes() == kept
    assert len(kept) == 32
    assert json.loads(superlink_access(tmp_path, config).model_dump_json())["address"]
