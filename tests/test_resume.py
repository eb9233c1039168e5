"""A run is never lost: resuming, signals, disks that fill up or vanish, broken physics, NaN in gradients."""

import errno
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from types import SimpleNamespace
from unittest.mock import MagicMock

import simulators

import pytest
import torch
from conftest import signals_kept
from test_script import (
    BATCH,
    HEADING,
    MODULES,
    SCRIPT,
    figures,
    load,
    needs_mujoco,
    only_run,
    options,
    prepare,
    refused,
    scalars,
    start,
)

import amp_ppo_heading as heading
import amp_ppo_isaacgym as amp
import console
import evaluation
import guards
import training_run
from checkpoints import Unsound

pytestmark = pytest.mark.usefixtures("signals")


def tiny(root, script, **changes):
    chosen = dict(total_timesteps=BATCH * 24, eval_interval=5, save_interval=4, seed=5)
    if script == HEADING:
        chosen.update(motion_file="motions/locomotion.json", eval_episodes=4)
    return options(root, **{**chosen, **changes})


def differences(one, two, path=""):
    """Where two checkpoints are not bit for bit the same, but for the seconds that it took."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, two) else [path]
    if isinstance(one, dict) and isinstance(two, dict):
        found = [f"{path}/{key}" for key in one.keys() ^ two.keys()]
        for key in (one.keys() & two.keys()) - {"seconds"}:
            found += differences(one[key], two[key], f"{path}/{key}")
        return found
    if isinstance(one, (list, tuple)):
        found = [path] * (len(one) != len(two))
        for i, pair in enumerate(zip(one, two)):
            found += differences(*pair, f"{path}/{i}")
        return found
    return [] if one == two else [path]


def curves(run):
    """Everything logged but the rates."""
    return {name: points for name, points in scalars(run).items() if "samples_per_s" not in name}


def await_file(process, folder, pattern):
    """Until a process has written it."""
    while not list(folder.glob(pattern)):
        assert process.poll() is None
        time.sleep(0.005)


def write_late_points(run, samples):
    """Curves that go beyond the last save, as SummaryWriter may write them every two minutes."""
    from torch.utils.tensorboard import SummaryWriter

    (events,) = run.glob("events*")
    writer = SummaryWriter(str(run))
    for n in (1, 2, 30):
        writer.add_scalar("2_reward/total", 1e6, samples + n * BATCH)
    writer.close()
    (late,) = set(run.glob("events*")) - {events}
    late.rename(run / f"{events.name}.late")  # read after those, and before those of the resumed run
    while int(time.time()) <= int(events.name.split(".")[3]):  # the order of files goes by this second
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory):
    """(script, states that the discriminator sees) -> the run of a training that nobody has interrupted."""
    runs = {}
    for script, module in MODULES.items():
        for disc_steps in (2, 5):
            folder = tmp_path_factory.mktemp("alone")
            with pytest.MonkeyPatch.context() as patch, signals_kept():
                flags = tiny(root, script, disc_steps=disc_steps)
                for _ in module.main(*prepare(module, patch, folder, *flags)):
                    pass
            runs[script, disc_steps] = only_run(folder)
    return runs


# ---- Resuming ----


@needs_mujoco
@pytest.mark.parametrize(
    "script, number, disc_steps",
    [
        (SCRIPT, signal.SIGINT, 2),
        (SCRIPT, signal.SIGKILL, 5),
        (HEADING, signal.SIGHUP, 2),
        (HEADING, signal.SIGTERM, 5),
    ],
)
def test_an_interrupted_run_ends_as_the_one_that_was_left_alone(
    root, tmp_path, alone, run_script, script, number, disc_steps
):
    """Bit for bit, after a signal that it answers to and after one that gives it no time; with the same curves."""
    process = start(root, tmp_path, script, *tiny(root, script, disc_steps=disc_steps))
    await_file(process, tmp_path, "runs/*/latest.pt")
    process.send_signal(number)
    out, err = process.communicate()
    run = only_run(tmp_path)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number, err
        assert err.count("finishing this iteration, then saving") == 1
        assert out == "" and err.splitlines()[-1].endswith(f"{script} --resume {run.relative_to(tmp_path)}")
    before = load(run / "latest.pt")["samples"]
    assert BATCH * 4 <= before < BATCH * 24
    write_late_points(run, before)
    result = run_script(script, "--resume", run.relative_to(tmp_path))
    assert result.code == 0, result.err
    assert only_run(tmp_path) == run  # in the same folder
    reference = alone[script, disc_steps]
    for name in ("latest.pt", "best.pt"):
        assert differences(load(run / name), load(reference / name)) == [], name
    one, two = curves(run), curves(reference)
    assert [samples for samples, _ in one["reward/total"]] == list(range(BATCH, BATCH * 24 + 1, BATCH))
    assert one == two
    assert figures(result) == pytest.approx(console.four_digits(load(run / "best.pt")["metrics"]), rel=1e-3, abs=1e-4)
    assert f"the best policy, after {load(run / 'best.pt')['samples']:,} samples:\n" in result.err
    assert not (run / "lock").exists()
    (note,) = run.glob("args_resumed_*.json")
    assert "--resume" in json.loads(note.read_text())["command"]


@needs_mujoco
def test_a_second_signal_ends_the_process_at_once(root, tmp_path):
    """In the middle of an iteration that takes long."""
    flags = tiny(root, SCRIPT, num_steps=4000, total_timesteps=8 * 4000 * 3)
    process = start(root, tmp_path, SCRIPT, *flags)
    await_file(process, tmp_path, "runs/*/args.json")
    for _ in range(2):
        time.sleep(1.0)
        assert process.poll() is None  # the first one is only noted
        process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == -signal.SIGTERM
    assert not list(tmp_path.glob("runs/*/latest.pt"))


@pytest.fixture
def run(tmp_path, alone):
    """A copy of a run that is complete."""
    copy = tmp_path / "runs/kept"
    shutil.copytree(alone[SCRIPT, 2], copy)
    return copy


def rates(run):
    """Learning rates in a checkpoint: of policy, critic, discriminator."""
    shared = load(run / "latest.pt")["shared"]
    return [group["lr"] for name in ("ppo", "disc") for group in shared[name]["param_groups"]]


@needs_mujoco
def test_what_is_typed_with_resume_goes_before_the_options_of_the_run(run, run_script):
    refused(run_script(SCRIPT, "--resume", run), "complete", "--total-timesteps")
    policy = rates(run)[0]
    assert rates(run) == [policy, 5e-4, 2e-4] and policy != 3e-4  # it has followed the divergence
    longer = ("--resume", run, "--total-timesteps", BATCH * 26, "--gamma", 0.5, "--save-interval", 1)
    result = run_script(SCRIPT, *longer, "--critic-learning-rate", 1e-3, "--disc-learning-rate", 1e-6)
    assert result.code == 0, result.err
    content = load(run / "latest.pt")
    assert content["samples"] == BATCH * 26
    names = ("total_timesteps", "gamma", "critic_learning_rate", "disc_learning_rate", "learning_rate")
    assert [content["args"][name] for name in names] == [BATCH * 26, 0.5, 1e-3, 1e-6, 3e-4]
    assert rates(run)[1:] == [1e-3, 1e-6] and policy / 1.5 < rates(run)[0] < policy * 1.5
    assert [samples for samples, _ in curves(run)["reward/total"]] == list(range(BATCH, BATCH * 26 + 1, BATCH))
    # the policy's, too, which follows the divergence from there; the other two stay what they were told last
    result = run_script(SCRIPT, "--resume", run, "--total-timesteps", BATCH * 27, "--learning-rate", 1e-5)
    assert result.code == 0, result.err
    assert rates(run)[1:] == [1e-3, 1e-6] and 1e-5 / 1.21 < rates(run)[0] < 1.21e-5


@needs_mujoco
@pytest.mark.parametrize("before", [600.0, None])
def test_minutes_before_an_interruption_count(run, run_script, before):
    """As its samples do; a run that an older version of the script has begun has not kept them."""
    content = load(run / "latest.pt")
    assert 0 < content["progress"]["seconds"] < 600
    content["progress"]["seconds"] = before
    if before is None:
        del content["progress"]["seconds"]
    torch.save(content, run / "latest.pt")
    result = run_script(SCRIPT, "--resume", run, "--total-timesteps", BATCH * 25)
    assert result.code == 0, result.err
    minutes = float(re.search(r"trained for (\d+\.\d) minutes;", result.err).group(1))
    took = load(run / "latest.pt")["progress"]["seconds"]
    assert (before or 0) < took and minutes * 60 == pytest.approx(took, abs=10)
    assert (minutes >= 10.0) == bool(before)


@needs_mujoco
def test_a_discount_that_is_typed_takes_effect(run, run_script, tmp_path):
    """As for every option that the loop reads: the first update after it is another one."""
    shutil.copytree(run, tmp_path / "other")
    longer = ("--total-timesteps", BATCH * 25)
    assert run_script(SCRIPT, "--resume", run, *longer).code == 0
    assert run_script(SCRIPT, "--resume", tmp_path / "other", *longer, "--gamma", 0.5).code == 0
    one, two = (curves(folder) for folder in (run, tmp_path / "other"))
    assert one["reward/total"] == two["reward/total"]
    assert one["policy/loss"][:-1] == two["policy/loss"][:-1] and one["policy/loss"][-1] != two["policy/loss"][-1]


@needs_mujoco
@pytest.mark.parametrize(
    "changes, word",
    [
        (("--hidden", 32, 16), "needs --hidden 16 16\n"),
        (("--num-envs", 16), "env"),
        (("--disc-steps", 3), "needs --disc-steps 2\n"),
        (("--keep-course",), "needs --no-keep-course\n"),
        (("--evaluate", "--checkpoint", "x.pt"), "without --resume"),
        (("--checkpoint", "x.pt"), "without --resume"),
    ],
    ids=lambda x: x[0] if isinstance(x, tuple) else "",
)
def test_what_shapes_tensors_cannot_be_changed(run, run_script, changes, word):
    before = {path.name: path.read_bytes() for path in run.glob("*.*")}
    refused(run_script(SCRIPT, "--resume", run, "--total-timesteps", BATCH * 30, *changes), word)
    assert {path.name: path.read_bytes() for path in run.glob("*.*")} == before


@needs_mujoco
def test_what_cannot_be_resumed(tmp_path, run, run_script):
    longer = ("--total-timesteps", BATCH * 30)
    refused(run_script(SCRIPT, "--resume", "gone", *longer), "'gone': no such file or folder; ")
    (tmp_path / "young").mkdir()
    for name in ("young", "young/walk.pt"):
        refused(run_script(SCRIPT, "--resume", name, *longer), "young/latest.pt", "--resume takes a run's folder")
        (tmp_path / "young/walk.pt").touch()
    (tmp_path / "young/args.json").touch()
    refused(run_script(SCRIPT, "--resume", "young", *longer), "young", "started anew")
    use = f"a checkpoint of amp_ppo_isaacgym, and this is amp_ppo_heading; python {SCRIPT} --resume {run}\n"
    refused(run_script(HEADING, "--resume", run, *longer), use)
    data = (run / "latest.pt").read_bytes()
    content = load(run / "latest.pt")
    shutil.copy(run / "best.pt", run / "latest.pt")
    refused(run_script(SCRIPT, "--resume", run, *longer), "no processes")
    (run / "latest.pt").write_bytes(data[: len(data) // 2])
    refused(run_script(SCRIPT, "--resume", run, *longer), "latest.pt: damaged or incomplete; copy or download")
    torch.save({**content, "processes": content["processes"] * 2}, run / "latest.pt")
    refused(run_script(SCRIPT, "--resume", run, *longer), "2 processes")
    torch.save({**content, "args": {**content["args"], "old_option": 1}}, run / "latest.pt")
    refused(run_script(SCRIPT, "--resume", run, *longer), "old_option")
    replay = content["processes"][0]["replay"]
    replay["data"] = replay["data"][:, :7]
    torch.save(content, run / "latest.pt")
    refused(run_script(SCRIPT, "--resume", run, *longer), "does not fit", "replay")


@needs_mujoco
def test_a_run_in_which_somebody_trains_is_locked(root, tmp_path, monkeypatch, run_script):
    training = amp.main(*prepare(amp, monkeypatch, tmp_path, *tiny(root, SCRIPT, save_interval=1)))
    next(training)
    mine = only_run(tmp_path)
    refused(run_script(SCRIPT, "--resume", mine), f"process {os.getpid()} is training in this folder")
    training.close()
    del training
    assert run_script(SCRIPT, "--resume", mine, "--total-timesteps", BATCH * 2).code == 0


def assert_alike(judged, kept):
    """What --evaluate prints are the figures of a training's own evaluation, and some more."""
    assert {name: judged[name] for name in kept} == pytest.approx(kept, rel=1e-3, abs=1e-4)


