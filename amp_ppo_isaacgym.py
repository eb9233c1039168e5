"""Adversarial Motion Priors with PPO, in one file: a simulated humanoid learns to move like a recorded clip, at a chosen speed.

Paper: Peng, Ma, Abbeel, Levine, Kanazawa, "AMP: Adversarial Motion Priors for Stylized Physics-Based Character Control",
ACM Trans. Graph. 40(4), 2021 (arXiv 2104.02180).

    python amp_ppo_isaacgym.py                                          # walk; about 10 minutes on two CPU cores
    python amp_ppo_isaacgym.py --motion-file motions/run.npz --total-timesteps 5000000
    python amp_ppo_isaacgym.py --evaluate --checkpoint pretrained/walk.pt

A discriminator D learns to tell the clip's transitions (s, s') from the character's; the better the character fools it, the
larger its style reward; PPO maximises that plus a task reward:

    L_disc  = -E_clip[log D(s, s')] - E_agent[log(1 - D(s, s'))]
    r_style = -log(1 - D(s, s'))
    r_total = r_task + style_weight * r_style

What differs from the paper: cross entropy instead of least squares (--disc-loss lsgan is the paper's), PD targets around the
clip's mean pose, a critic with normalised returns and its own learning rate, a policy learning rate steered by the KL divergence.

Dimension key: T steps, N envs of a process, B = T N, M minibatch, D observation, S discriminator steps, A actions, J bodies,
K key bodies. Conventions (frames, units, quaternions): motion_lib.py. Physics is in simulators/, what a training keeps besides
its algorithm (several processes, log, checkpoints) in training_run.py, the judging of motion in evaluation.py.
"""

import dataclasses
import json
import math
import os
from collections import defaultdict
from typing import Any, Dict, Iterator, List, Literal, NamedTuple, Optional, Tuple

import simulators  # before torch: Isaac Gym insists on it
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from gymnasium.spaces import Box
from torch import Tensor, nn
from typing_extensions import Annotated

import evaluation
import motion_lib as ml
import training_run
from motion_lib import Character, InputError, MotionLib, MotionState
from training_run import average, by_device, moments

KIND = "amp_ppo_isaacgym"  # of checkpoints; those of another kind are refused

# ---- 1. Options ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Run:
    """What is run, where, and how long."""

    exp_name: str = KIND
    """first part of the run's name; the run is written to runs/<exp_name>__<clip>__<sim>__<seed>__<time>-<process>"""
    seed: int = 1
    """seed of everything random; the same seed on the same CPU, with as many processes, gives the same numbers"""
    cuda: bool = torch.cuda.is_available()
    """learn on the GPU; by default when PyTorch finds one"""
    sim: Literal["auto", "mujoco", "warp", "isaacgym"] = "auto"
    """the simulator; auto takes Isaac Gym when it can be imported, else MuJoCo, with --cuda MuJoCo Warp if installed"""
    total_timesteps: by_device(int, 3_000_000, 100_000_000) = None
    """control steps of training, summed over environments (never measured on CUDA)"""
    save_interval: int = 250
    """save everything every so many iterations, and at the end"""
    resume: Optional[str] = None
    """go on with an interrupted run, given its folder; its options are the defaults then"""
    track: bool = False
    """log to Weights & Biases as well (pip install wandb; its WANDB_PROJECT and WANDB_ENTITY say where)"""


@dataclasses.dataclass
class Data:
    """What is imitated, by whom, and where an episode begins and ends."""

    motion_file: str = "motions/walk.npz"
    """clip to imitate (.npz), folder of clips, or dataset file (.json); formats in motions/README.md"""
    character_file: str = "motions/humanoid.xml"
    """the character (MJCF)"""
    reset_mode: Literal["random", "start", "hybrid"] = "random"
    """where in the clip an episode starts: anywhere (reference state initialisation), at its start, or either, evenly"""
    episode_steps: int = 300
    """control steps until a time-out (300 = 10 s, IsaacGymEnvs)"""
    control_hz: int = 30
    """control steps per second [Hz] (DeepMimic)"""
    substeps: int = 4
    """physics steps per control step"""
    action_scale: float = 1.2
    """PD target = the clip's mean pose + action_scale * action [rad]"""


