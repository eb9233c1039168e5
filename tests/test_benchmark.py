"""benchmark/time_to_walk.py, table.py and heading.py, as a whole, with tiny trainings; skrl_amp.py without skrl;
learning_curves.py and falls_by_start.py.

Where no signal is sent to them, they run in this process; what they start are processes, but with `at_once`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import amp_ppo_isaacgym as amp
import motion_lib as ml
import report

pytest.importorskip("mujoco")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmark"))
import falls_by_start
import heading
import learning_curves
import skrl_amp
import table
import time_to_walk
from table import Row, check_options, minutes, print_table

TINY = "--num-envs 4 --num-steps 4 --num-minibatches 2 --total-timesteps 320 --hidden 8 8 --disc-batch 8 --no-cuda"


@pytest.fixture
def main(monkeypatch, tmp_path, capsys, signals):
    """main(module, *options) -> (out, err) of a benchmark."""

    def run(module, *options):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [module.__file__, *options])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capsys.readouterr()
        module.main()
        return capsys.readouterr()

    return run


@pytest.fixture
def at_once(monkeypatch, run_script):
    """What a benchmark starts has run in this process, and ended."""

    def start(script, options, home, core, name):
        result = run_script(script, *options, folder=home)
        for kind in ("out", "err"):
            (Path(home) / f"{name}.{kind}").write_text(getattr(result, kind))
        return SimpleNamespace(poll=lambda: result.code, returncode=result.code)

    for module in (table, heading):
        monkeypatch.setattr(module, "start", start)


@pytest.mark.parametrize("error, reached", [(2.0, True), (1e-9, False)])
def test_time_to_walk(main, tmp_path, error, reached):
    """In a tenth of a second nobody falls, and the pose error is some centimetres."""
    own = ["--seeds", "3", "--every", "16", "--error", str(error), "--out", str(tmp_path / "out.jsonl")]
    said, _ = main(time_to_walk, *own, *TINY.split(), "--eval-seconds", "0.1")
    (record,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert record["seed"] == 3 and record["error"] == error and "--seed 3" in record["command"]
    rows = [line for line in said.splitlines() if line.startswith(("| 3 |", "| median |", "| worst |"))]
    assert len(rows) == 3
    if reached:
        assert 0 < record["seconds"] < 120 and 16 <= record["samples"] <= 320
        assert record["metrics"]["fall_rate"] == 0 and record["metrics"]["pose_error_m"] <= error
        assert f"{record['seconds']:.1f}" in rows[0] and "not reached" not in said
    else:
        assert record["seconds"] is None and record["samples"] is None
        assert all(row.count("not reached") >= 2 for row in rows)
    assert not (tmp_path / "runs").exists()  # trained elsewhere


# ---- table.py ----


def places(tmp_path):
    return ["--folder", str(tmp_path / "runs"), "--out", str(tmp_path / "out.jsonl"), "--seeds", "3"]


def records_of(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def test_table(root, tmp_path, main):
    """Two clips at a time; what is done is not run again; the policy that is judged is the best of the training."""
    options = [*places(tmp_path), "--clips", "walk", "spin"]
    options += [*TINY.split(), "--eval-seconds", "0.1", "--eval-interval", "10"]
    said, errors = main(table, *options)
    assert errors == ""
    records = records_of(tmp_path)
    assert {record["clip"] for record in records} == {"walk", "spin"}
    for record in records:
        assert f"--motion-file motions/{record['clip']}.npz" in record["command"] and "--task none" in record["command"]
        assert "best.pt --seed 1003 --out evaluation_" in record["evaluation"] and record["seed"] == 3
        assert record["samples"] == 320 and record["curves"]["samples"] == [160, 320] and record["minutes"] > 0
        assert len(record["curves"]["pose_error_m"]) == 2 and record["metrics"]["episodes"] == 32
        assert (root / record["run"] / "best.pt").exists() and 0 < record["metrics"]["unaligned_cycle_m"] <= 1
    assert said.count("\n+ ") + said.startswith("+ ") == 2
    rows = [line for line in said.splitlines() if line.startswith(("| walk", "| spin"))]
    assert [row.split()[1] for row in rows] == ["walk", "spin"] and rows[0].endswith("| 0.030 | 0.028 |")
    again, errors = main(table, *options)
    assert errors == "" and "+ " not in again and again.splitlines() == said.splitlines()[-len(again.splitlines()) :]
    assert main(table, *places(tmp_path), "--table")[0] == again


def test_who_ends_standing(tmp_path):
    """Roots that end .9, .69, .7 m above the ground: two of three."""
    (tmp_path / "rollouts").mkdir()
    for n, height in enumerate((0.9, 0.69, 0.7)):
        path = [[0, 0, 0.1], [0, 0, height]]
        np.savez(tmp_path / "rollouts" / f"{n:03d}.npz", root_position=path)
    assert table.ends_standing(str(tmp_path)) == 2 / 3


def test_an_interrupted_table_goes_on(root, tmp_path, main, at_once):
    """After SIGTERM the training has saved; the same command resumes it, and its minutes are those of both parts."""
    tiny = TINY.replace("--total-timesteps 320", "--total-timesteps 1600 --replay-size 99").split()
    options = [*places(tmp_path), "--clips", "walk", *tiny, "--eval-seconds", "0.1"]
    options += ["--eval-interval", "50", "--save-interval", "5"]
    command = [sys.executable, str(root / "benchmark/table.py"), *options]
    child = subprocess.Popen(command, cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while not list(tmp_path.glob("runs/*/runs/*/latest.pt")) and time.time() < deadline:
        time.sleep(0.05)
    child.terminate()
    child.communicate(timeout=60)
    assert child.returncode == 130 and not (tmp_path / "out.jsonl").exists()
    _, errors = main(table, *options)
    (record,) = records_of(tmp_path)
    assert errors == "" and record["curves"]["samples"] == [800, 1600]
    (run,) = tmp_path.glob("runs/*/runs/*")
    assert len(list(run.glob("args_resumed_*.json"))) == 1
    assert record["curves"]["minutes"] == sorted(record["curves"]["minutes"])


def test_a_folder_of_other_options_is_refused(tmp_path):
    row = Row("walk", 3, ["--gamma", "0.9"])
    run = tmp_path / "runs/NAME"
    run.mkdir(parents=True)
    check_options(row, str(tmp_path))  # nothing is saved there yet
    (run / "latest.pt").touch()
    (run / "args.json").write_text(json.dumps({"command": ["script.py", *row.options()]}))
    check_options(row, str(tmp_path))
    with pytest.raises(SystemExit, match="NAME was begun with other options"):
        check_options(row._replace(extra=[]), str(tmp_path))


def test_a_row_of_the_table(capsys):
    """Means and spreads over seeds, of their last runs; what one lacks is left empty; clips in the list's order."""
    known = {"options": [], "samples": 3e6, "commit": "abc", "machine": "M"}

    def record(clip, seed, minutes, falls, **figures):
        return {
            **known,
            "clip": clip,
            "seed": seed,
            "minutes": minutes,
            "metrics": {"episodes": 32, "fall_rate": falls / 32, **figures},
        }

    first = record("walk", 1, 5.0, 0, pose_error_m=0.010, unaligned_cycle_m=0.03, pose_error_on_clock_m=0.02, tempo=1.0)
    print_table(
        [
            record("kick", 1, 1.0, 32, pose_error_m=0.5, tempo=0.9, ends_standing=0.25),
            record("walk", 2, 9.0, 9, pose_error_m=0.9),
            first,
            record("walk", 2, 7.0, 1, pose_error_m=0.014, pose_error_on_clock_m=0.04, tempo=1.1),
        ]
    )
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    figures = "0.0120 ± 0.0028 |  |  | 0.0300 ± 0.0141 | 1.050 ± 0.071"
    assert rows[0] == f"| walk | 3.0 M | 6.0 ± 1.4 | 0, 1 of 32 | {figures} |  | 0.030 | 0.028 |"
    assert rows[1] == "| kick | 3.0 M | 1.0 | 32 of 32 | 0.5000 |  |  |  | 0.900 | 0.25 |  |  |"


