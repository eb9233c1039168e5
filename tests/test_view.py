"""motions/view.py: what it shows, the file that it writes, its page, and both in headless Chromium, if there is one."""

import base64
import contextlib
import html.parser
import io
import json
import math
import re
import shutil
import socket
import sys
import threading
import urllib.request
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

import motion_lib as ml
from clips import save_clip

pytest.importorskip("viser", reason="viser is not installed: pip install -r requirements.txt")
pytest.importorskip("mujoco", reason="MuJoCo needs Python 3.10")

import msgspec
import zstandard

from evaluation import reference_poses
from motions import view

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
FLAGS += " --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader"  # WebGL without a graphics card
UP = [0.0, 0.0, 0.0, 1.0]


def yawed(degrees):
    """Quaternion xyzw of a turn about Z."""
    return [0.0, 0.0, math.sin(math.radians(degrees) / 2), math.cos(math.radians(degrees) / 2)]


# ---- From files to frames ----


def ways():
    """The first character walks 1 m along +X at y = 5, the other 1 m along +Y, which is where it faces.

    -> (root, rotations) of both"""
    first = torch.tensor([[5.0, 5.0, 0.9], [6.0, 5.0, 0.8]]), torch.tensor([[UP], [UP]])
    other = torch.tensor([[1.0, 2.0, 0.7], [1.0, 3.0, 0.6]]), torch.tensor([[yawed(90)], [yawed(90)]])
    return other, first


def test_side_by_side_starts_to_the_left_and_goes_the_same_way():
    (root, rotations), first = ways()
    root, rotations = view.place(root, rotations, *first, "side", 2)
    assert torch.allclose(root, torch.tensor([[5.0, 8.0, 0.7], [6.0, 8.0, 0.6]]), atol=1e-6)
    assert torch.allclose(rotations, torch.tensor([[UP], [UP]]), atol=1e-6)


def test_overlay_starts_at_the_same_place():
    (root, rotations), first = ways()
    first[1][1, 0] = torch.tensor(yawed(90))  # the first one turns later on, which must not matter
    root, rotations = view.place(root, rotations, *first, "overlay", 2)
    assert torch.allclose(root, torch.tensor([[5.0, 5.0, 0.7], [6.0, 5.0, 0.6]]), atol=1e-6)
    assert torch.allclose(rotations, torch.tensor([[UP], [UP]]), atol=1e-6)


def test_pinned_stays_at_the_same_place_and_heading():
    (root, rotations), first = ways()
    first[1][1, 0] = torch.tensor(yawed(90))
    root[1, 0] = 9.0
    root, rotations = view.place(root, rotations, *first, "pinned", 1)
    assert torch.allclose(root, torch.tensor([[5.0, 5.0, 0.7], [6.0, 5.0, 0.6]]), atol=1e-6)
    assert torch.allclose(rotations, torch.tensor([[UP], [yawed(90)]]), atol=1e-6)


def test_beside_is_pinned_a_step_to_the_left():
    """To the left of the first one's way, whatever its heading."""
    (root, rotations), first = ways()
    first[1][1, 0] = torch.tensor(yawed(90))
    root, rotations = view.place(root, rotations, *first, "beside", 2)
    assert torch.allclose(root, torch.tensor([[5.0, 8.0, 0.7], [6.0, 8.0, 0.6]]), atol=1e-6)
    assert torch.allclose(rotations, torch.tensor([[UP], [yawed(90)]]), atol=1e-6)


def test_who_leaves_the_first_one_is_held_at_its_side(character, root):
    """A run beside a walk sways and bounds as it does, but goes the walk's way; a second walk goes its own."""
    walk, run = (str(root / f"motions/{name}.npz") for name in ("walk", "run"))
    rate, takes = view.load_takes(character, [walk, run, walk], "side", seconds=5.0)
    _, (alone,) = view.load_takes(character, [run], "side", seconds=5.0)
    assert [bool(take.held) for take in takes] == [False, True, False]
    apart = (takes[1].root - takes[0].root)[:, :2]
    assert apart[0].tolist() == pytest.approx([0.0, view.SPACING], abs=0.2)  # to the left, as it faces
    assert (apart - apart[0]).norm(dim=-1).max() < 0.15
    assert torch.equal(takes[1].root[:, 2], alone.root[:, 2])
    speeds = [view.speeds_of(take.root, rate)[30:-30].mean() for take in (takes[0], takes[1], alone)]
    assert speeds[:2] == pytest.approx([0.97, 0.97], abs=0.03) and speeds[2] > 3.0
    legend = view.legend_of(takes)
    assert (
        takes[1].speed > 1.0
        and f"clip motions/run, mean {takes[1].speed:.2f}\u00a0m/s; on a treadmill beside the blue one" in legend
    )
    assert [take.belt is not None for take in takes] == [False, True, False]


def test_a_treadmill_goes_under_who_is_held_as_its_own_ground_would(character, root):
    """And both turn with the first one's course."""
    files = [str(root / file) for file in ("docs/rollouts/walk.npz", "motions/run.npz")]
    (rate, (first,)), (_, (run,)) = (view.load_takes(character, [file], "side", seconds=8.0) for file in files)
    held = view.hold(run, first, rate)
    x, y, angle, *mark = held.belt.T
    seen = held.root - torch.stack((x, y, torch.zeros_like(x)), 1)
    seen = ml.quat_rotate(ml.quat_from_yaw(-angle), seen)[:, :2] - torch.stack(mark, 1)  # from the mark
    steps = (run.root[:, :2] - seen) / view.MARKS
    assert torch.allclose(steps, steps.round(), atol=1e-3) and steps[:, 0].max() > 60 and held.belt[:, 3:].max() < 0.16
    # rings do not overlap, and marks stay in them
    assert 2 * view.BELT < view.SPACING and math.hypot(1.5, 1.5) * view.MARKS + 0.05 < view.BELT
    turned = ml.heading(held.rotations[:, 0]) - ml.heading(run.rotations[:, 0])
    assert torch.allclose(torch.cos(turned - angle), torch.ones(1), atol=1e-5)
    facing = np.unwrap(ml.heading(held.rotations[:, 0]).numpy()) - first.course  # it sways with every step
    assert np.ptp(first.course) > 0.3 and np.abs(facing - facing.mean()).max() < 0.25


def test_speeds_of_whole_files(character, root, walk):
    """They are means of what the page says of each moment. A cartwheel goes sideways: nothing forward, on average."""
    assert view.mean_speed(walk) == pytest.approx(0.97, abs=0.015)
    rate, (take,) = view.load_takes(character, [str(root / "motions/crawl.npz")], "side", seconds=20.0)
    assert view.speeds_of(take.root, rate)[30:-30].mean() == pytest.approx(take.speed, abs=0.02)
    cartwheel = ml.MotionLib(str(root / "motions/cartwheel.npz"), character)
    assert cartwheel.statistics()[1] < 0.1 < 0.7 < view.mean_speed(cartwheel) < 0.9


def test_what_it_was_told(character, write_clip, tmp_path):
    """2 m/s along +Y for .2 s, then 1 m/s along +X; from where it begins."""
    (tmp_path / "told.csv").write_text("0, 90, 2\n0.2, 0, 1\n")
    _, (take,) = view.load_takes(character, [write_clip(frames=5)], "side", commands=str(tmp_path / "told.csv"))
    way = torch.tensor([[0.0, 0.0], [0.0, 0.2], [0.0, 0.4], [0.1, 0.4], [0.2, 0.4]])  # ten frames a second
    assert torch.allclose(take.told.path - take.root[0, :2], way, atol=1e-6)
    assert torch.rad2deg(take.told.heading).tolist() == pytest.approx([90, 90, 0, 0, 0], abs=1e-4)
    words = view.words_of([take], 10.0)
    assert [text.split("told ")[1] for text in words] == ["2.00\u00a0m/s"] * 2 + ["1.00\u00a0m/s"] * 3
    assert "told to go" in view.legend_of([take]) and "told to go" not in view.legend_of([take._replace(told=None)])


