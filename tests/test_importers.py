"""Motions of other formats and skeletons: hand-checked values, round trips, retargeting, options, files that lie."""

import copy
import io
import json
import math
import os
import pickle
import shutil
import struct
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import motion_lib as ml
from clips import save_clip
from motions import bvh, formats, plant, retarget, safe

CONVERT = "motions/convert.py"
HALF = math.sqrt(0.5)
W, S = math.cos(math.pi / 12), math.sin(math.pi / 12)  # half of a turn by 30 degrees: w and the length of the axis part
needs_mink = pytest.mark.skipif(sys.version_info < (3, 10), reason="mink needs Python 3.10")


def angle(a, b):
    """Angles between rotations xyzw (..., 4) [rad]."""
    a, b = torch.as_tensor(np.array(a)).double(), torch.as_tensor(np.array(b)).double()
    return ml.rotvec_from_quat(ml.quat_multiply(ml.quat_conjugate(a), b)).norm(dim=-1).numpy()


# ----------------------------------------------------------------------------------------------------------------------
# Files written by hand, not by the exporters
# ----------------------------------------------------------------------------------------------------------------------


def upright(frames=3):
    return np.tile([0.0, 0.0, 0.0, 1.0], (frames, 15, 1))


def poselib_file(path, character, rotations, root, offsets=None, fps=30, local=True, protocol=4):
    """As numpy.save of poselib's to_dict writes it, with this NumPy's names."""

    def tensor(x, kind):
        return {"arr": np.array(x, kind), "context": {"dtype": np.dtype(kind).name}}

    tree = OrderedDict()
    tree["rotation"] = tensor(rotations, "float32")
    tree["root_translation"] = tensor(root, "float32")
    tree["global_velocity"] = tree["global_angular_velocity"] = tensor(np.zeros((len(root), 15, 3)), "float32")
    offsets = character.offsets.numpy() if offsets is None else offsets
    skeleton = {"node_names": list(character.body_names), "parent_indices": tensor(character.parents, "int64")}
    tree["skeleton_tree"] = OrderedDict(skeleton, local_translation=tensor(offsets, "float32"))
    tree["is_local"] = local
    tree["fps"] = fps
    tree["__name__"] = "SkeletonMotion"
    holder = np.empty((), object)
    holder[()] = tree
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(holder, file, protocol=protocol)
    return path


MIMICKIT = ["abdomen3", "neck3", "right_shoulder3", "right_elbow1", "left_shoulder3", "left_elbow1"]
MIMICKIT += ["right_hip3", "right_knee1", "right_ankle3", "left_hip3", "left_knee1", "left_ankle3"]


def mimickit_file(path, rows, loop_mode=1, fps=30):
    """Rows are dictionaries: root (6 numbers: position and exponential map), and the joints of MIMICKIT by name."""
    frames = []
    for row in rows:
        frames.append(list(row.get("root", [0, 0, 0.9, 0, 0, 0])))
        for joint in MIMICKIT:
            frames[-1] += list(np.atleast_1d(row.get(joint[:-1], [0.0] * int(joint[-1]))))
    path.write_bytes(
        pickle.dumps({"loop_mode": loop_mode, "fps": fps, "frames": [[float(x) for x in frame] for frame in frames]})
    )
    return path


def isaaclab_file(path, names, position, wxyz, fps=30):
    with open(path, "wb") as file:
        np.savez(
            file,
            fps=np.int64(fps),
            dof_names=np.array(["a"]),
            body_names=np.array(names),
            dof_positions=np.zeros((len(position), 1)),
            dof_velocities=np.zeros((len(position), 1)),
            body_positions=np.float32(position),
            body_rotations=np.float32(wxyz),
            body_linear_velocities=np.zeros((len(position), len(names), 3)),
            body_angular_velocities=np.zeros((len(position), len(names), 3)),
        )
    return path


def deepmimic_file(path, character, clip):
    """The clip as DeepMimic text, from that format's description: Y up, +Z right, wxyz, hinges about their +Z."""
    bodies = ["torso", "head"]
    for side in ("right", "left"):
        bodies += [f"{side}_thigh", f"{side}_shin", f"{side}_foot", f"{side}_upper_arm", f"{side}_lower_arm"]
    rows = []
    for p, q in zip(clip.root_position.tolist(), clip.rotations.tolist()):
        row = [1 / clip.fps, p[0], p[2], -p[1]]
        for body in ["pelvis", *bodies]:
            x, y, z, w = q[character.body_names.index(body)]
            row += [-2 * math.atan2(y, w)] if body.endswith(("shin", "lower_arm")) else [w, x, z, -y]
        rows.append(row)
    path.write_text(json.dumps({"Loop": clip.loop if clip.loop == "wrap" else "none", "Frames": rows}))
    return path


# ----------------------------------------------------------------------------------------------------------------------
# Formats
# ----------------------------------------------------------------------------------------------------------------------


def test_poselib_is_xyzw(tmp_path, character, convert):
    rotations, right_thigh, torso = (
        upright(),
        character.body_names.index("right_thigh"),
        character.body_names.index("torso"),
    )
    rotations[1, right_thigh] = [S, 0, 0, W]
    rotations[1, torso] = [0, 0.6 * S, 0.8 * S, W]
    clip, out = convert(
        poselib_file(tmp_path / "a.npy", character, rotations, [[1, 2, 3]] * 3, fps=np.array(24.0)), "--no-lift"
    )
    np.testing.assert_allclose(clip.rotations[1, right_thigh], [S, 0, 0, W], atol=1e-6)
    np.testing.assert_allclose(clip.rotations[1, torso], [0, 0.6 * S, 0.8 * S, W], atol=1e-6)
    np.testing.assert_allclose(clip.root_position, [[1, 2, 3]] * 3, atol=1e-5)
    assert clip.fps == 24.0 and "poselib: 3 frames at 24.00 /s, xyzw, parent-relative" in out


@pytest.mark.parametrize("protocol", [3, 4])
def test_poselib_in_the_world(tmp_path, character, convert, protocol):
    # all bodies turned by 30 degrees about z in the world: only the root turns relative to its parent
    rotations, expected = upright(), upright()
    rotations[:] = expected[:, 0] = [0, 0, S, W]
    clip, _ = convert(
        poselib_file(tmp_path / "a.npy", character, rotations, np.zeros((3, 3)), local=False, protocol=protocol)
    )
    np.testing.assert_allclose(clip.rotations, expected, atol=1e-6)


def test_poselib_with_a_t_pose_skeleton(tmp_path, character, convert):
    """Arms that point sideways in the zero pose.

    With all rotations zero, our arms must be raised by a quarter turn about x."""
    offsets = character.offsets.numpy().copy()
    for side, y in (("right", -1), ("left", 1)):
        for body in ("lower_arm", "hand"):
            j = character.body_names.index(f"{side}_{body}")
            offsets[j] = [0, y * np.linalg.norm(offsets[j]), 0]
    clip, out = convert(poselib_file(tmp_path / "a.npy", character, upright(), np.zeros((3, 3)), offsets))
    expected = upright()
    for side, x in (("right", -HALF), ("left", HALF)):
        expected[:, character.body_names.index(f"{side}_upper_arm")] = [x, 0, 0, HALF]
    assert (
        angle(clip.rotations, expected).max() < 1e-6 and "T-pose in the zero pose" in out and "our proportions" in out
    )