@needs_mujoco
def test_a_run_is_resumed_by_its_folder_or_a_file_in_it(run, run_script):
    for number, name in ((25, ""), (26, "latest.pt")):
        result = run_script(SCRIPT, "--resume", run / name, "--total-timesteps", BATCH * number)
        assert result.code == 0, result.err
        assert load(run / "latest.pt")["iteration"] == number
    result = run_script(SCRIPT, "--evaluate", "--checkpoint", run)
    assert result.code == 0
    assert_alike(figures(result), load(run / "best.pt")["metrics"])


@needs_mujoco
def test_clips_that_have_changed(root, tmp_path, run_script):
    """They are noticed, wherever they lie; who wants others types it, and episodes begin anew."""
    shutil.copy(root / "motions/walk.npz", tmp_path / "clip.npz")
    assert run_script(SCRIPT, *options(root, motion_file="clip.npz", total_timesteps=BATCH)).code == 0
    mine = only_run(tmp_path)
    shutil.copy(root / "motions/run.npz", tmp_path / "clip.npz")
    longer = ("--resume", mine, "--total-timesteps", BATCH * 2)
    refused(run_script(SCRIPT, *longer), "the motion data is not what the run began with", "--motion-file")
    shutil.copy(root / "motions/walk.npz", tmp_path / "moved.npz")
    result = run_script(SCRIPT, *longer, "--motion-file", "moved.npz")
    assert result.code == 0 and "begin anew" not in result.err
    longer = ("--resume", mine, "--total-timesteps", BATCH * 3)
    result = run_script(SCRIPT, *longer, "--motion-file", "clip.npz")
    assert result.code == 0 and result.err.count("episodes and replayed transitions begin anew") == 1