def test_how_far_two_poses_are_apart(character, root, walk):
    """As the pose error has it: nothing if place and heading differ, and what evaluation.py says of two moments."""
    clip = str(root / "motions/walk.npz")
    rate, takes = view.load_takes(character, [clip, clip], "side", seconds=2.0)
    assert {text.split("; ")[1] for text in view.words_of(takes, rate)} == {"poses .000\u00a0m apart"}
    later = takes[1]._replace(poses=takes[1].poses.roll(-1, 0))
    moments = torch.tensor([10, 11]) / rate
    one, other = reference_poses(walk, torch.zeros(2, dtype=torch.long), moments)
    gap = float((one - other).norm(dim=-1).mean())
    said = view.words_of([takes[0], later], rate)[10].split("; poses ")[1].split("\u00a0")[0]
    assert gap > 0.01 and float(said) == pytest.approx(gap, abs=6e-4)
    assert "seen from the roots" in view.legend_of(takes) and "seen from the roots" not in view.legend_of(takes[:1])
    assert "apart" not in view.words_of(takes[:1], rate)[0]


def test_which_way_it_goes():
    """Who walks in a circle of 3 m turns evenly, through 180 degrees without a jump; sway does not count.

    Who stands keeps the way that it came; who never leaves has its heading."""
    time = torch.arange(300) / 30.0
    angle = 0.5 * time  # to the left, at 1.5 m/s
    sway = 0.03 * torch.sin(2 * math.pi * time)
    root = torch.stack(((3.0 + sway) * angle.sin(), (3.0 + sway) * -angle.cos(), 0.9 + 0 * time), -1)
    rotations = torch.tensor(yawed(90)).expand(300, 1, 4)
    course = view.course_of(root, rotations, 30.0)
    assert np.abs(course - angle.numpy())[30:-30].max() < 0.03 and course[-1] > math.pi
    assert np.linalg.norm(view.speeds_of(root, 30.0)[30:-30] - 1.5, np.inf) < 0.05
    stop = torch.cat((root[:90], root[89:90].expand(210, 3)))
    stays = view.course_of(stop, rotations, 30.0)
    assert abs(stays[-1] - stays[150]) < 1e-6 and abs(stays[-1] - 1.5) < 0.15
    assert view.course_of(root[:1].expand(300, 3), rotations, 30.0) == pytest.approx(np.full(300, math.pi / 2))


def test_the_legend_tells_what_speeds_and_lines_are(write_clip, character):
    _, (take,) = view.load_takes(character, [write_clip()], "side")
    legend = view.legend_of([take._replace(speed=0.5)])
    assert ", mean .50\u00a0m/s" in legend and "the root's path" in legend
    assert "over a second: “now” and, beside a name, the file's mean." in legend
    # in a grid nobody goes anywhere
    assert not any(text in view.legend_of([take], layout="grid") for text in ("the root's path", "Speeds"))
    assert set(view.words_of([take], 10.0, "grid")) == {""} and "now" in view.words_of([take], 10.0)[0]
    assert "in the line of figures, the mean of all episodes" in view.legend_of([take], "32 episodes, no falls")


def test_in_a_grid_each_keeps_its_place():
    """Seven stand in rows of four (1.3 times 7 is 3.02 squared), 1.8 m apart, the next row 2.2 m behind, in the gaps.

    Who walks along +Y faces +X then; heights, and turns to the left, stay."""
    (root, rotations), _ = ways()
    rotations[1, 0] = torch.tensor(yawed(180))
    for index, (x, y) in ((0, (0.0, -3.15)), (3, (0.0, 2.25)), (4, (-2.2, -2.25))):
        moved, turned = view.in_grid(root, rotations, index, 7)
        assert torch.allclose(moved, torch.tensor([[x, y, 0.7], [x, y, 0.6]]), atol=1e-5)
        assert torch.allclose(turned, torch.tensor([[UP], [yawed(90)]]), atol=1e-6)


def test_many_clips_stand_in_a_grid_and_are_named_over_their_heads_only(write_clip, character, tmp_path):
    for n in range(view.FEW):
        write_clip(f"c{n}.npz")
    folder = str(tmp_path)
    assert view.layout_of("", [folder]) == "side" and view.layout_of("overlay", [folder] * 2) == "overlay"
    assert view.layout_of("", [folder, f"{folder}/c0.npz"]) == "grid"
    _, takes = view.load_takes(character, [folder], "grid")
    assert len({tuple(take.root[0, :2].tolist()) for take in takes}) == view.FEW
    assert "/c5" in view.legend_of(takes) and view.title_of(takes).endswith("/c5")
    assert "/c" not in view.legend_of(takes * 2, layout="grid") and view.title_of(takes * 2) == "12 motions"
    assert view.legend_of(takes * 2, layout="side").count("/c5, mean") == 2
    head = view.head_of(takes * 2, 30.0)
    assert 'document.title = "12 motions";' in head and "LEGEND" not in head and "<details" in head


def test_clock(write_clip, character):
    clip = lambda **arrays: ml.MotionLib(write_clip(**arrays), character)  # noqa: E731
    five, fast = clip(frames=5), clip(name="f.npz", frames=13, fps=120.0)
    loop, long_loop = clip(name="l.npz", frames=9, loop="wrap"), clip(name="g.npz", frames=121, loop="wrap")
    assert view.clock_of([five], 0.0, 60.0) == (10.0, 5)  # the clip's own frames
    assert view.clock_of([loop], 0.0, 60.0) == (10.0, 101)  # a loop alone goes on for 10 s
    assert view.clock_of([loop, long_loop], 0.0, 60.0) == (10.0, 121)
    assert view.clock_of([five, loop], 0.0, 60.0) == (10.0, 5)  # a loop ends with the clip that ends
    assert view.clock_of([five, fast], 0.0, 60.0) == (60.0, 25)
    assert view.clock_of([five], 2.5, 60.0) == (10.0, 26)


def test_only_feet_touch_the_ground(write_clip, character):
    """The soles of the standing character are 0.881416 m below its root: 0.421546 + 0.409870 + 0.05."""
    # 0.1, 9.9, 10.2 mm above the ground; 1 cm below
    heights = np.array([[0, 0, 0.8815], [0, 0, 0.8913], [0, 0, 0.8916], [0, 0, 0.8714]])
    feet = torch.tensor([name.endswith("foot") for name in character.body_names])
    for speed, near in ((1.0, feet & False), (0.5, feet)):  # [m/s]; who is slow touches it up to 3 cm
        heights[:, 0] = 0.1 * speed * np.arange(4)
        clip = write_clip(frames=4, root_position=heights.astype(np.float32))
        rate, (take,) = view.load_takes(character, [clip], "side")
        assert rate == 10.0
        assert take.touching.tolist() == torch.stack((feet, feet, near, feet)).tolist()


def test_who_hovers_a_little_does_not_fly(character, root):
    """The cartwheel's hands and feet are 1 to 2 cm over the ground; the walk's feet swing by 1.4 cm over it."""
    flies = {}
    for name in ("walk", "run", "cartwheel", "crawl"):
        _, (take,) = view.load_takes(character, [str(root / f"motions/{name}.npz")], "side", live=True)
        flies[name] = 1.0 - float(take.touching.any(1).float().mean())
        if name == "walk":
            foot = take.touching[:, character.body_names.index("left_foot")]
            swings = 0.5 - 0.5 * float(foot.float().mean())
            assert 0.2 < swings < 0.25 and int((foot[1:] & ~foot[:-1]).sum()) in (8, 9, 10)  # once in a stride
    assert flies["walk"] < 0.02 and flies["cartwheel"] < 0.05 and flies["crawl"] < 0.02 and 0.45 < flies["run"] < 0.6


