"""Steer a policy on a page: live physics, heading and speed by keys, sliders or mouse, pushes, slow motion.

    python deploy/steer.py                                  # pretrained/heading.pt: go where you are told
    python deploy/steer.py pretrained/walk.pt               # a single clip's policy: the same without commands
    python deploy/steer.py my.pt --script my_amp.py         # of a copy of a script (it is executed)

The camera goes behind who is told where to go; key V looks from elsewhere. Beside it stands the moment of the clips
that its pose is nearest to. Physics runs in real time, whatever the page draws. Key T saves what it walked as a
roll-out, steered-1.npz, for motions/view.py and motions/render.py.
Any other option goes to the script, --motion-file CLIP for instance. Bad input ends with one line and exit code 2.

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
PUSH_SHOWN = 0.5  # how long its arrow is seen, in the physics' time [s]
TURN = 15.0  # by a key [degrees]
FASTER = 0.25  # by a key [m/s]
SLOW = 0.2  # how fast time passes in slow motion
REST = 2.0  # how long it lies after a fall, in the physics' time [s]
ASIDE = 1.0  # the nearest clip stands so far from the character [m]
MEAN_SECONDS = 1.0  # about a stride: over this speeds are averaged
CALM = 0.3  # time constant of a camera that goes around [s]
FROM_BEHIND = (-0.955, 0.0, 0.297)  # gaze of the first view of who is commanded: the horizon is seen, and the arrow
FIELD = 40.0  # of view then [degrees], as a long lens that sees a horizon looks along the ground
TRAIL = 150  # lines on the ground, each of TRAIL_STEP
TRAIL_STEP = 0.1  # [m]
NEWS_SECONDS = 8.0  # what came of a key or a click is said for so long
SAID_SECONDS = 0.2  # after so long the words on the page are new ones
BODY = 0.15  # a click so near to the middle of a body is on it [m]
THERE = 0.5  # who is so near to where was clicked is there [m]
FAR = 30.0  # what is farther is no place to go to: at the horizon the ground is endless [m]
CAREFUL = 1.5  # nearer to it than it comes in so long it slows down [s]
PATIENCE = 6.0  # it may take so long, and half as long again as the way does [s]
COMPASS = 0.65  # radius of the marks around the character [m]
RECORDED = 600.0  # of what it walked so much can be saved, the last of it [s]
POSES = 20_000  # that a pose is compared to, at most
FORGET = 0.5  # time constant of the distance to each clip [s]
NEARER = 0.9  # a clip is taken for the nearest one when its distance is so much of the last one's,
LONGER = 1.0  # or when it has been nearer for so long, more than a stride [s]
TOLD_VIEWS = "side, front, above, fixed in the world, behind"  # that key V goes through
STEER, TEST = ["J left", "L right", "K slower", "I faster"], ["P push", "R restart"]  # buttons, as keys do
HELP = ["<b>Shift, click</b> a limb: push it", "<b>arrows, WASD, drag</b> camera"]
TOLD_HELP = "<b>click</b> the ground: go there"
LEGEND = [
    (view.colour_of(0, ""), "the policy, and the way it went"),
    (view.colour_of(1, ""), "nearest moment of its clips"),
    (view.RED, "touches the ground; a push"),
]
TOLD_LEGEND = (view.GREEN, "what it is told; your click")


# ---- 1. The physics --------------------------------------------------------------------------------------------------


def wrap(degrees: float) -> float:
    """The same direction above -180 and up to 180 degrees."""
    return 180.0 - (180.0 - degrees) % 360.0


def in_degrees(angle: float) -> str:
    """An angle [rad] above -180 and up to 180 degrees, or "-" if there is none."""
    return "-" if math.isnan(angle) else f"{wrap(round(math.degrees(angle))):.0f}°"


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
        folder, file = os.path.abspath(loaded.args.checkpoint).split(os.sep)[-2:]
        self.name = f"{folder}/{file}"
        self.title = folder if file in ("best.pt", "latest.pt") else file  # short, of the panel
        self.rate = 1.0 / (self.substeps * self.model.opt.timestep)  # of the control steps [1/s]
        self.starts = export.starts(loaded.env)  # qpos (n, nq), qvel (n, nv)
        self.row = -1  # of these, the one that it has begun with
        self.episode = 0  # how often it has begun
        self.speeds = getattr(loaded.args, "speed_range", (0.0, 0.0))  # that it was trained for [m/s]
        self.goal = 0.0  # where it is to go [rad, world]
        self.speed = 0.0  # that it is told [m/s]
        self.reset()

    def reset(self, anew: bool = True) -> None:
        """Begin anew, from the next start, and count anew, if that is wished."""
        if anew:
            self.seconds = 0.0  # of the physics [s]
            self.metres = 0.0  # of its way [m]
            self.falls = 0
        self.row = (self.row + 1) % len(self.starts[0])
        self.episode += 1
        self.mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = self.starts[0][self.row]
        self.data.qvel[:] = self.starts[1][self.row]
        self.steps = 0  # of the physics since then
        self.heading = 0.0  # that it is told [rad, world]; step() turns it to the goal: all at once it may stumble
        self.walked = collections.deque(maxlen=round(RECORDED * self.rate))  # qpos (nq,) at the control steps
        count = round(MEAN_SECONDS * self.rate)
        # at the last control steps: its velocity ahead and to the left of where it is told to go [m/s]
        self.recent = collections.deque(maxlen=count)
        self.owed = 0.0  # time that has passed, but not yet in the physics [s]
        self.pushed = -math.inf  # physics steps until a push ends; less than none after it
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
            self.seconds += 1.0 / self.rate
            self.metres += math.hypot(x, y) / self.rate
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

    def course(self) -> float:
        """The direction in which it has gone in the last second [rad, world], nan if it has not gone anywhere."""
        if self.pace()[0] < view.STILL:
            return math.nan
        x, y = (self.walked[-1] - self.walked[max(len(self.walked) - 1 - self.recent.maxlen, 0)])[:2]
        return math.atan2(y, x)

    def state(self) -> ml.MotionState:
        """State of batch (1,) at this moment, which may lie between two steps."""
        qpos = self.data.qpos.copy()
        self.mujoco.mj_integratePos(self.model, qpos, self.data.qvel, self.owed)
        now = [torch.from_numpy(x).float()[None] for x in (qpos, self.data.qvel)]
        return self.policy.coordinates.read(*now)

    def ended(self, lowest: Tensor) -> str:
        """Why it is over, or "": it fell, by the script's own rule, or its clip has ended; lowest (1, J) [m]."""
        clip = self.env.clip[self.row : self.row + 1]
        now = self.env.time[self.row : self.row + 1] + self.steps * self.model.opt.timestep
        over = ~self.env.motions.loop[clip] & (now > self.env.motions.length[clip])
        if self.env.fallen(clip, now, lowest):
            return "it fell"
        return "its clip has ended" if over else ""

    def watch(self, lowest: Tensor, seconds: float) -> None:
        """See whether it is over, and count for how long: `seconds` have passed in the physics."""
        if not self.end:
            self.end = self.ended(lowest)
            self.falls += self.end == "it fell"
        if self.end:
            self.down += seconds

    def save(self) -> str:
        """Write what it walked as a roll-out, steered-1.npz or the next number -> the file's path. Raises OSError."""
        qpos = torch.from_numpy(np.stack(self.walked)).float()  # (T, nq)
        state = self.policy.coordinates.read(qpos, torch.zeros(len(qpos), self.model.nv))
        clip = ml.Clip(self.rate, "clamp", state.root_position.numpy(), state.rotations.numpy())
        names = (f"steered-{number}.npz" for number in itertools.count(1))
        path = next(name for name in names if not os.path.exists(name))
        about = f"roll-out of {self.name}, steered" + f", {self.end}" * bool(self.end)
        save_clip(path, clip, self.character.body_names, about, "as the clips it imitates")
        return path


