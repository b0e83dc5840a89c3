"""LeRobot stays offline; torch keeps to one thread, see tests/policy."""

from __future__ import annotations

import os

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)
