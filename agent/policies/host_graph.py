"""What of a release computes on this host: the graph as released or in int8, and on which provider.

`.host.json` in the policy's folder holds what was measured here and what was chosen, with the
reason; `.int8.onnx` is the graph that was derived here, on this robot's own frames. Neither leaves
the host. A record of another release, another ONNX Runtime or another int8 file counts for nothing:
then the graph computes as released, on the CPU.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import onnxruntime
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from host.complaints import first_complaint
from host.files import write_durable
from policy.errors import PolicyError
from policy.release.folder import PolicyFolder
from policy.release.trial import load_graph
from policy.session import CPU, OnnxPolicy

log = logging.getLogger(__name__)

RECORD_NAME = ".host.json"
INT8_NAME = ".int8.onnx"
MOST_DIFFERENCE = 0.5  # raw joint units: degrees, and hundredths of the gripper's way
LEAST_GAIN = 0.9  # of the latency: a smaller gain is noise of the measurement
_MAX_RECORD_BYTES = 64 * 1024

Graph = Literal["float", "int8", "int8-convolutions"]
Finite = Annotated[float, Field(allow_inf_nan=False, ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GraphVariant(_Model):
    """One way to compute, as measured here.

    `latency_ms` is the median of a chunk. `mean` and `p99` tell the difference from the float graph
    on the CPU in raw joint units, over the frames' actions.
    """

    graph: Graph = "float"
    provider: str = CPU
    latency_ms: Finite | None = None
    mean: Finite | None = None
    p99: Finite | None = None
    failed: str = ""

    @property
    def name(self) -> str:
        return f"{self.graph} on {self.provider}"


class HostGraph(_Model):
    """The record. `source` is the digest of the released graph, `calibration` of the frames."""

    source: str
    onnxruntime: str
    measured: tuple[GraphVariant, ...]
    chosen: GraphVariant
    reason: str
    int8_sha256: str | None = None
    calibration: str | None = None
    frames: Annotated[int, Field(ge=0)] = 0


def choose(measured: Sequence[GraphVariant]) -> tuple[GraphVariant, str]:
    """The quickest of those that compute the same, and why. The first is the float on the CPU."""
    first, *others = measured
    best, reason = first, "nothing else was measured"
    refused = [f"{each.name}: {why}" for each in others if (why := _objection(each))]
    quick = [each for each in others if not _objection(each) and each.latency_ms is not None]
    if refused:
        reason = "; ".join(refused)
    for each in sorted(quick, key=lambda candidate: candidate.latency_ms or 0.0)[:1]:
        assert each.latency_ms is not None
        assert first.latency_ms is not None
        if each.latency_ms > LEAST_GAIN * first.latency_ms:
            reason = f"{each.name} takes {each.latency_ms:.1f} ms, the float {first.latency_ms:.1f}"
            break
        best = each
        reason = (
            f"{each.latency_ms:.1f} ms a chunk instead of {first.latency_ms:.1f}; actions differ "
            f"by {each.mean:.3f} on average, {each.p99:.3f} at the 99th percentile"
        )
    return best, reason


def _objection(candidate: GraphVariant) -> str | None:
    if candidate.failed:
        return candidate.failed
    if candidate.mean is None or candidate.p99 is None or candidate.latency_ms is None:
        return "not measured"
    worst = max(candidate.mean, candidate.p99)
    if worst > MOST_DIFFERENCE:
        return f"actions differ by {worst:.3g} joint units, allowed are {MOST_DIFFERENCE:g}"
    return None


def read_host_graph(folder: PolicyFolder) -> HostGraph | None:
    """The record, if it is of this release, this ONNX Runtime and the int8 file that lies there."""
    path = folder.path / RECORD_NAME
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_RECORD_BYTES + 1)
        record = HostGraph.model_validate_json(content[:_MAX_RECORD_BYTES])
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read: %s", path, error.strerror)
        return None
    except ValidationError as error:
        log.warning("%s is damaged (%s)", path, first_complaint(error, "record"))
        return None
    if (record.source, record.onnxruntime) != (folder.onnx_digest, onnxruntime.__version__):
        return None
    if record.chosen.graph != "float" and _digest(folder.path / INT8_NAME) != record.int8_sha256:
        log.warning("%s is not the graph that was measured", folder.path / INT8_NAME)
        return None
    return record


def host_words(record: HostGraph | None) -> str:
    """What computes and why, for people."""
    if record is None:
        return "float on cpu, as released: not measured on this host yet"
    return f"{record.chosen.name}: {record.reason}"


def write_host_graph(folder: PolicyFolder, record: HostGraph) -> None:
    """Keep the record durably. Raises OSError."""
    write_durable(folder.path / RECORD_NAME, record.model_dump_json(indent=1).encode())


def load_for_host(folder: PolicyFolder, threads: int) -> OnnxPolicy:
    """The graph as it was chosen for this host, or as released. Raises as `load_graph`."""
    record = read_host_graph(folder)
    if record is None:
        return load_graph(folder, threads)
    try:
        return load_chosen(folder, record.chosen, threads)
    except (PolicyError, FileNotFoundError) as error:
        log.warning("%s cannot be used, the graph runs as released: %s", record.chosen.name, error)
        return load_graph(folder, threads)


def load_chosen(folder: PolicyFolder, chosen: GraphVariant, threads: int) -> OnnxPolicy:
    """Raises PolicyError, FileNotFoundError."""
    if chosen.graph == "float":
        return load_graph(folder, threads, chosen.provider)
    policy = OnnxPolicy(folder.path / INT8_NAME, threads, chosen.provider)
    policy.require(folder.spec)
    return policy


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None
