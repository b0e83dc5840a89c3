"""What a round is asked to do, and what it reports. Plain data; imports nothing of Flower."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from pydantic import BaseModel, ConfigDict, Field, model_validator

from coordinator.federation.errors import FederationError

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=0)]
RoundKind = Literal["statistics", "install", "train"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SuperLinkAccess(_Model):
    """How the coordinator's own processes reach the SuperLink.

    `secret` is a file: the key with which task requests are signed.
    """

    address: str
    ca: Path
    secret: Path
    home: Path


class Member(_Model):
    """An agent that joined, and the public key of its SuperNode (OpenSSH line or PEM)."""

    agent_id: str
    public_key: str


class StrategyConfig(_Model):
    """One of Flower's strategies by name, with its own parameters."""

    name: str = "fedavg"
    params: dict[str, Any] = {}


class GateConfig(_Model):
    """Limits of the gate.

    max_examples: a higher claim is counted as this many.
    clip_factor: a delta longer than this many times the round's median is scaled down to it.
    """

    max_examples: Annotated[int, Field(ge=1)] = 1_000_000
    clip_factor: Annotated[float, Field(ge=1)] = 3.0


class RoundOrder(_Model):
    """One round over exactly `members`.

    statistics: collect sketches. install: push `base_weights` with `base_info`.
    train: collect deltas, gate, aggregate, and push the new base.

    base_weights: safetensors of the present base, and base_info its BaseInfo as JSON; both needed
        by install and train.
    known_bases: digest of every base so far -> its round; staleness is how many came after.
    merged_bases: agent -> digest of the base its last merged contribution was made on. A second
        contribution from the same base would count the same work twice, so it is refused.
    reply_timeout_s: for the answers to statistics and train; install_timeout_s for the push.
    """

    round: Count
    kind: RoundKind
    members: Annotated[list[Member], Field(min_length=1)]
    base_weights: Path | None = None
    base_info: dict[str, Any] | None = None
    known_bases: dict[Digest, Count] = {}
    merged_bases: dict[str, Digest] = {}
    reply_timeout_s: Seconds = 60.0
    install_timeout_s: Seconds = 60.0
    connect_timeout_s: Seconds = 15.0
    strategy: StrategyConfig = StrategyConfig()
    gate: GateConfig = GateConfig()
    local_work: Literal["anytime", "window"] = "anytime"
    window_id: str | None = None
    steps: Count | None = None
    proximal_mu: Annotated[float, Field(ge=0)] = 0.0
    max_staleness: Count = 2
    min_replies: Annotated[int, Field(ge=1)] = 1
    precision: Literal["float16", "float32"] = "float16"

    @model_validator(mode="after")
    def _complete(self) -> RoundOrder:
        if self.kind != "statistics" and (self.base_weights is None or self.base_info is None):
            raise ValueError(f"a round of kind {self.kind} needs base_weights and base_info")
        if self.base_info is not None and "digest" not in self.base_info:
            raise ValueError("base_info needs the digest of the base")
        if self.local_work == "window" and self.kind == "train" and not self.steps:
            raise ValueError('local_work = "window" needs steps')
        ids = [member.agent_id for member in self.members]
        if len(set(ids)) != len(ids):
            raise ValueError("a member is named twice")
        return self

    @property
    def base_digest(self) -> str:
        """Digest of the present base; empty for a statistics round before there is one."""
        return str(self.base_info["digest"]) if self.base_info else ""


class ReplyRecord(_Model):
    """What one member answered, and what became of it. `weight` is its share before dividing."""

    agent_id: str
    accepted: bool
    reason: str | None = None
    steps: int = 0
    examples: int = 0
    loss: float | None = None
    base_digest: str | None = None
    staleness: int | None = None
    weight: float = 0.0
    update_norm: float | None = None
    clipped: bool = False
    sequence: int | None = None
    bytes_up: int = 0
    seconds: float | None = None


class RoundResult(_Model):
    """What came of a round. `failure` says in one line why there is no aggregate, else None.

    aggregate: safetensors of the new base, with its digest; base_info is what was installed.
    not_installed: member -> why it does not have the new base.
    """

    round: int
    kind: RoundKind
    replies: list[ReplyRecord]
    failure: str | None = None
    bytes_down: int = 0
    bytes_up: int = 0
    sketches: dict[str, dict[str, Any]] = {}
    aggregate: Path | None = None
    aggregate_digest: str | None = None
    base_info: dict[str, Any] | None = None
    installed: list[str] = []
    not_installed: dict[str, str] = {}
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.failure is None


def canonical_key(public_key: str | bytes) -> str:
    """The PEM that Flower uses for a node, out of an OpenSSH line or a PEM.

    Raises FederationError for anything else.
    """
    data = public_key.encode() if isinstance(public_key, str) else public_key
    try:
        if data.lstrip().startswith(b"-----"):
            key = serialization.load_pem_public_key(data)
        else:
            key = serialization.load_ssh_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FederationError(f"not a public key: {data[:40]!r}; enrol the robot again") from error
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def merged_after(order: RoundOrder, result: RoundResult) -> dict[str, str]:
    """`merged_bases` for the next order: the old ones, and what this round merged."""
    if result.aggregate is None:
        return dict(order.merged_bases)
    fresh = {
        reply.agent_id: reply.base_digest
        for reply in result.replies
        if reply.accepted and reply.base_digest
    }
    return {**order.merged_bases, **fresh}
