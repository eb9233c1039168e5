"""Look at motion clips in a browser: on a page on localhost, or in one HTML file that needs neither server nor network.

    python motions/view.py                                              # the trained walk beside its clip
    python motions/view.py FILE [FILE ...]                              # side by side
    python motions/view.py ROLLOUT.npz CLIP.npz --layout beside         # in the same phase, step by step; also pinned
    python motions/view.py ROLLOUT.npz CLIP.npz --html walk.html        # to send to a colleague
    python motions/view.py ROLLOUT.npz --commands COMMANDS.csv          # what a roll-out of the heading task was told

FILE is a clip, a folder of clips, or a dataset file (JSON). Needs Python 3.10 or newer.
A policy with live physics, steered by keys: deploy/steer.py.
Right limbs are dark, left ones light. Bodies that touch the ground turn red; the line on the ground is the root's path.
Keys: space plays and pauses, N and B go a frame on and back, V looks from the side, at right angles to the way that the
first character goes, from the front, from above, and as at first.
Bad input ends with one line that says what is wrong, and exit code 2.

Page and file are both viser's client, which plays a recording of the scene by itself: bodies are nested as in the
character's file, so a frame of a recording is one root position and the rotations that a clip holds. The file's follow
camera is our own script (view_head.html).
Dimension key: T frames on the common clock, J bodies (row 0 is the root), C characters.
"""

import argparse
import contextlib
import html
import io
import json
import math
import os
import pathlib
import re
import socket
import sys
import threading
import time
import webbrowser
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import simulators  # noqa: F401  (its guards come before all that is slow)

import numpy as np
import torch
from torch import Tensor

import motion_lib as ml
from console import short
from evaluation import relative_positions
from files import write_file
from motion_lib import Character, InputError
from motions.render import Told, name_of, same_phase, smooth, told_at, way_of
from motions.tools import one_line, one_line_parser

HERE = os.path.dirname(os.path.abspath(__file__))
SHOWN = [os.path.join(HERE, "..", "docs", "rollouts", "walk.npz"), os.path.join(HERE, "walk.npz")]  # without arguments
TOUCH = 0.01  # a body whose lowest point is no higher than this touches the ground [m]
HOVER, SLOW = 0.03, 0.8  # so does one that is no higher and no faster than this: clips hover, and sink in [m, m/s]
SPACING = 1.5  # between characters side by side [m]
PARTED = 2.0  # who moves so far away from the first one, or towards it, is kept beside it, on a treadmill [m]
BELT, MARKS = 0.7, 0.3  # radius of what the treadmill is seen of, less than half of SPACING; from mark to mark [m]
STRIDE = 1.0  # over so long paths and speeds are smooth, and over twice that the way that the camera follows [s]
STILL = 0.3  # who is no faster goes nowhere [m/s]
ROW, COLUMN = 2.2, 1.8  # between rows and columns of a grid [m]
# Where the camera is at first, in the axes of the first character: ahead, left, up, as shares of its distance.
VIEW_OF_ONE, VIEW_OF_SIDE, VIEW_OF_GRID = (0.4, -0.9, 0.15), (0.85, -0.5, 0.15), (0.9, 0.0, 0.4)
VIEW_OF_COURSE = (0.3, -0.8, 0.5)
VIEW_ASIDE = (0.0, -0.99, 0.141)  # from the side
BEHIND = 0.6  # so far to the left of who walks before them are they then, as a share of SPACING
GAP = 0.5  # in a line, from the outermost joints of one to those of the next; bodies end .27 m beyond at most [m]
VIEWS = "side, front, above, first view"  # what key V goes through
AIM = 0.85  # height at which the camera looks [m]
FIELD = 16.0  # of view, from top to bottom [degrees]: a long lens, for which far figures are as large as near ones
LENS = math.tan(math.radians(20.0)) / math.tan(math.radians(0.5 * FIELD))  # so much further away than with 40 degrees
NAME_WIDTH = 70  # half of a name over a head, with a margin [pixels]
GROUND = (0.0, 0.0, -0.001)  # where the grid is, below what lies on it [m]; its pattern repeats after 1 m
RED = (214, 69, 65)
GREEN = (0, 110, 25)  # of what it is told
SKIN = 0.003  # how far the red of what touches the ground lies over a body [m]
PORTS = range(8080, 8100)  # of a page, if nobody names one
OVERHEAD = 0.29  # from the head's joint to its name [m]; the head ends at .27
OVER = 0.2  # from the highest joint to it, at least [m]
SLIM = -0.004  # how much slimmer a body inside another one is: it shows where the pose differs by more [m]
COLOURS = {  # of the characters, in turn
    "blue": (74, 122, 178),
    "orange": (231, 150, 62),
    "green": (98, 155, 98),
    "violet": (140, 105, 170),
    "grey": (150, 150, 155),
    "brown": (178, 132, 84),
}
LIVE_RATE = 120.0  # frames per second that are sampled for the page, so that slow motion is smooth
FILE_RATE = 60.0  # frames per second in a file, at most
LATE = 1.0  # a browser may take so long to look as it is to [s]
STEP = 1.0 / 30.0  # of a key press on the page [s]; in a file it is a frame
REST = 1.0  # how long an end stays before it starts again [s]
PANEL, MARGIN = 264, 12  # width of the page's panel with its margins, and one of them [pixels]
NARROW = 576  # in windows of up to this width the panel stands at the bottom [pixels]
HEAD = "keys and legend"  # of the panel
ROOM, LOADING = (pathlib.Path(HERE, name).read_text("utf-8") for name in ("view_room.js", "view_cover.html"))
LAYOUTS = {
    "side": "side by side, each file as it begins; who leaves the first one is kept beside it, on a treadmill",
    "overlay": "all start at the place and with the heading of the first file, and are in its phase at all times",
    "pinned": "overlay, with the place and heading of the first file at all times: differences of pose alone",
    "beside": "in the phase and with the heading of the first file, kept beside it",
    "grid": "each keeps a place of its own in rows, as on a treadmill",
}
FEW = len(COLOURS)  # more characters than this stand in a grid if nobody says


# ---- 1. From files to frames -----------------------------------------------------------------------------------------


class Take(NamedTuple):
    """What one character does, on the clock that all share."""

    name: str  # that stands over its head
    root: Tensor  # (T, 3) world [m]
    rotations: Tensor  # (T, J, 4) xyzw, parent-relative; row 0 is the root in the world
    touching: Tensor  # (T, J) bool: the body touches the ground
    poses: Optional[Tensor] = None  # (T, J-1, 3) bodies as the pose error has them: evaluation.relative_positions [m]
    speed: float = 0.0  # of the whole file, on average: see mean_speed [m/s]
    ends: bool = False  # it does not loop
    held: str = ""  # how it is kept at the first one's side, if it is: it has no path of its own then
    belt: Optional[Tensor] = None  # of a treadmill under it (T, 5): see hold
    told: Optional[Told] = None  # what it was told, and where that would have led
    course: Optional[np.ndarray] = None  # (T,) the direction in which it goes, if it matters [rad]
    room: Sequence[Sequence[float]] = ((0.0, 0.0), (0.0, 0.0))  # see room_of


