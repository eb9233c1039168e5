"""Steer a policy on a page: live physics, heading and speed by keys, sliders or mouse, pushes, slow motion.

    python deploy/steer.py                                  # pretrained/heading.pt: go where you are told
    python deploy/steer.py pretrained/walk.pt               # a single clip's policy: the same without commands
    python deploy/steer.py my.pt --script my_amp.py         # of a copy of a script (it is executed)

The camera goes behind who is told where to go; key V looks from elsewhere. Beside it stands the moment of the clips
that its pose is nearest to. Physics runs in real time, whatever the page draws. Key T saves what it walked as a
roll-out, steered-1.npz, for motions/view.py and motions/render.py.
Any other option goes to the script, --motion-file CLIP for instance. Bad input ends with one line that says what is
wrong, and exit code 2.

Dimension key: J bodies (row 0 is the root), C clips, R poses of these; frames, units: motion_lib.py.
"""

import argparse
import collections
import html
import itertools
import math
import os
import sys
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import simulators  # noqa: F401  (before torch, for Isaac Gym)

import numpy as np
import torch
from torch import Tensor

import motion_lib as ml
from clips import save_clip
from console import short
from deploy import export
from evaluation import reference_poses, relative_positions
from files import InputError, find
from motions import view
from motions.tools import one_line, one_line_parser

PICTURES = 60.0  # a second, at most, that the page is sent; what it draws is the browser's affair
LATE = 0.25  # what the machine does not manage beyond this is dropped [s]
PUSH = 50.0  # at first: it staggers, and may fall [N s]
PUSH_SECONDS = 0.1  # how long a push takes
PUSH_SHOWN = 0.5  # how long its arrow is seen, also in slow motion [s]
TURN = 15.0  # by a key [degrees]
FASTER = 0.25  # by a key [m/s]
SLOW = 0.2  # how fast time passes in slow motion
REST = 2.0  # how long it lies after a fall, in the physics' time [s]
ASIDE = 1.0  # the nearest clip stands so far from the character [m]
MEAN_SECONDS = 1.0  # about a stride: over this speeds are averaged
CALM = 0.3  # time constant of a camera that goes around [s]
FROM_BEHIND = (-0.8, -0.33, 0.5)  # gaze of the first view of who is commanded: past its legs the arrow is seen
TRAIL = 150  # lines on the ground, each of TRAIL_STEP
TRAIL_STEP = 0.2  # [m]
SAID_SECONDS = 0.2  # after so long the words on the page are new ones
THERE = 0.5  # who is so near to where was clicked is there [m]
RECORDED = 600.0  # of what it walked so much can be saved, the last of it [s]
POSES = 20_000  # that a pose is compared to, at most
FORGET = 0.5  # time constant of the distance to each clip [s]
KEYS = [("space", "pause"), ("G", "hide orange")]  # that are on no button
CAMERA = ("arrows, WASD, drag", "camera")
TOLD_VIEWS = "side, front, above, fixed in the world, behind"  # that key V goes through
BUTTONS = ["J left", "I faster", "L right", "P push", "K slower", "R reset", "M slow", "V view", "T save"]  # as keys do
MOUSE, TOLD_MOUSE = ("Shift, click", "a limb: push it"), ("click", "the ground: go there")
LEGEND = [
    (view.colour_of(0, ""), "the policy, and the way it went"),
    (view.colour_of(1, ""), "nearest moment of its clips"),
    (view.RED, "touches the ground; a push"),
]
TOLD_LEGEND = (view.GREEN, "what it is told; your click")


# ---- 1. The physics --------------------------------------------------------------------------------------------------


def wrap(degrees: float) -> float:
    """The same direction between -180 and 180 degrees."""
    return (degrees + 180.0) % 360.0 - 180.0


