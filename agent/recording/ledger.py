"""What a robot's dataset holds, episode by episode: the ledger that lies inside each version of it.

Ingest writes it, training reads it. Whoever trains asks it which episodes are demonstrations.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agent.errors import BadLedger
from host.files import write_durable

LEDGER = Path("meta") / "armada_episodes.json"


@dataclass(frozen=True)
class LedgerEntry:
    """One episode of the dataset; its place in the ledger is its episode index.

    Attributes:
        source: who had the arm: a person; a policy; or a policy that a person corrected, at the
            frames whose `intervention` is true.
        success: whether the task was done; None: nobody said.
        policy: that drove it: a release's version, or `local`; with the digest of its graph.
        evaluation: it is never trained on.
        content_digest: of its numbers, as whoever recorded it wrote them; see `content_digest`.
    """

    episode_id: str
    robot_id: str
    started_unix_s: float
    frames: int
    missed_deadlines: int
    calibration_digest: str
    source: Literal["teleoperation", "rollout", "intervention"] = "teleoperation"
    success: bool | None = None
    policy: str | None = None
    policy_digest: str | None = None
    evaluation: bool = False
    content_digest: str = ""


def content_digest(state: NDArray[np.float32], action: NDArray[np.float32]) -> str:
    """SHA-256 (hex) of an episode's numbers [T,S] and [T,A], as its recorder wrote them.

    It stays the same through copying, conversion, other video and another name.
    """
    digest = sha256()
    for values in (state, action):
        digest.update(f"{values.shape}".encode())
        digest.update(np.ascontiguousarray(values, dtype="<f4").tobytes())
    return digest.hexdigest()


def write_ledger(root: Path, entries: list[LedgerEntry]) -> None:
    """Replace the ledger of the dataset at ``root`` durably. Raises OSError."""
    listed = json.dumps([asdict(entry) for entry in entries], indent=1)
    write_durable(root / LEDGER, listed.encode())


def read_ledger(root: Path) -> list[LedgerEntry]:
    """The ledger of one version. Raises BadLedger when it is missing or damaged."""
    path = root / LEDGER
    try:
        entries = json.loads(path.read_bytes())
        if not isinstance(entries, list):
            raise TypeError("not a list")
        return [LedgerEntry(**entry) for entry in entries]
    except (OSError, ValueError, TypeError) as error:
        raise BadLedger(f"{path}: the ledger cannot be read ({error})") from error