def test_takes_are_the_clips_own_frames_and_folders_unfold(write_clip, character, root, tmp_path):
    clip = ml.load_clip(str(root / "motions/kick.npz"), character.body_names)
    _, (take,) = view.load_takes(character, [str(root / "motions/kick.npz")], "side")
    assert take.name == "clip motions/kick"
    assert np.allclose(take.root, clip.root_position, atol=1e-5)
    assert np.allclose(np.abs((take.rotations.numpy() * clip.rotations).sum(-1)), 1, atol=1e-5)
    write_clip("a.npz"), write_clip("b.npz")
    (tmp_path / "set.json").write_text('{"clips": [{"file": "b.npz"}]}')
    _, takes = view.load_takes(character, [str(tmp_path), str(tmp_path / "set.json")], "side")
    assert [take.name.split("/")[1] for take in takes] == ["a", "b", "b"]
    assert [take.root[0, 1].item() for take in takes] == [0.0, 1.5, 3.0]


def test_names_say_whose_motion_it_is(write_clip, character, tmp_path):
    """A roll-out is named after its policy, and by its own file where there are several of one; a clip by its file."""
    clips = [write_clip("000.npz", source="roll-out of runs/best.pt"), write_clip("001.npz", source="roll-out of b.pt")]
    clips += [write_clip("003.npz", source="roll-out of my__seed-1__20261126-08/best.pt, fell after 2.0 s")]
    clips += [write_clip("002.npz", source="roll-out of b.pt"), write_clip("c.npz", source="no roll-out of mine")]
    _, takes = view.load_takes(character, [*clips, write_clip("d.npz", source=None)], "side")
    others = [write_clip(f"{n}.npz", source=f"roll-out of my__seed-{n}__20261126-08/best.pt") for n in (1, 2)]
    names = ["policy runs/best.pt", "policy b.pt, 001", "policy my (best.pt), fell after 2.0 s", "policy b.pt, 002"]
    assert [take.name for take in takes] == [*names, f"clip {tmp_path.name}/c", f"clip {tmp_path.name}/d"]
    _, takes = view.load_takes(character, others, "side")
    assert [take.name for take in takes] == [f"policy my__seed-{n}__20261126-08/best.pt" for n in (1, 2)]


def test_live_takes_are_finer_and_as_long(character, root):
    rate, (take,) = view.load_takes(character, [str(root / "motions/kick.npz")], "side", live=True)
    assert rate == 120.0 and len(take.root) == 1 + 46 * 4


def test_overlay_of_a_loop_starts_in_phase(character, root, tmp_path):
    """A roll-out that begins in the middle of the loop, elsewhere, and facing another way lies on its clip."""
    clip = ml.load_clip(str(root / "motions/walk.npz"), character.body_names)
    turn = ml.quat_from_yaw(torch.tensor(1.0, dtype=torch.float64))
    spot = ml.quat_rotate(turn, torch.as_tensor(clip.root_position[15:])) + torch.tensor([3.0, -2.0, 0.0])
    rotations = clip.rotations[15:].copy()
    rotations[:, 0] = ml.quat_multiply(turn, torch.as_tensor(rotations[:, 0]))
    rollout = str(tmp_path / "rollout.npz")
    save_clip(rollout, ml.Clip(clip.fps, "clamp", spot.numpy(), rotations), character.body_names, "a test", "none")
    _, takes = view.load_takes(character, [rollout, str(root / "motions/walk.npz")], "overlay")
    assert len(takes[0].root) == len(takes[1].root) == 24
    assert (takes[0].root - takes[1].root).norm(dim=-1).max() < 0.01


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("layout", ["pinned", "overlay"])
def test_what_walks_faster_than_its_clip_stays_in_phase(character, root, tmp_path, walk, layout, live):
    """A roll-out at 1.2 times the clip's pace: pinned, no pose differs; overlaid, it has gone as far, too."""
    state = walk.state(torch.zeros(90, dtype=torch.long), 0.5 + 1.2 * torch.arange(90) / 30.0)
    rollout = str(tmp_path / "rollout.npz")
    clip = ml.Clip(30.0, "clamp", state.root_position.numpy(), state.rotations.numpy())
    save_clip(rollout, clip, character.body_names, "a test", "none")
    _, takes = view.load_takes(character, [rollout, str(root / "motions/walk.npz")], layout, live=live)
    assert len(takes[0].root) == (357 if live else 90)
    one, other = (ml.forward_kinematics(character, take.root, take.rotations)[0] for take in takes)
    apart = (one - other).norm(dim=-1)
    assert apart.mean() < (0.01 if layout == "pinned" else 0.03) and apart.max() < 0.1


def test_without_files_it_shows_what_is_committed(character, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["view.py"])
    args = view.parse()
    _, takes = view.load_takes(character, args.files, args.layout)
    names = [take.name for take in takes]
    assert names == ["policy pretrained/walk.pt", "clip motions/walk"] and args.layout == "beside"
    assert len(takes[0].root) == 301 and (takes[0].root - takes[1].root)[:, :2].norm(dim=-1).max() < 1.51
    monkeypatch.setattr(sys, "argv", ["view.py", "clip.npz"])
    assert view.parse().layout == "" and view.parse().files == ["clip.npz"]


# ---- The scene ----


def test_the_ground_goes_along_by_whole_patterns(character, root):
    """Its middle, where it does not fade, is never further than half a pattern from where the camera looks."""
    _, takes = view.load_takes(character, [str(root / "motions/walk.npz")], "side", seconds=9.0)
    world, centre, ground = (SimpleNamespace(position=np.array(view.GROUND)) for _ in range(3))
    scene = view.Scene(world, centre, [], [], [], [], ground)
    for frame in (0, 100, len(takes[0].root) - 1):
        view.show(scene, character, takes, frame)
        place = ground.position - view.GROUND
        assert np.abs(place - centre.position).max() < 0.51 and np.allclose(place, place.round(), atol=1e-6)
    assert np.linalg.norm(place) > 5.0


def test_body_meshes_are_the_files_geoms(character):
    meshes = dict(zip(character.body_names, view.body_meshes(character.path)))

    def bounds(name):
        return meshes[name][0].min(0).tolist(), meshes[name][0].max(0).tolist()

    low, high = bounds("right_foot")  # box
    assert low == pytest.approx([-0.0435, -0.045, -0.05])
    assert high == pytest.approx([0.1335, 0.045, 0.005])
    low, high = bounds("head")  # sphere
    assert low == pytest.approx([-0.095, -0.095, 0.08], abs=1e-3)
    assert high == pytest.approx([0.095, 0.095, 0.27], abs=1e-3)
    low, high = bounds("left_thigh")  # capsule
    assert (low[2], high[2]) == (pytest.approx(-0.415, abs=1e-3), pytest.approx(-0.005, abs=1e-3))
    assert all(faces.max() < len(vertices) and np.isfinite(vertices).all() for vertices, faces in meshes.values())


def test_colours():
    assert view.colour_of(0, "pelvis") == view.COLOURS["blue"]
    assert view.colour_of(1, "right_foot") == (133, 87, 35)  # 231 150 62, times .58
    assert view.colour_of(1, "left_foot") == (241, 197, 148)  # 24 105 193 darker than white, times .55
    assert view.colour_of(len(view.COLOURS), "head") == view.COLOURS["blue"]


def test_names_stand_over_heads_and_not_in_each_other(character):
    """The head of the upright character is .46 m over its root, .2362 + .2239; its name .29 m over that.

    On its head, the feet are .831416 m over the root, .421546 + .409870; the name .2 m over them."""
    upright = torch.tensor(UP).expand(1, len(character.body_names), 4)
    take = view.Take("a", torch.tensor([[1.0, 2.0, 0.9]]), upright, None)
    aside = take._replace(root=torch.tensor([[1.0, 3.5, 0.9]]))
    one, over, other = view.names_at(character, [take, take, aside], 0)
    assert one == pytest.approx([1.0, 2.0, 1.65], abs=1e-3)
    assert over - one == pytest.approx([0, 0, 0.12]) and other - one == pytest.approx([0, 1.5, 0])
    upside_down = upright.clone()
    upside_down[0, 0] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    (name,) = view.names_at(character, [take._replace(rotations=upside_down)], 0)
    assert name == pytest.approx([1.0, 2.0, 0.9 + 0.831416 + 0.2], abs=1e-3)
    prone = upright.clone()
    prone[0, 0] = torch.tensor([0.0, math.sin(math.pi / 4), 0.0, math.cos(math.pi / 4)])  # face down, along +X
    (name,) = view.names_at(character, [take._replace(rotations=prone)], 0)
    assert name[:2] == pytest.approx([1.46, 2.0], abs=1e-3) and name[2] > 0.9 + 0.2


