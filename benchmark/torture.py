"""What a run survives, by hand (minutes): python benchmark/torture.py PART [PART ...] [--count N] [--folder DIR]

kill      N (50) times kill -9 at a random moment of a short training, after its first checkpoint, then --resume: every
          run has to end bit for bit as the one that was left alone, with the same curves.
nan       N (1000) times NaN, infinity or an absurd number in the state of a random environment, during one training and
          its evaluations.
files     N (10000) mutated checkpoints and motion files: our own error or success, nothing executed.
disk      a training in DIR, a small file system of its own that is full for a part of the time (mount -t tmpfs -o
          size=16m tmpfs DIR).
starts    N (40) times Ctrl-C at a moment of the first four seconds of a training: one line, and no traceback, from the
          script's first import of ours on (the interpreter's own start, a tenth of a second, is not ours).
names     a short training under torchrun on a machine whose own host name does not resolve (as root, with unshare of
          util-linux): with --local-addr=127.0.0.1 it has to end as any other; without it torchrun hangs, N (60)
          seconds of which are waited for.
overhead  seconds that one checkpoint of the default size takes, against the seconds of training between two, from the
          rate of N (80) iterations.

One JSON object a part is printed and appended to torture.jsonl beside this file (--out: to another file).
"""

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List, Tuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "benchmark")]

from simulators.mujoco_sim import MujocoSim  # noqa: E402  (before torch, for Isaac Gym)

import torch  # noqa: E402
from throughput import inside, parse, train_once, training_options  # noqa: E402
from train import SCRIPT, curves, stamp, the_run  # noqa: E402

import amp_ppo_isaacgym as amp  # noqa: E402
import motion_lib as ml  # noqa: E402
from checkpoints import load_checkpoint  # noqa: E402
from command_line import launch  # noqa: E402
from files import write_file  # noqa: E402
from guards import STOPPED  # noqa: E402
from training_run import Run  # noqa: E402

ENVS = 32
STEPS = 8
BATCH = ENVS * STEPS
SIZES = f"--num-envs {ENVS} --num-steps {STEPS} --hidden 32 32 --disc-batch 64 --replay-size 3000"
SIZES += " --eval-episodes 2 --eval-seconds 1 --eval-interval 20 --save-interval 7 --no-cuda"
CLIP = os.path.join(ROOT, "motions/walk.npz")
CHARACTER = os.path.join(ROOT, "motions/humanoid.xml")
FILES = ["--motion-file", CLIP, "--character-file", CHARACTER]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


# ---- 1. A short training ----


def training(iterations: int) -> List[str]:
    """Options of a short training of the base script."""
    return [*FILES, *SIZES.split(), "--total-timesteps", str(BATCH * iterations)]


def start(folder: str, options: List[str]) -> subprocess.Popen:
    """The base script as a process of its own, in a folder."""
    command = [sys.executable, os.path.join(ROOT, SCRIPT), *options]
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, **pipes)


def has_saved(folder: str) -> bool:
    """Whether a run in a folder has written a checkpoint."""
    return any("latest.pt" in names for _, _, names in os.walk(folder))


def run_here(folder: str, options: List[str]) -> int:
    """The script's own entry, in this process -> exit code."""
    with inside(folder, *options), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        try:
            launch(amp.main, amp.Args, amp.KIND, amp.check_args)
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def end_of(folder: str) -> Tuple[Dict[str, Any], Dict[str, List[Any]]]:
    """How a run in `folder` ended: its last checkpoint, and its curves as (samples, value)."""
    run = the_run(folder)
    checkpoint = torch.load(os.path.join(run, "latest.pt"), weights_only=True)
    for part in (checkpoint, checkpoint["progress"]):
        del part["seconds"]  # what it took is another number each time
    # repr, because NaN is not equal to itself
    found = {name: events for name, events in curves(run).items() if name != "samples_per_s"}
    points = {name: [(event.step, repr(event.value)) for event in events] for name, events in found.items()}
    return checkpoint, points


