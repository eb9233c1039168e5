"""Motions as other people's files hold them: what is odd about each kind, made by hand, and what must come of it."""

import enum
import io
import itertools
import json
import math
import pickle
import sys
import types
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_importers import (
    LAFAN,
    SMALL,
    angle,
    at_rest,
    foreign,
    mimickit_file,
    mutate,
    needs_mink,
    poselib_file,
    text_of,
)

import motion_lib as ml
from motions import bvh, checks, formats, retarget, safe

CONVERT = "motions/convert.py"
UPRIGHT = [0.0, 0.0, 0.0, 1.0]
HALF = math.sqrt(0.5)


def quat(*parts):
    return torch.tensor(parts, dtype=torch.float64)


def t_pose_frames(character, zero_up="+y"):
    """Joints' frames (15, 4) of a skeleton that is a T, whose zero pose stands in a world with this up axis."""
    return ml.quat_multiply(ml.quat_conjugate(quat(*retarget.UP[zero_up])), at_rest(character, 0.0))


# ----------------------------------------------------------------------------------------------------------------------
# BVH: the path, position channels, syntax
# ----------------------------------------------------------------------------------------------------------------------


def below(text, split):
    """A BVH text with a root above the one it has; split(hips' place) -> what the root takes of it, what it leaves."""
    head, motion = text.split("MOTION")
    reference = (
        "ROOT Reference\n{\nOFFSET 0 0 0\nCHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation\n"
    )
    hierarchy = head.replace("HIERARCHY\nROOT", f"HIERARCHY\n{reference}JOINT") + "}\n"
    lines = motion.strip().split("\n")
    rows = []
    for line in lines[2:]:
        words = line.split()
        taken, left = split([float(x) for x in words[:3]])
        rows.append(" ".join(map(str, [*taken, 0, 0, 0, *left, *words[3:]])))
    return "\n".join([hierarchy + "MOTION", *lines[:2], *rows])


@pytest.mark.parametrize(
    "split",
    [
        lambda p: ([0, 0, 0], p),
        lambda p: ([p[0], 0, p[2]], [0, p[1], 0]),
        lambda p: ([5, 7, 9], np.subtract(p, [5, 7, 9])),
    ],
    ids=["a root that stands still", "a root that glides on the ground", "a root elsewhere"],
)
def test_the_path_may_lie_below_the_root(tmp_path, character, convert, load, split):
    """As in Bandai Namco's files, under MotionBuilder's Reference, or with a SimulationBone; height included."""
    clip = load("turn_left0")
    text = text_of(foreign(character, clip, t_pose_frames(character), LAFAN))
    (tmp_path / "a.bvh").write_text(below(text, split))
    back, out = convert(tmp_path / "a.bvh", "--no-plant", "--no-lift")
    assert angle(clip.rotations, back.rotations).max() < 1e-3
    assert np.abs(clip.root_position - back.root_position).max() < 1e-3
    assert "warning" not in out


def test_a_root_that_turns_carries_the_path_around(tmp_path, character, convert, load):
    clip = load("walk")
    text = below(text_of(foreign(character, clip, t_pose_frames(character), LAFAN)), lambda p: ([0, 0, 0], p))
    lines = text.split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith("Frame Time")) + 1
    lines[start:] = [
        line.replace("0 0 0 0 0 0", "0 0 0 0 0 90", 1) for line in lines[start:]
    ]  # a quarter turn about +Y
    (tmp_path / "a.bvh").write_text("\n".join(lines))
    back, _ = convert(tmp_path / "a.bvh", "--no-plant", "--no-lift")
    # about our +Z: (x, y) -> (-y, x)
    turned = np.stack((-clip.root_position[:, 1], clip.root_position[:, 0], clip.root_position[:, 2]), -1)
    assert np.abs(turned - back.root_position).max() < 1e-3
    assert angle(clip.rotations[:, 1:], back.rotations[:, 1:]).max() < 1e-3


def test_positions_that_vary_elsewhere_are_said(character, load):
    """5 % of the leg in a shin is said, 1 % is not; the mean place stays."""
    recording = foreign(character, load("walk"), t_pose_frames(character), LAFAN)
    index = retarget.find_joints(recording, {})
    leg = retarget.leg_length(recording, index)
    shin = recording.names.index("LeftLeg")
    for share, said in ((0.01, 0), (0.05, 1)):
        places = np.tile(recording.offsets[shin], (len(recording.rotations), 1))
        places[7, 1] += share * leg
        moved, warnings = retarget.path_at_root(recording._replace(places={shin: places}), index)
        assert len(warnings) == said and np.array_equal(moved.root_position, recording.root_position)
    assert warnings[0].startswith("warning: LeftLeg moves by 5 % of the leg")


SYNTAX = {
    "braces on the line": SMALL.replace("ROOT Hips\n{", "ROOT Hips {").replace(
        "JOINT Spine of Steel\n  {", "JOINT Spine of Steel {"
    ),
    "everything on few lines": SMALL.replace("\n  ", " ")
    .replace("OFFSET", "\nOFFSET")
    .replace("CHANNELS", "\nCHANNELS")
    .replace("JOINT", "\nJOINT")
    .replace("End", "\nEnd"),
    "no blank after the colon": SMALL.replace("Frame Time: ", "Frame Time:").replace("Frames: ", "Frames:"),
    "capitals": SMALL.replace("Frames:", "FRAMES:")
    .replace("Frame Time:", "FRAME TIME:")
    .replace("End Site", "END SITE"),
    "small letters": SMALL.replace("JOINT", "joint").replace("OFFSET", "offset").replace("Xposition", "xposition"),
    "tabs": SMALL.replace("Frames: ", "Frames:\t").replace("  ", "\t"),
    "DOS": SMALL.replace("\n", "\r\n") + "\x1a",
    "a byte-order mark": "\ufeff" + SMALL,
    "blank lines": SMALL.replace("\n", "\n\n") + "\n\n",
}