@dataclasses.dataclass
class Task:
    """What the character is to do, and how much its style counts."""

    task: Literal["speed", "none"] = "speed"
    """speed: r_task = exp(-2 (v - target_speed)^2); none: r_task = 0, pure imitation as in the paper's table 3"""
    target_speed: Annotated[Optional[float], tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")] = None
    """forward speed for --task speed [m/s] (default: the clips' mean forward speed)"""
    style_weight: float = 2.0
    """style_weight in r_total = r_task + style_weight * r_style; public AMP code uses 2"""


@dataclasses.dataclass
class Training:
    """PPO."""

    num_envs: by_device(int, 512, 4096) = None
    """parallel environments, shared out among all processes"""
    num_steps: by_device(int, 8, 16) = None
    """control steps T per environment and iteration"""
    gamma: float = 0.95
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
    anneal: float = 0.0
    """share of the training, at its end, over which target_kl falls to a twentieth; it ends the coming and going of falls"""
    critic_learning_rate: float = 5e-4
    """Adam's learning rate for the critic"""
    clip_coef: float = 0.2
    """PPO's clipping range of the probability ratio"""
    max_grad_norm: float = 1.0
    """gradients are scaled down to this norm, for each network"""
    action_std_log: float = -2.5
    """natural logarithm of the fixed standard deviation of the action noise (e^-2 topples the character)"""
    hidden: by_device(Tuple[int, int], (256, 128), (1024, 512)) = None
    """widths of the hidden layers of all three networks"""


@dataclasses.dataclass
class Discriminator:
    """The motion prior."""

    disc_loss: Literal["bce", "lsgan"] = "bce"
    """bce: cross entropy; lsgan: least squares, the paper's equation 6 with the style reward of its equation 7"""
    disc_steps: int = 2
    """successive states that the discriminator sees (2 is the paper's, 10 MimicKit's)"""
    disc_learning_rate: float = 2e-4
    """Adam's learning rate for the discriminator"""
    disc_updates: by_device(int, 2, 6) = None
    """discriminator updates per iteration"""
    disc_batch: by_device(int, 1024, 4096) = None
    """clip transitions per update, of all processes, and as many of the character's, half of them replayed"""
    grad_penalty: float = 5.0
    """weight of the gradient penalty on clip transitions (IsaacGymEnvs; the paper's code uses 10 / 2)"""
    logit_reg: float = 0.05
    """weight of the squared weights of the discriminator's last layer (IsaacGymEnvs)"""
    disc_weight_decay: float = 1e-4
    """weight of the squared weights of all the discriminator's layers (IsaacGymEnvs)"""
    replay_size: int = 200_000
    """transitions in the replay buffer, shared out among all processes"""
    replay_keep: int = 512
    """transitions of an iteration, drawn at random, that replace random old ones once the buffer is full"""


@dataclasses.dataclass
class Evaluation:
    """How the policy is judged, without noise, now and then or alone."""

    evaluate: bool = False
    """no training: evaluate --checkpoint, print one JSON object and write the roll-outs as clips beside it"""
    checkpoint: Optional[str] = None
    """checkpoint to evaluate"""
    eval_interval: by_device(int, 100, 250) = None
    """evaluate every so many iterations, and at the end (0: only at the end)"""
    eval_episodes: int = 32
    """episodes of an evaluation"""
    eval_seconds: float = 20.0
    """longest evaluation episode [s] (the paper's 20)"""
    capture_video: bool = False
    """film one episode of each evaluation, as mp4 in the run's folder or beside the roll-outs (pip install imageio[ffmpeg])"""


Args = training_run.merge_options(__doc__.split("\n")[0], Run, Data, Task, Training, Discriminator, Evaluation)


def check_args(args: Args) -> None:
    """Refuse options that cannot work. Raises InputError."""
    from_zero = "seed style_weight gamma gae_lambda grad_penalty logit_reg disc_weight_decay eval_interval anneal".split()
    signed = ("action_std_log", "target_speed")
    for name, value in vars(args).items():
        for x in value if isinstance(value, tuple) else (value,):
            if type(x) in (int, float) and not (abs(x) < 1e15 and (name in signed or x > 0 or x == 0 and name in from_zero)):
                raise InputError(f"--{name.replace('_', '-')} {value}: expected a finite number above, or in places from, 0")
    if args.task == "none" and args.target_speed is not None and not args.evaluate:
        raise InputError("--target-speed needs --task speed")
    if not -10 <= args.action_std_log <= 2:
        raise InputError("--action-std-log has to lie between -10 and 2")
    if args.gamma >= 1 or max(args.gae_lambda, args.anneal) > 1:
        raise InputError("--gamma has to lie below 1, --gae-lambda and --anneal at most at 1")
    if args.disc_steps < 2:
        raise InputError("--disc-steps: the discriminator judges transitions, 2 states at least")
    batch = math.ceil(args.num_envs / training_run.processes(args.cuda).world) * args.num_steps
    if batch % args.num_minibatches:
        raise InputError(f"--num-minibatches {args.num_minibatches} does not divide the batch of a process, {batch}")
    if args.total_timesteps < args.num_envs * args.num_steps:
        raise InputError(f"--total-timesteps is less than one batch, {args.num_envs * args.num_steps}")
    args.sim = simulators.choose(args.sim, args.cuda)


# ---- 2. Observations and rewards -------------------------------------------------------------------------------------

KEY_BODIES = ("right_hand", "left_hand", "right_foot", "left_foot")
FEET = ("right_foot", "left_foot")


def observe(state: MotionState, body_position: Tensor, character: Character) -> Tensor:
    """What policy and discriminator see of one instant; all in the heading frame of the root (IsaacGymEnvs' selection).

    state: batch (...); body_position (..., J, 3) world [m] -> (..., D): root height [m] 1, root rotation 6, root linear 3 [m/s]
    and angular 3 [rad/s] velocity, ball joints 6 each, hinges 1 each [rad], dof velocities [rad/s], key bodies from the root
    3 each [m]."""
    root = state.rotations[..., 0, :]
    to_heading = ml.quat_from_yaw(-ml.heading(root))  # (..., 4)
    keys = torch.stack([body_position[..., character.body_names.index(name), :] for name in KEY_BODIES], -2)
    key_position = keys - body_position[..., :1, :]  # (..., K, 3)
    vectors = torch.cat((state.root_velocity[..., None, :], state.root_angular_velocity[..., None, :], key_position), -2)
    vectors = ml.quat_rotate(to_heading[..., None, :], vectors).flatten(-2)  # (..., 6 + 3 K)
    hinge = state.rotations.index_select(-2, character.hinges)
    angle = (ml.rotvec_from_quat(hinge) * character.dof_axis[character.hinge_dofs]).sum(-1)
    balls = ml.tangent_normal(state.rotations.index_select(-2, character.balls)).flatten(-2)
    height = state.root_position[..., 2:]
    rotation = ml.tangent_normal(ml.quat_multiply(to_heading, root))
    return torch.cat((height, rotation, vectors[..., :6], balls, angle, state.dof_velocity, vectors[..., 6:]), -1)


def demo_transitions(motions: MotionLib, n: int, disc_steps: int, dt: float, generator: torch.Generator) -> Tensor:
    """Sample n transitions of the clips, disc_steps states that lie dt [s] apart: disc_obs_demo (n, S D)."""
    clip, start = motions.sample(n, (disc_steps - 1) * dt, generator)
    time = start[:, None] + dt * torch.arange(disc_steps, device=start.device)  # (n, S) [s]
    state = motions.state(clip[:, None].expand(time.shape), time)
    body_position, _ = ml.forward_kinematics(motions.character, state.root_position, state.rotations)
    return observe(state, body_position, motions.character).flatten(1)


def task_reward(speed: Tensor, target_speed: Optional[float]) -> Tensor:
    """Reward for forward speeds (...) [m/s]; target_speed None is the task "none". (...)."""
    # r_task = exp(-2 (v - v*)^2)
    return torch.zeros_like(speed) if target_speed is None else torch.exp(-2.0 * (speed - target_speed) ** 2)


def style_reward(logit: Tensor, disc_loss: str) -> Tensor:
    """Style reward of transitions with discriminator outputs `logit` (...) -> (...). Raises ValueError for an unknown loss."""
    if disc_loss == "bce":
        # r_style = -log(1 - D) with D = sigmoid(logit), which is softplus(logit)
        return F.softplus(logit)
    if disc_loss == "lsgan":
        # r_style = max(0, 1 - (D - 1)^2 / 4)   (AMP paper, equation 7)
        return (1.0 - 0.25 * (logit - 1.0) ** 2).clamp_min(0.0)
    raise ValueError(f"no style reward for the discriminator loss {disc_loss}")


# ---- 3. Environment --------------------------------------------------------------------------------------------------

POOL_STEPS = 32  # control steps until the initial states are drawn anew


class AMPEnv:
    """The character on flat ground as a vector environment: Gymnasium's convention with torch tensors, reset in the same step.

    Observations are (N, D), actions (N, A); info["final_obs"] is the observation before the reset of environments that are
    done, info["disc_obs"] (N, S D) the transition that the discriminator judges: it never spans a reset."""

    def __init__(self, args: Args, motions: MotionLib, sim: simulators.Sim, num_envs: int, episode_steps: int) -> None:
        """Use the first num_envs copies of the character in sim. Raises InputError for a character or clips that do not serve."""
        character = motions.character
        device = motions.length.device
        self.character = character
        self.motions = motions
        self.sim = sim
        self.device = device
        self.num_envs = num_envs
        self.episode_steps = episode_steps
        self.disc_steps = args.disc_steps
        self.start_share = {"random": 0.0, "hybrid": 0.5, "start": 1.0}[args.reset_mode]
        self.dt = 1.0 / args.control_hz  # control step [s]
        self.target_speed = None if args.task == "none" else args.target_speed
        absent = [name for name in KEY_BODIES if name not in character.body_names]
        if absent:
            raise InputError(f"{character.path}: the character has no {', '.join(absent)}, which observations need")
        if bool((motions.length < (args.disc_steps - 1) * self.dt).any()):
            short = motions.files[int(motions.length.argmin())]
            raise InputError(f"{short}: shorter than --disc-steps {args.disc_steps}, {(args.disc_steps - 1) * self.dt:.3f} s")
        self.generator = torch.Generator(device)
        # Zero action is the clips' mean pose: a mid-range pose (knees and elbows bent by 80 degrees) learns far more slowly.
        self.action_offset, lowest, _ = motions.statistics()  # (A,) [rad], (J,) [m]
        self.action_scale = args.action_scale
        # A fall is ground contact of a body, the feet excepted, that the clips keep off the ground by at least 0.05 m.
        watched = [name not in FEET and low > 0.05 for name, low in zip(character.body_names, lowest.tolist())]
        self.fall_bodies = torch.tensor(watched, device=device).nonzero()[:, 0]
        self.clip = torch.zeros(num_envs, dtype=torch.long, device=device)  # that the episode started in
        self.time = torch.zeros(num_envs, device=device)  # where in the clip it started [s]
        self.steps = torch.zeros(num_envs, dtype=torch.long, device=device)  # since the episode's start
        self.next = torch.zeros((), dtype=torch.long, device=device)  # row of the pool that is next
        self.pool_age = torch.zeros((), dtype=torch.long)  # control steps since the pool was drawn
        self.pool = self._new_pool()
        self.history = self.pool[-1].clone()  # (N, S - 1, D) the last states that the character was in
        D = self.history.shape[-1]
        self.single_observation_space = Box(-math.inf, math.inf, (D,))
        self.single_action_space = Box(-math.inf, math.inf, (len(character.dof_names),))
        self.disc_obs_space = Box(-math.inf, math.inf, (args.disc_steps * D,))

    def state_dict(self) -> Dict[str, Any]:
        """All that the coming episodes depend on: whatever attribute holds tensors, random numbers or has a state itself."""
        return training_run.get_state(self)

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Go back to a state. Raises ValueError or the like if it is one of another environment."""
        training_run.set_state(self, state)

    def reset(self, seed: Optional[int] = None) -> Tuple[Tensor, Dict[str, Any]]:
        """Start all episodes anew: obs (N, D), info with the "state" that they start from."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self.pool = self._new_pool()
        self.pool_age.zero_()
        self.next.zero_()
        info = {"state": MotionState(*self.pool[2:7])}
        self._reset(torch.ones_like(self.clip, dtype=torch.bool))
        return self.history[:, -1], info

    def _new_pool(self) -> List[Tensor]:
        """N initial states by reference state initialisation: clip (N,), time (N,) [s], the five tensors of a MotionState, and
        what the discriminator has seen up to then, (N, S - 1, D).

        Drawn in advance, every POOL_STEPS steps, because a few states a step would cost as much as many at once."""
        before = self.disc_steps - 2  # states before the first one
        clip, start = self.motions.sample(self.num_envs, (self.disc_steps - 1) * self.dt, self.generator)
        start = start * (torch.rand(self.num_envs, generator=self.generator, device=self.device) >= self.start_share)
        time = start[:, None] + self.dt * torch.arange(before + 1, device=self.device)  # (N, S - 1) [s]
        states = self.motions.state(clip[:, None].expand(time.shape), time)
        body_position, body_rotation = ml.forward_kinematics(self.character, states.root_position, states.rotations)
        # a pose that reaches into the ground would be thrown up by the contact solver: its history is lifted with it
        lowest = ml.lowest_points(self.character, body_position[:, -1], body_rotation[:, -1]).amin(-1)  # (N,) [m]
        raised = (-lowest).clamp_min(0.0)[:, None]
        states.root_position[..., 2] += raised
        history = observe(states, body_position, self.character)
        return [clip, time[:, -1], *[x[:, -1] for x in states], history]

    def _reset(self, done: Tensor) -> None:
        """Put environments that are done (N,) into the pool's next states.

        All shapes are known beforehand, so that the host need not wait for a GPU to say how many are done."""
        rows = (self.next + done.cumsum(0) - 1) % self.num_envs  # (N,) its states take turns
        self.next = (rows[-1] + 1) % self.num_envs
        clip, start, *state, history = [x.index_select(0, rows) for x in self.pool]
        self.sim.set_state(done, MotionState(*state))
        self.clip = torch.where(done, clip, self.clip)
        self.time = torch.where(done, start, self.time)
        self.steps = self.steps * ~done
        self.history = torch.where(done[:, None, None], history, self.history)

    def step(self, action: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor, Dict[str, Any]]:
        """One control step under actions (N, A) -> obs (N, D), task reward (N,), terminated (N,), truncated (N,), info."""
        state, diverged = self.sim.step(self.action_offset + self.action_scale * action)
        # whatever the simulator missed: NaN, infinities and a character in the sky never reach the networks
        height = 1e4 * state.root_position[:, 2:]  # z may be 100 times less than x
        numbers = torch.cat([x.flatten(1) for x in (*state, height)], -1)
        diverged = diverged | ~(numbers.abs().amax(-1) < 1e6)
        state = MotionState(*[x.nan_to_num(0.0, 0.0, 0.0) for x in state])
        body_position, body_rotation = ml.forward_kinematics(self.character, state.root_position, state.rotations)
        seen = observe(state, body_position, self.character)
        # after a step that broke the physics nothing has been seen, and nothing is earned
        final_obs = torch.where(diverged[:, None], self.history[:, -1], seen)
        disc_obs = torch.cat((self.history.flatten(1), final_obs), -1)  # (N, S D)
        self.history = torch.cat((self.history[:, 1:], final_obs[:, None]), 1)
        speed = ml.forward_speed(state)
        reward = task_reward(speed, self.target_speed) * ~diverged
        self.steps += 1
        lowest = ml.lowest_points(self.character, body_position, body_rotation).index_select(-1, self.fall_bodies)
        terminated = (lowest <= 0.005).any(-1) | diverged  # PhysX may hold what lies on the ground a hair above it
        truncated = (self.steps >= self.episode_steps) & ~terminated
        scores = {"speed_m_s": speed, "task_reward": reward}
        info = {"final_obs": final_obs, "disc_obs": disc_obs, "state": state, "body_position": body_position}
        info.update(diverged=diverged, scores=scores, episode_length=self.steps.clone())
        self.pool_age += 1
        if self.pool_age % POOL_STEPS == 0:
            self.pool = self._new_pool()
        self._reset(terminated | truncated)
        return self.history[:, -1], reward, terminated, truncated, info


# ---- 4. Networks, normaliser, replay buffer --------------------------------------------------------------------------


class Normaliser(nn.Module):
    """Running mean and variance of the rows that all processes have updated it with; part of the checkpoint."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Merge the moments of rows (n, size) into the running ones (Chan et al. 1979)."""
        mean, var, n = moments(x)
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
    layers = [nn.Linear(size_in, hidden[0]), nn.Linear(hidden[0], hidden[1]), nn.Linear(hidden[1], size_out)]
    for layer, gain in zip(layers, (math.sqrt(2.0), math.sqrt(2.0), last_gain)):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


class Agent(nn.Module):
    """Actor (mean action), critic (normalised value), discriminator (logit), and the normalisers of what they read."""

    def __init__(self, env: AMPEnv, hidden: Tuple[int, int], action_std_log: float) -> None:
        super().__init__()
        (obs_size,) = env.single_observation_space.shape
        (action_size,) = env.single_action_space.shape
        (disc_size,) = env.disc_obs_space.shape
        self.obs_norm = Normaliser(obs_size)
        self.disc_norm = Normaliser(disc_size)
        self.return_norm = Normaliser(1)
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

    def logit(self, disc_obs: Tensor) -> Tensor:
        """What the discriminator makes of raw transitions (..., S D) -> (...)."""
        return self.disc(self.disc_norm(disc_obs))[..., 0]


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

    def state_dict(self) -> Dict[str, Tensor]:
        """The rows that are stored."""
        return {"rows": self.data[: self.size].clone()}

    def load_state_dict(self, state: Dict[str, Tensor]) -> None:
        """Go back to a state. Raises RuntimeError if it does not fit."""
        self.size = len(state["rows"])
        self.data[: self.size].copy_(state["rows"])


# ---- 5. Losses and advantages ----------------------------------------------------------------------------------------


def disc_term(logit: Tensor, target: int, disc_loss: str) -> Tensor:
    """Loss of each transition with discriminator output `logit` (n,); target 1: it is of a clip, -1: the character's. (n,).

    Raises ValueError for an unknown loss."""
    if disc_loss == "bce":
        # -log D for the clip, -log(1 - D) for the character, D = sigmoid(logit)
        return F.softplus(-target * logit)
    if disc_loss == "lsgan":
        # (D - 1)^2 for the clip, (D + 1)^2 for the character   (AMP paper, equation 6)
        return (logit - target) ** 2
    raise ValueError(f"no discriminator loss {disc_loss}")


def gradient_penalty(demo_logit: Tensor, demo: Tensor) -> Tensor:
    """Mean squared gradient of the logits (n,) at the normalised clip transitions (n, S D) that they were computed from. ()."""
    # E_clip[|grad D|^2], the gradient being that of the logit   (AMP paper, equation 8)
    (gradient,) = torch.autograd.grad(demo_logit.sum(), demo, create_graph=True)
    return (gradient**2).sum(-1).mean()


def gae(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float, lam: float
) -> Tensor:
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


def update(optimizer: torch.optim.Adam, loss: Tensor, nets: Tuple[nn.Module, ...], max_grad_norm: float) -> Tensor:
    """One step of fused Adam down the gradient of loss, each network's scaled down to max_grad_norm.

    -> () 1.0 if it was left out, since a gradient was not finite; nothing waits for the device to know."""
    optimizer.zero_grad()
    loss.backward()
    average(*[parameter.grad for net in nets for parameter in net.parameters()])
    norm = sum(nn.utils.clip_grad_norm_(net.parameters(), max_grad_norm) for net in nets)
    optimizer.found_inf = (~torch.isfinite(norm)).float()
    optimizer.step()
    return optimizer.found_inf


# ---- 6. Evaluation: the roll-out without noise -----------------------------------------------------------------------


class Rollout(NamedTuple):
    """What evaluate finds out."""

    metrics: Dict[str, float]
    clips: List[ml.Clip]  # the episodes
    body_errors: Tensor  # (T, J-1) pose error of each body but the root over time [m]


@torch.no_grad()
def evaluate(agent: Agent, env: AMPEnv, args: Args) -> Rollout:
    """Run the policy without noise, one episode per environment, up to env.episode_steps. The simulator is left as it was."""
    motions = env.motions
    before = env.sim.state_dict()
    obs, info = env.reset(args.seed + 1000)
    clip = env.clip.clone()
    start = env.time.clone()
    # an episode on a clip that does not loop ends with the clip
    left = ((motions.length[clip] - start) / env.dt).round().long().clamp(1, env.episode_steps)
    limit = torch.where(motions.loop[clip], env.episode_steps, left)  # (N,) control steps
    alive = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
    fell = torch.zeros_like(alive)
    steps = torch.zeros_like(limit)
    sums = defaultdict(float)
    poses = []
    states = [info["state"]]
    for _ in range(env.episode_steps):
        obs, _, terminated, _, info = env.step(agent.actor(agent.obs_norm(obs)))
        scores = {**info["scores"], "style_reward": style_reward(agent.logit(info["disc_obs"]), args.disc_loss)}
        for name, x in scores.items():
            sums[name] = sums[name] + x * alive  # (N,)
        fell |= alive & terminated
        steps += alive & ~terminated
        states.append(info["state"])
        poses.append(evaluation.relative_positions(info["body_position"], info["state"].rotations[:, 0]))
        alive &= ~terminated & (steps < limit)
        if not alive.any():
            break
    env.sim.load_state_dict(before)
    metrics = {"episodes": env.num_envs, "mean_episode_s": float(steps.float().mean()) * env.dt}
    metrics["fall_rate"] = float(fell.float().mean())
    for name, x in sums.items():
        metrics[name] = float(x.sum() / (steps + fell).sum())
    error, body_errors = evaluation.episode_error(motions, torch.stack(poses, 1), steps, limit, clip, start, env.dt)
    metrics["pose_error_m"] = error
    return Rollout(metrics, evaluation.episodes(states, steps, args.control_hz), body_errors)


def evaluate_checkpoint(agent: Agent, env: AMPEnv, args: Args) -> None:
    """Evaluate the networks of a checkpoint, write roll-outs and a picture of the errors beside it, and print the figures."""
    stem = os.path.splitext(args.checkpoint)[0]
    names = env.character.body_names
    print(f"simulator {args.sim}, policy on {env.device}, roll-outs in {stem}_rollouts")
    rollout = evaluate(agent, env, args)
    evaluation.plot_body_errors(f"{stem}_pose_error.png", rollout.body_errors, names[1:], env.dt)
    evaluation.write_rollouts(f"{stem}_rollouts", rollout.clips, names, f"roll-out of {os.path.basename(args.checkpoint)}")
    if args.capture_video:
        evaluation.film(f"{stem}_rollouts/000.npz", f"{stem}_rollouts/episode.mp4", args.character_file)
    print(json.dumps(rollout.metrics))


def training_health(log: Dict[str, float], clip_speed: float) -> str:
    """What a researcher should know of these averages over many iterations, and what to try; empty if all is well."""
    sides = [log[f"disc/accuracy_{side}"] for side in ("demo", "fresh", "replay")]
    if min(sides) > 0.98 and log["reward/style"] < 0.02:
        return "the discriminator is always right, and no style reward is left; raise --grad-penalty or lower --disc-updates"
    if log["episode/length"] > 100 and abs(log["episode/speed_m_s"]) < 0.2 * clip_speed:
        return "the character stands still while the clips move; lower --gamma, or give it a task that rewards speed"
    return ""


# ---- 7. Main loop ----------------------------------------------------------------------------------------------------


class Iteration(NamedTuple):
    """What main yields after each iteration."""

    samples: int
    scalars: Dict[str, float]  # of the log
    agent: Agent
    eval_env: AMPEnv  # to evaluate(agent, eval_env, args) with, on process 0


def main(args: Args, checkpoint: Optional[Dict[str, Any]] = None) -> Iterator[Iteration]:
    """Train, one iteration a step of this generator, so that who imports it can look at the networks in between; or evaluate.

    checkpoint: what training_run.parse_args has found for --evaluate or --resume. Raises InputError."""
    rank, world, device, cores = training_run.processes(args.cuda)
    torch.manual_seed(args.seed)
    motions = MotionLib(args.motion_file, ml.load_character(args.character_file, str(device)), str(device))
    clip_speed = motions.statistics()[2]  # mean forward speed [m/s]
    if args.task == "speed" and args.target_speed is None:
        args.target_speed = clip_speed
    # Options speak of all processes; these sizes are this one's share.
    N = math.ceil(args.num_envs / world)
    T = args.num_steps
    B = T * N
    M = B // args.num_minibatches
    disc_half = math.ceil(args.disc_batch / (2 * world))
    copies = args.eval_episodes if args.evaluate else max(N, args.eval_episodes)
    sim = simulators.make(args.sim, motions.character, copies, args.control_hz, args.substeps, device, cores)
    eval_env = AMPEnv(args, motions, sim, args.eval_episodes, max(round(args.eval_seconds * args.control_hz), 1))
    agent = Agent(eval_env, args.hidden, args.action_std_log).to(device)
    identity = {"bodies": motions.character.body_names, "dofs": motions.character.dof_names}
    policy = {"agent": agent, "action_offset": eval_env.action_offset}
    if args.evaluate:
        training_run.fit_checkpoint(checkpoint, identity, policy)
        if rank == 0:
            evaluate_checkpoint(agent, eval_env, args)
        return

    env = AMPEnv(args, motions, sim, N, args.episode_steps)
    eval_env.action_offset = env.action_offset
    average(*agent.state_dict().values())  # the same in all processes
    seed = args.seed + 1_000_000 * rank
    if rank > 0:
        torch.manual_seed(seed)
    # fused Adam skips a step, on the device, when its found_inf says so
    actor_group = {"params": agent.actor.parameters(), "lr": args.learning_rate}
    critic_group = {"params": agent.critic.parameters(), "lr": args.critic_learning_rate}
    ppo_optimizer = torch.optim.Adam([actor_group, critic_group], fused=True)
    disc_optimizer = torch.optim.Adam(agent.disc.parameters(), lr=args.disc_learning_rate, fused=True)
    (D,), (A,), (P,) = env.single_observation_space.shape, env.single_action_space.shape, env.disc_obs_space.shape
    replay = ReplayBuffer(math.ceil(args.replay_size / world), P, device)
    demo_generator = torch.Generator(device).manual_seed(seed + 1)

    obs_buf = torch.zeros(T, N, D, device=device)
    final_buf = torch.zeros(T, N, D, device=device)  # observations after the step, before a reset
    disc_buf = torch.zeros(T, N, P, device=device)
    mean_buf = torch.zeros(T, N, A, device=device)
    action_buf = torch.zeros(T, N, A, device=device)
    task_buf = torch.zeros(T, N, device=device)
    terminated_buf = torch.zeros(T, N, dtype=torch.bool, device=device)
    truncated_buf = torch.zeros(T, N, dtype=torch.bool, device=device)

    # The normalisers start from the clip, whose states the character starts from.
    agent.disc_norm.update(demo_transitions(motions, 4096, args.disc_steps, env.dt, demo_generator))
    obs, _ = env.reset(seed)
    agent.obs_norm.update(obs)
    shared = {**policy, "ppo": ppo_optimizer, "disc": disc_optimizer}
    own = {"env": env, "replay": replay, "demo": demo_generator}
    run = training_run.Run(args, KIND, B * world, identity, shared, own, checkpoint)
    if checkpoint is not None:
        obs = env.history[:, -1]
        ppo_optimizer.param_groups[1]["lr"] = args.critic_learning_rate  # what was typed goes before what was saved
        disc_optimizer.param_groups[0]["lr"] = args.disc_learning_rate
    log = training_run.Log()
    threads = torch.get_num_threads()
    for iteration in range(run.progress["iteration"] + 1, run.iterations + 1):
        # 1. Collect transitions with the current policy, and store them.
        torch.set_num_threads(1)  # a second one would spin where a physics thread wants to run
        with torch.no_grad():
            for t in range(T):
                mean = agent.actor(agent.obs_norm(obs))  # (N, A)
                action = mean + agent.action_std * torch.randn_like(mean)
                obs_buf[t] = obs
                mean_buf[t] = mean
                action_buf[t] = action
                obs, task_buf[t], terminated_buf[t], truncated_buf[t], info = env.step(action)
                final_buf[t] = info["final_obs"]
                disc_buf[t] = info["disc_obs"]
                ended = torch.where(terminated_buf[t] | truncated_buf[t], info["episode_length"], math.nan)
                log.add("episode", length=ended, speed_m_s=info["scores"]["speed_m_s"], diverged=info["diverged"])
        torch.set_num_threads(threads)
        disc_obs = disc_buf.view(B, P)
        replay.add(disc_obs, math.ceil(args.replay_keep / world))

        # 2. Sample reference transitions.
        demo = demo_transitions(motions, args.disc_updates * 2 * disc_half, args.disc_steps, env.dt, demo_generator)
        some = torch.randint(B, (len(demo),), device=device)
        agent.disc_norm.update(torch.cat((demo, disc_obs[some])))
        for disc_obs_demo in agent.disc_norm(demo).chunk(args.disc_updates):
            # 3. Sample the character's transitions, half of them fresh, half from the replay buffer.
            fresh = disc_obs[torch.randint(B, (disc_half,), device=device)]
            disc_obs_agent = agent.disc_norm(torch.cat((fresh, replay.sample(disc_half))))  # (2 disc_half, P)

            # 4. Update the discriminator.
            disc_obs_demo = disc_obs_demo.detach().requires_grad_(True)
            demo_logit = agent.disc(disc_obs_demo)[:, 0]
            agent_logit = agent.disc(disc_obs_agent)[:, 0]
            # L_disc = -E_clip[log D] - E_agent[log(1 - D)]
            demo_loss = disc_term(demo_logit, 1, args.disc_loss)
            agent_loss = disc_term(agent_logit, -1, args.disc_loss)
            loss = demo_loss.mean() + agent_loss.mean()
            penalty = gradient_penalty(demo_logit, disc_obs_demo)
            squares = [(layer.weight**2).sum() for layer in agent.disc[::2]]
            regulariser = args.logit_reg * squares[-1] + args.disc_weight_decay * sum(squares)
            total = loss + args.grad_penalty * penalty + regulariser
            skipped = update(disc_optimizer, total, (agent.disc,), args.max_grad_norm)
            fresh_logit, replay_logit = agent_logit.chunk(2)
            log.add("update", skipped=skipped)
            log.add("disc", loss=loss, grad_penalty=penalty, loss_demo=demo_loss, loss_agent=agent_loss)
            log.add("disc", logit_demo=demo_logit, logit_fresh=fresh_logit, logit_replay=replay_logit)
            log.add("disc", accuracy_demo=demo_logit > 0, accuracy_fresh=fresh_logit < 0, accuracy_replay=replay_logit < 0)

        # 5. Task reward plus style_weight times style reward; advantages.
        with torch.no_grad():
            style_buf = style_reward(agent.logit(disc_obs), args.disc_loss).view(T, N)
            # r_total = r_task + style_weight * r_style
            reward = task_buf + args.style_weight * style_buf
            value = agent.value(torch.cat((obs_buf, obs[None])))  # (T + 1, N)
            # A time-out is not the end: bootstrap from the state before the reset.
            next_value = value[1:].clone()
            late = truncated_buf.nonzero(as_tuple=True)
            next_value[late] = agent.value(final_buf[late])
            done_buf = terminated_buf | truncated_buf
            advantage = gae(reward, value[:-1], next_value, terminated_buf, done_buf, args.gamma, args.gae_lambda)
            returns = advantage + value[:-1]
            mean, var, _ = moments(torch.stack((advantage, returns), -1).view(B, 2))
            agent.return_norm.update(returns.view(B, 1))
            b_obs = agent.obs_norm(obs_buf.view(B, D))  # normalised, like the returns
            b_returns = agent.return_norm(returns.view(B, 1))[:, 0]  # (B,)
            b_advantage = ((advantage - mean[0]) / (var[0].sqrt() + 1e-8)).view(B)
            b_mean = mean_buf.view(B, A)
            b_action = action_buf.view(B, A)
            b_log_prob = agent.log_prob(b_mean, b_action)  # (B,)
        log.add("reward", task=task_buf, style=style_buf, total=reward)
        log.add("episode", falls_per_step=terminated_buf)
        log.add("policy", explained_variance=1.0 - var[0] / var[1].clamp_min(1e-8))

        # 6. Update the policy by PPO.
        for _ in range(args.update_epochs):
            for mb in torch.randperm(B, device=device).split(M):
                mean = agent.actor(b_obs[mb])  # (M, A)
                ratio = torch.exp(agent.log_prob(mean, b_action[mb]) - b_log_prob[mb])
                # L_clip = -E[min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)]   (Schulman et al. 2017, equation 7)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                policy_loss = -torch.minimum(ratio * b_advantage[mb], clipped * b_advantage[mb]).mean()
                value_loss = F.mse_loss(agent.critic(b_obs[mb])[:, 0], b_returns[mb])
                # two networks, each with its own learning rate and gradient norm
                nets = (agent.actor, agent.critic)
                skipped = update(ppo_optimizer, policy_loss + value_loss, nets, args.max_grad_norm)
                # KL of two Gaussians with the same standard deviation
                kl = 0.5 * (((mean.detach() - b_mean[mb]) / agent.action_std) ** 2).sum(-1).mean()
                outside = (ratio - 1).abs() > args.clip_coef
                log.add("update", skipped=skipped)
                log.add("policy", kl=kl, loss=policy_loss, value_loss=value_loss, clip_fraction=outside)
        agent.obs_norm.update(obs_buf.view(B, D))
        scalars = log.means()
        # The learning rate follows the KL divergence, whose target may fall towards the end.
        left = min((1.0 - iteration / run.iterations) / args.anneal, 1.0) if args.anneal else 1.0
        kl_ratio = scalars["policy/kl"] / (args.target_kl * max(left, 0.05))
        factor = 1.2 if kl_ratio < 2 / 3 else 1 / 1.2 if kl_ratio > 4 / 3 else 1.0
        actor_group = ppo_optimizer.param_groups[0]
        actor_group["lr"] = min(max(actor_group["lr"] * factor, 1e-6), 1e-2)

        # ---- The algorithm ends here: log, evaluate, save.
        if scalars["update/skipped"] == 1.0:
            raise InputError("no update of an iteration was finite; lower --learning-rate or --critic-learning-rate")
        scalars["policy/learning_rate"] = actor_group["lr"]
        run.count(iteration, scalars)
        stop = run.stopping()
        if rank == 0 and (iteration == run.iterations or (args.eval_interval and iteration % args.eval_interval == 0)):
            rollout = evaluate(agent, eval_env, args)
            scalars.update({f"eval/{name}": x for name, x in rollout.metrics.items()})
            run.keep_best(-rollout.metrics["pose_error_m"], rollout.metrics, policy)
            if args.capture_video:
                run.film(rollout.clips[0], motions.character)
        run.log(scalars)
        if iteration >= 400:
            run.say(training_health({**scalars, **log.smooth}, clip_speed))
        if stop or iteration == run.iterations or iteration % args.save_interval == 0:
            run.save()
        yield Iteration(run.progress["samples"], scalars, agent, eval_env)
        if stop:
            break
    run.finish()


if __name__ == "__main__":
    training_run.launch(main, Args, KIND, check_args)