class Walker:
    """The character in plain MuJoCo under its policy, a physics step at a time."""

    def __init__(self, loaded: export.Loaded) -> None:
        import mujoco

        self.mujoco = mujoco
        self.env = loaded.env
        self.policy = loaded.policy
        self.character = loaded.env.motions.character
        self.model = loaded.env.sim.model
        self.data = mujoco.MjData(self.model)
        self.substeps = loaded.args.substeps
        self.name = "/".join(os.path.abspath(loaded.args.checkpoint).split(os.sep)[-2:])
        self.rate = 1.0 / (self.substeps * self.model.opt.timestep)  # of the control steps [1/s]
        self.starts = export.starts(loaded.env)  # qpos (n, nq), qvel (n, nv)
        self.row = -1  # of these, the one that it has begun with
        self.goal = 0.0  # where it is to go [rad, world]
        self.heading = 0.0  # that it is told, which turns there [rad, world]
        self.speed = 0.0  # that it is told [m/s]
        self.reset()

    def reset(self) -> None:
        """Begin anew, from the next start."""
        self.row = (self.row + 1) % len(self.starts[0])
        self.mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = self.starts[0][self.row]
        self.data.qvel[:] = self.starts[1][self.row]
        self.steps = 0  # of the physics since then
        self.heading = 0.0  # as the starts face; step() turns it to the goal, as all at once it may stumble
        self.walked = collections.deque(maxlen=round(RECORDED * self.rate))  # qpos (nq,) at the control steps
        count = round(MEAN_SECONDS * self.rate)
        # at the last control steps: its velocity ahead and to the left of where it is told to go [m/s]
        self.recent = collections.deque(maxlen=count)
        self.owed = 0.0  # time that has passed, but not yet in the physics [s]
        self.pushed = 0  # physics steps until a push ends
        self.end = ""  # why it is over: that it fell, or that its clip has ended
        self.down = 0.0  # for how long it has been, in the physics [s]

    def push(self, body: int, impulse: np.ndarray) -> None:
        """Push a body with an impulse (3,) [N s, world]."""
        self.data.xfrc_applied[body + 1, :3] = impulse / PUSH_SECONDS  # body 0 is MuJoCo's world
        self.pushed = round(PUSH_SECONDS / self.model.opt.timestep)

    def step(self) -> None:
        """One physics step; at the start of each control step the policy sets new targets."""
        if self.steps % self.substeps == 0:
            most = export.TURN_RATE / self.rate
            way = math.radians(wrap(math.degrees(self.goal - self.heading)))
            self.heading += min(max(way, -most), most)
            cos, sin = math.cos(self.heading), math.sin(self.heading)
            self.walked.append(self.data.qpos.copy())
            x, y = self.data.qvel[:2]
            self.recent.append((cos * x + sin * y, cos * y - sin * x))
            seen = [torch.from_numpy(x)[None] for x in (self.data.qpos, self.data.qvel)]
            told = [torch.tensor([[self.heading, self.speed]], dtype=torch.float64)] if self.policy.commanded else []
            self.data.ctrl[:] = self.policy(*seen, *told)[0].numpy()
        self.mujoco.mj_step(self.model, self.data)
        self.steps += 1
        self.pushed -= 1
        if self.pushed == 0:
            self.data.xfrc_applied[:] = 0.0

    def advance(self, seconds: float) -> float:
        """Let time pass [s]: as many steps as fit into it; the rest is owed -> what was not dropped of it [s]."""
        kept = min(seconds, LATE - self.owed)
        self.owed += kept
        while self.owed >= self.model.opt.timestep:
            self.step()
            self.owed -= self.model.opt.timestep
        return kept

    def pace(self) -> Tuple[float, float]:
        """Over a second, so without sway: its speed [m/s], the direction of that [rad, world]."""
        ahead, left = np.mean(self.recent or [(0.0, 0.0)], axis=0)
        return math.hypot(ahead, left), self.heading + math.atan2(left, ahead)

    def state(self) -> ml.MotionState:
        """State of batch (1,) at this moment, which may lie between two steps."""
        qpos = self.data.qpos.copy()
        self.mujoco.mj_integratePos(self.model, qpos, self.data.qvel, self.owed)
        now = [torch.from_numpy(x).float()[None] for x in (qpos, self.data.qvel)]
        return self.policy.coordinates.read(*now)

    def ended(self, lowest: Tensor) -> str:
        """Why it is over, or "": it fell, by the script's own rule, or its clip has ended; lowest (1, J): of each body
        [m]."""
        clip = self.env.clip[self.row : self.row + 1]
        now = self.env.time[self.row : self.row + 1] + self.steps * self.model.opt.timestep
        over = ~self.env.motions.loop[clip] & (now > self.env.motions.length[clip])
        if self.env.fallen(clip, now, lowest):
            return "it fell"
        return "its clip has ended" if over else ""

    def watch(self, lowest: Tensor, seconds: float) -> None:
        """See whether it is over, and count for how long: `seconds` have passed in the physics."""
        self.end = self.end or self.ended(lowest)
        if self.end:
            self.down += seconds

    def save(self) -> str:
        """Write what it walked since it began as a roll-out, steered-1.npz or the next number -> the file's path.

        Raises OSError."""
        qpos = torch.from_numpy(np.stack(self.walked)).float()  # (T, nq)
        state = self.policy.coordinates.read(qpos, torch.zeros(len(qpos), self.model.nv))
        clip = ml.Clip(self.rate, "clamp", state.root_position.numpy(), state.rotations.numpy())
        names = (f"steered-{number}.npz" for number in itertools.count(1))
        path = next(name for name in names if not os.path.exists(name))
        about = f"roll-out of {self.name}, steered" + f", {self.end}" * bool(self.end)
        save_clip(path, clip, self.character.body_names, about, "as the clips it imitates")
        return path


