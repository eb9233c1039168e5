"""console, curves: what stands on the terminal, names of runs and curves, the last line."""

import inspect
import json
import math
import os
import re
import sys
import time
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from tqdm import tqdm

import console
from curves import Log, curve_name
from training_run import Run

ARGS = dict(exp_name=None, motion_file="motions/walk.npz", seed=3, sim="mujoco", num_envs=256, target_speed=None)
ARGS.update(total_timesteps=3_000_000, evaluate=False, checkpoint=None, out=None)


def args_of(**changes):
    return SimpleNamespace(**{**ARGS, **changes})


def test_numbers_in_sentences():
    assert [console.short(x) for x in (0.972, 1.04, -0.5, 0.0, 10.0, 12)] == [
        ".97",
        "1.04",
        "-.50",
        ".00",
        "10.00",
        "12.00",
    ]
    assert [console.short(x, 3) for x in (0.0123, math.nan, math.inf, None, "a")] == [".012", "-", "-", "-", "-"]
    assert [console.short(x, 0) for x in (0.0, 3.4, 100.0)] == ["0", "3", "100"]


@pytest.mark.parametrize(
    "words, changes, name",
    [
        ([], {}, "walk__T"),
        (["--no-cuda", "--eval-seconds=2", "--save-interval", "9"], {}, "walk__T"),
        (["--total-timesteps", "1000000", "--no-cuda"], {}, "walk__total-timesteps-1000000__T"),
        (["--style-weight", "0.5", "--seed", "3"], {}, "walk__style-weight-0.5-seed-3__T"),
        (["--cuda", "--gamma", "0.9", "--exp-name", "a"], dict(exp_name="a"), "a__walk__gamma-0.9__T"),
        (["--motion-file", "x/y z/"], dict(motion_file="x/y z/"), "y z__T"),
        (
            ["--task", "none", "--substeps", "4", "--keep-course", "--total-timesteps", "9"],
            {},
            "walk__task-none-substeps-4-keep-course-total__T",
        ),
        (["--fall-bodies", "none"] * 9, dict(exp_name="a/../b"), None),
    ],
)
def test_names_of_runs_begin_with_what_tells_them_apart(monkeypatch, words, changes, name):
    monkeypatch.setattr(sys, "argv", ["amp.py", *words])
    found = console.run_name(args_of(**changes), "a/amp_ppo_isaacgym.py", "T")
    assert found == name or (name is None and len(found) < 80 and os.sep not in found)
    for script, word in (("amp_ppo_heading.py", "heading"), ("x/my_amp.py", "my_amp")):
        assert console.run_name(args_of(**changes), script, "T") == f"{found[:-1]}{word}__T"


def test_the_start_in_five_lines_of_eighty_columns(monkeypatch, walk, all_motions):
    monkeypatch.setattr(sys, "argv", ["/somewhere/amp.py"])
    again = "python amp.py --resume runs/walk__seed-3__20261125-231240"
    falls = "a fall is ground contact of any body but right_foot, left_foot"
    lines = console.start_lines(args_of(), walk, falls, (0, 3_000_000), "learning on cpu", again)
    assert len(lines) == 5 and max(map(len, "\n".join(lines).splitlines())) <= 80
    assert lines[0] == "walk.npz, imitated by humanoid.xml; simulator mujoco, learning on cpu"
    assert lines[2] == "3,000,000 samples, 256 characters at a time"
    assert lines[3].endswith("Ctrl-C saves and stops; to go on:") and lines[4] == again
    again = f"python amp.py --resume runs/{'a ' * 50}"  # whole, though it is longer: it is to be copied
    lines = console.start_lines(args_of(), all_motions, falls + ", x" * 40 + "\x1b", (2048, 4096), "", again)
    assert "clips)" in lines[0] and lines[2].startswith("4,096 samples, 2,048 done") and "\x1b" not in "".join(lines)
    assert [line for line in "\n".join(lines).splitlines() if len(line) > 80] == [again]
    lines = console.start_lines(args_of(checkpoint="x/walk.pt"), walk, falls, (0, 4096), "", "")
    assert lines[2] == "4,096 samples, starting from x/walk.pt, 256 characters at a time"


def test_a_command_can_be_typed_as_it_stands(monkeypatch):
    """With the script as it was called, in quotes where a shell needs them, for as many processes as there are."""
    monkeypatch.setattr(sys, "argv", ["../a copy/amp.py", "--seed", "2"])
    assert console.command("--resume", "runs/a b") == "python '../a copy/amp.py' --resume 'runs/a b'"
    monkeypatch.setattr(sys, "argv", ["amp.py"])
    said = console.command("--resume", "runs/a\x1b", world=2)
    assert said == "torchrun --standalone --nproc-per-node=2 amp.py --resume 'runs/a\\x1b'"


