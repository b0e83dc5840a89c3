"""The durable seam between the trainer and the federation processes. numpy only.

Every file is replaced as a whole (temporary file, fsync, rename), so a reader in another process
never sees half of one, and a kill leaves the old or the new. Weights and the facts about them lie
in one safetensors file, because two files cannot be replaced at one instant.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from agent.training.errors import BadBase, BadExchangeFile
from host.complaints import first_complaint
from host.files import FileStamp, file_stamp, write_durable
from policy.errors import BadWeights, PolicyError
from policy.statistics import Normalizer, Sketch
from policy.weights import (
    Array,
    Weights,
    load_metadata,
    load_weights_with_metadata,
    save_weights,
    weights_digest,
)
from protocol.contribution import Contribution
from protocol.episode_keys import NO_FLEET, FleetSecret
from protocol.fields import Digest
from protocol.messages import HeldOutReport
from protocol.waiting import Waiting

_META = "armada.meta"
_HELD_OUT_KEPT = 256  # rounds whose evaluation is remembered


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseInfo(_Record):
    """What a base is: weights that the whole fleet starts from, with the fleet's normaliser."""

    digest: str  # weights_digest of the weights
    round: int = Field(ge=0)
    spec: dict[str, Any]  # PolicySpec.to_json()
    normalizer: dict[str, Any]  # Normalizer.to_json()
    normalizer_digest: str
    proximal_mu: float = Field(default=0.0, ge=0.0)  # FedProx; 0 is plain local training
    fleet_secret: FleetSecret = NO_FLEET  # under which episodes have their keys
    max_local_steps: int | None = Field(default=None, gt=0)


class MergedWork(_Record):
    """The base of this robot's work that went into the aggregate of `round`."""

    base_digest: str
    round: int


class WorkOrder(_Record):
    """A synchronous round's demand: train so many steps from this base, by this time."""

    window_id: str
    base_digest: str
    steps: int = Field(gt=0)
    proximal_mu: float = Field(default=0.0, ge=0.0)
    deadline_unix_s: float


class LocalOrder(_Record):
    """What `armada train --local` asks for: so many steps on this robot's own episodes alone."""

    order_id: str = Field(pattern=r"^[0-9a-f]{32}$")  # names the folder of its work
    steps: int = Field(gt=0)


class LocalProgress(_Record):
    """How far that order is; it stays when the order is done."""

    order_id: str
    state: Literal["waiting", "training", "ready", "refused"]
    step: int = 0
    steps: int
    loss: float | None = None
    held_out_mae: float | None = None  # raw joint units
    refusal: str | None = None  # why the policy may not drive this robot


class _HeldOut(RootModel[dict[str, HeldOutReport]]):
    """Base digest -> error of that base."""


class _Trained(RootModel[list[Digest]]):
    """Content digests of episodes, in the order in which they were first trained on."""


class TrainingProgress(_Record):
    """What the trainer is doing, for the status."""

    steps_total: int = 0
    examples_total: int = 0
    base_digest: str | None = None
    base_round: int | None = None
    steps_since_base: int = 0
    loss: float | None = None
    phase: str = "waiting"  # waiting, local, preparing, evaluating, baseline, training, resting
    waiting: Waiting | None = None  # for what it waits, or how far it is
    local: LocalProgress | None = None
    baseline: dict[str, Any] | None = None


