"""motions/render.py: strips and films of real clips, read back; what it says when something is missing."""

import functools
import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import motion_lib as ml
from evaluation import reference_poses
from motions import checks, render

SMALL = ("--size", 160, 90)
EDGES = [("below", 0, -1), ("right", 1, 0), ("above", 0, 1), ("left", -1, 0)]  # of a square about (0, 0)
ONLY_Y = torch.tensor([1.0, 0.0])
CONTEXT = "import mujoco; mujoco.GLContext(16, 16).make_current()"


def start(folder, *arguments, **environment):
    """Run motions/render.py in a folder of its own for temporary files -> exit code, lines on stderr.

    If all went well, it says in one line what it wrote."""
    os.makedirs(folder / "temporary", exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "temporary"), **environment}
    command = [sys.executable, render.__file__, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert not list((folder / "temporary").iterdir())
    done.stderr = re.sub(r"\d+ of \d+ pictures, about \d+ s left\n", "", done.stderr)  # if this machine is slow
    part = r"\d+\.\d\d s( from \d+\.\d\d s on)?, \d+ (poses|pictures), \d+ x \d+(, seam .\.\d\d\d m)?"
    said = rf"{arguments[1]}: {part}, \d+\.\d\d MB\n"
    assert re.fullmatch("" if done.returncode else said, done.stdout)
    (folder / "temporary").rmdir()
    return done.returncode, done.stderr.splitlines()


@pytest.fixture(scope="module")
def opengl():
    """What makes the tool find an OpenGL, if there is any: nothing where EGL works, which it takes by itself."""
    pytest.importorskip("mujoco", reason="MuJoCo needs Python 3.10")
    for name in ("egl", "osmesa"):
        done = subprocess.run(
            [sys.executable, "-c", CONTEXT], env={**os.environ, "MUJOCO_GL": name}, capture_output=True
        )
        if done.returncode == 0:
            return {"MUJOCO_GL": "" if name == "egl" else name}
    pytest.skip("there is no OpenGL: apt-get install libosmesa6")


@pytest.fixture
def draw(opengl, tmp_path):
    """draw(clip, name, *options) -> pictures (T, H, W, 3), and what imageio says about the file."""
    imageio = pytest.importorskip("imageio.v2", reason="pip install -r requirements-test.txt")

    def run(clip, name, *arguments):
        assert start(tmp_path, clip, name, *arguments, **opengl) == (0, [])
        with imageio.get_reader(tmp_path / name) as reader:
            pictures = np.stack([picture[..., :3] for picture in reader]).astype(int)
            return pictures, reader.get_meta_data()

    return run


def limbs(picture):
    """Which pixels are a clip's right limbs or trunk, and which its left limbs, which are lighter: (H, W) bool each."""
    red, green, blue = (picture[..., i] for i in range(3))
    return (red - blue > 60) & (green < 0.7 * red), (red - blue > 60) & (green > 0.74 * red)


def turned(path, write_clip, degrees, x, y):
    """A clip as if it had been recorded elsewhere, facing another way."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    yaw = ml.quat_from_yaw(torch.deg2rad(torch.tensor(float(degrees))))
    root = ml.quat_rotate(yaw, torch.as_tensor(arrays["root_position"]).float())
    arrays["root_position"] = root.numpy() + np.array([x, y, 0.0])
    arrays["rotations"] = torch.as_tensor(arrays["rotations"]).float().numpy()
    arrays["rotations"][:, 0] = ml.quat_multiply(yaw.expand(len(root), 4), torch.as_tensor(arrays["rotations"][:, 0]))
    return write_clip("turned.npz", **arrays)


# ---- Poses ----


def clip_of(root_position, character, fps=10.0):
    rotations = np.zeros((len(root_position), len(character.body_names), 4))
    rotations[..., 3] = 1.0
    return ml.Clip(fps, "clamp", np.array(root_position, float), rotations)


def test_window(character):
    clip = clip_of(np.zeros((31, 3)), character)  # 3 s
    assert render.window(clip, 0.0, float("inf")) == (0, 30)
    assert render.window(clip, 1.0, 0.5) == (10, 15)
    assert render.window(clip, 2.5, 9.0) == (25, 30)
    for begin, seconds in ((3.0, 1.0), (-0.1, 1.0), (float("nan"), 1.0), (1.0, 0.01)):
        with pytest.raises(ml.InputError, match="--start" if seconds == 1.0 else "--seconds"):
            render.window(clip, begin, seconds)


def test_a_loop_goes_on_over_its_seam(walk, character):
    """Its second cycle begins where the first ended; what ends, and what is long enough, stays as it is."""
    clip = ml.load_clip(walk.files[0], character.body_names)  # 1.267 s, 39 frames
    longer = render.gone_on(clip, walk.files[0], character, 2.0)
    assert render.window(longer, 0.0, 2.0) == (0, 60)
    np.testing.assert_allclose(longer.root_position[:39], clip.root_position, atol=1e-5)
    at = render.gone_on(clip, walk.files[0], character, 2.6).root_position[[0, 38, 76], :2]
    assert np.linalg.norm(at[2] - at[1]) == pytest.approx(np.linalg.norm(at[1] - at[0]), abs=1e-4)
    assert render.gone_on(clip, walk.files[0], character, 1.2) is clip
    assert render.gone_on(clip, walk.files[0], character, math.inf) is clip
    ends = clip._replace(loop="clamp")
    assert render.gone_on(ends, walk.files[0], character, 2.0) is ends


def test_a_strip_of_many_strides_shows_one(walk, character):
    """Seven poses of six strides would all have the same phase."""
    one = ml.load_clip(walk.files[0], character.body_names)
    six = render.gone_on(one, walk.files[0], character, 6 * 1.2667)
    assert render.strip_seconds(character, six, math.inf) == pytest.approx(1.267, abs=0.01)
    assert checks.strides_of(character, six)[1] == 6
    still = six._replace(root_position=six.root_position[:1].repeat(9, 0), rotations=six.rotations[:1].repeat(9, 0))
    assert render.strip_seconds(character, still, 2.5) == 2.5 and checks.strides_of(character, still) == (0.0, 0)


def test_colours_say_whose_motion_it_is():
    assert render.kind_of(["policy pretrained/walk.pt", "clip motions/walk"]) == "policy"
    assert render.kind_of(["clip motions/walk"]) == "clip"


def test_a_shadow_lies_where_the_light_meets_the_ground():
    """A camera that looks along +Y and down at 45 degrees; the ground's points, by hand, in its picture of 80 x 60."""
    focus = np.array([0.0, 0.0, 1.0])
    from_afar = render.ground_in(90.0, -45.0, math.inf, focus, (80, 60), 6.0)  # 10 pixels a metre
    np.testing.assert_allclose(from_afar @ [0, 1, 1], [40, 30, 1], atol=1e-9)  # through the focus to the ground
    np.testing.assert_allclose(from_afar @ [2, 1, 1], [60, 30, 1], atol=1e-9)
    np.testing.assert_allclose(from_afar @ [0, 1 + math.sqrt(2), 1], [40, 20, 1], atol=1e-9)
    near = render.ground_in(90.0, -45.0, math.sqrt(8), focus, (80, 60), 6.0)  # from (0, -2, 3)
    for x, y, u in ((0, 1, 40.0), (2, 1, 40 + 20 / 1.5), (2, -1, 40 + 20 / 1.0)):
        pixel = near @ [x, y, 1]
        assert pixel[0] / pixel[2] == pytest.approx(u)
    assert (near @ [0, -6, 1])[2] < 0.0  # behind the camera


def test_a_film_says_how_long_it_will_be(capsys, monkeypatch):
    """Where there is no terminal, a line after ten seconds, and no more often: here a picture takes four."""
    clock = iter(range(0, 999, 4))
    monkeypatch.setattr(render.time, "monotonic", lambda: float(next(clock)))
    assert list(render.counted(iter("abcdefg"), 7)) == list("abcdefg")
    assert capsys.readouterr().err == "3 of 7 pictures, about 16 s left\n6 of 7 pictures, about 4 s left\n"


def test_the_way_leads_to_the_right(character):
    """A walk along +Y from (5, 5) begins at 0 and goes along +X; heights stay; who faces +X then faces -Y."""
    clip = clip_of([[5.0, 5.0, 0.9], [5.0, 6.0, 0.8], [5.0, 7.0, 0.9]], character)
    position, rotation = render.poses_of(clip, character, 0, 2, 3)
    expected = torch.tensor([[0.0, 0.0, 0.9], [1.0, 0.0, 0.8], [2.0, 0.0, 0.9]])
    assert torch.allclose(position[:, 0], expected, atol=1e-6)
    assert torch.allclose(ml.heading(rotation[:, 0]), torch.full((3,), -torch.pi / 2), atol=1e-6)


@pytest.mark.parametrize("name, count", [("walk", 4), ("backflip", 7), ("backflip", 1)])
def test_no_pose_of_a_strip_touches_the_next(root, character, name, count):
    """Bodies keep their places about the root; who is wide, lying in the air, has more room."""
    clip = ml.load_clip(str(root / f"motions/{name}.npz"), character.body_names)
    position, _ = render.poses_of(clip, character, 0, 28, count)
    row, width = render.in_a_row(position)
    assert not row[:, 0, 1].any() and torch.allclose(row[..., 1:], position[..., 1:] - position[:, :1, 1:] * ONLY_Y)
    assert torch.allclose(row[:, 1:] - row[:, :1], position[:, 1:] - position[:, :1], atol=1e-6)
    gaps = row[1:, :, 0].amin(1) - row[:-1, :, 0].amax(1)
    steps = row[1:, 0, 0] - row[:-1, 0, 0]
    assert (gaps > render.APART - 1e-5).all() and (steps > 0.9499).all()
    assert ((gaps < render.APART + 1e-5) | (steps < 0.9501)).all()  # and no further apart than that
    assert float(row[..., 0].max()) == pytest.approx(-float(row[..., 0].min()), abs=1e-5)
    assert float(row[..., 0].max()) + 0.3 < width / 2


@pytest.mark.parametrize("frames", [2, 5, 200])
def test_the_camera_keeps_a_steady_pace_and_drops_the_sway(frames):
    time = np.arange(frames) / 30
    path = np.stack((1.0 + 2.0 * time, -3.0 * time), -1)
    assert np.allclose(render.smooth(path, 15), path)
    swaying = path + 0.05 * np.sin(2 * np.pi * 2.0 * time)[:, None]  # two steps a second
    assert np.abs(render.smooth(swaying, 15) - path)[15:-15].max(initial=0.0) < 0.005
    assert np.array_equal(render.smooth(path, 0), path)


# ---- Comparing ----


def poses_at(motions, times):
    return reference_poses(motions, torch.zeros(len(times), dtype=torch.long), times)


@pytest.mark.parametrize("pace", [0.8, 1.0, 1.25])
def test_the_clip_is_in_the_phase_of_what_imitates_it(walk, pace):
    """A walk from .5 s on at another pace: the clip's time goes on with it, through every seam."""
    times = 0.5 + pace * torch.arange(120) / 30.0
    found = render.same_phase(walk, poses_at(walk, times), 30.0)
    assert found.shape == (120,) and (found.diff() > 0).all()
    apart = found - times
    assert (apart - apart.mean()).abs().max() < 0.02 and abs(math.remainder(apart.mean(), walk.length[0])) < 0.01


def test_the_clip_neither_stands_nor_leaps(walk):
    """Whatever the character does, here it stops: from half the clip's pace to twice of it."""
    found = render.same_phase(walk, poses_at(walk, torch.full((60,), 0.4)), 30.0)
    assert 0.49 / 30 < float(found.diff().min()) and float(found.diff().max()) < 2.01 / 30


def test_a_clip_that_ends_holds_its_end(root, character):
    kick = ml.MotionLib(str(root / "motions/kick.npz"), character)
    times = 0.5 + torch.arange(60) / 30.0  # .93 s more than there are
    found = render.same_phase(kick, poses_at(kick, times), 30.0)
    assert (found - times.clamp_max(kick.length[0])).abs().max() < 0.07
    assert float(found[-1]) == pytest.approx(float(kick.length[0])) and (found.diff() >= 0).all()
    assert len(render.same_phase(kick, poses_at(kick, times[:2]), 30.0)) == 2


def test_the_compared_clip_is_where_the_roll_out_is_and_faces_its_way(walk, character):
    """Of one motion in two places nothing but the place differs; it has its own height."""
    clip = ml.load_clip(walk.files[0], character.body_names)
    clip = clip._replace(root_position=clip.root_position + [7.0, 3.0, 0.2])
    poses = render.poses_of(clip, character, 0, 38, 39)
    other = render.poses_there(walk, poses, clip.fps)
    apart = other[0] - poses[0]
    assert (apart - torch.tensor([0.0, 0.0, -0.2])).norm(dim=-1).mean() < 0.01
    assert torch.allclose(ml.heading(other[1][:, 0]), ml.heading(poses[1][:, 0]), atol=1e-5)


def test_who_is_compared_with_another_clip_is_told(root, walk, character, capsys):
    """A roll-out, with its own clip, and with another; a fall is as unlike, see UNLIKE."""
    clip = ml.load_clip(str(root / "docs/rollouts/walk.npz"), character.body_names)
    poses = render.poses_of(clip, character, 0, 60, 61)
    render.poses_there(walk, poses, clip.fps)
    assert capsys.readouterr() == ("", "")
    render.poses_there(ml.MotionLib(str(root / "motions/cartwheel.npz"), character), poses, clip.fps)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and re.match(r"warning: pose error 0\.[12]\d m.*cartwheel\.npz\?$", err)


def test_a_strip_that_compares_begins_with_the_clip(root, walk, character):
    """Of a roll-out that was started elsewhere in it, where there is a cycle left; of the clip itself at once."""
    clip = ml.load_clip(str(root / "docs/rollouts/walk.npz"), character.body_names)
    start = render.strip_begins(walk, clip, character, 1.27)
    first = round(start * clip.fps)
    assert 0 < start < 1.27
    poses = render.poses_of(clip, character, first, first + 38, 39)
    phase = render.same_phase(walk, render.relative_positions(poses[0], poses[1][:, 0]), clip.fps)[0] % walk.length[0]
    assert min(phase, walk.length[0] - phase) < 0.07
    assert render.strip_begins(walk, clip, character, 10.0) == 0.0
    kick = ml.MotionLib(str(root / "motions/kick.npz"), character)  # it does not loop
    assert render.strip_begins(kick, ml.load_clip(kick.files[0], character.body_names), character, 0.1) == 0.0
    assert render.strip_begins(walk, ml.load_clip(walk.files[0], character.body_names), character, 1.26) == 0.0


@pytest.mark.parametrize("azimuth", [90.0, 120.0])
def test_two_in_a_film_are_equally_far_away_and_do_not_meet(walk, character, azimuth):
    poses = render.poses_of(ml.load_clip(walk.files[0], character.body_names), character, 0, 38, 39)
    (position, rotation), way, wide = render.apart(poses, poses, azimuth)
    forward = torch.tensor([math.cos(math.radians(azimuth)), math.sin(math.radians(azimuth)), 0.0])
    right = torch.tensor([forward[1], -forward[0], 0.0])
    assert rotation is poses[1] and torch.allclose(position @ forward, poses[0] @ forward, atol=1e-5)
    assert torch.allclose(way, (position - poses[0])[0, 0], atol=1e-6)
    gap = (position @ right).amin(1) - (poses[0] @ right).amax(1)
    assert float(gap.min()) == pytest.approx(render.BESIDE, abs=1e-4)
    assert wide > float(((position @ right).amax(1) - (poses[0] @ right).amin(1)).max()) + 0.6


def hues(picture):
    """Shares of the pixels that are the clip's orange and brown, and the roll-out's dark blue."""
    red, blue = picture[..., 0], picture[..., 2]
    return [float(mask.mean()) for mask in (red - blue > 60, (blue - red > 45) & (red < 60))]


def test_strip_of_two(draw, root):
    """The clip above, the roll-out below; a cycle, so that the last poses are the first."""
    walk = root / "motions/walk.npz"
    (picture,), _ = draw(walk, "two.png", "--compare", walk, "--poses", 3, "--size", 300, 200)
    assert picture.shape == (200, 300, 3)
    upper, lower = hues(picture[:100]), hues(picture[100:])
    assert upper[0] > 0.02 and upper[1] == 0.0 and lower[0] == 0.0 and lower[1] > 0.01


def test_film_of_two(draw, root):
    """The clip is before the roll-out, so to its right; one is as large as the other, and no lower in the picture."""
    walk = root / "motions/walk.npz"
    pictures, _ = draw(walk, "two.mp4", "--compare", walk, "--seconds", 0.5, "--size", 320, 180)
    assert pictures.shape == (16, 180, 320, 3)
    for picture in pictures:
        picture = picture[50:]  # below the text
        red, blue = picture[..., 0], picture[..., 2]
        orange, dark = red - blue > 60, (blue - red > 45) & (red < 60)
        assert dark.nonzero()[1].max() + 20 < orange.nonzero()[1].min()
        assert orange.nonzero()[1].max() < 310 and dark.nonzero()[1].min() > 10
        brown = orange & (red < 150)
        assert abs(int(dark.nonzero()[0].max()) - int(brown.nonzero()[0].max())) < 5  # right feet


# ---- What a film shows besides ----


def test_what_a_roll_out_was_told(tmp_path, character):
    """In the picture's frame, from the first picture on; each command is valid until the next."""
    (tmp_path / "c.csv").write_text("0, 90, 1\n1, 180, 2\n")
    clip = clip_of(np.arange(21)[:, None] * [0, 0.1, 0], character)  # along +Y, which the picture has as +X
    told = render.told_by(str(tmp_path / "c.csv"), clip, 0, 20)
    assert told.speed.tolist() == [1.0] * 10 + [2.0] * 11
    np.testing.assert_allclose(told.heading, [0.0] * 10 + [math.pi / 2] * 11, atol=1e-6)
    np.testing.assert_allclose(told.path[[0, 10, 20]], [[0, 0], [1, 0], [1, 2]], atol=1e-5)
    later = render.told_by(str(tmp_path / "c.csv"), clip, 5, 20)
    np.testing.assert_allclose(later.path[[0, 5, 15]], [[0, 0], [0.5, 0], [0.5, 2]], atol=1e-5)


@pytest.mark.parametrize("heading", [0.0, 2.0])
def test_the_command_is_a_flat_arrow_before_the_feet(heading):
    """No higher than the path's line, and wider; it points where the command does."""
    mujoco = pytest.importorskip("mujoco", reason="MuJoCo needs Python 3.10")
    path = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    told = render.Told(torch.full((3,), heading), torch.full((3,), 1.2), path)
    way = np.array([[0.0, 0.0], [1.0, 0.5], [2.0, 0.5]])
    *_, (points, colour) = render.marks_of(told, way, 1, 1)
    along = np.array([math.cos(heading), math.sin(heading)])
    assert colour == render.TOLD and (points[0] - way[1]) @ along > 0.5 - 1e-9
    scene = mujoco.MjvScene(mujoco.MjModel.from_xml_string("<mujoco/>"), 9)
    stage = SimpleNamespace(mujoco=mujoco, renderer=SimpleNamespace(scene=scene))
    stage.add = functools.partial(render.Stage.add, stage)
    render.Stage.mark(stage, points, colour)
    shaft, head = scene.geoms[: scene.ngeom]
    assert max(shaft.pos[2] + shaft.size[2], head.pos[2] + head.size[2]) < 0.02 < shaft.size[1] < render.HEAD
    legs = head.mat.reshape(3, 3)[:, :2] * head.size[:2] + head.pos[:, None]  # the triangle's other two corners
    assert np.allclose(head.pos[:2], points[1]) and np.allclose(legs[2], head.pos[2])
    assert np.allclose(legs[:2].mean(1), points[1] - render.HEAD * along, atol=1e-6)
    assert np.allclose(shaft.pos[:2] + shaft.size[0] * along, points[1] - render.HEAD * along, atol=1e-6)


def pixels_of(points, azimuths, elevation, fovy, size, frame):
    """Where a film shows points (T, P, 3) on the ground: (T, P, 2); frame: see framed."""
    tall, height, aside = frame
    found = []
    for place, azimuth, right in zip(points, azimuths, render.right_of(azimuths)):
        focus = aside * right + np.array([0.0, 0.0, height])
        ground = render.ground_in(azimuth, elevation, render.distance_of(tall, fovy), focus, size, tall)
        seen = np.column_stack((place[:, :2], np.ones(len(place)))) @ ground.T
        found.append(seen[:, :2] / seen[:, 2:])
    return np.stack(found)


@pytest.mark.parametrize("speed", [1.2, 3.5])
def test_the_picture_has_room_for_an_arrow_to_any_side(speed):
    """Seen by a camera that turns; who goes away from it needs no more than for the arrow's length."""
    size, look = (960, 540), render.FILM_OF_PATH
    headings = torch.arange(0, 2 * math.pi, 0.1)
    told = render.Told(headings, torch.full_like(headings, speed), torch.zeros(len(headings), 2))
    corners = [render.corners_of(render.arrow_at(told, np.zeros((63, 2)), t)) for t in range(63)]
    arrows = np.stack(corners)
    azimuths = np.linspace(80.0, 120.0, 63)
    frame = render.framed(arrows, np.zeros(4), azimuths, look, size)
    pixels = pixels_of(arrows, azimuths, look["elevation"], look["fovy"], size, frame)
    edge = render.MARGIN * 540
    assert (pixels > edge - 1.5).all() and (pixels < np.array(size) - edge + 1.5).all()
    assert pixels[..., 1].max() > 0.92 * 540
    less = render.framed(arrows[:9], np.zeros(4), np.zeros(9), look, size)[0]
    assert render.LOWEST <= less < frame[0]


def test_a_film_is_near_and_nobody_is_in_front_of_what_is_written():
    """A pole of 2 m, .1 m thick, and an arm of 1 m to its left that is stretched out for a moment."""
    look, size = dict(elevation=0.0, fovy=1.0), (300, 200)  # from afar, so that a metre is as large everywhere
    points = np.zeros((9, 3, 3))
    points[:, :, 2] = 0.1, 2.0, 1.9
    points[4, 2, 1] = 1.0  # seen along +X this is to the left
    given = points, np.full(3, 0.1), np.zeros(9), look, size, 20.0
    tall, height, aside = render.framed(*given)
    assert 2.1 * 200 / tall == pytest.approx(200 - 20 - 0.035 * 200, rel=0.04)  # as near as can be
    assert (height - 0.5 * tall) * 200 / tall == pytest.approx(-20, abs=1.0)  # 0 m is 20 pixels above the lower edge
    left, right = (150 + (y - aside) * 200 / tall for y in (-1.1, 0.1))
    assert left + right == pytest.approx(300, abs=1.0)  # in the middle
    hand = [150 + (-1.0 - aside) * 200 / tall, 180 - 1.9 * 200 / tall]
    box = (0.0, 0.0, hand[0] + 10.0, hand[1] + 10.0)
    moved = render.framed(*given, [box])
    assert moved[2] < aside - 0.05 or moved[0] > tall  # to the right, or further away
    far = [150 + (-1.0 + 0.1 - moved[2]) * 200 / moved[0], 180 - 1.8 * 200 / moved[0]]
    low = 180 - 1.8 * 200 / moved[0] - 0.2 * 200 / moved[0]  # the hand's upper edge
    assert far[0] - 0.2 * 200 / moved[0] > box[2] - 1.5 or low > box[3] - 1.5
    assert render.framed(*given, [(0.0, 0.0, 300.0, 199.0)]) == pytest.approx((tall, height, aside))  # that cannot be


def test_limbs_reach_no_further_than_their_outline(walk, character):
    """Upright at the origin: from the sole, .0275 m of half a foot below its middle, to the top of the head."""
    rest = torch.zeros(1, len(character.body_names), 4)
    rest[..., 3] = 1.0
    poses = ml.forward_kinematics(character, torch.tensor([[0.0, 0.0, 1.0]]), rest)
    points, reach = render.outline(character, poses)
    names = dict(zip(character.body_names, poses[0][0]))
    assert points.shape == (1, len(reach), 3)
    assert (points[0, :, 2] - reach).min() == pytest.approx(float(names["right_foot"][2]) - 0.05, abs=1e-4)
    assert (points[0, :, 2] + reach).max() == pytest.approx(float(names["head"][2]) + 0.27, abs=1e-4)


def test_an_arrow_shines_through_the_legs_before_it():
    """Where both are, and nowhere else; the leg can still be seen."""
    picture, arrow, figures = np.zeros((3, 4, 6, 3), np.uint8)
    picture[:] = 200
    arrow[:, :4] = picture[:, :4] = (0, 180, 40)
    figures[:, 3:5] = picture[:, 3:5] = (20, 60, 140)
    found = render.shining(picture, arrow, figures)
    assert found[0].tolist()[:3] == [[0, 180, 40]] * 3 and found[0].tolist()[4:] == [[20, 60, 140], [200] * 3]
    assert found[1, 3, 1] > 140 and 40 < found[1, 3, 2] < 90
    assert picture[1, 3].tolist() == [20, 60, 140]


def test_an_arrow_is_seen_behind_who_walks_away_from_the_camera(draw, root, tmp_path):
    """The whole arrow is green, also on the legs: 609 pixels; if they hid it, 223."""
    azimuth = render.FILM_OF_PATH["azimuth"]
    (tmp_path / "c.csv").write_text(f"0, {azimuth}, 1.5\n")
    options = ("--seconds", 0.04, "--size", 480, 270, "--commands", tmp_path / "c.csv")
    (picture, _), _ = draw(root / "motions/walk.npz", "a.mp4", *options)
    red, green, blue = (picture[150:, 100:380, i] for i in range(3))  # the feet, and what is about them
    assert ((green > red + 15) & (green > blue + 40) & (red > 25)).sum() > 400


@pytest.mark.parametrize("who", ["policy", "clip", "told", "done", ""])
def test_what_is_written_can_be_read_on_the_floor(who):
    """Contrast as WCAG defines it, with the darker tiles and with the sky; 3 is asked for where letters are large."""

    def light(colour):
        shares = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in np.array(colour) / 255]
        return 0.2126 * shares[0] + 0.7152 * shares[1] + 0.0722 * shares[2]

    for ground in ((205, 208, 213), (219, 235, 252)):
        assert (light(ground) + 0.05) / (light(render.ink_of(who)) + 0.05) > 3.3


