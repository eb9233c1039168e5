"""The scripts as a whole: short runs, checkpoints, evaluation, films, bad input, repeatability, and learning."""

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

import amp_ppo_heading as heading
import amp_ppo_isaacgym as amp
import command_line
import console
import curves
import motion_lib as ml
import report

SCRIPT, HEADING = "amp_ppo_isaacgym.py", "amp_ppo_heading.py"
MODULES = {SCRIPT: amp, HEADING: heading}
METRICS = {"episodes", "mean_episode_s", "fall_rate", "fall_bodies", "speed_m_s", "pose_error_m"}
METRICS |= {"task_reward", "style_reward"}
BATCH = 64  # of options()
needs_mujoco = pytest.mark.skipif(sys.version_info < (3, 10), reason="mujoco needs Python 3.10")


def options(root, **changes):
    """Command-line options of a tiny training; the default clip and character lie beside the script."""
    chosen = dict(
        num_envs=8,
        num_steps=8,
        total_timesteps=64 * 6,
        num_minibatches=4,
        hidden=(16, 16),
        disc_batch=64,
        replay_size=256,
        replay_keep=16,
        clone_updates=2,
        eval_interval=4,
        eval_episodes=2,
        eval_seconds=1,
    )
    chosen.update(changes)
    flags = ["--no-cuda"]
    for name, value in chosen.items():
        if value is not None:
            flags += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return flags


def start(root, folder, script, *flags, threads=1):
    """Start a script as a process of its own in `folder`."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONDONTWRITEBYTECODE": "1"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    return subprocess.Popen([sys.executable, str(root / script), *map(str, flags)], cwd=str(folder), env=env, **pipes)


def prepare(module, monkeypatch, folder, *flags):
    """What main of a script's module is given for these options, with `folder` as the place to work in."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, flags)])
    args, checkpoint = command_line.parse_args(module.Args, module.KIND)
    module.check_args(args)
    return args, checkpoint


def only_run(folder):
    (run,) = (folder / "runs").iterdir()
    return run


def load(path):
    return torch.load(path, weights_only=True)


def the_evaluation(folder, stem):
    """Folder in `folder` that an evaluation of the checkpoint STEM.pt has written."""
    (found,) = folder.glob(f"{stem}_2*")
    return found


def figures(result):
    """The JSON object in the last line of an output."""
    return json.loads(result.out.splitlines()[-1])


