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


def test_what_the_page_says_of_speed_and_time(loaded, walker):
    """Its speed is that of the last second, 30 control steps; to sway is not to go. The one told is that of now."""
    walker.recent.extend([(9.0, 9.0)] * 7 + [(0.5, 3.0)] * 15 + [(1.0, -3.0)] * 15)
    assert walker.pace() == pytest.approx((0.75, 0.0))
    said_by = lambda *given: steer.readout(*given).replace("\u00a0", " ")  # noqa: E731
    rows = lambda *given: re.findall("<div>(.*?)</div>", said_by(*given))  # noqa: E731
    said = rows(walker, 1.0, "near, .2 m")
    assert said == [".75 m/s, told 1.50 m/s", "physics in real time", "nearest: near, .2 m"]
    for share, wish, pace in ((0.5, 1.0, "50 %"), (1.0, 0.2, "20 %"), (0.5, 0.2, "10 %")):
        as_set = ", as set" * (share == 1.0)
        assert rows(walker, share, "near", True, wish)[1] == f"physics at {pace} of real time{as_set}"
    walker.data.qvel[:2] = 0.0, 3.5
    walker.heading = walker.goal = math.pi / 2  # which is ahead then
    walker.step()
    speed, course = walker.pace()
    assert speed == pytest.approx(math.hypot(25.5, 3.0) / 30)
    assert course == pytest.approx(math.pi / 2 - math.atan2(3.0, 25.5))
    walker.speed = 3.0
    assert ", told 3.00\u00a0m/s" in steer.readout(walker, 1.0, "near")
    walker.speed = 1.5
    walker.watch(torch.zeros(1, 15), 0.1)  # all of it on the ground
    assert rows(walker, 1.0, "near")[1] == "it fell"
    said = [steer.headline(walker, playing) for playing in (True, False)]
    assert said == ["keys · it fell", "keys · it fell, paused"]
    walker.reset()
    assert rows(walker, 1.0, "near", False)[:2] == [".00 m/s, told 1.50 m/s", "paused"]
    told_nothing = rows(steer.Walker(loaded["walk"]), 0.2, "near")
    assert "told" not in told_nothing[0] and told_nothing[1] == "physics at 20 % of real time"


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


def test_what_the_page_says_of_keys():
    told, alone = (steer.help_of(x) + steer.legend_of(x) for x in (True, False))
    assert all(f"<b>{key}</b>" in told for key in ("space", "G", "click", "Shift, click", "arrows, WASD, drag"))
    assert "limb: push" in alone and not any(text in alone for text in ("go there", "what it is told"))


@pytest.fixture
def controls(walker):
    """What keys and mouse do, without a page."""
    bare = steer.Controls.__new__(steer.Controls)
    bare.walker, bare.target = walker, None
    bare.heading, bare.speed = SimpleNamespace(value=0.0), SimpleNamespace(value=1.5)
    bare.eye = SimpleNamespace(in_world=np.array)
    bare.scene = SimpleNamespace(world=SimpleNamespace(position=np.zeros(3)))
    return bare


@pytest.mark.parametrize("target", [(4.0, 3.0), (-2.0, -3.0)])
def test_it_walks_to_where_was_clicked_and_goes_on(walker, controls, target):
    controls.go_to((*target, 5.0), (0.0, 0.0, -1.0))
    assert np.allclose(controls.target, target)
    nearest = math.inf
    for _ in range(12 * 120):
        walker.goal = math.radians(controls.heading.value)
        walker.step()
        nearest = min(nearest, np.linalg.norm(walker.data.qpos[:2] - target))
        controls.seek(walker.model.opt.timestep)
        if controls.target is None:
            break
    assert nearest < steer.THERE and controls.target is None and not walker.ended(torch.full((1, 15), 0.1))
    before = controls.heading.value
    controls.seek(1.0)
    assert controls.heading.value == before