def test_a_line_stays_where_it_is_while_its_digits_change():
    from PIL import Image

    widths = []
    for number in ("1.11", "4.84", "7.17"):
        picture = Image.new("RGB", (200, 40), (255, 255, 255))
        render.write_on(picture, [(f"{number} m/s|", "")], render.font_of(300))
        dark = np.asarray(picture).min((0, 2)) < 200
        widths.append(int(dark.nonzero()[0].max()))
    assert len(set(widths)) == 1 and 40 < widths[0] < 100


def test_the_floor_of_a_gif_has_no_seam():
    """The way from the first picture to the first again is a whole number of patterns."""
    for speed in (0.97, 1.3, 3.5):
        x = speed * np.arange(112) / 30
        pattern = render.seamless(x)
        assert speed * 112 / 30 / pattern == pytest.approx(round(speed * 112 / 30 / pattern)) and 1.3 < pattern < 2.7
    assert render.seamless(np.zeros(9)) == render.PATTERN


def test_command_path_map_ghost_and_a_camera_that_turns(draw, root, tmp_path):
    """Green is the command, orange the ghost's outline; the map is a white square at the right."""

    def green(picture):
        red, middle, blue = (picture[..., i] for i in range(3))
        return ((middle - red > 30) & (middle - blue > 20)).sum()

    (tmp_path / "c.csv").write_text("0, 0, 1.5\n")
    walk = root / "motions/walk.npz"
    plain, _ = draw(walk, "a.mp4", *SMALL, "--seconds", 0.1)
    shown, _ = draw(
        walk, "b.mp4", *SMALL, "--seconds", 0.1, "--ghost", walk, "--commands", tmp_path / "c.csv", "--turn", 90
    )
    assert plain.shape == shown.shape == (4, 90, 160, 3)
    side = round(render.MAP * 90)
    maps = shown[:, 3 : 3 + side, 157 - side : 157]
    assert np.median(maps) > 245 and (np.median(plain, axis=(0, 1, 2)) < 240).all()
    assert all(green(picture) == 0 for picture in plain) and all(green(picture[40:]) > 4 for picture in shown)
    assert hues(plain)[1] == 0.0 and hues(shown[:, 40:])[0] > 0.0003 and hues(shown[:, 40:, 20:140])[1] > 0.003
    turned = [np.abs(pictures[0, 60:] - pictures[-1, 60:]).mean() for pictures in (plain, shown)]
    assert turned[1] > 2 * turned[0]


