"""One round from order to result. Knows a fleet only through `Fleet`, time through its clock.

train: collect from exactly the members -> gate -> strategy -> new base -> push it to the members.
A member that does not answer, answers late, or answers nonsense costs nobody else anything.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flwr.app import RecordDict

from coordinator.campaign.reply import AnyReply, ContributionReply, Reply, merged_bases
from coordinator.federation.errors import FederationError, RoundFailed
from coordinator.federation.fleet import NodeReply
from coordinator.federation.gate import Received, Standing, judge
from coordinator.federation.orders import Member, RoundOrder, RoundResult, canonical_key
from coordinator.federation.strategies import aggregate, load_memory, save_memory
from policy.errors import PolicyError
from policy.weights import Weights, load_weights, save_weights, weights_digest
from protocol.contribution import Contribution
from protocol.eligibility import Terms
from protocol.episode_keys import MAX_KEYS_BYTES, unpack_keys
from protocol.errors import ProtocolError
from protocol.flower import (
    INSTALL,
    MAX_SKETCH_BYTES,
    STATISTICS,
    TRAIN,
    InstallReply,
    InstallRequest,
    StatisticsReply,
    StatisticsRequest,
    TrainRequest,
    pack,
    unpack,
)
from protocol.update import UpdateLimits, decode_update, encode_update

CONNECT_POLL_S = 0.5
# Of a member's time, what its node's polling (3 s) and the transfers may take.
TRANSFER_SHARE = 0.5
TRANSFER_S = 10.0
HEADER_SLACK_BYTES = 1 << 20
WEIGHTS_NAME = "weights.safetensors"
NOT_CONNECTED = "its SuperNode is not connected to the SuperLink"

log = logging.getLogger(__name__)


class Fleet(Protocol):
    """The nodes of one run. Keys are public keys as PEM."""

    def connected(self) -> set[str]: ...

    def ask(
        self, message_type: str, requests: Mapping[str, RecordDict], timeout_s: float
    ) -> Iterator[NodeReply]:
        """One reply a key, as they come, none later than the timeout."""
        ...


@dataclass
class _Round:
    """What has been gathered so far."""

    order: RoundOrder
    members: dict[str, Member]
    replies: dict[str, AnyReply] = field(default_factory=dict)
    bytes_down: int = 0
    sketches: dict[str, dict[str, Any]] = field(default_factory=dict)
    installed: list[str] = field(default_factory=list)
    not_installed: dict[str, str] = field(default_factory=dict)
    trained: dict[str, list[str]] = field(default_factory=dict)
    aggregate: Path | None = None
    base_info: dict[str, Any] | None = None

    def refuse(
        self, agent_id: str, reason: str, *, seconds: float | None = None, bytes_up: int = 0
    ) -> None:
        self.replies[agent_id] = Reply(
            agent_id=agent_id, accepted=False, reason=reason, bytes_up=bytes_up, seconds=seconds
        )

    def result(self, failure: str | None, seconds: float) -> RoundResult:
        replies = [
            self.replies[m.agent_id] for m in self.order.members if m.agent_id in self.replies
        ]
        digest = self.base_info["digest"] if self.aggregate and self.base_info else None
        return RoundResult(
            round=self.order.round,
            kind=self.order.kind,
            replies=replies,
            failure=failure,
            bytes_down=self.bytes_down,
            bytes_up=sum(reply.bytes_up for reply in replies),
            sketches=self.sketches,
            aggregate=self.aggregate,
            aggregate_digest=digest,
            base_info=self.base_info,
            installed=self.installed,
            not_installed=self.not_installed,
            trained=self.trained,
            seconds=seconds,
        )


def conduct(
    order: RoundOrder,
    fleet: Fleet,
    folder: Path,
    memory_folder: Path,
    clock: Callable[[], float] = time.monotonic,
    sleep_s: Callable[[float], None] = time.sleep,
) -> RoundResult:
    """Carry out `order`. What the members do wrong is in the result; raises OSError when the disk
    does, and what the fleet raises when the SuperLink is lost."""
    started_s = clock()
    members = {canonical_key(member.public_key): member for member in order.members}
    gathered = _Round(order, members)
    try:
        keys = _wait_for_members(gathered, fleet, clock, sleep_s)
        match order.kind:
            case "statistics":
                _statistics(gathered, fleet, keys)
            case "install":
                base = _load_base(order)
                _install(gathered, fleet, keys, base, dict(order.base_info or {}))
            case "train":
                _train(gathered, fleet, keys, folder, memory_folder)
    except FederationError as error:
        return gathered.result(str(error), clock() - started_s)
    return gathered.result(None, clock() - started_s)


def _wait_for_members(
    gathered: _Round, fleet: Fleet, clock: Callable[[], float], sleep_s: Callable[[float], None]
) -> list[str]:
    """Keys of the members whose nodes are online, at the latest after the connect timeout."""
    deadline_s = clock() + gathered.order.connect_timeout_s
    wanted = set(gathered.members)
    while True:
        present = wanted & fleet.connected()
        if present == wanted or clock() >= deadline_s:
            break
        sleep_s(CONNECT_POLL_S)
    for key in wanted - present:
        gathered.refuse(gathered.members[key].agent_id, NOT_CONNECTED)
    if not present:
        raise RoundFailed("no member's SuperNode is connected to the SuperLink")
    return [key for key in gathered.members if key in present]


def _statistics(gathered: _Round, fleet: Fleet, keys: list[str]) -> None:
    order = gathered.order
    requests = {key: pack(StatisticsRequest(round=order.round)) for key in keys}
    for answer in fleet.ask(STATISTICS, requests, order.reply_timeout_s):
        agent_id = gathered.members[answer.public_key].agent_id
        if answer.content is None:
            gathered.refuse(agent_id, answer.problem or "no answer", seconds=answer.seconds)
            continue
        try:
            _, blob = unpack(StatisticsReply, answer.content, MAX_SKETCH_BYTES)
            sketch = json.loads(blob)
        except (ProtocolError, ValueError) as error:
            gathered.refuse(agent_id, f"sketch: {error}"[:300], seconds=answer.seconds)
            continue
        if not isinstance(sketch, dict):
            gathered.refuse(agent_id, "sketch: not a JSON object", seconds=answer.seconds)
            continue
        gathered.sketches[agent_id] = sketch
        gathered.replies[agent_id] = Reply(
            agent_id=agent_id, accepted=True, bytes_up=len(blob), seconds=answer.seconds
        )
    if len(gathered.sketches) < order.min_replies:
        raise RoundFailed(
            f"{len(gathered.sketches)} of {len(order.members)} members sent statistics; "
            f"{order.min_replies} are needed"
        )


def _train(
    gathered: _Round, fleet: Fleet, keys: list[str], folder: Path, memory_folder: Path
) -> None:
    order = gathered.order
    assert order.terms is not None
    base = _load_base(order)
    standing = Standing(base, order.terms, order.merged_bases)
    received = judge(_collect(gathered, fleet, keys, base, order.terms), standing, order.gate)
    gathered.replies |= {one.reply.agent_id: one.reply for one in received}
    accepted = [one for one in received if one.reply.accepted]
    needed = max(order.min_replies, order.strategy.min_replies)
    if len(accepted) < needed:
        raise RoundFailed(
            f"{len(accepted)} of {len(order.members)} members' work was accepted; "
            f"{needed} are needed"
        )
    memory = load_memory(memory_folder, order.strategy, order.base_digest)
    weights, memory = aggregate(order.strategy, base, accepted, order.round, memory)
    digest = weights_digest(weights)
    path = folder / WEIGHTS_NAME
    save_weights(path, weights)
    save_memory(memory_folder, order.strategy, digest, memory)
    gathered.aggregate = path
    info = {**(order.base_info or {}), "digest": digest, "round": order.round}
    gathered.base_info = info
    try:
        _install(gathered, fleet, keys, weights, info)
    except FederationError as lost:  # the aggregate stands; who lacks it gets it later
        for key in keys:
            agent_id = gathered.members[key].agent_id
            if agent_id not in gathered.installed:
                gathered.not_installed.setdefault(agent_id, str(lost))


def _collect(
    gathered: _Round, fleet: Fleet, keys: list[str], base: Weights, terms: Terms
) -> list[Received]:
    """The deltas that can be decoded, as they come; everything else is refused at once."""
    order = gathered.order
    timeout_s = order.reply_timeout_s
    request = TrainRequest(
        round=order.round,
        terms=terms,
        window_id=order.window_id,
        steps=order.steps,
        proximal_mu=order.strategy.proximal_mu,
        time_s=max(timeout_s * TRANSFER_SHARE, timeout_s - TRANSFER_S),
        precision=order.precision,
    )
    base_bytes = sum(value.nbytes for value in base.values())
    limits = UpdateLimits(max_payload_bytes=base_bytes, max_tensors=len(base))
    received = []
    for answer in fleet.ask(TRAIN, {key: pack(request) for key in keys}, timeout_s):
        agent_id = gathered.members[answer.public_key].agent_id
        if answer.content is None:
            gathered.refuse(agent_id, answer.problem or "no answer", seconds=answer.seconds)
            continue
        blob = b""
        try:
            work, blob = unpack(Contribution, answer.content, base_bytes + HEADER_SLACK_BYTES)
            delta: Weights = dict(decode_update(blob, limits).weights)
        except ProtocolError as error:
            gathered.refuse(
                agent_id, f"update: {error}"[:300], bytes_up=len(blob), seconds=answer.seconds
            )
            continue
        reply = ContributionReply(
            **work.model_dump(),
            agent_id=agent_id,
            accepted=False,
            bytes_up=len(blob),
            seconds=answer.seconds,
        )
        received.append(Received(reply, delta))
    return received


def _install(
    gathered: _Round, fleet: Fleet, keys: list[str], weights: Weights, info: dict[str, Any]
) -> None:
    """Push a base to the members that are online; what each answered is in the result."""
    order = gathered.order
    blob = encode_update(weights)
    merged = merged_bases(gathered.replies.values())
    requests = {}
    for key in keys:
        request = InstallRequest(
            round=order.round,
            base_digest=info["digest"],
            info=info,
            merged_base=merged.get(gathered.members[key].agent_id),
        )
        requests[key] = pack(request, blob)
    gathered.bytes_down += len(blob) * len(requests)
    for answer in fleet.ask(INSTALL, requests, order.install_timeout_s):
        agent_id = gathered.members[answer.public_key].agent_id
        problem = answer.problem
        if answer.content is not None:
            try:
                reply, packed = unpack(InstallReply, answer.content, MAX_KEYS_BYTES)
                gathered.trained[agent_id] = list(unpack_keys(packed))
                if reply.base_digest != info["digest"]:
                    problem = "it acknowledged another base"
            except ProtocolError as error:
                problem = str(error)[:300]
        if problem is None:
            gathered.installed.append(agent_id)
        else:
            gathered.not_installed[agent_id] = problem
            log.warning("base not installed on %s: %s", agent_id, problem)
        if order.kind == "install":
            gathered.replies[agent_id] = Reply(
                agent_id=agent_id,
                accepted=problem is None,
                reason=problem,
                seconds=answer.seconds,
            )
    if order.kind == "install" and len(gathered.installed) < order.min_replies:
        raise RoundFailed(
            f"the base arrived at {len(gathered.installed)} of {len(order.members)} members; "
            f"{order.min_replies} are needed"
        )


def _load_base(order: RoundOrder) -> Weights:
    """The present base, checked against the digest that the members know it by."""
    assert order.base_weights is not None
    try:
        base = load_weights(order.base_weights)
    except (OSError, PolicyError) as error:
        raise RoundFailed(f"base {order.base_weights} cannot be read: {error}") from error
    if weights_digest(base) != order.base_digest:
        raise RoundFailed(f"base {order.base_weights} is not the one of base_info: digests differ")
    return base
