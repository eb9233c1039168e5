"""What an evaluation writes: its figures, roll-outs as clips, pictures, a page, films.

It is given clips, tensors and numbers; it knows no networks and no simulators. Units and frames: motion_lib.
Dimension key: T control steps, J bodies.
"""

import importlib.util
import io
import json
import math
import os
import re
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional

from torch import Tensor

import motion_lib as ml
from clips import save_clip
from console import sentence, short
from files import HERE, optional, write_file

RENDER = os.path.join(HERE, "motions", "render.py")  # draws films
VIEW = os.path.join(HERE, "motions", "view.py")  # makes pages
IN_RUN = re.compile("__[^/]*/([^,]*)")  # of the name of a policy in a run: what a picture has no room for; its file
SECTIONS = 8  # of the time, whose means stand in the picture of errors
TOOL_SECONDS = 600.0  # a film or a page that takes longer has hung [s]


# ---- 1. Pictures -----------------------------------------------------------------------------------------------------


def _write_figure(path: str, figure: Any) -> None:
    """Write a figure of matplotlib as PNG. Raises OSError."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(path, buffer.getvalue())


def plot_body_errors(path: str, errors: Tensor, names: List[str], dt: float, title: str = "") -> None:
    """Draw the pose error (T, J-1) [m] of where each body begins, a row a body, its mean in the label, until all fell.

    names: of the J-1 joints there; hips and waist hardly err, they are near the root. dt [s]. Raises OSError."""
    from matplotlib.figure import Figure

    errors = errors[: max(int(errors.isfinite().any(1).sum()), 1)]  # as long as anyone lives
    parts = errors.tensor_split(min(SECTIONS, len(errors)))
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(subplot_kw=dict(xlabel="time [s]", title=title))
    labels = [f"{name} {short(mean, 3)}" for name, mean in zip(names, errors.nanmean(0).tolist())]
    axes.set_yticks(range(len(names)), labels)
    extent = (0.0, len(errors) * dt, len(names) - 0.5, -0.5)
    image = axes.imshow(errors.T.cpu().numpy(), vmin=0, aspect="auto", extent=extent, interpolation="nearest")
    figure.colorbar(image, label="pose error [m]", format=lambda error, _: short(error, 3))
    for n, part in enumerate(parts):  # their means stand in the picture
        middle = (sum(map(len, parts[:n])) + 0.5 * len(part)) * dt
        for j, mean in enumerate(part.nanmean(0).tolist()):
            colour = "black" if mean > 0.6 * image.get_clim()[1] or math.isnan(mean) else "white"
            axes.text(middle, j, short(mean, 3), ha="center", va="center", color=colour, fontsize="small")
    _write_figure(path, figure)


def plot_table(
    path: str, table: List[list], rows: List[str], columns: List[str], label: str, title: str, top: float
) -> None:
    """Draw numbers table[speed][turn], which `label` names, from 0 to `top`, with the number in each cell.

    rows, columns: the speeds [m/s] beside it and turns [degrees] below it. Raises OSError."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axes = figure.subplots(subplot_kw=dict(xlabel="turn [degrees]", ylabel="speed [m/s]", title=title))
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    image = axes.imshow(table, vmin=0, vmax=top, aspect="auto")
    figure.colorbar(image, label=label, extend="max" if any(x > top for row in table for x in row) else "neither")
    for i, row in enumerate(table):
        for j, value in enumerate(row):
            colour = "white" if value <= 0.5 * top else "black"  # on blue, on yellow or, for NaN, on white
            axes.text(j, i, short(value, 2 if top == 1 else 0), ha="center", va="center", color=colour)
    _write_figure(path, figure)


@optional()
def plot_grid(folder: str, episodes: Dict[str, Tensor], rows: List[str], columns: List[str]) -> None:
    """Draw task return and course error of episodes (E,), a cell each, row by row, into the folder of an evaluation.

    rows, columns: the speeds [m/s] and turns [degrees] that were commanded."""
    with open(os.path.join(folder, "figures.json"), encoding="utf-8") as file:
        name = IN_RUN.sub(r" (\1)", "/".join(json.load(file)["checkpoint"].split(os.sep)[-2:]))
    title = f"{name}: a test of its own,\nin each cell an episode with a constant command"
    returns, courses = (episodes[x].view(len(rows), len(columns)) for x in ("task_return", "course_error_deg"))
    top = max(5.0, float(courses.nanquantile(0.9)))  # a few large ones would leave the others in one colour
    path = os.path.join(folder, "grid")
    plot_table(f"{path}.png", returns.tolist(), rows, columns, "task return (1 is the best)", title, 1.0)
    plot_table(f"{path}_course.png", courses.tolist(), rows, columns, "course error [degrees]", title, top)


# ---- 2. What an evaluation writes ------------------------------------------------------------------------------------


def new_folder(path: str) -> str:
    """Make a folder, PATH-2 or so if there is one already -> its path. Raises OSError."""
    number = 1
    while True:
        folder = path if number == 1 else f"{os.path.normpath(path)}-{number}"
        try:
            os.makedirs(folder)
            return folder
        except FileExistsError:
            number += 1


