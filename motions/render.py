"""Draw a clip as a film strip, or film it. Clips and roll-outs hold every pose, so this serves every simulator.

    python motions/render.py CLIP.npz OUT.png [--start S] [--seconds S] [--poses N]     # a stride, left to right
    python motions/render.py CLIP.npz OUT.mp4 [--start S] [--seconds S]                 # or OUT.gif, OUT.webp
    python motions/render.py ROLLOUT.npz OUT.png --compare CLIP.npz    # a cycle of the clip above, the roll-out below
    python motions/render.py ROLLOUT.npz OUT.mp4 --compare CLIP.npz    # both in one film, the roll-out behind
    python motions/render.py ROLLOUT.npz OUT.mp4 --ghost CLIP.npz      # the clip, outlined, in the roll-out's place
    python motions/render.py ROLLOUT.npz OUT.mp4 --commands COMMANDS.csv --fixed
    python motions/render.py ROLLOUT.npz OUT.webp --compare CLIP.npz --loop   # a cycle that shows no seam

CLIP is any file in the format of motions/README.md: a clip in motions/ or a roll-out that `--evaluate` has written. A
roll-out is blue and a clip orange, right limbs dark, left ones light; the picture says so. The way through the clip
leads to the right, and a film's camera goes along, as near as limbs stay in the picture and out of what is written. An
mp4 has the clip's frame rate, a GIF or WebP about thirty frames a second, over a floor that leads from its last picture
to its first; a WebP has half a GIF's bytes, and smoother colours. --loop finds the cycle of a roll-out whose end looks
most like its start; the camera turns as the motion does meanwhile. It prints the seam, how far bodies leap from the
last picture to the first beside their way. The poses of a strip are drawn apart, however near they were, with their
times from the first on; it is as high as they need. --commands draws what a roll-out of the heading task was told (see
--eval-commands): an arrow, which shines through legs, the path commanded, the path taken, and a map of both in a
corner. With --fixed the camera stands still, where it sees the whole way, and there is no map. A clip that is compared
is in the roll-out's phase (same_phase), at its place and with its heading, so what differs is the pose. If that is
much, a warning says so. It needs MuJoCo, an OpenGL that draws without a screen (EGL or OSMesa; the environment variable
MUJOCO_GL picks one), and for films `pip install -r requirements-motions.txt`. Without a graphics card 20 s of film (600
pictures of 960 x 540) take a minute and a half of CPU time; --fast halves that. What takes longer than ten seconds says
how long it will be.
Bad input ends with one line that says what is wrong, and exit code 2; OUT is then what it was before.

Dimension key: T poses, N figures in a picture, J bodies (row 0 is the root), H x W pixels.
"""

import argparse
import contextlib
import ctypes.util
import io
import itertools
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
import xml.etree.ElementTree as ET
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import simulators  # noqa: F401  (its guards come before all that is slow)

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import motion_lib as ml
from evaluation import load_commands, reference_poses, relative_positions
from files import write_file
from motion_lib import Character, Clip, InputError
from motions.checks import strides_of
from motions.tools import one_line, one_line_parser

Poses = Tuple[Tensor, Tensor]  # world position (T, J, 3) [m] and rotation (T, J, 4) xyzw of every body
Pictures = Iterator[np.ndarray]  # each (H, W, 3) uint8
Size = Tuple[int, int]  # width and height of a picture [pixels]

HERE = os.path.dirname(os.path.abspath(__file__))
SIZES = {".png": (1200, 400), ".mp4": (960, 540), ".gif": (480, 270), ".webp": (480, 270)}
AGAIN = (".gif", ".webp")  # films that are shown again and again
COLOURS = {  # of right limbs, left limbs and trunk
    "policy": ("0.09 0.24 0.54 1", "0.52 0.77 1.00 1", "0.20 0.45 0.83 1"),
    "clip": ("0.66 0.31 0.03 1", "1.00 0.80 0.40 1", "0.97 0.55 0.12 1"),
}
WHITE = 'builtin="flat" rgb1="1 1 1" rgb2="1 1 1" width="16" height="96"'
SKY = 'builtin="flat" rgb1=".86 .92 .99" rgb2=".86 .92 .99" width="16" height="96"'
POSES = 7  # of a strip
LARGEST = 8192  # picture that is asked of OpenGL [pixels]
CELLS = 4  # time steps of a compared clip in a frame of the roll-out; its pace is from 1/2 to 2, see same_phase
# Camera angles in degrees, its gaze counter-clockwise from +X; a small fovy, from afar, leaves little perspective.
# `floor`: half its lengths along X and Y [m], and a spacing that does not show. Pictures are drawn `fine` times as high
# and wide, for smooth edges, and shadows on the ground `lamp` pixels high and wide.
CHECKER = 'rgb1=".97 .97 .97" rgb2=".87 .88 .90"'
PLAIN = 'rgb1=".97 .97 .98" rgb2=".97 .97 .98"'  # what Tiles are drawn on
STRIP = dict(azimuth=90, elevation=-7, fovy=5, floor="60 5 1", fine=4.0, lamp=1024, sky=WHITE, floors=CHECKER)
FILM = dict(azimuth=115, elevation=-9, fovy=24, floor="60 60 1", fine=2.0, lamp=512, sky=SKY, floors=CHECKER)
FILM_OF_PATH = dict(FILM, elevation=-20, fovy=30)  # from higher up, for what is drawn on the ground
FILM_OF_TWO = dict(FILM, azimuth=100, elevation=-7, fovy=20)  # their gait from the side, and none nearer than the other
FAST = dict(fine=1.0)
# Which way light shines. OpenGL's shadows have teeth, and take most of the time. So there are two of our own, on the
# ground alone: the sun's, and a soft one of what keeps the light of the sky away. Of each: how much light it takes, and
# how far its edge is blurred [m].
SUN, DOWN = (0.10, 0.60, -1.0), (0.0, 0.0, -1.0)
SHADOWS = ((SUN, 0.36, 0.02), (DOWN, 0.25, 0.10))
GHOST, OUTLINE = 0.55, (236, 120, 20)  # its opacity, where no figure is, and colour of its outline
INK = (0.2, 0.22, 0.26)  # colour of what is written, but names
FEET = 0.07  # what is nearer to the camera is drawn so far below z = 0 [m]
FRONT = 0.55  # how far below the feet a strip's floor is to be seen at most: it ends 5 m before them [m]
LIMBS = "right limbs dark, left light"
GROUPS = ("floor", "figures", "ghost")  # of what is drawn, each by itself if need be
# pose error that tells of a fall or another clip [m]: fallen walkers have .10 to .15, a walk .10 or more from clips of
# other motions; roll-outs that go on have up to .065, and ours up to .036
UNLIKE = 0.1
APART = 0.45  # between the bodies of two poses in a strip; limbs and heads are larger than their bodies' origins [m]
BESIDE = 0.40  # the same of two figures in a film [m]
LOWEST = 1.2  # a film shows at least so much, from above to below [m]
MARGIN = 0.035  # of a film's picture that nobody enters, at each edge, as a share of its height
CLEAR = 1.5  # how much more than for the figures alone a film may show, lest they hide what is written
HIDDEN = 0.75  # opacity of an arrow where a figure is before it
LINE = 10.0  # from one line that tells how far a film is to the next [s]
GIF = 30.0  # about so many pictures a second, also of WebP
WEBP = 75  # quality, of 100: half the bytes of a GIF, with all colours
GIF_COLOURS = 80  # as many as tell a smooth figure from a banded one; with 256 a file is a half larger
PATTERN = 2.0  # the floor repeats after this [m]
MAP = 0.36  # height of the map in a film's corner, as a share of the picture's
SEAM_SECONDS = 0.05  # of a difference in speed at a loop's seam: as visible as how far it leads in this time [s]
SEAM_TURN = 0.05  # of a loop's turn: the floor's rows are arcs then [m/rad]
STRETCH = 0.15  # how much shorter or longer a loop may be than what is asked for, as a share of that
TILE, DARK, SEEN = 0.5, 0.13, 3.0  # about a tile's side [m], how much light a dark one takes, how far they are seen [m]
AHEAD = 0.6  # of the root's ground point an arrow begins, beyond the feet [m]
SHAFT, HEAD = 0.07, 0.33  # half an arrow's width, and its head's: also its length [m]
PATH_STEP = 0.1  # between the points of a path [s]
TOLD, DONE = (0.05, 0.75, 0.20, 1.0), (0.14, 0.28, 0.50, 1.0)  # colours of the command and of the path taken
SCENE = """<mujoco>
  <statistic center="0 0 0.8" extent="1"/>
  <visual>
    <global offwidth="{width}" offheight="{height}" fovy="{fovy}"/>
    <quality shadowsize="0" offsamples="0"/>
    <headlight ambient="0.48 0.48 0.48" diffuse="0.30 0.30 0.30" specular="0 0 0"/>
    <map znear="1" zfar="{far}" fogstart="{fog}" fogend="50"/>
    <rgba fog=".86 .92 .99 1"/>
  </visual>
  <asset>
    <texture type="skybox" {sky}/>
    <texture name="floor" type="2d" builtin="checker" {floors} width="512" height="512"/>
    <material name="floor" texture="floor" texrepeat="{repeat} 1" texuniform="true" specular="0" shininess="0"/>
  </asset>
  <worldbody>
    <body mocap="true">
      <geom type="plane" size="{floor}" material="floor"/>
    </body>
    <light type="directional" dir="{sun}" castshadow="false" diffuse="0.42 0.42 0.42" specular="0.1 0.1 0.1"/>
    {figures}
  </worldbody>
</mujoco>
"""


