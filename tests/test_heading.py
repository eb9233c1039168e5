"""amp_ppo_heading.py: what it shares with the first script, its goals and rewards, mirrored clips, nearest clips, and whole runs."""

import ast
import difflib
import json
import math
import sys

import numpy as np
import pytest
import torch

import amp_ppo_heading as heading
import amp_ppo_isaacgym as amp
import motion_lib as ml

BASE, SCRIPT, CPU = "amp_ppo_isaacgym.py", "amp_ppo_heading.py", torch.device("cpu")
needs_mujoco = pytest.mark.skipif(sys.version_info < (3, 10), reason="mujoco needs Python 3.10")


# ---- The difference between the scripts -----------------------------------------------------------------------------------------


def difference(root):
    """Every line that only one of the scripts has, in order; the lines around are left out."""
    one, two = ((root / name).read_text(encoding="utf-8").splitlines() for name in (BASE, SCRIPT))
    lines = difflib.unified_diff(one, two, lineterm="", n=0)
    return [line for line in list(lines)[2:] if not line.startswith("@@")]


def test_the_difference_is_the_file(root):
    """After a change: python tests/test_heading.py writes it anew."""
    written = (root / "tests/heading.diff").read_text(encoding="utf-8").splitlines()
    assert written == difference(root)
    assert len(written) <= 160


# what the task changes; everything else with the same name is the same text
DIFFERENT = {
    "Args": "the task's options",
    "check_args": "and their ranges",
    "task_reward": "the task",
    "AMPEnv": "goals, any yaw",
    "Evaluation": "the return of each episode, for the grid",
    "evaluate": "task return and the nearest clip instead of the clip that was started in",
    "training_health": "visits to one clip only",
    "main": "mirrored clips, the grid",
}


def definitions(root, name):
    text = (root / name).read_text(encoding="utf-8")
    return {
        node.name: ast.get_source_segment(text, node)
        for node in ast.parse(text).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }


def test_definitions_of_the_same_name_are_the_same(root):
    one, two = definitions(root, BASE), definitions(root, SCRIPT)
    assert set(one) - set(two) == set() and set(two) - set(one) == {"Goals", "evaluate_grid"}
    assert {name for name in one if one[name] != two[name]} == set(DIFFERENT)


# ---- Task ---------------------------------------------------------------------------------------------------------------------