def in_phase(motion: ml.MotionLib, first: "Take", rate: float) -> Tensor:
    """When the clip is in the phase of the first character, at each of its frames (T,) [s]."""
    every = max(round(rate / 30.0), 1)
    position, rotation = ml.forward_kinematics(motion.character, first.root[::every], first.rotations[::every])
    found = same_phase(motion, relative_positions(position, rotation[:, 0]), rate / every)
    frames = np.arange(len(first.root))
    return torch.as_tensor(np.interp(frames, frames[::every], found.numpy())).float()


def touching_of(character: Character, root: Tensor, rotations: Tensor, rate: float) -> Tensor:
    """Which bodies touch the ground: root (T, 3) [m], rotations (T, J, 4) -> (T, J) bool.

    Those near to it do, and those that are a little over it and hardly move: a foot that swings by does not."""
    position, rotation = ml.forward_kinematics(character, root, rotations)
    lowest = ml.lowest_points(character, position, rotation)
    row = torch.arange(len(root))
    reach = max(round(rate / 30.0), 1)  # at the seam of a loop a single frame may stand still
    after, before = (row + reach).clamp_max(len(root) - 1), (row - reach).clamp_min(0)
    seconds = (after - before) / rate  # (T,)
    speed = (position[after] - position[before]).norm(dim=-1) / seconds[:, None]  # (T, J) [m/s]
    return (lowest <= TOUCH) | ((lowest <= HOVER) & (speed < SLOW))


def place(
    root: Tensor, rotations: Tensor, root0: Tensor, rotations0: Tensor, layout: str, index: int
) -> Tuple[Tensor, Tensor]:
    """Move a character relative to the first one: root (T, 3) [m], rotations (T, J, 4) of both -> the character's.

    A rigid motion on the ground, one for all frames or (pinned, beside) one for each; "side" and "beside" add a step to
    the left, which is the same at all frames. Heights stay."""
    at = slice(None) if layout in ("pinned", "beside") else slice(1)
    facing = ml.heading(rotations0[at, 0])  # (T or 1,) [rad]
    turn = ml.quat_from_yaw(facing - ml.heading(rotations[at, 0]))
    aside = SPACING * index if layout in ("side", "beside") else 0.0
    ground = torch.tensor([1.0, 1.0, 0.0])
    way = facing[:1]
    if layout == "beside":  # the heading sways with every step
        way = way_of(ml.Clip(1.0, "clamp", root0, rotations0), 0, len(root0) - 1).view(1)
    moved = root0[at] * ground + ml.quat_rotate(ml.quat_from_yaw(way), torch.tensor([0.0, aside, 0.0]))
    # p' = p0 + R (p - p_at) on the ground, and z' = z
    moved = moved + ml.quat_rotate(turn, root - root[at] * ground)
    return moved, torch.cat((ml.quat_multiply(turn, rotations[:, 0])[:, None], rotations[:, 1:]), 1)


def parts(root: Tensor, root0: Tensor) -> bool:
    """Whether a character, root (T, 3) [m], leaves the one that the camera follows, root0 (T, 3) [m]."""
    apart = (root - root0)[:, :2]
    return float((apart - apart[0]).norm(dim=-1).max()) > PARTED


def hold(take: Take, first: Take, rate: float) -> Take:
    """Let a character sway as it does, but go the smooth way of the first one, and turn with its course.

    Its own ground goes by under it, as the belt of a treadmill does (T, 5): where that is and by how much it is turned,
    x, y [m], turn [rad]; and of its marks the one under the character, seen from there x, y [m]."""
    reach = round(0.5 * STRIDE * rate)
    own, way = (torch.as_tensor(smooth(x.root[:, :2].double().numpy(), reach)).float() for x in (take, first))  # (T, 2)
    courses = [course_of(x.root, x.rotations, rate) for x in (first, take)]
    turn = torch.as_tensor(courses[0] - courses[0][0] - courses[1] + courses[1][0]).float()  # (T,) [rad]
    spin = ml.quat_from_yaw(turn)  # (T, 4)
    spot = way + (take.root - first.root)[0, :2]
    # p' = spot + R (p - own) on the ground, and z' = z
    sway = torch.cat((take.root[:, :2] - own, take.root[:, 2:]), 1)
    root = torch.nn.functional.pad(spot, (0, 1)) + ml.quat_rotate(spin, sway)
    rotations = torch.cat((ml.quat_multiply(spin, take.rotations[:, 0])[:, None], take.rotations[:, 1:]), 1)
    belt = torch.cat((spot, turn[:, None], (own / MARKS).round() * MARKS - own), 1)
    return take._replace(root=root, rotations=rotations, held="on a treadmill beside the blue one", belt=belt)


def speeds_of(root: Tensor, rate: float) -> np.ndarray:
    """How fast a root (T, 3) [m] goes on the ground, over about a stride -> (T,) [m/s]."""
    way = smooth(root[:, :2].double().numpy(), round(0.5 * STRIDE * rate))
    return np.linalg.norm(np.gradient(way, axis=0), axis=1) * rate


