"""Fixtures shared by all tests: the character, small motion files, and a way to run the scripts inside this process."""

import contextlib
import io
import os
import runpy
import signal
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

import files
import motion_lib as ml
import report

os.environ.setdefault("AMP_PAGE", "no")  # no page for every evaluation of a test; those of the page unset it

ROOT = Path(__file__).resolve().parent.parent
# the same examples every time, and nothing that depends on how fast the machine is
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")
torch.set_num_threads(1)  # the tensors here are small; more threads only wait for one another
# What a shell's "&" ignores, the trainings that are started here would ignore, too, and never end.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _name in {"SIGQUIT", "SIGHUP"} & set(dir(signal)):
    signal.signal(getattr(signal, _name), signal.SIG_DFL)


def put(sim, env_ids, state):
    """Put environments (n,) long of a simulator into states of batch (n,); the others stay as they are."""
    chosen = torch.zeros(int(env_ids.max()) + 1, dtype=torch.bool)
    chosen[env_ids] = True
    rows = [x.new_full((len(chosen), *x.shape[1:]), float("nan")).index_copy(0, env_ids, x) for x in state]
    sim.set_state(chosen, ml.MotionState(*rows))


# The pictures of an evaluation in this process are empty files: drawing one takes longer than a tiny training.
DRAW = report._write_figure
report._write_figure = lambda path, figure: files.write_file(path, b"")


@pytest.fixture(autouse=True)
def drawn(request, monkeypatch):
    """They are drawn in test_report.py, by tests marked `drawn`, and in every process of its own."""
    if request.node.get_closest_marker("drawn"):
        monkeypatch.setattr(report, "_write_figure", DRAW)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def character() -> ml.Character:
    return ml.load_character(str(ROOT / "motions/humanoid.xml"))


@pytest.fixture(scope="session")
def walk(character) -> ml.MotionLib:
    return ml.MotionLib(str(ROOT / "motions/walk.npz"), character)


@pytest.fixture(scope="session")
def all_motions(character) -> ml.MotionLib:
    """Every clip in motions/."""
    return ml.MotionLib(str(ROOT / "motions"), character)


@pytest.fixture
def write_clip(tmp_path, character):
    """write_clip(name, frames=..., fps=..., loop=..., root_position=..., rotations=..., ...) -> path of a motion file.

    What is not given is a character that stands upright at the height 0.9 m; `None` leaves an array out of the file."""

    def write(name="clip.npz", frames=5, **arrays):
        data = {
            "fps": np.float64(10.0),
            "loop": np.array("clamp"),
            "body_names": np.array(character.body_names),
            "root_position": np.tile(np.array([0.0, 0.0, 0.9], np.float32), (frames, 1)),
            "rotations": np.tile(np.array([0.0, 0.0, 0.0, 1.0], np.float32), (frames, len(character.body_names), 1)),
            "source": np.array("a test"),
            "license": np.array("none"),
        }
        data.update(arrays)
        path = tmp_path / name
        with open(path, "wb") as file:
            np.savez(file, **{key: np.asarray(value) for key, value in data.items() if value is not None})
        return str(path)

    return write


@pytest.fixture(scope="module")
def double(root):
    """gymapi and gymtorch of Isaac Gym's double, imported as they demand, before torch; others do not find them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / "tests/isaacgym_double"))
        patch.delitem(sys.modules, "torch")
        from isaacgym import gymapi

        patch.setitem(sys.modules, "torch", torch)
        from isaacgym import gymtorch

        yield gymapi, gymtorch
    for name in [name for name in sys.modules if name.split(".")[0] == "isaacgym"]:
        del sys.modules[name]


class Payload:
    """Unpickling this makes a folder: proof that a file was executed."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def payload():
    """The class of an object whose unpickling makes the folder that it is given."""
    return Payload


class Result(NamedTuple):
    code: int
    out: str
    err: str


@contextlib.contextmanager
def signals_kept():
    """Put back what a training in this process does to signals."""
    kept = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    }
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def signals():
    with signals_kept():
        yield


@pytest.fixture
def run_script(monkeypatch, tmp_path, signals):
    """run_script(script, *arguments) -> Result: what `python script arguments` does in tmp_path, in this process."""

    def run(script, *arguments, folder=tmp_path):
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *map(str, arguments)])
        monkeypatch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
        monkeypatch.setattr(threading, "excepthook", threading.excepthook)
        code = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            except SystemExit as stop:
                code = stop.code or 0
        return Result(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def load(root, character):
    return lambda name: ml.load_clip(str(root / f"motions/{name}.npz"), character.body_names)


@pytest.fixture
def convert(run_script, tmp_path, character):
    """convert(path, *options) -> (clip, what was printed)."""

    def run(path, *options):
        result = run_script("motions/convert.py", path, tmp_path / "out.npz", *options)
        assert (result.code, result.err) == (0, "")
        return ml.load_clip(str(tmp_path / "out.npz"), character.body_names), result.out

    return run


@pytest.fixture
def refuse(run_script, tmp_path):
    """refuse(path, *options) -> the one line that convert.py ends with."""

    def run(path, *options):
        result = run_script("motions/convert.py", path, tmp_path / "never.npz", *options)
        assert result.code == 2 and result.out == "" and not (tmp_path / "never.npz").exists()
        assert result.err.count("\n") == 1
        return result.err

    return run
