"""amp_ppo_heading.py: what it shares with the base script, its goals and rewards, its evaluation, whole runs."""

import ast
import json
import math
import subprocess
import sys
from pathlib import Path

import simulators

import numpy as np
import pytest
import torch

import amp_ppo_heading as heading
import amp_ppo_isaacgym as amp
import evaluation
import motion_lib as ml
import report

BASE, SCRIPT, CPU = "amp_ppo_isaacgym.py", "amp_ppo_heading.py", torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent
needs_mujoco = pytest.mark.skipif(sys.version_info < (3, 10), reason="mujoco needs Python 3.10")


# ---- The difference between the scripts ------------------------------------------------------------------------------

DIFF = rf"diff -u -F '^class \|^def \|^    def ' --label {BASE} --label {SCRIPT} {BASE} {SCRIPT}"


def test_the_difference_is_the_file():
    """After a change of a script it is written anew, in the root folder, by the command DIFF > tests/heading.diff."""
    written = (ROOT / "tests/heading.diff").read_bytes()
    now = subprocess.run(DIFF, shell=True, cwd=str(ROOT), stdout=subprocess.PIPE).stdout
    assert written == now, f"to write it anew, in the root folder: {DIFF} > tests/heading.diff"
    text = written.decode()
    lines = text.splitlines()
    assert lines[:2] == [f"--- {BASE}", f"+++ {SCRIPT}"]
    assert sum(line.startswith(("+", "-")) for line in lines[2:]) <= 130, "a task costs more than 130 changed lines"
    assert "@@ class Task:" in text and "@@ def main(" in text  # the places of the changes have names


def test_the_difference_makes_one_script_of_the_other(tmp_path):
    out = tmp_path / SCRIPT
    command = ["patch", "--quiet", "--output", str(out), str(ROOT / BASE), str(ROOT / "tests/heading.diff")]
    assert subprocess.run(command, cwd=str(tmp_path)).returncode == 0
    assert out.read_bytes() == (ROOT / SCRIPT).read_bytes()


# what the task changes; everything else with the same name is the same text
DIFFERENT = {
    "KIND": "a checkpoint of one is none of the other",
    "Data": "the clips",
    "Task": "the task's options",
    "Training": "a longer training, gamma",
    "Discriminator": "a longer window",
    "check_args": "the options' ranges",
    "task_reward": "the task",
    "AMPEnv": "goals, any yaw",
    "evaluate": "task return, and the nearest clip instead of the clip that was started in",
    "main": "the grid",
}


def definitions(name):
    """Name -> text, of the classes, functions (decorators included) and constants of a script."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            first = min([node.lineno, *[decorator.lineno for decorator in node.decorator_list]])
            found[node.name] = text.splitlines()[first - 1 : node.end_lineno]
        elif isinstance(node, ast.Assign):
            found[node.targets[0].id] = text.splitlines()[node.lineno - 1 : node.end_lineno]
    return found


def test_definitions_of_the_same_name_are_the_same():
    one = definitions(BASE)
    two = definitions(SCRIPT)
    assert len(one) > 20 and set(two) - set(one) == {"Goals"} and set(one) <= set(two)
    assert {name for name in one if one[name] != two[name]} == set(DIFFERENT)


# ---- Task ------------------------------------------------------------------------------------------------------------


def test_task_rewards():
    """The paper's takes no notice of what goes across, ours of the velocity of now; to stand both ask no direction."""
    velocity = torch.tensor([[1.0, 0, 0], [3.0, 0, 5], [1.0, 2, 0], [0.0, 0, 0], [-0.5, 0, 0], [-2.0, 0, 0]])
    facing = torch.tensor([1.0, 0.5, -1.0, 0.0, 0.0, -1.0])
    told = (torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]), facing)
    now, mean = torch.stack((torch.full((6, 3), math.nan), velocity)), torch.stack((velocity, 0 * velocity))
    paper = heading.task_reward(now, *told, (9.0, 9.0), "projection")
    torch.testing.assert_close(paper, torch.tensor([1.0, math.exp(-1.0), 1.0, 0.0, 0.0, math.exp(-1.0)]))
    whole = heading.task_reward(mean, *told, (0.5, 0.0), "velocity")
    expected = torch.tensor([1.0, 1 / 3, 1 / 3, 1 / 1.5, 1 / 2.125, 1 / 3])  # 1 / (1 + e^2 / 2)
    torch.testing.assert_close(whole, expected)
    velocity = torch.tensor([[[3.0, 2, 0]], [[0.0, 0, 0]]])
    fast = heading.task_reward(velocity, torch.tensor([2.0]), torch.ones(1), (8.0, 0.0), "velocity")
    torch.testing.assert_close(fast, torch.tensor([1 / 11]))  # 1 / (1 + 8 (1 + 4) / 2^2): errors relative to 2 m/s
    faces = heading.task_reward(mean, *told, (0.5, 0.25), "velocity")  # a fifth for facing the way
    torch.testing.assert_close(faces, 0.8 * expected + 0.2 * torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="none"):
        heading.task_reward(mean, *told, (1.0, 0.0), "none")