def course_of(root: Tensor, rotations: Tensor, rate: float) -> np.ndarray:
    """The direction in which a root (T, 3) [m] goes, over about two strides -> (T,) [rad], without jumps.

    Who stands keeps the last one; who never goes anywhere the heading at first, of rotations (T, J, 4)."""
    reach = round(STRIDE * rate)
    velocity = np.gradient(smooth(root[:, :2].double().numpy(), reach), axis=0) * rate  # (T, 2) [m/s]
    course = np.unwrap(np.arctan2(velocity[:, 1], velocity[:, 0]))
    (going,) = np.nonzero(np.linalg.norm(velocity, axis=1) > STILL)
    if not len(going):
        return np.full(len(root), float(ml.heading(rotations[0, 0])))
    row = np.searchsorted(going, np.arange(len(root)), "right") - 1
    return smooth(course[going[row.clip(0)]][:, None], reach // 2)[:, 0]


def room_of(character: Character, take: Take, first: Take) -> List[List[float]]:
    """What a character needs of the ground: how far its joints ever are behind and ahead, right and left (2, 2) [m].

    Seen from where it would be if it went with the first one, in the axes of that one's course."""
    position, _ = ml.forward_kinematics(character, take.root, take.rotations)
    spot = first.root[:, :2] + (take.root - first.root)[0, :2]
    course = torch.as_tensor(first.course).float()[:, None]  # (T, 1)
    x, y = (position[..., :2] - spot[:, None]).unbind(-1)  # (T, J) each
    ahead, left = course.cos() * x + course.sin() * y, course.cos() * y - course.sin() * x
    return [[float(part.min()), float(part.max())] for part in (ahead, left)]


def mean_speed(motion: ml.MotionLib) -> float:
    """How fast a whole clip goes, on average [m/s]: the mean of speeds_of; of a loop over cycles that go on."""
    rate, length = float(motion.fps[0]), float(motion.length[0])
    rim = round(STRIDE * rate) if motion.loop[0] else 0  # frames of other cycles
    times = torch.arange(-rim, max(round(length * rate), 1) + 1 + rim) / rate
    root = motion.state(torch.zeros(len(times), dtype=torch.long), times).root_position
    return float(speeds_of(root, rate)[rim : len(root) - rim].mean())


def in_grid(root: Tensor, rotations: Tensor, index: int, count: int) -> Tuple[Tensor, Tensor]:
    """Let one of `count` characters keep its place in a grid: root (T, 3) [m], rotations (T, J, 4) -> the same, moved.

    It begins facing +X, from which the rows are seen; heights and turns stay."""
    columns = math.ceil(math.sqrt(1.3 * count))
    row, column = divmod(index, columns)
    turn = ml.quat_from_yaw(-ml.heading(rotations[:1, 0]))  # (1, 4)
    column += 0.5 * (row % 2) - 0.5 * columns + 0.25  # every other row stands in the gaps of the one before
    place = torch.tensor([-ROW * row, COLUMN * column, 0.0])
    rotations = torch.cat((ml.quat_multiply(turn, rotations[:, 0])[:, None], rotations[:, 1:]), 1)
    return root * torch.tensor([0.0, 0.0, 1.0]) + place, rotations


def layout_of(wish: str, files: List[str]) -> str:
    """Where the characters of these files stand: as is wished, or, if nothing is, in a grid if there are many."""
    count = sum(len(set(ml.find_clips(file)[0])) for file in files)
    return wish or ("grid" if count > FEW else "side")


def clock_of(motions: List[ml.MotionLib], seconds: float, limit: float) -> Tuple[float, int]:
    """Frames per second, at most `limit`, and their number T.

    seconds 0: the longest clip that ends, else 10 s or the longest loop."""
    rate = min(max(float(m.fps[0]) for m in motions), limit)
    if not seconds:
        ends = [float(m.length[0]) for m in motions if not m.loop[0]]
        seconds = max(ends) if ends else max([10.0] + [float(m.length[0]) for m in motions])
    return rate, 1 + max(round(seconds * rate), 1)


def load_takes(
    character: Character, files: List[str], layout: str, seconds: float = 0.0, live: bool = False, commands: str = ""
) -> Tuple[float, List[Take]]:
    """Load clips, folders and dataset files, and sample them all on one clock -> its rate [1/s], a Take for each clip.

    The first clip stays where it is (but in a grid); in "overlay", "pinned" and "beside" the others are in its phase.
    Loops go on, other clips hold their end. commands: file of what the first was told. Raises InputError."""
    paths = [path for file in files for path in dict.fromkeys(ml.find_clips(file)[0])]
    motions = [ml.MotionLib(path, character) for path in paths]
    names = [name_of(path) for path in paths]
    names = [name_of(path, whole=names.count(name) > 1) for path, name in zip(paths, names)]
    rate, count = clock_of(motions, seconds, FILE_RATE)
    if live:
        rate, count = LIVE_RATE, 1 + math.ceil((count - 1) * LIVE_RATE / rate)
    takes: List[Take] = []
    for i, (path, motion) in enumerate(zip(paths, motions)):
        alone = layout in ("side", "grid") or not takes
        times = torch.arange(count) / rate if alone else in_phase(motion, takes[0], rate)
        state = motion.state(torch.zeros(count, dtype=torch.long), times)
        root, rotations = state.root_position, state.rotations
        touching = touching_of(character, root, rotations, rate)  # where it is itself, as it may be kept in place
        if layout == "grid":
            root, rotations = in_grid(root, rotations, i, len(paths))
        elif takes:
            root, rotations = place(root, rotations, takes[0].root, takes[0].rotations, layout, i)
        position, rotation = ml.forward_kinematics(character, root, rotations)
        stem = os.path.splitext(os.path.basename(path))[0]
        more = f", {stem}" if names.count(names[i]) > 1 and stem not in names[i] else ""
        held = "in step with the blue one, kept beside it" if layout == "beside" and takes else ""
        poses = relative_positions(position, rotation[:, 0])
        take = Take(names[i] + more, root, rotations, touching, poses, mean_speed(motion), not motion.loop[0], held)
        leaves = layout == "side" and takes and parts(root, takes[0].root)
        takes.append(hold(take, takes[0], rate) if leaves else take)
    takes[0] = takes[0]._replace(course=course_of(takes[0].root, takes[0].rotations, rate))
    takes = [take._replace(room=room_of(character, take, takes[0])) for take in takes]
    if commands:
        root = takes[0].root
        told = told_at(commands, torch.arange(len(root)), rate)
        takes[0] = takes[0]._replace(told=told._replace(path=root[:1, :2] + told.path))
    return rate, takes


# ---- 2. The scene ----------------------------------------------------------------------------------------------------


Meshes = List[Tuple[np.ndarray, np.ndarray]]  # of each body: vertices (V, 3) in its frame [m], triangles (N, 3)


class Scene(NamedTuple):
    """Handles of viser's scene nodes."""

    world: Any  # the parent of everything
    centre: Any  # an invisible node that goes where the characters go, and turns as the first one's course does
    bodies: List[List[Any]]  # C lists of J meshes
    skins: List[Dict[int, Any]]  # C times, by body: the red skin of each that ever touches the ground
    labels: List[Any]  # C names, in no node that moves: the page draws a parent's motion later
    paths: List[Any]  # C lines on the ground, one if pinned
    ground: Any  # the grid
    arrow: Any = None  # what the first one is told
    belts: Sequence[Any] = ()  # of the treadmills, in turn
    folders: Sequence[Any] = ()  # C nodes that hold a character and its path: each is where it is, moved by so much


def body_meshes(path: str, thicker: float = 0.0) -> Meshes:
    """Vertices (V, 3) in the body's frame [m] and triangles (N, 3) of each body of an MJCF file.

    These are its spheres, capsules and boxes, thicker by so much on all sides [m]. Raises InputError when MuJoCo cannot
    read the file."""
    import mujoco
    import trimesh

    try:
        model = mujoco.MjModel.from_xml_path(path)
    except ValueError as error:
        raise InputError(f"{path}: MuJoCo refuses the character file: {' '.join(str(error).split())}") from error
    parts: List[List[Any]] = [[] for _ in range(model.nbody)]
    for geom in range(model.ngeom):
        size, kind = model.geom_size[geom] + thicker, model.geom_type[geom]
        if kind == mujoco.mjtGeom.mjGEOM_BOX:
            mesh = trimesh.creation.box(extents=2 * size)
            mesh.unmerge_vertices()  # no normals that are smoothed over an edge
        elif kind == mujoco.mjtGeom.mjGEOM_CAPSULE:
            mesh = trimesh.creation.capsule(height=2 * size[1], radius=size[0], count=[24, 24])
        else:
            mesh = trimesh.creation.icosphere(subdivisions=3, radius=size[0])
        pose = trimesh.transformations.quaternion_matrix(model.geom_quat[geom])  # wxyz
        pose[:3, 3] = model.geom_pos[geom]
        parts[model.geom_bodyid[geom]].append(mesh.apply_transform(pose))
    meshes = [trimesh.util.concatenate(part) for part in parts[1:]]  # body 0 is MuJoCo's world
    return [(np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces)) for mesh in meshes]