class Nearest:
    """Which clip a pose is nearest to, and where in it, by distances over half a second, which do not flicker."""

    def __init__(self, motions: ml.MotionLib, rate: float) -> None:
        """rate: poses a second that it will be shown."""
        first = np.unique(motions.files, return_index=True)[1]  # of a clip at several rates
        length = torch.zeros_like(motions.length)  # (C,) that is looked at [s]
        length[first] = motions.length[first]
        every = max(float(length.sum()) / POSES, 1.0 / 60.0)  # [s]
        times = [torch.arange(0.0, end, every) for end in length.tolist()]
        self.clip = torch.cat([torch.full(time.shape, c, dtype=torch.long) for c, time in enumerate(times)])  # (R,)
        self.time = torch.cat(times)  # (R,) [s]
        self.poses = reference_poses(motions, self.clip, self.time)  # (R, J-1, 3) [m]
        self.keep = math.exp(-1.0 / (rate * FORGET))
        self.distance = torch.ones(len(times))  # (C,) smooth [m]

    def __call__(self, pose: Tensor) -> Tuple[int, float, float]:
        """pose (J-1, 3) (see evaluation.relative_positions) -> clip, time in it [s], smooth distance [m]."""
        distance = (self.poses - pose).norm(dim=-1).mean(-1)  # (R,) [m]
        best = torch.full_like(self.distance, math.inf).scatter_reduce(0, self.clip, distance, "amin")  # (C,)
        self.distance = self.keep * self.distance + (1.0 - self.keep) * best
        clip = int(self.distance.argmin())
        row = int(torch.where(self.clip == clip, distance, math.inf).argmin())
        return clip, float(self.time[row]), float(self.distance[clip])


# ---- 2. The page -----------------------------------------------------------------------------------------------------