def scalars(run):
    """Everything logged: name -> list of (samples, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    tags = {re.sub("^[1-5]_", "", tag): tag for tag in events.Tags()["scalars"]}  # the number is the group's place
    return {name: [(event.step, event.value) for event in events.Scalars(tag)] for name, tag in tags.items()}


# ---- Whole runs ----


@pytest.fixture(scope="session")
def trained(root, tmp_path_factory):
    """Two trainings with the same seed, as processes with two threads and work for both: [(run folder, output)].

    The second one is the script that the first one has copied, among the modules that it has copied."""
    first, second = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    flags = options(root, num_envs=32, total_timesteps=32 * 8 * 5, hidden=(64, 64), disc_batch=512, seed=3)
    runs = []
    for home, folder in ((root, first), (second, second)):
        out, err = (process := start(home, folder, SCRIPT, *flags, threads=2)).communicate()
        assert process.returncode == 0, err
        run = only_run(folder)
        runs.append((run, out, err))
        for path in run.glob("code/**/*.*") if home == root else ():
            copy = second / path.relative_to(run / "code")
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return runs


@pytest.fixture
def checkpoint(trained, tmp_path):
    """A copy of a trained checkpoint, in tmp_path."""
    path = tmp_path / "policy.pt"
    path.write_bytes((trained[0][0] / "latest.pt").read_bytes())
    return path


@needs_mujoco
def test_what_a_training_writes(trained, root):
    run = trained[0][0]
    # what it has imported, and neither the other script nor what else lies there
    sources = {path.name for path in root.glob("*.py")} - {"amp_ppo_heading.py", "course.py"}
    shown = the_evaluation(run, "best")
    names = {path.name.split(".out.")[0] for path in run.iterdir()}
    assert names == {"args.json", "events", "latest.pt", "best.pt", "code", shown.name}
    assert {path.name for path in (run / "code").iterdir()} == {"simulators", "motions"} | sources
    assert sorted(path.name for path in shown.iterdir()) == ["figures.json", "pose_error.png", "rollouts"]
    assert len(list((shown / "rollouts").iterdir())) == 2
    for source in (
        *sources,
        *(f"simulators/{path.name}" for path in root.glob("simulators/*.py")),
        *(f"motions/{path.name}" for path in root.glob("motions/*.py")),
        *(f"motions/{path.name}" for path in root.glob("motions/view_*")),
    ):
        assert (run / "code" / source).read_bytes() == (root / source).read_bytes()
    assert re.fullmatch(r"walk__num-envs-32-[a-z0-9.-]+__[0-9-]+", run.name)
    saved = json.loads((run / "args.json").read_text())
    assert set(saved["args"]) == {field.name for field in amp.dataclasses.fields(amp.Args)}
    assert (saved["args"]["num_envs"], saved["args"]["hidden"], saved["args"]["seed"]) == (32, [64, 64], 3)
    assert saved["args"]["target_speed"] is None  # the clip says it
    assert saved["args"]["disc_updates"] == 2 and saved["processes"] == 1
    assert saved["versions"]["torch"] == torch.__version__ and "--num-envs" in saved["command"]
    assert os.listdir(run.parent.parent) == ["runs"]


@needs_mujoco
def test_what_stands_on_the_terminal_of_a_training(trained, root):
    """Five short lines, a line an evaluation, for this is no terminal; at the end the best policy: a sentence, where it
    is; on stdout what to type, and JSON."""
    run, out, err = trained[0]
    lines = re.sub(r"\n  ", " ", err).splitlines()  # that were too long for 80 columns
    assert lines[:2] == [
        "walk.npz, imitated by humanoid.xml; simulator mujoco, learning on cpu",
        "a fall is ground contact of any body but right_foot, left_foot",
    ]
    script = shlex.quote(str(root / SCRIPT))  # as it was called
    assert lines[2:5] == [
        "1,280 samples, 32 characters at a time",
        "the run is kept in the folder below; Ctrl-C saves and stops; to go on:",
        f"python {script} --resume runs/{run.name}",
    ]
    number = r"(\d*\.\d+|-)"
    judged = rf" samples, falls \d+ %, error {number} m, speed -?{number} m/s, \d+ samples/s"
    assert re.fullmatch("1,024" + judged, lines[5]) and re.fullmatch("1,280" + judged, lines[6])
    samples = load(run / "best.pt")["samples"]
    assert re.fullmatch(rf"trained for \d+\.\d minutes; the best policy, after {samples:,} samples:", lines[7])
    told = rf"pose error {number} m, speed -?{number} of .97 m/s(, tempo {number})?"
    assert re.fullmatch(rf"2 episodes, (no|\d) falls?, {told}", lines[8])
    advice = "falls count as 1 m a step; most clips take 1 to 10 M: --total-timesteps 3000000"
    early = [advice] * (" 2 falls" in lines[8])
    assert lines[9:-2] == early and "nan" not in err + out and "\r" not in err
    assert lines[-2].startswith(f"runs/{run.name}/best_2")
    assert lines[-2].endswith(": figures.json, pose_error.png, rollouts; no page (AMP_PAGE=no)")
    assert lines[-1] == "the same policy on other episodes:"
    assert [line for line in err.splitlines() if len(line) > 80 and run.name not in line] == []
    command, last = out.splitlines()
    assert command == f"python {script} --evaluate --checkpoint runs/{run.name}/best.pt --seed 1003"
    told = json.loads((the_evaluation(run, "best") / "figures.json").read_text())["figures"]
    assert json.loads(last) == pytest.approx(told, rel=5e-4) and json.loads(last) != told  # four significant digits


@needs_mujoco
def test_a_line_a_minute_where_there_is_no_bar(root, run_script, monkeypatch):
    """A minute is made to have no length: a line after each iteration, and that of the evaluation after the last."""
    monkeypatch.setattr(console, "PAUSES", (0.0, 0.0))
    done = run_script(SCRIPT, *options(root, total_timesteps=BATCH * 3, eval_interval=0))
    told = re.findall(r"^(\d+)/192(?:, up for \d+/300 steps)?, \d+ samples/s$", done.err, re.M)
    assert (done.code, told) == (0, [str(BATCH * i) for i in (1, 2, 3)])
    assert len(re.findall(rf"^{BATCH * 3} samples, falls ", done.err, re.M)) == 1


@needs_mujoco
def test_the_progress_bar_fits_a_terminal(root, tmp_path):
    """Of 80 columns, and nothing of it is "nan"."""
    program = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    flags = options(root, total_timesteps=BATCH * 3, eval_interval=2)
    command = [
        sys.executable,
        "-c",
        program,
        "sh",
        "-c",
        'stty cols 80 rows 24; exec "$0" "$@"',
        sys.executable,
        root / SCRIPT,
    ]
    done = subprocess.run([*map(str, command), *flags], cwd=str(tmp_path), stdout=subprocess.PIPE, check=True)
    said = done.stdout.decode()
    bars = re.findall("[\r\n][^\r\n]* left, [^\r\n]*", said)
    assert bars and max(map(len, bars)) <= 81 and "nan" not in said
    assert bars[0].endswith("? left, 0/192")
    assert re.search(r"00:00 left, 192/192(, up for \d+/300 steps)?, error \d?\.\d{2,3} m$", bars[-1])
    assert "samples/s" not in said  # no line for an evaluation
    assert json.loads(said.splitlines()[-1])["episodes"] == 2


@needs_mujoco
def test_a_run_repeats_itself_from_its_folder(trained):
    """The copied script starts where the copied modules lie, and gives the same numbers, and the same copies."""
    (run, out, _), (again, told, _) = trained
    commands = [json.loads((folder / "args.json").read_text())["command"] for folder in (run, again)]
    assert commands[0][1:] == commands[1][1:] and commands[0][0] != commands[1][0]
    assert told.splitlines()[-1] == out.splitlines()[-1]
    one, two = ({path.relative_to(x): path.read_bytes() for path in x.glob("code/**/*.py")} for x in (run, again))
    assert one == two and len(one) > 15


@needs_mujoco
def test_what_a_training_logs(trained):
    log = scalars(trained[0][0])
    wanted = {f"reward/{name}" for name in ("task", "style", "total")}
    wanted |= {f"eval/{name}" for name in METRICS - {*curves.SAME}}
    wanted |= {f"disc/{what}_{side}" for what in ("loss", "accuracy") for side in ("demo", "agent")}
    wanted |= {f"policy/{name}" for name in ("kl", "loss", "value_loss")}
    wanted |= {
        "policy/learning_rate",
        "disc/grad_penalty",
        "disc/skipped",
        "policy/skipped",
        "episode/length",
        "episode/speed_m_s",
    }
    wanted |= {"episode/diverged", "episode/falls_per_step"}
    assert wanted - set(log) == set()
    assert all(np.isfinite(value) for values in log.values() for _, value in values)
    assert [value > 0 for _, value in log["samples_per_s"]] == [True] * 5
    assert [samples for samples, _ in log["reward/style"]] == [256, 512, 768, 1024, 1280]
    assert [samples for samples, _ in log["eval/pose_error_m"]] == [1024, 1280]  # every fourth iteration, and the last
    for (_, task), (_, style), (_, total) in zip(log["reward/task"], log["reward/style"], log["reward/total"]):
        assert total == pytest.approx(task + 2 * style, rel=1e-5)  # the default weight


@needs_mujoco
def test_the_options_stand_among_the_curves(trained):
    """As text, and in args.json."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trained[0][0]
    events = EventAccumulator(str(run))
    events.Reload()
    (text,) = events.Tensors("options/text_summary")
    told = json.loads(text.tensor_proto.string_val[0].decode().strip("`\n"))
    assert told == json.loads((run / "args.json").read_text()) and told["args"]["num_envs"] == 32


