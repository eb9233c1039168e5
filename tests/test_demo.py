"""demo/: the page that runs an exported policy in the browser, built as its readers build it, in headless Chromium.

Skipped where Node, npm, its packages or Chromium are missing."""

import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="MuJoCo needs Python 3.10")
pytest.importorskip("viser", reason="viser is not installed: pip install -r requirements.txt")
pytest.importorskip("onnxruntime", reason="pip install -r requirements-deploy.txt")

from test_view import CHROMIUM, browser, tab  # noqa: F401  (two are fixtures)

from deploy import export

OURS = ("main.js", "build.mjs", "index.html", "package.json", ".npmrc", ".gitignore")
LOOK = """({time: demo.walker.steps * demo.walker.dt, place: Array.from(demo.walker.data.qpos.slice(0, 3)),
           heading: demo.walker.heading, start: demo.walker.start, down: demo.walker.down})"""
SAID = "document.getElementById('state').textContent"
TYPE = """keys => keys.forEach(key => ["keydown", "keyup"].forEach(x => dispatchEvent(new KeyboardEvent(x, {key}))))"""
LATER = (
    "const now = performance.now.bind(performance); performance.now = () => now() + 1e6"  # than pictures' times [ms]
)
STALL = "const end = performance.now() + 2000; while (performance.now() < end);"
TIP = """(() => {
    const {arrow, camera, orbit} = demo.stage;
    return arrow.localToWorld(orbit.target.clone().set(demo.walker.speed, 0, 0)).project(camera).toArray()})()"""


def test_it_is_small_and_names_no_host(root):
    texts = [(root / "demo" / name).read_text(encoding="utf-8") for name in OURS]
    assert sum(len(text.splitlines()) for text in texts) <= 400
    lock = (root / "demo/package-lock.json").read_text(encoding="utf-8")
    assert '"integrity"' in lock and '"resolved"' not in lock
    assert not any("http" in text for text in texts)


