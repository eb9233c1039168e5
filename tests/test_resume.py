"""A run is never lost: resuming, signals, disks that fill up or vanish, broken physics, NaN in gradients, checkpoints of others."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_script import MODULES, needs_mujoco, options, refused, scalars

import amp_ppo_heading as heading
import amp_ppo_isaacgym as amp

SCRIPT, HEADING = MODULES
BATCH = 64  # of options()


@pytest.fixture(autouse=True)
def handlers():
    """Put back what a training in this process does to signals."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def tiny(root, script, **changes):
    chosen = dict(total_timesteps=BATCH * 24, eval_interval=5, save_interval=4, seed=5)
    if script == HEADING:
        chosen.update(motion_file=root / "motions/locomotion.json", eval_episodes=4)
    return options(root, **{**chosen, **changes})


def start(root, folder, script, *flags):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    return subprocess.Popen([sys.executable, str(root / script), *map(str, flags)], cwd=str(folder), env=env, **pipes)


def only_run(folder):
    (run,) = (folder / "runs").iterdir()
    return run


def load(path):
    return torch.load(path, weights_only=True)


def differences(one, two, path=""):
    """Where two checkpoints are not bit for bit the same."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, two) else [path]
    if isinstance(one, dict) and isinstance(two, dict):
        keys = [f"{path}/{key}" for key in one.keys() ^ two.keys()]
        return keys + [
            found for key in one.keys() & two.keys() for found in differences(one[key], two[key], f"{path}/{key}")
        ]
    if isinstance(one, (list, tuple)):
        return [path] * (len(one) != len(two)) + [
            x for i, pair in enumerate(zip(one, two)) for x in differences(*pair, f"{path}/{i}")
        ]
    return [] if one == two else [path]


def curves(run):
    """Everything logged but the rates."""
    return {name: points for name, points in scalars(run).items() if not name.startswith("samples_per_s")}


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory):
    """For each script, the run of a training that nobody has interrupted."""
    runs = {}
    for script in MODULES:
        folder = tmp_path_factory.mktemp("alone")
        process = start(root, folder, script, *tiny(root, script))
        _, err = process.communicate()
        assert process.returncode == 0, err
        runs[script] = only_run(folder)
    return runs


# ---- Resuming ------------------------------------------------------------------------------------------------------------------


@needs_mujoco
@pytest.mark.parametrize("script", MODULES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_ends_as_the_one_that_was_left_alone(root, tmp_path, alone, script, number):
    """Bit for bit, after a signal that it answers to and after one that gives it no time; with the same curves."""
    process = start(root, tmp_path, script, *tiny(root, script))
    while not list(tmp_path.glob("runs/*/previous.pt")):  # the second checkpoint is there
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate()
    run = only_run(tmp_path)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number, err
        assert out.splitlines()[-1].endswith(f"--resume {run.relative_to(tmp_path)}")
    before = load(run / "latest.pt")["samples"]
    assert BATCH * 8 <= before < BATCH * 24
    process = start(root, tmp_path, script, "--resume", run.relative_to(tmp_path))
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert only_run(tmp_path) == run  # in the same folder
    for name in ("latest.pt", "previous.pt", "best.pt", "policy.pt"):
        assert differences(load(run / name), load(alone[script] / name)) == [], name
    one, two = curves(run), curves(alone[script])
    assert [samples for samples, _ in one["reward/total"]] == list(range(BATCH, BATCH * 24 + 1, BATCH))
    assert one == two
    assert json.loads(out.splitlines()[-1]) == load(run / "latest.pt")["metrics"]
    (note,) = run.glob("args_resumed_*.json")
    assert "--resume" in json.loads(note.read_text())["command"]


@needs_mujoco
def test_a_second_signal_ends_the_process_at_once(root, tmp_path):
    """In the middle of an iteration that takes long."""
    process = start(root, tmp_path, SCRIPT, *tiny(root, SCRIPT, num_steps=4000, total_timesteps=8 * 4000 * 3))
    while not list(tmp_path.glob("runs/*/args.json")):
        assert process.poll() is None
        time.sleep(0.01)
    for _ in range(2):
        time.sleep(0.3)
        assert process.poll() is None  # the first one is only noted
        process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == -signal.SIGTERM
    assert not list(tmp_path.glob("runs/*/latest.pt"))


@needs_mujoco
def test_a_run_can_be_made_longer_and_nothing_else_of_it_be_changed(root, tmp_path, alone, run_script):
    run = tmp_path / "runs/kept"
    shutil.copytree(alone[SCRIPT], run)
    refused(run_script(SCRIPT, "--resume", run), "complete", "--total-timesteps")
    refused(run_script(SCRIPT, "--resume", run, "--gamma", "0.5"), "gamma 0.95", "0.5")
    refused(run_script(SCRIPT, "--resume", run, "--num-envs", "16"), "num_envs 8")
    refused(run_script(SCRIPT, "--resume", run, "--evaluate", "--checkpoint", run / "latest.pt"), "--resume")
    assert differences(load(run / "latest.pt"), load(alone[SCRIPT] / "latest.pt")) == []
    result = run_script(SCRIPT, "--resume", run, "--total-timesteps", BATCH * 26, "--save-interval", 1)
    assert result.code == 0, result.err
    longer = load(run / "latest.pt")
    assert (longer["samples"], longer["args"]["total_timesteps"]) == (BATCH * 26, BATCH * 26)
    assert load(run / "previous.pt")["samples"] == BATCH * 25
    assert [samples for samples, _ in curves(run)["reward/total"]] == list(range(BATCH, BATCH * 26 + 1, BATCH))


@needs_mujoco
def test_what_cannot_be_resumed(root, tmp_path, alone, run_script):
    refused(run_script(SCRIPT, "--resume", "gone"), "gone", "no such folder")
    (tmp_path / "young").mkdir()
    refused(run_script(SCRIPT, "--resume", "young"), "young", "start it anew")
    run = tmp_path / "run"
    shutil.copytree(alone[SCRIPT], run)
    shutil.copy(run / "policy.pt", run / "latest.pt")
    os.remove(run / "previous.pt")
    refused(run_script(SCRIPT, "--resume", run), "networks only")
    refused(run_script(HEADING, "--resume", run), "amp_ppo_isaacgym", "amp_ppo_heading")
    shutil.copy(alone[SCRIPT] / "latest.pt", run / "latest.pt")
    content = load(run / "latest.pt")
    torch.save({**content, "args": {**content["args"], "old_option": 1}}, run / "latest.pt")
    refused(run_script(SCRIPT, "--resume", run), "old_option")
    part = content["training"]["processes"][0]
    part["replay"] = part["replay"][:, :7]
    torch.save(content, run / "latest.pt")
    refused(run_script(SCRIPT, "--resume", run, "--total-timesteps", BATCH * 30), "does not fit")


@needs_mujoco
def test_the_checkpoint_before_serves_when_the_latest_is_broken(root, tmp_path, alone, run_script):
    run = tmp_path / "run"
    shutil.copytree(alone[SCRIPT], run)
    data = (run / "latest.pt").read_bytes()
    (run / "latest.pt").write_bytes(data[: len(data) // 2])
    result = run_script(SCRIPT, "--resume", run)
    assert result.code == 0, result.err
    assert differences(load(run / "latest.pt"), load(alone[SCRIPT] / "latest.pt")) == []


# ---- Checkpoints of others -----------------------------------------------------------------------------------------------------


@needs_mujoco
def test_the_field_in_which_a_checkpoint_differs_is_named(root, tmp_path, alone, run_script):
    content = load(alone[SCRIPT] / "policy.pt")
    cases = {
        "format 4": dict(content, format=4),
        "amp_ppo_walrus": dict(content, script="amp_ppo_walrus"),
        "an option tail": dict(content, args=dict(content["args"], tail=1)),
        "bodies differ: tail": dict(
            content, character=dict(content["character"], bodies=content["character"]["bodies"] + ["tail"])
        ),
        "dofs differ: their order": dict(
            content, character=dict(content["character"], dofs=content["character"]["dofs"][::-1])
        ),
        "actor.0.weight holds NaN": dict(
            content, agent={k: x / 0 if k == "actor.0.weight" else x for k, x in content["agent"].items()}
        ),
    }
    for words, changed in cases.items():
        torch.save(changed, tmp_path / "other.pt")
        refused(run_script(SCRIPT, "--no-cuda", "--evaluate", "--checkpoint", "other.pt"), "other.pt", words)


@needs_mujoco
def test_checkpoints_of_format_1_can_be_evaluated(root, tmp_path, alone, run_script):
    """They had neither a character nor the options that came later."""
    content = load(alone[SCRIPT] / "policy.pt")
    later = ("resume", "save_interval", "max_skipped", "detect_anomaly", "anneal")
    old = {key: value for key, value in content.items() if key != "character"}
    old.update(format=1, args={name: value for name, value in content["args"].items() if name not in later})
    torch.save(old, tmp_path / "old.pt")
    result = run_script(SCRIPT, "--no-cuda", "--evaluate", "--checkpoint", "old.pt")
    assert result.code == 0, result.err
    mine, theirs = json.loads(result.out.splitlines()[-1]), content["metrics"]
    assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-4)


@needs_mujoco
def test_the_best_policy_is_kept_apart(alone):
    for script, name, sign in ((SCRIPT, "pose_error_m", -1), (HEADING, "task_return", 1)):
        run = alone[script]
        points = scalars(run)[f"eval/{name}"]
        best = max(points, key=lambda point: sign * point[1])
        saved = load(run / "best.pt")
        assert saved["samples"] == best[0] and saved["metrics"][name] == pytest.approx(best[1], rel=1e-5)
        assert load(run / "policy.pt")["samples"] == points[-1][0] == BATCH * 24
        assert os.path.getsize(run / "best.pt") < os.path.getsize(run / "latest.pt") / 2


# ---- The disk ------------------------------------------------------------------------------------------------------------------


def test_a_file_that_could_not_be_written_leaves_the_old_one_and_no_rest(tmp_path, monkeypatch):
    path = str(tmp_path / "latest.pt")
    amp.write_checkpoint(path, {"n": 1}, path + ".old")
    amp.write_checkpoint(path, {"n": 2}, path + ".old")

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        amp.write_checkpoint(path, {"n": 3}, path + ".old")
    assert (load(path)["n"], load(path + ".old")["n"]) == (2, 1)
    assert sorted(os.listdir(tmp_path)) == ["latest.pt", "latest.pt.old"]


@pytest.mark.parametrize("fault", ["full", "vanished"])
def test_what_could_not_be_written_is_made_up_for(tmp_path, monkeypatch, capsys, fault):
    """Curves and checkpoints while the disk is full, or after the folder has gone, are there once it can be written again."""
    run = str(tmp_path / "run")
    os.mkdir(run)
    folder, original, full = amp.RunFolder(run, 0), amp.write_checkpoint, [False]

    def write(*arguments):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*arguments)

    monkeypatch.setattr(amp, "write_checkpoint", write)
    saved = []
    for n in range(1, 13):
        if fault == "vanished" and n == 6:
            shutil.rmtree(run)
        full[0] = fault == "full" and 4 <= n <= 8
        folder.log(n, {"x": float(n)})
        if n % 2 == 0:
            saved.append(folder.save(n, {"n": n}))
    folder.writer.close()
    assert saved == [True, fault == "vanished", fault == "vanished", fault == "vanished", True, True]
    assert load(os.path.join(run, "latest.pt"))["n"] == 12
    first = 5 if fault == "vanished" else 1  # what was on the disk for good has gone with the folder
    assert scalars(run)["x"] == [(n, float(n)) for n in range(first, 13)]
    lines = [line for line in capsys.readouterr().err.splitlines() if "written" in line]
    assert len(lines) == (2 if fault == "full" else 0)
    assert not lines or ("No space" in lines[0] and "again" in lines[1])


# ---- Broken physics and NaN ----------------------------------------------------------------------------------------------------


def train(module, root, tmp_path, monkeypatch, **changes):
    """A training in this process -> its last checkpoint, its curves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [SCRIPT])
    module.main(*module.parse_args(tiny(root, module.SCRIPT + ".py", **changes)))
    run = only_run(tmp_path)
    return load(run / "latest.pt"), scalars(run)