def test_a_camera_that_stands_still_sees_the_whole_way(draw, root, tmp_path):
    """Nothing but the figure, the path and the legend changes; there is no map; a long way leads across the picture."""
    for way, azimuth, seen in (([0.0, 9.0], 120.0, 180.0), ([0.0, -9.0], 90.0, 0.0), ([9.0, 0.0], 120.0, 90.0)):
        path = np.linspace([0.0, 0.0], way, 9)
        found = render.across(path, azimuth)
        assert (found - seen) % 180.0 == pytest.approx(0.0, abs=1e-9) and abs(found - azimuth) <= 90.0 + 1e-9
        assert abs(render.right_of(np.array([found]))[0, :2] @ way) == pytest.approx(9.0)
    (tmp_path / "c.csv").write_text("0, 0, 1\n")
    told = "--commands", tmp_path / "c.csv", "--fixed", "--legend", "", "--text", 6
    pictures, _ = draw(root / "motions/walk.npz", "a.mp4", *SMALL, "--seconds", 4, *told)
    differs = np.abs(pictures[0] - pictures[-1]).max(-1) > 40
    assert 0.005 < differs.mean() < 0.1  # the floor does not move
    side = round(render.MAP * 90)
    assert np.median(pictures[:, 3 : 3 + side, 157 - side : 157]) < 245
    places = [np.argwhere(p[30:, :, 0] - p[30:, :, 2] > 60)[:, 1].mean() for p in pictures[[0, -1]]]  # orange
    assert abs(places[1] - places[0]) > 40  # pixels of 160


