"""Adversarial Motion Priors with PPO, in one file: a simulated humanoid learns to move like a recorded clip, at a chosen speed.

Paper: Peng, Ma, Abbeel, Levine, Kanazawa, "AMP: Adversarial Motion Priors for Stylized Physics-Based Character Control",
ACM Trans. Graph. 40(4), 2021 (arXiv 2104.02180).

    python amp_ppo_isaacgym.py                                          # walk; about 20 minutes on two CPU cores
    python amp_ppo_isaacgym.py --motion-file motions/run.npz --style-weight 0.5
    python amp_ppo_isaacgym.py --evaluate --checkpoint pretrained/walk.pt

The idea: a discriminator D learns to tell the clip's transitions (s, s') from the character's; the better the character fools it, the
larger its style reward; PPO maximises that plus a task reward.

    L_disc  = -E_clip[log D(s, s')] - E_agent[log(1 - D(s, s'))]
    r_style = -log(1 - D(s, s'))
    r_total = r_task + style_weight * r_style

What differs from the paper: cross entropy instead of least squares (--disc-loss lsgan is the paper's), PD targets around the clip's mean
pose, a critic with normalised returns and its own learning rate, a policy learning rate steered by the KL divergence.

Dimension key: T steps, N envs, B = T N, M minibatch, D observation, A actions, J bodies, K key bodies.
Conventions (frames, units, quaternions): motion_lib.py. Read from top to bottom; part 3, the simulator, can be skipped.
"""

import dataclasses
import json
import math
import os
import platform
import shutil
import sys
import time
from abc import ABC, abstractmethod
from typing import Any, Dict, List, Literal, NamedTuple, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from tqdm import tqdm

import motion_lib as ml
from motion_lib import Character, MotionLib, MotionState

# ---------------------------------------------------------------------------------------------------------------------------------
# 1. Options
# ---------------------------------------------------------------------------------------------------------------------------------


class UsageError(ValueError):
    """Options, or a checkpoint, that cannot be used; the message is one line that says what is wrong and what to do."""


@dataclasses.dataclass
class Args:
    exp_name: str = "amp"
    """first part of the run's name; the run is written to runs/<exp_name>__<clip>__<seed>__<time>"""
    seed: int = 1
    """seed of everything random; the same seed on the same CPU gives the same numbers, bit for bit"""
    cuda: bool = torch.cuda.is_available()
    """learn on the GPU; by default when PyTorch finds one"""
    sim: Literal["auto", "mujoco", "isaacgym"] = "auto"
    """the simulator; auto takes MuJoCo (Isaac Gym is not implemented yet)"""
    track: bool = False
    """log to Weights & Biases as well (pip install wandb)"""
    wandb_project_name: str = "amp-ppo"
    """Weights & Biases project"""
    wandb_entity: Optional[str] = None
    """Weights & Biases team"""

    motion_file: str = "motions/walk.npz"
    """clip to imitate (.npz), folder of clips, or dataset file (.json); formats in motions/README.md"""
    character_file: str = "motions/humanoid.xml"
    """the character (MJCF)"""
    task: Literal["speed", "none"] = "speed"
    """speed: r_task = exp(-2 (v - target_speed)^2); none: r_task = 0, pure imitation as in the paper's table 3"""
    target_speed: Optional[float] = None
    """forward speed for --task speed [m/s]; default: the clip's mean speed"""
    style_weight: float = 2.0
    """style_weight in r_total = r_task + style_weight * r_style; public AMP code uses 2"""

    total_timesteps: int = 6_000_000
    """control steps of training, summed over environments"""
    num_envs: Optional[int] = None
    """parallel environments N; default 512 on the CPU, 4096 on CUDA"""
    num_steps: Optional[int] = None
    """control steps T per environment and iteration; default 32 on the CPU, 16 on CUDA"""
    episode_steps: int = 300
    """control steps until a time-out (300 = 10 s, IsaacGymEnvs)"""
    control_hz: int = 30
    """control steps per second [Hz] (DeepMimic)"""
    substeps: int = 4
    """physics steps per control step"""
    reset_mode: Literal["random", "start", "hybrid"] = "random"
    """where in the clip an episode starts: anywhere (reference state initialisation), at its start, or either, evenly"""

    gamma: float = 0.97
    """discount factor per control step"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation"""
    update_epochs: int = 4
    """passes over the batch per iteration"""
    num_minibatches: Optional[int] = None
    """minibatches per pass; default 8 on the CPU, 4 on CUDA"""
    learning_rate: float = 3e-4
    """Adam's learning rate for the policy at the start; it then follows the KL divergence"""
    kl_low: float = 0.012
    """KL divergence of an iteration's update below which the policy's learning rate grows by a factor of 1.2"""
    kl_high: float = 0.024
    """KL divergence above which it shrinks by a factor of 1.2"""
    critic_learning_rate: float = 5e-4
    """Adam's learning rate for the critic"""
    clip_coef: float = 0.2
    """PPO's clipping range of the probability ratio"""
    bound_coef: float = 10.0
    """weight of the penalty on mean actions outside [-1, 1] (IsaacGymEnvs)"""
    max_grad_norm: float = 1.0
    """gradients are scaled down to this norm, for each network"""
    action_std_log: float = -2.5
    """natural logarithm of the fixed standard deviation of the action noise (e^-2 topples the character)"""
    action_scale: float = 1.2
    """PD target = the clip's mean pose + action_scale * action [rad]"""
    hidden: Optional[Tuple[int, int]] = None
    """widths of the hidden layers of all three networks; default 512 256 on the CPU, 1024 512 on CUDA"""

    disc_loss: Literal["bce", "lsgan"] = "bce"
    """bce: cross entropy; lsgan: least squares, the paper's equation 6 with the style reward of its equation 7"""
    disc_learning_rate: float = 2e-4
    """Adam's learning rate for the discriminator"""
    disc_updates: int = 8
    """discriminator updates per iteration"""
    disc_batch: int = 2048
    """clip transitions per discriminator update, and as many of the character's, half of them replayed"""
    grad_penalty: float = 5.0
    """weight of the gradient penalty on clip transitions (IsaacGymEnvs; the paper's code uses 10 / 2)"""
    logit_reg: float = 0.05
    """weight of the squared weights of the discriminator's last layer (IsaacGymEnvs)"""
    disc_weight_decay: float = 1e-4
    """weight of the squared weights of all the discriminator's layers (IsaacGymEnvs)"""
    replay_size: int = 200_000
    """transitions in the replay buffer"""
    replay_keep: int = 2048
    """transitions of an iteration, drawn at random, that replace random old ones once the buffer is full"""

    eval_interval: int = 20
    """evaluate every so many iterations, and at the end (0: only at the end)"""
    eval_episodes: int = 32
    """episodes of an evaluation"""
    eval_seconds: float = 20.0
    """longest evaluation episode [s] (the paper's 20)"""
    evaluate: bool = False
    """no training: evaluate --checkpoint, print one JSON object and write the roll-outs as clips beside it"""
    checkpoint: Optional[str] = None
    """checkpoint to evaluate"""


