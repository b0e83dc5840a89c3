"""`armada doctor`: looks at everything that the agent needs, one line a finding. Moves nothing."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.client import AgentClient
from agent.config import AgentConfig, CameraSettings, load_config
from agent.errors import AgentClientError, ConfigError
from agent.policies.errors import StoreDamaged
from agent.policies.host_graph import host_words, read_host_graph
from agent.policies.store import PolicyStore
from policy.errors import BadPolicyFolder
from policy.release.folder import read_policy_folder
from protocol.bundle import load_bundle
from protocol.errors import BadBundle
from robot_io.arm import Calibration, Follower, Leader
from robot_io.bus import ServoBus
from robot_io.cameras import Camera, CameraConfig
from robot_io.errors import CameraGone, RobotIOError
from robot_io.ports import list_ports

NETWORK_TIMEOUT_S = 3.0
CAMERA_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, whether it is well, and what it is or how to mend it."""

    what: str
    well: bool
    line: str


def examine(config_path: Path) -> Iterator[Finding]:
    """All findings, as they come."""
    try:
        config = load_config(config_path)
    except ConfigError as error:
        yield Finding("config", False, str(error))
        return
    yield Finding("config", True, str(config_path))
    status = _running_agent(config)
    if status is not None:
        yield Finding("agent", True, f"runs, pid {status['pid']}, state {status['state']}")
        yield from _as_the_agent_says(status)
    else:
        yield Finding("agent", True, "does not run; its ports and cameras are looked at from here")
        yield from _arms(config)
        for name, settings in config.cameras.items():
            yield _camera(name, settings)
    yield _disk(config)
    yield from _policies(PolicyStore(config.policies_dir))
    if config.federation is not None:
        yield from _broker(config.federation.bundle)


def _running_agent(config: AgentConfig) -> dict[str, Any] | None:
    if not config.agent_socket.exists():
        return None
    with AgentClient(config.agent_socket, timeout_s=NETWORK_TIMEOUT_S) as client:
        try:
            return client.status()
        except AgentClientError:
            return None


def _as_the_agent_says(status: dict[str, Any]) -> Iterator[Finding]:
    """The agent holds the ports and cameras, so its word is what counts."""
    if not status["faults"]:
        yield Finding("arms, cameras", True, "nothing wrong")
    for line in status["faults"]:
        yield Finding("agent", False, line)
    for each in status["waiting"]:
        yield Finding(f"{each['about']} waits", True, each["text"])
    for name, row in status["processes"].items():
        if row["state"] == "waiting" and row["restarts"]:
            line = f"died {row['restarts']} times, last: {row['last_exit']}; see its log"
            yield Finding(name, False, line)


def _arms(config: AgentConfig) -> Iterator[Finding]:
    yield _arm("follower", config.robot.port, config.follower_calibration, Follower)
    if config.teleop is not None and config.leader_calibration is not None:
        yield _arm("leader", config.teleop.port, config.leader_calibration, Leader)


def _arm(name: str, port: str, path: Path, kind: type[Follower] | type[Leader]) -> Finding:
    bus = ServoBus(port)
    try:
        kind(bus, Calibration.load(path) if path.exists() else None).connect()
    except RobotIOError as error:
        line = str(error)
        if not Path(port).exists():
            there = ", ".join(found.stable for found in list_ports()) or "none"
            line = f"{line} (serial adapters that are there: {there})"
        return Finding(name, False, line)
    finally:
        bus.close()
    return Finding(name, True, f"six servos on {port}, calibration {path.name}")


def _camera(name: str, settings: CameraSettings) -> Finding:
    camera = Camera(
        CameraConfig(name, settings.source, settings.width, settings.height, settings.fps)
    )
    try:
        camera.open(CAMERA_TIMEOUT_S)
        first = camera.latest(1.0)
        time.sleep(1.0)
        frames = camera.latest(1.0).sequence - first.sequence
    except CameraGone as error:
        return Finding(f"camera {name}", False, str(error))
    finally:
        camera.close()
    size = f"{settings.width}x{settings.height}"
    return Finding(f"camera {name}", True, f"{size}, {frames} frames in a second")


def _disk(config: AgentConfig) -> Finding:
    folder = config.state_dir
    while not folder.exists():
        folder = folder.parent
    free_mb = shutil.disk_usage(folder).free >> 20
    if not os.access(folder, os.W_OK):
        return Finding("disk", False, f"{folder} cannot be written; change its owner")
    if free_mb < config.recording.min_free_mb:
        wanted = config.recording.min_free_mb
        return Finding("disk", False, f"{free_mb} MB free at {folder}, {wanted} MB are asked for")
    return Finding("disk", True, f"{free_mb} MB free at {folder}")


def _policies(store: PolicyStore) -> Iterator[Finding]:
    """Each file is hashed, whatever was verified before: a disk rots and a time can be forged."""
    active: str | None = None
    try:
        installed = store.installed()
        active = store.active()
    except StoreDamaged as error:
        yield Finding("policies", False, str(error))
    except OSError as error:
        yield Finding("policies", False, f"{store.folder} cannot be read: {error.strerror}")
        return
    for path in installed:
        what = f"policy {path.name}"
        try:
            folder = read_policy_folder(path, hash_all=True)
        except BadPolicyFolder as error:
            yield Finding(what, False, str(error))
        else:
            state = "active, " if path.name == active else ""
            digest = folder.onnx_digest
            yield Finding(what, True, f"{state}as its manifest says, SHA-256 {digest[:12]}…")
            yield Finding(f"{what} computes as", True, host_words(read_host_graph(folder)))


def _broker(folder: Path) -> Iterator[Finding]:
    """Is the bundle whole, and does something listen where it points?"""
    try:
        bundle = load_bundle(folder)
    except BadBundle as error:
        yield Finding("bundle", False, str(error))
        return
    yield Finding("bundle", True, str(folder))
    for name, endpoint in (("broker", bundle.info.mqtt), ("releases", bundle.info.https)):
        try:
            address = (endpoint.host, endpoint.port)
            socket.create_connection(address, NETWORK_TIMEOUT_S).close()
        except OSError as error:
            line = f"{endpoint.address} cannot be reached ({error}); is the coordinator up?"
            yield Finding(name, False, line)
        else:
            yield Finding(name, True, f"{endpoint.address} listens")