class Controls:
    """What stands beside the picture, and what keys and mouse do. The sliders hold what the character is told."""

    def __init__(
        self, server: Any, scene: view.Scene, walker: Walker, speeds: Tuple[float, float], eye: view.Eye
    ) -> None:
        """speeds: range of the commands that it was trained with [m/s]."""
        gui = server.gui
        told = walker.policy.commanded
        self.walker = walker
        self.scene = scene
        self.eye = eye
        self.jobs: List[Any] = []  # for the thread of the physics
        self.blow = (0, 0.0, -math.inf)  # the last push: body, direction [rad, world], when [s]
        self.readout = gui.add_html("")
        self.target: Optional[np.ndarray] = None  # where it is to go, on the ground (2,) [m, world]
        self.patience = 0.0  # how long it may try to [s]
        gui.add_html(help_of(told))
        buttons = gui.add_button_group("", [x for x in BUTTONS if told or x[0] not in "JILK"])
        buttons.on_click(lambda event: self.jobs_of[event.target.value[0]]())
        self.heading = gui.add_slider("Heading [°]", -180.0, 180.0, 1.0, 0.0, visible=told)
        self.speed = gui.add_slider("Speed [m/s]", *speeds, 0.05, min(max(1.5, speeds[0]), speeds[1]), visible=told)
        self.pause = gui.add_button("Pause")
        self.playing = True
        self.saved = gui.add_markdown("", visible=False)
        self.pause.on_click(lambda _: self.play_or_pause())
        gui.add_html(legend_of(told))
        with gui.add_folder("more", expand_by_default=False):
            self.impulse = gui.add_slider("Push [N s]", 5.0, 150.0, 5.0, PUSH)
            self.pace = gui.add_slider("Time (1 is real)", 0.05, 1.0, 0.05, 1.0)
            shown = ("Follow", "Nearest clip", "Begin anew after a fall")
            self.follow, self.ghost, self.again = (gui.add_checkbox(x, True) for x in shown)
        self.heading.on_update(lambda event: self.by_hand(event.client))
        self.jobs_of = self.keys(server, told)
        self.mouse(server, told)
        server.on_client_connect(lambda _: self.welcome(server))

    def welcome(self, server: Any) -> None:
        """Let time go on, and show the nearest clip, for a browser that comes alone: as at first."""
        if len(server.get_clients()) == 1:
            if not self.playing:
                self.play_or_pause()
            self.ghost.value = True

    def keys(self, server: Any, told: bool) -> Dict[str, Callable]:
        """Bind the keys -> what each does; W, A, S, D, Q, E and the arrows are the camera's."""
        commands = {"space": ("Pause", self.play_or_pause), "R": ("Reset", lambda: self.jobs.append(self.walker.reset))}
        commands["P"] = ("Push from a random side", self.push_somewhere)
        commands["M"] = ("Slow motion", self.slow_or_not)
        commands["G"] = ("With or without the nearest clip", self.with_or_without)
        commands["T"] = ("Save the walk", lambda: self.jobs.append(self.save))
        commands["V"] = ((TOLD_VIEWS if told else view.VIEWS).capitalize(), self.eye.next)
        if told:
            commands["J"] = ("Turn left", lambda: self.turn(TURN))
            commands["L"] = ("Turn right", lambda: self.turn(-TURN))
            commands["I"] = ("Faster", lambda: self.faster(FASTER))
            commands["K"] = ("Slower", lambda: self.faster(-FASTER))
        for key, (label, job) in commands.items():
            server.gui.add_command(label, hotkey=key).on_trigger(lambda _, job=job: job())
        return {key: job for key, (_, job) in commands.items()}

    def mouse(self, server: Any, told: bool) -> None:
        """Bind the mouse: a click on the ground tells where to go; with shift, on the character, it pushes."""
        if told:
            server.scene.on_click()(lambda event: self.go_to(event.ray_origin, event.ray_direction))
        for body, node in enumerate(self.scene.bodies[0]):
            node.on_click(modifier="shift")(lambda event, body=body: self.push(body, event.ray_direction))

    def work(self) -> None:
        """Do what keys and mouse have asked of the physics."""
        while self.jobs:
            self.jobs.pop(0)()

    def play_or_pause(self) -> None:
        """Let time stand still, or go on."""
        self.playing = not self.playing
        self.pause.label = "Pause" if self.playing else "Play"

    def with_or_without(self) -> None:
        """Show the nearest clip, or not."""
        self.ghost.value = not self.ghost.value

    def slow_or_not(self) -> None:
        """Slow motion, or real time."""
        self.pace.value = SLOW if self.pace.value == 1.0 else 1.0

    def save(self) -> None:
        """Save what it walked, and say where, or why not, here and in the terminal."""
        try:
            if len(self.walker.walked) < 2:
                raise OSError(0, "it has not walked yet")
            path = self.walker.save()
            said, more = (
                f"{path}, {(len(self.walker.walked) - 1) / self.walker.rate:.1f} s",
                f"; python motions/view.py {path}",
            )
        except OSError as error:
            said, more = f"{error.filename or 'steered.npz'}: {error.strerror or error}; nothing is saved", ""
        print(said + more, flush=True)
        self.saved.content = view.unbroken(said)
        self.saved.visible = True

    def turn(self, degrees: float) -> None:
        """Turn the heading to the left by so much."""
        self.target = None
        self.heading.value = wrap(self.heading.value + degrees)

    def faster(self, step: float) -> None:
        """Raise the speed by a step [m/s], within the slider's range."""
        self.speed.value = min(max(self.speed.value + step, self.speed.min), self.speed.max)

    def by_hand(self, client: Any) -> None:
        """Forget where it was to go if somebody has moved the slider of the heading."""
        if client is not None:
            self.target = None

    def go_to(self, origin: Tuple[float, ...], direction: Tuple[float, ...]) -> None:
        """Head for where a ray from `origin` (3,) in `direction` (3,), in the page's world [m], meets the ground."""
        if direction[2] < 0:
            # the page moves the world, not the camera
            shifted = self.eye.in_world(np.array(origin) - self.scene.world.position)
            target = (shifted - self.eye.in_world(direction) * shifted[2] / direction[2])[:2]
            way = np.linalg.norm(target - self.walker.data.qpos[:2])
            self.patience = 4.0 + 1.5 * way / max(self.speed.value, 0.5)  # it may turn around what is near for ever
            self.target = target
            self.seek(0.0)

    def seek(self, seconds: float) -> None:
        """Turn the heading to where was clicked, until it is there or has had its time; then it goes on. `seconds` have
        passed in the physics."""
        target = self.target
        if target is None:
            return
        way = target - self.walker.data.qpos[:2]
        self.patience -= seconds
        if np.linalg.norm(way) < THERE or self.patience < 0.0:
            self.target = None
        else:
            self.heading.value = round(math.degrees(math.atan2(way[1], way[0])))

    def push(self, body: int, direction: Tuple[float, ...]) -> None:
        """Push a body along a direction (3,) of the page, on the ground."""
        along = self.eye.in_world(direction) * [1, 1, 0]
        impulse = self.impulse.value * along / max(np.linalg.norm(along), 1e-6)
        self.blow = (body, math.atan2(along[1], along[0]), time.perf_counter())
        self.jobs.append(lambda: self.walker.push(body, impulse))

    def push_somewhere(self) -> None:
        """Push the root from a random side."""
        angle = np.random.default_rng().uniform(-math.pi, math.pi)
        self.push(0, (math.cos(angle), math.sin(angle), 0.0))