def test_the_map_shows_the_whole_way():
    """A square commanded from (0, 0) to (4, 4), of which half is done; +X is to the right, +Y up."""
    path = torch.tensor([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [0.0, 4.0]])
    told = render.Told(torch.zeros(4), torch.ones(4), path)
    inset = np.asarray(render.from_above(told, path.numpy(), 2, 1, 500)).astype(int)
    assert inset.shape == (180, 180, 3)
    corner = {(x, y): inset[90 - round(y * 90 / 1.4), 90 + round(x * 90 / 1.4)] for x in (-1, 1) for y in (-1, 1)}
    edge = {name: inset[90 - round(y * 90 / 1.4), 90 + round(x * 90 / 1.4)] for name, x, y in EDGES}
    red, green, blue = edge["above"]
    assert green > red + 60 and green > blue + 30  # told, and not done yet
    for done in (edge["below"], edge["right"], corner[1, 1], corner[1, -1]):
        assert done[2] > done[1] > done[0] and done[0] < 90
    assert edge["left"].min() > 250 and inset[90, 90].min() > 250  # nobody was told to close the square
    dark = (inset < 100).any(-1)
    assert dark[20:34, 148:162].sum() > 2 * dark[148:162, 148:162].sum()  # where it is now


def test_a_ghost_is_an_outline_and_shows_where_no_figure_is(character):
    """Of squares of 40 pixels, the ghost's 10 to the right of the figure's: blended beside it, outlined within it."""
    figure, ghost = np.zeros((2, 60, 80, 3), np.uint8)
    figure[10:50, 10:50] = (0, 0, 200)
    ghost[10:50, 20:60] = (200, 100, 0)
    stage = SimpleNamespace(shot=lambda groups: {("ghost",): ghost}[groups], size=(80, 60))
    picture = np.full((60, 80, 3), 100, np.uint16)
    picture[10:50, 10:50] = (0, 0, 200)
    found = render.Stage.with_ghost(stage, picture.copy(), figure)
    assert found[30, 15].tolist() == found[30, 40].tolist() == [0, 0, 200]
    assert np.abs(found[30, 55] - [155, 100, 45]).max() <= 1  # .55 of the ghost and .45 of the floor
    assert all(found[at].tolist() == list(render.OUTLINE) for at in ((30, 20), (30, 59), (10, 30), (49, 55)))
    assert all(found[at].tolist() == list(render.OUTLINE) for at in ((30, 21), (30, 58)))  # two pixels wide
    untouched = found[:, 61:], found[:, :10], found[:10]
    assert all((part == 100).all() for part in untouched)


