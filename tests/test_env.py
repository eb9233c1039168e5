"""Observations, clip transitions, the environment's conventions, its history and state, and the evaluation in it."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import simulators

import numpy as np
import pytest
import torch
from conftest import put
from hypothesis import given
from hypothesis import strategies as st

import amp_ppo_heading as heading
import amp_ppo_isaacgym as amp
import motion_lib as ml

pytest.importorskip("mujoco")

CPU = torch.device("cpu")
UPRIGHT = torch.tensor([0.0, 0.0, 0.0, 1.0])
D = 105  # numbers in an observation; where its parts begin: root rotation, velocities, ball joints, hinges, ...
ROTATION, LINEAR, ANGULAR, BALLS, HINGES, DOFS, KEYS = 1, 7, 10, 13, 61, 65, 93


@pytest.fixture(autouse=True)
def in_tmp_path(monkeypatch, tmp_path):
    """MuJoCo writes its warnings into a file of the working directory."""
    monkeypatch.chdir(tmp_path)


def make_env(motions, num_envs=8, episode_steps=300, seed=1, script=amp, **options):
    """An environment of a script, reset with the seed."""
    if script is amp:
        options = {"target_speed": 1.0, **options}
    args = script.Args(cuda=False, **{"disc_steps": 2, **options})
    sim = simulators.make("mujoco", motions.character, num_envs, args.control_hz, args.substeps, CPU, 1)
    env = script.AMPEnv(args, motions, sim, num_envs, episode_steps)
    env.reset(seed)
    return env


both_scripts = pytest.mark.parametrize("script", [amp, heading], ids=["base", "heading"])


def random_actions(steps, num_envs, seed=0):
    return 0.3 * torch.randn(steps, num_envs, 28, generator=torch.Generator().manual_seed(seed))


def standing(character, n=1, height=0.9):
    """n states at rest, upright, at the origin."""
    zero = torch.zeros(n, 3)
    return ml.MotionState(
        zero + torch.tensor([0, 0, height]), UPRIGHT.repeat(n, 15, 1), zero.clone(), zero.clone(), torch.zeros(n, 28)
    )


def look(state, character):
    position, _ = ml.forward_kinematics(character, state.root_position, state.rotations)
    return amp.observe(state, position, character, False)


# ---- Observation -----------------------------------------------------------------------------------------------------


def test_observation_of_an_upright_character(character):
    obs = look(standing(character, 3), character)
    assert obs.shape == (3, D)
    expected = torch.zeros(D)
    expected[0] = 0.9
    tangent_normal = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    expected[ROTATION:LINEAR] = tangent_normal
    expected[BALLS:HINGES] = tangent_normal.repeat(8)
    # from the bodies' offsets in humanoid.xml
    hand = torch.tensor([-0.02405, -0.18311, -0.054084])
    foot = torch.tensor([0.0, -0.084887, -0.831416])
    mirror = torch.tensor([1.0, -1.0, 1.0])
    expected[KEYS:] = torch.cat((hand, hand * mirror, foot, foot * mirror))
    torch.testing.assert_close(obs, expected.expand(3, D))


def test_observation_entries_by_hand(character):
    state = standing(character)
    names = character.body_names
    # facing world +Y, leaning forward by 30 degrees
    lean = ml.quat_from_rotvec(torch.tensor([0.0, math.pi / 6, 0.0]))
    state.rotations[0, 0] = ml.quat_multiply(ml.quat_from_yaw(torch.tensor(math.pi / 2)), lean)
    state.root_velocity[0] = torch.tensor([0.5, 2.0, -0.25])
    state.root_angular_velocity[0] = torch.tensor([1.0, 3.0, 7.0])
    state.rotations[0, names.index("head")] = ml.quat_from_yaw(torch.tensor(math.pi / 2))
    state.rotations[0, names.index("right_lower_arm")] = ml.quat_from_rotvec(torch.tensor([0.0, -2.5, 0.0]))
    state.rotations[0, names.index("left_shin")] = -ml.quat_from_rotvec(torch.tensor([0.0, 0.75, 0.0]))  # either sign
    state.dof_velocity[0] = torch.arange(28.0)
    obs = look(state, character)[0]
    cos = math.sqrt(0.75)
    sin = 0.5
    # where its X and Z axes point
    torch.testing.assert_close(obs[ROTATION:LINEAR], torch.tensor([cos, 0, -sin, sin, 0, cos]))
    torch.testing.assert_close(obs[LINEAR:ANGULAR], torch.tensor([2.0, -0.5, -0.25]))
    torch.testing.assert_close(obs[ANGULAR:BALLS], torch.tensor([3.0, -1.0, 7.0]))
    # the head looks left
    torch.testing.assert_close(obs[BALLS + 6 : BALLS + 12], torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 1.0]))
    hinges = [name for name in character.dof_names if name.endswith(("elbow", "knee"))]
    bent = dict(zip(hinges, obs[HINGES:DOFS].tolist()))
    assert bent == pytest.approx(dict(right_elbow=-2.5, left_elbow=0.0, right_knee=0.0, left_knee=0.75), abs=1e-5)
    assert obs[DOFS:KEYS].tolist() == list(range(28))
    # the right foot hangs 0.831416 below the pelvis in its own frame: leaning forward puts it behind
    foot = torch.tensor([-0.831416 * sin, -0.084887, -0.831416 * cos])
    torch.testing.assert_close(obs[KEYS + 6 : KEYS + 9], foot)


def test_the_course_is_seen_if_asked(character):
    """Six numbers more, and nothing else: the root's X and Z axes in the world, here turned left by 90 degrees."""
    state = standing(character)
    lean = ml.quat_from_rotvec(torch.tensor([0.0, math.pi / 6, 0.0]))
    state.rotations[0, 0] = ml.quat_multiply(ml.quat_from_yaw(torch.tensor(math.pi / 2)), lean)
    state.root_velocity[0] = torch.tensor([0.5, 2.0, -0.25])
    position, _ = ml.forward_kinematics(character, state.root_position, state.rotations)
    obs = amp.observe(state, position, character, True)
    assert obs.shape == (1, D + 6)
    torch.testing.assert_close(obs[:, :D], look(state, character))
    cos = math.sqrt(0.75)
    torch.testing.assert_close(obs[0, D:], torch.tensor([0.0, cos, -0.5, 0.0, 0.5, cos]))


