"""Train and evaluate with several seeds, one after another, and print one table.

train_walk.sh and the other train_*.sh call this.

    python benchmark/train.py OUT.jsonl [OPTIONS ...] -- [SEED ...] [OPTION ...]
    python benchmark/train.py --table OUT.jsonl       # the table again, from the file

Each OPTIONS before `--` is one experiment: options of amp_ppo_isaacgym.py, or another script's name and its options, in
one argument; `torchrun K` in front of them trains with K processes.
Seeds (default 1 2 3) follow, and further options, which go to every training. Every run appends one JSON object to OUT:
its command, commit, machine, versions and result. Paths in options are relative to the repository, where everything
runs. Minutes are those of the whole training command, from its start to its end; walk_samples and walk_minutes lead
from the start of the run to the first evaluation of its log without falls and with a pose error of at most .035 m, if
there is one.
"""

import datetime
import glob
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPT = "amp_ppo_isaacgym.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
ENVIRONMENT = dict(os.environ, AMP_PAGE="no")  # of what is measured: simulators/ adds to that of who imports it
# of the table, as far as a script's evaluation has them
FORMATS = dict(
    samples=".0f",
    minutes=".1f",
    fall_rate=".3f",
    speed_m_s=".2f",
    walk_samples=".0f",
    walk_minutes=".1f",
    task_return=".3f",
    heading_error_deg=".1f",
    speed_error_m_s=".2f",
    pose_error_m=".4f",
    peak_gib=".2f",
)


class Run(NamedTuple):
    """What a command did."""

    out: str  # its stdout
    seconds: float  # wall clock
    peak_gib: float  # largest resident memory [GiB]


def run_script(
    script: List[str],
    cwd: str = ROOT,
    echo: bool = True,
    processes: int = 0,
    env: Optional[Dict[str, str]] = None,
    limit: Optional[float] = None,
    before: Optional[Callable] = None,
) -> Run:
    """Run a script, [path, option, ...], its progress on our stderr; with torchrun if `processes` are given.

    env: its environment, None: ours; limit: seconds after which a training is told to end in good order; before: is
    called in the new process before the script. Exits with its code, or 1. On Linux a child's peak memory counts from
    that of the process that starts it: call this before anything large is imported."""
    started = time.perf_counter()
    lines = []
    peak = float("nan")
    launcher = [*TORCHRUN, f"--nproc_per_node={processes}"] if processes else []
    command = [sys.executable, *launcher, *script]
    pipe = dict(stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, cwd=cwd, env=env or ENVIRONMENT, preexec_fn=before, **pipe) as child:
        alarm = threading.Timer(limit or 0.0, child.terminate)
        if limit:
            alarm.start()
        for line in child.stdout:
            lines.append(line)
            if echo:
                print(line, end="", flush=True)
        alarm.cancel()
        if hasattr(os, "wait4"):  # not on Windows
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1
            peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
    seconds = time.perf_counter() - started
    if child.returncode and not (limit and seconds > limit):
        print(f"error: python {' '.join(script)} ended with exit code {child.returncode}", file=sys.stderr)
        sys.exit(child.returncode)
    return Run("".join(lines), seconds, peak)


