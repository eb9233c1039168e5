"""evaluation: pose errors by hand and against all warping paths, nearest clips, commands, roll-outs, pictures, film."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import evaluation
import motion_lib as ml

# ---- Pose error ------------------------------------------------------------------------------------------------------


def track(*x):
    """One episode of two bodies; both are x metres from the origin: (1, T, 2, 3)."""
    distance = torch.tensor([float(v) for v in x])[None, :, None, None].expand(1, len(x), 2, 1)
    return distance * torch.tensor([1.0, 0.0, 0.0])


def error(simulated, reference, steps=None, horizon=None, **options):
    steps = simulated.shape[1] if steps is None else steps
    horizon = steps if horizon is None else horizon
    return float(evaluation.pose_error(simulated, reference, torch.tensor([steps]), horizon, **options)[0])


def test_pose_error_of_perfect_imitation():
    motion = track(0, 1, 4, 9, 16)
    assert error(motion, motion) == 0
    assert error(motion, track(0, 1, 4, 9, 16, 25, 36)) == 0  # the reference goes on
    assert error(motion[:, :1], motion) == 0


def test_pose_error_of_a_constant_offset():
    still = track(0, 0, 0)
    off = still.clone()
    off[:, :, 1, 2] = 0.5  # one of the two bodies is half a metre too high
    assert error(off, still) == pytest.approx(0.25)
    off[:, :, 0] += torch.tensor([0.3, 0.4, 0.0])  # and the other one half a metre away, too
    assert error(off, still) == pytest.approx(0.5)


def test_pose_error_ignores_the_pace():
    assert error(track(0, 0, 1, 1, 2, 2, 3, 3), track(0, 1, 2, 3, 4)) == 0  # at half the speed
    # at double: three of five steps hit, two miss by 1 m
    assert error(track(0, 2, 4), track(0, 1, 2, 3, 4, 5)) == pytest.approx(0.4)


def test_pose_error_starts_at_the_episodes_own_phase():
    # the first frames are always matched with one another, 3 m apart; the three others with a frame 1 m away
    assert error(track(0, 0, 0, 0), track(3, 1)) == pytest.approx((3 + 1 + 1 + 1) / 4)


def test_pose_error_from_anywhere_in_the_reference():
    reference = track(5, 4, 0, 1, 2, 3)
    assert error(track(0, 1, 2), reference, any_start=True) == 0
    assert error(track(0, 1, 2), reference) > 0.5
    assert error(track(3), reference, any_start=True) == 0  # the last frame alone
    assert error(track(2, 1), reference, any_start=True) == pytest.approx(0.5)  # backwards is not on offer


def test_a_clip_that_ends_is_to_be_done_to_its_end():
    """Five steps; the clip is at its end after three. Who stands still misses four frames of it, by 7 m in all."""
    to_end = torch.tensor([True])
    reference = track(0, 1, 2, 2, 2, 2, 2)
    assert error(track(0, 0, 0, 0, 0), reference) == 0
    assert 7 / 9 - 1e-6 <= error(track(0, 0, 0, 0, 0), reference, to_end=to_end) <= 7 / 5 + 1e-6
    assert error(track(0, 0, 0, 1, 2), reference, to_end=to_end) == 0  # late, but done
    assert error(track(0, 0, 0, 0, 0), reference, steps=4, horizon=5, to_end=to_end) == pytest.approx(0.2)  # it fell


def test_lost_steps_count_one_metre():
    motion = track(0, 1, 2, 3)
    assert error(motion, motion, steps=4, horizon=10) == pytest.approx(0.6)
    assert error(motion + 0.1 * track(1, 1, 1, 1), motion, steps=4, horizon=5) == pytest.approx((4 * 0.1 + 1) / 5)
    assert error(motion, motion, steps=0, horizon=10) == pytest.approx(1.0)
    # what comes after the fall does not count
    assert error(track(0, 1, 50, 60), motion, steps=2, horizon=2) == 0
    assert error(track(0, 1, 50, 60), motion, steps=2, horizon=4) == pytest.approx(0.5)


def best_path_by_enumeration(cost, any_start):
    """Mean over the cheapest of all warping paths that end in the last row; the best over the columns it may end in."""

    def paths(i, j):
        if i == 0 and (j == 0 or any_start):
            yield [cost[0][j]]
        for di, dj in ((1, 0), (0, 1), (1, 1)):
            if i >= di and j >= dj:
                for path in paths(i - di, j - dj):
                    yield [*path, cost[i][j]]

    cheapest = [min(paths(len(cost) - 1, j), key=sum) for j in range(len(cost[0]))]
    return min(sum(path) / len(path) for path in cheapest)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**31), st.booleans())
def test_pose_error_against_all_paths(rows, columns, seed, any_start):
    generator = torch.Generator().manual_seed(seed)
    simulated = torch.rand(3, 4, 2, 3, generator=generator)
    reference = torch.rand(3, columns, 2, 3, generator=generator)
    steps = torch.tensor([rows, 1, 4])
    errors, *_ = evaluation.pose_error(simulated, reference, steps, 4, any_start)
    cost = (simulated[:, :, None] - reference[:, None]).norm(dim=-1).mean(-1).tolist()
    for e, alive in enumerate(steps.tolist()):
        expected = (best_path_by_enumeration(cost[e][:alive], any_start) * alive + (4 - alive)) / 4
        assert float(errors[e]) == pytest.approx(expected, abs=1e-5)


def test_one_reference_for_all_episodes():
    simulated = torch.rand(5, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([4, 3, 2, 1, 0])
    shared = evaluation.pose_error(simulated, simulated[:1], steps, 4)
    own = evaluation.pose_error(simulated, simulated[:1].repeat(5, 1, 1, 1), steps, 4)
    assert shared[0].equal(own[0]) and shared[1].equal(own[1]) and shared[0][0] == 0


def test_pose_error_with_a_horizon_for_each_episode():
    motion = track(0, 1, 2, 3).repeat(2, 1, 1, 1)
    errors, *_ = evaluation.pose_error(motion, motion, torch.tensor([4, 2]), torch.tensor([4, 8]))
    assert errors.tolist() == pytest.approx([0.0, 0.75])


def test_the_error_of_each_body_over_time():
    """Two bodies, the second off by 3 cm in the last frame of three; pace does not count, nor frames after a fall."""
    reference = torch.zeros(1, 5, 2, 3)
    reference[0, :, :, 0] = torch.tensor([0.0, 1, 2, 3, 4])[:, None]
    simulated = reference[:, ::2].clone()  # twice as fast
    simulated[0, 2, 1, 1] = 0.03
    error, bodies, end = evaluation.pose_error(simulated, reference, torch.tensor([3]), 3)
    torch.testing.assert_close(bodies[0, 2], torch.tensor([0.0, 0.03]))
    assert bodies[0, 0].max() == 0 and error < 0.6 and end.tolist() == [4]
    two = torch.cat((bodies, bodies + 1.0))
    mean = evaluation.mean_over_episodes(two, torch.tensor([3, 1]))
    torch.testing.assert_close(mean[0], torch.tensor([0.5, 0.5]))  # both live
    torch.testing.assert_close(mean[2], torch.tensor([0.0, 0.03]))  # the second has fallen
    assert evaluation.mean_over_episodes(two, torch.tensor([1, 1]))[1].isnan().all()


def test_relative_positions_by_hand():
    position = torch.zeros(15, 3) + torch.tensor([2.0, 3.0, 0.5])
    position[1] = torch.tensor([2.0, 4.0, 1.5])  # a metre along world +Y and one up
    relative = evaluation.relative_positions(position, ml.quat_from_yaw(torch.tensor(math.pi / 2)))
    assert relative.shape == (14, 3)
    torch.testing.assert_close(relative[0], torch.tensor([1.0, 0.0, 1.0]), atol=1e-6, rtol=0)  # which is ahead of it
    assert relative[1:].abs().max() == 0


@given(st.floats(-3, 3), st.floats(-50, 50), st.floats(-50, 50))
def test_relative_positions_do_not_depend_on_place_and_heading(walk, yaw, x, y):
    state = walk.state(torch.zeros(3, dtype=torch.long), torch.tensor([0.1, 0.5, 1.0]))
    here, rotation = ml.forward_kinematics(walk.character, state.root_position, state.rotations)
    turn = ml.quat_from_yaw(torch.tensor(yaw))
    there = ml.quat_rotate(turn, here) + torch.tensor([x, y, 0.0])
    mine = evaluation.relative_positions(here, rotation[:, 0])
    theirs = evaluation.relative_positions(there, ml.quat_multiply(turn.expand(3, 4), rotation[:, 0]))
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


GAIT = ("cadence_hz", "stride_m", "foot_slide_m", "swing_clearance_m", "contact_order")
FEET = ("right_foot", "left_foot")


def imitate(motions, clip, start, pace, n, steps=None, change=lambda state: state, thorough=False):
    """Figures of episodes of n steps of 1/30 s that play their clips at some pace, changed; steps: lived."""
    states = [change(motions.state(clip, start + pace * k / 30)) for k in range(n + 1)]
    limit = torch.full_like(clip, n)
    steps = limit if steps is None else steps
    return evaluation.imitation(motions, states, steps, limit, clip, start, 1 / 30, FEET, thorough)


def test_imitation_by_the_clips_themselves(all_motions):
    """Episodes that do what their clips do, at their pace or 1.4 times it, have hardly any error; lost steps count."""
    clip = torch.tensor([0, 7, 3])
    start = torch.tensor([0.2, 0.0, 0.4])
    figures, bodies = imitate(all_motions, clip, start, 1.0, 30)
    assert figures == {
        "pose_error_m": pytest.approx(0.0, abs=1e-6),
        "pose_error_on_clock_m": pytest.approx(0.0, abs=1e-6),
        "tempo": 1.0,
    }
    assert bodies.shape == (30, 14) and bodies.max() < 1e-5
    fell = torch.tensor([30, 15, 30])
    figures, _ = imitate(all_motions, clip, start, 1.0, 30, fell)
    assert figures["pose_error_m"] == pytest.approx(0.5 / 3, abs=1e-6)
    assert figures["pose_error_on_clock_m"] == pytest.approx(0.0, abs=1e-6)  # what is lost is not held against it
    assert figures["tempo"] == 1.0  # of those that did not fall
    figures, _ = imitate(all_motions, clip, start, 1.4, 30)
    assert 0.001 < figures["pose_error_m"] < 0.03 < figures["pose_error_on_clock_m"]
    states = [all_motions.state(clip, start + k / 30) for k in range(31)]
    limit = torch.full_like(clip, 30)
    figures, _ = evaluation.imitation(all_motions, states, limit, limit, clip.flip(0), start, 1 / 30, FEET, False)
    assert figures["pose_error_m"] > 0.1
    assert imitate(all_motions, clip, start, 1.0, 30, 0 * fell)[0] == {"pose_error_m": 1.0}  # nothing else is known
    assert "tempo" not in imitate(all_motions, clip, start, 1.0, 30, fell.clamp(max=29))[0]  # all fell


@pytest.mark.parametrize("pace", [0.8, 1.0, 1.25])
def test_tempo(walk, pace):
    """Of a walk at .8 or 1.25 times its speed; the warped error does not see it, the one on the clock does."""
    clip = torch.zeros(2, dtype=torch.long)
    figures, _ = imitate(walk, clip, torch.tensor([0.1, 0.7]), pace, 150)
    assert figures["tempo"] == pytest.approx(pace, rel=0.02) and figures["pose_error_m"] < 0.012
    assert figures["pose_error_on_clock_m"] < 1e-6 if pace == 1.0 else figures["pose_error_on_clock_m"] > 0.08


def test_tempo_of_who_stands_still(walk):
    clip = torch.zeros(1, dtype=torch.long)
    figures, _ = imitate(walk, clip, torch.zeros(1), 0.0, 90)
    assert figures["tempo"] < 0.3


def test_a_clip_that_ends_has_no_tempo(root, character):
    """A punch ends in a pose that is held: the path goes there, however late. Who only stands there has an error."""
    motions = ml.MotionLib(str(root / "motions/punch.npz"), character)
    clip = torch.zeros(1, dtype=torch.long)
    figures = imitate(motions, clip, motions.length - 0.5, 1.0, 15)[0]
    assert "tempo" not in figures and max(figures["pose_error_on_clock_m"], figures["pose_error_m"]) < 1e-6
    still = imitate(motions, clip, 0 * motions.length, 0.0, 64, thorough=True)[0]  # in its stance, all the time
    assert still["pose_error_m"] > 0.05 and still["pose_error_unaligned_m"] > 0.05


def test_the_three_rules_by_hand(walk):
    """A walk that faces a quarter turn to the left, and one whose root is 6 cm too low and all else in place."""
    clip = torch.zeros(1, dtype=torch.long)
    turn = ml.quat_from_yaw(torch.tensor([math.pi / 2]))
    figures, _ = imitate(walk, clip, torch.zeros(1), 1.0, 20, None, lambda state: ml.turn_state(state, turn), True)
    assert figures["pose_error_m"] < 1e-5 and figures["pose_error_on_clock_m"] < 1e-5
    # a body that is r away from the root's vertical is sqrt(2) r off; the warping makes little of it; the root counts
    position, _ = evaluation.bodies_of(
        walk.character, walk.state(clip[:, None].expand(1, 20), torch.arange(1, 21)[None] / 30)
    )
    away = (position - position[:, :, :1])[..., :2].norm(dim=-1)
    assert figures["pose_error_unaligned_m"] == pytest.approx(float(2**0.5 * away.mean()), rel=0.15)
    assert "turns_per_s" not in figures and "cadence_hz" not in figures  # .67 s are no gait


def test_gait_and_turns_stand_beside_the_clips(walk, root, character):
    clip = torch.zeros(2, dtype=torch.long)
    figures, _ = imitate(walk, clip, torch.tensor([0.1, 0.7]), 1.25, 240, thorough=True)
    assert figures["clip_cadence_hz"] == pytest.approx(0.79, abs=0.005)
    assert figures["cadence_hz"] == pytest.approx(1.25 * 0.79, abs=0.01)
    assert figures["contact_order"] == figures["clip_contact_order"] == "RL"
    assert not [name for name in figures if "turns" in name]
    assert figures["rise_m"] == pytest.approx(figures["clip_rise_m"], abs=0.002) and 0.02 < figures["rise_m"] < 0.06
    flip = ml.MotionLib(str(root / "motions/backflip.npz"), character)
    figures, _ = imitate(flip, clip, torch.tensor([0.1, 0.7]), 0.8, 150, thorough=True)
    assert figures["clip_turns_per_cycle"] == pytest.approx(1.0, abs=0.05)
    assert figures["turns_per_cycle"] == pytest.approx(1.0, abs=0.08)
    assert figures["turns_per_s"] == pytest.approx(0.8 * figures["clip_turns_per_s"], rel=0.05)
    assert figures["rise_m"] == pytest.approx(figures["clip_rise_m"], abs=0.02) and figures["rise_m"] > 0.4
    assert "cadence_hz" not in figures and "clip_cadence_hz" not in figures
    assert all(isinstance(x, str) or math.isfinite(x) for x in figures.values())


# ---- Nearest clips ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locomotion(root, character):
    return ml.MotionLib(str(root / "motions/locomotion.json"), character)


def poses_of(motions, clip, times):
    return evaluation.reference_poses(motions, torch.full_like(times, clip, dtype=torch.long), times)


def test_nearest_clips(locomotion):
    """Two seconds of the run, then one of a turn, begun anywhere; and an episode that fell after one second."""
    dt = 1 / 30
    run = poses_of(locomotion, 15, 0.37 + dt * torch.arange(60))
    turn = poses_of(locomotion, 6, 0.5 + dt * torch.arange(30))
    episode = torch.cat((run, turn))
    poses = torch.stack((episode, torch.cat((run[:30], torch.full((60, 14, 3), 9.0)))))
    found, bodies, share = evaluation.nearest_clips(locomotion, poses, torch.tensor([90, 30]), 90, dt)
    assert bodies.shape == (90, 14) and bodies.max() < 0.04
    error = found.pop("pose_error_m")
    assert error == pytest.approx(60 / 180, abs=0.01)  # the lost 60 of 180 steps count 1 m, the others hardly anything
    assert share.sum() == pytest.approx(1.0) and share[[15, 33]].sum() == pytest.approx(3 / 4)
    assert len(found) == 12 and found["visits_turn_left1.npz"] == pytest.approx(1 / 4)
    assert found["visits_run.npz"] + found["visits_run.npz (mirrored)"] == pytest.approx(3 / 4)
    bent = episode[None] + torch.tensor([0.0, 0.0, 0.05])
    assert 0.03 < evaluation.nearest_clips(locomotion, bent, torch.tensor([90]), 90, dt)[0]["pose_error_m"] < 0.055
    found, *_ = evaluation.nearest_clips(locomotion, episode[None, :1], torch.tensor([0]), 90, dt)
    assert found.pop("pose_error_m") == 1.0 and sum(found.values()) == 0


def test_the_last_window_may_be_shorter(locomotion):
    """Of 45 steps the last window has 15; if it is lost, a third of the steps count 1 m, and one window was lived."""
    dt = 1 / 30
    poses = poses_of(locomotion, 15, 0.37 + dt * torch.arange(45))[None]
    whole, bodies, _ = evaluation.nearest_clips(locomotion, poses, torch.tensor([45]), 45, dt)
    assert whole["pose_error_m"] < 0.01 and bodies.shape == (45, 14) and not bodies.isnan().any()
    half, bodies, _ = evaluation.nearest_clips(locomotion, poses[:, :30], torch.tensor([30]), 45, dt)
    assert half.pop("pose_error_m") == pytest.approx(1 / 3, abs=0.01) and sum(half.values()) == pytest.approx(1.0)
    assert bodies.shape == (30, 14)


def test_a_mixture_has_the_gait_of_what_it_visits(locomotion):
    """Four seconds of the run, then as long of the walk's clip: their cadences, weighted as they were visited."""
    parts = [(15, k) for k in range(120)] + [(0, k) for k in range(121)]
    states = [locomotion.state(torch.full((1,), i), torch.full((1,), k / 30)) for i, k in parts]
    figures, bodies = evaluation.mixture(locomotion, states, torch.tensor([240]), 240, 1 / 30, FEET, True)
    assert bodies.shape == (240, 14) and figures["pose_error_m"] < 0.03
    assert figures["clip_cadence_hz"] == pytest.approx((1.25 + 0.811) / 2, abs=0.08)
    plain, _ = evaluation.mixture(locomotion, states, torch.tensor([240]), 240, 1 / 30, FEET, False)
    assert set(figures) - set(plain) == {prefix + x for prefix in ("", "clip_") for x in GAIT}


