"""MuJoCo on the CPU."""

from typing import Optional, Tuple

import mujoco
import numpy as np
import torch
from mujoco import rollout
from torch import Tensor

from motion_lib import Character, MotionState

from . import MAX_SPEED, Sim
from .mujoco_model import MujocoModel


class MujocoSim(Sim):
    """MuJoCo on some CPU threads by mujoco.rollout: no Python in the loop over copies and physics steps."""

    def __init__(
        self, character: Character, num_envs: int, timestep: float, substeps: int, device: torch.device, threads: int
    ) -> None:
        """timestep of the physics [s]; make() has the others. Raises InputError if MuJoCo refuses the character."""
        self.device = device
        self.shared = MujocoModel(character, timestep, device)
        self.model = self.shared.compiled
        self.model.opt.solver = mujoco.mjtSolver.mjSOL_PGS  # as Newton's, in .8 to .9 of the time (docs/log.md)
        self.model.opt.tolerance = 1e-6
        self.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND
        threads = min(threads, num_envs)
        self.data = [mujoco.MjData(self.model) for _ in range(threads)]
        self.rollout = rollout.Rollout(nthread=threads if threads > 1 else 0)
        # a full physics state of MuJoCo is S = 1 + nq + nv numbers: time, qpos, qvel
        self.velocity = 1 + self.model.nq  # where qvel starts
        self.rest = np.concatenate(([0.0], self.model.qpos0, np.zeros(self.model.nv)))
        self.state = np.tile(self.rest, (num_envs, 1))  # (N, S)
        self.kept = {"state": torch.from_numpy(self.state)}  # the same memory; the solver starts each step cold
        self.trajectory = np.tile(self.rest, (num_envs, substeps, 1))  # (N, substeps, S) of the last control step
        self.control = np.zeros((num_envs, substeps, self.model.nu))  # (N, substeps, A)

    def read(self, n: Optional[int] = None) -> MotionState:
        """The state of the first n copies, or of all, out of MuJoCo's coordinates."""
        row = torch.from_numpy(self.state[:n]).float().to(self.device)
        return self.shared.read(row[:, 1 : self.velocity], row[:, self.velocity :])

    def set_state(self, chosen: Tensor, state: MotionState) -> None:
        rows = chosen.cpu().numpy().nonzero()[0]
        if len(rows):
            coordinates = self.shared.write(MotionState(*(x[rows] for x in state)))
            self.state[rows, 0] = 0.0
            self.state[rows, 1:] = torch.cat(coordinates, -1).cpu().numpy()

    def step(self, targets: Tensor) -> Tuple[MotionState, Tensor]:
        n = len(targets)
        self.control[:n] = targets.cpu().double().numpy()[:, None]
        clock = self.state[:n, 0] + self.trajectory.shape[1] * self.model.opt.timestep
        self.rollout.rollout(self.model, self.data, self.state[:n], self.control[:n], state=self.trajectory[:n])
        self.state[:n] = self.trajectory[:n, -1]
        # where MuJoCo has found a broken state, it has reset it: its clock shows that
        in_time = np.abs(self.state[:n, 0] - clock) < 1e-6
        diverged = ~(in_time & (np.abs(self.state[:n, self.velocity :]).max(1) < MAX_SPEED))
        self.state[:n][diverged] = self.rest
        return self.read(n), torch.from_numpy(diverged).to(self.device)
