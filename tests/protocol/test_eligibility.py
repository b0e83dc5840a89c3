"""What counts, over every base, age, merge and number of steps there is."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from protocol.eligibility import (
    MAX_BASES,
    Ineligible,
    Terms,
    explain,
    judge_base,
    judge_join,
    judge_work,
    needs_base,
    staleness,
)

NOW, OLD, OLDER, STRANGE = (letter * 64 for letter in "abcd")
BASES = (NOW, OLD, OLDER)
ANYTIME = Terms(bases=BASES, max_staleness=1, min_steps=10)
WINDOW = Terms(bases=BASES, local_work="window")

# The rules, said once more and otherwise: base -> why nothing on it counts.
FACTS = list(product((*BASES, STRANGE, None), (0, 1, 9, 10, 11), (*BASES, STRANGE, None)))


@pytest.mark.parametrize(("base", "steps", "merged"), FACTS)
def test_every_case_of_anytime_work(base: str | None, steps: int, merged: str | None) -> None:
    if base in (STRANGE, None):
        expected = Ineligible.UNKNOWN_BASE
    elif base == OLDER:
        expected = Ineligible.STALE
    elif base == merged == OLD:
        expected = Ineligible.MERGED
    elif steps < 10:
        expected = Ineligible.NOTHING_GAINED
    else:
        expected = None
    assert judge_work(base, steps, merged, ANYTIME) is expected
    assert judge_join(base, steps, merged, ANYTIME) is expected
    usable = base == NOW or (base == OLD and merged != OLD and steps > 0)
    assert needs_base(base, steps, merged, ANYTIME) is not usable


@pytest.mark.parametrize(("base", "steps", "merged"), FACTS)
def test_every_case_of_work_inside_a_window(
    base: str | None, steps: int, merged: str | None
) -> None:
    on_base = {NOW: None, OLD: Ineligible.STALE, OLDER: Ineligible.STALE}.get(
        base, Ineligible.UNKNOWN_BASE
    )
    assert judge_join(base, steps, merged, WINDOW) is on_base, "its work is still to be done"
    expected = Ineligible.NOTHING_GAINED if on_base is None and steps == 0 else on_base
    assert judge_work(base, steps, merged, WINDOW) is expected, "partial work counts"
    assert needs_base(base, steps, merged, WINDOW) is (base != NOW)


def test_staleness_counts_bases_and_not_rounds() -> None:
    # Base 3 was followed by base 9: the rounds between failed. By rounds it would be 6 old.
    rounds = {OLDER: 0, OLD: 3, NOW: 9}
    newest_first = sorted(rounds, key=lambda digest: -rounds[digest])
    terms = Terms(bases=tuple(newest_first), max_staleness=1)
    assert rounds[NOW] - rounds[OLD] == 6
    assert staleness(OLD, terms.bases) == 1
    assert judge_work(OLD, 1, None, terms) is None
    assert judge_work(OLDER, 1, None, terms) is Ineligible.STALE


def test_a_base_that_came_again_is_as_old_as_its_last_time() -> None:
    assert staleness(OLD, (NOW, OLD, OLDER, OLD)) == 1


def test_a_step_on_an_older_base_is_not_taken_away_before_it_can_count() -> None:
    assert judge_work(OLD, 1, None, ANYTIME) is Ineligible.NOTHING_GAINED
    assert not needs_base(OLD, 1, None, ANYTIME)


digests = st.integers(0, 40).map(lambda number: f"{number:064x}")
terms = st.builds(
    Terms,
    bases=st.lists(digests, min_size=1, max_size=MAX_BASES, unique=True).map(tuple),
    max_staleness=st.integers(0, MAX_BASES - 1),
    min_steps=st.integers(1, 20),
)


@given(st.none() | digests, st.integers(0, 25), st.none() | digests, terms)
def test_what_counts_is_never_taken_away_and_what_never_can_is_replaced(
    base: str | None, steps: int, merged: str | None, terms: Terms
) -> None:
    refusal = judge_work(base, steps, merged, terms)
    if refusal is None:
        assert not needs_base(base, steps, merged, terms)
        assert judge_base(base, merged, terms) is None
    elif refusal is not Ineligible.NOTHING_GAINED:
        assert needs_base(base, steps, merged, terms)
        more = judge_work(base, steps + 1000, merged, terms)
        assert more is refusal, "no number of steps mends a base"


@given(st.none() | digests, st.integers(0, 25), st.none() | digests, terms, digests)
def test_a_new_base_ages_work_by_one_and_makes_none_younger(
    base: str | None, steps: int, merged: str | None, terms: Terms, new: str
) -> None:
    if new in terms.bases:
        return
    later = terms.model_copy(update={"bases": (new, *terms.bases)[:MAX_BASES]})
    before, after = staleness(base, terms.bases), staleness(base, later.bases)
    if before is not None and before < MAX_BASES - 1:
        assert after == before + 1
    if base != new and judge_work(base, steps, merged, terms) is Ineligible.STALE:
        assert judge_work(base, steps, merged, later) in (Ineligible.STALE, Ineligible.UNKNOWN_BASE)


@given(st.none() | digests, st.integers(0, 25), st.none() | digests, terms)
def test_every_refusal_is_one_short_line(
    base: str | None, steps: int, merged: str | None, terms: Terms
) -> None:
    refusal = judge_work(base, steps, merged, terms)
    if refusal is not None:
        line = explain(refusal, base, steps, terms)
        assert "\n" not in line and 0 < len(line) <= 100 and "None" not in line


def test_terms_that_contradict_themselves_are_refused() -> None:
    for changes in ({"max_staleness": 1}, {"min_steps": 2}):
        with pytest.raises(ValidationError, match="takes the present base"):
            Terms.model_validate({"bases": BASES, "local_work": "window", **changes})
    with pytest.raises(ValidationError, match="bases"):
        Terms(bases=())
    with pytest.raises(ValidationError, match="bases"):
        Terms(bases=(NOW,) * (MAX_BASES + 1))