def help_of(told: bool) -> str:
    """HTML of what keys and mouse do; told: the policy takes commands."""
    mouse = [f"<b>{key}</b> {meaning}" for key, meaning in [*[TOLD_MOUSE] * told, MOUSE, CAMERA]]
    keys = " &nbsp; ".join(f"<b>{key}</b> {meaning}" for key, meaning in KEYS)
    lines = "".join(f"<div>{row}</div>" for row in [*mouse, keys, "other keys as on the buttons:"])
    return f'<div style="{view.SMALL}">{lines}</div>'


def legend_of(told: bool) -> str:
    """HTML of what colours mean; told: the policy takes commands."""
    legend = "".join(view.DOT.format(f"rgb{colour}", text) for colour, text in [*LEGEND, *[TOLD_LEGEND] * told])
    return f'<div style="{view.SMALL}">{legend}</div>'


def build(server: Any, walker: Walker, meshes: view.Meshes) -> Tuple[view.Scene, Tuple, Tensor, view.Eye]:
    """The viewer's scene with the character, its trail and the nearest clip; an arrow that shows where it is to go, one
    of a push, and a mark where was clicked; the way from the character to the nearest clip (3,) [m], which does not
    swing around in turns; what key V does."""
    state = walker.state()
    root = state.root_position.expand(2, -1)
    rotations = state.rotations.expand(2, -1, -1)
    touching = torch.ones(rotations.shape[:2], dtype=torch.bool)  # of any body; of the clip none are shown
    takes = [view.Take("policy", root, rotations, touching)]
    place, middle = view.camera_of(takes, view.views_of(takes, "beside")[0])
    x, y, _ = place - middle
    aside = ASIDE * torch.tensor([y, -x, 0.0]) / math.hypot(x, y)  # to the left in the picture
    takes.append(view.Take("nearest clip", root + aside, rotations, ~touching, held="at its side"))
    scene = view.build(server, walker.character, meshes, takes, "beside")
    scene.paths.pop().remove()  # its way is the trail
    everyone = [*takes, takes[1]._replace(root=root - aside)]  # as if there was one on either side: it is in the middle
    eye = eye_of(server, scene, everyone, walker.policy.commanded)
    line = [[[0.0, 0.0, 0.02], [1.0, 0.0, 0.02]]]
    arrow = server.scene.add_arrows("/world/goal", np.array(line, np.float32), view.GREEN, head_length=0.2)
    arrow.visible = walker.policy.commanded
    line = [[[-0.9, 0.0, 0.0], [-0.15, 0.0, 0.0]]]  # up to the body's side
    look = dict(shaft_radius=0.03, head_radius=0.07, head_length=0.2, visible=False)
    blow = server.scene.add_arrows("/world/push", np.array(line, np.float32), view.RED, **look)
    corners = np.linspace(0.0, math.tau, 49)
    mark = view.add_path(
        server.scene, "/world/mark", 0.3 * np.stack((np.cos(corners), np.sin(corners)), 1), 0.012, view.GREEN
    )
    mark.visible = False
    line = [[[0.0, 0.0, 0.9], [0.0, 0.0, 0.05]]]  # down to its middle, to be seen from the side too
    server.scene.add_arrows("/world/mark/down", np.array(line, np.float32), view.GREEN, head_length=0.2)
    return scene, (arrow, blow, mark), aside, eye


