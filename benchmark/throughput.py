"""How much of the machine's physics speed the environment and the training keep: one table of control steps per second.

    python benchmark/throughput.py [--repeats 10] [--steps 32] [--iterations 80] [--out FILE.json]
                                   [option of amp_ppo_isaacgym.py ...]

    physics    mujoco.rollout alone, or MuJoCo Warp's graph alone (--sim warp): the environment's own model, substeps
               and threads, on the very states and PD targets of `env step`
    env step   AMPEnv.step with observations, rewards, falls and resets, under random actions of the policy's noise;
               torch on one thread, as in the training's roll-out
    training   the script itself, in a process of its own: samples_per_s/training of its TensorBoard log, the first
               quarter left out

Physics and env step take turns, a block of --steps each, and the training runs once before them and once after them.
Their characters fall as often as those of an untrained policy: "episode" is how long they last. Peak memory is that of
the training, without the GPU's.

Two other questions, answered by the training alone, in whose place they then come (gpu.sh asks all three):

    --profile      the largest costs: which kernels, or on the CPU which operators of PyTorch, take how much of
                   --iterations iterations
    --until ERROR  samples and minutes from the start of the command to the first evaluation without falls and with at
                   most this pose error [m]; give --eval-interval as well
"""

import argparse
import functools
import glob
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from typing import Any, Dict, List, Tuple

from train import ROOT, SCRIPT, run_script, stamp

LOGGED = ("training", "physics", "rollout", "disc", "ppo")  # samples_per_s/* in the script's log


