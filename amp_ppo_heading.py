"""Adversarial Motion Priors with a task: a humanoid goes where it is told, as fast as it is told, in the style of a set of clips.

Paper: Peng, Ma, Abbeel, Levine, Kanazawa, "AMP: Adversarial Motion Priors for Stylized Physics-Based Character Control",
ACM Trans. Graph. 40(4), 2021 (arXiv 2104.02180).

    python amp_ppo_heading.py                                           # under an hour on two CPU cores
    python amp_ppo_heading.py --evaluate --checkpoint pretrained/heading.pt --eval-commands motions/figure_eight.csv

A discriminator D learns to tell the clip's transitions (s, s') from the character's; the better the character fools it, the larger its
style reward; PPO maximises that plus a task reward:

    L_disc  = -E_clip[log D(s, s')] - E_agent[log(1 - D(s, s'))]
    r_style = -log(1 - D(s, s'))
    r_total = r_task + style_weight * r_style

What differs from the paper: cross entropy instead of least squares (--disc-loss lsgan is the paper's), PD targets around the clip's
mean pose, a critic with normalised returns and its own learning rate, a policy learning rate steered by the KL divergence.

With torchrun in place of python several processes train together, each on a core or GPU of its own (part 5).

Dimension key: T steps, N envs of a process, B = T N, M minibatch, D observation, P transition, A actions, J bodies, K key bodies.
Conventions (frames, units, quaternions): motion_lib.py. Read from top to bottom; part 3, the simulator, can be skipped.
"""

import atexit
import contextlib
import dataclasses
import datetime
import importlib.util
import io
import json
import math
import os
import platform
import shutil
import signal
import sys
import time
import uuid
import warnings
from abc import ABC, abstractmethod
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Literal, NamedTuple, Optional, Tuple

try:  # before torch: Isaac Gym insists on it
    from isaacgym import gymapi, gymtorch

    isaacgym_fault = ""
except Exception as error:  # it compiles and loads libraries
    gymapi, isaacgym_fault = None, f"{type(error).__name__}: {error}"

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from tqdm import tqdm

import motion_lib as ml
from motion_lib import Character, InputError, MotionLib, MotionState, forward_speed, tangent_normal

SCRIPT = os.path.splitext(os.path.basename(__file__))[
    0
]  # names runs and checkpoints; those of other scripts are refused
FORMAT = 3  # of checkpoints; formats 1 (networks only) and 2 (of one process) can still be evaluated
CHECKPOINTS = ("latest.pt", "previous.pt")  # of a run, to go on from

# ---- 1. Options ----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Args:
    exp_name: str = SCRIPT
    """first part of the run's name; the run is written to runs/<exp_name>__<clip>__<sim>__<seed>__<time>-<process>"""
    seed: int = 1
    """seed of everything random; the same seed on the same CPU, with as many processes, gives the same numbers, bit for bit"""
    cuda: bool = torch.cuda.is_available()
    """learn on the GPU; by default when PyTorch finds one"""
    sim: Literal["auto", "mujoco", "warp", "isaacgym"] = "auto"
    """the simulator; auto takes Isaac Gym when it can be imported, else mujoco, which with --cuda is warp (MuJoCo Warp) if installed"""
    track: bool = False
    """log to Weights & Biases as well (pip install wandb; its WANDB_PROJECT and WANDB_ENTITY say where)"""
    motion_file: str = "motions/locomotion.json"
    """clip to imitate (.npz), folder of clips, or dataset file (.json); formats in motions/README.md"""
    character_file: str = "motions/humanoid.xml"
    """the character (MJCF)"""
    mirror: bool = True
    """add the left-right reflection of every clip"""
    speed_range: Tuple[float, float] = (1.0, 3.5)
    """target speeds, drawn evenly [m/s]; the clips walk at 1 and run at 3.5, the paper asks for 1 to 5"""
    turn_std: float = 0.15
    """standard deviation of a small change of the target heading [rad] (DeepMimic)"""
    sharp_turn_share: float = 0.01
    """share of the changes that turn the target heading anywhere (DeepMimic)"""
    speed_change_share: float = 0.02
    """share of the changes that draw a new target speed (DeepMimic)"""
    change_seconds: Tuple[float, float] = (0.2, 0.5)
    """time between two changes, drawn evenly [s] (DeepMimic)"""
    eval_commands: Optional[str] = None
    """for --evaluate: file of lines "time [s], heading [degrees], speed [m/s]", each valid until the next"""
    style_weight: float = 2.0
    """style_weight in r_total = r_task + style_weight * r_style; public AMP code uses 2"""
    total_timesteps: Optional[int] = None
    """control steps of training, summed over environments; default 10 million on the CPU, 100 million on CUDA (not measured there)"""
    num_envs: Optional[int] = None
    """parallel environments, of all processes together; default 512 on the CPU, 4096 on CUDA, rounded up to divide among processes"""
    num_steps: Optional[int] = None
    """control steps T per environment and iteration; default 8 on the CPU, 16 on CUDA"""
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
    update_epochs: int = 2
    """passes over the batch per iteration"""
    num_minibatches: int = 4
    """minibatches per pass"""
    learning_rate: float = 3e-4
    """Adam's learning rate for the policy at the start; it then follows the KL divergence"""
    target_kl: float = 0.018
    """mean KL divergence of an update: at a third more the policy's learning rate shrinks by 1.2, at a third less it grows"""
    anneal: float = 0.5
    """share of the training, at its end, over which target_kl falls to a twentieth; it ends the coming and going of falls (docs/log.md)"""
    critic_learning_rate: float = 5e-4
    """Adam's learning rate for the critic"""
    clip_coef: float = 0.2
    """PPO's clipping range of the probability ratio"""
    max_grad_norm: float = 1.0
    """gradients are scaled down to this norm, for each network"""
    action_std_log: float = -2.5
    """natural logarithm of the fixed standard deviation of the action noise (e^-2 topples the character)"""
    action_scale: float = 1.2
    """PD target = the clip's mean pose + action_scale * action [rad]"""
    hidden: Optional[Tuple[int, int]] = None
    """widths of the hidden layers of all three networks; default 256 128 on the CPU, 1024 512 on CUDA"""
    disc_loss: Literal["bce", "lsgan"] = "bce"
    """bce: cross entropy; lsgan: least squares, the paper's equation 6 with the style reward of its equation 7"""
    disc_learning_rate: float = 2e-4
    """Adam's learning rate for the discriminator"""
    disc_updates: Optional[int] = None
    """discriminator updates per iteration; default 2 on the CPU, 6 on CUDA"""
    disc_batch: Optional[int] = None
    """clip transitions per update (of all processes), and as many of the character's, half of them replayed; default 1024, CUDA 4096"""
    grad_penalty: float = 5.0
    """weight of the gradient penalty on clip transitions (IsaacGymEnvs; the paper's code uses 10 / 2)"""
    logit_reg: float = 0.05
    """weight of the squared weights of the discriminator's last layer (IsaacGymEnvs)"""
    disc_weight_decay: float = 1e-4
    """weight of the squared weights of all the discriminator's layers (IsaacGymEnvs)"""
    replay_size: int = 200_000
    """transitions in the replay buffer, or in those of all processes together"""
    replay_keep: int = 512
    """transitions of an iteration (of all processes), drawn at random, that replace random old ones once the buffer is full"""
    eval_interval: Optional[int] = None
    """evaluate every so many iterations, and at the end (0: only at the end); default 100 on the CPU, 250 on CUDA"""
    eval_episodes: int = 32
    """episodes of an evaluation"""
    eval_seconds: float = 20.0
    """longest evaluation episode [s] (the paper's 20)"""
    capture_video: bool = False
    """film one episode of each evaluation, as mp4 in the run's folder or beside the roll-outs (pip install imageio[ffmpeg])"""
    evaluate: bool = False
    """no training: evaluate --checkpoint, print one JSON object and write the roll-outs as clips beside it"""
    checkpoint: Optional[str] = None
    """checkpoint to evaluate"""
    resume: Optional[str] = None
    """go on with an interrupted run, given its folder; only RESUMABLE options may differ, and num_envs, disc_batch where processes do"""
    save_interval: Optional[int] = None
    """save everything every so many iterations, and at the end; default 250 (at 100, a checkpoint of .85 s took over 1 % of the time)"""
    max_skipped: int = 100
    """updates in a row that are skipped because a gradient is not finite, until the run gives up"""
    detect_anomaly: bool = False
    """for debugging: stop with a traceback at the operation whose gradient is NaN (slow)"""


RESUMABLE = (
    "resume",
    "track",
    "total_timesteps",
    "eval_interval",
    "save_interval",
    "capture_video",
    "max_skipped",
    "detect_anomaly",
)


def set_defaults(args: Args, total_timesteps: Tuple[int, int]) -> None:
    """Fill in what depends on the device, on the CPU and on CUDA, and on what is installed."""
    defaults = dict(
        num_envs=(512, 4096), num_steps=(8, 16), disc_updates=(2, 6), disc_batch=(1024, 4096), eval_interval=(100, 250)
    )
    defaults.update(total_timesteps=total_timesteps, hidden=((256, 128), (1024, 512)), save_interval=(250, 250))
    each = {
        "num_envs": processes()[1],
        "disc_batch": 2 * processes()[1],
    }  # what they are divided by, for which they are rounded up
    for name, (on_cpu, on_cuda) in defaults.items():
        if getattr(args, name) is None:
            value = on_cuda if args.cuda else on_cpu
            setattr(args, name, value + -value % each[name] if name in each else value)
    if args.sim == "auto":
        args.sim = "mujoco" if gymapi is None else "isaacgym"
        if gymapi is None and not isaacgym_fault.endswith("No module named 'isaacgym'"):
            print(f"Isaac Gym is there but cannot be imported ({isaacgym_fault}): trying MuJoCo", file=sys.stderr)
    if args.sim == "mujoco" and args.cuda and importlib.util.find_spec("mujoco_warp") is not None:
        args.sim = "warp"


def check_args(args: Args) -> None:
    """Fill in the defaults that depend on the device and refuse what cannot work. Raises InputError."""
    set_defaults(args, total_timesteps=(10_000_000, 100_000_000))
    may_be_zero = (
        "seed style_weight gamma gae_lambda grad_penalty logit_reg disc_weight_decay eval_interval anneal".split()
    )
    may_be_zero += ["turn_std", "sharp_turn_share", "speed_change_share"]
    for name, value in vars(args).items():
        low = -1e15 if name in ("action_std_log", "target_speed") else 0 if name in may_be_zero else 1e-12
        numbers = value if isinstance(value, tuple) else (value,) if type(value) in (int, float) else ()
        if not all(low <= x < 1e15 for x in numbers):
            bound = " from 0" if low == 0 else " above 0" if low > 0 else ""
            raise InputError(f"--{name.replace('_', '-')} {value}: expected a finite number{bound}")
    batch, world, gpus = (
        args.num_envs * args.num_steps,
        1 if args.evaluate else processes()[1],
        torch.cuda.device_count(),
    )
    share = batch // world
    missing = lambda name: importlib.util.find_spec(name) is None  # noqa: E731
    advice = "install NVIDIA's Isaac Gym Preview 4 (developer.nvidia.com/isaac-gym, Python 3.8), or use --sim mujoco"
    refuse = {
        f"--sim isaacgym: it cannot be imported ({isaacgym_fault}); {advice}": args.sim == "isaacgym"
        and gymapi is None,
        "--cuda: PyTorch finds no CUDA device; leave it out to train on the CPU": args.cuda
        and not torch.cuda.is_available(),
        "--sim mujoco: pip install mujoco (it needs Python 3.10 or newer)": args.sim == "mujoco" and missing("mujoco"),
        "--sim warp: pip install -r requirements-warp.txt (Python 3.11 or newer)": args.sim == "warp"
        and missing("mujoco_warp"),
        "--capture-video: pip install imageio[ffmpeg]": args.capture_video and missing("imageio_ffmpeg"),
        "the evaluation draws with matplotlib: pip install matplotlib": missing("matplotlib"),
        "--track: Weights & Biases is not installed; pip install wandb": args.track and missing("wandb"),
        "--evaluate and --checkpoint FILE go together": args.evaluate != (args.checkpoint is not None),
        "--evaluate and --resume exclude each other": args.evaluate and args.resume is not None,
        "--eval-commands needs --evaluate": args.eval_commands is not None and not args.evaluate,
        "--speed-range, --change-seconds: the smaller number comes first": min(
            np.diff(args.speed_range), np.diff(args.change_seconds)
        )
        < 0,
        "--sharp-turn-share, --speed-change-share: at most 1": max(args.sharp_turn_share, args.speed_change_share) > 1,
        "--action-std-log has to lie between -10 and 2": not -10 <= args.action_std_log <= 2,
        "--gamma has to lie below 1, --gae-lambda and --anneal at most at 1": args.gamma >= 1
        or max(args.gae_lambda, args.anneal) > 1,
        f"--cuda: every process needs a GPU of its own; torchrun --nproc_per_node={gpus}": args.cuda
        and processes(local=True)[1] > max(gpus, 1),
        f"--num-envs {args.num_envs} has to be a multiple of the {world} processes": args.num_envs % world,
        f"--num-minibatches {args.num_minibatches} does not divide num_envs * num_steps / processes = {share}": share
        % args.num_minibatches,
        f"--disc-batch has to be a multiple of {2 * world}: half of it is replayed, in each process": args.disc_batch
        % (2 * world),
        f"--total-timesteps is less than one batch, num_envs * num_steps = {batch}": args.total_timesteps < batch,
    }
    for message in [message for message, refused in refuse.items() if refused]:
        raise InputError(message)


