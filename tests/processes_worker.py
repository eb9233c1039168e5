"""What each process of tests/test_processes.py does under torchrun: `OUT` compares the processes with one that has all
the data; `OUT SCRIPT FLAGS` trains after that, and notes what each process has after each iteration.

`OUT 4` compares, too: without torchrun, by so many processes that share their imports."""

import hashlib
import importlib
import json
import os
import socket
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import command_line
import training_run
from curves import Log
from processes import average, gather, join_processes, moments, processes, share

# of torchrun, besides those of a rank
VARIABLES = ("GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_USE_AGENT_STORE")


def new_agent(amp):
    env = SimpleNamespace(obs_size=11, action_offset=torch.zeros(5), disc_obs_size=22)
    return amp.Agent(env, (32, 16), -2.0)


def trained(agent):
    """The parameters that have gradients."""
    return [parameter for net in (agent.disc, agent.actor, agent.critic) for parameter in net.parameters()]


def loss(amp, agent, demo, rows):
    """Of all networks, on rows (n, 22)."""
    demo = demo.clone().requires_grad_(True)
    logit = agent.disc(demo)[:, 0]
    disc = amp.disc_term(logit, 1, "bce").mean() + amp.disc_term(agent.disc(rows)[:, 0], -1, "bce").mean()
    others = agent.actor(rows[:, :11]).square().mean() + agent.critic(rows[:, :11]).square().mean()
    return disc + 5.0 * amp.gradient_penalty(logit, demo) + others


def distance(ones, others):
    """Largest relative difference of two lists of tensors."""
    return max(float(((x - y).norm() / y.norm()).detach()) for x, y in zip(ones, others) if y.norm() > 0)


def equality(amp):
    """Errors of this process: the share's results, averaged, merged or gathered, against those of all the data."""
    rank, world, _, _ = processes()
    torch.manual_seed(0)
    agent = new_agent(amp)
    one = new_agent(amp)
    one.load_state_dict(agent.state_dict())
    rows = 3.0 + torch.randn(64, 22) * torch.arange(1.0, 23.0)
    demo = torch.randn(64, 22)
    part = slice(rank * 64 // world, (rank + 1) * 64 // world)
    errors = {}

    loss(amp, agent, demo[part], rows[part]).backward()
    loss(amp, one, demo, rows).backward()
    expected = [x.grad for x in trained(one)]
    own = [x.grad.clone() for x in trained(agent)]
    average(*[x.grad for x in trained(agent)])
    errors["gradient"] = distance([x.grad for x in trained(agent)], expected)
    errors["own gradient"] = distance(own, expected)  # which differs, or this compares nothing

    # a step along the mean gradient, which is clipped after the mean is taken
    for model, chosen in ((agent, part), (one, slice(None))):
        optimizer = torch.optim.SGD(trained(model), lr=1.0, fused=True)
        amp.update(
            optimizer, loss(amp, model, demo[chosen], rows[chosen]), (model.disc, model.actor, model.critic), 0.1
        )
    errors["step"] = distance(trained(agent), trained(one))
    before = [x.clone() for x in trained(agent)]
    adam = torch.optim.Adam(trained(agent), fused=True)
    broken = loss(amp, agent, demo[part], rows[part]) * (float("nan") if rank == world - 1 else 1.0)
    errors["left out by all"] = 1.0 - float(amp.update(adam, broken, (agent.disc, agent.actor, agent.critic), 1.0))
    errors["as before"] = distance(trained(agent), before)

    # 20 rows of each process before, then these 64
    early = torch.randn(20 * world, 22)
    agent.disc_norm.update(early[rank * 20 : (rank + 1) * 20])
    agent.disc_norm.update(rows[part])
    every = torch.cat((early, rows)).double()
    errors["mean"] = float(((agent.disc_norm.mean - every.mean(0)) / every.std(0)).abs().max())
    errors["var"] = float((agent.disc_norm.var / every.var(0, unbiased=False) - 1).abs().max())
    errors["count"] = abs(float(agent.disc_norm.count) - len(every))
    mean, var, n = moments(rows[part])
    errors["moments"] = distance((mean, var), (rows.mean(0), rows.var(0, unbiased=False)))
    errors["rows"] = abs(n - 64)

    log = Log()
    log.add("a", b=torch.tensor([float(rank), float("nan")]))
    log.add("a", b=torch.tensor([float("nan"), 7.0 if rank == 0 else float("nan")]))
    errors["log"] = abs(log.means()["a/b"] - (sum(range(world)) + 7.0) / (world + 1))
    given = torch.full((3,), 5.0 + rank)
    share(given)
    errors["share"] = float((given - 5.0).abs().max())
    errors["gather"] = [int(x["x"]) for x in gather({"x": torch.tensor(7 + rank)})]
    return errors


def everybodys(x):
    found = [None] * processes().world
    dist.all_gather_object(found, x)
    return found


def write(out, content):
    if processes().rank == 0:
        with open(out, "w") as file:
            json.dump(content, file)


def digest(tensors):
    return hashlib.sha256(b"".join(x.numpy().tobytes() for x in tensors)).hexdigest()


def training(amp, out):
    """main() of the script, with notes."""
    own = {"evaluations": 0, "replayed": [], "before sharing": ""}
    give = training_run.share
    evaluate = amp.evaluate
    sample = amp.ReplayBuffer.sample

    def noted_evaluate(*args):
        own["evaluations"] += 1
        return evaluate(*args)

    def noted_sample(self, n):
        own["replayed"].append(n)
        return sample(self, n)

    def noted_share(*tensors):
        own["before sharing"] = digest(tensors)
        give(*tensors)

    training_run.share = noted_share
    amp.evaluate = noted_evaluate
    amp.ReplayBuffer.sample = noted_sample

    def main(args, checkpoint):
        errors = everybodys(equality(amp))
        print(f"said by {processes().rank}")
        print(f"told by {processes().rank}", file=sys.stderr)
        notes = []
        for agent, _, scalars in amp.main(args, checkpoint):
            found = digest(agent.state_dict().values())
            notes.append(everybodys((found, scalars["policy/learning_rate"], torch.initial_seed())))
            yield
        variables = {name: os.environ[name] for name in VARIABLES}
        write(out, {"errors": errors, "iterations": notes, "own": everybodys(own), "variables": variables})

    return main


def run(out, script="amp_ppo_isaacgym.py", *flags):
    amp = importlib.import_module(script[:-3])
    if flags:
        sys.argv = [os.path.join(os.path.dirname(amp.__file__), script), *flags]
        command_line.launch(training(amp, out), amp.Args, amp.KIND, amp.check_args)
    join_processes()
    write(out, {"errors": everybodys(equality(amp))})
    sys.stdout.flush()
    os._exit(0)  # as the scripts end


def fork(out, world):
    """run(out) in processes of this one, with the variables of a torchrun."""
    importlib.import_module("amp_ppo_isaacgym")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    os.environ.update(TORCHELASTIC_RUN_ID="forked", MASTER_ADDR="localhost", MASTER_PORT=port)
    os.environ.update(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    for rank in range(world):
        if os.fork() == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            run(out)
    sys.exit(max(os.wait()[1] for _ in range(world)) != 0)


if __name__ == "__main__":
    if sys.argv[2:] == ["4"]:
        fork(sys.argv[1], 4)
    run(*sys.argv[1:])