class Nearest:
    """Which clip a pose is nearest to, and where in it, by distances over half a second; it does not flicker between a
    clip and its mirrored form, as of a gait that is the same on both sides each is nearer in turn."""

    def __init__(self, motions: ml.MotionLib) -> None:
        self.listed = np.unique(motions.files, return_index=True)[1]  # (F,) of a clip at several rates one
        lengths = motions.length[self.listed]  # [s]
        every = max(float(lengths.sum()) / POSES, 1.0 / 60.0)  # [s]
        times = [torch.arange(0.0, end, every) for end in lengths.tolist()]
        which = [torch.full(time.shape, n, dtype=torch.long) for n, time in enumerate(times)]
        self.clip = torch.cat(which)  # (R,) of F
        self.time = torch.cat(times)  # (R,) [s]
        self.poses = reference_poses(motions, torch.from_numpy(self.listed)[self.clip], self.time)  # (R, J-1, 3) [m]
        self.distance = torch.ones(len(times))  # (F,) smooth [m]
        self.now = 0  # of F
        self.overtaken = 0.0  # for how long another one has been nearer [s]
        self.episode = -1

    def __call__(self, pose: Tensor, seconds: float, episode: int = 0) -> Tuple[int, float, float]:
        """pose (J-1, 3) (see evaluation.relative_positions), the time since the last one [s], and of which episode it
        is: what was before does not count in another one -> clip, time in it [s], smooth distance [m]."""
        distance = (self.poses - pose).norm(dim=-1).mean(-1)  # (R,) [m]
        best = torch.full_like(self.distance, math.inf).scatter_reduce(0, self.clip, distance, "amin")  # (F,)
        anew, self.episode = episode != self.episode, episode
        keep = 0.0 if anew else math.exp(-seconds / FORGET)
        self.distance = keep * self.distance + (1.0 - keep) * best
        other = int(self.distance.argmin())
        self.overtaken = self.overtaken + seconds if other != self.now else 0.0
        if anew or self.distance[other] < NEARER * self.distance[self.now] or self.overtaken > LONGER:
            self.now = other
        row = int(torch.where(self.clip == self.now, distance, math.inf).argmin())
        return int(self.listed[self.now]), float(self.time[row]), float(self.distance[self.now])


