"""Several processes under torchrun: equal to one process where they have to be, and never lost. Groups of two, gloo."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from test_resume import BATCH, curves, differences, load, only_run, start, tiny
from test_script import MODULES, needs_mujoco, options, refused, scalars

import amp_ppo_isaacgym as amp

SCRIPT, HEADING = MODULES
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")


def launch(folder, command, processes=2, restarts=0, rendezvous=("--standalone",)):
    """torchrun on COMMAND, in a session of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    flags = (*rendezvous, f"--nproc_per_node={processes}", f"--max-restarts={restarts}")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    return subprocess.Popen(
        [*TORCHRUN, *flags, *map(str, command)], cwd=str(folder), env=env, start_new_session=True, **pipes
    )


def launch_machines(folders, command, restarts):
    """Two torchruns with a process each, as on two machines."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    meet = ("--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=amp")
    return [launch(folder, command, 1, restarts, meet) for folder in folders]


def finish(process, code=0):
    try:
        out, err = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode == 0) == (code == 0), err
    return out, err


def workers(process):
    """Process ids by rank."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], stdout=subprocess.PIPE, text=True)
    found = {}
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


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds the processes in /proc")


def wait_for(folder, pattern, process):
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def pair(root, tmp_path_factory):
    """Folder of a run by two processes that nobody has interrupted, its output, and what the processes noted at each checkpoint."""
    folder = tmp_path_factory.mktemp("pair")
    notes = folder / "notes.json"
    out, err = finish(launch(folder, [root / "tests/processes_worker.py", "train", notes, SCRIPT, *tiny(root, SCRIPT)]))
    return only_run(folder), out, err, json.loads(notes.read_text())


# ---- Equality ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [2, 4])
def test_gradients_and_moments_are_those_of_one_process_with_all_the_data(root, tmp_path, processes):
    out = tmp_path / "out.json"
    finish(launch(tmp_path, [root / "tests/processes_worker.py", "equality", out], processes))
    results = json.loads(out.read_text())
    assert len(results) == processes
    for rank, errors in enumerate(results):
        assert errors.pop("gather") == ([7, 8, 9, 10][:processes] if rank == 0 else [])
        assert errors.pop("own gradient") > 1e-2
        assert max(errors.values()) < 1e-6, errors