TURNS = "32 episodes, no falls, pose error .022 m, turns 1.02 of 1.00 a cycle"
FIGURES = dict(episodes=32, fall_rate=0.0, pose_error_m=0.0223, speed_m_s=1.0412)


@pytest.mark.parametrize(
    "changes, options, said",
    [
        ({}, dict(target_speed=0.97), "32 episodes, no falls, pose error .022 m, speed 1.04 of .97 m/s"),
        (
            dict(fall_rate=1 / 32),
            dict(target_speed=2.0),
            "32 episodes, 1 fall, pose error .022 m, speed 1.04 of 2.00 m/s",
        ),
        (
            dict(episodes=1, fall_rate=1.0),
            dict(target_speed=1.0),
            "1 episode, 1 fall, pose error .022 m, speed 1.04 of 1.00 m/s",
        ),
        (
            dict(task_return=0.87, commanded_speed_m_s=1.2, path_speed_m_s=1.3, course_error_deg=9.6),
            {},
            "32 episodes, no falls, pose error .022 m, speed 1.30 of 1.20 m/s, task return .87, course 10 degrees off",
        ),
        (dict(pose_error_m=math.nan), {}, "32 episodes, no falls, pose error - m, speed 1.04 of .97 m/s"),
        # the clip's speed
        (dict(tempo=1.155), {}, "32 episodes, no falls, pose error .022 m, speed 1.04 of .97 m/s, tempo 1.16"),
        (dict(fall_rate=1.0), {}, "32 episodes, 32 falls, pose error .022 m, speed 1.04 of .97 m/s"),
        (
            dict(fall_rate=1.0),
            dict(total_timesteps=299_008),
            "32 episodes, 32 falls, pose error .022 m, speed 1.04 of .97 m/s\n"
            "falls count as 1 m a step; most clips take 1 to 10 M: --total-timesteps 3000000",
        ),
        (dict(turns_per_cycle=1.02, clip_turns_per_cycle=1.0), dict(target_speed=0.05), TURNS),
        ({}, dict(target_speed=0.05), TURNS.split(", turns")[0]),  # who need not get anywhere has no speed
        (
            dict(fall_rate=0.5),
            dict(total_timesteps=9),
            "32 episodes, 16 falls, pose error .022 m, speed 1.04 of .97 m/s",
        ),
    ],
)
def test_an_evaluation_in_a_sentence(walk, changes, options, said):
    assert console.sentence(args_of(**options), walk, {**FIGURES, **changes}) == said


def test_an_evaluation_in_a_line():
    said = console.verdict(20_480, {**FIGURES, "fall_rate": 0.031})
    assert said == "20,480 samples, falls 3 %, error .022 m, speed 1.04 m/s" and "nan" not in console.verdict(1, {})


def test_how_far_a_training_is():
    """What is not known is left out."""
    assert [console.amount(n) for n in (0, 999, 9999, 299_008, 1_230_848, 20_000_000, 1.5e9)] == [
        *("0", "999", "9999", "299k", "1.23M", "20M", "1.5G"),
    ]
    assert console.progress(0, 299_008) == console.progress(0, 299_008, math.nan, 300) == "0/299k"
    assert console.progress(4096, 10**7, 78.4, 300) == "4096/10M, up for 78/300 steps"
    assert console.progress(262_144, 399_360, 66.0, 300, 0.8618) == "262k/399k, up for 66/300 steps, error .86 m"
    assert console.progress(262_144, 399_360, 300.0, 300, 0.0121) == "262k/399k, up for 300/300, error .012 m"