@pytest.fixture
def eye(write_clip, character):
    """What key V does, of two characters that face +X, the other one 1.5 m to the left; no browser looks yet."""
    _, takes = view.load_takes(character, [write_clip("a.npz"), write_clip("b.npz")], "side")
    clients = {}
    server = SimpleNamespace(get_clients=lambda: clients)
    server.on_client_connect = lambda job: setattr(server, "comes", job)
    return view.Eye(server, SimpleNamespace(world=SimpleNamespace()), takes, "side")


def client():
    scripts = []
    interface = SimpleNamespace(queue_message=lambda message: scripts.append(message.source))
    return SimpleNamespace(camera=SimpleNamespace(), gui=SimpleNamespace(_websock_interface=interface), scripts=scripts)


def test_a_page_knows_how_broad_the_characters_are(eye):
    """.75 m and .25 m for an arm to each side; half the field's height, at the camera's distance."""
    browser = client()
    eye.look(browser)
    distance, share = json.loads(browser.scripts[0].replace("lookFrom(", "[").replace(")", "]"))
    assert distance == pytest.approx(np.linalg.norm(browser.camera.position - browser.camera.look_at))
    assert share * distance * math.tan(math.radians(0.5 * view.FIELD)) == pytest.approx(1.0)


def test_who_comes_starts_with_the_first_view(eye):
    one, other = client(), client()
    eye.look(one)
    begin = one.camera.position
    eye.server.get_clients()[0] = one
    for _ in range(3):
        eye.next()
    assert not np.allclose(one.camera.position, begin)
    eye.server.get_clients()[1] = other
    eye.server.comes(other)
    assert np.allclose(one.camera.position, begin) and np.allclose(other.camera.position, begin) and eye.stale


def test_v_goes_through_the_views(eye):
    """From the right and a little above, from the front, from above, as at first; all look at .85 m, between both.

    The other one stands 1.5 m to the left; from the side 1.5 m behind and .9 m to the left, so that none hides the
    other; from so far away it is less than a tenth smaller. Seen from above, names are .45 m up in the picture."""
    ways, spots = [], []
    for _ in range(5):
        browser = client()
        eye.look(browser)
        way = browser.camera.position - browser.camera.look_at
        ways.append((way / np.linalg.norm(way)).tolist())
        spots.append(browser.camera.look_at - eye.takes[0].root[0].numpy() * [1, 1, 0])
        shift = view.shifts_of(eye.takes, eye.view(), math.pi / 2)[1]  # it goes along +Y now
        other = {1: [-0.9, -1.5], 2: [-1.5, 0.0]}.get(eye.now, [0.0, 1.5])
        assert np.allclose(shift[:2], np.array(other) - [0.0, 1.5], atol=1e-6)
        eye.next()
    assert ways[1] == pytest.approx([0.0, -0.99, 0.141], abs=1e-3)
    assert ways[2] == [1.0, 0.0, 0.0] and ways[0] == ways[4]
    assert ways[3] == pytest.approx([0.0, 0.0, 1.0], abs=0.03)
    assert all(0.9 / one.distance < 0.1 for one in eye.views)
    eye.choose(3)
    assert eye.aside() == pytest.approx([0.0, 0.45, 0.0])
    middle = [[0.0, 0.75, 0.85], [-0.75, 0.45, 0.85], [0.0, 0.75, 0.85], [0.0, 0.75, 0.85], [0.0, 0.75, 0.85]]
    assert np.allclose(spots, middle, atol=1e-6)


def test_v_brings_a_camera_back_that_was_moved(eye, monkeypatch):
    """By hand, elsewhere or around; nearer is no other view, and just after a change a browser tells where it was."""
    one, clock = client(), [0.0]
    monkeypatch.setattr(view.time, "perf_counter", lambda: clock[0])
    eye.server.get_clients()[0] = one
    around = lambda place, middle: (middle + view.axes_of(0.1) @ (place - middle), middle)  # noqa: E731
    for seconds, move, now in (
        (9.0, around, 1),  # a drag
        (9.0, lambda place, middle: (place + [0.5, 0.0, 0.0], middle + [0.5, 0.0, 0.0]), 1),  # key D
        (0.5, around, 2),
        (9.0, lambda place, middle: (2.0 * place - middle, middle), 2),  # the wheel
        (9.0, lambda place, middle: (place, middle), 2),
    ):
        eye.choose(1)
        clock[0] += seconds
        one.camera.position, one.camera.look_at = move(one.camera.position, one.camera.look_at)
        eye.next()
        assert eye.now == now
        assert np.allclose((one.camera.position, one.camera.look_at), view.camera_of(eye.takes, eye.view()))


def test_the_world_turns_under_who_is_seen_from_the_side(eye):
    """Wherever it goes, it is shown where it began, and goes along +X: so the camera is at right angles to its way."""
    root, course = np.array([4.0, -2.0, 0.9]), 2.0
    way = np.array([math.cos(course), math.sin(course), 0.0])
    for turns in (False, True):
        eye.carry(root, course)
        place, turn = eye.scene.world.position, ml.quat_from_yaw(torch.tensor(eye.turn))
        shown = [ml.quat_rotate(turn, torch.tensor(x).float()).numpy() + place for x in (root, root + way)]
        assert np.allclose(shown[0], [*eye.takes[0].root[0, :2].tolist(), 0.9], atol=1e-6)
        assert np.allclose(shown[1] - shown[0], [1.0, 0.0, 0.0] if turns else way, atol=1e-6)
        assert np.allclose(eye.in_world(shown[1] - shown[0]), way, atol=1e-6)
        eye.next()


@pytest.mark.parametrize("name", ["walk", "run", "cartwheel", "spinkick"])
def test_from_side_and_front_none_hides_another(character, root, name):
    """At no time do the meshes of two meet in the picture: there is free ground between them, seen from afar."""
    clip = str(root / f"motions/{name}.npz")
    files = view.SHOWN if name == "walk" else [clip, clip]
    _, takes = view.load_takes(character, [*files, clip], "side" if name == "walk" else "beside", 3.0, live=True)
    meshes = [torch.as_tensor(vertices) for vertices, _ in view.body_meshes(character.path)]
    for one, axis in zip(view.views_of(takes, "beside")[1:3], (0, 1)):
        ends = np.zeros((3, 2, 90))  # of each, its least and greatest place along the line, at 30 frames a second
        for frame in range(90):
            course = float(takes[0].course[4 * frame])
            for i, (take, shift) in enumerate(zip(takes, view.shifts_of(takes, one, course))):
                position, rotation = ml.forward_kinematics(character, take.root[4 * frame], take.rotations[4 * frame])
                points = torch.cat([p + ml.quat_rotate(q, mesh) for p, q, mesh in zip(position, rotation, meshes)])
                line = (points.numpy() + shift) @ view.axes_of(course)[:, axis]
                ends[i, :, frame] = line.min(), line.max()
        if axis == 0:
            ends = -ends[:, ::-1]  # behind each other
        assert (ends[1:, 0] - ends[:-1, 1]).min() > 0.1


def test_over_each_other_nobody_is_moved(write_clip, character):
    clips = [write_clip("a.npz"), write_clip("b.npz"), write_clip("c.npz")]
    for layout in ("overlay", "pinned"):
        _, takes = view.load_takes(character, clips, layout)
        for one in view.views_of(takes, layout):
            assert np.abs(view.shifts_of(takes, one, 1.0)).max() < 1e-6