def colour_of(index: int, body: str) -> Tuple[int, int, int]:
    """The character's colour, darker for right limbs and lighter for left ones."""
    colour = list(COLOURS.values())[index % len(COLOURS)]
    if body.startswith("right"):
        colour = tuple(int(0.58 * c) for c in colour)
    if body.startswith("left"):
        colour = tuple(int(255 - 0.55 * (255 - c)) for c in colour)
    return colour


def build(server: Any, character: Character, meshes: Meshes, takes: List[Take], layout: str) -> Scene:
    """Put ground, paths and characters into the scene of a viser server, and the camera in front of them.

    The page draws a colour a picture or more after a pose, but what is visible with it: so red skins come and go."""
    scene = server.scene
    world = scene.add_frame("/world", show_axes=False)
    centre = scene.add_frame("/world/centre", show_axes=False)
    look = dict(cell_color=(214, 217, 222), section_color=(178, 184, 192), plane_color=(243, 244, 246))
    look.update(plane_opacity=1.0, fade_distance=30 * LENS, shadow_opacity=0.35, position=GROUND)
    ground = scene.add_grid("/world/ground", 400, 400, **look)
    bodies, skins, labels, paths, belts, folders = [], [], [], [], [], []
    red = body_meshes(character.path, SKIN)
    inside_each_other = layout in ("overlay", "pinned")
    for i, take in enumerate(takes):
        folder = f"/world/{i} {take.name.replace('/', ' ')}"
        folders.append(scene.add_frame(folder, show_axes=False))
        inside = i > 0 and inside_each_other
        shapes = body_meshes(character.path, SLIM * i / (len(takes) - 1)) if inside else meshes
        names = []
        nodes = []
        for j, (name, parent) in enumerate(zip(character.body_names, character.parents)):
            names.append(f"{names[parent] if j else folder}/{name}")
            look = dict(color=colour_of(i, name), cast_shadow=not inside, position=character.offsets[j].numpy())
            nodes.append(scene.add_mesh_simple(names[j], *shapes[j], **look))
        touching = take.touching.any(0).nonzero()[:, 0].tolist()
        look = dict(color=RED, visible=False, cast_shadow=False)
        skins.append({j: scene.add_mesh_simple(f"{names[j]}/red", *red[j], **look) for j in touching})
        if not inside_each_other or len(takes) <= FEW:
            labels.append(scene.add_label(f"/name {i}/text", over_head(takes, i, layout), anchor="bottom-center"))
        bodies.append(nodes)
        if take.belt is not None:
            belts.append(add_belt(scene, f"{folder}/belt", colour_of(i, "")))
        if layout == "grid" or take.held or (i and layout == "pinned"):  # which is on the first one's path
            continue
        paths.append(add_path(scene, f"{folder}/path", take.root.numpy(), 0.01 + 0.001 * i, colour_of(i, "")))
    arrow = None
    if takes[0].told:
        paths.append(add_path(scene, "/world/course", takes[0].told.path.numpy(), 0.006, GREEN))
        arrow = scene.add_arrows("/world/told", np.array([[[0.0, 0.0, 0.02], [1.0, 0.0, 0.02]]], np.float32), GREEN)
    aim(server, takes, views_of(takes, layout)[0])
    return Scene(world, centre, bodies, skins, labels, paths, ground, arrow, belts, folders)


def over_head(takes: List[Take], index: int, layout: str) -> str:
    """The name that stands over a head: where there are many the last part, if only one has it; where they stand in
    each other with the colour."""
    name, last = takes[index].name, [take.name.split("/")[-1] for take in takes]
    if layout in ("overlay", "pinned"):
        return f"{list(COLOURS)[index % len(COLOURS)]}: {name}"
    short_one = layout == "grid" or (len(takes) > 2 and last.count(last[index]) == 1)
    return last[index] if short_one else name


def add_path(scene: Any, name: str, points: np.ndarray, height: float, colour: Tuple[int, int, int]) -> Any:
    """Draw a line over points (T, 2 or more) [m] on the ground, at a small height [m] over it -> viser's handle."""
    rows = np.linspace(0, len(points) - 1, min(len(points), 300)).round().astype(int)
    line = np.concatenate((points[rows, :2], np.full((len(rows), 1), height)), 1)  # (n, 3)
    line = np.stack((line[:-1], line[1:]), 1).astype(np.float32)
    return scene.add_line_segments(name, line, colour, thickness=3, thickness_units="screen")


def add_belt(scene: Any, name: str, colour: Tuple[int, int, int]) -> Tuple[Any, Any]:
    """Draw what is seen of a treadmill: a ring, and crosses in it that go by -> viser's handles of both."""
    look = dict(thickness=3, thickness_units="screen")
    corners = np.linspace(0.0, math.tau, 49)
    ring = BELT * np.stack((np.cos(corners), np.sin(corners)), 1)
    spots = MARKS * np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), -1).reshape(-1, 1, 1, 2)
    cross = 0.05 * np.array([[[-1, 0], [1, 0]], [[0, -1], [0, 1]]])
    lines = [np.stack((ring[:-1], ring[1:]), 1), (spots + cross).reshape(-1, 2, 2)]  # (n, 2, 2) each
    lines = [np.pad(x, ((0, 0), (0, 0), (0, 1)), constant_values=0.008).astype(np.float32) for x in lines]
    names = (name, f"{name}/marks")
    return tuple(scene.add_line_segments(name, x, colour, **look) for name, x in zip(names, lines))


class View(NamedTuple):
    """From where the camera looks. Directions are in axes of the first one's course, if it turns, else of its heading
    at the start."""

    gaze: Tuple[float, float, float]  # of the camera from where it looks, a unit vector: ahead, left, up
    distance: float  # of the camera [m]
    breadth: float  # how far to the side of the middle characters are, with an arm's length [m]
    turns: bool = False  # the camera goes around with the course
    places: Optional[List[Tuple[float, float]]] = None  # ahead and left of the first [m]; None: where they are
    focus: Tuple[float, float] = (0.0, 0.0)  # where it looks, ahead and left of the first, or of all, if no places [m]
    names: Tuple[float, float] = (0.0, 0.0)  # how far ahead and left of the heads names stand [m]
    field: float = FIELD  # from top to bottom [degrees]