def test_minutes_without_the_interruption(tmp_path):
    """Begun at 100 s, two events, a pause, gone on at 1000 s."""
    for name, moment in (("args.json", 100), ("args_resumed_1.json", 1000)):
        (tmp_path / name).write_text("{}")
        os.utime(str(tmp_path / name), (moment, moment))
    assert minutes(str(tmp_path), [130.0, 160.0, 1030.0, 1060.0]) == pytest.approx([0.5, 1.0, 1.5, 2.0])


# ---- learning_curves.py, falls_by_start.py ----


def test_the_curves_are_drawn(main, root, tmp_path):
    """A picture; of clips that were not trained, too: it is empty."""
    raw = root / "benchmark" / "table.jsonl"
    main(learning_curves, str(tmp_path / "a.png"), "--runs", str(raw), "--clips", "walk", "spin")
    main(learning_curves, str(tmp_path / "b.png"), "--runs", str(tmp_path / "none"), "--clips", "walk", "spin")
    drawn, empty = [(tmp_path / name).read_bytes() for name in ("a.png", "b.png")]
    assert drawn[:4] == empty[:4] == b"\x89PNG" and len(drawn) > len(empty)


@pytest.fixture
def evaluated(tmp_path, character, walk):
    """Folder of an evaluation: episodes that begin at .1, .1 and 1 s of the walk, of which the last two fell."""
    dt = 1 / 30
    clips = []
    for start, steps in ((0.1, 15), (0.1, 6), (1.0, 9)):
        times = start + dt * torch.arange(steps + 1)
        state = walk.state(torch.zeros(steps + 1, dtype=torch.long), times)
        turned = ml.turn_state(state, ml.quat_from_yaw(torch.tensor(0.7)))  # with a heading that is not the clip's
        clips.append(ml.Clip(30.0, "clamp", turned.root_position.numpy(), turned.rotations.numpy()))
    report.write_rollouts(str(tmp_path / "rollouts"), clips, character.body_names, "roll-out of x.pt", 15)
    return str(tmp_path)