@pytest.mark.parametrize("text", SYNTAX.values(), ids=SYNTAX.keys())
def test_bvh_syntax(tmp_path, character, text):
    (tmp_path / "a.bvh").write_bytes(text.encode())
    found, plain = formats.read(str(tmp_path / "a.bvh"), character).content, bvh.read_bvh("a", SMALL)
    assert found.names == plain.names and found.fps == plain.fps == 30.0
    for key in ("root_position", "rotations", "offsets"):
        np.testing.assert_array_equal(getattr(found, key), getattr(plain, key))


def test_a_part_of_a_file_that_is_too_large(tmp_path, character, convert, refuse, load, monkeypatch):
    """Only the frames from --start to --end are read, and come out as those of the whole file do."""
    clip = load("walk")
    text = text_of(foreign(character, clip, t_pose_frames(character), LAFAN))
    (tmp_path / "a.bvh").write_text(text)
    part = ("--start", "0.51", "--end", "0.79", "--no-plant", "--no-lift")
    whole, _ = convert(tmp_path / "a.bvh", *part)
    monkeypatch.setattr(safe, "MAX_BYTES", len(text) // 2)
    again, out = convert(tmp_path / "a.bvh", *part)
    assert "read as BVH: 8 frames" in out and len(again.rotations) == len(whole.rotations) == 8
    np.testing.assert_allclose(again.rotations, whole.rotations, atol=1e-6)
    np.testing.assert_allclose(again.root_position, whole.root_position, atol=1e-6)
    twice, _ = convert(tmp_path / "a.bvh", "--start", "0.255", "--end", "0.395", "--input-fps", "60", *part[4:])
    np.testing.assert_allclose(twice.rotations, whole.rotations, atol=1e-6)
    assert "larger than" in refuse(tmp_path / "a.bvh") and "larger than" in refuse(tmp_path / "a.bvh", "--end", "1.2")
    (tmp_path / "b.npy").write_bytes(bytes(len(text)))
    assert "a BVH file; others may have" in refuse(tmp_path / "b.npy", "--end", "1")


def test_a_long_blank_takes_no_time(tmp_path, refuse):
    """A pattern with two stars would try every way to share a million blanks."""
    for text in ("Frames" + " " * 1_000_000 + "x", "\n" * 1_000_000, "Frame" + "\t" * 1_000_000):
        (tmp_path / "a.bvh").write_text(SMALL.replace("Frames: 2", text))
        assert "MOTION" in refuse(tmp_path / "a.bvh")


def test_a_root_without_positions_stands_at_its_offset():
    text = SMALL.replace("OFFSET 0 0 0", "OFFSET 4 5 6").replace(
        "CHANNELS 6 Xposition Yposition Zposition Z", "CHANNELS 3 Z", 1
    )
    found = bvh.read_bvh("a", text.replace("1 2 3 90", "90"))
    np.testing.assert_array_equal(found.root_position, [[4, 5, 6]] * 2)


def test_a_single_pose_is_said(tmp_path, refuse):
    (tmp_path / "a.bvh").write_text(SMALL[: SMALL.index("1 2 3 90 0 90")].replace("Frames: 2", "Frames: 1"))
    assert "single pose" in refuse(tmp_path / "a.bvh")
    (tmp_path / "a.txt").write_text(json.dumps({"Frames": [[0.1] * 44]}))
    assert "single pose" in refuse(tmp_path / "a.txt")


def test_upper_case_endings(tmp_path, root, run_script):
    assert run_script(CONVERT, root / "motions/walk.npz", tmp_path / "OUT.NPZ").code == 0
    assert (tmp_path / "OUT.NPZ").exists()


def test_a_joint_map_with_a_byte_order_mark(tmp_path):
    (tmp_path / "map.json").write_bytes(b"\xef\xbb\xbf" + b'{"left_toe": null}')
    assert retarget.load_joint_map(str(tmp_path / "map.json")) == {"left_toe": None}


# ----------------------------------------------------------------------------------------------------------------------
# Skeletons: up axis, known rest poses, lean, names
# ----------------------------------------------------------------------------------------------------------------------


def write_poselib(path, recording):
    """A recording as poselib writes it."""

    def tensor(x, kind):
        return {"arr": np.array(x, kind), "context": {"dtype": kind}}

    skeleton = {"node_names": recording.names, "parent_indices": tensor(recording.parents, "int64")}
    skeleton["local_translation"] = tensor(recording.offsets, "float32")
    tree = {"rotation": tensor(recording.rotations, "float32"), "skeleton_tree": skeleton, "is_local": True}
    tree.update(root_translation=tensor(recording.root_position, "float32"), fps=np.float64(recording.fps))
    holder = np.empty((), object)
    holder[()] = tree
    np.save(path, holder, allow_pickle=True)
    return path


@pytest.mark.parametrize(
    "name,up,zero_up",
    [("walk", *ups) for ups in itertools.product(("+y", "+z"), repeat=2)]
    + [("crawl", "+y", "+y"), ("crawl", "+z", "+z")],
)
def test_poselib_in_either_world(tmp_path, character, convert, load, name, up, zero_up):
    """Mixamo through poselib is Y up; a zero pose may be Y up, as SMPL's, in a world that is Z up: the motion tells."""
    clip = load(name)
    recording = foreign(character, clip, t_pose_frames(character, zero_up), LAFAN, retarget.UP[up])
    back, out = convert(write_poselib(tmp_path / "a.npy", recording), "--no-plant", "--no-lift")
    assert f"{up[1].upper()} up" in out
    assert angle(clip.rotations, back.rotations).max() < 1e-3
    assert np.abs(clip.root_position - back.root_position).max() < 1e-4


def test_the_up_axis_can_be_given(tmp_path, character, convert, load):
    clip = load("crawl")
    recording = foreign(character, clip, t_pose_frames(character, "+y"), LAFAN, retarget.UP["+z"])
    back, out = convert(write_poselib(tmp_path / "a.npy", recording), "--no-plant", "--no-lift", "--up", "z")
    assert "Z up" in out and angle(clip.rotations, back.rotations).max() < 1e-3


def test_frames_from_two_directions():
    """All 24 pairs of axes that lie square to one another."""
    pairs = [(a, b) for a, b in itertools.product(retarget.TOWARD, repeat=2)]
    square = [(a, b) for a, b in pairs if not np.dot(retarget.TOWARD[a], retarget.TOWARD[b])]
    assert len(square) == 24
    for x, y in (tuple(quat(*retarget.TOWARD[c]) for c in pair) for pair in square):
        q = retarget._frame(x, y)
        torch.testing.assert_close(ml.quat_rotate(q, quat(1, 0, 0)), x)
        torch.testing.assert_close(ml.quat_rotate(q, quat(0, 1, 0)), y)


# x and y of the joints' frames in a T-pose, read off the published files' hierarchies: every bone lies along x or y
F, L, U = quat(1, 0, 0), quat(0, 1, 0), quat(0, 0, 1)
SKELETONS = {
    "LaFAN1": ((U, F), (U, F), (-L, -F), (L, -F), (-U, F), (-U, F), 21.5),
    "Bandai Namco": ((U, -L), (U, F), (L, -U), (L, U), (U, L), (-U, L), 40.0),
    "Mixamo": ((L, U), (L, U), (F, -L), (-F, L), (-L, -U), (-L, -U), 30.0),
}
BANDAI = dict(pelvis="Hips", torso="Chest", head="Head")
for _side in ("Left", "Right"):
    _limbs = dict(
        upper_arm="UpperArm", lower_arm="LowerArm", hand="Hand", thigh="UpperLeg", shin="LowerLeg", foot="Foot"
    )
    BANDAI.update({f"{_side.lower()}_{ours}": f"{theirs}_{_side[0]}" for ours, theirs in _limbs.items()})


@pytest.mark.parametrize("name", SKELETONS)
def test_skeletons_that_are_known_without_a_rest_pose(tmp_path, character, convert, load, name):
    """A run, in which no frame stands: the frames that stand best were 16 degrees off."""
    clip, rest = load("run"), at_rest(character, 0.0)
    pelvis, trunk, *limbs, slope = SKELETONS[name]
    limbs = dict(zip(("right_arm", "left_arm", "right_leg", "left_leg"), limbs))
    sole = ml.quat_from_rotvec(
        quat(0, math.radians(slope - 90), 0)
    )  # from a bone that hangs to one that slopes forward
    frames = []
    for j, body in enumerate(character.body_names):
        side, _, limb = body.partition("_")
        axes = trunk if not limb else limbs[f"{side}_{'leg' if limb in ('thigh', 'shin', 'foot') else 'arm'}"]
        joint = retarget._frame(*(pelvis if body == "pelvis" else axes))
        joint = ml.quat_multiply(sole, joint) if limb == "foot" else joint
        frames.append(ml.quat_multiply(ml.quat_conjugate(joint), rest[j]))
    names = BANDAI if name == "Bandai Namco" else LAFAN
    recording = foreign(character, clip, torch.stack(frames), names)
    joints = ml.quat_multiply(rest, ml.quat_conjugate(torch.stack(frames)))
    rest_of = dict(zip((names[body] for body in character.body_names), joints))
    for extra in [j for j, joint in enumerate(recording.names) if joint.startswith("Extra")]:
        below = recording.parents.index(extra)  # collar bones and the lower spine are as what hangs on them
        above, joint = (recording.names[j] for j in (recording.parents[extra], below))
        turn = ml.quat_multiply(ml.quat_conjugate(rest_of[above]), rest_of[joint])
        recording.rotations[:, extra] = turn
        local = ml.quat_multiply(ml.quat_conjugate(turn), torch.from_numpy(recording.rotations[:, below]))
        recording.rotations[:, below] = local
        recording.offsets[below] = ml.quat_rotate(ml.quat_conjugate(turn), torch.from_numpy(recording.offsets[below]))
    back, out = convert(write_poselib(tmp_path / "a.npy", recording), "--no-plant", "--no-lift")
    assert f"T-pose that is known of {name}" in out and "Y up" in out
    assert angle(clip.rotations, back.rotations).max() < 1e-3
    assert np.abs(clip.root_position - back.root_position).max() < 1e-3


def test_a_zero_pose_that_leans(tmp_path, character, convert, load):
    """Hips and chest lean back by 11 degrees in the zero pose, as Xia's do; the walk is upright nevertheless."""
    clip, pose = load("walk"), at_rest(character, 0.0)
    pose[[0, 1]] = ml.quat_from_rotvec(quat(0, math.radians(-11), 0))
    frames = ml.quat_multiply(ml.quat_conjugate(quat(*retarget.UP["+y"])), pose)
    (tmp_path / "a.bvh").write_text(text_of(foreign(character, clip, frames, LAFAN)))
    back, out = convert(tmp_path / "a.bvh", "--no-plant", "--no-lift")
    assert "zero pose" in out and angle(clip.rotations, back.rotations).max() < 2e-3


def test_arms_that_are_nearly_straight_do_not_flip(character):
    """A forearm bent by 12 to 18 degrees, 120 degrees off the way in which our elbow bends."""
    bend = torch.deg2rad(torch.linspace(12, 18, 13)).double()
    zero = torch.zeros_like(bend)
    forearm = ml.quat_from_rotvec(torch.stack((zero, -bend, zero), -1))
    world = quat(*UPRIGHT).repeat(13, 15, 1)
    lower = [character.body_names.index(body) for body in ("left_lower_arm", "left_hand")]
    world[:, lower] = ml.quat_multiply(ml.quat_from_yaw(quat(math.radians(120))), forearm)[:, None]
    turned = retarget.hinged(character, world)
    assert angle(turned[1:], turned[:-1]).max() < 0.2
    upper = turned[:, character.body_names.index("left_upper_arm")]
    assert float(ml.heading(upper[-1])) == pytest.approx(math.radians(120), abs=1e-6)


BODY = [("Hips", ""), ("Spine", "Hips"), ("Chest", "Spine"), ("Neck", "Chest"), ("Head", "Neck")]
LIMB = ["upper_arm", "lower_arm", "hand", "thigh", "shin", "foot", "toe"]
NAMES = {  # how a left limb is named, seven of them; {} stands for the side
    "Bip01 L Thigh": ["Bip01 {} UpperArm", "Bip01 {} Forearm", "Bip01 {} Hand", "Bip01 {} Thigh", "Bip01 {} Calf"]
    + ["Bip01 {} Foot", "Bip01 {} Toe0"],
    "m_avg_L_Hip": [f"m_avg_{{}}_{x}" for x in ("Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle", "Foot")],
    "DEF-thigh.L": [f"DEF-{x}.{{}}" for x in ("upper_arm", "forearm", "hand", "thigh", "shin", "foot", "toe")],
    "J_Bip_L_": [
        f"J_Bip_{{}}_{x}" for x in ("UpperArm", "LowerArm", "Hand", "UpperLeg", "LowerLeg", "Foot", "ToeBase")
    ],
    "CC_Base_L_": [f"CC_Base_{{}}_{x}" for x in ("Upperarm", "Forearm", "Hand", "Thigh", "Calf", "Foot", "ToeBase")],
    "mixamorigLeft": [f"mixamorig{{}}{x}" for x in ("Arm", "ForeArm", "Hand", "UpLeg", "Leg", "Foot", "ToeBase")],
    "Character1_Left": [f"Character1_{{}}{x}" for x in ("Arm", "ForeArm", "Hand", "UpLeg", "Leg", "Foot", "ToeBase")],
    "OptiTrack": [f"{{}}{x}" for x in ("UArm", "FArm", "Hand", "Thigh", "Shin", "Foot", "Toe")],
    "Daz": [f"{{}}{x}" for x in ("ShldrBend", "ForearmBend", "Hand", "ThighBend", "Shin", "Foot", "Toe")],
    "SOMA": [f"{{}}{x}" for x in ("Arm", "ForeArm", "Hand", "Leg", "Shin", "Foot", "ToeBase")],
    "SMPL": [f"{{}}_{x}" for x in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle", "foot")],
}
SIDES = {"mixamorigLeft": ("Left", "Right"), "Character1_Left": ("Left", "Right"), "SOMA": ("Left", "Right")}
SIDES.update({"SMPL": ("left", "right"), "Daz": ("l", "r")})


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_many_skeletons(kind):
    """A prefix that the names share is left out; beside an ankle the foot is the toe, beside a shin the leg a thigh."""
    prefix = "DEF-" if kind == "DEF-thigh.L" else NAMES[kind][0].split("{}")[0]
    names = [prefix + name for name, _ in BODY]
    parents = [names.index(prefix + parent) if parent else -1 for _, parent in BODY]
    expected = {}
    for side, word in zip(("left", "right"), SIDES.get(kind, ("L", "R"))):
        for limb, form in zip(LIMB, NAMES[kind]):
            parents.append(2 if limb == "upper_arm" else 0 if limb == "thigh" else len(names) - 1)
            names.append(form.format(word))
            expected[f"{side}_{limb}"] = names[-1]
        for finger in ("Hand", "Wrist") if kind == "SMPL" else ():  # a hand beyond the wrist
            parents.append(names.index(expected[f"{side}_hand"]))
            names.append(f"{word}_{finger.lower()}" if finger == "Hand" else f"{word}_thumb")
    found = retarget.guess_joints(names, parents)
    assert {body: found.get(body) for body in expected} == expected
    assert (
        found["pelvis"] == prefix + "Hips" and found["torso"] == prefix + "Chest" and found["head"] == prefix + "Head"
    )


# ----------------------------------------------------------------------------------------------------------------------
# Pickles: numbers, tensors, what is dropped
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [np.float64(24), np.float32(24), np.int64(24), np.array(24.0), torch.tensor(24)])
def test_a_rate_may_be_any_number(tmp_path, character, convert, fps):
    rotations = np.tile(UPRIGHT, (3, 15, 1))
    path = poselib_file(tmp_path / "a.npy", character, rotations, np.zeros((3, 3)), fps=fps)
    assert convert(path)[0].fps == 24.0


def test_a_missing_or_wrong_rate(tmp_path, character, convert, refuse):
    rotations = np.tile(UPRIGHT, (3, 15, 1))
    for fps in (None, 0.5, 0, 5000):
        path = poselib_file(tmp_path / "a.npy", character, rotations, np.zeros((3, 3)), fps=fps)
        assert "--input-fps" in refuse(path)
        assert convert(path, "--input-fps", "24")[0].fps == 24.0


def test_a_hand_that_turns_is_said(tmp_path, character, convert):
    """ASE's sword swings in the wrist; our hands are welded."""
    rotations = np.tile(UPRIGHT, (3, 15, 1))
    rotations[1, character.body_names.index("right_hand")] = [0, 0, 0.5, math.sqrt(0.75)]
    clip, out = convert(poselib_file(tmp_path / "a.npy", character, rotations, np.zeros((3, 3))))
    assert "turns dropped of right_hand to 60 deg" in out and "left_hand" not in out
    assert angle(clip.rotations[1], np.tile(UPRIGHT, (15, 1))).max() < 1e-6


def test_mimickit_with_nan(tmp_path, character, convert, refuse):
    """A ball joint that is NaN does not turn, as in MimicKit itself; a hinge or a position that is NaN is refused."""
    rows = [{"neck": [math.nan] * 3, "right_knee": 0.3}, {"neck": [0.1, 0, 0]}, {"neck": [0, math.nan, 0.2]}]
    clip, out = convert(mimickit_file(tmp_path / "a.pkl", rows))
    assert "NaN in the head in 2 frames taken as no rotation" in out
    head = clip.rotations[:, character.body_names.index("head")]
    np.testing.assert_allclose(head, [UPRIGHT, [math.sin(0.05), 0, 0, math.cos(0.05)], UPRIGHT], atol=1e-6)
    assert clip.rotations[0, character.body_names.index("right_shin")][1] == pytest.approx(math.sin(0.15), abs=1e-6)
    for row in ({"left_knee": math.nan}, {"root": [math.nan, 0, 0.9, 0, 0, 0]}):
        assert "NaN" in refuse(mimickit_file(tmp_path / "a.pkl", [row, {}]))
    array = {"frames": np.full((3, 34), np.nan), "fps": torch.tensor(30), "loop_mode": 0}
    array["frames"][:, [0, 1, 2, 15, 19, 23, 30]] = array["frames"][:, 3:6] = 0.0  # but positions, root and hinges
    array["frames"][:, [15, 19, 23, 30]] = 0.0
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(array))
    said = formats.read(str(tmp_path / "b.pkl"), character)
    assert said.content.fps == 30.0 and said.notes.count("NaN") == 8  # all balls


