"""Where a policy is trained, how exactly, and how to tell that memory ran out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch

from policy.errors import NoSuchDevice

type DeviceName = Literal["auto", "cpu", "cuda", "mps"]
type Precision = Literal["auto", "float32", "bfloat16"]

# What torch and its libraries say on the CPU, where they raise RuntimeError for it.
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a memory",
)


@dataclass(frozen=True)
class Accelerators:
    """What this host has beside its CPU."""

    cuda: bool = False
    cuda_bfloat16: bool = False
    mps: bool = False

    @classmethod
    def present(cls) -> Self:
        """As torch sees them."""
        cuda = torch.cuda.is_available()
        return cls(
            cuda=cuda,
            cuda_bfloat16=cuda and torch.cuda.is_bf16_supported(including_emulation=False),
            mps=torch.backends.mps.is_available(),
        )


def choose_device(wanted: DeviceName, present: Accelerators) -> str:
    """torch's name of the device; ``auto`` takes the fastest. Raises NoSuchDevice."""
    if wanted == "auto":
        return "cuda" if present.cuda else "mps" if present.mps else "cpu"
    if wanted != "cpu" and not getattr(present, wanted):
        raise NoSuchDevice(
            f'training.device = "{wanted}": this host has none; "auto" takes another'
        )
    return wanted


def choose_bfloat16(wanted: Precision, device: str, present: Accelerators) -> bool:
    """Whether forward passes run in bfloat16; weights and optimiser always are float32.

    ``auto``: on CUDA that has it in hardware. Elsewhere it may well be slower, and is asked for by
    name.
    """
    if wanted == "auto":
        return device == "cuda" and present.cuda_bfloat16
    return wanted == "bfloat16"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch might not have raised this."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