# ---- 2. The page -----------------------------------------------------------------------------------------------------


class Controls:
    """What stands beside the picture, and what keys and mouse do. The sliders hold what the character is told."""

    shown: Tuple[str, ...] = ()  # what came of keys and clicks, and
    since = 0.0  # when that was new [s]
    wish = 0.0  # speed on the way to the last click, and, if it is as slow as can be since, to the next one [m/s]
    lock = threading.Lock()  # viser does what keys ask for in several threads at once

    def __init__(self, server: Any, walker: Walker, eye: view.Eye) -> None:
        gui, speeds = server.gui, walker.speeds
        told = walker.policy.commanded
        self.walker, self.views = walker, TOLD_VIEWS if told else view.VIEWS
        self.scene = eye.scene
        self.eye = eye
        self.jobs: List[Any] = []  # for the thread of the physics
        self.blow = (0, 0.0)  # the last push: body, direction [rad, world]
        self.readout = gui.add_html("")
        self.said: Tuple[Any, ...] = ()  # what the page's words are of
        self.news = ""  # of keys: what was pushed or saved
        self.forget()
        gui.add_html(help_of(told))
        groups = {"steer": STEER if told else [], "test": TEST, "look": ["T save"]}
        buttons = [gui.add_button_group(name, texts) for name, texts in groups.items() if texts]
        for group in buttons:
            group.on_click(lambda event: self.jobs_of[event.target.value[0]]())
        self.looks = buttons[-1]
        self.heading = gui.add_slider("Heading [°]", -180.0, 180.0, 1.0, 0.0, visible=told)
        self.speed = gui.add_slider("Speed [m/s]", *speeds, 0.05, min(max(1.5, speeds[0]), speeds[1]), visible=told)
        self.pause = gui.add_button("Pause (space)")
        self.playing = True
        self.ghost = True  # the nearest clip is shown
        self.pause.on_click(lambda _: self.play_or_pause())
        gui.add_html(legend_of(told))
        with gui.add_folder("more", expand_by_default=False):
            self.impulse = gui.add_slider("Push [N s]", 5.0, 150.0, 5.0, PUSH)
            self.pace = gui.add_slider("Time (1: real)", 0.05, 1.0, 0.05, 1.0)
            self.follow = gui.add_checkbox("Follow", True)
            self.again = gui.add_checkbox("Auto-restart", True, hint=f"begin anew {REST:g} s after a fall")
        self.heading.precision = self.impulse.precision = 2  # a box of whole numbers would make 125 of 12.5
        for slider in (self.heading, self.speed, self.impulse, self.pace):
            slider.on_update(lambda event, slider=slider: self.by_hand(slider, event.client))
        self.jobs_of = self.keys(server, told)
        self.mouse(server, told)
        server.on_client_connect(lambda _: self.welcome(server))

    def welcome(self, server: Any) -> None:
        """Let time go on, and show the nearest clip, for a browser that comes alone: as at first."""
        if len(server.get_clients()) == 1:
            if not self.playing:
                self.play_or_pause()
            self.ghost = True

    def keys(self, server: Any, told: bool) -> Dict[str, Callable]:
        """Bind the keys -> what each does; W, A, S, D, Q, E and the arrows are the camera's."""
        commands = {"space": ("Pause", self.play_or_pause), "R": ("Restart", self.restart)}
        commands["P"] = ("Push from a random side", self.push_somewhere)
        commands["M"] = ("Slow motion", self.slow_or_not)
        commands["G"] = ("With or without the nearest clip", self.with_or_without)
        commands["T"] = ("Save the walk", lambda: self.jobs.append(self.save))
        commands["V"] = (self.views.capitalize(), self.eye.next)
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
        self.pause.label = ("Pause" if self.playing else "Play") + " (space)"

    def with_or_without(self) -> None:
        """Show the nearest clip, or not."""
        self.ghost = not self.ghost

    def slow_or_not(self) -> None:
        """Slow motion, or real time."""
        self.pace.value = self.within(self.pace, SLOW if self.pace.value == 1.0 else 1.0)

    def label(self) -> None:
        """Have the buttons that switch say what is on."""
        slow, orange = ("on" if x else "off" for x in (self.pace.value < 1.0, self.ghost))
        now = self.views.split(", ")[self.eye.now - 1].split()[0]  # the first one is the last here
        texts = (f"V view: {now}", f"M slow-mo: {slow}", f"G orange: {orange}", "T save")
        if self.looks.options != texts:
            self.looks.options = texts

    def say(self, share: float, near: Tuple[str, float]) -> None:
        """Say what is new, and the rest every SAID_SECONDS, on the panel and over the heads at once: see readout."""
        self.label()
        now = time.perf_counter()
        if self.shown != (self.went, self.news):
            self.shown, self.since = (self.went, self.news), now
        elif self.target is None and now - self.since > NEWS_SECONDS:
            self.went = self.news = ""
        moment = int(self.walker.steps * self.walker.model.opt.timestep / SAID_SECONDS)
        state = state_of(self)
        words = (moment, state, near[0], self.news, self.target is None, bool(self.went))
        words += (self.walker.goal, self.walker.speed, self.pace.value)  # not the sliders: a key may turn them just now
        if self.said != words:
            self.said = words
            self.readout.content = readout(self, share, near)
            self.scene.labels[0].text = "policy" + f": {state}" * bool(state)
            self.scene.labels[1].text = f"clip {near[0]}"

    def restart(self) -> None:
        """Begin anew, with the same command; where was clicked is forgotten, and what has been counted."""
        self.forget()
        self.jobs.append(self.walker.reset)
        self.news = "restarted; told as before" if self.walker.policy.commanded else "restarted"

    def save(self) -> None:
        """Save what it walked, and say where, or why not, here and in the terminal."""
        try:
            if len(self.walker.walked) < 2:
                raise OSError(0, "it has not walked yet")
            path = self.walker.save()
            self.news = f"saved {path}, {(len(self.walker.walked) - 1) / self.walker.rate:.1f} s"
            print(f"{self.news}; python motions/view.py {path}", flush=True)
        except OSError as error:
            self.news = f"not saved: {error.strerror or error}"
            print(f"{error.filename or 'steered.npz'}, {self.news}", flush=True)

    def turn(self, degrees: float) -> None:
        """Turn the heading to the left by so much."""
        self.forget()
        with self.lock:
            self.heading.value = wrap(self.heading.value + degrees)

    def faster(self, step: float) -> None:
        """Raise the speed by a step [m/s], within the slider's range."""
        with self.lock:
            self.speed.value = self.within(self.speed, self.speed.value + step)

    def within(self, slider: Any, value: float) -> float:
        """The value within the slider's range; says so if it was not, as long as nothing else comes from there."""
        name, kept = slider.label.split()[0], min(max(value, slider.min), slider.max)
        if kept != value:
            learned = "learned " * (slider is self.speed)
            self.news = f"{name}: {learned}{slider.min:g} to {slider.max:g}, not {value:g}"
        elif self.news.startswith(f"{name}: "):
            self.news = ""
        return kept

    def by_hand(self, slider: Any, client: Any) -> None:
        """Bring what somebody dragged or typed into the slider's range; a heading turns, and the click is forgotten."""
        if client is not None and slider is not self.heading:
            slider.value = self.within(slider, slider.value)
        elif client is not None:
            self.forget()
            slider.value = wrap(slider.value) if abs(slider.value) > 180.0 else slider.value

    def forget(self) -> None:
        """Let it go as the sliders say, no longer to where was clicked."""
        self.target: Optional[np.ndarray] = None  # where it is to go, on the ground (2,) [m, world]
        self.most = math.inf  # how fast it may be near to that [m/s]
        self.went = ""  # how far it still is, or what came of it

    def go_to(self, origin: Tuple[float, ...], direction: Tuple[float, ...]) -> None:
        """Head for where a ray from `origin` (3,) in `direction` (3,), in the page's world [m], meets the ground, but
        not if it meets the character."""
        # the page moves the world, not the camera
        shifted = self.eye.in_world(np.array(origin) - self.scene.world.position)
        along = self.eye.in_world(np.array(direction) / np.linalg.norm(direction))
        beside = np.linalg.norm(np.cross(self.walker.data.xipos[1:] - shifted, along), axis=1)  # of bodies (J,) [m]
        if along[2] < 0 and beside.min() > BODY:
            target = (shifted - along * shifted[2] / along[2])[:2]
            self.forget()
            self.way = np.linalg.norm(target - self.walker.data.qpos[:2])  # [m]
            if self.way > FAR or self.walker.end:
                far = f"too far: {self.way:.0f} m, at most {FAR:.0f} m"
                self.went = f"not now: {self.walker.end}" if self.walker.end else far
                return
            if self.speed.value == self.speed.min:
                self.speed.value = max(self.wish, self.speed.min)
            self.wish = 0.0
            self.tried = 0.0  # for how long [s]
            self.target = target
            self.seek(0.0)

    def seek(self, seconds: float) -> None:
        """Turn the heading to where was clicked, and slow down near to it, until it is there, has fallen or has had its
        time, as it may circle for ever; then it goes on as the sliders say. There it goes straight on, as slowly as it
        can, since it cannot stand. `seconds` have passed in the physics."""
        if self.target is None:
            return
        way = self.target - self.walker.data.qpos[:2]
        left = np.linalg.norm(way)
        self.tried += seconds
        if left > THERE and not self.walker.end and self.tried < PATIENCE + 1.5 * self.way / max(self.speed.value, 0.5):
            self.heading.value = round(math.degrees(math.atan2(way[1], way[0])))
            velocity = self.walker.data.qvel[:2]
            ahead = velocity @ way > 0.5 * left * np.linalg.norm(velocity)  # by less than 60 degrees beside it
            self.most = max(left / CAREFUL * ahead, self.speed.min)  # who runs the wrong way is slow, too
            self.went = f"{short(left, 1)} m to go"
            return
        self.forget()
        if left > THERE:
            self.went = "gave up: " + (self.walker.end or f"{short(left, 1)} m off after {short(self.tried, 1)} s")
            return
        self.went = f"there, after {short(self.tried, 1)} s; on at {self.speed.min:g} m/s"
        self.wish = self.speed.value
        self.speed.value = self.speed.min
        self.heading.value = round(wrap(math.degrees(self.walker.pace()[1])))

    def push(self, body: int, direction: Tuple[float, ...]) -> None:
        """Push a body along a direction (3,) of the page, on the ground."""
        along = self.eye.in_world(direction) * [1, 1, 0]
        impulse = self.impulse.value * along / max(np.linalg.norm(along), 1e-6)
        self.blow = (body, math.atan2(along[1], along[0]))
        self.news = f"pushed: {self.impulse.value:g} N s towards {in_degrees(self.blow[1])}"
        self.jobs.append(lambda: self.walker.push(body, impulse))

    def push_somewhere(self) -> None:
        """Push the root from a random side."""
        angle = np.random.default_rng().uniform(-math.pi, math.pi)
        self.push(0, (math.cos(angle), math.sin(angle), 0.0))


