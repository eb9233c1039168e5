"""Beside skrl's AMP agent, on the same environment: samples per CPU second, and how both walk after the same samples.

    pip install skrl==2.1.1                          # nothing else here needs it
    python benchmark/skrl_amp.py [--rounds 30] [--iterations 25] [--every 5] [--out FILE.json]
                                 [option of amp_ppo_isaacgym.py ...]

    ours       amp_ppo_isaacgym.py's main(), with all that it logs
    skrl       skrl's AMP agent on our AMPEnv, with our networks, batches, rewards and weights, without a log, in a loop
               of ours that gives it what was seen before a time-out. It goes without what its options do not have:
               cloning, noise on the discriminator's input, action noise that falls, a policy that is averaged
    (same)     with as many clip transitions an iteration as ours, spread over its minibatches
    (whole)    it updates the discriminator with the whole of every minibatch, as it does if not told otherwise

All run in this process, on one core and with one thread: in each of --rounds rounds each has a turn of --iterations
iterations. Times are CPU seconds of these turns, without the first iteration and what is made before it. After every
--every rounds evaluate() of the script judges all, without action noise. Each has random numbers of its own, so that
ours learns what the plain command learns. Raw figures go to skrl_amp.json beside this file.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List, Tuple

import throughput
from throughput import inside, load_script, parse, time_parts
from train import ROOT, stamp

PARTS = {"physics": "physics", "env": "rest of the environment step", "learner": "learner"}


# ---- 1. skrl's agent on our environment ----


def model(mixin: Any, net: Any, **outputs: Any) -> Any:
    """A network of ours as a model of skrl's, which is a mixin of skrl's besides."""
    from skrl.models.torch import Model

    class Wrapped(mixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, device="cpu")
            mixin.__init__(self)
            self.net = net

        def compute(self, inputs: Dict[str, Any], role: str = "") -> Tuple[Any, Dict[str, Any]]:
            return self.net(inputs["observations"]), dict(outputs)

    return Wrapped()


def settings(env: Any, args: Any, disc_batch: int) -> Dict[str, Any]:
    """Our options in skrl's words; disc_batch: clip transitions of a minibatch."""
    from skrl.resources.preprocessors.torch import RunningStandardScaler

    def scaler(name: str, size: int) -> Dict[str, Any]:
        return {name: RunningStandardScaler, f"{name}_kwargs": {"size": size, "device": "cpu"}}

    return {
        "rollouts": args.num_steps,
        "learning_epochs": args.update_epochs,
        "mini_batches": args.num_minibatches,
        "discount_factor": args.gamma,
        "gae_lambda": args.gae_lambda,
        "learning_rate": args.learning_rate,  # of all three networks, which share an optimiser there
        "grad_norm_clip": args.max_grad_norm,
        "ratio_clip": args.clip_coef,
        "value_clip": 0.0,
        "value_loss_scale": 1.0,
        "task_reward_scale": 1.0,
        "style_reward_scale": args.style_weight,
        "time_limit_bootstrap": True,
        "amp_batch_size": args.disc_batch,  # new clip transitions an iteration
        "discriminator_batch_size": disc_batch,
        # It halves the cross entropy, so all else is halved and the sum doubled.
        "discriminator_loss_scale": 2.0,
        "discriminator_gradient_penalty_scale": args.grad_penalty / 2,
        "discriminator_logit_regularization_scale": args.logit_reg / 2,
        "discriminator_weight_decay_scale": args.disc_weight_decay / 2,
        "experiment": {"write_interval": 0, "checkpoint_interval": 0},
        **scaler("observation_preprocessor", env.obs_size),
        **scaler("amp_observation_preprocessor", env.disc_obs_size),
        **scaler("value_preprocessor", 1),
    }


