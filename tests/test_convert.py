"""motions/convert.py against hand-checked values, and the clips that it made."""

import json
import math
import runpy
import types

import numpy as np
import pytest
import torch

import motion_lib as ml
from clips import save_clip
from motions import checks

# half of a turn by 30 degrees: w and the length of the axis part
SIXTH = (math.cos(math.pi / 12), math.sin(math.pi / 12))
NO_TURN = [1, 0, 0, 0]


def row(duration=0.1, position=(0.0, 0.9, 0.0), **rotations):
    """A frame of a DeepMimic file: quaternions wxyz and hinge angles in the order of its documentation."""
    quaternion = {"root": 4, "chest": 4, "neck": 4}
    for side in ("right", "left"):
        quaternion.update(
            {f"{side}_hip": 4, f"{side}_knee": 1, f"{side}_ankle": 4, f"{side}_shoulder": 4, f"{side}_elbow": 1}
        )
    values = [duration, *position]
    for name, width in quaternion.items():
        values += list(rotations.pop(name, NO_TURN)) if width == 4 else [rotations.pop(name, 0.0)]
    assert not rotations and len(values) == 44
    return values


@pytest.fixture
def write_text(tmp_path):
    def write(frames, name="in.txt", **other):
        (tmp_path / name).write_text(json.dumps({"Loop": "wrap", "Frames": frames, **other}))
        return str(tmp_path / name)

    return write


@pytest.fixture
def convert(run_script, tmp_path, character):
    """convert(input, *options) -> the clip that convert.py wrote."""

    def run(path, *options):
        out = tmp_path / "out.npz"
        result = run_script("motions/convert.py", path, out, *options)
        assert result.code == 0 and result.err == ""
        return ml.load_clip(str(out), character.body_names)

    return run


def test_axes_order_and_hinges(write_text, convert, character):
    w, s = SIXTH
    frames = [
        row(position=(1.0, 0.9, 2.0)),
        row(
            position=(1.5, 1.0, -0.25),
            root=(w, 0, s, 0),  # about its up axis, +y: about our +z
            chest=(w, s, 0, 0),  # about +x: the same
            right_hip=(w, 0, 0, s),  # about its right, +z: about our -y
            left_shoulder=(w, s * 0.6, s * 0.8, 0),
            neck=(-w, 0, 0, -s),  # the other sign of the same rotation
            right_knee=-1.0,
            left_elbow=0.5,
        ),
        row(duration=77.0),  # the last frame's duration means nothing
    ]
    clip = convert(write_text(frames), "--no-lift")
    assert clip.loop == "wrap" and clip.fps == pytest.approx(10.0)
    np.testing.assert_allclose(clip.root_position, [[1.0, -2.0, 0.9], [1.5, 0.25, 1.0], [0.0, 0.0, 0.9]], atol=1e-6)
    upright = np.tile([0.0, 0.0, 0.0, 1.0], (15, 1))
    np.testing.assert_allclose(clip.rotations[0], upright, atol=1e-6)
    expected = dict(
        pelvis=(0, 0, s, w),
        torso=(s, 0, 0, w),
        head=(0, -s, 0, w),
        right_thigh=(0, -s, 0, w),
        left_upper_arm=(0.6 * s, 0, 0.8 * s, w),
        right_shin=(0, math.sin(0.5), 0, math.cos(0.5)),
        left_lower_arm=(0, -math.sin(0.25), 0, math.cos(0.25)),
    )
    for body, rotation in expected.items():
        upright[character.body_names.index(body)] = rotation
    np.testing.assert_allclose(clip.rotations[1], upright, atol=1e-6)


def test_every_column_moves_its_own_body(write_text, convert, character):
    w, s = SIXTH
    turn = (w, s, 0, 0)
    bodies = dict(root="pelvis", chest="torso", neck="head")
    for side in ("right", "left"):
        bodies.update(
            {f"{side}_hip": f"{side}_thigh", f"{side}_ankle": f"{side}_foot", f"{side}_shoulder": f"{side}_upper_arm"}
        )
        bodies.update({f"{side}_knee": f"{side}_shin", f"{side}_elbow": f"{side}_lower_arm"})
    frames = [row(**{joint: 0.7 if joint.endswith(("knee", "elbow")) else turn}) for joint in bodies]
    clip = convert(write_text(frames), "--no-lift")
    for rotations, body in zip(clip.rotations, bodies.values()):
        turned = np.flatnonzero(np.abs(rotations[:, 3]) < 1 - 1e-6)
        assert [character.body_names[j] for j in turned] == [body]


def test_quaternion_signs_are_made_continuous(write_text, convert):
    quaternions = [(math.cos(a / 2), 0, math.sin(a / 2), 0) for a in np.linspace(0, 2 * math.pi, 9)]
    frames = [row(root=[x if i % 2 else -x for x in q]) for i, q in enumerate(quaternions)]
    clip = convert(write_text(frames), "--no-lift")
    assert (clip.rotations[1:, 0] * clip.rotations[:-1, 0]).sum(-1).min() > 0.9