# ---- 2. Observation and rewards ------------------------------------------------------------------------------------------------

KEY_BODIES = ("right_hand", "left_hand", "right_foot", "left_foot")
FEET = ("right_foot", "left_foot")
GOAL = 3  # numbers at the end of an observation, the goal, which only the policy sees


def observe(state: MotionState, body_position: Tensor, character: Character) -> Tensor:
    """What policy and discriminator see of one instant; all in the heading frame of the root (IsaacGymEnvs' selection).

    state: batch (...); body_position (..., J, 3) world [m] -> (..., D): root height [m] 1, root rotation 6, root linear 3 [m/s] and
    angular 3 [rad/s] velocity, ball joints 6 each, hinges 1 each [rad], dof velocities [rad/s], key bodies from the root 3 each [m]."""
    root = state.rotations[..., 0, :]
    to_heading = ml.quat_from_yaw(-ml.heading(root))  # (..., 4)
    keys = torch.stack(
        [body_position[..., character.body_names.index(name), :] for name in KEY_BODIES], -2
    )  # (..., K, 3)
    key_position = keys - body_position[..., :1, :]
    vectors = torch.cat(
        (state.root_velocity[..., None, :], state.root_angular_velocity[..., None, :], key_position), -2
    )
    vectors = ml.quat_rotate(to_heading[..., None, :], vectors).flatten(-2)  # (..., 6 + 3 K)
    hinge = state.rotations.index_select(-2, character.hinges)
    angle = (ml.rotvec_from_quat(hinge) * character.dof_axis[character.hinge_dofs]).sum(-1)
    balls = tangent_normal(state.rotations.index_select(-2, character.balls)).flatten(-2)
    root_part = (state.root_position[..., 2:], tangent_normal(ml.quat_multiply(to_heading, root)), vectors[..., :6])
    return torch.cat((*root_part, balls, angle, state.dof_velocity, vectors[..., 6:]), -1)


def demo_transitions(motions: MotionLib, n: int, dt: float, generator: torch.Generator) -> Tensor:
    """Sample n transitions of the clips, one control step dt [s] apart: disc_obs_demo (n, P)."""
    clip, start = motions.sample(n, dt, generator)
    state = motions.state(clip.repeat(2), torch.cat((start, start + dt)))
    body_position, _ = ml.forward_kinematics(motions.character, state.root_position, state.rotations)
    return torch.cat(observe(state, body_position, motions.character).chunk(2), -1)


def task_reward(progress: Tensor, target_speed: Tensor) -> Tensor:
    """Reward for velocities along the target direction (...) [m/s] under target speeds (...) [m/s]. (...)."""
    # r_task = exp(-0.25 (v* - d* . v)^2), zero when moving away; v is the root's, not the centre of mass's as in DeepMimic's code
    return torch.exp(-0.25 * (target_speed - progress) ** 2) * (progress > 0)


def style_reward(logits: Tensor, disc_loss: str) -> Tensor:
    """Style reward of transitions with discriminator outputs `logits` (...) -> (...)."""
    # bce: r_style = -log(1 - D) with D = sigmoid(logit), which is softplus(logit)
    # lsgan: r_style = max(0, 1 - (D - 1)^2 / 4)   (AMP paper, equation 7)
    return F.softplus(logits) if disc_loss == "bce" else (1.0 - 0.25 * (logits - 1.0) ** 2).clamp_min(0.0)


# ---- 3. The simulator (a first reader can skip this part: it turns PD targets into the next MotionState) -----------------------


PICTURE = (360, 480)  # height and width of a video [pixels]
MAX_SPEED = 200.0  # any velocity [m/s, rad/s] beyond it is a broken simulation, not motion


class Sim(ABC):
    """N copies of the character on flat ground. States go in and out in the conventions of motion_lib, on `device`."""

    @abstractmethod
    def set_state(self, chosen: Tensor, state: MotionState) -> None:
        """Put those of the first n environments that are chosen (n,) bool into their rows of a state of batch (n,)."""

    @abstractmethod
    def step(self, targets: Tensor) -> Tuple[MotionState, Tensor]:
        """Advance the first n environments by one control step under PD targets (n, A) [rad, exponential map] that hold all along.

        -> state of batch (n,), diverged (n,) bool: physics broke down, and the state is the character's rest pose."""

    @abstractmethod
    def snapshot(self) -> List[Tensor]:
        """All that the next step depends on, for restore."""

    @abstractmethod
    def restore(self, snapshot: List[Tensor]) -> None:
        """Go back to a snapshot."""

    @abstractmethod
    def render(self) -> np.ndarray:
        """Picture of the first environment's character, (H, W, 3) uint8; needs --capture-video."""


class MujocoModel:
    """The character in MuJoCo, its coordinates to and from a MotionState, and its picture: what both simulators on MuJoCo share."""

    def __init__(self, args: Args, character: Character, device: torch.device) -> None:
        if args.capture_video and "DISPLAY" not in os.environ:
            os.environ.setdefault("MUJOCO_GL", "egl")
        opengl = "MuJoCo finds no OpenGL to draw with; install libegl1 (MUJOCO_GL=egl) or libosmesa6 (MUJOCO_GL=osmesa)"
        try:
            import mujoco
        except (ImportError, AttributeError) as error:  # what its bindings to OpenGL raise
            raise InputError(f"--capture-video, or MUJOCO_GL={os.environ.get('MUJOCO_GL')}: {opengl}") from error

        self.mujoco, self.character = mujoco, character
        self.compiled = model = self._build(mujoco, character, 1.0 / (args.control_hz * args.substeps))
        # Where the parts of a MotionState stand in qpos; quaternions are wxyz there.
        start = torch.as_tensor(
            model.jnt_qposadr[model.body_jntadr[1:]], device=device
        ).long()  # (J,), meaningless for welded bodies
        self.rotating = torch.cat(
            (torch.zeros_like(start[:1]), character.balls)
        )  # bodies whose rotation is a quaternion in qpos
        self.quats = (start[self.rotating] + (self.rotating == 0) * 3)[:, None] + torch.tensor(
            [1, 2, 3, 0], device=device
        )
        self.angles, self.axis = start[character.hinges], character.dof_axis[character.hinge_dofs]
        if args.capture_video:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # GLFW's, of a display that is not there
                    self.renderer, self.camera = mujoco.Renderer(model, *PICTURE), mujoco.MjvCamera()
            except Exception as error:  # each OpenGL has its own
                raise InputError(f"--capture-video: {opengl}") from error
            self.camera.type, self.camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, 1
            self.camera.azimuth, self.camera.elevation, self.camera.distance = 120.0, -15.0, 3.5

    @staticmethod
    def _build(mujoco: Any, character: Character, timestep: float) -> Any:
        """The character with a ball joint for each hinge triple, PD position actuators, and a floor."""
        try:
            spec = mujoco.MjSpec.from_file(character.path)
            spec.copy().compile()
        except ValueError as error:
            raise InputError(f"{character.path}: MuJoCo refuses it: {' '.join(str(error).split())}") from error
        for motor in list(spec.actuators):
            spec.delete(motor)
        dof_body = character.dof_body.tolist()
        for d, (name, body) in enumerate(zip(character.dof_names, dof_body)):
            joint, ball = spec.joint(name), dof_body.count(body) == 3
            if ball and d == dof_body.index(body):
                parent, kind = spec.body(character.body_names[body]), mujoco.mjtJoint.mjJNT_BALL
                parent.add_joint(name=f"ball{body}", type=kind, armature=joint.armature)
            if ball:
                spec.delete(joint)
            else:  # the gains move from the joint, where MuJoCo reads a passive spring, to the actuator
                joint.stiffness, joint.damping = 0.0 * joint.stiffness, 0.0 * joint.damping
            actuator = spec.add_actuator(
                name=name, target=f"ball{body}" if ball else name, trntype=mujoco.mjtTrn.mjTRN_JOINT
            )
            # on a ball joint, which has no limits here, the gear picks a component of the exponential map
            actuator.gear = (character.dof_axis[d].tolist() if ball else [1, 0, 0]) + [0, 0, 0]
            kp, kd, effort = float(character.kp[d]), float(character.kd[d]), float(character.effort[d])
            actuator.set_to_position(kp=kp, kv=kd + timestep * kp)
            actuator.forcelimited, actuator.forcerange = True, (-effort, effort)
        checker = dict(
            type=mujoco.mjtTexture.mjTEXTURE_2D, builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER, width=64, height=64
        )
        spec.add_texture(name="checker", rgb1=[0.8, 0.8, 0.8], rgb2=[0.6, 0.7, 0.8], **checker)
        spec.add_material(name="floor", textures=["", "checker"], texrepeat=[1, 1], texuniform=True)
        spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [0.5] * 3, [0.7] * 3
        plane = dict(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 1], friction=[1.0, 0.05, 0.05])
        spec.worldbody.add_geom(name="floor", material="floor", **plane)
        spec.option.timestep = timestep
        model = spec.compile()
        # Stable PD (Tan, Liu, Turk 2011): of the drive force at the end of a step, kp (target - q - h dq) - kd dq - (h kd + h^2 kp) ddq,
        # the last term goes into the inertia, where the contact solver sees it. MuJoCo's implicit integrators would apply it after
        # contacts are solved; at h = 1/60 a character under noisy targets then falls far sooner than at h = 1/480 (docs/log.md).
        model.dof_armature[6:] += (timestep * character.kd + timestep**2 * character.kp).cpu().numpy()
        mujoco.mj_setConst(model, mujoco.MjData(model))
        return model

    def read(self, qpos: Tensor, qvel: Tensor) -> MotionState:
        """Coordinates (n, nq), (n, nv) -> state of batch (n,)."""
        rotations = qpos.new_zeros(len(qpos), len(self.character.parents), 4)
        rotations[..., 3] = 1.0
        rotations[:, self.rotating] = qpos[:, self.quats]
        half = 0.5 * qpos[:, self.angles, None]
        rotations[:, self.character.hinges] = torch.cat((self.axis * torch.sin(half), torch.cos(half)), -1)
        # MuJoCo's free joint has its linear velocity in the world and its angular velocity in the root's own frame
        return MotionState(
            qpos[:, :3], rotations, qvel[:, :3], ml.quat_rotate(rotations[:, 0], qvel[:, 3:6]), qvel[:, 6:]
        )

    def write(self, state: MotionState) -> Tuple[Tensor, Tensor]:
        """State of batch (n,) -> coordinates (n, nq), (n, nv)."""
        root, rotations, linear, angular, dof = state
        qpos = root.new_zeros(len(root), self.compiled.nq)
        qpos[:, :3] = root
        qpos[:, self.quats] = rotations[:, self.rotating]
        qpos[:, self.angles] = (ml.rotvec_from_quat(rotations[:, self.character.hinges]) * self.axis).sum(-1)
        local = ml.quat_rotate(ml.quat_conjugate(rotations[:, 0]), angular)
        return qpos, torch.cat((linear, local, dof), -1)

    def render(self, qpos: np.ndarray) -> np.ndarray:
        """Picture of the character in the position (nq,)."""
        data = self.mujoco.MjData(self.compiled)
        data.qpos[:] = qpos
        self.mujoco.mj_kinematics(self.compiled, data)
        self.mujoco.mj_comPos(self.compiled, data)
        self.renderer.update_scene(data, self.camera)
        return self.renderer.render()