def write_rollouts(folder: str, clips: List[ml.Clip], body_names: List[str], source: str, longest: int = 0) -> None:
    """Write roll-outs as clips 000.npz, 001.npz, ... into a new folder; of less than `longest` steps it says that they
    fell. Raises OSError."""
    os.makedirs(folder)
    for n, clip in enumerate(clips):
        steps = len(clip.root_position) - 1
        about = f"{source}, fell after {steps / clip.fps:.1f} s" if steps < longest else source
        save_clip(os.path.join(folder, f"{n:03d}.npz"), clip, body_names, about, "as the clips it imitates")


def write(args: Any, motions: ml.MotionLib, result: Any, checkpoint: str) -> str:
    """Write an evaluation.Result of a checkpoint as far as possible, into args.out or a new folder of its run -> it."""
    metrics, clips, errors, _ = result
    run, stem = os.path.split(os.path.splitext(checkpoint)[0])
    home = run if os.path.exists(os.path.join(run, "args.json")) else os.path.join("runs", "evaluations")
    folder = args.out or os.path.join(home, f"{stem}_{time.strftime('%Y%m%d-%H%M%S')}")
    names = motions.character.body_names
    name = "/".join(os.path.abspath(checkpoint).split(os.sep)[-2:])
    clip = os.path.basename(os.path.normpath(args.motion_file))
    with optional():
        folder = new_folder(folder)
        about = {"checkpoint": checkpoint, "command": sys.argv, "figures": metrics}
        write_file(os.path.join(folder, "figures.json"), json.dumps(about, indent=1).encode())
    with optional():
        turned = dict(zip(motions.character.dof_body.tolist(), motions.character.dof_names))
        joints = [re.sub("_[xyz]$", "", turned.get(j) or body) for j, body in enumerate(names)][1:]
        title = IN_RUN.sub(r" (\1)", name) + f" on {clip}: pose error of each joint [m]"
        plot_body_errors(os.path.join(folder, "pose_error.png"), errors, joints, 1.0 / clips[0].fps, title)
    first = os.path.join(folder, "rollouts", "000.npz")
    told = getattr(args, "eval_commands", None)
    with optional():
        ends = bool(motions.loop.all()) or metrics.get("fall_rate") == 1.0  # else a clip's end may end an episode
        longest = round(args.eval_seconds * args.control_hz) if ends else 0
        write_rollouts(os.path.join(folder, "rollouts"), clips, names, f"roll-out of {name}", longest)
        text = sentence(args, motions, metrics).splitlines()[0]
        page(os.path.join(folder, "index.html"), first, clips[0], motions, text, told)
    with optional():
        if args.capture_video and args.evaluate:
            print(f"filming {len(clips[0].root_position)} pictures", file=sys.stderr, flush=True)
            film(os.path.join(folder, "film.mp4"), first, motions, told, sys.stderr.isatty())
    return folder


def page(out: str, rollout: str, clip: ml.Clip, motions: ml.MotionLib, text: str, told: Optional[str] = None) -> None:
    """Write a page of a roll-out, a file that holds `clip`, beside the clip that it imitates if there is but one.

    text: figures; told: file of its commands, with which it shows 20 s at most, without it 10 s. Raises OSError."""
    if os.environ.get("AMP_PAGE") == "no":  # for many evaluations in a row
        return
    if importlib.util.find_spec("viser") is None:
        raise OSError("no page to look at the motion; pip install viser trimesh (Python 3.10)")
    seconds = min((len(clip.root_position) - 1) / clip.fps, 20.0 if told else 10.0)
    clips = motions.files if len(motions.files) == 1 else []
    more = ["--layout", "beside", "--html", out, "--seconds", f"{seconds:.4f}", f"--text={text}"]
    more += ["--commands", told] if told else []
    _ask(out, [VIEW, rollout, *clips, *more, "--character-file", motions.character.path])


def film_episode(out: str, clip: ml.Clip, motions: ml.MotionLib) -> None:
    """Write a roll-out, and its film OUT, .mp4 or .gif, beside it. Raises OSError."""
    rollout = os.path.splitext(out)[0] + ".npz"
    source = f"roll-out of {'/'.join(os.path.abspath(rollout)[:-4].split(os.sep)[-2:])}"
    save_clip(rollout, clip, motions.character.body_names, source, "as the clips it imitates")
    film(out, rollout, motions)


def film(out: str, rollout: str, motions: ml.MotionLib, told: Optional[str] = None, watched: bool = False) -> None:
    """Film a roll-out, .mp4 or .gif, with its clip as a ghost if there is but one; told: file of its commands.

    watched: a bar on the terminal shows how far it is. Raises OSError."""
    more = ["--ghost", motions.files[0]] if len(motions.files) == 1 else []
    more += ["--fast", *(["--commands", told] if told else [])]
    _ask(out, [RENDER, rollout, out, *more, "--character-file", motions.character.path], watched)


def _ask(out: str, command: List[str], watched: bool = False) -> None:
    """Run a tool that writes a file, in a process that OpenGL may end; watched: it is heard. Raises OSError."""
    try:
        streams = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=None if watched else subprocess.PIPE)
        done = subprocess.run([sys.executable, *command], timeout=TOOL_SECONDS, **streams)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{out}: not written in {TOOL_SECONDS:.0f} s") from error
    if done.returncode != 0:
        said = (done.stderr or b"").decode(errors="replace").strip().splitlines()
        raise OSError(f"{out}: not written: {said[-1] if said else f'exit code {done.returncode}'}")
