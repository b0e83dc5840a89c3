"""coordinator.toml: read, checked, and written once by `init`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import SettingsConfigDict

from coordinator.errors import ConfigError
from host.settings import BadSettings, Settings, Table, load_settings
from policy.errors import BadSpec
from policy.kinds import KINDS
from policy.spec import PolicySpec
from protocol.eligibility import MAX_BASES
from protocol.fields import LocalWork
from protocol.messages import Features
from protocol.topics import IDENTITY_PATTERN

CONFIG_NAME = "coordinator.toml"
MISSING = "make it with `armada coordinator init --dir FOLDER`"

# Stands in for the robots when the file is checked; their names are not known before they speak.
_ANY_ROBOT = Features(state_names=("a",), action_names=("a",), environment_names=("b",), fps=30)

Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Ports(Table):
    """TCP ports on `host`."""

    mqtt: Port = 8883
    """The broker."""
    superlink: Port = 8000
    """Flower's SuperLink, on loopback."""
    https: Port = 8443
    """Releases, status and commands."""


Rate = Annotated[float, Field(gt=0, le=1e3)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class _Strategy(Table):
    """Parameters bear Flower's names.

    Every strategy may have the proximal term: it changes what robots do, not how they are averaged.
    """

    proximal_mu: Annotated[float, Field(ge=0, le=1e3)] = 0.0
    """Pull of local work towards the base, FedProx's mu; 0 is none."""

    @property
    def min_replies(self) -> int:
        """Fewest replies that the strategy is defined for."""
        return 1


class FedAvg(_Strategy):
    """Mean, weighted by examples (McMahan et al. 2017)."""

    name: Literal["fedavg"] = "fedavg"


class FedProx(_Strategy):
    """FedAvg of robots that are held near the base (Li et al. 2020)."""

    name: Literal["fedprox"]
    proximal_mu: Rate
    """Pull of local work towards the base."""


class FedAvgM(_Strategy):
    """FedAvg with momentum on the server (Hsu et al. 2019)."""

    name: Literal["fedavgm"]
    server_learning_rate: Rate = 1.0
    """Step along the mean."""
    server_momentum: Decay = 0.0
    """Share of the last step that is kept."""


class FedAdam(_Strategy):
    """Adam on the server (Reddi et al. 2021)."""

    name: Literal["fedadam"]
    eta: Rate = 0.1
    """Step of the server."""
    beta_1: Decay = 0.9
    """Of the first moment."""
    beta_2: Decay = 0.99
    """Of the second moment."""
    tau: Rate = 1e-3
    """The smaller, the more adaptive."""


class FedYogi(FedAdam):
    """Yogi on the server (Reddi et al. 2021)."""

    name: Literal["fedyogi"]  # type: ignore[assignment]
    eta: Rate = 0.01
    """Step of the server."""


class _Selecting(_Strategy):
    num_malicious_nodes: Annotated[int, Field(ge=0, le=1000)] = 0
    """Faulty robots that are withstood."""


class Krum(_Selecting):
    """The one reply nearest to its neighbours (Blanchard et al. 2017)."""

    name: Literal["krum"]

    @property
    def min_replies(self) -> int:
        return 2 * self.num_malicious_nodes + 3


class MultiKrum(_Selecting):
    """Mean of the replies that Krum ranks first (Blanchard et al. 2017)."""

    name: Literal["multikrum"]
    num_nodes_to_select: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many are averaged."""

    @property
    def min_replies(self) -> int:
        # With fewer, Flower selects everybody and nothing is defended.
        faulty = self.num_malicious_nodes
        return max(2 * faulty + 3, self.num_nodes_to_select + faulty)


class Bulyan(_Selecting):
    """Trimmed mean of what Krum selects (El Mhamdi et al. 2018)."""

    name: Literal["bulyan"]

    @property
    def min_replies(self) -> int:
        return 4 * self.num_malicious_nodes + 3


class FedMedian(_Strategy):
    """Median of each number (Yin et al. 2018)."""

    name: Literal["fedmedian"]

    @property
    def min_replies(self) -> int:
        return 3  # of two it is the plain mean


class FedTrimmedAvg(_Strategy):
    """Mean of each number, without the extremes (Yin et al. 2018)."""

    name: Literal["fedtrimmedavg"]
    beta: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """Share that is cut at each end."""

    @property
    def min_replies(self) -> int:
        # int(beta * n) replies are cut at each end; below this n it is the plain mean.
        return math.ceil(1 / self.beta) if self.beta > 0 else 1


class QFedAvg(_Strategy):
    """FedAvg that favours robots with a high loss (Li et al. 2020, q-FFL)."""

    name: Literal["qfedavg"]
    client_learning_rate: Rate
    """The robots' own."""
    q: Annotated[float, Field(ge=0, le=100)] = 0.1
    """How much a high loss is favoured; 0 is FedAvg."""


AnyStrategy = (
    FedAvg | FedProx | FedAvgM | FedAdam | FedYogi
    | Krum | MultiKrum | Bulyan | FedMedian | FedTrimmedAvg | QFedAvg
)  # fmt: skip
STRATEGIES: dict[str, type[_Strategy]] = {
    get_args(model.model_fields["name"].annotation)[0]: model for model in get_args(AnyStrategy)
}
# A name alone stands for the strategy with its defaults.
Strategy = Annotated[
    AnyStrategy,
    Field(discriminator="name"),
    BeforeValidator(lambda given: {"name": given} if isinstance(given, str) else given),
]


class CampaignConfig(Table):
    """How the fleet learns. Times in seconds of the coordinator's clock."""

    rounds: Annotated[int, Field(ge=1)] = 10
    """Training rounds until the campaign is over."""
    min_agents: Annotated[int, Field(ge=1)] = 2
    """Fewer joins, and a window closes without a round."""
    min_episodes: Annotated[int, Field(ge=1)] = 2
    """A robot counts once it has as many."""
    join_s: Seconds = 5.0
    """Time to answer a window."""
    close_s: Seconds = 60.0
    """Time for the whole window, longer than join_s."""
    interval_s: Seconds = 60.0
    """Between two windows."""
    open_when: Literal["interval", "ready"] = "interval"
    """"interval" opens a window interval_s after the last one closed; "ready" as soon as every
    connected robot, and at least min_agents, gained min_local_steps, and after interval_s at the
    latest."""
    gather_s: Seconds = 10.0
    """How long min_agents with data wait for the others."""
    strategy: Strategy = FedAvg()
    """How contributions become one base: a table of `name` and parameters, or the name alone."""
    local_work: LocalWork = "anytime"
    """Train whenever idle, or `steps` steps inside the window."""
    steps: Annotated[int, Field(ge=1)] = 100
    """Of local_work = window."""
    min_local_steps: Annotated[int, Field(ge=0)] = 1
    """A robot has gained something after as many."""
    max_local_steps: Annotated[int, Field(ge=1)] | None = None
    """Most steps gained on one base; absent: no cap."""
    max_staleness: Annotated[int, Field(ge=0, lt=MAX_BASES)] = 2
    """Work from a base so many bases old still counts, less."""
    min_replies: Annotated[int, Field(ge=1)] | None = None
    """Accepted replies that make a round; absent: min_agents, at most 2, or what the strategy
    needs."""
    release_every_rounds: Annotated[int, Field(ge=1)] = 1
    """One round in so many is a candidate."""
    evaluation_wait_s: Seconds = 60.0
    """How long a candidate waits for the robots' held-out errors."""
    seed: int = 0
    """Of base 0."""

    @model_validator(mode="after")
    def _fits(self) -> CampaignConfig:
        if self.join_s >= self.close_s:
            raise ValueError("join_s must be shorter than close_s")
        if self.max_local_steps is not None and self.min_local_steps > self.max_local_steps:
            raise ValueError("min_local_steps must not be above max_local_steps")
        needed = self.strategy.min_replies
        for key, number in (("min_agents", self.min_agents), ("min_replies", self.replies_needed)):
            if number < needed:
                raise ValueError(
                    f"{key} = {number} is too few for strategy {self.strategy.name}, which as "
                    f"configured is defined for {needed} replies and more"
                )
        return self

    @property
    def replies_needed(self) -> int:
        """Fewest accepted replies that make a round."""
        if self.min_replies is not None:
            return self.min_replies
        return max(min(self.min_agents, 2), self.strategy.min_replies)


Ratio = Annotated[float, Field(gt=0, le=100)]


class ReleaseGateConfig(Table):
    """When a candidate is released. The defaults' error rates: `benchmarks/release_gate.py`."""

    margin: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share that a release's held-out error may be above the last one's, on the same episodes."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """One-sided, that an error is below its limit: of candidates exactly at it the rest passes."""
    quorum: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of a candidate's robots that must report two held-out episodes or more; always as many
    as make a round."""
    veto: Annotated[float, Field(ge=1, le=100)] = 1.4
    """A robot whose error is so many times above a limit refuses the candidate alone."""
    hold_still: Ratio = 0.8
    """A first release's error must be below so many times that of holding still; that of an
    untrained policy is about twice as large."""
    nearest: Ratio = 2.0
    """And below so many times that of what followed the nearest frame of the robot's own
    demonstrations, in the mean. Replaying is hard to beat where a robot has been, and no use
    elsewhere: a policy that lifts every cube of the fleet's demo comes to 1, one after the first
    round to 4."""
    trials_command: tuple[str, ...] = ()
    """Command that tries a policy in closed loop: its words, "{policy}" for the folder and
    "{report}" for the file to write among them, such as ["armada", "trials", "{policy}",
    "--trials", "200", "--json", "{report}"]. With 200 trials both errors of the rule stay at 5 %,
    as long as no more than one place in ten turns out otherwise by chance. Empty: no trials."""
    trials_limit_s: Seconds = 1800.0
    """What the command may take."""
    trials_margin: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of trials that a release may do less of than the last one, at the same places."""
    trials_least: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share that a first release must do."""

    @model_validator(mode="after")
    def _trials_can_be_read(self) -> Self:
        missing = [word for word in ("{policy}", "{report}") if word not in self.trials_command]
        if self.trials_command and missing:
            raise ValueError(f"trials_command lacks the word {missing[0]}")
        return self


class CoordinatorConfig(Settings):
    """The whole file. `policy` holds PolicySpec fields; the names come from the agents."""

    model_config = SettingsConfigDict(env_prefix="ARMADA_COORDINATOR_")

    fleet: Annotated[str, Field(pattern=IDENTITY_PATTERN)] = "armada"
    """Name of the fleet."""
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Name or address at which robots reach this server."""
    ports: Ports = Ports()
    campaign: CampaignConfig = CampaignConfig()
    release_gate: ReleaseGateConfig = ReleaseGateConfig()
    policy: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _policy_can_be_built(self) -> Self:
        policy_spec(self, _ANY_ROBOT)
        return self


def policy_spec(config: CoordinatorConfig, features: Features) -> PolicySpec:
    """The policy's specification: [policy] and the names the robots have.

    Raises ConfigError.
    """
    try:
        return PolicySpec.from_json(
            {
                **config.policy,
                "state_names": list(features.state_names),
                "action_names": list(features.action_names),
                "environment_names": list(features.environment_names),
                "fps": round(features.fps),
            }
        )
    except BadSpec as error:
        raise ConfigError(f"[policy]: {error}") from error


def load_config(folder: Path) -> CoordinatorConfig:
    """Read `folder`/coordinator.toml and what the environment adds; see host.settings.

    Raises ConfigError with file, key and what is allowed.
    """
    try:
        return load_settings(CoordinatorConfig, folder / CONFIG_NAME, MISSING)
    except BadSettings as error:
        raise ConfigError(str(error)) from error


def render_config(fleet: str, host: str, ports: Ports) -> str:
    """The coordinator.toml that `init` writes, with every campaign key and its default."""
    campaign, gate = CampaignConfig(), ReleaseGateConfig()
    defaults = policy_spec(CoordinatorConfig(), _ANY_ROBOT).to_json()
    given = {"state_names", "action_names", "environment_names", "cameras", "fps"}
    policy = "\n".join(
        f"# {key} = {json.dumps(value)}"
        for key, value in defaults.items()
        if key not in given and value is not None
    )
    kinds = ", ".join(KINDS)
    return f"""\
# Armada coordinator. Ports are on `host`; all keys are checked, unknown ones are refused.
fleet = "{fleet}"
host = "{host}"

[ports]
mqtt = {ports.mqtt}
superlink = {ports.superlink}
https = {ports.https}

[campaign]
rounds = {campaign.rounds}
min_agents = {campaign.min_agents}          # fewer joins: the window closes without a round
min_episodes = {campaign.min_episodes}        # an agent counts once it has as many
join_s = {campaign.join_s}            # time to answer a window
close_s = {campaign.close_s}          # time for the whole window
interval_s = {campaign.interval_s}       # between windows
gather_s = {campaign.gather_s}         # how long min_agents with data wait for the others
open_when = "{campaign.open_when}"  # or "ready": as soon as all gained min_local_steps
strategy = "{campaign.strategy.name}"    # or {{name = "krum", num_malicious_nodes = 1}}
local_work = "{campaign.local_work}"  # or "window": `steps` steps inside the window
steps = {campaign.steps}
min_local_steps = {campaign.min_local_steps}
# max_local_steps = 400     # most steps gained on one base; absent: no cap
max_staleness = {campaign.max_staleness}
release_every_rounds = {campaign.release_every_rounds}
evaluation_wait_s = {campaign.evaluation_wait_s}

[release_gate]
margin = {gate.margin}             # share that a release may be worse than the last
confidence = {gate.confidence}        # that it is not, one-sided
quorum = {gate.quorum}             # share of a candidate's robots that must report
veto = {gate.veto}               # times a limit: so much worse on one robot refuses alone
hold_still = {gate.hold_still}         # a first release: most error, against holding still
nearest = {gate.nearest}            # and against replaying the nearest demonstration
# trials_command = ["armada", "trials", "{{policy}}", "--trials", "200", "--json", "{{report}}"]

[policy]
# Fields of the policy's specification; names and fps come from the robots. Each kind ({kinds})
# has keys of its own; see docs/configuration.md.
# cameras = [{{name = "overhead", height = 96, width = 128}}]
{policy}
"""
