"""deploy/steer.py: its physics and clock, what keys and mouse do, and its page in headless Chromium, if there is one.

What a browser needs is that of test_view.py."""

import contextlib
import io
import itertools
import math
import re
import socket
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("viser", reason="viser is not installed: pip install -r requirements.txt")
pytest.importorskip("mujoco", reason="MuJoCo needs Python 3.10")

from test_view import browser, tab, wait_for  # noqa: F401  (two are fixtures)

import motion_lib as ml
from deploy import export, steer
from evaluation import reference_poses
from motions import view

PELVIS = "/world/0 policy/pelvis"


@pytest.fixture(scope="module")
def loaded(root):
    return {name: export.load(str(root / f"pretrained/{name}.pt")) for name in ("walk", "heading")}


@pytest.fixture
def walker(loaded):
    walker = steer.Walker(loaded["heading"])
    walker.speed = 1.5
    return walker


def test_it_goes_where_it_is_told(walker):
    for heading in (0.0, 90.0):
        walker.goal = math.radians(heading)
        for _ in range(480):
            walker.step()
        before = walker.data.qpos[:2].copy()
        for _ in range(120):
            walker.step()
        way = walker.data.qpos[:2] - before  # in a second
        assert np.linalg.norm(way) == pytest.approx(1.5, abs=0.5)
        assert abs(steer.wrap(math.degrees(math.atan2(way[1], way[0])) - heading)) < 25.0
    assert not walker.ended(torch.full((1, 15), 0.1)) and walker.ended(torch.zeros(1, 15))


def test_what_it_is_told_turns_the_short_way(walker):
    walker.heading, walker.goal = math.radians(170.0), math.radians(-170.0)
    for _ in range(walker.substeps):
        walker.step()
    assert walker.heading == pytest.approx(math.radians(170.0) + steer.export.TURN_RATE / 30.0)
    for _ in range(240):
        walker.step()
    assert walker.heading == pytest.approx(math.radians(190.0))


def test_it_is_the_environment(loaded):
    """From the same start, without a command, the character does what the script's environment does."""
    walker = steer.Walker(loaded["walk"])
    env, policy = loaded["walk"].env, loaded["walk"].policy
    obs, _ = env.reset(1)
    heights = []
    for _ in range(10):
        with torch.no_grad():
            obs = env.step(policy.actor(policy.norm(obs)))[0]
        for _ in range(walker.substeps):
            walker.step()
        heights.append((float(env.sim.state[0, 3]), walker.data.qpos[2]))
    assert np.abs(np.diff(heights)).max() < 1e-3 and np.ptp(heights) > 0.01


def test_time_passes_in_whole_steps_and_pictures_lie_between(walker):
    step = walker.model.opt.timestep
    walker.advance(2.5 * step)
    assert walker.steps == 2 and walker.owed == pytest.approx(0.5 * step)
    shown = walker.state().root_position[0].numpy()
    assert np.allclose(shown, walker.data.qpos[:3] + 0.5 * step * walker.data.qvel[:3], atol=1e-6)
    kept = walker.advance(100.0)  # what was asleep does not run after the clock
    assert kept == pytest.approx(steer.LATE - 0.5 * step) and walker.steps <= 2 + steer.LATE / step


def said_by(walker, share=1.0, near=("near", 0.2), wish=1.0, playing=True, went="", news="", again=True):
    """Lines that the page says."""
    given = dict(walker=walker, pace=SimpleNamespace(value=wish), playing=playing, went=went, news=news)
    given.update(again=SimpleNamespace(value=again))
    said = steer.readout(SimpleNamespace(**given), share, near)
    assert said.count("<div") == 9 and said.count("nowrap") == 8  # as many whatever is on, and none breaks
    return re.findall("<div [^>]*nowrap[^>]*>(.*?)</div>", said)


def test_what_the_page_says_of_speed_and_time(loaded, walker):
    """Its speed is that of the last second, 30 control steps; to sway is not to go. The one told is that of now."""
    walker.recent.extend([(9.0, 9.0)] * 7 + [(0.5, 3.0)] * 15 + [(1.0, -3.0)] * 15)
    assert walker.pace() == pytest.approx((0.75, 0.0))
    walker.walked.extend(np.r_[x, x, walker.data.qpos[2:]] for x in (0.0, 0.1))
    said = said_by(walker, went="2.3 m to go", news="a < b")
    assert said[:3] == ["speed .75 m/s, told 1.50 m/s", "heading 45°, told 0°", "physics: real time"]
    assert said[4:] == ["nearest: near", "bodies on average .200 m apart", "2.3 m to go", "a &lt; b"]
    for share, wish, pace in (
        (0.5, 1.0, "physics: 50 %"),
        (1.0, 0.2, "slow motion: 20 %"),
        (0.5, 0.2, "slow motion: 10 %"),
    ):
        assert said_by(walker, share, wish=wish)[2] == f"{pace} of real time"
    walker.data.qvel[:2] = 0.0, 3.5
    walker.heading = walker.goal = math.pi / 2  # which is ahead then
    walker.step()
    speed, course = walker.pace()
    assert speed == pytest.approx(math.hypot(25.5, 3.0) / 30)
    assert course == pytest.approx(math.pi / 2 - math.atan2(3.0, 25.5))
    walker.speed = 3.0
    assert ", told 3.00 m/s" in said_by(walker)[0] and ", told 90°" in said_by(walker)[1]
    walker.speed = 1.5
    walker.watch(torch.zeros(1, 15), 0.1)  # all of it on the ground
    assert [said_by(walker, playing=playing)[2] for playing in (True, False)] == ["it fell", "it fell, paused"]
    assert said_by(walker, again=False)[2:6] == ["it fell; R restarts", "0 s, 0 m, 1 fall", "nearest: -", ""]
    walker.reset()
    assert said_by(walker, playing=False)[:3] == ["speed .00 m/s, told 1.50 m/s", "heading -, told 90°", "paused"]
    told_nothing = said_by(steer.Walker(loaded["walk"]), 0.2)
    assert not any("told" in row for row in told_nothing) and told_nothing[2] == "physics: 20 % of real time"