def same(one: Any, two: Any) -> bool:
    """Whether two checkpoints are bit for bit the same."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


# ---- 2. kill ----


def killed_and_resumed(folder: str, options: List[str], seconds: float) -> bool:
    """Train, kill -9 these seconds after the first checkpoint, resume. Returns False if it ended before it was killed.

    Exits if a training fails."""
    child = start(folder, options)
    while child.poll() is None and not has_saved(folder):
        time.sleep(0.01)
    try:
        _, err = child.communicate(timeout=seconds)
        killed = False
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        killed = True
        child = start(folder, ["--resume", the_run(folder)])
        _, err = child.communicate()
    if child.returncode and "the run is complete" not in err:  # killed after its last checkpoint
        sys.exit(f"error: a training ended with {child.returncode}: {err[-300:]}")
    return killed


def kill(count: int) -> Dict[str, Any]:
    """Kill and resume, against a run that was left alone."""
    random_ = random.Random(0)
    options = training(60)
    runs = 0
    identical = 0
    with tempfile.TemporaryDirectory() as folder:
        alone = os.path.join(folder, "alone")
        os.mkdir(alone)
        started = time.perf_counter()
        start(alone, options).communicate()
        whole = time.perf_counter() - started
        wanted = end_of(alone)
        while runs < count:
            home = os.path.join(folder, "killed")
            os.mkdir(home)
            started = time.perf_counter()
            if killed_and_resumed(home, options, random_.uniform(0.0, 0.6) * whole):
                runs += 1
                identical += same(end_of(home), wanted)
                print(f"\r{runs} runs, {identical} identical", end="", file=sys.stderr)
            else:  # the machine is faster than it was: no run without a kill counts
                whole = time.perf_counter() - started
            shutil.rmtree(home)
    return dict(runs=count, kills=runs, identical=identical)


# ---- 3. nan ----


def nan(count: int) -> Dict[str, Any]:
    """Break the state that a random environment's physics returns, in one training.

    Then look for NaN in everything that was saved."""
    random_ = random.Random(0)
    step = MujocoSim.step
    broken = {"training": 0, "evaluations": 0}

    def breaking(sim: Any, targets: torch.Tensor) -> Any:
        if sum(broken.values()) >= count or random_.random() < 1 / 3:
            return step(sim, targets)
        broken["training" if len(targets) == ENVS else "evaluations"] += 1
        env = random_.randrange(len(targets))
        value = random_.choice((math.nan, math.inf, -math.inf, 1e30))
        if random_.random() < 0.5:  # before the step, in MuJoCo's own state
            sim.state[env, random_.randrange(1, sim.state.shape[1])] = value
            return step(sim, targets)
        state, diverged = step(sim, targets)  # after it, in what comes back
        part = state[random_.randrange(5)]
        part.view(len(targets), -1)[env, random_.randrange(part[0].numel())] = value
        return state, diverged

    MujocoSim.step = breaking
    with tempfile.TemporaryDirectory() as folder:
        code = run_here(folder, training(max(count // 5, 2)))
        saved, points = end_of(folder)
    MujocoSim.step = step
    tensors = {**saved["shared"]["agent"], **saved["processes"][0]["env"], **saved["processes"][0]["replay"]}
    bad = [name for name, x in tensors.items() if isinstance(x, torch.Tensor) and not x.isfinite().all()]
    total = {name: sum(float(value) for _, value in points[name]) for name in points}
    updates = sum(value for name, value in total.items() if name.endswith("/skipped"))
    found = dict(injections=sum(broken.values()), in_evaluations=broken["evaluations"], exit_code=code, not_finite=bad)
    return {**found, "counted": round(total["episode/diverged"] * BATCH), "skipped_updates": round(updates, 3)}


# ---- 4. files ----


def mutated(data: bytes, random_: random.Random) -> bytes:
    """Data that is cut off, has a piece replaced, or some bytes changed."""
    changed = bytearray(data)
    kind = random_.randrange(4)
    if kind == 0:
        return bytes(changed[: random_.randrange(len(data))])
    if kind == 1:
        at = random_.randrange(len(data))
        changed[at : at + random_.randrange(1, 64)] = random_.randbytes(random_.randrange(64))
        return bytes(changed)
    for _ in range(random_.randrange(1, 8)):
        # the pickle and the headers, which stand at the start and at the end, are hit often
        at = int(len(data) * random_.random() ** 6)
        changed[at if kind == 2 else len(data) - 1 - at] = random_.randrange(256)
    return bytes(changed)


def opened(path: str, whole: bool, bodies: List[str]) -> bool:
    """Open a clip or checkpoint as the script does; whole: all the way, in a training -> False if it was refused."""
    try:
        if path.endswith(".npz"):
            ml.load_clip(path, bodies)
        elif not whole:
            load_checkpoint(path, amp.KIND)
        else:
            folder = os.path.dirname(path)
            words = ["--resume", folder, "--total-timesteps", str(BATCH * 3)]
            if path.endswith("best.pt"):
                words = ["--evaluate", "--no-cuda", "--checkpoint", path, *FILES]
            return run_here(folder, words) == 0
    except ml.InputError:
        return False
    return True


def files(count: int) -> Dict[str, Any]:
    """Mutate a checkpoint of each kind and a clip, and open them."""
    random_ = random.Random(0)
    outcomes = {"refused": 0, "accepted": 0, "all_the_way": 0}
    other = []
    bodies = ml.load_character(CHARACTER).body_names
    with tempfile.TemporaryDirectory() as folder:
        run_here(folder, training(2))
        run = the_run(folder)
        shutil.copy(CLIP, os.path.join(run, "clip.npz"))
        kept = {}
        for name in ("latest.pt", "best.pt", "clip.npz"):
            with open(os.path.join(run, name), "rb") as file:
                kept[name] = file.read()
        for n in range(count):
            name = random_.choice(list(kept))
            path = os.path.join(run, name)
            write_file(path, mutated(kept[name], random_))
            whole = n % 100 == 0 and name != "clip.npz"
            outcomes["all_the_way"] += whole
            try:
                outcomes["accepted" if opened(path, whole, bodies) else "refused"] += 1
            except Exception as error:
                other.append(f"{name}: {type(error).__name__}: {error}"[:200])
            write_file(path, kept[name])
            if n % 500 == 0:
                print(f"\r{n} files, {outcomes}, {len(other)} other", end="", file=sys.stderr)
    return dict(files=count, **outcomes, other=len(other), first_of_these=other[:3])


# ---- 5. disk ----


def disk(folder: str) -> Dict[str, Any]:
    """Train on a file system that is full for five seconds from the first checkpoint on.

    Then resume for more."""
    fill = os.path.join(folder, "fill")
    child = start(folder, training(200))
    while child.poll() is None and not has_saved(folder):
        time.sleep(0.1)
    with open(fill, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    run = the_run(folder)
    sound = 0
    for _ in range(20):
        time.sleep(0.25)
        with contextlib.suppress(ml.InputError):
            load_checkpoint(os.path.join(run, "latest.pt"), amp.KIND)
            sound += 1
    ended_full = child.poll() is not None
    os.remove(fill)
    _, err = child.communicate()
    said = [line for line in err.replace("\r", "\n").split("\n") if "not written" in line]
    points = curves(run)["reward/total"]
    more = start(folder, ["--resume", run, "--total-timesteps", str(BATCH * 210)])
    more.communicate()
    shutil.rmtree(os.path.join(folder, "runs"))
    found = dict(exit_code=child.returncode, sound_while_full=f"{sound} of 20", ended_while_full=ended_full)
    return {**found, "lines": len(said), "curve_points": f"{len(points)} of 200", "resumed": more.returncode == 0}


# ---- 6. starts ----


def interrupted(folder: str, seconds: float) -> str:
    """How a training ends that gets Ctrl-C after these seconds."""
    child = start(folder, training(10**4))
    time.sleep(seconds)
    child.send_signal(signal.SIGINT)
    try:
        _, err = child.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return "goes on"
    if "Traceback" in err:
        return "a traceback"
    if err == f"{STOPPED}\n":
        return "a line"
    return "in good order" if child.returncode == 130 and "finishing this iteration" in err else "other"


def starts(count: int) -> Dict[str, Any]:
    """Ctrl-C at moments spread evenly over a start."""
    found: Dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            outcome = interrupted(folder, 0.2 + 3.8 * i / count)
            found[outcome] = found.get(outcome, 0) + 1
            print(f"\r{i + 1} starts, {found}", end="", file=sys.stderr)
    return dict(starts=count, **found)


# ---- 7. names ----


def names(seconds: int) -> Dict[str, Any]:
    """torchrun where the own host name does not resolve, with the option that the documents name and without it."""
    found: Dict[str, Any] = {}
    for name, options in (("with_local_addr", ["--local-addr=127.0.0.1"]), ("without", [])):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *options]
        command += [os.path.join(ROOT, SCRIPT), *training(4)]
        alone = ["unshare", "--uts", "bash", "-c", 'hostname no-such-host.invalid && exec "$@"', "bash", *command]
        with tempfile.TemporaryDirectory() as folder:
            child = subprocess.Popen(alone, cwd=folder, env=ENVIRONMENT, start_new_session=True)
            try:
                child.wait(timeout=seconds if name == "without" else 600)
                found[name] = f"exit code {child.returncode}, {'saved' if has_saved(folder) else 'nothing saved'}"
            except subprocess.TimeoutExpired:
                found[name] = f"hangs for {seconds} s"
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return found


# ---- 8. overhead ----


def saves() -> List[float]:
    """Seconds of three checkpoints of the default options; a replay buffer is saved as far as it is filled."""
    seconds = []
    save = Run.save_when_due

    def timed(run: Run) -> bool:
        before = time.perf_counter()
        stop = save(run)
        seconds.append(time.perf_counter() - before)
        return stop

    Run.save_when_due = timed
    args = parse(amp, ["--no-cuda"])
    iterations = 3
    words = [*training_options(ROOT, args, ["--no-cuda"], iterations), "--save-interval", "1", "--eval-seconds", "0.1"]
    os.makedirs(os.path.join(ROOT, "runs"), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.join(ROOT, "runs")) as folder:  # on the disk where runs are
        if run_here(folder, words):
            sys.exit("error: the training of three iterations failed")
        seconds.append(os.path.getsize(os.path.join(the_run(folder), "latest.pt")))
    Run.save_when_due = save
    return seconds


def overhead(iterations: int) -> Dict[str, Any]:
    """A checkpoint of the default training, and the training between two by the plain command's rate."""
    *seconds, size = saves()
    args = parse(amp, ["--no-cuda"])
    rate, _, _ = train_once(ROOT, [*training_options(ROOT, args, ["--no-cuda"], iterations), "--eval-seconds", "0.1"])
    between = args.save_interval * args.num_envs * args.num_steps / rate
    found = dict(checkpoint_s=[round(x, 3) for x in seconds], mb=round(size / 1e6))
    return {**found, "training_between_s": round(between, 1), "share": round(statistics.median(seconds) / between, 4)}


PARTS = {  # what each calls, and with which number
    "kill": (kill, 50),
    "nan": (nan, 1000),
    "files": (files, 10000),
    "starts": (starts, 40),
    "names": (names, 60),
    "overhead": (overhead, 80),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("disk", *PARTS))
    parser.add_argument("--folder", help="for disk: the mounted file system")
    parser.add_argument("--count", type=int, help="instead of the numbers above")
    parser.add_argument("--out", default=os.path.join(ROOT, "benchmark/torture.jsonl"), help="where results are added")
    given = parser.parse_args()
    if "disk" in given.parts and not os.path.isdir(given.folder or ""):
        parser.error("disk needs --folder")
    torch.set_num_threads(1)
    for part in given.parts:
        if part == "disk":
            result = disk(os.path.abspath(given.folder))
        else:
            run, count = PARTS[part]
            result = run(given.count or count)
        record = {"part": part, **stamp(), **result}
        print("\n" + json.dumps(record))
        with open(given.out, "a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
