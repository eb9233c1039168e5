"""What each process of tests/test_processes.py does under torchrun: `equality OUT` compares several processes with one; `train OUT
SCRIPT FLAGS` is a training that notes whether all processes have the same networks at every checkpoint."""

import hashlib
import importlib
import json
import os
import sys

import torch
import torch.distributed as dist

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def equality(amp):
    """Results of this process: the share's averaged, merged or gathered, and the same of all data at once."""
    rank, world = amp.processes()
    torch.manual_seed(0)
    agent, one = (amp.Agent(11, 22, 5, (32, 16), -2.0) for _ in range(2))
    one.load_state_dict(agent.state_dict())
    rows, demo = 3.0 + torch.randn(64, 22) * torch.arange(1.0, 23.0), torch.randn(64, 22)
    share = slice(rank * 64 // world, (rank + 1) * 64 // world)
    errors = {}

    def losses(model, part):
        loss, penalty, _, _ = amp.disc_losses(model.disc, demo[part], rows[part], "bce")
        (
            loss
            + 5.0 * penalty
            + model.actor(rows[part, :11]).square().mean()
            + model.critic(rows[part, :11]).square().mean()
        ).backward()

    losses(agent, share)
    unmixed = agent.disc[0].weight.grad.clone()
    amp.average_gradients(agent.disc)
    amp.average_gradients(agent.actor, agent.critic)
    losses(one, slice(None))
    pairs = [(x.grad, y.grad) for x, y in zip(agent.parameters(), one.parameters())]
    errors["gradient"] = max(float((x - y).norm() / y.norm()) for x, y in pairs)
    errors["own gradient"] = float(
        (unmixed - one.disc[0].weight.grad).norm()
    )  # which differs, or this compares nothing

    # all rows at once, by hand: Chan's formula on 20 rows before and these 64
    before = torch.randn(20 * world, 22)
    agent.disc_norm.update(before[rank * 20 : (rank + 1) * 20])
    agent.disc_norm.update(rows[share])
    every = torch.cat((before, rows)).double()
    errors["mean"] = float(((agent.disc_norm.mean - every.mean(0)) / every.std(0)).abs().max())
    errors["var"] = float((agent.disc_norm.var / every.var(0, unbiased=False) - 1).abs().max())
    errors["count"] = abs(float(agent.disc_norm.count) - len(every))
    mean, var = amp.moments(rows[share])
    errors["moments"] = float(
        max((mean - rows.mean(0)).abs().max(), (var / rows.var(0, unbiased=False) - 1).abs().max())
    )
    errors["average"] = float(amp.average(torch.tensor(float(rank)))) - (world - 1) / 2
    errors["gather"] = [int(part["x"]) for part in amp.gather({"x": torch.tensor(7 + rank)})]
    return errors


def main(kind, out, *rest):
    amp = importlib.import_module("amp_ppo_isaacgym" if kind == "equality" else rest[0][:-3])
    restarted = amp.join_processes()
    rank, world = amp.processes()
    if kind == "equality":
        results = [None] * world
        dist.all_gather_object(results, equality(amp))
    else:
        results, saved = [], amp.training_state

        def training_state(progress, learners, *others):
            numbers = [x for o in learners.values() for group in o.param_groups for x in group["params"]]
            digest = hashlib.sha256(b"".join(x.detach().numpy().tobytes() for x in numbers)).hexdigest()
            digests, own = (
                [None] * world,
                (os.getpid(), digest, learners["ppo"].param_groups[0]["lr"], torch.initial_seed()),
            )
            dist.all_gather_object(digests, own)
            results.append(digests)
            return saved(progress, learners, *others)

        amp.training_state = training_state
        amp.main(*amp.parse_args(rest[1:], restarted))
    if rank == 0:
        with open(out, "w") as file:
            json.dump(results, file)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # as the scripts end


if __name__ == "__main__":
    main(*sys.argv[1:])
