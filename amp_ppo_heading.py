"""Adversarial Motion Priors with a task: a humanoid goes where it is told, as fast as told, in the style of clips.

Paper: Peng et al. 2021, AMP: Adversarial Motion Priors for Stylized Physics-Based Character Control (arXiv 2104.02180).

    python amp_ppo_heading.py  # an hour on two cores
    python amp_ppo_heading.py --evaluate --checkpoint pretrained/heading.pt --eval-commands motions/figure_eight.csv

A discriminator D learns to tell the clip's transitions (s, s') from the character's. The better these fool it, the
larger is their style reward, which PPO maximises together with a task reward:

    L_disc  = -E_clip[log D(s, s')] - E_agent[log(1 - D(s, s'))] + penalties, step 4
    r_style = -log(1 - D(s, s'))
    r_total = r_task + style_weight * r_style

What differs from the paper (all: docs/training.md): the policy is cloned from the clip before it trains, and averaged
for use; D learns under noise; the action noise falls; cross entropy; a learning rate that follows the KL divergence.

Dimension key: T steps, N envs, B = T N, M minibatch, W features of a state, O of the policy's input,
S states that the discriminator sees, P = S W, A actions, J bodies, K key bodies; frames, quaternions: motion_lib.py.
"""

import copy
import dataclasses
import math
from collections import defaultdict
from typing import Dict, Iterator, Literal, NamedTuple, Optional, Tuple

import simulators  # a folder; before torch, for Isaac Gym

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import console
import course
import evaluation
import motion_lib as ml
import report
from checkpoints import fit_checkpoint, get_state, set_state
from command_line import by_device, check_numbers, launch, merge_options
from curves import Log
from falls import FallDetector
from motion_lib import Character, InputError, MotionLib, MotionState
from processes import average, moments, processes
from training_run import Run

KIND = "amp_ppo_heading"  # of checkpoints

# ---- 1. Options ----


@dataclasses.dataclass
class Data:
    """What is imitated, and by whom."""

    motion_file: str = "motions/locomotion.json"
    """clip to imitate (.npz), folder of clips, or dataset file (.json); see motions/README.md"""
    character_file: str = "motions/humanoid.xml"
    """the character (MJCF)"""
    keep_course: bool = False
    """keep the clip's course: the root's rotation in the world is seen, loops are made straight"""
    reset_mode: Literal["random", "start", "hybrid"] = "random"
    """where in a clip episodes start; random: anywhere, as in the paper; hybrid: every other"""
    episode_steps: int = 150
    """control steps until a time-out"""
    fall_bodies: Tuple[str, ...] = ("auto",)
    """bodies whose contact with the ground is a fall; auto: those that a clip keeps off it; none"""
    control_hz: int = 30
    """control steps per second [Hz] (DeepMimic)"""
    substeps: int = 4
    """physics steps per control step"""
    action_scale: float = 1.2
    """PD target = the clips' mean pose + action_scale * action [rad]"""


@dataclasses.dataclass
class Task:
    """What the character is to do."""

    task_reward: Literal["velocity", "projection"] = "velocity"
    """the whole velocity, or, as in the paper, its part along the target heading"""
    task_weights: Tuple[float, float] = (8.0, 0.25)
    """c and w in (1 / (1 + c |v* d* - v|^2 / max(v*, 1)^2) + w max(0, cos a)) / (1 + w)"""
    speed_range: Tuple[float, float] = (1.0, 3.5)
    """target speeds drawn evenly [m/s], below 0.3 standing; paper: 1 to 5"""
    turn_std: float = 0.15
    """standard deviation of a small change of the target heading [rad]"""
    clip_share: float = 0.5
    """share of training episodes first told to go on as the clip does"""
    eval_commands: Optional[str] = None
    """for --evaluate: file of lines "time [s], heading [degrees], speed [m/s]", each until the next"""
    style_weight: float = 1.0
    """style_weight in r_total = r_task + style_weight * r_style"""


@dataclasses.dataclass
class Training:
    """PPO."""

    total_timesteps: by_device(int, 20_000_000, 50_000_000) = None  # physics on CPU, GPU
    """control steps, of all environments"""
    num_envs: by_device(int, 256, 4096) = None
    """parallel environments, of all processes"""
    num_steps: int = 8
    """control steps per environment and iteration"""
    gamma: float = 0.97
    """discount factor per control step"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation"""
    update_epochs: int = 4
    """passes over the batch per iteration"""
    num_minibatches: int = 4
    """minibatches per pass"""
    learning_rate: float = 3e-4
    """the policy's at the start; it then follows the KL divergence"""
    target_kl: float = 0.05
    """KL divergence, mean of an iteration's updates, which the learning rate keeps; falls"""
    anneal: float = 0.5
    """last share x of the training, over which the action noise falls e^(2x)-fold"""
    critic_learning_rate: float = 5e-4
    """the critic's learning rate"""
    clip_coef: float = 0.2
    """PPO's clipping range of the ratio"""
    max_grad_norm: float = 1.0
    """norm to which each network's gradient is scaled down"""
    action_std_log: float = -2.5
    """initial log standard deviation of the action noise"""
    average_share: float = 0.1
    """last share of the training, over which the evaluated policy is averaged; 0: the latest"""
    clone_updates: int = 100
    """updates before the training that teach the policy to follow the clips"""
    hidden: by_device(Tuple[int, int], (256, 128), (1024, 512)) = None
    """widths of all hidden layers"""