def skrl_training(amp: Any, args: Any, disc_batch: int) -> Iterator[Tuple[Any, Any, None]]:
    """Train skrl's agent -> what amp.main() yields: what evaluate() needs of an agent, environment to evaluate in."""
    import torch
    from gymnasium.spaces import Box
    from skrl.agents.torch.amp import AMP
    from skrl.memories.torch import RandomMemory
    from skrl.models.torch import DeterministicMixin, GaussianMixin

    torch.manual_seed(args.seed)
    character = amp.ml.load_character(args.character_file, "cpu", amp.KEY_BODIES)
    motions = amp.MotionLib(args.motion_file, character, "cpu")
    copies = max(args.num_envs, args.eval_episodes)
    timing = (args.control_hz, args.substeps, torch.device("cpu"), 1)
    sim = amp.simulators.make(args.sim, character, copies, *timing)
    eval_env = amp.AMPEnv(args, motions, sim, args.eval_episodes, round(args.eval_seconds * args.control_hz))
    env = amp.AMPEnv(args, motions, sim, args.num_envs, args.episode_steps)
    generator = torch.Generator().manual_seed(args.seed + 1)
    nets = amp.Agent(env, args.hidden, args.action_std_log)
    log_std = torch.full(env.action_offset.shape, args.action_std_log)
    models = {"policy": model(GaussianMixin, nets.actor, log_std=log_std)}
    models["value"] = model(DeterministicMixin, nets.critic)
    models["discriminator"] = model(DeterministicMixin, nets.disc)
    agent = AMP(
        models=models,
        memory=RandomMemory(memory_size=args.num_steps, num_envs=args.num_envs, device="cpu"),
        observation_space=Box(-math.inf, math.inf, (env.obs_size,)),
        action_space=Box(-math.inf, math.inf, env.action_offset.shape),
        device="cpu",
        cfg=settings(env, args, disc_batch),
        amp_observation_space=env.disc_obs_size,
        motion_dataset=RandomMemory(memory_size=args.replay_size, device="cpu"),
        reply_buffer=RandomMemory(memory_size=args.replay_size, device="cpu"),
        collect_reference_motions=lambda n: amp.demo_transitions(motions, n, env.dt, args, generator),
    )
    agent.init()
    agent.enable_training_mode(True)
    judged = SimpleNamespace(obs_norm=agent._observation_preprocessor, average_actor=nets.actor)
    judged.logit = lambda disc_obs: nets.disc(agent._amp_observation_preprocessor(disc_obs))[..., 0]
    obs, _ = env.reset(args.seed)
    steps = args.total_timesteps // args.num_envs
    for step in range(steps):
        at = {"timestep": step, "timesteps": steps}
        agent.pre_interaction(**at)
        with torch.no_grad():
            action, _ = agent.act(obs, None, **at)
            next_obs, reward, terminated, truncated, info = env.step(action)
            agent.record_transition(
                observations=obs,
                states=None,
                actions=action,
                rewards=reward[:, None],
                next_observations=info["final_obs"],
                next_states=None,
                terminated=terminated[:, None],
                truncated=truncated[:, None],
                infos={"amp_obs": info["disc_obs"]},
                **at,
            )
        agent.post_interaction(**at)
        obs = next_obs
        if (step + 1) % args.num_steps == 0:
            yield judged, eval_env, None


# ---- 2. Turns ----


class Learner:
    """A training in turns, with its random numbers and what was measured of it."""

    def __init__(self, training: Iterator) -> None:
        """Begin: the first iteration is not measured."""
        import torch

        self.training = training
        self.agent, self.env, _ = next(training)
        self.random = torch.get_rng_state()
        self.iterations = 1
        self.turns: List[Dict[str, float]] = []  # CPU seconds of each part
        self.evaluations: List[Dict[str, float]] = []

    def turn(self, iterations: int, spent: Dict[str, float]) -> None:
        """Train for so many iterations; spent: what time_parts() counts."""
        import torch

        torch.set_rng_state(self.random)
        spent.clear()
        before = time.process_time()
        for _ in range(iterations):
            if next(self.training, None) is None:
                sys.exit("error: stopped")  # main() ends in good order on Ctrl-C
        seconds = time.process_time() - before
        self.random = torch.get_rng_state()
        self.iterations += iterations
        physics, env = spent["physics"], spent["env"]
        self.turns.append({"physics": physics, "env": env - physics, "learner": seconds - env})

    def judge(self, amp: Any, args: Any) -> None:
        """Evaluate."""
        metrics = amp.evaluate(self.agent, self.env, args)[0]
        found = {name: float(metrics[name]) for name in ("fall_rate", "pose_error_m", "speed_m_s")}
        self.evaluations.append({"samples": self.iterations * args.num_envs * args.num_steps, **found})


