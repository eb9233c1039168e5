"""How long it takes from the command to a character that walks: one table, a row a seed.

    python benchmark/time_to_walk.py [--seeds 1 2 3 4 5] [--error .030] [--every 100000] [--limit 600]
                                     [--processes K] [--out FILE.jsonl] [option of amp_ppo_isaacgym.py ...]

Each seed is the default command in a process of its own, with --processes under torchrun. It is evaluated every so many
samples; the clock runs from the start of the process, imports and evaluations included, until best.pt holds a policy
that has not fallen in 32 episodes of 20 s and has a pose error of at most --error [m]. Then the training is stopped.
After --limit seconds it counts as not reached. The raw figures are added to time_to_walk.jsonl beside this file.
"""

import argparse
import contextlib
import glob
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List, Tuple

from train import ENVIRONMENT, ROOT, SCRIPT, TORCHRUN, stamp

POLL = 0.1  # between two looks for a new best.pt [s]


def best(folder: str, since: float) -> Tuple[float, Dict[str, Any]]:
    """When best.pt of the only run below a folder was written, and what it says of itself if that was after `since`."""
    import torch

    for path in glob.glob(os.path.join(glob.escape(folder), "runs", "*", "best.pt")):
        with contextlib.suppress(OSError):  # it may be replaced meanwhile
            if os.path.getmtime(path) > since:  # a look must not cost the training its cores
                with open(path, "rb") as file:
                    written = os.fstat(file.fileno()).st_mtime
                    return written, torch.load(file, map_location="cpu", weights_only=True)
    return since, {}


def walk(own: argparse.Namespace, seed: int, options: List[str]) -> Dict[str, Any]:
    """Train until it walks. -> seconds and samples, None where it has not come to that, and the figures then."""
    launcher = [*TORCHRUN, f"--nproc_per_node={own.processes}"] if own.processes else []
    typed = [*options, "--seed", str(seed)]
    command = [sys.executable, *launcher, os.path.join(ROOT, SCRIPT), *typed]
    record = {"seed": seed, "command": " ".join(["python", *launcher, SCRIPT, *typed]), "error": own.error, **stamp()}
    record.update(seconds=None, samples=None)
    with tempfile.TemporaryDirectory() as folder, open(os.path.join(folder, "log"), "w+") as log:
        started = time.time()
        child = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log)
        ended = None
        written = 0.0
        while ended is None and time.time() - started < own.limit:
            time.sleep(POLL)
            ended = child.poll()  # before the look at what it has written
            written, found = best(folder, written)
            metrics = found.get("metrics", {})
            if metrics.get("fall_rate") == 0 and metrics["pose_error_m"] <= own.error:
                record.update(seconds=written - started, samples=found["samples"], metrics=metrics)
                break
        child.terminate()
        child.wait()
        if ended:
            log.seek(0)
            sys.exit(f"error: {record['command']} ended with exit code {ended}: {log.read()[-300:]}")
    return record


def figure(x: float, digits: int) -> str:
    """A number as text; infinity is what was not reached."""
    return "not reached" if math.isinf(x) else f"{x:.{digits}f}"


def print_table(records: List[Dict[str, Any]]) -> None:
    """A row a seed, then the median and the worst; what was not reached is the worst."""
    first = records[0]
    print(f"\ncommit {first['commit']}; {first['machine']}; no falls, at most {first['error']} m\n")
    print("| seed | seconds | million samples | pose error [m] | speed [m/s] |\n|---|---|---|---|---|")
    for record in records:
        metrics = record.get("metrics", {"pose_error_m": math.inf, "speed_m_s": math.inf})
        cells = [figure(record["seconds"], 1), figure(record["samples"] / 1e6, 2)]
        cells += [figure(metrics["pose_error_m"], 4), figure(metrics["speed_m_s"], 2)]
        print(f"| {record['seed']} | {' | '.join(cells)} |")
    for name, choose in (("median", statistics.median), ("worst", max)):
        seconds = choose([record["seconds"] for record in records])
        samples = choose([record["samples"] for record in records])
        print(f"| {name} | {figure(seconds, 1)} | {figure(samples / 1e6, 2)} | | |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="default: 1 2 3 4 5")
    add("--error", type=float, default=0.030, help="pose error that counts as walking [m] (default .030)")
    add("--every", type=int, default=100_000, help="samples from one evaluation to the next (default 100000)")
    add("--limit", type=float, default=600.0, help="longest training [s] (default 600)")
    add("--processes", type=int, default=0, help="processes of torchrun (default 0: python alone)")
    add("--out", default=os.path.join(ROOT, "benchmark", "time_to_walk.jsonl"), help="raw figures, added to the file")
    own, options = parser.parse_known_args()
    sys.path.insert(0, ROOT)
    import amp_ppo_isaacgym as amp  # before torch, as the script is itself
    from command_line import parse_args

    args, _ = parse_args(amp.Args, amp.KIND, options)
    interval = max(round(own.every / (args.num_envs * args.num_steps)), 1)
    records = []
    for seed in own.seeds:
        record = walk(own, seed, ["--eval-interval", str(interval), *options])
        print(json.dumps(record), flush=True)
        with open(own.out, "a") as file:
            file.write(json.dumps(record) + "\n")
        records.append({**record, **{key: math.inf for key in ("seconds", "samples") if record[key] is None}})
    print_table(records)


if __name__ == "__main__":
    main()