def help_of(told: bool) -> str:
    """HTML of what the mouse does; told: the policy takes commands."""
    lines = "".join(f"<div>{row}</div>" for row in [*[TOLD_HELP] * told, *HELP])
    return f'<div style="{view.SMALL}">{lines}</div>'


def legend_of(told: bool) -> str:
    """HTML of what colours mean; told: the policy takes commands."""
    grid = (view.COLOURS["grey"], "grid: 1 m" + f"; marks around it: {TURN:.0f}°" * told)
    legend = "".join(view.DOT.format(f"rgb{colour}", text) for colour, text in [*LEGEND, grid, *[TOLD_LEGEND] * told])
    return f'<div style="{view.SMALL}">{legend}</div>'


def build(server: Any, walker: Walker, meshes: view.Meshes) -> Tuple[view.Scene, Tuple, Tensor, view.Eye]:
    """The viewer's scene with the character, its trail and the nearest clip; an arrow that shows where it is to go, one
    of a push, a mark where was clicked, a compass; the way from the character to the nearest clip (3,) [m], which does
    not swing around in turns; what key V does."""
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
    line = [[[0.0, 0.0, 0.25], [1.0, 0.0, 0.25]]]
    look = dict(shaft_radius=0.06, head_radius=0.25, head_length=0.3)  # from behind it is seen past the legs
    arrow = server.scene.add_arrows("/world/goal", np.array(line, np.float32), view.GREEN, **look)
    arrow.visible = walker.policy.commanded
    line = [[[-0.9, 0.0, 0.0], [-0.15, 0.0, 0.0]]]  # up to the body's side
    look = dict(shaft_radius=0.03, head_radius=0.07, head_length=0.2, visible=False)
    blow = server.scene.add_arrows("/world/push", np.array(line, np.float32), view.RED, **look)
    corners = np.linspace(0.0, math.tau, 49)
    ring = 0.3 * np.stack((np.cos(corners), np.sin(corners)), 1)
    mark = view.add_path(server.scene, "/world/mark", ring, 0.012, view.GREEN)
    mark.visible = False
    compass = compass_of(server)
    for part in compass:
        part.visible = walker.policy.commanded
    line = [[[0.0, 0.0, 0.9], [0.0, 0.0, 0.05]]]  # down to its middle, to be seen from the side too
    server.scene.add_arrows("/world/mark/down", np.array(line, np.float32), view.GREEN, head_length=0.2)
    return scene, (arrow, blow, mark, compass), aside, eye


