"""A strategy that cannot work is refused when coordinator.toml is read, in one line."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from coordinator.campaign.actions import RunRound
from coordinator.campaign.state import Base, CampaignState
from coordinator.config import (
    STRATEGIES,
    CampaignConfig,
    CoordinatorConfig,
    FedAvg,
    Krum,
    load_config,
)
from coordinator.errors import ConfigError
from coordinator.federation.campaign_rounds import make_order
from coordinator.federation.orders import Member, RoundOrder
from coordinator.federation.strategies import CLASSES
from host.settings import settings_in_force

ROBOTS_OWN = {"name", "proximal_mu"}


def load(folder: Path, text: str) -> CampaignConfig:
    (folder / "coordinator.toml").write_text(text)
    return load_config(folder).campaign


@pytest.mark.parametrize("text", ['[campaign]\nstrategy = "fedavg"', "[campaign]\nrounds = 3", ""])
def test_a_name_alone_is_the_strategy_with_its_defaults(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text).strategy == FedAvg()


@pytest.mark.parametrize(
    "form",
    [
        '[campaign]\nmin_agents = 5\nstrategy = {name = "krum", num_malicious_nodes = 1}',
        '[campaign]\nmin_agents = 5\n[campaign.strategy]\nname = "krum"\nnum_malicious_nodes = 1',
    ],
)
def test_a_table_names_the_strategy_and_its_parameters(tmp_path: Path, form: str) -> None:
    campaign = load(tmp_path, form)
    assert campaign.strategy == Krum(name="krum", num_malicious_nodes=1)
    assert campaign.replies_needed == 5, "fewer replies than krum is defined for make no round"


@pytest.mark.parametrize(
    ("strategy", "rules", "complaint"),
    [
        ('"fedavgg"', "", "unknown campaign.strategy 'fedavgg'; did you mean fedavg?"),
        ('{name = "fedmagic"}', "", "allowed here: fedavg, fedprox, fedavgm, fedadam, fedyogi, "),
        ('{name = "krum", num_malicous_nodes = 1}', "", "did you mean num_malicious_nodes?"),
        ('{name = "fedavg", beta = 0.1}', "", "allowed here: proximal_mu, name"),
        ('{name = "krum", num_malicious_nodes = "many"}', "", "num_malicious_nodes = 'many'"),
        ('{name = "krum", num_malicious_nodes = -1}', "", "greater than or equal to 0"),
        ('{name = "fedtrimmedavg", beta = -0.1}', "", "beta = -0.1"),
        ('{name = "fedtrimmedavg", beta = 0.5}', "", "beta = 0.5"),
        ('{name = "fedavgm", server_momentum = nan}', "", "server_momentum = nan"),
        ('{name = "fedavgm", server_learning_rate = inf}', "", "server_learning_rate = inf"),
        ('"qfedavg"', "", "client_learning_rate is missing"),
        ('"fedprox"', "", "fedprox.proximal_mu is missing"),
        ('{name = "fedprox", proximal_mu = 0.0}', "", "proximal_mu = 0.0"),
        ("{num_malicious_nodes = 1}", "", "name"),
        ("3", "", "campaign.strategy = 3"),
        ('"krum"', "min_agents = 2", "min_agents = 2 is too few for strategy krum, which as "
         "configured is defined for 3 replies"),
        ('"fedmedian"', "min_agents = 2", "defined for 3 replies"),
        ('{name = "bulyan", num_malicious_nodes = 1}', "min_agents = 6", "for 7 replies"),
        ('"krum"', "min_agents = 5\nmin_replies = 2", "min_replies = 2 is too few"),
    ],
)  # fmt: skip
def test_a_strategy_that_cannot_work_is_refused_with_one_line(
    tmp_path: Path, strategy: str, rules: str, complaint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"[campaign]\nstrategy = {strategy}\n{rules}")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "coordinator.toml") in str(caught.value)


def order_for(folder: Path, strategy: str) -> RoundOrder:
    (folder / "coordinator.toml").write_text(f"[campaign]\nstrategy = {strategy}")
    state = CampaignState(bases=[Base(round=0, digest="a" * 64, weights="bases/0")])
    members = [Member(agent_id="arm-1", public_key="key")]
    action = RunRound("train", 1, ("arm-1",), 9.0)
    return make_order(load_config(folder), state, action, members, folder)


@pytest.mark.parametrize("name", ["fedprox", "fedavg", "fedadam"])
def test_the_proximal_term_reaches_the_robots_whatever_the_strategy(
    tmp_path: Path, name: str
) -> None:
    order = order_for(tmp_path, f'{{name = "{name}", proximal_mu = 0.25}}')
    assert order.base_info is not None
    assert order.base_info["proximal_mu"] == order.strategy.proximal_mu == 0.25


def test_an_order_reaches_the_process_of_the_round_with_its_strategy_and_terms(
    tmp_path: Path,
) -> None:
    order = order_for(tmp_path, '{name = "fedyogi", eta = 0.5}')
    assert RoundOrder.model_validate_json(order.model_dump_json()) == order


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_parameters_and_defaults_are_those_of_flowers_class(name: str) -> None:
    model = STRATEGIES[name]
    takes = inspect.signature(CLASSES[model]).parameters  # type: ignore[index]
    for key, parameter in model.model_fields.items():
        if key in ROBOTS_OWN:
            continue
        assert key in takes
        if not parameter.is_required():
            assert parameter.default == takes[key].default


def test_a_strategy_named_in_the_file_is_shown_as_the_files(tmp_path: Path) -> None:
    load(tmp_path, '[campaign]\nstrategy = "fedavgm"')
    path = tmp_path / "coordinator.toml"
    shown = {each.key: each for each in settings_in_force(CoordinatorConfig, path, "")}
    name = shown["campaign.strategy.name"]
    assert (name.value, name.origin) == ("fedavgm", str(path))