def compare(own: argparse.Namespace, amp: Any, args: Any, options: List[str]) -> Dict[str, Any]:
    """Train all in turns -> raw figures, which are written after every evaluation."""
    throughput.clock = lambda device: time.process_time()  # CPU seconds in time_parts(), too
    spent, _ = time_parts(amp, None)
    minibatches = args.update_epochs * args.num_minibatches
    share = max(args.disc_updates * args.disc_batch // minibatches, 1)
    whole = args.num_envs * args.num_steps // args.num_minibatches
    learners = {
        "ours": Learner(amp.main(args)),
        f"skrl (same: {share} a minibatch)": Learner(skrl_training(amp, args, share)),
        f"skrl (whole: {whole} a minibatch)": Learner(skrl_training(amp, args, whole)),
    }
    raw = {**own.where, "samples_a_turn": own.iterations * args.num_envs * args.num_steps}
    raw["learners"] = {name: {"turns": x.turns, "evaluations": x.evaluations} for name, x in learners.items()}
    for number in range(1, own.rounds + 1):
        for learner in list(learners.values())[:: 1 if number % 2 else -1]:
            learner.turn(own.iterations, spent)
        if number % own.every == 0:
            for name, learner in learners.items():
                learner.judge(amp, args)
                print(name, learner.evaluations[-1], file=sys.stderr, flush=True)
            with open(own.out, "w") as file:
                json.dump(raw, file, indent=1)
                file.write("\n")
    return raw


def print_table(raw: Dict[str, Any]) -> None:
    """A row a learner: speed, where the time goes, pose error and falls after so many samples."""
    print(f"commit {raw['commit']}; {raw['machine']}, one of them used; skrl {raw['versions']['skrl']}\n")
    ours, *_ = raw["learners"].values()
    samples = [f"{x['samples'] / 1e6:.2f} M: pose error [m], falls" for x in ours["evaluations"]]
    columns = ["", "samples a CPU second", "ours is faster (lowest, highest)"]
    columns += [f"{part} [us a sample]" for part in PARTS.values()] + samples
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, learner in raw["learners"].items():
        seconds = [sum(turn.values()) for turn in learner["turns"]]
        # of turns side by side
        ratios = [x / sum(turn.values()) for x, turn in zip(seconds, ours["turns"])]
        cells = [name, f"{raw['samples_a_turn'] / statistics.median(seconds):.0f}"]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})")
        for part in PARTS:
            middle = statistics.median([turn[part] for turn in learner["turns"]])
            cells.append(f"{1e6 * middle / raw['samples_a_turn']:.1f}")
        cells += [f"{x['pose_error_m']:.3f}, {x['fall_rate']:.2f}" for x in learner["evaluations"]]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--rounds", type=int, default=30, help="turns of each (default 30)")
    add("--iterations", type=int, default=25, help="iterations of a turn (default 25)")
    add("--every", type=int, default=5, help="rounds from one evaluation to the next (default 5)")
    add("--out", default=os.path.join(ROOT, "benchmark", "skrl_amp.json"), help="raw figures")
    own, options = parser.parse_known_args()
    if min(own.every, own.iterations) < 1 or own.rounds < own.every:
        parser.error("--every and --iterations are 1 or more, --rounds at least --every")
    if find_spec("skrl") is None:
        print("error: skrl is missing: pip install skrl==2.1.1", file=sys.stderr)
        sys.exit(2)
    words = f"--rounds {own.rounds} --iterations {own.iterations} --every {own.every}"
    own.where = {"command": " ".join(["python benchmark/skrl_amp.py", words, *options]), **stamp()}
    own.where["versions"]["skrl"] = version("skrl")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
    own.out = os.path.abspath(own.out)
    amp = load_script()
    import torch

    torch.set_num_threads(1)
    args = parse(amp, [*options, "--no-cuda", "--eval-interval", "0"])
    if args.total_timesteps < (1 + own.rounds * own.iterations) * args.num_envs * args.num_steps:
        parser.error("fewer --rounds or more --total-timesteps")
    for name in ("motion_file", "character_file"):
        setattr(args, name, os.path.join(ROOT, getattr(args, name)))
    with tempfile.TemporaryDirectory() as folder, inside(folder, *options):  # it takes our run's folder
        raw = compare(own, amp, args, options)
    print_table(raw)


if __name__ == "__main__":
    main()
