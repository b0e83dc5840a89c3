"""No release is published that a robot's own reader or the closed loop refuses."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from held_out_reports import report
from tiny_policy import change_goldens, golden_tensors, write_policy
from trial_reports import trials_report

from coordinator.campaign.state import CampaignState, Candidate, Evaluation, Export, ReleaseRecord
from coordinator.config import ReleaseGateConfig
from coordinator.errors import ExportFailed
from coordinator.jobs.closed_loop import ClosedLoop
from coordinator.jobs.publishing import export_release
from coordinator.jobs.read_release import read
from coordinator.jobs.runner import EXPORT_MODULE, READ_MODULE, JobRunner
from coordinator.releases import ReleaseRepository
from policy.errors import PolicyError
from policy.release.folder import read_policy_folder

DIGEST = "ab" * 32
SCRIPT = """
import json, pathlib, sys
policy, report, source = sys.argv[1:4]
pathlib.Path(sys.argv[4]).open("a").write(policy + chr(10))
content = json.loads(pathlib.Path(source).read_text())
files = json.loads((pathlib.Path(policy) / "manifest.json").read_text())["files"]
content["policy_digest"] = files["policy.onnx"]["sha256"]
pathlib.Path(report).write_text(json.dumps(content))
"""


class Site:
    """A repository and jobs: the export writes a tiny policy, with a fault if asked for."""

    def __init__(self, folder: Path, **rules: Any) -> None:
        self.folder = folder
        self.repository = ReleaseRepository(folder / "releases")
        self.damage: Callable[[Path], object] = lambda path: None
        self.rules = ReleaseGateConfig(**rules)
        self.releases: list[ReleaseRecord] = []

        site = self

        class Jobs(JobRunner):
            def run(self, module: str, request: dict[str, Any]) -> dict[str, Any]:
                path = Path(request["folder"])
                if module == EXPORT_MODULE:
                    write_policy(path, version=request["version"])
                    site.damage(path)
                    return {"manifest_digest": read_digest(path), "max_abs_error": 0.0}
                assert module == READ_MODULE
                try:
                    return read(path)
                except PolicyError as error:
                    raise ExportFailed(str(error)) from error

        self.jobs = Jobs(folder / "jobs")

    def publish(self, version: int = 1) -> ReleaseRecord | str:
        candidate = Candidate(round=version, digest=DIGEST, members=["a"], deadline_unix_s=0.0)
        evaluation = Evaluation(
            reports={"a": report(1.0)}, action_mae=1.0, complete=True, grounds=["held out"]
        )
        state = CampaignState(spec={}, normalizer={}, releases=self.releases)
        export = Export(version=version, candidate=candidate, evaluation=evaluation)
        loop = ClosedLoop(self.jobs, self.rules, self.folder / "trials")
        done = export_release(self.jobs, self.repository, state, export, self.folder, 5.0, loop)
        if isinstance(done, ReleaseRecord):
            self.releases.append(done)
        return done

    def published(self) -> list[str]:
        return sorted(p.name for p in self.repository.folder.iterdir() if p.name.isdigit())


def read_digest(folder: Path) -> str:
    return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def trials_site(folder: Path, successes: list[bool]) -> Site:
    """Whose trials command reports these, until `said` is changed; it notes what it tried."""
    (folder / "trials.py").write_text(SCRIPT)
    said, tried = folder / "said.json", folder / "tried"
    said.write_text(trials_report(successes).model_dump_json())
    tried.touch()
    words = (sys.executable, str(folder / "trials.py"), "{policy}", "{report}", str(said))
    return Site(folder, trials_command=(*words, str(tried)), trials_limit_s=60.0)


def say(site: Site, successes: list[bool], **changes: Any) -> None:
    content = trials_report(successes, **changes).model_dump_json()
    (site.folder / "said.json").write_text(content)


def tried(site: Site) -> list[str]:
    return [Path(line).name for line in (site.folder / "tried").read_text().splitlines()]


def test_a_release_that_the_robots_reader_takes_is_published(tmp_path: Path) -> None:
    site = Site(tmp_path)
    done = site.publish()
    assert isinstance(done, ReleaseRecord)
    assert site.published() == ["1"]
    folder = read_policy_folder(tmp_path / "releases" / "1")
    assert done.manifest_digest == folder.manifest.digest()
    assert done.evaluation.grounds == ["held out"]


def wrong_golden(folder: Path) -> None:
    golden = golden_tensors(folder, "actions")
    change_goldens(folder, "actions", {"action": golden["action"] + np.float32(1)})


def too_long_a_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes() + b" " * 100_000)


def cut_graph(folder: Path) -> None:
    path = folder / "policy.onnx"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (wrong_golden, "golden actions differ by 1 joint units"),
        (too_long_a_manifest, "is over 100000"),
        (cut_graph, "its manifest says"),
        (lambda folder: (folder / "policy.onnx").unlink(), "No such file"),
    ],
)
def test_a_release_that_the_robots_reader_refuses_is_never_published(
    tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    site = Site(tmp_path)
    site.damage = damage
    reason = site.publish()
    assert isinstance(reason, str) and words in reason and "\n" not in reason
    assert site.published() == []


def test_closed_loop_trials_stand_beside_the_grounds(tmp_path: Path) -> None:
    site = trials_site(tmp_path, [True] * 30 + [False] * 10)
    done = site.publish()
    assert isinstance(done, ReleaseRecord)
    assert done.evaluation.grounds == ["held out", "closed loop: 30 of 40 trials of lift (75%)"]
    assert done.evaluation.success["lift"].rate == 0.75


def test_a_successor_is_tried_at_the_places_of_its_predecessor(tmp_path: Path) -> None:
    site = trials_site(tmp_path, [True] * 40)
    site.publish(1)
    say(site, [False] * 40)
    reason = site.publish(2)
    assert isinstance(reason, str) and "0 of 40 trials" in reason
    assert site.published() == ["1"]
    say(site, [True] * 40)
    assert isinstance(site.publish(2), ReleaseRecord)
    assert tried(site) == [".part-1", ".part-2", ".part-2"], "the predecessor's report was kept"


def test_a_predecessor_without_a_report_at_those_places_is_tried_again(tmp_path: Path) -> None:
    site = trials_site(tmp_path, [True] * 40)
    site.publish(1)
    say(site, [True] * 40, seed=2)  # the configuration was changed
    assert isinstance(site.publish(2), ReleaseRecord)
    assert tried(site) == [".part-1", ".part-2", "1"]
    (tmp_path / "trials" / "2.json").write_text("{")
    assert isinstance(site.publish(3), ReleaseRecord)
    assert tried(site)[3:] == [".part-3", "2"]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.exit('the twin is not installed')", "the twin is not installed"),
        ("pass", "left no result"),
        ("import pathlib, sys; pathlib.Path(sys.argv[2]).write_text('{}')", "trials: "),
        ("import time; time.sleep(60)", "took more than 1 s"),
    ],
)
def test_trials_that_came_to_nothing_publish_nothing(
    tmp_path: Path, program: str, words: str
) -> None:
    command = (sys.executable, "-c", program, "{policy}", "{report}")
    site = Site(tmp_path, trials_command=command, trials_limit_s=1.0 if "60" in program else 60.0)
    reason = site.publish()
    assert isinstance(reason, str) and words in reason
    assert site.published() == []


def test_trials_of_another_policy_are_not_believed(tmp_path: Path) -> None:
    site = trials_site(tmp_path, [True] * 40)
    other = (tmp_path / "trials.py").read_text().replace('["sha256"]', '["sha256"][::-1]')
    (tmp_path / "trials.py").write_text(other)
    reason = site.publish()
    assert isinstance(reason, str) and "of another policy" in reason


def test_a_command_that_names_no_policy_or_no_report_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lacks the word \{report\}"):
        ReleaseGateConfig(trials_command=("try", "{policy}"))
