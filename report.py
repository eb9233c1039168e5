"""What an evaluation writes: its figures, roll-outs as clips, pictures, films.

It is given clips, tensors and numbers; it knows no networks and no simulators. Units and frames: motion_lib.
Dimension key: T control steps, J bodies.
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from typing import Any, Dict, List

from torch import Tensor

import motion_lib as ml
from files import optional, read_file

RENDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "motions", "render.py")  # draws films, see film()
FILM_SECONDS = 600.0  # a film that takes longer has hung [s]


def write_rollouts(folder: str, clips: List[ml.Clip], body_names: List[str], source: str) -> None:
    """Write roll-outs as clips 000.npz, 001.npz, ... in place of an earlier evaluation's. Raises OSError."""
    os.makedirs(folder, exist_ok=True)
    for file in list(os.scandir(folder)):
        if re.fullmatch(r"[0-9]{3,}\.npz", file.name):
            with contextlib.suppress(FileNotFoundError):  # another evaluation may remove it, too
                if not file.is_symlink() and b"roll-out of" not in read_file(file.path).replace(b"\0", b""):
                    raise OSError(f"{file.path}: no roll-out, so it stays, and none are written")
                os.remove(file.path)
    for n, clip in enumerate(clips):
        ml.save_clip(os.path.join(folder, f"{n:03d}.npz"), clip, body_names, source, "as the clips it imitates")


def _write_figure(path: str, figure: Any) -> None:
    """Write a figure of matplotlib as PNG. Raises OSError."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    ml.write_file(path, buffer.getvalue())


def plot_body_errors(path: str, errors: Tensor, names: List[str], dt: float) -> None:
    """Draw the pose error of each body (T, J-1) [m] over time, a row a body, with its mean in the label.

    names: of the J-1 bodies; dt: of a control step [s]. Raises OSError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(subplot_kw=dict(xlabel="time [s]"))
    labels = [f"{name} {mean:.3f}" for name, mean in zip(names, errors.nanmean(0).tolist())]
    axes.set_yticks(range(len(names)), labels)
    extent = (0.0, len(errors) * dt, len(names) - 0.5, -0.5)
    image = axes.imshow(errors.T.cpu().numpy(), vmin=0, aspect="auto", extent=extent, interpolation="nearest")
    figure.colorbar(image, label="pose error [m]")
    _write_figure(path, figure)


@optional()
def plot_table(
    path: str,
    table: List[list],
    rows: List[str],
    columns: List[str],
    row_label: str,
    column_label: str,
    label: str,
    top: float = 1.0,
) -> None:
    """Draw numbers table[row][column] from 0 to `top`, with the number in each cell. Raises OSError.

    rows, columns: what stands beside and below; the labels say what rows, columns and numbers are."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axes = figure.subplots(subplot_kw=dict(xlabel=column_label, ylabel=row_label))
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    image = axes.imshow(table, vmin=0, vmax=top, aspect="auto")
    figure.colorbar(image, label=label)
    for i, row in enumerate(table):
        for j, value in enumerate(row):
            colour = "white" if value <= 0.5 * top else "black"  # on blue, on yellow or, for NaN, on white
            axes.text(j, i, f"{value:.2f}" if top == 1 else f"{value:.0f}", ha="center", va="center", color=colour)
    _write_figure(path, figure)


def plot_grid(checkpoint: str, episodes: Dict[str, Tensor], rows: List[str], columns: List[str]) -> None:
    """Draw beside a checkpoint task return and course error of episodes (E,), a cell each, row by row.

    rows, columns: the speeds [m/s] and turns [degrees] that were commanded. Raises OSError."""
    stem = os.path.splitext(checkpoint)[0]
    pictures = {"task_return": ("grid", "task return (1 is the best)", 1.0)}
    pictures["course_error_deg"] = ("grid_course", "course error [degrees]", 90.0)
    for name, (file, label, top) in pictures.items():
        table = episodes[name].view(len(rows), len(columns)).tolist()
        plot_table(f"{stem}_{file}.png", table, rows, columns, "speed [m/s]", "turn [degrees]", label, top=top)


def write(args: Any, character: ml.Character, metrics: Dict, clips: List[ml.Clip], errors: Tensor) -> None:
    """Print the figures of an evaluation of args.checkpoint; write beside it roll-outs, the bodies' errors (T, J-1) [m]
    as a picture, and, with args.capture_video, a film, as far as that is possible."""
    print(json.dumps(metrics), flush=True)
    stem = os.path.splitext(args.checkpoint)[0]
    with optional():
        plot_body_errors(f"{stem}_pose_error.png", errors, character.body_names[1:], 1.0 / clips[0].fps)
    with optional():
        write_rollouts(f"{stem}_rollouts", clips, character.body_names, f"roll-out of {os.path.basename(stem)}.pt")
    with optional():
        if args.capture_video:
            film(f"{stem}_episode.mp4", clips[0], character)


def film(out: str, clip: ml.Clip, character: ml.Character) -> None:
    """Film a roll-out, .mp4 or .gif, in a process that OpenGL may end; write it beside as a clip. Raises OSError."""
    rollout = os.path.splitext(out)[0] + ".npz"
    ml.save_clip(rollout, clip, character.body_names, "a roll-out", "as the clips it imitates")
    command = [sys.executable, RENDER, rollout, out, "--character-file", character.path]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=FILM_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{out}: no film in {FILM_SECONDS:.0f} s") from error
    if done.returncode != 0:
        complaint = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise OSError(f"{out}: no film: {complaint[-1]}")