def eye_of(server: Any, scene: view.Scene, takes: List[view.Take], told: bool) -> view.Eye:
    """What key V goes through, with the camera where the first view has it: behind who is told where to go, so that its
    left is the picture's."""
    view.aim(server, takes, "beside")
    eye = view.Eye(server, scene, takes, "beside")
    spots = [None, (-ASIDE, view.BEHIND * ASIDE), (0.0, -ASIDE), None]  # left in the picture, from side and front too
    lines = [spot and [(0.0, 0.0), spot] for spot in spots]
    fixed, *others = [one._replace(places=line, focus=(0.0, 0.0)) for one, line in zip(eye.views, lines)]
    eye.views = [fixed, *others]
    if told:
        behind = fixed._replace(gaze=FROM_BEHIND, turns=True, places=[(0.0, 0.0), (0.0, ASIDE)])
        eye.views = [behind, *others, fixed]
        camera = server.initial_camera
        camera.position, camera.look_at = view.camera_of(takes, behind)
    return eye


def follow(course: float, walker: Walker, seconds: float) -> float:
    """The course of a camera that goes around [rad], so much later: smoothly towards the character's, if it goes."""
    speed, way = walker.pace()
    if speed < view.STILL:
        return course
    return course + (1.0 - math.exp(-seconds / CALM)) * math.remainder(way - course, math.tau)


def picture(walker: Walker, nearest: Nearest, aside: Tensor) -> Tuple[List[view.Take], Tensor, str]:
    """What is shown now: character and nearest clip, the lowest points of the bodies (1, J) [m], and how near it is.

    aside (3,): from the one to the other [m]."""
    motions = walker.env.motions
    state = walker.state()
    position, rotation = ml.forward_kinematics(walker.character, state.root_position, state.rotations)
    lowest = ml.lowest_points(walker.character, position, rotation)
    clip, moment, distance = nearest(relative_positions(position, state.rotations[:, 0])[0])
    other = motions.state(torch.tensor([clip]), torch.tensor([moment]))
    here = (state.root_position, state.rotations)
    root, rotations = view.place(other.root_position, other.rotations, *here, "pinned", 1)
    takes = [view.Take("policy", *here, lowest <= view.TOUCH)]
    takes.append(view.Take("nearest clip", root + aside, rotations, lowest > math.inf))
    name = os.path.basename(motions.files[clip]).replace(".npz", "")
    return takes, lowest, f"{name}, {short(distance, 3)} m"