def check_args(args: Args) -> None:
    """Fill in the defaults that depend on the device and refuse what cannot work. Raises UsageError."""
    if args.cuda and not torch.cuda.is_available():
        raise UsageError("--cuda: PyTorch finds no CUDA device here; leave the option out to train on the CPU")
    if args.sim == "isaacgym":
        raise UsageError("--sim isaacgym: the Isaac Gym simulator is not implemented yet; use --sim mujoco")
    for name, on_cpu, on_cuda in (("num_envs", 512, 4096), ("num_steps", 32, 16), ("num_minibatches", 8, 4), ("hidden", (512, 256), (1024, 512))):
        if getattr(args, name) is None:
            setattr(args, name, on_cuda if args.cuda else on_cpu)
    args.sim = "mujoco"
    option = lambda name: "--" + name.replace("_", "-")  # noqa: E731
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{option(field.name)} is {value}; it has to be a finite number")
        zero_is_fine = field.name in ("seed", "style_weight", "bound_coef", "grad_penalty", "logit_reg", "disc_weight_decay", "eval_interval", "gamma")
        if isinstance(value, (int, float)) and field.name not in ("action_std_log", "target_speed", "gae_lambda"):
            if value < 0 or (value == 0 and not zero_is_fine and not isinstance(value, bool)):
                raise UsageError(f"{option(field.name)} is {value}; it has to be {'at least' if zero_is_fine else 'above'} 0")
    if min(args.hidden) < 1:
        raise UsageError(f"--hidden is {args.hidden}; both widths have to be at least 1")
    if not (args.gamma < 1 and 0 <= args.gae_lambda <= 1):
        raise UsageError(f"--gamma {args.gamma} has to lie in [0, 1) and --gae-lambda {args.gae_lambda} in [0, 1]")
    if args.kl_low >= args.kl_high:
        raise UsageError(f"--kl-low {args.kl_low} has to lie below --kl-high {args.kl_high}")
    batch = args.num_envs * args.num_steps
    if batch % args.num_minibatches:
        raise UsageError(f"--num-minibatches {args.num_minibatches} does not divide the batch of num_envs * num_steps = {batch}")
    if args.disc_batch % 2:
        raise UsageError(f"--disc-batch {args.disc_batch} has to be even: half of the character's transitions are replayed")
    if args.replay_keep > min(batch, args.replay_size):
        raise UsageError(f"--replay-keep {args.replay_keep} is larger than the batch ({batch}) or --replay-size {args.replay_size}")
    if args.total_timesteps < batch and not args.evaluate:
        raise UsageError(f"--total-timesteps {args.total_timesteps} is less than one batch of num_envs * num_steps = {batch}")
    if args.task == "none" and args.target_speed is not None:
        raise UsageError("--target-speed needs --task speed")
    if args.evaluate != (args.checkpoint is not None):
        raise UsageError("--evaluate and --checkpoint FILE go together")
    if args.track:
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise UsageError("--track needs Weights & Biases: pip install wandb") from None


# ---------------------------------------------------------------------------------------------------------------------------------
# 2. Observation and rewards
# ---------------------------------------------------------------------------------------------------------------------------------

KEY_BODIES = ("right_hand", "left_hand", "right_foot", "left_foot")
FEET = ("right_foot", "left_foot")


def tangent_normal(q: Tensor) -> Tensor:
    """Six continuous numbers for a rotation: its rotated X and Z axes. (..., 4) -> (..., 6)."""
    x, y, z, w = q.unbind(-1)
    tangent = (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y))
    normal = (2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y))
    return torch.stack(tangent + normal, -1)


def observe(state: MotionState, body_position: Tensor, character: Character) -> Tensor:
    """What policy and discriminator see of one instant; all in the heading frame of the root (AMP paper, section 5.2; IsaacGymEnvs).

    state: batch (...); body_position (..., J, 3) world [m] -> (..., D): root height [m] 1, root rotation 6, root linear 3 [m/s] and
    angular 3 [rad/s] velocity, ball joints 6 each, hinges 1 each [rad], dof velocities [rad/s], key bodies relative to the root 3 each [m]."""
    dofs = [character.dof_body.count(j) for j in range(len(character.parents))]
    balls = [j for j, n in enumerate(dofs) if n == 3]
    hinges = [d for d, body in enumerate(character.dof_body) if dofs[body] == 1]
    hinge_bodies = [character.dof_body[d] for d in hinges]
    keys = [character.body_names.index(name) for name in KEY_BODIES]

    root = state.rotations[..., 0, :]
    to_heading = ml.quat_from_yaw(-ml.heading(root))  # (..., 4)
    key_position = body_position[..., keys, :] - body_position[..., :1, :]  # (..., K, 3)
    vectors = torch.cat((state.root_velocity[..., None, :], state.root_angular_velocity[..., None, :], key_position), -2)
    vectors = ml.quat_rotate(to_heading[..., None, :].expand(vectors.shape[:-1] + (4,)), vectors).flatten(-2)  # (..., 6 + 3 K)
    hinge = state.rotations[..., hinge_bodies, :]
    angle = 2.0 * torch.atan2((hinge[..., :3] * character.dof_axis[hinges]).sum(-1), hinge[..., 3])
    angle = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    return torch.cat(
        (
            state.root_position[..., 2:],
            tangent_normal(ml.quat_multiply(to_heading, root)),
            vectors[..., :6],
            tangent_normal(state.rotations[..., balls, :]).flatten(-2),
            angle,
            state.dof_velocity,
            vectors[..., 6:],
        ),
        -1,
    )


