"""Identities, configuration and broker files, as the command line makes them."""

from __future__ import annotations

import json
import stat
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.campaign.state import CampaignState
from coordinator.cli import main
from coordinator.config import CampaignConfig, load_config
from coordinator.errors import ConfigError, StateError
from coordinator.identity.enrolment import enrolled_agents
from coordinator.identity.layout import Layout
from coordinator.identity.mosquitto import render_access
from coordinator.server.state_file import load_state, save_state
from protocol.bundle import load_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert (
        main(["init", "--dir", str(tmp_path / "c"), "--fleet", "lab", "--mqtt-port", "1234"]) == 0
    )
    return tmp_path / "c"


def enrol(folder: Path, name: str, out: str = "bundle") -> int:
    return main(["enrol", name, "--dir", str(folder), "--out", str(folder.parent / out)])


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_the_file_that_init_writes_is_the_defaults_and_names_every_key(folder: Path) -> None:
    config = load_config(folder)
    assert (config.fleet, config.ports.mqtt) == ("lab", 1234)
    assert config.campaign == CampaignConfig()
    text = (folder / "coordinator.toml").read_text()
    for key in CampaignConfig.model_fields:
        if key not in ("min_replies", "seed"):
            assert f"{key} = " in text
    uncommented = "\n".join(
        line.removeprefix("# ") if " = " in line and "cameras" not in line else line
        for line in text.splitlines()
    )
    (folder / "coordinator.toml").write_text(uncommented)
    assert load_config(folder).policy.keys() >= {"chunk_size", "dim_model", "use_vae"}


def test_one_key_a_robot_is_its_certificate_and_its_supernode_key(folder: Path) -> None:
    assert enrol(folder, "arm-1") == 0
    bundle = load_bundle(folder.parent / "bundle")
    made = certificate(bundle.certificate)
    (name,) = made.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert name.value == "arm-1"
    key = serialization.load_pem_private_key(bundle.key.read_bytes(), None)
    supernode = serialization.load_ssh_private_key(bundle.supernode_key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert key.public_key() == supernode.public_key() == made.public_key()
    registered = enrolled_agents(Layout(folder))["arm-1"]
    assert registered.public_key.startswith("ecdsa-sha2-nistp384 ")
    assert bundle.info.mqtt.port == 1234 and bundle.info.fleet == "lab"


def test_private_keys_are_for_their_owner_alone(folder: Path) -> None:
    enrol(folder, "arm-1")
    keys = [folder / "ca/ca.key", folder / "server/key.pem", folder / "identity/key.pem"]
    keys += [folder.parent / "bundle/key.pem", folder.parent / "bundle/supernode_key"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    robots_key = (folder.parent / "bundle/key.pem").read_bytes()
    kept = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert robots_key not in kept, "the coordinator keeps no robot's private key"


def test_a_client_is_no_server_and_a_server_is_no_client(folder: Path) -> None:
    enrol(folder, "arm-1")
    uses = {
        path: certificate(path).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        for path in (folder / "server/cert.pem", folder.parent / "bundle/cert.pem")
    }
    server, client = uses.values()
    assert list(server) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert list(client) == [ExtendedKeyUsageOID.CLIENT_AUTH]


@pytest.mark.parametrize("name", ["coordinator", "Coordinator", "a/b", "+", "#", "", "a b"])
def test_a_name_that_would_be_somebody_else_is_refused(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enrol(folder, name) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (folder.parent / "bundle").exists()


def test_nobody_is_enrolled_twice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert enrol(folder, "arm-1") == 0
    assert enrol(folder, "arm-1", "again") == 1
    assert "already enrolled" in capsys.readouterr().err
    assert enrol(folder, "arm-2") == 1
    assert "already holds a bundle" in capsys.readouterr().err


def test_init_never_overwrites_an_authority(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "ca/ca.key").read_bytes()
    assert main(["init", "--dir", str(folder)]) == 1
    assert "already initialised" in capsys.readouterr().err
    assert (folder / "ca/ca.key").read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rounds = 10", "rounds = 0", "campaign.rounds = 0"),
        ("rounds = 10", "round = 10", "unknown key campaign.round; did you mean rounds?"),
        ('fleet = "lab"', 'flete = "lab"', "unknown key flete; did you mean fleet?"),
        ('open_when = "interval"', 'open_when = "soon"', "campaign.open_when = 'soon'"),
        ("join_s = 5.0", "join_s = 61.0", "join_s must be shorter than close_s"),
        ("[policy]", "[policy]\ndim_modle = 3", "dim_modle"),
        ("[policy]", "[policy]\ndim_model = 30", "multiple of n_heads"),
        ("[policy]", '[policy]\nkind = "pi0"', "not one of act, diffusion, smolvla"),
        ("[policy]", "[policy", "not TOML"),
    ],
)
def test_a_bad_configuration_is_one_line_with_file_and_key(
    folder: Path, old: str, new: str, said: str
) -> None:
    path = folder / "coordinator.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_config(folder)
    line = str(caught.value)
    assert said in line and str(path) in line and "\n" not in line


def test_a_folder_that_was_never_initialised_says_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["run"], ["status"], ["superlink"]):
        assert main([*command, "--dir", str(tmp_path)]) == 1
        assert "armada coordinator init --dir" in capsys.readouterr().err


def test_the_access_list_gives_a_robot_only_patterns_of_its_own(folder: Path) -> None:
    own = [line for line in render_access("lab").splitlines() if line.startswith("pattern write")]
    assert own == [
        f"pattern write armada/v1/lab/agents/%u/{kind}" for kind in ("status", "answer", "event")
    ]


def test_state_reads_back_and_a_damaged_one_is_one_clear_line(tmp_path: Path) -> None:
    state = CampaignState(round=3, contributors=["arm-1"])
    save_state(tmp_path, state)
    assert load_state(tmp_path) == state
    assert json.loads((tmp_path / "campaign.json").read_text())["round"] == 3
    (tmp_path / "campaign.json").write_text("{")
    with pytest.raises(StateError, match="restore it from a backup"):
        load_state(tmp_path)


def test_the_rendered_toml_is_toml() -> None:
    from coordinator.config import Ports, render_config

    assert tomllib.loads(render_config("f", "::1", Ports()))["host"] == "::1"