def test_quaternions_are_normalised(write_text, convert):
    clip = convert(write_text([row(), row(chest=(1.0, 1.0, 0, 0))]), "--no-lift")
    np.testing.assert_allclose(clip.rotations[1, 1], [math.sqrt(0.5), 0, 0, math.sqrt(0.5)], atol=1e-6)


def test_soles_on_the_ground(write_text, convert):
    # upright, the root is 0.421546 + 0.40987 + 0.05 m above the soles; the heights of the file do not matter
    clip = convert(write_text([row(position=(0, 0.5, 0)), row(position=(0, 0.5, 0))]))
    np.testing.assert_allclose(clip.root_position[:, 2], 0.881416, atol=1e-5)
    # one constant for the whole clip: a quarter of the five frames' way up, the second lowest, stands
    clip = convert(write_text([row(position=(0, y, 0)) for y in (1.0, 1.4, 1.1, 1.3, 1.2)]))
    np.testing.assert_allclose(clip.root_position[:, 2], 0.881416 + np.array([-0.1, 0.3, 0.0, 0.2, 0.1]), atol=1e-5)


def test_uneven_durations_are_resampled(write_text, convert):
    w, s = SIXTH
    frames = [
        row(0.1, (0.0, 1.0, 0.0)),
        row(0.3, (1.0, 1.0, 0.0)),
        row(0.0, (4.0, 1.0, 0.0), root=(w, 0, s, 0)),
    ]
    clip = convert(write_text(frames), "--no-lift")  # 0.4 s at the median step of 0.2 s
    assert clip.fps == pytest.approx(5.0)
    np.testing.assert_allclose(clip.root_position[:, 0], [0.0, 2.0, 4.0], atol=1e-6)
    ten_degrees = math.pi / 18  # a third of the way of the second interval, which turns by 30 degrees
    np.testing.assert_allclose(
        clip.rotations[1, 0], [0, 0, math.sin(ten_degrees / 2), math.cos(ten_degrees / 2)], atol=1e-6
    )


def test_of_several_strides_it_names_the_best_cycle(root, run_script, character, tmp_path):
    """The options cut out one stride; of that alone there is nothing more to say."""
    path = str(root / "motions/walk_forward.npz")
    walk = ml.MotionLib(path, character).state(torch.zeros(186, dtype=torch.long), torch.arange(186) / 30.0)
    clip = ml.Clip(30.0, "clamp", walk.root_position.double().numpy(), walk.rotations.double().numpy())
    save_clip(str(tmp_path / "five.npz"), clip, character.body_names, "a test", "none")
    line = run_script("motions/convert.py", "five.npz", "out.npz", "--start", "0.1").out.splitlines()[-1]
    assert line.startswith("  5 strides of 1.23 s; one alone makes a cycle with a seam of 0.0 deg: --start ")
    options = line.split(": ")[1].split()
    said = run_script("motions/convert.py", "five.npz", "out.npz", *options).out
    assert "out.npz (replaced): clip, 38 frames, 30.00 /s, wrap, seam blended; " in said
    assert " seam 0.0 deg" in said and "strides" not in said


def test_loop_modes(write_text, convert):
    frames = [row(), row()]
    assert convert(write_text(frames)).loop == "wrap"
    assert convert(write_text(frames, Loop="none")).loop == "clamp"
    assert convert(write_text(frames), "--loop", "clamp").loop == "clamp"


def test_source_licence_and_default_output(write_text, run_script, tmp_path):
    path = write_text([row(), row()], name="moves.txt")
    result = run_script("motions/convert.py", path, "--source", "my lab", "--license", "CC0")
    assert result.code == 0 and result.out.startswith(str(tmp_path / "moves.npz"))
    with np.load(tmp_path / "moves.npz", allow_pickle=False) as file:
        assert (str(file["source"]), str(file["license"])) == ("my lab", "CC0")


