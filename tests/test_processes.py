"""Several processes under torchrun: equal to one process where they have to be, never lost. Groups of two, gloo."""

import contextlib
import datetime
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from test_resume import curves, differences, load, only_run
from test_script import needs_mujoco, options, refused, scalars

import amp_ppo_heading as heading
import amp_ppo_isaacgym as amp
import processes as group
from command_line import parse_args
from files import InputError

SCRIPT = "amp_ppo_isaacgym.py"
HEADING = "amp_ppo_heading.py"
BATCH = 64  # of flags(): 7 environments are 4 in each of two processes
ITERATIONS = 32
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
LAUNCHED = []
PATIENCE = 120  # seconds
GONE = "error: another process is gone; --resume goes on"
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds the processes in /proc")


def flags(root, **changes):
    """Of a tiny training, with sizes that two processes cannot share evenly."""
    chosen = dict(total_timesteps=BATCH * ITERATIONS, eval_interval=5, save_interval=10, seed=5)
    chosen.update(num_envs=7, disc_batch=62, replay_size=255, replay_keep=15)
    return options(root, **{**chosen, **changes})


@pytest.fixture(autouse=True)
def ended():
    """A test that fails leaves nothing behind that runs."""
    yield
    for process in LAUNCHED:
        if process.poll() is None:
            for pid in (*workers(process).values(), process.pid):  # each leads a session
                os.killpg(pid, signal.SIGKILL)
            process.communicate()
    LAUNCHED.clear()


def launch(folder, command, processes=2, restarts=0, rendezvous=("--standalone",), **variables):
    """torchrun on COMMAND, in a session of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **variables}
    flags = (*rendezvous, f"--nproc_per_node={processes}", f"--max-restarts={restarts}")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    command = [*TORCHRUN, *flags, *map(str, command)]
    process = subprocess.Popen(command, cwd=str(folder), env=env, start_new_session=True, **pipes)
    LAUNCHED.append(process)
    return process


def launch_machines(folders, command, restarts, **variables):
    """Two torchruns with a process each, as on two machines."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    meet = ("--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=one run [a]")
    return [launch(folder, command, 1, restarts, meet, **variables) for folder in folders]


def finish(process, code=0):
    """Its output, once it has ended by itself."""
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode == 0) == (code == 0), err
    return out, err


def workers(*launched):
    """Process ids by rank."""
    found = {}
    for process in launched:
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], stdout=subprocess.PIPE, text=True)
        for pid in map(int, listed.stdout.split()):
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    env = dict(x.split(b"=", 1) for x in file.read().split(b"\0") if b"=" in x)
            except OSError:  # gone
                continue
            if b"RANK" in env:
                found[int(env[b"RANK"])] = pid
    return found


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(folder, pattern, *launched, bytes_written=0, number=1):
    """Until there are so many files of this kind, of so many bytes."""
    for _ in range(100 * PATIENCE):  # a machine that was asleep meanwhile is no fault
        if len([x for x in folder.glob(pattern) if x.stat().st_size > bytes_written]) >= number:
            return
        for process in launched:
            assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(pattern)


def faults(err):
    return [line for line in err.splitlines() if line.startswith("error: ")]


def no_traceback_of_ours(err):
    """Torchrun prints its own."""
    return '.py", line' not in "".join(
        line for line in err.splitlines(True) if "/torch/" not in line and "<" not in line
    )


def same_end(run, other):
    """Whether two runs have come to the same, bit for bit."""
    for name in ("latest.pt", "best.pt"):
        assert differences(load(run / name), load(other / name)) == [], name
    assert curves(run) == curves(other)
    return True


@pytest.fixture(scope="module")
def pair(root, tmp_path_factory):
    """Run by two processes that nobody has interrupted, its output, and what the processes noted."""
    folder = tmp_path_factory.mktemp("pair")
    notes = folder / "notes.json"
    command = [root / "tests/processes_worker.py", notes, SCRIPT, *flags(root)]
    out, err = finish(launch(folder, command))
    assert sorted(x.name for x in folder.iterdir()) == ["notes.json", "runs"]
    return only_run(folder), out, err, json.loads(notes.read_text())