# ---- Commands --------------------------------------------------------------------------------------------------------


def test_commands(tmp_path):
    path = tmp_path / "commands.csv"
    path.write_text("# time, heading, speed\n0, 0, 1.0\n0.1, 90, 2.0\n0.5,-45,1.5\n")
    times, headings, speeds = evaluation.load_commands(str(path), 2)
    assert times.tolist() == pytest.approx([0.0, 0.1, 0.5])
    torch.testing.assert_close(headings, torch.tensor([[0.0, 0.0], [math.pi / 2] * 2, [-math.pi / 4] * 2]))
    assert speeds.tolist() == [[1.0, 1.0], [2.0, 2.0], [1.5, 1.5]]


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "not lines of"),
        ("0, 1", "not lines of"),
        ("0, 0, 1\n1, 0", "not lines of"),
        ("0, 0, fast", "not lines of .*fast"),
        ("time, heading, speed\n0, 0, 1", "not lines of"),
        ("0.5, 0, 1", "times that rise from 0"),
        ("0, 0, 1\n0, 0, 1", "times that rise from 0"),
        ("0, 0, nan", "finite"),
        ("0, inf, 1", "finite"),
        ("0, 0, -1", "no speed below 0"),
    ],
)
def test_bad_commands(tmp_path, recwarn, text, complaint):
    path = tmp_path / "commands.csv"
    path.write_text(text)
    with pytest.raises(ml.InputError, match=rf"commands\.csv: .*{complaint}") as error:
        evaluation.load_commands(str(path), 1)
    assert "\n" not in str(error.value) and not recwarn.list