def views_of(takes: List[Take], layout: str) -> List[View]:
    """What the camera shows, at first and by key V: see VIEWS.

    From the side and the front it goes along a circle with the course. From the side the others are behind the first
    one, and a little to the left, from the front they are to its left, so that at no time one hides another. Who is
    over another one stays there. A grid's rows are turned, so that they look as at first, but each from its side."""
    first = {"side": VIEW_OF_SIDE, "beside": VIEW_OF_SIDE, "grid": VIEW_OF_GRID}.get(layout, VIEW_OF_ONE)
    first = np.array(VIEW_OF_COURSE if takes[0].told else first)
    course, breadth = 3.0 * LENS * (takes[0].told is not None), breadth_of(takes)
    views = [View(tuple((first / np.linalg.norm(first)).tolist()), near(breadth) + course, breadth)]
    lines = [[(-x, BEHIND * SPACING * i) for i, x in enumerate(line_of(takes, 0, -1.0))]]
    lines.append([(0.0, y) for y in line_of(takes, 1, 1.0)])
    for gaze, line in zip((VIEW_ASIDE, (1.0, 0.0, 0.0)), lines):
        if layout in ("side", "beside"):
            focus = tuple(np.mean((line[0], line[-1]), axis=0).tolist())
            broad = 0.25 + float(np.abs(focus).max())
            views.append(View(gaze, near(broad), broad, True, line, focus))
        else:
            views.append(View(gaze, near(breadth), breadth, True))
    if layout == "grid":
        rows = [(y, -x) for x, y in offsets_of(takes).tolist()]
        x, y, z = views[0].gaze
        focus = tuple(np.mean(rows, axis=0).tolist())
        views[1:] = [views[0]._replace(gaze=(y, -x, z), places=rows, focus=focus), views[0]]
    return [*views, View((0.0, -0.02, 1.0), LENS * (2.0 + 2.75 * breadth) + course, breadth, names=(0.0, 0.45))]


def near(breadth: float) -> float:
    """How far away the camera is, so that all are seen as they start [m]."""
    return LENS * (3.1 + 1.6 * breadth)


def line_of(takes: List[Take], axis: int, sign: float) -> List[float]:
    """How far from the first one characters stand in a line along an axis of the course (ahead, left), so that none
    ever reaches the next one (C,) [m]."""
    rooms = [sorted(sign * x for x in take.room[axis]) for take in takes]
    places = [0.0]
    for before, after in zip(rooms, rooms[1:]):
        places.append(places[-1] + max(SPACING, before[1] - after[0] + GAP))
    return places


def offsets_of(takes: List[Take]) -> np.ndarray:
    """Where each character stands at the start, seen from the first one (C, 2) [m]."""
    return torch.stack([take.root[0, :2] - takes[0].root[0, :2] for take in takes]).double().numpy()


def shifts_of(takes: List[Take], view: View, course: float) -> np.ndarray:
    """By how much the characters are moved in a view (C, 3) [m], when the first one's course is this [rad]."""
    shifts = np.zeros((len(takes), 3))
    if view.places:
        turn = course if view.turns else float(ml.heading(takes[0].rotations[0, 0]))
        shifts[:, :2] = np.array(view.places) @ axes_of(turn)[:2, :2].T - offsets_of(takes)
    return shifts


def axes_of(turn: float) -> np.ndarray:
    """Ahead, left and up, the columns (3, 3), of who is turned to the left by so much [rad]."""
    return np.array([[math.cos(turn), -math.sin(turn), 0.0], [math.sin(turn), math.cos(turn), 0.0], [0.0, 0.0, 1.0]])


def camera_of(takes: List[Take], view: View) -> Tuple[np.ndarray, np.ndarray]:
    """Where the camera stands and where it looks (3,), (3,) [m], as the characters start; who turns goes along +X."""
    turn = 0.0 if view.turns else float(ml.heading(takes[0].rotations[0, 0]))
    middle = centre_of(takes[:1] if view.places else takes, 0) + axes_of(turn) @ [*view.focus, AIM]
    return middle + view.distance * axes_of(turn) @ view.gaze, middle


def aim(server: Any, takes: List[Take], view: View) -> None:
    """Put the camera of a viser server where a view has it, as the characters start."""
    server.initial_camera.fov, server.initial_camera.near = math.radians(view.field), 0.1
    server.initial_camera.position, server.initial_camera.look_at = camera_of(takes, view)


def centre_of(takes: List[Take], frame: int) -> np.ndarray:
    """Where the camera looks, on the ground. -> (3,) [m]

    It is the middle of the characters at the start, moved by what the first has moved."""
    middle = torch.stack([take.root[0] for take in takes]).mean(0)
    return (middle + takes[0].root[frame] - takes[0].root[0]).numpy() * [1, 1, 0]


def breadth_of(takes: List[Take]) -> float:
    """How far to the side characters stand of the middle, with an arm's length [m]: on a narrow screen the camera is
    so much further away that they are seen."""
    start = torch.stack([take.root[0, :2] for take in takes])
    return 0.25 + float((start - start.mean(0)).norm(dim=-1).max())


def names_at(character: Character, takes: List[Take], frame: int) -> List[np.ndarray]:
    """Where the name of each character stands at a frame: over its head, above all joints, so that who stands on the
    hands is not hidden; and over another name if there is one. -> (3,) each [m]"""
    head = character.body_names.index("head") if "head" in character.body_names else 0
    places: List[np.ndarray] = []
    for take in takes:
        position, rotation = ml.forward_kinematics(character, take.root[frame], take.rotations[frame])
        over = position[head] + ml.quat_rotate(rotation[head], torch.tensor([0.0, 0.0, OVERHEAD]))
        place = np.array([*position[head, :2].tolist(), max(float(over[2]), float(position[:, 2].max()) + OVER)])
        below = [other for other in places if np.linalg.norm((other - place)[:2]) < 0.5]
        places.append(place + [0.0, 0.0, 0.12 * len(below)])
    return places


def yaw(angle: float) -> np.ndarray:
    """Quaternion wxyz (4,) of a turn to the left [rad], as viser has them."""
    return np.array([math.cos(0.5 * angle), 0.0, 0.0, math.sin(0.5 * angle)])