def test_a_grid_is_the_same_in_the_picture_from_the_side(write_clip, character):
    """Its rows are turned, those in them not: each is seen from its side, where it was in the picture at first."""
    clips = [write_clip(f"{name}.npz") for name in "abcde"]
    _, takes = view.load_takes(character, clips, "grid")
    begin = torch.stack([take.root[0] for take in takes]).numpy() * [1, 1, 0]
    pictures = []
    for one in view.views_of(takes, "grid"):
        place, middle = view.camera_of(takes, one)
        way = (middle - place) / np.linalg.norm(middle - place)
        right = np.cross(way, [0.0, 0.0, 1.0]) / np.linalg.norm(way[:2])
        seen = begin + view.shifts_of(takes, one, 1.0) - place
        pictures.append(np.stack([seen @ right, seen @ np.cross(right, way), seen @ way], 1))
        assert not one.turns
    assert np.allclose(pictures[:3], pictures[0], atol=1e-5)
    gazes = [one.gaze for one in view.views_of(takes, "grid")]
    assert gazes[1][0] == 0.0 and gazes[1][1] < -0.9 and gazes[0] == gazes[2] and gazes[3][2] == 1.0


def test_the_pages_times_have_two_decimals(write_clip, character):
    """Of a clip that ends after .4333 s and a second of rest."""
    _, takes = view.load_takes(character, [write_clip("a.npz", frames=14, fps=30.0, loop="clamp")], "side")
    server = mock.MagicMock()
    controls = view.Controls(server, mock.MagicMock(), takes, 30.0)
    assert controls.length == pytest.approx(43.0 / 30.0)
    assert server.gui.add_slider.call_args_list[0] == mock.call("Time [s]", 0.0, 1.44, 0.01, 0.0)
    controls.step(view.STEP)
    assert controls.clock.value == 0.03 and controls.button.label == "Play (space)"


def test_numbers_stay_with_their_units():
    assert view.unbroken("fell after 2.0 s, 0.9 m/s, 3 % so") == "fell after 2.0\u00a0s, 0.9\u00a0m/s, 3\u00a0% so"


# ---- The file ----


@pytest.fixture(scope="module")
def page(root, tmp_path_factory):
    """The HTML file of a clip that ends, and its path."""
    path = tmp_path_factory.mktemp("page") / "kick.html"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(sys, "argv", ["view.py", str(root / "motions/kick.npz"), "--html", str(path)])
        view.main()
    # and nothing from viser
    assert out.getvalue() == f"{path}: 1 character, 47 frames, {path.stat().st_size / 1e6:.1f} MB\n"
    return path, path.read_text(encoding="utf-8")


def recording_of(text):
    """Messages (time, message) and duration of the recording in a page."""
    data = base64.b64decode(re.search(r'__VISER_EMBED_DATA__="([^"]+)"', text).group(1))
    inner = zstandard.ZstdDecompressor().decompressobj().decompress(data[8:])
    content = msgspec.msgpack.decode(inner[8 : 8 + int.from_bytes(inner[:8], "little")])
    return content["messages"], content["durationSeconds"]


def frames_of(messages, fps, count):
    """Play a recording: node name -> pose (count, 7), position and wxyz in its parent, at the frames.

    And the same of what is seen: the last message that showed (True) or hid a node."""
    pose, seen, times = {}, {}, [message[0] for message in messages]
    poses, visible, done = [], [], 0
    for frame in range(count):
        while done < len(messages) and times[done] <= frame / fps + 1e-6:
            message = messages[done][1]
            name = message.get("name")
            kind = message["type"]
            done += 1
            node = pose.setdefault(name, np.array([0.0, 0, 0, 1, 0, 0, 0]))
            if kind == "SetPositionMessage":
                node[:3] = message["position"]
            elif kind == "SetOrientationMessage":
                node[3:] = message["wxyz"]
            elif kind == "SetSceneNodeVisibilityMessage":
                seen[name] = message["visible"]
        poses.append({name: node.copy() for name, node in pose.items()})
        visible.append(dict(seen))
    return poses, visible


def test_the_file_holds_the_clip(page, character, root):
    """World positions, composed from the recording's messages as viser's client does, are those of the clip to 1 mm."""
    clip = ml.load_clip(str(root / "motions/kick.npz"), character.body_names)
    messages, duration = recording_of(page[1])
    assert duration == pytest.approx(47 / 30.0 + view.REST, abs=1e-3)  # the end stays a while
    poses, visible = frames_of(messages, clip.fps, 47)
    t = lambda x: torch.as_tensor(np.array(x))  # noqa: E731
    expected, _ = ml.forward_kinematics(character, t(clip.root_position), t(clip.rotations))
    touching = view.touching_of(character, t(clip.root_position), t(clip.rotations), clip.fps)
    names = {}
    for j, (body, parent) in enumerate(zip(character.body_names, character.parents)):
        names[j] = f"{names[parent] if j else '/world/0 clip motions kick'}/{body}"
    for frame in (0, 20, 46):
        position, rotation = {}, {}
        for j, parent in enumerate(character.parents):
            p, q = t(poses[frame][names[j]][:3]), t(poses[frame][names[j]][[4, 5, 6, 3]])
            position[j] = p if j == 0 else position[parent] + ml.quat_rotate(rotation[parent], p)
            rotation[j] = q if j == 0 else ml.quat_multiply(rotation[parent], q)
            assert (position[j] - expected[frame, j]).norm() < 1e-3, (frame, character.body_names[j])
        red = [visible[frame].get(f"{names[j]}/red", False) for j in range(len(names))]
        assert red == touching[frame].tolist()
    assert touching.any() and not touching.all()


class Links(html.parser.HTMLParser):
    """Collects what a document loads from elsewhere, and the ids that it has."""

    def __init__(self):
        super().__init__()
        self.loads = []

    def handle_starttag(self, tag, attributes):
        self.loads += [
            value
            for key, value in attributes
            if key in ("src", "href", "data") and tag != "a" and not value.startswith("data:")
        ]


def test_the_file_loads_nothing_and_is_small(page):
    links = Links()
    links.feed(page[1])
    assert links.loads == []
    assert page[1].startswith("<!doctype html>") and page[1].rstrip().endswith("</html>")
    assert 'id="follow"' in page[1] and "motions/kick" in page[1]
    assert len(page[1]) < 1.2e6  # 0.82 MB of it are viser's client


@pytest.mark.parametrize(
    "layout, count, paths, names",
    [
        ("overlay", 2, 2, ["blue: clip CLIPS/c0", "orange: clip CLIPS/c1"]),  # one over the other
        ("pinned", 2, 1, ["blue: clip CLIPS/c0", "orange: clip CLIPS/c1"]),  # the other's path is the first one's
        ("side", 2, 2, ["clip CLIPS/c0", "clip CLIPS/c1"]),
        ("side", 3, 3, ["c0", "c1", "c2"]),  # of so many whole names would lie on each other
        ("grid", 3, 0, ["c0", "c1", "c2"]),
    ],
)
def test_what_stands_over_the_heads(character, write_clip, tmp_path, layout, count, paths, names):
    _, takes = view.load_takes(character, [write_clip(f"c{n}.npz") for n in range(count)], layout)
    scene, texts = SimpleNamespace(), []
    scene.add_frame = scene.add_grid = scene.add_mesh_simple = lambda *a, **b: None
    scene.add_label = lambda name, text, **b: texts.append(text)
    scene.add_line_segments = lambda name, *a, **b: name
    server = SimpleNamespace(scene=scene, initial_camera=SimpleNamespace())
    built = view.build(server, character, view.body_meshes(character.path), takes, layout)
    assert texts == [name.replace("CLIPS", tmp_path.name) for name in names] and len(built.paths) == paths


def test_names_are_over_the_heads(page):
    labels = {message["name"]: message for _, message in recording_of(page[1])[0] if "text" in message.get("props", {})}
    ((name, message),) = labels.items()
    assert name == "/name 0/text"  # in no node that moves, so that it does not lag behind one
    assert message["props"]["text"] == "clip motions/kick"


def test_names_cannot_break_the_page(write_clip, character):
    (_, takes) = view.load_takes(character, [write_clip("`${alert(1)}<script>.npz")], "side")
    page = view.page_of(character, view.body_meshes(character.path), takes, 10.0, "side")
    legend = json.dumps(view.legend_of(takes)).replace("<", "\\u003c")  # a text of the page's script
    assert "`${alert(1)}&lt;script&gt;" in legend and f"+ {legend} +" in page and "(1)}<script>" not in page


# ---- The page ----


