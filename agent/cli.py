"""The agent's share of the `armada` command: run the daemon, and speak to one that runs.

Exit status: 0 success, 1 it failed, 2 the command or the configuration is wrong.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from agent.client import AgentClient
from agent.config import DEFAULT_CONFIG_PATH, AgentConfig, load_config
from agent.errors import AgentError, ConfigError, NoTerminal, RequestFailed
from agent.operations.arguments import ArmName
from agent.operations.operation import Operation
from agent.operations.table import OPERATIONS, operation_of
from agent.places import CONFIG_VARIABLE
from agent.rollout_operator import RolloutOperator
from agent.status_text import policy_lines, status_lines
from host.command_line import command_group, run_command_line
from host.keys import Keys
from host.settings import BadSettings, take_flags

POLL_S = 0.2
SHOW_S = 2.0  # between two lines of progress
ROLLOUT_KEYS = {
    "s": "rollout_success",
    "f": "rollout_failure",
    "q": "rollout_stop",
    "t": "rollout_takeover",
    "b": "rollout_handback",
}
KEYS_HELP = "keys: s success, f failure, q stop, t take over with the leader, b back to the policy"

Config = Annotated[Path, typer.Option(envvar=CONFIG_VARIABLE, help="agent.toml")]
Json = Annotated[bool, typer.Option("--json", help="for a machine: JSON on standard output")]
Episodes = Annotated[int, typer.Option("--episodes", "--num-episodes", metavar="N")]

agent = command_group("The daemon.")
setup = command_group("Set an arm up.")
dataset = command_group("This robot's episodes.")
policies = command_group("The policies on this robot.")
SETTINGS_AS_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def speaking(config: Path) -> AgentClient:
    """A client of the agent that this configuration describes. Raises ConfigError."""
    return AgentClient(load_config(config).agent_socket)


def say(line: str, reply: Any, as_json: bool) -> None:
    """One result: a line for people, or a line of JSON."""
    print(json.dumps(reply) if as_json else line, flush=True)


@agent.callback()
@setup.callback()
@dataset.callback()
def _group() -> None:
    """Keeps the only command of each a command of its own."""


@agent.command("run", context_settings=SETTINGS_AS_FLAGS)
def run_daemon(context: typer.Context, config: Config = DEFAULT_CONFIG_PATH) -> None:
    """Run it in the foreground; any setting may be given as --section.key VALUE."""
    # The other commands need neither asyncio nor uvicorn.
    from agent.supervisor.daemon import run_agent
    from host.logs import set_up_logging

    set_up_logging()
    take_flags(AgentConfig, context.args)
    run_agent(load_config(config), config)


def doctor(config: Config = DEFAULT_CONFIG_PATH, as_json: Json = False) -> None:
    """Check all that the agent needs, one line a finding."""
    from agent.doctor import examine  # it looks at cameras and servos itself

    well = True
    for finding in examine(config):
        well = well and finding.well
        line = f"{'ok  ' if finding.well else 'BAD '} {finding.what}: {finding.line}"
        say(line, asdict(finding), as_json)
    raise typer.Exit(0 if well else 1)


def status(config: Config = DEFAULT_CONFIG_PATH, as_json: Json = False) -> None:
    """Show what the agent on this host is doing."""
    with speaking(config) as client:
        reply = client.status()
    print(json.dumps(reply, indent=2) if as_json else "\n".join(status_lines(reply)))


def record(
    task: Annotated[str, typer.Option(help="what the episodes show, in words")],
    config: Config = DEFAULT_CONFIG_PATH,
    episodes: Episodes = 1,
    episode_time_s: Annotated[
        float | None, typer.Option(help="end each episode by itself; default: on Enter")
    ] = None,
    reset_time_s: Annotated[
        float | None, typer.Option(help="pause between episodes; default: until Enter")
    ] = None,
    as_json: Json = False,
) -> None:
    """Record teleoperated episodes."""
    with speaking(config) as client, _parked_at_the_end(client):
        for number in range(1, episodes + 1):
            client.record_start(task=task)
            try:
                kept = _episode(f"episode {number}/{episodes}: recording", episode_time_s)
            except (KeyboardInterrupt, NoTerminal):
                client.record_discard()
                print("\nthe running episode was thrown away", file=sys.stderr)
                raise
            if kept:
                reply = client.record_finish()
                say(f"  saved {reply['episode']}, {reply['frames']} frames", reply, as_json)
            else:
                say("  thrown away", client.record_discard(), as_json)
            if number < episodes and reset_time_s is not None:
                time.sleep(reset_time_s)
            elif number < episodes:
                _ask("  set the scene for the next episode, then press Enter: ")


def rollout(
    context: typer.Context,
    config: Config = DEFAULT_CONFIG_PATH,
    policy: Annotated[str, typer.Option(help="active, local or a version")] = "active",
    episodes: Episodes = 1,
    seconds: Annotated[float, typer.Option("--seconds", "--episode-time-s", metavar="S")] = 20.0,
    task: Annotated[str | None, typer.Option(help="written into recorded episodes")] = None,
    record: Annotated[bool, typer.Option("--record", help="record the episodes as well")] = False,
    as_json: Json = False,
) -> None:
    """Let a released policy drive the arm; it stops and parks when this command is gone."""
    if context.invoked_subcommand is not None:
        return
    with speaking(config) as client, RolloutOperator(client) as operator:
        armed = operator.arm(policy)
        line = f"policy {armed['version']} is loaded, {armed['latency_ms']:.0f} ms a chunk"
        say(line, armed, as_json)
        with _parked_at_the_end(client), Keys() as keys:
            if keys.there:
                print(KEYS_HELP, file=sys.stderr)
            for number in range(1, episodes + 1):
                client.rollout_start(seconds=seconds, task=task, record=record)
                while (run := client.status()["rollout"])["running"]:
                    _obey(client, keys.pressed(POLL_S))
                line = (
                    f"episode {number}/{episodes}: {run['outcome']}; "
                    f"{run['ticks']} ticks, {run['holds']} held, "
                    f"{run['missed_deadlines']} deadlines missed"
                )
                say(line, run, as_json)
                if str(run["outcome"]).startswith("fault"):
                    raise typer.Exit(1)


def _obey(client: AgentClient, key: str | None) -> None:
    """What a key asks of the running episode; a refusal is told and changes nothing."""
    verb = ROLLOUT_KEYS.get(key or "")
    if verb is None:
        return
    try:
        client.post(operation_of(verb).path)
    except RequestFailed as error:
        print(f"armada: {error}", file=sys.stderr)


def train(
    local: Annotated[
        bool, typer.Option("--local", help="on this robot's own episodes, without a coordinator")
    ] = False,
    config: Config = DEFAULT_CONFIG_PATH,
    steps: Annotated[int | None, typer.Option(min=1, help="default: training.local_steps")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="begin anew where an order is unfinished")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a policy of this robot alone; `armada rollout --policy local` then drives by it."""
    if not local:
        raise typer.BadParameter(
            "the fleet's training goes on by itself while the robot is idle (see `armada status`); "
            "give --local to train a policy of this robot alone"
        )
    with speaking(config) as client:
        order = client.train_local(steps=steps, again=again)
        try:
            outcome = _followed(client, order, as_json)
        except KeyboardInterrupt:
            print(
                "\nthe agent goes on with it; `armada train --local` shows it again",
                file=sys.stderr,
            )
            raise
    if outcome["state"] == "refused":
        say(f"the policy is refused: {outcome['refusal']}", outcome, as_json)
        raise typer.Exit(1)
    error = outcome["held_out_mae"]
    tested = "" if error is None else f", held-out error {error:.2f} joint units"
    line = f"ready after {outcome['step']} steps{tested}; `armada rollout --policy local` uses it"
    say(line, outcome, as_json)