def test_mimickit_of_another_robot_is_said(tmp_path, refuse):
    for frames in ([[0.0] * 35] * 3, np.zeros((3, 35))):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"frames": frames, "fps": 30, "loop_mode": 0}))
        assert "34" in refuse(tmp_path / "a.pkl")


# ----------------------------------------------------------------------------------------------------------------------
# Planting
# ----------------------------------------------------------------------------------------------------------------------


@needs_mink
def test_planting_that_would_run_away_is_left_out(tmp_path, character, convert, load):
    """A frame time of 1 s where 1/30 is meant: everything is slow, so everything stands."""
    clip = load("walk")
    offsets = 1.2 * character.offsets.double().numpy()
    taller = bvh.Recording(
        1.0, "", 1.2 * clip.root_position, clip.rotations, character.body_names, character.parents, offsets, ""
    )
    offsets[character.body_names.index("head")] *= 1.2  # other proportions
    (tmp_path / "a.bvh").write_text(bvh.bvh_text(taller))
    slow, out = convert(tmp_path / "a.bvh")
    left, _ = convert(tmp_path / "a.bvh", "--no-plant")
    assert "feet not planted (it would run away" in out and "--input-fps" in out
    np.testing.assert_array_equal(slow.rotations, left.rotations)
    right, out = convert(tmp_path / "a.bvh", "--input-fps", "30")
    assert "feet planted" in out and right.fps == 30.0 and "--input-fps" not in out
    assert np.abs(right.root_position[:, :2] - clip.root_position[:, :2]).max() < 0.1