def make_goals(num_envs=400, **options):
    generator = torch.Generator().manual_seed(0)
    return heading.Goals(heading.Args(cuda=False, **{"clip_share": 0.0, **options}), num_envs, generator)


def start_of(num_envs, yaw=0.0, speed=0.0):
    """States that face yaw [rad], at which they go with this speed [m/s]."""
    rotations = ml.quat_from_yaw(torch.full((num_envs, 1), yaw))
    velocity = speed * torch.tensor([math.cos(yaw), math.sin(yaw), 1.0]).expand(num_envs, 3)
    return ml.MotionState(torch.zeros(num_envs, 3), rotations, velocity, 0 * velocity, torch.zeros(num_envs, 28))


def changes_of(goals, steps):
    """Updates of a running episode -> for each change of the heading the turn [rad], whether the speed changed with it,
    and the steps since the last change; and how many changes of speed came without one."""
    n = len(goals.speed)
    goals.update(torch.zeros(n, dtype=torch.long), start_of(n))
    last = torch.zeros(n)
    turns, sped, waits, alone = [], [], [], 0
    for step in range(1, steps + 1):
        heading_before, speed_before = goals.heading.clone(), goals.speed.clone()
        goals.update(torch.full((n,), step), start_of(n))
        turned = goals.heading != heading_before
        turns.append((goals.heading - heading_before)[turned])
        sped.append((goals.speed != speed_before)[turned])
        alone += int((goals.speed != speed_before)[~turned].sum())
        waits.append((step - last)[turned])
        last[turned] = step
    return torch.cat(turns), torch.cat(sped), torch.cat(waits), alone


def test_goals_begin_anew_with_the_episode():
    goals = make_goals(speed_range=(2.0, 3.0))
    steps = torch.zeros(400, dtype=torch.long)
    goals.update(steps, start_of(400))
    assert goals.heading.eq(0).all() and 2 <= goals.speed.min() < 2.1 and 2.9 < goals.speed.max() <= 3
    first = goals.speed.clone()
    for step in range(1, 90):
        goals.update(torch.where(torch.arange(400) < 200, step, 0), start_of(400))
    assert goals.heading[:200].std() > 0.1 and goals.heading[200:].eq(0).all()
    assert (goals.speed[200:] != first[200:]).all()


def test_some_episodes_begin_as_the_clip_goes_on():
    """A quarter is told to go on at 1 rad and 1.5 m/s, or at the nearest speed of the range; only where it begins."""
    goals = make_goals(4000, clip_share=0.25, speed_range=(1.0, 2.0))
    goals.update(torch.zeros(4000, dtype=torch.long), start_of(4000, 1.0, 1.5))
    eased = (goals.heading - 1.0).abs() < 1e-5
    assert eased.float().mean() == pytest.approx(0.25, abs=0.03) and goals.heading[~eased].eq(0).all()
    torch.testing.assert_close(goals.speed[eased], torch.full((int(eased.sum()),), 1.5))
    assert goals.speed[~eased].std() > 0.2
    goals.update(torch.zeros(4000, dtype=torch.long), start_of(4000, 1.0, 9.0))
    assert goals.speed[goals.heading != 0].eq(2.0).all()
    before = goals.speed.clone()
    goals.update(torch.ones(4000, dtype=torch.long), start_of(4000, 1.0, 1.5))
    assert goals.speed.eq(before).all()