@pytest.mark.parametrize("total", [4096, 399_360, 3_000_000, 12_345_678, 123_456_789, 5_123_456_789])
@pytest.mark.parametrize("longest", [150, 300, 1000])
@pytest.mark.parametrize("left", [9, 3600, 100 * 3600 - 1])
def test_of_80_columns_the_bar_has_20_at_every_time(total, longest, left):
    """The line is made as tqdm makes it. Where all of it is long, it goes without a word."""
    (form,) = re.findall('bar_format="(.*?)"', inspect.getsource(Run.begin))
    for done in (0, total // 100, total // 3, total - 1):
        for length in (math.nan, 3.2, longest / 2, float(longest)):
            for error in (math.nan, 0.0123, 0.0996, 0.862, 1.234):
                text = console.progress(done, total, length, longest, error)
                elapsed = left * done / max(total - done, 1)
                line = tqdm.format_meter(done, total, elapsed, ncols=80, bar_format=form, prefix=text)
                assert len(line) == 80 and len(line.split(" left, ")[0].rpartition(" ")[0]) >= 20, line


def test_the_last_line_is_json_with_four_digits(walk, capsys, tmp_path, monkeypatch):
    figures = dict(FIGURES, speed_m_s=0.971234567, lag_s=math.nan, judged="the clip", parts=[0.123456, {"a": 1e-9 / 3}])
    console.tell(args_of(), walk, figures, str(tmp_path / "none"))
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert out.count("\n") == 1 and told["speed_m_s"] == 0.9712 and told["lag_s"] is None
    assert (told["episodes"], told["judged"], told["parts"]) == (32, "the clip", [0.1235, {"a": 3.333e-10}])
    assert err == "32 episodes, no falls, pose error .022 m, speed .97 of .97 m/s\n"
    for name in ("index.html", "grid.png", "film.mp4"):
        (tmp_path / name).touch()
    monkeypatch.delenv("AMP_PAGE")
    console.tell(args_of(), walk, figures, str(tmp_path), "python it again")
    again, last = capsys.readouterr()
    assert last.splitlines() == [
        err[:-1],
        f"{tmp_path}/index.html: the motion; open it in a browser",
        f"{tmp_path}: film.mp4, grid.png",
        "the same policy on other episodes:",
    ]
    assert again.splitlines() == ["python it again", out[:-1]]


def test_where_an_evaluation_went_and_why_it_has_no_page(walk, capsys, tmp_path, monkeypatch):
    """--out of a folder that exists goes to another; AMP_PAGE=no leaves the page out."""
    (tmp_path / "mine-2").mkdir()
    (tmp_path / "mine-2/figures.json").touch()

    def told(out):
        console.tell(args_of(out=out and str(tmp_path / out)), walk, FIGURES, str(tmp_path / "mine-2"))
        return capsys.readouterr().err.splitlines()[1:]

    monkeypatch.delenv("AMP_PAGE")
    written = f"{tmp_path}/mine-2: figures.json"
    assert told(None) == told("mine-2") == [written]
    assert told("mine") == [f"{tmp_path}/mine exists; written to {tmp_path}/mine-2", written]
    monkeypatch.setenv("AMP_PAGE", "no")
    assert told(None) == [f"{written}; no page (AMP_PAGE=no)"]


def test_groups_of_curves_are_in_order():
    names = ["disc/a", "policy/a", "reward/b", "eval/c", "episode/d", "samples_per_s"]
    order = ["1_eval/c", "2_reward/b", "3_policy/a", "4_disc/a", "5_episode/d", "samples_per_s"]
    assert sorted(map(curve_name, names)) == order


def test_figures_that_are_no_numbers_are_no_curves():
    log = Log()
    assert log.keep("eval", {"a": 1.5, "b": "walk", "c": [1, 2], "d": 2}) == {"eval/a": 1.5, "eval/d": 2}
    assert log.smooth == {"eval/a": 1.5, "eval/d": 2}


def test_a_clock_that_is_set_back_is_no_speed(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    progress = {"iteration": 0, "samples": 0, "metrics": {}}
    now = time.monotonic()
    args = args_of(episode_steps=300)
    run = SimpleNamespace(progress=progress, batch=64, counted=now - 2, told=(now, 0, 9), bar=MagicMock(), args=args)
    run.bar.total = 128
    Run.count(run, 1, {"episode/length": 1.0}, "")
    assert 0 < run.rate <= 32 and progress["samples"] == 64
    run.bar.set_description_str.assert_called_once_with("64/128, up for 1/300 steps", refresh=False)


def test_where_there_is_no_bar_the_first_line_comes_early(monkeypatch, capsys):
    """A run of 40 s says something: after 10 s, then each minute."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = {"iteration": 0, "samples": 0, "metrics": {}}
    run = SimpleNamespace(progress=progress, batch=100, counted=0.0, told=(0.0, 0, console.PAUSES[0]), bar=MagicMock())
    run.args, run.rank, run.bar.total, run.bar.disable = args_of(episode_steps=300), 0, 15_000, True
    run._tell = lambda text: Run._tell(run, text)
    said = []
    for second in range(1, 150):
        clock[0] = float(second)
        Run.count(run, second, {"episode/length": 5.0}, "")
        said += [second] * bool(err := capsys.readouterr().err)
        assert not err or err.endswith(", up for 5/300 steps, 100 samples/s\n")
    assert said == [10, 70, 130]
