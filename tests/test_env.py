"""The observation, MuJoCo behind Sim, the environment's conventions, and the evaluation that runs in it."""

import math

import numpy as np
import pytest
import torch
from conftest import put
from hypothesis import given
from hypothesis import strategies as st

import amp_ppo_isaacgym as amp
import motion_lib as ml

pytest.importorskip("mujoco")

CPU = torch.device("cpu")
UPRIGHT = torch.tensor([0.0, 0.0, 0.0, 1.0])
# where the parts of an observation begin: height, root rotation, velocities, ball joints, hinges, dof velocities, key bodies
ROTATION, LINEAR, ANGULAR, BALLS, HINGES, DOFS, KEYS = 1, 7, 10, 13, 61, 65, 93


@pytest.fixture(autouse=True)
def in_tmp_path(monkeypatch, tmp_path):
    """MuJoCo writes its warnings into a file of the working directory."""
    monkeypatch.chdir(tmp_path)


def make_env(motions, num_envs=8, episode_steps=300, seed=1, **options):
    """An environment, reset with the seed."""
    args = amp.Args(cuda=False, num_envs=num_envs, seed=seed, target_speed=1.0, **options)
    env = amp.AMPEnv(args, motions, amp.MujocoSim(args, motions.character, num_envs, CPU), num_envs, episode_steps)
    env.reset(seed)
    return env


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
    return amp.observe(state, position, character)


# ----------------------------------------------------------------------------------------------------------------------------------
# Observation
# ----------------------------------------------------------------------------------------------------------------------------------


def test_observation_of_an_upright_character(character):
    obs = look(standing(character, 3), character)
    assert obs.shape == (3, 105)
    expected = torch.zeros(105)
    expected[0] = 0.9
    tangent_normal = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    expected[ROTATION:LINEAR] = tangent_normal
    expected[BALLS:HINGES] = tangent_normal.repeat(8)
    # from the bodies' offsets in humanoid.xml
    hand, foot = torch.tensor([-0.02405, -0.18311, -0.054084]), torch.tensor([0.0, -0.084887, -0.831416])
    mirror = torch.tensor([1.0, -1.0, 1.0])
    expected[KEYS:] = torch.cat((hand, hand * mirror, foot, foot * mirror))
    torch.testing.assert_close(obs, expected.expand(3, 105))


def test_observation_entries_by_hand(character):
    state = standing(character)
    names, dofs = character.body_names, character.dof_names
    # facing world +Y, leaning forward by 30 degrees
    lean = ml.quat_from_rotvec(torch.tensor([0.0, math.pi / 6, 0.0]))
    state.rotations[0, 0] = ml.quat_multiply(ml.quat_from_yaw(torch.tensor(math.pi / 2)), lean)
    state.root_velocity[0] = torch.tensor([0.5, 2.0, -0.25])
    state.root_angular_velocity[0] = torch.tensor([1.0, 3.0, 7.0])
    state.rotations[0, names.index("head")] = ml.quat_from_yaw(torch.tensor(math.pi / 2))
    state.rotations[0, names.index("right_lower_arm")] = ml.quat_from_rotvec(torch.tensor([0.0, -2.5, 0.0]))
    state.rotations[0, names.index("left_shin")] = -ml.quat_from_rotvec(
        torch.tensor([0.0, 0.75, 0.0])
    )  # the other sign of it
    state.dof_velocity[0] = torch.arange(28.0)
    obs = look(state, character)[0]
    cos, sin = math.sqrt(0.75), 0.5
    torch.testing.assert_close(
        obs[ROTATION:LINEAR], torch.tensor([cos, 0, -sin, sin, 0, cos])
    )  # where its X and Z axes point
    torch.testing.assert_close(obs[LINEAR:ANGULAR], torch.tensor([2.0, -0.5, -0.25]))
    torch.testing.assert_close(obs[ANGULAR:BALLS], torch.tensor([3.0, -1.0, 7.0]))
    torch.testing.assert_close(
        obs[BALLS + 6 : BALLS + 12], torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    )  # the head looks left
    hinges = [name for name in dofs if name.endswith(("elbow", "knee"))]
    bent = dict(zip(hinges, obs[HINGES:DOFS].tolist()))
    assert bent == pytest.approx(dict(right_elbow=-2.5, left_elbow=0.0, right_knee=0.0, left_knee=0.75), abs=1e-5)
    assert obs[DOFS:KEYS].tolist() == list(range(28))
    # the right foot hangs 0.831416 below the pelvis in its own frame: leaning forward puts it behind
    foot = torch.tensor([-0.831416 * sin, -0.084887, -0.831416 * cos])
    torch.testing.assert_close(obs[KEYS + 6 : KEYS + 9], foot)


