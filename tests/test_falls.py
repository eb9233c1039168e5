"""falls.py: what a clip has on the ground near a time is no fall, in that clip and at every frame; all else is one."""

import json

import simulators

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import amp_ppo_isaacgym as amp
import motion_lib as ml
from falls import FallDetector

AUTO = ("auto",)


def detector(path, character, names=AUTO):
    return FallDetector(ml.MotionLib(str(path), character), names, amp.FEET)


def lowest(motions, clip, times):
    """Lowest points of the bodies of a clip at times (n,): (n, J) [m]."""
    state = motions.state(torch.full_like(times, clip, dtype=torch.long), times)
    place = ml.forward_kinematics(motions.character, state.root_position, state.rotations)
    return ml.lowest_points(motions.character, *place)


def falls(fallen, clip, times, height):
    return fallen(torch.full_like(times, clip, dtype=torch.long), times, height)


@pytest.fixture(scope="module")
def every(all_motions):
    return FallDetector(all_motions, AUTO, amp.FEET)


@pytest.mark.parametrize("lift", [0.0, -0.03])
def test_a_clip_that_is_played_never_falls(every, all_motions, lift):
    """All clips of one folder, get-ups, crawl and roll among them; and 3 cm deeper, as a tracking character may be."""
    for clip in range(len(all_motions.clips)):
        times = torch.linspace(0, float(all_motions.length[clip]), 700)
        fell = falls(every, clip, times, lowest(all_motions, clip, times) + lift)
        assert not fell.any(), all_motions.files[clip]


@pytest.mark.parametrize("name", ["getup_facedown", "getup_faceup", "crawl", "roll"])
def test_a_floor_clip_is_no_fall_for_another_clip(every, all_motions, root, name):
    """Who lies as in a floor clip has fallen in a walk, although that clip is in the same folder."""
    floor = all_motions.files.index(str(root / f"motions/{name}.npz"))
    walk = all_motions.files.index(str(root / "motions/walk.npz"))
    times = torch.linspace(0, 0.3 * float(all_motions.length[floor]), 50)
    height = lowest(all_motions, floor, times)
    height = height - height.amin(-1, keepdim=True)  # the lowest body rests on the ground
    on_feet = height[:, [all_motions.character.body_names.index(foot) for foot in amp.FEET]].amin(-1) <= 0.005
    lies = ~on_feet
    assert name == "roll" or lies.any()
    assert falls(every, walk, times, height)[lies].all()
    assert not falls(every, floor, times, height - 0.001)[lies].any()


def test_who_stands_up_and_lies_down_again_has_fallen(every, all_motions, root):
    """A get-up lets a character lie at its beginning, not at its end."""
    clip = all_motions.files.index(str(root / "motions/getup_faceup.npz"))
    height = lowest(all_motions, clip, torch.zeros(1))
    lying = torch.where(height < 0.1, 0.0, height)  # what the clip rests on rests on the ground
    assert not falls(every, clip, torch.zeros(1), lying).any()
    assert falls(every, clip, all_motions.length[clip : clip + 1], lying).all()
    # and however long it lasts: the clip holds its end
    assert falls(every, clip, torch.tensor([60.0]), lying).all()


def long_clip(write_clip, character, seconds=300, at=200.0):
    """Five minutes upright, but for a second on the back."""
    frames = int(seconds * 30) + 1
    rotations = np.tile(np.array([0.0, 0.0, 0.0, 1.0], np.float32), (frames, len(character.body_names), 1))
    root = np.tile(np.array([0.0, 0.0, 0.9], np.float32), (frames, 1))
    back = slice(int(at * 30), int((at + 1) * 30))
    rotations[back, 0] = [0.0, -(0.5**0.5), 0.0, 0.5**0.5]
    root[back, 2] = 0.1
    return write_clip(frames=frames, fps=np.float64(30.0), root_position=root, rotations=rotations)


def test_a_second_on_the_back_in_five_minutes_counts(write_clip, character):
    path = long_clip(write_clip, character)
    fallen = detector(path, character)
    motions = fallen.motions
    times = torch.linspace(0, 300, 4501)
    height = lowest(motions, 0, times)
    assert (height[:, character.body_names.index("torso")] < 0.005).any()  # it does lie
    assert not falls(fallen, 0, times, height).any()
    lying = lowest(motions, 0, torch.tensor([200.5]))
    assert falls(fallen, 0, torch.tensor([100.0]), lying).all()  # but not at another time
    assert falls(fallen, 0, torch.tensor([198.5]), lying).all()
    assert not falls(fallen, 0, torch.tensor([199.5]), lying).any()  # a second early is near
    assert "more where a clip has them in the air" in fallen.report


@given(st.floats(0.0, 0.04))
def test_a_constant_lift_makes_no_falls(walk, lift):
    """A clip that hovers by some centimetres has its feet and nothing else on the ground."""
    raised = ml.MotionLib(walk.files[0], walk.character)
    raised.root_position = raised.root_position + torch.tensor([0.0, 0.0, lift])
    assert torch.equal(FallDetector(raised, AUTO, amp.FEET).watched, FallDetector(walk, AUTO, amp.FEET).watched)


def test_loops_go_on(character, root):
    fallen = detector(root / "motions/crawl.npz", character)
    length = float(fallen.motions.length[0])
    times = torch.linspace(0, length, 100)
    assert not falls(fallen, 0, times + 17 * length, lowest(fallen.motions, 0, times)).any()


