from __future__ import annotations

import subprocess
import sys

import pytest
from synthetic_pick import JOINTS, PLACE, frames_of, normalizer_of

from policy.build import build_policy
from policy.errors import BadSpec, MissingPackage
from policy.kinds import KINDS, kind_of
from policy.spec import PolicySpec

LEAST = {
    "state_names": JOINTS,
    "action_names": JOINTS,
    "environment_names": PLACE,
    "cameras": [{"name": "overhead", "height": 32, "width": 32}],
    "fps": 30,
}
OF_KIND = {"act": {}, "diffusion": {}, "smolvla": {"vlm_sha256": "0" * 64}}


def spec_of(kind: str, **fields: object) -> PolicySpec:
    return PolicySpec.from_json(LEAST | OF_KIND[kind] | {"kind": kind} | fields)


@pytest.mark.parametrize("kind", KINDS)
def test_a_spec_comes_back_from_its_json_as_its_own_kind(kind: str) -> None:
    spec = spec_of(kind)
    assert type(spec) is kind_of(kind).spec
    assert PolicySpec.from_json(spec.to_json()) == spec
    assert spec.kind == kind


def test_a_spec_that_names_no_kind_is_act() -> None:
    assert PolicySpec.from_json(LEAST).kind == "act"


def test_an_unknown_kind_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(BadSpec, match="'pi0' is not one of act, diffusion, smolvla"):
        PolicySpec.from_json(LEAST | {"kind": "pi0"})


def test_a_key_of_another_kind_is_refused_by_name() -> None:
    with pytest.raises(BadSpec, match="down_dims"):
        spec_of("act", down_dims=[8])
    with pytest.raises(BadSpec, match="use_vae"):
        spec_of("diffusion", use_vae=True)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        (
            "act",
            {"backbone": "resnet18", "backbone_sha256": "a" * 64},
            'backbone_norm = "frozen"',
        ),
        ("diffusion", {"chunk_size": 30}, "multiple of 4"),
        ("diffusion", {"down_dims": [12]}, "multiples of 8"),
        ("diffusion", {"kernel_size": 4}, "odd"),
        ("diffusion", {"denoising_steps": 9, "train_steps": 8}, "train_steps"),
        ("smolvla", {"cameras": []}, "give at least one"),
        ("smolvla", {"max_vector_size": 5}, "6 joints"),
        ("smolvla", {"expert_layers": 3}, "divisor"),
        ("smolvla", {"vlm_sha256": "../../etc"}, "vlm_sha256"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused_when_they_are_read(
    kind: str, change: dict[str, object], words: str
) -> None:
    with pytest.raises(BadSpec, match=words):
        spec_of(kind, **change)


def test_a_spec_of_any_kind_is_read_without_torch_and_lerobot() -> None:
    texts = [spec_of(kind).model_dump_json() for kind in KINDS]
    code = (
        "import sys\n"
        "from policy.session import input_shapes\n"
        "from policy.spec import PolicySpec\n"
        f"for text in {texts!r}:\n"
        "    input_shapes(PolicySpec.from_json(text))\n"
        "print([name for name in ('torch', 'lerobot', 'transformers') if name in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_package_that_is_not_installed_is_told_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(kind_of("diffusion")), "packages", ("no_such_package",))
    spec = spec_of("diffusion")
    with pytest.raises(MissingPackage, match=r"no_such_package: install armada\[diffusion\]"):
        build_policy(spec, normalizer_of(frames_of(1), spec), 0)