@needs_mujoco
def test_a_script_that_has_changed_is_kept_beside_the_first(run, run_script, root):
    content = load(run / "latest.pt")
    torch.save({**content, "data": {**content["data"], "script": "another"}}, run / "latest.pt")
    result = run_script(SCRIPT, "--resume", run, "--total-timesteps", BATCH * 25)
    assert result.code == 0 and result.err.count("the script has changed") == 1
    (copy,) = run.glob(f"code/resumed_*_{SCRIPT}")
    assert copy.read_bytes() == (root / SCRIPT).read_bytes()


@needs_mujoco
def test_the_best_policy_is_kept_apart(alone):
    for script, name, sign in ((SCRIPT, "pose_error_m", -1), (HEADING, "task_reward", 1)):
        run = alone[script, 2]
        points = scalars(run)[f"eval/{name}"]
        assert [samples for samples, _ in points] == [BATCH * n for n in (5, 10, 15, 20, 24)]
        falls = [share * (script == HEADING) for _, share in scalars(run)["eval/fall_rate"]]
        best, (samples, figure) = max((sign * point[1] - x, point) for x, point in zip(falls, points))
        saved = load(run / "best.pt")
        assert saved["samples"] == samples and saved["metrics"][name] == pytest.approx(figure, rel=1e-5)
        assert saved["best"] == pytest.approx(best, rel=1e-5)
        assert os.path.getsize(run / "best.pt") < os.path.getsize(run / "latest.pt") / 2