@needs_mujoco
def test_the_same_seed_gives_the_same_run(trained):
    """That another one gives another run stands in test_learning.py."""
    (first, out_one, _), (second, out_two, _) = trained
    assert out_one.splitlines()[-1] == out_two.splitlines()[-1]
    one, two = scalars(first), scalars(second)
    assert set(one) == set(two)
    for name in one:
        if "samples_per_s" not in name:
            assert one[name] == two[name], name
    one, two = (load(run / "latest.pt") for run in (first, second))
    agent = one["shared"]["agent"]
    assert set(agent) == set(two["shared"]["agent"]) and one["metrics"] == two["metrics"]
    for name, value in agent.items():
        assert torch.equal(value, two["shared"]["agent"][name]), name


@needs_mujoco
def test_training_changes_all_networks(trained):
    agent = load(trained[0][0] / "latest.pt")["shared"]["agent"]
    for net in ("actor", "critic", "disc"):
        biases = [value for name, value in agent.items() if name.startswith(net) and name.endswith("bias")]
        assert len(biases) == 3 and all(bias.abs().max() > 0 for bias in biases)  # they start at zero
    for norm in ("obs_norm", "disc_norm", "return_norm"):
        assert agent[f"{norm}.count"] > 1000


@needs_mujoco
@pytest.mark.drawn
def test_evaluation(trained, run_script, tmp_path, checkpoint, character):
    flags = ("--no-cuda", "--evaluate", "--checkpoint", "policy.pt", "--eval-episodes", 3)
    code, out, err = run_script(SCRIPT, *flags)
    assert code == 0, err
    metrics = json.loads(out.splitlines()[-1])
    assert METRICS <= set(metrics) and metrics["episodes"] == 3
    assert all(np.isfinite(value) for value in metrics.values() if isinstance(value, (int, float)))
    assert 0 < metrics["mean_episode_s"] <= 1 and 0 <= metrics["fall_rate"] <= 1  # a second, as the training was told
    shown = the_evaluation(tmp_path / "runs" / "evaluations", "policy")
    clips = sorted((shown / "rollouts").iterdir())
    assert len(clips) == 3
    for path in clips:
        clip = ml.load_clip(str(path), character.body_names)
        assert (clip.fps, clip.loop) == (30.0, "clamp") and 2 <= len(clip.root_position) <= 31
        with np.load(path, allow_pickle=False) as file:
            assert "policy.pt" in str(file["source"]) and str(file["license"])
    assert sorted(os.listdir(tmp_path)) == ["policy.pt", "runs"]
    assert os.listdir(tmp_path / "runs") == ["evaluations"] and os.listdir(shown.parent) == [shown.name]  # no run
    assert sorted(os.listdir(shown)) == ["figures.json", "pose_error.png", "rollouts"]
    assert (shown / "pose_error.png").read_bytes()[:4] == b"\x89PNG"
    assert len(out.splitlines()) == 1 and err.count("\n") == 2 + (
        "falls count" in err
    )  # a pipe gets JSON and nothing else
    assert checkpoint.read_bytes() == (trained[0][0] / "latest.pt").read_bytes()


@pytest.mark.parametrize("terminal, said", [(True, "evaluating 32 episodes of 20 s ...\n"), (False, "")])
def test_an_evaluation_says_on_a_terminal_that_it_has_begun(monkeypatch, capsys, terminal, said):
    values = dict(evaluate=True, eval_episodes=32, eval_seconds=20.0, cuda=True, resume=None)
    parsed = (types.SimpleNamespace(**values), {})
    monkeypatch.setattr(command_line, "guard_terminal", lambda: None)
    monkeypatch.setattr(command_line, "parse_args", lambda *_, **__: parsed)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with pytest.raises(SystemExit) as end:
        command_line.launch(lambda args, checkpoint: (), None, "", lambda args: None)
    assert (end.value.code, *capsys.readouterr()) == (0, "", said)


@needs_mujoco
def test_evaluation_repeats_the_one_of_the_training(trained, run_script, checkpoint, tmp_path):
    checkpoint.write_bytes((trained[0][0] / "best.pt").read_bytes())
    flags = ("--no-cuda", "--evaluate", "--checkpoint")
    result = run_script(SCRIPT, *flags, "policy.pt")
    assert result.code == 0
    mine, theirs = figures(result), json.loads(trained[0][1].splitlines()[-1])
    assert {name: mine[name] for name in theirs} == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    # options of the command line win over those of the training
    metrics = figures(run_script(SCRIPT, *flags, "policy.pt", "--eval-seconds", "0.2", "--eval-episodes", "4"))
    assert metrics["episodes"] == 4 and metrics["mean_episode_s"] <= 0.2 + 1e-6
    # what belongs to the machine is not taken from a checkpoint of another one
    content = load(checkpoint)
    elsewhere = dict(content["args"], cuda=True, sim="isaacgym", track=True, capture_video=True)
    torch.save(dict(content, args=elsewhere), checkpoint)
    assert figures(run_script(SCRIPT, "--no-cuda", "--evaluate", "--checkpoint", "policy.pt")) == mine


# pretrained policy: script, episodes, largest pose error [m], what it is there for and at least how much of it.
# The clips of run, jump and crawl have 3.55, .59 and .19 m/s, those of cartwheel to back-flip .377, .779, .493, .613
# and .572 turns a second.
PRETRAINED = {
    "walk": (SCRIPT, 8, 0.04, "task_reward", 0.9),
    "heading": (HEADING, 8, 0.1, "task_return", 0.65),
    "run": (SCRIPT, 4, 0.05, "speed_m_s", 3.3),
    "jump": (SCRIPT, 4, 0.05, "speed_m_s", 0.5),
    "crawl": (SCRIPT, 4, 0.05, "speed_m_s", 0.12),
    "cartwheel": (SCRIPT, 4, 0.05, "turns_per_s", 0.34),
    "spinkick": (SCRIPT, 4, 0.05, "turns_per_s", 0.7),
    "roll": (SCRIPT, 4, 0.07, "turns_per_s", 0.43),
    "dance_a": (SCRIPT, 4, 0.05, "turns_per_s", 0.55),
    "backflip": (SCRIPT, 4, 0.08, "turns_per_s", 0.52),
    "dance_b": (SCRIPT, 4, 0.07, "style_reward", 0.5),
    "kick": (SCRIPT, 4, 0.06, "style_reward", 0.5),
    "punch": (SCRIPT, 4, 0.05, "style_reward", 0.5),
    "getup_facedown": (SCRIPT, 4, 0.1, "style_reward", 0.5),
    "getup_faceup": (SCRIPT, 4, 0.15, "style_reward", 0.5),
}
ONCE = {"kick": 1.533, "punch": 2.133, "getup_facedown": 3.033, "getup_faceup": 3.767}  # clips that do not loop [s]
FROM_THE_START = {*ONCE, "backflip", "dance_b"}  # elsewhere some episodes end in a fall (pretrained/README.md)