def test_falls_by_start(main, root, evaluated, tmp_path):
    """The walk lasts 1.267 s, so that its four parts begin at 0, .32, .63 and .95 s."""
    raw = tmp_path / "falls.json"
    clip = str(root / "motions" / "walk.npz")
    said, _ = main(falls_by_start, evaluated, clip, "--parts", "4", "--out", str(raw))
    assert "| 0.00 to 0.32 | 2 | 1 | 0.2 |" in said and "| 0.95 to 1.27 | 1 | 1 | 0.3 |" in said
    assert said.splitlines()[-1] == "2 of 3 fall"
    assert [x["episodes"] for x in json.loads(raw.read_text())] == [2, 0, 0, 1]
    with pytest.raises(SystemExit, match="no rollouts"):
        main(falls_by_start, str(tmp_path / "rollouts"), clip)
    with pytest.raises(SystemExit, match="no such motion file"):
        main(falls_by_start, evaluated, str(tmp_path / "walk.npz"))


# ---- heading.py ----


def test_a_style_weight(tmp_path, main, at_once):
    """One, evaluated twice; what is done is not run again."""
    tiny = TINY.split() + ["--clone-updates", "0", "--motion-file", "motions/walk.npz"]
    options = ["--style-weights", "0.25", *tiny, "--eval-seconds", "1", "--eval-episodes", "2"]
    said, errors = main(heading, *places(tmp_path), *options)
    assert errors == ""
    (record,) = records_of(tmp_path)
    assert record["options"] == ["--style-weight", "0.25", *options[2:]] and record["samples"] == 320
    assert record["evaluation"].endswith("latest.pt --seed 1003") and "--style-weight 0.25 " in record["command"]
    assert record["metrics"]["episodes"] == record["figure_eight"]["episodes"] == 2
    assert record["figure_eight"]["commanded_speed_m_s"] == pytest.approx(1.2, abs=0.02)
    assert record["metrics"]["commanded_speed_m_s"] != record["figure_eight"]["commanded_speed_m_s"]
    again, errors = main(heading, *places(tmp_path), *options)
    assert errors == "" and "+ " not in again and said.endswith(again) and again.count("--style-weight 0.25") == 1