def test_mimickit(tmp_path, character, convert):
    rows = [
        {},
        {
            "root": [1, 2, 3, 0, 0, math.pi / 6],
            "right_shoulder": [math.pi / 2, 0, 0],  # from the T down to the thigh
            "right_elbow": 0.5,  # about z: forward
            "left_shoulder": [-math.pi / 2, 0, 0],
            "left_elbow": -0.7,
            "neck": [0, math.pi / 6, 0],
            "right_knee": 0.4,
            "left_ankle": [math.pi / 6, 0, 0],
        },
        {"right_elbow": 1.0, "left_elbow": -1.0},
    ]
    clip, out = convert(mimickit_file(tmp_path / "a.pkl", rows), "--no-lift")
    assert clip.loop == "wrap" and "MimicKit" in out and "T-pose" in out
    np.testing.assert_allclose(clip.root_position[1], [1, 2, 3], atol=1e-6)
    t_pose, expected = upright()[0], upright()[0]
    t_pose[character.body_names.index("right_upper_arm")] = [-HALF, 0, 0, HALF]
    t_pose[character.body_names.index("left_upper_arm")] = [HALF, 0, 0, HALF]
    assert angle(clip.rotations[0], t_pose).max() < 1e-6
    turned = dict(
        pelvis=(0, 0, S, W),
        head=(0, S, 0, W),
        right_lower_arm=(0, -math.sin(0.25), 0, math.cos(0.25)),
        left_lower_arm=(0, -math.sin(0.35), 0, math.cos(0.35)),
        right_shin=(0, math.sin(0.2), 0, math.cos(0.2)),
        left_foot=(S, 0, 0, W),
    )
    for body, rotation in turned.items():
        expected[character.body_names.index(body)] = rotation
    assert angle(clip.rotations[1], expected).max() < 1e-6


def test_mimickit_with_hanging_arms(tmp_path, character, convert):
    """Elbows that both bend to the negative side belong to the skeleton whose arms hang, like ours."""
    clip, out = convert(mimickit_file(tmp_path / "a.pkl", [{"right_elbow": -0.5, "left_elbow": -0.5}] * 2, loop_mode=0))
    expected = upright(2)
    for side in ("right", "left"):
        expected[:, character.body_names.index(f"{side}_lower_arm")] = (0, -math.sin(0.25), 0, math.cos(0.25))
    assert angle(clip.rotations, expected).max() < 1e-6 and clip.loop == "clamp" and "arms hanging" in out


def test_isaac_lab_is_wxyz_and_in_any_order(tmp_path, character, convert):
    # the whole character turned by 30 degrees about z, standing at (1, 2);
    # its body names reversed, and one that is not ours
    names = ["camera", *character.body_names[::-1]]
    turn = torch.tensor([0, 0, S, W]).float()
    identity = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(15, 1)
    position, _ = ml.forward_kinematics(character, torch.tensor([1.0, 2.0, 0.9]), torch.cat((turn[None], identity[1:])))
    position = np.concatenate(([[9, 9, 9]], position.numpy()[::-1]))
    wxyz = np.tile([W, 0, 0, S], (16, 1))
    clip, out = convert(
        isaaclab_file(tmp_path / "a.npz", names, np.stack([position] * 3), np.stack([wxyz] * 3)), "--no-lift"
    )
    expected = upright()
    expected[:, 0] = [0, 0, S, W]
    assert (
        angle(clip.rotations, expected).max() < 1e-5
        and "Isaac Lab: 3 frames at 30.00 /s, wxyz" in out
        and "our proportions" in out
    )
    np.testing.assert_allclose(clip.root_position, [[1, 2, 0.9]] * 3, atol=1e-6)


def test_the_same_motion_in_two_formats(tmp_path, character, convert, load):
    """The back-flip as DeepMimic text and as poselib, both by hand from the formats' descriptions; and as MimicKit."""
    flip = load("backflip")
    text, _ = convert(deepmimic_file(tmp_path / "a.txt", character, flip))
    pose, _ = convert(
        poselib_file(tmp_path / "a.npy", character, flip.rotations, flip.root_position, fps=flip.fps), "--loop", "auto"
    )
    assert angle(text.rotations, pose.rotations).max() < 1e-3
    assert np.abs(text.root_position - pose.root_position).max() < 1e-3
    assert angle(text.rotations, flip.rotations).max() < 1e-4
    assert text.fps == pytest.approx(pose.fps) == pytest.approx(flip.fps)
    # MimicKit's shoulders start from a T, so that R = R_ours Rx(-+90 degrees) brings its arm to where ours is;
    # elbows turn about z
    dofs = ml.dof_positions(character, torch.from_numpy(flip.rotations)).numpy()
    root = ml.rotvec_from_quat(torch.from_numpy(flip.rotations[:, 0])).numpy()
    columns = {
        joint[:-1]: [d for d, dof in enumerate(character.dof_names) if dof.startswith(joint[:-1])] for joint in MIMICKIT
    }
    rows = []
    for frame in range(len(dofs)):
        row = {joint: dofs[frame, column] for joint, column in columns.items()}
        row["root"] = [*flip.root_position[frame], *root[frame]]
        for side, sign in (("right", 1.0), ("left", -1.0)):
            q = torch.from_numpy(flip.rotations[frame, character.body_names.index(f"{side}_upper_arm")])
            down = torch.tensor([sign * HALF, 0, 0, HALF]).double()
            row[f"{side}_shoulder"] = ml.rotvec_from_quat(ml.quat_multiply(q, down)).numpy()
            row[f"{side}_elbow"] = -sign * row[f"{side}_elbow"]
        rows.append(row)
    kit, _ = convert(mimickit_file(tmp_path / "a.pkl", rows, fps=flip.fps))
    assert (
        angle(text.rotations, kit.rotations).max() < 1e-3
        and np.abs(text.root_position - kit.root_position).max() < 1e-3
    )


def test_content_tells_the_format_not_the_ending(tmp_path, character, convert, load, run_script):
    walk = load("walk")
    path = deepmimic_file(tmp_path / "a.txt", character, walk)
    clip = tmp_path / "converted.npz"
    assert run_script(CONVERT, path, clip).code == 0
    for form, ending in (("poselib", ".npy"), ("isaaclab", ".npz"), ("bvh", ".bvh"), ("clip", ".npz")):
        assert run_script(CONVERT, clip, tmp_path / f"{form}{ending}", "--format", form).code == 0
        shutil.copy(tmp_path / f"{form}{ending}", tmp_path / "disguised.jpg")
        found, _ = convert(tmp_path / "disguised.jpg")
        assert angle(found.rotations, walk.rotations).max() < 1e-4


@pytest.mark.parametrize("form,ending", [("poselib", ".npy"), ("isaaclab", ".npz"), ("bvh", ".bvh")])
@pytest.mark.parametrize("name", ["walk", "backflip", "spin", "getup_faceup", "turn_right0"])
def test_round_trips(root, tmp_path, convert, run_script, load, name, form, ending):
    clip = load(name)
    assert run_script(CONVERT, root / f"motions/{name}.npz", tmp_path / f"a{ending}", "--format", form).code == 0
    back, _ = convert(tmp_path / f"a{ending}", "--no-lift")
    assert angle(clip.rotations, back.rotations).max() < 1e-4
    assert np.abs(clip.root_position - back.root_position).max() < 1e-4
    assert back.fps == pytest.approx(clip.fps, rel=1e-4) and (form == "bvh" or back.loop == clip.loop)