@needs_mujoco
@pytest.mark.parametrize("name", PRETRAINED)
def test_the_pretrained_policies_do_what_they_are_there_for(run_script, root, tmp_path, name):
    assert sorted(PRETRAINED) == sorted(path.stem for path in (root / "pretrained").glob("*.pt"))
    script, episodes, error, figure, least = PRETRAINED[name]
    (tmp_path / "policy.pt").write_bytes((root / f"pretrained/{name}.pt").read_bytes())
    flags = ("--no-cuda", "--evaluate", "--checkpoint", "policy.pt", "--eval-episodes", episodes, "--eval-seconds", 8)
    result = run_script(script, *flags, *["--reset-mode", "start"] * (name in FROM_THE_START))
    assert result.code == 0, result.err
    metrics = figures(result)
    assert metrics["fall_rate"] == 0 and metrics["mean_episode_s"] == pytest.approx(ONCE.get(name, 8), abs=1e-3)
    assert metrics["pose_error_m"] < error and metrics[figure] > least


@needs_mujoco
@pytest.mark.parametrize(
    "changes", [dict(task="none", disc_loss="lsgan", reset_mode="hybrid"), dict(motion_file="set.json", style_weight=0)]
)
def test_other_ways_to_train(run_script, root, tmp_path, changes):
    names = (("run", 1), ("kick", 2), ("crawl", 0.5))
    clips = [dict(file=str(root / f"motions/{name}.npz"), weight=weight) for name, weight in names]
    (tmp_path / "set.json").write_text(json.dumps({"clips": clips}))
    result = run_script(SCRIPT, *options(root, total_timesteps=128, **changes))
    assert result.code == 0, result.err
    metrics = figures(result)
    assert METRICS <= set(metrics) and all(np.isfinite(metrics[name]) for name in METRICS)
    log = scalars(only_run(tmp_path))
    if changes.get("task") == "none":
        assert metrics["task_reward"] == 0 and {value for _, value in log["reward/task"]} == {0.0}
        assert all(0 <= value <= 1 for _, value in log["reward/style"])  # the range of the least-squares reward
    else:
        assert all(value > 0 for _, value in log["reward/task"])
        assert log["reward/total"] == log["reward/task"]


@needs_mujoco
@pytest.mark.parametrize("script", MODULES)
def test_a_discriminator_that_sees_ten_states(run_script, root, tmp_path, script):
    """Training and evaluation, of clips that do not loop, too."""
    clips = [dict(file=str(root / f"motions/{name}.npz")) for name in ("walk", "kick")]
    (tmp_path / "set.json").write_text(json.dumps({"clips": clips}))
    flags = options(root, motion_file="set.json", disc_steps=10, total_timesteps=BATCH * 2)
    result = run_script(script, *flags)
    assert result.code == 0, result.err
    run = only_run(tmp_path)
    agent = load(run / "latest.pt")["shared"]["agent"]
    states = 105  # numbers that the discriminator sees of one
    assert agent["disc.0.weight"].shape == (16, 10 * states) and agent["disc_norm.mean"].shape == (10 * states,)
    again = run_script(script, "--evaluate", "--checkpoint", run / "best.pt")
    trained = figures(result)
    judged = {name: x for name, x in figures(again).items() if name in trained}
    assert again.code == 0 and judged == pytest.approx(trained, rel=1e-3, abs=1e-4)
    log = scalars(run)
    assert [samples for samples, _ in log["disc/grad_penalty"]] == [BATCH, BATCH * 2]
    assert all(np.isfinite(value) for values in log.values() for _, value in values)


@needs_mujoco
@pytest.mark.parametrize("script", MODULES)
def test_evaluations_between_iterations_do_not_change_the_training(root, tmp_path, monkeypatch, signals, script):
    """Stepped by hand, with an evaluation whenever it pleases, and left alone."""
    module = MODULES[script]
    logs = []
    for name in ("alone", "evaluated"):
        (tmp_path / name).mkdir()
        changes = dict(eval_interval=0, eval_episodes=4, eval_seconds=0.5, total_timesteps=BATCH * 3)
        args, _ = prepare(module, monkeypatch, tmp_path / name, *options(root, **changes))
        log = []
        for agent, env, scalars in module.main(args):
            log.append(scalars)
            if name == "evaluated":
                metrics, clips, errors, sums = module.evaluate(agent, env, args)
                assert metrics["episodes"] == 4 and len(clips) == 4 and errors.shape[1] == 14
                assert sums["style_reward"].shape == (4,)
        logs.append(log)
    assert len(logs[0]) == 3
    for one, two in zip(*logs):
        assert {name: repr(x) for name, x in one.items()} == {name: repr(x) for name, x in two.items()}
    numbers = {name: x for name, x in metrics.items() if isinstance(x, (int, float)) and name not in curves.SAME}
    assert numbers == {name[5:]: x for name, x in logs[1][-1].items() if name.startswith("eval/")}


@needs_mujoco
@pytest.mark.parametrize("word", ["", "-", "-c"])
def test_main_from_a_prompt(root, tmp_path, monkeypatch, signals, word):
    """There is no script that could be copied then; modules are, and the training runs."""
    args, _ = prepare(amp, monkeypatch, tmp_path, *options(root, total_timesteps=BATCH * 2, eval_seconds=0.1))
    monkeypatch.setattr(sys, "argv", [word])  # from a prompt, from a pipe, from python -c
    assert len(list(amp.main(args))) == 2
    assert (only_run(tmp_path) / "code" / SCRIPT).exists()


# ---- Films, Weights & Biases ----

STUB = """
import sys
{fault}
open(sys.argv[2], "w").write(" ".join(sys.argv[1:]))
"""


