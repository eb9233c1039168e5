"""Several processes that train together under torchrun: who they are, their means. Without it there is one.

A script uses processes, average and moments; with one process a mean is that process's own.
"""

import datetime
import glob
import io
import os
from typing import Any, List, NamedTuple, Optional, Tuple

import torch
import torch.distributed as dist
from torch import Tensor

from files import InputError, plain, reading


class Processes(NamedTuple):
    """Where this process stands."""

    rank: int
    world: int  # how many train together, on all machines
    device: torch.device
    cores: int  # this process's share of its machine's


def in_group() -> bool:
    """Whether torchrun has started this process."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if in_group() else 1


def local_world() -> int:
    """How many of them are on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if in_group() else 1


def processes(cuda: bool = False) -> Processes:
    """This process among all; without torchrun rank 0 of 1."""
    device = torch.device("cuda" if cuda else "cpu")
    if cuda and in_group():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Processes(dist.get_rank() if in_group() else 0, world_size(), device, max(cores // local_world(), 1))


def join_processes() -> Optional[str]:
    """Join the other processes of torchrun, if it is the launcher -> the run to go on with after a restart, or None."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return None
    env = os.environ
    with reading("the environment", "that of a process of torchrun (for a plain run unset TORCHELASTIC_RUN_ID)"):
        rank, world, local, here = [int(env[x]) for x in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
        if not (0 <= rank < world and 0 <= local < here <= world):
            raise ValueError(f"RANK {rank} of {world}, LOCAL_RANK {local} of {here}")
        agent = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # its store holds what an attempt before wrote, too
        if agent and int(env["GROUP_WORLD_SIZE"]) > 1 and int(env["TORCHELASTIC_MAX_RESTARTS"]) > 0:  # counts differ
            raise InputError("machines restart only with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 and --rdzv-backend=c10d")
        store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), world, rank == 0 and not agent)  # for 300 s
        store = dist.PrefixStore(env["TORCHELASTIC_RESTART_COUNT"] if agent else "all", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        patience = datetime.timedelta(hours=1)  # process 0 evaluates while the others wait
        dist.init_process_group(backend, timeout=patience, store=store, rank=rank, world_size=world)
    launch = plain(env["TORCHELASTIC_RUN_ID"]).replace(os.sep, "_")  # as in the folder's name
    if launch == "none" and env.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        raise InputError("torchrun restarts only runs with a name: --standalone or --rdzv-id; or go on with --resume")
    found = sorted(glob.glob(os.path.join("runs", f"*__{glob.escape(launch)}", "latest.pt")))
    folders = [""] * world
    dist.all_gather_object(folders, os.path.dirname(found[0]) if found and launch != "none" else "")
    if len(set(folders)) > 1:  # they go on together, or not at all
        raise InputError(f"{max(folders)}: not there on all machines; they have to share the folder of the run")
    return folders[0] or None


def average(*tensors: Tensor) -> None:
    """Replace tensors, which all processes have, by their mean over the processes, in one message."""
    if world_size() > 1:
        message = torch.cat([x.flatten() for x in tensors])
        dist.all_reduce(message)
        for x, mean in zip(tensors, (message / world_size()).split([x.numel() for x in tensors])):
            x.copy_(mean.view_as(x))


def share(*tensors: Tensor) -> None:
    """Give tensors of all processes the values that they have in process 0."""
    for x in tensors if in_group() else ():
        dist.broadcast(x, 0)


def moments(x: Tensor) -> Tuple[Tensor, Tensor, int]:
    """Mean, variance and number of the rows (n, ...) of all processes, n the same in each. (...), (...), int."""
    mean = x.mean(0)
    average(mean)
    var = ((x - mean) ** 2).mean(0)  # torch.var_mean takes twice as long on a CPU
    average(var)
    return mean, var, len(x) * world_size()


def gather(part: Any) -> List[Any]:
    """The part of each process, by rank, on the CPU of process 0; nothing elsewhere. Every process has to call it."""
    if world_size() == 1:
        return [part]
    buffer = io.BytesIO()
    torch.save(part, buffer)
    parts = [b""] * world_size() if dist.get_rank() == 0 else None
    dist.gather_object(buffer.getvalue(), parts)
    return [torch.load(io.BytesIO(x), map_location="cpu", weights_only=True) for x in parts or ()]