def test_task_reward():
    progress = torch.tensor([1.0, 3.0, 0.0, -0.5])
    reward = heading.task_reward(progress, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(reward, torch.tensor([1.0, math.exp(-1.0), 0.0, 0.0]))


def make_goals(num_envs=400, **options):
    generator = torch.Generator().manual_seed(0)
    return heading.Goals(heading.Args(cuda=False, **options), num_envs, 1 / 30, generator)


def test_goals_begin_anew_with_the_episode():
    goals = make_goals(speed_range=(2.0, 3.0))
    steps = torch.zeros(400, dtype=torch.long)
    goals.update(steps)
    assert goals.heading.eq(0).all() and 2 <= goals.speed.min() < 2.1 and 2.9 < goals.speed.max() <= 3
    first = goals.speed.clone()
    for step in range(1, 90):
        goals.update(torch.where(torch.arange(400) < 200, step, 0))
    assert goals.heading[:200].std() > 0.1 and goals.heading[200:].eq(0).all()
    assert (goals.speed[200:] != first[200:]).all()


def test_goals_change_as_often_as_they_should():
    """Every 6 steps, as 0.2 s are, with a quarter of speeds drawn anew; small turns of the standard deviation asked for."""
    goals = make_goals(4000, change_seconds=(0.2, 0.2), turn_std=0.1, sharp_turn_share=0.0, speed_change_share=0.25)
    goals.update(torch.zeros(4000, dtype=torch.long))
    turned, sped = [], []
    for step in range(1, 25):
        before = goals.heading.clone(), goals.speed.clone()
        goals.update(torch.full((4000,), step))
        turned.append((goals.heading - before[0]).std().item())
        sped.append((goals.speed != before[1]).float().mean().item())
    changes = [i for i, x in enumerate(turned) if x > 0]
    assert set(np.diff(changes)) <= {6, 7} and len(changes) in (3, 4)  # float32 seconds may need a seventh step
    assert all(turned[i] == pytest.approx(0.1, rel=0.1) and sped[i] == pytest.approx(0.25, abs=0.03) for i in changes)
    assert sum(sped[i] for i in range(24) if i not in changes) == 0


def test_sharp_turns_go_anywhere():
    goals = make_goals(4000, change_seconds=(0.01, 0.01), turn_std=0.0, sharp_turn_share=0.5)
    goals.update(torch.zeros(4000, dtype=torch.long))
    goals.update(torch.ones(4000, dtype=torch.long))
    assert goals.heading.ne(0).float().mean() == pytest.approx(0.5, abs=0.05)
    assert goals.heading.abs().max() <= math.pi and goals.heading.std() == pytest.approx(
        math.pi / math.sqrt(6), rel=0.1
    )


def test_the_goal_in_the_characters_frame():
    goals = make_goals(3)
    goals.heading, goals.speed = torch.tensor([0.0, 0.5 * math.pi, 1.0]), torch.tensor([1.0, 2.0, 3.0])
    obs = goals.append(torch.zeros(3, 2), torch.tensor([0.0, 0.0, 1.0 - 0.5 * math.pi]))
    torch.testing.assert_close(obs[:, 2:], torch.tensor([[1.0, 0, 1], [0, 1, 2], [0, 1, 3]]), atol=1e-6, rtol=0)


def test_commands(tmp_path):
    path = tmp_path / "commands.csv"
    path.write_text("# time, heading, speed\n0, 0, 1.0\n0.1, 90, 2.0\n0.5,-45,1.5\n")
    goals = make_goals(2)
    goals.commands = ml.load_commands(str(path), 2)
    seen = []
    for step in range(0, 30):
        goals.update(torch.full((2,), step))
        seen.append((round(math.degrees(goals.heading[1].item())), goals.speed[1].item()))
    assert seen == [(0, 1.0)] * 3 + [(90, 2.0)] * 12 + [(-45, 1.5)] * 15


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "0, 1",
        "0, 0, fast",
        "0.5, 0, 1",
        "0, 0, 1\n0, 0, 1",
        "0, 0, nan",
        "0, 0, -1",
        "time, heading, speed\n0, 0, 1",
    ],
)
def test_bad_commands(tmp_path, text):
    path = tmp_path / "commands.csv"
    path.write_text(text)
    with pytest.raises(ml.InputError, match=r"commands\.csv"):
        ml.load_commands(str(path), 1)
    with pytest.raises(ml.InputError, match="absent"):
        ml.load_commands(str(tmp_path / "absent.csv"), 1)


# ---- Environment ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locomotion(root, character):
    return ml.MotionLib(str(root / "motions/locomotion.json"), character, "cpu", True)