@needs_mujoco
def test_the_best_policy_can_be_evaluated(alone, run_script, tmp_path):
    """Its evaluation is the one for which it was kept."""
    for script in MODULES:
        shutil.copy(alone[script, 2] / "best.pt", tmp_path / "best.pt")
        result = run_script(script, "--evaluate", "--checkpoint", "best.pt")
        assert result.code == 0, result.err
        assert_alike(figures(result), load(tmp_path / "best.pt")["metrics"])


@needs_mujoco
def test_a_run_that_finds_no_better_policy_ends_with_its_best(run, run_script, root):
    """The one of before it went on: its figures, its page, its command."""
    content = load(run / "latest.pt")
    content["progress"]["best"] = 1e9
    torch.save(content, run / "latest.pt")
    before = (run / "best.pt").read_bytes()
    result = run_script(SCRIPT, "--resume", run, "--total-timesteps", BATCH * 25)
    assert result.code == 0 and (run / "best.pt").read_bytes() == before, result.err
    best = load(run / "best.pt")
    assert f"the best policy, after {best['samples']:,} samples:\n" in result.err
    assert_alike(figures(result), best["metrics"])
    _, shown = sorted(run.glob("best_2*"))  # the first is of the run that went before
    assert json.loads((shown / "figures.json").read_text())["figures"] == pytest.approx(figures(result), rel=1e-3)
    command = result.out.splitlines()[0]
    assert command == f"python {root / SCRIPT} --evaluate --checkpoint {run}/best.pt --seed 1005"


