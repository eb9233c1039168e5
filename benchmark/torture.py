"""What a run survives, by hand (minutes): python benchmark/torture.py PART [PART ...] [--count N] [--folder DIR]

kill      N (50) times kill -9 at a random moment of a short training, after its first checkpoint, then --resume: every
          run has to end bit for bit as the one that was left alone, with the same curves.
nan       N (1000) times NaN, infinity or an absurd number in the state of a random environment, during one training.
files     N (10000) mutated checkpoints and motion files: our own error or success, nothing executed.
disk      a training in DIR, a small file system of its own that is full for a part of the time (mount -t tmpfs -o
          size=16m tmpfs DIR).
overhead  seconds that one checkpoint of the default size takes, against the seconds of training between two.

One JSON object a part is printed and appended to torture.jsonl beside this file.
"""

import argparse
import contextlib
import io
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "benchmark")]

import torch  # noqa: E402
from train import stamp  # noqa: E402

import amp_ppo_isaacgym as amp  # noqa: E402
import motion_lib as ml  # noqa: E402

SIZES = "--num-envs 32 --num-steps 8 --hidden 32 32 --disc-batch 64 --replay-size 3000"
SIZES += " --eval-episodes 2 --eval-seconds 1 --no-cuda"
FILES = [
    "--motion-file",
    os.path.join(ROOT, "motions/walk.npz"),
    "--character-file",
    os.path.join(ROOT, "motions/humanoid.xml"),
]


def command(*words: str) -> List[str]:
    """A short training of the base script."""
    return [sys.executable, os.path.join(ROOT, "amp_ppo_isaacgym.py"), *words]


def training(samples: int, *words: str) -> List[str]:
    return command(
        *FILES,
        *SIZES.split(),
        "--total-timesteps",
        str(samples),
        "--eval-interval",
        "20",
        "--save-interval",
        "7",
        *words,
    )


