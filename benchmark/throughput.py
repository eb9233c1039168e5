"""How much of the machine's physics speed the environment and the training keep: one table of control steps per second.

    python benchmark/throughput.py [--repeats 10] [--steps 32] [--iterations 80] [--baseline PATH] [--out FILE.json]
                                   [option of amp_ppo_isaacgym.py ...]

    physics    mujoco.rollout alone, or MuJoCo Warp's graph alone (--sim warp), or all of Isaac Gym's step: the
               environment's own model, substeps and threads, on the very states and PD targets of `env step`
    env step   AMPEnv.step with observations, rewards, falls and resets, under random actions of the policy's noise;
               torch on one thread, as in the training's roll-out
    training   the script itself, in a process of its own, by the clock of its log, which holds everything but start and
               end; the first quarter is left out
    baseline   the training of another checkout of this repository, in the same turns (--baseline)

Physics and env step take turns, a block of --steps each, and the trainings run once before them and once after them.
Their characters fall as often as those of an untrained policy: "episode" is how long they last. Peak memory is that of
the training, without the GPU's. Below the table: which part of a further training, in this process, took how much of
it; with --cuda the parts wait for the GPU there. Raw figures go to throughput.json beside this file.

Two other questions, answered by the training alone, in whose place they then come (gpu.sh asks the first):

    --profile      the largest costs: which kernels, or on the CPU which operators of PyTorch, take how much of
                   --iterations iterations
    --busy         what becomes of the training on two cores when something else runs on one of them (Linux): samples/s
                   idle and beside a busy process, for the plain command, for other ways in which OpenMP's threads may
                   wait, and for --baseline, which is the first row then; all in turns, --rounds of them, some three
                   minutes each. Raw figures go to busy.json
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from typing import Any, Callable, Dict, Iterator, List, Tuple

from train import ENVIRONMENT, ROOT, SCRIPT, commit, run_script, samples_per_s, stamp, the_run

# ---- 1. The script, here and as a command ----


def load_script() -> Any:
    """amp_ppo_isaacgym.py as a module."""
    sys.path.insert(0, ROOT)
    return importlib.import_module(SCRIPT[:-3])


def parse(amp: Any, options: List[str]) -> Any:
    """Options of the script as its Args. Exits if it refuses them."""
    from command_line import parse_args

    try:
        args, _ = parse_args(amp.Args, amp.KIND, options)
        amp.check_args(args)
    except amp.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    return args


def training_options(root: str, args: Any, options: List[str], iterations: int) -> List[str]:
    """The given options, with the files of the checkout in `root`, for so many iterations and a short evaluation."""
    files = ["--motion-file", os.path.join(root, args.motion_file)]
    files += ["--character-file", os.path.join(root, args.character_file)]
    samples = iterations * args.num_envs * args.num_steps
    return [*options, *files, "--total-timesteps", str(samples), "--eval-interval", "0"]


def train_once(root: str, options: List[str]) -> Tuple[float, List[float], float]:
    """The training of the checkout in `root` -> samples/s over all iterations, and of each one; peak memory [GiB]."""
    with tempfile.TemporaryDirectory() as folder:  # takes the run's folder
        run = run_script([os.path.join(root, SCRIPT), *options], cwd=folder, echo=False)
        whole, each = samples_per_s(the_run(folder))
    return whole, each, run.peak_gib


@contextlib.contextmanager
def inside(folder: str, *options: str) -> Iterator[None]:
    """As the script with these options, in this process and in a folder; signals are ours again afterwards."""
    import torch

    here = os.getcwd()
    threads = torch.get_num_threads()
    argv = sys.argv
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    os.chdir(folder)
    sys.argv = [os.path.join(ROOT, SCRIPT), *options]  # a run looks at it, and keeps a copy of the script
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        os.chdir(here)
        torch.set_num_threads(threads)
        sys.argv = argv
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


# ---- 2. Physics, environment step, training ----


def clock(device: Any) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def env_block(env: Any, actions: Any, device: Any) -> Tuple[float, List[Any], List[Any], List[int]]:
    """Seconds that env.step takes over actions (K, N, A); states and PD targets; lengths of the episodes that ended."""
    seconds = 0.0
    states = []
    targets = []
    lengths = []
    for action in actions:
        states.append(env.sim.state_dict())
        before = clock(device)
        _, _, terminated, truncated, info = env.step(action)
        seconds += clock(device) - before
        targets.append(env.action_offset + env.args.action_scale * action)
        lengths += info["episode_length"][terminated | truncated].tolist()
    return seconds, states, targets, lengths


def physics_step(sim: Any, targets: Any) -> Callable[[], Any]:
    """The simulator's own part of sim.step(targets), ready to be called."""
    if hasattr(sim, "graph"):
        import warp

        sim.kept["ctrl"].copy_(targets)
        return functools.partial(warp.capture_launch, sim.graph)
    if hasattr(sim, "rollout"):
        sim.control[:] = targets.cpu().double().numpy()[:, None]
        inputs = (sim.model, sim.data, sim.state, sim.control)
        return functools.partial(sim.rollout.rollout, *inputs, state=sim.trajectory)
    return functools.partial(sim.step, targets)


