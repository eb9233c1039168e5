"""How far MuJoCo Warp's physics is from MuJoCo's own in C: the same characters under the same PD targets, in one table.

    python benchmark/warp_against_c.py [--num-envs 64] [--steps 30] [--no-cuda] [--out FILE.json]

Both start in the same poses of the walk, and get the same random targets about its mean pose. They agree to rounding
until a contact comes a physics step earlier in one of them; from then on a character goes its own way. Below the table:
how far one step of Warp, done twice from the same state, is from itself (a GPU adds up contacts in any order), and how
long Warp took to be ready; at its first start it compiles. Raw figures go to warp_against_c.json beside this file.
"""

import argparse
import json
import os
import sys
import time
from typing import Any, Dict, List

from throughput import load_script
from train import ROOT, stamp

SUBSTEPS = 4


def make_env(amp: Any, sim: str, device: Any, num_envs: int) -> Any:
    """The walk's environment in a simulator."""
    args = amp.Args(cuda=device.type == "cuda", target_speed=1.0)
    character = amp.ml.load_character(os.path.join(ROOT, args.character_file), str(device))
    motions = amp.MotionLib(os.path.join(ROOT, args.motion_file), character, str(device))
    return amp.AMPEnv(
        args, motions, amp.simulators.make(sim, character, num_envs, 30, SUBSTEPS, device, 2), num_envs, 300
    )


def distances(amp: Any, num_envs: int, steps: int, device: Any) -> Dict[str, Any]:
    """Distances of the roots [m] and of the dof velocities [rad/s], largest of a character, after each step."""
    import torch

    started = time.perf_counter()
    warp = make_env(amp, "warp", device, num_envs)
    ready = time.perf_counter() - started
    ours = make_env(amp, "mujoco", torch.device("cpu"), num_envs)
    _, info = ours.reset(0)
    state = info["state"]
    every = torch.ones(num_envs, dtype=torch.bool)
    ours.sim.set_state(every, state)
    warp.sim.set_state(every.to(device), type(state)(*[x.to(device) for x in state]))
    noise = torch.randn(steps, num_envs, len(ours.action_offset), generator=torch.Generator().manual_seed(1))
    rows: List[Dict[str, Any]] = []
    for step, x in enumerate(noise, 1):
        target = ours.action_offset + 0.12 * x
        a, _ = ours.sim.step(target)
        before = warp.sim.state_dict()
        b, _ = warp.sim.step(target.to(device))
        root = (a.root_position - b.root_position.cpu()).norm(dim=-1)
        velocity = (a.dof_velocity - b.dof_velocity.cpu()).abs().amax(-1)
        rows.append({"step": step, "root_m": root.tolist(), "velocity_rad_s": velocity.tolist()})
    warp.sim.load_state_dict(before)
    again, _ = warp.sim.step(target.to(device))
    twice = max(float((x - y).abs().max()) for x, y in zip(b, again))
    return {"ready_s": ready, "twice": twice, "rows": rows}


def print_table(raw: Dict[str, Any]) -> None:
    """Some of the steps."""
    import torch

    print(f"commit {raw['commit']}; {raw['machine']}; {raw['device']}\n")
    print("| control step | root, median [m] | 90 % | largest | dof velocity, median [rad/s] | largest |")
    print("|---" * 6 + "|")
    for row in raw["rows"]:
        if row["step"] in (1, 2, 5, 10, 20, len(raw["rows"])):
            root = torch.tensor(row["root_m"])
            velocity = torch.tensor(row["velocity_rad_s"])
            cells = [root.median(), root.quantile(0.9), root.max(), velocity.median(), velocity.max()]
            print(f"| {row['step']} | {' | '.join(f'{float(x):.1e}' for x in cells)} |")
    print(f"\nA step done twice is apart by {raw['twice']:.1e}. Ready after {raw['ready_s']:.1f} s.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--num-envs", type=int, default=64, help="characters (default 64)")
    add("--steps", type=int, default=30, help="control steps (default 30)")
    add("--no-cuda", action="store_true", help="Warp's CPU device, where there is a GPU")
    add("--out", default=os.path.join(ROOT, "benchmark", "warp_against_c.json"), help="raw figures")
    own = parser.parse_args()
    amp = load_script()
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() and not own.no_cuda else "cpu")
    if device.type == "cpu" and not own.no_cuda:
        sys.exit("error: PyTorch finds no CUDA device; --no-cuda takes Warp's CPU device")
    raw = {"command": " ".join(["python benchmark/warp_against_c.py", *sys.argv[1:]]), **stamp()}
    raw["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    raw.update(distances(amp, own.num_envs, own.steps, device))
    with open(own.out, "w") as file:
        json.dump(raw, file)
        file.write("\n")
    print_table(raw)


if __name__ == "__main__":
    main()