def test_it_does_not_try_for_ever(walker, controls):
    controls.go_to((0.0, 3.0, 5.0), (0.0, 0.0, -1.0))  # 3 m, 2 s
    for seconds, there in ((6.9, True), (0.2, False)):
        controls.seek(seconds)
        assert (controls.target is not None) == there
    controls.go_to((0.0, 3.0, 5.0), (0.0, 0.0, 1.0))  # at the sky
    assert controls.target is None
    controls.go_to((0.0, 3.0, 5.0), (0.0, 0.0, -1.0))
    controls.by_hand(None)
    assert controls.target is not None
    controls.by_hand(7)
    assert controls.target is None


def test_what_it_walked_is_saved_as_a_roll_out(walker, controls, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(60 * walker.substeps):
        walker.step()
    spot, controls.saved = walker.data.qpos[:3].copy(), SimpleNamespace()
    walker.step()
    controls.save()
    assert capsys.readouterr().out == "steered-1.npz, 2.0 s; python motions/view.py steered-1.npz\n"
    assert controls.saved.content.startswith("steered-1.npz") and controls.saved.visible
    assert walker.save() == "steered-2.npz"
    clip = ml.load_clip("steered-1.npz", walker.character.body_names)
    assert clip.fps == pytest.approx(30.0) and len(clip.root_position) == 61
    assert np.allclose(clip.root_position[-1], spot, atol=1e-5)
    _, (take,) = view.load_takes(walker.character, ["steered-1.npz"], "side")
    assert take.name == "policy pretrained/heading.pt, steered"
    walker.reset()
    assert not walker.walked
    controls.save()
    assert "nothing" in capsys.readouterr().out and not (tmp_path / "steered-3.npz").exists()
    walker.step()
    walker.walked.append(walker.walked[0])
    monkeypatch.setattr(steer, "save_clip", lambda path, *_: (_ for _ in ()).throw(OSError(28, "disk full", path)))
    controls.save()
    assert capsys.readouterr().out == "steered-3.npz: disk full; nothing is saved\n"


def test_the_trail_has_no_gap():
    """From its beginning to the figure, in a circle: lines are only posed, two a picture, and the rest stays."""
    lines = []

    def add(_, points, *__, **___):
        lines.append(SimpleNamespace(length=float(points[-1, 1, 0] - points[0, 0, 0])))
        assert points[-1, 1, 0] == 0.0  # it ends where its position is
        return lines[-1]

    trail = steer.Trail(SimpleNamespace(scene=SimpleNamespace(add_line_segments=add)))
    way = [np.array([0.8 * math.sin(x), 0.8 - 0.8 * math.cos(x), 0.9]) for x in np.arange(0.0, 60.0, 0.08)]  # 6.4 cm
    trail.show(way[0], 0)
    assert all(line.position[2] < 0.0 for line in lines)
    for picture, spot in enumerate(way[1:], 1):
        before = [line.position for line in lines]
        trail.show(spot, picture)
        moved = [line for line, old in zip(lines, before) if not np.array_equal(line.position, old)]
        assert len(moved) <= 2 and (picture < 2 or any(np.allclose(x.position, spot * [1, 1, 0]) for x in moved))
    laid = [line for line in lines if line.position[2] == 0.0]
    assert len(laid) == steer.TRAIL and all(set(vars(line)) == {"length", "position", "wxyz"} for line in lines)
    for back in range(round((steer.TRAIL - 2) * steer.TRAIL_STEP / 0.064)):  # each spot is on a line
        spot, apart = way[-1 - back] * [1, 1, 0], []
        for line in laid:
            ahead, left, _ = view.axes_of(2.0 * math.atan2(line.wxyz[3], line.wxyz[0])).T @ (spot - line.position)
            apart.append(math.hypot(left, max(ahead, -line.length - ahead, 0.0)))
        assert min(apart) < 0.02
    trail.show(np.array([5.0, 0.0, 0.9]), 0)  # anew
    assert all(line.position[2] < 0.0 for line in lines)
    trail.show(np.array([6.5, 0.0, 0.9]), 1)  # late
    ends = sorted(line.position[0] for line in lines if line.position[2] == 0.0)
    assert ends[0] == pytest.approx(5.2) and ends[-1] == 6.5 and max(np.diff(ends)) < 0.21


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
    nearest = steer.Nearest(motions, 30.0)
    for clip in (0, 6, 15, 18):  # as recorded: what is played faster has the same poses
        for _ in range(60):
            pose = reference_poses(motions, torch.tensor([clip]), torch.tensor([0.4]))[0]
            found, moment, distance = nearest(pose)
        assert found == clip and abs(moment - 0.4) < 0.02 and distance < 0.02


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
    speeds = getattr(loaded.args, "speed_range", (0.0, 0.0))
    server, stop = view.start_server("127.0.0.1", 0), threading.Event()
    thread = threading.Thread(target=steer.serve, args=(server, walker, meshes, speeds, stop))
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
        assert {button[0] for button in steer.BUTTONS} <= set(controls.jobs_of)
        for key, wish in (("I", 0.25), ("K", 0.0)):
            controls.jobs_of[key]()
            assert controls.speed.value - 1.5 == pytest.approx(wish)
        controls.faster(100.0)
        assert soon(lambda: math.isclose(walker.heading, math.radians(-15.0)) and walker.speed == controls.speed.max)
        # the camera is behind it, and goes around with it: its left is the picture's
        eye = controls.eye
        assert soon(lambda: abs(eye.turn - math.radians(15.0)) < 0.1)
        (x, y, z), (to_x, to_y, to_z) = (getattr(eye.server.initial_camera, x) for x in ("position", "look_at"))
        assert to_x - x > 2.0 * abs(to_y - y) and z - to_z > 2.0
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
        controls.jobs.append(walker.reset)
        assert soon(lambda: walker.steps == 0)
        # who comes alone finds time going on, and both figures; who comes later what the others have
        assert "paused" in controls.readout.content
        for alone in (False, True):
            controls.welcome(SimpleNamespace(get_clients=lambda alone=alone: {n: None for n in range(2 - alone)}))
            assert (controls.playing, controls.ghost.value) == (alone, alone)
        assert soon(lambda: "physics" in controls.readout.content and controls.pause.label == "Pause")


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


def test_a_push_is_seen(walker, monkeypatch):
    """Half a second long, on the clock of the wall, an arrow ends at the body, and points along the force."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    walker.step()
    arrow = SimpleNamespace(visible=False)
    hand = walker.character.body_names.index("left_hand" if "left_hand" in walker.character.body_names else "head")
    pushed = (hand, math.pi / 2, 100.0)
    for seconds, visible in ((0.01, True), (0.45, True), (0.55, False)):
        now[0] = 100.0 + seconds
        steer.show_push(arrow, walker, pushed)
        assert arrow.visible == visible
    assert np.allclose(arrow.wxyz, [math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)])  # along +Y
    assert np.allclose(arrow.position, walker.data.xipos[hand + 1])


def test_it_begins_anew_after_a_fall(loaded, monkeypatch):
    monkeypatch.setattr(steer, "REST", 0.3)
    with served(loaded["walk"], monkeypatch) as (_, walker, controls):
        assert not controls.heading.visible and not controls.speed.visible
        row = walker.row
        controls.jobs.append(lambda: walker.push(1, np.array([0.0, 0.0, 0.0])))
        fall = lambda: walker.data.qpos.__setitem__(slice(3, 7), [0.7, 0.0, 0.7, 0.0])  # on its face  # noqa: E731
        controls.jobs.append(fall)
        assert soon(lambda: walker.row != row)
        assert soon(lambda: walker.down == 0.0 and walker.data.qpos[2] > 0.7)
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
        controls.again.value = False
        controls.pace.value = 1.0
        controls.play_or_pause()
        assert soon(lambda: walker.down > 0.5)
        assert walker.row == row and "it fell" in controls.readout.content


def test_the_page_in_a_browser(tab, loaded, monkeypatch):  # noqa: F811
    with served(loaded["heading"], monkeypatch) as (address, walker, controls):
        pushes = []
        monkeypatch.setattr(walker, "push", lambda body, impulse: pushes.append((body, impulse)))
        tab.set_viewport_size({"width": 720, "height": 260})  # the controls leave the character free
        tab.goto(address)
        wait_for(tab, f"{PELVIS}/right_thigh/right_shin/right_foot")
        tab.locator("canvas").first.wait_for()
        assert tab.title() == "Steer the policy"
        for key in "jji":
            tab.keyboard.press(key)
        assert soon(lambda: controls.heading.value == 30.0 and controls.speed.value == 1.75)
        # held, they turn by 90 degrees a second and not by 15 at each of a keyboard's repeats; others act once
        turns = []
        plain, controls.turn = controls.turn, turns.append
        code = """async key => {
            const begin = performance.now();
            for (let n = 0; n < 100; n++) {
                const event = {key, repeat: n > 0, bubbles: true};
                document.body.dispatchEvent(new KeyboardEvent("keydown", event));
                await new Promise(done => setTimeout(done, 10));
            }
            return 1e-3 * (performance.now() - begin)}"""
        seconds = tab.evaluate(code, "l")
        tab.evaluate(code, "p")
        assert soon(lambda: len(pushes) == 1 and len(turns) >= 3)
        assert set(turns) == {-steer.TURN} and len(turns) <= 2.0 + 6.0 * seconds
        controls.turn = plain
        body, direction, _ = controls.blow
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
        tab.get_by_role("button", name="Play").wait_for()
        tab.get_by_text(re.compile(r"told[\s\S]*paused")).first.wait_for()
        # a long name of a clip moves no button
        below, places = tab.get_by_role("button", name="P push"), set()
        for near in ("run, .045 m", "walk_forward (mirrored), .045 m"):
            controls.readout.content = steer.readout(walker, 1.0, near, False)
            tab.get_by_text(f"nearest: {near.split(',')[0]}").wait_for()
            places.add(below.bounding_box()["y"])
        assert len(places) == 1
        # space is the page's, whatever was clicked on
        more = tab.get_by_text("more", exact=True)
        more.click()
        box = tab.get_by_role("checkbox").last
        box.click()
        assert soon(lambda: not controls.again.value)
        fold = tab.locator("[data-dock-minimize]").first
        for clicked in (box, fold):
            clicked.click()
            tab.wait_for_timeout(300)
            folded, playing = tab.locator("[aria-label='Expand panel']").count(), controls.playing
            tab.keyboard.press("Space")
            assert soon(lambda playing=playing: controls.playing != playing)
            tab.wait_for_timeout(300)
            assert tab.locator("[aria-label='Expand panel']").count() == folded and controls.again.value
        assert not controls.playing
        # the head says what it does, also when the panel is folded
        tab.get_by_text("keys · paused").wait_for()
        tab.keyboard.press("Space")
        tab.get_by_text(re.compile(r"keys · \d*\.\d\d\sm/s")).wait_for()
        tab.keyboard.press("Space")
        fold.click()
        before = controls.heading.value
        tab.get_by_role("button", name="J left").click()
        assert soon(lambda: controls.heading.value == steer.wrap(before + steer.TURN))
        # so they are after a number was entered
        number = tab.locator("input[type=text]").first
        number.fill("90")
        number.press("Enter")
        assert soon(lambda: controls.heading.value == 90.0)
        tab.keyboard.press("j")
        assert soon(lambda: controls.heading.value == 90.0 + steer.TURN)
        # on a narrow screen the panel is folded at first, else it hides the legs
        tab.set_viewport_size({"width": 390, "height": 700})
        tab.reload()
        tab.wait_for_function("window.lookFrom && document.querySelector('.mantine-Paper-root')")
        left = tab.get_by_role("button", name="J left")
        assert soon(lambda: not left.is_visible())
        tab.get_by_text("keys · ").click()
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