@needs_mujoco
@pytest.mark.parametrize("fault", ["", "sys.exit('error: no OpenGL here')"], ids=["film", "none"])
def test_a_film_that_fails_costs_the_film_and_not_the_training(run_script, root, tmp_path, monkeypatch, fault):
    """It is said once; the roll-out that was to be filmed is there. What draws is played by a stub."""
    pytest.importorskip("imageio_ffmpeg", reason="pip install -r requirements-test.txt")
    (tmp_path / "render.py").write_text(STUB.format(fault=fault))
    monkeypatch.setattr(report, "RENDER", str(tmp_path / "render.py"))
    result = run_script(SCRIPT, *options(root, eval_interval=2), "--capture-video")
    assert result.code == 0 and METRICS <= set(figures(result))
    run = only_run(tmp_path)
    names = [f"episode_{iteration}" for iteration in (2, 4, 6)]
    assert sorted(path.name for path in run.glob("episode_*.npz")) == [f"{name}.npz" for name in names]
    films = sorted(path.name for path in run.glob("episode_*.mp4"))
    assert films == ([] if fault else [f"{name}.mp4" for name in names])
    assert result.err.count("no OpenGL here") == (1 if fault else 0)
    assert len(scalars(run)["eval/pose_error_m"]) == 3 and load(run / "latest.pt")["samples"] == BATCH * 6
    # nor does it cost the figures of an evaluation
    result = run_script(SCRIPT, "--evaluate", "--checkpoint", run / "latest.pt", "--capture-video")
    *_, shown = sorted(run.glob("latest_2*"))
    assert (shown / "rollouts/001.npz").exists()
    assert result.code == 0 and METRICS <= set(figures(result))
    if fault:
        assert (
            result.err.count("\n") == 4 + ("falls count" in result.err)
            and "film.mp4: not written: error: no OpenGL here" in result.err
        )
    else:
        words = (shown / "film.mp4").read_text().split()
        assert words[0].endswith("rollouts/000.npz") and words[2] == "--ghost"
        assert words[4:6] == ["--fast", "--character-file"]


@needs_mujoco
def test_a_film(run_script, root, tmp_path):
    """By motions/render.py, where there is an OpenGL; otherwise it says what to install, and the training ends well."""
    pytest.importorskip("imageio_ffmpeg", reason="pip install -r requirements-test.txt")
    result = run_script(
        SCRIPT, *options(root, eval_interval=0, total_timesteps=BATCH, eval_seconds=0.2), "--capture-video"
    )
    assert result.code == 0, result.err
    film = only_run(tmp_path) / "episode_1.mp4"
    assert film.exists() == ("not written" not in result.err)
    if film.exists():
        assert film.read_bytes()[4:8] == b"ftyp"
    else:
        assert "libosmesa6" in result.err


@needs_mujoco
@pytest.mark.parametrize("words", ["the codec has gone", ""])
def test_libraries_that_raise_what_they_like_cost_no_training(run_script, root, tmp_path, monkeypatch, words):
    pytest.importorskip("imageio_ffmpeg", reason="pip install -r requirements-test.txt")

    def film(*arguments):
        raise ZeroDivisionError(words)

    monkeypatch.setattr(report, "film_episode", film)
    flags = options(root, eval_interval=1, eval_seconds=0.1, total_timesteps=BATCH * 3)
    result = run_script(SCRIPT, *flags, "--capture-video")
    assert result.code == 0, result.err
    assert result.err.count(f"not written ({words or 'ZeroDivisionError'})") == 1
    assert load(only_run(tmp_path) / "latest.pt")["samples"] == BATCH * 3


WANDB = """
import glob, json, os

def init(**arguments):
    if "WANDB_FAULT" in os.environ:
        raise RuntimeError(os.environ["WANDB_FAULT"])
    assert not glob.glob("runs/*/events*")  # what is logged before goes by it
    with open("wandb.json", "w") as file:
        json.dump(arguments, file)
"""


