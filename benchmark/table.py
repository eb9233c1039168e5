"""Every clip with several seeds, without a task, on course: one row of a table a clip, beside what is published.

    python benchmark/table.py [--clips walk run ...] [--seeds 1 2 3] [--at-a-time 2] [--folder runs/table]
                              [--out FILE.jsonl] [option of amp_ppo_isaacgym.py ...]
    python benchmark/table.py --table [--out FILE.jsonl]      # the table in Markdown, from the file

Each run has one core and one thread. Its best policy, chosen by the evaluations of the training, is then evaluated on
other episodes: those are the figures that count. Each finished run adds one JSON object to the file: command, commit,
machine, figures, the curves of its evaluations. What is in the file is not run again. Ctrl-C lets the trainings save;
the same command goes on with them. A run stays in a folder of its own, named by clip, seed and options.
"""

import argparse
import glob
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
from train import ENVIRONMENT, ROOT, SCRIPT, curves, stamp

SAMPLES = dict(walk=3, run=6, crawl=3, dance_a=5, dance_b=10, spin=10, spinkick=10, cartwheel=10)  # millions
SAMPLES.update(roll=8, jump=8, backflip=10, kick=8, punch=5, getup_facedown=5, getup_faceup=5)
FINE = ("run", "spin", "spinkick", "cartwheel", "roll", "jump", "backflip", "kick")  # learn better with finer physics
ONCE = ("kick", "punch", "getup_facedown", "getup_faceup")  # clips that do not loop
# pose error of AMP [m]: the paper's table 3, and a table of 2026 (SMP, arXiv 2512.03028, table 4)
PAPER = dict(walk=0.030, run=0.075, crawl=0.049, dance_a=0.055, dance_b=0.055, spin=0.047, spinkick=0.058)
PAPER.update(cartwheel=0.067, roll=0.088, jump=0.083, backflip=0.150)
LATER = dict(walk=0.028, run=0.088, crawl=0.011, spinkick=0.049, cartwheel=0.043, backflip=0.058)
# of an evaluation: name -> column
FIGURES = dict(pose_error_m="pose error [m]", pose_error_unaligned_m="heading not aligned [m]")
FIGURES.update(unaligned_cycle_m="the same over one cycle [m]")
FIGURES.update(pose_error_on_clock_m="on the clip's clock [m]", tempo="tempo", ends_standing="end standing")
DIGITS = dict(tempo=3, ends_standing=2)  # 4 of the others
STANDING = 0.7  # height of the root above the ground, from which a character stands [m]; in the clips .73 to .96
OTHER_EPISODES = 1000  # from a training's seed to that of the evaluation that counts
POLL = 0.2  # between two looks at what is running [s]


class Row(NamedTuple):
    """A run: what is learnt, with which seed, and with which options besides."""

    clip: str
    seed: int
    extra: List[str]

    def options(self) -> List[str]:
        """All that is typed."""
        options = ["--task", "none", "--motion-file", f"motions/{self.clip}.npz"]
        if "--total-timesteps" not in self.extra:
            options += ["--total-timesteps", str(round(SAMPLES[self.clip] * 1e6))]
        if self.clip in FINE and "--substeps" not in self.extra:
            options += ["--substeps", "4"]
        if "--no-keep-course" not in self.extra:
            options += ["--keep-course"]
        return [*options, *self.extra, "--seed", str(self.seed)]

    def command(self) -> str:
        return " ".join(["OMP_NUM_THREADS=1 taskset -c 0 python", SCRIPT, *self.options()])

    def home(self, folder: str) -> str:
        """The folder that it has for itself."""
        name = "_".join([self.clip, str(self.seed), *[word.lstrip("-") for word in self.extra]])
        return os.path.join(folder, re.sub(r"[^\w.-]+", "_", name))


def read_records(path: str) -> List[Dict[str, Any]]:
    """The runs that are done; none if there is no file yet."""
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return [json.loads(line) for line in file]


def start(script: str, options: List[str], home: str, core: int, name: str) -> subprocess.Popen:
    """Run a script on one core, in the folder of its run; what it says is added to NAME.out and NAME.err there."""
    env = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, os.path.join(ROOT, script), *options]
    with open(os.path.join(home, f"{name}.out"), "a") as out, open(os.path.join(home, f"{name}.err"), "a") as err:
        # Ctrl-C is passed on by us, once: a second signal would end a training without a save
        child = subprocess.Popen(command, cwd=home, env=env, stdout=out, stderr=err, start_new_session=True)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(child.pid, {core})
    return child


def saved_run(home: str) -> Optional[str]:
    """Folder of the run in `home` that has saved something, the last one, or None."""
    saved = sorted(glob.glob(os.path.join(glob.escape(home), "runs", "*", "latest.pt")), key=os.path.getmtime)
    return os.path.dirname(saved[-1]) if saved else None