def test_commands_that_cannot_be_read(tmp_path):
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for name, complaint in (("absent.csv", "No such file"), ("binary.csv", "not lines of"), ("", "a folder, a pipe")):
        with pytest.raises(ml.InputError, match=complaint):
            evaluation.load_commands(str(tmp_path / name), 1)


# ---- Episodes --------------------------------------------------------------------------------------------------------


def test_how_long_an_episode_may_last(write_clip, character, tmp_path):
    """A clip of 0.4 s that does not loop, and one that does, at 10 steps a second."""
    write_clip("a.npz")
    write_clip("b.npz", loop=np.array("wrap"))
    (tmp_path / "set.json").write_text('{"clips": [{"file": "a.npz"}, {"file": "b.npz"}]}')
    motions = ml.MotionLib(str(tmp_path / "set.json"), character)
    clip = torch.tensor([0, 0, 0, 1, 1])
    start = torch.tensor([0.1, 0.26, 0.4, 0.0, 0.3])
    assert evaluation.episode_limit(motions, clip, start, 0.1, 9).tolist() == [3, 1, 1, 9, 9]
    assert evaluation.episode_limit(motions, clip, start, 0.1, 2).tolist() == [2, 1, 1, 2, 2]


def test_averages_of_episodes():
    """Sums are over the steps taken: those lived, and the one of a fall."""
    sums = {"task_reward": torch.tensor([6.0, 2.0])}
    found = evaluation.averages(sums, torch.tensor([3, 1]), torch.tensor([False, True]), 0.5)
    assert found == {"episodes": 2, "mean_episode_s": 1.0, "fall_rate": 0.5, "task_reward": pytest.approx(8 / 5)}


