"""Runs the agent as `armada agent run` does, with chosen rows of its process table.

    python agent_host.py CONFIG ROW[,ROW…] [MODULE_OF_THE_TRAINER]

A system test needs the daemon without the rooms that it does not test.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from agent.config import load_config
from agent.supervisor.daemon import run_agent
from agent.supervisor.process_table import process_table
from host.logs import set_up_logging


def main() -> None:
    """Run until SIGTERM."""
    config_path, names, *trainer = sys.argv[1:]
    set_up_logging()
    config = load_config(Path(config_path))
    rows = [row for row in process_table(config) if row.name in names.split(",")]
    if trainer:
        rows = [
            dataclasses.replace(row, module=trainer[0]) if row.name == "trainer" else row
            for row in rows
        ]
    run_agent(config, Path(config_path), tuple(rows))


if __name__ == "__main__":
    main()
