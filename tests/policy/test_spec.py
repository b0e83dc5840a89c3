from __future__ import annotations

import pytest
from synthetic_pick import JOINTS, tiny_spec

from policy.errors import BadSpec
from policy.spec import ACTION, ENVIRONMENT, STATE, CameraSpec, PolicySpec


def test_a_spec_comes_back_from_its_json_as_a_dictionary_and_as_text() -> None:
    spec = tiny_spec(cameras=[CameraSpec(name="overhead", height=96, width=128)])
    assert PolicySpec.from_json(spec.to_json()) == spec
    assert PolicySpec.from_json(spec.model_dump_json()) == spec


def test_equal_specs_have_equal_digests_and_any_change_shows() -> None:
    assert tiny_spec().digest() == tiny_spec().digest()
    assert tiny_spec(chunk_size=7).digest() != tiny_spec().digest()
    assert tiny_spec(state_names=JOINTS[::-1]).digest() != tiny_spec().digest()


def test_vectors_keep_the_order_of_their_names() -> None:
    assert list(tiny_spec().vectors) == [STATE, ENVIRONMENT, ACTION]
    assert tiny_spec().vectors[STATE] == JOINTS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"environment_names": []}, "camera"),
        ({"dim_model": 15, "n_heads": 2}, "multiple of n_heads"),
        ({"state_names": ["a.pos", "a.pos"]}, "twice"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"wings": 2}, "wings"),
    ],
)
def test_an_unusable_spec_is_refused_with_the_field(change: dict[str, object], words: str) -> None:
    with pytest.raises(BadSpec, match=words):
        PolicySpec.from_json(tiny_spec().to_json() | change)


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(BadSpec):
        PolicySpec.from_json("{")


def test_the_rate_falls_from_round_to_round_and_never_to_nothing() -> None:
    spec = tiny_spec(learning_rate=1e-3, round_decay=0.5)
    assert [spec.learning_rate_in(number) for number in (0, 1, 2)] == [1e-3, 5e-4, 2.5e-4]
    assert spec.learning_rate_in(10_000) == pytest.approx(5e-5)
    assert tiny_spec(learning_rate=1e-3).learning_rate_in(7) == 1e-3