def test_episodes_end_with_the_last_step_lived(walk):
    states = [walk.state(torch.zeros(3, dtype=torch.long), torch.full((3,), t / 30)) for t in range(6)]
    clips = evaluation.episodes(states, torch.tensor([5, 2, 0]), 30.0)
    assert [len(clip.root_position) for clip in clips] == [6, 3, 2]  # a clip has two frames at least
    assert [(clip.fps, clip.loop, clip.rotations.shape[1:]) for clip in clips] == [(30.0, "clamp", (15, 4))] * 3
    np.testing.assert_array_equal(clips[1].root_position[2], states[2].root_position[1].numpy())
    np.testing.assert_array_equal(clips[0].rotations[5], states[5].rotations[0].numpy())


# ---- What is said of a training --------------------------------------------------------------------------------------

WELL = {"disc/accuracy_demo": 0.99, "disc/accuracy_agent": 0.99, "reward/style": 0.16}
WELL.update({"episode/length": 290.0, "episode/speed_m_s": 1.0})


@pytest.mark.parametrize(
    "changes, word",
    [
        ({}, ""),
        ({"reward/style": 0.01}, "discriminator is always right"),
        ({"reward/style": 0.01, "disc/accuracy_agent": 0.9}, ""),
        ({"reward/style": 0.01, "disc/accuracy_demo": 0.9}, ""),
        ({"episode/speed_m_s": 0.1}, "stands still"),
        ({"episode/speed_m_s": 0.1, "episode/length": 30.0}, ""),  # it falls, which is another matter
        ({"eval/visits_walk.npz": 0.97, "eval/visits_run.npz": 0.03}, "one clip"),
        ({"eval/visits_walk.npz": 0.6, "eval/visits_run.npz": 0.4}, ""),
        ({"eval/visits_walk.npz": 1.0}, ""),  # there is no other
    ],
)
def test_what_is_said_of_a_training(changes, word):
    said = evaluation.training_health({**WELL, **changes}, 1.0)
    assert (word in said) if word else said == ""