# ---- Strips ----


def test_strip(draw, root):
    (picture,), _ = draw(root / "motions/walk.npz", "strip.png", "--poses", 5, "--size", 300, 120)
    assert picture.shape == (120, 300, 3)
    assert (picture[:5] > 250).all() and (picture[-3:] < 240).all()  # a white sky, and a floor
    assert (picture[5:24, :150] < 120).any()  # what it is stands there
    dark, light = limbs(picture)
    dark[:24] = light[:24] = False  # below the text
    occupied = (dark | light).any(0)  # columns
    begin = (occupied[1:] & ~occupied[:-1]).nonzero()[0]
    end = (occupied[:-1] & ~occupied[1:]).nonzero()[0]
    assert len(begin) == 5 and not occupied[:5].any() and not occupied[-5:].any()
    for left, right in zip(begin, end):
        assert dark[:, left : right + 1].any() and light[:, left : right + 1].any()


def test_a_strip_is_as_high_as_its_poses_need_and_has_their_times(draw, root):
    """Who crawls is lower than a third of 300 pixels; four times stand under the poses, and none under the clip's."""
    crawl = root / "motions/crawl.npz"
    (picture,), _ = draw(crawl, "strip.png", "--poses", 4, "--size", 600, 300)
    assert picture.shape[1] == 600 and 60 < picture.shape[0] < 110
    inked = (picture[-12:] < 110).all(-1) & (np.ptp(picture[-12:], axis=-1) < 30)  # (12, 600) dark and grey
    columns = inked.any(0).nonzero()[0]
    assert len(columns) > 20 and (np.diff(columns) > 60).sum() == 3
    (two,), _ = draw(crawl, "two.png", "--poses", 4, "--size", 600, 600, "--compare", crawl, "--legend", "")
    assert len(two) == 2 * (len(two) // 2) < 220
    clips = two[len(two) // 2 - 6 : len(two) // 2]
    assert not ((clips < 110).all(-1) & (np.ptp(clips, axis=-1) < 30)).any()
    left = (two[5:20] < 200).any((0, 2)).nonzero()[0].max()
    assert left < (picture[5:20] < 200).any((0, 2)).nonzero()[0].max() - 60  # no words on limbs


def test_a_strip_does_not_depend_on_where_the_clip_was_recorded(draw, root, write_clip):
    path = root / "motions/walk.npz"
    (one,), _ = draw(path, "one.png", "--size", 300, 120)
    (two,), _ = draw(turned(path, write_clip, 130, 40, -70), "two.png", "--size", 300, 120)
    (other,), _ = draw(path, "other.png", "--size", 300, 120, "--start", 0.3)
    one, two, other = (picture[24:] for picture in (one, two, other))  # below the names
    rows = min(len(one), len(other))  # from below: one may be lower
    assert np.abs(one - two).mean() < 0.05 and np.abs(one[-rows:] - other[-rows:]).mean() > 1.0


def test_limbs_point_from_joint_to_joint(draw, write_clip):
    """Who stands upright is narrow, with no gap between foot and shoulder, from whichever side it is seen."""
    away = np.array([[0.0, 0.0, 0.9], [0.0, 1.0, 0.9]])  # it goes to its left, so that the picture shows its back
    (picture,), _ = draw(write_clip(frames=2, root_position=away), "strip.png", "--poses", 1, "--size", 120, 120)
    for mask in limbs(picture[26:]):  # below the text
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        assert len(rows) > 0.9 * (rows.max() - rows.min()) > 45 and columns.max() - columns.min() < 32


# ---- Films ----


def test_film(draw, root):
    """The character stays in the middle, where it moves its limbs; the floor passes by, evenly."""
    pictures, about = draw(root / "motions/walk.npz", "film.mp4", *SMALL)
    assert pictures.shape == (39, 90, 160, 3) and about["fps"] == pytest.approx(30, abs=0.01)
    for mask in zip(*map(limbs, pictures[:, 20:])):  # below the text
        columns = [column.nonzero()[1].mean() for column in mask]
        rows = [row.nonzero()[0] + 20 for row in mask]
        assert 60 < min(columns) and max(columns) < 100
        assert max(map(np.max, rows)) < 91 - render.MARGIN * 90  # a pixel is lost to edges
    sky = pictures[:, :5, 60:].mean((0, 1, 2))
    assert sky[2] > sky[0] + 30 and pictures[0, 2, 3:40].min() > 80  # blue; no text so far up
    steps = np.abs(np.diff(pictures[:, 70:, :40], axis=0)).mean((1, 2, 3))  # on the floor, beside the character
    assert 0.2 * np.median(steps) < steps.min() and steps.max() < 3 * np.median(steps)  # about 1
    assert np.abs(np.diff(pictures[:, 20:70, 60:100], axis=0)).mean((1, 2, 3)).min() > 0.5


def test_who_stands_still_is_filmed_in_front_of_a_floor_that_does(draw, write_clip):
    pictures, _ = draw(write_clip(frames=5), "film.mp4", *SMALL)
    below = pictures[:, 55:]  # the text
    assert pictures.shape == (5, 90, 160, 3) and np.abs(np.diff(below, axis=0)).mean() < 0.1
    assert all(mask.any() for mask in limbs(pictures))


def test_part_of_a_clip_at_its_own_rate(draw, write_clip):
    pictures, about = draw(write_clip(frames=50, fps=24.0), "film.mp4", *SMALL, "--start", 0.5, "--seconds", 0.25)
    assert len(pictures) == 7 and about["fps"] == pytest.approx(24.0)


def test_a_film_with_names_alone_and_larger_letters(draw, root):
    """The first line is the name's, lines after it say limbs, time and speed."""
    walk = root / "motions/walk.npz"
    few = ("--seconds", 0.05, "--size", 200, 160)
    plain, bare, large = (
        draw(walk, f"{n}.mp4", *few, *options)[0][0].astype(int)
        for n, options in enumerate([(), ("--legend", ""), ("--legend", "", "--text", 22)])
    )
    # rows of pixels with letters
    plain, bare, large = ((picture[:66, :60].max(-1) < 190).any(1).sum() for picture in (plain, bare, large))
    assert plain > 2 * bare > 0 and 2.5 * bare > large > 1.5 * bare


def test_gif(draw, root, tmp_path):
    """About thirty frames a second: every one at 30."""
    pictures, about = draw(root / "motions/walk.npz", "film.gif", *SMALL)
    assert pictures.shape == (39, 90, 160, 3) and about["duration"] in (30, 40) and about["loop"] == 0
    # its clock has hundredths of a second: 30, 40, 30 ms in turn
    blocks = re.findall(rb"\x21\xf9\x04.(..).\x00", (tmp_path / "film.gif").read_bytes(), re.DOTALL)
    times = np.cumsum([int.from_bytes(block, "little") for block in blocks])
    assert len(times) == 39 and np.abs(times[:-1] - 100 / 30 * np.arange(1, 39)).max() < 0.51
    assert all(mask.any() for mask in limbs(pictures))
    assert np.abs(np.diff(pictures[:, 70:, :40], axis=0)).mean((1, 2, 3)).min() > 0.5  # in a thirtieth of a second


def test_webp(draw, opengl, root, tmp_path):
    """As a GIF, for half the bytes or less."""
    image = pytest.importorskip("PIL.Image")
    draw(root / "motions/walk.npz", "film.gif", "--fast")
    assert start(tmp_path, root / "motions/walk.npz", "film.webp", "--fast", **opengl) == (0, [])
    with image.open(tmp_path / "film.webp") as film:
        assert film.n_frames == 39 and film.size == (480, 270) and film.info["loop"] == 0
        film.seek(5)
        film.load()
        assert film.info["duration"] in (33, 34)
        assert all(mask.any() for mask in limbs(np.asarray(film.convert("RGB")).astype(int)))
    assert (tmp_path / "film.webp").stat().st_size < 0.6 * (tmp_path / "film.gif").stat().st_size


def spinning(cycles=5, period=24, turn=0.6, step=0.5, noise=2):
    """Bodies (T, 4, 3) at 20 frames a second that go along an arc, and bob; cycle `noise` alone begins as it ends."""
    time = np.arange(cycles * period + 1) / period
    heading = turn * time
    root = np.cumsum(step / period * np.stack((np.cos(heading), np.sin(heading)), -1), 0)
    swing = 0.3 * np.stack((np.sin(2 * np.pi * time), np.cos(2 * np.pi * time)), -1)  # forward, and up
    jitter = 0.05 * np.random.default_rng(1).normal(size=time.shape)
    begin, end = noise * period, (noise + 1) * period
    jitter[begin - 3 : begin + 4] = jitter[end - 3 : end + 4] = 0.0
    bodies = np.stack([n * swing[:, 0] + jitter for n in range(4)], 1)
    places = root[:, None] + bodies[..., None] * np.stack((np.cos(heading), np.sin(heading)), -1)[:, None]
    height = np.broadcast_to(1.0 + swing[:, 1:], bodies.shape)
    return torch.as_tensor(np.concatenate((places, height[..., None]), -1))


def test_a_loop_is_a_cycle_that_ends_as_it_began():
    """Wherever the motion goes meanwhile, and however it turns; nothing that lies before --start."""
    position = spinning()
    found = render.best_loop(position, 20.0, 1.25)
    assert (
        abs(found.first - 48) <= 3
        and found.count == 24
        and found.turn == pytest.approx(0.6, abs=0.02)
        and found.seam < 0.01
    )
    other = render.best_loop(position, 20.0, 1.25, start=2.5)
    assert other.first >= 50 and other.seam > found.seam
    assert render.best_loop(position, 20.0, 1.25, every=2).count % 2 == 0
    assert render.best_loop(position, 20.0, 1.25, among=[20, 30, 70]).first in (20, 30, 70)
    assert render.best_loop(position, 20.0, 1.25, among=[0, 119]) == found  # where none can begin
    with pytest.raises(ml.InputError, match=r"--loop: no 2\.4 s"):
        render.best_loop(position[:40], 20.0, 1.25)


@pytest.mark.parametrize("turn", [0.0, 0.7, -0.7])
def test_a_loop_ends_on_the_tiles_it_began_on(turn):
    """The same picture of the floor from where the camera is at first and at last, and others between."""
    ends = np.array([[3.0, 1.0], [4.0, 1.5]])
    tiles = render.Tiles(*ends, turn)
    size = (80, 60)

    def floor(at, azimuth):
        focus = np.array([*at, 0.8])
        return tiles.light(render.ground_in(azimuth, -30.0, 6.0, focus, size, 2.5), focus, size)

    first, last = floor(ends[0], 100.0), floor(ends[1], 100.0 + math.degrees(turn))
    between = floor(0.6 * ends[0] + 0.4 * ends[1], 100.0 + 0.4 * math.degrees(turn))
    assert np.abs(first - last).max() < 0.02 and np.abs(first - between).max() > 0.1
    assert 1.0 - render.DARK - 1e-6 <= first.min() < 0.9 and first.max() > 0.98
    sky = tiles.light(render.ground_in(100.0, -5.0, 6.0, np.array([3.0, 1.0, 0.8]), size, 2.5), np.zeros(3), size)
    assert (sky[:15] == 1.0).all() and (sky[30:] < 1.0).any()


def test_a_film_that_loops(draw, root):
    """From its last picture to its first it changes no more than from one to the next; names stand under figures."""
    walk = root / "docs/rollouts/walk.npz"
    pictures, _ = draw(
        walk,
        "a.gif",
        *SMALL,
        "--fast",
        "--loop",
        "--title",
        "walk",
        "--legend",
        "",
        "--compare",
        root / "motions/walk.npz",
    )
    assert 33 <= len(pictures) <= 39
    steps = np.abs(pictures - np.roll(pictures, 1, 0)).mean((1, 2, 3))
    assert steps[0] < 1.3 * steps[1:].max()


def test_a_jump_stays_in_the_picture(draw, root):
    pictures, _ = draw(root / "motions/backflip.npz", "film.mp4", *SMALL, "--fast")
    for mask in limbs(pictures):
        assert not mask[:, :3].any() and not mask[:, -3:].any()
        assert not mask[:, :, :3].any() and not mask[:, :, -3:].any()


# ---- What goes wrong ----


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("film.avi", (), "expected a name that ends in .png"),
        ("nowhere/film.mp4", (), "no such folder"),
        ("film.mp4", ("--start", 9), "which is 1.27 s long"),
        ("film.mp4", ("--start", "nan"), "--start nan"),
        ("film.mp4", ("--seconds", 0.001), "less than a frame"),
        ("film.mp4", ("--seconds", "nan"), "--seconds has to be positive"),
        ("strip.png", ("--poses", 0), "--poses from 1 to 100"),
        ("strip.png", ("--size", 8, 300), "from 16 to 4096"),
        ("film.mp4", ("--size", 161, 90), "have to be even"),
        ("film.gif", ("--character-file", "nothing.xml"), "nothing.xml"),
        ("film.gif", ("--compare", "nothing.npz"), "nothing.npz: no such motion file"),
        ("strip.png", ("--compare", render.HERE), "expected one clip, not 20"),
        ("film.mp4", ("--compare", "a.npz", "--ghost", "a.npz"), "--ghost and --compare: one of them"),
        ("strip.png", ("--turn", 90), "are for films"),
        ("strip.png", ("--fast",), "are for films"),
        ("strip.png", ("--loop",), "--loop is for films"),
        ("film.mp4", ("--loop", "--turn", 9), "without --commands, --turn and --fixed"),
        ("film.mp4", ("--fixed", "--turn", 9), "stands still or turns"),
        ("strip.png", ("--fixed",), "--fixed and --fast are for films"),
        ("film.mp4", ("--poses", 7), "--poses is for strips"),
        ("strip.png", ("--compar", "a.npz"), "--compar: there is no such option"),
        ("film.mp4", ("--turn", "nan"), "--turn: expected degrees"),
        ("film.mp4", ("--commands", "nothing.csv"), "nothing.csv"),
    ],
)
def test_bad_options_end_with_one_line(run_script, root, tmp_path, name, options, words):
    code, out, err = run_script("motions/render.py", root / "motions/walk.npz", name, *options)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "module, content, words",
    [
        ("mujoco", "raise ModuleNotFoundError(\"No module named 'mujoco'\")", "pip install -r requirements.txt"),
        ("OpenGL", "raise AttributeError(\"no attribute 'eglQueryString'\\nor so\")", "apt-get install libosmesa6"),
        ("imageio_ffmpeg", "raise ImportError('No module')", "pip install -r requirements-motions.txt"),
    ],
)
def test_what_is_missing_is_named_in_one_line(opengl, root, tmp_path, module, content, words):
    """Neither the old film nor what lies beside it changes."""
    (tmp_path / "modules" / module).mkdir(parents=True)
    (tmp_path / "modules" / module / "__init__.py").write_text(content)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/film.mp4").write_text("the old film")
    environment = {**opengl, "PYTHONPATH": str(tmp_path / "modules")}
    code, lines = start(tmp_path, root / "motions/walk.npz", "out/film.mp4", *SMALL, **environment)
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0]
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["the old film"]