@needs_mujoco
def test_weights_and_biases(run_script, root, tmp_path, monkeypatch):
    """It is told of the run before the first curve, and gets what TensorBoard gets."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "wandb")  # so that the stub is forgotten after the test
    flags = options(root, total_timesteps=BATCH)
    assert run_script(SCRIPT, *flags).code == 0 and not (tmp_path / "wandb.json").exists()
    only_run(tmp_path).rename(tmp_path / "untracked")
    result = run_script(SCRIPT, *flags, "--track", "--exp-name", "mine")
    assert result.code == 0, result.err
    told = json.loads((tmp_path / "wandb.json").read_text())
    run = only_run(tmp_path)
    assert told["name"] == run.name and run.name.startswith("mine__walk__")
    assert told["sync_tensorboard"] is True and told["config"]["num_envs"] == 8
    assert scalars(run).keys() == scalars(tmp_path / "untracked").keys()
    # what it raises costs no training
    monkeypatch.setenv("WANDB_FAULT", "not\nlogged in")
    result = run_script(SCRIPT, *flags, "--track", "--exp-name", "other")
    assert result.code == 0 and result.err.count("Weights & Biases: not logged in; the training goes on") == 1


@needs_mujoco
@pytest.mark.parametrize("seconds", [0.01, 0.04])
def test_the_shortest_evaluation(run_script, root, tmp_path, character, seconds):
    """An episode of one control step; every roll-out is still a clip that can be read."""
    result = run_script(SCRIPT, *options(root, total_timesteps=BATCH, eval_seconds=seconds))
    assert result.code == 0, result.err
    assert figures(result)["mean_episode_s"] == 0.03333
    run = only_run(tmp_path)
    result = run_script(SCRIPT, "--no-cuda", "--evaluate", "--checkpoint", run / "latest.pt")
    assert result.code == 0, result.err
    *_, shown = sorted(run.glob("latest_2*"))
    clips = sorted((shown / "rollouts").iterdir())
    assert len(clips) == 2
    for path in clips:
        ml.load_clip(str(path), character.body_names)


# ---- Inside a run: what the main loop hands from part to part ----


@pytest.fixture
def watched(monkeypatch, root, tmp_path, signals):
    """watched(changes) runs a training in this process -> what its parts were given, for every iteration.

    That is (what the environment and the networks say, the arguments of gae, the batches of the discriminator)."""
    agents, steps, iterations, seen = [], [], [], []

    class Agent(amp.Agent):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            agents.append(self)
            self.disc.register_forward_pre_hook(note)

    class Env(amp.AMPEnv):
        def step(self, action):
            before = self.obs().clone()
            result = super().step(action)
            if self.num_envs == 8:  # not the one of the evaluations
                steps.append((before, *result))
            return result

    def note(disc, inputs):
        if torch.is_grad_enabled():
            seen.append(inputs[0].detach().clone())

    def gae(reward, value, next_value, terminated, done, gamma, lam):
        agent = agents[-1]
        transitions = torch.stack([info["disc_obs"] for *_, info in steps])  # (T, N, P)
        expected = dict(
            value=agent.value(torch.stack([before for before, *_ in steps])),
            after=agent.value(torch.stack([obs for _, obs, *_ in steps])),
            final=agent.value(torch.stack([info["final_obs"] for *_, info in steps])),
            task=torch.stack([task for _, _, task, *_ in steps]),
            style=amp.style_reward(agent.logit(transitions), "bce"),
            terminated=torch.stack([terminated for _, _, _, terminated, _, _ in steps]),
            truncated=torch.stack([truncated for *_, truncated, _ in steps]),
            transitions=agent.disc_norm(transitions).flatten(0, 1),
        )
        given = dict(
            reward=reward, value=value, next_value=next_value, terminated=terminated, done=done, gamma=gamma, lam=lam
        )
        iterations.append((expected, given, list(zip(seen[::2], seen[1::2]))))
        steps.clear()
        seen.clear()
        return original(reward, value, next_value, terminated, done, gamma, lam)

    original = amp.gae
    for name, value in dict(Agent=Agent, AMPEnv=Env, gae=gae).items():
        monkeypatch.setattr(amp, name, value)

    def run(**changes):
        for _ in amp.main(*prepare(amp, monkeypatch, tmp_path, *options(root, **changes))):
            pass
        return iterations

    return run


@needs_mujoco
def test_rewards_and_values_that_advantages_are_made_of(watched):
    iterations = watched(episode_steps=5, style_weight=3.0, gamma=0.9, gae_lambda=0.8, update_epochs=1)
    assert len(iterations) == 6
    time_outs = 0
    for expected, given, _ in iterations:
        close = dict(atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(given["reward"], expected["task"] + 3.0 * expected["style"], **close)
        torch.testing.assert_close(given["value"], expected["value"], **close)
        assert torch.equal(given["terminated"], expected["terminated"])
        done = expected["terminated"] | expected["truncated"]
        assert torch.equal(given["done"], done)
        torch.testing.assert_close(given["next_value"][~done], expected["after"][~done], **close)
        # a time-out is bootstrapped from the state before the reset, which is another one than the state after it
        over = expected["truncated"]
        torch.testing.assert_close(given["next_value"][over], expected["final"][over], **close)
        assert not over.any() or (expected["final"][over] - expected["after"][over]).abs().max() > 1e-3
        assert (given["gamma"], given["lam"]) == (0.9, 0.8)
        time_outs += int(over.sum())
    assert time_outs > 40


@needs_mujoco
@pytest.mark.parametrize("disc_steps", [2, 5])
def test_what_the_discriminator_is_shown(watched, disc_steps):
    """As many transitions of the clip as of the character: one half from this iteration, the other from all so far."""
    iterations = watched(disc_batch=64, disc_updates=2, disc_noise=0, replay_size=10_000, disc_steps=disc_steps)
    old, exactly = 0, "donot_use_mm_for_euclid_dist"
    for expected, _, batches in iterations:
        assert len(batches) == 2
        for demo, agent in batches:
            assert demo.shape == agent.shape == (64, 105 * disc_steps)
            nearest = torch.cdist(agent, expected["transitions"], compute_mode=exactly).amin(1)
            # normalised by the same moments as those that the reward is computed from
            assert nearest[:32].max() < 1e-3
            old += int((nearest[32:] > 1e-3).sum())
            assert torch.cdist(demo, agent, compute_mode=exactly).min() > 1e-3
    # in iteration k of six a share (k - 1) / k of the replayed ones is older: 228 of 384
    assert 160 < old < 300


# ---- Bad input ----


def refused(result, *words):
    """One line on stderr that says what is wrong, exit code 2."""
    assert result.code == 2 and "Traceback" not in result.out + result.err
    assert result.err.startswith("error: ") and result.err.endswith("\n") and result.err.count("\n") == 1, result.err
    assert [word for word in words if str(word) not in result.err] == [], result.err


def unit(frames):
    return np.tile([0.0, 0.0, 0.0, 1.0], (frames, 15, 1))


BAD_CLIPS = {
    "lacks an array": dict(rotations=None),
    "NaN": dict(root_position=np.full((5, 3), np.nan)),
    "non-unit quaternions": dict(rotations=2 * unit(5)),
    "one frame": dict(root_position=np.zeros((1, 3)), rotations=unit(1)),
    "another skeleton": dict(body_names=np.array([f"body{i}" for i in range(15)])),
    "fewer bodies": dict(body_names=np.array(["pelvis", "torso"]), rotations=unit(5)[:, :2]),
}


@needs_mujoco
@pytest.mark.parametrize("arrays", BAD_CLIPS.values(), ids=BAD_CLIPS.keys())
def test_bad_motions(run_script, root, tmp_path, write_clip, arrays):
    path = write_clip("bad.npz", **arrays)
    refused(run_script(SCRIPT, *options(root, motion_file=path)), path)
    assert os.listdir(tmp_path) == ["bad.npz"]


@needs_mujoco
def test_clips_that_are_too_short_for_the_discriminator(run_script, root, tmp_path, write_clip):
    path = write_clip("short.npz", frames=4)  # .3 s
    refused(run_script(SCRIPT, *options(root, motion_file=path, disc_steps=11)), path, "0.333 s")
    assert os.listdir(tmp_path) == ["short.npz"]
    result = run_script(SCRIPT, *options(root, motion_file=path, disc_steps=10, total_timesteps=BATCH))
    assert result.code == 0, result.err


@needs_mujoco
def test_bad_motion_files(run_script, root, tmp_path, write_clip, payload):
    good = write_clip("good.npz", frames=50)
    data = open(good, "rb").read()
    os.remove(good)
    proof = tmp_path / "executed"
    (tmp_path / "truncated.npz").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.npz").write_text("no clip")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(payload(proof)))
    names = np.array([payload(proof)] * 15, dtype=object)
    write_clip("object.npz", body_names=names)
    (tmp_path / "set.json").write_text('{"clips": [{"file": "gone.npz"}]}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "folder").mkdir()
    before = sorted(os.listdir(tmp_path))
    for name in ("missing.npz", *before):
        fault = "gone.npz" if name == "set.json" else name
        refused(run_script(SCRIPT, *options(root, motion_file=name)), fault)
    assert sorted(os.listdir(tmp_path)) == before


@needs_mujoco
def test_bad_character_files(run_script, root, tmp_path):
    text = (root / "motions/humanoid.xml").read_text()
    (tmp_path / "text.xml").write_text("no character")
    (tmp_path / "handless.xml").write_text(text.replace('name="left_hand"', 'name="left_claw"'))
    (tmp_path / "nan.xml").write_text(text.replace('stiffness="', 'stiffness="nan', 1))
    for name in ("missing.xml", "text.xml", "handless.xml", "nan.xml"):
        refused(run_script(SCRIPT, *options(root, character_file=name)), name if name != "handless.xml" else "left_")
    assert not (tmp_path / "runs").exists()


BAD_OPTIONS = {
    "more minibatches than rows": (dict(num_minibatches=128), "--num-minibatches"),
    "negative style weight": (dict(style_weight=-1), "--style-weight"),
    "negative gradient penalty": (dict(grad_penalty=-0.1), "--grad-penalty"),
    "NaN": (dict(learning_rate="nan"), "--learning-rate"),
    "infinity": (dict(target_speed="inf"), "--target-speed"),
    "no environments": (dict(num_envs=0), "--num-envs"),
    "negative environments": (dict(num_envs=-8), "--num-envs -8: expected a number from 1 to 100,000,000"),
    "a layer without units": (dict(hidden=(16, 0)), "--hidden"),
    "negative seed": (dict(seed=-1), "--seed"),
    "no episode": (dict(eval_episodes=0), "--eval-episodes"),
    "no substep": (dict(substeps=0), "--substeps"),
    "discount of one": (dict(gamma=1), "--gamma"),
    "lambda above one": (dict(gae_lambda=1.5), "--gae-lambda"),
    "no divergence": (dict(target_kl=0), "--target-kl"),
    "a single state": (dict(disc_steps=1), "--disc-steps"),
    "less than a batch": (dict(total_timesteps=63), "--total-timesteps"),
    "a speed without the task": (dict(task="none", target_speed=1.0), "--target-speed"),
    "a body that is not there": (dict(fall_bodies="tail"), "--fall-bodies"),
    "Isaac Gym": (dict(sim="isaacgym"), "--sim isaacgym"),
    "a policy that is not there": (dict(checkpoint="policy.pt"), "'policy.pt': no such file or folder"),
}


@needs_mujoco
@pytest.mark.parametrize("changes, word", BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_options_that_cannot_work(run_script, root, tmp_path, changes, word):
    refused(run_script(SCRIPT, *options(root, **changes)), word)
    assert os.listdir(tmp_path) == []


@needs_mujoco
def test_options_that_this_machine_cannot_serve(run_script, root, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    told = run_script(SCRIPT, *options(root)[1:], "--cuda")
    refused(told, "--cuda: PyTorch finds no CUDA device")
    for module in ("wandb", "imageio_ffmpeg"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    refused(run_script(SCRIPT, *options(root), "--track"), "wandb")
    refused(run_script(SCRIPT, *options(root), "--capture-video"), "requirements-motions.txt")
    refused(run_script(SCRIPT, *options(root), "--evaluate"), "--checkpoint")
    refused(run_script(SCRIPT, *options(root), "--evaluate", "--checkpoint", ""))  # an empty variable of a shell script
    assert os.listdir(tmp_path) == []


NONE = "there is no such option."
WORDS = {
    "--learning-rate abc": "--learning-rate abc: it takes a number",
    "--seed 1 --num_envs=many": "--num_envs=many: it takes a whole number",
    "--target-speed -1 5": "--target-speed -1 5: it takes a number",
    "--task heading": "--task heading: it takes one of speed, none",
    "--hidden 5": "--hidden 5: it takes 2 whole numbers",
    "--no-cuda 3": "--no-cuda 3: it takes no value",
    "--resume --seed 2": "--resume: it takes a word",
    "--total-timestep 5": f"--total-timestep: {NONE} Perhaps you meant --total-timesteps. --help shows all.",
    "--xyzzy 4": f"--xyzzy: {NONE} --help shows all.",
    "foo --seed 1": "unexpected argument foo. --help shows all.",
    "walk.npz": "unexpected argument walk.npz. --help shows all.",
}


@pytest.mark.parametrize("words, said", WORDS.items(), ids=WORDS.keys())
def test_words_that_are_no_options(capsys, words, said):
    """One line: what is wrong, where, what to do; nothing of tyro's own complaint."""
    with pytest.raises(amp.InputError) as error:
        command_line.parse_args(amp.Args, amp.KIND, words.split())
    assert str(error.value) == said and capsys.readouterr() == ("", "")
    assert command_line._explain(error.value) == (f"error: {said}", 2)