def test_exports_are_what_others_read(root, tmp_path, character, load, run_script):
    clip = load("walk")
    for form, ending in (("poselib", ".npy"), ("isaaclab", ".npz")):
        assert run_script(CONVERT, root / "motions/walk.npz", tmp_path / f"a{ending}", "--format", form).code == 0
    tree = np.load(tmp_path / "a.npy", allow_pickle=True).item()  # a file that this test has just made
    assert tree["__name__"] == "SkeletonMotion" and tree["is_local"] is True and tree["fps"] == pytest.approx(clip.fps)
    assert list(tree["skeleton_tree"]["node_names"]) == character.body_names
    for key, shape in (("rotation", (39, 15, 4)), ("root_translation", (39, 3)), ("global_velocity", (39, 15, 3))):
        array = tree[key]["arr"]
        assert array.shape == shape and tree[key]["context"]["dtype"] == array.dtype.name == "float32"
    assert b"numpy._core" not in (tmp_path / "a.npy").read_bytes()  # which NumPy 1 does not know
    with np.load(tmp_path / "a.npz", allow_pickle=False) as lab:
        assert set(lab.files) > {
            "fps",
            "dof_names",
            "body_names",
            "dof_positions",
            "dof_velocities",
            "body_linear_velocities",
        }
        np.testing.assert_allclose(lab["body_rotations"][:, 0], clip.rotations[:, 0][:, [3, 0, 1, 2]], atol=1e-6)
        # velocities are what the positions do
        step = (lab["body_positions"][2:] - lab["body_positions"][:-2]) * clip.fps / 2
        np.testing.assert_allclose(lab["body_linear_velocities"][1:-1], step, atol=1e-4)
        assert lab["dof_positions"].shape == lab["dof_velocities"].shape == (39, 28)


# ----------------------------------------------------------------------------------------------------------------------
# BVH
# ----------------------------------------------------------------------------------------------------------------------

SMALL = """HIERARCHY
ROOT Hips
{
  OFFSET 0 0 0
  CHANNELS 6 Xposition Yposition Zposition Zrotation Yrotation Xrotation
  JOINT Spine of Steel
  {
    OFFSET 0 10 0
    CHANNELS 6 Xposition Yposition Zposition Xrotation Yrotation Zrotation
    End Site
    {
      OFFSET 0 5 0
    }
  }
}
MOTION
Frames: 2
Frame Time: 0.033333
1 2 3 90 0 0   0 12 0  0 0 30
1 2 3 90 0 90  0 12 0  0 0 30
"""


def test_bvh_values():
    found = bvh.read_bvh("a.bvh", SMALL)
    assert (
        found.names == ["Hips", "Spine of Steel"]
        and found.parents == [-1, 0]
        and found.fps == 30.0
        and found.loop == ""
    )
    np.testing.assert_allclose(found.root_position, [[1, 2, 3]] * 2)
    np.testing.assert_allclose(found.offsets[1], [0, 12, 0])  # a position channel stands for the offset
    np.testing.assert_allclose(found.rotations[:, 1], [[0, 0, S, W]] * 2, atol=1e-12)
    np.testing.assert_allclose(found.rotations[0, 0], [0, 0, HALF, HALF], atol=1e-12)
    # Rz(90) Rx(90): x goes to y, y (by Rx to z) stays z, z (by Rx to -y) goes to x:
    # the cyclic permutation, 120 degrees about (1, 1, 1)
    np.testing.assert_allclose(found.rotations[1, 0], [0.5, 0.5, 0.5, 0.5], atol=1e-12)


BAD_BVH = {
    "no MOTION": SMALL[: SMALL.index("MOTION")],
    "cut off in the hierarchy": SMALL[:150],
    "no frames": SMALL[: SMALL.index("1 2 3")],
    "a frame too few": SMALL[: SMALL.index("1 2 3 90 0 90")],
    "more frames promised than a file can hold": SMALL.replace("Frames: 2", "Frames: 1000000000000"),
    "a column too few": SMALL.replace("0 0 30", "0 0"),
    "NaN": SMALL.replace("90 0 90", "90 nan 90"),
    "a word": SMALL.replace("90 0 90", "90 zero 90"),
    "no time": SMALL.replace("0.033333", "0"),
    "two roots": SMALL.replace("JOINT Spine of Steel", "ROOT Spine"),
    "a brace too many": SMALL.replace("MOTION", "}\nMOTION"),
    "unknown channel": SMALL.replace("Zrotation Yrotation Xrotation", "Zrotation Yrotation Wrotation"),
    "channel twice": SMALL.replace("Zrotation Yrotation Xrotation", "Zrotation Zrotation Xrotation"),
    "channels miscounted": SMALL.replace(
        "CHANNELS 6 Xposition Yposition Zposition Z", "CHANNELS 5 Xposition Yposition Zposition Z"
    ),
    "infinite offset": SMALL.replace("OFFSET 0 10 0", "OFFSET 0 inf 0"),
    "same name twice": SMALL.replace("Spine of Steel", "Hips"),
    "too deep": "HIERARCHY\nROOT a\n{\nOFFSET 0 0 0\n"
    + "".join(f"JOINT j{i}\n{{\nOFFSET 0 1 0\n" for i in range(100_000)),
    "no limbs": SMALL,
}


@pytest.mark.parametrize(
    "text, words",
    [
        (SMALL[:-4], "line 20 has 11 numbers instead of 12; is the file cut off?"),
        (BAD_BVH["a word"], "line 20 has 'zero' in the place of a number"),
        (
            BAD_BVH["no frames"],
            'after MOTION, in line 16, come "Frames: N", "Frame Time: SECONDS" and rows of 12 numbers',
        ),
    ],
)
def test_a_bad_bvh_is_told_by_the_line_of_the_file(text, words):
    """In our words, and no library's."""
    assert SMALL.split("\n")[15] == "MOTION" and SMALL.split("\n")[19].startswith("1 2 3")
    with pytest.raises(ml.InputError) as error:
        bvh.read_bvh("a.bvh", text)
    assert str(error.value) == f"a.bvh: {words}"


@pytest.mark.parametrize("text", BAD_BVH.values(), ids=BAD_BVH.keys())
def test_bad_bvh(refuse, tmp_path, text):
    (tmp_path / "in.bvh").write_text(text)
    assert "in.bvh" in refuse(tmp_path / "in.bvh")


def test_an_independent_reader_agrees_on_our_bvh(root, tmp_path, character, load, run_script):
    pybvh = pytest.importorskip("pybvh")
    clip = load("cartwheel")
    assert run_script(CONVERT, root / "motions/cartwheel.npz", tmp_path / "a.bvh", "--format", "bvh").code == 0
    theirs = pybvh.read_bvh_file(str(tmp_path / "a.bvh"), world_up="+y")
    position, _, _, _ = formats.body_states(clip, character)
    order = [theirs.joint_names.index(name) for name in character.body_names]
    found = theirs.joint_positions()[:, order]  # (F, J, 3) in cm, Y up
    np.testing.assert_allclose(0.01 * found[..., [2, 0, 1]], position.numpy(), atol=1e-6)


class Foreign(NamedTuple):
    """A skeleton that moves as ours does."""

    recording: bvh.Recording
    index: dict  # our bodies -> joints


