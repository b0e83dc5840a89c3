"""The agent's share of the `armada` command: run the daemon, and speak to one that runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.client import AgentClient
from agent.config import DEFAULT_CONFIG_PATH, load_config
from agent.doctor import examine
from agent.errors import AgentError, ConfigError, NoTerminal, RequestFailed
from host.logs import set_up_logging

CONFIG_VARIABLE = "ARMADA_CONFIG"
POLL_S = 0.2


def build_parser() -> argparse.ArgumentParser:
    """All commands of this room."""
    parser = argparse.ArgumentParser(prog="armada")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config",
        type=Path,
        default=Path(os.environ.get(CONFIG_VARIABLE, DEFAULT_CONFIG_PATH)),
        help=f"agent.toml (default: ${CONFIG_VARIABLE}, else {DEFAULT_CONFIG_PATH})",
    )

    agent = commands.add_parser("agent", help="the daemon")
    agent_commands = agent.add_subparsers(dest="agent_command", required=True, metavar="COMMAND")
    agent_commands.add_parser("run", parents=[common], help="run it in the foreground")

    record = commands.add_parser("record", parents=[common], help="record demonstrations")
    record.add_argument("--task", required=True, help="what the episodes show, in words")
    record.add_argument("--episodes", "--num-episodes", type=int, default=1, metavar="N")
    record.add_argument(
        "--episode-time-s", type=float, help="end each episode by itself; default: on Enter"
    )
    record.add_argument(
        "--reset-time-s", type=float, help="pause between episodes; default: until Enter"
    )

    rollout = commands.add_parser("rollout", parents=[common], help="let a policy act")
    rollout.add_argument("--policy", default="active", help="active, local or a version")
    rollout.add_argument("--episodes", "--num-episodes", type=int, default=1, metavar="N")
    rollout.add_argument("--seconds", "--episode-time-s", type=float, default=20.0, metavar="S")
    rollout.add_argument("--task", default=None)
    rollout.add_argument("--record", action="store_true", help="record the episodes as well")

    status = commands.add_parser("status", parents=[common], help="what the agent is doing")
    status.add_argument("--json", action="store_true", help="all of it")

    setup = commands.add_parser("setup", help="set an arm up")
    setup_commands = setup.add_subparsers(dest="setup_command", required=True, metavar="COMMAND")
    calibrate = setup_commands.add_parser("calibrate", parents=[common], help="calibrate an arm")
    calibrate.add_argument("--arm", choices=("follower", "leader"), required=True)

    commands.add_parser("doctor", parents=[common], help="check all that the agent needs")
    commands.add_parser("park", parents=[common], help="park the arm and take its torque away")
    commands.add_parser("reset", parents=[common], help="leave fault or emergency stop; parks")
    estop = commands.add_parser("estop", parents=[common], help="stop now and hold")
    estop.add_argument("--release", action="store_true", help="torque off: the arm falls")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. 0 success, 1 it failed, 2 the command or configuration is wrong."""
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.command == "agent":
            return _run(arguments)
        if arguments.command == "doctor":
            return _doctor(arguments.config)
        config = load_config(arguments.config)
        with AgentClient(config.agent_socket) as client:
            return _speak(client, arguments)
    except ConfigError as error:
        print(f"armada: {error}", file=sys.stderr)
        return 2
    except AgentError as error:
        print(f"armada: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace) -> int:
    from agent.supervisor.daemon import (
        run_agent,  # the other commands need neither asyncio nor uvicorn
    )

    set_up_logging()
    config = load_config(arguments.config)
    run_agent(config, arguments.config)
    return 0


def _doctor(config_path: Path) -> int:
    well = True
    for finding in examine(config_path):
        well = well and finding.well
        print(f"{'ok  ' if finding.well else 'BAD '} {finding.what}: {finding.line}", flush=True)
    return 0 if well else 1


def _speak(client: AgentClient, arguments: argparse.Namespace) -> int:
    match arguments.command:
        case "status":
            return _status(client, as_json=arguments.json)
        case "record":
            return _record(client, arguments)
        case "rollout":
            return _rollout(client, arguments)
        case "setup":
            return _calibrate(client, arguments.arm)
        case "park":
            client.park()
            print("parked, torque off")
        case "reset":
            reply = client.reset()
            print("parked, torque off" if reply.get("parked") else "ready")
        case "estop":
            client.estop(arguments.release)
            print("stopped; `armada reset` lifts the stop and parks the arm")
    return 0


def _status(client: AgentClient, *, as_json: bool) -> int:
    status = client.status()
    if as_json:
        print(json.dumps(status, indent=2))
        return 0
    for line in status_lines(status):
        print(line)
    return 0


def status_lines(status: dict[str, Any]) -> list[str]:
    """The status for people."""
    ready = "ready" if status["ready"] else "NOT READY"
    lines = [f"{status['robot_id']}: {status['state']}, {ready}"]
    lines += [f"  ! {fault}" for fault in status["faults"]]
    recording = status["recording"]
    text = f"  recorded  {recording['episodes']} episodes, {recording['frames']} frames"
    if recording.get("active"):
        text += f"; recording {recording['task']!r}, {recording['current_frames']} frames"
    lines.append(text)
    if status["rate_hz"] is not None:
        missed = status["missed_deadlines"]
        lines.append(f"  loop      {status['rate_hz']:.1f} Hz held, {missed} deadlines missed")
    rollout = status["rollout"]
    policy = status["policy"] if status["policy"] is not None else "none"
    text = f"  policy    active: {policy}"
    if rollout.get("running"):
        text += f"; {rollout['policy']} is running, {rollout['ticks']} ticks"
        text += f", {rollout['holds']} held"
    elif rollout.get("outcome"):
        text += f"; last rollout of {rollout['policy']}: {rollout['outcome']}"
    lines.append(text)
    lines.append(f"  training  {'allowed' if status['training_allowed'] else 'frozen'}")
    ingest = status.get("ingest", {})
    if ingest.get("refused"):
        reason = list(ingest["refused"].values())[-1]
        count = ingest["refused_episodes"]
        lines.append(f"  ! dataset: {count} journals refused and kept, the last: {reason}")
    federation = status.get("federation")
    if isinstance(federation, dict) and federation.get("error"):
        lines.append(f"  ! federation: {federation['error']}")
    for name, row in status["processes"].items():
        if row["state"] == "off" and row["pid"] is None:
            continue
        again = f", restarted {row['restarts']} times" if row["restarts"] else ""
        lines.append(f"  {name:<10}{row['state']}{again}")
    return lines


def _record(client: AgentClient, arguments: argparse.Namespace) -> int:
    try:
        for number in range(1, arguments.episodes + 1):
            client.record_start(arguments.task)
            try:
                if arguments.episode_time_s is not None:
                    print(f"episode {number}/{arguments.episodes}: recording", flush=True)
                    time.sleep(arguments.episode_time_s)
                    kept = True
                else:
                    kept = (
                        _ask(
                            f"episode {number}/{arguments.episodes}: recording; "
                            "Enter saves it, d and Enter throws it away: "
                        )
                        != "d"
                    )
            except (KeyboardInterrupt, NoTerminal):
                client.record_discard()
                print("\nthe running episode was thrown away")
                raise
            if kept:
                reply = client.record_finish()
                print(f"  saved {reply['episode']}, {reply['frames']} frames", flush=True)
            else:
                client.record_discard()
                print("  thrown away", flush=True)
            if number < arguments.episodes:
                _pause(arguments.reset_time_s)
    finally:
        _park(client)
    return 0


def _rollout(client: AgentClient, arguments: argparse.Namespace) -> int:
    armed = client.rollout_arm(arguments.policy)
    print(f"policy {armed['version']} is loaded, {armed['latency_ms']:.0f} ms a chunk", flush=True)
    try:
        for number in range(1, arguments.episodes + 1):
            client.rollout_start(arguments.seconds, arguments.task, arguments.record)
            while (rollout := client.status()["rollout"])["running"]:
                time.sleep(POLL_S)
            print(
                f"episode {number}/{arguments.episodes}: {rollout['outcome']}; "
                f"{rollout['ticks']} ticks, {rollout['holds']} held, "
                f"{rollout['missed_deadlines']} deadlines missed",
                flush=True,
            )
            if str(rollout["outcome"]).startswith("fault"):
                return 1
    finally:
        _park(client)
    return 0


def _park(client: AgentClient) -> None:
    """At the end of a session, however it came; a fault says so itself."""
    try:
        client.park()
    except RequestFailed as error:
        print(f"armada: {error}", file=sys.stderr)


def _calibrate(client: AgentClient, arm: str) -> int:
    _ask(f"Put every joint of the {arm} to the middle of its range, then press Enter: ")
    client.calibrate(arm, "homing")
    client.calibrate(arm, "range_start")
    while True:
        _ask(f"Move every joint of the {arm} through its whole range, then press Enter: ")
        try:
            reply = client.calibrate(arm, "range_finish")
            break
        except RequestFailed as error:
            print(error)
            if "hardly moved" not in str(error):
                return 1
    for joint, (low, high) in reply["ranges"].items():
        print(f"  {joint:<14}{low:>5} .. {high}")
    print(f"saved {reply['path']}")
    return 0


def _ask(prompt: str) -> str:
    try:
        return input(prompt).strip().lower()
    except EOFError as error:
        raise NoTerminal(
            "nobody is there to answer: run this at a terminal, "
            "or give --episode-time-s and --reset-time-s"
        ) from error


def _pause(seconds: float | None) -> None:
    if seconds is not None:
        time.sleep(seconds)
    else:
        _ask("  set the scene for the next episode, then press Enter: ")