@needs_mujoco
@pytest.mark.parametrize("module", [amp, heading])
def test_broken_physics_costs_an_episode_and_nothing_else(root, tmp_path, monkeypatch, module):
    """NaN, infinities and absurd numbers in every part of a state: counted, reset, and never seen by a network or normaliser."""
    step, broken = module.MujocoSim.step, [0]

    def breaking(sim, targets):
        state, diverged = step(sim, targets)
        if broken[0] < 60 and len(targets) == 8:
            part = state[broken[0] % 5].view(8, -1)
            part[broken[0] % 8, broken[0] % part.shape[1]] = (math.nan, math.inf, -math.inf, 1e30)[broken[0] % 4]
            broken[0] += 1
        return state, diverged

    monkeypatch.setattr(module.MujocoSim, "step", breaking)
    saved, log = train(module, root, tmp_path, monkeypatch, eval_interval=0)
    assert saved["training"]["progress"]["diverged"] == 60 == log["episode/diverged"][-1][1]
    assert all(x.isfinite().all() for x in saved["agent"].values())
    assert (
        saved["training"]["processes"][0]["replay"].isfinite().all() and saved["training"]["progress"]["skipped"] == 0
    )
    assert all(
        math.isfinite(value)
        for name, points in log.items()
        if name != "policy/explained_variance"
        for _, value in points
    )
    assert saved["agent"]["obs_norm.var"].max() < 1e4