# ----------------------------------------------------------------------------------------------------------------------
# What is wrong with the data
# ----------------------------------------------------------------------------------------------------------------------


def standing(frames, **moves):
    """Arrays of a clip that glides forward at 1 m/s, 10 frames a second."""
    path = np.stack((0.1 * np.arange(frames), np.zeros(frames), np.full(frames, 0.881416)), -1)
    return {"frames": frames, "root_position": path, "rotations": np.tile(UPRIGHT, (frames, 15, 1)), **moves}


def test_every_frame_twice(write_clip, convert):
    arrays = standing(40, fps=60.0)
    for key in ("root_position", "rotations"):
        arrays[key] = np.repeat(arrays[key][:20], 2, 0)
    path = write_clip(**arrays)
    out = convert(path)[1]
    assert "every frame comes twice; --fps 30 takes each once" in out and "jumps" not in out
    clip, out = convert(path, "--fps", "30")
    assert "warning" not in out and clip.fps == pytest.approx(30.0)
    np.testing.assert_allclose(clip.root_position[:, 0], 0.1 * np.arange(20), atol=1e-6)


def test_a_rest_pose_before_the_motion(write_clip, convert):
    arrays = standing(40)
    arrays["rotations"][1:, 3] = [-HALF, 0, 0, HALF]  # an arm that hangs only after the first frame
    arrays["rotations"][1:, 4] = [0, -HALF, 0, HALF]
    path = write_clip(**arrays)
    out = convert(path)[1]
    assert (
        "frame 0 is a rest pose, from which it jumps; --start 0.1000 leaves it out" in out and "cut it out" not in out
    )
    assert "warning" not in convert(path, "--start", "0.1")[1]