def compass_of(server: Any) -> Tuple[Any, Any]:
    """Marks in a circle on the ground, TURN apart, a long one at 0 degrees -> handles of these and of its words."""
    angles = np.arange(0.0, 360.0, TURN)
    ends = np.where(angles == 0.0, 0.3, np.where(angles % 90.0 == 0.0, 0.12, 0.05))  # lengths [m]
    ways = np.stack((np.cos(np.radians(angles)), np.sin(np.radians(angles)), np.zeros(len(angles))), 1)
    lines = np.stack((COMPASS * ways, (COMPASS + ends)[:, None] * ways), 1) + [0.0, 0.0, 0.008]  # (n, 2, 3)
    look = dict(thickness=2, thickness_units="screen")
    marks = server.scene.add_line_segments("/world/compass", lines.astype(np.float32), view.COLOURS["grey"], **look)
    return marks, server.scene.add_label("/compass 0", "0°", anchor="center-center", font_screen_scale=0.8)


def eye_of(server: Any, scene: view.Scene, takes: List[view.Take], told: bool) -> view.Eye:
    """What key V goes through, with the camera where the first view has it: behind who is told where to go, so that its
    left is the picture's."""
    eye = view.Eye(server, scene, takes, "beside")
    spots = [None, (-ASIDE, view.BEHIND * ASIDE), (0.0, -ASIDE), None]  # left in the picture, from side and front too
    lines = [spot and [(0.0, 0.0), spot] for spot in spots]
    fixed, *others = [one._replace(places=line, focus=(0.0, 0.0)) for one, line in zip(eye.views, lines)]
    eye.views = [fixed, *others]
    if told:
        behind = fixed._replace(gaze=FROM_BEHIND, distance=fixed.distance / view.LENS, field=FIELD)
        eye.views = [behind._replace(turns=True, places=[(0.0, 0.0), (0.0, ASIDE)]), *others, fixed]
    view.aim(server, takes, eye.views[0])
    return eye


