"""What the campaign must not forget: models of campaign.json, read and written whole.

One file, replaced after every transition, so that a coordinator that was killed goes on where the
fleet stands. Weights lie beside it, one file a round, named by round.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from coordinator.campaign.reply import AnyReply
from protocol.eligibility import MAX_BASES
from protocol.episode_keys import EpisodeKey
from protocol.messages import MAX_REPORTED_BASES, Features, HeldOutReport
from protocol.trials import SuccessRate

# History kept in the state; everything older is in the audit log.
MAX_HISTORY = 200

RoundKind = Literal["statistics", "install", "train"]


class CampaignPhase(StrEnum):
    """Where the campaign stands."""

    GATHERING = "gathering"  # waiting for members with data
    STATISTICS = "statistics"  # a round that asks for sketches
    BUILDING = "building"  # base 0 from the merged statistics
    INSTALLING = "installing"  # base 0 to the members
    WAITING = "waiting"  # between windows
    JOINING = "joining"  # a window is open for answers
    TRAINING = "training"  # a Flower round in the window
    FINISHING = "finishing"  # all rounds done, candidates still open
    FINISHED = "finished"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Base(_Model):
    """One version of the global weights; `weights` is relative to the state folder."""

    round: int
    digest: str
    weights: str


class WindowRecord(_Model):
    """One window as it went. Times in unix seconds, coordinator's clock."""

    window_id: str
    round: int
    base_digest: str
    opens_unix_s: float
    join_by_unix_s: float
    closes_unix_s: float
    expected: list[str] = []
    joined: dict[str, int] = {}
    declined: dict[str, str] = {}
    refused: dict[str, str] = {}
    outcome: str | None = None


class RoundSummary(_Model):
    """One Flower round as it went."""

    round: int
    kind: RoundKind
    window_id: str | None = None
    members: list[str]
    replies: list[AnyReply] = []
    installed: list[str] = []
    not_installed: dict[str, str] = {}
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    error: str | None = None


class Candidate(_Model):
    """A base that may become a release once its members reported their held-out error."""

    round: int
    digest: str
    members: list[str]
    deadline_unix_s: float


class Evaluation(_Model):
    """Held-out reports on one base; `action_mae` is weighted by frames, in raw joint units.

    `grounds`: one line each on what the release gate let it pass. `success`: task -> rate, where it
    was tried in closed loop.
    """

    reports: dict[str, HeldOutReport]
    action_mae: float
    complete: bool
    grounds: list[str] = []
    success: dict[str, SuccessRate] = {}


# To dump an Evaluation by: errors by episode and joint would fill a manifest.
WITHOUT_DETAILS: dict[str, Any] = {"reports": {"__all__": {"episodes", "joints"}}}


class ReleaseRecord(_Model):
    """One published release."""

    version: int
    round: int
    base_digest: str
    manifest_digest: str
    contributors: list[str]
    evaluation: Evaluation
    published_unix_s: float


class RefusedCandidate(_Model):
    """A candidate that did not become a release, and why."""

    round: int
    reason: str


class Export(_Model):
    """A candidate on its way to being a release."""

    version: int
    candidate: Candidate
    evaluation: Evaluation


class Leak(_Model):
    """An episode that is evaluated on by one robot and was trained on by another, or by itself."""

    key: EpisodeKey
    trained_by: str


class CampaignState(_Model):
    """The whole of campaign.json."""

    schema_version: Literal[1] = 1
    phase: CampaignPhase = CampaignPhase.GATHERING
    round: int = 0
    features: Features | None = None
    spec: dict[str, Any] | None = None
    normalizer: dict[str, Any] | None = None
    normalizer_digest: str | None = None
    sketches: dict[str, dict[str, Any]] = {}
    founders: list[str] = []
    contributors: list[str] = []
    merged_bases: dict[str, str] = {}
    bases: list[Base] = []
    window: WindowRecord | None = None
    windows: list[WindowRecord] = []
    rounds: list[RoundSummary] = []
    candidates: list[Candidate] = []
    export: Export | None = None
    fleet_secret: str | None = None
    trained: dict[str, str] = {}  # key of an episode -> robot that trained on it
    leaks: dict[str, Leak] = {}  # robot that evaluates -> why its evaluation is refused
    held_out: dict[str, dict[str, HeldOutReport]] = {}
    releases: list[ReleaseRecord] = []
    refused: list[RefusedCandidate] = []
    next_window_unix_s: float = 0.0
    audit_head: str | None = None

    @property
    def base(self) -> Base | None:
        """The newest base."""
        return self.bases[-1] if self.bases else None

    def known_bases(self) -> dict[str, int]:
        """Digest -> round of every base that was ever installed."""
        return {base.digest: base.round for base in self.bases}

    def bases_until(self, digest: str) -> tuple[str, ...]:
        """Digests of that base and of those before it, newest first, as far as terms name them."""
        digests = [base.digest for base in reversed(self.bases)]
        start = digests.index(digest)
        return tuple(digests[start : start + MAX_BASES])

    def last_release_reports(self) -> dict[str, HeldOutReport] | None:
        """What is known of the last release's base, also from robots that came after it."""
        if not self.releases:
            return None
        last = self.releases[-1]
        return last.evaluation.reports | self.held_out.get(last.base_digest, {})

    def trim(self) -> None:
        """Bound the history. Errors by episode stay where a candidate may yet be compared."""
        del self.windows[:-MAX_HISTORY]
        del self.rounds[:-MAX_HISTORY]
        del self.refused[:-MAX_HISTORY]
        for release in self.releases[:-1]:
            _drop_episodes(release.evaluation.reports)
        compared = {base.digest for base in self.bases[-MAX_REPORTED_BASES:]}
        compared |= {release.base_digest for release in self.releases[-1:]}
        compared |= {candidate.digest for candidate in self.candidates}
        for digest, reports in self.held_out.items():
            if digest not in compared:
                _drop_episodes(reports)


def _drop_episodes(reports: dict[str, HeldOutReport]) -> None:
    for agent_id, report in reports.items():
        if report.episodes:
            reports[agent_id] = report.model_copy(update={"episodes": ()})


def base_path(state_folder: Path, number: int) -> Path:
    """Where the weights of base `number` lie."""
    return state_folder / "bases" / f"{number:04d}.safetensors"