@pytest.fixture
def env(locomotion, tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    args = heading.Args(cuda=False)
    env = heading.AMPEnv(args, locomotion, heading.MujocoSim(args, locomotion.character, 64, CPU), 64, 20)
    env.reset(1)
    return env


def test_any_yaw_and_the_same_view_of_it(env, locomotion):
    """The discriminator sees what it would see of the unturned clip; the policy also sees the way to world X."""
    obs, info = env.reset(3)
    yaw = ml.heading(info["state"].rotations[:, 0])
    assert (
        yaw.std() > 1.3
        and obs.shape == (64, 108)
        and env.single_observation_space.shape == (108,)
        and env.disc_obs_size == 210
    )
    torch.testing.assert_close(obs[:, 105:107], torch.stack((torch.cos(yaw), -torch.sin(yaw)), -1), atol=1e-5, rtol=0)
    clip = locomotion.state(env.clip, env.time)
    body, _ = ml.forward_kinematics(locomotion.character, clip.root_position, clip.rotations)
    unturned = heading.observe(clip, body, locomotion.character)
    torch.testing.assert_close(obs[:, 1:105], unturned[:, 1:], atol=1e-4, rtol=0)  # the height may have been raised


def test_under_commands_all_start_facing_world_x(env):
    env.goals.commands = (torch.zeros(1), torch.full((1, 64), 0.5 * math.pi), torch.ones(1, 64))
    obs, info = env.reset(4)
    torch.testing.assert_close(ml.heading(info["state"].rotations[:, 0]), torch.zeros(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(obs[:, 105:], torch.tensor([[0.0, 1.0, 1.0]]).repeat(64, 1), atol=1e-5, rtol=0)


def test_steps_hang_together(env):
    generator, ended = torch.Generator().manual_seed(0), 0
    obs, _ = env.reset(2)
    for _ in range(45):
        target, speed = env.goals.heading.clone(), env.goals.speed.clone()
        before = obs
        obs, reward, terminated, truncated, info = env.step(0.5 * torch.randn(64, 28, generator=generator))
        assert info["disc_obs"][:, :105].equal(before[:, :105]) and info["disc_obs"][:, 105:].equal(
            info["final_obs"][:, :105]
        )
        velocity = info["state"].root_velocity
        progress = velocity[:, 0] * torch.cos(target) + velocity[:, 1] * torch.sin(target)
        expected = torch.exp(-0.25 * (speed - progress) ** 2) * (progress > 0) * ~terminated
        torch.testing.assert_close(reward, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(info["scores"]["speed_error_m_s"], (speed - progress).abs(), atol=1e-4, rtol=0)
        done = terminated | truncated
        assert obs[~done, :105].equal(info["final_obs"][~done, :105])
        assert obs[:, 107].equal(env.goals.speed) and info["final_obs"][:, 107].equal(speed)
        assert env.goals.heading[done].eq(0).all() and env.steps[done].eq(0).all()
        ended += int(done.sum())
    assert ended > 64


# ---- Mirrored clips and nearest clips --------------------------------------------------------------------------------------------


def test_a_mirror_image(character, root):
    clip = ml.load_clip(str(root / "motions/turn_left1.npz"), character.body_names)
    other = ml.mirror_clip(clip, character)
    twice = ml.mirror_clip(other, character)
    np.testing.assert_allclose(twice.rotations, clip.rotations)
    np.testing.assert_allclose(twice.root_position, clip.root_position)
    body = [
        ml.forward_kinematics(character, torch.tensor(c.root_position), torch.tensor(c.rotations))[0]
        for c in (clip, other)
    ]
    names = [name.replace("left", "?").replace("right", "left").replace("?", "right") for name in character.body_names]
    swapped = body[1][:, [character.body_names.index(name) for name in names]]
    torch.testing.assert_close(swapped, body[0] * torch.tensor([1.0, -1, 1], dtype=torch.float64), atol=1e-5, rtol=0)


def test_mirrored_clips_are_as_likely_and_turn_the_other_way(locomotion):
    assert len(locomotion.files) == 12 and locomotion.files[6].endswith("(mirrored)")
    torch.testing.assert_close(locomotion.weight[:6], locomotion.weight[6:])
    torch.testing.assert_close(locomotion.turn[:6], -locomotion.turn[6:], atol=1e-5, rtol=0)
    assert locomotion.weight[5] == pytest.approx(2 / 10)  # the run: 2 of 5, half of it mirrored
    clip, _ = locomotion.sample(20_000, 1 / 30, torch.Generator().manual_seed(0))
    shares = torch.bincount(clip, minlength=12) / 20_000
    torch.testing.assert_close(shares, locomotion.weight, atol=0.01, rtol=0)


def test_an_asymmetric_skeleton_has_no_mirror_image(character, root):
    lame = character._replace(offsets=character.offsets * torch.linspace(1, 1.2, 15)[:, None])
    with pytest.raises(ml.InputError, match="no-mirror"):
        ml.mirror_clip(ml.load_clip(str(root / "motions/walk.npz"), character.body_names), lame)


def poses_of(motions, clip, times):
    state = motions.state(torch.full_like(times, clip, dtype=torch.long), times)
    body, _ = ml.forward_kinematics(motions.character, state.root_position, state.rotations)
    return ml.relative_positions(body, state.rotations[:, 0])


def test_nearest_clips(locomotion):
    """Two seconds of the run, then one of a turn, begun anywhere; and an episode that fell after one second."""
    dt = 1 / 30
    time = dt * torch.arange(30)
    run, turn = poses_of(locomotion, 5, 0.37 + dt * torch.arange(60)), poses_of(locomotion, 2, 0.5 + time)
    episode = torch.cat((run, turn))
    poses = torch.stack((episode, torch.cat((run[:30], torch.full((60, 14, 3), 9.0)))))
    found, bodies = ml.nearest_clips(locomotion, poses, torch.tensor([90, 30]), 90, dt)
    assert bodies.shape == (90, 14) and bodies.max() < 0.04
    error = found.pop("pose_error_m")
    assert error == pytest.approx(60 / 180, abs=0.01)  # the lost 60 of 180 steps count 1 m, the others hardly anything
    assert len(found) == 12 and found["visits_turn_left1.npz"] == pytest.approx(1 / 4)
    assert found["visits_run.npz"] + found["visits_run.npz (mirrored)"] == pytest.approx(3 / 4)
    bent = episode[None] + torch.tensor([0.0, 0.0, 0.05])
    assert 0.03 < ml.nearest_clips(locomotion, bent, torch.tensor([90]), 90, dt)[0]["pose_error_m"] < 0.055
    found, _ = ml.nearest_clips(locomotion, episode[None, :1], torch.tensor([0]), 90, dt)
    assert found.pop("pose_error_m") == 1.0 and sum(found.values()) == 0


# ---- Whole runs -----------------------------------------------------------------------------------------------------------------

METRICS = {
    "episodes",
    "mean_episode_s",
    "task_return",
    "heading_error_deg",
    "speed_error_m_s",
    "fall_rate",
    "style_reward",
    "pose_error_m",
}


def options(root, **changes):
    chosen = dict(
        motion_file=root / "motions/locomotion.json",
        character_file=root / "motions/humanoid.xml",
        num_envs=8,
        num_steps=8,
    )
    chosen.update(
        total_timesteps=256,
        num_minibatches=2,
        hidden=(16, 16),
        disc_batch=32,
        replay_size=128,
        eval_episodes=8,
        eval_seconds=1,
    )
    chosen.update(changes)
    flags = ["--no-cuda", "--eval-interval", "2"]
    for name, value in chosen.items():
        flags += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return flags


@needs_mujoco
def test_train_evaluate_and_steer(run_script, root, tmp_path):
    done = run_script(SCRIPT, *options(root))
    assert done.code == 0, done.err
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("amp_ppo_heading__locomotion__mujoco__1__") and (run / "grid.png").stat().st_size > 1000
    trained = json.loads(done.out.splitlines()[-1])
    assert METRICS <= set(trained) and trained["episodes"] == 8
    visits = [value for name, value in trained.items() if name.startswith("visits_")]
    assert len(visits) == 12 and sum(visits) == pytest.approx(1)
    (tmp_path / "steer.csv").write_text("0, 0, 1\n0.5, 30, 2\n")
    again = run_script(
        SCRIPT, "--evaluate", "--checkpoint", run / "latest.pt", "--eval-commands", tmp_path / "steer.csv"
    )
    assert again.code == 0, again.err
    assert "task return" in again.out and METRICS <= set(json.loads(again.out.splitlines()[-1]))
    assert len(list((run / "latest_rollouts").glob("*.npz"))) == 8 and (run / "latest_rollouts/grid.png").exists()
    same = run_script(SCRIPT, "--evaluate", "--checkpoint", run / "latest.pt")
    assert json.loads(same.out.splitlines()[-1]) == trained  # the evaluation of the training, again
    other = run_script(BASE, "--evaluate", "--checkpoint", run / "latest.pt")
    assert other.code == 2 and "amp_ppo_heading" in other.err and len(other.err.splitlines()) == 1


@needs_mujoco
@pytest.mark.parametrize(
    "changes, word",
    [
        (dict(speed_range=(3, 1)), "--speed-range"),
        (dict(speed_range=(-1, 1)), "--speed-range"),
        (dict(change_seconds=(0.5, 0.2)), "--change-seconds"),
        (dict(sharp_turn_share=1.5), "--sharp-turn-share"),
        (dict(turn_std=-1), "--turn-std"),
        (dict(eval_commands="x.csv"), "--eval-commands"),
        (dict(motion_file="absent.json"), "absent.json"),
    ],
)
def test_options_that_cannot_work(run_script, root, tmp_path, changes, word):
    done = run_script(SCRIPT, *options(root, **changes))
    assert done.code == 2 and word in done.err and len(done.err.splitlines()) == 1 and not (tmp_path / "runs").exists()


def test_the_shipped_dataset_is_the_default(root):
    assert heading.Args().motion_file == "motions/locomotion.json" and (root / heading.Args().motion_file).exists()
    assert amp.SCRIPT == "amp_ppo_isaacgym" and heading.SCRIPT == "amp_ppo_heading"


if __name__ == "__main__":
    from pathlib import Path

    here = Path(__file__).resolve().parent
    (here / "heading.diff").write_text("\n".join(difference(here.parent)) + "\n", encoding="utf-8")