def test_slow_speeds_are_standing():
    """Of speeds from 0 to 2 m/s those up to 0.3, 15 %."""
    goals = make_goals(4000, speed_range=(0.0, 2.0))
    goals.update(torch.zeros(4000, dtype=torch.long), start_of(4000))
    assert goals.speed.eq(0).float().mean() == pytest.approx(0.15, abs=0.02)
    assert goals.speed[goals.speed > 0].min() > 0.3 and goals.speed.max() <= 2
    goals.clip_share = 1.0
    goals.update(torch.zeros(4000, dtype=torch.long), start_of(4000, 0.0, 0.12))  # a clip that sways
    assert goals.speed.eq(0).all()


def test_goals_change_as_in_deepmimic():
    """After 0.2 to 0.5 s, evenly: 6 to 15 control steps, 10.5 in the mean. A hundredth of the turns goes anywhere, the
    others are small; with a fiftieth of them the speed is drawn anew."""
    turns, sped, waits, alone = changes_of(make_goals(4000, turn_std=0.1), 120)
    assert waits.min() >= 6 and waits.max() <= 16 and waits.mean() == pytest.approx(10.5, abs=0.6)
    assert sped.float().mean() == pytest.approx(0.02, abs=0.003) and alone == 0
    sharp = turns.abs() > 1.0  # ten standard deviations of a small turn
    assert sharp.float().mean() == pytest.approx(0.01 * (1 - 1 / math.pi), abs=0.002) and turns.abs().max() <= math.pi
    assert turns[sharp].abs().mean() == pytest.approx((1 + math.pi) / 2, abs=0.15)
    assert turns[~sharp].std() == pytest.approx(0.1, rel=0.05)