def curves(run: str) -> Dict[str, List[Any]]:
    """All scalars of a run but the rates, which are times: name -> [(samples, value)]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(run, size_guidance={"scalars": 0})
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if not name.startswith("samples_per_s")]
    # repr, because NaN is not equal to itself
    return {name: [(event.step, repr(event.value)) for event in events.Scalars(name)] for name in names}


def same(one: Any, two: Any) -> bool:
    """Whether two checkpoints are bit for bit the same."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def kill(count: int) -> Dict[str, Any]:
    """Kill and resume, against a run that was left alone."""
    env, random_ = {**os.environ, "OMP_NUM_THREADS": "1"}, random.Random(0)
    quiet = dict(env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    samples, identical, kills = 32 * 8 * 60, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        alone = os.path.join(folder, "alone")
        os.mkdir(alone)
        started = time.perf_counter()
        subprocess.run(training(samples), cwd=alone, check=True, **quiet)
        whole = time.perf_counter() - started
        (reference,) = (os.path.join(alone, "runs", name) for name in os.listdir(os.path.join(alone, "runs")))
        wanted, points = torch.load(os.path.join(reference, "latest.pt"), weights_only=True), curves(reference)
        runs = 0
        while runs < count:
            home = os.path.join(folder, "killed")
            os.mkdir(home)
            words, done, before, started = training(samples), False, kills, time.perf_counter()
            while not done:
                child = subprocess.Popen(words, cwd=home, **quiet)
                if kills <= runs:  # before its first checkpoint there is nothing to go on with
                    while child.poll() is None and not any("latest.pt" in names for _, _, names in os.walk(home)):
                        time.sleep(0.01)
                try:
                    _, err = child.communicate(timeout=random_.uniform(0.0, 0.6) * whole if kills <= runs else None)
                    done = child.returncode == 0 or "the run is complete" in err  # killed after its last checkpoint
                    if not done:
                        sys.exit(f"error: run {runs} ended with {child.returncode}: {err[-300:]}")
                except subprocess.TimeoutExpired:
                    child.send_signal(signal.SIGKILL)
                    child.communicate()
                    kills += 1
                    (name,) = os.listdir(os.path.join(home, "runs"))
                    words = command("--resume", os.path.join("runs", name))
            if kills == before:  # the machine is faster than it was: no run without a kill counts
                whole = time.perf_counter() - started
            else:
                (run,) = (os.path.join(home, "runs", name) for name in os.listdir(os.path.join(home, "runs")))
                identical += (
                    same(torch.load(os.path.join(run, "latest.pt"), weights_only=True), wanted)
                    and curves(run) == points
                )
                runs += 1
                print(f"\r{runs} runs, {kills} kills, {identical} identical", end="", file=sys.stderr)
            shutil.rmtree(home)
    return dict(runs=count, kills=kills, identical=identical)


def run_here(folder: str, words: List[str]) -> int:
    """The script's own entry, in this process -> exit code."""
    here, out = os.getcwd(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            amp.main(*amp.parse_args(words))
        return 0
    except (ml.InputError, OSError):
        return 2
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        os.chdir(here)


def nan(count: int) -> Dict[str, Any]:
    """Break the state that a random environment's physics returns, in one training.

    Then look for NaN in everything that was saved."""
    random_, broken, step = random.Random(0), [0], amp.MujocoSim.step

    def breaking(sim: Any, targets: torch.Tensor) -> Any:
        for _ in range(random_.choice((0, 1, 2)) if broken[0] < count else 0):
            env, value = random_.randrange(len(targets)), random_.choice((math.nan, math.inf, -math.inf, 1e30))
            if random_.random() < 0.5:  # before the step, in MuJoCo's own state
                sim.state[env, random_.randrange(1, sim.state.shape[1])] = value
                state, diverged = step(sim, targets)
            else:  # after it, in what comes back
                state, diverged = step(sim, targets)
                part = random_.randrange(5)
                state[part].view(len(targets), -1)[env, random_.randrange(state[part][0].numel())] = value
            broken[0] += 1
            return state, diverged
        return step(sim, targets)

    amp.MujocoSim.step = breaking
    with tempfile.TemporaryDirectory() as folder:
        steps = 8 * (count // 5)
        code = run_here(folder, training(32 * max(steps, 8))[2:])
        (run,) = os.listdir(os.path.join(folder, "runs"))
        saved = torch.load(os.path.join(folder, "runs", run, "latest.pt"), weights_only=True)
    amp.MujocoSim.step = step
    bad = [name for name, x in saved["agent"].items() if not x.isfinite().all()]
    counted = saved["training"]["progress"]
    return dict(
        injections=broken[0],
        exit_code=code,
        not_finite=bad,
        counted=counted["diverged"],
        skipped_updates=counted["skipped"],
    )


def files(count: int) -> Dict[str, Any]:
    """Mutate a checkpoint of each kind and a clip, and open them as the script does."""
    random_, outcomes, other = random.Random(0), {"refused": 0, "accepted": 0}, []
    with tempfile.TemporaryDirectory() as folder:
        run_here(folder, training(32 * 8 * 2)[2:])
        (run,) = (os.path.join(folder, "runs", name) for name in os.listdir(os.path.join(folder, "runs")))
        kept = {name: open(os.path.join(run, name), "rb").read() for name in ("latest.pt", "policy.pt")}
        kept["clip.npz"] = open(FILES[1], "rb").read()
        os.remove(os.path.join(run, "previous.pt")) if os.path.exists(os.path.join(run, "previous.pt")) else None
        bodies = ml.load_character(FILES[3]).body_names
        for n in range(count):
            name = random_.choice(list(kept))
            data = bytearray(kept[name])
            kind = random_.randrange(4)
            if kind == 0:
                data = data[: random_.randrange(len(data))]
            elif kind == 1:
                at = random_.randrange(len(data))
                data[at : at + random_.randrange(1, 64)] = random_.randbytes(random_.randrange(64))
            else:  # the pickle and the headers, which stand at the start and at the end, are hit often
                for _ in range(random_.randrange(1, 8)):
                    at = (
                        int(len(data) * random_.random() ** 6)
                        if kind == 2
                        else len(data) - 1 - int(len(data) * random_.random() ** 6)
                    )
                    data[max(at, 0)] = random_.randrange(256)
            path = os.path.join(run, name)
            with open(path, "wb") as file:
                file.write(data)
            try:
                if name == "clip.npz":
                    ml.load_clip(path, bodies)
                    outcomes["accepted"] += 1
                elif n % 100:
                    amp.load_checkpoint(path)
                    outcomes["accepted"] += 1
                else:  # all the way: rebuild the program around it
                    words = (
                        ["--evaluate", "--no-cuda", "--checkpoint", path] if name == "policy.pt" else ["--resume", run]
                    )
                    outcomes["refused" if run_here(folder, words) == 2 else "accepted"] += 1
                    shutil.rmtree(os.path.join(run, "policy_rollouts"), ignore_errors=True)
            except ml.InputError:
                outcomes["refused"] += 1
            except BaseException as error:
                other.append(f"{name}: {type(error).__name__}: {error}"[:200])
            with open(path, "wb") as file:
                file.write(kept[name])
            if n % 500 == 0:
                print(f"\r{n} files, {outcomes}, {len(other)} other", end="", file=sys.stderr)
    return dict(files=count, **outcomes, other=len(other), first_of_these=other[:3])


def disk(folder: str) -> Dict[str, Any]:
    """Train on a file system that is full from the third second to the tenth after the first checkpoint.

    Then resume for more."""
    fill, env = os.path.join(folder, "fill"), {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        training(32 * 8 * 200), cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not any("latest.pt" in names for _, _, names in os.walk(folder)):
        time.sleep(0.1)
    with open(fill, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    (run,) = (os.path.join(folder, "runs", name) for name in os.listdir(os.path.join(folder, "runs")))
    while_full = []
    for _ in range(20):
        time.sleep(0.25)
        with contextlib.suppress(ml.InputError):
            while_full.append(amp.load_interrupted(run)["samples"])
    os.remove(fill)
    _, err = child.communicate()
    said = [line for line in err.replace("\r", "\n").split("\n") if "written" in line]
    points = curves(run)["reward/total"]
    whole = [step for step, _ in points] == list(range(256, 32 * 8 * 200 + 1, 256))
    code = subprocess.run(
        command("--resume", run, "--total-timesteps", str(32 * 8 * 210)), cwd=folder, env=env, capture_output=True
    ).returncode
    shutil.rmtree(os.path.join(folder, "runs"))
    return dict(
        exit_code=child.returncode,
        sound_while_full=f"{len(while_full)} of 20",
        lines=len(said),
        whole_curves=whole,
        resumed=code == 0,
    )


def overhead() -> Dict[str, Any]:
    """One checkpoint of the default training with a full replay buffer, three times, and the training between two."""
    args = amp.Args(cuda=False, motion_file=FILES[1], character_file=FILES[3], target_speed=1.0)
    amp.check_args(args)
    motions = ml.MotionLib(args.motion_file, ml.load_character(args.character_file))
    sim = amp.MujocoSim(args, motions.character, args.num_envs, torch.device("cpu"))
    env = amp.AMPEnv(args, motions, sim, args.num_envs, args.episode_steps)
    env.reset(0)
    agent = amp.Agent(env.single_observation_space.shape[0], env.disc_obs_size, 28, args.hidden, args.action_std_log)
    replay = amp.ReplayBuffer(args.replay_size, env.disc_obs_size, torch.device("cpu"))
    replay.data.normal_()
    replay.size = len(replay.data)
    seconds = []
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        for _ in range(3):
            started = time.perf_counter()
            state = amp.training_state({}, {}, replay, env, ())
            content = {**amp.policy_checkpoint(agent, env, args, 0, {}), "training": state}
            amp.write_checkpoint(os.path.join(folder, "latest.pt"), content, os.path.join(folder, "previous.pt"))
            seconds.append(time.perf_counter() - started)
        size = os.path.getsize(os.path.join(folder, "latest.pt"))
        words = [
            *FILES,
            "--no-cuda",
            "--total-timesteps",
            str(args.num_envs * args.num_steps * args.save_interval),
            "--eval-interval",
            "0",
        ]
        started = time.perf_counter()
        subprocess.run(
            command(*words, "--eval-episodes", "1", "--eval-seconds", "0.1"),
            cwd=folder,
            check=True,
            capture_output=True,
        )
        between = time.perf_counter() - started
    share = sorted(seconds)[1] / between
    return dict(
        checkpoint_s=[round(x, 3) for x in seconds],
        mb=round(size / 1e6),
        training_between_s=round(between, 1),
        share=round(share, 4),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("kill", "nan", "files", "disk", "overhead"))
    parser.add_argument("--folder", help="for disk: the mounted file system")
    parser.add_argument("--count", type=int, help="instead of the numbers above")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for part in given.parts:
        if part == "disk":
            result = disk(given.folder)
        elif part == "overhead":
            result = overhead()
        else:
            count = given.count or dict(kill=50, nan=1000, files=10000)[part]
            result = dict(kill=kill, nan=nan, files=files)[part](count)
        record = {"part": part, **stamp(), **result}
        print("\n" + json.dumps(record))
        with open(os.path.join(ROOT, "benchmark/torture.jsonl"), "a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