# ---- Equality --------------------------------------------------------------------------------------------------------


def check_equality(results, processes):
    assert len(results) == processes
    for rank, errors in enumerate(results):
        assert errors.pop("gather") == ([7, 8, 9, 10][:processes] if rank == 0 else [])
        assert errors.pop("own gradient") > 0.1
        assert max(errors.values()) < 1e-6, errors


@needs_mujoco
def test_two_processes_compute_what_one_computes_with_all_the_data(pair):
    check_equality(pair[3]["errors"], 2)


def test_four_processes_compute_what_one_computes_with_all_the_data(root, tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, root / "tests/processes_worker.py", out, 4]
    subprocess.run([*map(str, command)], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=PATIENCE)
    check_equality(json.loads(out.read_text())["errors"], 4)


@needs_mujoco
def test_two_processes_stay_the_same_and_one_of_them_speaks_writes_and_evaluates(pair):
    run, out, err, notes = pair
    assert len(notes["iterations"]) == ITERATIONS
    for (digest, rate, seed), (other_digest, other_rate, other_seed) in notes["iterations"]:
        assert (digest, rate) == (other_digest, other_rate)
        assert seed != other_seed
    assert len({digest for (digest, _, _), _ in notes["iterations"]}) == ITERATIONS  # it learns
    first, second = [own["before sharing"] for own in notes["own"]]
    assert first == second  # they clone the clip together, with gradients of the same networks
    assert [own["evaluations"] for own in notes["own"]] == [7, 0]
    assert "said by 0" in out and "said by 1" not in out and "told by 0" in err and "told by 1" not in err
    assert err.count("simulator mujoco") == 1 and "2 processes" in " ".join(err.split())
    assert out.count('"pose_error_m"') == 1
    assert err.count("minutes;") == 1 and err.count(" samples/s") == 7  # a line for each evaluation
    assert len(list(run.glob("events.*"))) == 1
    assert json.loads((run / "args.json").read_text())["processes"] == 2
    # what a refusal below goes by
    variables = dict(GROUP_WORLD_SIZE="1", TORCHELASTIC_MAX_RESTARTS="0", TORCHELASTIC_USE_AGENT_STORE="True")
    assert notes["variables"] == variables


@needs_mujoco
def test_what_two_processes_cannot_share_evenly_is_rounded_up(pair):
    run, _, _, notes = pair
    points = scalars(run)["reward/total"]
    assert [samples for samples, _ in points] == list(range(BATCH, BATCH * ITERATIONS + 1, BATCH))
    checkpoint = load(run / "latest.pt")
    assert checkpoint["progress"]["samples"] == BATCH * ITERATIONS and checkpoint["args"]["num_envs"] == 7
    one, two = checkpoint["processes"]
    # each has its own environments, transitions and random numbers
    assert one["env"]["history"].shape == two["env"]["history"].shape == (4, 1, one["env"]["history"].shape[-1])
    assert len(one["replay"]["data"]) == len(two["replay"]["data"]) == 128
    assert not torch.equal(one["replay"]["data"], two["replay"]["data"])
    assert not torch.equal(one["random"], two["random"])
    # a quarter of the 62 of --disc-batch, for each of two halves in each of two processes
    assert [set(own["replayed"]) for own in notes["own"]] == [{16}, {16}]