class TrainingExchange:
    """Files in one folder. Readers and writers may be different processes.

    Read methods return None when nothing was published yet; they raise BadExchangeFile when a
    file is damaged. Write methods raise OSError when the disk refuses.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._base = self.folder / "base.safetensors"
        self._contribution = self.folder / "contribution.safetensors"
        self._handed_over = self.folder / "handed_over.safetensors"
        self._merged = self.folder / "merged.json"
        self._order = self.folder / "work_order.json"
        self._local_order = self.folder / "local_order.json"
        self._held_out = self.folder / "held_out.json"
        self._sketch = self.folder / "sketch.json"
        self._progress = self.folder / "progress.json"
        self._trained = self.folder / "trained_episodes.json"

    # --- base: written by the federation, read by the trainer ---

    def install_base(self, weights: Mapping[str, Array], info: BaseInfo) -> None:
        """Make ``weights`` the base. Raises BadBase unless digests fit; the old base then stays."""
        actual = weights_digest(weights)
        if actual != info.digest:
            raise BadBase(f"base of round {info.round}: digest {actual[:12]}, not {info.digest}")
        try:
            normalizer = Normalizer.from_json(info.normalizer)
        except PolicyError as error:
            raise BadBase(f"base of round {info.round}: {error}") from error
        if normalizer.digest() != info.normalizer_digest:
            raise BadBase(f"base of round {info.round}: the normaliser is not the one announced")
        save_weights(self._base, weights, {_META: info.model_dump_json()})

    def base(self) -> tuple[BaseInfo, Weights] | None:
        """The installed base, verified against its digest."""
        loaded = self._load(self._base)
        if loaded is None:
            return None
        weights, text = loaded
        info = _parse(BaseInfo, self._base, text)
        if weights_digest(weights) != info.digest:
            raise BadExchangeFile(f"{self._base}: weights do not fit their digest")
        return info, weights

    def base_info(self) -> BaseInfo | None:
        """Only the facts; no tensor is read."""
        text = self._load_meta(self._base)
        return None if text is None else _parse(BaseInfo, self._base, text)

    def base_stamp(self) -> FileStamp | None:
        """Changes whenever a base is installed; one stat call, for a look between two steps."""
        return file_stamp(self._base)

    # --- contribution: written by the trainer, read by the federation ---

    def publish_contribution(self, delta: Mapping[str, Array], meta: Contribution) -> None:
        """Replace the snapshot of what was gained; ``delta`` is weights minus base."""
        save_weights(self._contribution, delta, {_META: meta.model_dump_json()})

    def contribution(self) -> tuple[Contribution, Weights] | None:
        """The newest snapshot: its facts and the delta."""
        loaded = self._load(self._contribution)
        if loaded is None:
            return None
        weights, text = loaded
        return _parse(Contribution, self._contribution, text), weights

    def contribution_info(self) -> Contribution | None:
        """Only the facts; no tensor is read."""
        text = self._load_meta(self._contribution)
        return None if text is None else _parse(Contribution, self._contribution, text)

    # --- what was handed over: written by the client app, read by the trainer ---

    def note_handed_over(self, delta: Mapping[str, Array], meta: Contribution) -> None:
        """Remember what the fleet was given, until it is known whether it was merged."""
        save_weights(self._handed_over, delta, {_META: meta.model_dump_json()})

    def handed_over(self) -> tuple[Contribution, Weights] | None:
        """What the fleet was given last: its facts and the delta."""
        loaded = self._load(self._handed_over)
        if loaded is None:
            return None
        weights, text = loaded
        return _parse(Contribution, self._handed_over, text), weights

    # --- what was merged: written by the client app, read by it and the federation process ---

    def note_merged(self, work: MergedWork) -> None:
        """Remember from which base this robot's work was last merged."""
        write_durable(self._merged, work.model_dump_json().encode())

    def merged(self) -> MergedWork | None:
        """From which base this robot's work was last merged."""
        content = _read(self._merged)
        return None if content is None else _parse(MergedWork, self._merged, content)

    # --- episodes ever trained on: written by the trainer, read by the client app ---

    def note_trained(self, content_digests: Iterable[str]) -> None:
        """Remember for good that these episodes were trained on; before the first step on them."""
        before = self.trained()
        new = [digest for digest in dict.fromkeys(content_digests) if digest not in set(before)]
        if new:
            write_durable(self._trained, _Trained([*before, *new]).model_dump_json().encode())

    def trained(self) -> list[str]:
        """Content digests of all episodes that this robot ever trained on."""
        content = _read(self._trained)
        return [] if content is None else _parse(_Trained, self._trained, content).root

    # --- work order: written by the federation, read by the trainer ---

    def order_work(self, order: WorkOrder) -> None:
        """Ask the trainer for a synchronous round's work; replaces an earlier order."""
        write_durable(self._order, order.model_dump_json().encode())

    def work_order(self) -> WorkOrder | None:
        """The order in force, if any."""
        content = _read(self._order)
        return None if content is None else _parse(WorkOrder, self._order, content)

    def order_stamp(self) -> FileStamp | None:
        """Changes whenever an order is given or cleared."""
        return file_stamp(self._order)

    def clear_work_order(self) -> None:
        """Withdraw the order; none in force is fine."""
        self._order.unlink(missing_ok=True)

    # --- the operator's order: written by the supervisor, taken away by the trainer ---

    def order_local(self, order: LocalOrder) -> None:
        """Ask the trainer for a policy of this robot alone; replaces an earlier order."""
        write_durable(self._local_order, order.model_dump_json().encode())

    def local_order(self) -> LocalOrder | None:
        """The order in force, if any."""
        content = _read(self._local_order)
        return None if content is None else _parse(LocalOrder, self._local_order, content)

    def local_order_stamp(self) -> FileStamp | None:
        """Changes whenever an order is given or done."""
        return file_stamp(self._local_order)

    def clear_local_order(self) -> None:
        """It is done; none in force is fine."""
        self._local_order.unlink(missing_ok=True)

    # --- evaluation, statistics and progress: written by ingest and the trainer ---

    def held_out(self) -> dict[str, HeldOutReport]:
        """Base digest -> held-out error, oldest first."""
        content = _read(self._held_out)
        return {} if content is None else _parse(_HeldOut, self._held_out, content).root

    def publish_held_out(self, base_digest: str, report: HeldOutReport) -> None:
        """Add or replace the report on one base."""
        reports = self.held_out()
        reports.pop(base_digest, None)
        reports[base_digest] = report
        newest = dict(list(reports.items())[-_HELD_OUT_KEPT:])
        write_durable(self._held_out, _HeldOut(newest).model_dump_json().encode())

    def publish_sketch(self, sketch: Sketch | Mapping[str, Any]) -> None:
        """Replace the sketch of this robot's training episodes."""
        data = sketch.to_json() if isinstance(sketch, Sketch) else dict(sketch)
        write_durable(self._sketch, json.dumps(data).encode())

    def sketch(self) -> dict[str, Any] | None:
        """The sketch as plain JSON values, for ``policy.statistics.Sketch.from_json``."""
        content = _read(self._sketch)
        if content is None:
            return None
        try:
            return dict(json.loads(content))
        except (json.JSONDecodeError, TypeError, ValueError) as error:
            raise BadExchangeFile(f"{self._sketch}: not a JSON object ({error})") from error

    def publish_progress(self, progress: TrainingProgress) -> None:
        """Replace the trainer's progress."""
        write_durable(self._progress, progress.model_dump_json().encode())

    def progress(self) -> TrainingProgress | None:
        """The trainer's newest progress."""
        content = _read(self._progress)
        return None if content is None else _parse(TrainingProgress, self._progress, content)

    def _load(self, path: Path) -> tuple[Weights, str] | None:
        if not path.exists():
            return None
        try:
            weights, metadata = load_weights_with_metadata(path)
        except BadWeights as error:
            raise BadExchangeFile(str(error)) from error
        return weights, _meta_of(path, metadata)

    def _load_meta(self, path: Path) -> str | None:
        if not path.exists():
            return None
        try:
            return _meta_of(path, load_metadata(path))
        except BadWeights as error:
            raise BadExchangeFile(str(error)) from error


def _meta_of(path: Path, metadata: Mapping[str, str]) -> str:
    if _META not in metadata:
        raise BadExchangeFile(f"{path}: no metadata in it")
    return metadata[_META]


def _parse[ModelT: BaseModel](model: type[ModelT], path: Path, text: str | bytes) -> ModelT:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise BadExchangeFile(f"{path}: {first_complaint(error, 'whole')}") from error


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