class MujocoSim(Sim):
    """MuJoCo on this process's share of the CPU cores by mujoco.rollout: no Python in the loop over environments and physics steps."""

    def __init__(self, args: Args, character: Character, num_envs: int, device: torch.device) -> None:
        if args.cuda and processes()[0] == 0:
            print(
                "physics stays on the CPU; to have it on the GPU: pip install -r requirements-warp.txt (Python 3.11)",
                file=sys.stderr,
            )
        self.shared, self.device = (
            MujocoModel(args, character, device),
            device,
        )  # it chooses the OpenGL, before MuJoCo is imported
        from mujoco import rollout

        self.model = model = self.shared.compiled
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = min(max(cores // processes(local=True)[1], 1), num_envs)
        self.data = [self.shared.mujoco.MjData(model) for _ in range(self.threads)]
        self.rollout = rollout.Rollout(nthread=self.threads if self.threads > 1 else 0)
        self.rest = np.concatenate(([0.0], model.qpos0, np.zeros(model.nv)))  # a full physics state: time, qpos, qvel
        self.state, self.trajectory = (
            np.tile(self.rest, (num_envs, 1)),
            np.tile(self.rest, (num_envs, args.substeps, 1)),
        )
        self.control = np.zeros((num_envs, args.substeps, model.nu))
        self.velocity = 1 + model.nq

    def _read(self, n: Optional[int] = None) -> MotionState:
        row = torch.from_numpy(self.state[:n]).float().to(self.device)
        return self.shared.read(row[:, 1 : self.velocity], row[:, self.velocity :])

    def set_state(self, chosen: Tensor, state: MotionState) -> None:
        rows = chosen.cpu().numpy().nonzero()[0]
        if len(rows):
            self.state[rows, 0] = 0.0
            self.state[rows, 1:] = (
                torch.cat(self.shared.write(MotionState(*(x[rows] for x in state))), -1).cpu().numpy()
            )

    def step(self, targets: Tensor) -> Tuple[MotionState, Tensor]:
        n, v = len(targets), self.velocity
        self.control[:n] = targets.cpu().double().numpy()[:, None]
        clock = self.state[:n, 0] + self.trajectory.shape[1] * self.model.opt.timestep
        self.rollout.rollout(self.model, self.data, self.state[:n], self.control[:n], state=self.trajectory[:n])
        self.state[:n] = self.trajectory[:n, -1]
        # where MuJoCo has found a broken state, it has reset it: its clock shows that
        sound = (np.abs(self.state[:n, 0] - clock) < 1e-6) & (np.abs(self.state[:n, v:]).max(1) < MAX_SPEED)
        self.state[:n][~sound] = self.rest
        return self._read(n), torch.from_numpy(~sound).to(self.device)

    def snapshot(self) -> List[Tensor]:
        return [torch.from_numpy(self.state.copy())]

    def restore(self, snapshot: List[Tensor]) -> None:
        self.state[:] = snapshot[0].numpy()

    def render(self) -> np.ndarray:
        return self.shared.render(self.state[0, 1 : self.velocity])


class WarpSim(Sim):
    """MuJoCo Warp: the same model on the GPU. States are tensors there, a control step is one CUDA graph, and nothing waits for the host.

    Warp's CPU device records and replays the same graph, but is several times slower than MujocoSim: it is there for tests."""

    def __init__(self, args: Args, character: Character, num_envs: int, device: torch.device) -> None:
        self.shared = MujocoModel(args, character, device)  # it chooses the OpenGL, before MuJoCo is imported
        import mujoco_warp
        import warp

        if args.cuda and not warp.is_cuda_available():
            advice = "a driver of the R580 series or newer; without mujoco-warp the physics stays on the CPU"
            raise InputError(f"--sim warp: Warp finds no CUDA device; it needs {advice}")
        if processes()[0] == 0:
            print(
                f"MuJoCo Warp on {device}{'' if args.cuda else ', for tests only'}; it compiles at its first start",
                file=sys.stderr,
            )
        self.warp, warp.config.log_level = warp, warp.LOG_WARNING
        # Warp's stream and PyTorch's default stream wait for one another: Warp makes its streams of CUDA's blocking kind.
        with warp.ScopedDevice(str(torch.empty(0, device=device).device)):  # with its number
            self.model = mujoco_warp.put_model(self.shared.compiled)
            self.model.opt.warn_overflow = 0
            self.model.opt.disableflags |= mujoco_warp.DisableBit.NATIVECCD  # a box on a box as in C
            # Candidate contacts, in one store for all, and constraint rows of each: thrown about at random it had 20 and 57 at most.
            self.data = data = mujoco_warp.make_data(self.shared.compiled, nworld=num_envs, nconmax=32, njmax=128)
            # All that a step depends on, as views: qpos, qvel, what the solver starts from, time, targets; and the same at rest.
            kept = (data.qpos, data.qvel, data.qacc_warmstart, data.time, data.ctrl)
            self.kept = [warp.to_torch(x).view(num_envs, -1) for x in kept]
            self.rest = [x[:1].clone() for x in self.kept]
            mujoco_warp.step(self.model, data)  # compiles
            with warp.ScopedCapture() as capture:
                for _ in range(args.substeps):
                    mujoco_warp.step(self.model, data)
        self.graph, self.overflow, kind = capture.graph, warp.to_torch(data.overflow), mujoco_warp.OverflowType
        self.lost = int(
            kind.ALL & ~kind.ITERATIONS & ~kind.LS_ITERATIONS
        )  # bits that say: contacts or constraints were left out
        self.restore(self.rest)

    def set_state(self, chosen: Tensor, state: MotionState) -> None:
        for mine, new in zip(self.kept, (*self.shared.write(state), *self.rest[2:])):
            mine[: len(chosen)] = torch.where(chosen[:, None], new, mine[: len(chosen)])

    def step(self, targets: Tensor) -> Tuple[MotionState, Tensor]:
        n, (qpos, qvel, *_, target) = len(targets), self.kept
        target[:n] = targets
        self.overflow.zero_()
        self.warp.capture_launch(self.graph)
        # a maximum of NaN is NaN, which is not below anything
        sound = (
            (qpos.abs().amax(-1) < math.inf) & (qvel.abs().amax(-1) < MAX_SPEED) & ((self.overflow & self.lost) == 0)
        )
        self.restore([torch.where(sound[:, None], x, rest) for x, rest in zip(self.kept, self.rest)])
        return self.shared.read(qpos[:n].clone(), qvel[:n].clone()), ~sound[:n]

    def snapshot(self) -> List[Tensor]:
        return [x.clone() for x in self.kept]

    def restore(self, snapshot: List[Tensor]) -> None:
        for mine, kept in zip(self.kept, snapshot):
            mine.copy_(kept)

    def render(self) -> np.ndarray:
        return self.shared.render(self.kept[0][0].cpu().numpy())


class IsaacGymSim(Sim):
    """NVIDIA Isaac Gym Preview 4 on the GPU, or on the CPU without CUDA: the whole state in tensors that PhysX writes in place.

    Its dofs of a hinge triple are the exponential map of one ball joint; its linear velocities are those of centres of mass."""

    def __init__(self, args: Args, character: Character, num_envs: int, device: torch.device) -> None:
        self.character, self.device, self.substeps, self.on_gpu = character, device, args.substeps, args.cuda
        self.gym, self.target = (
            gymapi.acquire_gym(),
            torch.zeros(num_envs, len(character.dof_names), device=device),
        )  # (N, D)
        self.pending: Optional[Tensor] = None  # environments whose states wait for the next step to be submitted
        self.rest = torch.eye(13, device=device)[6]  # a root at the origin, upright and at rest
        self.sim = sim = self._create_sim(args)
        names, bodies, props, inertial = self._create_actors(args, num_envs)
        long = lambda x: torch.tensor(x, dtype=torch.long, device=device)  # noqa: E731
        self.dofs, self.bodies = (
            long([names.index(x) for x in character.dof_names]),
            long([bodies.index(x) for x in character.body_names]),
        )
        com = inertial[bodies.index(character.body_names[0])].com
        self.com = torch.tensor([com.x, com.y, com.z], device=device)  # of the root, in its own frame [m]
        self.gym.prepare_sim(sim)
        self._refresh()
        wrap = gymtorch.wrap_tensor
        self.root = wrap(self.gym.acquire_actor_root_state_tensor(sim))  # (N, 13) position, xyzw, velocities
        self.dof_state = wrap(self.gym.acquire_dof_state_tensor(sim))  # (N D, 2) position, velocity
        self.dof = self.dof_state.view(num_envs, -1, 2)  # (N, D, 2)
        self.body = wrap(self.gym.acquire_rigid_body_state_tensor(sim)).view(num_envs, -1, 13)  # (N, J, 13)
        self.contact = wrap(self.gym.acquire_net_contact_force_tensor(sim)).view(num_envs, -1, 3)  # (N, J, 3) [N]
        self._refresh()
        self._self_check(names, bodies, props, [body.mass for body in inertial])

    def _create_sim(self, args: Args) -> Any:
        """An empty simulation with flat ground."""
        params = gymapi.SimParams()
        params.dt, params.substeps = 1.0 / (args.control_hz * args.substeps), 1
        params.up_axis, params.gravity = gymapi.UP_AXIS_Z, gymapi.Vec3(0.0, 0.0, -9.81)
        params.use_gpu_pipeline = params.physx.use_gpu = self.on_gpu
        params.physx.solver_type, params.physx.num_position_iterations, params.physx.num_velocity_iterations = 1, 4, 0
        params.physx.contact_offset, params.physx.rest_offset, params.physx.bounce_threshold_velocity = 0.02, 0.0, 0.2
        params.physx.max_depenetration_velocity, params.physx.default_buffer_size_multiplier = 10.0, 5.0
        params.physx.max_gpu_contact_pairs = 8 * 1024 * 1024
        params.physx.contact_collection = gymapi.CC_LAST_SUBSTEP  # the default is reported broken
        gpu = self.device.index or 0
        sim = self.gym.create_sim(gpu, gpu if args.capture_video else -1, gymapi.SIM_PHYSX, params)
        if sim is None:
            raise InputError("--sim isaacgym: create_sim failed (its reason stands above); --sim mujoco is there")
        ground = gymapi.PlaneParams()
        ground.normal = gymapi.Vec3(0.0, 0.0, 1.0)
        self.gym.add_ground(sim, ground)
        return sim

    def _create_actors(self, args: Args, num_envs: int) -> Tuple[List[str], List[str], np.ndarray, List[Any]]:
        """One character in each environment -> names of dofs and bodies, dof and body properties in Isaac Gym's order."""
        gym, sim, character = self.gym, self.sim, self.character
        options = gymapi.AssetOptions()
        options.angular_damping, options.max_angular_velocity, options.default_dof_drive_mode = (
            0.01,
            100.0,
            int(gymapi.DOF_MODE_NONE),
        )
        asset = gym.load_asset(sim, *os.path.split(os.path.abspath(character.path)), options)
        if asset is None:
            raise InputError(f"{character.path}: Isaac Gym cannot load it (its reason stands above)")
        shapes = gym.get_asset_rigid_shape_properties(asset)
        for shape in shapes:
            shape.friction = 1.0
        gym.set_asset_rigid_shape_properties(asset, shapes)
        names, bodies = gym.get_asset_dof_names(asset), gym.get_asset_rigid_body_names(asset)
        if sorted(names) != sorted(character.dof_names) or sorted(bodies) != sorted(character.body_names):
            raise InputError(
                f"{character.path}: Isaac Gym reads other dofs or bodies from it: {', '.join(names)}; {', '.join(bodies)}"
            )
        props, order = gym.get_asset_dof_properties(asset), [names.index(x) for x in character.dof_names]
        props["driveMode"].fill(gymapi.DOF_MODE_POS)
        for key, value in dict(stiffness=character.kp, damping=character.kd, effort=character.effort).items():
            props[key][order] = value.cpu().numpy()
        props["lower"], props["upper"] = (
            np.minimum(props["lower"], props["upper"]),
            np.maximum(props["lower"], props["upper"]),
        )
        actors = []
        for i in range(num_envs):
            env = gym.create_env(sim, gymapi.Vec3(-2.0, -2.0, 0.0), gymapi.Vec3(2.0, 2.0, 2.0), int(num_envs**0.5))
            actor = gym.create_actor(env, asset, gymapi.Transform(gymapi.Vec3(0.0, 0.0, 2.0)), "character", i, 0, 0)
            gym.set_actor_dof_properties(env, actor, props)
            actors.append(gym.get_actor_index(env, actor, gymapi.DOMAIN_SIM))
            if i == 0 and args.capture_video:
                view = gymapi.CameraProperties()
                view.height, view.width = PICTURE
                self.filmed, self.camera = env, gym.create_camera_sensor(env, view)
        self.actors = torch.tensor(actors, dtype=torch.int32, device=self.device)
        return names, bodies, props, gym.get_actor_rigid_body_properties(env, actor)

    def _refresh(self) -> None:
        self.gym.refresh_actor_root_state_tensor(self.sim)
        self.gym.refresh_dof_state_tensor(self.sim)
        self.gym.refresh_rigid_body_state_tensor(self.sim)
        self.gym.refresh_net_contact_force_tensor(self.sim)

    def _self_check(self, names: List[str], bodies: List[str], props: np.ndarray, masses: List[float]) -> None:
        """Print what Isaac Gym has made of the character; refuse it if its links turn otherwise than forward kinematics says."""
        print("Isaac Gym self-check (for bug reports):")
        print("  bodies: " + ", ".join(f"{name} {mass:.2f} kg" for name, mass in zip(bodies, masses)))
        keys = ("lower", "upper", "stiffness", "damping", "effort", "armature")
        for name, row in zip(names, props):
            print(f"  {name}: " + ", ".join(f"{key} {row[key]:.4g}" for key in keys))
        low, high = (
            torch.tensor(props[key].astype(np.float32), device=self.device)[self.dofs] for key in ("lower", "upper")
        )
        dof = (
            torch.tensor([0.3, -0.2, 0.4], device=self.device).repeat(len(names))[: len(names)].clamp(low, high)[None]
        )  # (1, D)
        zero, up = torch.zeros(1, 3, device=self.device), torch.tensor([[0.0, 0.0, 2.0]], device=self.device)
        pose = ml.rotations_from_dofs(self.character, ml.quat_from_rotvec(zero), dof)
        self.set_state(
            torch.ones(1, dtype=torch.bool, device=self.device), MotionState(up, pose, zero, zero, 0.0 * dof)
        )
        state, _ = self.step(dof)
        self._refresh()
        link = self.body[:1, self.bodies, 3:7]
        turned = [ml.forward_kinematics(self.character, up, rotations)[1] for rotations in (state.rotations, pose)]
        errors = [
            float(ml.rotvec_from_quat(ml.quat_multiply(ml.quat_conjugate(q), link)).norm(dim=-1).max()) for q in turned
        ]
        print(
            f"  links off forward kinematics: {errors[0]:.5f} rad (read back), {errors[1]:.3f} rad (as set, one control step before)"
        )
        ground = float(self.contact[0].sum(0).norm())  # what bodies do to one another adds up to nothing
        print(f"  force of the ground on a character in the air: {ground:.3f} N")
        if not (errors[0] < 0.01 and errors[1] < 0.2 and ground < 1.0):
            self.gym.destroy_sim(self.sim)
            raise InputError(
                "--sim isaacgym: joints off forward kinematics, or contact in the air; please report the self-check above"
            )

    def set_state(self, chosen: Tensor, state: MotionState) -> None:
        env_ids = chosen.nonzero()[:, 0]  # waits for the device, once a control step: PhysX has to be told how many
        if not len(env_ids):
            return
        state = MotionState(*(x[env_ids] for x in state))
        q, angular = state.rotations[:, 0], state.root_angular_velocity
        # v_com = v_link + w x R(q) com
        linear = state.root_velocity + torch.linalg.cross(angular, ml.quat_rotate(q, self.com))
        self.root[env_ids] = torch.cat((state.root_position, q, linear, angular), -1)
        dof = torch.stack((ml.dof_positions(self.character, state.rotations), state.dof_velocity), -1)  # (n, D, 2)
        self.dof[env_ids[:, None], self.dofs] = dof
        # a second indexed call before the next simulation would undo the first: all wait for step()
        self.pending = env_ids if self.pending is None else torch.cat((self.pending, env_ids)).unique()

    def step(self, targets: Tensor) -> Tuple[MotionState, Tensor]:
        gym, sim, n = self.gym, self.sim, len(targets)
        if self.pending is not None:
            self.ids = self.actors[
                self.pending
            ]  # a member, like all that PhysX reads: it has to live until the simulation
            ids, self.pending = gymtorch.unwrap_tensor(self.ids), None
            gym.set_actor_root_state_tensor_indexed(sim, gymtorch.unwrap_tensor(self.root), ids, len(self.ids))
            gym.set_dof_state_tensor_indexed(sim, gymtorch.unwrap_tensor(self.dof_state), ids, len(self.ids))
        self.target[:n, self.dofs] = targets
        gym.set_dof_position_target_tensor(sim, gymtorch.unwrap_tensor(self.target))
        for _ in range(self.substeps):
            gym.simulate(sim)
        if not self.on_gpu:
            gym.fetch_results(sim, True)
        gym.refresh_actor_root_state_tensor(sim)
        gym.refresh_dof_state_tensor(sim)
        root, dof = self.root[:n], self.dof[:n, self.dofs]  # (n, 13), (n, D, 2)
        fast = torch.cat((root[:, 7:], dof[..., 1]), -1).abs().amax(-1)
        sound = torch.isfinite(root).all(-1) & torch.isfinite(dof).flatten(1).all(-1) & (fast < MAX_SPEED)
        root, dof = (
            torch.where(sound[:, None], root, self.rest),
            torch.where(sound[:, None, None], dof, torch.zeros_like(dof)),
        )
        q, angular = root[:, 3:7], root[:, 10:]
        linear = root[:, 7:10] - torch.linalg.cross(angular, ml.quat_rotate(q, self.com))
        rotations = ml.rotations_from_dofs(self.character, q, dof[..., 0])
        return MotionState(root[:, :3], rotations, linear, angular, dof[..., 1]), ~sound

    def snapshot(self) -> List[Tensor]:
        return [self.root.clone(), self.dof.clone(), self.target.clone()]

    def restore(self, snapshot: List[Tensor]) -> None:
        for mine, kept in zip((self.root, self.dof, self.target), snapshot):
            mine.copy_(kept)
        self.pending = torch.arange(len(self.root), device=self.device)

    def render(self) -> np.ndarray:
        if self.on_gpu:  # step() has done so on the CPU
            self.gym.fetch_results(self.sim, True)
        self.gym.step_graphics(self.sim)
        x, y, z = self.root[0, :3].tolist()
        self.gym.set_camera_location(
            self.camera, self.filmed, gymapi.Vec3(x + 1.7, y - 3.0, z + 0.9), gymapi.Vec3(x, y, z)
        )
        self.gym.render_all_camera_sensors(self.sim)
        image = self.gym.get_camera_image(self.sim, self.filmed, self.camera, gymapi.IMAGE_COLOR)
        return np.asarray(image, dtype=np.uint8).reshape(*PICTURE, 4)[..., :3].copy()


# ---- 4. Environment ------------------------------------------------------------------------------------------------------------

POOL_STEPS = 32  # control steps until the initial states are drawn anew


class Goals:
    """Target heading (N,) [rad, world] and speed (N,) [m/s], which drift as in DeepMimic's code, or follow commands."""

    def __init__(self, args: Args, num_envs: int, dt: float, generator: torch.Generator) -> None:
        self.args, self.dt, self.generator, self.num_envs = args, dt, generator, num_envs
        self.commands: Optional[Tuple[Tensor, Tensor, Tensor]] = (
            None  # times (C,) [s], headings (C, N) [rad], speeds (C, N) [m/s]
        )
        self.heading, self.speed, self.timer = torch.zeros(
            3, num_envs, device=generator.device
        )  # timer: until the next change [s]

    def uniform(self, low: float, high: float) -> Tensor:
        """Random numbers for all environments, whether they need one or not. (N,)."""
        return low + (high - low) * torch.rand(self.num_envs, generator=self.generator, device=self.generator.device)

    def update(self, steps: Tensor) -> None:
        """A control step further; steps (N,) since the start of the episode, where all begins anew."""
        args, new = self.args, steps == 0
        due = new | (self.timer <= 0)
        turn = args.turn_std * torch.randn(self.num_envs, generator=self.generator, device=steps.device)
        turn = torch.where(self.uniform(0, 1) < args.sharp_turn_share, self.uniform(-math.pi, math.pi), turn)
        self.heading = torch.where(new, 0.0, self.heading + due * turn)
        changed = new | (due & (self.uniform(0, 1) < args.speed_change_share))
        self.speed = torch.where(changed, self.uniform(*args.speed_range), self.speed)
        self.timer = torch.where(due, self.uniform(*args.change_seconds), self.timer) - self.dt
        if self.commands is not None:
            row = (torch.searchsorted(self.commands[0], steps * self.dt + 1e-4) - 1)[None]  # (1, N)
            self.heading, self.speed = (x.gather(0, row)[0] for x in self.commands[1:])

    def append(self, obs: Tensor, yaw: Tensor) -> Tensor:
        """Observations (N, D - G) with the goal, [cos, sin, v*] of the angle from where the character faces, yaw (N,) [rad]. (N, D)."""
        return torch.cat(
            (obs, torch.stack((torch.cos(self.heading - yaw), torch.sin(self.heading - yaw), self.speed), -1)), -1
        )


class AMPEnv:
    """The character on flat ground as a vector environment: Gymnasium's convention with torch tensors, reset in the same step.

    Observations are (N, D), actions (N, A); info["final_obs"] is the observation before the reset of environments that are done,
    info["disc_obs"] (N, P) the transition that the discriminator judges: it never spans a reset."""

    def __init__(self, args: Args, motions: MotionLib, sim: Sim, num_envs: int, episode_steps: int) -> None:
        """Use the first num_envs copies of the character in sim. Raises InputError for a character or clips that do not serve."""
        self.character, device = motions.character, motions.length.device
        self.motions, self.sim, self.device, self.num_envs, self.episode_steps = (
            motions,
            sim,
            device,
            num_envs,
            episode_steps,
        )
        character = self.character
        self.start_share = {"random": 0.0, "hybrid": 0.5, "start": 1.0}[args.reset_mode]
        self.dt = 1.0 / args.control_hz  # control step [s]
        self.physics_seconds = self.step_seconds = 0.0  # spent in the simulator, in all of step()
        absent = [name for name in KEY_BODIES if name not in character.body_names]
        if absent:
            raise InputError(f"{character.path}: the character has no {', '.join(absent)}, which observations need")
        if bool((motions.length < self.dt).any()):
            raise InputError(
                f"{motions.files[int(motions.length.argmin())]}: shorter than one control step, {self.dt:.3f} s"
            )
        self.generator = torch.Generator(device)
        self.goals = Goals(args, num_envs, self.dt, self.generator)
        # Zero action is the clips' mean pose: a mid-range pose (knees and elbows bent by 80 degrees) learns far more slowly.
        self.action_offset, lowest, _ = motions.statistics()  # (A,) [rad], (J,) [m]
        self.action_scale = args.action_scale
        # A fall is ground contact of a body, the feet excepted, that the clips keep off the ground by at least 0.05 m.
        watched = [name not in FEET and low > 0.05 for name, low in zip(character.body_names, lowest.tolist())]
        self.fall_bodies = torch.tensor(watched, device=device).nonzero()[:, 0]
        self.clip, self.steps = torch.zeros(
            2, num_envs, dtype=torch.long, device=device
        )  # clip that the episode started in; its steps
        self.time = torch.zeros(num_envs, device=device)  # where in the clip it started [s]
        self.next, self.pool_age = (
            torch.zeros((), dtype=torch.long, device=device),
            0,
        )  # row of the pool that is next; steps since a reset
        self.yaw = torch.zeros(num_envs, device=device)  # where it faces [rad]
        obs_size = self._new_pool()[-1].shape[1]
        self.disc_obs_size = 2 * obs_size
        # Gymnasium's Box spaces, as far as a learner needs them
        self.single_observation_space = SimpleNamespace(shape=(obs_size + GOAL,))
        self.single_action_space = SimpleNamespace(shape=(len(character.dof_names),))

    def reset(self, seed: Optional[int] = None) -> Tuple[Tensor, Dict[str, Any]]:
        """Start all episodes anew: obs (N, D), info with the "state" that they start from."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self.pool, self.pool_age, self.next = self._new_pool(), 0, torch.zeros_like(self.next)
        info = {"state": MotionState(*self.pool[2:7])}
        seen = self._reset(torch.ones_like(self.clip, dtype=torch.bool), self.pool[-1])
        self.goals.update(self.steps)
        self.obs = self.goals.append(seen, self.yaw)
        return self.obs, info

    def _new_pool(self) -> List[Tensor]:
        """N initial states by reference state initialisation: clip (N,), time (N,) [s], the five tensors of a MotionState, obs (N, D).

        Drawn in advance, every POOL_STEPS steps, because a few states a step would cost as much as many at once."""
        clip, start = self.motions.sample(self.num_envs, self.dt, self.generator)
        start = start * (torch.rand(self.num_envs, generator=self.generator, device=self.device) >= self.start_share)
        state = self.motions.state(clip, start)
        yaw = self.goals.uniform(-math.pi, math.pi) * (self.goals.commands is None) - ml.heading(state.rotations[:, 0])
        state = ml.turn_state(state, ml.quat_from_yaw(yaw))
        body_position, body_rotation = ml.forward_kinematics(self.character, state.root_position, state.rotations)
        # a pose that reaches into the ground would be thrown up by the contact solver
        raised = (-ml.lowest_points(self.character, body_position, body_rotation).amin(-1)).clamp_min(0.0)  # (N,) [m]
        state.root_position[:, 2] += raised
        return [clip, start, *state, observe(state, body_position, self.character)]

    def _reset(self, done: Tensor, obs: Tensor) -> Tensor:
        """Put environments that are done (N,) into the pool's next states -> obs (N, D), where done the first one of the episode.

        All shapes are known beforehand, so that the host need not wait for a GPU to say how many are done."""
        rows = (self.next + done.cumsum(0) - 1) % self.num_envs  # (N,) its states take turns
        self.next = (rows[-1] + 1) % self.num_envs
        clip, start, *state, first = (x.index_select(0, rows) for x in self.pool)
        self.sim.set_state(done, MotionState(*state))
        self.yaw = torch.where(done, ml.heading(MotionState(*state).rotations[:, 0]), self.yaw)
        self.clip, self.time, self.steps = (
            torch.where(done, clip, self.clip),
            torch.where(done, start, self.time),
            self.steps * ~done,
        )
        return torch.where(done[:, None], first, obs)

    def snapshot(self) -> Dict[str, Any]:
        """All that the coming episodes depend on, for restore: the simulator's state, every tensor of this object, the random state."""
        tensors = {name: x.clone() for name, x in {**vars(self), **vars(self.goals)}.items() if isinstance(x, Tensor)}
        pool = {"pool": list(self.pool), "pool_age": self.pool_age}
        return {"sim": self.sim.snapshot(), "tensors": tensors, **pool, "generator": self.generator.get_state()}

    def restore(self, snapshot: Dict[str, Any]) -> None:
        """Go back to a snapshot. Raises ValueError or the like if it is one of another environment."""
        self.sim.restore(snapshot["sim"])
        for name, x in snapshot["tensors"].items():
            getattr(self if name in vars(self) else self.goals, name).copy_(x)
        self.pool_age, self.pool = (
            snapshot["pool_age"],
            [own.copy_(x) for own, x in zip(self._new_pool(), snapshot["pool"])],
        )
        self.generator.set_state(snapshot["generator"])

    def step(self, action: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor, Dict[str, Any]]:
        """One control step under actions (N, A) -> obs (N, D), task reward (N,), terminated (N,), truncated (N,), info."""
        started = time.perf_counter()
        state, diverged = self.sim.step(self.action_offset + self.action_scale * action)
        self.physics_seconds += time.perf_counter() - started
        # whatever the simulator missed: NaN, infinities and a character in the sky never reach the networks
        numbers = torch.cat(
            [x.flatten(1) for x in (*state, 1e4 * state.root_position[:, 2:])], -1
        )  # 1e4: z may be 100 times less than x
        diverged = diverged | ~(numbers.abs().amax(-1) < 1e6)
        state = MotionState(*(x.nan_to_num(0.0, 0.0, 0.0) for x in state))
        body_position, body_rotation = ml.forward_kinematics(self.character, state.root_position, state.rotations)
        # after a step that broke the physics nothing has been seen, and nothing is earned
        seen = torch.where(diverged[:, None], self.obs[:, :-GOAL], observe(state, body_position, self.character))
        self.yaw = ml.heading(state.rotations[:, 0])
        final_obs = self.goals.append(seen, self.yaw)
        off = (
            torch.atan2(state.root_velocity[:, 1], state.root_velocity[:, 0]) - self.goals.heading
        )  # of the way it moves [rad]
        progress = state.root_velocity[:, :2].norm(dim=-1) * torch.cos(off)  # (N,) d* . v [m/s]
        disc_obs = torch.cat((self.obs[:, :-GOAL], seen), -1)  # (N, P)
        self.steps += 1
        lowest = ml.lowest_points(self.character, body_position, body_rotation).index_select(-1, self.fall_bodies)
        terminated = (lowest <= 0.005).any(-1) | diverged  # PhysX may hold what lies on the ground a hair above it
        truncated = (self.steps >= self.episode_steps) & ~terminated
        reward = task_reward(progress, self.goals.speed) * ~terminated
        scores = dict(
            speed_error_m_s=(self.goals.speed - progress).abs(),
            heading_error_deg=torch.rad2deg(torch.acos(torch.cos(off))),
        )
        info = {
            "final_obs": final_obs,
            "disc_obs": disc_obs,
            "state": state,
            "body_position": body_position,
            "diverged": diverged,
        }
        info.update(
            scores=dict(scores, speed_m_s=forward_speed(state), task_reward=reward), episode_length=self.steps.clone()
        )
        self.pool_age += 1
        if self.pool_age % POOL_STEPS == 0:
            self.pool = self._new_pool()
        seen = self._reset(terminated | truncated, seen)
        self.goals.update(self.steps)
        self.obs = self.goals.append(seen, self.yaw)
        self.step_seconds += time.perf_counter() - started
        return self.obs, reward, terminated, truncated, info


# ---- 5. Several processes under torchrun (without it there is one, whose averages are its own) ---------------------------------


def in_group() -> bool:
    """Whether join_processes has found torchrun; with one process as well."""
    return dist.is_available() and dist.is_initialized()


def processes(local: bool = False) -> Tuple[int, int]:
    """Rank of this process and number of processes, (0, 1) without torchrun; local: of those on this machine."""
    if not in_group():
        return 0, 1
    rank, world = ("LOCAL_RANK", "LOCAL_WORLD_SIZE") if local else ("RANK", "WORLD_SIZE")
    return int(os.environ[rank]), int(os.environ[world])


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around what all processes do at the same time. Raises InputError when that fails."""
    try:
        yield
    except RuntimeError as error:
        advice = "what it said, if it could, stands above; --resume goes on from the last checkpoint"
        raise InputError(
            f"another process is gone or does not answer ({str(error).splitlines()[0][-80:]}); {advice}"
        ) from error


def launcher_store(server: bool = False) -> Any:
    """torchrun's own key-value store, which outlives these processes; server: of a torchrun that has none, this process is to be it."""
    return dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=server, wait_for_workers=False
    )


def name_attempt(store: Any, rank: int, world: int) -> str:
    """A name that process 0 gives this attempt: the store still holds what those before a restart have left, whose counts may differ."""
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"hello {rank}", own)
        name = store.get(f"welcome {own}").decode()  # waits for it
        store.set(f"thanks {name} {rank}", "1")
        return name
    for other in range(1, world):  # whose greeting may be an old one at first
        while store.compare_set(f"thanks {own} {other}", "", "") != b"1":
            store.set("welcome " + store.get(f"hello {other}").decode(), own)
            time.sleep(0.02)
    return own


