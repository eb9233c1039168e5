"""What more processes give, in one table: samples/s of a training by `python`, and by 1, 2, 4 and 8 of torchrun's.

    python benchmark/scaling.py [--processes 1 2 4 8] [--repeats 3] [--iterations 60] [--out FILE.json]
                                [option of amp_ppo_isaacgym.py ...]

The same --num-envs is shared out each time; the trainings take turns, --repeats rounds of them. Rates are between the
first quarter of the iterations and the last but one, by the clock of the log, so that they hold everything but start
and end. On the CPU all share the machine's cores, and `of python` is what is left of the one process with all of them;
with --cuda every process has a GPU of its own, and `of python` divided by the processes is the efficiency. Memory is
that of all processes together, pages that they share counted once (Linux), without the GPUs'; looked at twice a second.
"""

import argparse
import glob
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Dict, List

from train import ROOT, SCRIPT, TORCHRUN, stamp


def family(pid: int) -> List[int]:
    """A process and all that descend from it."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [pid] + [each for child in file.read().split() for each in family(int(child))]
    except OSError:
        return []


def memory(pids: List[int]) -> float:
    """Proportional set size of these processes together [GiB]; 0 where /proc does not tell."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except (OSError, StopIteration):
            pass
    return total / 2**20


def train(processes: int, options: List[str], iterations: int) -> Dict[str, float]:
    """One training, by python (processes 0) or torchrun -> samples/s, peak memory [GiB]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    launcher = [*TORCHRUN, f"--nproc_per_node={processes}"] if processes else []
    with tempfile.TemporaryDirectory() as folder:  # takes the run's folder
        with open(os.path.join(folder, "out"), "w+") as out:
            command = [sys.executable, *launcher, os.path.join(ROOT, SCRIPT), *options]
            child, peak = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out), 0.0
            while child.poll() is None:
                peak = max(peak, memory(family(child.pid)))
                time.sleep(0.5)
            if child.returncode:
                out.seek(0)
                sys.exit(f"error: {' '.join(command)} ended with {child.returncode}:\n{out.read()[-3000:]}")
        events = EventAccumulator(glob.glob(os.path.join(folder, "runs", "*"))[0], size_guidance={"scalars": 0})
        events.Reload()
        scalars = events.Scalars("reward/total")
    first, last = scalars[iterations // 4], scalars[-2]  # the last iteration also evaluates
    return {"rate": (last.step - first.step) / (last.wall_time - first.wall_time), "memory": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "scaling.json"))
    own, options = parser.parse_known_args()
    if min(own.processes) < 1 or own.repeats < 1 or own.iterations < 8:
        sys.exit("error: --processes and --repeats from 1, --iterations from 8")
    probe = "import sys, amp_ppo_isaacgym as amp; args, _ = amp.parse_args(sys.argv[1:]); "
    probe += "print(args.num_envs * args.num_steps)"
    batch = subprocess.run(
        [sys.executable, "-c", probe, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    steps = int(batch.stdout.splitlines()[-1]) * own.iterations
    options = [*options, "--total-timesteps", str(steps), "--eval-interval", "0", "--eval-seconds", "0.1"]
    options += ["--motion-file", os.path.join(ROOT, "motions/walk.npz")] if "--motion-file" not in options else []
    options += (
        ["--character-file", os.path.join(ROOT, "motions/humanoid.xml")] if "--character-file" not in options else []
    )
    where = stamp()
    results: Dict[int, List[Dict[str, float]]] = {processes: [] for processes in [0, *own.processes]}  # 0: by python
    for repeat in range(own.repeats):
        for processes, runs in results.items():
            runs.append(train(processes, options, own.iterations))
            name = f"torchrun, {processes} processes" if processes else "python"
            print(
                f"round {repeat + 1}: {name}: {runs[-1]['rate']:.0f} samples/s, {runs[-1]['memory']:.2f} GiB",
                file=sys.stderr,
            )
    with open(own.out, "w") as file:
        json.dump({**where, "options": options, "runs": {str(k): runs for k, runs in results.items()}}, file, indent=1)
    print(f"commit {where['commit']}; {where['machine']}; {own.repeats} rounds, medians (smallest to largest)\n")
    print("| launcher | processes | samples/s | of python | memory, all together [GiB] |\n|---|---|---|---|---|")
    for processes, runs in results.items():
        rates = [run["rate"] for run in runs]
        ratio = statistics.median(run["rate"] / plain["rate"] for run, plain in zip(runs, results[0]))
        launcher, peak = "torchrun" if processes else "python", statistics.median(run["memory"] for run in runs)
        rate = f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"
        print(f"| {launcher} | {processes or 1} | {rate} | {ratio:.2f} | {peak:.2f} |")


if __name__ == "__main__":
    main()