def follow(course: float, walker: Walker, seconds: float) -> float:
    """The course of a camera that goes around [rad], so much later: smoothly towards the character's, if it goes."""
    speed, way = walker.pace()
    if speed < view.STILL:
        return course
    return course + (1.0 - math.exp(-seconds / CALM)) * math.remainder(way - course, math.tau)


def picture(
    walker: Walker, nearest: Nearest, aside: Tensor, seconds: float
) -> Tuple[List[view.Take], Tensor, Tuple[str, float]]:
    """What is shown now: character and nearest clip, the lowest points of the bodies (1, J) [m], and the name of that
    clip and how near it is [m].

    aside (3,): from the one to the other [m]; seconds: in the physics, since the last picture."""
    motions = walker.env.motions
    state = walker.state()
    position, rotation = ml.forward_kinematics(walker.character, state.root_position, state.rotations)
    lowest = ml.lowest_points(walker.character, position, rotation)
    clip, moment, distance = nearest(relative_positions(position, state.rotations[:, 0])[0], seconds, walker.episode)
    other = motions.state(torch.tensor([clip]), torch.tensor([moment]))
    here = (state.root_position, state.rotations)
    root, rotations = view.place(other.root_position, other.rotations, *here, "pinned", 1)
    takes = [view.Take("policy", *here, lowest <= view.TOUCH)]
    takes.append(view.Take("nearest clip", root + aside, rotations, lowest > math.inf))
    name = os.path.basename(motions.files[clip]).replace(".npz", "")
    return takes, lowest, (name, distance)


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
        self.episode = 0  # that it is of

    def show(self, root: np.ndarray, episode: int) -> None:
        """Let it end under the root (3,) [m], or begin there anew if that is of another episode."""
        spot = root * [1, 1, 0]
        if episode != self.episode:
            self.episode, self.ends = episode, [spot]
            for part in self.parts:
                part.position = (0.0, 0.0, -1.0)
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