@needs_mujoco
def test_the_folder_of_a_run_is_its_best_policy(tmp_path, monkeypatch):
    """latest.pt where there is none; --resume goes on from the folder."""
    read = []
    monkeypatch.setattr(command_line, "load_checkpoint", lambda path, name: read.append(path) or {"args": {}})
    evaluate = ["--no-cuda", "--evaluate", "--checkpoint", str(tmp_path)]
    for name in ("latest.pt", "best.pt"):
        (tmp_path / name).touch()
        args, _ = command_line.parse_args(amp.Args, amp.KIND, evaluate)
        assert read.pop() == args.checkpoint == str(tmp_path / name)
    command_line.parse_args(amp.Args, amp.KIND, ["--no-cuda", "--resume", str(tmp_path)])
    assert read == [str(tmp_path)]


def test_help_on_a_terminal_that_is_too_narrow(run_script, monkeypatch):
    """tyro would look for room for a word without end."""
    monkeypatch.setenv("COLUMNS", "3")
    result = run_script(SCRIPT, "--help")
    assert result.code == 0 and result.out.count("--total-timesteps") == 2  # it is among the first, above all others
    assert "L_disc" not in result.out and "\n\n\n" not in result.out  # no formulas, which are in the script


@needs_mujoco
def test_a_batch_of_one_row(run_script, root, tmp_path):
    """Whether it is refused or trained on: it does not end in networks full of NaN."""
    result = run_script(SCRIPT, *options(root, num_envs=1, num_steps=1, num_minibatches=1, total_timesteps=3))
    if result.code:
        refused(result)
    else:
        agent = load(only_run(tmp_path) / "latest.pt")["shared"]["agent"]
        assert all(torch.isfinite(value).all() for value in agent.values())


