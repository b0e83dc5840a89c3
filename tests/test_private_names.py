"""Every private name of Flower and LeRobot that we use, in one list.

A name is private here when its package does not document it: it begins with an underscore, or its
module is not one of PUBLIC, or it is missing in that module's `__all__`. The list is held to both
sides: an upgrade that moves a name fails with a line that says who uses it, and so does a use that
is not in the list.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("agent", "coordinator", "deploy", "host", "policy", "protocol", "robot_io")
PUBLIC = {
    "flwr", "flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy",
    "lerobot", "lerobot.cameras", "lerobot.configs", "lerobot.datasets", "lerobot.policies",
    "lerobot.policies.rtc",
    "lerobot.robots", "lerobot.teleoperators",
}  # fmt: skip


@dataclass(frozen=True)
class Private:
    """A name of a module, what of it we use, where, and why it cannot be spared.

    members: attributes of the name, or parameters of the callable, that we rely on.
    hidden: its use is not to be seen in an import or in an underscore; `users` is then our word.
    """

    module: str
    name: str
    users: tuple[str, ...]
    why: str
    members: tuple[str, ...] = ()
    hidden: bool = False

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


AGENT = "agent/federation/flower_runtime.py"
SUPERNODE = "agent/federation/supernode_process.py"
COORDINATOR = "coordinator/federation/flower_runtime.py"
FLEET = "coordinator/federation/fleet.py"
STRATEGIES = "coordinator/federation/strategies.py"
WRITER = "agent/dataset/writer.py"
SMOLVLA = "policy/kinds/smolvla_graph.py"

TABLE = [
    # Registering keys, starting the campaign's run, claiming its task.
    Private("flwr.supercore.control", "ControlHttpClient", (COORDINATOR,),
            "the command line cannot list keys, and takes a process for each",
            ("from_server_address", "ListNodes", "RegisterNode", "StartRun")),
    Private("flwr.proto.control_pb2", "ListNodesRequest", (COORDINATOR,), "which keys are known"),
    Private("flwr.proto.control_pb2", "RegisterNodeRequest", (COORDINATOR,), "a robot's key"),
    Private("flwr.proto.control_pb2", "StartRunRequest", (COORDINATOR,), "the campaign's run"),
    # Claiming tasks: flower-superexec would execute the bundle of any run.
    Private("flwr.supercore.runtime", "RuntimeHttpClient", (COORDINATOR, AGENT),
            "claims a task", ("from_server_address", "AcquireTask", "close")),
    Private("flwr.proto.runtime_pb2", "AcquireTaskRequest", (COORDINATOR, AGENT), "claims a task"),
    Private("flwr.supercore.constant", "TaskType", (COORDINATOR, AGENT), "which tasks to claim",
            ("SERVER_APP", "CLIENT_APP", "AGENT_APP")),
    Private("flwr.supercore.interceptors", "SuperExecAuthHttpInterceptor", (COORDINATOR, AGENT),
            "signs the claim of a task"),
    # Answering a task: flwr-clientapp would execute the bundle on the robot.
    Private("flwr.supercore.interceptors", "RuntimeTokenHttpInterceptor", (AGENT,),
            "speaks for a claimed task"),
    Private("flwr.supercore.heartbeat", "HeartbeatSender", (AGENT,), "keeps a task claimed",
            ("start",)),
    Private("flwr.supercore.heartbeat", "make_task_heartbeat_fn_http", (AGENT,),
            "keeps a task claimed"),
    Private("flwr.supernode.runtime.run_clientapp", "pull_task_input", (AGENT,), "the message"),
    Private("flwr.supernode.runtime.run_clientapp", "push_message", (AGENT,), "the reply"),
    Private("flwr.supernode.runtime.run_clientapp", "push_task_output", (AGENT,), "its end"),
    Private("flwr.common.constant", "SubStatus", (AGENT,), "how a task ended",
            ("COMPLETED", "FAILED")),
    # What the SuperNode's connection does, and how often it looks.
    Private("flwr.supernode.fleet_http_connection", "make_simple_http_retry_invoker", (SUPERNODE,),
            "the seam that sees each error and success of a call"),
    Private("flwr.supercore.retry", "RetryInvoker", (SUPERNODE,), "what that maker makes",
            ("self.should_giveup", "self.on_success"), hidden=True),
    Private("flwr.supernode.start_client_internal", "http_request_response", (SUPERNODE,),
            "the seam that tells the node's id, and looks for messages every second"),
    # Calling a strategy outside of Flower's own loop, with the memory it would have kept.
    Private("flwr.app", "Message", (FLEET,), "a reply without a run", ("(metadata)",), hidden=True),
    Private("flwr.serverapp.exception", "AggregationError", (STRATEGIES,), "what strategies raise"),
    Private("flwr.serverapp.exception", "InconsistentMessageReplies", (STRATEGIES,),
            "what strategies raise"),
    Private("flwr.serverapp.strategy", "FedAvgM", (STRATEGIES,), "its memory",
            ("self.current_arrays", "self.momentum_vector"), hidden=True),
    Private("flwr.serverapp.strategy", "QFedAvg", (STRATEGIES,), "its memory",
            ("self.current_arrays",), hidden=True),
    Private("flwr.serverapp.strategy", "FedAdam", (STRATEGIES,), "its memory",
            ("self.current_arrays", "self.m_t", "self.v_t"), hidden=True),
    Private("flwr.serverapp.strategy", "FedYogi", (STRATEGIES,), "its memory",
            ("self.current_arrays", "self.m_t", "self.v_t"), hidden=True),
    # LeRobot's encoder drops a frame when its queue is full for 0.1 s; ours waits.
    Private("lerobot.datasets.video_utils", "StreamingVideoEncoder", (WRITER,), "made patient",
            ("feed_frame", "self._frame_queues", "self._threads")),
    Private("lerobot.datasets.dataset_writer", "DatasetWriter", (WRITER,),
            "where that encoder is put", ("self._streaming_encoder",)),
    # The graph of SmolVLA is traced in two parts, which its one call for inference has not.
    Private("lerobot.policies.smolvla.smolvlm_with_expert", "apply_rope", (SMOLVLA,),
            "rotates by writing into slices, slow in a graph"),
]  # fmt: skip

COMMANDS = {
    "flower-superlink": "coordinator/federation/superlink.py",
    "flower-supernode": SUPERNODE,
    "flwr-serverapp": COORDINATOR,
}


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_every_private_name_is_where_we_use_it(row: Private) -> None:
    package = row.module.partition(".")[0]
    where = f"{package} {version(package)} has no {{}}, which {', '.join(row.users)} needs"
    try:
        module = importlib.import_module(row.module)
    except ImportError:
        pytest.fail(f"{where.format(row.module)} for {row.name}: {row.why}")
    if not hasattr(module, row.name):
        pytest.fail(f"{where.format(row)}: {row.why}")
    found = getattr(module, row.name)
    for member in row.members:
        if not _has(found, member):
            pytest.fail(f"{where.format(f'{row} with {member}')}: {row.why}")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_we_run_is_installed(command: str) -> None:
    found = entry_points(group="console_scripts", name=command)
    assert len(found) == 1, f"flwr {version('flwr')} has no {command} for {COMMANDS[command]}"


def test_no_private_name_is_used_that_is_not_in_the_list() -> None:
    listed = {(str(row), user) for row in TABLE for user in row.users}
    listed |= {
        (member.removeprefix("self."), user)
        for row in TABLE
        for member in row.members
        for user in row.users
    }
    for use in _uses():
        assert (use.name, use.file) in listed, (
            f"{use.file}:{use.line} uses {use.name}, which is private: add it to TABLE, or better "
            "do without"
        )


def test_no_name_is_in_the_list_that_is_not_used() -> None:
    used = {(use.name, use.file) for use in _uses()}
    for row in TABLE:
        names = {str(row)} | {member.removeprefix("self.") for member in row.members}
        for user in row.users:
            assert row.hidden or any((name, user) in used for name in names), (
                f"{user} does not use {row} any more: take it out of TABLE"
            )


def test_a_name_that_an_upgrade_moved_is_told_with_who_uses_it() -> None:
    row = Private("flwr.supercore.runtime", "Moved", ("agent/there.py",), "it claims a task")
    with pytest.raises(pytest.fail.Exception) as caught:
        test_every_private_name_is_where_we_use_it(row)
    line = f"flwr {version('flwr')} has no flwr.supercore.runtime.Moved, which agent/there.py needs"
    assert str(caught.value) == f"{line}: it claims a task"


def _has(found: object, member: str) -> bool:
    """Is it there: an attribute, `self.x` that an `__init__` sets, or a parameter `(x)`?"""
    if member.startswith("("):
        return member[1:-1] in inspect.signature(found).parameters  # type: ignore[arg-type]
    if not member.startswith("self."):
        return hasattr(found, member)
    assert isinstance(found, type)
    name = member.removeprefix("self.")
    return any(name in _set_by(base) for base in found.__mro__ if base is not object)


@cache
def _set_by(found: type) -> frozenset[str]:
    """Names of the attributes that a class's methods set on `self`, and its fields."""
    try:
        tree = ast.parse(inspect.getsource(found))
    except (OSError, TypeError):
        return frozenset()
    stored = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    return frozenset(stored) | frozenset(getattr(found, "__annotations__", {}))