def test_the_heading_on_the_page_is_measured(walker):
    """It is where the character went in the last second, not where it is told to go."""
    walker.goal = math.radians(60.0)
    for _ in range(480):
        walker.step()
    before = walker.data.qpos[:2].copy()
    walker.goal = 0.0
    for _ in range(120):
        walker.step()
    x, y = walker.data.qpos[:2] - before
    assert walker.course() == pytest.approx(math.atan2(y, x), abs=0.05) and 0.2 < walker.course() < 0.9


def test_how_long_it_lies_is_time_of_the_physics(loaded, walker):
    up, down = torch.full((1, 15), 0.1), torch.zeros(1, 15)
    for lowest, end, seconds in ((up, "", 0.0), (down, "it fell", 0.5), (up, "it fell", 1.0)):  # once down, it is over
        walker.watch(lowest, 0.5)
        assert (walker.end, walker.down) == (end, seconds)
    walker.reset()
    assert (walker.end, walker.down) == ("", 0.0)
    alone = steer.Walker(loaded["walk"])
    env = SimpleNamespace(**vars(alone.env))
    env.motions = SimpleNamespace(loop=torch.zeros(1, dtype=torch.bool), length=torch.zeros(1))
    env.fallen, alone.env, alone.steps = alone.env.fallen, env, 10**6
    assert alone.ended(up) == "its clip has ended"


def test_the_panel_has_the_name_of_the_policy(loaded):
    for path, title in (("pretrained/heading.pt", "heading.pt"), ("runs/run__seed-2/best.pt", "run__seed-2")):
        args = SimpleNamespace(**{**vars(loaded["heading"].args), "checkpoint": path})
        assert steer.Walker(loaded["heading"]._replace(args=args)).title == title


def test_what_the_page_says_of_the_mouse():
    told, alone = (steer.help_of(x) + steer.legend_of(x) for x in (True, False))
    assert all(f"<b>{key}</b>" in told for key in ("click", "Shift, click", "arrows, WASD, drag"))
    assert "limb: push" in alone and "grid: 1 m<" in alone and "grid: 1 m; marks around it: 15°<" in told
    assert not any(text in alone for text in ("go there", "what it is told"))


def test_time_way_and_falls_are_counted_until_it_is_restarted(walker, controls):
    """Also over the restart after a fall."""
    spot = walker.data.qpos[:2].copy()
    for _ in range(4 * 120):
        walker.step()
    way = np.linalg.norm(walker.data.qpos[:2] - spot)
    assert said_by(walker)[3] == f"4 s, {way:.0f} m, no falls" and walker.metres == pytest.approx(way, rel=0.05)
    for falls in ("1 fall", "2 falls"):
        for _ in range(2):  # it lies there
            walker.watch(torch.zeros(1, 15), 0.1)
        assert said_by(walker)[3] == f"4 s, {way:.0f} m, {falls}"
        walker.reset(anew=False)
    controls.restart()
    controls.work()
    assert said_by(walker)[3] == "0 s, 0 m, no falls"


def test_headings_are_wrapped():
    """Above -180 and up to 180 degrees."""
    assert [steer.wrap(x) for x in (270.0, -190.0, 180.0, -180.0, 720.0)] == [-90.0, 170.0, 180.0, 180.0, 0.0]
    assert [steer.in_degrees(math.radians(x)) for x in (-179.9, 179.9, 190.0, -0.1)] == ["180°", "180°", "-170°", "0°"]


@pytest.fixture
def controls(walker):
    """What keys and mouse do, without a page."""
    bare = steer.Controls.__new__(steer.Controls)
    bare.walker, bare.jobs = walker, []
    bare.heading, bare.speed = SimpleNamespace(value=0.0), SimpleNamespace(value=1.5)
    vars(bare.speed).update(min=1.0, max=3.5, label="Speed [m/s]")
    bare.impulse = SimpleNamespace(value=60.0, min=5.0, max=150.0, label="Push [N s]")
    bare.pace = SimpleNamespace(value=1.0, min=0.05, max=1.0, label="Time (1: real)")
    bare.said, bare.news, bare.playing, bare.again = (), "", True, SimpleNamespace(value=True)
    bare.forget()
    bare.eye = SimpleNamespace(in_world=np.array)
    bare.scene = SimpleNamespace(world=SimpleNamespace(position=np.zeros(3)))
    return bare