def physics_block(sim: Any, device: Any, states: List[Any], targets: List[Any]) -> float:
    """Seconds that the physics alone takes to simulate the same control steps once more."""
    seconds = 0.0
    for state, target in zip(states, targets):
        sim.load_state_dict(state)
        step = physics_step(sim, target)
        before = clock(device)
        step()
        seconds += clock(device) - before
    return seconds


def blocks(own: Any, amp: Any, args: Any) -> Dict[str, Any]:
    """Physics and env steps in turns -> seconds of each block of "physics" and "env", "lengths" of episodes, "sim"."""
    import torch

    device = torch.device("cuda" if args.cuda else "cpu")
    cores = amp.processes().cores
    motions = amp.MotionLib(args.motion_file, amp.ml.load_character(args.character_file, str(device)), str(device))
    if args.task == "speed" and args.target_speed is None:
        args.target_speed = motions.statistics()[-1]
    timing = (args.control_hz, args.substeps, device, cores)
    sim = amp.simulators.make(args.sim, motions.character, args.num_envs, *timing)
    env = amp.AMPEnv(args, motions, sim, args.num_envs, args.episode_steps)
    env.reset(args.seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the training does while it rolls out
    torch.manual_seed(args.seed)
    size = (own.steps, args.num_envs, *env.action_offset.shape)
    found: Dict[str, Any] = {"physics": [], "env": [], "lengths": [], "sim": sim}
    for repeat in range(-2, own.repeats):  # the first two only let the episodes spread out
        # the clip's mean pose, around which the policy starts, and its noise
        actions = torch.exp(torch.tensor(args.action_std_log)) * torch.randn(size, device=device)
        env_seconds, states, targets, ended = env_block(env, actions, device)
        now = sim.state_dict()
        physics_seconds = physics_block(sim, device, states, targets)
        sim.load_state_dict(now)
        if repeat >= 0:
            found["env"].append(env_seconds)
            found["physics"].append(physics_seconds)
            found["lengths"] += ended
    torch.set_num_threads(threads)
    return found


def time_parts(amp: Any, device: Any) -> Tuple[Dict[str, float], Dict[str, float]]:
    """Have the script's parts time themselves -> seconds spent in each since the last clear(); when each last ended.

    "physics", "env", and the updates "disc" and "ppo". This process's script stays like that."""
    spent: Dict[str, float] = defaultdict(float)
    ended: Dict[str, float] = {}

    def timed(name: str, function: Callable) -> Callable:
        def call(*words: Any) -> Any:
            before = clock(device)
            result = function(*words)
            # of update, by which both learn: that of the discriminator has one network
            part = name if name != "update" else "disc" if len(words[2]) == 1 else "ppo"
            ended[part] = clock(device)
            spent[part] += ended[part] - before
            return result

        return call

    def timed_sim(*words: Any) -> Any:
        sim = make(*words)
        sim.step = timed("physics", sim.step)
        return sim

    make = amp.simulators.make
    amp.simulators.make = timed_sim
    amp.AMPEnv.step = timed("env", amp.AMPEnv.step)
    amp.update = timed("update", amp.update)
    return spent, ended


def training_parts(amp: Any, options: List[str], iterations: int) -> Dict[str, float]:
    """Seconds of a training by part, timed from outside; without its first quarter and the last iteration."""
    import torch

    args = parse(amp, [*options, "--eval-seconds", "0.1"])
    device = torch.device("cuda" if args.cuda else "cpu")
    spent, ended = time_parts(amp, device)
    total: Dict[str, float] = defaultdict(float)
    started = clock(device)
    with tempfile.TemporaryDirectory() as folder, inside(folder):
        for iteration, _ in enumerate(amp.main(args)):
            now = clock(device)
            if iterations // 4 <= iteration < iterations - 1:
                total["physics"] += spent["physics"]
                total["rest of the environment step"] += spent["env"] - spent["physics"]
                total["rest of the roll-out"] += ended["env"] - started - spent["env"]
                total["discriminator"] += ended["disc"] - ended["env"]
                total["rewards, PPO, log"] += now - ended["disc"]
            spent.clear()
            started = clock(device)
    return total


def trainings(own: Any, args: Any, options: List[str], reverse: bool) -> Dict[str, Tuple[float, List[float], float]]:
    """One training, and one of the baseline if there is one -> by name what train_once says."""
    roots = {"training": ROOT}
    if own.baseline:
        roots["baseline"] = own.baseline
    names = list(roots)[::-1] if reverse else list(roots)
    return {
        name: train_once(roots[name], training_options(roots[name], args, options, own.iterations)) for name in names
    }


def compare(own: Any, amp: Any, args: Any, options: List[str]) -> None:
    """Measure physics, environment step and trainings in turns; print the table, write the raw figures."""
    # The first trainings come before this process grows: their peak memory counts from this one's.
    first = trainings(own, args, options, False)
    found = blocks(own, amp, args)
    last = trainings(own, args, options, True)
    parts = training_parts(amp, training_options(ROOT, args, options, own.iterations), own.iterations)
    block = own.steps * args.num_envs
    steps_per_s = {name: [block / seconds for seconds in found[name]] for name in ("physics", "env")}
    steps_per_s.update({name: [first[name][0], last[name][0]] for name in first})
    physics = statistics.median(steps_per_s["physics"])
    ratio = {name: statistics.median(rates) / physics for name, rates in steps_per_s.items()}
    # of blocks side by side
    ratio["env"] = statistics.median([p / e for p, e in zip(found["physics"], found["env"])])
    raw = {"settings": settings(args, found["sim"]), "steps_per_s": steps_per_s, "ratio": ratio}
    raw["peak_gib"] = {name: peak for name, (_, _, peak) in first.items()}
    raw["episode_steps"] = statistics.mean(found["lengths"] or [0])
    raw["training_parts_s"] = parts
    raw["iterations"] = {name: first[name][1] + last[name][1] for name in first}
    print_comparison(write_raw(own, options, raw), raw)


def settings(args: Any, sim: Any) -> Dict[str, Any]:
    """What the figures depend on, besides the machine."""
    import torch

    used = {name: getattr(args, name) for name in ("num_envs", "num_steps", "substeps", "control_hz", "sim")}
    if args.sim == "mujoco":
        used["simulator_threads"] = len(sim.data)
    used["torch_threads"] = torch.get_num_threads()
    used["device"] = "cuda" if args.cuda else "cpu"
    if args.cuda:
        used["gpu"] = torch.cuda.get_device_name()
    return used


def write_raw(own: Any, options: List[str], raw: Dict[str, Any]) -> Dict[str, Any]:
    """Write raw figures with the command that makes them, and where -> the latter."""
    where = stamp()
    if own.baseline:
        where["baseline"] = commit(own.baseline)
    words = f"--repeats {own.repeats} --steps {own.steps} --iterations {own.iterations}"
    if own.busy:
        words = f"--busy --rounds {own.rounds} --iterations {own.iterations} --seconds {own.seconds} --nice {own.nice}"
    words += f" --baseline {where['baseline']}" if own.baseline else ""
    command = " ".join(["python benchmark/throughput.py", words, *options])
    with open(own.out, "w") as file:
        json.dump({"command": command, **where, **raw}, file, indent=1)
        file.write("\n")
    return where


def print_comparison(where: Dict[str, Any], raw: Dict[str, Any]) -> None:
    """The table of physics, environment step and trainings, and what stands below it."""
    settings = ", ".join(f"{name} {value}" for name, value in raw["settings"].items())
    print(f"commit {where['commit']}; {where['machine']}; {settings}")
    print("\n| | control steps/s, median | lowest | highest | ratio to physics |\n|---|---|---|---|---|")
    labels = {"physics": "physics", "env": "env step", "training": "training, with logging"}
    labels["baseline"] = f"training of commit {where.get('baseline')}"
    for name, label in labels.items():
        rates = raw["steps_per_s"].get(name)
        if rates:
            middle = f"{statistics.median(rates):.0f} | {min(rates):.0f} | {max(rates):.0f}"
            print(f"| {label} | {middle} | {raw['ratio'][name]:.2f} |")
    parts = raw["training_parts_s"]
    shares = ", ".join(f"{name} {seconds / sum(parts.values()):.0%}" for name, seconds in parts.items())
    peaks = ", ".join(f"{labels[name]} {gib:.2f} GiB" for name, gib in raw["peak_gib"].items())
    print(f"\nOf a training: {shares}. Episode {raw['episode_steps']:.0f} steps. Peak memory: {peaks}.")


# ---- 3. Other questions ----


def profile(own: Any, amp: Any, args: Any, options: List[str]) -> None:
    """Train in this process, and print which kernels (on the CPU: operators) took the time."""
    import torch

    activity = torch.profiler.ProfilerActivity.CUDA if args.cuda else torch.profiler.ProfilerActivity.CPU
    short = ["--eval-seconds", "0.1"]  # there is an evaluation at the end
    args = parse(amp, [*training_options(ROOT, args, options, own.iterations), *short])
    with tempfile.TemporaryDirectory() as folder, inside(folder):
        with torch.profiler.profile(activities=[activity]) as profiler:
            for _ in amp.main(args):
                pass
    own_time = "self_device_time_total" if args.cuda else "self_cpu_time_total"  # [us]
    costs = sorted(((getattr(event, own_time), event.key) for event in profiler.key_averages()), reverse=True)
    total = sum(cost for cost, _ in costs)
    where = "GPU" if args.cuda else "CPU"
    print(f"\nLargest of {total / 1e6:.2f} s on the {where} in {own.iterations} iterations:\n")
    print("| kernel | share | s |\n|---|---|---|")
    for cost, name in costs[:10]:
        print(f"| `{name[:100]}` | {cost / total:.1%} | {cost / 1e6:.2f} |")


# ---- 4. Beside a busy process ----

# how a command's OpenMP threads may wait: label -> variables of its environment, in place of any that are set
WAITING = {
    "GOMP_SPINCOUNT=300000, libgomp's own": {"GOMP_SPINCOUNT": "300000"},
    "default": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
LOOP = (
    "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    for _ in range(10**6): pass"  # ends with its parent
)


@contextlib.contextmanager
def busy_core(core: int, niceness: int) -> Iterator[None]:
    """Beside a process that computes without end on one core."""

    def settle() -> None:
        os.sched_setaffinity(0, [core])
        os.nice(niceness)

    with subprocess.Popen([sys.executable, "-c", LOOP, str(os.getpid())], preexec_fn=settle) as process:
        try:
            yield
        finally:
            process.kill()


def train_on(cores: List[int], own: Any, root: str, env: Dict[str, str], options: List[str]) -> float:
    """Samples/s of the training of the checkout in `root`, on some cores only, in an environment."""
    settle = functools.partial(os.sched_setaffinity, 0, cores)
    with tempfile.TemporaryDirectory() as folder:
        script = [os.path.join(root, SCRIPT), *options]
        run_script(script, cwd=folder, echo=False, env=env, limit=own.seconds, before=settle)
        return samples_per_s(the_run(folder))[0]


def busy(own: Any, args: Any, options: List[str]) -> None:
    """Measure the training idle and beside a busy process, in turns; print the table, write the raw figures."""
    cores = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2 or args.cuda:
        sys.exit("error: --busy needs Linux, two cores, and --no-cuda")
    plain = {name: x for name, x in ENVIRONMENT.items() if not name.startswith(("OMP_", "GOMP_"))}
    variants = {f"commit {commit(own.baseline)}": (own.baseline, plain)} if own.baseline else {}
    variants.update({label: (ROOT, {**plain, **more}) for label, more in WAITING.items()})
    runs: Dict[str, Dict[str, List[float]]] = {label: {"idle": [], "busy": []} for label in variants}
    for turn in range(own.rounds):
        for state in ("idle", "busy"):
            for label, (root, env) in variants.items():
                words = [*training_options(root, args, options, own.iterations), "--eval-seconds", "0.1"]
                with busy_core(cores[0], own.nice) if state == "busy" else contextlib.nullcontext():
                    runs[label][state].append(train_on(cores, own, root, env, words))
                print(f"round {turn + 1}, {state}: {label}: {runs[label][state][-1]:.0f} samples/s", file=sys.stderr)
    where = write_raw(own, options, {"runs": runs})
    print(f"commit {where['commit']}; {where['machine']}; on two cores, with a busy process on one of them whose")
    print(
        f"niceness is {own.nice} above the training's; samples/s, {own.rounds} rounds, medians (smallest to largest)\n"
    )
    print_busy(runs)


def print_busy(runs: Dict[str, Dict[str, List[float]]]) -> None:
    """The table of --busy: label -> rates "idle" and "busy", by round."""
    print("| | idle | of the first row | beside a busy process | of the first row | busy of idle |")
    print("|---|---|---|---|---|---|")
    first = next(iter(runs.values()))
    for label, rates in runs.items():
        cells = []
        for state in ("idle", "busy"):
            cells.append(f"{statistics.median(rates[state]):.0f} ({min(rates[state]):.0f} to {max(rates[state]):.0f})")
            cells.append(f"{median_ratio(rates[state], first[state]):.2f}")
        cells.append(f"{median_ratio(rates['busy'], rates['idle']):.2f}")
        print(f"| {label} | " + " | ".join(cells) + " |")


def median_ratio(rates: List[float], others: List[float]) -> float:
    """Of rates to others of the same round."""
    return statistics.median([rate / other for rate, other in zip(rates, others)])


# ---- 5. Options ----


def command_line() -> Tuple[Any, List[str]]:
    """Our own options, and those of the script."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    add = parser.add_argument
    add("--repeats", type=int, default=10, help="blocks of physics and of env steps (default 10)")
    add("--steps", type=int, default=32, help="control steps a block (default 32)")
    add("--iterations", type=int, help="of each training (default 80: the replay buffer fills; --busy: 24)")
    add("--baseline", metavar="PATH", help="another checkout, whose training is measured as well")
    add("--out", help="raw figures (default: throughput.json, or busy.json, beside this file)")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--profile", action="store_true", help="the largest costs of a training, and nothing else")
    only.add_argument("--busy", action="store_true", help="idle, and beside a busy process")
    add("--rounds", type=int, default=2, help="for --busy: trainings of each kind (default 2)")
    add("--seconds", type=float, default=30.0, help="for --busy: longest training, with its start [s] (default 30)")
    add("--nice", type=int, default=0, help="for --busy: niceness of the busy process above the training's (default 0)")
    own, options = parser.parse_known_args()
    own.iterations = own.iterations or (24 if own.busy else 80)
    if min(own.repeats, own.steps, own.rounds) < 1 or own.iterations < 8:
        parser.error("--repeats, --steps and --rounds have to be at least 1, --iterations at least 8")
    if own.baseline:
        own.baseline = os.path.abspath(own.baseline)
        if not os.path.isfile(os.path.join(own.baseline, SCRIPT)):
            parser.error(f"--baseline {own.baseline}: no {SCRIPT} there")
    own.out = own.out or os.path.join(ROOT, "benchmark", "busy.json" if own.busy else "throughput.json")
    own.out = os.path.abspath(own.out)
    return own, options


def main() -> None:
    own, options = command_line()
    amp = load_script()  # before torch, as the script is itself
    os.chdir(ROOT)  # where the script's default files are
    args = parse(amp, options)
    if own.busy:
        busy(own, args, options)
    elif own.profile:
        profile(own, amp, args, options)
    else:
        compare(own, amp, args, options)


if __name__ == "__main__":
    main()
