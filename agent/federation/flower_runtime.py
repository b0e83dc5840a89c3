"""The names of Flower's internals that our client needs, in one file, for one version.

Flower's SuperNode runs with `--isolation process`: it keeps each message until somebody asks its
loopback Runtime API for a task. That somebody is this file, and so our own client app answers from
the installed package; the app bundle that travels with a run is never unpacked, let alone run.

- The task's identity is global to a process in Flower, hence one forked child a task. The parent
  has everything imported and stays warm; a fork costs milliseconds.
- The client that runs a task has no retry invoker: Flower's sends SIGINT to its own process on any
  401. What still raises SIGINT (a heartbeat of a task that is over) ends the child alone.

Flower's own `flwr-clientapp` would install the bundle and import the client app out of it, so it
can never stand here, nor `flower-superexec`, which starts it.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable

import flwr
import httpx
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from agent.federation.errors import FlowerVersionError, RequestDeclined, RuntimeRefused
from host.parent import bind_to_parent

FLWR_VERSION = "1.41.0"
if flwr.__version__ != FLWR_VERSION:
    raise FlowerVersionError(
        f"flwr {flwr.__version__} is installed; armada needs exactly {FLWR_VERSION} "
        f"(pip install flwr=={FLWR_VERSION})"
    )

ACQUIRE_METHOD = "/flwr.proto.Runtime/AcquireTask"
POLL_PERIOD_S = 0.25
MAX_TASK_S = 86_400.0
DECLINED = 0  # the code of an error of which Flower knows no more than its reason
FAILED_REPLY = "the client app failed; its log on the robot says why"

Handler = Callable[[str, RecordDict], RecordDict]
log = logging.getLogger(__name__)


class TaskServer:
    """Takes tasks from the SuperNode beside us and answers each in a forked child.

    `handle(message_type, content)` returns the content of the reply, or raises RequestDeclined
    with the one line that the coordinator shall read.
    """

    def __init__(self, runtime_address: str, secret: bytes, handle: Handler) -> None:
        self._address = runtime_address
        self._handle = handle
        self._client = RuntimeHttpClient.from_server_address(
            server_address=runtime_address,
            insecure=True,  # loopback, and the secret signs the request
            root_certificates=None,
            interceptors=[
                SuperExecAuthHttpInterceptor(
                    master_secret=secret, protected_methods={ACQUIRE_METHOD}
                ),
            ],
        )

    def close(self) -> None:
        self._client.close()

    def serve_one(self) -> int | None:
        """Answer the next task if there is one; its child's exit status, or None.

        Raises RuntimeRefused if the SuperNode does not accept our secret. A SuperNode that is not
        there (yet) counts as no task.
        """
        # An agent app is never ours, but unclaimed it would block the SuperNode for ever.
        types = [TaskType.CLIENT_APP, TaskType.AGENT_APP]
        try:
            response = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=types))
        except httpx.TransportError:
            return None
        except httpx.HTTPStatusError as error:
            if error.response.is_server_error:
                return None
            raise RuntimeRefused(
                f"SuperNode at {self._address} refuses this client: HTTP "
                f"{error.response.status_code}; restart the agent's federation"
            ) from error
        if not response.HasField("task") or not response.token:
            return None
        return self._in_child(response.token)

    def _in_child(self, token: str) -> int:
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                bind_to_parent(parent, signal.SIGTERM)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                _answer(self._address, token, self._handle)
                status = 0
            except BaseException:
                log.exception("client app task failed")
                raise
            finally:
                logging.shutdown()
                os._exit(status)
        return _wait(child, MAX_TASK_S)


def _wait(child: int, limit_s: float) -> int:
    """Exit code of a forked child; killed when it is over its limit."""
    deadline = time.monotonic() + limit_s
    pause_s = 0.005
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid == child:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.1)


def _answer(address: str, token: str, handle: Handler) -> None:
    """One task: message in, reply out. The app bundle that comes along is dropped unread."""
    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[
            RuntimeTokenHttpInterceptor(token),
        ],
    )
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    message, context, _run, _bundle = pull_task_input(client)
    failed = Error(DECLINED, FAILED_REPLY)
    reply = Message(failed, reply_to=message)
    outcome, details = SubStatus.FAILED, FAILED_REPLY
    try:
        reply = Message(handle(message.metadata.message_type, message.content), reply_to=message)
        outcome, details = SubStatus.COMPLETED, ""
    except RequestDeclined as refusal:
        log.info("declined %s: %s", message.metadata.message_type, refusal)
        reply = Message(Error(DECLINED, str(refusal)), reply_to=message)
        outcome, details = SubStatus.COMPLETED, ""
    finally:
        push_message(client, reply, context)
        push_task_output(client, context, outcome, details)
        client.close()