@dataclasses.dataclass
class Discriminator:
    """The motion prior."""

    disc_loss: Literal["bce", "lsgan"] = "bce"
    """bce: cross entropy; lsgan: least squares, the paper's equations 6 and 7"""
    disc_steps: int = 5
    """successive states that the discriminator sees (the paper: 2, MimicKit: 10)"""
    disc_learning_rate: float = 2e-4
    """the discriminator's learning rate"""
    disc_noise: float = 1.0
    """deviation of noise on its normalised input, in updates"""
    disc_updates: by_device(int, 2, 6) = None
    """discriminator updates per iteration"""
    disc_batch: by_device(int, 256, 4096) = None
    """clip transitions of an iteration, and the character's of each of its updates"""
    grad_penalty: float = 5.0
    """weight of the gradient penalty on clip transitions"""
    logit_reg: float = 0.05
    """weight of the squared weights of its last layer"""
    disc_weight_decay: float = 1e-4
    """weight of the squares of all its parameters"""
    replay_size: int = 200_000
    """transitions in the replay buffer"""
    replay_keep: int = 512
    """of an iteration, for as many random old ones, once it is full"""


Args = merge_options(__doc__, Data, Task, Training, Discriminator)  # and General, Evaluation in command_line.py


def check_args(args: Args) -> None:
    """Refuse options that cannot work. Raises InputError."""
    ranges = dict(action_std_log=(-10, 2), gamma=(0, 0.9999), gae_lambda=(0, 1), anneal=(0, 1), disc_steps=(2, 1000))
    ranges.update(dict.fromkeys(("action_scale", "target_kl", "max_grad_norm"), (1e-9, 10**15)), average_share=(0, 1))
    check_numbers(args, ranges, from_zero=("seed", "eval_interval", "clone_updates"))
    if args.speed_range[0] > args.speed_range[1] or args.keep_course:
        raise InputError("no --keep-course here" if args.keep_course else "--speed-range: smaller number first")
    world = processes().world
    batch = math.ceil(args.num_envs / world) * args.num_steps
    if args.num_minibatches > batch or args.total_timesteps < batch * world:
        raise InputError(f"a process has batches of {batch}: fewer --num-minibatches, or more --total-timesteps")


# ---- 2. Observations, task reward ----

KEY_BODIES = ("right_hand", "left_hand", "right_foot", "left_foot")
FEET = ("right_foot", "left_foot")


def observe(state: MotionState, body_position: Tensor, character: Character, course: bool) -> Tensor:
    """What policy and discriminator see of one instant, in the root's heading frame (IsaacGymEnvs' selection).

    state: batch (...); body_position (..., J, 3) world [m] -> (..., W): root height 1, rotation 6, velocities 3 and 3,
    balls 6 each, hinges 1 each, dof velocities, keys from the root 3 each, if course world rotation 6; [m, rad, s]."""
    root = state.rotations[..., 0, :]
    to_heading = ml.quat_from_yaw(-ml.heading(root))  # (..., 4)
    keys = torch.stack([body_position[..., character.body_names.index(name), :] for name in KEY_BODIES], -2)
    velocities = torch.stack((state.root_velocity, state.root_angular_velocity), -2)
    vectors = torch.cat((velocities, keys - body_position[..., :1, :]), -2)  # (..., 2 + K, 3)
    vectors = ml.quat_rotate(to_heading[..., None, :], vectors).flatten(-2)
    hinge = state.rotations.index_select(-2, character.hinges)
    angle = (ml.rotvec_from_quat(hinge) * character.dof_axis[character.hinge_dofs]).sum(-1)
    balls = ml.tangent_normal(state.rotations.index_select(-2, character.balls)).flatten(-2)
    height = state.root_position[..., 2:]
    tilt = ml.tangent_normal(ml.quat_multiply(to_heading, root))
    world = ml.tangent_normal(root)[..., : 6 * course]  # none without course
    return torch.cat((height, tilt, vectors[..., :6], balls, angle, state.dof_velocity, vectors[..., 6:], world), -1)


def demo_transitions(motions: MotionLib, n: int, dt: float, args: Args, generator: torch.Generator) -> Tensor:
    """Sample n transitions of the clips, S states that lie dt [s] apart: (n, P)."""
    clip, start = motions.sample(n, (args.disc_steps - 1) * dt, generator)
    time = start[:, None] + dt * torch.arange(args.disc_steps, device=start.device)  # (n, S) [s]
    state = motions.state(clip[:, None], time)
    body_position, _ = ml.forward_kinematics(motions.character, state.root_position, state.rotations)
    return observe(state, body_position, motions.character, args.keep_course).flatten(1)