def test_a_score_that_is_no_number_is_no_best_one(tmp_path):
    """But the first policy is kept, whatever its score."""
    kept = []
    run = SimpleNamespace(folder=str(tmp_path), args=SimpleNamespace(capture_video=False), bar=MagicMock())
    run.shown = (64, 128, 5.0, 300)
    run.progress = {"iteration": 1, "samples": 64, "best": -1e30}
    run.attempt, run._write, run._tell = lambda *x: kept.append(run.progress["best"]), None, print
    result = evaluation.Result({}, [], torch.zeros(1, 14), {})
    for score in (math.nan, math.nan, 2.0, math.nan, 1.0, 3.0):
        training_run.Run.keep_best(run, score, result, {})
        (tmp_path / "best.pt").touch()
    assert kept == [-1e30, 2.0, 3.0] and run.best == (64, result)


@needs_mujoco
def test_a_training_goes_on_from_a_policy(root, tmp_path, monkeypatch, run_script):
    """With its own options and schedule, in a run of its own, without following the clip first."""
    policy = root / "pretrained/walk.pt"
    given = load(policy)["shared"]
    begun = []

    class Begun(training_run.Run):
        def begin(self, falls):
            begun.append({name: x.clone() for name, x in self.shared["agent"].state_dict().items()})
            assert torch.equal(self.shared["action_offset"], given["action_offset"])
            super().begin(falls)

    monkeypatch.setattr(amp, "Run", Begun)
    flags = tiny(root, SCRIPT, total_timesteps=BATCH * 2, hidden=(256, 128), eval_interval=1)
    args, checkpoint = prepare(amp, monkeypatch, tmp_path, *flags, "--checkpoint", policy)
    assert (args.seed, args.num_envs, args.eval_seconds) == (5, 8, 1)  # not the checkpoint's
    logs = [log for _, _, log in amp.main(args, checkpoint)]
    assert [log["eval/fall_rate"] for log in logs] == [0, 0] and logs[0]["eval/pose_error_m"] < 0.05
    (begun,) = begun
    for name, x in given["agent"].items():
        if name.startswith(("average_actor", "critic", "disc.")):
            assert torch.equal(begun[name], x)
        if name.startswith("average_actor"):
            assert torch.equal(begun[name.replace("average_", "")], x)
        if name == "obs_norm.mean":
            torch.testing.assert_close(begun[name], x, atol=1e-3, rtol=1e-3)
    mine = only_run(tmp_path)
    assert json.loads((mine / "args.json").read_text())["args"]["checkpoint"] == str(policy)
    assert load(mine / "latest.pt")["progress"]["iteration"] == 2
    assert run_script(SCRIPT, "--resume", mine, "--total-timesteps", BATCH * 3).code == 0
    refused(run_script(SCRIPT, *tiny(root, SCRIPT), "--checkpoint", policy), "walk.pt needs --hidden 256 128\n")
    flags = tiny(root, SCRIPT, hidden=(256, 128))
    refused(run_script(SCRIPT, *flags, "--checkpoint", policy, "--keep-course"), "walk.pt needs --no-keep-course\n")
    refused(run_script(SCRIPT, "--resume", mine, "--keep-course"), f"{mine} needs --no-keep-course\n")
    flags = tiny(root, SCRIPT, hidden=(256, 128), disc_steps=3)
    refused(run_script(SCRIPT, *flags, "--checkpoint", policy), "walk.pt needs --disc-steps 2\n")