def join_processes() -> Optional[str]:
    """Join the other processes of torchrun, if it is the launcher -> after a restart (--max-restarts) the run to go on with, or None."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return None
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not kept and int(os.environ["TORCHELASTIC_RESTART_COUNT"]) > 0:
        raise InputError(
            "this torchrun does not remember the run; --resume it, and leave out --standalone (PyTorch 2.4)"
        )
    with together():
        store = launcher_store(server=rank == 0 and not kept)
        backend, patience = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", datetime.timedelta(hours=1)
        attempt = dist.PrefixStore(name_attempt(store, rank, world), store)
        dist.init_process_group(backend, timeout=patience, store=attempt, rank=rank, world_size=world)
        run = (
            store.compare_set("run", "", "").decode() if rank == 0 else ""
        )  # what start_run has left there, or nothing
        found = [run if any(os.path.exists(os.path.join(run, x)) for x in CHECKPOINTS) else None]
        dist.broadcast_object_list(found)  # they go on together, or not at all
    return found[0]


def average(x: Tensor) -> Tensor:
    """Mean over the processes of a tensor that each of them has, in its place."""
    world = processes()[1]
    if world > 1:
        with together():
            dist.all_reduce(x)
        x /= world
    return x


def moments(x: Tensor) -> Tuple[Tensor, Tensor]:
    """Mean and variance of the rows (n, ...) of all processes, n the same in each. (...), (...)."""
    var, own = torch.var_mean(x, 0, unbiased=False)
    mean = average(own.clone())
    # E[(x - mean)^2] = E_processes[var + (own - mean)^2]
    return mean, average(var + (own - mean) ** 2)


def average_gradients(*nets: nn.Module) -> None:
    """Give parameters the mean of their gradients over the processes, which is the gradient of the mean loss."""
    if processes()[1] > 1:
        gradients = [parameter.grad for net in nets for parameter in net.parameters()]
        mean = average(torch.cat([x.flatten() for x in gradients]))  # one message
        for x, new in zip(gradients, mean.split([x.numel() for x in gradients])):
            x.copy_(new.view_as(x))


def gather(part: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The part of each process, by rank, on the CPU of process 0; nothing elsewhere. Every process has to call it."""
    rank, world = processes()
    if world == 1:
        return [part]
    buffer, parts = io.BytesIO(), [b""] * world
    torch.save(part, buffer)
    with together():
        dist.gather_object(buffer.getvalue(), parts if rank == 0 else None)
    return [torch.load(io.BytesIO(x), map_location="cpu", weights_only=True) for x in parts] if rank == 0 else []