def test_a_plain_run_has_no_group(monkeypatch):
    """Even where a scheduler has set the variables that torchrun sets."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"):
        monkeypatch.setenv(name, "3")
    assert group.join_processes() is None
    assert not group.in_group() and group.world_size() == group.local_world() == 1
    rank, world, device, cores = group.processes()
    assert (rank, world, device.type) == (0, 1, "cpu") and 1 <= cores <= os.cpu_count()
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    before = x.clone()
    group.average(x)
    group.share(x)
    assert torch.equal(x, before)
    mean, var, n = group.moments(x)
    assert (mean.tolist(), var.tolist(), n) == ([2.0, 4.0], [1.0, 4.0], 2)
    part = {"x": x}
    assert group.gather(part)[0] is part


@needs_mujoco
def test_a_single_process_of_torchrun_computes_what_python_computes(root, tmp_path, run_script):
    """Here it has no name, and needs none where it is not restarted."""
    command = [SCRIPT, *flags(root, total_timesteps=56 * 6, save_interval=4)]
    result = run_script(*command)
    assert result.code == 0, result.err
    (tmp_path / "runs").rename(tmp_path / "plain")
    nameless = ("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")
    finish(launch(tmp_path, [root / command[0], *command[1:]], processes=1, rendezvous=nameless))
    (plain,) = (tmp_path / "plain").iterdir()
    assert same_end(only_run(tmp_path), plain)
    assert not only_run(tmp_path).name.endswith("none")


# ---- Lost processes --------------------------------------------------------------------------------------------------


@needs_mujoco
@needs_proc
def test_a_restart_goes_on_and_the_run_ends_as_the_one_that_was_left_alone(root, tmp_path, pair):
    """Killed before the first save it starts anew, killed later it goes on; in one folder, with curves of one piece."""
    process = launch(tmp_path, [root / SCRIPT, *flags(root)], restarts=2)
    wait_for(tmp_path, "runs/*/events*", process, bytes_written=4000)
    os.kill(workers(process)[1], signal.SIGKILL)
    assert not list(tmp_path.glob("runs/*/latest.pt"))
    assert len(scalars(only_run(tmp_path))["reward/total"]) > 1  # they are void now
    wait_for(tmp_path, "runs/*/latest.pt", process)
    os.kill(workers(process)[0], signal.SIGKILL)
    _, err = finish(process)
    assert no_traceback_of_ours(err) and 1 <= len(faults(err)) <= 2 and all(x.startswith(GONE) for x in faults(err))
    run = only_run(tmp_path)
    assert same_end(run, pair[0])
    (note,) = run.glob("args_resumed_*.json")
    assert json.loads(note.read_text())["processes"] == 2


@needs_mujoco
@needs_proc
def test_a_lost_process_ends_the_group_at_once(root, tmp_path):
    clips = dict(motion_file=root / "motions/locomotion.json", eval_episodes=4)
    process = launch(tmp_path, [root / HEADING, *flags(root, **clips)])
    wait_for(tmp_path, "runs/*/latest.pt", process)
    pids = workers(process)
    os.kill(pids[1], signal.SIGKILL)
    begun = time.monotonic()
    _, err = finish(process, code=1)
    assert time.monotonic() - begun < 20  # torchrun gives 30 seconds to a process that does not end by itself
    assert no_traceback_of_ours(err)
    (fault,) = faults(err)
    assert fault.startswith(GONE)
    assert not any(alive(pid) for pid in pids.values())
    run = only_run(tmp_path)
    saved = load(run / "latest.pt")
    assert saved["progress"]["samples"] % (10 * BATCH) == 0
    one, two = [x["env"]["goals"]["heading"] for x in saved["processes"]]  # goals of its own for each process
    assert one.shape == two.shape == (4,) and not torch.equal(one, two)


@needs_mujoco
@needs_proc
def test_machines_go_on_together(root, tmp_path, pair):
    """The torchrun of the lost process counts a restart; the other one may only see that the group has changed."""
    alone = dict(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    machines = launch_machines([tmp_path, tmp_path], [root / SCRIPT, *flags(root)], restarts=4, **alone)
    wait_for(tmp_path, "runs/*/latest.pt", *machines)
    os.kill(workers(*machines)[1], signal.SIGKILL)
    wait_for(tmp_path, "runs/*/args_resumed_*.json", *machines)
    os.kill(workers(*machines)[0], signal.SIGKILL)
    for machine in machines:
        _, err = finish(machine)
        assert no_traceback_of_ours(err)
    run = only_run(tmp_path)
    assert run.name.endswith("__one run [a]") and len(list(run.glob("args_resumed_*.json"))) == 2
    assert same_end(run, pair[0])


@needs_mujoco
@needs_proc
def test_machines_that_do_not_share_the_folder_do_not_go_on_apart(root, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    alone = dict(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    machines = launch_machines(folders, [root / SCRIPT, *flags(root, total_timesteps=BATCH * 4000)], 1, **alone)
    wait_for(tmp_path, "*/runs/*/latest.pt", *machines)
    os.kill(workers(*machines)[0], signal.SIGKILL)
    (one, said), (two, also) = (finish(machine, code=1) for machine in machines)
    told = [fault for fault in faults(said + also) if not fault.startswith(GONE)]
    assert 1 <= len(told) <= 2 and all("share the folder of the run" in fault for fault in told)  # one a machine
    assert '"pose_error_m"' not in one + two and no_traceback_of_ours(said + also)
    assert len(list(tmp_path.glob("*/runs/*"))) == 1


# ---- Signals and --resume --------------------------------------------------------------------------------------------


@needs_mujoco
@needs_proc
def test_both_stop_after_a_signal_and_go_on_exactly(root, tmp_path, pair):
    """As a scheduler sends it: to torchrun, which passes it on, and to its processes."""
    process = launch(tmp_path, [root / SCRIPT, *flags(root)], restarts=1)
    wait_for(tmp_path, "runs/*/latest.pt", process)
    for pid in (*workers(process).values(), process.pid):
        os.kill(pid, signal.SIGTERM)
    out, err = finish(process, code=1)
    run = only_run(tmp_path)
    assert out == "" and err.count(" samples; to go on:\n") == 1
    assert err.count(f"{SCRIPT} --resume {run.relative_to(tmp_path)}\n") == 2  # at the start, and now
    assert faults(err) == [] and no_traceback_of_ours(err)
    assert BATCH * 10 <= load(run / "latest.pt")["progress"]["samples"] < BATCH * ITERATIONS
    command = [root / SCRIPT, "--resume", run.relative_to(tmp_path)]
    process = launch(tmp_path, command)
    wait_for(run, "args_resumed_*.json", process)
    os.kill(workers(process)[1], signal.SIGTERM)  # it alone, and both stop
    out, err = finish(process, code=1)
    assert err.count(" samples; to go on:\n") == 1 and faults(err) == [] and no_traceback_of_ours(err)
    assert load(run / "latest.pt")["progress"]["samples"] < BATCH * ITERATIONS
    finish(launch(tmp_path, command))
    assert same_end(run, pair[0])


@needs_mujoco
def test_another_number_of_processes_does_not_go_on(root, tmp_path, pair, run_script):
    run = tmp_path / "runs/kept"
    run.mkdir(parents=True)
    content = (pair[0] / "latest.pt").read_bytes()
    (run / "latest.pt").write_bytes(content)
    command = ["--resume", run, "--total-timesteps", BATCH * 40]
    refused(run_script(SCRIPT, *command), "the run to resume has 2 processes, and there are 1 now")
    assert [x.name for x in run.iterdir()] == ["latest.pt"] and (run / "latest.pt").read_bytes() == content


# ---- Refusals --------------------------------------------------------------------------------------------------------


def test_a_training_of_less_than_a_batch_is_refused_once(root, tmp_path):
    """Which all processes find, and one of them says."""
    out, err = finish(launch(tmp_path, [root / SCRIPT, *flags(root, total_timesteps=63)]), code=1)
    assert faults(err) == ["error: a process has batches of 32: fewer --num-minibatches, or more --total-timesteps"]
    assert out == "" and no_traceback_of_ours(err) and not (tmp_path / "runs").exists()


@needs_mujoco
def test_what_process_0_alone_finds_is_said_once(root, tmp_path):
    """The other one, which then finds it gone, is silent."""
    (tmp_path / "runs").write_text("no folder")
    _, err = finish(launch(tmp_path, [root / SCRIPT, *flags(root)]), code=1)
    (fault,) = faults(err)
    assert "runs" in fault and not fault.startswith(GONE) and no_traceback_of_ours(err)


@needs_mujoco
@pytest.mark.parametrize("script", [amp, heading])
def test_defaults_can_be_divided_among_any_number_of_processes(monkeypatch, script):
    args, _ = parse_args(script.Args, script.KIND, ["--no-cuda"])
    for world in (1, 2, 3, 7, 10):
        monkeypatch.setattr(script, "processes", lambda world=world: group.processes()._replace(world=world))
        batch = math.ceil(256 / world) * 8  # of a process: each has as many environments
        for samples, minibatches, fits in (
            (batch * world, 4, True),
            (batch * world - 1, 4, False),
            (batch * world, batch, True),
            (batch * world, batch + 1, False),
        ):
            args.total_timesteps, args.num_minibatches = samples, minibatches
            with contextlib.nullcontext() if fits else pytest.raises(InputError, match=f"batches of {batch}:"):
                script.check_args(args)


RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
WHOLE = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
WHOLE.update(MASTER_ADDR="localhost", MASTER_PORT="0")
AGENT = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", "GROUP_WORLD_SIZE": "1"}


def pretend(monkeypatch, variables):
    """These variables of torchrun and no others; a store answers in a second, or not at all."""
    store = torch.distributed.TCPStore
    short = datetime.timedelta(seconds=1)  # instead of its own five minutes
    monkeypatch.setattr(torch.distributed, "TCPStore", lambda *where: store(*where, short))
    for name in [name for name in os.environ if name.startswith(("TORCHELASTIC", "MASTER_")) or name in RANKS]:
        monkeypatch.delenv(name)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", **variables}.items():
        monkeypatch.setenv(name, value)


def test_a_run_without_a_name_cannot_be_restarted(run_script, tmp_path, monkeypatch):
    """Torchrun would start it anew, beside what there is."""
    pretend(monkeypatch, {**WHOLE, **AGENT, "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"})
    for name in ("TCPStore", "PrefixStore", "init_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *given, **named: None)
    refused(run_script(SCRIPT, "--no-cuda"), "--standalone or --rdzv-id")
    assert list(tmp_path.iterdir()) == []


def test_restarts_on_several_machines_need_a_store_of_their_own(run_script, tmp_path, monkeypatch):
    """What an attempt before has written stands in that of the agents, and their counts of restarts differ."""
    machines = {"GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "1"}
    pretend(monkeypatch, {**WHOLE, **AGENT, **machines, "RANK": "1", "MASTER_PORT": "1"})
    refused(run_script(SCRIPT, "--no-cuda"), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1")
    assert list(tmp_path.iterdir()) == []
    for name, value in (("GROUP_WORLD_SIZE", "1"), ("TORCHELASTIC_MAX_RESTARTS", "0")):  # one machine, no restarts
        monkeypatch.setenv(name, value)
        refused(run_script(SCRIPT, "--no-cuda"), "timed out")
        monkeypatch.setenv(name, machines[name])


@pytest.mark.parametrize(
    "variables, fault",
    [
        ({}, "KeyError: 'RANK'"),
        ({"RANK": "1"}, "KeyError: 'WORLD_SIZE'"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "ValueError"),
        ({**WHOLE, "RANK": "a"}, "ValueError"),
        ({**WHOLE, "RANK": "2"}, "RANK 2 of 2"),
        ({**WHOLE, "RANK": "-1"}, "RANK -1 of 2"),
        ({**WHOLE, "LOCAL_WORLD_SIZE": "0"}, "LOCAL_RANK 0 of 0"),
        ({**WHOLE, "LOCAL_WORLD_SIZE": "9"}, "LOCAL_RANK 0 of 9"),
        ({**WHOLE, "MASTER_PORT": "70000"}, "TypeError"),
        ({**WHOLE, "TORCHELASTIC_USE_AGENT_STORE": "True"}, "KeyError: 'GROUP_WORLD_SIZE'"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, "KeyError: 'MASTER_ADDR'"),
        (WHOLE, "waiting for clients"),
        ({**WHOLE, "RANK": "1", "MASTER_PORT": "1"}, "timed out"),
        ({**WHOLE, **AGENT, "RANK": "1", "MASTER_PORT": "1"}, "timed out"),
    ],
)
def test_half_set_or_untrue_variables_of_torchrun(run_script, monkeypatch, variables, fault):
    """As in a shell that a process of torchrun has started, or from a copied list of variables."""
    pretend(monkeypatch, variables)
    result = run_script("amp_ppo_isaacgym.py", "--no-cuda")
    assert (result.code, result.err.count("\n")) == (2, 1) and result.err.startswith(
        "error: the environment: not that of"
    )
    assert fault in result.err and "unset TORCHELASTIC_RUN_ID" in result.err