@pytest.mark.parametrize(
    "program, words",
    [
        (None, "no ffmpeg ([Errno 2]"),
        ("exit 1", "ffmpeg failed with exit code 1: it does not say why"),
        ("echo no space >&2; echo more >&2; exit 3", "ffmpeg failed with exit code 3: no space"),
        ("cat >/dev/null", "film.mp4: No such file"),
    ],
)
def test_an_ffmpeg_that_fails(opengl, root, tmp_path, program, words):
    pytest.importorskip("imageio_ffmpeg", reason="pip install -r requirements-test.txt")
    ffmpeg = tmp_path / "ffmpeg"
    if program is not None:
        ffmpeg.write_text(f"#!/bin/sh\n{program}\n")
        ffmpeg.chmod(0o755)
    environment = {**opengl, "IMAGEIO_FFMPEG_EXE": str(ffmpeg)}
    code, lines = start(tmp_path, root / "motions/walk.npz", "film.mp4", *SMALL, **environment)
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0]
    assert not (tmp_path / "film.mp4").exists()


def test_the_target_is_a_folder(opengl, write_clip, tmp_path):
    (tmp_path / "strip.png").mkdir()
    code, lines = start(tmp_path, write_clip(), "strip.png", "--poses", 1, *SMALL, **opengl)
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: strip.png: ")
    assert {path.name for path in tmp_path.iterdir()} == {"strip.png", "clip.npz"}