class Trail:
    """The way that it went, on the ground.

    The page draws new points and sizes of a line a while after a pose: a trail would end behind the figure. So its
    parts are lines of their own, of one length, and only posed. The last one ends under the figure; after TRAIL_STEP of
    the way it stays, and the oldest is the next. They overlap, and those not in use are under the ground."""

    def __init__(self, server: Any) -> None:
        ends = np.array([[-1.1 * TRAIL_STEP, 0.0], [0.0, 0.0]])
        names = [f"/world/trail {n}" for n in range(TRAIL)]
        self.parts = [view.add_path(server.scene, name, ends, 0.02, view.colour_of(0, "")) for name in names]
        self.ends: List[np.ndarray] = []  # of the two parts before the last one, at most (3,) [m]
        self.steps = 0  # of the physics, when it was shown

    def show(self, root: np.ndarray, steps: int) -> None:
        """Let it end under the root (3,) [m] after so many steps, or begin there anew if time has gone back."""
        spot = root * [1, 1, 0]
        if not self.ends or steps < self.steps:
            self.ends = [spot]
            for part in self.parts:
                part.position = (0.0, 0.0, -1.0)
        self.steps = steps
        while np.linalg.norm(spot - self.ends[-1]) > TRAIL_STEP:  # several times if the machine was late
            way = spot - self.ends[-1]
            self.ends = [self.ends[-1], self.ends[-1] + TRAIL_STEP * way / np.linalg.norm(way)]
            self.lay(self.ends[-1], way)
            self.parts = self.parts[1:] + self.parts[:1]
        for end in reversed(self.ends):
            if np.linalg.norm(spot - end) > 0.5 * TRAIL_STEP:  # else it does not say which way
                self.lay(spot, spot - end)
                break

    def lay(self, end: np.ndarray, way: np.ndarray) -> None:
        """Let the last part end there (3,) [m], and lie along a way (3,)."""
        self.parts[-1].position = end
        self.parts[-1].wxyz = view.yaw(math.atan2(way[1], way[0]))


def show_told(arrow: Any, mark: Any, walker: Walker, target: Optional[np.ndarray]) -> None:
    """Have the arrow point where it is told to go, as long as a second of that way; the mark is at the target (2,) [m],
    if there is one."""
    arrow.position = walker.state().root_position[0].numpy() * [1, 1, 0]
    arrow.wxyz = view.yaw(walker.heading)
    arrow.scale = (max(walker.speed, 0.1), 1.0, 1.0)
    if target is not None:
        mark.position = (*target, 0.0)
    if mark.visible != (target is not None):
        mark.visible = target is not None


def show_push(arrow: Any, walker: Walker, pushed: Tuple[int, float, float]) -> None:
    """Have the arrow point at the middle of the body that was pushed, along the force, if that was just now."""
    body, direction, moment = pushed
    visible = time.perf_counter() - moment < PUSH_SHOWN
    if visible:
        arrow.position = walker.data.xipos[body + 1]  # body 0 is MuJoCo's world
        arrow.wxyz = view.yaw(direction)
    if arrow.visible != visible:
        arrow.visible = visible


def readout(walker: Walker, share: float, near: str, playing: bool = True, wish: float = 1.0) -> str:
    """HTML of what the page says: its speed over the last second, the one it is told now [m/s]; that it is over, or how
    fast the physics runs if it does; and how near it is. wish: how fast it is to run, of real time; share: of that.

    It has room for four lines, so that what is below stays under the mouse."""
    speed = f"{short(walker.pace()[0])} m/s"
    if walker.policy.commanded:
        speed += f", told {short(walker.speed)} m/s"
    keeps_up = share > 0.97
    pace = f"at {100 * wish * (1.0 if keeps_up else share):.0f} % of real time" + ", as set" * keeps_up
    pace = "in real time" if keeps_up and wish == 1.0 else pace
    state = [walker.end] * bool(walker.end) + ["paused"] * (not playing)
    rows = [speed, ", ".join(state) or f"physics {pace}", f"nearest: {near}"]
    lines = "".join(f"<div>{view.unbroken(html.escape(row))}</div>" for row in rows)
    return f'<div style="{view.SMALL}; min-height:6em">{lines}</div>'


def headline(walker: Walker, playing: bool) -> str:
    """The panel's head, seen also when that is folded: the speed, or that it is over, or that time stands still."""
    words = [walker.end] * bool(walker.end) + ["paused"] * (not playing)
    return f"keys · {view.unbroken(', '.join(words) or short(walker.pace()[0]) + ' m/s')}"