def check_options(row: Any, home: str) -> None:
    """Exit if the run that lies where that of the row would go on was begun with other options."""
    folder = saved_run(home)
    if folder:
        with open(os.path.join(folder, "args.json")) as file:
            typed = json.load(file)["command"][1:]
        if typed != row.options():
            sys.exit(f"error: {folder} was begun with other options; move it, or choose another --folder")


def is_trained(home: str) -> bool:
    """Whether the training in `home` has come to its end: it then says how to evaluate."""
    path = os.path.join(home, "train.out")
    if not os.path.exists(path):
        return False
    with open(path) as file:
        return "--evaluate --checkpoint" in file.read()


def minutes(folder: str, times: List[float]) -> List[float]:
    """Minutes that a run has trained until each of these times [s], interruptions apart."""
    starts = [os.path.getmtime(path) for path in glob.glob(os.path.join(glob.escape(folder), "args*.json"))]
    points = []
    total = 0.0
    before = 0.0
    for moment in times:
        total += moment - max([before, *[x for x in starts if x <= moment]])
        before = moment
        points.append(total / 60)
    return points


def evaluations(folder: str) -> Dict[str, List[float]]:
    """The curves of a run's evaluations, with their samples and minutes."""
    scalars = curves(folder)
    every = scalars["reward/total"]
    clock = dict(zip([x.step for x in every], minutes(folder, [x.wall_time for x in every])))
    named = {name[5:]: events for name, events in scalars.items() if name.startswith("eval/")}
    figures = {name: [float(f"{x.value:.4g}") for x in events] for name, events in named.items()}
    steps = [x.step for x in named["pose_error_m"]]
    return {"samples": steps, "minutes": [round(clock[step], 2) for step in steps], **figures}


def train(script: str, row: Any, home: str, core: int) -> Iterator[subprocess.Popen]:
    """Train, or go on, in the folder of a run; yields the process, if there is one, that is to be waited for."""
    os.makedirs(home, exist_ok=True)
    folder = saved_run(home)
    if not folder:
        with open(os.path.join(home, "stamp.json"), "w") as file:  # of the start
            json.dump(stamp(), file)
    if not is_trained(home):
        options = ["--resume", os.path.relpath(folder, home)] if folder else row.options()
        yield start(script, options, home, core, "train")


def last_figures(home: str, name: str) -> Dict[str, Any]:
    """What an evaluation that start() has named has printed last."""
    with open(os.path.join(home, f"{name}.out")) as file:
        return json.loads(file.read().splitlines()[-1])


def record_of(row: Any, home: str) -> Dict[str, Any]:
    """Of a run that is trained: what was typed, on which machine, how long it took, the curves of its evaluations."""
    with open(os.path.join(home, "stamp.json")) as file:
        stamps = json.load(file)
    folder = saved_run(home)
    curve = evaluations(folder)
    record = {"seed": row.seed, "options": row.extra, "command": row.command(), **stamps}
    record.update(run=os.path.relpath(folder, ROOT), samples=curve["samples"][-1], minutes=curve["minutes"][-1])
    return {**record, "curves": curve}


def ends_standing(folder: str) -> float:
    """Share of an evaluation's roll-outs that end with the root as high as that of who stands."""
    paths = glob.glob(os.path.join(glob.escape(folder), "rollouts", "*.npz"))
    heights = [float(np.load(path)["root_position"][-1, 2]) for path in paths]
    return sum(height >= STANDING for height in heights) / len(heights)


def cycle(clip: str) -> float:
    """Length of a clip [s]."""
    with np.load(os.path.join(ROOT, "motions", f"{clip}.npz")) as file:
        return (len(file["root_position"]) - 1) / float(file["fps"])


def measure(row: Row, own: argparse.Namespace, core: int) -> Iterator[subprocess.Popen]:
    """Train, or go on, and evaluate; yields each process that is to be waited for. Adds the record to own.out."""
    home = os.path.abspath(row.home(own.folder))
    yield from train(SCRIPT, row, home, core)
    best = os.path.join(os.path.relpath(saved_run(home), home), "best.pt")
    folder = f"evaluation_{time.strftime('%Y%m%d-%H%M%S')}"
    evaluate = ["--evaluate", "--checkpoint", best, "--seed", str(row.seed + OTHER_EPISODES), "--out", folder]
    yield start(SCRIPT, evaluate, home, core, "evaluate")
    metrics = last_figures(home, "evaluate")
    if row.clip in ONCE:
        metrics["ends_standing"] = ends_standing(os.path.join(home, folder))
    else:  # nothing says which way to go: the longer it goes on, the more its heading differs from the clip's
        short = [*evaluate[:-1], f"{folder}_cycle", "--eval-seconds", f"{cycle(row.clip):.3f}"]
        yield start(SCRIPT, short, home, core, "evaluate_cycle")
        metrics["unaligned_cycle_m"] = last_figures(home, "evaluate_cycle")["pose_error_unaligned_m"]
    record = {"clip": row.clip, **record_of(row, home), "evaluation": " ".join(["python", SCRIPT, *evaluate])}
    with open(own.out, "a") as file:
        file.write(json.dumps({**record, "metrics": metrics}) + "\n")
    print(f"- {row.clip} {row.seed}: {json.dumps(metrics)}", flush=True)


