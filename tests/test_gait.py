"""gait: contacts, strides and turns of motions made by hand, and of clips played faster, slower and mirrored."""

import json
import math

import pytest
import torch

import gait
import motion_lib as ml

DT = 1 / 30
FEET = ("right_foot", "left_foot")


def walker(character, seconds, speed=1.0, period=1.0, lift=0.1, slip=0.0):
    """Feet that stand for 60 % of a period and then swing, half a period apart; the other bodies are 1 m up.

    slip: how fast a standing foot slides on [m/s] -> body positions (1, T, J, 3) [m], rotations (1, T, J, 4)"""
    time = DT * torch.arange(round(seconds / DT) + 1)
    position = torch.zeros(1, len(time), len(character.body_names), 3)
    position[..., 2] = 1.0
    position[..., 0] = (speed * time)[None, :, None]
    sole = -float(character.hull_point[character.hull_body == character.body_names.index(FEET[0]), 2].min())
    for name, offset in zip(FEET, (0.0, 0.5)):
        cycle = time / period + offset
        phase = cycle % 1.0
        swing = ((phase - 0.6) / 0.4).clamp_min(0.0)
        slid = slip * period * phase.clamp_max(0.6)
        way = speed * period - slip * period * 0.6  # of the swing
        foot = position[0, :, character.body_names.index(name)]
        foot[:, 0] = (cycle.floor() - offset) * speed * period + slid + swing * way
        foot[:, 2] = sole + lift * torch.sin(math.pi * swing)
    rotation = torch.zeros(*position.shape[:3], 4)
    rotation[..., 3] = 1.0
    return position, rotation


def figures(character, position, rotation, steps=None):
    steps = torch.full((len(position),), position.shape[1] - 1) if steps is None else steps
    return gait.figures(character, position, rotation, steps, FEET, DT)


def test_a_walk_made_by_hand(character):
    found = figures(character, *walker(character, 10.0))
    assert found.pop("contact_order") == "RL"
    assert found["cadence_hz"] == pytest.approx(1.0, abs=0.01) and found["stride_m"] == pytest.approx(1.0, abs=0.01)
    assert found["swing_clearance_m"] == pytest.approx(0.1, abs=0.001) and found["foot_slide_m"] < 1e-6
    found = figures(character, *walker(character, 10.0, speed=2.0, period=0.8, lift=0.2))
    assert found["cadence_hz"] == pytest.approx(1.25, abs=0.02) and found["stride_m"] == pytest.approx(1.6, abs=0.03)
    assert found["swing_clearance_m"] == pytest.approx(0.2, abs=0.002)


def test_feet_that_slide(character):
    """At .2 m/s for .6 s of each stride."""
    found = figures(character, *walker(character, 10.0, slip=0.2))
    assert found["foot_slide_m"] == pytest.approx(0.12, abs=0.01)
    assert found["cadence_hz"] == pytest.approx(1.0, abs=0.01)


def test_a_foot_that_rolls_does_not_slide(character):
    """A foot that pitches about its toes by a radian a second, for half a second."""
    position, rotation = walker(character, 0.5, speed=0.0)
    foot = character.body_names.index(FEET[0])
    toe = character.hull_point[character.hull_body == foot].amax(0) * torch.tensor([1.0, 0.0, 0.0])
    toe[2] = character.hull_point[character.hull_body == foot, 2].min()
    angle = DT * torch.arange(position.shape[1])
    rotation[0, :, foot] = ml.quat_from_rotvec(angle[:, None] * torch.tensor([0.0, 1.0, 0.0]))
    position[0, :, foot] = -ml.quat_rotate(rotation[0, :, foot], toe)
    contact, slide, _ = gait.contacts(character, position, rotation, foot, DT)
    assert contact.all() and slide.max() < 1e-6


def test_what_is_no_gait(character):
    """Standing; both feet together; one foot alone; too short; and who has fallen before the second stride."""
    position, rotation = walker(character, 10.0)
    still = position.clone()
    still[:] = position[:, :1]
    assert figures(character, still, rotation) == {}
    right, left = [character.body_names.index(name) for name in FEET]
    together = position.clone()
    together[:, :, left] = position[:, :, right]
    assert figures(character, together, rotation) == {}
    alone = position.clone()
    alone[:, :, left, 2] = 0.5
    assert figures(character, alone, rotation) == {}
    assert figures(character, position[:, :60], rotation[:, :60]) == {}
    assert figures(character, position, rotation, torch.tensor([50])) == {}
    assert figures(character, position, rotation, torch.tensor([0])) == {}