def test_stairs_centimetres_slow_rates_and_single_poses(write_clip, convert):
    arrays = standing(40)
    arrays["root_position"][20:, 2] += 0.5
    assert "--no-lift" in convert(write_clip(**arrays))[1]
    arrays["root_position"][:, 2] = 88.0
    assert "centimetres" in convert(write_clip(**arrays))[1]
    arrays = standing(40)
    arrays["root_position"][:, 0] *= 100
    assert "moves at 100 m/s" in convert(write_clip(**arrays))[1]
    assert "1 frames a second" in convert(write_clip(**standing(40, fps=1.0)))[1]
    assert "single pose" in convert(write_clip(frames=20))[1]


def test_joints_beyond_the_limits(character, write_clip, convert):
    """The neck's range is 45 degrees to a side; 90 are 45 too many."""
    arrays = standing(40)
    arrays["rotations"][10:30, 2] = [0, 0, HALF, HALF]
    out = convert(write_clip(**arrays))[1]
    assert "neck_z goes 45 deg beyond the character's limit in frame 10" in out
    beyond = checks.beyond_limits(character, ml.Clip(10.0, "clamp", arrays["root_position"], arrays["rotations"]))
    neck = character.dof_names.index("neck_z")
    np.testing.assert_allclose(beyond[[0, 10], neck], [-45.0, 45.0], atol=1e-4)