@needs_mujoco
def test_bad_checkpoints(run_script, root, tmp_path, checkpoint, payload):
    data = checkpoint.read_bytes()
    proof = tmp_path / "executed"
    content = load(checkpoint)
    agent = content["shared"]["agent"]

    def with_agent(agent):
        return dict(content, shared=dict(content["shared"], agent=agent))

    (tmp_path / "truncated.pt").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(payload(proof)))
    torch.save({"kind": payload(proof)}, tmp_path / "payload.pt")
    torch.save(with_agent(payload(proof)), tmp_path / "hidden.pt")
    torch.save({"a": 1}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(dict(content, kind="another"), tmp_path / "foreign.pt")
    torch.save({key: value for key, value in content.items() if key != "shared"}, tmp_path / "agentless.pt")
    torch.save({key: value for key, value in content.items() if key != "args"}, tmp_path / "argless.pt")
    torch.save(with_agent({k: x / 0 if k == "actor.0.weight" else x for k, x in agent.items()}), tmp_path / "nan.pt")
    before = sorted(os.listdir(tmp_path))
    flags = ("--no-cuda", "--evaluate", "--checkpoint")
    for name in ("missing.pt", *before):
        if name != "policy.pt":
            refused(run_script(SCRIPT, *flags, name), name)
    refused(run_script(SCRIPT, *flags, tmp_path), tmp_path)
    # what can be read, and does not fit
    character = content["character"]
    longer = dict(character, bodies=character["bodies"] + ["tail"])
    unfit = {
        "of another version of this script: option tail is 1": dict(content, args=dict(content["args"], tail=1)),
        "bodies differ: tail": dict(content, character=longer),
        "dofs differ: their order": dict(content, character=dict(character, dofs=character["dofs"][::-1])),
        "does not fit these options: agent.actor.0.weight": dict(content, args=dict(content["args"], hidden=(8, 8))),
        "actor.0.weight": with_agent({f"old.{name}": value for name, value in agent.items()}),
        "agent is a int": with_agent(7),
        "options: 'action_offset'": dict(content, shared={"agent": agent}),
    }
    for words, changed in unfit.items():
        torch.save(changed, tmp_path / "policy.pt")
        refused(run_script(SCRIPT, *flags, "policy.pt"), words)
    torch.save(content, tmp_path / "policy.pt")
    # options that contradict a good one
    for words in (("--hidden", "32", "32"), ("--disc-steps", "3"), ("--keep-course",)):
        needed = words[0].replace("--keep", "--no-keep")
        refused(run_script(SCRIPT, *flags, "policy.pt", *words), f"policy.pt needs {needed}")
    refused(run_script(HEADING, *flags, "policy.pt"), "policy.pt", "amp_ppo_isaacgym", "amp_ppo_heading")
    assert sorted(os.listdir(tmp_path)) == before


@needs_mujoco
def test_bad_input_of_the_process(root, tmp_path, payload):
    """Once more as a process of its own: what the shell sees, warnings of the libraries included."""
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(payload(tmp_path / "executed"), protocol=4))
    out, err = (process := start(root, tmp_path, SCRIPT, "--evaluate", "--checkpoint", "pickle.pt")).communicate()
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: pickle.pt") and err.count("\n") == 1, err
    assert os.listdir(tmp_path) == ["pickle.pt"]


# ---- Learning ----


@pytest.fixture
def learn(root, tmp_path, monkeypatch, signals):
    """learn(option=value, ...) trains for some seconds -> name of a scalar -> its means over fifths of the training."""
    chosen = dict(
        num_envs=128,
        hidden=(64, 64),
        gamma=0.95,
        action_std_log=-2.3,
        update_epochs=4,
        learning_rate=1e-3,
        target_kl=0.08,
    )
    chosen.update(disc_updates=1, disc_batch=512, replay_size=100_000, replay_keep=64, eval_interval=0, seed=1)

    def run(**changes):
        args, _ = prepare(amp, monkeypatch, tmp_path, *options(root, **{**chosen, **changes}))
        logs = [log for _, _, log in amp.main(args)]
        return {name: [part.mean() for part in np.array_split([log[name] for log in logs], 5)] for name in logs[0]}

    return run


@needs_mujoco
def test_a_short_training_learns_the_task(learn):
    """The clip walks at 1 m/s, the task is to stop: the task reward at least doubles with any of the seeds tried."""
    log = learn(target_speed=0, style_weight=0.5, disc_noise=0, total_timesteps=80_000)
    assert log["reward/task"][4] > 1.5 * log["reward/task"][0]
    assert abs(log["episode/speed_m_s"][4]) < 0.7 * log["episode/speed_m_s"][0]
    # meanwhile the discriminator learns to tell the character from the clip, and the critic to foresee the returns
    assert log["disc/accuracy_demo"][4] > 0.9 and log["disc/accuracy_demo"][4] + log["disc/accuracy_agent"][4] > 1.5
    assert log["policy/value_loss"][4] < 0.2  # of the variance of all returns so far


@needs_mujoco
def test_a_short_training_earns_style_reward(learn):
    """While the discriminator stands still, style rewards can be compared: they grow by half with any seed."""
    log = learn(task="none", disc_learning_rate=1e-9, disc_batch=128, total_timesteps=40_000)
    assert np.mean(log["reward/style"][3:]) > 1.2 * log["reward/style"][0]
