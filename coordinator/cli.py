"""`armada coordinator`: init, enrol, superlink, run, status, command, audit."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from coordinator.client import OperatorClient
from coordinator.config import (
    CONFIG_NAME,
    CoordinatorConfig,
    Ports,
    load_config,
    render_config,
)
from coordinator.errors import AuditBroken, ConfigError, CoordinatorError, EnrolmentError
from coordinator.identity.enrolment import Authority, create_identities, enrol
from coordinator.identity.layout import Layout
from coordinator.identity.mosquitto import write_broker_files
from coordinator.server.audit import verify
from coordinator.server.state_file import load_state
from host.files import write_durable
from host.logs import set_up_logging
from protocol.errors import BadTopic
from protocol.topics import check_identity


def main(argv: list[str]) -> int:
    """Run one command; 0 on success, 1 with one line on stderr, 2 for wrong usage."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.handler(arguments))
    except (CoordinatorError, OSError) as error:
        print(f"armada coordinator: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="armada coordinator", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, handler: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--dir", type=Path, required=True, help="the coordinator's folder")
        command.set_defaults(handler=handler)
        return command

    ports = Ports()
    init = add("init", _init, "make the authority, certificates, broker files and configuration")
    init.add_argument("--fleet", default="armada")
    init.add_argument("--host", default="127.0.0.1", help="name or address robots reach it by")
    init.add_argument("--mqtt-port", type=int, default=ports.mqtt)
    init.add_argument("--superlink-port", type=int, default=ports.superlink)
    init.add_argument("--https-port", type=int, default=ports.https)
    enrolling = add("enrol", _enrol, "make the key and bundle of one robot")
    enrolling.add_argument("robot_id", metavar="ROBOT_ID")
    enrolling.add_argument("--out", type=Path, required=True, help="folder for the bundle")
    add("superlink", _superlink, "become the SuperLink of this coordinator")
    add("run", _run, "run windows, rounds and releases")
    status = add("status", _status, "show where the campaign stands")
    status.add_argument("--json", action="store_true", help="the whole document")
    command = add("command", _command, "pause, resume, roll_back or collect one robot")
    command.add_argument("robot_id", metavar="ROBOT_ID")
    command.add_argument("word", choices=("pause", "resume", "roll_back", "collect"))
    add("audit", _audit, "verify the audit log")
    return parser


def _wall() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _init(arguments: argparse.Namespace) -> int:
    layout = Layout(arguments.dir)
    if (layout.root / CONFIG_NAME).exists() or layout.ca_key.exists():
        raise EnrolmentError(f"{layout.root} is already initialised; choose another folder")
    try:
        check_identity(arguments.fleet, "fleet")
        ports = Ports(
            mqtt=arguments.mqtt_port,
            superlink=arguments.superlink_port,
            https=arguments.https_port,
        )
    except (BadTopic, ValueError) as error:
        raise ConfigError(str(error).replace("\n", " ")) from error
    config = CoordinatorConfig(fleet=arguments.fleet, host=arguments.host, ports=ports)
    layout.root.mkdir(parents=True, exist_ok=True)
    create_identities(layout, config, Authority.create(config.fleet, _wall))
    broker = write_broker_files(layout, config)
    text = render_config(config.fleet, config.host, ports)
    write_durable(layout.root / CONFIG_NAME, text.encode())
    print(f"configuration: {layout.root / CONFIG_NAME}")
    print(f"broker:        mosquitto -c {broker}")
    print(f"then:          armada coordinator superlink --dir {layout.root}")
    print(f"               armada coordinator run --dir {layout.root}")
    print(f"a robot:       armada coordinator enrol ROBOT_ID --dir {layout.root} --out BUNDLE")
    return 0


def _enrol(arguments: argparse.Namespace) -> int:
    layout = Layout(arguments.dir)
    config = load_config(layout.root)
    authority = Authority.load(layout, _wall)
    enrol(layout, config, arguments.robot_id, arguments.out, authority, time.time())
    print(f"bundle of {arguments.robot_id}: {arguments.out} (holds its private key)")
    return 0


def _superlink(arguments: argparse.Namespace) -> int:
    from coordinator.federation.superlink import superlink_command

    config = load_config(arguments.dir)
    command, environment = superlink_command(arguments.dir, config)
    os.execve(command[0], command, environment)  # noqa: S606


def _run(arguments: argparse.Namespace) -> int:
    from coordinator.server.coordinator import Coordinator

    set_up_logging()
    config = load_config(arguments.dir)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    Coordinator(arguments.dir, config, time.time).run(stopping)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    with OperatorClient(arguments.dir) as client:
        document = client.status()
    if arguments.json:
        print(json.dumps(document, indent=2))
        return 0
    campaign = document["campaign"]
    print(f"fleet {document['fleet']}: {campaign['phase']}, round {campaign['round']}", end="")
    print(f" of {campaign['rounds']}, {len(document['releases'])} releases")
    for name in ("broker", "flower"):
        if document[name]["error"]:
            print(f"  {name}: {document[name]['error']}")
    for agent_id, agent in document["agents"].items():
        said = agent["status"] or {}
        where = said.get("state", "never heard") if agent["connected"] else "away"
        training = said.get("training", {})
        print(
            f"  {agent_id}: {where}, {said.get('episodes', 0)} episodes, base "
            f"{training.get('base_round')}, {training.get('steps_since_base', 0)} steps since, "
            f"policy {said.get('policy')}"
        )
    for release in document["releases"]:
        error = release["evaluation"]["action_mae"]
        print(f"  release {release['version']}: round {release['round']}, held-out {error:.4g}")
    for refused in document["refused"]:
        print(f"  refused round {refused['round']}: {refused['reason']}")
    return 0


def _command(arguments: argparse.Namespace) -> int:
    with OperatorClient(arguments.dir) as client:
        client.command(arguments.robot_id, arguments.word)
    print(f"{arguments.word} sent to {arguments.robot_id}")
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    folder = Layout(arguments.dir).state
    head = load_state(folder).audit_head
    try:
        count = verify(folder / "audit.jsonl", must_contain=head)
    except AuditBroken as error:
        print(f"armada coordinator: {error}", file=sys.stderr)
        return 1
    print(f"{count} entries, unbroken")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