def load_script() -> Any:
    """amp_ppo_isaacgym.py as a module."""
    sys.path.insert(0, ROOT)
    spec = importlib.util.spec_from_file_location("amp", os.path.join(ROOT, SCRIPT))
    module = importlib.util.module_from_spec(spec)
    sys.modules["amp"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def training_rates(options: List[str], iterations: int) -> Tuple[Dict[str, List[float]], float]:
    """Run the training -> samples/s of each iteration by part, and `wall`, with logging; peak memory [GiB]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tempfile.TemporaryDirectory() as folder:  # takes the run's folder
        peak = run_script(options, cwd=folder, echo=False).peak_gib
        events = EventAccumulator(glob.glob(os.path.join(folder, "runs", "*"))[0], size_guidance={"scalars": 0})
        events.Reload()
        log = {name: events.Scalars(f"samples_per_s/{name}") for name in LOGGED}
    skip = iterations // 4
    rates = {name: [event.value for event in scalars[skip:]] for name, scalars in log.items()}
    # The last iteration also evaluates.
    first, last = log["training"][skip], log["training"][-2]
    rates["wall"] = [(last.step - first.step) / (last.wall_time - first.wall_time)]
    return rates, peak


def clock(device: Any) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def env_block(env: Any, actions: Any) -> Tuple[float, List[Any], List[Any], List[int]]:
    """Seconds that env.step takes over actions (K, N, A); what it simulated; lengths of the episodes that ended.

    The second are states and PD targets."""
    seconds, states, targets, lengths = 0.0, [], [], []
    for action in actions:
        states.append(env.sim.snapshot())
        before = clock(env.device)
        _, _, terminated, truncated, info = env.step(action)
        seconds += clock(env.device) - before
        targets.append(env.action_offset + env.action_scale * action)
        lengths += info["episode_length"][terminated | truncated].tolist()
    return seconds, states, targets, lengths


def physics_block(sim: Any, device: Any, states: List[Any], targets: List[Any]) -> float:
    """Seconds that mujoco.rollout, or MuJoCo Warp's graph, takes to simulate the same control steps once more."""
    seconds = 0.0
    for state, target in zip(states, targets):
        sim.restore(state)
        if hasattr(sim, "graph"):
            sim.kept[-1].copy_(target)
            step = functools.partial(sim.warp.capture_launch, sim.graph)
        else:
            sim.control[:] = target.cpu().double().numpy()[:, None]
            inputs = (sim.model, sim.data, sim.state, sim.control)
            step = functools.partial(sim.rollout.rollout, *inputs, state=sim.trajectory)
        before = clock(device)
        step()
        seconds += clock(device) - before
    return seconds


def profile(amp: Any, options: List[str], iterations: int, cuda: bool) -> None:
    """Train for so many iterations in this process, and print which kernels (on the CPU: operators) took the time."""
    import torch

    activity = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    with tempfile.TemporaryDirectory() as folder:  # takes the run's folder
        os.chdir(folder)
        with torch.profiler.profile(activities=[activity]) as profiler:
            amp.main(*amp.parse_args([*options, "--eval-seconds", "0.1"]))  # there is an evaluation at the end
        os.chdir(ROOT)
    own = "self_device_time_total" if cuda else "self_cpu_time_total"  # [us]
    costs = sorted(((getattr(event, own), event.key) for event in profiler.key_averages()), reverse=True)
    total = sum(cost for cost, _ in costs)
    where = "GPU" if cuda else "CPU"
    print(f"\nLargest of {total / 1e6:.2f} s on the {where} in {iterations} iterations:\n")
    print("| kernel | share | s |\n|---|---|---|")
    for cost, name in costs[:10]:
        print(f"| `{name[:100]}` | {cost / total:.1%} | {cost / 1e6:.2f} |")


def time_to_walk(options: List[str], error: float) -> None:
    """Train, and print when an evaluation first had no falls and a pose error of at most `error` [m]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tempfile.TemporaryDirectory() as folder:
        started = time.time()
        run_script(options, cwd=folder, echo=False)
        events = EventAccumulator(glob.glob(os.path.join(folder, "runs", "*"))[0], size_guidance={"scalars": 0})
        events.Reload()
        falls = {event.step: event.value for event in events.Scalars("eval/fall_rate")}
        scalars, rates = events.Scalars("eval/pose_error_m"), events.Scalars("samples_per_s/training")
    where = stamp()
    header = "| samples | minutes | minutes of training alone | falls | pose error [m] |\n|---|---|---|---|---|"
    print(f"commit {where['commit']}; {where['machine']}\n\n{header}")
    for event in scalars:
        minutes = (event.wall_time - started) / 60
        # the first step is a batch
        training = sum(rates[0].step / rate.value for rate in rates if rate.step <= event.step) / 60
        print(f"| {event.step} | {minutes:.1f} | {training:.1f} | {falls[event.step]:.3f} | {event.value:.4f} |")
        if falls[event.step] == 0 and event.value <= error:
            print(
                f"\nA pose error of at most {error} m without falls after {event.step} samples, {minutes:.1f} minutes."
            )
            return
    print(f"\nNo evaluation had a pose error of at most {error} m without falls.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--repeats", type=int, default=10, help="blocks of physics and of env steps (default 10)")
    parser.add_argument("--steps", type=int, default=32, help="control steps a block (default 32)")
    parser.add_argument(
        "--iterations", type=int, default=80, help="iterations of each training (default 80: the replay buffer fills)"
    )
    parser.add_argument(
        "--out", default=os.path.join(ROOT, "benchmark/throughput.json"), help="raw figures (default: beside this file)"
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="the largest costs of --iterations iterations of training, and nothing else",
    )
    parser.add_argument(
        "--until",
        type=float,
        metavar="ERROR",
        help="when a training gets down to this pose error [m], and nothing else",
    )
    own, options = parser.parse_known_args()
    if min(own.repeats, own.steps) < 1 or own.iterations < 8:
        parser.error("--repeats and --steps have to be at least 1, --iterations at least 8")
    amp = load_script()
    import torch

    os.chdir(ROOT)  # where the script's default files are
    try:
        args, _ = amp.parse_args(options)
        device = torch.device("cuda" if args.cuda else "cpu")
        motions = amp.MotionLib(args.motion_file, amp.ml.load_character(args.character_file, str(device)), str(device))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    total = own.iterations * args.num_envs * args.num_steps
    files = [
        "--motion-file",
        os.path.abspath(args.motion_file),
        "--character-file",
        os.path.abspath(args.character_file),
    ]
    if own.until is not None:
        return time_to_walk([*options, *files], own.until)
    training = [*options, *files, "--total-timesteps", str(total), "--eval-interval", "0"]
    if own.profile:
        return profile(amp, training, own.iterations, args.cuda)
    # The first of the two comes before this process grows: its peak memory counts from this one's.
    rates, peak_gib = training_rates(training, own.iterations)

    if args.task == "speed" and args.target_speed is None:
        args.target_speed = motions.statistics()[2]
    simulator = amp.WarpSim if args.sim == "warp" else amp.MujocoSim
    env = amp.AMPEnv(
        args, motions, simulator(args, motions.character, args.num_envs, device), args.num_envs, args.episode_steps
    )
    env.reset(args.seed)
    threads = torch.get_num_threads()
    torch.manual_seed(args.seed)
    size = (own.steps, args.num_envs, *env.single_action_space.shape)
    seconds, lengths = {"physics": [], "env": []}, []
    for repeat in range(-2, own.repeats):  # the first two only let the episodes spread out
        # the clip's mean pose, around which the policy starts, and its noise
        actions = torch.exp(torch.tensor(args.action_std_log)) * torch.randn(size, device=device)
        torch.set_num_threads(1)  # as the training does while it rolls out
        env_seconds, states, targets, ended = env_block(env, actions)
        now = env.sim.snapshot()
        physics_seconds = physics_block(env.sim, device, states, targets)
        env.sim.restore(now)
        if repeat >= 0:
            seconds["env"].append(env_seconds)
            seconds["physics"].append(physics_seconds)
            lengths += ended
    more, _ = training_rates(training, own.iterations)

    block = own.steps * args.num_envs
    steps_per_s = {name: [block / s for s in values] for name, values in seconds.items()}
    steps_per_s.update({name: rates[name] + more[name] for name in ("training", "wall")})
    physics = statistics.median(steps_per_s["physics"])
    ratio = {name: statistics.median(values) / physics for name, values in steps_per_s.items()}
    # of blocks side by side
    ratio["env"] = statistics.median([p / e for p, e in zip(seconds["physics"], seconds["env"])])
    where = stamp()
    settings = dict(
        num_envs=args.num_envs, num_steps=args.num_steps, substeps=args.substeps, control_hz=args.control_hz
    )
    settings.update(
        simulator=args.sim,
        simulator_threads=getattr(env.sim, "threads", None),
        torch_threads=threads,
        device=str(device),
    )
    if args.cuda:
        settings["gpu"] = torch.cuda.get_device_name(device)
    episode = statistics.mean(lengths) if lengths else float("nan")
    with open(own.out, "w") as file:
        raw = dict(steps_per_s=steps_per_s, ratio=ratio, peak_gib=peak_gib, episode_steps=episode)
        parts = {name: rates[name] + more[name] for name in LOGGED}
        command = (
            f"python benchmark/throughput.py --repeats {own.repeats} --steps {own.steps} --iterations {own.iterations}"
        )
        json.dump(
            {"command": " ".join([command, *options]), **where, "settings": settings, **raw, "training_parts": parts},
            file,
            indent=1,
        )
        file.write("\n")

    print(
        f"commit {where['commit']}; {where['machine']}; "
        + ", ".join(f"{name} {value}" for name, value in settings.items())
    )
    print("\n| | control steps/s, median | lowest | highest | ratio to physics |\n|---|---|---|---|---|")
    labels = {"physics": "physics", "env": "env step", "training": "training", "wall": "training, with logging"}
    for name, label in labels.items():
        values = steps_per_s[name]
        print(
            f"| {label} | {statistics.median(values):.0f} | {min(values):.0f} | {max(values):.0f} | {ratio[name]:.2f} |"
        )
    spent = {name: sum(1.0 / rate for rate in parts[name]) for name in LOGGED}
    spent["rollout"] -= spent["physics"]
    names = {"physics": "physics", "rollout": "rest of the roll-out", "disc": "discriminator", "ppo": "rewards and PPO"}
    share = ", ".join(f"{label} {spent[name] / spent['training']:.0%}" for name, label in names.items())
    print(f"\nOf the training: {share}. Episode {episode:.0f} steps. Peak memory of the training {peak_gib:.2f} GiB.")


if __name__ == "__main__":
    main()