@contextlib.contextmanager
def served(character, files, layout="side"):
    """Run the page of some files in a thread -> its address, the server and the scene."""
    rate, takes = view.load_takes(character, files, layout, live=True)
    server, stop = view.start_server("127.0.0.1", 0), threading.Event()
    scene = view.build(server, character, view.body_meshes(character.path), takes, layout)
    controls = view.Controls(server, scene, takes, rate, layout=layout)
    thread = threading.Thread(target=view.serve, args=(server, character, controls, stop))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.get_port()}", server, scene
    finally:
        stop.set()
        thread.join()
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()


def test_the_server_answers_and_stops(character, root):
    with served(character, [str(root / "motions/walk.npz")]) as (address, server, _):
        with urllib.request.urlopen(address, timeout=20) as answer:
            text = answer.read().decode()
        assert answer.status == 200 and text.startswith("<!doctype html>") and text.count(view.LOADING) == 1
        port = server.get_port()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=2)


@pytest.mark.parametrize(
    "arguments, fault",
    [
        (["nothing.npz"], "nothing.npz: no such motion file"),
        (["humanoid.xml"], "humanoid.xml: no motion clip, or a damaged one; python motions/convert.py "),
        (["walk.npz", "nothing"], "nothing: no such motion file"),
        (["walk.npz", "a.pt"], "a.pt: a policy, not a clip; python deploy/steer.py a.pt"),
        (["run"], "run: a policy, not a clip; python deploy/steer.py run"),
        (["walk.npz", "--html", "no/such/folder/out.html"], "--html no/such/folder/out.html: there is no folder "),
        (["walk.npz", "--html", "."], "--html .: it is a folder"),
        (["walk.npz", "--seconds", "nan"], "--seconds nan: expected 0 to 600"),
        (["walk.npz", "--layout", "grid", "--commands", "a.csv"], "--commands a.csv: in a grid nobody goes anywhere"),
        (["walk.npz", "--html", "a.html", "--commands", "humanoid.xml"], "humanoid.xml: not lines of "),
        (["walk.npz", "--port", "70000", "--no-browser"], "--host 127.0.0.1 --port 70000: "),
        (
            ["walk.npz", "--character-file", "walk.npz"],
            "walk.npz: not a character file written like motions/humanoid.xml",
        ),
    ],
)
def test_bad_input_is_one_line(run_script, root, tmp_path, arguments, fault):
    for name in ("humanoid.xml", "walk.npz"):
        shutil.copy(root / "motions" / name, tmp_path / name)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/latest.pt").touch()
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, err = run_script("motions/view.py", *arguments)
    assert code == 2 and out == "" and err.startswith(f"error: {fault}") and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_port_in_use_is_one_line(run_script, root):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = run_script("motions/view.py", root / "motions/walk.npz", "--port", port, "--no-browser")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(f"error: --host 127.0.0.1 --port {port}: Address already in use; try another --port")


def test_one_line_says_what_is_shown_and_where(capsys, character, monkeypatch):
    _, takes = view.load_takes(character, view.SHOWN, "beside", 0.1)
    opened = []
    monkeypatch.setattr(view.webbrowser, "open", opened.append)
    server, args = SimpleNamespace(get_port=lambda: 8080), SimpleNamespace(host="127.0.0.1", no_browser=False)
    view.visit(server, args, view.title_of(takes, " beside "), lambda: None)
    what = "policy pretrained/walk.pt beside clip motions/walk"
    assert capsys.readouterr().out == f"{what}: http://127.0.0.1:8080 (Ctrl-C ends it)\n"
    assert opened == ["http://127.0.0.1:8080"]


def test_without_a_port_the_next_free_one_is_taken(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [taken.getsockname()[1], other.getsockname()[1]]
        other.close()
        monkeypatch.setattr(view, "PORTS", ports)
        server = view.start_server("127.0.0.1", None)
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()
        assert server.get_port() == ports[1]


@pytest.mark.parametrize("package", ["viser", "trimesh", "mujoco"])
@pytest.mark.parametrize("option", [["--html", "out.html"], ["--no-browser"]])
def test_a_missing_package_is_one_line(run_script, root, tmp_path, monkeypatch, package, option):
    monkeypatch.setitem(sys.modules, package, None)
    code, out, err = run_script("motions/view.py", root / "motions/walk.npz", *option)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert package in err and "pip install -r requirements.txt" in err


# ---- In a browser ----


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, the machine's own, with an empty profile."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -r requirements-test.txt"
    )
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield running
        running.close()


@pytest.fixture
def tab(browser):
    """A small tab, and the faults and requests that it notes; a software renderer draws a few frames a second."""
    tab = browser.new_page(viewport={"width": 500, "height": 400})
    tab.set_default_timeout(60000)
    tab.faults, tab.requests = [], []
    tab.on("pageerror", lambda error: tab.faults.append(str(error)))
    tab.on("request", lambda request: tab.requests.append(request.url))
    yield tab
    tab.close()
    assert tab.faults == []


def place_of(tab, node):
    """World position of a scene node in the browser, in three.js' axes (Y up) [m]."""
    code = """name => {
        const found = __viserMutable.nodeRefFromName[name];
        found.updateWorldMatrix(true, false);
        return found.matrixWorld.elements.slice(12, 15)}"""
    return np.array(tab.evaluate(code, node))


def wait_for(tab, node):
    tab.wait_for_function("name => window.__viserMutable && __viserMutable.nodeRefFromName[name]", arg=node)


def moves(tab, node, step=0.05):
    """Wait until the node has moved by a step [m]."""
    code = """([name, from, step]) => {
        const m = __viserMutable.nodeRefFromName[name].matrixWorld.elements.slice(12, 15);
        return Math.hypot(m[0] - from[0], m[1] - from[1], m[2] - from[2]) > step}"""
    tab.wait_for_function(code, arg=[node, place_of(tab, node).tolist(), step])


def stays(tab, node, milliseconds=700):
    """Whether the node is where it was after a while; what is under way is let through first."""
    tab.wait_for_timeout(500)
    before = place_of(tab, node)
    tab.wait_for_timeout(milliseconds)
    return np.allclose(place_of(tab, node), before, atol=1e-6)


def share_of_blue(tab):
    """Share of the tab's pixels that have the first character's colour, whatever the shade.

    The controls' blue is a stronger one."""
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("RGB")).astype(int)
    red, _, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return float(((blue - red > 40) & (blue - red < 150)).mean())


WHERE = """count => [...Array(count).keys()].map(i => {
    const m = __viserMutable, names = Object.keys(m.nodeRefFromName);
    const found = m.nodeRefFromName[names.find(name => new RegExp(`^/world/${i} [^/]+/pelvis$`).test(name))];
    return (1 + found.getWorldPosition(found.position.clone()).project(m.camera).x) / 2 * innerWidth})"""


def until(tab, condition):
    """Wait, half a minute at most, until the condition holds -> whether it does."""
    for _ in range(120):
        if condition():
            return True
        tab.wait_for_timeout(250)
    return False


def names_off(tab):
    """How far each name of two stands from over its figure's head, as it is drawn (2,) [m]."""
    code = """() => {
        const m = __viserMutable, spots = [], names = Object.keys(m.nodeRefFromName);
        m.scene.traverse(({material}) => {
            const data = material?.uniforms?.uLabelData?.value.image.data;
            if (data && !spots.length) spots.push([data[0], data[2]], [data[4], data[6]]);
        });
        return spots.map(([x, z], i) => {
            const head = m.nodeRefFromName[names.find(name => new RegExp(`^/world/${i} [^/]+/.*head$`).test(name))];
            const place = head.getWorldPosition(head.position.clone());
            return Math.hypot(place.x - x, place.z - z)})}"""
    return np.array(tab.evaluate(code))


def scrub(tab, seconds):
    """Type a time into the player of the file, which also pauses it."""
    number = tab.locator("input[type=text]").first
    number.fill(seconds)
    number.press("Enter")


