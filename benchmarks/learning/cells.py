"""The table of what is measured: one row a cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.learning.fleet import Plan
from benchmarks.learning.scene import CAMERA, PLACE, joint_names
from coordinator import config
from policy.spec import PolicySpec

ROUNDS, STEPS = 12, 100
SIZE = (64, 48)
_COMMON: dict[str, Any] = {"kind": "act", "fps": 30, "learning_rate": 1e-3, "round_decay": 0.85}
_PICTURES: dict[str, Any] = {
    "cameras": [{"name": CAMERA, "width": SIZE[0], "height": SIZE[1]}],
    "batch_size": 16,
}
_STATE: dict[str, Any] = {"environment_names": list(PLACE)}


@dataclass(frozen=True)
class Cell:
    """What is learned from and how. ``plan`` None: one trainer, on all data (``pooled``) or on that
    of each robot alone, of which all are tried.
    """

    about: str
    policy: Mapping[str, Any]
    plan: Plan | None = None
    pooled: bool = False
    robots: int = 3
    one_trainer_rounds: int = ROUNDS
    extra: Mapping[str, Any] = field(default_factory=dict)

    def spec(self) -> PolicySpec:
        """The policy that the cell trains."""
        names = list(joint_names())
        given = {"state_names": names, "action_names": names}
        return PolicySpec.from_json({**_COMMON, **given, **self.policy})


def _fleet(strategy: config.AnyStrategy | None = None, **plan: Any) -> Plan:
    values = {"rounds": ROUNDS, "steps": STEPS} | plan
    return Plan(strategy or config.FedAvg(), **values)


def _longer(spec: Mapping[str, Any]) -> dict[str, Any]:
    """With twice the rounds the rate must not fall as fast."""
    return {**spec, "round_decay": 0.92}


def cells(trunk_sha256: str) -> dict[str, Cell]:
    """By name. ``trunk_sha256``: the pretrained trunk."""
    plain = _PICTURES | {"backbone": "keypoints", "backbone_sha256": None, "backbone_rate": 1.0}
    tuned = plain | {"backbone_sha256": trunk_sha256}
    slow, frozen = tuned | {"backbone_rate": 0.1}, tuned | {"backbone_rate": 0.0}
    trimmed = config.FedTrimmedAvg(name="fedtrimmedavg")
    median = config.FedMedian(name="fedmedian")
    return {
        "state-local": Cell("cube's place known, a robot alone", _STATE),
        "state-central": Cell("cube's place known, all data in one place", _STATE, pooled=True),
        "state-fedavg": Cell("cube's place known, FedAvg", _STATE, _fleet()),
        "random-local": Cell("random trunk, a robot alone", plain),
        "random-central": Cell("random trunk, all data in one place", plain, pooled=True),
        "random-fedavg": Cell("random trunk, FedAvg", plain, _fleet()),
        "random-more": Cell("random trunk, FedAvg, twice the rounds", _longer(plain),
            _fleet(rounds=24)),
        "tuned-fedavg": Cell("pretrained trunk, full rate, FedAvg", tuned, _fleet()),
        "slow-fedavg": Cell("pretrained trunk, tenth of the rate, FedAvg", slow, _fleet()),
        "local": Cell("pretrained frozen trunk, a robot alone", frozen),
        "central": Cell("pretrained frozen trunk, all data in one place", frozen, pooled=True),
        "fedavg": Cell("pretrained frozen trunk, FedAvg", frozen, _fleet()),
        "local-more": Cell("frozen, a robot alone, twice the rounds", _longer(frozen),
            one_trainer_rounds=24),
        "central-more": Cell("frozen, all data, twice the rounds", _longer(frozen), pooled=True,
            one_trainer_rounds=24),
        "more": Cell("frozen, FedAvg, twice the rounds", _longer(frozen), _fleet(rounds=24)),
        "fedprox": Cell("frozen, FedProx, mu 0.01", frozen,
            _fleet(config.FedProx(name="fedprox", proximal_mu=0.01))),
        "fedavgm": Cell("frozen, momentum 0.5 on the server", frozen,
            _fleet(config.FedAvgM(name="fedavgm", server_momentum=0.5))),
        "fedadam": Cell("frozen, Adam on the server", frozen,
            _fleet(config.FedAdam(name="fedadam", eta=0.01))),
        "fresh": Cell("frozen, optimiser anew at each base", frozen, _fleet(fresh_optimizer=True)),
        "int8": Cell("frozen, updates of eight bits", frozen, _fleet(int8=True)),
        "busy": Cell("frozen, robots busy half of the time, twice the windows", _longer(frozen),
            _fleet(rounds=24, busy=0.5)),
        "late": Cell("frozen, the third robot joins half-way", frozen, _fleet(joins_at=6)),
        "five": Cell("frozen, five robots, FedAvg", frozen, _fleet(), robots=5),
        "five-absent": Cell("frozen, five robots of which one never joins, FedAvg", frozen,
            _fleet(joins_at=ROUNDS), robots=5),
        "five-malicious": Cell("frozen, one of five sends -5 times its work, FedAvg", frozen,
            _fleet(malicious=-5.0), robots=5),
        "five-trimmed": Cell("frozen, five robots, trimmed mean", frozen, _fleet(trimmed),
            robots=5),
        "five-trimmed-malicious": Cell("frozen, one of five malicious, trimmed mean", frozen,
            _fleet(trimmed, malicious=-5.0), robots=5),
        "five-median-malicious": Cell("frozen, one of five malicious, median", frozen,
            _fleet(median, malicious=-5.0), robots=5),
    }  # fmt: skip