def test_no_key_is_lost(controls):
    """Each press is done in a thread of its own: the next one may begin before it has ended."""

    class Slow:
        min, max, now, label = -1000.0, 1000.0, 0.0, "Speed"

        @property
        def value(self):
            before = self.now
            time.sleep(0.01)
            return before

        @value.setter
        def value(self, value):
            self.now = value

    for name, act in (("heading", controls.turn), ("speed", controls.faster)):
        setattr(controls, name, Slow())
        threads = [threading.Thread(target=act, args=(15.0,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert getattr(controls, name).now == 60.0


def test_a_number_out_of_range_is_no_secret(controls):
    """A heading that was typed is turned; of another number the page says its range, until it is another one."""
    for typed, wish in ((270.0, -90.0), (90.0, 90.0), (180.0, 180.0), (-180.0, -180.0), (-190.0, 170.0), (720.5, 0.5)):
        controls.heading.value = typed
        controls.by_hand(controls.heading, 7)
        assert (controls.heading.value, controls.news) == (wish, "")
    speed, impulse, pace = controls.speed, controls.impulse, controls.pace
    for slider, typed, kept, news in (
        (speed, 0.5, 1.0, "Speed: learned 1 to 3.5, not 0.5"),
        (speed, 1.5, 1.5, ""),
        (speed, 5.0, 3.5, "Speed: learned 1 to 3.5, not 5"),
        (impulse, 500.0, 150.0, "Push: 5 to 150, not 500"),
        (speed, 2.0, 2.0, "Push: 5 to 150, not 500"),
        (impulse, 12.5, 12.5, ""),
        (pace, 0.0, 0.05, "Time: 0.05 to 1, not 0"),
    ):
        slider.value = typed
        controls.by_hand(slider, 7)
        assert (slider.value, controls.news) == (kept, news)
    controls.slow_or_not()
    assert (pace.value, controls.news) == (1.0, "")
    controls.speed.value = 3.25
    for step, news in ((0.25, ""), (0.25, "Speed: learned 1 to 3.5, not 3.75"), (-0.25, "")):
        controls.faster(step)
        assert (controls.speed.value, controls.news) == (3.5 + min(step, 0.0), news)


def test_figure_and_panel_name_the_same_clip(controls):
    """Also when it changes between two times at which the numbers on the panel do."""
    controls.label = lambda: None
    controls.readout, controls.scene.labels = SimpleNamespace(), [SimpleNamespace(), SimpleNamespace()]
    for name in ("run", "run (mirrored)"):
        controls.say(1.0, (name, 0.04))
        assert f">nearest: {name}<" in controls.readout.content and controls.scene.labels[1].text == f"clip {name}"

    controls.playing = False
    controls.heading.value = 90.0  # a key, at this moment
    controls.say(1.0, (name, 0.04))
    controls.walker.goal = math.pi / 2.0
    controls.say(1.0, (name, 0.04))
    assert ", told 90°<" in controls.readout.content


def test_the_arrow_points_where_it_is_to_go(walker):
    walker.goal, arrow = math.pi / 2.0, SimpleNamespace()
    steer.show_told(arrow, SimpleNamespace(visible=False), walker, None)
    assert np.allclose(arrow.wxyz, [math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)]) and arrow.scale[0] == walker.speed


def test_news_are_said_for_a_while(controls, monkeypatch):
    controls.label = lambda: None
    controls.readout, controls.scene.labels = SimpleNamespace(), [SimpleNamespace(), SimpleNamespace()]
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    controls.news, controls.went = "restarted", "there"
    for clock[0], said in ((100.0, True), (107.0, True), (108.1, False)):
        controls.say(1.0, ("run", 0.04))
        assert (">restarted<" in controls.readout.content, ">there<" in controls.readout.content) == (said, said)


@pytest.mark.parametrize("speed, target", [(1.5, (4.0, 3.0)), (1.5, (-2.0, -3.0)), (3.25, (0.8, 1.0))])
def test_it_walks_to_where_was_clicked_and_goes_on(walker, controls, speed, target):
    """Also to what is nearer than it can turn at its speed, as it slows down. Then it walks straight on, as slowly as
    it can; to the next place it is as fast again, if nobody has told it another speed."""
    controls.speed.value = walker.speed = speed
    for _ in range(240):
        walker.step()
    target = walker.data.qpos[:2] + target
    controls.go_to((*target, 5.0), (0.0, 0.0, -1.0))
    assert np.allclose(controls.target, target)
    left, steps, told = np.linalg.norm(walker.data.qpos[:2] - target), 0, [speed]
    assert controls.went == f"{steer.short(left, 1)} m to go"
    while controls.target is not None and steps < 12 * 120:
        walker.goal, walker.speed = math.radians(controls.heading.value), min(speed, controls.most)
        told.append(walker.speed)
        walker.step()
        left = np.linalg.norm(walker.data.qpos[:2] - target)
        steps += 1
        controls.seek(walker.model.opt.timestep)
        assert left < steer.THERE or controls.went == f"{steer.short(left, 1)} m to go"
    assert left < steer.THERE and not walker.ended(torch.full((1, 15), 0.1)) and steps < 5 * 120
    assert min(told) == 1.0 and controls.most == math.inf
    course = walker.pace()[1] - math.radians(controls.heading.value)
    assert abs(math.remainder(course, math.tau)) < 0.01 and controls.speed.value == 1.0
    controls.seek(1.0)
    assert controls.went == f"there, after {steer.short(steps / 120, 1)} s; on at 1 m/s"
    for told, wish in ((1.0, speed), (2.0, 2.0), (1.0, 1.0)):
        controls.speed.value = told
        controls.go_to((*(walker.data.qpos[:2] + 3.0), 5.0), (0.0, 0.0, -1.0))
        assert controls.speed.value == wish


def test_it_does_not_try_for_ever(walker, controls):
    controls.go_to((0.0, 3.0, 5.0), (0.0, 0.0, -1.0))  # 3 m, 2 s
    for seconds, there in ((8.9, True), (0.2, False)):
        controls.seek(seconds)
        assert (controls.target is not None) == there
    assert controls.went == "gave up: 3.0 m off after 9.1 s"
    controls.go_to((0.0, 3.0, 5.0), (0.0, 0.0, 1.0))  # at the sky
    assert controls.target is None
    controls.go_to((*controls.walker.data.qpos[:2], 5.0), (0.0, 0.0, -1.0))  # at its head
    assert controls.target is None
    controls.go_to((0.0, 0.0, 5.0), (0.0, 400.0, -5.0))
    assert controls.target is None and controls.went == "too far: 400 m, at most 30 m"
    controls.walker.end = "it fell"
    controls.go_to((0.0, 3.0, 5.0), (0.0, 0.0, -1.0))
    assert controls.target is None and controls.went == "not now: it fell"
    controls.walker.end = ""
    controls.go_to((0.0, 3.0, 5.0), (0.0, 0.0, -1.0))
    controls.by_hand(controls.heading, None)
    assert controls.target is not None
    controls.by_hand(controls.heading, 7)
    assert controls.target is None and controls.went == ""
    controls.go_to((0.0, 3.0, 5.0), (0.0, 0.0, -1.0))
    walker.end = "it fell"
    controls.seek(0.0)
    assert controls.target is None and controls.went == "gave up: it fell"
    controls.go_to((0.0, 3.0, 5.0), (0.0, 0.0, -1.0))
    controls.restart()
    controls.work()
    assert (controls.target, controls.went, controls.most) == (None, "", math.inf)
    assert (walker.end, controls.news, controls.speed.value) == ("", "restarted; told as before", 1.5)


def test_who_runs_the_wrong_way_to_where_was_clicked_is_slow(walker, controls):
    controls.speed.value = 3.5
    controls.go_to((9.0, 0.0, 5.0), (0.0, 0.0, -1.0))
    for way, least, most in (((3.0, 0.5), 5.0, 9.0), ((0.5, 3.0), 1.0, 1.0), ((-3.0, 0.0), 1.0, 1.0)):
        walker.data.qvel[:2] = way
        controls.seek(0.01)
        assert least <= controls.most <= most


def test_what_it_walked_is_saved_as_a_roll_out(walker, controls, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(60 * walker.substeps):
        walker.step()
    spot = walker.data.qpos[:3].copy()
    walker.step()
    controls.save()
    assert capsys.readouterr().out == "saved steered-1.npz, 2.0 s; python motions/view.py steered-1.npz\n"
    assert controls.news == "saved steered-1.npz, 2.0 s"
    assert walker.save() == "steered-2.npz"
    clip = ml.load_clip("steered-1.npz", walker.character.body_names)
    assert clip.fps == pytest.approx(30.0) and len(clip.root_position) == 61
    assert np.allclose(clip.root_position[-1], spot, atol=1e-5)
    _, (take,) = view.load_takes(walker.character, ["steered-1.npz"], "side")
    assert take.name == "policy pretrained/heading.pt, steered"
    walker.reset()
    assert not walker.walked
    controls.save()
    assert "not saved" in capsys.readouterr().out and not (tmp_path / "steered-3.npz").exists()
    walker.step()
    walker.walked.append(walker.walked[0])
    monkeypatch.setattr(steer, "save_clip", lambda path, *_: (_ for _ in ()).throw(OSError(28, "disk full", path)))
    controls.save()
    assert (
        capsys.readouterr().out == "steered-3.npz, not saved: disk full\n" and controls.news == "not saved: disk full"
    )


def test_the_trail_has_no_gap():
    """From its beginning to the figure, in a circle: lines are only posed, two a picture, and the rest stays."""
    lines = []

    def add(_, points, *__, **___):
        lines.append(SimpleNamespace(length=float(points[-1, 1, 0] - points[0, 0, 0])))
        assert points[-1, 1, 0] == 0.0  # it ends where its position is
        return lines[-1]

    trail = steer.Trail(SimpleNamespace(scene=SimpleNamespace(add_line_segments=add)))
    way = [
        np.array([0.8 * math.sin(x), 0.8 - 0.8 * math.cos(x), 0.9]) for x in np.arange(0.0, 60.0, 0.08)
    ]  # 6.4 cm apart
    trail.show(way[0], 1)
    assert all(line.position[2] < 0.0 for line in lines)
    for picture, spot in enumerate(way[1:]):
        before = [line.position for line in lines]
        trail.show(spot, 1)
        moved = [line for line, old in zip(lines, before) if not np.array_equal(line.position, old)]
        assert len(moved) <= 2 and (picture < 1 or any(np.allclose(x.position, spot * [1, 1, 0]) for x in moved))
    laid = [line for line in lines if line.position[2] == 0.0]
    assert len(laid) == steer.TRAIL and all(set(vars(line)) == {"length", "position", "wxyz"} for line in lines)
    for back in range(round((steer.TRAIL - 2) * steer.TRAIL_STEP / 0.064)):  # each spot is on a line
        spot, apart = way[-1 - back] * [1, 1, 0], []
        for line in laid:
            ahead, left, _ = view.axes_of(2.0 * math.atan2(line.wxyz[3], line.wxyz[0])).T @ (spot - line.position)
            apart.append(math.hypot(left, max(ahead, -line.length - ahead, 0.0)))
        assert min(apart) < 0.02
    trail.show(np.array([5.0, 0.0, 0.9]), 2)  # anew
    assert all(line.position[2] < 0.0 for line in lines)
    trail.show(np.array([6.5, 0.0, 0.9]), 2)  # late
    ends = sorted(line.position[0] for line in lines if line.position[2] == 0.0)
    assert ends[0] == pytest.approx(5.0 + steer.TRAIL_STEP) and ends[-1] == 6.5
    assert max(np.diff(ends)) < 1.01 * steer.TRAIL_STEP


def test_a_push_is_an_impulse(walker):
    """The mass times the change of the centre's velocity is the impulse, feet apart: so it hangs in the air here."""
    walker.data.qpos[2] += 5.0
    walker.push(1, np.array([0.0, 40.0, 0.0]))

    def momentum():
        walker.mujoco.mj_subtreeVel(walker.model, walker.data)
        return walker.model.body_subtreemass[1] * walker.data.subtree_linvel[1]

    walker.mujoco.mj_forward(walker.model, walker.data)
    before = momentum()
    for _ in range(30):
        walker.step()
    walker.mujoco.mj_forward(walker.model, walker.data)
    assert np.allclose((momentum() - before)[:2], [0.0, 40.0], atol=0.5)
    assert not walker.data.xfrc_applied.any()


def test_the_nearest_clip(loaded):
    motions = loaded["heading"].env.motions
    nearest = steer.Nearest(motions)
    for clip in (0, 6, 15, 18):  # as recorded: what is played faster has the same poses
        for _ in range(60):
            pose = reference_poses(motions, torch.tensor([clip]), torch.tensor([0.4]))[0]
            found, moment, distance = nearest(pose, 1.0 / 30.0)
        assert found == clip and abs(moment - 0.4) < 0.02 and distance < 0.02
    assert [nearest(pose * 2.0, 0.0)[i] for i in (0, 2)] == [clip, distance]  # in a pause
    assert nearest(pose, 1.0)[2] < 0.02 < nearest(pose * 2.0, 0.0, 1)[2]  # after it what counts is as before
    found, moment, distance = nearest(reference_poses(motions, torch.tensor([0]), torch.tensor([0.4]))[0], 0.0, 2)
    assert found == 0 and distance < 0.02  # another episode: what was before does not count


def test_a_clip_and_its_mirrored_form_do_not_flicker(loaded):
    """Of a gait that is the same on both sides each is nearer in turn; what is clearly nearer is taken soon."""
    nearest = steer.Nearest(loaded["heading"].env.motions)
    nearest.poses, nearest.clip, nearest.time = torch.zeros(3, 1, 3), torch.tensor([0, 1, 2]), torch.zeros(3)
    nearest.poses[:, 0, 0] = torch.tensor([-0.1, 0.1, 0.9])
    nearest.distance, nearest.listed = torch.ones(3), np.arange(3)
    at = lambda x: nearest(torch.tensor([[x, 0.0, 0.0]]), 1.0 / 30.0)[0]  # noqa: E731
    found = [at(0.02 * math.sin(2.0 * math.pi * n / 18)) for n in range(300)]  # a step takes .6 s
    assert len(set(found[30:])) == 1
    assert [at(0.9) for _ in range(30)][-1] == 2
    assert [at(0.004) for _ in range(30)][-1] == 1
    assert [at(-0.004) for _ in range(120)][::119] == [1, 0]  # as it stays the nearer one


def test_bodies_grow_on_all_sides(character):
    meshes = view.body_meshes(character.path), view.body_meshes(character.path, 0.01)
    for name in ("left_foot", "head"):  # a box, a sphere
        body, thick = (mesh[character.body_names.index(name)][0] for mesh in meshes)
        assert np.allclose(thick.max(0) - body.max(0), 0.01) and np.allclose(thick.min(0) - body.min(0), -0.01)


# ---- The page ----


def soon(condition):
    """Wait, 20 s at most, until the condition holds -> whether it does."""
    end = time.monotonic() + 20.0
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


@contextlib.contextmanager
def served(loaded, monkeypatch):
    """Run the page in a thread -> its address, the walker, its controls."""
    made = []

    class Kept(steer.Controls):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(steer, "Controls", Kept)
    walker = steer.Walker(loaded)
    meshes = view.body_meshes(walker.character.path)
    server, stop = view.start_server("127.0.0.1", 0), threading.Event()
    thread = threading.Thread(target=steer.serve, args=(server, walker, meshes, stop))
    thread.start()
    try:
        assert soon(lambda: made and walker.steps)
        yield f"http://127.0.0.1:{server.get_port()}", walker, made[0]
    finally:
        stop.set()
        thread.join()
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()


def test_time_is_real_and_controls_act(loaded, monkeypatch):
    with served(loaded["heading"], monkeypatch) as (_, walker, controls):
        assert (controls.speed.min, controls.speed.max) == tuple(loaded["heading"].args.speed_range)
        begin, before = time.perf_counter(), walker.steps
        time.sleep(1.5)
        passed = (walker.steps - before) * walker.model.opt.timestep
        assert 0.5 < passed / (time.perf_counter() - begin) < 1.1  # a busy machine may drop some
        for key, wish in (("L", -15.0), ("J", 0.0), ("L", -15.0)):
            controls.jobs_of[key]()
            assert controls.heading.value == wish
        assert {text[0] for text in (*steer.STEER, *steer.TEST, *controls.looks.options)} == set(controls.jobs_of) - {
            "space"
        }
        for key, wish in (("I", 0.25), ("K", 0.0)):
            controls.jobs_of[key]()
            assert controls.speed.value - 1.5 == pytest.approx(wish)
        controls.faster(100.0)
        assert soon(lambda: math.isclose(walker.heading, math.radians(-15.0)) and walker.speed == controls.speed.max)
        # the camera is behind it, and goes around with it: its left is the picture's
        eye = controls.eye
        assert soon(lambda: abs(eye.turn - math.radians(15.0)) < 0.1)
        (x, y, z), (to_x, to_y, to_z) = (getattr(eye.server.initial_camera, x) for x in ("position", "look_at"))
        assert abs(to_y - y) < 0.01 and 1.0 < z - to_z < 0.4 * (to_x - x)  # straight behind; it sees the horizon
        assert eye.server.initial_camera.fov == math.radians(steer.FIELD)
        controls.eye.choose(len(eye.views) - 1)  # the fixed one
        assert soon(lambda: not eye.stale) and eye.turn == 0.0
        there = walker.data.qpos[:2] + [0.0, 10.0]
        here = walker.data.qpos[:2] + controls.scene.world.position[:2]
        controls.go_to((here[0], here[1] + 10.0, 10.0), (0.0, 0.0, -1.0))  # where the page shows 10 m to its left
        assert soon(lambda: abs(walker.goal - math.pi / 2) < 0.2)
        assert np.allclose(controls.target, there, atol=0.3)  # it walks while this is computed [m]
        # from the side the world lies turned under the page, and the nearest clip is a metre behind and to the left
        controls.eye.choose(1)
        assert soon(lambda: controls.eye.turn < -0.5)
        controls.play_or_pause()
        time.sleep(0.1)
        controls.go_to((10.0, 0.0, 10.0), (0.0, 0.0, -1.0))  # straight on
        assert soon(lambda: abs(walker.goal + controls.eye.turn) < 0.2)
        controls.turn(0.0)  # by hand: no longer to where was clicked
        assert controls.target is None
        way = np.array([math.cos(controls.eye.turn), -math.sin(controls.eye.turn)])
        apart = (controls.scene.bodies[1][0].position - controls.scene.bodies[0][0].position)[:2]
        assert np.allclose(apart, steer.ASIDE * (0.6 * np.array([-way[1], way[0]]) - way), atol=0.05)
        controls.play_or_pause()
        controls.play_or_pause()
        time.sleep(0.3)
        before = walker.steps
        time.sleep(0.3)
        assert walker.steps == before
        # what touches the ground is red by what is visible, and keeps its colour
        foot = walker.character.body_names.index("left_foot")
        red, blue = controls.scene.skins[0], controls.scene.bodies[0][foot].color
        controls.jobs.append(lambda: walker.data.qpos.__setitem__(2, 0.3))
        assert soon(lambda: red[foot].visible) and controls.scene.bodies[0][foot].color == blue
        controls.jobs.append(lambda: walker.data.qpos.__setitem__(2, 3.0))
        assert soon(lambda: not any(skin.visible for skin in red.values()))
        one, other = (nodes[0].position for nodes in controls.scene.bodies)
        assert np.linalg.norm((other - one)[:2]) == pytest.approx(
            math.hypot(1.0, 0.6) * steer.ASIDE, abs=0.1
        )  # they move
        controls.with_or_without()
        assert soon(lambda: not controls.scene.bodies[1][0].visible and not controls.scene.labels[1].visible)
        # buttons that switch say what is on, also if it was switched elsewhere
        controls.pace.value = 0.5
        assert soon(lambda: controls.looks.options == ("V view: side", "M slow-mo: on", "G orange: off", "T save"))
        controls.slow_or_not()
        assert soon(lambda: controls.looks.options[1] == "M slow-mo: off")
        # figure and panel name the same clip, in the same picture; the figure says what is the matter
        who, clip = (label.text for label in controls.scene.labels)
        assert f">nearest: {clip[5:]}<" in controls.readout.content and who.endswith("paused")
        controls.jobs.append(walker.reset)
        assert soon(lambda: walker.steps == 0)
        # who comes alone finds time going on, and both figures; who comes later what the others have
        assert "paused" in controls.readout.content
        for alone in (False, True):
            controls.welcome(SimpleNamespace(get_clients=lambda alone=alone: {n: None for n in range(2 - alone)}))
            assert (controls.playing, controls.ghost) == (alone, alone)
        assert soon(lambda: "physics" in controls.readout.content and controls.pause.label == "Pause (space)")


def test_the_camera_goes_with_who_goes(walker):
    """Smoothly, the short way; who stands or lies keeps it."""
    walker.recent.extend([(1.0, 0.0)] * 30)
    walker.heading = math.radians(-170.0)
    course = math.radians(170.0)
    for seconds, least, most in ((0.1, 172.0, 178.0), (0.2, 180.0, 188.0), (3.0, 189.9, 190.1)):
        course = steer.follow(course, walker, seconds)
        assert least < math.degrees(course) < most
    walker.recent.extend([(0.0, 0.2)] * 30)
    assert steer.follow(1.0, walker, 9.0) == 1.0


def test_a_push_is_seen_and_said(walker, controls):
    """Half a second long, in the physics, an arrow ends at the body, and points along the force."""
    walker.step()
    arrow = SimpleNamespace(visible=False)
    hand = walker.character.body_names.index("left_hand" if "left_hand" in walker.character.body_names else "head")
    steer.show_push(arrow, walker, (hand, 0.0))
    assert not arrow.visible
    controls.push(hand, (0.0, 2.0, -1.0))
    controls.work()
    assert controls.news == "pushed: 60 N s towards 90°" and controls.blow == (hand, math.pi / 2)
    for steps, visible in ((0, True), (54, True), (8, False)):  # a picture in a pause, after .45 s and .52 s
        for _ in range(steps):
            walker.step()
        steer.show_push(arrow, walker, controls.blow)
        assert arrow.visible == visible
        if visible:
            assert np.allclose(arrow.position, walker.data.xipos[hand + 1])
    assert np.allclose(arrow.wxyz, [math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)])  # along +Y
    walker.push(hand, np.zeros(3))
    walker.reset()
    steer.show_push(arrow, walker, controls.blow)
    assert not arrow.visible


def test_the_compass_lies_in_the_world():
    """Its long mark points along +X of the world, which lies turned in the picture, and so do its words."""
    made = {}

    def add(name, what, *_, **__):
        made[name] = SimpleNamespace(lines=what)
        return made[name]

    compass = steer.compass_of(SimpleNamespace(scene=SimpleNamespace(add_line_segments=add, add_label=add)))
    marks, words = compass
    lengths = np.linalg.norm(np.diff(marks.lines, axis=1)[:, 0], axis=1)
    ways = np.degrees(np.arctan2(marks.lines[:, 1, 1], marks.lines[:, 1, 0])) % 360.0
    assert np.allclose(np.sort(ways), np.arange(0.0, 360.0, 15.0), atol=0.1) and ways[lengths.argmax()] < 0.1
    eye = SimpleNamespace(
        turn=math.pi / 2, scene=SimpleNamespace(world=SimpleNamespace(position=np.array([1.0, 2.0, 0.0])))
    )
    steer.show_compass(compass, eye, np.array([3.0, 0.0, 0.9]))
    assert words.lines == "0°" and np.allclose(marks.position, [3.0, 0.0, 0.0])
    assert np.allclose(words.position, [1.0, 2.0 + 3.0 + steer.COMPASS + 0.45, 0.0])


def test_it_begins_anew_after_a_fall(loaded, monkeypatch):
    monkeypatch.setattr(steer, "REST", 0.3)
    trails, show = [], steer.Trail.show
    monkeypatch.setattr(steer.Trail, "show", lambda trail, *rest: (trails.append(trail), show(trail, *rest)))
    with served(loaded["walk"], monkeypatch) as (_, walker, controls):
        assert not controls.heading.visible and not controls.speed.visible
        row = walker.row
        controls.jobs.append(lambda: walker.data.qpos.__setitem__(0, 9.0))
        fall = lambda: walker.data.qpos.__setitem__(slice(3, 7), [0.7, 0.0, 0.7, 0.0])  # on its face  # noqa: E731
        controls.jobs.append(fall)
        assert soon(lambda: walker.row != row)
        assert soon(lambda: walker.down == 0.0 and walker.data.qpos[2] > 0.7)
        assert soon(lambda: walker.steps > 60)  # there is no line from there to the new start
        laid = [part.position for part in trails[0].parts if part.position[2] == 0.0]
        assert all(np.linalg.norm(end - walker.starts[0][walker.row][:3] * [1, 1, 0]) < 5.0 for end in laid)
        # who looks at it in a pause has time, and reads what it is
        monkeypatch.setattr(steer, "REST", 0.3)
        controls.pace.value = 0.05
        row = walker.row
        controls.jobs.append(fall)
        assert soon(lambda: walker.down > 0.0 and "it fell" in controls.readout.content)
        controls.play_or_pause()
        time.sleep(0.2)
        before = walker.down
        time.sleep(0.5)
        assert walker.row == row and walker.down == before < steer.REST
        orange = lambda: controls.scene.bodies[1][0].visible and controls.scene.labels[1].visible  # noqa: E731
        assert not controls.scene.bodies[1][0].visible and not controls.scene.labels[1].visible
        controls.again.value = False
        controls.pace.value = 1.0
        controls.play_or_pause()
        assert soon(lambda: walker.down > 0.5)
        assert soon(lambda: ">it fell; R restarts<" in controls.readout.content) and walker.row == row
        controls.restart()
        assert soon(lambda: orange() and ">nearest: -<" not in controls.readout.content)


def test_keys_are_the_pages(tab, monkeypatch):  # noqa: F811
    """Whatever was clicked; a page without figures is quick."""
    scripts = []
    monkeypatch.setattr(view, "run_script", lambda _, script: scripts.append(script))
    panel = SimpleNamespace(set_width=lambda _: None)
    view.entitle(SimpleNamespace(gui=SimpleNamespace(set_panel_label=lambda _: None, main_panel=panel)), "Steer it")
    tab.set_content("""<canvas></canvas><br><input type=checkbox checked><input type=text inputmode=decimal>
        <button>B</button>
        <div class=mantine-Slider-root tabindex=-1>S</div>""")
    tab.evaluate("""() => {
        window.seen = [];
        document.body.addEventListener("keydown", event => event.target === document.body && seen.push(event.key));
        document.body.addEventListener("pointerleave", () => seen.push("left"));
        document.querySelector("div").addEventListener("keydown", event => seen.push("moved"))}""")
    tab.add_script_tag(content=scripts[0])
    seen = lambda: tab.evaluate("() => seen.splice(0)")  # noqa: E731
    # held, they turn by 90 degrees a second and not by 15 at each of a keyboard's repeats; others act once
    code = """async key => {
        const begin = performance.now();
        for (let n = 0; n < 100; n++) {
            document.body.dispatchEvent(new KeyboardEvent("keydown", {key, repeat: n > 0, bubbles: true}));
            await new Promise(done => setTimeout(done, 10));
        }
        return 1e-3 * (performance.now() - begin)}"""
    seconds = tab.evaluate(code, "l")
    turns = seen()
    assert set(turns) == {"l"} and 3 <= len(turns) <= 2.0 + 6.0 * seconds
    tab.evaluate(code, "p")
    assert seen() == ["p"]
    # space presses nothing that was clicked on, and the arrows move no slider
    for clicked, key in (("[type=checkbox]", " "), ("button", " "), ("div", "ArrowLeft")):
        tab.locator(clicked).click()
        tab.wait_for_timeout(50)
        tab.keyboard.press(key)
        assert seen() == [key]
    assert not tab.locator("[type=checkbox]").is_checked()
    # nor does a key type into a number that was entered
    number = tab.locator("[type=text]:visible")
    for text, kept in (("90j", ""), ("90", "90"), ("7 ", "7"), ("2,5", "2.5")):  # a comma is a decimal point
        number.click()
        tab.keyboard.type(text)
        assert number.input_value() == text.replace(",", ".") and tab.locator("[type=text]").count() == 2
        tab.keyboard.press("Enter")
        tab.wait_for_function("() => document.querySelectorAll('[type=text]').length === 1")
        tab.keyboard.press("j")
        assert number.input_value() == kept and seen() == ["j"]
    # who is marked under the pointer is so while that moves
    tab.mouse.move(30, 30)
    tab.wait_for_function("() => seen.includes('left')")


def test_the_page_in_a_browser(tab, loaded, monkeypatch):  # noqa: F811
    with served(loaded["heading"], monkeypatch) as (address, walker, controls):
        pushes = []
        monkeypatch.setattr(walker, "push", lambda body, impulse: pushes.append((body, impulse)))
        tab.set_viewport_size({"width": 720, "height": 260})  # the controls leave the character free
        tab.goto(address)
        wait_for(tab, f"{PELVIS}/right_thigh/right_shin/right_foot")
        tab.locator("canvas").first.wait_for()
        assert tab.title() == "Steer the policy"
        for key in "jjip":
            tab.keyboard.press(key)
        assert soon(lambda: controls.heading.value == 30.0 and controls.speed.value == 1.75 and pushes)
        body, direction = controls.blow
        along = np.array([math.cos(direction), math.sin(direction), 0.0])
        assert body == pushes[0][0] and np.allclose(50.0 * along, pushes[0][1])
        tab.mouse.click(60, 220)  # on the ground, beside it
        assert soon(lambda: controls.heading.value not in (30.0, 0.0))
        tab.keyboard.down("Shift")
        code = """([name, above]) => {
            const m = __viserMutable, found = m.nodeRefFromName[name];
            const place = found.getWorldPosition(found.position.clone()).project(m.camera);
            return [360 * (1 + place.x), 130 * (1 - place.y) - above]}"""
        heights = itertools.cycle((0, 10, 20))  # over the pelvis, wherever a step has it [pixels]
        assert soon(lambda: len(pushes) > 1 or tab.mouse.click(*tab.evaluate(code, [PELVIS, next(heights)])))
        tab.keyboard.up("Shift")
        tab.keyboard.press("Space")
        play = tab.get_by_role("button", name="Play")
        play.wait_for()
        tab.get_by_text(re.compile(r"told[\s\S]*paused")).first.wait_for()
        # whatever is said, what is below stays where it is
        places, controls.say = set(), lambda *_: None
        for name, news in (
            ("run", ""),
            ("walk_forward (mirrored)", "not saved: no space is left on this device at all"),
        ):
            controls.news, controls.went = news, news
            controls.readout.content = steer.readout(controls, 1.0, (name, 0.045))
            tab.get_by_text(f"nearest: {name}").wait_for()
            places.add(play.bounding_box()["y"])
        assert len(places) == 1
        del controls.say
        # a number counts when it is entered; a heading is turned, of a speed is said what it has learned
        controls.news, numbers = "", tab.locator("input[inputmode]:visible")
        tab.get_by_text("more", exact=True).click()
        for slider, text, value, news in (
            (controls.heading, "270", -90.0, ""),
            (controls.heading, "abc", -90.0, ""),
            (controls.heading, "720.5", 0.5, ""),
            (controls.speed, "0,5", 1.0, "Speed: learned 1 to 3.5, not 0.5"),
            (controls.speed, "1.5", 1.5, ""),
            (controls.impulse, "12.5", 12.5, ""),
            (controls.pace, "0", 0.05, "Time: 0.05 to 1, not 0"),
        ):
            box = numbers.nth((controls.heading, controls.speed, controls.impulse, controls.pace).index(slider))
            box.click()
            before = slider.value
            tab.keyboard.type(text)
            tab.wait_for_timeout(300)
            assert slider.value == before and box.input_value() == text.replace(",", ".")
            tab.keyboard.press("Enter")
            assert soon(lambda: tab.locator("[data-typed]").count() == 0)
            assert soon(lambda box=box, value=value: box.input_value() == f"{value:g}")
            assert (slider.value, controls.news) == (value, news)
        controls.pace.value = 1.0
        # all of the panel is in a usual window
        tab.set_viewport_size({"width": 1280, "height": 800})
        last = tab.get_by_text("Auto-restart").bounding_box()
        assert last["y"] + last["height"] < 770
        tab.get_by_text("more", exact=True).click()
        tab.set_viewport_size({"width": 720, "height": 260})
        # two buttons stand side by side, beside the name of their group; they say what is on
        tab.keyboard.press("m")
        left, right, slow = (tab.get_by_role("button", name=x) for x in ("J left", "L right", "M slow-mo: on"))
        slow.wait_for()
        one, other, third = (x.bounding_box() for x in (left, right, slow))
        assert one["y"] == other["y"] and other["x"] == third["x"] > one["x"] + 60.0 and one["x"] > 720 - 264 + 30
        # space folds no panel, and an arrow moves no slider that was clicked on
        fold = tab.locator("[data-dock-minimize]").first
        fold.click()
        tab.get_by_text("heading.pt").wait_for()
        tab.keyboard.press("Space")
        assert soon(lambda: controls.playing)
        assert not left.is_visible()
        fold.click()
        controls.forget()  # else it turns to where was clicked
        before = controls.heading.value
        left.click()
        assert soon(lambda: controls.heading.value == steer.wrap(before + steer.TURN))
        tab.locator(".mantine-Slider-root").first.click(position={"x": 60, "y": 5})
        assert soon(lambda: controls.heading.value not in (before, steer.wrap(before + steer.TURN)))
        tab.wait_for_function("() => document.activeElement === document.body")
        tab.wait_for_timeout(500)  # viser may send it once more
        before = controls.heading.value
        tab.keyboard.press("ArrowLeft")
        tab.keyboard.press("j")
        assert soon(lambda: controls.heading.value == steer.wrap(before + steer.TURN))
        # on a narrow screen the panel is folded at first, else it hides the legs
        tab.set_viewport_size({"width": 390, "height": 700})
        tab.reload()
        tab.wait_for_function("window.lookFrom && document.querySelector('.mantine-Paper-root')")
        assert soon(lambda: not left.is_visible())
        tab.get_by_text("heading.pt").click()
        left.wait_for()
        assert tab.get_by_text("nearest:").is_visible()
        own = [url for url in tab.requests if not url.startswith(("data:", "blob:"))]
        assert own and all(url.startswith((address, address.replace("http", "ws"))) for url in own)


# ---- What it is given ----


@pytest.mark.parametrize(
    "arguments, fault",
    [
        (["nothing.pt"], "nothing.pt: no such file"),
        (["a.npz"], "a.npz: a clip, not a policy; python motions/view.py a.npz"),
        (["PRETRAINED/walk.pt", "--port", "70000", "--no-browser"], "--host 127.0.0.1 --port 70000: "),
        (["--port", "70000", "--no-browser"], "--host 127.0.0.1 --port 70000: "),  # of pretrained/heading.pt
        (["PRETRAINED/walk.pt", "--script", "none.py"], "none.py: no such script"),
    ],
)
def test_bad_input_is_one_line(run_script, root, arguments, fault):
    arguments = [x.replace("PRETRAINED", str(root / "pretrained")) for x in arguments]
    code, out, err = run_script("deploy/steer.py", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.replace("'", "").startswith(f"error: {fault}")


def test_port_in_use_is_one_line(run_script, root):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = run_script("deploy/steer.py", root / "pretrained/walk.pt", "--port", port, "--no-browser")
    assert (code, out, err.count("\n")) == (2, "", 1) and "Address already in use" in err


@pytest.mark.parametrize("package", ["viser", "trimesh", "mujoco"])
def test_a_missing_package_is_one_line(run_script, root, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, out, err = run_script("deploy/steer.py", root / "pretrained/walk.pt", "--no-browser")
    assert (code, out, err.count("\n")) == (2, "", 1) and package in err and "pip install" in err