def task_reward(v: Tensor, speed: Tensor, cos: Tensor, weights: Tuple[float, float], task: str) -> Tensor:
    """Reward (...) for root velocities (2, ..., 3) [m/s], a mean of 1/4 s and that of now, X along the commanded
    direction d*; target speed v* (...) [m/s]; cos a (...), a: from where it faces to d*. Raises ValueError."""
    if task == "projection":
        # r_task = exp(-0.25 (v* - d* . v)^2), 0 moving away; v: the root's, in DeepMimic the centre of mass's
        return torch.exp(-0.25 * (speed - v[1, ..., 0]) ** 2) * ((v[1, ..., 0] > 0) | (speed == 0))
    if task == "velocity":
        # r_task = (1 / (1 + c |v* d* - v|^2 / max(v*, 1)^2) + w max(0, cos a)) / (1 + w); who stands faces anywhere
        error = ((speed - v[0, ..., 0]) ** 2 + v[0, ..., 1] ** 2) / speed.clamp_min(1.0) ** 2
        moves = 1.0 / (1.0 + weights[0] * error)
        return (moves + weights[1] * torch.where(speed > 0, cos.clamp_min(0.0), 1.0)) / (1.0 + weights[1])
    raise ValueError(f"no reward for the task {task}")


# ---- 3. Environment ----

POOL_STEPS = 32  # control steps until the initial states are drawn anew


class Starts(NamedTuple):
    """Where episodes may begin."""

    clip: Tensor  # (N,)
    time: Tensor  # (N,) in the clip [s]
    state: MotionState
    history: Tensor  # (N, S - 1, W) up to it


class Goals:
    """Target heading (N,) [rad, world] and speed (N,) [m/s], which drift as in DeepMimic's code, or follow commands."""

    def __init__(self, args: Args, num_envs: int, generator: torch.Generator) -> None:
        self.args = args
        self.generator = generator
        self.clip_share = args.clip_share
        self.commands = None  # or times (C,) [s], headings (C, N) [rad], speeds (C, N) [m/s]
        self.heading, self.speed, self.timer = torch.zeros(3, num_envs, device=generator.device)  # [s] to a change

    state_dict = get_state
    load_state_dict = set_state

    def uniform(self, low: float, high: float) -> Tensor:  # (N,)
        return low + (high - low) * torch.rand(len(self.timer), generator=self.generator, device=self.timer.device)

    def update(self, steps: Tensor, state: MotionState) -> None:
        """A control step further; steps (N,) since the start of the episode, where all begins anew, from the state."""
        new = steps == 0
        due = new | (self.timer <= 0)
        turn = self.args.turn_std * torch.randn(len(steps), generator=self.generator, device=steps.device)
        turn = torch.where(self.uniform(0, 1) < 0.01, self.uniform(-math.pi, math.pi), turn)
        as_clip = self.uniform(0, 1) < self.clip_share
        self.heading = torch.where(new & as_clip, ml.heading(state.rotations[:, 0]), ~new * (self.heading + due * turn))
        changed = new | (due & (self.uniform(0, 1) < 0.02))
        clip_speed = state.root_velocity[:, :2].norm(dim=-1).clamp(*self.args.speed_range)
        speed = torch.where(new & as_clip, clip_speed, self.uniform(*self.args.speed_range))
        self.speed = torch.where(changed, F.threshold(speed, course.STANDING, 0.0), self.speed)
        self.timer = torch.where(due, self.uniform(0.2, 0.5), self.timer) - 1.0 / self.args.control_hz
        if self.commands is not None:
            row = (torch.searchsorted(self.commands[0], steps / self.args.control_hz + 1e-4) - 1)[None]  # (1, N)
            self.heading, self.speed = [x.gather(0, row)[0] for x in self.commands[1:]]