# ---- 6. Networks, normaliser, replay buffer ------------------------------------------------------------------------------------


class Normaliser(nn.Module):
    """Running mean and variance of the rows that all processes have updated it with; part of the checkpoint."""

    def __init__(self, size: int) -> None:
        super().__init__()
        for name, value in (("mean", torch.zeros(size)), ("var", torch.ones(size)), ("count", torch.zeros(()))):
            self.register_buffer(name, value)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Merge the moments of rows (n, size) into the running ones (Chan et al. 1979)."""
        mean, var = moments(x)
        n = len(x) * processes()[1]
        total = self.count + n
        delta = mean - self.mean
        self.var.copy_((self.var * self.count + var * n + delta**2 * self.count * n / total) / total)
        self.mean.add_(delta * n / total)
        self.count.copy_(total)

    def forward(self, x: Tensor) -> Tensor:
        """(x - mean) / std, clipped to [-5, 5]."""
        return ((x - self.mean) / torch.sqrt(self.var + 1e-5)).clamp(-5.0, 5.0)

    def undo(self, x: Tensor) -> Tensor:
        """Inverse of forward, within its clipping range."""
        return x * torch.sqrt(self.var + 1e-5) + self.mean


def mlp(size_in: int, hidden: Tuple[int, int], size_out: int, last_gain: float) -> nn.Sequential:
    """ReLU network with two hidden layers; last_gain scales the last layer's initial weights."""
    layers = [nn.Linear(*size) for size in zip((size_in, *hidden), (*hidden, size_out))]
    for layer, gain in zip(layers, (math.sqrt(2.0), math.sqrt(2.0), last_gain)):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


class Agent(nn.Module):
    """Actor (mean action), critic (normalised value), discriminator (logit), and the normalisers of what they read."""

    def __init__(
        self, obs_size: int, disc_size: int, action_size: int, hidden: Tuple[int, int], action_std_log: float
    ) -> None:
        super().__init__()
        self.obs_norm, self.disc_norm, self.return_norm = Normaliser(obs_size), Normaliser(disc_size), Normaliser(1)
        self.actor = mlp(obs_size, hidden, action_size, 0.01)
        self.critic = mlp(obs_size, hidden, 1, 1.0)
        self.disc = mlp(disc_size, hidden, 1, 1.0)
        self.action_std = math.exp(action_std_log)

    def log_prob(self, mean: Tensor, action: Tensor) -> Tensor:
        """Log density of actions under the Gaussian policy, up to its constant. (..., A), (..., A) -> (...)."""
        return -0.5 * (((action - mean) / self.action_std) ** 2).sum(-1)

    def value(self, obs: Tensor) -> Tensor:
        """Expected return of raw observations (..., D) -> (...)."""
        return self.return_norm.undo(self.critic(self.obs_norm(obs)))[..., 0]


class ReplayBuffer:
    """The character's past transitions. Fills up, then keeps a random part: newcomers replace random old rows."""

    def __init__(self, capacity: int, width: int, device: torch.device) -> None:
        self.data = torch.zeros(capacity, width, device=device)
        self.size = 0

    def add(self, rows: Tensor, keep: int) -> None:
        """Store rows (n, width) while there is room; once full, `keep` random ones over random old ones."""
        room = len(self.data) - self.size
        rows = rows[torch.randperm(len(rows), device=rows.device)[: room or min(keep, len(self.data))]]
        if room:
            self.data[self.size : self.size + len(rows)] = rows
            self.size += len(rows)
        else:
            self.data[torch.randperm(len(self.data), device=rows.device)[: len(rows)]] = rows

    def sample(self, n: int) -> Tensor:
        """n rows, drawn with replacement: (n, width)."""
        return self.data[torch.randint(self.size, (n,), device=self.data.device)]


# ---- 7. Losses and advantages --------------------------------------------------------------------------------------------------


