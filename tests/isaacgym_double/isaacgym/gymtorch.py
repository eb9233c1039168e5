"""Between gymapi's tensor descriptors and PyTorch tensors, without copies. gymapi imports it when it has to."""

from typing import Any, Optional

from isaacgym.gymapi import GymViolation, Tensor

import torch
from torch.multiprocessing.reductions import StorageWeakRef


def wrap_tensor(gym_tensor: Tensor, offsets: Optional[Any] = None, counts: Optional[Any] = None) -> torch.Tensor:
    """The PyTorch tensor that lives in the simulator's own memory, given what an acquire_* function returned."""
    if offsets is not None or counts is not None:
        raise NotImplementedError("the double wraps whole tensors only")
    if not isinstance(gym_tensor, Tensor) or gym_tensor.buffer is None:
        raise GymViolation("wrap_tensor: takes the descriptor that an acquire_* function returned")
    return gym_tensor.buffer


def unwrap_tensor(torch_tensor: torch.Tensor) -> Tensor:
    """A descriptor of a tensor's memory. As in the real API it holds an address only: it keeps nothing alive."""
    if not isinstance(torch_tensor, torch.Tensor):
        raise GymViolation(f"unwrap_tensor: takes a torch.Tensor, not {type(torch_tensor).__name__}")
    if not torch_tensor.is_contiguous():
        raise GymViolation("unwrap_tensor: the tensor must be contiguous")
    described = Tensor()
    described.device = torch_tensor.device.index if torch_tensor.is_cuda else -1
    described.dtype, described.shape = torch_tensor.dtype, tuple(torch_tensor.shape)
    described.data_address = torch_tensor.data_ptr()
    described.torch_device = torch_tensor.device
    if torch_tensor.device.type != "meta":  # which has no memory; the setters refuse it as a wrong device
        described.storage = StorageWeakRef(torch_tensor.untyped_storage())
        described.offset = torch_tensor.storage_offset()
    return described


def zeros(shape: tuple, device: str) -> Tensor:
    """A descriptor with memory of its own, float32."""
    buffer = torch.zeros(shape, device=device)
    described = unwrap_tensor(buffer)
    described.buffer, described.own_data = buffer, True
    return described


def alive(described: Tensor) -> Optional[torch.Tensor]:
    """The tensor that a descriptor describes, or None if its memory has been freed."""
    storage = torch.UntypedStorage._new_with_weak_ptr(described.storage.cdata)
    if storage is None:
        return None
    empty = torch.empty(0, dtype=described.dtype, device=described.torch_device)
    return empty.set_(storage, described.offset, described.shape)