LONG = [row(), row()]
BAD = {
    "not JSON": "this is no motion",
    "deeply nested": "[" * 100_000,
    "no frames": json.dumps({"Loop": "wrap"}),
    "a list": "[1, 2]",
    "one frame": json.dumps({"Frames": LONG[:1]}),
    "loop mode": json.dumps({"Loop": "pendulum", "Frames": LONG}),
    "43 columns": json.dumps({"Frames": [LONG[0], LONG[1][:-1]]}),
    "frames of text": json.dumps({"Frames": ["a", "b"]}),
    "a text value": json.dumps({"Frames": [LONG[0], [*LONG[1][:-1], "1"]]}),
    "NaN": json.dumps({"Frames": [LONG[0], row(chest=(math.nan, 0, 0, 0))]}),
    "infinity": json.dumps({"Frames": [LONG[0], row(position=(math.inf, 0, 0))]}),
    "zero quaternion": json.dumps({"Frames": [LONG[0], row(chest=(0, 0, 0, 0))]}),
    "zero duration": json.dumps({"Frames": [row(duration=0), LONG[1]]}),
    "negative duration": json.dumps({"Frames": [row(duration=-0.1), LONG[1]]}),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_bad_input(run_script, tmp_path, text):
    (tmp_path / "in.txt").write_text(text)
    (tmp_path / "out.npz").write_text("what was there before")
    result = run_script("motions/convert.py", tmp_path / "in.txt", tmp_path / "out.npz")
    assert result.code == 2 and result.out == ""
    assert result.err.count("\n") == 1 and "in.txt" in result.err
    assert (tmp_path / "out.npz").read_text() == "what was there before"


def test_files_that_cannot_be_read_or_written(run_script, write_text, tmp_path):
    path = write_text([row(), row()])
    for arguments, name in (
        ((tmp_path / "none.txt",), "none.txt"),
        ((tmp_path,), ""),
        ((path, tmp_path / "no" / "out.npz"), "out.npz"),
    ):
        result = run_script("motions/convert.py", *arguments)
        assert result.code == 2 and result.err.count("\n") == 1 and name in result.err
    for arguments in ((), (path, "out.txt"), (path, "--pybullet", tmp_path)):
        assert run_script("motions/convert.py", *arguments).code == 2


NAMES = [
    "walk",
    "run",
    "spinkick",
    "cartwheel",
    "crawl",
    "dance_a",
    "dance_b",
    "jump",
    "roll",
    "spin",
    "backflip",
    "kick",
    "punch",
]
NAMES += ["getup_facedown", "getup_faceup", "walk_forward", "turn_left0", "turn_left1", "turn_right0", "turn_right1"]


def test_the_committed_clips(root, character):
    paths = sorted((root / "motions").glob("*.npz"))
    assert sorted(path.stem for path in paths) == sorted(NAMES)
    for path in paths:
        clip = ml.load_clip(str(path), character.body_names)
        with np.load(path, allow_pickle=False) as file:
            assert "convert.py" in str(file["source"]) and "zlib" in str(file["license"])
            assert not any(file[key].dtype.hasobject for key in file.files)
        # hands are welded, elbows and knees turn about Y only
        assert (
            np.abs(
                clip.rotations[:, [character.body_names.index(f"{side}_hand") for side in ("left", "right")], :3]
            ).max()
            == 0
        )
        hinges = [j for j in range(15) if character.dof_body.tolist().count(j) == 1]
        assert np.abs(clip.rotations[:, hinges][..., [0, 2]]).max() < 1e-6
        # a quarter of the frames reach the ground or less
        position, rotation = torch.tensor(clip.root_position).float(), torch.tensor(clip.rotations).float()
        low = ml.lowest_points(character, *ml.forward_kinematics(character, position, rotation)).amin(-1)
        assert abs(float(low.quantile(0.25))) < 1e-3


def test_the_table_of_the_readme(root, run_script):
    result = run_script("motions/convert.py", "--table", *sorted((root / "motions").glob("*.npz")))
    assert result.code == 0
    lines = result.out.splitlines()
    assert len(lines) == 2 + len(NAMES)
    readme = (root / "motions/README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line not in readme] == []


def test_every_clip_is_converted_from_pybullets_folder(root):
    tool = runpy.run_path(str(root / "motions/convert.py"))
    assert sorted(tool["PYBULLET"]) == sorted(NAMES)


def test_a_training_warns_of_clips_from_elsewhere(run_script, root, tmp_path, write_clip):
    """As convert.py does, in three lines at most; of its own clips and at a resume it does not."""
    tiny = "--num-envs 4 --num-steps 4 --num-minibatches 2 --total-timesteps 16 --hidden 8 8 --disc-batch 8 --no-cuda"
    tiny += " --clone-updates 2 --replay-size 32 --replay-keep 8 --eval-episodes 1 --eval-seconds 0.2"
    position = np.tile([0.0, 0.0, 1.0], (30, 1))
    position[:, 0] = np.linspace(0, 90, 30)
    rotations = np.tile([0.0, 0.0, 0.0, 1.0], (30, 15, 1))
    rotations[7:, 3] = [0.0, 0.6, 0.0, 0.8]
    strange = write_clip(root_position=position, rotations=rotations)
    said = {}
    for clip in (strange, root / "motions/walk.npz"):
        result = run_script("amp_ppo_isaacgym.py", *tiny.split(), "--motion-file", clip)
        assert result.code == 0, result.err
        said[clip] = [line for line in result.err.splitlines() if "motions/convert.py warns" in line]
    assert said[root / "motions/walk.npz"] == [] and len(said[strange]) == 3
    assert (
        "clip.npz: motions/convert.py warns: hovers, it never comes nearer to the ground than 12 cm" in said[strange][0]
    )
    assert "moves at 31 m/s" in said[strange][1] and "jumps from frame 6" in said[strange][2]
    (run,) = tmp_path.glob("runs/*clip*")
    more = run_script("amp_ppo_isaacgym.py", "--no-cuda", "--resume", run, "--total-timesteps", 32)
    assert more.code == 0 and "convert.py warns" not in more.err


def test_one_s_own_clips_are_not_warned_of(root, character, all_motions, load):
    """Though a jump in some of them would be told; the same clips elsewhere are."""
    assert checks.before_training(all_motions) == []
    elsewhere = types.SimpleNamespace(character=character, files=[str(root / "README.md")] * 9, clips=all_motions.clips)
    assert len(checks.before_training(elsewhere)) == 3