def show_compass(compass: Tuple[Any, Any], eye: view.Eye, root: np.ndarray) -> None:
    """Have the compass around the root (3,) [m]; its words are in no node that moves, as names over heads are."""
    marks, words = compass
    marks.position = root * [1, 1, 0]
    zero = marks.position + np.array([COMPASS + 0.45, 0.0, 0.0])
    words.position = view.axes_of(eye.turn) @ zero + eye.scene.world.position


def show_told(arrow: Any, mark: Any, walker: Walker, target: Optional[np.ndarray]) -> None:
    """Have the arrow point where it is to go, as long as a second of that way, and the mark at a target (2,) [m]."""
    arrow.position = walker.state().root_position[0].numpy() * [1, 1, 0]
    arrow.wxyz = view.yaw(walker.goal)  # as the panel says; the command turns there at export.TURN_RATE
    arrow.scale = (max(walker.speed, 0.1), 1.0, 0.4)  # flat
    if target is not None:
        mark.position = (*target, 0.0)
    if mark.visible != (target is not None):
        mark.visible = target is not None


def show_push(arrow: Any, walker: Walker, pushed: Tuple[int, float]) -> None:
    """Have the arrow point at the middle of the body that was pushed, along the force, if that was just now in the
    physics, so that slow motion and pause show it for longer."""
    body, direction = pushed
    visible = walker.pushed * walker.model.opt.timestep > PUSH_SECONDS - PUSH_SHOWN
    if visible:
        arrow.position = walker.data.xipos[body + 1]  # body 0 is MuJoCo's world
        arrow.wxyz = view.yaw(direction)
    if arrow.visible != visible:
        arrow.visible = visible