def show(
    scene: Scene,
    character: Character,
    takes: List[Take],
    frame: int,
    contacts: bool = True,
    shifts: Optional[np.ndarray] = None,
    turn: float = 0.0,
    aside: Sequence[float] = (0.0, 0.0, 0.0),
) -> None:
    """Put every character into the pose of a frame, and its name over it; what touches the ground is red.

    The grid, which fades away from its middle, goes along by whole patterns. shifts: see shifts_of; turn: of the world,
    to the left [rad]; aside: from the heads to the names [m]."""
    centre = centre_of(takes, frame)
    scene.centre.position = centre
    if takes[0].course is not None:
        scene.centre.wxyz = yaw(float(takes[0].course[frame]))
    if shifts is None:
        shifts = np.zeros((len(takes), 3))
    else:
        for folder, shift in zip(scene.folders, shifts):
            folder.position = shift
    if not np.allclose(scene.ground.position, centre.round() + GROUND):
        scene.ground.position = centre.round() + GROUND
    for take, nodes, skins in zip(takes, scene.bodies, scene.skins):
        nodes[0].position = take.root[frame].numpy()
        for node, rotation in zip(nodes, take.rotations[frame].numpy()):
            node.wxyz = rotation[[3, 0, 1, 2]]
        for j, skin in skins.items():
            visible = contacts and bool(take.touching[frame, j])
            if skin.visible != visible:
                skin.visible = visible
    belts = [take.belt[frame].numpy() for take in takes if take.belt is not None]
    for (ring, marks), (x, y, angle, *spot) in zip(scene.belts, belts):
        ring.position, ring.wxyz = (x, y, 0.0), yaw(angle)
        marks.position = (*spot, 0.0)
    if scene.arrow:
        told = takes[0].told
        length = max(float(told.speed[frame]), 0.05)
        scene.arrow.position = takes[0].root[frame].numpy() * [1, 1, 0]
        scene.arrow.wxyz = yaw(float(told.heading[frame]))
        if scene.arrow.scale != (length, 1.0, 1.0):  # a second of the way
            scene.arrow.scale = (length, 1.0, 1.0)
    if scene.labels:
        for label, place, shift in zip(scene.labels, names_at(character, takes, frame), shifts):
            label.position = axes_of(turn) @ (place + shift) + scene.world.position + aside


# ---- 3. One file -----------------------------------------------------------------------------------------------------

# Lines of a legend: a colour, and what has it
DOT = '<div style="padding-left:16px; text-indent:-16px"><i style="background:{}; display:inline-block; width:12px; '
LINE = DOT + 'height:3px; vertical-align:4px"></i> {}</div>'
DOT += 'height:12px; border-radius:6px"></i> {}</div>'
RIGHT, LEFT = (f"rgb{colour_of(0, side)}" for side in ("right", "left"))
SMALL = "padding:0 0.8em 0.4em; font-size:13px; line-height:1.4"  # of what is said in the panel
LIMBS = DOT.format(f"linear-gradient(90deg, {RIGHT} 50%, {LEFT} 50%)", "right limbs dark, left limbs light")


def title_of(takes: List[Take], link: str = " and ") -> str:
    """Title of the page's tab."""
    return link.join(take.name for take in takes) if len(takes) <= FEW else f"{len(takes)} motions"


def unbroken(text: str) -> str:
    """A text whose numbers stay with their units when a line breaks."""
    return re.sub(r"(\d) (m|s|%)(?!\w)", "\\1\u00a0\\2", text)


def legend_of(takes: List[Take], text: str = "", layout: str = "") -> str:
    """HTML lines that say which colour is which file, how fast that is, which side of the body, and what lines are.

    text: of the page, which may have figures of all episodes of an evaluation."""
    named = takes if layout != "grid" or len(takes) <= FEW else []  # of more the names over the heads tell
    rows = []
    for i, take in enumerate(named):
        about = f"{take.name}, mean {short(take.speed)} m/s" + f"; {take.held}" * bool(take.held)
        rows.append(DOT.format(f"rgb{colour_of(i, '')}", unbroken(html.escape(about))))
    rows += [LIMBS, DOT.format(f"rgb{RED}", "touches the ground")]
    if layout != "grid":
        rows.append(LINE.format(f"rgb{colour_of(0, '')}", "the root's path"))
    if takes[0].told:
        rows.append(LINE.format(f"rgb{GREEN}", "where it was told to go; the arrow is a second of that"))
    everyone = "; in the line of figures, the mean of all episodes" * ("episode" in text)
    means = "Speeds are of the root's way on the ground, over a second: “now” and, beside a name, the file's mean"
    means += f"{everyone}."
    means += " Poses: mean distance of the bodies at this moment, seen from the roots." * (len(takes) == 2)
    if layout != "grid":
        rows.append(f'<div style="color:#666; font-size:12px; line-height:1.3">{means}</div>')
    return "".join(rows)


def words_of(takes: List[Take], rate: float, layout: str = "side") -> List[str]:
    """What the page says of each frame: how fast the first character goes, and was told to go; how far two poses are
    apart, as the pose error has it. Of a grid nothing."""
    if layout == "grid":
        return [""] * len(takes[0].root)
    speeds = speeds_of(takes[0].root, rate)
    told = [""] * len(speeds)
    if takes[0].told:
        told = [f", told {short(speed)} m/s" for speed in takes[0].told.speed.tolist()]
    apart = [""] * len(speeds)
    if len(takes) == 2:
        gaps = (takes[0].poses - takes[1].poses).norm(dim=-1).mean(-1)  # (T,) [m]
        apart = [f"; poses {short(gap, 3)} m apart" for gap in gaps.tolist()]
    who = "blue now" if len(takes) > 1 else "now"
    return [unbroken(f"{who} {short(x)} m/s{more}{gap}") for x, more, gap in zip(speeds.tolist(), told, apart)]


def page_of(character: Character, meshes: Meshes, takes: List[Take], rate: float, layout: str, text: str = "") -> str:
    """The whole HTML document: viser's client, the recording, and view_head.html.

    The latter adds a legend, a text over the picture and the camera that follows."""
    server = start_server("127.0.0.1", 0)  # only to make the messages that are recorded
    try:
        scene = build(server, character, meshes, takes, layout)
        recording = server.get_scene_serializer()
        for frame in range(len(takes[0].root)):
            show(scene, character, takes, frame)
            recording.insert_sleep(1.0 / rate)
        recording.insert_sleep(REST * any(take.ends for take in takes))
        page = recording.as_html()
    finally:
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()
    page = page.replace("<title>Viser<", f"<title>{html.escape(title_of(takes))}<", 1)
    page = page.replace("<body>", "<body>" + LOADING, 1)
    return page.replace("</head>", head_of(takes, rate, text, layout) + "</head>", 1)


