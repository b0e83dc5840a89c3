from __future__ import annotations

import pytest

from policy.device import Accelerators, choose_bfloat16, choose_device, is_out_of_memory
from policy.errors import NoSuchDevice

NOTHING = Accelerators()
OLD_CUDA = Accelerators(cuda=True)
CUDA = Accelerators(cuda=True, cuda_bfloat16=True)
MAC = Accelerators(mps=True)


@pytest.mark.parametrize(
    ("present", "device"), [(NOTHING, "cpu"), (OLD_CUDA, "cuda"), (CUDA, "cuda"), (MAC, "mps")]
)
def test_auto_takes_the_fastest_and_a_name_what_it_names(
    present: Accelerators, device: str
) -> None:
    assert choose_device("auto", present) == device
    assert choose_device("cpu", present) == "cpu"
    assert choose_device(device, present) == device  # type: ignore[arg-type]


@pytest.mark.parametrize(("wanted", "present"), [("cuda", MAC), ("mps", CUDA), ("cuda", NOTHING)])
def test_a_device_that_is_not_there_is_never_replaced_in_silence(
    wanted: str, present: Accelerators
) -> None:
    with pytest.raises(NoSuchDevice, match=wanted):
        choose_device(wanted, present)  # type: ignore[arg-type]


def test_bfloat16_is_taken_where_it_is_in_hardware_or_asked_for() -> None:
    assert choose_bfloat16("auto", "cuda", CUDA)
    assert not choose_bfloat16("auto", "cuda", OLD_CUDA)
    assert not choose_bfloat16("auto", "cpu", CUDA)
    assert choose_bfloat16("bfloat16", "cpu", NOTHING)
    assert not choose_bfloat16("float32", "cuda", CUDA)


def test_only_a_lack_of_memory_counts_as_one() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


def test_what_is_present_is_what_torch_sees() -> None:
    assert choose_device("auto", Accelerators.present()) in ("cpu", "cuda", "mps")
