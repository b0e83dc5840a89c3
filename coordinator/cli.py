"""`armada coordinator`: init, enrol, superlink, run, status, evaluation, command, audit."""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator.client import OperatorClient
from coordinator.config import CONFIG_NAME, CoordinatorConfig, Ports, load_config, render_config
from coordinator.errors import ConfigError, CoordinatorError, EnrolmentError
from coordinator.identity import enrolment
from coordinator.identity.enrolment import Authority, create_identities
from coordinator.identity.layout import Layout
from coordinator.identity.mosquitto import write_broker_files
from coordinator.server.audit import verify
from coordinator.server.state_file import load_state
from host.command_line import command_group, run_command_line
from host.files import write_durable
from host.logs import set_up_logging
from protocol.errors import BadTopic
from protocol.messages import CommandWord
from protocol.topics import check_identity

app = command_group(
    help="The server of a fleet: its identity, its broker files, windows, rounds and releases.",
)
Folder = Annotated[Path, typer.Option("--dir", help="the coordinator's folder")]
RobotId = Annotated[str, typer.Argument(metavar="ROBOT_ID", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="for a machine")]
_PORTS = Ports()


def main(argv: Sequence[str]) -> int:
    """Run one command; 0 on success, 1 with one line on stderr, 2 for wrong usage."""
    return run_command_line(app, "armada coordinator", argv, (CoordinatorError, OSError))


def _wall() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@app.command()
def init(
    folder: Folder,
    fleet: str = "armada",
    host: Annotated[str, typer.Option(help="name or address robots reach it by")] = "127.0.0.1",
    mqtt_port: int = _PORTS.mqtt,
    superlink_port: int = _PORTS.superlink,
    https_port: int = _PORTS.https,
) -> None:
    """Make the authority, certificates, broker files and configuration."""
    layout = Layout(folder)
    if (layout.root / CONFIG_NAME).exists() or layout.ca_key.exists():
        raise EnrolmentError(f"{layout.root} is already initialised; choose another folder")
    try:
        check_identity(fleet, "fleet")
        ports = Ports(mqtt=mqtt_port, superlink=superlink_port, https=https_port)
    except (BadTopic, ValueError) as error:
        raise ConfigError(str(error).replace("\n", " ")) from error
    config = CoordinatorConfig(fleet=fleet, host=host, ports=ports)
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


@app.command()
def enrol(
    robot_id: RobotId,
    folder: Folder,
    out: Annotated[Path, typer.Option(help="folder for the bundle")],
) -> None:
    """Make the key and bundle of one robot."""
    layout = Layout(folder)
    config = load_config(layout.root)
    authority = Authority.load(layout, _wall)
    enrolment.enrol(layout, config, robot_id, out, authority, time.time())
    print(f"bundle of {robot_id}: {out} (holds its private key)")


@app.command()
def superlink(folder: Folder) -> None:
    """Become the SuperLink of this coordinator."""
    from coordinator.federation.superlink import superlink_command

    command, environment = superlink_command(folder, load_config(folder))
    os.execve(command[0], command, environment)  # noqa: S606


@app.command()
def run(folder: Folder) -> None:
    """Run windows, rounds and releases."""
    from coordinator.server.coordinator import Coordinator

    set_up_logging()
    config = load_config(folder)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    Coordinator(folder, config, time.time).run(stopping)


@app.command()
def status(folder: Folder, as_json: AsJson = False) -> None:
    """Show where the campaign stands."""
    with OperatorClient(folder) as client:
        document = client.status()
    if as_json:
        print(json.dumps(document, indent=2))
        return
    for line in status_lines(document):
        print(line)


def status_lines(document: dict[str, Any]) -> list[str]:
    """The status for people."""
    campaign = document["campaign"]
    lines = [
        f"fleet {document['fleet']}: {campaign['phase']}, round {campaign['round']} of "
        f"{campaign['rounds']}, {len(document['releases'])} releases"
    ]
    lines += [
        f"  {name}: {document[name]['error']}"
        for name in ("broker", "flower")
        if document[name]["error"]
    ]
    lines += [f"  waits     {each['text']}" for each in campaign["waiting"]]
    for agent_id, agent in document["agents"].items():
        said = agent["status"] or {}
        where = said.get("state", "never heard") if agent["connected"] else "away"
        training = said.get("training", {})
        lines.append(
            f"  {agent_id}: {where}, {said.get('episodes', 0)} episodes, base "
            f"{training.get('base_round')}, {training.get('steps_since_base', 0)} steps since, "
            f"policy {said.get('policy')}"
        )
        newest = max(said.get("releases", ()), key=lambda each: each["version"], default=None)
        if newest is not None and newest["state"] != "active":
            why = f": {newest['reason']}" if newest["reason"] else ""
            lines.append(f"    release {newest['version']} is {newest['state']} there{why}")
        lines += [f"    {each['text']}" for each in agent["waiting"] if agent["connected"]]
    for release in document["releases"]:
        error = release["evaluation"]["action_mae"]
        lines.append(
            f"  release {release['version']}: round {release['round']}, held-out {error:.4g}"
        )
    lines += [f"  ! {line}" for line in document["leaks"]]
    for refused in document["refused"]:
        lines.append(f"  refused round {refused['round']}: {refused['reason']}")
    return lines


@app.command()
def evaluation(folder: Folder, as_json: AsJson = False) -> None:
    """Show how accurate each round's policy is on each robot and joint."""
    with OperatorClient(folder) as client:
        rows = client.status()["evaluation"]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for line in evaluation_lines(rows):
        print(line)


def evaluation_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The matrix for people: held-out errors in joint units, a round a line; then each joint's."""
    if not rows:
        return ["no robot has reported a held-out error yet"]
    robots = sorted({agent for row in rows for agent in row["robots"]})
    lines = ["  ".join(["round", *(f"{name:>10}" for name in [*robots, "mean", "elsewhere"])])]
    for row in rows:
        errors = [row["robots"].get(agent, {}).get("action_mae") for agent in robots]
        cells = [*errors, row["mean"], row["generalisation"]]
        shown = ["-" if cell is None else f"{cell:.3g}" for cell in cells]
        lines.append("  ".join([f"{row['round']:5}", *(f"{cell:>10}" for cell in shown)]))
    lines += [f"  {name}: {error:.3g}" for name, error in rows[-1]["joints"].items()]
    return lines


@app.command()
def command(robot_id: RobotId, word: CommandWord, folder: Folder) -> None:
    """Ask one robot to pause, resume, roll_back or collect."""
    with OperatorClient(folder) as client:
        client.command(robot_id, word)
    print(f"{word} sent to {robot_id}")


@app.command()
def audit(folder: Folder, as_json: AsJson = False) -> None:
    """Verify the audit log."""
    state = Layout(folder).state
    count = verify(state / "audit.jsonl", must_contain=load_state(state).audit_head)
    print(json.dumps({"entries": count}) if as_json else f"{count} entries, unbroken")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
