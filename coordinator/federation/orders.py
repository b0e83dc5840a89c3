"""What a round is asked to do, and what it reports. Plain data; imports nothing of Flower."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from pydantic import BaseModel, ConfigDict, Field, model_validator

from coordinator.campaign.reply import AnyReply
from coordinator.campaign.state import RoundKind
from coordinator.config import FedAvg, Strategy
from coordinator.federation.errors import FederationError
from protocol.contribution import WindowName
from protocol.eligibility import Terms
from protocol.episode_keys import EpisodeKey
from protocol.fields import Count, Digest
from protocol.update import Precision

Seconds = Annotated[float, Field(gt=0, le=86_400)]


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
    terms: what was announced to the robots; needed by train. steps and window_id are for work
        inside the window.
    merged_bases: agent -> digest of the base its last merged contribution was made on. A second
        contribution from the same base would count the same work twice, so it is refused.
    reply_timeout_s: for the answers to statistics and train; install_timeout_s for the push.
    """

    round: Count
    kind: RoundKind
    members: Annotated[list[Member], Field(min_length=1)]
    base_weights: Path | None = None
    base_info: dict[str, Any] | None = None
    terms: Terms | None = None
    merged_bases: dict[str, Digest] = {}
    reply_timeout_s: Seconds = 60.0
    install_timeout_s: Seconds = 60.0
    connect_timeout_s: Seconds = 15.0
    strategy: Strategy = FedAvg()
    gate: GateConfig = GateConfig()
    window_id: WindowName | None = None
    steps: Count | None = None
    min_replies: Annotated[int, Field(ge=1)] = 1
    precision: Precision = "float16"

    @model_validator(mode="after")
    def _complete(self) -> RoundOrder:
        if self.kind != "statistics" and (self.base_weights is None or self.base_info is None):
            raise ValueError(f"a round of kind {self.kind} needs base_weights and base_info")
        if self.base_info is not None and "digest" not in self.base_info:
            raise ValueError("base_info needs the digest of the base")
        if self.kind == "train":
            if self.terms is None or self.terms.base_digest != self.base_digest:
                raise ValueError("a round of kind train needs terms, with the base of base_info")
            if self.terms.local_work == "window" and not self.steps:
                raise ValueError('local_work = "window" needs steps')
        ids = [member.agent_id for member in self.members]
        if len(set(ids)) != len(ids):
            raise ValueError("a member is named twice")
        return self

    @property
    def base_digest(self) -> str:
        """Digest of the present base; empty for a statistics round before there is one."""
        return str(self.base_info["digest"]) if self.base_info else ""


class RoundResult(_Model):
    """What came of a round. `failure` says in one line why there is no aggregate, else None.

    aggregate: safetensors of the new base, with its digest; base_info is what was installed.
    not_installed: member -> why it does not have the new base.
    trained: member -> keys of all episodes that it ever trained on, by its own word.
    """

    round: int
    kind: RoundKind
    replies: list[AnyReply]
    failure: str | None = None
    bytes_down: int = 0
    bytes_up: int = 0
    sketches: dict[str, dict[str, Any]] = {}
    aggregate: Path | None = None
    aggregate_digest: str | None = None
    base_info: dict[str, Any] | None = None
    installed: list[str] = []
    not_installed: dict[str, str] = {}
    trained: dict[str, list[EpisodeKey]] = {}
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
