"""Everything of Flower's internals that the coordinator needs, in one file, for one version.

A round is one run of the SuperLink. We start it over the Control API with an app bundle that holds
no code, take its task as our own (`--isolation process`) and speak to the nodes through Flower's
grid. Flower keeps the task's identity global to a process: one round a process (see `round_job`).

- The grid gets a retry invoker of ours: Flower's own sends SIGINT to its process on any 401 and
  retries for ever.
- A node that dies while it sends blocks a pull for three minutes, so each awaited message has its
  own thread and nobody waits for a thread that is late.
"""

from __future__ import annotations

import io
import logging
import queue
import ssl
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import flwr
import httpx
from flwr.app import Message, MessageType, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, SubStatus
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    StartRunRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry.retry_invoker import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from coordinator.federation.errors import (
    FederationError,
    FlowerVersionError,
    SuperLinkRefused,
    SuperLinkUnreachable,
)
from coordinator.federation.orders import SuperLinkAccess, canonical_key

FLWR_VERSION = "1.41.0"
if flwr.__version__ != FLWR_VERSION:
    raise FlowerVersionError(
        f"flwr {flwr.__version__} is installed; armada needs exactly {FLWR_VERSION} "
        f"(pip install flwr=={FLWR_VERSION})"
    )

ACQUIRE_METHOD = "/flwr.proto.Runtime/AcquireTask"
RETRY_FOR_S = 20.0  # a SuperLink restarted within 9 s loses nothing
POLL_PERIOD_S = 0.25
TTL_SLACK_S = 30.0

log = logging.getLogger(__name__)

EMPTY_BUNDLE = """\
[project]
name = "round"
version = "1"

[tool.flwr.app]
publisher = "armada"

[tool.flwr.app.components]
serverapp = "armada.installed:app"
clientapp = "armada.installed:app"
"""


@dataclass(frozen=True)
class NodeReply:
    """One node's answer: its content, or the one line that says why there is none."""

    public_key: str
    content: RecordDict | None
    problem: str | None
    seconds: float