def name_of(path: str, whole: bool = False) -> str:
    """What a clip file is called in a picture: "clip motions/walk", or of a roll-out "policy pretrained/walk.pt".

    A run's folder, clip__options__time, is called by its first part, "walk (best.pt)", unless `whole` is asked for."""
    with np.load(path, allow_pickle=False) as file:
        source = str(file["source"]) if "source" in file.files else ""  # of a roll-out: see report.write
    before, _, policy = source.partition("roll-out of ")
    parts = os.path.splitext(os.path.abspath(path))[0].split(os.sep)[-2:]
    policy = policy if whole else re.sub("__[^/]*/([^,]*)", r" (\1)", policy, count=1)
    return f"policy {policy[:120]}" if policy and not before else f"clip {'/'.join(parts)}"


def kind_of(names: Sequence[str]) -> str:
    """Whose colours a figure has that is alone: a "policy" has one, a "clip" the other. names: see name_of."""
    return "policy" if names[0].startswith("policy") else "clip"


def window(clip: Clip, start: float, seconds: float) -> Tuple[int, int]:
    """First and last frame of the part that begins at `start` and takes `seconds` [s], or ends with the clip."""
    end = len(clip.root_position) - 1
    if not 0 <= start * clip.fps < end:
        raise InputError(f"--start {start} lies outside the clip, which is {end / clip.fps:.2f} s long")
    first = min(round(start * clip.fps), end - 1)
    last = round(min((start + seconds) * clip.fps, end))
    if last == first:
        raise InputError(f"--seconds {seconds} is less than a frame of the clip ({1 / clip.fps:.3f} s)")
    return first, last


def gone_on(clip: Clip, path: str, character: Character, end: float) -> Clip:
    """A clip of the file `path` that goes on over its seam until `end` [s], if it wraps and is shorter."""
    count = math.ceil(end * clip.fps) + 1 if end < math.inf else 0
    if clip.loop != "wrap" or count <= len(clip.root_position):
        return clip
    state = ml.MotionLib(path, character).state(torch.zeros(count, dtype=torch.long), torch.arange(count) / clip.fps)
    return Clip(clip.fps, "clamp", state.root_position.double().numpy(), state.rotations.double().numpy())


def way_of(clip: Clip, first: int, last: int) -> Tensor:
    """Direction () [rad] from frame `first` to frame `last`, or the heading of who stays where it is."""
    way = torch.as_tensor(clip.root_position[last] - clip.root_position[first]).float()
    return (
        torch.atan2(way[1], way[0]) if way[:2].norm() > 0.3 else ml.heading(torch.as_tensor(clip.rotations[first, 0]))
    )


def poses_of(clip: Clip, character: Character, first: int, last: int, count: int) -> Poses:
    """`count` poses from frame `first` to frame `last`; the way between these is turned into +X, from x = y = 0 on."""
    frames = np.linspace(first, last, count).round().astype(int)
    root = torch.as_tensor(clip.root_position[frames] - clip.root_position[first] * [1, 1, 0]).float()  # (T, 3)
    rotations = torch.as_tensor(clip.rotations[frames]).float()
    turn = ml.quat_from_yaw(-way_of(clip, first, last).float()).expand(count, 4)
    rotations = torch.cat((ml.quat_multiply(turn, rotations[:, 0])[:, None], rotations[:, 1:]), 1)
    return ml.forward_kinematics(character, ml.quat_rotate(turn, root), rotations)