def play(motions, pace=1.0, clip=0, seconds=12.0):
    time = DT * pace * torch.arange(round(seconds / DT))[None]
    state = motions.state(torch.full_like(time, clip, dtype=torch.long), time)
    return ml.forward_kinematics(motions.character, state.root_position, state.rotations)


@pytest.mark.parametrize("clip, cadence, stride", [("walk", 0.789, 1.237), ("run", 1.25, 2.844)])
def test_clips_at_other_speeds_and_mirrored(root, character, tmp_path, clip, cadence, stride):
    path = tmp_path / "both.json"
    path.write_text(json.dumps({"clips": [{"file": str(root / f"motions/{clip}.npz")}], "mirror": True}))
    motions = ml.MotionLib(str(path), character)
    own = figures(character, *play(motions))
    assert own["cadence_hz"] == pytest.approx(cadence, abs=0.002) and own["stride_m"] == pytest.approx(
        stride, abs=0.005
    )
    for pace in (0.8, 1.25):
        other = figures(character, *play(motions, pace))
        assert other["cadence_hz"] == pytest.approx(pace * cadence, rel=0.01)
        assert other["stride_m"] == pytest.approx(stride, rel=0.01)
        assert other["swing_clearance_m"] == pytest.approx(own["swing_clearance_m"], rel=0.03)
    mirrored = figures(character, *play(motions, clip=1))
    assert mirrored["contact_order"] == "RL"
    for name in ("cadence_hz", "stride_m", "foot_slide_m", "swing_clearance_m"):
        assert mirrored[name] == pytest.approx(own[name], rel=1e-3)


@pytest.mark.parametrize("clip", ["jump", "backflip", "cartwheel", "roll", "kick", "punch", "getup_facedown"])
def test_clips_without_a_gait(root, character, clip):
    motions = ml.MotionLib(str(root / f"motions/{clip}.npz"), character)
    assert figures(character, *play(motions)) == {}


def test_turns(character):
    """Roots that turn about a horizontal axis at half a turn a second, that sway, and that stand."""
    time = DT * torch.arange(121)
    axis = torch.tensor([0.6, 0.8, 0.0])
    spinning = ml.quat_from_rotvec(math.pi * time[:, None] * axis)
    swaying = ml.quat_from_rotvec(torch.sin(2 * math.pi * time)[:, None] * axis)
    steps = torch.tensor([120, 120])
    assert gait.turned(torch.stack((spinning, spinning)), steps, 60) == pytest.approx(1.0, abs=1e-5)
    assert gait.turned(torch.stack((swaying, swaying)), steps, 30) < 1e-5
    assert gait.turned(torch.stack((spinning, swaying)), torch.tensor([120, 0]), 30) == pytest.approx(0.5, abs=1e-5)
    assert gait.turned(spinning[None], torch.tensor([29]), 30) == 0.0
    clip = ml.quat_from_rotvec(2 * math.pi / 2.5 * time[:, None] * axis)  # a turn in 2.5 s
    level = torch.zeros(1, 121)
    found = gait.cycles((level, spinning[None]), (level, clip[None]), torch.tensor([120]), 75, 60.0, DT)
    assert found["turns_per_s"] == pytest.approx(0.5) and found["clip_turns_per_s"] == pytest.approx(0.4)
    assert found["turns_per_cycle"] == pytest.approx(1.0) and found["clip_turns_per_cycle"] == pytest.approx(1.0)
    assert found["rise_m"] == found["clip_rise_m"] == 0.0
    found = gait.cycles((level, spinning[None]), (level, swaying[None]), torch.tensor([120]), 30, 30.0, DT)
    assert set(found) == {"rise_m", "clip_rise_m"}


def test_rise():
    """A root that goes up and down by .3 m in each second, and one that falls from a table after a second."""
    time = DT * torch.arange(121)
    bouncing = 0.9 + 0.15 * torch.sin(2 * math.pi * time)
    fallen = torch.where(time > 1.0, 0.1, 0.9)
    steps = torch.tensor([120, 29])
    assert gait.risen(bouncing[None], torch.tensor([120]), 30) == pytest.approx(0.3, abs=0.01)
    assert gait.risen(torch.stack((bouncing, fallen)), steps, 30) == pytest.approx(0.3, abs=0.01)  # before it falls
    assert gait.risen(fallen[None], torch.tensor([120]), 500) == pytest.approx(0.8)  # a window as long as all of it
    own, clip = (bouncing[None], torch.zeros(1, 121, 4)), (2 * bouncing[None], torch.zeros(1, 121, 4))
    own[1][..., 3] = clip[1][..., 3] = 1.0
    found = gait.cycles(own, clip, torch.tensor([120]), 30, 33.0, DT)
    assert found == pytest.approx({"rise_m": 0.3, "clip_rise_m": 0.6}, abs=0.02)
