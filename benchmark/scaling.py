"""What more processes give, in one table: samples/s of a training by `python`, and by 1, 2, 4 and 8 of torchrun's.

    python benchmark/scaling.py [--processes 1 2 4 8] [--repeats 3] [--iterations 60] [--out FILE.json]
                                [option of amp_ppo_isaacgym.py ...]

The same --num-envs is shared out each time; the trainings take turns, --repeats rounds of them. Rates are between the
first quarter of the iterations and the last but one, by the clock of the log, so that they hold everything but start
and end. On the CPU all share the machine's cores, and `of python` is what is left of the one process with all of them;
with --cuda every process has a GPU of its own, and `of python` divided by the processes is the efficiency. Memory is
that of all processes together, pages that they share counted once (Linux), without the GPUs'; looked at twice a second.
Raw figures go to scaling.json beside this file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List

from throughput import load_script, median_ratio, parse, training_options
from train import ENVIRONMENT, ROOT, SCRIPT, TORCHRUN, samples_per_s, stamp, the_run


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


def train(processes: int, options: List[str]) -> Dict[str, float]:
    """One training, by python (processes 0) or torchrun -> samples/s, peak memory [GiB]."""
    launcher = [*TORCHRUN, f"--nproc_per_node={processes}"] if processes else []
    command = [sys.executable, *launcher, os.path.join(ROOT, SCRIPT), *options]
    peak = 0.0
    with tempfile.TemporaryDirectory() as folder:  # takes the run's folder
        with open(os.path.join(folder, "out"), "w+") as out:
            child = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=out, stderr=out)
            while child.poll() is None:
                peak = max(peak, memory(family(child.pid)))
                time.sleep(0.5)
            if child.returncode:
                out.seek(0)
                sys.exit(f"error: {' '.join(command)} ended with {child.returncode}:\n{out.read()[-3000:]}")
        return {"rate": samples_per_s(the_run(folder))[0], "memory": peak}


def print_table(where: Dict[str, Any], results: Dict[int, List[Dict[str, float]]]) -> None:
    """A row for each launcher and number of processes; 0 is python."""
    rounds = len(results[0])
    print(f"commit {where['commit']}; {where['machine']}; {rounds} rounds, medians (smallest to largest)\n")
    print("| launcher | processes | samples/s | of python | memory, all together [GiB] |\n|---|---|---|---|---|")
    for processes, runs in results.items():
        rates = [run["rate"] for run in runs]
        ratio = median_ratio(rates, [run["rate"] for run in results[0]])
        launcher = "torchrun" if processes else "python"
        peak = statistics.median(run["memory"] for run in runs)
        rate = f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"
        print(f"| {launcher} | {processes or 1} | {rate} | {ratio:.2f} | {peak:.2f} |")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "scaling.json"))
    own, options = parser.parse_known_args()
    if min(own.processes) < 1 or own.repeats < 1 or own.iterations < 8:
        sys.exit("error: --processes and --repeats from 1, --iterations from 8")
    out = os.path.abspath(own.out)
    os.chdir(ROOT)  # where the script's default files are
    args = parse(load_script(), options)
    words = [*training_options(ROOT, args, options, own.iterations), "--eval-seconds", "0.1"]
    where = stamp()
    results: Dict[int, List[Dict[str, float]]] = {processes: [] for processes in [0, *own.processes]}
    for repeat in range(own.repeats):
        for processes, runs in results.items():
            runs.append(train(processes, words))
            name = f"torchrun, {processes} processes" if processes else "python"
            rate = f"{runs[-1]['rate']:.0f} samples/s, {runs[-1]['memory']:.2f} GiB"
            print(f"round {repeat + 1}: {name}: {rate}", file=sys.stderr)
    with open(out, "w") as file:
        content = {**where, "options": options, "iterations": own.iterations, "runs": results}
        json.dump(content, file, indent=1)
        file.write("\n")
    print_table(where, results)


if __name__ == "__main__":
    main()
