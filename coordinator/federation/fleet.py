"""The robots of a run, through Flower's public `Grid`: who is online, and question and answer.

- Flower's grid tries for ever while no SuperLink answers, so each call has its own thread and
  nobody waits for a thread that is late. `lost` then says that this run is of no more use.
- A node that dies while it sends blocks a pull for three minutes; that thread too is left behind.
- A message lives no longer than its round: a robot that was mute must not find, in the same run,
  the orders of the rounds that it missed.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import httpx
from flwr.app import Message, MessageType, Metadata, RecordDict
from flwr.serverapp import Grid

from coordinator.federation.errors import SuperLinkRefused, SuperLinkUnreachable, unreachable
from coordinator.federation.orders import canonical_key
from host.threads import only_logged, spawn

RETRY_FOR_S = 20.0  # a SuperLink restarted within this loses nothing
PROBE_S = 5.0
POLL_PERIOD_S = 0.25

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeReply:
    """One node's answer: its content, or the one line that says why there is none."""

    public_key: str
    content: RecordDict | None
    problem: str | None
    seconds: float


def reply_message(content: RecordDict, node_id: int) -> Message:
    """A message as Flower's strategies expect a node's reply; it needs no run to exist."""
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=node_id,
        dst_node_id=1,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=60.0,
        message_type=MessageType.TRAIN,
    )
    return Message(content=content, metadata=metadata)


class GridFleet:
    """The fleet that `round.conduct` knows, over one run's grid. `address` is for its messages."""

    def __init__(self, grid: Grid, address: str) -> None:
        self._grid = grid
        self._address = address
        self._nodes: dict[str, int] = {}
        self.lost = False

    def connected(self) -> set[str]:
        """Public keys (PEM) of the nodes that are online. Raises SuperLinkUnreachable or
        SuperLinkRefused."""
        nodes = self._within(RETRY_FOR_S, lambda: list(self._grid.get_nodes()))
        self._nodes = {canonical_key(node.public_key): node.node_id for node in nodes}
        return set(self._nodes)

    def ask(
        self, message_type: str, requests: Mapping[str, RecordDict], timeout_s: float
    ) -> Iterator[NodeReply]:
        """Send each node its request; yield one answer a node, as they come, none later than
        the timeout. Keys are public keys out of `connected()`."""
        keys = list(requests)
        started_s = time.monotonic()
        deadline_s = started_s + timeout_s
        messages = [
            Message(
                content=requests[key],
                dst_node_id=self._nodes[key],
                message_type=message_type,
                ttl=timeout_s,
            )
            for key in keys
        ]
        ids = self._within(timeout_s, lambda: list(self._grid.push_messages(messages)))
        arrived: queue.SimpleQueue[NodeReply] = queue.SimpleQueue()
        waiting = set()
        for key, message_id in zip(keys, ids, strict=True):
            if not message_id:
                yield NodeReply(key, None, "the SuperLink did not take the message", 0.0)
                continue
            waiting.add(key)
            wait = partial(self._await_reply, key, message_id, started_s, deadline_s, arrived)
            spawn(f"reply-{key[:8]}", wait, partial(_answer_crash, arrived, key))
        while waiting:
            try:
                answer = arrived.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                break
            waiting.discard(answer.public_key)
            yield answer
        problem = self._why_silent(timeout_s) if waiting else ""
        for key in waiting:
            yield NodeReply(key, None, problem, timeout_s)

    def _await_reply(
        self,
        key: str,
        message_id: str,
        started_s: float,
        deadline_s: float,
        arrived: queue.SimpleQueue[NodeReply],
    ) -> None:
        while time.monotonic() < deadline_s:
            try:
                replies = list(self._grid.pull_messages([message_id]))
            except BaseException as error:  # whatever it is, nobody must wait for this thread
                log.exception("reply could not be pulled")
                self._judge(error)
                why = str(error) or type(error).__name__
                arrived.put(NodeReply(key, None, f"reply could not be pulled: {why}"[:300], 0.0))
                return
            seconds = time.monotonic() - started_s
            for reply in replies:
                if reply.metadata.reply_to_message_id != message_id:
                    continue
                if reply.has_error():
                    arrived.put(NodeReply(key, None, reply.error.reason[:300], seconds))
                else:
                    arrived.put(NodeReply(key, reply.content, None, seconds))
                return
            time.sleep(POLL_PERIOD_S)

    def _why_silent(self, timeout_s: float) -> str:
        try:
            self._within(PROBE_S, lambda: list(self._grid.get_nodes()))
        except (SuperLinkUnreachable, SuperLinkRefused) as error:
            return str(error)
        return f"no answer within {timeout_s:.0f} s"

    def _within[T](self, limit_s: float, call: Callable[[], T]) -> T:
        """The call's result, within the limit; raises SuperLinkUnreachable or SuperLinkRefused."""
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001  handed to the one who waits
                future.set_exception(error)

        spawn("superlink-call", work, only_logged)  # the future tells
        try:
            error = future.exception(timeout=limit_s)
        except TimeoutError:
            self.lost = True
            raise unreachable(self._address, f"for {limit_s:.0f} s") from None
        if error is None:
            return future.result()
        self._judge(error)
        if isinstance(error, httpx.HTTPStatusError):
            raise SuperLinkRefused(
                f"SuperLink at {self._address} refused: HTTP {error.response.status_code}"
            ) from error
        if isinstance(error, httpx.TransportError):
            raise unreachable(self._address, str(error) or type(error).__name__) from error
        if not isinstance(error, Exception):
            raise SuperLinkRefused(f"the SuperLink ended the run: {type(error).__name__}")
        raise error

    def _judge(self, error: BaseException) -> None:
        """Is the run of no more use? What tells of it is no Exception, in Flower's 403."""
        if isinstance(error, httpx.HTTPError) or not isinstance(error, Exception):
            self.lost = True


def _answer_crash(arrived: queue.SimpleQueue[NodeReply], key: str, line: str) -> None:
    arrived.put(NodeReply(key, None, line, 0.0))