LAFAN = dict(pelvis="Hips", torso="Spine2", head="Head")
SMPL = dict(pelvis="Pelvis", torso="Chest", head="Head")
for _side in ("Left", "Right"):
    _limbs = dict(upper_arm="Arm", lower_arm="ForeArm", hand="Hand", thigh="UpLeg", shin="Leg", foot="Foot")
    LAFAN.update({f"{_side.lower()}_{ours}": _side + theirs for ours, theirs in _limbs.items()})
    _limbs = dict(upper_arm="Shoulder", lower_arm="Elbow", hand="Wrist", thigh="Hip", shin="Knee", foot="Ankle")
    SMPL.update({f"{_side.lower()}_{ours}": f"{_side[0]}_{theirs}" for ours, theirs in _limbs.items()})


def foreign(character, clip, frames, names, world=retarget.UP["+y"], stretch=1.0, leg=1.0, unit=100.0):
    """The clip on a skeleton whose joints' frames are `frames` (15, 4) away from our bodies', in another world.

    R = W^-1 R_ours C^-1. Between pelvis and torso, and between torso and each arm, it has a joint more, as all
    skeletons from motion capture do."""
    world = torch.tensor(world).double()
    mul, inverse = ml.quat_multiply, ml.quat_conjugate
    _, q, _, _ = formats.body_states(clip, character)
    turned = mul(mul(inverse(world), q), inverse(frames))  # (F, 15, 4) joints in the other world
    offsets = character.offsets.double() * stretch
    for j, name in enumerate(character.body_names):
        offsets[j] *= leg if name.endswith(("shin", "foot")) else 1.0
    joints, parents, local, length = [], [], [], []
    for j, name in enumerate(character.body_names):
        up = character.parents[j]
        offset = ml.quat_rotate(frames[up], offsets[j]).numpy() * unit if j else np.zeros(3)
        above = joints.index(names[character.body_names[up]]) if j else -1
        if name == "torso" or name.endswith("upper_arm"):
            joints.append(f"Extra {name}")
            parents.append(above)
            local.append(torch.tensor([0.0, 0.0, 0.0, 1.0]).double().expand(len(q), 4))
            length.append(0.5 * offset)
            above, offset = len(joints) - 1, 0.5 * offset
        joints.append(names[name])
        parents.append(above)
        local.append(mul(inverse(turned[:, up]), turned[:, j]) if j else turned[:, 0])
        length.append(offset)
    position = ml.quat_rotate(inverse(world), torch.from_numpy(clip.root_position)).numpy() * unit * stretch * leg
    return bvh.Recording(clip.fps, "", position, torch.stack(local, 1).numpy(), joints, parents, np.array(length), "")


def at_rest(character, drop):
    """Our bodies' rotations (15, 4) in a pose whose arms are `drop` radians below the horizontal."""
    pose = torch.tensor([0.0, 0.0, 0.0, 1.0]).double().repeat(15, 1)
    for side, sign in (("right", -1), ("left", 1)):
        half = 0.5 * (math.pi / 2 - drop)
        for limb in ("upper_arm", "lower_arm", "hand"):
            pose[character.body_names.index(f"{side}_{limb}")] = torch.tensor(
                [sign * math.sin(half), 0, 0, math.cos(half)]
            )
    return pose


def text_of(recording):
    """A BVH file of a recording as it is, Euler angles in the order x y z, positions for every joint.

    Blender writes it so."""
    x, y, z, w = np.moveaxis(recording.rotations, -1, 0)
    # R = Rx(a) Ry(b) Rz(c): R[0,2] = sin b, R[1,2] = -sin a cos b, R[2,2] = cos a cos b, R[0,1] = -cos b sin c,
    # R[0,0] = cos b cos c
    a = np.arctan2(-2 * (y * z - w * x), 1 - 2 * (x * x + y * y))
    b = np.arcsin(np.clip(2 * (x * z + w * y), -1, 1))
    c = np.arctan2(-2 * (x * y - w * z), 1 - 2 * (y * y + z * z))
    angles = np.rad2deg(np.stack((a, b, c), -1))
    lines, order = ["HIERARCHY"], []

    def write(j):
        order.append(j)
        lines.extend(
            [
                f"{'JOINT' if j else 'ROOT'} {recording.names[j]}",
                "{",
                "OFFSET " + " ".join(map(str, recording.offsets[j])),
            ]
        )
        lines.append("CHANNELS 6 Xposition Yposition Zposition Xrotation Yrotation Zrotation")
        children = [child for child, parent in enumerate(recording.parents) if parent == j]
        for child in children:
            write(child)
        lines.extend(["}"] if children else ["End Site", "{", "OFFSET 0 0 0", "}", "}"])

    write(0)
    lines += ["MOTION", f"Frames: {len(angles)}", f"Frame Time: {1 / recording.fps:.6f}"]
    for root, frame in zip(recording.root_position, angles):
        lines.append(" ".join(f"{v:.6f}" for j in order for v in (*(recording.offsets[j] if j else root), *frame[j])))
    return "\n".join(lines)


@pytest.mark.parametrize("drop,said", [(0.0, "T-pose"), (math.pi / 4, "A-pose"), (math.pi / 2, "arms hanging")])
@pytest.mark.parametrize("up", ["+y", "+z", "+x"])
def test_rest_poses_and_up_axes(tmp_path, character, convert, load, drop, said, up):
    """Joint angles come out the same, whatever the arms do in the zero pose and whichever way is up."""
    clip = load("walk")
    world = torch.tensor(retarget.UP[up]).double()
    # the joints' frames are the world's in the zero pose
    frames = ml.quat_multiply(ml.quat_conjugate(world), at_rest(character, drop))
    path = tmp_path / "a.bvh"
    path.write_text(text_of(foreign(character, clip, frames, LAFAN, retarget.UP[up])))
    back, out = convert(path, "--no-plant", "--no-lift")
    assert f"{up[1].upper()} up, {said} in the zero pose" in out and "centimetres" in out
    assert angle(clip.rotations, back.rotations).max() < 1e-3
    assert np.abs(clip.root_position - back.root_position).max() < 1e-4