def head_of(takes: List[Take], rate: float, text: str = "", layout: str = "side") -> str:
    """view_head.html with rate and sizes as numbers, and legend, title and other words as texts of its script: JSON, in
    which nothing ends it."""
    numbers = {"FRAMES_A_SECOND": rate, "NAME_WIDTH": NAME_WIDTH, "TANGENT": math.tan(math.radians(0.5 * FIELD))}
    numbers.update(VIEWS=[view._asdict() for view in views_of(takes, layout)], OFFSETS=offsets_of(takes).tolist())
    numbers.update(START=float(ml.heading(takes[0].rotations[0, 0])), AIM=AIM)
    texts = {"LEGEND": legend_of(takes, text, layout), "TITLE": title_of(takes), "SEEN": VIEWS}
    texts.update(FIGURES=unbroken(text), WORDS=words_of(takes, rate, layout))
    head = pathlib.Path(HERE, "view_head.html").read_text("utf-8")
    values = {name: json.dumps(x).replace("<", "\\u003c") for name, x in {**numbers, **texts}.items()}
    return re.sub(rf"\b({'|'.join(values)})\b", lambda found: values[found[0]], head)


def check_writable(path: str) -> None:
    """Raise InputError when no file can be written there: known before the work, not after it."""
    folder = os.path.dirname(os.path.abspath(path))
    fault = ""
    if os.path.isdir(path):
        fault = "it is a folder"
    elif not os.path.isdir(folder):
        fault = f"there is no folder {folder}"
    elif not os.access(folder, os.W_OK):
        fault = f"the folder {folder} is write-protected"
    if fault:
        raise InputError(f"--html {path}: {fault}")


# ---- 4. The page -----------------------------------------------------------------------------------------------------


class Build(type(pathlib.Path())):
    """The folder that viser's page is in, and what it holds: as it is, but that the page says that it loads."""

    def read_bytes(self) -> bytes:
        return self.read_text(encoding="utf-8").replace("<body>", "<body>" + LOADING, 1).encode()


def start_server(host: str, port: Optional[int]) -> Any:
    """A viser server; without a port at the first of PORTS that is free. Raises InputError when the address is taken
    (viser itself would silently take the next port)."""
    import viser

    for number in PORTS if port is None else (port,):
        try:
            with socket.create_server((host, number)):
                break
        except (OSError, OverflowError) as error:
            fault = re.sub(r" \(while .*", "", getattr(error, "strerror", None) or str(error))
    else:
        raise InputError(f"--host {host} --port {number}: {fault}; try another --port, or 0 for any that is free")
    build = Build(os.path.dirname(viser.__file__), "client", "build")
    plain = viser.infra.WebsockServer
    ours = mock.patch.object(viser.infra, "WebsockServer", lambda **x: plain(**{**x, "http_server_root": build}))
    with ours, contextlib.redirect_stdout(io.StringIO()):  # its banner
        return viser.ViserServer(host=host, port=number, verbose=False)


def run_script(page: Any, script: str) -> None:
    """Run a script in the browser of a client, or in all of a server, for which viser has no call of its own."""
    from viser import _messages

    page.gui._websock_interface.queue_message(_messages.RunJavascriptMessage(script))


def entitle(server: Any, title: str) -> None:
    """Give the page's tab a title, and its panel a head, and leave room for the figures: on a narrow screen it is at
    first folded."""
    server.gui.set_panel_label(HEAD)
    server.gui.main_panel.set_width(PANEL - 2 * MARGIN)
    numbers = f"const PANEL = {PANEL}, NARROW = {NARROW}, NAME_WIDTH = {NAME_WIDTH};"
    run_script(server, f"document.title = {json.dumps(title)};\n{numbers}\n{ROOM}")


class Eye:
    """What key V does on a page: from where all its browsers look, and how the world lies under them.

    The camera stays in the user's hands; it is the world that moves, and turns, under the first character."""

    def __init__(self, server: Any, scene: Scene, takes: List[Take], layout: str) -> None:
        """takes: as they start; the camera is aimed at these."""
        self.server = server
        self.scene = scene
        self.takes = takes
        self.views = views_of(takes, layout)
        self.now = 0  # which of them
        self.turn = 0.0  # of the world, to the left [rad]
        self.stale = True  # the world does not lie yet as the view has it
        self.since = 0.0  # when it was chosen [s]
        server.on_client_connect(lambda _: self.choose(0))

    def view(self) -> View:
        """How it looks now."""
        return self.views[self.now]

    def next(self) -> None:
        """Look from elsewhere, or, if the camera was moved by hand, again as the view has it."""
        self.choose(self.now if self.moved() else (self.now + 1) % len(self.views))

    def moved(self) -> bool:
        """Whether the camera of a browser looks elsewhere or from another side than the view does; it may be nearer."""
        place, middle = camera_of(self.takes, self.view())
        gaze = (place - middle) / self.view().distance
        for camera in [client.camera for client in self.server.get_clients().values()]:
            way = camera.position - camera.look_at
            if np.linalg.norm(camera.look_at - middle) > 0.05 or way @ gaze < 0.999 * np.linalg.norm(way):
                return time.perf_counter() - self.since > LATE
        return False

    def choose(self, number: int) -> None:
        """Look as this view has it, in all browsers, since all show one world; with a new one it is the first view."""
        self.now, self.since = number, time.perf_counter()
        self.stale = True
        for client in self.server.get_clients().values():
            self.look(client)

    def look(self, client: Any) -> None:
        """Put the camera of a browser where the view has it, in a narrow window further away, so that all are seen."""
        view = self.view()
        client.camera.fov = math.radians(view.field)
        client.camera.position, client.camera.look_at = camera_of(self.takes, view)
        share = view.breadth / (math.tan(math.radians(0.5 * view.field)) * view.distance)  # of half the height
        run_script(client, f"lookFrom({view.distance}, {share})")

    def carry(self, root: np.ndarray, course: float) -> None:
        """Move the world so that the first character, root (3,) [m], is where it began; course [rad]."""
        self.turn = -course if self.view().turns else 0.0
        self.scene.world.wxyz = yaw(self.turn)
        self.scene.world.position = centre_of(self.takes[:1], 0) - axes_of(self.turn) @ (root * [1, 1, 0])
        self.stale = False

    def aside(self) -> np.ndarray:
        """From the heads to the names (3,) [m], in the picture, not in the world."""
        return axes_of(float(ml.heading(self.takes[0].rotations[0, 0]))) @ [*self.view().names, 0.0]

    def in_world(self, vector: np.ndarray) -> np.ndarray:
        """A direction (3,) of the picture, in the axes of the world that lies turned under it."""
        return axes_of(-self.turn) @ vector


