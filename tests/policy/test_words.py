"""A task's words as a vector: the same on every host, and another for another task."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.kinds import TASK_VECTOR
from policy.spec import STATE
from policy.words import TaskVector, task_reader, task_vector

WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8)
WORDS = st.lists(WORD, min_size=1, max_size=12)
SIZES = st.integers(1, 1024)
# On a host whose processors are taken, drawing letters takes long too.
busy_host = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TASKS = (
    "pick up the red cube",
    "put the cube on the green mark",
    "put the cube on the white mark",
    "stack the red cube on the blue cube",
    "sort the cube by its colour",
    "push the red cube to the mark",
)


@busy_host
@given(WORDS, SIZES)
def test_any_words_become_a_vector_of_length_one(words: list[str], size: int) -> None:
    vector = task_vector(" ".join(words), size)
    assert vector.shape == (size,) and vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)


@busy_host
@given(WORDS, st.lists(st.sampled_from([" ", "  ", "\t", "\n", ", ", " - "]), min_size=12))
def test_case_spaces_and_punctuation_do_not_count(words: list[str], gaps: list[str]) -> None:
    spread = "".join(word.upper() + gap for word, gap in zip(words, gaps, strict=False))
    assert np.array_equal(task_vector(f" {spread}.", 32), task_vector(" ".join(words), 32))


def test_the_vector_is_the_same_on_every_host_and_for_ever() -> None:
    signs = "".join("+" if number > 0 else "-" for number in task_vector("pick", 16))
    assert signs == "+-+-++-+--+----+"


@busy_host
@given(st.text(max_size=200), SIZES)
def test_any_text_is_read_and_one_without_words_is_zero(text: str, size: int) -> None:
    assert np.isfinite(task_vector(text, size)).all()
    assert not task_vector(" .,!?\n", size).any()


@pytest.mark.parametrize("size", [32, 128])
def test_other_tasks_are_far_apart(size: int) -> None:
    for one, other in itertools.combinations(TASKS, 2):
        near = float(task_vector(one, size) @ task_vector(other, size))
        assert near < 0.9, (one, other)
        assert np.abs(task_vector(one, size) - task_vector(other, size)).max() > 0.1


@busy_host
@given(st.lists(WORD, min_size=6, max_size=12, unique=True))
def test_tasks_without_a_word_in_common_are_nearly_orthogonal(words: list[str]) -> None:
    half = len(words) // 2
    one, other = (task_vector(" ".join(part), 1024) for part in (words[:half], words[half:]))
    assert abs(float(one @ other)) < 0.25


def test_the_order_of_words_counts() -> None:
    one = task_vector("put the red cube on the blue cube", 128)
    other = task_vector("put the blue cube on the red cube", 128)
    assert float(one @ other) < 0.97


def test_an_endless_task_is_cut_off() -> None:
    assert np.array_equal(task_vector("ab " * 10_000, 8), task_vector("ab " * 2_000, 8))


def test_a_graph_that_reads_no_task_has_no_reader(tmp_path: Path) -> None:
    assert task_reader({STATE: (6,)}, tmp_path) is None
    assert isinstance(task_reader({STATE: (6,), TASK_VECTOR: (8,)}, tmp_path), TaskVector)