def test_clips_and_environment_show_the_course(walk):
    """A walk sways by some degrees: in clips, at the start, and after steps; the heading of what is simulated."""
    env = make_env(walk, keep_course=True)
    demo = amp.demo_transitions(walk, 64, env.dt, env.args, torch.Generator().manual_seed(0))
    assert demo.shape == (64, 2 * (D + 6))
    start = env.obs()
    obs, _, _, _, info = env.step(torch.zeros(8, 28))
    for x in (demo[:, : D + 6], start, obs):
        yaw = torch.atan2(x[:, D + 1], x[:, D])
        assert 0.001 < yaw.abs().max() < 0.5 and torch.unique(yaw).numel() == len(yaw)
    torch.testing.assert_close(yaw, ml.heading(info["state"].rotations[:, 0]), atol=1e-5, rtol=0)


@given(st.floats(-math.pi, math.pi), st.floats(-5, 5), st.floats(-5, 5))
def test_observation_does_not_depend_on_place_and_heading(all_motions, yaw, x, y):
    clip = torch.arange(20)
    state = all_motions.state(clip, 0.4 * all_motions.length)
    turn = ml.quat_from_yaw(torch.tensor(yaw)).expand(20, 4)
    moved = ml.turn_state(state, turn)
    moved.root_position[:, :2] += torch.tensor([x, y])
    torch.testing.assert_close(
        look(moved, all_motions.character), look(state, all_motions.character), atol=1e-4, rtol=1e-5
    )
    torch.testing.assert_close(ml.forward_speed(moved), ml.forward_speed(state), atol=1e-4, rtol=1e-5)