@pytest.fixture(scope="module")
def site(root, tmp_path_factory):
    """The built page, of the policy that export.py makes of pretrained/heading.pt, as a folder."""
    if CHROMIUM is None or shutil.which("npm") is None:
        pytest.skip("no Node or no Chromium on this machine (Debian: apt-get install nodejs npm chromium)")
    demo = tmp_path_factory.mktemp("site") / "demo"
    demo.mkdir()
    for name in (*OURS, "package-lock.json"):
        shutil.copy(root / "demo" / name, demo)
    if (root / "demo/node_modules").exists():
        (demo / "node_modules").symlink_to(root / "demo/node_modules")
    else:
        done = subprocess.run(["npm", "ci"], cwd=demo, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"npm ci: {done.stderr.strip().splitlines()[-1:]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["export.py", "pretrained/heading.pt", str(demo / "policy.onnx")])
        export.main()
    done = subprocess.run(["npm", "run", "build"], cwd=demo, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return demo / "dist"


def test_what_is_built_is_small(site):
    assert sum(path.stat().st_size for path in site.iterdir()) < 25e6
    assert {path.suffix for path in site.iterdir()} == {".html", ".js", ".bin", ".onnx", ".xml", ".json"}


@pytest.fixture
def address(site):
    """Where the built page is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["policy.onnx", "policy.xml", "policy.json"])
def test_files_of_two_policies_are_refused(site, address, tab, name):  # noqa: F811
    digest = json.loads((site / "policy.json").read_text())["checkpoint"]["sha256"].encode()
    text = (site / name).read_bytes()
    assert text.count(digest) == 1
    tab.route(f"**/{name}", lambda route: route.fulfill(body=text.replace(digest, digest[::-1])))
    tab.goto(address)
    tab.wait_for_function(f"{SAID}.startsWith('It cannot run here: ')")
    assert "policy.onnx, policy.xml and policy.json are not of one policy" in tab.inner_text("#state")
    assert tab.faults.pop().startswith("policy.onnx, policy.xml and policy.json are not of one")


def test_a_missing_file_is_named(address, tab):  # noqa: F811
    tab.route("**/policy.xml", lambda route: route.fulfill(status=404, body="<p>nothing here</p>"))
    tab.goto(address)
    tab.wait_for_function(f"{SAID}.startsWith('It cannot run here: ')")
    assert tab.inner_text("#state") == "It cannot run here: policy.xml does not come: status 404"
    assert "status 404" in tab.faults.pop()


@pytest.mark.parametrize("rate", [0.5, None])
def test_it_turns_as_fast_as_the_export_says(site, address, tab, rate):  # noqa: F811
    """And as an older one, which does not say it, by 2 rad/s."""
    about = json.loads((site / "policy.json").read_text())
    assert about.pop("turn_rate_rad_s") == 2.0
    about.update({"turn_rate_rad_s": rate} if rate else {})
    tab.route("**/policy.json", lambda route: route.fulfill(body=json.dumps(about)))
    tab.goto(address)
    tab.wait_for_function("globalThis.demo?.walker?.steps > 0")
    tab.evaluate("demo.pace = 0")
    tab.evaluate("Object.assign(demo.walker, {goal: 3, heading: 0}).think()")
    assert tab.evaluate("demo.walker.heading") == pytest.approx((rate or 2.0) / about["control_hz"])


def test_it_walks_and_turns(address, tab):  # noqa: F811
    """Ten seconds straight on, then to the left while a key is held; nothing comes from any other host."""
    tab.add_init_script(LATER)
    tab.goto(address)
    tab.wait_for_function("globalThis.demo?.walker?.steps > 0")
    tab.evaluate(STALL)
    tab.wait_for_function(f"{SAID}.endsWith(' % of real time')")
    tab.evaluate(TYPE, ["ArrowLeft", "ArrowLeft", "ArrowUp"])  # between two pictures
    assert tab.evaluate("[demo.walker.goal, demo.walker.speed]") == pytest.approx([np.pi / 6, 1.25])
    tab.evaluate(TYPE, ["l", "L", "k"])  # as in deploy/steer.py
    assert tab.evaluate("[demo.walker.goal, demo.walker.speed]") == pytest.approx([0.0, 1.0])
    tab.evaluate("demo.pace = 5.0")  # software draws slowly; the physics need not wait for it
    tab.wait_for_function("demo.walker.steps * demo.walker.dt > 10.0")
    after = tab.evaluate(LOOK)
    assert after["down"] == 0 and after["start"] == 0 and after["place"][2] > 0.7
    assert after["place"][0] > 8.0 and abs(after["place"][1]) < 0.3 * after["place"][0]
    tab.evaluate("demo.pace = 1.0")
    # V: at right angles to its way, from the front, from above, as at first
    seen = "demo.stage.camera.position.clone().sub(demo.stage.orbit.target).applyAxisAngle(demo.stage.camera.up, "
    seen += "-demo.stage.course).normalize().toArray()"
    for view in ((0.0, -1.0), (1.0, 0.0), (0.0, 0.0)):
        tab.keyboard.press("v")
        tab.wait_for_function(f"(([x, y]) => Math.hypot(x - {view[0]}, y - {view[1]}) < 0.03)({seen})")
        if view == (0.0, -1.0):
            tab.set_viewport_size({"width": 390, "height": 800})  # a phone
            tab.wait_for_function(f"demo.stage.camera.aspect < 0.5 && {TIP}[0] > 0.3")
            assert tab.evaluate(TIP)[0] < 0.9
            tab.set_viewport_size({"width": 500, "height": 400})
    tab.keyboard.press("v")
    tab.wait_for_function("demo.stage.view === 0")
    assert 0.5 < np.hypot(*tab.evaluate("demo.walker.way()")) < 2.0  # told 1 m/s
    tab.keyboard.down("ArrowLeft")
    tab.wait_for_function("demo.walker.heading > 1.0")
    tab.keyboard.up("ArrowLeft")
    tab.evaluate("demo.pace = 5.0")
    turned = tab.evaluate(LOOK)
    tab.wait_for_function(f"demo.walker.steps * demo.walker.dt > {turned['time'] + 4.0}")
    end = tab.evaluate(LOOK)
    assert end["place"][1] > turned["place"][1] + 2.0 and end["down"] == 0 and end["start"] == 0
    tab.keyboard.down("l")  # as in deploy/steer.py
    tab.wait_for_function(f"demo.walker.heading < {end['heading']} - 0.1")
    tab.keyboard.up("l")
    tab.evaluate(TYPE, ["i", "i"])
    told = "[demo.walker.goal, demo.walker.speed]"
    before = tab.evaluate(told)
    for key, code in {"m": "demo.pace === 1.0 || demo.pace === 0.2", "r": "demo.walker.start === 1"}.items():
        tab.keyboard.press(key)
        tab.wait_for_function(code)
    anew = "(demo.walker.reset(), Math.hypot(...demo.walker.data.geom_xmat.slice(9, 18)))"  # before any step
    assert tab.evaluate(anew) == pytest.approx(3**0.5, abs=1e-6)
    assert tab.evaluate(told) == before and before[1] == 1.5
    tab.wait_for_function(f"{SAID}.startsWith('-, told 1.5 m/s; physics at ')")
    assert tab.requests and all(url.startswith((address, "data:", "blob:")) for url in tab.requests)