class Job(NamedTuple):
    """A row that is being run."""

    row: Any
    core: int
    steps: Iterator[subprocess.Popen]  # of measure(row, own, core)
    child: subprocess.Popen


def run_all(rows: List[Any], own: argparse.Namespace, measure: Callable) -> int:
    """All rows that are not yet in own.out, own.at_a_time of them at a time, each on a core of its own -> exit code.

    measure(row, own, core): see that of a clip above. A signal lets the trainings save first. Exits if a run that would
    go on was begun with other options."""
    done = {record["command"] for record in read_records(own.out)}
    rows = [row for row in rows if row.command() not in done]
    for row in rows:
        check_options(row, row.home(own.folder))
    caught: List[int] = []
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda number, frame: caught.append(number))
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))
    free = cores[: own.at_a_time]
    waiting = list(rows)
    jobs: List[Job] = []
    code = 0
    try:
        while (waiting and not caught) or jobs:
            while waiting and free and not caught:
                row = waiting.pop(0)
                core = free.pop(0)
                print(f"+ {row.command()}", flush=True)
                steps = measure(row, own, core)
                jobs.append(Job(row, core, steps, next(steps)))
            time.sleep(POLL)
            if caught:
                break
            for job in [job for job in jobs if job.child.poll() is not None]:
                jobs.remove(job)
                if job.child.returncode:
                    code = 1
                    home = job.row.home(own.folder)
                    print(f"error: exit code {job.child.returncode}; see {home}/*.err", file=sys.stderr, flush=True)
                following = None if job.child.returncode else next(job.steps, None)
                if following is None:
                    free.append(job.core)
                else:
                    jobs.append(job._replace(child=following))
    finally:
        for job in jobs:
            job.child.terminate()
        for job in jobs:
            job.child.wait()
    return 130 if caught else code


def spread(values: List[float], digits: int) -> str:
    """Mean and standard deviation of some numbers as text."""
    text = f"{statistics.mean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def published(clip: str) -> List[str]:
    """Cells of the paper's AMP and of the best AMP that is published, empty where there is none."""
    known = [table[clip] for table in (PAPER, LATER) if clip in table]
    return [f"{PAPER[clip]:.3f}" if clip in PAPER else "", f"{min(known):.3f}" if known else ""]


def print_stamps(records: List[Dict[str, Any]]) -> None:
    """What the rows of a table were measured on."""
    for key in ("commit", "machine"):
        print(f"\n{key}: {', '.join(sorted({record[key] for record in records}))}")


def parser_of(text: str, name: str) -> argparse.ArgumentParser:
    """Options of a benchmark of several runs; name: of its file and its folder of runs."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--at-a-time", type=int, default=2, help="runs at a time, a core each (default 2)")
    add("--folder", default=os.path.join(ROOT, "runs", name), help=f"of the runs (default runs/{name})")
    add("--out", default=os.path.join(ROOT, "benchmark", f"{name}.jsonl"), help="raw figures, added to the file")
    add("--table", action="store_true", help="print the table of what is in the file, and run nothing")
    return parser


def print_table(records: List[Dict[str, Any]]) -> None:
    """Markdown: a row for each clip and options, over its seeds, and what it was measured on."""
    groups: Dict[Tuple, Dict[int, Dict]] = {}
    for record in records:
        groups.setdefault((record["clip"], *record["options"]), {})[record["seed"]] = record
    columns = ["clip", "samples", "minutes", "falls", *FIGURES.values(), "paper's AMP [m]", "best published AMP [m]"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for (clip, *extra), seeds in sorted(groups.items(), key=lambda x: (len(x[0]), list(SAMPLES).index(x[0][0]))):
        rows = [seeds[seed] for seed in sorted(seeds)]
        metrics = [row["metrics"] for row in rows]
        falls = ", ".join(str(round(x["fall_rate"] * x["episodes"])) for x in metrics)
        cells = [" ".join([clip, *extra]), f"{rows[0]['samples'] / 1e6:.1f} M"]
        cells += [spread([row["minutes"] for row in rows], 1), f"{falls} of {metrics[0]['episodes']}"]
        for name in FIGURES:
            known = [x[name] for x in metrics if name in x]
            cells.append(spread(known, DIGITS.get(name, 4)) if len(known) == len(rows) else "")
        print(f"| {' | '.join([*cells, *published(clip)])} |")
    print_stamps(records)


def main() -> None:
    parser = parser_of(__doc__, "table")
    add = parser.add_argument
    add("--clips", nargs="+", choices=list(SAMPLES), default=list(SAMPLES), help="default: all")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    own, extra = parser.parse_known_args()
    if not own.table:
        code = run_all([Row(clip, seed, extra) for seed in own.seeds for clip in own.clips], own, measure)
        if code:
            sys.exit(code)
    print_table(read_records(own.out))


if __name__ == "__main__":
    main()