def curves(folder: str) -> Dict[str, List[Any]]:
    """All scalars of a run: name -> events with step, value and wall_time."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(folder, size_guidance={"scalars": 0})
    events.Reload()
    names = events.Tags()["scalars"]  # 1_eval/x: the number is the group's place in TensorBoard
    return {re.sub("^[1-5]_", "", name): events.Scalars(name) for name in names}


def the_run(home: str) -> str:
    """Folder of the one run that was started in `home`."""
    found = glob.glob(os.path.join(glob.escape(home), "runs", "*"))
    if len(found) != 1:
        sys.exit(f"error: {len(found)} runs where one is expected; has it had enough seconds?")
    return found[0]


def samples_per_s(folder: str) -> Tuple[float, List[float]]:
    """Of a run by the clock of its log, without its first quarter: over all iterations, and of each one.

    The last iteration, which also evaluates, is left out; what is too short for that counts from its start. Exits if
    there was no iteration."""
    log = [(event.step, event.wall_time) for event in curves(folder).get("reward/total", [])]
    if not log:
        sys.exit("error: a training was too short to be measured; give it more seconds")
    points = log[len(log) // 4 : -1]
    if len(points) < 2:
        points = [(0, os.path.getmtime(os.path.join(folder, "args.json"))), *log]
    whole = (points[-1][0] - points[0][0]) / (points[-1][1] - points[0][1])
    pairs = zip(points, points[1:])
    return whole, [(later[0] - point[0]) / (later[1] - point[1]) for point, later in pairs]


def stamp() -> Dict[str, Any]:
    """Where and with what a figure was measured: date, commit, machine, versions."""
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            found = re.search(r"model name\s*:\s*(.+)", file.read())
        processor = found.group(1) if found else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {"python": platform.python_version()}
    for package in ("torch", "numpy", "mujoco", "mujoco-warp", "warp-lang"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(ROOT),
        "machine": f"{processor}, {cores} cores, {platform.system()}",
        "versions": versions,
    }


def commit(root: str) -> str:
    """Short name of the commit that is checked out in `root`, with "-dirty" if its code has been changed since."""
    git = ["git", "-C", root]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py", "motions"], capture_output=True)
    except OSError:
        return "unknown"
    return (name or "unknown") + "-dirty" * (changed.returncode == 1)


def first_walk(folder: str, error: float = 0.035) -> Dict[str, float]:
    """Samples and minutes to the first evaluation in a run's log without falls and a pose error of at most `error`.

    `error` is in metres; if there is none, nothing."""
    scalars = curves(folder)
    started = os.path.getmtime(os.path.join(folder, "args.json"))
    for falls, event in zip(scalars["eval/fall_rate"], scalars["eval/pose_error_m"]):
        if falls.value == 0 and event.value <= error:
            return {"walk_samples": event.step, "walk_minutes": (event.wall_time - started) / 60}
    return {}


def train(experiment: str, seed: int, extra: List[str]) -> Dict[str, Any]:
    """One training and the evaluation of what it learnt."""
    words = experiment.split()
    processes = int(words[1]) if words[:1] == ["torchrun"] else 0
    words = words[2:] if processes else words
    name = words.pop(0) if words and words[0].endswith(".py") else SCRIPT
    launcher = f"torchrun --standalone --nproc_per_node={processes}" if processes else "python"
    options = [*words, "--seed", str(seed), *extra]
    command = f"{launcher} {name} {' '.join(options)}"
    print(f"+ {command}", flush=True)
    record = {"seed": seed, "command": command, **stamp()}
    training = run_script([os.path.join(ROOT, name), *options], processes=processes)
    found = re.search(r"--checkpoint (\S+)[/\\]best\.pt", training.out)
    if not found:
        sys.exit("error: the training did not say where its checkpoint is")
    run = found.group(1)
    folder = os.path.join(ROOT, run)
    record.update(run=run, samples=curves(folder)["reward/total"][-1].step)
    record.update(minutes=training.seconds / 60, peak_gib=training.peak_gib)
    record.update(first_walk(folder))
    device = [option for option in extra if option in ("--cuda", "--no-cuda")]
    evaluation = ["--evaluate", "--checkpoint", f"{run}/latest.pt"]
    evaluation += ["--eval-episodes", "32", "--eval-seconds", "20", *device]
    print(f"+ python {name} {' '.join(evaluation)}", flush=True)
    record.update(json.loads(run_script([os.path.join(ROOT, name), *evaluation]).out.splitlines()[-1]))
    return record


def print_table(records: List[Dict[str, Any]]) -> None:
    """One table in Markdown for each command and commit: a row a seed, then mean and standard deviation over seeds."""
    groups: Dict[Any, List[Dict[str, Any]]] = {}
    for r in records:
        command = r["command"].replace(f"--seed {r['seed']}", "--seed S")
        groups.setdefault((command, r["commit"], r["machine"]), []).append(r)
    for (command, code, machine), rows in groups.items():
        print(f"\n{command}   (commit {code}; {machine})\n")
        columns = [(name, form) for name, form in FORMATS.items() if all(name in r for r in rows)]
        print("| seed | " + " | ".join(name for name, _ in columns) + " |")
        print("|---" * (1 + len(columns)) + "|")
        for r in rows:
            print(f"| {r['seed']} | " + " | ".join(format(r[name], form) for name, form in columns) + " |")
        if len(rows) > 1:
            for label, statistic in (("mean", statistics.mean), ("std", statistics.stdev)):
                cells = [format(statistic([r[name] for r in rows]), form) for name, form in columns]
                print(f"| {label} | " + " | ".join(cells) + " |")


def main(argv: List[str]) -> None:
    if len(argv) == 2 and argv[0] == "--table":
        with open(argv[1]) as file:
            print_table([json.loads(line) for line in file])
        return
    if "--" not in argv[1:]:
        sys.exit(__doc__)
    split = argv.index("--")
    out = argv[0]
    experiments = argv[1:split] or [""]
    rest = argv[split + 1 :]
    seeds = []
    while rest and rest[0].isdigit():
        seeds.append(int(rest.pop(0)))
    if rest and not rest[0].startswith("-"):
        sys.exit(f"error: {rest[0]}: expected a seed, which is a whole number, or an option of {SCRIPT}")
    records = []
    for experiment in experiments:
        for seed in seeds or [1, 2, 3]:
            records.append(train(experiment, seed, rest))
            with open(out, "a") as file:
                file.write(json.dumps(records[-1]) + "\n")
    print_table(records)


if __name__ == "__main__":
    main(sys.argv[1:])