class AMPEnv:
    """The character on flat ground as a vector environment: Gymnasium's convention with torch tensors.

    Who is done is reset in the same step: info["final_obs"] (N, O) is the obs before that, info["disc_obs"] (N, P) the
    transition that the discriminator judges, which never spans a reset."""

    def __init__(self, args: Args, motions: MotionLib, sim: simulators.Sim, num_envs: int, episode_steps: int) -> None:
        """Use the first num_envs copies in sim. Raises InputError for too short clips."""
        device = motions.length.device
        self.args = args
        self.motions = motions
        self.sim = sim
        self.num_envs = num_envs
        self.episode_steps = episode_steps
        self.dt = 1.0 / args.control_hz  # control step [s]
        self.span = (args.disc_steps - 1) * self.dt  # of a transition [s]
        if bool((motions.length < self.span).any()):
            raise InputError(f"{motions.files[int(motions.length.argmin())]}: shorter than {self.span:.3f} s")
        self.generator = torch.Generator(device)
        self.goals = Goals(args, num_envs, self.generator)
        self.yaw = torch.zeros(num_envs, device=device)  # where it faces [rad]
        self.velocity = torch.zeros(num_envs, 3, device=device)  # v += max(1 / t, 4 dt) (now - v): a gait sways [m/s]
        self.action_offset, self.wanted_speed = motions.statistics()  # mean pose (A,) [rad], [m/s]
        self.fallen = FallDetector(motions, args.fall_bodies, FEET)
        self.clip = torch.zeros(num_envs, dtype=torch.long, device=device)  # that the episode started in
        self.time = torch.zeros(num_envs, device=device)  # where in the clip it started [s]
        self.steps = torch.zeros_like(self.clip)  # since then
        self.next_row = torch.zeros_like(self.clip[0])  # of the pool
        self.pool_age = torch.zeros((), dtype=torch.long)  # control steps since the pool was drawn
        self.pool = self._new_pool()
        self.history = self.pool.history.clone()  # (N, S - 1, W) what was seen last
        self.obs_size = self.obs().shape[1]
        self.disc_obs_size = args.disc_steps * self.history.shape[2]

    state_dict = get_state  # all tensors, and what has a state; a plain number is lost on --resume
    load_state_dict = set_state

    def reset(self, seed: Optional[int] = None) -> Tuple[Tensor, Dict]:
        """Start all episodes anew: obs (N, O), info with their "state"."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self.pool = self._new_pool()
        self.pool_age.zero_()
        self.next_row.zero_()
        info = {"state": self.pool.state}
        self._reset(torch.ones_like(self.clip, dtype=torch.bool))
        return self.obs(), info

    def obs(self) -> Tensor:
        """What the policy sees now: (N, O)."""
        angle = self.goals.heading - self.yaw  # from where it faces [rad]
        goal = torch.stack((torch.cos(angle), torch.sin(angle), self.goals.speed), -1)
        return torch.cat((self.history[:, -1], goal), -1)

    def _new_pool(self) -> Starts:
        """Reference states for N resets: many at once cost hardly more."""
        share = {"random": 0.0, "hybrid": 0.5, "start": 1.0}[self.args.reset_mode]  # of starts at the clip's start
        clip, start = self.motions.sample(self.num_envs, self.span, self.generator)
        start = start * (torch.rand(self.num_envs, generator=self.generator, device=start.device) >= share)
        time = start[:, None] + self.dt * torch.arange(self.args.disc_steps - 1, device=start.device)  # (N, S - 1)
        state = self.motions.state(clip[:, None], time)
        yaw = self.goals.uniform(-math.pi, math.pi) * (self.goals.commands is None)  # under commands all face +X
        state = ml.turn_state(state, ml.quat_from_yaw(yaw - ml.heading(state.rotations[:, -1, 0]))[:, None])
        character = self.motions.character
        body_position, body_rotation = ml.forward_kinematics(character, state.root_position, state.rotations)
        # A pose that reaches into the ground would be thrown up. Its past is lifted with it.
        lowest = ml.lowest_points(character, body_position[:, -1], body_rotation[:, -1]).amin(-1)  # (N,) [m]
        state.root_position[..., 2] += (-lowest).clamp_min(0.0)[:, None]
        history = observe(state, body_position, character, self.args.keep_course)
        return Starts(clip, time[:, -1], MotionState(*[x[:, -1] for x in state]), history)

    def _reset(self, done: Tensor) -> None:
        """Put environments that are done (N,) into the pool's next states."""
        rows = (self.next_row + done.cumsum(0) - 1) % self.num_envs  # (N,) who is done: the next
        self.next_row = (rows[-1] + 1) % self.num_envs
        state = MotionState(*[x.index_select(0, rows) for x in self.pool.state])  # void if not done
        self.sim.set_state(done, state)
        self.yaw = torch.where(done, ml.heading(state.rotations[:, 0]), self.yaw)
        self.clip = torch.where(done, self.pool.clip[rows], self.clip)
        self.time = torch.where(done, self.pool.time[rows], self.time)
        self.steps = self.steps * ~done
        self.history = torch.where(done[:, None, None], self.pool.history[rows], self.history)
        self.goals.update(self.steps, state)

    def step(self, action: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor, Dict]:
        """One control step under actions (N, A) -> obs (N, O), reward (N,), terminated (N,), truncated (N,), info."""
        character = self.motions.character
        state, diverged = simulators.finite(*self.sim.step(self.action_offset + self.args.action_scale * action))
        body_position, body_rotation = ml.forward_kinematics(character, state.root_position, state.rotations)
        seen = observe(state, body_position, character, self.args.keep_course)
        seen = torch.where(diverged[:, None], self.history[:, -1], seen)  # broken physics: the last one again
        disc_obs = torch.cat((self.history.flatten(1), seen), -1)  # (N, P)
        self.history = torch.cat((self.history[:, 1:], seen[:, None]), 1)
        self.yaw = ml.heading(state.rotations[:, 0])
        final_obs = self.obs()
        self.steps += 1
        lowest = ml.lowest_points(character, body_position, body_rotation)  # (N, J) [m]
        terminated = self.fallen(self.clip, self.time + self.steps * self.dt, lowest) | diverged
        truncated = (self.steps >= self.episode_steps) & ~terminated
        speed = ml.forward_speed(state)
        self.velocity = torch.lerp(self.velocity, state.root_velocity, (1 / self.steps).clamp(4 * self.dt, 1)[:, None])
        v = ml.quat_rotate(ml.quat_from_yaw(-self.goals.heading), torch.stack((self.velocity, state.root_velocity)))
        told = (self.goals.speed, torch.cos(self.goals.heading - self.yaw))  # before _reset changes it
        reward = task_reward(v, *told, self.args.task_weights, self.args.task_reward) * ~terminated
        scores = {"speed_m_s": speed, "task_reward": reward}
        scores["task_return"] = task_reward(v, *told, (0.0, 0.0), "projection") * ~terminated
        info = {"final_obs": final_obs, "disc_obs": disc_obs, "state": state}
        info.update(diverged=diverged, scores=scores, episode_length=self.steps.clone())
        self.pool_age += 1
        if self.pool_age % POOL_STEPS == 0:
            self.pool = self._new_pool()
        self._reset(terminated | truncated)
        return self.obs(), reward, terminated, truncated, info