def test_a_plain_run_has_no_group(monkeypatch):
    """Even where a scheduler has set the variables that torchrun sets."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "3")
    assert amp.join_processes() is None and amp.processes() == amp.processes(local=True) == (0, 1)
    assert not torch.distributed.is_initialized()
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert amp.average(x) is x
    mean, var = amp.moments(x)
    assert (mean.tolist(), var.tolist()) == ([2.0, 4.0], [1.0, 4.0])
    part = {"x": x}
    assert amp.gather(part)[0] is part
    net = torch.nn.Linear(2, 1)
    net(x).sum().backward()
    gradient = net.weight.grad.clone()
    amp.average_gradients(net)
    assert torch.equal(net.weight.grad, gradient)


@needs_mujoco
def test_two_processes_stay_the_same_and_one_of_them_speaks(pair):
    run, out, err, notes = pair
    assert len(notes) == 6  # checkpoints
    for (pid, digest, rate, seed), (other_pid, other_digest, other_rate, other_seed) in notes:
        assert (digest, rate) == (other_digest, other_rate)
        assert pid != other_pid and seed != other_seed
    assert len({digest for (_, digest, _, _), _ in notes}) == 6  # it learns
    assert out.count("simulator mujoco") == 1 and "2 processes" in out and out.count('"pose_error_m"') == 1
    assert err.count("samples/s") >= 1 and out.count("minutes;") == 1
    assert len(list(run.glob("events.*"))) == 1
    points = scalars(run)["reward/total"]
    assert [samples for samples, _ in points] == list(range(BATCH, BATCH * 24 + 1, BATCH))
    assert json.loads((run / "args.json").read_text())["processes"] == 2
    checkpoint = load(run / "latest.pt")
    assert checkpoint["samples"] == BATCH * 24 and len(checkpoint["training"]["processes"]) == 2
    one, two = checkpoint["training"]["processes"]
    # each has half the environments (and the copies that an evaluation needs), its own transitions and its own random numbers
    assert len(one["env"]["tensors"]["obs"]) == len(two["env"]["tensors"]["obs"]) == 4
    assert len(one["replay"]) == len(two["replay"]) and not torch.equal(one["replay"], two["replay"])
    assert not torch.equal(one["random"][0], two["random"][0])


# ---- Checkpoints ---------------------------------------------------------------------------------------------------------------


@needs_mujoco
@needs_proc
def test_a_lost_process_ends_the_group_and_a_restart_goes_on_from_the_checkpoint(root, tmp_path, pair):
    """With --max-restarts the run ends bit for bit as the one that was left alone, in the same folder."""
    process = launch(tmp_path, [root / SCRIPT, *tiny(root, SCRIPT)], restarts=2)
    wait_for(tmp_path, "runs/*/previous.pt", process)
    os.kill(workers(process)[1], signal.SIGKILL)
    _, err = finish(process)
    assert f'{SCRIPT}", line' not in err and err.count("error: another process is gone") <= 1
    run = only_run(tmp_path)
    for name in ("latest.pt", "previous.pt", "best.pt", "policy.pt"):
        assert differences(load(run / name), load(pair[0] / name)) == [], name
    assert curves(run) == curves(pair[0])
    (note,) = run.glob("args_resumed_*.json")
    assert json.loads(note.read_text())["processes"] == 2


@needs_mujoco
@needs_proc
def test_a_single_process_of_torchrun_goes_on_after_a_restart(root, tmp_path):
    """Even if it was killed between the two renamings of a save, and was started with an option that means another."""
    command = [root / SCRIPT, *tiny(root, SCRIPT, total_timesteps=BATCH * 120), "--sim", "auto"]
    process = launch(tmp_path, command, processes=1, restarts=1)
    wait_for(tmp_path, "runs/*/previous.pt", process)
    (pid,) = workers(process).values()
    os.kill(pid, signal.SIGSTOP)
    (tmp_path / only_run(tmp_path) / "latest.pt").unlink()
    os.kill(pid, signal.SIGKILL)
    finish(process)
    run = only_run(tmp_path)
    assert load(run / "latest.pt")["samples"] == BATCH * 120 and len(list(run.glob("args_resumed_*.json"))) == 1


@needs_mujoco
@needs_proc
@pytest.mark.parametrize("lost", [0, 1])
def test_machines_go_on_together(root, tmp_path, pair, lost):
    """The torchrun of the lost process counts a restart; the other one may only see that the group has changed."""
    processes = launch_machines([tmp_path, tmp_path], [root / SCRIPT, *tiny(root, SCRIPT)], restarts=3)
    wait_for(tmp_path, "runs/*/latest.pt", processes[0])
    found = {}
    for process in processes:
        found.update(workers(process))
    os.kill(found[lost], signal.SIGKILL)
    for process in processes:
        finish(process)
    run = only_run(tmp_path)
    assert differences(load(run / "latest.pt"), load(pair[0] / "latest.pt")) == []
    assert curves(run) == curves(pair[0])


@needs_mujoco
@needs_proc
def test_machines_that_do_not_share_the_folder_do_not_go_on_apart(root, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    processes = launch_machines(folders, [root / SCRIPT, *tiny(root, SCRIPT, total_timesteps=BATCH * 4000)], restarts=1)
    while not list(tmp_path.glob("*/runs/*/latest.pt")):
        assert processes[0].poll() is None and processes[1].poll() is None
        time.sleep(0.01)
    found = {}
    for process in processes:
        found.update(workers(process))
    os.kill(found[0], signal.SIGKILL)
    (one, said), (two, also) = (finish(process, code=1) for process in processes)
    assert "no such folder" in said + also and '"pose_error_m"' not in one + two
    assert len(list(tmp_path.glob("*/runs/*"))) == 1


@needs_mujoco
@needs_proc
def test_a_lost_process_ends_the_group_at_once(root, tmp_path):
    process = launch(tmp_path, [root / HEADING, *tiny(root, HEADING)])
    wait_for(tmp_path, "runs/*/latest.pt", process)
    pids = workers(process)
    os.kill(pids[1], signal.SIGKILL)
    _, err = finish(process, code=1)
    assert f'{HEADING}", line' not in err  # no traceback but torchrun's own
    assert not any(alive(pid) for pid in pids.values())
    assert load(only_run(tmp_path) / "latest.pt")["samples"] % (4 * BATCH) == 0


@needs_mujoco
@needs_proc
def test_both_stop_after_a_signal_and_go_on_exactly(root, tmp_path, pair):
    """As a scheduler sends it: to torchrun, which passes it on, and to its processes."""
    process = launch(tmp_path, [root / SCRIPT, *tiny(root, SCRIPT)])
    wait_for(tmp_path, "runs/*/latest.pt", process)
    for pid in (*workers(process).values(), process.pid):
        os.kill(pid, signal.SIGTERM)
    out, _ = finish(process, code=1)
    run = only_run(tmp_path)
    assert out.splitlines()[-1].endswith(f"--resume {run.relative_to(tmp_path)}")
    assert BATCH * 4 <= load(run / "latest.pt")["samples"] < BATCH * 24
    finish(launch(tmp_path, [root / SCRIPT, "--resume", run.relative_to(tmp_path)]))
    assert differences(load(run / "latest.pt"), load(pair[0] / "latest.pt")) == []
    assert curves(run) == curves(pair[0])


@needs_mujoco
def test_a_run_goes_on_with_another_number_of_processes(root, tmp_path, pair):
    """Two, then one, then two again; every time it says what was dealt out anew, and loses no transition."""
    run = tmp_path / "runs/kept"
    run.mkdir(parents=True)
    (run / "latest.pt").write_bytes((pair[0] / "latest.pt").read_bytes())
    rows = [len(part["replay"]) for part in load(run / "latest.pt")["training"]["processes"]]
    command = [SCRIPT, "--resume", run, "--total-timesteps", BATCH * 26, "--save-interval", 1]
    _, err = start(root, tmp_path, *command, "--num-envs", 6).communicate()  # which may differ as the processes do
    assert f"{run}: number of processes 2 before, 1 now: the replay buffer is dealt out anew" in err
    (part,) = load(run / "latest.pt")["training"]["processes"]
    assert (
        len(part["replay"]) == min(sum(rows) + 2 * 6 * 8, 256)
        and load(run / "latest.pt")["samples"] == BATCH * 24 + 2 * 6 * 8
    )
    assert [samples for samples, _ in scalars(run)["reward/total"]] == [BATCH * 24 + 48, BATCH * 24 + 96]
    _, err = start(root, tmp_path, *command, "--num-envs", 8).communicate()  # as many processes: this it may not
    assert "the run has num_envs 6" in err
    command = [root / SCRIPT, "--resume", run, "--total-timesteps", BATCH * 28, "--num-envs", 8]
    _, err = finish(launch(tmp_path, command))
    assert err.count("number of processes 1 before, 2 now") == 1
    parts = load(run / "latest.pt")["training"]["processes"]
    assert sum(len(part["replay"]) for part in parts) == 256
    assert abs(len(parts[0]["replay"]) - len(parts[1]["replay"])) <= 1
    assert load(run / "latest.pt")["samples"] == BATCH * 24 + 2 * 6 * 8 + 2 * BATCH


# ---- Refusals ------------------------------------------------------------------------------------------------------------------


@needs_mujoco
@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(num_envs=9), "--num-envs 9 has to be a multiple of the 2 processes"),
        (dict(disc_batch=62), "--disc-batch has to be a multiple of 4"),
        (dict(motion_file="no/such.npz"), "no/such.npz"),
    ],
)
def test_what_cannot_be_divided_is_refused(root, tmp_path, changes, words):
    _, err = finish(launch(tmp_path, [root / SCRIPT, *options(root, **changes)]), code=1)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert 1 <= len(lines) <= 2 and words in lines[0]
    assert f'{SCRIPT}", line' not in err and not (tmp_path / "runs").exists()


@needs_mujoco
def test_old_checkpoints_are_not_resumed(root, tmp_path, pair, run_script):
    """Those before format 3 do not say how many processes they are of."""
    run = tmp_path / "runs/old"
    run.mkdir(parents=True)
    torch.save({**load(pair[0] / "latest.pt"), "format": 2}, run / "latest.pt")
    refused(run_script(SCRIPT, "--resume", run), "evaluated, not resumed")


def test_defaults_can_be_divided_among_any_number_of_processes(monkeypatch):
    for world in (1, 2, 3, 7, 10):
        monkeypatch.setattr(amp, "processes", lambda local=False, world=world: (0, world))
        args = amp.Args(cuda=False)
        amp.check_args(args)
        assert args.num_envs % world == args.disc_batch % (2 * world) == 0
        assert 0 <= args.num_envs - 512 < world and 0 <= args.disc_batch - 1024 < 2 * world