@dataclass(frozen=True)
class Use:
    """One use of a private name in our source."""

    name: str
    file: str
    line: int


@cache
def _uses() -> tuple[Use, ...]:
    files = [path for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]
    return tuple(use for path in files for use in _uses_in(path))


def _uses_in(path: Path) -> Iterator[Use]:
    """Imports out of private modules, what is taken of such a module, and foreign underscores."""
    file = str(path.relative_to(ROOT))
    tree = ast.parse(path.read_text())
    modules: dict[str, str] = {}  # our name -> the private module that it stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _foreign(alias.name) and alias.name not in PUBLIC:
                    yield Use(alias.name, file, node.lineno)
        elif isinstance(node, ast.ImportFrom) and _foreign(node.module or ""):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if _is_module(full):
                    if full not in PUBLIC:
                        modules[alias.asname or alias.name] = full
                elif not _is_public(str(node.module), alias.name):
                    yield Use(full, file, node.lineno)
    own = _names_of(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        if isinstance(node.value, ast.Name) and node.value.id in modules:
            yield Use(f"{modules[node.value.id]}.{node.attr}", file, node.lineno)
        elif (
            node.attr.startswith("_")
            and not node.attr.startswith("__")
            and node.attr not in own
            and ast.unparse(node.value) != "os"  # os._exit is documented
            and node.attr != "_value_"  # and so is what makes a member of an enumeration
        ):
            yield Use(node.attr, file, node.lineno)


def _names_of(tree: ast.Module) -> set[str]:
    """What the file itself defines or sets; an underscore of that is its own affair."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {node.attr} if ast.unparse(node.value) == "self" else set()
    return names


def _foreign(module: str) -> bool:
    return module.partition(".")[0] in ("flwr", "lerobot")


@cache
def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@cache
def _is_public(module: str, name: str) -> bool:
    if module not in PUBLIC or name.startswith("_"):
        return False
    return name in getattr(importlib.import_module(module), "__all__", [])