def serve(server: Any, walker: Walker, meshes: view.Meshes, speeds: Tuple[float, float], stop: threading.Event) -> None:
    """Let time pass in the physics, and show it, until `stop` is set. speeds: range of the commands [m/s]."""
    server.gui.configure_theme(show_logo=False, show_share_button=False)
    view.entitle(server, "Steer the policy")
    scene, (arrow, blow, mark), aside, eye = build(server, walker, meshes)
    controls = Controls(server, scene, walker, speeds, eye)
    nearest = Nearest(walker.env.motions, PICTURES)
    trail = Trail(server)
    course = 0.0  # of a camera that goes around [rad]
    said: Tuple[Any, ...] = ()  # what the page's words are of
    share = 1.0  # of the time that is to pass, that passes in the physics; over a second
    last = time.perf_counter()
    while not stop.wait(max(last + 1.0 / PICTURES - time.perf_counter(), 0.001)):
        now = time.perf_counter()
        walker.goal = math.radians(controls.heading.value)
        walker.speed = controls.speed.value
        controls.work()
        passed = 0.0  # in the physics [s]
        if controls.playing:
            passed = walker.advance((now - last) * controls.pace.value)
            share += min(now - last, 1.0) * (passed / ((now - last) * controls.pace.value) - share)
        controls.seek(passed)
        course = follow(course, walker, now - last)
        moved = view.shifts_of(eye.takes[:2], eye.view(), course)[1]
        takes, lowest, near = picture(walker, nearest, aside + torch.from_numpy(moved).float())
        walker.watch(lowest, passed)
        if controls.again.value and walker.down > REST:
            walker.reset()
        last = now
        moment = int(walker.steps * walker.model.opt.timestep / SAID_SECONDS)
        with server.atomic():
            if controls.follow.value or eye.stale:
                eye.carry(takes[0].root[0].numpy(), course)
            view.show(scene, walker.character, takes, 0, turn=eye.turn, aside=eye.aside())
            scene.bodies[1][0].visible = scene.labels[1].visible = controls.ghost.value
            trail.show(takes[0].root[0].numpy(), walker.steps)
            show_told(arrow, mark, walker, controls.target)
            show_push(blow, walker, controls.blow)
            if said != (moment, controls.playing, walker.speed, walker.end):
                said = (moment, controls.playing, walker.speed, walker.end)
                controls.readout.content = readout(walker, share, near, controls.playing, controls.pace.value)
                server.gui.set_panel_label(headline(walker, controls.playing))
                scene.labels[1].text = "clip " + near.split(",")[0]


# ---- 3. The command --------------------------------------------------------------------------------------------------


def parse() -> Tuple[argparse.Namespace, List[str]]:
    """The options, and those of the script. Raises InputError."""
    parser = one_line_parser(description=__doc__)
    add = parser.add_argument
    add(
        "checkpoint",
        nargs="?",
        default="pretrained/heading.pt",
        help="checkpoint (.pt), or folder of a run (default: %(default)s)",
    )
    add("--script", help="script that the checkpoint is of, if it is none of ours")
    add("--host", default="127.0.0.1", help="address of the page (default 127.0.0.1: this machine only)")
    add("--port", type=int, help="its port (default: the first from 8080 on that is free)")
    add("--no-browser", action="store_true", help="only print the page's address")
    return parser.parse_known_args()


def main() -> None:
    torch.set_num_threads(1)
    with one_line("requirements.txt"):
        args, options = parse()
        if args.checkpoint.endswith(".npz"):
            raise InputError(f"{args.checkpoint}: a clip, not a policy; python motions/view.py {args.checkpoint}")
        loaded = export.load(find(args.checkpoint), args.script, tuple(options))
        walker = Walker(loaded)
        meshes = view.body_meshes(walker.character.path)
        server = view.start_server(args.host, args.port)
    speeds = getattr(loaded.args, "speed_range", (0.0, 0.0))
    job = lambda: serve(server, walker, meshes, speeds, threading.Event())  # noqa: E731
    view.visit(server, args, f"{args.checkpoint}, steered by you", job)


if __name__ == "__main__":
    main()