class Controls:
    """What stands beside the picture, and what the keys do: the time that is shown, and whether it goes on."""

    def __init__(
        self, server: Any, scene: Scene, takes: List[Take], rate: float, text: str = "", layout: str = "side"
    ) -> None:
        gui = server.gui
        self.eye = Eye(server, scene, takes, layout)
        self.takes = takes
        self.rate = rate
        self.length = (len(takes[0].root) - 1) / rate + REST * any(take.ends for take in takes)
        self.words = words_of(takes, rate, layout)
        self.time = 0.0
        self.playing = True
        gui.configure_theme(show_logo=False, show_share_button=False)
        said = f"<b>{html.escape(unbroken(text))}</b>" if text else ""
        gui.add_html(f'<div style="{SMALL}">{said}{legend_of(takes, text, layout)}</div>')
        self.now = gui.add_markdown(self.words[0])
        self.button = gui.add_button("Pause (space)")
        self.clock = gui.add_slider("Time [s]", 0.0, math.ceil(100.0 * self.length) / 100.0, 0.01, 0.0)
        self.speed = gui.add_slider("Speed", 0.1, 2.0, 0.1, 1.0)
        self.follow, self.contacts, path = (gui.add_checkbox(x, True) for x in ("Follow", "Contacts", "Path"))
        gui.add_markdown(f"**N B** a frame on, back  \n**V** {VIEWS}")
        keys = {"space": ("Play or pause", lambda _: self.play(not self.playing))}
        keys.update(N=("A frame on", lambda _: self.step(STEP)), B=("A frame back", lambda _: self.step(-STEP)))
        keys["V"] = (VIEWS.capitalize(), lambda _: self.eye.next())
        for key, (label, job) in keys.items():
            gui.add_command(label, hotkey=key).on_trigger(job)
        self.button.on_click(lambda _: self.play(not self.playing))

        for slider in (self.clock, self.speed):
            slider.on_update(lambda event, slider=slider: self.by_hand(slider, event.client))

        @path.on_update
        def _(_: Any) -> None:
            for line in scene.paths:
                line.visible = path.value

    def by_hand(self, slider: Any, client: Any) -> None:
        """Take what somebody has dragged or typed, the nearest number that is in the slider's range."""
        if client is not None:
            slider.value = min(max(slider.value, slider.min), slider.max)
            self.time = self.clock.value

    def frame(self) -> int:
        """Which frame is shown."""
        return min(round(self.time * self.rate), len(self.takes[0].root) - 1)

    def play(self, playing: bool) -> None:
        """Let time go on, or stand still."""
        self.playing = playing
        self.button.label = ("Pause" if playing else "Play") + " (space)"

    def step(self, seconds: float) -> None:
        """Let time stand still, so much later."""
        self.play(False)
        self.go(seconds)

    def go(self, seconds: float) -> None:
        """Show what is so much later; the end leads over to the start."""
        self.time = (self.time + seconds) % self.length
        self.clock.value = round(self.time, 2)

    def say(self) -> None:
        """Say how fast it is: ten times a second, or when time stands still."""
        frame = self.frame()
        if self.playing:
            frame -= frame % max(round(0.1 * self.rate), 1)
        if self.now.content != self.words[frame]:
            self.now.content = self.words[frame]


def serve(server: Any, character: Character, controls: Controls, stop: threading.Event) -> None:
    """Move the scene on the server's page, as its controls say, until `stop` is set."""
    eye, takes = controls.eye, controls.takes
    entitle(server, title_of(takes))
    last = time.perf_counter()
    while not stop.wait(1 / 60):
        now = time.perf_counter()
        if controls.playing:
            controls.go((now - last) * controls.speed.value)
        last = now
        with server.atomic():
            frame = controls.frame()
            course = float(takes[0].course[frame])
            if controls.follow.value or eye.stale:
                eye.carry(takes[0].root[frame].numpy(), course)
            shifts = shifts_of(takes, eye.view(), course)
            show(eye.scene, character, takes, frame, controls.contacts.value, shifts, eye.turn, eye.aside())
            controls.say()


def parse() -> argparse.Namespace:
    """The options. Raises InputError."""
    parser = one_line_parser(description="Look at motion clips in a browser.")
    add = parser.add_argument
    files = "clip (roll-outs are clips), folder of clips, or dataset file; none: the trained walk beside its clip"
    add("files", nargs="*", metavar="FILE", help=files)
    layouts = "; ".join(f"{name}: {meaning}" for name, meaning in LAYOUTS.items())
    add("--layout", choices=LAYOUTS, help=f"{layouts} (default: side, grid for more than {FEW}; beside without FILE)")
    add("--seconds", type=float, default=0.0, help="how long (default: the longest clip that ends; 10 s if all loop)")
    add("--commands", metavar="CSV", help="what the first FILE was told (--eval-commands): in green on the ground")
    add("--text", default="", help="a line for the page, figures for instance")
    add("--html", metavar="OUT", help="write one file that opens without a server or network, instead of the page")
    add("--host", default="127.0.0.1", help="address of the page (default 127.0.0.1: this machine only)")
    add("--port", type=int, help="its port (default: the first from 8080 on that is free)")
    add("--no-browser", action="store_true", help="only print the page's address")
    add("--character-file", default=os.path.join(HERE, "humanoid.xml"), help="the character (MJCF)")
    args = parser.parse_args()
    for policy in [x for x in args.files if x.endswith(".pt") or os.path.exists(os.path.join(x, "latest.pt"))]:
        raise InputError(f"{policy}: a policy, not a clip; python deploy/steer.py {policy}")
    args.layout = args.layout or ("" if args.files else "beside")
    args.files = args.files or SHOWN
    return args


def visit(server: Any, args: argparse.Namespace, title: str, job: Callable) -> None:
    """Say what the page shows and where, open it unless args.no_browser, and do the job that moves it until Ctrl-C."""
    try:
        address = f"http://{args.host}:{server.get_port()}"
        print(f"{title}: {address} (Ctrl-C ends it)", flush=True)
        if not args.no_browser:
            webbrowser.open(address)
        job()
    except KeyboardInterrupt:
        server.stop()


def main() -> None:
    with one_line("requirements.txt"):
        args = parse()
        if not 0.0 <= args.seconds <= 600.0:
            raise InputError(f"--seconds {args.seconds:g}: expected 0 to 600")
        if args.html:
            check_writable(args.html)
        character = ml.load_character(args.character_file)
        args.layout = layout_of(args.layout, args.files)
        if args.commands and args.layout == "grid":
            raise InputError(f"--commands {args.commands}: in a grid nobody goes anywhere; --layout side")
        more = dict(live=not args.html, commands=args.commands)
        rate, takes = load_takes(character, args.files, args.layout, args.seconds, **more)
        meshes = body_meshes(character.path)
        if args.html:
            write_file(args.html, page_of(character, meshes, takes, rate, args.layout, args.text).encode())
            who = f"{len(takes)} character{'s' if len(takes) > 1 else ''}"
            print(f"{args.html}: {who}, {len(takes[0].root)} frames, {os.path.getsize(args.html) / 1e6:.1f} MB")
            return
        server = start_server(args.host, args.port)
        scene = build(server, character, meshes, takes, args.layout)
        controls = Controls(server, scene, takes, rate, args.text, args.layout)
    link = " beside " if args.layout in ("side", "beside") else " and "
    visit(server, args, title_of(takes, link), lambda: serve(server, character, controls, threading.Event()))


if __name__ == "__main__":
    main()