@needs_mujoco
def test_a_character_in_the_sky_is_no_motion(walk, monkeypatch):
    args = amp.Args(cuda=False, num_envs=4, target_speed=1.0)
    amp.check_args(args)
    env = amp.AMPEnv(args, walk, amp.MujocoSim(args, walk.character, 4, torch.device("cpu")), 4, 300)
    env.reset(0)
    env.sim.state[2, 3] = 150.0  # its height [m]
    before = env.obs.clone()
    _, reward, terminated, _, info = env.step(torch.zeros(4, 28))
    assert info["diverged"].tolist() == terminated.tolist() == [False, False, True, False]
    assert torch.equal(info["final_obs"][2], before[2]) and reward[2] == 0 and (reward[:2] > 0).all()


@needs_mujoco
def test_updates_with_gradients_that_are_not_finite_are_skipped_and_counted(root, tmp_path, monkeypatch):
    """A NaN in the discriminator's loss in iterations 3 and 4 of 6 leaves it as it was; everything else goes on."""
    losses, calls, seen = amp.disc_losses, [0], []

    def poisoned(disc, *arguments):
        calls[0] += 1
        seen.append([x.detach().clone() for x in disc.parameters()])
        loss, *others = losses(disc, *arguments)
        return (loss * (math.nan if 5 <= calls[0] <= 8 else 1.0), *others)

    monkeypatch.setattr(amp, "disc_losses", poisoned)
    saved, log = train(amp, root, tmp_path, monkeypatch, total_timesteps=BATCH * 6, disc_updates=2)
    same = [all(map(torch.equal, one, two)) for one, two in zip(seen, seen[1:])]
    assert same == [False] * 4 + [True] * 4 + [False] * 3
    assert [value for _, value in log["policy/skipped"]] == [0, 0, 2, 4, 4, 4]
    assert saved["training"]["progress"]["skipped"] == 4 and saved["training"]["progress"]["skipped_in_a_row"] == 0
    assert all(x.isfinite().all() for x in saved["agent"].values())


