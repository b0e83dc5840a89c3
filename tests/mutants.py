"""Mutation tests: break each listed file in one place at a time, and see that its tests notice.

``python tests/mutants.py [FILE ...]`` runs mutmut on the targets of ``mutants.toml`` and fails
when a mutant survives that the list of equivalents does not name, or names in vain. To mutmut's
operators it adds the removal of a statement that is only a call: a flush or a reset left out is
the likeliest fault on a bus. It leaves out mutations of texts, since messages are not held word
for word. Constants of a module and decorated functions are beyond mutmut.
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
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.format_utils import orig_function_and_class_names_from_key

LIST = Path("tests/mutants.toml")
FOLDER = Path("mutants")  # mutmut's own choice
LOG = Path("mutants.log")
WORKERS = 2


class Change(NamedTuple):
    """What one mutant changes, as ``mutants.toml`` names it: never by a number that moves."""

    file: str
    function: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file} {self.function}\n    - {self.before}\n    + {self.after}"


def removed_call(statement: cst.SimpleStatementLine) -> Iterator[cst.SimpleStatementLine]:
    """mutmut operator: a statement that is only a call becomes ``pass``."""
    match statement.body:
        case [cst.Expr(value=cst.Call())]:
            yield statement.with_changes(body=[cst.Pass()])


def run_mutmut(file: str, tests: list[str]) -> None:
    """Break ``file`` under ``tests``; the results lie below `FOLDER`. Wants its own process."""
    with LOG.open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    operators = mutators.mutation_operators
    operators[:] = [row for row in operators if row[1] is not mutators.operator_string]
    operators.append((cst.SimpleStatementLine, removed_call))
    # The same examples each time, and no search for the smallest one.
    hypothesis.settings.register_profile(
        "mutants",
        derandomize=True,
        database=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    )
    hypothesis.settings.load_profile("mutants")
    settings = config()
    settings.only_mutate = [file]
    settings.pytest_add_cli_args_test_selection = tests
    mutmut._run((), WORKERS)


def results(file: str) -> tuple[int, list[Change]]:
    """How many mutants of ``file`` mutmut tried, and those that no test noticed."""
    data = SourceFileMutationData(path=file)
    data.load()
    survived = []
    for name, exit_code in data.exit_code_by_key.items():
        if status_by_exit_code[exit_code] in ("survived", "no tests", "not checked"):
            lines = get_diff_for_mutant(name, path=file).splitlines()[2:]
            before, after = (
                " ".join(line[1:].strip() for line in lines if line.startswith(sign))
                for sign in "-+"
            )
            function, of_class = orig_function_and_class_names_from_key(name)
            where = f"{of_class}.{function}" if of_class else function
            survived.append(Change(file, where, before, after))
    return len(data.exit_code_by_key), survived


def main(only: list[str]) -> int:
    """Run the targets, print the summary; the exit status."""
    listed = tomllib.loads(LIST.read_text())
    equivalent = {
        Change(row["file"], row["function"], row["before"], row["after"])
        for row in listed.get("equivalent", [])
    }
    targets = {file: tests for file, tests in listed["targets"].items() if not only or file in only}
    unkilled: set[Change] = set()
    for file, tests in targets.items():
        shutil.rmtree(FOLDER, ignore_errors=True)
        began_s = time.monotonic()
        run = multiprocessing.Process(target=run_mutmut, args=(file, tests))
        run.start()
        run.join()
        if run.exitcode:
            print(f"mutmut failed on {file}, see {LOG}:\n{LOG.read_text()[-2000:]}")
            return 1
        total, survived = results(file)
        known = equivalent.intersection(survived)
        unkilled.update(survived)
        print(
            f"{file}: {total - len(survived)} of {total} killed, {len(known)} equivalent, "
            f"{len(survived) - len(known)} survived ({time.monotonic() - began_s:.0f} s)",
            flush=True,
        )
    for change in sorted(unkilled - equivalent):
        print(f"survived: {change}")
    vain = sorted(change for change in equivalent - unkilled if change.file in targets)
    for change in vain:
        print(f"listed as equivalent, but killed or gone: {change}")
    return 1 if unkilled - equivalent or vain else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