def _followed(client: AgentClient, order: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """Show what the order waits for or how far it is, until it is done; how it ended."""
    shown, shown_s = "", float("-inf")
    while True:
        status = client.status()
        local = (status.get("trainer") or {}).get("local") or {}
        ours = local.get("order_id") == order["order_id"]
        if ours and local["state"] in ("ready", "refused"):
            return dict(local)
        line = "; ".join(each["text"] for each in status["waiting"] if each["about"] == "training")
        if line != shown and (time.monotonic() - shown_s >= SHOW_S or "step " not in line):
            loss = f", loss {local['loss']:.3f}" if ours and local.get("loss") else ""
            say(f"{line}{loss}", {"waiting": status["waiting"], **local}, as_json)
            shown, shown_s = line, time.monotonic()
        time.sleep(POLL_S)


@setup.command()
def calibrate(
    arm: Annotated[ArmName, typer.Option()],
    config: Config = DEFAULT_CONFIG_PATH,
    as_json: Json = False,
) -> None:
    """Teach the agent an arm's joints."""
    with speaking(config) as client:
        _ask(f"Put every joint of the {arm} to the middle of its range, then press Enter: ")
        client.calibrate(arm=arm, step="homing")
        client.calibrate(arm=arm, step="range_start")
        while True:
            _ask(f"Move every joint of the {arm} through its whole range, then press Enter: ")
            try:
                reply = client.calibrate(arm=arm, step="range_finish")
                break
            except RequestFailed as error:
                if "hardly moved" not in str(error):
                    raise
                print(error, file=sys.stderr)
        ranges = reply["ranges"].items()
        lines = [f"  {joint:<14}{low:>5} .. {high}" for joint, (low, high) in ranges]
        say("\n".join([*lines, f"saved {reply['path']}"]), reply, as_json)


@dataset.command("import")
def import_dataset(
    source: Annotated[
        str, typer.Argument(metavar="REPO_ID|FOLDER|ROW", help="a dataset, or a row of --plan")
    ],
    config: Config = DEFAULT_CONFIG_PATH,
    plan: Annotated[
        str | None, typer.Option(help="a TOML file, or a shipped plan such as so100-field")
    ] = None,
    task: Annotated[str | None, typer.Option(help="instead of the dataset's words")] = None,
    camera: Annotated[
        list[str] | None, typer.Option(metavar="OURS=THEIRS", help="once for each camera")
    ] = None,
    convention: Annotated[
        str | None, typer.Option(help="of its joints: degrees, normalised or before-777")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="of the repository")] = None,
    episodes: Annotated[int | None, typer.Option(min=1, help="the first so many")] = None,
    evaluation: Annotated[
        bool, typer.Option("--evaluation", help="never train on them, only evaluate")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take a LeRobotDataset (v2.1 or v3) as this robot's episodes."""
    # Imported here: it loads the video libraries, and the other commands are quick.
    from agent.dataset.foreign.importing import import_episodes
    from agent.dataset.foreign.plan import ImportRow, read_plan, row_of

    row = ImportRow(dataset=source)
    if plan is not None:
        row, evaluation = read_plan(plan).row(source)
    row = row_of(row, task=task, convention=convention, revision=revision, cameras=camera or ())
    for done in import_episodes(load_config(config), row, evaluation=evaluation, count=episodes):
        was = "is here already" if done.known else "imported"
        line = f"  episode {done.episode}: {was} as {done.episode_id}, {done.frames} frames"
        say(line, asdict(done), as_json)


@policies.command("list")
def policy_list(config: Config = DEFAULT_CONFIG_PATH, as_json: Json = False) -> None:
    """Show every policy: its state, why, and which one drives."""
    with speaking(config) as client:
        reply = client.policy_list()
    say("\n".join(policy_lines(reply)), reply, as_json)


@policies.command("use")
def policy_use(
    policy: Annotated[str, typer.Argument(help="a version, local, or newest to lift the pin")],
    config: Config = DEFAULT_CONFIG_PATH,
    as_json: Json = False,
) -> None:
    """Make an installed policy the active one and pin it: releases wait until `use newest`."""
    with speaking(config) as client:
        reply = client.policy_use(policy=policy)
    say("\n".join(policy_lines(reply)), reply, as_json)


@policies.command("rollback")
def policy_rollback(config: Config = DEFAULT_CONFIG_PATH, as_json: Json = False) -> None:
    """Take away the version on trial, else go back to the one that was active before."""
    with speaking(config) as client:
        reply = client.policy_rollback()
    line = f"rolled back to {reply['rolled_back_to']}"
    say("\n".join([line, *policy_lines(reply)]), reply, as_json)


def command_of(operation: Operation, said: Callable[[dict[str, Any]], str]) -> Callable[..., None]:
    """The command of one row: its fields are the options."""

    def command(config: Path, as_json: bool, **fields: Any) -> None:
        with speaking(config) as client:
            reply = client.post(operation.path, **fields)
        say(said(reply), reply, as_json)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("config", keyword, default=DEFAULT_CONFIG_PATH, annotation=Config),
        inspect.Parameter("as_json", keyword, default=False, annotation=Json),
    ]
    for name, field in operation.arguments.model_fields.items():
        option = typer.Option(f"--{name.replace('_', '-')}", help=field.description)
        default = inspect.Parameter.empty if field.is_required() else field.default
        annotation: Any = Annotated[field.annotation, option]
        parameters.append(inspect.Parameter(name, keyword, default=default, annotation=annotation))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = operation.help
    return command


def make_app(operations: Iterable[Operation] = OPERATIONS) -> typer.Typer:
    """All commands of this room; those of the operations table after the others."""
    made = command_group("The agent of one robot.")
    made.add_typer(agent, name="agent")
    for function in (record, train, status):
        made.command()(function)
    rollouts = command_group()
    rollouts.callback(invoke_without_command=True)(rollout)
    made.add_typer(rollouts, name="rollout", help=rollout.__doc__)
    made.add_typer(setup, name="setup")
    made.add_typer(dataset, name="dataset")
    made.add_typer(policies, name="policy")
    made.command()(doctor)
    for row in operations:
        if row.said is None:
            continue
        command = command_of(row, row.said)
        if row.verb.startswith("rollout_"):
            rollouts.command(row.verb.removeprefix("rollout_"))(command)
        else:
            made.command(row.verb.replace("_", "-"))(command)
    return made


app = make_app()


def main(argv: Sequence[str]) -> int:
    """Run one command; the exit status."""
    return run_command_line(app, "armada", argv, (AgentError,), (ConfigError, BadSettings))


@contextlib.contextmanager
def _parked_at_the_end(client: AgentClient) -> Iterator[None]:
    """However a session ends, the arm is parked; a fault says so itself."""
    try:
        yield
    finally:
        try:
            client.park()
        except RequestFailed as error:
            print(f"armada: {error}", file=sys.stderr)


def _episode(line: str, seconds: float | None) -> bool:
    """Wait for the end of an episode; True if it is to be kept. Raises NoTerminal."""
    if seconds is None:
        return _ask(f"{line}; Enter saves it, d and Enter throws it away: ") != "d"
    print(line, file=sys.stderr, flush=True)
    time.sleep(seconds)
    return True


def _ask(prompt: str) -> str:
    """What the person answers; standard output is for results. Raises NoTerminal."""
    print(prompt, end="", file=sys.stderr, flush=True)
    try:
        return input().strip().lower()
    except EOFError as error:
        raise NoTerminal(
            "nobody is there to answer: run this at a terminal, "
            "or give --episode-time-s and --reset-time-s"
        ) from error
