"""coordinator.toml: read, checked, and written once by `init`."""

from __future__ import annotations

import tomllib
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from coordinator.errors import ConfigError
from policy.errors import BadSpec
from policy.spec import PolicySpec
from protocol.messages import Features
from protocol.topics import IDENTITY_PATTERN

CONFIG_NAME = "coordinator.toml"

# Stands in for the robots when the file is checked; their names are not known before they speak.
_ANY_ROBOT = Features(state_names=("a",), action_names=("a",), environment_names=("b",), fps=30)

Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]
Port = Annotated[int, Field(ge=1, le=65535)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ports(_Table):
    """TCP ports on `host`."""

    mqtt: Port = 8883
    superlink: Port = 8000
    https: Port = 8443


class CampaignConfig(_Table):
    """How the fleet learns. Times in seconds of the coordinator's clock.

    open_when: "interval" opens a window `interval_s` after the last one closed; "ready" opens it
    as soon as every connected agent (and at least min_agents) gained min_local_steps, and after
    `interval_s` at the latest. A window with fewer than min_agents joins closes without a round.
    """

    rounds: Annotated[int, Field(ge=1)] = 10
    min_agents: Annotated[int, Field(ge=1)] = 2
    min_episodes: Annotated[int, Field(ge=1)] = 2
    join_s: Seconds = 5.0
    close_s: Seconds = 60.0
    interval_s: Seconds = 60.0
    open_when: Literal["interval", "ready"] = "interval"
    gather_s: Seconds = 10.0
    strategy: str = "fedavg"
    strategy_params: dict[str, Any] = {}
    proximal_mu: Annotated[float, Field(ge=0)] = 0.0
    local_work: Literal["anytime", "window"] = "anytime"
    steps: Annotated[int, Field(ge=1)] = 100
    min_local_steps: Annotated[int, Field(ge=0)] = 1
    max_local_steps: Annotated[int, Field(ge=1)] | None = None
    max_staleness: Annotated[int, Field(ge=0)] = 2
    min_replies: Annotated[int, Field(ge=1)] | None = None
    release_every_rounds: Annotated[int, Field(ge=1)] = 1
    evaluation_wait_s: Seconds = 60.0
    regression_tolerance: Annotated[float, Field(ge=0)] = 0.0
    seed: int = 0

    @model_validator(mode="after")
    def _times_fit(self) -> CampaignConfig:
        if self.join_s >= self.close_s:
            raise ValueError("join_s must be shorter than close_s")
        if self.max_local_steps is not None and self.min_local_steps > self.max_local_steps:
            raise ValueError("min_local_steps must not be above max_local_steps")
        return self

    @property
    def replies_needed(self) -> int:
        """Fewest accepted replies that make a round."""
        return self.min_replies if self.min_replies is not None else min(self.min_agents, 2)


class CoordinatorConfig(_Table):
    """The whole file. `policy` holds PolicySpec fields; the names come from the agents."""

    fleet: Annotated[str, Field(pattern=IDENTITY_PATTERN)] = "armada"
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    ports: Ports = Ports()
    campaign: CampaignConfig = CampaignConfig()
    policy: dict[str, Any] = {}

    def digest(self) -> str:
        """SHA-256 hex over what members of a window must agree on: campaign and policy."""
        part = self.model_dump_json(include={"campaign", "policy", "fleet"})
        return sha256(part.encode()).hexdigest()


def policy_spec(config: CoordinatorConfig, features: Features) -> PolicySpec:
    """The policy's specification: [policy] and the names the robots have; raises ConfigError."""
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
    """Read `folder`/coordinator.toml; raises ConfigError with file, key and what is allowed."""
    path = folder / CONFIG_NAME
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} does not exist; make it with `armada coordinator init --dir {folder}`"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    try:
        config = CoordinatorConfig.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error
    try:
        policy_spec(config, _ANY_ROBOT)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "file"
    if first["type"] == "extra_forbidden":
        model: type[BaseModel] = CoordinatorConfig
        for part in first["loc"][:-1]:
            inner = model.model_fields[str(part)].annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                model = inner
        return f"{where} is not a key; allowed are {', '.join(sorted(model.model_fields))}"
    return f"{where} = {first['input']!r}: {first['msg']}"


def render_config(fleet: str, host: str, ports: Ports) -> str:
    """The coordinator.toml that `init` writes, with every campaign key and its default."""
    campaign = CampaignConfig()
    defaults = policy_spec(CoordinatorConfig(), _ANY_ROBOT).to_json()
    given = {"kind", "state_names", "action_names", "environment_names", "cameras", "fps"}
    policy = "\n".join(
        f"# {key} = {str(value).lower() if isinstance(value, bool) else value}"
        for key, value in defaults.items()
        if key not in given
    )
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
strategy = "{campaign.strategy}"
proximal_mu = {campaign.proximal_mu}
local_work = "{campaign.local_work}"  # or "window": `steps` steps inside the window
steps = {campaign.steps}
min_local_steps = {campaign.min_local_steps}
# max_local_steps = 400     # most steps gained on one base; absent: no cap
max_staleness = {campaign.max_staleness}
release_every_rounds = {campaign.release_every_rounds}
evaluation_wait_s = {campaign.evaluation_wait_s}
regression_tolerance = {campaign.regression_tolerance}  # raw units a release may be worse

[policy]
# Fields of the policy's specification; names and fps come from the robots.
# cameras = [{{name = "overhead", height = 96, width = 128}}]
{policy}
"""