def empty_bundle() -> bytes:
    """A Flower app bundle with a configuration that Flower accepts and no code at all."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr(zipfile.ZipInfo("pyproject.toml"), EMPTY_BUNDLE)
    return buffer.getvalue()


def reply_message(content: RecordDict, node_id: int) -> Message:
    """A message as Flower's strategies expect a node's reply; it needs no run to exist."""
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=node_id,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=TTL_SLACK_S,
        message_type=MessageType.TRAIN,
    )
    return make_message(metadata=metadata, content=content)


def register_nodes(access: SuperLinkAccess, keys: Mapping[str, str]) -> dict[str, int]:
    """Register SuperNode keys by agent id; node id by agent id. Known keys keep their node.

    Raises SuperLinkUnreachable or SuperLinkRefused.
    """
    nodes: dict[str, int] = {}
    with _control(access) as control, _translated(access):
        known = {
            canonical_key(node.public_key): node.node_id
            for node in control.ListNodes(ListNodesRequest()).nodes_info
        }
        for agent_id, public_key in keys.items():
            pem = canonical_key(public_key)
            if pem in known:
                nodes[agent_id] = known[pem]
                continue
            request = RegisterNodeRequest(public_key=pem.encode(), name=agent_id)
            nodes[agent_id] = control.RegisterNode(request).node_id
    return nodes


class FlowerFleet:
    """One run of the SuperLink, as the process that owns its task. A context manager.

    Entering raises SuperLinkUnreachable or SuperLinkRefused. Leaving ends the run: as completed,
    or as failed if an exception leaves with it.
    """

    def __init__(self, access: SuperLinkAccess) -> None:
        self._access = access
        self._nodes: dict[str, int] = {}

    def __enter__(self) -> Self:
        access = self._access
        with _translated(access):
            with _control(access) as control:
                bundle = Fab(content=empty_bundle())
                self._run_id = control.StartRun(StartRunRequest(fab=bundle)).run_id
            token = self._acquire()
            self._grid = HttpGrid(
                runtime_api_address=access.address,
                insecure=False,
                root_certificates=access.ca.read_bytes(),
                token=token,
            )
            self._grid._retry_invoker = _calm_retries()
            runtime = self._grid._runtime_client
            response = runtime.PullTaskInput(PullTaskInputRequest())
            TaskIdentity.task_id = response.task_id
            TaskIdentity.run_id = response.run.run_id
            TaskIdentity.node_id = SUPERLINK_NODE_ID
            self._grid.set_run(run_from_proto(response.run))
            self._heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(runtime))
            self._heartbeat.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        failed = kind is not None
        output = PushTaskOutputRequest(
            sub_status=SubStatus.FAILED if failed else SubStatus.COMPLETED,
            details=str(error)[:300] if failed else "",
        )
        # stop() would join a thread that may be in the middle of a request.
        self._heartbeat._stop_event.set()
        try:
            with _translated(self._access):
                self._grid._runtime_client.PushTaskOutput(output)
        except FederationError as lost:
            # The SuperLink ends a run without heartbeats by itself after a minute.
            log.warning("run %d could not be closed: %s", self._run_id, lost)

    def connected(self) -> set[str]:
        """Public keys (PEM) of the nodes that are online."""
        with _translated(self._access):
            self._nodes = {
                canonical_key(node.public_key): node.node_id for node in self._grid.get_nodes()
            }
        return set(self._nodes)

    def ask(
        self, message_type: str, requests: Mapping[str, RecordDict], timeout_s: float
    ) -> Iterator[NodeReply]:
        """Send each node its request; yield one answer a node, as they come, none later than
        the timeout. Keys are public keys out of `connected()`."""
        keys = list(requests)
        started = time.monotonic()
        deadline = started + timeout_s
        messages = [
            Message(
                content=requests[key],
                dst_node_id=self._nodes[key],
                message_type=message_type,
                ttl=timeout_s + TTL_SLACK_S,
            )
            for key in keys
        ]
        with _translated(self._access):
            ids = list(self._grid.push_messages(messages))
        arrived: queue.Queue[NodeReply] = queue.Queue()
        waiting = set()
        for key, message_id in zip(keys, ids, strict=True):
            if not message_id:
                yield NodeReply(key, None, "the SuperLink did not take the message", 0.0)
                continue
            waiting.add(key)
            threading.Thread(
                target=self._await_reply,
                args=(key, message_id, started, deadline, arrived),
                daemon=True,
            ).start()
        while waiting:
            try:
                answer = arrived.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            waiting.discard(answer.public_key)
            yield answer
        for key in waiting:
            yield NodeReply(key, None, f"no answer within {timeout_s:.0f} s", timeout_s)

    def _await_reply(
        self,
        key: str,
        message_id: str,
        started: float,
        deadline: float,
        arrived: queue.Queue[NodeReply],
    ) -> None:
        while time.monotonic() < deadline:
            try:
                replies = list(self._grid.pull_messages([message_id]))
            except (httpx.HTTPError, ValueError, TypeError, KeyError) as error:
                arrived.put(NodeReply(key, None, f"reply could not be pulled: {error}", 0.0))
                return
            seconds = time.monotonic() - started
            for reply in replies:
                if reply.metadata.reply_to_message_id != message_id:
                    continue
                if reply.has_error():
                    arrived.put(NodeReply(key, None, reply.error.reason[:300], seconds))
                else:
                    arrived.put(NodeReply(key, reply.content, None, seconds))
                return
            time.sleep(POLL_PERIOD_S)

    def _acquire(self) -> str:
        """The token of our run's task. Tasks left by a process that died are closed as failed."""
        access = self._access
        interceptor = SuperExecAuthHttpInterceptor(
            master_secret=access.secret.read_bytes(), protected_methods={ACQUIRE_METHOD}
        )
        request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
        with _runtime(access, [interceptor]) as client:
            while True:
                response = client.AcquireTask(request)
                if not response.HasField("task"):
                    raise SuperLinkRefused(
                        f"SuperLink at {access.address} gave the task of run {self._run_id} away; "
                        "does another coordinator use it?"
                    )
                if response.task.run_id == self._run_id:
                    return str(response.token)
                token = RuntimeTokenHttpInterceptor(response.token)
                with _runtime(access, [token]) as stale:
                    stale.PushTaskOutput(
                        PushTaskOutputRequest(sub_status=SubStatus.FAILED, details="orphaned")
                    )


class _translated:  # noqa: N801  reads as a phrase: `with _translated(access):`
    """Turns what Flower's HTTP client raises into one clear line."""

    def __init__(self, access: SuperLinkAccess) -> None:
        self._access = access

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: Any
    ) -> None:
        address = self._access.address
        if isinstance(error, httpx.HTTPStatusError):
            said = FlowerError.from_json(error.response.text)
            text = said.message if said else f"HTTP {error.response.status_code}"
            if said and said.code == ApiErrorCode.RUNTIME_AUTHENTICATION_FAILED:
                text += f"; is {self._access.secret} the secret the SuperLink was started with?"
            raise SuperLinkRefused(f"SuperLink at {address} refused: {text}") from error
        if isinstance(error, httpx.TransportError | ssl.SSLError):
            if "certificate" in str(error).lower() or "ssl" in str(error).lower():
                raise SuperLinkUnreachable(
                    f"TLS with the SuperLink at {address} failed: {error}; its certificate must "
                    f"come from the authority in {self._access.ca}"
                ) from error
            raise SuperLinkUnreachable(
                f"no SuperLink answers at {address} ({error or type(error).__name__}); "
                "start `armada coordinator superlink`"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise FederationError(
                f"{error.filename} does not exist; run `armada coordinator init`"
            ) from error


def _control(access: SuperLinkAccess) -> ControlHttpClient:
    return ControlHttpClient.from_server_address(
        server_address=access.address,
        insecure=False,
        root_certificates=access.ca.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )


def _runtime(access: SuperLinkAccess, interceptors: Sequence[Any]) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=access.address,
        insecure=False,
        root_certificates=access.ca.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec"), *interceptors],
    )


def _calm_retries() -> RetryInvoker:
    """Retries a lost connection for RETRY_FOR_S, and nothing else."""
    return RetryInvoker(
        lambda: exponential(max_delay=2),
        httpx.TransportError,
        max_tries=None,
        max_time=RETRY_FOR_S,
    )