def test_tangent_normal_by_hand():
    q = torch.stack(
        (
            UPRIGHT,
            ml.quat_from_rotvec(torch.tensor([math.pi / 2, 0.0, 0.0])),
            ml.quat_from_yaw(torch.tensor(math.pi / 2)),
        )
    )
    expected = torch.tensor([[1.0, 0, 0, 0, 0, 1], [1, 0, 0, 0, -1, 0], [0, 1, 0, 0, 0, 1]])
    torch.testing.assert_close(ml.tangent_normal(q), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(ml.tangent_normal(-q), expected, atol=1e-6, rtol=0)


@both_scripts
@pytest.mark.parametrize("disc_steps", [2, 5, 10])
@pytest.mark.parametrize("loop", ["clamp", "wrap"])
def test_states_of_demo_transitions_lie_one_control_step_apart(write_clip, character, loop, disc_steps, script):
    """A character that rises by 0.1 m/s for a second, so that the height of a state tells its time."""
    height = np.linspace(0.9, 1.0, 11)
    path = write_clip(frames=11, loop=np.array(loop), root_position=np.stack((0 * height, 0 * height, height), -1))
    motions = ml.MotionLib(path, character)
    transitions = script.demo_transitions(
        motions, 500, 0.05, script.Args(disc_steps=disc_steps), torch.Generator().manual_seed(0)
    )
    assert transitions.shape == (500, disc_steps * D)
    seen = transitions.view(500, disc_steps, D)[..., 0]  # (n, S)
    step = seen.diff(dim=1)
    seam = step < 0  # where a loop's height starts afresh
    torch.testing.assert_close(step[~seam], torch.full_like(step[~seam], 0.005), atol=1e-6, rtol=0)
    torch.testing.assert_close(step[seam], torch.full_like(step[seam], 0.005 - 0.1), atol=1e-6, rtol=0)
    assert seam.any() == (loop == "wrap")
    # they start anywhere that leaves room for all their states
    latest = 1.0 if loop == "wrap" else 1.0 - 0.005 * (disc_steps - 1)
    assert 0.9 - 1e-6 <= seen[:, 0].min() < 0.902 and latest - 0.002 < seen[:, 0].max() < latest + 1e-6


def test_demo_transitions_are_what_the_character_looks_like(walk, character):
    transitions = amp.demo_transitions(walk, 64, 1 / 30, amp.Args(), torch.Generator().manual_seed(2))
    frames = walk.state(torch.zeros(1267, dtype=torch.long), torch.arange(1267) / 1000)  # the clip, a millisecond apart
    distance, nearest = torch.cdist(transitions[:, :D], look(frames, character)).min(1)
    assert distance.max() < 0.3  # joint speeds change by up to 100 rad/s in a second
    later = walk.state(torch.zeros(64, dtype=torch.long), nearest / 1000 + 1 / 30)
    assert (transitions[:, D:] - look(later, character)).norm(dim=-1).max() < 0.3


# ---- Environment -----------------------------------------------------------------------------------------------------


@both_scripts
@pytest.mark.parametrize("disc_steps", [2, 5])
def test_sizes_and_shapes(walk, script, disc_steps):
    env = make_env(walk, script=script, disc_steps=disc_steps)
    seen = D if script is amp else D + 3  # the policy sees the goal as well
    assert env.obs_size == seen and env.action_offset.shape == (28,)
    obs, info = env.reset(3)
    assert obs.shape == (8, seen) and obs.dtype == torch.float32 and isinstance(info, dict)
    assert env.obs().equal(obs)
    obs, reward, terminated, truncated, info = env.step(torch.zeros(8, 28))
    assert obs.shape == (8, seen) and reward.shape == (8,) and torch.isfinite(obs).all()
    assert terminated.shape == truncated.shape == (8,) and terminated.dtype == truncated.dtype == torch.bool
    assert info["final_obs"].shape == (8, seen) and info["disc_obs"].shape == (8, disc_steps * D)
    assert env.disc_obs_size == disc_steps * D and env.num_envs == 8
    assert info["episode_length"].tolist() == [1] * 8


def test_an_episode_starts_in_a_state_of_the_clip(all_motions, character):
    """Frames above the ground are taken as they are, frames below it are raised onto it."""
    env = make_env(all_motions, 200)
    obs, _ = env.reset(0)
    clip = all_motions.state(env.clip, env.time)
    position, rotation = ml.forward_kinematics(character, clip.root_position, clip.rotations)
    low = ml.lowest_points(character, position, rotation).amin(-1)
    state = env.sim.read()
    now = ml.lowest_points(character, *ml.forward_kinematics(character, state.root_position, state.rotations)).amin(-1)
    clear = low >= 0
    assert clear.sum() > 50 and (low < -0.005).sum() > 20  # there are both kinds
    torch.testing.assert_close(now[clear], low[clear], atol=1e-5, rtol=0)
    assert now[~clear].abs().max() < 1e-5
    expected = look(clip, character)
    expected[:, 0] += torch.where(clear, 0.0, -low)
    torch.testing.assert_close(obs, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(obs, look(state, character), atol=1e-4, rtol=0)


def test_reset_modes(walk, write_clip, character):
    time = {mode: make_env(walk, 200, reset_mode=mode).time for mode in ("start", "random", "hybrid")}
    assert time["start"].abs().max() == 0
    assert (time["random"] == 0).sum() <= 1 and time["random"].min() >= 0 and time["random"].max() < walk.length[0]
    assert time["random"].std() > 0.2
    assert 70 < (time["hybrid"] == 0).sum() < 130  # 4 standard deviations of a fair coin
    # a clip that does not loop leaves room for one transition
    clamp = ml.MotionLib(write_clip(frames=3, fps=20.0), character)
    assert 0.05 < make_env(clamp, 200).time.max() <= 0.1 - 1 / 30 + 1e-6


def test_zero_action_is_the_clips_mean_pose(write_clip, character):
    rotations = np.tile(UPRIGHT.numpy(), (3, 15, 1))
    knee = character.body_names.index("left_shin")
    for frame, angle in enumerate((0.2, 0.4, 0.6)):
        rotations[frame, knee] = [0, math.sin(angle / 2), 0, math.cos(angle / 2)]
    env = make_env(ml.MotionLib(write_clip(rotations=rotations, frames=3), character), 1, action_scale=2.0)
    targets = []
    env.sim.step = lambda target: (targets.append(target), type(env.sim).step(env.sim, target))[1]
    env.step(torch.zeros(1, 28))
    env.step(torch.full((1, 28), 0.25))
    expected = torch.zeros(1, 28)
    expected[0, character.dof_names.index("left_knee")] = 0.4
    torch.testing.assert_close(targets[0], expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(targets[1], expected + 0.5, atol=1e-3, rtol=0)


def record(env, actions):
    """Every quantity of every step, each (steps, N, ...)."""
    obs = env.obs().clone()
    steps = []
    for action in actions:
        before = obs
        obs, reward, terminated, truncated, info = env.step(action)
        obs = obs.clone()
        step = dict(before=before, obs=obs, reward=reward, terminated=terminated, truncated=truncated)
        step.update({name: x.clone() for name, x in info.items() if isinstance(x, torch.Tensor)})
        step.update({f"score_{name}": x.clone() for name, x in info["scores"].items()})
        step.update({f"state_{name}": x.clone() for name, x in info["state"]._asdict().items()})
        steps.append(step)
    return {name: torch.stack([step[name] for step in steps]) for name in steps[0]}


def roll_out(env, actions, seed=3):
    """Reset, and record."""
    env.reset(seed)
    return record(env, actions)


def assert_same(one, two):
    """Two records are the same, bit for bit."""
    for name in one:
        assert torch.equal(one[name], two[name]), name


@both_scripts
def test_steps_hang_together_across_resets(walk, script):
    env = make_env(walk, 16, episode_steps=20, script=script)
    log = roll_out(env, 5 * random_actions(80, 16))
    for name in ("before", "obs", "final_obs"):
        log[name] = log[name][..., :D]
    done = log["terminated"] | log["truncated"]
    assert log["terminated"].any() and log["truncated"].any()  # falls and time-outs, both
    # a transition starts where the step before has left the character, and ends before the reset
    assert torch.equal(log["disc_obs"][..., :D], log["before"])
    assert torch.equal(log["disc_obs"][..., D:], log["final_obs"])
    assert torch.equal(log["obs"][~done], log["final_obs"][~done])
    assert ((log["obs"] - log["final_obs"])[done].abs().amax(-1) > 0.1).all()
    # whoever has fallen lies low in the last observation, but for a shin on the ground, and stands in the next one
    assert log["final_obs"][log["terminated"]][:, 0].quantile(0.9) < 0.8 < log["obs"][log["terminated"]][:, 0].min()
    # every episode counts its steps from one
    length = log["episode_length"]
    expected = torch.zeros(16, dtype=torch.long)
    for t in range(80):
        expected = expected + 1
        assert torch.equal(length[t], expected)
        expected = torch.where(done[t], torch.zeros_like(expected), expected)
    assert not (log["terminated"] & log["truncated"]).any()
    assert torch.equal(log["truncated"], (length == 20) & ~log["terminated"])


def test_a_time_out_changes_nothing_about_its_step(walk):
    """With episodes that last longer, reward, final state and transition are the same under the same actions."""
    actions = random_actions(3, 4)
    short, long = [roll_out(make_env(walk, 4, episode_steps=steps), actions) for steps in (3, 50)]
    assert short["truncated"][-1].all() and not long["truncated"].any()
    after = ("obs", "truncated")  # what belongs to the next episode
    assert_same({name: x for name, x in short.items() if name not in after}, long)


def test_the_state_in_info_is_the_one_before_the_reset(walk, character):
    env = make_env(walk, 8, episode_steps=4)
    log = roll_out(env, random_actions(9, 8))
    for t in range(9):
        state = ml.MotionState(*(log[f"state_{name}"][t] for name in ml.MotionState._fields))
        torch.testing.assert_close(look(state, character), log["final_obs"][t], atol=1e-6, rtol=0)
        torch.testing.assert_close(log["score_speed_m_s"][t], log["final_obs"][t][:, LINEAR], atol=1e-6, rtol=0)
        torch.testing.assert_close(log["reward"][t], amp.task_reward(ml.forward_speed(state), 1.0, "speed"))


def test_the_task_none_has_no_reward(walk):
    env = make_env(walk, 4, task="none")
    assert roll_out(env, random_actions(3, 4))["reward"].abs().max() == 0


def test_a_fall_terminates(walk, character):
    """Two characters lie in the air: one 0.3 m up, one 3 m. And two are upright, on and above the floor."""
    env = make_env(walk, 4)
    state = standing(character, 4)
    state.rotations[:2, 0] = ml.quat_from_rotvec(torch.tensor([0.0, math.pi / 2, 0.0]))
    state.root_position[:, 2] = torch.tensor([0.3, 3.0, 0.8815, 3.0])
    put(env.sim, torch.arange(4), state)
    fallen = torch.zeros(4, dtype=torch.bool)
    for _ in range(8):  # 0.27 s: 0.35 m of free fall
        _, _, terminated, truncated, info = env.step(torch.zeros(4, 28))
        fallen |= terminated
        assert not truncated.any() and not info["diverged"].any()
    assert fallen.tolist() == [True, False, False, False]
    assert info["episode_length"][1:].tolist() == [8, 8, 8] and info["episode_length"][0] < 8


def test_bodies_that_the_clip_puts_on_the_ground_may_touch_it(walk, character, root):
    """On all fours an episode of crawling goes on and one of walking ends; on its back, head down, both end."""
    crawl = ml.MotionLib(str(root / "motions/crawl.npz"), character)
    on_all_fours = crawl.state(torch.zeros(20, dtype=torch.long), torch.linspace(0, 2.9, 20))
    bodies = ml.forward_kinematics(character, on_all_fours.root_position, on_all_fours.rotations)
    low = ml.lowest_points(character, *bodies).amin(-1)
    on_all_fours.root_position[:, 2] -= low + 0.02  # pressed into the ground
    on_its_back = standing(character, 20, height=0.1)
    on_its_back.rotations[:, 0] = ml.quat_from_rotvec(torch.tensor([0.0, -math.pi / 2, 0.0]))
    fallen = {}
    for motions in (walk, crawl):
        for state in (on_all_fours, on_its_back):
            env = make_env(motions, 20)
            put(env.sim, torch.arange(20), state)
            fallen[motions is crawl, state is on_its_back] = env.step(torch.zeros(20, 28))[2].sum().item()
    assert fallen[True, False] == 0 and fallen[False, False] > 10
    assert fallen[False, True] == fallen[True, True] == 20


@pytest.mark.parametrize(
    "place, value",  # in MuJoCo's state: height, velocity of a joint, vertical velocity
    [("height", np.nan), ("joint", np.nan), ("joint", np.inf), ("joint", 1e12), ("fall", -1e3), ("height", 150.0)],
)
@both_scripts
def test_a_broken_simulation_is_contained(walk, script, place, value):
    """Corrupt one environment's state: it ends as diverged, starts anew, and the others never notice."""
    env, healthy = [make_env(walk, 4, script=script) for _ in range(2)]
    actions = random_actions(4, 4)
    for e in (env, healthy):
        before = e.step(actions[0])[0].clone()
    env.sim.state[1, {"height": 3, "joint": env.sim.velocity + 9, "fall": env.sim.velocity + 2}[place]] = value
    others = [0, 2, 3]
    obs, reward, terminated, truncated, info = env.step(actions[1])
    expected = healthy.step(actions[1])
    assert info["diverged"].tolist() == [False, True, False, False]
    assert terminated.tolist() == [False, True, False, False] and not truncated.any()
    assert torch.isfinite(obs).all()
    assert np.isfinite(env.sim.state).all()
    # what goes into buffers and normalisers is sane as well: nothing has been seen, and nothing earned
    assert reward[1] == 0 and torch.isfinite(reward).all()
    assert torch.equal(info["disc_obs"][1, :D], before[1, :D]) and torch.equal(info["disc_obs"][1, D:], before[1, :D])
    assert torch.equal(info["final_obs"][1, :D], before[1, :D]) and torch.isfinite(info["final_obs"]).all()
    assert all(torch.isfinite(x).all() for x in info["scores"].values())
    assert torch.equal(info["disc_obs"][others], expected[4]["disc_obs"][others])
    for action in actions[2:]:
        assert torch.equal(obs[others], expected[0][others])
        obs, reward, terminated, _, info = env.step(action)
        expected = healthy.step(action)
        assert torch.isfinite(obs).all() and torch.isfinite(reward).all() and not info["diverged"].any()
        assert obs.abs().max() < 100


@both_scripts
def test_what_a_simulator_lets_through_never_reaches_the_networks(walk, script):
    """Numbers that are no motion, in every part of a state, of which the simulator says nothing."""
    env = make_env(walk, 8, script=script)
    step = env.sim.step
    parts = [(part, value) for part in range(5) for value in (math.nan, math.inf, -math.inf, 1e30)]
    for i, (part, value) in enumerate(parts):

        def broken(targets, i=i, part=part, value=value):
            state, diverged = step(targets)
            state[part][i % 8].flatten()[i % 3] = value
            return state, diverged

        env.sim.step = broken
        obs, reward, terminated, _, info = env.step(torch.zeros(8, 28))
        assert info["diverged"][i % 8] and terminated[i % 8] and reward[i % 8] == 0 and info["diverged"].sum() == 1
        seen = (obs, reward, info["final_obs"], info["disc_obs"])
        assert all(torch.isfinite(x).all() and x.abs().max() < 1e3 for x in seen)
        assert all(torch.isfinite(x).all() for x in info["state"])


def test_absurd_actions_are_contained(walk):
    env = make_env(walk, 4)
    action = torch.zeros(4, 28)
    action[0], action[1], action[2] = 1e30, math.inf, -math.inf
    for _ in range(20):
        obs, reward, _, _, info = env.step(action)
        assert torch.isfinite(obs).all() and torch.isfinite(reward).all() and torch.isfinite(info["final_obs"]).all()


def test_the_same_seed_gives_the_same_numbers(walk):
    actions = 3 * random_actions(25, 8)
    logs = [roll_out(make_env(walk, 8, episode_steps=10), actions, seed=7) for _ in range(2)]
    assert (logs[0]["terminated"] | logs[0]["truncated"]).any()
    assert_same(*logs)
    other = roll_out(make_env(walk, 8, episode_steps=10), actions, seed=8)
    assert not torch.equal(other["obs"], logs[0]["obs"])


@both_scripts
def test_reset_with_a_seed_can_be_repeated(walk, script):
    """Whatever has been done before, the same starts follow in the same order, beyond the first pool of them."""
    env = make_env(walk, 8, episode_steps=20, script=script)
    actions = 5 * random_actions(45, 8)
    first = roll_out(env, actions, seed=5)
    assert first["terminated"].any(1).sum() > 3
    assert_same(first, roll_out(env, actions, seed=5))
    assert not torch.equal(env.reset(6)[0], first["before"][0])
    assert not torch.equal(env.reset()[0].clone(), env.reset()[0])  # without a seed the random numbers go on


@both_scripts
def test_new_episodes_take_turns_in_the_pool_of_starts(walk, script):
    """One environment ends at every step: it starts elsewhere each time, and the others notice nothing."""
    env = make_env(walk, 8, script=script)
    lying = standing(walk.character, 1, height=0.1)
    lying.rotations[:, 0] = ml.quat_from_rotvec(torch.tensor([0.0, math.pi / 2, 0.0]))
    others = env.time[1:].clone()
    times = []
    for _ in range(7):
        put(env.sim, torch.tensor([0]), lying)
        assert env.step(torch.zeros(8, 28))[2].tolist() == [True] + [False] * 7
        times.append(float(env.time[0]))
        assert torch.equal(env.time[1:], others)
    assert len(set(times)) == 7


@both_scripts
def test_clips_and_characters_that_do_not_serve(tmp_path, write_clip, character, script):
    """A clip has to hold the states that the discriminator sees, here ten frames; the character the key bodies."""
    motions = ml.MotionLib(write_clip(frames=10, fps=30.0), character)
    assert make_env(motions, script=script, disc_steps=10).time.tolist() == pytest.approx([8 / 30] * 8)
    with pytest.raises(ml.InputError, match=r"clip\.npz: shorter than 0\.333 s"):
        make_env(motions, script=script, disc_steps=11)
    one_armed = tmp_path / "one_armed.xml"
    one_armed.write_text(Path(character.path).read_text().replace('body name="left_hand"', 'body name="hook"'))
    with pytest.raises(ml.InputError, match=r"one_armed\.xml: no left_hand, which observations need"):
        ml.load_character(str(one_armed), "cpu", script.KEY_BODIES)


# ---- What the discriminator sees -------------------------------------------------------------------------------------


disc_steps_of_2_5_10 = pytest.mark.parametrize("disc_steps", [2, 5, 10])


def past(env):
    """What an episode that starts now has seen, says its clip: (N, S - 1, D). And how far it was lifted: (N,) [m]."""
    character = env.motions.character
    back = torch.arange(env.args.disc_steps - 2, -1, -1) / 30  # ... 2 / 30, 1 / 30, 0 [s]
    state = env.motions.state(env.clip[:, None], env.time[:, None] - back)
    position, rotation = ml.forward_kinematics(character, state.root_position, state.rotations)
    lift = (-ml.lowest_points(character, position, rotation)[:, -1].amin(-1)).clamp_min(0.0)
    seen = amp.observe(state, position, character, False)
    seen[..., 0] += lift[:, None]
    return seen, lift


@both_scripts
@disc_steps_of_2_5_10
def test_an_episode_knows_what_came_before_it_in_the_clip(all_motions, disc_steps, script):
    env = make_env(all_motions, 200, script=script, disc_steps=disc_steps)
    expected, lift = past(env)
    assert env.history.shape == (200, disc_steps - 1, D)
    assert (lift == 0).sum() > 30 and (lift > 0.005).sum() > 8  # there are both kinds
    torch.testing.assert_close(env.history, expected, atol=2e-4, rtol=0)
    state = env.sim.read()
    torch.testing.assert_close(look(state, all_motions.character), env.history[:, -1], atol=1e-4, rtol=0)


@both_scripts
@disc_steps_of_2_5_10
@pytest.mark.parametrize("reset_mode", ["random", "start", "hybrid"])
def test_the_past_lies_inside_a_clip_that_does_not_loop(write_clip, character, reset_mode, disc_steps, script):
    """It rises by 0.1 m/s from 0.9 m on for half a second; before and after that the height would stand still."""
    height = 0.9 + 0.1 * np.arange(16) / 30
    path = write_clip(frames=16, fps=30.0, root_position=np.stack((0 * height, 0 * height, height), -1))
    options = dict(reset_mode=reset_mode, disc_steps=disc_steps, script=script)
    env = make_env(ml.MotionLib(path, character), 200, **options)
    seen = env.history[..., 0]  # (N, S - 1)
    step = 0.1 / 30
    torch.testing.assert_close(seen.diff(dim=1), torch.full((200, disc_steps - 2), step), atol=1e-6, rtol=0)
    assert seen[:, 0].min() >= 0.9 - 1e-6 and seen[:, -1].max() + step <= height[-1] + 1e-6
    torch.testing.assert_close(seen[:, -1], 0.9 + 0.1 * env.time, atol=1e-6, rtol=0)
    at_start = (seen[:, 0] - 0.9).abs() < 1e-6
    shares = {"random": (0, 20), "start": (200, 200), "hybrid": (70, 130)}[reset_mode]
    assert shares[0] <= at_start.sum() <= shares[1]


@disc_steps_of_2_5_10
def test_the_past_is_lifted_with_the_start(write_clip, character, disc_steps):
    """It sinks into the ground by 0.1 m/s: whoever starts on the ground has come down to it."""
    height = 0.9 - 0.1 * np.arange(16) / 30
    path = write_clip(frames=16, fps=30.0, root_position=np.stack((0 * height, 0 * height, height), -1))
    env = make_env(ml.MotionLib(path, character), 200, disc_steps=disc_steps)
    seen = env.history[..., 0]
    torch.testing.assert_close(seen.diff(dim=1), torch.full((200, disc_steps - 2), -0.1 / 30), atol=1e-6, rtol=0)
    stands = env.sim.read().root_position[:, 2]
    torch.testing.assert_close(seen[:, -1], stands, atol=1e-6, rtol=0)
    lifted = stands > 0.9 - 0.1 * env.time + 1e-5
    assert lifted.sum() > 50
    torch.testing.assert_close(stands[lifted], stands.min().expand(int(lifted.sum())), atol=1e-6, rtol=0)


@both_scripts
@disc_steps_of_2_5_10
def test_a_transition_is_the_last_observations_of_one_episode(walk, disc_steps, script):
    env = make_env(walk, 16, episode_steps=20, script=script, disc_steps=disc_steps)
    lying = standing(walk.character, 1, height=0.1)
    lying.rotations[:, 0] = ml.quat_from_rotvec(torch.tensor([0.0, math.pi / 2, 0.0]))
    put(env.sim, torch.tensor([3]), lying)  # its episode is over at once
    window = env.history.clone()  # (N, S - 1, D)
    lengths = []
    for action in 5 * random_actions(45, 16):
        obs, _, terminated, truncated, info = env.step(action)
        window = torch.cat((window, info["final_obs"][:, None, :D]), 1)  # (N, S, D)
        assert torch.equal(info["disc_obs"].view(16, disc_steps, D), window)
        window = window[:, 1:]
        done = terminated | truncated
        lengths += info["episode_length"][done].tolist()
        # who starts anew has the clip's past, and nothing of the episode before
        torch.testing.assert_close(env.history[done], past(env)[0][done], atol=2e-4, rtol=0)
        window = torch.where(done[:, None, None], env.history, window)
        assert torch.equal(obs[:, :D], window[:, -1])
    assert len(lengths) > 20 and lengths[0] == 1 and max(lengths) == 20  # falls and time-outs


# ---- State -----------------------------------------------------------------------------------------------------------


def same(one, two):
    """Whether two states hold the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)
    return len(one) == len(two) and all(same(x, y) for x, y in zip(one, two))


@both_scripts
@pytest.mark.parametrize("disc_steps", [2, 5])
def test_going_back_to_a_state_repeats_the_same_steps(walk, script, disc_steps):
    """Also in an environment that has just been made. The pool of starts is drawn anew on the way."""
    options = dict(episode_steps=20, script=script, disc_steps=disc_steps)
    env = make_env(walk, 8, **options)
    actions = 5 * random_actions(50, 8)
    record(env, actions[:7])
    state = env.state_dict()
    kept = copy.deepcopy(state)
    first = record(env, actions[7:])
    assert first["terminated"].any() and first["truncated"].any()
    assert same(state, kept) and not same(state, env.state_dict())  # a copy
    env.load_state_dict(state)
    assert same(env.state_dict(), kept)
    assert_same(first, record(env, actions[7:]))
    assert same(state, kept)  # still: nobody works on what was handed in
    fresh = make_env(walk, 8, seed=99, **options)
    fresh.load_state_dict(state)
    assert_same(first, record(fresh, actions[7:]))


def holds_tensors(x):
    """Whether there is a tensor or a generator in x, however deep."""
    if isinstance(x, (torch.Tensor, torch.Generator)):
        return True
    if isinstance(x, dict):
        return any(map(holds_tensors, x.values()))
    if isinstance(x, (list, tuple, set)):
        return any(map(holds_tensors, x))
    return hasattr(x, "__dict__") and any(map(holds_tensors, vars(x).values()))


@both_scripts
def test_whatever_holds_tensors_is_part_of_the_state(walk, script):
    """All but the clips, which are read anew, and what is a fall, which they say."""
    env = make_env(walk, 4, script=script)
    expected = {name for name, x in vars(env).items() if holds_tensors(x)} - {"motions", "fallen"}
    state = env.state_dict()
    assert {"sim", "generator", "pool", "history", "steps", "action_offset"} < expected == set(state)
    if script is heading:
        goals = {name for name, x in vars(env.goals).items() if holds_tensors(x)}
        assert {"heading", "speed", "timer"} < goals == set(state["goals"])


@pytest.mark.parametrize("script, place", [(amp, "env"), (heading, "env"), (heading, "goals")])
def test_a_new_attribute_is_part_of_the_state(walk, script, place):
    env = make_env(walk, 4, script=script)
    holder = getattr(env, place, env)
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    holder.new = values.clone()
    holder.more = [torch.arange(4), torch.Generator().manual_seed(7)]
    state = env.state_dict()
    part = state.get(place, state)
    assert torch.equal(part["new"], values) and torch.equal(part["more"][0], torch.arange(4))
    holder.new.zero_()
    holder.more[0].zero_()
    drawn = torch.rand(5, generator=holder.more[1])
    assert torch.equal(part["new"], values)
    env.load_state_dict(state)
    assert torch.equal(holder.new, values) and torch.equal(holder.more[0], torch.arange(4))
    assert torch.equal(torch.rand(5, generator=holder.more[1]), drawn)


@both_scripts
def test_a_state_that_does_not_fit_is_refused(walk, script):
    env = make_env(walk, 4, script=script)
    with pytest.raises(ValueError, match=r"\(4,.*\) there and .* \(5,.*\) here"):
        make_env(walk, 5, script=script).load_state_dict(env.state_dict())
    state = env.state_dict()
    del state["history"]
    with pytest.raises(ValueError, match="history on one side only"):
        env.load_state_dict(state)


# ---- Evaluation ------------------------------------------------------------------------------------------------------

FIGURES = "episodes mean_episode_s fall_rate speed_m_s pose_error_m task_reward style_reward".split()


@pytest.fixture
def agent():
    """Its actor's mean action is a constant, its discriminator's logit 0, at first both zero."""
    torch.manual_seed(0)
    sizes = SimpleNamespace(obs_size=D, action_offset=torch.zeros(28), disc_obs_size=2 * D)
    agent = amp.Agent(sizes, (16, 16), -2.5)
    for net in (agent.average_actor, agent.disc):
        torch.nn.init.zeros_(net[-1].weight)
    return agent


def evaluate(agent, motions, steps, n=6, **options):
    """Figures and episodes of n episodes."""
    env = make_env(motions, n, steps, **options)
    return amp.evaluate(agent, env, env.args)[:2]


def test_evaluation_of_short_episodes(agent, walk):
    """Nobody falls within 0.1 s: the character still does what the clip does."""
    metrics, clips = evaluate(agent, walk, 3)
    assert set(FIGURES) <= set(metrics)
    assert metrics["episodes"] == 6 and metrics["fall_rate"] == 0 and metrics["mean_episode_s"] == pytest.approx(0.1)
    assert 0.7 < metrics["speed_m_s"] < 1.3 and 0.5 < metrics["task_reward"] <= 1
    assert metrics["style_reward"] == pytest.approx(math.log(2), abs=1e-5)
    assert 0 < metrics["pose_error_m"] < 0.05
    assert evaluate(agent, walk, 3)[0] == metrics
    assert len(clips) == 6
    for clip in clips:
        assert (clip.fps, clip.loop) == (30.0, "clamp")
        assert len(clip.root_position) == len(clip.rotations) == 4  # the start and three steps
        # no leap from one frame to the next, the last one included: the character walks at 1 m/s
        assert np.abs(np.diff(clip.root_position, axis=0)).max() < 0.15
        assert np.abs((clip.rotations[1:] * clip.rotations[:-1]).sum(-1)).min() > 0.9


def fold(agent, character):
    """Let hips and knees fold with all their force: everybody falls in less than a second."""
    for name, action in (("right_hip_y", -1.5), ("left_hip_y", -1.5), ("right_knee", 1.5), ("left_knee", 1.5)):
        agent.average_actor[-1].bias.data[character.dof_names.index(name)] = action


def test_evaluation_of_falls(agent, walk, character):
    fold(agent, character)
    metrics, clips = evaluate(agent, walk, 100)
    assert metrics["fall_rate"] == 1
    assert 0 < metrics["mean_episode_s"] < 1.5
    lost = 1 - metrics["mean_episode_s"] / (100 / 30)
    assert lost < metrics["pose_error_m"] < 1  # a metre for every lost step, and something for the others
    steps = [len(clip.root_position) - 1 for clip in clips]
    assert sum(steps) / 6 / 30 == pytest.approx(metrics["mean_episode_s"], abs=0.01)


def test_evaluation_ends_with_a_clip_that_does_not_loop(agent, write_clip, character):
    """The clip lasts 0.2 s: episodes that start at its beginning last six steps and count as whole."""
    motions = ml.MotionLib(write_clip(frames=7, fps=30.0, root_position=np.tile([0, 0, 0.8815], (7, 1))), character)
    metrics, clips = evaluate(agent, motions, 600, reset_mode="start")
    assert metrics["mean_episode_s"] == pytest.approx(0.2) and metrics["fall_rate"] == 0
    assert metrics["pose_error_m"] < 0.02
    assert [len(clip.root_position) for clip in clips] == [7] * 6  # the start and six steps
    metrics, _ = evaluate(agent, motions, 600)  # from anywhere: shorter, and nothing is lost
    assert 1 / 30 <= metrics["mean_episode_s"] < 0.2 and metrics["pose_error_m"] < 0.02


def test_falls_after_the_end_do_not_count(agent, write_clip, character, tmp_path):
    """Episodes on a clip of 0.2 s are over before anybody falls, and take no notice of the others, which go on."""
    standing_still = np.tile([0, 0, 0.8815], (7, 1))
    write_clip("short.npz", frames=7, fps=30.0, root_position=standing_still)
    write_clip("long.npz", frames=7, fps=2.0, root_position=standing_still, loop=np.array("wrap"))
    fold(agent, character)
    metrics, clips = evaluate(agent, ml.MotionLib(str(tmp_path), character), 90, n=20, reset_mode="start")
    steps = np.array([len(clip.root_position) for clip in clips])
    short = steps <= 7
    assert 3 < short.sum() < 17 and (steps[~short] < 60).all()
    assert metrics["fall_rate"] == pytest.approx((~short).mean())


@pytest.mark.parametrize("n", [4, 8])
def test_an_evaluation_changes_nothing_else(agent, walk, n):
    """It shares the simulator, which has 8 copies, with a training that goes on as if there had been none."""
    before = copy.deepcopy(agent.state_dict())
    actions = random_actions(30, 8)
    expected = roll_out(make_env(walk, 8), actions)
    env = make_env(walk, 8)
    judge = amp.AMPEnv(env.args, walk, env.sim, n, 5)
    env.reset(3)
    log = record(env, actions[:10])
    figures = amp.evaluate(agent, judge, env.args)[0]
    rest = record(env, actions[10:])
    assert_same(expected, {name: torch.cat((log[name], rest[name])) for name in log})
    assert amp.evaluate(agent, judge, env.args)[0] == figures and figures["episodes"] == n
    assert same(before, agent.state_dict())


@pytest.mark.parametrize("disc_loss, reward", [("bce", math.log(2)), ("lsgan", 0.75)])
def test_style_reward_of_an_evaluation(agent, walk, disc_loss, reward):
    assert evaluate(agent, walk, 2, disc_loss=disc_loss)[0]["style_reward"] == pytest.approx(reward, abs=1e-5)