def test_bodies_are_chosen(character, root):
    chosen = detector(root / "motions/getup_faceup.npz", character, ("head", "pelvis"))
    said = "a fall is ground contact of pelvis, head; the clips themselves have pelvis, head there, which ends episodes"
    assert chosen.bodies == 2 and chosen.report == said
    height = torch.ones(len(character.body_names), len(character.body_names)) - 1.01 * torch.eye(
        len(character.body_names)
    )  # row j: body j touches the ground
    fell = falls(chosen, 0, torch.zeros(len(height)), height)
    assert [name for name, x in zip(character.body_names, fell.tolist()) if x] == ["pelvis", "head"]
    assert not falls(chosen, 0, torch.zeros(1), torch.full((1, len(height)), 0.006)).any()


def test_bodies_that_the_clips_have_on_the_ground_are_said(character, root):
    """Each episode of a walk would end in its first steps, without a word."""
    feet = detector(root / "motions/walk.npz", character, ("right_foot", "head"))
    assert feet.report.endswith("right_foot; the clips themselves have right_foot there, which ends episodes")
    head = detector(root / "motions/walk.npz", character, ("head", "right_hand"))
    assert head.report == "a fall is ground contact of head, right_hand"


def test_none_is_a_choice_that_is_said(character, root):
    none = detector(root / "motions/walk.npz", character, ("none",))
    assert none.bodies == 0 and not falls(none, 0, torch.zeros(1), torch.full((1, 15), -1.0)).any()
    assert "no body" in none.report and "nothing counts as a fall in" in none.report and "walk.npz" in none.report


@pytest.mark.parametrize("names", [("toe",), ("auto", "head"), ("none", "head"), ("head", "Head"), ()])
def test_wrong_bodies_are_refused(character, root, names):
    with pytest.raises(ml.InputError, match=r"--fall-bodies .*expected auto, none, or some of pelvis, torso"):
        detector(root / "motions/walk.npz", character, names)


def test_the_feet_never_count_by_themselves(every, all_motions):
    walk = next(i for i, file in enumerate(all_motions.files) if file.endswith("walk.npz"))
    height = torch.ones(1, 15)
    for foot in amp.FEET:
        height[:, all_motions.character.body_names.index(foot)] = -0.5
    assert not falls(every, walk, torch.zeros(1), height).any()
    height[:, all_motions.character.body_names.index("left_hand")] = 0.0
    assert falls(every, walk, torch.zeros(1), height).all()


@pytest.mark.parametrize("bodies, fallen", [("auto", True), ("none", False)])
def test_episodes_of_a_limp_policy(run_script, tmp_path, root, bodies, fallen):
    """An evaluation says how many bodies count; where none does, fall_bodies is 0. Trainings name them."""
    flags = ["--no-cuda", "--evaluate", "--checkpoint", root / "pretrained/walk.pt", "--eval-episodes", 2]
    flags += ["--motion-file", root / "motions/getup_faceup.npz", "--eval-seconds", 3, "--fall-bodies", bodies]
    result = run_script("amp_ppo_isaacgym.py", *flags)
    assert result.code == 0, result.err
    metrics = json.loads(result.out.splitlines()[-1])
    assert (metrics["fall_bodies"] > 0) == fallen
    assert fallen or metrics["fall_rate"] == 0


def test_a_get_up_does_not_end_in_its_own_first_pose(character, root):
    """PD targets are the clip's own poses: the character lies, and goes on lying, without a fall."""
    motions = ml.MotionLib(str(root / "motions/getup_faceup.npz"), character)
    fallen = FallDetector(motions, AUTO, amp.FEET)
    sim = simulators.make("mujoco", character, 8, 30, 4, torch.device("cpu"), 1)
    clip, start = torch.zeros(8, dtype=torch.long), torch.linspace(0, 1, 8)
    state = motions.state(clip, start)
    place = ml.forward_kinematics(character, state.root_position, state.rotations)
    state.root_position[:, 2] += (-ml.lowest_points(character, *place).amin(-1)).clamp_min(0)
    sim.set_state(torch.ones(8, dtype=torch.bool), state)
    fell = torch.zeros(8, dtype=torch.bool)
    for step in range(1, 31):
        time = start + step / 30
        now, _ = sim.step(ml.dof_positions(character, motions.state(clip, time).rotations))
        place = ml.forward_kinematics(character, now.root_position, now.rotations)
        fell |= fallen(clip, time, ml.lowest_points(character, *place))
    assert not fell.any()


def test_times_beyond_a_clip_are_its_ends(tmp_path, root, character):
    """A foreign checkpoint's, too: no other clip's frames are looked up."""
    for name in ("walk", "getup_facedown"):
        (tmp_path / f"{name}.npz").write_bytes((root / f"motions/{name}.npz").read_bytes())
    motions = ml.MotionLib(str(tmp_path), character)
    fallen = FallDetector(motions, AUTO, amp.FEET)
    on_its_back = torch.zeros(2, len(character.body_names))
    clip = 1 - int(motions.loop[1])
    assert not motions.loop[clip]
    ends = falls(fallen, clip, torch.tensor([0.0, float(motions.length[clip])]), on_its_back)
    for far in (1e3, 1e30, 2.0**62):
        assert torch.equal(falls(fallen, clip, torch.tensor([-far, far]), on_its_back), ends)
