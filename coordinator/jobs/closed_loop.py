"""Closed-loop trials of a release that is not announced yet, by the command of the configuration.

The command runs as a job, with a time limit, and writes a report as `protocol.trials` has it. A
release's own report is kept; its successor is tried at the same places.
"""

from __future__ import annotations

from pathlib import Path

from coordinator.campaign.trials_gate import TrialsVerdict, judge_trials, same_placements
from coordinator.config import ReleaseGateConfig
from coordinator.errors import ExportFailed
from coordinator.jobs.runner import JobRunner
from host.files import write_durable
from policy.release.folder import read_manifest
from policy.release.manifest import POLICY_NAME
from protocol.errors import BadTrials
from protocol.trials import MAX_REPORT_BYTES, TrialsReport, parse_trials_report


class ClosedLoop:
    """Tries policies and keeps the reports, `<folder>/<version>.json`."""

    def __init__(self, jobs: JobRunner, rules: ReleaseGateConfig, folder: Path) -> None:
        self._jobs = jobs
        self._rules = rules
        self._folder = folder

    def judge(
        self, policy: Path, version: int, predecessor: tuple[Path, int] | None
    ) -> TrialsVerdict | None:
        """The verdict on a policy's folder; None where no command is configured.

        `predecessor`: folder and version of the last release. Raises ExportFailed, BadPolicyFolder,
        OSError.
        """
        if not self._rules.trials_command:
            return None
        report = self._try_out(policy, version)
        last: TrialsReport | None = None
        if predecessor is not None:
            last = self._kept(*predecessor)
            if last is None or not same_placements(report, last):
                last = self._try_out(*predecessor)
        return judge_trials(report, last, self._rules)

    def _try_out(self, policy: Path, version: int) -> TrialsReport:
        path = self._path(version)
        path.parent.mkdir(parents=True, exist_ok=True)
        places = {"{policy}": str(policy), "{report}": str(path)}
        command = [places.get(word, word) for word in self._rules.trials_command]
        content = self._jobs.run_command(
            command,
            "closed-loop trials",
            path,
            limit_s=self._rules.trials_limit_s,
            most_bytes=MAX_REPORT_BYTES,
        )
        try:
            report = parse_trials_report(content)
        except BadTrials as error:
            raise ExportFailed(f"closed-loop trials: {error}") from error
        if report.policy_digest != _graph_digest(policy):
            raise ExportFailed("the closed-loop trials were of another policy")
        write_durable(path, content)
        return report

    def _kept(self, policy: Path, version: int) -> TrialsReport | None:
        """The report of an earlier release; None: it must be tried again."""
        try:
            report = parse_trials_report(self._path(version).read_bytes())
        except (FileNotFoundError, BadTrials):
            return None
        return report if report.policy_digest == _graph_digest(policy) else None

    def _path(self, version: int) -> Path:
        return self._folder / f"{version}.json"


def _graph_digest(policy: Path) -> str:
    return read_manifest(policy)[0].files[POLICY_NAME].sha256
