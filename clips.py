"""Motion clips as files: reading, checking, writing; datasets. The format is described in motions/README.md.

Conventions as in motion_lib.py. Dimension key: F frames, J bodies (row 0 is the root).
"""

import io
import json
import math
import os
import zipfile
from typing import List, NamedTuple, Tuple

import numpy as np

from files import InputError, alike, find, read_file, reading, write_file


class Clip(NamedTuple):
    """One motion clip, as stored (format: motions/README.md)."""

    fps: float
    loop: str  # "wrap": the last frame is the first one of the next cycle; "clamp": it ends there
    root_position: np.ndarray  # (F, 3) world [m]
    rotations: np.ndarray  # (F, J, 4) xyzw, parent-relative; row 0 is the root in the world


def load_clip(path: str, body_names: List[str]) -> Clip:
    """Read and check one clip of the skeleton whose bodies are `body_names`. Nothing in the file is ever executed.

    Raises InputError when it is missing, unreadable, of another skeleton, or holds values that are no motion."""

    def check(sound: bool, fault: str) -> None:
        if not sound:
            raise InputError(f"{path}: {fault}")

    if not os.path.isfile(path):
        raise InputError(f"{path}: no such motion file{alike(path, 'motions/*.npz')}")
    with reading(path, "a motion clip as in motions/README.md"), open(path, "rb") as archive:
        advice = f"python motions/convert.py {path} makes one of BVH or another format"
        check(zipfile.is_zipfile(archive), f"no motion clip, or a damaged one; {advice}")
        check(sum(x.file_size for x in zipfile.ZipFile(archive).infolist()) <= 2**30, "unpacks to more than 1 GiB")
        with np.load(path, allow_pickle=False) as file:  # what is pickled would be executed
            data = {key: file[key] for key in file.files}
        missing = [key for key in ("fps", "loop", "body_names", "root_position", "rotations") if key not in data]
        check(not missing, f"not a motion clip, it lacks {', '.join(missing)} (format: motions/README.md)")
        real = [data[key].dtype.kind in "fiu" for key in ("fps", "root_position", "rotations")]
        check(all(real), "fps, root_position and rotations have to be real numbers")
        fps = float(data["fps"].reshape(()))
        loop = str(data["loop"].reshape(()))
        names = [str(name) for name in data["body_names"]]
        root = data["root_position"].astype(np.float64)
        rotations = data["rotations"].astype(np.float64)
    odd = ", ".join(sorted(set(names) ^ set(body_names))[:5])
    check(names == body_names, f"clip of another skeleton; body names differ: {' '.join(odd.split()) or 'their order'}")
    shaped = root.shape[1:] == (3,) and rotations.shape == (len(root), len(names), 4)
    check(shaped, f"root_position {root.shape}, rotations {rotations.shape}; expected (F, 3), (F, {len(names)}, 4)")
    check(len(root) >= 2, f"{len(root)} frame; a motion needs at least 2")
    check(np.isfinite(root).all() and np.isfinite(rotations).all(), "NaN or infinity in root_position or rotations")
    check(np.abs(root).max() < 1e4, f"root_position reaches {np.abs(root).max():.3g}; the unit is metres")
    check(1.0 <= fps <= 1000.0, f"fps is {fps}; expected 1 to 1000")
    check(loop in ("wrap", "clamp"), f'loop is {loop[:20]!r}; expected "wrap" or "clamp"')
    norm = np.linalg.norm(rotations, axis=-1)  # (F, J)
    frame, body = np.unravel_index(np.abs(norm - 1).argmax(), norm.shape)
    worst = norm[frame, body]
    check(abs(worst - 1) < 1e-3, f"the quaternion of {names[body]} in frame {frame} has norm {worst:.4g}; expected 1")
    return Clip(fps, loop, root, rotations / norm[..., None])


def save_clip(path: str, clip: Clip, body_names: List[str], source: str, license: str) -> None:
    """Write a clip (see write_file). Raises OSError."""
    buffer = io.BytesIO()
    about = dict(fps=float(clip.fps), loop=clip.loop, body_names=body_names, source=source, license=license)
    frames = {key: np.asarray(getattr(clip, key), np.float32) for key in ("root_position", "rotations")}
    np.savez(buffer, **about, **frames)
    write_file(path, buffer.getvalue())


def find_clips(path: str) -> Tuple[List[str], List[float], List[float], bool]:
    """Files, weights, rates of what a clip, a folder of clips or a JSON dataset file stands for; and whether mirrored.

    A dataset file is {"clips": [{"file": "walk.npz", "weight": 1.0, "rates": [1.0, 1.2]}, ...], "mirror": true}, with
    paths relative to itself; rates (2: twice as fast) share a clip's weight. Raises InputError for anything else."""
    path = find(path)
    if os.path.isdir(path):
        files = sorted(os.path.join(path, name) for name in os.listdir(path) if name.lower().endswith(".npz"))
        if not files:
            raise InputError(f"{path}: no .npz motion clip in this folder")
        return files, [1.0] * len(files), [1.0] * len(files), False
    if not str(path).endswith(".json"):
        return [path], [1.0], [1.0], False
    with reading(path, 'a dataset file {"clips": [{"file": ..., "weight": ..., "rates": [...]}, ...], "mirror": ...}'):
        content = {"mirror": False, **json.loads(read_file(path))}
        played = [(entry, float(rate)) for entry in content["clips"] for rate in entry.get("rates", [1.0])]
        files = [os.path.join(os.path.dirname(path), entry["file"]) for entry, _ in played]
        weights = [float(entry.get("weight", 1.0)) / len(entry.get("rates", [1.0])) for entry, _ in played]
        rates = [rate for _, rate in played]
        unknown = set().union(*content["clips"]) - {"file", "weight", "rates"} or set(content) - {"clips", "mirror"}
        fit = all(entry.get("rates", [1.0]) for entry in content["clips"]) and content["mirror"] in (True, False)
    if unknown or not files or not fit or not all(0.0 < number < math.inf for number in weights + rates):
        raise InputError(f"{path}: a dataset needs a clip, positive finite weights and rates, and no other keys")
    return files, weights, rates, content["mirror"]
