"""The two jobs of a campaign: base 0 out of sketches, a release out of a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coordinator.campaign.actions import BuiltBase
from coordinator.campaign.state import (
    WITHOUT_DETAILS,
    Base,
    CampaignState,
    Export,
    ReleaseRecord,
    base_path,
)
from coordinator.config import CoordinatorConfig, policy_spec
from coordinator.errors import ConfigError, ExportFailed
from coordinator.jobs.closed_loop import ClosedLoop
from coordinator.jobs.runner import BUILD_MODULE, EXPORT_MODULE, READ_MODULE, JobRunner
from coordinator.releases import ReleaseRepository
from policy.errors import BadPolicyFolder
from protocol.messages import Features


def build_base(
    jobs: JobRunner,
    config: CoordinatorConfig,
    features: Features,
    sketches: dict[str, dict[str, Any]],
    state_folder: Path,
) -> BuiltBase | str:
    """Base 0, or the one line why not. Blocks for seconds."""
    try:
        spec = policy_spec(config, features).to_json()
        weights = base_path(state_folder, 0)
        request = {
            "sketches": sketches,
            "spec": spec,
            "seed": config.campaign.seed,
            "weights": str(weights),
        }
        made = jobs.run(BUILD_MODULE, request)
        where = str(weights.relative_to(state_folder))
        base = Base(round=0, digest=made["digest"], weights=where)
        return BuiltBase(base, spec, made["normalizer"], made["normalizer_digest"])
    except (ExportFailed, ConfigError, OSError, KeyError) as error:
        return str(error)


def export_release(
    jobs: JobRunner,
    repository: ReleaseRepository,
    state: CampaignState,
    export: Export,
    state_folder: Path,
    now_unix_s: float,
    closed_loop: ClosedLoop,
) -> ReleaseRecord | str:
    """A published release, or the one line why not. `state` is a copy. Blocks for seconds.

    What a robot's reader refuses, or what fails in closed loop, is not published.
    """
    candidate, evaluation = export.candidate, export.evaluation
    try:
        part = repository.begin(export.version)
        request = {
            "weights": str(base_path(state_folder, candidate.round)),
            "spec": state.spec,
            "normalizer": state.normalizer,
            "folder": str(part),
            "version": export.version,
            "round": candidate.round,
            "base_digest": candidate.digest,
            "evaluation": evaluation.model_dump(mode="json", exclude=WITHOUT_DETAILS),
            "contributors": state.contributors,
            "created_unix_s": now_unix_s,
        }
        made = jobs.run(EXPORT_MODULE, request)
        read = jobs.run(READ_MODULE, {"folder": str(part)})
        if read["manifest_digest"] != made["manifest_digest"]:
            raise ExportFailed("the manifest on the disk is not the one that was written")
        last = state.releases[-1].version if state.releases else None
        verdict = closed_loop.judge(
            part,
            export.version,
            None if last is None else (repository.folder / str(last), last),
        )
        if verdict is not None:
            if not verdict.passed:
                return verdict.line
            evaluation = evaluation.model_copy(
                update={
                    "grounds": [*evaluation.grounds, verdict.line],
                    "success": {verdict.task: verdict.rate},
                }
            )
        repository.publish(part, export.version)
        return ReleaseRecord(
            version=export.version,
            round=candidate.round,
            base_digest=candidate.digest,
            manifest_digest=read["manifest_digest"],
            contributors=list(state.contributors),
            evaluation=evaluation,
            published_unix_s=now_unix_s,
        )
    except (ExportFailed, BadPolicyFolder, OSError, KeyError) as error:
        return str(error)