def demo_transitions(motions: MotionLib, n: int, dt: float, generator: torch.Generator) -> Tensor:
    """Sample n transitions of the clips, one control step dt [s] apart: disc_obs_demo (n, 2 D)."""
    clip, start = motions.sample(n, dt, generator)
    state = motions.state(clip.repeat(2), torch.cat((start, start + dt)))
    body_position, _ = ml.forward_kinematics(motions.character, state.root_position, state.rotations)
    return torch.cat(observe(state, body_position, motions.character).chunk(2), -1)


def forward_speed(state: MotionState) -> Tensor:
    """Root velocity along its heading: (...) [m/s]."""
    yaw = ml.heading(state.rotations[..., 0, :])
    return state.root_velocity[..., 0] * torch.cos(yaw) + state.root_velocity[..., 1] * torch.sin(yaw)


def task_reward(state: MotionState, target_speed: Optional[float]) -> Tensor:
    """Reward for the forward speed; target_speed None is the task "none". (...)."""
    speed = forward_speed(state)
    # r_task = exp(-2 (v - v*)^2)
    return torch.zeros_like(speed) if target_speed is None else torch.exp(-2.0 * (speed - target_speed) ** 2)


def style_reward(logits: Tensor, disc_loss: str) -> Tensor:
    """Style reward of transitions with discriminator outputs `logits` (...) -> (...)."""
    if disc_loss == "lsgan":
        # r_style = max(0, 1 - (D - 1)^2 / 4)   (AMP paper, equation 7)
        return (1.0 - 0.25 * (logits - 1.0) ** 2).clamp_min(0.0)
    # r_style = -log(1 - D) with D = sigmoid(logit), which is softplus(logit)
    return F.softplus(logits)


# ---------------------------------------------------------------------------------------------------------------------------------
# 3. The simulator (a first reader can skip this part: it turns PD targets into the next MotionState)
# ---------------------------------------------------------------------------------------------------------------------------------


class Sim(ABC):
    """N copies of the character on flat ground. States go in and out in the conventions of motion_lib, on `device`."""

    @abstractmethod
    def set_state(self, env_ids: Tensor, state: MotionState) -> None:
        """Put environments (n,) long into states of batch (n,)."""

    @abstractmethod
    def step(self, targets: Tensor) -> Tuple[MotionState, Tensor]:
        """Advance by one control step under PD targets (N, A) [rad, exponential map] that hold for the whole step.

        -> state of batch (N,), diverged (N,) bool: physics broke down, and the state is the one from before the step."""