def test_the_file_plays_in_a_browser(tab, root, character, tmp_path, run_script):
    out, told = tmp_path / "walk.html", root / "motions/figure_eight.csv"
    options = ["--html", out, "--commands", told, "--text", "no falls, 2 m"]
    assert run_script("motions/view.py", root / "motions/walk.npz", *options).code == 0
    tab.context.set_offline(True)
    tab.goto(out.as_uri())
    pelvis = "/world/0 clip motions walk/pelvis"
    wait_for(tab, f"{pelvis}/right_thigh/right_shin/right_foot")
    assert until(tab, lambda: share_of_blue(tab) > 0.004)  # the character itself
    moves(tab, pelvis)  # it plays by itself
    tab.keyboard.press("Space")
    assert stays(tab, pelvis)
    said = tab.locator("#said").inner_text().replace("\u00a0", " ")
    assert re.fullmatch(r"no falls, 2 m\nnow (\.9|1\.0)\d m/s, told 1\.20 m/s", said.strip())
    wait_for(tab, "/world/told")

    # scrubbing, and the camera that goes where the character goes, until that is switched off
    _, (take,) = view.load_takes(character, [str(root / "motions/walk.npz")], "side")
    target = "() => {const m = __viserMutable; return m.cameraControl.getTarget(m.camera.position.clone()).toArray()}"

    def goes(frame):  # from the start, on the ground [m]
        return (take.root[frame] - take.root[0])[:2].norm().item()

    def aim():
        return np.array(tab.evaluate(target))[[0, 2]]

    def spot():
        return place_of(tab, pelvis)[[0, 2]]  # three.js' Y is up

    scrub(tab, "0")
    assert until(tab, lambda: abs(place_of(tab, pelvis)[1] - take.root[0, 2].item()) < 1e-3)
    start = spot()
    assert until(tab, lambda: np.allclose(aim(), start, atol=1e-3))
    scrub(tab, "5")  # frame 150 of 30 a second
    assert goes(150) > 3.0 and until(tab, lambda: abs(np.linalg.norm(spot() - start) - goes(150)) < 1e-3)
    assert until(tab, lambda: np.allclose(aim(), spot(), atol=1e-3))
    there = aim()
    tab.locator("#motion summary").click()  # on a narrow screen it is folded
    tab.locator("#follow").uncheck()
    scrub(tab, "1")
    assert until(tab, lambda: abs(np.linalg.norm(spot() - start) - goes(30)) < 1e-3)
    tab.wait_for_timeout(500)
    assert np.allclose(aim(), there, atol=1e-3)
    assert [url for url in tab.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_the_committed_page_plays_and_has_keys(tab, root, character):
    """docs/walk.html: small, loads nothing, steps by frames, looks from the right."""
    page = root / "docs/walk.html"
    assert page.stat().st_size < 1.5e6
    tab.context.set_offline(True)
    tab.set_viewport_size({"width": 390, "height": 500})  # a telephone's
    tab.add_init_script("""addEventListener("there", () => {
        const slider = document.querySelector("[role=slider]"), {environment, visible} = __viserMutable.scene;
        window.began = [Number(slider.getAttribute("aria-valuenow")), Boolean(environment && visible)]})""")
    tab.goto(page.as_uri())
    pelvis = "/world/0 policy pretrained walk.pt/pelvis"
    wait_for(tab, f"{pelvis}/torso/head")
    wait_for(tab, "/world/1 clip motions walk/pelvis/torso/head")
    # it plays once the cover is gone, from the start on, and the first picture then has light and names
    assert until(tab, lambda: tab.evaluate("window.began")) and tab.evaluate("window.began[1]")
    assert tab.evaluate("window.began[0]") < 0.1 and tab.locator("#loading").count() == 0
    moves(tab, pelvis)
    code = """names => names.map(name => {
        const m = __viserMutable, found = m.nodeRefFromName[name];
        return found.getWorldPosition(found.position.clone()).project(m.camera).x})"""
    across = tab.evaluate(code, [pelvis, "/world/1 clip motions walk/pelvis"])  # from -1 to 1
    assert -0.7 < across[0] < -0.2 and 0.2 < across[1] < 0.7
    _, takes = view.load_takes(character, view.SHOWN, "beside")

    def shows(frame):
        """Whether it is where it is at this frame, relative to the other one, which the camera does not move."""
        apart = (takes[0].root[frame] - takes[1].root[frame]).norm().item()
        height = abs(place_of(tab, pelvis)[1] - takes[0].root[frame, 2].item())
        other = place_of(tab, "/world/1 clip motions walk/pelvis")
        return height < 2e-4 and abs(np.linalg.norm(place_of(tab, pelvis) - other) - apart) < 1e-3

    tab.keyboard.press("Space")
    assert stays(tab, pelvis)
    scrub(tab, "2.01")  # frame 60 of 30 a second
    assert until(tab, lambda: shows(60))
    tab.locator("input[type=text]").first.blur()
    for key, frame in (("n", 61), ("n", 62), ("b", 61)):
        tab.keyboard.press(key)
        assert until(tab, lambda frame=frame: shows(frame)), frame
        clock = tab.locator("input[type=text]").first
        assert until(tab, lambda frame=frame, clock=clock: clock.input_value() == f"{frame / 30:.2f}"), frame
    code = """() => {
        const m = __viserMutable, target = m.cameraControl.getTarget(m.camera.position.clone());
        return m.camera.position.clone().sub(target).normalize().toArray()}"""
    turned = "name => __viserMutable.nodeRefFromName[name].matrixWorld.elements"
    clip = "/world/1 clip motions walk/pelvis"

    def seen_from(frame, left=0.0, ahead=0.0):
        """Whether the camera stands there, in the axes of the course at this frame; three.js' Y is up."""
        x, y, z = tab.evaluate(code)
        axes = np.array(tab.evaluate(turned, "/world")).reshape(4, 4)[:2, [0, 2]]  # the world's X and Y
        course = takes[0].course[frame]
        way = np.array([math.cos(course), math.sin(course)]) @ axes
        side = np.array([-math.sin(course), math.cos(course)]) @ axes
        up = 0.141 if left else 0.0
        seen = [np.dot([x, z], way), np.dot([x, z], side), y]
        return np.allclose(seen, [ahead, left * math.sqrt(1.0 - up * up), up], atol=2e-3)

    begin = tab.evaluate(code)
    tab.keyboard.press("v")
    assert until(tab, lambda: seen_from(61, left=-1.0))  # at right angles to its course
    assert until(tab, lambda: np.allclose(place_of(tab, pelvis)[1], takes[0].root[61, 2], atol=1e-3))
    apart = place_of(tab, clip) - place_of(tab, pelvis)
    assert np.dot(apart, tab.evaluate(code)) == pytest.approx(-0.9, abs=0.1)  # a little further away ...
    assert np.hypot(*apart[[0, 2]]) == pytest.approx(1.5 * math.hypot(1.0, 0.6), abs=0.1)  # ... and behind
    assert until(tab, lambda: names_off(tab).max() < 0.01)
    scrub(tab, "9.01")  # 20 degrees further to the left: the camera has gone around
    assert abs(takes[0].course[270] - takes[0].course[61]) > 0.3 and until(tab, lambda: seen_from(270, left=-1.0))
    tab.locator("input[type=text]").first.blur()
    tab.keyboard.press("v")
    assert until(tab, lambda: seen_from(270, ahead=1.0)) and until(tab, lambda: names_off(tab).max() < 0.01)
    # one light's shadows, of all that is seen, however far away the camera is
    tab.evaluate("() => __viserMutable.cameraControl.dollyTo(50, false)")
    code_of_shadows = """() => {
        const m = __viserMutable, lights = m.scene.children.filter(one => one.isDirectionalLight && one.castShadow);
        const target = m.cameraControl.getTarget(m.camera.position.clone());
        return lights.map(({shadow: {camera}}) => [camera.right, ...target.clone().project(camera).toArray()])}"""
    middle = lambda: np.array(tab.evaluate(code_of_shadows))  # noqa: E731
    assert until(tab, lambda: middle().shape == (1, 4) and np.allclose(middle()[0, :3], [15.0, 0.0, 0.0], atol=1e-3))
    # a drag does not take it under the ground, from wherever it stands
    tab.mouse.move(200, 200)
    tab.mouse.down()
    tab.mouse.move(200, 60, steps=7)
    tab.mouse.up()
    assert until(tab, lambda: tab.evaluate(code)[1] < -0.01)  # it looks upwards
    tab.wait_for_timeout(500)
    assert tab.evaluate("__viserMutable.camera.position.y") > 0.05
    tab.keyboard.press("v")
    assert until(tab, lambda: tab.evaluate(code)[1] > 0.99)
    tab.keyboard.press("v")
    assert until(tab, lambda: np.allclose(tab.evaluate(code), begin, atol=1e-3))
    tab.keyboard.press("Space")
    moves(tab, pelvis)
    # a time typed while it plays: the field has lost its mark, as by the next picture; keys work after Enter
    number = tab.locator("input[type=text]").first
    number.focus()
    number.evaluate("field => field.setSelectionRange(9, 9)")
    tab.keyboard.insert_text("5")
    tab.keyboard.press("Enter")
    assert until(tab, lambda: shows(150))
    tab.keyboard.press("Space")
    moves(tab, pelvis)
    assert [url for url in tab.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_the_legend_is_open_where_it_covers_no_name(tab, root, character, tmp_path):
    for width, shown in ((1100, True), (600, False)):
        tab.set_viewport_size({"width": width, "height": 640})
        tab.goto((root / "docs/walk.html").as_uri())
        tab.locator("#motion").wait_for()
        assert tab.locator("#follow").is_visible() == shown
    # of three, too; they stand in the middle of what it leaves free
    files = [str(root / f"motions/{name}.npz") for name in ("walk", "run", "crawl")]
    rate, takes = view.load_takes(character, files, "side", seconds=1.0)
    page = view.page_of(character, view.body_meshes(character.path), takes, rate, "side")
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    tab.set_viewport_size({"width": 1280, "height": 800})
    tab.goto((tmp_path / "a.html").as_uri())
    for n, name in enumerate(("walk", "run", "crawl")):
        wait_for(tab, f"/world/{n} clip motions {name}/pelvis")
    assert tab.locator("#follow").is_visible()
    spots = lambda: tab.evaluate(WHERE, 3)  # noqa: E731
    free = 310 + view.NAME_WIDTH
    assert until(tab, lambda: min(spots()) > free and abs(min(spots()) - 310 - (1280 - max(spots()))) < 100)


def test_the_page_plays_in_a_browser(tab, character, root):
    with served(character, [str(root / "motions/walk.npz"), str(root / "motions/run.npz")]) as (address, _, scene):
        tab.goto(address)
        foot = "/world/0 clip motions walk/pelvis/right_thigh/right_shin/right_foot"
        other = "/world/1 clip motions run/pelvis"
        wait_for(tab, foot)
        wait_for(tab, other)
        assert until(tab, lambda: share_of_blue(tab) > 0.01)
        assert tab.title() == "clip motions/walk and clip motions/run"
        pause = tab.get_by_role("button", name="Pause")
        assert until(tab, lambda: not pause.is_visible())  # on a narrow screen the panel is folded
        tab.get_by_text(view.HEAD).click()
        pause.wait_for()
        # open, it leaves the upper half free, and scrolls to its last line
        sheet = tab.locator(".mantine-Paper-root[style*='bottom: 0px']")
        assert until(tab, lambda: sheet.bounding_box()["y"] > 0.5 * 400)
        last = tab.get_by_text("first view", exact=False).last
        last.scroll_into_view_if_needed()
        assert until(tab, lambda: last.bounding_box()["y"] + last.bounding_box()["height"] <= 400)
        pause.scroll_into_view_if_needed()
        moves(tab, foot)
        # the world moves under the character, which so keeps its place
        centre, before = "/world/centre", place_of(tab, "/world/centre")
        moves(tab, foot)
        assert np.allclose(place_of(tab, centre), before, atol=1e-5)
        follow, contacts, path = tab.locator("input[type=checkbox]").all()[-3:]
        follow.uncheck()
        moves(tab, centre)
        path.uncheck()
        assert until(tab, lambda: not any(line.visible for line in scene.paths))
        red = lambda: any(skin.visible for skins in scene.skins for skin in skins.values())  # noqa: E731
        assert until(tab, red)
        contacts.uncheck()
        assert until(tab, lambda: not red())
        tab.get_by_role("button", name="Pause").click()
        tab.get_by_role("button", name="Play").wait_for()
        assert stays(tab, foot)
        # a number counts when it is entered, within its range; what moves does not write over it
        boxes = tab.locator("input[inputmode]:visible")
        for number, text, kept in ((0, "99", "10"), (1, "5", "2"), (0, "abc", "10"), (1, "0,5", "0.5")):
            boxes.nth(number).click()
            tab.keyboard.type(text)
            tab.keyboard.press("Enter")
            assert until(tab, lambda: tab.locator("[data-typed]").count() == 0)
            assert until(tab, lambda number=number, kept=kept: boxes.nth(number).input_value() == kept), text
        tab.get_by_role("button", name="Play").click()
        boxes.first.click()
        tab.keyboard.type("3.")
        moves(tab, foot)
        assert tab.locator("[data-typed]").input_value() == "3." and float(boxes.first.input_value()) < 10.0
        tab.keyboard.type("98")
        tab.keyboard.press("Enter")
        assert until(tab, lambda: 3.98 < float(boxes.first.input_value()) < 5.0)
        tab.mouse.click(5, 390)  # from the button to the picture
        tab.keyboard.press("Space")
        tab.get_by_role("button", name="Play").wait_for()
        assert stays(tab, foot)
        before = place_of(tab, foot)
        tab.keyboard.press("n")
        assert until(tab, lambda: not np.allclose(place_of(tab, foot), before, atol=1e-4))
        tab.keyboard.press("b")
        assert until(tab, lambda: np.allclose(place_of(tab, foot), before, atol=1e-4))
        tab.keyboard.press("v")
        assert until(tab, lambda: scene.folders[1].position[:2].any())
        # a camera that was moved comes back, and then the next view
        code = """() => {
            const m = __viserMutable, target = m.cameraControl.getTarget(m.camera.position.clone());
            return [...target.toArray(), ...m.camera.position.clone().sub(target).normalize().toArray()]}"""
        seen = lambda: np.array(tab.evaluate(code))  # noqa: E731
        tab.wait_for_timeout(1000 * view.LATE)
        there = seen()
        tab.mouse.move(100, 60)
        tab.mouse.down()
        tab.mouse.move(200, 80, steps=5)
        tab.mouse.up()
        assert until(tab, lambda: np.abs(seen() - there).max() > 0.1)
        tab.wait_for_timeout(1000)
        tab.keyboard.press("v")
        assert until(tab, lambda: np.abs(seen() - there).max() < 0.01) and scene.folders[1].position[:2].any()
        tab.keyboard.press("v")
        assert until(tab, lambda: np.abs(seen() - there).max() > 0.1)
        own = [url for url in tab.requests if not url.startswith(("data:", "blob:"))]
        assert own and all(url.startswith((address, address.replace("http", "ws"))) for url in own)


def test_all_are_seen_beside_the_panel(tab, character, root):
    """In a wide window in what the panel leaves free, in a narrow one in all of it, also after a change."""
    files = [str(root / f"motions/{name}.npz") for name in ("walk", "run", "crawl", "kick")]
    with served(character, files) as (address, _, scene):
        tab.set_viewport_size({"width": 900, "height": 500})
        tab.goto(address)
        wait_for(tab, "/world/3 clip motions kick/pelvis")

        def seen(width):
            across = tab.evaluate(WHERE, 4)
            middle = 0.5 * (min(across) + max(across))
            return min(across) > 0.05 * width and max(across) < 0.95 * width and abs(middle - 0.5 * width) < 0.1 * width

        assert until(tab, lambda: seen(900 - view.PANEL))
        tab.keyboard.press("v")
        assert until(tab, lambda: scene.folders[1].position[:2].any() and seen(900 - view.PANEL))
        tab.set_viewport_size({"width": 390, "height": 500})
        assert until(tab, lambda: seen(390))