# ---- 4. Networks, normaliser, replay buffer ----


class Normaliser(nn.Module):
    """Running mean and variance of rows, in all processes."""

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

    def std(self) -> Tensor:
        """(size,)."""
        return torch.sqrt(self.var + 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """(x - mean) / std, clipped to [-5, 5]."""
        return ((x - self.mean) / self.std()).clamp(-5.0, 5.0)


def mlp(size_in: int, hidden: Tuple[int, int], size_out: int, last_gain: float) -> nn.Sequential:
    """ReLU network with two hidden layers; last_gain scales the last layer's initial weights."""
    layers = [nn.Linear(size_in, hidden[0]), nn.Linear(hidden[0], hidden[1]), nn.Linear(hidden[1], size_out)]
    for layer, gain in zip(layers, (math.sqrt(2.0), math.sqrt(2.0), last_gain)):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


class Agent(nn.Module):
    """Actor (mean action), critic (normalised value), discriminator (logit); normalisers of inputs and returns."""

    def __init__(self, env: AMPEnv, hidden: Tuple[int, int], action_std_log: float) -> None:
        super().__init__()
        self.obs_norm = Normaliser(env.obs_size)
        self.disc_norm = Normaliser(env.disc_obs_size)
        self.return_norm = Normaliser(1)
        self.actor = mlp(env.obs_size, hidden, len(env.action_offset), 0.01)
        self.average_actor = copy.deepcopy(self.actor)
        self.critic = mlp(env.obs_size, hidden, 1, 1.0)
        self.disc = mlp(env.disc_obs_size, hidden, 1, 1.0)
        self.action_std = math.exp(action_std_log)

    def log_prob(self, mean: Tensor, action: Tensor) -> Tensor:
        """Log density of actions under the Gaussian policy, but for a constant. (..., A), (..., A) -> (...)."""
        return -0.5 * (((action - mean) / self.action_std) ** 2).sum(-1)

    def value(self, obs: Tensor) -> Tensor:
        """Expected return of raw observations (..., O) -> (...)."""
        return self.critic(self.obs_norm(obs))[..., 0] * self.return_norm.std() + self.return_norm.mean

    def logit(self, disc_obs: Tensor) -> Tensor:
        """What the discriminator makes of raw transitions (..., P) -> (...)."""
        return self.disc(self.disc_norm(disc_obs))[..., 0]


class ReplayBuffer:
    """The character's past transitions; once it is full, newcomers replace random old ones."""

    def __init__(self, capacity: int, width: int, device: torch.device) -> None:
        self.capacity = capacity
        self.data = torch.zeros(capacity, width, device=device).resize_(0, width)  # no rows yet, memory for all

    state_dict = get_state
    load_state_dict = set_state

    def add(self, rows: Tensor, keep: int) -> None:
        """Store rows (n, width) while there is room; once full, `keep` random ones over random old ones."""
        size = len(self.data)
        rows = rows[torch.randperm(len(rows), device=rows.device)]
        if size < self.capacity:
            rows = rows[: self.capacity - size]
            self.data.resize_(size + len(rows), rows.shape[1])[size:] = rows
        else:
            rows = rows[: min(keep, size)]
            self.data[torch.randperm(size, device=rows.device)[: len(rows)]] = rows

    def sample(self, n: int) -> Tensor:
        """n rows, drawn with replacement: (n, width)."""
        return self.data[torch.randint(len(self.data), (n,), device=self.data.device)]


# ---- 5. Losses, style reward, GAE ----


def disc_term(logit: Tensor, target: int, disc_loss: str) -> Tensor:
    """Discriminator loss of transitions; target 1: a clip's, -1: the character's. (n,) -> (n,). Raises ValueError."""
    if disc_loss == "bce":
        # -log D for the clip, -log(1 - D) for the character, D = sigmoid(logit)
        return F.softplus(-target * logit)
    if disc_loss == "lsgan":
        # (D - 1)^2 for the clip, (D + 1)^2 for the character, D = logit   (AMP paper, equation 6)
        return (logit - target) ** 2
    raise ValueError(f"no discriminator loss {disc_loss}")


def style_reward(logit: Tensor, disc_loss: str) -> Tensor:
    """Style reward of discriminator outputs, >= 0, or falls would pay. (...) -> (...). Raises ValueError."""
    if disc_loss == "bce":
        # r_style = -log(1 - D) with D = sigmoid(logit), which is softplus(logit)
        return F.softplus(logit)
    if disc_loss == "lsgan":
        # r_style = max(0, 1 - (D - 1)^2 / 4)   (AMP paper, equation 7)
        return (1.0 - 0.25 * (logit - 1.0) ** 2).clamp_min(0.0)
    raise ValueError(f"no style reward for {disc_loss}")


def gradient_penalty(demo_logit: Tensor, demo: Tensor) -> Tensor:
    """Mean squared gradient of logits (n,) at the normalised, noisy clip transitions (n, P) they come from. ()."""
    # E_clip[|grad D|^2], D being the logit   (AMP paper, equation 8, there with w / 2)
    (gradient,) = torch.autograd.grad(demo_logit.sum(), demo, create_graph=True)
    return (gradient**2).sum(-1).mean()


def gae(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float, lam: float
) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, equation 16). All (T, N) -> (T, N).

    next_value: V(s_{t+1}), before any reset; terminated cuts the bootstrap, done the trace."""
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
    """One step of Adam -> () 1.0 if it was left out because a gradient was not finite."""
    optimizer.zero_grad()
    loss.backward()
    average(*[parameter.grad for net in nets for parameter in net.parameters()])
    norm = sum(nn.utils.clip_grad_norm_(net.parameters(), max_grad_norm) for net in nets)
    optimizer.found_inf = (~torch.isfinite(norm)).float()  # fused Adam then does nothing
    optimizer.step()
    return optimizer.found_inf


def clone(agent: Agent, env: AMPEnv, args: Args) -> None:
    """Teach the policy PD targets that give no torque on the clip, kp (target - q) = kd dq: they almost follow it."""
    character = env.motions.character
    optimizer = torch.optim.Adam(agent.actor.parameters(), lr=1e-3, fused=True)
    for _ in range(args.clone_updates):
        obs, info = env.reset()
        agent.obs_norm.update(obs)
        state = info["state"]
        target = ml.dof_positions(character, state.rotations) + character.kd / character.kp * state.dof_velocity
        loss = F.mse_loss(agent.actor(agent.obs_norm(obs)), (target - env.action_offset) / args.action_scale)
        update(optimizer, loss, (agent.actor,), args.max_grad_norm)


def next_learning_rate(rate: float, kl: float, target_kl: float) -> float:
    """The policy's, times or divided by 1.2 if the KL divergence is off its target by over a third."""
    if kl < target_kl * 2 / 3:
        rate *= 1.2
    if kl > target_kl * 4 / 3:
        rate /= 1.2
    return min(max(rate, 1e-6), 1e-2)