class MujocoSim(Sim):
    """MuJoCo on all CPU cores through mujoco.rollout: no Python in the loop over environments and physics steps."""

    MAX_SPEED = 200.0  # any velocity [m/s, rad/s] beyond it is a broken simulation, not motion

    def __init__(self, character: Character, num_envs: int, control_hz: int, substeps: int, device: torch.device) -> None:
        import mujoco
        from mujoco import rollout

        self.character, self.device = character, device
        self.model = self._build_model(mujoco, character, 1.0 / (control_hz * substeps))
        self.threads = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, num_envs)
        self.data = [mujoco.MjData(self.model) for _ in range(self.threads)]
        self.rollout = rollout.Rollout(nthread=self.threads if self.threads > 1 else 0)
        size = mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        self.state = np.zeros((num_envs, size))  # full physics state: time, qpos, qvel
        self.trajectory = np.zeros((num_envs, substeps, size))
        self.control = np.zeros((num_envs, substeps, self.model.nu))
        # Where the parts of a MotionState stand in a row: qpos follows the time, qvel follows qpos; quaternions are wxyz there.
        quat = np.array([1, 2, 3, 0])
        start = {j: self.model.jnt_qposadr[self.model.body_jntadr[j + 1]] + 1 for j in [0] + character.dof_body}
        self.velocity = 1 + self.model.nq
        self.balls = [j for j in start if character.dof_body.count(j) == 3]
        self.hinges = [d for d, j in enumerate(character.dof_body) if character.dof_body.count(j) == 1]
        self.hinge_bodies = [character.dof_body[d] for d in self.hinges]
        self.quat_index = torch.as_tensor(np.stack([start[0] + 3 + quat] + [start[j] + quat for j in self.balls]))
        self.hinge_index = [int(start[j]) for j in self.hinge_bodies]
        self.hinge_axis = character.dof_axis[self.hinges].cpu()
        self.kp, self.kd, self.effort = character.kp.cpu(), character.kd.cpu(), character.effort.cpu()

    @staticmethod
    def _build_model(mujoco: Any, character: Character, timestep: float) -> Any:
        """The character with a ball joint for each hinge triple, PD position actuators, and a floor."""
        spec = mujoco.MjSpec.from_file(character.path)
        for actuator in list(spec.actuators):
            spec.delete(actuator)
        for j, name in enumerate(character.body_names):
            dofs = [d for d, body in enumerate(character.dof_body) if body == j]
            joints = [spec.joint(character.dof_names[d]) for d in dofs]
            if len(dofs) == 3:
                armature = joints[0].armature
                for joint in joints:
                    spec.delete(joint)
                spec.body(name).add_joint(name=name, type=mujoco.mjtJoint.mjJNT_BALL, armature=armature)
            elif dofs:  # the gains move from the joint, where MuJoCo reads a passive spring, to the actuator
                joints[0].stiffness, joints[0].damping = 0.0 * joints[0].stiffness, 0.0 * joints[0].damping
            for d in dofs:
                # On a ball joint the gear picks a component of the exponential map. No force range: a clamped actuator loses its
                # implicit damping and light feet chatter at 100 rad/s; step() limits the torque through the target instead.
                target = name if len(dofs) == 3 else character.dof_names[d]
                actuator = spec.add_actuator(name=character.dof_names[d], target=target, trntype=mujoco.mjtTrn.mjTRN_JOINT)
                axis = character.dof_axis[d].tolist() if len(dofs) == 3 else [1, 0, 0]
                actuator.gear = axis + [0, 0, 0]
                actuator.set_to_position(kp=float(character.kp[d]), kv=float(character.kd[d]))
        spec.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 1], friction=[1.0, 0.05, 0.05])
        spec.option.timestep = timestep
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        return spec.compile()

    def _read(self) -> MotionState:
        row = torch.from_numpy(self.state).float()
        rotations = torch.zeros(len(row), len(self.character.parents), 4)
        rotations[..., 3] = 1.0
        rotations[:, [0] + self.balls] = row[:, self.quat_index]
        half = 0.5 * row[:, self.hinge_index, None]
        rotations[:, self.hinge_bodies] = torch.cat((self.hinge_axis * torch.sin(half), torch.cos(half)), -1)
        v = self.velocity
        # MuJoCo's free joint has its linear velocity in the world and its angular velocity in the root's own frame
        angular = ml.quat_rotate(rotations[:, 0], row[:, v + 3 : v + 6])
        state = MotionState(row[:, 1:4], rotations, row[:, v : v + 3], angular, row[:, v + 6 :])
        return MotionState(*(x.to(self.device) for x in state))

    def set_state(self, env_ids: Tensor, state: MotionState) -> None:
        ids = env_ids.cpu().numpy()
        root, rotations, linear, angular, dof = (x.cpu() for x in state)
        row = torch.zeros(len(ids), self.state.shape[1], dtype=torch.float64)
        row[:, 1:4] = root.double()
        row[:, self.quat_index] = rotations[:, [0] + self.balls].double()
        hinge = (ml.rotvec_from_quat(rotations[:, self.hinge_bodies]) * self.hinge_axis).sum(-1)
        row[:, self.hinge_index] = hinge.double()
        local = ml.quat_rotate(ml.quat_conjugate(rotations[:, 0]), angular)
        row[:, self.velocity :] = torch.cat((linear, local, dof), -1).double()
        self.state[ids] = row.numpy()

    def step(self, targets: Tensor) -> Tuple[MotionState, Tensor]:
        state = self._read()
        position = ml.dof_positions(self.character, state.rotations).cpu()
        # |kp (target - q) - kd dq| <= effort, at the start of the control step
        centre = position + self.kd / self.kp * state.dof_velocity.cpu()
        target = torch.maximum(torch.minimum(targets.cpu(), centre + self.effort / self.kp), centre - self.effort / self.kp)
        self.control[:] = target.double().numpy()[:, None]
        self.rollout.rollout(self.model, self.data, self.state, self.control, state=self.trajectory)
        after = self.trajectory[:, -1]
        sound = np.isfinite(after).all(1) & (np.abs(after[:, self.velocity :]).max(1) < self.MAX_SPEED)
        np.copyto(self.state, after, where=sound[:, None])
        self.state[:, 0] = 0.0
        return self._read(), torch.from_numpy(~sound).to(self.device)


# ---------------------------------------------------------------------------------------------------------------------------------
# 4. Environment
# ---------------------------------------------------------------------------------------------------------------------------------


class Box(NamedTuple):
    """Shape of an unbounded float32 space (Gymnasium's Box, as far as a learner needs it)."""

    shape: Tuple[int, ...]


