"""MuJoCo Warp: MuJoCo's physics on an NVIDIA GPU."""

import math
import sys
from typing import Tuple

import mujoco_warp
import torch
import warp
from torch import Tensor

from motion_lib import Character, InputError, MotionState

from . import MAX_SPEED, Sim
from .mujoco_model import MujocoModel


class WarpSim(Sim):
    """MujocoSim's model on the GPU: states are tensors there, a control step is one CUDA graph, no wait for the host.

    Warp's CPU device records and replays the same graph, several times slower than MujocoSim: it is there for tests."""

    def __init__(
        self, character: Character, num_envs: int, timestep: float, substeps: int, device: torch.device
    ) -> None:
        """timestep of the physics [s]; make() has the others. Raises InputError if MuJoCo or Warp refuses."""
        warp.config.log_level = warp.LOG_WARNING  # before Warp starts, which it does at its first call
        on_gpu = device.type == "cuda"
        if on_gpu and not warp.is_cuda_available():
            advice = "a driver of the R580 series or newer; without mujoco-warp the physics stays on the CPU"
            raise InputError(f"--sim warp: Warp finds no CUDA device; it needs {advice}")
        print(f"MuJoCo Warp on {device}; it compiles at its first start; on a CPU it is for tests", file=sys.stderr)
        self.shared = MujocoModel(character, timestep, device)
        # Warp's stream and PyTorch's default stream wait for one another: Warp makes streams of CUDA's blocking kind.
        with warp.ScopedDevice(str(torch.empty(0, device=device).device)):  # with its number
            self.model = mujoco_warp.put_model(self.shared.compiled)
            self.model.opt.warn_overflow = 0
            self.model.opt.disableflags |= mujoco_warp.DisableBit.NATIVECCD  # a box on a box as in C
            # candidate contacts, in one store for all, and constraint rows of each; thrown about it has up to 20 and 57
            self.data = mujoco_warp.make_data(self.shared.compiled, nworld=num_envs, nconmax=32, njmax=128)
            # views (N, ...) of all that a step depends on; qacc_warmstart: what the solver starts from, ctrl: targets
            names = ("qpos", "qvel", "qacc_warmstart", "time", "ctrl")
            self.kept = {name: warp.to_torch(getattr(self.data, name)).view(num_envs, -1) for name in names}
            self.rest = {name: x[:1].clone() for name, x in self.kept.items()}
            mujoco_warp.step(self.model, self.data)  # compiles
            with warp.ScopedCapture() as capture:
                for _ in range(substeps):
                    mujoco_warp.step(self.model, self.data)
        self.graph = capture.graph
        self.overflow = warp.to_torch(self.data.overflow)  # (N,)
        kind = mujoco_warp.OverflowType
        self.lost = int(kind.ALL & ~kind.ITERATIONS & ~kind.LS_ITERATIONS)  # contacts or constraints were left out
        for name, mine in self.kept.items():
            mine.copy_(self.rest[name])

    def set_state(self, chosen: Tensor, state: MotionState) -> None:
        qpos, qvel = self.shared.write(state)
        new = {**self.rest, "qpos": qpos, "qvel": qvel}
        for name, mine in self.kept.items():
            mine[: len(chosen)] = torch.where(chosen[:, None], new[name], mine[: len(chosen)])

    def step(self, targets: Tensor) -> Tuple[MotionState, Tensor]:
        n = len(targets)
        qpos = self.kept["qpos"]
        qvel = self.kept["qvel"]
        self.kept["ctrl"][:n] = targets
        self.overflow.zero_()
        warp.capture_launch(self.graph)
        # a maximum of NaN is NaN, which is not below anything
        sound = (qpos.abs().amax(-1) < math.inf) & (qvel.abs().amax(-1) < MAX_SPEED)  # (N,)
        sound &= (self.overflow & self.lost) == 0
        for name, mine in self.kept.items():
            mine.copy_(torch.where(sound[:, None], mine, self.rest[name]))
        return self.shared.read(qpos[:n].clone(), qvel[:n].clone()), ~sound[:n]
