"""Whether bfloat16 or torch.compile would pay: the learner's parts in float32 as they are, and with them, in one table.

    python benchmark/precision.py [--repeats 15] [--out FILE.json] [option of amp_ppo_isaacgym.py ...]

    disc       a discriminator update: both losses, gradient penalty, backward pass, Adam
    ppo        a PPO minibatch: both losses, backward pass, Adam
    value      the critic on all observations of an iteration
    style      the style reward of all transitions of an iteration

On random numbers, in the sizes of the options (defaults by device, as the script has them). bfloat16 is torch.autocast
around networks and losses, with float32 weights. The variants take turns; times are medians, "of float32" the median of
the ratios within a round. PyTorch cannot compile a gradient penalty (double backward). `python` has torch's own
threads; OMP_NUM_THREADS=1 gives one. Raw figures go to precision.json beside this file.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, Callable, Dict, List

from throughput import clock, load_script, median_ratio, parse
from train import ROOT, stamp

Step = Callable[[], Any]
OBS = 105  # size of what the policy sees with humanoid.xml
ACTION = 28
KINDS = dict(float32=(False, False), bfloat16=(True, False), compile=(False, True), both=(True, True))


def new_agent(amp: Any, args: Any, device: Any) -> Any:
    """Networks in the script's sizes, always the same ones."""
    import torch

    torch.manual_seed(0)
    env = SimpleNamespace(obs_size=OBS, action_offset=torch.zeros(ACTION), disc_obs_size=args.disc_steps * OBS)
    return amp.Agent(env, args.hidden, args.action_std_log).to(device)


def update(optimizer: Any, loss: Any) -> None:
    """One step, without what has to do with other processes."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def disc_part(amp: Any, args: Any, device: Any, cast: Callable) -> Step:
    """A discriminator update."""
    import torch

    disc = new_agent(amp, args, device).disc
    optimizer = torch.optim.Adam(disc.parameters(), lr=1e-6, fused=True)
    rows = torch.randn(args.disc_batch, args.disc_steps * OBS, device=device)
    other = torch.randn(args.disc_batch, args.disc_steps * OBS, device=device)

    def step() -> None:
        demo = rows.detach().requires_grad_(True)
        with cast():
            demo_logit = disc(demo)[:, 0]
            other_logit = disc(other)[:, 0]
            demo_loss = amp.disc_term(demo_logit, 1, args.disc_loss).mean()
            loss = demo_loss + amp.disc_term(other_logit, -1, args.disc_loss).mean()
            penalty = amp.gradient_penalty(demo_logit, demo)
        update(optimizer, loss + args.grad_penalty * penalty)

    return step


def ppo_part(amp: Any, args: Any, device: Any, cast: Callable, compiled: Callable) -> Step:
    """A PPO minibatch."""
    import torch

    agent = new_agent(amp, args, device)
    networks = [*agent.actor.parameters(), *agent.critic.parameters()]
    optimizer = torch.optim.Adam(networks, lr=1e-6, fused=True)
    minibatch = args.num_envs * args.num_steps // args.num_minibatches
    b_obs = torch.randn(minibatch, OBS, device=device)
    b_action = torch.randn(minibatch, ACTION, device=device)
    b_advantage = torch.randn(minibatch, device=device)
    with torch.no_grad():
        b_log_prob = agent.log_prob(agent.actor(b_obs), b_action)

    def ppo_loss() -> Any:
        with cast():
            mean = agent.actor(b_obs).float()
            value = agent.critic(b_obs)[:, 0].float()
        ratio = torch.exp(agent.log_prob(mean, b_action) - b_log_prob)
        clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
        return -torch.minimum(ratio * b_advantage, clipped * b_advantage).mean() + (value - b_advantage).square().mean()

    loss = compiled(ppo_loss)
    return lambda: update(optimizer, loss())


def parts(amp: Any, args: Any, device: Any, autocast: bool, compile_it: bool) -> Dict[str, Step]:
    """The learner's parts, ready to be called."""
    import torch

    compiled = (lambda f: torch.compile(f, dynamic=False)) if compile_it else (lambda f: f)
    cast = (lambda: torch.autocast(device.type, torch.bfloat16)) if autocast else contextlib.nullcontext
    agent = new_agent(amp, args, device)
    batch = args.num_envs * args.num_steps
    observations = torch.randn(batch + args.num_envs, OBS, device=device)
    transitions = torch.randn(batch, args.disc_steps * OBS, device=device)

    def passes(function: Step) -> Step:
        function = compiled(function)

        def run() -> None:
            with torch.no_grad(), cast():
                function()

        return run

    steps = {} if compile_it else {"disc": disc_part(amp, args, device, cast)}
    steps["ppo"] = ppo_part(amp, args, device, cast, compiled)
    steps["value"] = passes(lambda: agent.value(observations))
    steps["style"] = passes(lambda: amp.style_reward(agent.logit(transitions), args.disc_loss))
    return steps


def measure(variants: Dict[str, Dict[str, Step]], device: Any, repeats: int) -> Dict[str, Dict[str, List[float]]]:
    """Part -> variant -> seconds of each round."""
    results: Dict[str, Dict[str, List[float]]] = {}
    for part in variants["float32"]:
        times = results[part] = defaultdict(list)
        for repeat in range(repeats + 2):  # the first two compile and warm up
            for kind, steps in variants.items():
                if part in steps:
                    before = clock(device)
                    for _ in range(5):
                        steps[part]()
                    times[kind] += [(clock(device) - before) / 5] if repeat >= 2 else []
        print(f"{part} done", file=sys.stderr)
    return results


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", default=os.path.join(ROOT, "benchmark", "precision.json"))
    own, options = parser.parse_known_args()
    amp = load_script()  # before torch, as the script is itself
    import torch

    warnings.simplefilter("ignore")
    args = parse(amp, options)
    device = torch.device("cuda" if args.cuda else "cpu")
    where = stamp()
    variants = {kind: parts(amp, args, device, *how) for kind, how in KINDS.items()}
    results = measure(variants, device, own.repeats)
    threads = torch.get_num_threads()
    with open(own.out, "w") as file:
        json.dump({**where, "options": options, "threads": threads, "seconds": results}, file, indent=1)
        file.write("\n")
    others = [kind for kind in KINDS if kind != "float32"]
    print(f"commit {where['commit']}; {where['machine']}; {device}, {threads} torch threads; hidden {args.hidden}\n")
    print(
        "| part | float32 [ms] | " + " | ".join(f"{kind}, of float32" for kind in others) + " |\n|---|---|---|---|---|"
    )
    for part, times in results.items():
        cells = [f"{statistics.median(times['float32']) * 1e3:.2f}"]
        for kind in others:
            cells.append(f"{median_ratio(times[kind], times['float32']):.2f}" if times.get(kind) else "-")
        print(f"| {part} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