@needs_mujoco
def test_a_run_that_learns_nothing_any_more_gives_up(root, tmp_path, monkeypatch):
    calls, loss = [0], amp.F.mse_loss

    def poisoned(*arguments):
        calls[0] += 1
        return loss(*arguments) * (math.nan if calls[0] > 8 * 9 else 1.0)

    monkeypatch.setattr(amp.F, "mse_loss", poisoned)
    with pytest.raises(amp.InputError, match="--learning-rate") as error:
        train(amp, root, tmp_path, monkeypatch, max_skipped=20, eval_interval=0)
    assert "\n" not in str(error.value) and "--detect-anomaly" in str(error.value)
    sound = load(only_run(tmp_path) / "latest.pt")
    assert sound["samples"] == BATCH * 8 and all(x.isfinite().all() for x in sound["agent"].values())


@needs_mujoco
@pytest.mark.filterwarnings("ignore::UserWarning")  # the place in the code, which PyTorch shows as a warning
def test_detect_anomaly_shows_where_a_gradient_becomes_nan(root, tmp_path, monkeypatch):
    """Without the option the same update is skipped."""
    loss = amp.F.mse_loss
    monkeypatch.setattr(
        amp.F, "mse_loss", lambda x, y: loss(x, y) + 0.0 * (x - x).sum().sqrt()
    )  # the root's slope at 0 is infinite
    saved, _ = train(amp, root, tmp_path, monkeypatch, total_timesteps=BATCH)
    assert saved["training"]["progress"]["skipped"] == 8
    (tmp_path / "runs").rename(tmp_path / "first")
    try:
        with pytest.raises(RuntimeError, match="returned nan values"):
            amp.main(*amp.parse_args([*tiny(root, SCRIPT, total_timesteps=BATCH), "--detect-anomaly"]))
    finally:
        torch.autograd.set_detect_anomaly(False)