@given(st.floats(-math.pi, math.pi), st.floats(-5, 5), st.floats(-5, 5))
def test_observation_does_not_depend_on_place_and_heading(all_motions, yaw, x, y):
    clip = torch.arange(20)
    state = all_motions.state(clip, 0.4 * all_motions.length)
    turn = ml.quat_from_yaw(torch.tensor(yaw)).expand(20, 4)
    moved = ml.MotionState(
        ml.quat_rotate(turn, state.root_position) + torch.tensor([x, y, 0.0]),
        torch.cat((ml.quat_multiply(turn, state.rotations[:, 0])[:, None], state.rotations[:, 1:]), 1),
        ml.quat_rotate(turn, state.root_velocity),
        ml.quat_rotate(turn, state.root_angular_velocity),
        state.dof_velocity,
    )
    torch.testing.assert_close(
        look(moved, all_motions.character), look(state, all_motions.character), atol=1e-4, rtol=1e-5
    )
    torch.testing.assert_close(amp.forward_speed(moved), amp.forward_speed(state), atol=1e-4, rtol=1e-5)


def test_tangent_normal_by_hand():
    q = torch.stack(
        (
            UPRIGHT,
            ml.quat_from_rotvec(torch.tensor([math.pi / 2, 0.0, 0.0])),
            ml.quat_from_yaw(torch.tensor(math.pi / 2)),
        )
    )
    expected = torch.tensor([[1.0, 0, 0, 0, 0, 1], [1, 0, 0, 0, -1, 0], [0, 1, 0, 0, 0, 1]])
    torch.testing.assert_close(amp.tangent_normal(q), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(amp.tangent_normal(-q), expected, atol=1e-6, rtol=0)


def test_demo_transitions_span_one_control_step(write_clip, character):
    """A character that rises by 0.1 m/s, so that the height of a state tells its time."""
    height = np.linspace(0.9, 1.0, 11)
    for loop, latest in (("clamp", 1.0), ("wrap", 1.0)):
        path = write_clip(frames=11, loop=np.array(loop), root_position=np.stack((0 * height, 0 * height, height), -1))
        transitions = amp.demo_transitions(ml.MotionLib(path, character), 500, 0.05, torch.Generator().manual_seed(0))
        assert transitions.shape == (500, 210)
        first, second = transitions[:, 0], transitions[:, 105]
        assert first.min() >= 0.9 - 1e-6 and first.max() < 0.9 + 0.1 * latest
        step = second - first
        over_the_seam = step < 0  # where a loop's height starts afresh
        torch.testing.assert_close(
            step[~over_the_seam], torch.full((int((~over_the_seam).sum()),), 0.005), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(
            step[over_the_seam], torch.full((int(over_the_seam.sum()),), 0.005 - 0.1), atol=1e-6, rtol=0
        )
        assert over_the_seam.any() == (loop == "wrap")


def test_demo_transitions_are_what_the_character_looks_like(walk, character):
    transitions = amp.demo_transitions(walk, 64, 1 / 30, torch.Generator().manual_seed(2))
    frames = walk.state(torch.zeros(1267, dtype=torch.long), torch.arange(1267) / 1000)  # the clip, a millisecond apart
    distance, nearest = torch.cdist(transitions[:, :105], look(frames, character)).min(1)
    assert distance.max() < 0.3  # joint speeds change by up to 100 rad/s in a second
    later = walk.state(torch.zeros(64, dtype=torch.long), nearest / 1000 + 1 / 30)
    assert (transitions[:, 105:] - look(later, character)).norm(dim=-1).max() < 0.3


# ----------------------------------------------------------------------------------------------------------------------------------
# MuJoCo
# ----------------------------------------------------------------------------------------------------------------------------------


def test_states_read_back_give_the_same_observation(character, all_motions):
    for number in range(20):
        frames = int(all_motions.last[number]) + 1
        state = all_motions.state(torch.full((frames,), number), torch.arange(frames) / all_motions.fps[number])
        sim = amp.MujocoSim(amp.Args(substeps=3), character, frames, CPU)
        put(sim, torch.arange(frames), state)
        back = sim._read()  # from MuJoCo's coordinates, not from what was handed in
        torch.testing.assert_close(look(back, character), look(state, character), atol=1e-4, rtol=0)
        torch.testing.assert_close(back.root_position, state.root_position, atol=1e-6, rtol=0)


def test_setting_some_environments_leaves_the_others(character, all_motions):
    sim = amp.MujocoSim(amp.Args(substeps=3), character, 4, CPU)
    states = all_motions.state(torch.arange(4), torch.zeros(4))
    put(sim, torch.arange(4), states)
    before = sim.state.copy()
    put(sim, torch.tensor([2, 0]), standing(character, 2, height=5.0))
    assert (sim.state[[1, 3]] == before[[1, 3]]).all()
    height = sim._read().root_position[:, 2]
    assert height[[0, 2]].tolist() == [5.0, 5.0]


def test_free_fall(character):
    """Thrown upwards at 2 m/s, turning: gravity does the rest."""
    sim = amp.MujocoSim(amp.Args(substeps=3), character, 1, CPU)
    state = standing(character, height=5.0)
    state.root_velocity[0] = torch.tensor([1.0, -0.5, 2.0])
    state.root_angular_velocity[0] = torch.tensor([0.0, 0.0, 1.0])
    put(sim, torch.tensor([0]), state)
    for _ in range(
        15
    ):  # half a second; the centre of mass lies above the root, which circles around it by a few millimetres
        state, diverged = sim.step(torch.zeros(1, 28))
    assert not diverged.any()
    torch.testing.assert_close(
        state.root_position[0], torch.tensor([0.5, -0.25, 5 + 1.0 - 9.81 / 8]), atol=0.03, rtol=0
    )
    assert float(ml.heading(state.rotations[0, 0])) == pytest.approx(0.5, abs=0.03)


def test_targets_are_held_and_reached(character):
    """In free fall, so that no contact interferes: exponential-map targets on the ball joints, angles on the hinges."""
    generator = torch.Generator().manual_seed(5)
    target = (torch.rand(28, generator=generator) * 0.6 - 0.3).repeat(2, 1)
    for d, name in enumerate(
        character.dof_names
    ):  # arms and legs apart, so that they do not touch; hinges in their range
        if name.endswith(("shoulder_x", "hip_x", "knee", "elbow")):
            target[:, d] = 0.4 if name in ("left_shoulder_x", "left_hip_x", "left_knee", "right_knee") else -0.4
    state = standing(character, 2, height=100.0)
    for body in set(
        character.dof_body.tolist()
    ):  # the first character starts in the target pose, the second one upright
        dofs = [d for d, b in enumerate(character.dof_body.tolist()) if b == body]
        state.rotations[0, body] = ml.quat_from_rotvec((target[0, dofs, None] * character.dof_axis[dofs]).sum(0))
    sim = amp.MujocoSim(amp.Args(substeps=3), character, 2, CPU)
    put(sim, torch.arange(2), state)
    for step in range(30):
        state, _ = sim.step(target)
        position = ml.dof_positions(character, state.rotations)
        assert (position[0] - target[0]).abs().max() < 0.01  # held throughout
        if step == 0:
            assert (position[1] - target[1]).abs().max() > 0.05  # not there at once
    assert (position[1] - target[1]).abs().max() < 0.01  # and reached


def test_torque_limit(character):
    """A knee has 150 Nm: a target 10 rad off pulls no harder than one 5 rad off, and one 0.1 rad off less hard."""
    sim = amp.MujocoSim(amp.Args(substeps=3), character, 3, CPU)
    put(sim, torch.arange(3), standing(character, 3, height=3.0))
    target = torch.zeros(3, 28)
    knee = character.dof_names.index("left_knee")
    target[:, knee] = torch.tensor([0.1, 5.0, 10.0])
    state, _ = sim.step(target)
    angle = ml.dof_positions(character, state.rotations)[:, knee]
    assert 0.01 < angle[0] < 0.9 * angle[1]
    torch.testing.assert_close(angle[2], angle[1], atol=1e-6, rtol=0)


# ----------------------------------------------------------------------------------------------------------------------------------
# Environment
# ----------------------------------------------------------------------------------------------------------------------------------


def test_spaces_and_shapes(walk):
    args = amp.Args(cuda=False, target_speed=1.0)
    env = amp.AMPEnv(args, walk, amp.MujocoSim(args, walk.character, 8, CPU), 8, 300)
    assert env.single_observation_space.shape == (105,) and env.single_action_space.shape == (28,)
    obs, info = env.reset(3)
    assert obs.shape == (8, 105) and obs.dtype == torch.float32 and isinstance(info, dict)
    obs, reward, terminated, truncated, info = env.step(torch.zeros(8, 28))
    assert obs.shape == (8, 105) and reward.shape == (8,) and torch.isfinite(obs).all()
    assert terminated.shape == truncated.shape == (8,) and terminated.dtype == truncated.dtype == torch.bool
    assert info["final_obs"].shape == (8, 105) and info["disc_obs"].shape == (8, 210)
    assert info["episode_length"].tolist() == [1] * 8


def test_an_episode_starts_in_a_state_of_the_clip(all_motions, character):
    """Frames above the ground are taken as they are, frames below it are raised onto it."""
    env = make_env(all_motions, 200)
    obs, _ = env.reset(0)
    clip = all_motions.state(env.clip, env.time)
    position, rotation = ml.forward_kinematics(character, clip.root_position, clip.rotations)
    low = ml.lowest_points(character, position, rotation).amin(-1)
    state = env.sim._read()
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
    assert make_env(clamp, 200).time.max() <= 0.1 - 1 / 30 + 1e-6


def test_zero_action_is_the_clips_mean_pose(write_clip, character):
    rotations = np.tile(UPRIGHT.numpy(), (3, 15, 1))
    knee = character.body_names.index("left_shin")
    for frame, angle in enumerate((0.2, 0.4, 0.6)):
        rotations[frame, knee] = [0, math.sin(angle / 2), 0, math.cos(angle / 2)]
    env = make_env(ml.MotionLib(write_clip(rotations=rotations, frames=3), character), 1, action_scale=2.0)
    targets = []
    env.sim.step = lambda target: (targets.append(target), amp.MujocoSim.step(env.sim, target))[1]
    env.step(torch.zeros(1, 28))
    env.step(torch.full((1, 28), 0.25))
    expected = torch.zeros(1, 28)
    expected[0, character.dof_names.index("left_knee")] = 0.4
    torch.testing.assert_close(targets[0], expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(targets[1], expected + 0.5, atol=1e-3, rtol=0)


def roll_out(env, actions, seed=3):
    """Reset, then every quantity of every step, each (steps, N, ...)."""
    obs, steps = env.reset(seed)[0].clone(), []
    for action in actions:
        before = obs.clone()
        obs, reward, terminated, truncated, info = env.step(action)
        tensors = {
            key: value.clone() for key, value in {**info, **info["scores"]}.items() if isinstance(value, torch.Tensor)
        }
        state = {f"state_{name}": value.clone() for name, value in info["state"]._asdict().items()}
        steps.append(
            dict(
                before=before,
                obs=obs.clone(),
                reward=reward,
                terminated=terminated,
                truncated=truncated,
                **tensors,
                **state,
            )
        )
    return {key: torch.stack([step[key] for step in steps]) for key in steps[0]}


def test_steps_hang_together_across_resets(walk):
    env = make_env(walk, 16, episode_steps=20)
    log = roll_out(env, 5 * random_actions(45, 16))
    done = log["terminated"] | log["truncated"]
    assert log["terminated"].any() and log["truncated"].any()  # falls and time-outs, both
    # a transition starts where the step before has left the character, and ends before the reset
    assert torch.equal(log["disc_obs"][..., :105], log["before"]) and torch.equal(
        log["disc_obs"][..., 105:], log["final_obs"]
    )
    assert torch.equal(log["obs"][~done], log["final_obs"][~done])
    assert ((log["obs"] - log["final_obs"])[done].abs().amax(-1) > 0.1).all()
    # whoever has fallen lies low in the last observation and stands in the next one
    assert log["final_obs"][log["terminated"]][:, 0].max() < 0.8 < log["obs"][log["terminated"]][:, 0].min()
    # every episode counts its steps from one
    length, expected = log["episode_length"], torch.zeros(16, dtype=torch.long)
    for t in range(45):
        expected = expected + 1
        assert torch.equal(length[t], expected)
        expected = torch.where(done[t], torch.zeros_like(expected), expected)
    assert not (log["terminated"] & log["truncated"]).any()
    assert torch.equal(log["truncated"], (length == 20) & ~log["terminated"])


def test_a_time_out_changes_nothing_about_its_step(walk):
    """The same actions in an environment whose episodes last longer: reward, final state and transition are the same, bit for bit."""
    short, long = make_env(walk, 4, episode_steps=3), make_env(walk, 4, episode_steps=50)
    actions = random_actions(3, 4)
    logs = [roll_out(env, actions) for env in (short, long)]
    assert logs[0]["truncated"][-1].all() and not logs[1]["truncated"].any()
    for name in logs[0]:
        if name not in ("obs", "truncated"):
            assert torch.equal(logs[0][name], logs[1][name]), name


def test_the_state_in_info_is_the_one_before_the_reset(walk, character):
    env = make_env(walk, 8, episode_steps=4)
    log = roll_out(env, random_actions(9, 8))
    for t in range(9):
        state = ml.MotionState(*(log[f"state_{name}"][t] for name in ml.MotionState._fields))
        torch.testing.assert_close(look(state, character), log["final_obs"][t], atol=1e-6, rtol=0)
        torch.testing.assert_close(log["speed_m_s"][t], log["final_obs"][t][:, LINEAR], atol=1e-6, rtol=0)
        torch.testing.assert_close(log["reward"][t], amp.task_reward(amp.forward_speed(state), 1.0))


def test_the_task_none_has_no_reward(walk):
    env = make_env(walk, 4, task="none")
    assert roll_out(env, random_actions(3, 4))["reward"].abs().max() == 0


def test_a_fall_terminates(walk, character):
    """Two characters in the air above the floor, lying: one 0.3 m up, one 3 m. And two upright, on and above the floor."""
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
    """On all fours an episode of crawling goes on and one of walking ends; on its back, with the head on the ground, both end."""
    crawl = ml.MotionLib(str(root / "motions/crawl.npz"), character)
    on_all_fours = crawl.state(torch.zeros(20, dtype=torch.long), torch.linspace(0, 2.9, 20))
    low = ml.lowest_points(
        character, *ml.forward_kinematics(character, on_all_fours.root_position, on_all_fours.rotations)
    )
    on_all_fours.root_position[:, 2] -= low.amin(-1) + 0.02  # pressed into the ground
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


@pytest.mark.parametrize("what", ["NaN position", "NaN velocity", "infinite velocity", "huge velocity", "fast fall"])
def test_a_broken_simulation_is_contained(walk, what):
    """Corrupt one environment's state: it ends as diverged, starts anew, and the others never notice."""
    env, healthy = make_env(walk, 4), make_env(walk, 4)
    actions = random_actions(4, 4)
    for e in (env, healthy):
        e.step(actions[0])
    row = env.sim.state[1]
    velocity = len(row) - env.sim.model.nv
    if what == "NaN position":
        row[3] = np.nan
    else:
        row[velocity + (2 if what == "fast fall" else 9)] = {
            "NaN": np.nan,
            "infinite": np.inf,
            "huge": 1e12,
            "fast": -1e3,
        }[what.split()[0]]
    others = [0, 2, 3]
    obs, reward, terminated, truncated, info = env.step(actions[1])
    expected = healthy.step(actions[1])
    assert info["diverged"].tolist() == [False, True, False, False]
    assert terminated.tolist() == [False, True, False, False] and not truncated.any()
    assert torch.isfinite(obs).all()
    assert np.isfinite(env.sim.state).all()
    # what goes into buffers and normalisers is sane as well
    assert (
        torch.isfinite(reward).all() and torch.isfinite(info["disc_obs"]).all() and info["final_obs"].abs().max() < 100
    )
    for action in actions[2:]:
        assert torch.equal(obs[others], expected[0][others])
        obs, reward, terminated, _, info = env.step(action)
        expected = healthy.step(action)
        assert torch.isfinite(obs).all() and torch.isfinite(reward).all() and not info["diverged"].any()
        assert obs.abs().max() < 100


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
    for name in logs[0]:
        assert torch.equal(logs[0][name], logs[1][name]), name
    other = roll_out(make_env(walk, 8, episode_steps=10), actions, seed=8)
    assert not torch.equal(other["obs"], logs[0]["obs"])


def test_reset_with_a_seed_can_be_repeated(walk):
    env = make_env(walk, 8, episode_steps=6)
    actions = random_actions(10, 8)
    first, again = roll_out(env, actions, seed=5), roll_out(env, actions, seed=5)
    for name in first:
        assert torch.equal(first[name], again[name]), name
    assert not torch.equal(env.reset(6)[0], first["before"][0])
    assert not torch.equal(env.reset()[0].clone(), env.reset()[0])  # without a seed the random numbers go on


# ----------------------------------------------------------------------------------------------------------------------------------
# Evaluation
# ----------------------------------------------------------------------------------------------------------------------------------

KEYS_OF_METRICS = {
    "episodes",
    "mean_episode_s",
    "fall_rate",
    "speed_m_s",
    "pose_error_m",
    "task_reward",
    "style_reward",
}


@pytest.fixture
def agent():
    """Its actor's mean action is a constant, its discriminator's logit 0, at first both zero."""
    torch.manual_seed(0)
    agent = amp.Agent(105, 210, 28, (16, 16), -2.5)
    for net in (agent.actor, agent.disc):
        torch.nn.init.zeros_(net[-1].weight)
    return agent


def evaluate(agent, motions, steps, n=6, **options):
    env = make_env(motions, n, steps, **options)
    args = amp.Args(cuda=False, num_envs=n, target_speed=1.0, **options)
    return amp.evaluate(agent, env, args)[:2]


def test_evaluation_of_short_episodes(agent, walk):
    """Nobody falls within 0.1 s: the character still does what the clip does."""
    metrics, clips = evaluate(agent, walk, 3)
    assert set(metrics) == KEYS_OF_METRICS
    assert metrics["episodes"] == 6 and metrics["fall_rate"] == 0 and metrics["mean_episode_s"] == pytest.approx(0.1)
    assert 0.7 < metrics["speed_m_s"] < 1.3 and 0.5 < metrics["task_reward"] <= 1
    assert metrics["style_reward"] == pytest.approx(math.log(2), abs=1e-5)
    assert 0 < metrics["pose_error_m"] < 0.05
    assert evaluate(agent, walk, 3)[0] == metrics
    assert len(clips) == 6
    for clip in clips:
        assert (clip.fps, clip.loop) == (30.0, "clamp") and len(clip.root_position) == len(
            clip.rotations
        ) == 4  # the start and three steps
        # no leap from one frame to the next, the last one included: the character walks at 1 m/s
        assert np.abs(np.diff(clip.root_position, axis=0)).max() < 0.15
        assert np.abs((clip.rotations[1:] * clip.rotations[:-1]).sum(-1)).min() > 0.9


def fold(agent, character):
    """Let hips and knees fold with all their force: everybody falls in less than a second."""
    for name, action in (("right_hip_y", -1.5), ("left_hip_y", -1.5), ("right_knee", 1.5), ("left_knee", 1.5)):
        agent.actor[-1].bias.data[character.dof_names.index(name)] = action


def test_evaluation_of_falls(agent, walk, character):
    fold(agent, character)
    metrics, clips = evaluate(agent, walk, 100)
    assert metrics["fall_rate"] == 1
    assert 0 < metrics["mean_episode_s"] < 1.5
    lost = 1 - metrics["mean_episode_s"] / (100 / 30)
    assert lost < metrics["pose_error_m"] < 1  # a metre for every lost step, and something for the others
    assert sum(len(clip.root_position) - 1 for clip in clips) / 6 / 30 == pytest.approx(
        metrics["mean_episode_s"], abs=0.01
    )


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
    """Episodes on a clip of 0.2 s are over before anybody falls; they take no notice of those on the other clip, which go on."""
    standing_still = np.tile([0, 0, 0.8815], (7, 1))
    write_clip("short.npz", frames=7, fps=30.0, root_position=standing_still)
    write_clip("long.npz", frames=7, fps=2.0, root_position=standing_still, loop=np.array("wrap"))
    fold(agent, character)
    metrics, clips = evaluate(agent, ml.MotionLib(str(tmp_path), character), 90, n=20, reset_mode="start")
    steps = np.array([len(clip.root_position) for clip in clips])
    short = steps <= 7
    assert 3 < short.sum() < 17 and (steps[~short] < 60).all()
    assert metrics["fall_rate"] == pytest.approx((~short).mean())


def test_evaluation_leaves_the_agent_alone(agent, walk):
    before = {key: value.clone() for key, value in agent.state_dict().items()}
    evaluate(agent, walk, 3)
    assert all(torch.equal(value, before[key]) for key, value in agent.state_dict().items())
