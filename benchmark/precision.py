"""Whether bfloat16 or torch.compile would pay: the learner's parts in float32 as they are, and with them, in one table.

    python benchmark/precision.py [--repeats 15] [--out FILE.json] [option of amp_ppo_isaacgym.py ...]

    disc       a discriminator update: both losses, gradient penalty, backward pass, Adam
    ppo        a PPO minibatch: both losses, backward pass, Adam
    value      the critic on all observations of an iteration
    style      the style reward of all transitions of an iteration

On random numbers, in the sizes of the options (defaults by device, as the script has them). bfloat16 is torch.autocast
around networks and losses, with float32 weights. The variants take turns; times are medians, "of float32" the median of
the ratios within a round. PyTorch cannot compile a gradient penalty (double backward). `python` has torch's own
threads; OMP_NUM_THREADS=1 gives one.
"""

import argparse
import contextlib
import copy
import json
import os
import statistics
import sys
import warnings
from collections import defaultdict
from typing import Any, Callable, Dict, List

from throughput import clock, load_script
from train import stamp

Step = Callable[[], Any]


def parts(amp: Any, args: Any, device: Any, autocast: bool, compile_it: bool) -> Dict[str, Step]:
    """The learner's parts, ready to be called."""
    import torch

    torch.manual_seed(0)
    batch, minibatch = args.num_envs * args.num_steps, args.num_envs * args.num_steps // args.num_minibatches
    obs, transition, action = 105, 210, 28  # sizes of humanoid.xml
    agent = amp.Agent(obs, transition, action, args.hidden, args.action_std_log).to(device)
    random = lambda *size: torch.randn(*size, device=device)  # noqa: E731
    compiled = (lambda f: torch.compile(f, dynamic=False)) if compile_it else (lambda f: f)
    cast = (lambda: torch.autocast(device.type, torch.bfloat16)) if autocast else contextlib.nullcontext
    disc, learner = copy.deepcopy(agent.disc), copy.deepcopy(agent)
    demo, other = random(args.disc_batch, transition), random(args.disc_batch, transition)
    b_obs, b_action, b_advantage = random(minibatch, obs), random(minibatch, action), random(minibatch)
    observations, transitions = random(batch + args.num_envs, obs), random(batch, transition)
    disc_optimizer = torch.optim.Adam(disc.parameters(), lr=1e-6, fused=True)
    networks = [*learner.actor.parameters(), *learner.critic.parameters()]
    ppo_optimizer = torch.optim.Adam(networks, lr=1e-6, fused=True)
    with torch.no_grad():
        b_log_prob = learner.log_prob(learner.actor(b_obs), b_action)

    def update(optimizer: Any, loss: Any) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def disc_step() -> None:
        with cast():
            loss, penalty, _, _ = amp.disc_losses(disc, demo, other, args.disc_loss)
        update(disc_optimizer, loss + args.grad_penalty * penalty)

    def ppo_loss() -> Any:
        with cast():
            mean, value = learner.actor(b_obs).float(), learner.critic(b_obs)[:, 0].float()
        ratio = torch.exp(learner.log_prob(mean, b_action) - b_log_prob)
        clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
        return -torch.minimum(ratio * b_advantage, clipped * b_advantage).mean() + (value - b_advantage).square().mean()

    def passes(function: Step) -> Step:
        function = compiled(function)

        def run() -> None:
            with torch.no_grad(), cast():
                function()

        return run

    ppo_loss = compiled(ppo_loss)
    steps = {"ppo": lambda: update(ppo_optimizer, ppo_loss()), "value": passes(lambda: agent.value(observations))}
    steps["style"] = passes(lambda: amp.style_reward(agent.disc(agent.disc_norm(transitions))[:, 0], args.disc_loss))
    return steps if compile_it else {"disc": disc_step, **steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "precision.json"))
    own, options = parser.parse_known_args()
    import torch

    warnings.simplefilter("ignore")
    amp = load_script()
    args, _ = amp.parse_args(options)
    device, where = torch.device("cuda" if args.cuda else "cpu"), stamp()
    kinds = dict(float32=(False, False), bfloat16=(True, False), compile=(False, True), both=(True, True))
    variants = {kind: parts(amp, args, device, *how) for kind, how in kinds.items()}
    results: Dict[str, Dict[str, List[float]]] = {}
    for part in variants["float32"]:
        times = results[part] = defaultdict(list)
        for repeat in range(own.repeats + 2):  # the first two compile and warm up
            for kind, steps in variants.items():
                if part in steps:
                    before = clock(device)
                    for _ in range(5):
                        steps[part]()
                    times[kind] += [(clock(device) - before) / 5] if repeat >= 2 else []
        print(f"{part} done", file=sys.stderr)
    threads = torch.get_num_threads()
    with open(own.out, "w") as file:
        json.dump({**where, "options": options, "threads": threads, "seconds": results}, file, indent=1)
    print(f"commit {where['commit']}; {where['machine']}; {device}, {threads} torch threads; hidden {args.hidden}\n")
    print(
        "| part | float32 [ms] | "
        + " | ".join(f"{kind}, of float32" for kind in list(kinds)[1:])
        + " |\n|---|---|---|---|---|"
    )
    for part, times in results.items():
        cells = [f"{statistics.median(times['float32']) * 1e3:.2f}"]
        for kind in list(kinds)[1:]:
            pairs = zip(times[kind], times["float32"])
            cells.append(f"{statistics.median(x / y for x, y in pairs):.2f}" if times.get(kind) else "-")
        print(f"| {part} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