# ---- Health --------------------------------------------------------------------------------------------------------------------

WELL = {"disc/accuracy_demo": 0.99, "disc/accuracy_fresh": 0.99, "disc/accuracy_replay": 0.99, "reward/style": 0.16}
WELL.update({"episode/length": 290.0, "episode/speed_m_s": 1.0})


@pytest.mark.parametrize(
    "changes, word",
    [
        ({}, ""),
        ({"reward/style": 0.01}, "saturated"),
        ({"reward/style": 0.01, "disc/accuracy_fresh": 0.9}, ""),
        ({"episode/speed_m_s": 0.1}, "stands still"),
        ({"episode/speed_m_s": 0.1, "episode/length": 30.0}, ""),  # it falls, which is another matter
    ],
)
def test_what_is_said_of_a_training(changes, word):
    for module in (amp, heading):
        said = module.training_health({**WELL, **changes}, 1.0)
        assert (word in said) if word else said == ""


def test_a_character_that_keeps_to_one_clip_is_told_of():
    visits = {"eval/visits_walk.npz": 0.97, "eval/visits_run.npz": 0.03}
    assert "one clip" in heading.training_health({**WELL, **visits}, 1.0)
    assert heading.training_health({**WELL, "eval/visits_walk.npz": 0.6, "eval/visits_run.npz": 0.4}, 1.0) == ""
    assert heading.training_health({**WELL, "eval/visits_walk.npz": 1.0}, 1.0) == ""


@needs_mujoco
def test_trouble_is_told_once(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(amp, "training_health", lambda log, speed: "it hiccups")
    train(
        amp,
        root,
        tmp_path,
        monkeypatch,
        total_timesteps=BATCH * 403,
        eval_interval=0,
        num_minibatches=1,
        update_epochs=1,
        disc_updates=1,
    )
    assert capsys.readouterr().err.count("it hiccups") == 1