# ---- 6. Evaluation: the roll-out without noise ----


@torch.no_grad()
def evaluate(agent: Agent, env: AMPEnv, args: Args) -> evaluation.Result:
    """Run the averaged policy without noise, one episode per environment. The simulator is left as found."""
    before = env.sim.state_dict()
    obs, info = env.reset(args.seed + 1000)
    limit = torch.full_like(env.steps, env.episode_steps)  # (N,) control steps
    alive = torch.ones_like(limit, dtype=torch.bool)
    steps = torch.zeros_like(limit)
    sums = defaultdict(float)
    goals = []
    states = [info["state"]]
    for _ in range(env.episode_steps):
        goals.append((env.goals.heading, env.goals.speed))
        obs, _, terminated, _, info = env.step(agent.average_actor(agent.obs_norm(obs)))
        info["scores"]["style_reward"] = style_reward(agent.logit(info["disc_obs"]), args.disc_loss)
        for name, x in info["scores"].items():
            sums[name] = sums[name] + x * alive  # (N,)
        steps += alive & ~terminated
        states.append(info["state"])
        alive &= ~terminated & (steps < limit)
        if not alive.any():
            break
    env.sim.load_state_dict(before)
    metrics = evaluation.averages(sums, steps, steps < limit, env.dt)
    metrics["fall_bodies"] = env.fallen.bodies
    figures, errors = evaluation.mixture(env.motions, states, steps, env.episode_steps, env.dt, FEET, args.evaluate)
    metrics.update(figures)
    followed = {"task_return": sums["task_return"] / env.episode_steps, **course.figures(states, goals, steps, env.dt)}
    metrics.update(course.averages(followed))
    sums.update(followed)
    return evaluation.Result(metrics, evaluation.episodes(states, steps, args.control_hz), errors, sums)


# ---- 7. Main loop ----