# ---- The disk ----


def is_full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@needs_mujoco
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # SummaryWriter's
@pytest.mark.parametrize("fault", ["full", "vanished"])
def test_a_full_or_vanished_disk_costs_what_was_to_be_written(root, tmp_path, monkeypatch, capsys, fault):
    """It is said once; the training goes on, and saves again as soon as it can."""
    from torch.utils.tensorboard import SummaryWriter

    flags = tiny(root, SCRIPT, total_timesteps=BATCH * 12, save_interval=2, eval_interval=3)
    args, _ = prepare(amp, monkeypatch, tmp_path, *flags)
    saved = []
    for n, _ in enumerate(amp.main(args), 1):
        run = only_run(tmp_path / ("away" if (tmp_path / "away").exists() else "."))
        saved.append(load(run / "latest.pt")["iteration"] if (run / "latest.pt").exists() else 0)
        if n == 3 and fault == "full":
            patch = pytest.MonkeyPatch()
            patch.setattr(training_run, "write_file", is_full)
            patch.setattr(SummaryWriter, "add_scalar", is_full)
        if n == 3 and fault == "vanished":
            (tmp_path / "away").mkdir()
            (tmp_path / "runs").rename(tmp_path / "away/runs")
        if n == 7 and fault == "full":
            patch.undo()
        if n == 7 and fault == "vanished":
            (tmp_path / "away/runs").rename(tmp_path / "runs")
            (tmp_path / "away").rmdir()
    assert saved == [0, 2, 2, 2, 2, 2, 2, 8, 8, 10, 10, 12]
    logged = {samples // BATCH for samples, _ in scalars(run)["reward/total"]}
    # after the save that succeeds there are curves again; of what was under way some may be lost
    assert {1, 2, 9, 10, 11, 12} <= logged <= {1, 2, 3, 4, 9, 10, 11, 12}
    word = "No space left" if fault == "full" else "No such file"
    err = capsys.readouterr().err
    assert err.count(word) == 1 and err.count("not written") == 1
    assert [path for path in run.glob("*.tmp")] == []


def test_a_thread_that_a_full_disk_ends_leaves_no_traceback(monkeypatch):
    """SummaryWriter's raises once more where it is used; any other fault of a thread is shown as ever."""
    shown = []
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: shown.append(kind))
    guards.guard_terminal()
    for work in (is_full, lambda: [][0]):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert shown == [IndexError]


@needs_mujoco
def test_a_run_whose_last_save_failed_says_so(root, run_script, tmp_path, monkeypatch):
    original = training_run.write_file
    monkeypatch.setattr(
        training_run, "write_file", lambda path, data: (is_full if "pt" in path[-3:] else original)(path, data)
    )
    result = run_script(SCRIPT, *options(root, total_timesteps=BATCH))
    assert result.code == 2 and not (only_run(tmp_path) / "latest.pt").exists()
    last = result.err.splitlines()[-1]
    assert last.startswith("error: runs/") and "No space left" in last and "--resume" in last


