"""`python -m agent …` is `armada …` for the agent's commands."""

import sys

from agent.cli import main

sys.exit(main())
