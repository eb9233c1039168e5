"""Simulators of the character behind one interface: MuJoCo, MuJoCo Warp and NVIDIA Isaac Gym Preview 4.

A script picks one with choose(), builds it with make(), and knows only Sim from then on. Import this package before
torch: Isaac Gym raises ImportError otherwise. Frames, units and quaternions (xyzw) are those of motion_lib; what a
simulator has otherwise is converted inside its class. N copies of the character, n in a call, J bodies, A = D dofs.
"""

import sys
import xml.etree.ElementTree as ET
from abc import ABC, abstractmethod
from importlib.util import find_spec
from typing import Dict, Tuple

import guards  # noqa: F401  (before anything that takes long)

try:  # before torch, which motion_lib imports: Isaac Gym insists on it
    from isaacgym import gymapi, gymtorch  # noqa: F401  (isaacgym_sim.py uses them)

    isaacgym_fault = ""
except Exception as error:  # it compiles and loads libraries
    isaacgym_fault = f"{type(error).__name__}: {error}"

import torch
from torch import Tensor

from motion_lib import Character, InputError, MotionState

MAX_SPEED = 200.0  # any velocity [m/s, rad/s] beyond it is a broken simulation, not motion


class Sim(ABC):
    """N copies of the character on flat ground that do not touch one another; tensors on the device given to make()."""

    kept: Dict[str, Tensor]  # all that the next step depends on, by name: the simulator's own tensors

    @abstractmethod
    def set_state(self, chosen: Tensor, state: MotionState) -> None:
        """Put those of the first n copies that are chosen (n,) bool into their rows of a state of batch (n,)."""

    @abstractmethod
    def step(self, targets: Tensor) -> Tuple[MotionState, Tensor]:
        """Advance the first n copies by one control step, all along under PD targets (n, A) [rad, exponential map].

        -> state of batch (n,), diverged (n,) bool: physics broke down, and the state is the character's rest pose."""

    def state_dict(self) -> Dict[str, Tensor]:
        """Copies of all that the next step depends on, by name, for load_state_dict."""
        return {name: x.clone() for name, x in self.kept.items()}

    def load_state_dict(self, state: Dict[str, Tensor]) -> None:
        """Go back to a state_dict() of this simulator; checkpoints.py looks whether one from elsewhere fits."""
        for name, mine in self.kept.items():
            mine.copy_(state[name])


def finite(state: MotionState, diverged: Tensor) -> Tuple[MotionState, Tensor]:
    """What a step returns, held within 1e6 and without NaN; who had these, or is in the sky, has diverged, too."""
    size = torch.cat([x.flatten(1) for x in state], -1).abs().amax(-1)  # (n,)
    diverged = diverged | ~(size < 1e6) | (state.root_position[:, 2] > 100.0)
    return MotionState(*[x.nan_to_num(0.0, 0.0, 0.0).clamp_(-1e6, 1e6) for x in state]), diverged


def choose(name: str, cuda: bool) -> str:
    """The simulator that an option stands for, "mujoco", "warp" or "isaacgym": "auto" is resolved by what is installed.

    Says on stderr what a user may not expect. Raises InputError if the simulator asked for is not installed."""
    if name == "auto" and not isaacgym_fault:
        name = "isaacgym"
    elif name == "auto":
        if not isaacgym_fault.endswith("No module named 'isaacgym'"):
            print(f"Isaac Gym is there but cannot be imported ({isaacgym_fault}): trying MuJoCo", file=sys.stderr)
        name = "warp" if cuda and find_spec("mujoco_warp") else "mujoco"
    if name == "isaacgym" and isaacgym_fault:
        advice = "get Isaac Gym Preview 4 (developer.nvidia.com/isaac-gym, Python 3.8), or use --sim mujoco"
        raise InputError(f"--sim isaacgym: it cannot be imported ({isaacgym_fault}); {advice}")
    if name == "mujoco" and not find_spec("mujoco"):
        raise InputError("--sim mujoco: pip install mujoco (it needs Python 3.10 or newer)")
    if name == "warp" and not find_spec("mujoco_warp"):
        raise InputError("--sim warp: pip install -r requirements-warp.txt (Python 3.11 or newer)")
    if name == "mujoco" and cuda:
        advice = "--sim warp" if find_spec("mujoco_warp") else "pip install -r requirements-warp.txt (Python 3.11)"
        print(f"physics stays on the CPU; to have it on the GPU: {advice}", file=sys.stderr)
    return name


def make(
    name: str, character: Character, num_envs: int, control_hz: float, substeps: int, device: torch.device, threads: int
) -> Sim:
    """The simulator of a name that choose() returns, with num_envs copies of the character in its rest pose.

    control_hz: control steps a second [Hz]; substeps: physics steps in each; device: of its tensors, and but for MuJoCo
    of its physics; threads: how many MuJoCo may use. Raises InputError for a character that cannot be simulated."""
    _check_numbers(character)
    timestep = 1.0 / (control_hz * substeps)
    if name == "mujoco":
        from simulators.mujoco_sim import MujocoSim

        return MujocoSim(character, num_envs, timestep, substeps, device, threads)
    if name == "warp":
        from simulators.warp_sim import WarpSim

        return WarpSim(character, num_envs, timestep, substeps, device)
    if name == "isaacgym":
        from simulators.isaacgym_sim import IsaacGymSim

        return IsaacGymSim(character, num_envs, timestep, substeps, device, device.type == "cuda")
    raise ValueError(f"no simulator has the name {name}")


def _check_numbers(character: Character) -> None:
    """Refuse numbers with which the physics would break down, or mean something else, in silence. Raises InputError."""
    for element in ET.parse(character.path).iter():
        for key, text in element.attrib.items():
            low = 0.0 if key in ("armature", "damping", "gear", "stiffness") else -1e9
            for word in text.split():
                try:
                    number = float(word)
                except ValueError:  # a name
                    continue
                if not low <= number < 1e9:  # NaN too, which is "not given" to MuJoCo
                    place = f"{character.path}: {element.tag} {element.get('name', '')} {key}={word}"
                    raise InputError(f"{place}: expected a number between {low:g} and 1e9")