def same_phase(motions: ml.MotionLib, poses: Tensor, fps: float) -> Tensor:
    """When the one clip of `motions` is in the phase of poses (T, J-1, 3) [m] at `fps` frames a second -> (T,) [s].

    This is the pose error's warping path, made steady: cheapest in the same distances (evaluation.relative_positions),
    it starts anywhere in the clip, and goes through it at half to twice its pace; a clip that ends holds its end."""
    loop, length = bool(motions.loop[0]), float(motions.length[0])
    count = max(round(length * fps * CELLS), 1)
    times = torch.arange(count if loop else count + 1) * (length / count)  # of the cells, K of them
    reference = reference_poses(motions, torch.zeros_like(times, dtype=torch.long), times)  # (K, J-1, 3)
    steps = [*range(CELLS // 2, 2 * CELLS + 1)] + ([] if loop else [0])  # cells that a frame may advance
    came = torch.zeros(len(poses), len(times), dtype=torch.long)  # by which of the steps the best path comes to a cell
    total = torch.zeros(len(times))  # cost of the best path to each cell [m]
    for t, pose in enumerate(poses):
        if t:
            ways = torch.stack([total.roll(n) + 0.002 * abs(n / CELLS - 1.0) for n in steps])  # an even pace, if equal
            for way, n in zip(ways, [] if loop else steps):
                way[: n if n else -1] = math.inf  # no way around; only the end is held
            total, came[t] = ways.min(0)
        total = total + (reference - pose).norm(dim=-1).mean(-1)
    cell = int(total.argmin())
    path = torch.zeros(len(poses), 1, dtype=torch.double)
    for t in range(len(poses) - 1, 0, -1):
        path[t] = steps[int(came[t, cell])]
        cell = (cell - int(path[t])) % len(times)
    path = smooth((cell + path.cumsum(0)).numpy() * (length / count), 3)[:, 0]
    return torch.as_tensor(path if loop else path.clip(0.0, length)).float()


def poses_there(motions: ml.MotionLib, poses: Poses, fps: float) -> Poses:
    """The clip in the phase of a roll-out's poses, at its places and with its headings; warns if they are unlike."""
    relative = relative_positions(poses[0], poses[1][:, 0])
    time = same_phase(motions, relative, fps)
    first = torch.zeros_like(time, dtype=torch.long)  # and only clip
    error = float((reference_poses(motions, first, time) - relative).norm(dim=-1).mean())
    if error > UNLIKE:
        doubt = f"did it fall, or does it imitate another clip than {motions.files[0]}?"
        print(f"warning: pose error {error:.2f} m, trained policies have .01 to .06; {doubt}", file=sys.stderr)
    state = motions.state(first, time)
    turn = ml.quat_from_yaw(ml.heading(poses[1][:, 0]) - ml.heading(state.rotations[:, 0]))
    place = torch.cat((poses[0][:, 0, :2], state.root_position[:, 2:]), 1)
    rotations = torch.cat((ml.quat_multiply(turn, state.rotations[:, 0])[:, None], state.rotations[:, 1:]), 1)
    return ml.forward_kinematics(motions.character, place, rotations)


def apart(poses: Poses, other: Poses, azimuth: Union[float, np.ndarray]) -> Tuple[Poses, Tensor, float]:
    """The other's poses, so far to the right of the poses that none touches the other -> these, how far (3,) or (T, 3),
    how wide both are [m].

    azimuth: of the camera that sees this, at each pose (T,) if it turns [degrees]; both are equally far from it."""
    angle = torch.as_tensor(azimuth, dtype=torch.float).deg2rad()
    right = torch.stack((angle.sin(), -angle.cos(), torch.zeros_like(angle)), -1)  # (3,) or (T, 3)
    one, two = (((p - p[:, :1]) * right[..., None, :]).sum(-1) for p, _ in (poses, other))  # (T, J) from the roots [m]
    way = max(float((one.amax(1) - two.amin(1)).max()) + BESIDE, 0.95)
    wide = float(two.max() - one.min()) + way + 0.62
    return (other[0] + way * right[..., None, :], other[1]), way * right, wide


class Told(NamedTuple):
    """What a roll-out was told at each of its frames, in the picture's frame: see poses_of."""

    heading: Tensor  # (T,) [rad]
    speed: Tensor  # (T,) [m/s]
    path: Tensor  # (T, 2) where it would have led from the first frame on [m]


class Loop(NamedTuple):
    """The part of a motion whose end leads over to its start, seen by a camera that turns with it."""

    first: int  # frame
    count: int  # of frames; the next one looks like the first
    turn: float  # of the motion meanwhile [rad]
    seam: float  # how far bodies leap from the last picture to the first, beside their way, on average [m]


def best_loop(
    position: Tensor, fps: float, seconds: float, start: float = 0.0, every: int = 1, among: Sequence[int] = ()
) -> Loop:
    """Where poses (T, J, 3) [m] from `start` on come back to themselves, after about so long [s]: least visibly.

    Compared are places relative to the camera, and velocities, turned about the vertical into each other's heading.
    Half a second before and after the loop is left to the camera's smooth way. every: frames of a picture; among: at
    which of these frames it begins, if it can. Raises InputError."""
    position = position.double().numpy()
    reach = round(0.5 * fps)
    place = position.copy()
    place[..., :2] -= smooth(position[:, 0, :2], reach)[:, None]
    states = np.stack((place, SEAM_SECONDS * fps * np.gradient(position, axis=0)), 1)  # (T, 2, J, 3) [m]
    found = []
    shortest, longest = (round((1.0 + x) * seconds * fps / every) for x in (-STRETCH, STRETCH))  # [pictures]
    for count in range(every * max(shortest, 2), every * longest + 1, every):
        first = np.arange(max(reach, round(start * fps)), len(states) - reach - count)
        first = np.intersect1d(first, among) if len(among) else first
        if not len(first):
            continue
        before, after = states[first], states[first + count]
        plane = [(x[:, 0, :, 0] + 1j * x[:, 0, :, 1]) for x in (before, after)]  # (n, J)
        turn = np.angle((plane[1] * plane[0].conj()).sum(1))
        moved = (after[..., 0] + 1j * after[..., 1]) * np.exp(-1j * turn)[:, None, None]
        leap = np.stack((moved.real, moved.imag, after[..., 2]), -1) - before
        seam = np.linalg.norm(leap, axis=-1).mean(-1)  # (n, 2)
        n = int((seam.sum(1) + SEAM_TURN * abs(turn)).argmin())
        cost = float(seam[n].sum() + SEAM_TURN * abs(turn[n]))
        found.append((cost, Loop(int(first[n]), count, float(turn[n]), float(seam[n, 0]))))
    if not found and len(among):
        return best_loop(torch.from_numpy(position), fps, seconds, start, every)
    if not found:
        raise InputError(f"--loop: no {(1.0 + STRETCH) * seconds + 1.0:.1f} s from --start on to find a loop in")
    return min(found)[1]


class Tiles:
    """A chequered floor for a loop: from its last picture the camera's way leads to the same tiles as at first.

    The way from `begin` (2,) to `end` (2,) [m], turned by `turn` [rad], is part of a circle, however large; the tiles
    lie along it, and fade away from the camera's focus: across the circle they do not fit together."""

    def __init__(self, begin: np.ndarray, end: np.ndarray, turn: float) -> None:
        turn = turn if abs(turn) > 1e-3 else 1e-3
        start, stop = complex(*begin), complex(*end)
        self.pivot = (stop - start * np.exp(1j * turn)) / (1.0 - np.exp(1j * turn))
        self.middle = (start - self.pivot) * np.exp(0.5j * turn)
        self.radius = abs(self.middle)
        way = self.radius * abs(turn)
        self.side = way / (2 * max(round(way / (2 * TILE)), 1))  # two tiles are a pattern [m]
        self.dark = DARK if self.side > 0.2 else 0.0  # who stays in place has a plain floor

    def light(self, seen: np.ndarray, focus: np.ndarray, size: Size) -> np.ndarray:
        """How much light the ground gives back in a picture (H, W), 1 is all; seen: see ground_in."""
        u, v = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
        ground = np.linalg.inv(seen) @ np.stack((u, v, np.ones_like(u)), 0).reshape(3, -1)  # (3, H W)
        sky = (ground[2] <= 0.0).reshape(u.shape)
        place = ((ground[0] + 1j * ground[1]) / ground[2]).reshape(u.shape) - self.pivot
        along = np.angle(place / self.middle) * self.radius / self.side  # in tiles, as `across`
        across = (abs(place) - self.radius) / self.side
        waves = 1.0
        for tiles in (along, across):
            pixel = np.maximum(*(abs(x) for x in np.gradient(tiles)))  # size of a pixel, in tiles
            waves = waves * np.clip(np.sin(np.pi * tiles) / (0.5 * np.pi * pixel + 1e-9), -1, 1) * (pixel < 0.5)
        middle = complex(*focus[:2]) - self.pivot
        near = np.exp(-((abs(place - middle) / SEEN) ** 2)) * np.cos(0.5 * np.angle(place / middle)) ** 2
        return np.where(sky, 1.0, 1.0 - self.dark * near * (0.5 - 0.5 * waves))


def told_at(path: str, frame: Tensor, fps: float, turn: Union[float, Tensor] = 0.0) -> Told:
    """What a command file says at successive frames (T,), in axes turned by `turn` [rad]; its path begins at the
    origin. Raises InputError."""
    times, headings, speeds = load_commands(path, 1)
    row = torch.searchsorted(times, frame / fps, right=True) - 1  # each is valid until the next
    heading = headings[row, 0] - turn
    speed = speeds[row, 0]
    step = speed[:, None] * torch.stack((heading.cos(), heading.sin()), -1) / fps  # (T, 2)
    return Told(heading, speed, torch.cat((torch.zeros(1, 2), step[:-1].cumsum(0))))


def told_by(path: str, clip: Clip, first: int, last: int) -> Told:
    """What a command file says at the frames of a clip from first to last, +X its way. Raises InputError."""
    return told_at(path, torch.arange(first, last + 1), clip.fps, way_of(clip, first, last).float())


def top_of(position: Tensor) -> float:
    """Height [m] of what poses (T, J, 3) [m] take up: the highest body and a head above it."""
    return max(float(position[..., 2].max()) + 0.3, 1.2)


def outline(character: Character, poses: Poses) -> Tuple[np.ndarray, np.ndarray]:
    """Points in the limbs of poses (T, P, 3), and how far these reach about each (P,) [m]; none reaches further."""
    source = {body.get("name"): body.findall("geom") for body in ET.parse(character.path).iter("body")}
    bodies, points, reach = [], [], []
    for n, name in enumerate(character.body_names):
        for geom in source[name]:
            size, place, ends = (np.array((geom.get(key) or "").split(), float) for key in ("size", "pos", "fromto"))
            place = place if len(place) else np.zeros(3)
            found = [place]
            if geom.get("type") == "box":
                found = [place + size * corner for corner in itertools.product((-1, 1), repeat=3)]
            elif len(ends):
                found = np.linspace(ends[:3], ends[3:], 3)
            bodies += [n] * len(found)
            points += [*found]
            reach += [0.0 if geom.get("type") == "box" else size[0]] * len(found)
    offset = torch.as_tensor(np.array(points)).float().expand(len(poses[0]), -1, 3)
    return (poses[0][:, bodies] + ml.quat_rotate(poses[1][:, bodies], offset)).double().numpy(), np.array(reach)


def in_a_row(position: Tensor) -> Tuple[Tensor, float]:
    """Poses side by side along X, about x = 0: (T, J, 3) -> (T, J, 3), the row's width [m].

    None touches the next: a strip is no map of the way, so they may be further apart than they were."""
    along = position[..., 0] - position[:, :1, 0]  # (T, J) of the bodies from their roots [m]
    overlap = along[:-1].amax(1) - along[1:].amin(1)  # (T-1,) of neighbours in one place [m]
    steps = (overlap + APART).clamp_min(0.95)
    along[1:] += steps.cumsum(0)[:, None]
    low, high = along.min(), along.max()
    position = position - position[:, :1] * torch.tensor([1.0, 1.0, 0.0])
    position[..., 0] = along - 0.5 * (low + high)
    return position, float(high - low) + 0.8


def smooth(path: np.ndarray, reach: int) -> np.ndarray:
    """Weighted mean of each point of a path (T, 2) and `reach` points to either side, as if it went on at its ends."""
    weight = np.hanning(2 * reach + 3)[1:-1]
    path = np.pad(path, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")
    return np.stack([np.convolve(column, weight / weight.sum(), "valid") for column in path.T], -1)


def figure(character: Character, who: str) -> str:
    """MJCF of one character in the colours `who` (see COLOURS), whose bodies stand wherever they are put."""
    right, left, trunk = COLOURS["clip" if who == "ghost" else who]
    group = str(GROUPS.index("ghost" if who == "ghost" else "figures"))
    source = {body.get("name"): body.findall("geom") for body in ET.parse(character.path).iter("body")}
    lines = []
    for name in character.body_names:
        colour = {"right": right, "left": left}.get(name.split("_")[0], trunk)
        lines.append('<body mocap="true">')
        for geom in source[name]:
            shape = {key: geom.get(key) for key in ("type", "size", "pos", "fromto") if geom.get(key)}
            lines.append(ET.tostring(ET.Element("geom", shape, rgba=colour, group=group), encoding="unicode"))
        lines.append("</body>")
    return "\n".join(lines)


def distance_of(tall: float, fovy: float) -> float:
    """How far away [m] a camera of this field of view [degrees] sees so much, from above to below [m]."""
    return 0.5 * tall / math.tan(0.5 * math.radians(fovy))


def ground_in(
    azimuth: float, elevation: float, distance: float, focus: np.ndarray, size: Size, tall: float
) -> np.ndarray:
    """Matrix (3, 3) that takes a point on the ground, (x, y, 1) [m], to (u w, v w, w): u to the right and v down, in
    pixels of a picture of this size.

    The camera's gaze has azimuth and elevation [degrees]; `distance` [m] away, if not infinitely far, is `focus` (3,),
    in the middle of the picture, which is `tall` high there [m]."""
    a, e = math.radians(azimuth), math.radians(elevation)
    forward = np.array([math.cos(a) * math.cos(e), math.sin(a) * math.cos(e), math.sin(e)])
    right = np.array([math.sin(a), -math.cos(a), 0.0])
    scale = size[1] / tall  # pixels in a metre
    # u = U / 2 + scale right (p - f) / w, v = V / 2 + scale down (p - f) / w, w = 1 + forward (p - f) / distance
    rows = np.stack((scale * right, scale * np.cross(forward, right), forward / distance))
    matrix = np.column_stack((rows[:, :2], [0.0, 0.0, 1.0] - rows @ focus))  # of points with z = 0
    matrix[:2] += 0.5 * np.array(size)[:, None] * matrix[2]
    return matrix


class Stage:
    """N figures, light, floor and camera: built once, drawn in any poses. Raises InputError without OpenGL."""

    def __init__(
        self,
        character: Character,
        who: Sequence[str],
        look: dict,
        tall: float,
        wide: float,
        size: Size,
        pattern: float = PATTERN,
    ) -> None:
        """who: colours of each figure; `look` is STRIP or a FILM, `tall` the height of what is seen at the focus, and
        `wide` what the figures take up [m]; the floor repeats after `pattern` along X [m]."""
        if sys.platform.startswith("linux") and not os.environ.get("MUJOCO_GL"):  # MuJoCo's own choice needs a screen
            os.environ["MUJOCO_GL"] = "egl" if ctypes.util.find_library("EGL") else "osmesa"
        figures = "".join(figure(character, name) for name in who)
        fine = max(min(look["fine"], LARGEST / max(size)), 1.0)
        width, height = (round(fine * side) for side in size)
        distance = distance_of(tall, look["fovy"])
        largest = dict(width=max(width, look["lamp"]), height=max(height, look["lamp"]))
        light = dict(sun="{} {} {}".format(*SUN), fog=distance + 2.0, far=2.0 * distance + 100.0)
        xml = SCENE.format(figures=figures, repeat=PATTERN / pattern, **largest, **light, **look)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # GLFW's, of a display that is not there
                import mujoco  # reads MUJOCO_GL
                import PIL.Image  # comes with TensorBoard

                self.model = mujoco.MjModel.from_xml_string(xml)
                self.renderer = mujoco.Renderer(self.model, height, width)
                self.lamp = mujoco.Renderer(self.model, look["lamp"], look["lamp"])
        except ModuleNotFoundError as error:
            raise InputError(f"{error}; pip install -r requirements.txt, with Python 3.10 or newer") from error
        except Exception as error:  # each way of having no OpenGL raises something else
            fault = f"MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}: {' '.join(str(error).split())[:120]}"
            advice = "on Debian or Ubuntu: apt-get install libosmesa6, then set MUJOCO_GL=osmesa"
            raise InputError(f"no OpenGL to draw without a screen ({fault}); {advice}") from error
        self.mujoco = mujoco
        self.size = size
        self.pattern = np.array([pattern, PATTERN, 1.0])
        self.image = PIL.Image
        self.data = mujoco.MjData(self.model)
        self.fog = look["sky"] == SKY
        self.ghost = "ghost" in who
        self.camera = mujoco.MjvCamera()
        self.camera.azimuth = look["azimuth"]
        self.camera.elevation = look["elevation"]
        self.camera.distance = distance
        self.tall = tall
        self.lit = 1.2 * wide  # what the sun's picture shows [m]
        self.fovy = look["fovy"]

    def draw(
        self,
        position: Tensor,
        rotation: Tensor,
        focus: np.ndarray,
        marks: Sequence[Tuple[np.ndarray, Tuple]] = (),
        tiles: Optional[Tiles] = None,
    ) -> np.ndarray:
        """Picture (H, W, 3) uint8 of poses (N, J, 3), (N, J, 4), with the point `focus` (3,) [m] in its middle.

        marks: lines on the ground, each points (n, 2) [m] and a colour; a single line of two points is an arrow.
        tiles: on the floor, which is PLAIN then."""
        from PIL import ImageChops

        self.data.mocap_pos[0] = self.pattern * np.round(focus / self.pattern * [1, 1, 0])  # goes along, by patterns
        self.data.mocap_pos[1:] = position.reshape(-1, 3).numpy()
        self.data.mocap_quat[1:] = rotation.reshape(-1, 4).numpy()[:, [3, 0, 1, 2]]  # wxyz
        self.mujoco.mj_kinematics(self.model, self.data)
        self.mujoco.mj_camlight(self.model, self.data)
        self.camera.lookat[:] = focus
        picture = self.shot(("floor", "figures"), marks)
        figures = self.shot(("figures",))
        picture = self.with_ghost(picture, figures) if self.ghost else picture
        bright = figures
        for mark in [x for x in marks if len(x[0]) == 2]:  # an arrow is seen through figures, and in their shadows
            arrow = self.shot((), [mark])
            picture = shining(picture, arrow, figures)
            bright = np.maximum(bright, arrow)
        picture = self.image.fromarray(picture)
        shade = ImageChops.lighter(self.shade(focus, tiles), self.where(bright).resize(self.size, self.image.BOX))
        picture = picture.resize(self.size, self.image.BOX)
        return np.asarray(ImageChops.multiply(picture, self.image.merge("RGB", [shade] * 3)))

    def shade(self, focus: np.ndarray, tiles: Optional[Tiles] = None) -> Any:
        """How much light the ground has in a picture, as an image of PIL; 255 is all of it."""
        from PIL import ImageChops, ImageFilter

        shade = self.image.new("L", self.size, 255)
        seen = ground_in(self.camera.azimuth, self.camera.elevation, self.camera.distance, focus, self.size, self.tall)
        if tiles:
            shade = self.image.fromarray((255.0 * tiles.light(seen, focus, self.size)).round().astype(np.uint8))
        for light, dark, blur in SHADOWS:
            camera = self.mujoco.MjvCamera()
            camera.azimuth = math.degrees(math.atan2(light[1], light[0]))
            camera.elevation = -math.degrees(math.atan2(-light[2], math.hypot(*light[:2])))
            camera.orthographic = True
            camera.distance = 20.0
            camera.lookat[:] = focus
            shadow = self.where(self.shot(("figures",), camera=camera), round(dark * 255))
            shadow = shadow.filter(ImageFilter.GaussianBlur(blur * shadow.width / self.lit))
            lit = ground_in(camera.azimuth, camera.elevation, math.inf, focus, shadow.size, self.lit)
            way = lit @ np.linalg.inv(seen)  # from a pixel of the picture to one of what the light sees
            way = (way / way[2, 2]).ravel()[:8]
            shadow = shadow.transform(self.size, self.image.PERSPECTIVE, way, self.image.BILINEAR)
            shade = ImageChops.multiply(shade, ImageChops.invert(shadow))
        return shade

    def where(self, figures: np.ndarray, value: int = 255) -> Any:
        """Where figures (H, W, 3) are that were drawn on black, as an image of PIL: `value` there, else 0."""
        return self.image.fromarray((figures[..., 1] > 0) * np.uint8(value))

    def shot(
        self, groups: Sequence[str], marks: Sequence[Tuple[np.ndarray, Tuple]] = (), camera: Any = None
    ) -> np.ndarray:
        """Picture, as large as OpenGL draws it, of some GROUPS. Without the floor it is one of figures on black.

        camera: a light, whose parallel rays draw it on the ground."""
        renderer = self.lamp if camera else self.renderer
        self.model.vis.global_.fovy = self.lit if camera else self.fovy
        option = self.mujoco.MjvOption()
        option.geomgroup[:] = [n < len(GROUPS) and GROUPS[n] in groups for n in range(len(option.geomgroup))]
        flags = self.mujoco.mjtRndFlag
        renderer.scene.flags[flags.mjRND_SHADOW] = False
        renderer.scene.flags[flags.mjRND_HAZE] = False
        renderer.scene.flags[flags.mjRND_SKYBOX] = "floor" in groups
        renderer.scene.flags[flags.mjRND_FOG] = "floor" in groups and self.fog
        renderer.update_scene(self.data, camera or self.camera, option)
        for points, colour in marks:
            self.mark(points, colour)
        return renderer.render()

    def with_ghost(self, picture: np.ndarray, figures: np.ndarray) -> np.ndarray:
        """A picture (H, W, 3) with the ghost: translucent where no figure is, and its outline over all.

        figures: the picture of these alone, on black."""
        ghost = self.shot(("ghost",))
        there = ghost.any(-1)  # (H, W)
        beside = there & ~figures.any(-1)
        picture[beside] = GHOST * ghost[beside] + (1.0 - GHOST) * picture[beside]
        width = max(len(picture) // 150, 2 * len(picture) // self.size[1])  # two pixels of what comes out, at least
        inner = [np.roll(there, n, axis) for n in (-width, width) for axis in (0, 1)]
        picture[there & ~np.logical_and.reduce(inner)] = OUTLINE
        return picture

    def mark(self, points: np.ndarray, colour: Tuple) -> None:
        """Put a line through points (n, 2) [m] on the ground into the scene; two points are an arrow, flat on it."""
        kinds = self.mujoco.mjtGeom
        if len(points) == 2:
            start, tip = points
            length = float(np.linalg.norm(tip - start))
            along = (tip - start) / length
            neck = max(length - HEAD, 0.0)
            turn = np.array([[along[0], -along[1], 0.0], [along[1], along[0], 0.0], [0.0, 0.0, 1.0]])
            middle = start + 0.5 * neck * along
            self.add(kinds.mjGEOM_BOX, [0.5 * neck, SHAFT, 0.001], [*middle, 0.012], turn, colour)
            # a triangle's right angle is where it stands, and its legs go along its x and y
            back = np.array([[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, math.sqrt(2.0)]]) / math.sqrt(2.0)
            leg = math.sqrt(2.0) * HEAD
            self.add(kinds.mjGEOM_TRIANGLE, [leg, leg, 0.0], [*tip, 0.013], turn @ back, colour)
            return
        # its top alone looks out of the ground: it casts no shadow
        points = np.pad(points, ((0, 0), (0, 1)), constant_values=-0.01).astype(np.float64)
        for start, end in zip(points, points[1:]):
            if np.linalg.norm(end - start) > 1e-6:
                geom = self.add(kinds.mjGEOM_CAPSULE, np.zeros(3), np.zeros(3), np.eye(3), colour)
                if geom:
                    self.mujoco.mjv_connector(geom, kinds.mjGEOM_CAPSULE, 0.02, start, end)

    def add(self, kind: int, size: Sequence[float], place: Sequence[float], turn: np.ndarray, colour: Tuple) -> Any:
        """Put a shape into the scene -> it, or None if the scene is full."""
        scene = self.renderer.scene
        if scene.ngeom == scene.maxgeom:
            return None
        geom = scene.geoms[scene.ngeom]
        size, place = np.array(size, np.float64), np.array(place, np.float64)
        self.mujoco.mjv_initGeom(geom, kind, size, place, turn.ravel(), np.array(colour, np.float32))
        scene.ngeom += 1
        return geom


def shining(picture: np.ndarray, arrow: np.ndarray, figures: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) in which an arrow shines through the figures before it; both also drawn alone, on black."""
    hidden = arrow.any(-1) & figures.any(-1)
    picture = picture.copy()
    picture[hidden] = HIDDEN * arrow[hidden] + (1.0 - HIDDEN) * picture[hidden]
    return picture


def font_of(height: int, text: Optional[int] = None) -> Any:
    """What is written with, in a picture or a row of a strip of this height, or a `text` of this height [pixels]."""
    from PIL import ImageFont

    return ImageFont.load_default(text or max(height // 26, 11))


def ink_of(who: str) -> Tuple[int, ...]:
    """Colour of what is written about `who`, as in COLOURS, or "told", "done", "" (anything else)."""
    shade = {"told": TOLD, "done": DONE, "": INK}.get(who) or [float(x) for x in COLOURS[who][2].split()]
    return tuple(int(160 * x) for x in shade[:3])  # dark enough on a grey floor


def write_on(image: Any, lines: Sequence[Any], font: Any) -> None:
    """Write lines, each (text, who: see ink_of) or several of these, into the upper left corner of a picture of PIL.

    All digits are as wide as the widest: a line in which they change stays where it is."""
    from PIL import ImageDraw

    pen = ImageDraw.Draw(image)
    digit = max(map(font.getlength, "0123456789"))
    for n, line in enumerate(lines):
        x, y = font.size, (0.7 + 1.35 * n) * font.size
        for text, who in line if isinstance(line, list) else [line]:
            for part in re.findall(r"\d|\D+", text):
                width = font.getlength(part)
                room = digit if part.isdigit() else width
                pen.text((x + 0.5 * (room - width), y), part, ink_of(who), font)
                x += room


def boxes_of(lines: Sequence[Any], font: Any) -> list:
    """What such lines take of a picture, from its upper left corner on: left, upper, right, lower edge [pixels]."""
    sides = [1.4 * font.size + font.getlength(text) if text else 0.0 for text, _ in lines]
    return [(0.0, 0.0, side, (2.1 + 1.35 * n) * font.size) for n, side in enumerate(sides)]


def write_under(image: Any, text: str, who: str, place: float, font: Any) -> None:
    """Write at the lower edge of a picture of PIL, about this place [pixels]."""
    from PIL import ImageDraw

    ImageDraw.Draw(image).text((place, image.height - 0.4 * font.size), text, ink_of(who), font, "ms")


def write_times(image: Any, places: Sequence[float], times: Sequence[float], font: Any) -> None:
    """Write times [s] along the lower edge of a picture of PIL, about these places [pixels], as many as have room."""
    texts = [f"{time:.2f} s" for time in times]
    gap = min(np.diff(places), default=math.inf)
    every = math.ceil(1.15 * max(map(font.getlength, texts)) / gap)
    for text, place in list(zip(texts, places))[:: max(every, 1)]:
        write_under(image, text, "", place, font)


def strip(
    character: Character,
    poses: Poses,
    other: Optional[Poses],
    size: Size,
    names: Sequence[str],
    times: Sequence[float],
    legend: str = LIMBS,
    text: Optional[int] = None,
    title: str = "",
) -> Tuple[bytes, Size]:
    """Poses in a row, seen from the right, as PNG; the other's, if there are any, in a row above -> and its size.

    It is lower than `size` if nobody is as high as that. names: what is written on them, of the poses and of the
    other's (see name_of); times: of the poses (T,), written under them [s]; legend: written beside the first name;
    text: see font_of; title: written before that name."""
    rows = [(kind_of(names), poses)] if not other else [("clip", other), ("policy", poses)]
    position, row = in_a_row(torch.cat([p for _, (p, _) in rows], 1))  # (T, 1 or 2 J, 3), so in one scale
    width, height = size[0], size[1] // len(rows)
    font = font_of(height, text)
    margin = min(3.6 * font.size, 0.5 * height)  # for the name above and the times below [pixels]
    top = float(position[..., 2].max()) + 0.3  # a head above the highest body [m]
    scale = min(width / row, (height - margin) / (top + FEET))  # pixels in a metre: all are seen
    height = min(height, round(margin + scale * (top + FEET)))
    below = min(1.4 * font.size / scale + FEET, FRONT)  # what is seen below z = 0 [m]
    focus = np.array([0.0, 0.0, 0.5 * height / scale - below])
    pictures = []
    for (who, (_, rotation)), place in zip(rows, position.chunk(len(rows), 1)):
        stage = Stage(character, [who] * len(place), STRIP, height / scale, row, (width, height))
        with stage.renderer, stage.lamp:
            image = stage.image.fromarray(stage.draw(place, rotation, focus))
        name = names[1 if other and who == "clip" else 0]
        heading = [(f"{title}   ", "")] if title and not pictures else []
        write_on(image, [heading + [(name if pictures else f"{name}   {legend}", who)]], font)
        pictures.append(np.asarray(image))
    write_times(image, 0.5 * width + scale * place[:, 0, 0].numpy(), times, font)
    pictures[-1] = np.asarray(image)
    file = io.BytesIO()
    picture = stage.image.fromarray(np.concatenate(pictures))
    picture.save(file, "png", optimize=True)
    return file.getvalue(), picture.size


def arrow_at(told: Told, way: np.ndarray, t: int) -> np.ndarray:
    """Where the command's arrow begins and ends at frame t (2, 2) [m], before who goes the way (T, 2) [m]."""
    along = np.array([math.cos(told.heading[t]), math.sin(told.heading[t])])
    length = HEAD + 0.25 * float(told.speed[t])  # its shaft is a quarter of a second of the command
    return way[t] + np.outer((AHEAD, AHEAD + length), along)


def corners_of(arrow: np.ndarray) -> np.ndarray:
    """Of an arrow on the ground from where to where (2, 2) [m]: its begin, its tip and its head's corners (4, 3)."""
    start, tip = arrow
    along = (tip - start) / np.linalg.norm(tip - start)
    across = np.array([-along[1], along[0]])
    corners = (start, tip, tip - HEAD * (along + across), tip - HEAD * (along - across))
    return np.pad(np.stack(corners), ((0, 0), (0, 1)))


def right_of(azimuths: np.ndarray) -> np.ndarray:
    """Which way is to the right (T, 3), seen with these azimuths (T,) [degrees]."""
    angle = np.radians(azimuths)
    return np.stack((np.sin(angle), -np.cos(angle), np.zeros_like(angle)), -1)


def across(path: np.ndarray, azimuth: float) -> float:
    """The azimuth nearest to another [degrees] from which a path (T, 2) leads across the picture, as far as it can."""
    axis = np.linalg.svd(path - path.mean(0), full_matrices=False)[2][0]  # (2,) along which it is longest
    found = math.degrees(math.atan2(axis[0], -axis[1]))  # right_of is that axis then
    return found + 180.0 * round((azimuth - found) / 180.0)


def framed(
    points: np.ndarray,
    reach: np.ndarray,
    azimuths: np.ndarray,
    look: dict,
    size: Size,
    below: float = 0.0,
    taken: Sequence[Tuple[float, ...]] = (),
) -> Tuple[float, float, float]:
    """How much a film shows, from above to below, the height of what its camera looks at, and how far that lies to the
    right of where the camera goes along [m]: so that it is as near as may be.

    All points (T, P, 3), from the ground where the camera goes along, and what lies within their reach (P,) [m], are in
    the picture while the camera has the azimuths (T,) [degrees]: `below` [pixels] from its lower edge, and outside of
    the boxes that are taken: left, upper, right and lower edge [pixels]. Boxes that cost too much are not heeded."""
    edge = MARGIN * size[1]
    inner = np.array([edge, edge, size[0] - edge, size[1] - max(below, edge)])
    right, e = right_of(azimuths), math.radians(look["elevation"])
    forward = math.cos(e) * np.cross([0.0, 0.0, 1.0], right) + [0.0, 0.0, math.sin(e)]
    axes = np.stack((right, np.cross(forward, right), forward), -1)  # (T, 3, 3) to the right, down and away
    points = points @ axes
    tall, alone = LOWEST, None
    while tall < 50.0 and not (alone and tall > CLEAR * alone[0]):
        height, aside, scale = 0.45 * tall, 0.0, size[1] / tall
        distance = distance_of(tall, look["fovy"])
        # the lowest of them lies at the lower edge, all in the middle or so far to the right, as a share of the room
        for n, push in enumerate((0.0, 0.0, 0.0, 0.15, 0.3)):
            seen = points - [aside, -height * math.cos(e), height * math.sin(e)]  # from what the camera looks at
            depth = (1.0 + seen[..., 2:] / distance).clip(0.1)  # who is behind the camera is far outside
            around = reach[:, None] * scale / depth
            middle = 0.5 * np.array(size) + scale * seen[..., :2] / depth
            low, high = middle - around, middle + around  # (T, P, 2)
            if n > 1 and (low >= inner[:2] - 1.0).all() and (high <= inner[2:] + 1.0).all():
                alone = alone or (tall, height, aside)
                if not any(((low < box[2:]) & (high > box[:2])).all(-1).any() for box in taken):
                    return tall, height, aside
            room = (low[..., 0].min() - inner[0], inner[2] - high[..., 0].max())  # to the left, to the right
            height += (inner[3] - high[..., 1].max()) / scale
            aside += ((0.5 - push) * room[0] - (0.5 + push) * room[1]) / scale
        tall *= 1.03
    return alone or (tall, height, aside)


def marks_of(told: Told, way: np.ndarray, t: int, every: int) -> Sequence[Tuple[np.ndarray, Tuple]]:
    """What is drawn on the ground at frame t: the path commanded, the path taken (T, 2) [m] so far, the command."""
    taken = np.concatenate((way[:t:every], way[t : t + 1]))
    marks = [(told.path[::every].numpy(), TOLD), (taken, DONE), (arrow_at(told, way, t), TOLD)]
    return [(points, colour) for points, colour in marks[:2] if len(points) > 2] + marks[2:]


def from_above(told: Told, way: np.ndarray, t: int, every: int, height: int) -> Any:
    """A map for a picture that is `height` pixels high: both paths (T, 2) [m], +X to the right, and the place at t."""
    from PIL import Image, ImageDraw, ImageFont

    side = round(MAP * height)
    fine = 4 * side  # drawn larger, for smooth lines
    ends = np.concatenate((told.path.numpy(), way))
    middle = 0.5 * (ends.max(0) + ends.min(0))
    span = 1.4 * max(float((ends.max(0) - ends.min(0)).max()), 2.0)  # what the map shows [m]
    image = Image.new("RGB", (fine, fine), (255, 255, 255))
    pen = ImageDraw.Draw(image)
    taken = np.concatenate((way[:t:every], way[t : t + 1]))
    for points, colour, width in ((told.path[::every].numpy(), TOLD, fine // 90), (taken, DONE, fine // 60)):
        pixels = [tuple(x) for x in ((points - middle) * [1, -1] / span + 0.5) * fine]
        pen.line(pixels, tuple(int(255 * x) for x in colour[:3]), width, "curve")
    x, y = pixels[-1]
    dot = fine // 30
    pen.ellipse((x - dot, y - dot, x + dot, y + dot), tuple(int(255 * x) for x in DONE[:3]))
    pen.rectangle((0, 0, fine - 1, fine - 1), None, (150, 156, 166), 6)
    font = ImageFont.load_default(max(fine // 13, 11))
    pen.text((fine // 30, fine // 50), f"from above, {span:.0f} m wide", (51, 56, 66), font)
    return image.reduce(4)


def film(
    character: Character,
    poses: Poses,
    other: Optional[Poses],
    fps: float,
    size: Size,
    every: int = 1,
    ghost: bool = False,
    told: Optional[Told] = None,
    turn: float = 0.0,
    again: bool = False,
    names: Sequence[str] = ("policy", "clip"),
    fast: bool = False,
    legend: Optional[str] = None,
    text: Optional[int] = None,
    loop: Optional[Loop] = None,
    title: str = "",
    fixed: bool = False,
) -> Pictures:
    """Every n-th of the poses, seen from the front right by a camera that goes along on the ground, smoothly.

    Time and speed stand in the picture. The other's poses, if there are any, are of a second figure before it, or of a
    ghost.
    told: what is drawn on the ground; turn: how far the camera turns meanwhile [degrees]; again: the film is shown in a
    loop, so the floor is to lead from its end to its start; names: what is written on it, of the poses and the other's;
    fast: see FAST; legend: what is written instead of limbs, time and speed; text: see font_of; loop: the part of the
    poses that is filmed (all); title: what the motion is called, written first; fixed: the camera stands still
    where it sees the whole way, as wide as may be."""
    look = FILM_OF_PATH if told else FILM
    wide = 0.0
    look = FILM_OF_TWO if other and not ghost else look
    shown = range(0, len(poses[0]), every)
    azimuths = look["azimuth"] + turn * np.linspace(0.0, 1.0, len(poses[0]))
    if loop:
        shown = range(loop.first, loop.first + loop.count, every)
        look = dict(look, floors=PLAIN)
        azimuths = look["azimuth"] + math.degrees(loop.turn) * (
            (np.arange(len(poses[0])) - loop.first) / loop.count - 0.5
        )
    way = smooth(poses[0][:, 0, :2].double().numpy(), round(0.5 * fps))
    whole = np.concatenate((way, told.path.numpy())) if told else way
    if fixed:
        azimuths = np.full(len(way), across(whole, look["azimuth"]))
    if other and not ghost:
        other, beside, wide = apart(poses, other, azimuths if loop or fixed else look["azimuth"] + 0.5 * turn)
    everyone = [poses] + ([other] if other else [])
    position, rotation = (torch.cat(x, 1) for x in zip(*everyone))  # (T, 1 or 2 J, 3), (T, 1 or 2 J, 4)
    who = ["policy", "ghost" if ghost else "clip"] if other else [kind_of(names)]
    middle = torch.stack([p[:, 0, :2] for p, _ in everyone]).mean(0).double().numpy()
    focus = np.pad(smooth(middle, round(0.5 * fps)), ((0, 0), (0, 1)))  # over half a second to either side
    speed = np.linalg.norm(np.gradient(focus[:, :2], axis=0), axis=1) * fps  # (T,) [m/s]
    if fixed:
        focus[:, :2] = 0.5 * (whole.min(0) + whole.max(0))
    tiles = Tiles(focus[loop.first, :2], focus[loop.first + loop.count, :2], loop.turn) if loop else None
    pattern = seamless(focus[::every, 0]) if again and not loop and not fixed else PATTERN
    step = max(round(PATH_STEP * fps), 1)
    font = font_of(size[1], text)
    margin = size[1] // 26  # of the map
    named = [
        *zip((names[0], names[1] + ", outlined" * ghost) if other else names[:1], ("policy", "clip") if other else who)
    ]
    under = named if title and other and not ghost else []  # of the figures, if these names are short
    lines = [(title, "")] * bool(title) + [x for x in named if x not in under]
    lines += [(LIMBS if legend is None else legend, "")] * (legend != "")
    lines += [("green: where it was told to go", "told"), ("blue line: the way it went", "done")] if told else []
    longest = "99.9 s   9.99 m/s, told 9.99" if told else "99.9 s   9.99 m/s"
    taken = boxes_of([*lines, (longest if legend is None else "", "")], font)
    inset = round(MAP * size[1]) + 2 * margin
    taken += [(size[0] - inset, 0, size[0], inset)] if told and not fixed else []
    there, reach = zip(*(outline(character, x) for x in everyone))
    if told:
        there = (*there, np.stack([corners_of(arrow_at(told, way, t)) for t in range(len(way))]))
        reach = (*reach, np.zeros(4))
    there = np.concatenate(there, 1) - focus[:, None]
    below = 1.7 * font.size if under else 0.0
    frame = (there[shown], np.concatenate(reach), azimuths[shown], look, size, below, taken)
    tall, focus[:, 2], aside = framed(*frame)
    focus += aside * right_of(azimuths)
    lit = max(top_of(position[shown]) + 0.5, tall, wide)
    stage = Stage(character, who, {**look, **(FAST if fast else {})}, tall, lit, size, pattern)
    with stage.renderer, stage.lamp:
        for t in shown:
            stage.camera.azimuth = azimuths[t]
            marks = marks_of(told, way, t, step) if told else ()
            image = stage.image.fromarray(stage.draw(position[t], rotation[t], focus[t], marks, tiles))
            asked = f", told {told.speed[t]:.2f}" if told else ""
            now = f"{(t - shown.start) / fps:.1f} s   {speed[t]:.2f} m/s{asked}" if legend is None else ""
            if told and not fixed:
                inset = from_above(told, way, t, step, size[1])
                image.paste(inset, (size[0] - inset.width - margin, margin))
            write_on(image, [*lines, (now, "")], font)
            for side, (name, whose) in zip((-0.5, 0.5), under):
                place = side * float(beside.norm(dim=-1).max()) - aside  # from the picture's middle [m]
                write_under(image, name, whose, 0.5 * size[0] + place * size[1] / tall, font)
            yield np.asarray(image)


def counted(pictures: Pictures, count: int) -> Pictures:
    """`count` pictures as they come; stderr shows how far they are: a bar on a terminal, else a line now and then."""
    bar = tqdm(pictures, "pictures", count, disable=None, leave=False)  # disabled where there is no terminal
    begin = said = time.monotonic()
    for n, picture in enumerate(bar, 1):
        yield picture
        now = time.monotonic()
        if bar.disable and now - said >= LINE and n < count:
            left = (now - begin) * (count - n) / n
            print(f"{n} of {count} pictures, about {left:.0f} s left", file=sys.stderr, flush=True)
            said = now


def seamless(x: np.ndarray) -> float:
    """The floor's pattern [m] nearest to PATTERN that fits the way x (T,) [m] of pictures shown in a loop."""
    way = abs(x[-1] - x[0]) * len(x) / max(len(x) - 1, 1)  # with the step from the last picture to the first
    return way / round(way / PATTERN) if way > 0.5 * PATTERN else PATTERN


def film_of(pictures: Pictures, fps: float, size: Size, ending: str) -> bytes:
    """Pictures as a film: ".mp4" (H.264), or ".gif" or ".webp", which play again and again. Raises InputError."""
    source = ["-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", str(fps)]
    if ending == ".gif":
        target = ["-vf", f"split[a][b];[a]palettegen=max_colors={GIF_COLOURS}[p];[b][p]paletteuse=dither=none"]
    elif ending == ".webp":
        target = ["-c:v", "libwebp_anim", "-quality", str(WEBP), "-compression_level", "5", "-loop", "0"]
    else:
        target = ["-pix_fmt", "yuv420p", "-crf", "20", "-preset", "veryfast", "-movflags", "+faststart"]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "film" + ending)
        try:
            import imageio_ffmpeg

            command = [imageio_ffmpeg.get_ffmpeg_exe(), *source, "-i", "-", *target, path]
            ffmpeg = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        except (ImportError, RuntimeError, OSError) as error:
            fault = f"no ffmpeg ({str(error).splitlines()[0]})"
            raise InputError(f"{fault}; pip install -r requirements-motions.txt") from error
        with ffmpeg:
            with contextlib.suppress(BrokenPipeError), ffmpeg.stdin:  # an ffmpeg that has given up says why
                for picture in pictures:
                    ffmpeg.stdin.write(picture.tobytes())
            fault = ffmpeg.stderr.read().decode(errors="replace").splitlines() or ["it does not say why"]
        if ffmpeg.returncode:
            raise InputError(f"ffmpeg failed with exit code {ffmpeg.returncode}: {fault[0][:200]}")
        with open(path, "rb") as file:
            return file.read()


def parse() -> argparse.Namespace:
    """The options, checked. Raises InputError."""
    parser = one_line_parser(description=__doc__)
    add = parser.add_argument
    add("clip", help="clip file (.npz)")
    add("out", help="file to write: .png is a strip, .mp4, .gif and .webp are films")
    add("--compare", metavar="CLIP", help="the clip that a roll-out imitates: above it in a strip, before it in a film")
    add("--ghost", metavar="CLIP", help="the clip that a roll-out imitates, outlined in its place (films)")
    add("--commands", metavar="FILE", help="what a roll-out was told, a file of --eval-commands: drawn on the ground")
    add("--fast", action="store_true", help="films with rougher edges, in half the time")
    add("--fixed", action="store_true", help="films: the camera stands still and sees the whole way")
    add("--turn", type=float, default=0.0, help="how far a film's camera turns to the left [degrees] (default 0)")
    begin = "default 0; in a strip that compares, where the clip first begins anew"
    add("--start", type=float, help=f"first pose [s] ({begin})")
    add(
        "--seconds",
        type=float,
        help="from first to last pose [s]; a loop goes on (default: all; in a strip a stride, or the compared clip)",
    )
    add(
        "--loop",
        action="store_true",
        help="films: a part from --start on whose end leads over to its start, where that is least seen; as long "
        "as the compared clip, and begun with it, or a stride, or about --seconds",
    )
    add(
        "--title",
        metavar="TEXT",
        default="",
        help="what the motion is called; figures are then `policy` and `the clip`",
    )
    add("--poses", type=int, help=f"how many a strip has (default {POSES}); a film has every frame")
    sizes = "strip 1200 400, of two 1200 640, mp4 960 540, gif and webp 480 270"
    add("--size", type=int, nargs=2, metavar=("W", "H"), help=f"of the picture [pixels] (default: {sizes})")
    add("--text", type=int, metavar="PIXELS", help="height of what is written (default: a 26th of a picture or row)")
    add(
        "--legend",
        metavar="TEXT",
        help="what is written but names (default: which limbs are dark; in a film also time, speed)",
    )
    add("--character-file", default=os.path.join(HERE, "humanoid.xml"), help="the character (MJCF)")
    args = parser.parse_args()
    args.ending = os.path.splitext(args.out)[1]
    if args.ending not in SIZES:
        raise InputError(f"{args.out}: expected a name that ends in .png (a strip), .mp4, .gif or .webp (a film)")
    if not os.path.isdir(os.path.dirname(os.path.abspath(args.out))):
        raise InputError(f"{args.out}: there is no such folder")
    if args.ending != ".png" and args.poses is not None:
        raise InputError("--poses is for strips, .png; a film has every frame")
    args.poses = POSES if args.poses is None else args.poses
    if not 1 <= args.poses <= 100 or not (args.seconds is None or args.seconds > 0):
        raise InputError("--seconds has to be positive, --poses from 1 to 100")
    args.size = tuple(args.size or ((1200, 640) if args.compare and args.ending == ".png" else SIZES[args.ending]))
    if not (args.text is None or 6 <= args.text <= 200):
        raise InputError("--text: expected from 6 to 200 pixels")
    if not all(16 <= side <= 4096 for side in args.size):
        raise InputError("--size: expected a width and a height from 16 to 4096")
    if args.ghost and args.compare:
        raise InputError("--ghost and --compare: one of them, the clip in the roll-out's place or beside it")
    if args.ending == ".png" and (args.ghost or args.commands or args.turn or args.fast or args.fixed):
        raise InputError("--ghost, --commands, --turn, --fixed and --fast are for films, .mp4, .gif or .webp")
    if args.loop and (args.ending == ".png" or args.commands or args.turn or args.fixed):
        raise InputError("--loop is for films, .mp4, .gif or .webp, without --commands, --turn and --fixed")
    if args.fixed and args.turn:
        raise InputError("--fixed and --turn: one of them, the camera stands still or turns")
    if not abs(args.turn) <= 3600:
        raise InputError("--turn: expected degrees from -3600 to 3600")
    if args.ending == ".mp4" and any(side % 2 for side in args.size):
        raise InputError("--size: width and height of an mp4 have to be even")
    return args


def cycle_begins(motions: ml.MotionLib, clip: Clip, character: Character) -> List[int]:
    """Frames of a roll-out at which the one clip of `motions` begins anew beside it; none if that is no loop."""
    if not motions.loop[0]:
        return []
    last = len(clip.root_position) - 1
    position, rotation = poses_of(clip, character, 0, last, last + 1)
    time = same_phase(motions, relative_positions(position, rotation[:, 0]), clip.fps)
    cycle = (time / motions.length[0]).floor()
    return ((cycle.diff() > 0).nonzero()[:, 0] + 1).tolist()


def strip_begins(motions: ml.MotionLib, clip: Clip, character: Character, seconds: float) -> float:
    """When the clip of `motions` first begins anew beside a roll-out [s]; 0 if less than so many seconds are left."""
    last = len(clip.root_position) - 1
    begins = [frame for frame in cycle_begins(motions, clip, character) if frame + seconds * clip.fps <= last + 1e-6]
    return begins[0] / clip.fps if begins else 0.0


def strip_seconds(character: Character, clip: Clip, otherwise: float) -> float:
    """How much of a clip a strip shows if nobody says [s]: one stride of a walk or a run, else `otherwise`.

    Evenly spaced poses of several strides may all have nearly the same phase: it would seem to hop on one leg."""
    stride, _ = strides_of(character, clip)
    return stride or otherwise


def loop_in(
    args: argparse.Namespace, clip: Clip, motions: Optional[ml.MotionLib], every: int
) -> Tuple[Clip, Loop, int, int]:
    """The clip, gone on if it wraps; its best loop, and the first and last frame that the camera needs for that."""
    character = ml.load_character(args.character_file)
    one = motions.clips[0] if motions else clip
    whole = float(motions.length[0]) if motions else (len(clip.root_position) - 1) / clip.fps
    seconds = args.seconds or strip_seconds(character, one, whole)
    clip = gone_on(clip, args.clip, character, args.start + 2.0 * seconds + 2.0)
    last = len(clip.root_position) - 1
    # few clips are true cycles: where the clip leaps from its end to its beginning, the film does so, too
    cycle = motions is not None and abs(seconds - whole) <= STRETCH * whole
    among = cycle_begins(motions, clip, character) if cycle else []
    loop = best_loop(poses_of(clip, character, 0, last, last + 1)[0], clip.fps, seconds, args.start, every, among)
    reach = round(0.5 * clip.fps)
    return clip, loop, loop.first - reach, loop.first + loop.count + reach


def main() -> None:
    with one_line("requirements.txt"):
        args = parse()
        character = ml.load_character(args.character_file)
        clip = ml.load_clip(args.clip, character.body_names)
        still = args.ending == ".png"
        other_file = args.compare or args.ghost
        motions = ml.MotionLib(other_file, character) if other_file else None
        if motions and len(motions.files) > 1:
            raise InputError(f"{other_file}: expected one clip, not {len(motions.files)}")
        seconds = args.seconds or math.inf
        if still and not args.seconds:
            whole = float(motions.length[0]) if motions else math.inf
            seconds = strip_seconds(character, motions.clips[0] if motions else clip, whole)
        if args.start is None:
            args.start = strip_begins(motions, clip, character, seconds) if still and motions else 0.0
        every = max(round(clip.fps / GIF), 1) if args.ending in AGAIN else 1
        window(clip, args.start, math.inf if args.loop else seconds)  # --start lies in the clip itself
        loop = None
        if args.loop:
            clip, loop, first, last = loop_in(args, clip, motions, every)
        else:
            clip = gone_on(clip, args.clip, character, args.start + seconds)
            first, last = window(clip, args.start, seconds)
        poses = poses_of(clip, character, first, last, last - first + 1)
        names = [name_of(path) for path in (args.clip, *(motions.files if motions else ()))]
        names = ["policy" if name.startswith("policy") else "the clip" for name in names] if args.title else names
        other = poses_there(motions, poses, clip.fps) if motions else None
        if still:
            legend = LIMBS if args.legend is None else args.legend
            shown = np.linspace(0, last - first, args.poses).round().astype(int)
            poses, other = [x and (x[0][shown], x[1][shown]) for x in (poses, other)]
            data, args.size = strip(
                character, poses, other, args.size, names, shown / clip.fps, legend, args.text, args.title
            )
        else:
            told = told_by(args.commands, clip, first, last) if args.commands else None
            more = dict(
                ghost=bool(args.ghost),
                told=told,
                turn=args.turn,
                again=args.ending in AGAIN,
                names=names,
                fast=args.fast,
                legend=args.legend,
                text=args.text,
                loop=loop and loop._replace(first=loop.first - first),
                title=args.title,
                fixed=args.fixed,
            )
            pictures = film(character, poses, other, clip.fps, args.size, every, **more)
            if loop:
                first, last = loop.first, loop.first + loop.count - 1
                args.start = first / clip.fps
            pictures = counted(pictures, math.ceil((last - first + 1) / every))
            data = film_of(pictures, clip.fps / every, args.size, args.ending)
        write_file(args.out, data)
        shown = f"{args.poses} poses" if still else f"{math.ceil((last - first + 1) / every)} pictures"
        size = f"{args.size[0]} x {args.size[1]}"
        part = " (a stride; --seconds shows more)" if still and not args.seconds and seconds < whole else ""
        begin = f" from {args.start:.2f} s on" if args.start else ""
        seam = f", seam {loop.seam:.3f} m" if loop else ""
        taken = f"{(last - first) / clip.fps:.2f} s{begin}{part}, {shown}, {size}{seam}"
        print(f"{args.out}: {taken}, {len(data) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