def test_a_zero_pose_that_is_no_pose(tmp_path, character, convert, load):
    """As in LaFAN1, where each bone lies along its own x axis.

    The frame that stands best is the rest pose, so a few degrees are lost."""
    clip = load("walk")
    numbers = torch.randn(15, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    path = tmp_path / "a.bvh"
    path.write_text(text_of(foreign(character, clip, numbers / numbers.norm(dim=-1, keepdim=True), SMPL)))
    back, out = convert(path, "--no-plant", "--no-lift")
    assert "frames that stand best (no rest pose" in out and "Y up" in out
    moving = sorted({0, *character.dof_body.tolist()})
    assert np.rad2deg(angle(clip.rotations, back.rotations)[:, moving].mean()) < 5.0
    assert np.abs(clip.root_position - back.root_position).max() < 1e-3


def test_the_rest_pose_may_lie_outside_the_cut(tmp_path, character, convert, load):
    """A recording that begins in a T-pose, as LaFAN1's and most others do, loses nothing, even if the T is cut away."""
    run, rest = load("run"), upright(5)
    for side, x in (("right", -HALF), ("left", HALF)):
        rest[:, character.body_names.index(f"{side}_upper_arm")] = [x, 0, 0, HALF]
    both = ml.Clip(
        10.0,
        "",
        np.concatenate((np.tile([0, 0, 0.9], (5, 1)), run.root_position)),
        np.concatenate((rest, run.rotations)),
    )
    numbers = torch.randn(15, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    path = tmp_path / "a.bvh"
    path.write_text(text_of(foreign(character, both, numbers / numbers.norm(dim=-1, keepdim=True), LAFAN)))
    back, out = convert(path, "--no-plant", "--no-lift", "--start", "0.5")
    assert "T-pose in the 5 frames" in out and len(back.rotations) == 25
    assert angle(run.rotations, back.rotations).max() < 1e-2


@needs_mink
@pytest.mark.parametrize("name", ["walk", "walk_forward", "turn_left1"])
def test_other_proportions(tmp_path, character, convert, load, name):
    """Everything scaled by 1.2, legs by 1.1 more.

    Angles are within 3 degrees on average, feet slide less than 2 cm while they stand."""
    clip = load(name)
    offsets = 1.2 * character.offsets.double().numpy()
    for side in ("right", "left"):
        for body in ("shin", "foot"):
            offsets[character.body_names.index(f"{side}_{body}")] *= 1.1
    taller = bvh.Recording(
        clip.fps, "", 1.32 * clip.root_position, clip.rotations, character.body_names, character.parents, offsets, "+z"
    )
    (tmp_path / "a.bvh").write_text(bvh.bvh_text(taller))
    back, out = convert(tmp_path / "a.bvh")
    assert f"scale {0.01 / 1.32:.4g}, other proportions, feet planted" in out
    moving = sorted({0, *character.dof_body.tolist()})
    assert np.rad2deg(angle(clip.rotations, back.rotations)[:, moving].mean()) < 3.0
    # where the original stands: points of the sole that are lower than 3 cm and slower than .4 m/s
    before, after = plant.point_positions(character, clip), plant.point_positions(character, back)
    speed = np.linalg.norm(np.gradient(before, axis=0), axis=-1) * clip.fps
    stands = (before[..., 2] < 0.03) & (speed < 0.4)
    assert stands.mean() > 0.3
    assert plant.slide(after, stands) < 0.02 < plant.slide(before, stands) + 0.01
    assert after[..., 2].min() > -0.02


def test_slide_and_contacts():
    position = np.zeros((10, 1, 3))
    position[:, 0, 0] = [0, 0, 0.01, 0.03, 0, 1, 2, 3, 3, 3]
    position[5:8, 0, 2] = 0.5
    stands = position[..., 2] < 0.1
    assert plant.runs(stands[:, 0]) == [(0, 4), (8, 9)]
    assert plant.slide(position, stands) == pytest.approx(0.03)
    goal = plant.targets(position, stands, 10.0)
    np.testing.assert_allclose(goal[:5, 0], [[0.008, 0, 0]] * 5)  # the mean place
    np.testing.assert_allclose(goal[6, 0], position[6, 0], atol=1e-9)  # .2 s away: as it was


def test_without_mink(tmp_path, character, refuse, load, monkeypatch):
    clip = load("walk")
    offsets = character.offsets.double().numpy() * np.where(np.arange(15) < 9, 1.0, 1.2)[:, None]
    other = bvh.Recording(
        clip.fps, "", clip.root_position, clip.rotations, character.body_names, character.parents, offsets, "+z"
    )
    (tmp_path / "a.bvh").write_text(bvh.bvh_text(other))
    monkeypatch.setitem(sys.modules, "mink", None)
    assert "requirements-motions.txt" in refuse(tmp_path / "a.bvh")


def test_joint_names_of_common_skeletons():
    body = [("Hips", -1), ("Spine", 0), ("Spine1", 1), ("Neck", 2), ("Head", 3)]
    for side in ("Left", "Right"):
        s = len(body)
        body += [(f"{side}Shoulder", 2), (f"{side}Arm", s), (f"{side}ForeArm", s + 1), (f"{side}Hand", s + 2)]
        body += [(f"{side}UpLeg", 0), (f"{side}Leg", s + 4), (f"{side}Foot", s + 5), (f"{side}ToeBase", s + 6)]
    names, parents = zip(*body)
    for prefix in ("", "mixamorig:", "mixamorig7:"):  # LaFAN1 and CMU, Mixamo
        found = retarget.guess_joints([prefix + name for name in names], list(parents))
        plain = {ours: name[len(prefix) :] for ours, name in found.items()}
        assert plain["pelvis"] == "Hips" and plain["torso"] == "Spine1" and plain["head"] == "Head" and len(plain) == 17
        for side in ("left", "right"):
            limbs = ["upper_arm", "lower_arm", "hand", "thigh", "shin", "foot", "toe"]
            theirs = ["Arm", "ForeArm", "Hand", "UpLeg", "Leg", "Foot", "ToeBase"]
            assert [plain[f"{side}_{limb}"] for limb in limbs] == [side.capitalize() + name for name in theirs]
    other = ["pelvis", "spine", "thigh.L", "shin.L", "foot.L", "upper_arm.L", "forearm.L", "hand.L"]  # Blender
    found = retarget.guess_joints(
        other + [name.replace(".L", ".R") for name in other[2:]], [-1, 0, 0, 2, 3, 1, 5, 6, 0, 8, 9, 1, 11, 12]
    )
    assert found["left_thigh"] == "thigh.L" and found["right_lower_arm"] == "forearm.R" and found["torso"] == "spine"


def test_joint_map(tmp_path, character, convert, refuse, load):
    clip = load("walk")
    strange = {body: f"Bone{j:02d}" for j, body in enumerate(LAFAN)}
    frames = ml.quat_conjugate(torch.tensor(retarget.UP["+y"]).double()).repeat(15, 1)
    (tmp_path / "a.bvh").write_text(text_of(foreign(character, clip, frames, strange)))
    assert "--joint-map" in refuse(tmp_path / "a.bvh")
    file = tmp_path / "map.json"
    file.write_text(json.dumps(strange))
    back, _ = convert(tmp_path / "a.bvh", "--joint-map", file, "--no-plant", "--no-lift")
    assert angle(clip.rotations, back.rotations).max() < 1e-3
    faults = [
        ("no body of the character", {**strange, "tail": "Bone00"}),
        ("no joint 'Tail'", {**strange, "head": "Tail"}),
        ("may be null", {**strange, "torso": None}),
        (
            "do not hang on one another",
            {**strange, "left_shin": strange["left_foot"], "left_foot": strange["left_shin"]},
        ),
        ("no joint map", ["a"]),
    ]
    for said, wrong in faults:
        file.write_text(json.dumps(wrong))
        assert said in refuse(tmp_path / "a.bvh", "--joint-map", file)
    file.write_text("{")
    assert "map.json" in refuse(tmp_path / "a.bvh", "--joint-map", file)
    assert "none.json" in refuse(tmp_path / "a.bvh", "--joint-map", tmp_path / "none.json")


# ----------------------------------------------------------------------------------------------------------------------
# Options
# ----------------------------------------------------------------------------------------------------------------------


def test_start_end_fps(write_clip, convert):
    path = write_clip(
        frames=11,
        root_position=np.stack((np.arange(11.0), 0 * np.arange(11.0), 0.9 + 0 * np.arange(11.0)), -1),
        loop="wrap",
    )
    clip, _ = convert(path, "--start", "0.2", "--end", "0.65")  # 10 frames a second: frames 2 to 6
    np.testing.assert_allclose(clip.root_position[:, 0], [2, 3, 4, 5, 6])
    clip, _ = convert(path, "--start", "0.2", "--end", "0.6", "--fps", "20")
    np.testing.assert_allclose(clip.root_position[:, 0], np.arange(2, 6.1, 0.5), atol=1e-6)
    assert clip.fps == pytest.approx(20.0)
    clip, _ = convert(path, "--fps", "4")  # 1 s at 4 frames a second
    np.testing.assert_allclose(clip.root_position[:, 0], [0, 2.5, 5, 7.5, 10], atol=1e-6)
    assert clip.loop == "wrap"


@pytest.mark.parametrize(
    "options",
    [
        ("--start", "2"),
        ("--end", "0.05"),
        ("--start", "-1"),
        ("--start", "nan"),
        ("--fps", "0"),
        ("--fps", "nan"),
        ("--loop", "round"),
    ],
)
def test_bad_options(write_clip, run_script, tmp_path, options):
    result = run_script(CONVERT, write_clip(), tmp_path / "out.npz", *options)
    assert result.code == 2 and "Traceback" not in result.err and not (tmp_path / "out.npz").exists()


def test_loop(root, character, convert, load, write_clip):
    """Closing leaves path and heading alone, makes the last pose the first, and changes nothing in the middle."""
    for name in ("walk", "spinkick", "turn_right1"):
        open_clip = load(name)
        clip, out = convert(root / f"motions/{name}.npz", "--loop", "wrap")
        assert "wrap, seam blended" in out and "seam 0.0 deg" in out
        tool = __import__("runpy").run_path(str(root / CONVERT))
        assert tool["seam"](character, clip)[0] < 1e-3 < tool["seam"](character, open_clip)[0]
        assert tool["seam"](character, clip)[1] == pytest.approx(tool["seam"](character, open_clip)[1], abs=0.2)
        np.testing.assert_allclose(clip.root_position[:, :2], open_clip.root_position[:, :2], atol=1e-6)
        assert clip.root_position[0, 2] == pytest.approx(clip.root_position[-1, 2], abs=1e-6)
        middle = len(clip.rotations) // 2
        assert angle(clip.rotations[middle], open_clip.rotations[middle]).max() < 1e-3
    assert convert(root / "motions/walk.npz", "--loop", "clamp")[0].loop == "clamp"
    assert convert(root / "motions/walk.npz")[0].loop == "wrap"  # the file's own mode
    assert convert(root / "motions/walk.npz", "--end", "0.6")[0].loop == "clamp"  # half a cycle does not close


def test_mirror_and_lift(root, character, convert, load, write_clip):
    clip = load("turn_left0")
    mirrored, _ = convert(root / "motions/turn_left0.npz", "--mirror")
    left, right = character.body_names.index("left_thigh"), character.body_names.index("right_thigh")
    np.testing.assert_allclose(mirrored.rotations[:, right], clip.rotations[:, left] * [-1, 1, -1, 1], atol=1e-6)
    np.testing.assert_allclose(mirrored.root_position, clip.root_position * [1, -1, 1], atol=1e-6)
    path = write_clip(root_position=np.tile([0, 0, 1.5], (5, 1)))
    assert convert(path)[0].root_position[0, 2] == pytest.approx(1.5)  # our own clips stay where they are
    assert "hovers" in convert(path)[1]
    assert convert(path, "--lift")[0].root_position[0, 2] == pytest.approx(0.881416, abs=1e-5)


def test_warnings(character, convert, write_clip):
    path = np.stack((np.linspace(0, 0.1, 50), np.zeros(50), np.full(50, 0.881416)), -1)
    still = write_clip("still.npz", frames=50, root_position=path)
    assert "warning:" not in convert(still)[1]
    rotations = upright(50)
    # the head leaps by 1.8 rad, at 10 frames a second 18 rad/s
    rotations[25:, 2] = [math.sin(0.9), 0, 0, math.cos(0.9)]
    out = convert(write_clip("leap.npz", rotations=rotations, root_position=np.tile([0, 0, 0.8], (50, 1))))[1]
    assert "jumps from frame 24 to the next" in out
    assert "reaches 8 cm into the ground" in out and "50 of 50 frames" in out
    assert "largest joint speed 18.0 rad/s (head, frame 24)" in out and "motor" not in out
    out = convert(
        write_clip("fast.npz", rotations=rotations, root_position=np.tile([0, 0, 0.881416], (50, 1)), fps=120.0)
    )[1]
    assert "head turns at 216 rad/s" in out and "lasts 0.41 s only" in out
    knees = upright(50)
    knees[25:, [character.body_names.index(body) for body in ("right_thigh", "left_thigh", "torso", "head")]] = [
        0,
        HALF,
        0,
        HALF,
    ]
    out = convert(write_clip("seam.npz", rotations=knees, root_position=np.tile([0, 0, 0.9], (50, 1)), loop="wrap"))[1]
    assert "leaps by 28 deg a joint at the seam" in out  # 4 quarter turns over root and 12 joints


def test_nothing_is_lost(tmp_path, root, run_script, load):
    source, out = tmp_path / "in.npz", tmp_path / "out.npz"
    shutil.copy(root / "motions/walk.npz", source)
    kept = source.read_bytes()
    for arguments in (
        (source,),
        (source, source),
        (source, tmp_path / "." / "in.npz"),
        (source, "--format", "isaaclab"),
    ):
        result = run_script(CONVERT, *arguments)
        assert result.code == 2 and "this is the input" in result.err and source.read_bytes() == kept
    first = run_script(CONVERT, source, out)
    again = run_script(CONVERT, source, out, "--mirror")
    assert first.out.startswith(f"{out}: ") and again.out.startswith(f"{out} (replaced): ")
    # what cannot be used is not written, and leaves alone what was there
    kept = out.read_bytes()
    wrong = ml.load_clip(str(source), load("walk") and list(np.load(source)["body_names"]))
    rotations = wrong.rotations.copy()
    rotations[:, 4] = [S, 0, 0, W]  # an elbow that turns about x
    save_clip(
        str(tmp_path / "bad.npz"), wrong._replace(rotations=rotations), list(np.load(source)["body_names"]), "", ""
    )
    result = run_script(CONVERT, tmp_path / "bad.npz", out)
    assert result.code == 2 and "hinge" in result.err and out.read_bytes() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.npz", "in.npz", "out.npz"]


# ----------------------------------------------------------------------------------------------------------------------
# Files that lie
# ----------------------------------------------------------------------------------------------------------------------


def planted(tree, payload):
    """poselib and MimicKit files with something to execute in every place where one could hide."""
    holder = np.empty((), object)
    holder[()] = tree
    return (
        pickle.dumps(holder, protocol=3),
        pickle.dumps(payload),
        pickle.dumps({"frames": payload, "fps": 30}),
        pickle.dumps([payload, tree]),
    )


def test_planted_payloads_are_not_executed(tmp_path, character, payload, refuse):
    trap = payload(tmp_path / "executed")
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|O", "fortran_order": False, "shape": ()})
    tree = {"skeleton_tree": {"node_names": [trap]}, "rotation": trap}
    for number, raw in enumerate(planted(tree, trap)):
        for name, data in ((f"{number}.pkl", raw), (f"{number}.npy", head.getvalue() + raw)):
            (tmp_path / name).write_bytes(data)
            said = refuse(tmp_path / name)
            assert name in said and "refused, nothing was executed" in said and "mkdir" in said
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("body_rotations.npy", head.getvalue() + pickle.dumps(trap))
    assert "objects" in refuse(tmp_path / "a.npz")
    assert not (tmp_path / "executed").exists()
    with pytest.raises(FileExistsError):  # the trap works: it makes its folder where it is unpickled
        os.mkdir(tmp_path / "executed")
        pickle.loads(planted(tree, trap)[1])


def test_other_globals_are_refused():
    for module, name in (
        ("os", "system"),
        ("builtins", "eval"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy", "ndarray.tofile"),
    ):
        for raw in (
            f"c{module}\n{name}\n.".encode(),
            b"\x80\x04" + b"".join(b"\x8c" + bytes([len(x)]) + x.encode() for x in (module, name)) + b"\x93.",
        ):
            with pytest.raises(ml.InputError, match="refused"):
                safe.read_pickle("a", raw)
    for raw in (
        b"\x80\x02(i os\nsystem\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x04Pabc\n.",
        b"\x80\x04\x8f.",
    ):  # INST, EXT1, PERSID, a set
        with pytest.raises(ml.InputError):
            safe.read_pickle("a", raw)


def bombs(character):
    """Files of a few kilobytes that ask for memory or time without end."""
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    kind = b"cnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x88\x87R(K\x03X\x01\x00\x00\x00<NNN"
    kind += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    huge = b"\x8a\x06\x00\x00\x00\x00\x00\x01"  # 2^40
    doubled = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0" for i in range(100))
    frames = b"X\x06\x00\x00\x00frames"
    pickles = {
        "an index of 2^31": b"\x80\x04K\x01r\xff\xff\xff\x7f.",
        "a text of 2^40 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc.",
        "bytes of 2^62": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
        "a number of 2^31 bytes": b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
        "an array of 2^40": b"\x80\x02}"
        + frames
        + array
        + b"(K\x01"
        + huge
        + b"\x85"
        + kind
        + b"\x89C\x08abcdefghtbs.",
        "an array of 2^40 by 0": b"\x80\x02}"
        + frames
        + array
        + b"(K\x01"
        + huge
        + b"K\x00\x86"
        + kind
        + b"\x89C\x00tbs.",
        "2^100 texts as a key": b"\x80\x02}q\x00)q\x00" + doubled + b"hdK\x01s.",
        "2^100 rows": b"\x80\x02}" + frames + b"]q\x00" + doubled + b"hdsX\x03\x00\x00\x00fpsK\x1es.",
        "a list in itself": b"\x80\x02}" + frames + b"]q\x00h\x00asX\x03\x00\x00\x00fpsK\x1es.",
        "a global of 2^100": b"\x80\x04)q\x00" + doubled + b"hdhd\x93.",
        "an attribute of a function": b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.",
    }
    npy = {
        f"an .npy of {shape}": b"\x93NUMPY\x01\x00v\x00"
        + f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode()
        + b"\n"
        for kind, shape in (
            ("|O", "(1099511627776,)"),
            ("<f8", "(1099511627776,)"),
            ("|O", "()"),
            ("<U99999999999", "()"),
        )
    }
    files = {
        **pickles,
        **npy,
        "brackets": b"[" * 1_000_000,
        "numbers": b'{"Frames": [' + b"1e999999999," * 1000 + b"1]}",
    }
    for name, member in (
        ("npz that promises much", list(npy.values())[1]),
        ("npz of zeros", b"\0" * (safe.MAX_BYTES + 1)),
    ):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("body_rotations.npy", member)
        files[name] = file.getvalue()
    files["braces"] = b"HIERARCHY\n" + b"{" * 1_000_000
    files["many braces"] = b"HIERARCHY\nROOT a\n" + b"{\n" * 500_000
    files["BVH"] = SMALL.replace("Frames: 2", "Frames: 1000000000000").encode()
    return files


def test_absurd_headers_take_no_memory(tmp_path, character):
    path = tmp_path / "bomb"
    for name, raw in bombs(character).items():
        path.write_bytes(raw)
        tracemalloc.start()
        with pytest.raises(ml.InputError):
            formats.read(str(path), character)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20 * len(raw) + 2**20, name
    path.write_bytes(b" " * (safe.MAX_BYTES + 1))
    with pytest.raises(ml.InputError, match="larger than"):
        formats.read(str(path), character)


@pytest.fixture(scope="module")
def samples(root, tmp_path_factory):
    """A small valid file of each format."""
    character = ml.load_character(str(root / "motions/humanoid.xml"))
    walk = ml.load_clip(str(root / "motions/walk.npz"), character.body_names)
    clip = walk._replace(root_position=walk.root_position[:6], rotations=walk.rotations[:6])
    folder = tmp_path_factory.mktemp("samples")
    files = {
        "poselib export": formats.poselib_bytes(clip, character),
        "isaaclab": formats.isaaclab_bytes(clip, character),
    }
    files["poselib"] = poselib_file(folder / "a", character, clip.rotations, clip.root_position).read_bytes()
    files["mimickit"] = mimickit_file(folder / "b", [{"right_knee": 0.1 * i} for i in range(6)]).read_bytes()
    files["deepmimic"] = deepmimic_file(folder / "c", character, clip).read_bytes()
    taller = character.offsets.double().numpy() * np.where(np.arange(15) < 9, 1.0, 1.3)[:, None]
    frames = ml.quat_multiply(ml.quat_conjugate(torch.tensor(retarget.UP["+y"]).double()), at_rest(character, 0.0))
    files["bvh"] = text_of(foreign(character, clip, frames, LAFAN)).encode()
    other = bvh.Recording(
        30.0, "", clip.root_position, clip.rotations, character.body_names, character.parents, taller, "+z"
    )
    files["bvh, other proportions"] = bvh.bvh_text(other).encode()
    poses = np.zeros((6, 72))
    poses[:, 0] = math.pi / 2
    poses[:, 3:6] = np.linspace(0, 0.3, 6)[:, None]
    file = io.BytesIO()
    np.savez(file, poses=poses, trans=clip.root_position, mocap_framerate=np.array(30.0), gender=np.array("male"))
    files["amass"] = file.getvalue()
    motion = {"pose_aa": poses, "root_trans_offset": torch.tensor(clip.root_position), "fps": np.float32(30)}
    files["phc"] = pickle.dumps({"walk": motion})
    file = io.BytesIO()
    position, rotation, _, _ = formats.body_states(clip, character)
    torch.save({"rigid_body_pos": position.float(), "rigid_body_rot": rotation.float(), "fps": 30}, file)
    files["protomotions"] = file.getvalue()
    save_clip(str(folder / "d"), clip, character.body_names, "a", "b")
    files["clip"] = (folder / "d").read_bytes()
    return character, folder / "mutant", files


def unpacked(raw):
    """A compressed or checksummed archive hides its content from mutations: the same one, as its list of members."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def repacked(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def mutate(data, raw):
    """Change, insert, repeat or leave out a few pieces."""
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw)))
        size = data.draw(st.sampled_from([0, 1, 1, 2, 4, 8, 100, 1000]))
        kind = data.draw(st.sampled_from(["cut", "put", "repeat", "swap"]))
        new = data.draw(
            st.one_of(
                st.binary(max_size=9),
                st.sampled_from([b"-1", b"1e30", b"nan", b"{", b"}", b"[", b"0", b"999999999999", b"\xff\xff\xff\x7f"]),
            )
        )
        if kind == "cut":
            raw = raw[:at] + raw[at + size :]
        elif kind == "put":
            raw = raw[:at] + new + raw[at + len(new) :]
        elif kind == "repeat":
            raw = raw[:at] + raw[at : at + size] * 2 + raw[at + size :]
        else:
            raw = raw[:at] + new + raw[at:]
    return raw


FORMATS = ["poselib export", "isaaclab", "poselib", "mimickit", "deepmimic", "bvh", "bvh, other proportions", "clip"]
FORMATS += ["amass", "phc", "protomotions"]


@pytest.mark.parametrize("name", FORMATS)
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_mutated_files(samples, run_in, name, data):
    """Only our own error, or a clip that the loader takes; and nothing else appears on the disk."""
    _, path, files = samples
    assert set(files) == set(FORMATS)
    raw = files[name]
    if raw[:2] == b"PK" and data.draw(st.booleans()):
        members = unpacked(raw)
        which = data.draw(st.integers(0, len(members) - 1))
        members[which] = (members[which][0], mutate(data, members[which][1]))
        raw = repacked(members)
    else:
        raw = mutate(data, raw)
    path.write_bytes(raw)
    run_in(path)


@pytest.fixture
def run_in(samples, root, monkeypatch, capsys):
    """run_in(path): convert it inside this process.

    Only an InputError may come out, or a clip that the trainer takes."""
    import argparse
    import runpy

    character, folder = samples[0], samples[1].parent
    monkeypatch.setattr(sys, "path", list(sys.path))
    tool = runpy.run_path(str(root / CONVERT))
    before = {item.name for item in folder.iterdir()} | {"mutant", "out.npz"}

    def run(path):
        options = dict(
            input=str(path),
            start=None,
            end=None,
            fps=None,
            lift=None,
            no_plant=False,
            joint_map=None,
            loop="auto",
            mirror=False,
            input_fps=None,
            up=None,
            motion=None,
        )
        args = argparse.Namespace(**options, format="clip", source="", license="")
        try:
            tool["convert"](character, str(folder / "out.npz"), args)
            ml.MotionLib(str(folder / "out.npz"), character)
        except ml.InputError as error:
            assert "\n" not in str(error) and "mutant" in str(error)
        assert {item.name for item in folder.iterdir()} <= before

    return run


STRANGE = [
    None,
    True,
    -1,
    0,
    2,
    1e300,
    math.nan,
    10**400,
    "",
    "Hips",
    b"abc",
    [],
    {},
    [1.0],
    (0.0, 1.0),
    [[1.0] * 34] * 2,
]
STRANGE += [
    np.zeros(0),
    np.zeros(3),
    np.ones((2, 2)),
    np.full((6, 15, 4), np.nan),
    np.zeros((6, 15, 4), np.int8),
    np.ones((6, 3), np.float16),
]
STRANGE += [
    np.float32([1.0]),
    np.zeros((0, 15, 4)),
    np.ones((10, 34)),
    np.arange(15),
    np.zeros((15, 3)),
    np.array("wrap"),
    np.ones((1,) * 9),
]


def places(tree):
    """Every dictionary or list in a tree with the keys or indices of what is in it, long rows of numbers but once."""
    found = [(tree, key) for key in (tree if isinstance(tree, dict) else range(min(len(tree), 16)))]
    return found + [place for _, key in found if isinstance(tree[key], (dict, list)) for place in places(tree[key])]


@pytest.mark.parametrize("name", ["poselib", "mimickit", "deepmimic", "isaaclab", "clip"])
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_strange_values(samples, run_in, name, data):
    """Files that are whole, but hold something else than they should in one or two places."""
    _, path, files = samples
    raw, numpy = files[name], name in ("isaaclab", "clip")
    holder = None
    if name == "poselib":
        tree = pickle.loads(raw[raw.index(b"\x80\x04") :]).item()  # made by this test
    else:
        tree = (
            dict(np.load(io.BytesIO(raw))) if numpy else json.loads(raw) if name == "deepmimic" else pickle.loads(raw)
        )
    for _ in range(data.draw(st.integers(1, 2))):
        found = places(tree)
        where, key = found[data.draw(st.integers(0, len(found) - 1))]
        value = copy.deepcopy(STRANGE[data.draw(st.integers(0, len(STRANGE) - 1))])
        if data.draw(st.integers(0, 4)) == 0:
            del where[key]
        elif name != "deepmimic" or not isinstance(value, (bytes, np.ndarray)):
            where[key] = (
                np.asarray(value if not numpy or not isinstance(value, (bytes, dict)) else 0.0) if numpy else value
            )
    if name == "poselib":
        holder = np.empty((), object)
        holder[()] = tree
    file = io.BytesIO()
    if numpy:
        np.savez(file, **tree)
    elif name == "deepmimic":
        file.write(json.dumps(tree).encode())
    elif name == "poselib":
        np.save(file, holder)
    else:
        pickle.dump(tree, file)
    path.write_bytes(file.getvalue())
    run_in(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_strange_bvh(samples, run_in, data):
    """A BVH file with one to three words changed, or lines moved."""
    _, path, files = samples
    lines = files[data.draw(st.sampled_from(["bvh", "bvh, other proportions"]))].decode().split("\n")
    words = [
        "0",
        "-1",
        "1e5",
        "1e-9",
        "nan",
        "90",
        "1e400",
        "{",
        "}",
        "JOINT",
        "ROOT x",
        "End Site",
        "MOTION",
        "OFFSET",
        "Hips",
        "6",
        "Xposition",
        "",
    ]
    for _ in range(data.draw(st.integers(1, 3))):
        i = data.draw(st.integers(0, len(lines) - 1))
        parts = lines[i].split(" ")
        kind = data.draw(st.sampled_from(["word", "word", "word", "drop", "repeat", "column"]))
        if kind == "word":
            parts[data.draw(st.integers(0, len(parts) - 1))] = data.draw(st.sampled_from(words))
            lines[i] = " ".join(parts)
        elif kind == "column":  # all offsets along one axis nought, or all numbers of a column: limbs without length
            word, zero = data.draw(st.sampled_from([("OFFSET", 1), ("OFFSET", 2), ("OFFSET", 3)]))
            split = [line.split(" ") for line in lines]
            at = [part.index(word) + zero if word in part else 0 for part in split]
            lines = [" ".join([*part[:k], "0", *part[k + 1 :]]) if k else " ".join(part) for part, k in zip(split, at)]
        else:
            lines[i : i + 1] = [] if kind == "drop" else [lines[i]] * 2
        lines = lines or [""]
    path.write_text("\n".join(lines))
    run_in(path)


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


@needs_mink
def test_training_from_an_imported_clip(tmp_path, root, character, load, run_script):
    """A BVH file of a taller skeleton, converted, and trained from for a few iterations."""
    clip = load("walk")
    frames = ml.quat_multiply(ml.quat_conjugate(torch.tensor(retarget.UP["+y"]).double()), at_rest(character, 0.0))
    (tmp_path / "mocap.bvh").write_text(text_of(foreign(character, clip, frames, LAFAN, stretch=1.1, leg=1.05)))
    result = run_script(CONVERT, "mocap.bvh")
    assert result.code == 0 and "mocap.npz" in result.out and "T-pose" in result.out
    options = "--no-cuda --num-envs 8 --num-steps 8 --total-timesteps 384 --num-minibatches 4 --hidden 16 16"
    options += (
        " --disc-batch 64 --replay-size 256 --replay-keep 16 --eval-interval 4 --eval-episodes 2 --eval-seconds 1"
    )
    result = run_script(
        "amp_ppo_isaacgym.py",
        "--motion-file",
        tmp_path / "mocap.npz",
        "--character-file",
        root / "motions/humanoid.xml",
        *options.split(),
    )
    assert result.code == 0, result.err
    metrics = json.loads(result.out.strip().splitlines()[-1])
    assert metrics["episodes"] == 2 and 0.0 < metrics["pose_error_m"] <= 1.0
    assert [path.name for path in (tmp_path / "runs").glob("*/latest.pt")] == ["latest.pt"]