# ---- Broken physics and NaN ----


@needs_mujoco
@pytest.mark.parametrize("module", [amp, heading])
def test_broken_physics_costs_an_episode_and_nothing_else(root, tmp_path, monkeypatch, module):
    """NaN, infinities, absurd numbers in every part of a state: counted, reset, never seen by network or normaliser."""
    from simulators.mujoco_sim import MujocoSim

    step, broken = MujocoSim.step, [0]

    def breaking(sim, targets):
        state, diverged = step(sim, targets)
        if broken[0] < 60 and len(targets) == 8:
            part = state[broken[0] % 5].view(8, -1)
            part[broken[0] % 8, broken[0] % part.shape[1]] = (math.nan, math.inf, -math.inf, 1e30)[broken[0] % 4]
            broken[0] += 1
        return state, diverged

    monkeypatch.setattr(MujocoSim, "step", breaking)
    script = SCRIPT if module is amp else HEADING
    logs = []
    for _, _, log in module.main(*prepare(module, monkeypatch, tmp_path, *tiny(root, script, eval_interval=0))):
        logs.append(log)
    assert sum(log["episode/diverged"] for log in logs) * BATCH == pytest.approx(60)
    quiet = {"episode/length"}  # NaN where no episode has ended
    assert [name for log in logs for name, x in log.items() if not math.isfinite(x) and name not in quiet] == []
    assert all(log["disc/skipped"] == log["policy/skipped"] == 0 for log in logs)
    saved = load(only_run(tmp_path) / "latest.pt")
    assert all(x.isfinite().all() for x in saved["shared"]["agent"].values())
    assert saved["processes"][0]["replay"]["data"].isfinite().all()
    assert saved["shared"]["agent"]["obs_norm.var"].max() < 1e4


@needs_mujoco
def test_a_character_in_the_sky_is_no_motion(root, walk, monkeypatch, tmp_path):
    args, _ = prepare(amp, monkeypatch, tmp_path, *options(root, target_speed=1))
    sim = simulators.make("mujoco", walk.character, 4, args.control_hz, args.substeps, torch.device("cpu"), 1)
    env = amp.AMPEnv(args, walk, sim, 4, 300)
    env.reset(0)
    sim.state[2, 3] = 150.0  # its height [m]
    before = env.obs().clone()
    _, reward, terminated, _, info = env.step(torch.zeros(4, 28))
    assert info["diverged"].tolist() == terminated.tolist() == [False, False, True, False]
    assert torch.equal(info["final_obs"][2], before[2]) and reward[2] == 0 and (reward[:2] > 0).all()


def parameters(optimizer):
    """Copies of all that a step of an optimizer changes."""
    mine = [x for group in optimizer.param_groups for x in group["params"]]
    states = [x for part in optimizer.state.values() for x in part.values()]
    return [x.detach().clone() for x in (*mine, *states)]


@needs_mujoco
def test_updates_that_are_not_finite_are_left_out(root, tmp_path, monkeypatch):
    """Of discriminator and policy, two of the ten updates of iterations 3 and 4; everything else goes on."""
    update, calls, left_out = amp.update, [], []

    def poisoned(optimizer, loss, *arguments):
        iteration, number = divmod(len(calls), 10)  # two of the discriminator, then eight of the policy
        calls.append(loss)
        if iteration not in (2, 3) or number not in (0, 5):
            assert update(optimizer, loss, *arguments) == 0
            return torch.zeros(())
        before = parameters(optimizer)
        skipped = update(optimizer, loss * math.nan, *arguments)
        left_out.append(all(map(torch.equal, before, parameters(optimizer))))
        assert skipped == 1
        return skipped

    monkeypatch.setattr(amp, "update", poisoned)
    flags = tiny(root, SCRIPT, total_timesteps=BATCH * 6, disc_updates=2, update_epochs=2, clone_updates=0)
    logs = [log for _, _, log in amp.main(*prepare(amp, monkeypatch, tmp_path, *flags))]
    assert len(calls) == 60 and left_out == [True] * 4
    assert [log["disc/skipped"] for log in logs] == [0, 0, 0.5, 0.5, 0, 0]
    assert [log["policy/skipped"] for log in logs] == [0, 0, 0.125, 0.125, 0, 0]
    saved = load(only_run(tmp_path) / "latest.pt")
    assert saved["iteration"] == 6 and all(x.isfinite().all() for x in saved["shared"]["agent"].values())