def test_commands_are_followed():
    """Each from its time on, in all environments by the steps of their own episode."""
    goals = make_goals(2)
    turns = torch.tensor([0.0, 1.0, -0.5])
    goals.commands = (
        torch.tensor([0.0, 0.1, 0.5]),
        turns[:, None].repeat(1, 2),
        torch.tensor([[1.0, 3], [2, 4], [5, 6]]),
    )
    seen = []
    for step in range(30):
        goals.update(torch.tensor([step, step // 2]), start_of(2))
        seen.append((goals.heading.tolist(), goals.speed.tolist()))
    assert [heading[0] for heading, _ in seen] == [0.0] * 3 + [1.0] * 12 + [-0.5] * 15
    assert [heading[1] for heading, _ in seen] == [0.0] * 6 + [1.0] * 24
    assert [speed for _, speed in seen] == [[1, 3]] * 3 + [[2, 3]] * 3 + [[2, 4]] * 9 + [[5, 4]] * 15


# ---- Environment -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locomotion(root, character):
    return ml.MotionLib(str(root / "motions/locomotion.json"), character)


@pytest.fixture
def env(locomotion, tmp_path, monkeypatch):
    """64 environments with episodes of 20 steps, reset."""
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    sim = simulators.make("mujoco", locomotion.character, 64, 30, 4, CPU, 1)
    env = heading.AMPEnv(heading.Args(cuda=False, clip_share=0.0), locomotion, sim, 64, 20)
    env.reset(1)
    return env


def test_the_goal_in_the_characters_frame(env):
    env.goals.heading[:3] = torch.tensor([0.0, 0.5 * math.pi, 1.0])
    env.goals.speed[:3] = torch.tensor([1.0, 2.0, 3.0])
    env.yaw[:3] = torch.tensor([0.0, 0.0, 1.0 - 0.5 * math.pi])
    expected = torch.tensor([[1.0, 0, 1], [0, 1, 2], [0, 1, 3]])
    torch.testing.assert_close(env.obs()[:3, 105:], expected, atol=1e-6, rtol=0)


def test_any_yaw_and_the_same_view_of_it(env, locomotion):
    """The discriminator sees what it would see of the unturned clip; the policy also sees the way to world X."""
    obs, info = env.reset(3)
    yaw = ml.heading(info["state"].rotations[:, 0])
    assert yaw.std() > 1.3 and obs.shape == (64, 108) and env.disc_obs_size == 525
    torch.testing.assert_close(ml.heading(env.sim.read().rotations[:, 0]), yaw, atol=1e-5, rtol=0)
    torch.testing.assert_close(obs[:, 105:107], torch.stack((torch.cos(yaw), -torch.sin(yaw)), -1), atol=1e-5, rtol=0)
    clip = locomotion.state(env.clip, env.time)
    body, _ = ml.forward_kinematics(locomotion.character, clip.root_position, clip.rotations)
    unturned = heading.observe(clip, body, locomotion.character, False)
    torch.testing.assert_close(obs[:, 1:105], unturned[:, 1:], atol=1e-4, rtol=0)  # the height may have been raised


def test_under_commands_all_start_facing_world_x(env):
    env.goals.commands = (torch.zeros(1), torch.full((1, 64), 0.5 * math.pi), torch.ones(1, 64))
    obs, info = env.reset(4)
    torch.testing.assert_close(ml.heading(info["state"].rotations[:, 0]), torch.zeros(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(obs[:, 105:], torch.tensor([[0.0, 1.0, 1.0]]).repeat(64, 1), atol=1e-5, rtol=0)


def test_steps_hang_together(env):
    generator = torch.Generator().manual_seed(0)
    ended = 0
    # of the velocity: in an episode's first 7 steps of 1/30 s the mean, then of some 1/4 s
    average = torch.zeros(64, 2)
    obs, _ = env.reset(2)
    for _ in range(45):
        target = env.goals.heading.clone()
        speed = env.goals.speed.clone()
        before = obs.clone()
        obs, reward, terminated, truncated, info = env.step(0.5 * torch.randn(64, 28, generator=generator))
        assert info["disc_obs"][:, 315:420].equal(before[:, :105])  # the last but one of five states
        assert info["disc_obs"][:, 420:].equal(info["final_obs"][:, :105])
        velocity = info["state"].root_velocity[:, :2]
        way = torch.stack((torch.cos(target), torch.sin(target)), -1)
        progress = (velocity * way).sum(-1)
        paper = torch.exp(-0.25 * (speed - progress) ** 2) * (progress > 0) * ~terminated
        torch.testing.assert_close(info["scores"]["task_return"], paper, atol=1e-5, rtol=1e-5)
        lived = info["episode_length"][:, None]
        mean = (average * (lived - 1) + velocity) / lived
        average = torch.where(lived <= 7, mean, average + 4 / 30 * (velocity - average))
        error = (average - speed[:, None] * way).square().sum(-1) / speed**2  # all are told 1 m/s or more
        moves = 1 / (1 + 8 * error)
        facing = info["final_obs"][:, -3].clamp_min(0.0)
        expected = (moves + 0.25 * facing) / 1.25 * ~terminated
        torch.testing.assert_close(reward, expected, atol=1e-5, rtol=1e-5)
        assert info["scores"]["task_reward"] is reward
        done = terminated | truncated
        assert obs[~done, :105].equal(info["final_obs"][~done, :105])
        assert obs[:, 107].equal(env.goals.speed) and info["final_obs"][:, 107].equal(speed)
        # the way to go, from where it faces now: before the goal changes and the episode begins anew, and after
        for seen, goal, state in ((info["final_obs"], target, info["state"]), (obs, env.goals.heading, env.sim.read())):
            angle = goal - ml.heading(state.rotations[:, 0])
            expected = torch.stack((torch.cos(angle), torch.sin(angle)), -1)
            torch.testing.assert_close(seen[:, 105:107], expected, atol=1e-5, rtol=0)
        assert env.goals.heading[done].eq(0).all() and env.steps[done].eq(0).all()
        ended += int(done.sum())
    assert ended > 64


# ---- Evaluation ------------------------------------------------------------------------------------------------------


@pytest.fixture
def agent(env):
    """It stands in the clips' mean pose, and its discriminator's logit is 0."""
    torch.manual_seed(0)
    agent = heading.Agent(env, (16, 16), -2.5)
    for net in (agent.average_actor, agent.disc):
        torch.nn.init.zeros_(net[-1].weight)
    return agent


def test_figures_of_an_evaluation(agent, env):
    """Within four steps nobody falls, and the return is the mean of the paper's reward; a fall earns nothing more."""
    env.args.task_reward = "projection"
    env.episode_steps = 4
    figures, clips, bodies, sums = heading.evaluate(agent, env, env.args)
    assert METRICS <= set(figures) and figures["fall_rate"] == 0
    assert figures["task_return"] == pytest.approx(figures["task_reward"], abs=1e-6)
    assert sums["task_reward"].shape == (64,) and 0 < figures["task_return"] < 1
    assert sums["task_return"].equal(sums["task_reward"] / 4)
    env.args.task_reward = "velocity"
    other = heading.evaluate(agent, env, env.args)[0]
    assert other["task_return"] == figures["task_return"] and other["task_reward"] < 0.9 * figures["task_reward"]
    assert len(clips) == 64 and bodies.shape == (4, 14) and figures["style_reward"] == pytest.approx(math.log(2))
    assert 0 < figures["pose_error_m"] < 0.06
    # a visit to a clip and to its mirror image are told apart
    visits = [share for name, share in figures.items() if name.startswith("visits_")]
    assert len(visits) == 12 and sum(visits) == pytest.approx(1)
    env.episode_steps = 60
    figures = heading.evaluate(agent, env, env.args)[0]
    assert figures["fall_rate"] > 0.5 and figures["task_return"] < 0.7 * other["task_return"]
    assert figures["pose_error_m"] > 0.1


@pytest.mark.parametrize("episodes, rows", [(64, 4), (6, 1)])
def test_the_grid(tmp_path, monkeypatch, episodes, rows):
    """A row is a speed, a column a turn: in place of its figures each cell says which command its episode was under."""
    (times, turns, speeds), row_names, column_names = evaluation.grid_commands((1.0, 3.5), episodes)
    assert times.tolist() == [0.0] and turns.shape == speeds.shape == (1, episodes)
    assert row_names == (["1.0", "1.8", "2.7", "3.5"] if rows == 4 else ["1.0"])
    assert [float(x) for x in column_names][-1] == 180.0 and len(column_names) == episodes // rows
    assert np.diff([float(x) for x in column_names]).min() > 0  # from just above -180 on
    drawn = {}
    monkeypatch.setattr(
        report, "plot_table", lambda path, table, *names: drawn.update({path: (table, names[:3], names[-1])})
    )
    (tmp_path / "figures.json").write_text('{"checkpoint": "a.pt"}')
    figures = {"task_return": speeds[0], "course_error_deg": torch.rad2deg(turns[0]), "others": None}
    report.plot_grid(str(tmp_path), figures, row_names, column_names)
    for (path, (table, names, top)), cell in zip(drawn.items(), (lambda v, a: v, lambda v, a: a)):
        assert path == f"{tmp_path}/grid{'_course' if top > 1 else ''}.png" and len(table) == rows
        assert names[:2] == (row_names, column_names) and ("return" in names[-1]) == (top == 1)
        for speed, row in zip(np.linspace(1.0, 3.5, rows if rows > 1 else 2), table):
            assert row == pytest.approx([cell(speed, float(a)) for a in column_names], abs=0.51)
    assert len(drawn) == 2


def test_an_evaluation_can_be_repeated(agent, env):
    """Without commands exactly, also after those of the grid, which is drawn last since they stay."""
    env.episode_steps = 3
    first = heading.evaluate(agent, env, env.args)[0]
    assert heading.evaluate(agent, env, env.args)[0] == first
    env.goals.commands = evaluation.grid_commands(env.args.speed_range, 64)[0]
    assert heading.evaluate(agent, env, env.args)[0] != first
    env.goals.commands = None
    assert heading.evaluate(agent, env, env.args)[0] == first


# ---- Whole runs ------------------------------------------------------------------------------------------------------

METRICS = set("episodes mean_episode_s fall_rate speed_m_s style_reward pose_error_m".split())
METRICS |= {"task_return", "task_reward", "path_speed_m_s", "commanded_speed_m_s", "path_error_m"}


def options(root, **changes):
    """The command line of a tiny training."""
    chosen = dict(motion_file=root / "motions/locomotion.json", character_file=root / "motions/humanoid.xml")
    chosen.update(num_envs=8, num_steps=8, total_timesteps=256, num_minibatches=2, hidden=(16, 16), disc_batch=32)
    chosen.update(replay_size=128, eval_episodes=8, eval_seconds=1, eval_interval=2, clone_updates=2)
    chosen.update(changes)
    flags = ["--no-cuda"]
    for name, value in chosen.items():
        flags += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return flags


@needs_mujoco
@pytest.mark.drawn
def test_train_evaluate_and_steer(run_script, root, tmp_path):
    done = run_script(SCRIPT, *options(root))
    assert done.code == 0, done.err
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("locomotion__num-envs-8-") and "__heading__" in run.name
    trained = json.loads(done.out.splitlines()[-1])
    assert METRICS <= set(trained) and trained["episodes"] == 8
    visits = [value for name, value in trained.items() if name.startswith("visits_")]
    assert len(visits) == 12 and sum(visits) == pytest.approx(1)
    best = torch.load(run / "best.pt", weights_only=True)  # of the two evaluations
    found = best["metrics"]
    assert (
        best["best"]
        == found["task_reward"] - found["fall_rate"]
        >= trained["task_reward"] - trained["fall_rate"] - 1e-3
    )
    (tmp_path / "steer.csv").write_text("0, 0, 1\n0.5, 30, 2\n")
    files = ["--motion-file", root / "motions/locomotion.json", "--character-file", root / "motions/humanoid.xml"]
    judge = [SCRIPT, "--evaluate", "--checkpoint", run / "best.pt", *files]
    again = run_script(*judge, "--eval-commands", tmp_path / "steer.csv")
    assert again.code == 0, again.err
    steered = json.loads(again.out.splitlines()[-1])
    assert METRICS <= set(steered) and steered["commanded_speed_m_s"] != trained["commanded_speed_m_s"]
    *_, shown = sorted(run.glob("best_2*"))
    assert len(list((shown / "rollouts").glob("*.npz"))) == 8
    assert all((shown / f"{name}.png").stat().st_size > 1000 for name in ("grid", "grid_course", "pose_error"))
    same = run_script(*judge)
    assert json.loads(same.out.splitlines()[-1]) == trained  # the evaluation of the training, again
    other = run_script(BASE, "--evaluate", "--checkpoint", run / "latest.pt")
    use = f"; python {SCRIPT} --evaluate --checkpoint {run}/latest.pt\n"
    assert other.code == 2 and other.err.endswith(use) and len(other.err.splitlines()) == 1


@needs_mujoco
@pytest.mark.parametrize(
    "changes, word",
    [
        (dict(speed_range=(3, 1)), "--speed-range: smaller number first"),
        (dict(keep_course=()), "no --keep-course here"),
        (dict(speed_range=(-1, 1)), "--speed-range"),
        (dict(turn_std=-1), "--turn-std"),
        (dict(task_weights=(0, 0)), "--task-weights: one has to lie above 0"),
        (dict(eval_commands="x.csv"), "--eval-commands"),
        (dict(motion_file="absent.json"), "absent.json"),
    ],
)
def test_options_that_cannot_work(run_script, root, tmp_path, changes, word):
    done = run_script(SCRIPT, *options(root, **changes))
    assert done.code == 2 and word in done.err and len(done.err.splitlines()) == 1 and not (tmp_path / "runs").exists()


def test_the_shipped_dataset_is_the_default(root):
    assert heading.Args().motion_file == "motions/locomotion.json" and (root / heading.Args().motion_file).exists()
    assert amp.KIND == "amp_ppo_isaacgym" and heading.KIND == "amp_ppo_heading"