def main(args: Args, checkpoint: Optional[Dict] = None) -> Iterator[Tuple[Agent, AMPEnv, Dict]]:
    """Train, or evaluate. A generator: of agent, environment to evaluate() in, log after each iteration.

    checkpoint: what --checkpoint or --resume has named. Raises InputError."""
    rank, world, device, cores = processes(args.cuda)
    seed = args.seed + 1_000_000 * rank
    torch.manual_seed(args.seed)  # of all processes
    threads = torch.get_num_threads()  # for updates
    torch.set_num_threads(1)  # else: the physics takes the other cores
    character = ml.load_character(args.character_file, str(device), KEY_BODIES)
    motions = MotionLib(args.motion_file, character, str(device), straight=args.keep_course)
    N = math.ceil(args.num_envs / world)  # from here on sizes are this process's share
    T = args.num_steps
    B = T * N
    disc_half = math.ceil(args.disc_batch / (2 * world))
    copies = args.eval_episodes if args.evaluate else max(N, args.eval_episodes)
    sim = simulators.make(args.sim, character, copies, args.control_hz, args.substeps, device, cores)
    eval_env = AMPEnv(args, motions, sim, args.eval_episodes, max(round(args.eval_seconds * args.control_hz), 1))
    eval_env.goals.clip_share = 0.0
    agent = Agent(eval_env, args.hidden, args.action_std_log).to(device)
    torch.manual_seed(seed)
    policy = {"agent": agent, "action_offset": eval_env.action_offset}
    if args.checkpoint:
        fit_checkpoint(checkpoint, motions, policy)
        agent.actor.load_state_dict(agent.average_actor.state_dict())  # the policy that was judged
    if args.evaluate:
        if rank == 0:
            eval_env.goals.commands = evaluation.load_commands(args.eval_commands, args.eval_episodes, str(device))
            result = evaluate(agent, eval_env, args)
            folder = report.write(args, motions, result, args.checkpoint)
            eval_env.goals.commands, *names = evaluation.grid_commands(args.speed_range, copies, str(device))
            report.plot_grid(folder, evaluate(agent, eval_env, args).scores, *names)
            console.tell(args, motions, result.metrics, folder)
        return

    env = AMPEnv(args, motions, sim, N, args.episode_steps)
    env.action_offset = eval_env.action_offset  # one tensor, which a checkpoint sets
    actor_group = {"params": agent.actor.parameters(), "lr": args.learning_rate}
    critic_group = {"params": agent.critic.parameters(), "lr": args.critic_learning_rate}
    ppo_optimizer = torch.optim.Adam([actor_group, critic_group], fused=True)
    decay = 2 * args.disc_weight_decay
    disc_optimizer = torch.optim.Adam(agent.disc.parameters(), args.disc_learning_rate, weight_decay=decay, fused=True)
    replay = ReplayBuffer(math.ceil(args.replay_size / world), env.disc_obs_size, device)
    demo_generator = torch.Generator(device).manual_seed(seed + 1)

    agent.disc_norm.update(demo_transitions(motions, 4096, env.dt, args, demo_generator))
    env.reset(seed)
    agent.obs_norm.update(env.obs())
    if not checkpoint:
        clone(agent, env, args)
    shared = {**policy, "ppo": ppo_optimizer, "disc": disc_optimizer}
    own = {"env": env, "replay": replay, "demo": demo_generator}
    run = Run(args, KIND, motions, B * world, shared, own, checkpoint)  # --resume puts all states back
    run.begin(env.fallen.report)
    obs = env.obs()
    log = Log()
    for iteration in range(run.progress["iteration"] + 1, run.iterations + 1):
        # 1. Collect transitions with the current policy, and store them.
        left = 1.0 - iteration / run.iterations  # to come
        # log sigma = action_std_log - 2 max(0, anneal - left)
        agent.action_std = math.exp(args.action_std_log - 2.0 * max(args.anneal - left, 0.0))
        steps = []
        with torch.no_grad():
            for _ in range(T):
                mean = agent.actor(agent.obs_norm(obs))  # (N, A)
                action = mean + agent.action_std * torch.randn_like(mean)
                next_obs, task, terminated, truncated, info = env.step(action)
                steps.append((obs, info["final_obs"], info["disc_obs"], mean, action, task, terminated, truncated))
                obs = next_obs
                length = torch.where(terminated | truncated, info["episode_length"], math.nan)
                log.add("episode", length=length, falls_per_step=terminated, diverged=info["diverged"])
                log.add("episode", speed_m_s=info["scores"]["speed_m_s"])
        torch.set_num_threads(threads)
        columns = [torch.stack(x) for x in zip(*steps)]  # (T, N, ...)
        obs_buf, final_buf, disc_buf, mean_buf, action_buf, task_buf, terminated_buf, truncated_buf = columns
        disc_obs = disc_buf.view(B, -1)  # (B, P)
        replay.add(disc_obs, math.ceil(args.replay_keep / world))

        # 2. Sample reference transitions, once for all updates.
        demo = demo_transitions(motions, 2 * disc_half, env.dt, args, demo_generator)
        agent.disc_norm.update(torch.cat((demo, disc_obs[torch.randint(B, (len(demo),), device=device)])))
        for _ in range(args.disc_updates):
            # 3. Sample the character's, half fresh, half from the replay buffer.
            fresh = disc_obs[torch.randint(B, (disc_half,), device=device)]
            disc_obs_agent = agent.disc_norm(torch.cat((fresh, replay.sample(disc_half))))

            # 4. Update the discriminator; noise makes D smooth, and blind to the action noise.
            disc_obs_demo = torch.normal(agent.disc_norm(demo), args.disc_noise).requires_grad_(True)
            demo_logit = agent.disc(disc_obs_demo)[:, 0]
            agent_logit = agent.disc(torch.normal(disc_obs_agent, args.disc_noise))[:, 0]
            demo_loss = disc_term(demo_logit, 1, args.disc_loss).mean()
            agent_loss = disc_term(agent_logit, -1, args.disc_loss).mean()
            penalty = gradient_penalty(demo_logit, disc_obs_demo)
            last_layer = (agent.disc[-1].weight ** 2).sum()
            loss = demo_loss + agent_loss + args.grad_penalty * penalty + args.logit_reg * last_layer
            skipped = update(disc_optimizer, loss, (agent.disc,), args.max_grad_norm)
            log.add("disc", loss_demo=demo_loss, accuracy_demo=demo_logit > 0, grad_penalty=penalty)
            log.add("disc", loss_agent=agent_loss, accuracy_agent=agent_logit < 0, skipped=skipped)

        # 5. Task and style reward, by the new D without noise; advantages.
        with torch.no_grad():
            style_buf = style_reward(agent.logit(disc_obs), args.disc_loss).view(T, N)
            # r_total = r_task + style_weight * r_style
            reward = task_buf + args.style_weight * style_buf
            value = agent.value(torch.cat((obs_buf, obs[None])))  # (T + 1, N)
            # A time-out is not the end: bootstrap from before the reset.
            late = truncated_buf.nonzero(as_tuple=True)
            next_value = value[1:].index_put(late, agent.value(final_buf[late]))
            done_buf = terminated_buf | truncated_buf
            advantage = gae(reward, value[:-1], next_value, terminated_buf, done_buf, args.gamma, args.gae_lambda)
            returns = advantage + value[:-1]
            centre, variance, _ = moments(advantage.view(B, 1))
            agent.return_norm.update(returns.view(B, 1))
            b_obs = agent.obs_norm(obs_buf.view(B, -1))
            b_returns = agent.return_norm(returns.view(B, 1))[:, 0]  # (B,) clipped at 5
            b_advantage = ((advantage - centre) / (variance.sqrt() + 1e-8)).view(B)
            b_mean = mean_buf.view(B, -1)  # (B, A)
            b_action = action_buf.view(B, -1)
            b_log_prob = agent.log_prob(b_mean, b_action)  # (B,)
        log.add("reward", task=task_buf, style=style_buf, total=reward)

        # 6. Update the policy by PPO.
        for _ in range(args.update_epochs):
            for mb in torch.randperm(B, device=device).tensor_split(args.num_minibatches):
                new_mean = agent.actor(b_obs[mb])  # (M, A)
                ratio = torch.exp(agent.log_prob(new_mean, b_action[mb]) - b_log_prob[mb])
                # L_clip = -E[min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)]   (Schulman et al. 2017, equation 7)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                policy_loss = -torch.minimum(ratio * b_advantage[mb], clipped * b_advantage[mb]).mean()
                value_loss = F.mse_loss(agent.critic(b_obs[mb])[:, 0], b_returns[mb])
                loss = policy_loss + value_loss
                skipped = update(ppo_optimizer, loss, (agent.actor, agent.critic), args.max_grad_norm)
                # KL of two Gaussians of the same deviation
                kl = -agent.log_prob(new_mean.detach(), b_mean[mb]).mean()
                log.add("policy", kl=kl, loss=policy_loss, value_loss=value_loss, skipped=skipped)
        # old += (new - old) / (1 + share (t - 1))   (Shamir and Zhang 2013)
        for old, new in zip(agent.average_actor.parameters(), agent.actor.parameters()):
            old.data.lerp_(new.data, 1.0 / (1.0 + args.average_share * (iteration - 1)))
        agent.obs_norm.update(obs_buf.view(B, -1))
        torch.set_num_threads(1)
        scalars = log.means()
        # The KL target falls over the last three quarters.
        target_kl = args.target_kl * min(max(left / 0.75, 0.05), 1.0)
        actor_group = ppo_optimizer.param_groups[0]
        actor_group["lr"] = next_learning_rate(actor_group["lr"], scalars["policy/kl"], target_kl)

        # ---- Here the algorithm ends. Log, evaluate, save.
        run.count(iteration, scalars, evaluation.training_health(log.smooth, env.wanted_speed))
        scalars["policy/learning_rate"] = actor_group["lr"]
        if rank == 0 and run.due(args.eval_interval):
            result = evaluate(agent, eval_env, args)
            scalars.update(log.keep("eval", result.metrics))
            run.keep_best(result.metrics["task_reward"] - result.metrics["fall_rate"], result, policy)
        run.log(scalars)
        stop = run.save_when_due()
        yield agent, eval_env, scalars
        if stop:
            break
    run.finish(lambda: evaluate(agent, eval_env, args))


if __name__ == "__main__":
    launch(main, Args, KIND, check_args)