@needs_mujoco
def test_a_run_that_learns_nothing_any_more_gives_up(root, tmp_path, monkeypatch):
    """Its last checkpoint is sound."""
    update, calls = amp.update, []

    def poisoned(optimizer, loss, *arguments):
        calls.append(loss)
        return update(optimizer, loss * (math.nan if len(calls) > 90 else 1.0), *arguments)

    monkeypatch.setattr(amp, "update", poisoned)
    flags = tiny(root, SCRIPT, eval_interval=0, update_epochs=2, clone_updates=0)
    with pytest.raises(Unsound, match=r"learning rate.* last save is runs/.*latest.pt") as error:
        for _ in amp.main(*prepare(amp, monkeypatch, tmp_path, *flags)):
            pass
    assert "\n" not in str(error.value) and len(calls) == 100
    sound = load(only_run(tmp_path) / "latest.pt")
    assert sound["samples"] == BATCH * 8 and all(x.isfinite().all() for x in sound["shared"]["agent"].values())


@needs_mujoco
def test_giving_up_is_one_line(root, run_script):
    """Below the progress bar, with another exit code than that of bad input."""
    result = run_script(SCRIPT, *options(root, critic_learning_rate=9e14))
    assert result.code == 1 and "Traceback" not in result.err
    last = result.err.splitlines()[-1]
    assert last.startswith("error: no update of policy") and last.endswith("nothing has been saved")


# ---- Health ----


@needs_mujoco
def test_trouble_is_told_once(root, tmp_path, monkeypatch, capsys):
    """Once 400 iterations have shown it, which a run here takes over from 397 others."""
    wanted = set()
    monkeypatch.setattr(evaluation, "training_health", lambda log, speed: wanted.add(speed) or "it hiccups")
    flags = options(root, total_timesteps=BATCH, eval_interval=0, target_speed=0.1)
    said = []
    for _ in amp.main(*prepare(amp, monkeypatch, tmp_path, *flags)):
        said.append(capsys.readouterr().err.count("it hiccups"))
    mine = only_run(tmp_path)
    content = load(mine / "latest.pt")
    content["progress"].update(iteration=397, samples=BATCH * 397)
    torch.save(content, mine / "latest.pt")
    longer = ("--resume", mine, "--total-timesteps", BATCH * 403)
    for _ in amp.main(*prepare(amp, monkeypatch, tmp_path, *longer)):
        said.append(capsys.readouterr().err.count("it hiccups"))
    assert said == [0] + [0, 0, 1, 0, 0, 0]
    assert wanted == {0.1}  # m/s, not the clip's .97


@needs_mujoco
def test_a_signal_in_the_last_iteration_finds_a_run_that_is_complete(root, tmp_path, monkeypatch, capsys, signals):
    """It is not called stopped, with advice to go on, and nothing is raised."""
    last = 4
    flags = tiny(root, SCRIPT, total_timesteps=BATCH * last, eval_interval=0)
    for n, _ in enumerate(amp.main(*prepare(amp, monkeypatch, tmp_path, *flags)), 1):
        if n == last - 1:
            os.kill(os.getpid(), signal.SIGTERM)
    assert n == last
    out, err = capsys.readouterr()
    assert "stopped after" not in err and "\npython " in f"\n{out}" and " minutes; " in err