class AMPEnv:
    """The character on flat ground as a vector environment: Gymnasium's convention with torch tensors, reset in the same step.

    Observations are (N, D), actions (N, A); info["final_obs"] is the observation before the reset of environments that are done,
    info["disc_obs"] (N, 2 D) the transition that the discriminator judges: it never spans a reset."""

    def __init__(self, args: Args, character: Character, motions: MotionLib, num_envs: int, episode_steps: int, device: torch.device) -> None:
        self.character, self.motions, self.device = character, motions, device
        self.num_envs, self.episode_steps, self.reset_mode = num_envs, episode_steps, args.reset_mode
        self.dt = 1.0 / args.control_hz  # control step [s]
        self.target_speed = None if args.task == "none" else args.target_speed
        self.sim = MujocoSim(character, num_envs, args.control_hz, args.substeps, device)
        self.generator = torch.Generator(device)
        # Zero action is the clips' mean pose: a mid-range pose (knees and elbows bent by 80 degrees) learns far more slowly.
        times = torch.linspace(0, 1, 200, device=device)[:, None] * motions.length
        states = motions.state(torch.arange(len(motions.files), device=device).expand(times.shape), times)
        self.action_offset = (ml.dof_positions(character, states.rotations).mean(0) * motions.weight[:, None]).sum(0)  # (A,) [rad]
        self.action_scale = args.action_scale
        # A fall is ground contact of a body other than the feet that the clips keep off the ground (at least 0.05 m above it).
        body_position, body_rotation = ml.forward_kinematics(character, states.root_position, states.rotations)
        lowest = ml.lowest_points(character, body_position, body_rotation).flatten(0, 1).amin(0)  # (J,)
        feet = torch.tensor([name in FEET for name in character.body_names], device=device)
        self.fall_bodies = ((lowest > 0.05) & ~feet).nonzero()[:, 0]
        self.clip = torch.zeros(num_envs, dtype=torch.long, device=device)  # where each episode started: clip ...
        self.time = torch.zeros(num_envs, device=device)  # ... and time [s]
        self.steps = torch.zeros(num_envs, dtype=torch.long, device=device)  # control steps of the episode so far
        obs, _ = self.reset(args.seed)
        self.single_observation_space, self.single_action_space = Box(tuple(obs.shape[1:])), Box((len(character.dof_names),))

    def reset(self, seed: Optional[int] = None) -> Tuple[Tensor, Dict[str, Tensor]]:
        """Start all episodes anew: obs (N, D), info."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self.obs = self._reset(torch.arange(self.num_envs, device=self.device))
        return self.obs, {}

    def _reset(self, env_ids: Tensor) -> Tensor:
        """Reference state initialisation of environments (n,) -> their first observations (n, D)."""
        clip, start = self.motions.sample(len(env_ids), self.dt, self.generator)
        if self.reset_mode != "random":
            from_start = torch.rand(len(env_ids), generator=self.generator, device=self.device) < (1.0 if self.reset_mode == "start" else 0.5)
            start = torch.where(from_start, torch.zeros_like(start), start)
        state = self.motions.state(clip, start)
        self.sim.set_state(env_ids, state)
        self.clip[env_ids], self.time[env_ids], self.steps[env_ids] = clip, start, 0
        body_position, _ = ml.forward_kinematics(self.character, state.root_position, state.rotations)
        return observe(state, body_position, self.character)

    def step(self, action: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor, Dict[str, Any]]:
        """One control step under actions (N, A) -> obs (N, D), task reward (N,), terminated (N,), truncated (N,), info."""
        state, diverged = self.sim.step(self.action_offset + self.action_scale * action)
        body_position, body_rotation = ml.forward_kinematics(self.character, state.root_position, state.rotations)
        final_obs = observe(state, body_position, self.character)
        disc_obs = torch.cat((self.obs, final_obs), -1)  # (N, 2 D)
        self.steps += 1
        lowest = ml.lowest_points(self.character, body_position, body_rotation)[:, self.fall_bodies]
        terminated = (lowest <= 0.0).any(-1) | diverged
        truncated = (self.steps >= self.episode_steps) & ~terminated
        info = {"final_obs": final_obs, "disc_obs": disc_obs, "diverged": diverged, "speed": forward_speed(state)}
        info.update(state=state, body_position=body_position, episode_length=self.steps.clone())
        env_ids = (terminated | truncated).nonzero()[:, 0]
        self.obs = final_obs
        if len(env_ids):
            self.obs = final_obs.index_copy(0, env_ids, self._reset(env_ids))
        return self.obs, task_reward(state, self.target_speed), terminated, truncated, info


# ---------------------------------------------------------------------------------------------------------------------------------
# 5. Networks, normaliser, replay buffer
# ---------------------------------------------------------------------------------------------------------------------------------


class Normaliser(nn.Module):
    """Running mean and variance of the rows that it has been updated with; part of the checkpoint."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Merge the moments of rows (n, size) into the running ones (Chan et al. 1979)."""
        var, mean = torch.var_mean(x, 0, unbiased=False)
        total = self.count + len(x)
        delta = mean - self.mean
        self.var.copy_((self.var * self.count + var * len(x) + delta**2 * self.count * len(x) / total) / total)
        self.mean.add_(delta * len(x) / total)
        self.count.copy_(total)

    def forward(self, x: Tensor) -> Tensor:
        """(x - mean) / std, clipped to [-5, 5]."""
        return ((x - self.mean) / torch.sqrt(self.var + 1e-5)).clamp(-5.0, 5.0)

    def undo(self, x: Tensor) -> Tensor:
        """Inverse of forward within the clipping range."""
        return x * torch.sqrt(self.var + 1e-5) + self.mean


def mlp(size_in: int, hidden: Tuple[int, int], size_out: int, last_gain: float) -> nn.Sequential:
    """ReLU network with two hidden layers; last_gain scales the last layer's initial weights."""
    net = nn.Sequential(nn.Linear(size_in, hidden[0]), nn.ReLU(), nn.Linear(hidden[0], hidden[1]), nn.ReLU(), nn.Linear(hidden[1], size_out))
    for layer in net[::2]:
        nn.init.orthogonal_(layer.weight, math.sqrt(2.0))
        nn.init.zeros_(layer.bias)
    nn.init.orthogonal_(net[-1].weight, last_gain)
    return net


class Agent(nn.Module):
    """Actor (mean action), critic (normalised value), discriminator (logit), and the normalisers of what they read."""

    def __init__(self, obs_size: int, action_size: int, hidden: Tuple[int, int], action_std_log: float) -> None:
        super().__init__()
        self.obs_norm, self.disc_norm, self.return_norm = Normaliser(obs_size), Normaliser(2 * obs_size), Normaliser(1)
        self.actor = mlp(obs_size, hidden, action_size, 0.01)
        self.critic = mlp(obs_size, hidden, 1, 1.0)
        self.disc = mlp(2 * obs_size, hidden, 1, 1.0)
        self.action_std = math.exp(action_std_log)

    def log_prob(self, mean: Tensor, action: Tensor) -> Tensor:
        """Log density of actions under the Gaussian policy, up to its constant. (..., A), (..., A) -> (...)."""
        return -0.5 * (((action - mean) / self.action_std) ** 2).sum(-1)

    def value(self, obs: Tensor) -> Tensor:
        """Expected return of raw observations (..., D) -> (...)."""
        return self.return_norm.undo(self.critic(self.obs_norm(obs)))[..., 0]


class ReplayBuffer:
    """The character's past transitions. Fills up, then keeps a random part: newcomers replace random old rows (AMP paper, section 7)."""

    def __init__(self, capacity: int, width: int, device: torch.device) -> None:
        self.data = torch.zeros(capacity, width, device=device)
        self.size = 0

    def add(self, rows: Tensor, keep: int) -> None:
        """Store all rows (n, width) while there is room; once full, `keep` random ones over random old ones."""
        room = len(self.data) - self.size
        if room:
            rows = rows[torch.randperm(len(rows), device=rows.device)[:room]]
            self.data[self.size : self.size + len(rows)] = rows
            self.size += len(rows)
        else:
            chosen = torch.randperm(len(rows), device=rows.device)[:keep]
            self.data[torch.randperm(len(self.data), device=rows.device)[: len(chosen)]] = rows[chosen]

    def sample(self, n: int) -> Tensor:
        """n rows, drawn with replacement: (n, width)."""
        return self.data[torch.randint(self.size, (n,), device=self.data.device)]