def disc_losses(disc: nn.Module, demo: Tensor, agent: Tensor, disc_loss: str) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Classification loss, gradient penalty, and logits of clip and character (n,) for normalised transitions (n, P)."""
    demo = demo.detach().requires_grad_(True)
    demo_logit, agent_logit = disc(demo)[:, 0], disc(agent)[:, 0]
    if disc_loss == "bce":
        # L = -E_clip[log D] - E_agent[log(1 - D)],   D = sigmoid(logit)
        loss = F.softplus(-demo_logit).mean() + F.softplus(agent_logit).mean()
    else:
        # L = E_clip[(D - 1)^2] + E_agent[(D + 1)^2]   (AMP paper, equation 6)
        loss = ((demo_logit - 1.0) ** 2).mean() + ((agent_logit + 1.0) ** 2).mean()
    # E_clip[|grad D|^2], the gradient being that of the logit   (AMP paper, equation 8)
    (gradient,) = torch.autograd.grad(demo_logit.sum(), demo, create_graph=True)
    return loss, (gradient**2).sum(-1).mean(), demo_logit, agent_logit


def gae(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float, lam: float
) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, equation 16). All (T, N) -> (T, N).

    next_value[t] is the value of the state that step t led to, before any reset; terminated cuts the bootstrap, done the trace."""
    advantage, trace = torch.zeros_like(reward), torch.zeros_like(reward[0])
    # delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
    delta = reward + gamma * next_value * (~terminated) - value
    for t in reversed(range(len(reward))):
        # A_t = delta_t + gamma lambda A_{t+1}
        trace = delta[t] + gamma * lam * trace * (~done[t])
        advantage[t] = trace
    return advantage


# ---- 8. Evaluation and checkpoints ---------------------------------------------------------------------------------------------


class Evaluation(NamedTuple):
    """What evaluate finds out."""

    metrics: Dict[str, float]
    clips: List[ml.Clip]  # roll-outs
    frames: List[np.ndarray]  # pictures of the first one, (H, W, 3) uint8, with --capture-video
    body_errors: Tensor  # (T, J-1) pose error of each body but the root over time [m]
    returns: Tensor  # (N,) task return of each episode, 1 is the best


@torch.no_grad()
def evaluate(agent: Agent, env: AMPEnv, args: Args) -> Evaluation:
    """Run the policy without noise, one episode per environment, up to env.episode_steps. The simulator is left as it was found."""
    motions, snapshot = env.motions, env.sim.snapshot()
    obs, info = env.reset(args.seed + 1000)
    limit = torch.full_like(env.steps, env.episode_steps)  # (N,) control steps
    alive = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    steps, fell, sums = torch.zeros_like(limit), torch.zeros_like(alive), defaultdict(float)
    poses, states, frames = [], [info["state"]], []
    for _ in range(env.episode_steps):
        obs, _, terminated, _, info = env.step(agent.actor(agent.obs_norm(obs)))
        style = style_reward(agent.disc(agent.disc_norm(info["disc_obs"]))[:, 0], args.disc_loss)
        for name, x in {**info["scores"], "style_reward": style}.items():
            sums[name] = sums[name] + x * alive  # (N,)
        fell |= alive & terminated
        steps += alive & ~terminated
        states.append(info["state"])
        poses.append(ml.relative_positions(info["body_position"], states[-1].rotations[:, 0]))
        if args.capture_video and alive[0]:
            frames.append(env.sim.render())
        alive &= ~terminated & (steps < limit)
        if not alive.any():
            break
    env.sim.restore(snapshot)
    metrics = dict(
        episodes=env.num_envs, mean_episode_s=float(steps.float().mean()) * env.dt, fall_rate=float(fell.float().mean())
    )
    metrics.update({name: float(x.sum() / (steps + fell).sum()) for name, x in sums.items()})
    returns = sums["task_reward"] / env.episode_steps  # (N,)
    nearest, errors = ml.nearest_clips(motions, torch.stack(poses, 1), steps, env.episode_steps, env.dt)
    metrics.update(nearest, task_return=float(returns.mean()))
    roots, rotations = (torch.stack(x, 1).cpu().numpy() for x in list(zip(*states))[:2])
    lived = (steps + 1).clamp_min(2).tolist()  # the start and every step lived; at least one step, be it a fall
    clips = [ml.Clip(args.control_hz, "clamp", x[:n], q[:n]) for x, q, n in zip(roots, rotations, lived)]
    return Evaluation(metrics, clips, frames, errors, returns)


def evaluate_grid(agent: Agent, env: AMPEnv, args: Args) -> Any:
    """Task return under constant speeds (rows) and after turns from the start's heading (columns): print a table -> its plot."""
    from matplotlib.figure import Figure

    grid = torch.arange(env.num_envs, device=env.device).reshape(4 if env.num_envs % 4 == 0 else 1, -1)
    speeds = torch.linspace(*args.speed_range, len(grid), device=env.device)
    turns = torch.linspace(-math.pi, math.pi, grid.shape[1] + 1, device=env.device)[1:]
    env.goals.commands = (0 * turns[:1], turns.repeat(len(grid))[None], speeds.repeat_interleave(len(turns))[None])
    table = evaluate(agent, env, dataclasses.replace(args, capture_video=False)).returns[grid].tolist()
    env.goals.commands = None
    columns, rows = [f"{x:.0f}" for x in torch.rad2deg(turns)], [f"{x:.1f}" for x in speeds]
    print("task return | after turns of [degrees]", *columns)
    for speed, row in zip(rows, table):
        print(f"at {speed} m/s |", *(f"{x:.2f}" for x in row))
    figure = Figure()
    axes = figure.subplots(subplot_kw=dict(xlabel="turn [degrees]", ylabel="speed [m/s]"))
    axes.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(rows)), yticklabels=rows)
    figure.colorbar(axes.imshow(table, vmin=0, vmax=1, aspect="auto"), label="task return (1 is the best)")
    return figure


def write_video(path: str, frames: List[np.ndarray], fps: int, writer: Any = None, samples: int = 0) -> None:
    """Write frames (H, W, 3) uint8 as an mp4 file and, every third of the first 300, as a moving picture in TensorBoard. Raises OSError."""
    import imageio

    imageio.mimwrite(path, frames, fps=fps, macro_block_size=None)
    if writer is not None:  # SummaryWriter.add_video would need moviepy
        from tensorboard.compat.proto.summary_pb2 import Summary

        gif = imageio.mimwrite(imageio.RETURN_BYTES, frames[:300:3], format="gif", duration=3000 / fps, loop=0)
        image = Summary.Image(height=PICTURE[0], width=PICTURE[1], colorspace=3, encoded_image_string=gif)
        writer.file_writer.add_summary(Summary(value=[Summary.Value(tag="eval/episode", image=image)]), samples)


def plot_body_errors(path: str, errors: Tensor, names: List[str], dt: float) -> None:
    """Draw the pose error of each body (T, J-1) [m] over time, a row a body, with its mean in the label."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(subplot_kw=dict(xlabel="time [s]"))
    labels = [f"{name} {mean:.3f}" for name, mean in zip(names, errors.nanmean(0).tolist())]
    axes.set_yticks(range(len(names)), labels)
    extent = (0.0, len(errors) * dt, len(names) - 0.5, -0.5)
    image = axes.imshow(errors.T.cpu().numpy(), vmin=0, aspect="auto", extent=extent, interpolation="nearest")
    figure.colorbar(image, label="pose error [m]")
    figure.savefig(path, dpi=120)


def policy_checkpoint(agent: Agent, env: AMPEnv, args: Args, samples: int, metrics: Dict[str, float]) -> Dict[str, Any]:
    """All that an evaluation needs: networks, normalisers, options."""
    character = {"bodies": env.character.body_names, "dofs": env.character.dof_names}
    content = {"script": SCRIPT, "format": FORMAT, "character": character, "samples": samples, "metrics": metrics}
    options = dict(dataclasses.asdict(args), resume=None)
    return {**content, "args": options, "agent": agent.state_dict(), "action_offset": env.action_offset}


def write_checkpoint(path: str, content: Dict[str, Any], keep: Optional[str] = None) -> None:
    """Save `content` so that at any moment a whole file stands there or at `keep`, where the one before goes. Raises OSError."""
    buffer = io.BytesIO()  # torch.save to a disk that fills up may abort the process
    torch.save(content, buffer)
    try:
        with open(path + ".tmp", "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):  # no part of a file on a full disk
            os.remove(path + ".tmp")
        raise
    if keep and os.path.exists(path):
        os.replace(path, keep)
    os.replace(path + ".tmp", path)


def load_checkpoint(path: str) -> Dict[str, Any]:
    """Read a checkpoint of this script without executing anything in it. Raises InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign pickles before it refuses them
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        kind = (checkpoint["script"], checkpoint["format"])
        if kind not in [(SCRIPT, n) for n in range(1, FORMAT + 1)]:
            raise InputError(
                f"{path}: a checkpoint of {kind[0]}, format {kind[1]}; this script reads {SCRIPT}, formats 1 to {FORMAT}"
            )
        unknown = sorted(set(checkpoint["args"]) - {field.name for field in dataclasses.fields(Args)})
        if unknown:
            raise InputError(
                f"{path}: of another version of this script; it has an option {unknown[0]}, which this one lacks"
            )
        finite = [bool(x.isfinite().all()) for x in checkpoint["agent"].values()]
        if not all(finite):
            name = list(checkpoint["agent"])[finite.index(False)]
            raise InputError(f"{path}: {name} holds NaN or infinities; take an earlier checkpoint")
    except InputError:
        raise
    except Exception as error:  # whatever the unpickler raises on a file that is not a checkpoint
        raise InputError(f"{path}: cannot be read as a checkpoint of this script ({type(error).__name__})") from error
    return checkpoint


def load_interrupted(run: str) -> Dict[str, Any]:
    """The newest checkpoint of a run that can be gone on with. Raises InputError."""
    faults = [] if os.path.isdir(run) else [f"{run}: no such folder"]
    for name in CHECKPOINTS:
        path = os.path.join(run, name)
        if os.path.exists(path):
            try:
                checkpoint = load_checkpoint(path)
                if "training" in checkpoint and checkpoint["format"] == FORMAT:
                    return checkpoint
                faults.append(
                    f"{path}: it can be evaluated, not resumed (format {checkpoint['format']}, or networks only)"
                )
            except InputError as error:
                faults.append(str(error))
    raise InputError(
        "; ".join(faults)
        or f"{run}: no latest.pt in it: the run was stopped before its first checkpoint; start it anew"
    )


class RunFolder:
    """Curves and checkpoints of a run. A disk that fills up or vanishes stops nothing: what was not written is made up for later."""

    def __init__(self, run: str, samples: int) -> None:
        """Go on with the curves in the folder `run` after `samples` control steps; whatever is in it of later ones is void."""
        self.run, self.safe, self.fault = run, samples, ""
        self.unsafe: List[
            Tuple[int, Dict[str, float]]
        ] = []  # points since the last checkpoint, whose curves may not be on the disk
        self.writer: Any = None

    def attempt(self, write: Callable[[], Any]) -> bool:
        """Write something to the folder -> whether that worked; of several failures in a row the first is told."""
        try:
            write()
        except OSError as error:
            if not self.fault:
                tqdm.write(
                    f"{self.run}: cannot be written ({error}); the training goes on, and saves when it can",
                    file=sys.stderr,
                )
            self.fault, self.writer = str(error), None
            return False
        return True

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self.writer is None or not os.path.isdir(self.run):
            os.makedirs(self.run, exist_ok=True)
            self.writer = SummaryWriter(self.run, purge_step=self.safe + 1)
            for samples, scalars in self.unsafe:
                self._add(samples, scalars)

    def _add(self, samples: int, scalars: Dict[str, float]) -> None:
        for name, x in scalars.items():
            self.writer.add_scalar(name, x, samples)

    def log(self, samples: int, scalars: Dict[str, float]) -> None:
        """A point of every curve."""
        if not self.fault:
            self.attempt(lambda: (self._open(), self._add(samples, scalars)))
        self.unsafe.append((samples, scalars))

    def save(self, samples: int, content: Dict[str, Any]) -> bool:
        """Everything up to here: the curves, latest.pt, and the checkpoint before it as previous.pt -> whether it worked."""

        def write() -> None:
            self._open()
            self.writer.flush()
            write_checkpoint(os.path.join(self.run, "latest.pt"), content, os.path.join(self.run, "previous.pt"))

        worked = self.attempt(write)
        if worked:
            if self.fault:
                tqdm.write(f"{self.run}: can be written again, and is complete", file=sys.stderr)
            self.safe, self.unsafe, self.fault = samples, [], ""
        return worked


