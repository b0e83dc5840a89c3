"""torch keeps to one thread: two on busy processors wait for each other a hundred times longer."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