# ---------------------------------------------------------------------------------------------------------------------------------
# 6. Losses and advantages
# ---------------------------------------------------------------------------------------------------------------------------------


def disc_losses(disc: nn.Module, demo: Tensor, agent: Tensor, disc_loss: str) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Classification loss, gradient penalty, and logits of clip and character (n,) for normalised transitions (n, 2 D)."""
    demo = demo.detach().requires_grad_(True)
    demo_logit, agent_logit = disc(demo)[:, 0], disc(agent)[:, 0]
    if disc_loss == "lsgan":
        # L = E_clip[(D - 1)^2] + E_agent[(D + 1)^2]   (AMP paper, equation 6)
        loss = ((demo_logit - 1.0) ** 2).mean() + ((agent_logit + 1.0) ** 2).mean()
    else:
        # L = -E_clip[log D] - E_agent[log(1 - D)],   D = sigmoid(logit)
        loss = F.softplus(-demo_logit).mean() + F.softplus(agent_logit).mean()
    # E_clip[|grad D|^2], the gradient being that of the logit   (AMP paper, equation 8)
    (gradient,) = torch.autograd.grad(demo_logit.sum(), demo, create_graph=True)
    return loss, (gradient**2).sum(-1).mean(), demo_logit, agent_logit


def gae(reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, equation 16). All (T, N) -> (T, N).

    next_value[t] is the value of the state that step t led to, before any reset; terminated cuts the bootstrap, done the trace."""
    advantage = torch.zeros_like(reward)
    trace = torch.zeros_like(reward[0])
    # delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
    delta = reward + gamma * next_value * (~terminated) - value
    for t in reversed(range(len(reward))):
        # A_t = delta_t + gamma lambda A_{t+1}
        trace = delta[t] + gamma * lam * trace * (~done[t])
        advantage[t] = trace
    return advantage


# ---------------------------------------------------------------------------------------------------------------------------------
# 7. Evaluation and checkpoints
# ---------------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(agent: Agent, env: AMPEnv, args: Args) -> Tuple[Dict[str, float], List[ml.Clip]]:
    """Run the policy without noise, one episode per environment, up to env.episode_steps: metrics and roll-outs as clips."""
    motions, (obs, _) = env.motions, env.reset(args.seed + 1000)
    clip, start = env.clip.clone(), env.time.clone()
    # an episode on a clip that does not loop ends with the clip
    limit = torch.where(motions.loop, env.episode_steps * env.dt, motions.length)[clip] - torch.where(motions.loop[clip], 0.0, start)
    limit = (limit / env.dt + 0.5).long().clamp(1, env.episode_steps)  # (N,) control steps
    alive = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    steps, fell, sums = torch.zeros_like(limit), torch.zeros_like(alive), torch.zeros(3, device=env.device)
    poses, roots, rotations = [], [], []
    for _ in range(env.episode_steps):
        obs, reward, terminated, _, info = env.step(agent.actor(agent.obs_norm(obs)))
        state = info["state"]
        style = style_reward(agent.disc(agent.disc_norm(info["disc_obs"]))[:, 0], args.disc_loss)
        sums += (torch.stack((info["speed"], reward, style)) * alive).sum(-1)
        fell |= alive & terminated
        steps += alive & ~terminated
        poses.append(ml.relative_positions(info["body_position"], state.rotations[:, 0]))
        roots.append(state.root_position)
        rotations.append(state.rotations)
        alive &= ~terminated & (steps < limit)
        if not alive.any():
            break
    frames = len(poses)
    # the reference is unrolled to one and a half times the episode, so that a slow character can be matched as well as a fast one
    times = start[:, None] + env.dt * torch.arange(1, int(1.5 * frames) + 1, device=env.device)  # (N, R) [s]
    reference = motions.state(clip[:, None].expand(times.shape), times)
    body_position, _ = ml.forward_kinematics(env.character, reference.root_position, reference.rotations)
    reference_poses = ml.relative_positions(body_position, reference.rotations[..., 0, :])
    errors = ml.pose_error(torch.stack(poses, 1), reference_poses, steps, limit)
    counted = (steps + fell).sum()
    speed, task, style = (sums / counted).tolist()
    metrics = dict(episodes=env.num_envs, mean_episode_s=float(steps.float().mean()) * env.dt, fall_rate=float(fell.float().mean()))
    metrics.update(speed_m_s=speed, pose_error_m=float(errors.mean()), task_reward=task, style_reward=style)
    clips = []
    for n in range(env.num_envs):
        length = max(int(steps[n]), 2)
        root, rotation = torch.stack(roots[:length], 1)[n].cpu().numpy(), torch.stack(rotations[:length], 1)[n].cpu().numpy()
        clips.append(ml.Clip(float(args.control_hz), "clamp", root, rotation))
    return metrics, clips


def save_checkpoint(path: str, agent: Agent, args: Args, extra: Dict[str, Any]) -> None:
    """Write networks, normalisers and options atomically; torch.load(weights_only=True) reads it."""
    torch.save({"format": 1, "script": "amp_ppo_isaacgym", "args": dataclasses.asdict(args), "agent": agent.state_dict(), **extra}, path + ".tmp")
    os.replace(path + ".tmp", path)