def fit_checkpoint(path: str, checkpoint: Dict[str, Any], agent: Agent, env: AMPEnv) -> None:
    """Put a checkpoint's networks, normalisers and action offset in place. Raises InputError if it is of another character or size."""
    mine = {"bodies": env.character.body_names, "dofs": env.character.dof_names}
    try:
        theirs = checkpoint.get("character", mine)  # format 1 does not say
        for name in mine:
            if theirs[name] != mine[name]:
                odd = ", ".join(sorted(set(theirs[name]) ^ set(mine[name]))[:5]) or "their order"
                raise InputError(f"{path}: of another character than {env.character.path}; {name} differ: {odd}")
        agent.load_state_dict(checkpoint["agent"])
        env.action_offset.copy_(checkpoint["action_offset"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: does not fit these options: {' '.join(str(error).split())[:200]}") from error


def training_state(
    progress: Dict, learners: Dict, replay: ReplayBuffer, env: AMPEnv, generators: Tuple
) -> Dict[str, Any]:
    """All that the coming iterations depend on besides networks and normalisers, for restore_training.

    Every process has to call it; that of process 0 is whole."""
    states = [generator.get_state() for generator in generators] + [torch.get_rng_state()]
    states += [torch.cuda.get_rng_state(env.device)] if env.device.type == "cuda" else []
    optimizers = {name: optimizer.state_dict() for name, optimizer in learners.items()}
    rows = replay.data[: replay.size].clone()  # a view would be saved with all that it is a view of
    own = {"env": env.snapshot(), "replay": rows, "random": states}
    return {"progress": progress, "optimizers": optimizers, "processes": gather(own)}


def restore_training(
    path: str, training: Dict, learners: Dict, replay: ReplayBuffer, env: AMPEnv, generators: Tuple
) -> Dict[str, Any]:
    """Put training_state back -> progress. Raises InputError if it does not fit."""
    try:
        for name, optimizer in learners.items():
            optimizer.load_state_dict(training["optimizers"][name])
            for parameter, state in optimizer.state.items():
                if state["exp_avg"].shape != parameter.shape or state["exp_avg_sq"].shape != parameter.shape:
                    raise ValueError(f"the moments of optimizer {name} have another shape")
        parts, (rank, world) = training["processes"], processes()
        same, own = len(parts) == world, parts[rank % len(parts)]
        rows = own["replay"] if same else torch.cat([x["replay"] for x in parts])[rank::world][: len(replay.data)]
        replay.size = len(rows)
        replay.data[: replay.size].copy_(rows)
        if same:
            env.restore(own["env"])
            for generator, state in zip(generators, own["random"]):
                generator.set_state(state)
            torch.set_rng_state(own["random"][len(generators)])
            if env.device.type == "cuda":
                torch.cuda.set_rng_state(own["random"][-1], env.device)
        elif rank == 0:
            dealt = "the replay buffer is dealt out anew, episodes and random numbers start anew, the rest goes on"
            print(f"{path}: number of processes {len(parts)} before, {world} now: {dealt}", file=sys.stderr)
        return dict(training["progress"])
    except (RuntimeError, KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise InputError(
            f"{path}: its state does not fit this program: {' '.join(str(error).split())[:200]}"
        ) from error


def training_health(log: Dict[str, float], clip_speed: float) -> str:
    """What a researcher should know of these averages over many iterations, and what to try; empty if all is well."""
    sides = [log[f"disc/accuracy_{side}"] for side in ("demo", "fresh", "replay")]
    if min(sides) > 0.98 and log["reward/style"] < 0.02:
        return "the discriminator is saturated: always right, and no style reward is left; raise --grad-penalty or lower --disc-updates"
    if log["episode/length"] > 100 and abs(log["episode/speed_m_s"]) < 0.2 * clip_speed:
        return "the character stands still while the clips move; lower --gamma, or give it a task that rewards speed"
    visits = [x for name, x in log.items() if name.startswith("eval/visits_")]
    if len(visits) > 1 and max(visits) > 0.95:
        return "nearly all poses are nearest to one clip; give the others more weight in the dataset, or lower --style-weight"
    return ""


# ---- 9. Main loop --------------------------------------------------------------------------------------------------------------


def parse_args(
    argv: Optional[List[str]] = None, restarted: Optional[str] = None
) -> Tuple[Args, Optional[Dict[str, Any]]]:
    """Options of the command line, checked, and the checkpoint that --evaluate or --resume names: its options are then the defaults.

    restarted: folder of the run that torchrun has started anew, and that goes on."""
    args, checkpoint, saved = tyro.cli(Args, args=argv), None, None
    args.resume = restarted or args.resume
    if args.evaluate and args.checkpoint is not None:
        checkpoint = load_checkpoint(args.checkpoint)
        old = {
            **checkpoint["args"],
            "evaluate": True,
            "cuda": args.cuda,
            "sim": args.sim,
            "track": False,
            "capture_video": False,
        }
        args = tyro.cli(Args, args=argv, default=Args(**{**old, "resume": None}))
    elif args.resume is not None:
        checkpoint = load_interrupted(args.resume)
        saved = Args(**checkpoint["args"])
        args = dataclasses.replace(tyro.cli(Args, args=argv, default=saved), resume=args.resume)
    check_args(args)
    if saved is not None:
        shared_out = ("num_envs", "disc_batch") if len(checkpoint["training"]["processes"]) != processes()[1] else ()
        for name, value in vars(args).items():
            if value != getattr(saved, name) and name not in (*RESUMABLE, *shared_out):
                raise InputError(
                    f"--resume {args.resume}: the run has {name} {getattr(saved, name)}; start a new run for {value}"
                )
    return args, checkpoint


def start_run(args: Args) -> str:
    """Make the run's folder, with all that is needed to repeat it, or note in it that the run goes on -> its path."""
    clip, now = (
        os.path.splitext(os.path.basename(os.path.normpath(args.motion_file)))[0],
        time.strftime("%Y%m%d-%H%M%S"),
    )
    run = args.resume or os.path.join("runs", f"{args.exp_name}__{clip}__{args.sim}__{args.seed}__{now}-{os.getpid()}")
    if args.track:
        import wandb

        wandb.init(name=os.path.basename(run), config=vars(args), sync_tensorboard=True)
    os.makedirs(run, exist_ok=bool(args.resume))
    if in_group():
        with together():
            launcher_store().set("run", run)
    packages = ("torch", "numpy", "mujoco", "mujoco_warp", "warp", "isaacgym")
    versions = {name: getattr(sys.modules[name], "__version__", "unknown") for name in packages if name in sys.modules}
    versions.update(python=sys.version, platform=platform.platform())
    with open(os.path.join(run, f"args_resumed_{now}.json" if args.resume else "args.json"), "w") as file:
        told = {
            "args": dataclasses.asdict(args),
            "processes": processes()[1],
            "versions": versions,
            "command": sys.argv,
        }
        json.dump(told, file, indent=1)
    for source in (__file__, ml.__file__) if not args.resume else ():
        shutil.copy(source, run)
    return run


def note_signals() -> List[int]:
    """From now on SIGINT and SIGTERM are noted in this list, for the main loop to stop in good order; a second one ends the process.

    Under torchrun it does not: torchrun passes on what the processes may have got already, and ends them itself after 30 seconds."""
    caught: List[int] = []

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        for each in () if in_group() else (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, note)
    return caught


def main(args: Args, checkpoint: Optional[Dict[str, Any]]) -> None:
    (rank, world), (local_rank, _) = processes(), processes(local=True)
    device = torch.device("cpu" if not args.cuda else "cuda" if world == 1 else f"cuda:{local_rank}")
    if device.index is not None:
        torch.cuda.set_device(device)
    torch.manual_seed(args.seed)
    motions = MotionLib(args.motion_file, ml.load_character(args.character_file, str(device)), str(device), args.mirror)
    copies = args.eval_episodes if args.evaluate else max(args.num_envs // world, args.eval_episodes)
    simulator = {"mujoco": MujocoSim, "warp": WarpSim, "isaacgym": IsaacGymSim}[args.sim]
    sim = simulator(args, motions.character, copies, device)
    eval_env = AMPEnv(args, motions, sim, args.eval_episodes, max(round(args.eval_seconds * args.control_hz), 1))
    D, A = eval_env.single_observation_space.shape[0], eval_env.single_action_space.shape[0]
    P = eval_env.disc_obs_size  # of a transition
    agent = Agent(D, P, A, args.hidden, args.action_std_log).to(device)
    for x in agent.state_dict().values() if world > 1 else ():
        with together():
            dist.broadcast(x, 0)
    if args.evaluate:
        if rank > 0:
            return
        fit_checkpoint(args.checkpoint, checkpoint, agent, eval_env)
        commands = ml.load_commands(args.eval_commands, args.eval_episodes, str(device)) if args.eval_commands else None
        folder, source = (
            os.path.splitext(args.checkpoint)[0] + "_rollouts",
            f"roll-out of {os.path.basename(args.checkpoint)}",
        )
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        print(f"simulator {args.sim}, policy on {device}, roll-outs in {folder}")
        evaluate_grid(agent, eval_env, args).savefig(os.path.join(folder, "grid.png"))
        eval_env.goals.commands = commands
        evaluation = evaluate(agent, eval_env, args)
        if evaluation.frames:
            write_video(os.path.join(folder, "episode.mp4"), evaluation.frames, args.control_hz)
        plot = os.path.splitext(args.checkpoint)[0] + "_pose_error.png"
        plot_body_errors(plot, evaluation.body_errors, motions.character.body_names[1:], eval_env.dt)
        for n, clip in enumerate(evaluation.clips):
            ml.save_clip(
                os.path.join(folder, f"{n:03d}.npz"),
                clip,
                motions.character.body_names,
                source,
                "as the clips it imitates",
            )
        print(json.dumps(evaluation.metrics))
        return

    # Options speak of all processes; from here on sizes are those of this one: its share.
    T, N = args.num_steps, args.num_envs // world
    B, M, disc_batch = T * N, T * N // args.num_minibatches, args.disc_batch // world
    replay_size, replay_keep = -(-args.replay_size // world), -(-args.replay_keep // world)
    env, seed = AMPEnv(args, motions, sim, N, args.episode_steps), args.seed + 1_000_000 * rank
    if rank > 0:
        torch.manual_seed(seed)
    critic = {"params": agent.critic.parameters(), "lr": args.critic_learning_rate}
    # fused Adam skips a step, on the device, when its found_inf says so
    ppo_optimizer = torch.optim.Adam(
        [{"params": agent.actor.parameters(), "lr": args.learning_rate}, critic], fused=True
    )
    disc_optimizer = torch.optim.Adam(agent.disc.parameters(), lr=args.disc_learning_rate, fused=True)
    replay = ReplayBuffer(replay_size, P, device)
    demo_generator = torch.Generator(device).manual_seed(seed + 1)

    obs_buf, final_buf = torch.zeros(2, T, N, D, device=device)  # raw observations; after the step, before a reset
    disc_buf = torch.zeros(T, N, P, device=device)
    mean_buf, action_buf = torch.zeros(2, T, N, A, device=device)
    task_buf, speed_buf, length_buf, diverged_buf = torch.zeros(4, T, N, device=device)
    terminated_buf, truncated_buf = torch.zeros(2, T, N, dtype=torch.bool, device=device)

    # The normalisers start from the clip, whose states the character starts from.
    agent.disc_norm.update(demo_transitions(motions, 4096, env.dt, demo_generator))
    obs, _ = env.reset(seed)
    agent.obs_norm.update(obs)
    # what else the coming iterations depend on: how far it is, the best score, mean length of the latest episodes that ended
    progress = {"iteration": 0, "samples": 0, "best": -math.inf, "metrics": {}, "episode_length": 0.0}
    progress.update(skipped=0, skipped_in_a_row=0, diverged=0)
    learners, generators = dict(ppo=ppo_optimizer, disc=disc_optimizer), (demo_generator,)
    if args.resume:
        fit_checkpoint(args.resume, checkpoint, agent, eval_env)
        progress = restore_training(args.resume, checkpoint["training"], learners, replay, env, generators)
        obs = env.obs
        if float(average(torch.tensor(float(progress["iteration"])))) != progress["iteration"]:
            raise InputError(
                f"--resume {args.resume}: not the same checkpoint on all machines; they have to share the folder"
            )
    iterations = progress["iteration"] + (args.total_timesteps - progress["samples"]) // (B * world)
    threads, caught = torch.get_num_threads(), note_signals()
    if progress["iteration"] >= iterations:
        raise InputError(
            f"--resume {args.resume}: the run is complete; for more of it raise --total-timesteps {args.total_timesteps}"
        )
    run, started = start_run(args) if rank == 0 else "", time.time()
    folder = RunFolder(run, progress["samples"])
    options = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(args).items())
    if rank == 0:
        print(
            f"{run}: simulator {args.sim}, learning on {device}, {world} process{'es' * (world > 1)}; options: {options}"
        )
    torch.autograd.set_detect_anomaly(args.detect_anomaly)
    smooth, told, clip_speed = (
        {},
        set(),
        motions.statistics()[2],
    )  # of the log over some 200 iterations; what was said of them
    shown = dict(unit=" samples", unit_scale=True, dynamic_ncols=True, disable=rank > 0)
    bar = tqdm(
        total=progress["samples"] + (iterations - progress["iteration"]) * B * world,
        initial=progress["samples"],
        **shown,
    )
    for iteration in range(progress["iteration"] + 1, iterations + 1):
        clock, stats = [time.perf_counter()], defaultdict(list)  # stats: name -> tensors, whose mean is logged

        # 1. Roll out the policy, with torch on one core: its second thread would spin where a physics thread wants to run.
        torch.set_num_threads(1)
        with torch.no_grad():
            for t in range(T):
                mean = agent.actor(agent.obs_norm(obs))  # (N, A)
                action = mean + agent.action_std * torch.randn_like(mean)
                obs_buf[t], mean_buf[t], action_buf[t] = obs, mean, action
                obs, task_buf[t], terminated_buf[t], truncated_buf[t], info = env.step(action)
                final_buf[t], disc_buf[t], diverged_buf[t] = info["final_obs"], info["disc_obs"], info["diverged"]
                speed_buf[t], length_buf[t] = info["scores"]["speed_m_s"], info["episode_length"]
        torch.set_num_threads(threads)
        done_buf = terminated_buf | truncated_buf
        fresh = disc_buf.view(B, P)
        clock.append(time.perf_counter())

        # 2. Discriminator: clip transitions against the character's, half of them fresh and half replayed.
        replay.add(fresh, replay_keep)
        demo = demo_transitions(motions, args.disc_updates * disc_batch, env.dt, demo_generator)
        agent.disc_norm.update(torch.cat((demo, fresh[torch.randint(B, (len(demo),), device=device)])))
        for mb_demo in agent.disc_norm(demo).chunk(args.disc_updates):
            mb_fresh = fresh[torch.randint(B, (disc_batch // 2,), device=device)]
            mb_agent = agent.disc_norm(torch.cat((mb_fresh, replay.sample(disc_batch // 2))))  # (disc_batch, P)
            loss, penalty, demo_logit, agent_logit = disc_losses(agent.disc, mb_demo, mb_agent, args.disc_loss)
            squares = [(layer.weight**2).sum() for layer in agent.disc[::2]]
            regulariser = args.logit_reg * squares[-1] + args.disc_weight_decay * sum(squares)
            disc_optimizer.zero_grad()
            (loss + args.grad_penalty * penalty + regulariser).backward()
            average_gradients(agent.disc)
            norm = nn.utils.clip_grad_norm_(agent.disc.parameters(), args.max_grad_norm)
            disc_optimizer.found_inf = (~torch.isfinite(norm)).float()
            disc_optimizer.step()
            stats["policy/skipped"].append(disc_optimizer.found_inf)
            stats["disc/loss"].append(loss.detach())
            stats["disc/grad_penalty"].append(penalty.detach())
            for name, logit, sign in zip(("demo", "fresh", "replay"), (demo_logit, *agent_logit.chunk(2)), (1, -1, -1)):
                stats[f"disc/logit_{name}"].append(logit.detach())
                stats[f"disc/accuracy_{name}"].append((sign * logit > 0).float())
                term = F.softplus(-sign * logit) if args.disc_loss == "bce" else (logit - sign) ** 2
                stats[f"disc/loss_{name}"].append(term.detach())
        clock.append(time.perf_counter())

        # 3. Rewards and advantages.
        with torch.no_grad():
            style_buf = style_reward(agent.disc(agent.disc_norm(fresh)), args.disc_loss).view(T, N)
            # r_total = r_task + style_weight * r_style
            reward = task_buf + args.style_weight * style_buf
            value = agent.value(torch.cat((obs_buf, obs[None])))  # (T + 1, N)
            value, next_value = value[:-1], value[1:].clone()
            # A time-out is not the end: bootstrap from the state before the reset. No more than these can have timed out.
            late = truncated_buf.view(B).float().topk(min(N * -(-T // args.episode_steps), B)).indices
            last_value = agent.value(final_buf.view(B, D)[late])
            next_value.view(B)[late] = torch.where(truncated_buf.view(B)[late], last_value, next_value.view(B)[late])
            advantage = gae(reward, value, next_value, terminated_buf, done_buf, args.gamma, args.gae_lambda)
            returns = advantage + value
            mean, var = moments(torch.stack((advantage, returns), -1).view(B, 2))
            stats["policy/explained_variance"] = [1.0 - var[0] / var[1].clamp_min(1e-8)]
            agent.return_norm.update(returns.view(B, 1))
            b_obs = agent.obs_norm(obs_buf.view(B, D))  # normalised, like the returns
            b_returns = agent.return_norm(returns.view(B, 1))[:, 0]  # (B,)
            b_advantage = ((advantage - mean[0]) / (var[0].sqrt() + 1e-8)).view(B)
            b_mean, b_action = mean_buf.view(B, A), action_buf.view(B, A)
            b_log_prob = agent.log_prob(b_mean, b_action)  # (B,)

        # 4. PPO.
        for _ in range(args.update_epochs):
            for mb in torch.randperm(B, device=device).split(M):
                mean = agent.actor(b_obs[mb])  # (M, A)
                ratio = torch.exp(agent.log_prob(mean, b_action[mb]) - b_log_prob[mb])
                # L_clip = -E[min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)]   (Schulman et al. 2017, equation 7)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                policy_loss = -torch.minimum(ratio * b_advantage[mb], clipped * b_advantage[mb]).mean()
                value_loss = F.mse_loss(agent.critic(b_obs[mb])[:, 0], b_returns[mb])
                ppo_optimizer.zero_grad()
                (
                    policy_loss + value_loss
                ).backward()  # of two networks, each with its own learning rate and gradient norm
                average_gradients(agent.actor, agent.critic)
                norm = sum(
                    nn.utils.clip_grad_norm_(net.parameters(), args.max_grad_norm)
                    for net in (agent.actor, agent.critic)
                )
                ppo_optimizer.found_inf = (~torch.isfinite(norm)).float()
                ppo_optimizer.step()
                stats["policy/skipped"].append(ppo_optimizer.found_inf)
                # KL of two Gaussians with the same standard deviation
                kl = 0.5 * (((mean.detach() - b_mean[mb]) / agent.action_std) ** 2).sum(-1).mean()
                for name, x in dict(kl=kl, loss=policy_loss, value_loss=value_loss).items():
                    stats[f"policy/{name}"].append(x.detach())
                stats["policy/clip_fraction"].append(((ratio.detach() - 1).abs() > args.clip_coef).float())
        agent.obs_norm.update(obs_buf.view(B, D))

        # 5. Log, evaluate, save.
        samples = progress["samples"] + B * world
        stats.update(
            {
                "reward/task": [task_buf],
                "reward/style": [style_buf],
                "reward/style_weighted": [args.style_weight * style_buf],
            }
        )
        stats.update(
            {
                "reward/total": [reward],
                "episode/speed_m_s": [speed_buf],
                "episode/falls_per_step": [terminated_buf.float()],
            }
        )
        stats.update(
            {
                "episode/length": [length_buf * done_buf],
                "episode/diverged_per_step": [diverged_buf],
                "ended": [done_buf.float()],
            }
        )
        stats["stop"] = [torch.full((), float(bool(caught)), device=device)]  # all processes stop together
        # the iteration's one transfer from the device
        log = dict(
            zip(
                stats,
                average(
                    torch.stack([torch.stack([x.nanmean() for x in xs]).nanmean() for xs in stats.values()])
                ).tolist(),
            )
        )
        stop, ended = log.pop("stop") > 0, log.pop("ended")
        log["episode/length"] = log["episode/length"] / ended if ended else progress["episode_length"]
        skipped = round(log["policy/skipped"] * len(stats["policy/skipped"]))
        progress.update(
            iteration=iteration,
            samples=samples,
            episode_length=log["episode/length"],
            skipped=progress["skipped"] + skipped,
        )
        progress.update(skipped_in_a_row=(progress["skipped_in_a_row"] + skipped) * (skipped > 0))
        progress["diverged"] += round(log["episode/diverged_per_step"] * B * world)
        log.update({"policy/skipped": progress["skipped"], "episode/diverged": progress["diverged"]})
        if progress["skipped_in_a_row"] >= args.max_skipped:
            advice = "lower --learning-rate or --critic-learning-rate, or look for the cause with --detect-anomaly"
            raise InputError(
                f"{skipped} updates were not finite, nor those before; {advice}; the run's last checkpoint is sound"
            )
        left = min((1.0 - iteration / iterations) / args.anneal, 1.0) if args.anneal else 1.0
        kl_ratio = log["policy/kl"] / (args.target_kl * max(left, 0.05))
        learning_rate = ppo_optimizer.param_groups[0]["lr"] * (
            1.2 if kl_ratio < 2 / 3 else 1 / 1.2 if kl_ratio > 4 / 3 else 1.0
        )
        ppo_optimizer.param_groups[0]["lr"] = log["policy/learning_rate"] = min(max(learning_rate, 1e-6), 1e-2)
        clock.append(time.perf_counter())  # after the transfer, so that a GPU's work is counted
        seconds = dict(
            physics=env.physics_seconds,
            env=env.step_seconds,
            rollout=clock[1] - clock[0],
            training=clock[-1] - clock[0],
        )
        seconds.update(learning=clock[-1] - clock[1], disc=clock[2] - clock[1], ppo=clock[-1] - clock[2])
        env.physics_seconds = env.step_seconds = 0.0
        log.update({f"samples_per_s/{name}": B * world / x for name, x in seconds.items()})
        smooth.update({name: smooth.get(name, x) + (x - smooth.get(name, x)) / 200 for name, x in log.items()})
        saving, saved = stop or iteration == iterations or iteration % args.save_interval == 0, False
        training = training_state(progress, learners, replay, env, generators) if saving else {}
        if rank > 0:  # the rest is for process 0; the others wait for it in the next iteration
            if stop:
                break
            continue
        if iteration == iterations or (args.eval_interval and iteration % args.eval_interval == 0):
            evaluation = evaluate(agent, eval_env, args)
            progress["metrics"] = metrics = evaluation.metrics
            log.update({f"eval/{name}": x for name, x in metrics.items()})
            policy = policy_checkpoint(agent, eval_env, args, samples, metrics)
            score = metrics["task_return"]
            files = ["policy.pt"] + ["best.pt"] * (score > progress["best"])
            progress["best"] = max(progress["best"], score)
            for name in files:
                folder.attempt(lambda name=name, policy=policy: write_checkpoint(os.path.join(run, name), policy))
            if evaluation.frames:
                film = (
                    os.path.join(run, f"episode_{samples}.mp4"),
                    evaluation.frames,
                    args.control_hz,
                    folder.writer,
                    samples,
                )
                folder.attempt(lambda film=film: write_video(*film))
        folder.log(samples, log)
        trouble = training_health({**log, **smooth}, clip_speed) if iteration >= 400 else ""
        if trouble and trouble not in told:
            told.add(trouble)
            tqdm.write(f"after {samples} samples: {trouble}", file=sys.stderr)
        if saving:
            policy = policy_checkpoint(agent, eval_env, args, samples, progress["metrics"])
            saved = folder.save(samples, {**policy, "training": training})
        shown = (
            f"episode {log['episode/length']:.0f} steps, task {log['reward/task']:.2f}, style {log['reward/style']:.2f}"
        )
        bar.set_postfix_str(
            f"{shown}, pose error {progress['metrics'].get('pose_error_m', math.nan):.3f} m", refresh=False
        )
        bar.update(B * world)
        if stop:
            bar.close()
            print(
                f"stopped after {samples} samples; python {os.path.basename(__file__)} --resume {run}"
                if saved
                else f"{run}: not saved"
            )
            sys.exit(128 + (caught or [signal.SIGTERM])[0])
    bar.close()
    if rank > 0:
        return
    figure = evaluate_grid(agent, eval_env, args)
    folder.attempt(
        lambda: (figure.savefig(os.path.join(run, "grid.png")), folder.writer.add_figure("eval/grid", figure, samples))
    )
    folder.attempt(lambda: folder.writer and folder.writer.close())
    if not saved:
        raise InputError(
            f"{run}: could not be written ({folder.fault}); free some space and --resume it, if it has a latest.pt"
        )
    print(
        f"{(time.time() - started) / 60:.1f} minutes; python {os.path.basename(__file__)} --evaluate --checkpoint {run}/latest.pt"
    )
    print(json.dumps(progress["metrics"]))


if __name__ == "__main__":
    status: Any = 0
    try:
        restarted = join_processes()
        quiet = io.StringIO() if processes()[0] > 0 else None  # where all processes say the same, the first one says it
        with contextlib.redirect_stdout(quiet or sys.stdout), contextlib.redirect_stderr(quiet or sys.stderr):
            options = parse_args(restarted=restarted)
        main(*options)
    except (InputError, OSError) as error:
        print(f"error: {f'process {processes()[0]}: ' if processes()[0] else ''}{error}", file=sys.stderr)
        status = 2
    except SystemExit as end:
        status = end.code
    if (
        in_group()
    ):  # threads of gloo that still hold a tensor abort an interpreter that is taken down (pytorch issue 190489)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)
    if status:
        sys.exit(status)