def test_the_committed_clips_are_quiet(root, character, load):
    """None of the new warnings is for them, but what motions/README.md says of them."""
    said = {path.stem: checks.report(character, load(path.stem))[1:] for path in (root / "motions").glob("*.npz")}
    words = ("twice", "rest pose", "no-lift", "limit", "centimetres", "input-fps", "single pose")
    assert {name: lines for name, lines in said.items() if any(word in line for line in lines for word in words)} == {}


# ----------------------------------------------------------------------------------------------------------------------
# Refusals
# ----------------------------------------------------------------------------------------------------------------------


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


REFUSED = {
    "FBX": (b"Kaydara FBX Binary  \x00\x1a\x00", "Blender"),
    "FBX in ASCII": (b"; FBX 7.3.0 project file", "Blender"),
    "C3D": (b"\x02\x50" + bytes(510), "markers"),
    "glTF": (b"glTF\x02\x00\x00\x00", "Blender"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "Acclaim": (b"# AST/ASF file\n:version 1.10", "Acclaim"),
    "Unitree csv": (b",".join([b"0.1"] * 36) + b"\n", "joint angles"),
    "GMR": (pickle.dumps({"fps": 30, "root_pos": np.zeros((2, 3)), "dof_pos": np.zeros((2, 29))}), "GMR"),
    "BeyondMimic": (npz(fps=np.array([50]), body_pos_w=np.zeros((2, 30, 3))), "BeyondMimic"),
    "LocoMuJoCo": (npz(qpos=np.zeros((2, 36)), joint_names=np.array(["a"], object)), "LocoMuJoCo"),
    "LocoMuJoCo, older": (npz(q_pelvis_tx=np.zeros(2), q_hip_flexion_r=np.zeros(2)), "LocoMuJoCo"),
    "another archive": (npz(weights=np.zeros(3)), "weights"),
    "another pickle": (pickle.dumps({"weights": 1}), "weights"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_what_a_file_is(tmp_path, refuse, name):
    raw, word = REFUSED[name]
    (tmp_path / "a").write_bytes(raw)
    said = refuse(tmp_path / "a")
    assert word in said and "truncated" not in said and "fps" not in said


# ----------------------------------------------------------------------------------------------------------------------
# AMASS, PHC, ProtoMotions
# ----------------------------------------------------------------------------------------------------------------------

SMPL_ROOT, SMPL_LEFT_KNEE, SMPL_LEFT_ELBOW = 0, 4, 18


def amass(frames=4, columns=156, **arrays):
    """A person of SMPL in a T-pose, upright in a world that is Z up, which moves by 0.1 m a frame towards -y."""
    poses = np.zeros((frames, columns))
    poses[:, 0] = math.pi / 2  # the zero pose is Y up
    poses[:, 3 * SMPL_LEFT_ELBOW + 1] = -math.pi / 3  # forward: from +x towards +z, about -y
    poses[:, 3 * SMPL_LEFT_KNEE] = math.pi / 6  # the shin backward, about +x
    trans = np.zeros((frames, 3))
    trans[:, 1] = -0.1 * np.arange(frames)
    data = {"poses": poses, "trans": trans, "betas": np.zeros(16), "mocap_framerate": np.array(10.0)}
    data.update({"gender": np.array("male", object), **arrays})
    return {key: value for key, value in data.items() if value is not None}


@pytest.mark.parametrize("columns", [66, 72, 156, 165])
def test_amass(tmp_path, character, convert, columns):
    """SMPL, SMPL-H and SMPL-X; what is beyond the wrists is left out."""
    (tmp_path / "a.npz").write_bytes(npz(**amass(columns=columns)))
    clip, out = convert(tmp_path / "a.npz", "--no-plant")
    assert "read as AMASS: 4 frames at 10.00 /s" in out and "Z up, T-pose in the zero pose" in out
    dofs = np.rad2deg(ml.dof_positions(character, torch.from_numpy(clip.rotations)).numpy())[0]
    at = dict(zip(character.dof_names, dofs))
    # SMPL's own limbs are bent in its zero pose: thigh to shin 9.2 degrees (5.2 of them forward), the arms 6.2
    assert at["left_elbow"] == pytest.approx(-60, abs=8) and at["right_elbow"] == pytest.approx(0, abs=8)
    assert at["left_knee"] == pytest.approx(30 + 5.2, abs=1) and at["right_knee"] == pytest.approx(9.2, abs=0.1)
    assert at["left_shoulder_x"] == pytest.approx(90, abs=10) and at["right_shoulder_x"] == pytest.approx(-90, abs=10)
    assert float(ml.heading(torch.from_numpy(clip.rotations[0, 0]))) == pytest.approx(-math.pi / 2, abs=0.02)
    scale = 0.831416 / (math.dist((0, 0, 0), (0.0363, 0.3789, 0.0067)) + math.dist((0, 0, 0), (0.0147, 0.3982, 0.0430)))
    np.testing.assert_allclose(np.diff(clip.root_position, axis=0), [[0, -0.1 * scale, 0]] * 3, atol=1e-4)


def test_amass_rates_and_what_is_none(tmp_path, convert, refuse):
    (tmp_path / "a.npz").write_bytes(npz(**amass(mocap_framerate=None, mocap_frame_rate=np.array(120.0))))
    assert convert(tmp_path / "a.npz", "--no-plant")[0].fps == 120.0
    (tmp_path / "a.npz").write_bytes(npz(**amass(mocap_framerate=None)))
    assert "--input-fps" in refuse(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(npz(**amass(columns=63)))
    assert "66" in refuse(tmp_path / "a.npz")


class Wrapper:
    """What joblib puts into a pickle where an array's numbers follow."""


Wrapper.__name__ = Wrapper.__qualname__ = "NumpyArrayWrapper"
Wrapper.__module__ = "joblib.numpy_pickle"


class Joblib(pickle._Pickler):
    """Writes arrays as joblib does: a wrapper's state, a byte of padding's length, padding, numbers."""

    def save(self, value, save_persistent_id=True):
        if type(value) is not np.ndarray:
            return super().save(value, save_persistent_id)
        wrapper = Wrapper()
        wrapper.__dict__.update(subclass=np.ndarray, shape=value.shape, order="C", dtype=value.dtype)
        wrapper.__dict__.update(allow_mmap=True, numpy_array_alignment_bytes=16)
        super().save(wrapper)
        self.framer.commit_frame(force=True)
        padding = 15 - self.file.tell() % 16
        self.file.write(bytes([padding]) + b"\xff" * padding + value.tobytes())


@pytest.fixture
def phc(monkeypatch):
    """phc(tree) -> bytes as joblib dumps them."""
    module = types.ModuleType("joblib.numpy_pickle")
    module.NumpyArrayWrapper = Wrapper
    monkeypatch.setitem(sys.modules, "joblib", types.ModuleType("joblib"))
    monkeypatch.setitem(sys.modules, "joblib.numpy_pickle", module)

    def dump(tree):
        file = io.BytesIO()
        pickler = Joblib(file, protocol=4)
        pickler.file = file
        pickler.dump(tree)
        return file.getvalue()

    return dump


def phc_motion(frames=4):
    data = amass(frames)
    part = {"pose_aa": data["poses"][:, :72].reshape(frames, 24, 3), "fps": 10, "gender": "neutral"}
    return {**part, "root_trans_offset": torch.from_numpy(data["trans"]), "beta": np.zeros(16)}


@pytest.mark.parametrize("packed", [False, True])
def test_phc_is_amass(tmp_path, convert, phc, packed):
    (tmp_path / "a.npz").write_bytes(npz(**amass()))
    raw = phc({"0-walk": phc_motion()})
    (tmp_path / "a.pkl").write_bytes(zlib.compress(raw) if packed else raw)
    theirs, out = convert(tmp_path / "a.pkl", "--no-plant")
    ours, _ = convert(tmp_path / "a.npz", "--no-plant")
    assert "read as PHC" in out
    np.testing.assert_allclose(theirs.rotations, ours.rotations, atol=1e-6)
    np.testing.assert_allclose(np.diff(theirs.root_position, axis=0), np.diff(ours.root_position, axis=0), atol=1e-6)


def test_one_motion_of_several(tmp_path, convert, refuse, phc):
    (tmp_path / "a.pkl").write_bytes(phc({"walk": phc_motion(4), "run": phc_motion(7)}))
    assert "holds 2 motions; --motion NAME takes one of walk, run" in refuse(tmp_path / "a.pkl")
    assert "walk, run" in refuse(tmp_path / "a.pkl", "--motion", "jump")
    assert len(convert(tmp_path / "a.pkl", "--motion", "run", "--no-plant")[0].rotations) == 7


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_mutated_joblib_files(tmp_path, character, phc, data):
    """Numbers that lie in the midst of a pickle: our own error, or a motion."""
    (tmp_path / "a").write_bytes(mutate(data, phc({"walk": phc_motion()})))
    try:
        assert isinstance(formats.read(str(tmp_path / "a"), character).content, (bvh.Recording, ml.Clip))
    except ml.InputError as error:
        assert "\n" not in str(error)


@pytest.fixture
def conversion(monkeypatch):
    """ProtoMotions' enumeration, under the name that its files ask for."""
    names = "protomotions.simulator.base_simulator.simulator_state".split(".")
    for n in range(1, len(names) + 1):
        monkeypatch.setitem(sys.modules, ".".join(names[:n]), types.ModuleType(".".join(names[:n])))
    kind = enum.Enum("StateConversion", {"COMMON": "common", "SIMULATOR": "simulator"}, module=".".join(names))
    sys.modules[".".join(names)].StateConversion = kind
    return kind


# where SMPL's 24 bodies, in MuJoCo's order, have ours
SMPL_BODIES = (
    "pelvis left_thigh left_shin left_foot left_toe right_thigh right_shin right_foot right_toe - - torso - head"
)
SMPL_BODIES += " - left_upper_arm left_lower_arm left_hand - - right_upper_arm right_lower_arm right_hand -"


def protomotions(character, clip, count=24, **other):
    """What torch.save is given: all bodies in the world, xyzw; toes 14 cm in front of the ankles."""
    p, q, _, _ = formats.body_states(clip, character)
    names = SMPL_BODIES.split() if count == 24 else character.body_names
    position, rotation = torch.zeros(len(p), count, 3), torch.tensor(UPRIGHT).repeat(len(p), count, 1)
    for j, name in enumerate(names):
        ours = character.body_names.index(name.replace("toe", "foot")) if name != "-" else 0
        ahead = quat(0.14, 0, -0.04) if "toe" in name else quat(0, 0, 0)
        position[:, j] = p[:, ours] + ml.quat_rotate(q[:, ours], ahead)
        rotation[:, j] = q[:, ours]
    return {"rigid_body_pos": position, "rigid_body_rot": rotation, "fps": clip.fps, **other}


def saved(tree):
    file = io.BytesIO()
    torch.save(tree, file)
    return file.getvalue()


@pytest.mark.parametrize("count", [15, 24])
def test_protomotions(tmp_path, character, convert, load, conversion, count):
    clip = load("turn_left0")
    tree = protomotions(character, clip, count, state_conversion=conversion.COMMON)
    (tmp_path / "a.motion").write_bytes(saved(tree))
    back, out = convert(tmp_path / "a.motion", "--no-lift")
    assert f"read as ProtoMotions: 38 frames at 30.00 /s, {count} bodies" in out and "our proportions" in out
    assert angle(clip.rotations, back.rotations).max() < 1e-3
    assert np.abs(clip.root_position - back.root_position).max() < 1e-5
    # not contiguous, as slices and transposed tensors are
    tree["rigid_body_pos"] = tree["rigid_body_pos"].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    (tmp_path / "a.motion").write_bytes(saved(tree))
    again, _ = convert(tmp_path / "a.motion", "--no-lift")
    np.testing.assert_array_equal(back.root_position, again.root_position)


def test_an_enumeration_as_python_3_11_0_to_3_11_3_write_it(
    tmp_path, character, convert, load, conversion, monkeypatch
):
    """By getattr of the class and the member's name, in place of the class called with the value."""
    monkeypatch.setattr(conversion, "__reduce_ex__", lambda self, protocol: (getattr, (conversion, self.name)))
    (tmp_path / "a.motion").write_bytes(
        saved(protomotions(character, load("walk"), state_conversion=conversion.COMMON))
    )
    _, out = convert(tmp_path / "a.motion", "--no-lift")
    assert "read as ProtoMotions" in out


def test_getattr_of_anything_else_is_refused(tmp_path, refuse):
    class Trap:
        def __reduce__(self):
            return getattr, ("text", "upper")

    (tmp_path / "a.motion").write_bytes(saved({"rigid_body_pos": Trap()}))
    refuse(tmp_path / "a.motion")


def test_protomotions_of_others_are_said(tmp_path, character, refuse, load, conversion):
    tree = protomotions(character, load("walk"))
    for change in ({"state_conversion": conversion.SIMULATOR}, {"rigid_body_pos": torch.zeros(39, 30, 3)}):
        (tmp_path / "a.motion").write_bytes(saved({**tree, **change}))
        assert "ProtoMotions" in refuse(tmp_path / "a.motion")


# ----------------------------------------------------------------------------------------------------------------------
# Files that lie
# ----------------------------------------------------------------------------------------------------------------------


def test_nothing_in_an_archive_is_executed(tmp_path, payload, refuse):
    trap = payload(tmp_path / "executed")
    for tree in ({"rigid_body_pos": trap}, {"fps": torch.tensor(1), "a": [trap]}):
        (tmp_path / "a.motion").write_bytes(saved(tree))
        said = refuse(tmp_path / "a.motion")
        assert "refused, nothing was executed" in said and not (tmp_path / "executed").exists()
    inner = pickle.dumps(trap)
    call = b"\x80\x02ctorch.storage\n_load_from_bytes\nB" + len(inner).to_bytes(4, "little") + inner + b"\x85R."
    for raw in (call, zlib.compress(call)):
        (tmp_path / "a.pkl").write_bytes(raw)
        assert "refused, nothing was executed" in refuse(tmp_path / "a.pkl")
    with zipfile.ZipFile(tmp_path / "b", "w") as archive:
        archive.writestr("a/data.pkl", inner)
    assert "refused, nothing was executed" in refuse(tmp_path / "b") and not (tmp_path / "executed").exists()


STORAGE = np.arange(12.0)


@pytest.mark.parametrize(
    "offset,shape,strides",
    [
        (0, (13,), (1,)),
        (1, (12,), (1,)),
        (0, (2**40,), (0,)),
        (0, (3, 4), (5, 1)),
        (-1, (3,), (1,)),
        (0, (3,), (-1,)),
        (0, (3, 4), (1,)),
        (0, (0, 3), (3, 1)),
        (0, (4.0,), (1,)),
        (0, (1,) * 9, (1,) * 9),
    ],
)
def test_tensors_that_reach_beyond_their_storage(offset, shape, strides):
    with pytest.raises((ValueError, TypeError)):
        safe._tensor(STORAGE, offset, shape, strides)


def test_tensors_that_fit():
    np.testing.assert_array_equal(safe._tensor(STORAGE, 2, (2, 3), (1, 3)), [[2, 5, 8], [3, 6, 9]])
    for storage in (STORAGE.reshape(3, 4), [[0.0] * 3] * 3, b"abc"):
        with pytest.raises(ValueError):
            safe._tensor(storage, 0, (2,), (1,))


def test_what_is_packed_has_a_limit(tmp_path, refuse):
    (tmp_path / "a.pkl").write_bytes(zlib.compress(b"\x80" + bytes(safe.MAX_BYTES + 1)))
    assert "unpacks to more than 64 MiB" in refuse(tmp_path / "a.pkl")
    (tmp_path / "a.pkl").write_bytes(zlib.compress(b"\x80" * 1000)[:-30])
    refuse(tmp_path / "a.pkl")


def test_old_storages_do_not_nest():
    """A tensor's bytes hold five pickles, in which there is no tensor: else 250 copies of the file could be made."""
    inner = pickle.dumps(torch.tensor(7))
    assert safe.read_pickle("a", inner) == 7
    call = b"\x80\x02ctorch.storage\n_load_from_bytes\nB" + len(inner).to_bytes(4, "little") + inner + b"\x85R."
    with pytest.raises(ml.InputError):
        safe.read_pickle(
            "a", b"\x80\x02ctorch.storage\n_load_from_bytes\nB" + len(call).to_bytes(4, "little") + call + b"\x85R."
        )


def test_texts_that_hold_no_characters(tmp_path, refuse, write_clip):
    """NumPy reads a code beyond Unicode's last, which Python can't print."""
    with zipfile.ZipFile(write_clip()) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, raw in members:
            archive.writestr(name, raw[:-4] + b"\xff\xff\xff\x7f" if name == "body_names.npy" else raw)
    assert "a text that holds no characters" in refuse(tmp_path / "a.npz")