def load_checkpoint(path: str, device: torch.device) -> Dict[str, Any]:
    """Read a checkpoint of this script without executing anything in it. Raises UsageError."""
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot read the checkpoint: {error.strerror or error}") from error
    except Exception as error:  # whatever the unpickler raises on a file that is not a checkpoint
        raise UsageError(f"{path}: not a checkpoint of this script ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("script") != "amp_ppo_isaacgym" or checkpoint.get("format") != 1:
        raise UsageError(f"{path}: not a checkpoint of amp_ppo_isaacgym.py, format 1")
    return checkpoint


# ---------------------------------------------------------------------------------------------------------------------------------
# 8. Main loop
# ---------------------------------------------------------------------------------------------------------------------------------


def main(args: Args) -> None:
    device = torch.device("cuda" if args.cuda else "cpu")
    checkpoint = load_checkpoint(args.checkpoint, device) if args.evaluate else None
    if checkpoint:  # what the network was trained with; the options that an evaluation may change stay those of the command line
        for name in ("hidden", "action_std_log", "action_scale", "disc_loss", "control_hz", "substeps"):
            setattr(args, name, checkpoint["args"][name])
    check_args(args)
    torch.manual_seed(args.seed)
    character = ml.load_character(args.character_file, str(device))
    motions = MotionLib(args.motion_file, character, str(device))
    if args.task == "speed" and args.target_speed is None:
        args.target_speed = motions.mean_speed()
    eval_steps = int(round(args.eval_seconds * args.control_hz))
    eval_env = AMPEnv(args, character, motions, args.eval_episodes, eval_steps, device)
    obs_size, action_size = eval_env.single_observation_space.shape[0], eval_env.single_action_space.shape[0]
    agent = Agent(obs_size, action_size, args.hidden, args.action_std_log).to(device)
    if checkpoint:
        try:
            agent.load_state_dict(checkpoint["agent"])
        except RuntimeError as error:
            raise UsageError(f"{args.checkpoint}: networks of another shape: {str(error).splitlines()[1].strip()}") from error
        metrics, clips = evaluate(agent, eval_env, args)
        folder = os.path.splitext(args.checkpoint)[0] + "_rollouts"
        os.makedirs(folder, exist_ok=True)
        for n, clip in enumerate(clips):
            ml.save_clip(os.path.join(folder, f"{n:03d}.npz"), clip, character.body_names, f"roll-out of {args.checkpoint}", "as the checkpoint")
        print(json.dumps(metrics))
        return

    from torch.utils.tensorboard import SummaryWriter

    env = AMPEnv(args, character, motions, args.num_envs, args.episode_steps, device)
    clip_name = os.path.splitext(os.path.basename(os.path.normpath(args.motion_file)))[0]
    run = os.path.join("runs", f"{args.exp_name}__{clip_name}__{args.seed}__{int(time.time())}")
    os.makedirs(run)
    versions = dict(python=platform.python_version(), torch=torch.__version__, numpy=np.__version__, platform=platform.platform())
    with open(os.path.join(run, "args.json"), "w") as file:
        json.dump({"args": dataclasses.asdict(args), "versions": versions, "command": sys.argv}, file, indent=1)
    shutil.copy(__file__, run)
    if args.track:
        import wandb

        wandb.init(project=args.wandb_project_name, entity=args.wandb_entity, sync_tensorboard=True, config=vars(args), name=os.path.basename(run))
    writer = SummaryWriter(run)
    print(f"{run}: simulator {args.sim} ({env.sim.threads} threads), learning on {device}")
    print("options: " + ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(args).items()))

    T, N, B = args.num_steps, args.num_envs, args.num_steps * args.num_envs
    M = B // args.num_minibatches
    actor_optimizer = torch.optim.Adam(agent.actor.parameters(), lr=args.learning_rate)
    critic_optimizer = torch.optim.Adam(agent.critic.parameters(), lr=args.critic_learning_rate)
    disc_optimizer = torch.optim.Adam(agent.disc.parameters(), lr=args.disc_learning_rate)
    replay = ReplayBuffer(args.replay_size, 2 * obs_size, device)
    learning_rate = args.learning_rate
    generator = torch.Generator(device).manual_seed(args.seed + 1)  # of the clip transitions

    obs_buf = torch.zeros(T, N, obs_size, device=device)  # raw
    final_buf = torch.zeros(T, N, obs_size, device=device)  # raw, the state after the step and before a reset
    disc_buf = torch.zeros(T, N, 2 * obs_size, device=device)  # raw
    mean_buf, action_buf = torch.zeros(2, T, N, action_size, device=device).unbind(0)
    task_buf, speed_buf, length_buf = torch.zeros(3, T, N, device=device).unbind(0)
    terminated_buf, truncated_buf = torch.zeros(2, T, N, dtype=torch.bool, device=device).unbind(0)

    # The normalisers start from the clip: the character, which starts from the clip's states, is close to it.
    demo = demo_transitions(motions, 4096, env.dt, generator)
    agent.obs_norm.update(demo[:, :obs_size])
    agent.disc_norm.update(demo)
    obs, _ = env.reset(args.seed)
    episode_length, metrics, best = torch.zeros((), device=device), {}, math.inf
    iterations = args.total_timesteps // B
    started = time.time()
    bar = tqdm(total=iterations * B, unit=" samples", unit_scale=True, dynamic_ncols=True, smoothing=0.05)
    for iteration in range(1, iterations + 1):
        clock = [time.perf_counter()]
        # 1. Roll out the policy.
        physics_seconds = 0.0
        with torch.no_grad():
            for t in range(T):
                mean = agent.actor(agent.obs_norm(obs))  # (N, A)
                action = mean + agent.action_std * torch.randn_like(mean)
                obs_buf[t], mean_buf[t], action_buf[t] = obs, mean, action
                obs, task_buf[t], terminated_buf[t], truncated_buf[t], info = env.step(action)
                final_buf[t], disc_buf[t], speed_buf[t], length_buf[t] = info["final_obs"], info["disc_obs"], info["speed"], info["episode_length"]
        done_buf = terminated_buf | truncated_buf
        fresh = disc_buf.view(B, -1)
        clock.append(time.perf_counter())

        # 2. Discriminator: clip transitions against the character's, half of them fresh and half replayed.
        replay.add(fresh, args.replay_keep)
        demo = demo_transitions(motions, args.disc_updates * args.disc_batch, env.dt, generator)
        agent.disc_norm.update(torch.cat((demo, fresh[torch.randint(B, (len(demo),), device=device)])))
        half = args.disc_batch // 2
        disc_log = []
        for mb_demo in demo.chunk(args.disc_updates):
            mb_agent = torch.cat((fresh[torch.randint(B, (half,), device=device)], replay.sample(half)))  # (disc_batch, 2 D)
            loss, penalty, demo_logit, agent_logit = disc_losses(agent.disc, agent.disc_norm(mb_demo), agent.disc_norm(mb_agent), args.disc_loss)
            weights = [layer.weight for layer in agent.disc[::2]]
            decay = sum((w**2).sum() for w in weights)
            total = loss + args.grad_penalty * penalty + args.logit_reg * (weights[-1] ** 2).sum() + args.disc_weight_decay * decay
            disc_optimizer.zero_grad()
            total.backward()
            nn.utils.clip_grad_norm_(agent.disc.parameters(), args.max_grad_norm)
            disc_optimizer.step()
            with torch.no_grad():
                fresh_logit, replay_logit = agent_logit.chunk(2)
                accuracy = ((demo_logit > 0).float().mean(), (fresh_logit < 0).float().mean(), (replay_logit < 0).float().mean())
                disc_log.append(torch.stack((loss, penalty, demo_logit.mean(), fresh_logit.mean(), replay_logit.mean(), *accuracy)))
        clock.append(time.perf_counter())

        # 3. Rewards and advantages.
        with torch.no_grad():
            logits = agent.disc(agent.disc_norm(fresh))[:, 0]
            style_buf = style_reward(logits, args.disc_loss).view(T, N)
            # r_total = r_task + style_weight * r_style
            reward = task_buf + args.style_weight * style_buf
            value = agent.value(torch.cat((obs_buf, obs[None])))  # (T + 1, N)
            value, next_value = value[:-1], value[1:].clone()
            next_value[truncated_buf] = agent.value(final_buf[truncated_buf])  # a time-out is not the end: bootstrap, from before the reset
            advantage = gae(reward, value, next_value, terminated_buf, done_buf, args.gamma, args.gae_lambda)
            returns = advantage + value
            explained = 1.0 - (returns - value).var() / returns.var().clamp_min(1e-8)
            agent.return_norm.update(returns.view(-1, 1))
            b_obs = agent.obs_norm(obs_buf.view(B, -1))  # (B, D) normalised
            b_returns = agent.return_norm(returns.view(B, 1))[:, 0]
            b_advantage = ((advantage - advantage.mean()) / (advantage.std() + 1e-8)).view(B)
            b_mean, b_action = mean_buf.view(B, -1), action_buf.view(B, -1)
            b_log_prob = agent.log_prob(b_mean, b_action)

        # 4. PPO.
        ppo_log = []
        for _ in range(args.update_epochs):
            for mb in torch.randperm(B, device=device).split(M):
                mean = agent.actor(b_obs[mb])  # (M, A)
                ratio = torch.exp(agent.log_prob(mean, b_action[mb]) - b_log_prob[mb])
                # L_clip = -E[min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)]   (Schulman et al. 2017, equation 7)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                policy_loss = -torch.minimum(ratio * b_advantage[mb], clipped * b_advantage[mb]).mean()
                bound_loss = ((mean.abs() - 1.0).clamp_min(0.0) ** 2).sum(-1).mean()
                actor_optimizer.zero_grad()
                (policy_loss + args.bound_coef * bound_loss).backward()
                nn.utils.clip_grad_norm_(agent.actor.parameters(), args.max_grad_norm)
                actor_optimizer.step()
                value_loss = F.mse_loss(agent.critic(b_obs[mb])[:, 0], b_returns[mb])
                critic_optimizer.zero_grad()
                value_loss.backward()
                nn.utils.clip_grad_norm_(agent.critic.parameters(), args.max_grad_norm)
                critic_optimizer.step()
                with torch.no_grad():
                    # KL of two Gaussians with the same fixed standard deviation
                    kl = (((mean - b_mean[mb]) / agent.action_std) ** 2).sum(-1).mean() / 2
                    ppo_log.append(torch.stack((policy_loss, value_loss, bound_loss, kl, ((ratio - 1).abs() > args.clip_coef).float().mean())))
        agent.obs_norm.update(obs_buf.view(B, -1))
        policy_loss, value_loss, bound_loss, _, clip_fraction = torch.stack(ppo_log).mean(0).tolist()
        kl = float(torch.stack(ppo_log)[-args.num_minibatches :, 3].mean())
        learning_rate *= 1.2 if kl < args.kl_low else 1 / 1.2 if kl > args.kl_high else 1.0
        learning_rate = min(max(learning_rate, 1e-6), 1e-2)
        actor_optimizer.param_groups[0]["lr"] = learning_rate
        clock.append(time.perf_counter())
        if done_buf.any():
            episode_length = length_buf[done_buf].mean()
        names = ("loss", "grad_penalty", "logit_demo", "logit_fresh", "logit_replay", "accuracy_demo", "accuracy_fresh", "accuracy_replay")
        dl = dict(zip(names, torch.stack(disc_log).mean(0).tolist()))
        if iteration % 10 == 0:
            bar.write(f"{iteration*B/1e6:.2f}M {time.time()-started:.0f}s len {float(episode_length):.0f} task {float(task_buf.mean()):.2f} style {float(style_buf.mean()):.3f} speed {float(speed_buf.mean()):.2f} "
              f"lr {learning_rate:.1e} kl {kl:.4f} clip {clip_fraction:.2f} ev {float(explained):.2f} acc {dl['accuracy_demo']:.2f} {dl['accuracy_fresh']:.2f} {dl['accuracy_replay']:.2f} bound {bound_loss:.4f} gp {dl['grad_penalty']:.3f} times " + " ".join(f"{b-a:.2f}" for a,b in zip(clock,clock[1:])) + f" err {metrics.get('pose_error_m', 9):.3f} fall {metrics.get('fall_rate', 9):.2f} espeed {metrics.get('speed_m_s',0):.2f}")
        if iteration == iterations or (args.eval_interval and iteration % args.eval_interval == 0):
            metrics, _ = evaluate(agent, eval_env, args)
            save_checkpoint(os.path.join(run, "latest.pt"), agent, args, {"iteration": iteration, "metrics": metrics})
        bar.update(B)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except (UsageError, ml.MotionError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