def test_the_table_of_headings(capsys):
    """A row for each set of options; the later run of a seed counts; a figure that an evaluation lacks is left out."""
    figures = dict(fall_rate=0.25, episodes=32, task_return=0.9, course_error_deg=8.0, pose_error_m=0.04)
    one = dict(options=[], seed=2, samples=2e6, minutes=10.0, metrics=figures, figure_eight=figures)
    one.update(commit="a", machine="m")
    other = {**one, "seed": 1, "metrics": {**figures, "task_return": 0.7, "fall_rate": 0.0}}
    third = {**one, "options": ["--style-weight", "4"], "commit": "b"}
    heading.print_table([one, {**other, "metrics": {}}, third, other])
    head, _, first, second, *rest = capsys.readouterr().out.splitlines()
    cells = dict(zip([x.strip() for x in head.split("|")], [x.strip() for x in first.split("|")]))
    assert cells["seeds"] == "1, 2" and cells["falls"] == "0, 8 of 32" and cells["samples"] == "2.0 M"
    assert cells["return"] == "0.800 ± 0.141" and cells["8: course error"] == "8.0 ± 0.0" and cells["lag [s]"] == ""
    assert second.startswith("| --style-weight 4 | 2 |") and "| 0.900 |" in second
    assert rest == ["", "commit: a, b", "", "machine: m"]


# ---- skrl_amp.py ----


def test_without_skrl(main, monkeypatch, capsys):
    monkeypatch.setattr(skrl_amp, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        main(skrl_amp)
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == ""
    assert said.err == "error: skrl is missing: pip install skrl==2.1.1\n"


def test_skrl_is_given_the_transitions_of_the_clips(root, monkeypatch, tmp_path):
    """Stand-ins in skrl's place; the agent's ends as soon as it has asked for five."""

    class Given(Exception):
        pass

    def agent(collect_reference_motions, **others):
        raise Given(collect_reference_motions(5))

    anything = SimpleNamespace(AMP=agent, **dict.fromkeys(("RandomMemory", "Box"), lambda *_, **__: None))
    anything.DeterministicMixin = anything.GaussianMixin = None
    for name in ("gymnasium.spaces", "skrl.agents.torch.amp", "skrl.memories.torch", "skrl.models.torch"):
        monkeypatch.setitem(sys.modules, name, anything)
    monkeypatch.setattr(skrl_amp, "model", lambda *_, **__: None)
    monkeypatch.setattr(skrl_amp, "settings", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    args = amp.Args(cuda=False, sim="mujoco", num_envs=4, eval_episodes=2, hidden=(8, 8), target_speed=1.0)
    with pytest.raises(Given) as given:
        next(skrl_amp.skrl_training(amp, args, 8))
    assert given.value.args[0].shape == (5, 210)


def test_the_table_beside_skrl(capsys):
    """Medians of three turns of 100 samples; ratios of turns side by side: 4, 2 and 3."""
    figures = [{"samples": 2e6, "pose_error_m": 0.03, "fall_rate": 0.5}]

    def learner(*seconds):
        turns = [{"physics": x / 2, "env": x / 4, "learner": x / 4} for x in seconds]
        return {"turns": turns, "evaluations": figures}

    raw = {"commit": "a", "machine": "m", "versions": {"skrl": "2"}, "samples_a_turn": 100}
    skrl_amp.print_table({**raw, "learners": {"ours": learner(1.0, 2.0, 4.0), "skrl": learner(4.0, 4.0, 12.0)}})
    ours, skrl = capsys.readouterr().out.splitlines()[-2:]
    assert ours == "| ours | 50 | 1.00 (1.00, 1.00) | 10000.0 | 5000.0 | 5000.0 | 0.030, 0.50 |"
    assert skrl == "| skrl | 25 | 3.00 (2.00, 4.00) | 20000.0 | 10000.0 | 10000.0 | 0.030, 0.50 |"
