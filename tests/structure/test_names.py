"""One name, one meaning: a reader who has met a class knows it when its name comes again."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("agent", "coordinator", "deploy", "host", "policy", "protocol", "robot_io")

# The same meaning on both sides, which may not import each other.
SAME_MEANING = {"ConfigError", "FederationError", "FlowerVersionError"}


def test_no_class_name_stands_for_two_things() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(str(path.relative_to(ROOT)))
    twice = {name: files for name, files in found.items() if len(files) > 1}
    assert {name: twice[name] for name in twice.keys() - SAME_MEANING} == {}