def readout(controls: Any, share: float, near: Tuple[str, float]) -> str:
    """HTML of what the page says: speed and heading over the last second, and those that it is told now; that it is
    over, or how fast the physics runs, share of what is wanted; time, way and falls; the nearest clip, and how near it
    is [m]; what came of keys and clicks. The lines are always as many, and none breaks: what is below does not move."""
    walker = controls.walker
    speed, heading = f"speed {short(walker.pace()[0])} m/s", f"heading {in_degrees(walker.course())}"
    if walker.policy.commanded:
        speed += f", told {short(walker.speed)} m/s"
        heading += f", told {in_degrees(walker.goal)}"
    state = state_of(controls) or pace_of(share, controls.pace.value)
    counted = f"{walker.seconds:.0f} s, {walker.metres:.0f} m, {walker.falls or 'no'} fall{'s' * (walker.falls != 1)}"
    apart = "" if walker.end else f"bodies on average {short(near[1], 3)} m apart"
    rows = [speed, heading, state, counted, f"nearest: {'-' if walker.end else near[0]}", apart]
    look = "height:1.4em; overflow:hidden; white-space:nowrap; text-overflow:ellipsis"
    lines = [f'<div style="{look}">{html.escape(row)}</div>' for row in [*rows, controls.went, controls.news]]
    return f'<div style="{view.SMALL}">{"".join(lines)}</div>'


def state_of(controls: Any) -> str:
    """That it is over, and what to do then, or that time stands still, if so."""
    end = controls.walker.end and controls.walker.end + "; R restarts" * (not controls.again.value)
    return ", ".join([end] * bool(end) + ["paused"] * (not controls.playing))


def pace_of(share: float, wish: float) -> str:
    """How fast the physics runs: what it is to, of real time, and its share of that."""
    if share > 0.97:
        share = 1.0
    pace = f"{100 * wish * share:.0f} % of " if wish * share < 1.0 else ""
    return ("slow motion: " if wish < 1.0 else "physics: ") + pace + "real time"


def serve(server: Any, walker: Walker, meshes: view.Meshes, stop: threading.Event) -> None:
    """Let time pass in the physics, and show it, until `stop` is set."""
    server.gui.configure_theme(show_logo=False, show_share_button=False)
    view.entitle(server, "Steer the policy")
    server.gui.set_panel_label(walker.title)
    scene, (arrow, blow, mark, compass), aside, eye = build(server, walker, meshes)
    controls = Controls(server, walker, eye)
    nearest = Nearest(walker.env.motions)
    trail = Trail(server)
    course = 0.0  # of a camera that goes around [rad]
    share = 1.0  # of the time that is to pass, that passes in the physics; over a second
    last = time.perf_counter()
    while not stop.wait(max(last + 1.0 / PICTURES - time.perf_counter(), 0.001)):
        now = time.perf_counter()
        walker.goal = math.radians(controls.heading.value)
        walker.speed = min(float(np.clip(controls.speed.value, *walker.speeds)), controls.most)
        pace = max(controls.pace.value, controls.pace.min)  # what is typed may be 0, until by_hand has seen it
        controls.work()
        if controls.again.value and walker.down > REST:
            walker.reset(anew=False)
        passed = 0.0  # in the physics [s]
        if controls.playing:
            passed = walker.advance((now - last) * pace)
            share += min(now - last, 1.0) * (passed / ((now - last) * pace) - share)
        controls.seek(passed)
        course = follow(course, walker, now - last)
        moved = view.shifts_of(eye.takes[:2], eye.view(), course)[1]
        takes, lowest, near = picture(walker, nearest, aside + torch.from_numpy(moved).float(), passed)
        walker.watch(lowest, passed)
        last = now
        with server.atomic():
            if controls.follow.value or eye.stale:
                eye.carry(takes[0].root[0].numpy(), course)
            view.show(scene, walker.character, takes, 0, turn=eye.turn, aside=eye.aside())
            scene.bodies[1][0].visible = scene.labels[1].visible = controls.ghost and not walker.end
            trail.show(takes[0].root[0].numpy(), walker.episode)
            show_told(arrow, mark, walker, controls.target)
            show_compass(compass, eye, takes[0].root[0].numpy())
            show_push(blow, walker, controls.blow)
            controls.say(share, near)


# ---- 3. The command --------------------------------------------------------------------------------------------------


def parse() -> Tuple[argparse.Namespace, List[str]]:
    """The options, and those of the script. Raises InputError."""
    parser = one_line_parser(description=__doc__)
    add = parser.add_argument
    about = "checkpoint (.pt), or folder of a run (default: %(default)s)"
    add("checkpoint", nargs="?", default="pretrained/heading.pt", help=about)
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
    job = lambda: serve(server, walker, meshes, threading.Event())  # noqa: E731
    view.visit(server, args, f"{args.checkpoint}, steered by you", job)


if __name__ == "__main__":
    main()
