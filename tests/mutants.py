"""Mutation tests: break each listed file in one place at a time, and see that its tests notice.

``python tests/mutants.py [FILE ...]`` runs mutmut on the targets of ``mutants.toml`` and fails
when a mutant survives that the list of equivalents does not name, or when the list names a change
that mutmut no longer makes. To mutmut's operators it adds the removal of a statement that is only
a call (a flush or a reset left out is the likeliest fault on a bus) and of a mask's highest bit.
It leaves out mutations of texts, and of what goes into the log: neither is held word for word.
Constants of a module and functions with a decorator of their own are beyond mutmut.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import hypothesis
import libcst as cst
from mutmut import __main__ as mutmut
from mutmut.configuration import config
from mutmut.mutation import mutators
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import (
    read_mutant_function,
    read_mutants_module,
    read_original_function,
)
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import orig_function_and_class_names_from_key

LIST = Path("tests/mutants.toml")
FOLDER = Path("mutants")  # mutmut's own choice
LOG = Path("mutants.log")
WORKERS = 2


class Change(NamedTuple):
    """What one mutant changes, as ``mutants.toml`` names it: by its text, not by a line number."""

    file: str
    function: str
    before: str
    after: str
    nth: int = 1  # which line of the function that reads ``before``

    def __str__(self) -> str:
        where = f"{self.file} {self.function}" + (f" (line {self.nth})" if self.nth > 1 else "")
        return f"{where}\n    - {self.before}\n    + {self.after}"


def removed_call(statement: cst.SimpleStatementLine) -> Iterator[cst.SimpleStatementLine]:
    """mutmut operator: a call that stands as a statement, or is only counted, becomes ``pass``."""
    match statement.body:
        case [cst.Expr(value=cst.Call()) | cst.AugAssign(value=cst.Call())]:
            yield statement.with_changes(body=[cst.Pass()])


def narrower_mask(number: cst.Integer) -> Iterator[cst.Integer]:
    """mutmut operator: a hexadecimal number loses one bit."""
    if number.value.lower().startswith("0x") and number.evaluated_value > 1:
        yield number.with_changes(value=hex(number.evaluated_value >> 1))


def run_mutmut(file: str, tests: list[str]) -> None:
    """Break ``file`` under ``tests``; the results lie below `FOLDER`. Wants its own process."""
    with LOG.open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    operators = mutators.mutation_operators
    operators[:] = [row for row in operators if row[1] is not mutators.operator_string]
    operators += [(cst.SimpleStatementLine, removed_call), (cst.Integer, narrower_mask)]
    # The same examples each time, no search for the smallest, no failure for being slow.
    hypothesis.settings.register_profile(
        "mutants",
        derandomize=True,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    )
    hypothesis.settings.load_profile("mutants")
    settings = config()
    settings.only_mutate = [file]
    settings.pytest_add_cli_args_test_selection = tests
    mutmut._run((), WORKERS)


def results(file: str) -> list[tuple[Change, bool]]:
    """Each mutant of ``file``, and whether a test noticed it."""
    data = SourceFileMutationData(path=file)
    data.load()
    module = read_mutants_module(file)
    return [
        (
            change_of(file, name, module),
            status_by_exit_code[exit_code] not in ("survived", "no tests", "not checked"),
        )
        for name, exit_code in data.exit_code_by_key.items()
    ]


def same_lines(one: list[str], other: list[str]) -> int:
    """How many lines both begin with."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def change_of(file: str, name: str, module: cst.Module) -> Change:
    """The change that mutmut knows as ``name``."""
    whole, broken = (
        [line.strip() for line in cst.Module([read(module, name)]).code.strip().splitlines()]
        for read in (read_original_function, read_mutant_function)
    )
    first = same_lines(whole, broken)
    rest = same_lines(whole[first:][::-1], broken[first:][::-1])
    before, after = (lines[first : len(lines) - rest] for lines in (whole, broken))
    function, of_class = orig_function_and_class_names_from_key(name)
    return Change(
        file,
        f"{of_class}.{function}" if of_class else function,
        " ".join(before),
        " ".join(after),
        whole[: first + 1].count(before[0]),
    )


def main(only: list[str]) -> int:
    """Run the targets, print the summary; the exit status."""
    listed = tomllib.loads(LIST.read_text())
    equivalent = {
        Change(**{key: value for key, value in row.items() if key != "reason"})
        for row in listed["equivalent"]
    }
    if unknown := set(only).difference(listed["targets"]):
        print(f"{', '.join(sorted(unknown))}: no target, {LIST} has {', '.join(listed['targets'])}")
        return 2
    targets = {file: tests for file, tests in listed["targets"].items() if not only or file in only}
    made: set[Change] = set()
    unexplained: list[Change] = []
    for file, tests in targets.items():
        shutil.rmtree(FOLDER, ignore_errors=True)
        began_s = time.monotonic()
        run = multiprocessing.Process(target=run_mutmut, args=(file, tests))
        run.start()
        run.join()
        if run.exitcode:
            print(f"mutmut failed on {file}, see {LOG}:\n{LOG.read_text()[-2000:]}")
            return 1
        tried = [each for each in results(file) if not each[0].before.startswith("log.")]
        made.update(change for change, _ in tried)
        survived = [change for change, noticed in tried if not noticed]
        left = [change for change in survived if change not in equivalent]
        unexplained += left
        print(
            f"{file}: {len(tried) - len(survived)} of {len(tried)} killed, "
            f"{len(survived) - len(left)} equivalent, {len(left)} survived "
            f"({time.monotonic() - began_s:.0f} s)",
            flush=True,
        )
    gone = sorted(change for change in equivalent - made if not only or change.file in targets)
    for title, changes in (("survived", unexplained), ("listed, but no mutant", gone)):
        for change in changes:
            print(f"{title}: {change}")
    return 1 if unexplained or gone else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
