"""What the trainer's folder says just now, read again only when a file changed. numpy only."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.training.errors import TrainingError
from agent.training.exchange import (
    BaseInfo,
    MergedWork,
    TrainingExchange,
    TrainingProgress,
)
from host.files import FileStamp, file_stamp
from protocol.contribution import Contribution
from protocol.messages import MAX_REPORTED_BASES, HeldOutReport, TrainingReport
from protocol.waiting import Waiting

log = logging.getLogger(__name__)


class _Cached[T]:
    """A value that is read again when its file changes. A damaged file gives the default."""

    def __init__(self, path: Path, read: Callable[[], T], default: T) -> None:
        self._path = path
        self._read = read
        self._default = default
        self._seen: FileStamp | None = None
        self._value = default

    def get(self) -> T:
        """The value as of now."""
        stamp = file_stamp(self._path)
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._value = self._read()
            except (TrainingError, OSError, ValueError) as error:
                log.warning("%s", error)
                self._value = self._default
        return self._value


class TrainingView:
    """Cached reads of the exchange and of the dataset's totals. Times of a stat call each."""

    def __init__(self, exchange: TrainingExchange, dataset: Path) -> None:
        folder = exchange.folder
        self._info = dataset / "meta" / "info.json"
        self._base = _Cached[BaseInfo | None](folder / "base.safetensors", exchange.base_info, None)
        self._work = _Cached[Contribution | None](
            folder / "contribution.safetensors", exchange.contribution_info, None
        )
        self._merged = _Cached[MergedWork | None](folder / "merged.json", exchange.merged, None)
        self._progress = _Cached[TrainingProgress | None](
            folder / "progress.json", exchange.progress, None
        )
        self._held_out = _Cached[dict[str, HeldOutReport]](
            folder / "held_out.json", exchange.held_out, {}
        )
        self._sketch = folder / "sketch.json"
        self._totals = _Cached[dict[str, Any]](self._info, self._read_totals, {})

    def _read_totals(self) -> dict[str, Any]:
        return dict(json.loads(self._info.read_bytes())) if self._info.exists() else {}

    @property
    def base(self) -> BaseInfo | None:
        """The installed base."""
        return self._base.get()

    @property
    def contribution(self) -> Contribution | None:
        """The newest snapshot of what was gained."""
        return self._work.get()

    @property
    def merged_base(self) -> str | None:
        """Digest of the base from which this robot's work was last merged."""
        merged = self._merged.get()
        return None if merged is None else merged.base_digest

    @property
    def waiting(self) -> Waiting | None:
        """For what the trainer waits, or how far it is, by its own word."""
        progress = self._progress.get()
        return None if progress is None else progress.waiting

    @property
    def has_sketch(self) -> bool:
        """Whether ingest wrote statistics."""
        return self._sketch.exists()

    @property
    def episodes(self) -> int:
        """Episodes in the dataset."""
        return int(self._totals.get().get("total_episodes", 0))

    @property
    def frames(self) -> int:
        """Frames in the dataset."""
        return int(self._totals.get().get("total_frames", 0))

    def report(self) -> TrainingReport:
        """For the status: the installed base, and what can be contributed from it."""
        base, work, progress = self.base, self.contribution, self._progress.get()
        gained = work.steps if base and work and work.base_digest == base.digest else 0
        return TrainingReport(
            base_digest=None if base is None else base.digest,
            base_round=None if base is None else base.round,
            steps_since_base=gained,
            steps_total=0 if progress is None else progress.steps_total,
            examples_total=0 if progress is None else progress.examples_total,
            loss=None if progress is None else progress.loss,
        )

    def held_out(self) -> dict[str, HeldOutReport]:
        """The newest evaluations, by base digest; the coordinator keeps the older ones."""
        return dict(list(self._held_out.get().items())[-MAX_REPORTED_BASES:])
