"""Makes written_episodes and synthetic_pick importable by the tests; LeRobot stays offline.

torch keeps to one thread: two on busy processors wait for each other a hundred times longer.
"""

import os
import sys
from pathlib import Path

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parents[1] / "policy"))
torch.set_num_threads(1)
