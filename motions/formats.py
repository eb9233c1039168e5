"""The formats that motions/convert.py reads and writes (motions/README.md describes them), but for BVH: see bvh.py.

A reader gives a Clip of our own character, or a Recording of another skeleton, which retarget.py turns into a clip.
Dimension key: F frames, J bodies of the character or joints of a recording (row 0 is the root), D dofs.
"""

import io
import json
import pickle
from collections import OrderedDict
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import numpy as np
import torch
from torch import Tensor

import motion_lib as lib
from motion_lib import Character, Clip, InputError
from motions import bvh, safe
from motions.bvh import Recording, continuous


class Motion(NamedTuple):
    """What was found in a file."""

    format: str
    content: Union[Clip, Recording]  # loop is "" where the format does not say
    notes: str  # what else was understood


# What others begin with, what that is, and the way to get it in.
BLENDER = "import it in Blender and export BVH (motions/README.md)"
SIGNATURES = {
    f"FBX; {BLENDER}": (b"Kaydara FBX", b"; FBX"),
    f"glTF or USD; {BLENDER}": (b"glTF", b"PXR-USDC", b"#usda"),
    "Acclaim; convert ASF and AMC to BVH first": (b"# AST/ASF", b":version"),
    "HDF5; no motion in HDF5 is known here": (b"\x89HDF",),
}
NO_BODIES = "it holds a robot's joint angles, but not how its bodies are turned; take the motion it was made from"


def read(path: str, character: Character, wanted: Optional[str] = None, part: Tuple = ()) -> Motion:
    """Read a motion file; the format is recognised by the content. Raises InputError for anything that is no motion.
    wanted: the name of one motion, of a file that holds several. part: of a BVH file, see safe.read_part."""
    raw = safe.read_part(path, *part) if part else safe.read_bytes(path)
    for what, beginnings in SIGNATURES.items():
        if raw.startswith(beginnings):
            raise InputError(f"{path}: this is {what}")
    if raw[1:2] == b"\x50" and 2 <= raw[0] < 16:
        raise InputError(f"{path}: this is C3D, markers without a skeleton; solve it to a skeleton and export BVH")
    raw = safe.inflate(path, raw) if raw[:2] == b"\x1f\x8b" or raw[:1] == b"\x78" else raw
    if raw[:6] == b"\x93NUMPY":
        return read_pickled(path, safe.read_npy(path, raw), character, wanted)
    if raw[:1] == b"\x80":  # how every pickle begins since Python 3's protocols
        return read_pickled(path, safe.read_pickle(path, raw), character, wanted)
    if raw[:4] == b"PK\x03\x04":
        members = safe.read_archive(path, raw)
        if any(name.endswith("/data.pkl") for name in members):
            return read_pickled(path, safe.read_torch(path, members), character, wanted)
        return read_arrays(path, safe.read_npz(path, members), character)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")  # names of joints may be in any code; only ASCII matters here
    if text.lstrip()[:9].upper() == "HIERARCHY":
        return Motion("BVH", bvh.read_bvh(path, text), "degrees, Euler angles in each joint's own order")
    if text.lstrip()[:1] in ("{", "["):
        return read_deepmimic(path, text, character)
    if text[:10_000].split("\n")[0].count(",") > 10:
        raise InputError(f"{path}: a table of numbers, such as Unitree's csv: {NO_BODIES}")
    raise InputError(f"{path}: not a motion file that is known here; motions/README.md lists those that are")


def read_arrays(path: str, arrays: Dict[str, Any], character: Character) -> Motion:
    """A motion from the arrays of an .npz archive. Raises InputError."""
    if "body_rotations" in arrays:
        return read_isaaclab(path, arrays, character)
    if "poses" in arrays and "trans" in arrays:
        rates = [arrays[key] for key in ("mocap_framerate", "mocap_frame_rate", "fps") if key in arrays]
        return read_smpl(path, "AMASS", arrays["poses"], arrays["trans"], [*rates, None][0], SMPL_PELVIS)
    if "body_pos_w" in arrays:
        fault = "bodies without names, in the order of a simulator; take the motion it was made from"
        raise InputError(f"{path}: a motion of BeyondMimic: {fault}")
    if "qpos" in arrays or "q_pelvis_tx" in arrays:
        raise InputError(f"{path}: a motion of LocoMuJoCo or another of MuJoCo: {NO_BODIES}")
    if not {"body_names", "root_position", "rotations"} & set(arrays):
        raise InputError(f"{path}: an .npz, but no motion that is known here; it holds {', '.join(arrays)[:100]}")
    return Motion("our own clip", lib.load_clip(path, character.body_names), "Z up, metres, xyzw, arms hanging")


# ---- 1. DeepMimic text -----------------------------------------------------------------------------------------------

# A row of a DeepMimic file: duration, root position, then these bodies' rotations relative to their parents, each a
# quaternion wxyz or the angle of a hinge. The hands are not in it: they are welded.
COLUMNS = (
    *(("pelvis", 4), ("torso", 4), ("head", 4)),
    *(("right_thigh", 4), ("right_shin", 1), ("right_foot", 4), ("right_upper_arm", 4), ("right_lower_arm", 1)),
    *(("left_thigh", 4), ("left_shin", 1), ("left_foot", 4), ("left_upper_arm", 4), ("left_lower_arm", 1)),
)
WIDTH = 1 + 3 + sum(width for _, width in COLUMNS)


def check_deepmimic(path: str, text: str) -> Tuple[str, np.ndarray]:
    """Loop mode and the checked rows (F, 44) as stored: Y up, s, m, rad, wxyz. Raises InputError."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(data, dict) or not isinstance(data.get("Frames"), list):
        raise InputError(f'{path}: not a DeepMimic motion, it has no list "Frames"')
    if data.get("Loop", "none") not in ("wrap", "none"):
        raise InputError(f'{path}: "Loop" is {data["Loop"]!r:.40}; expected "wrap" or "none"')
    if not 2 <= len(data["Frames"]) <= safe.MAX_FRAMES:
        found = "a single pose is no motion" if len(data["Frames"]) == 1 else f"{len(data['Frames'])} frames"
        raise InputError(f"{path}: {found}; a motion needs at least 2, and {safe.MAX_FRAMES} at most")
    for index, row in enumerate(data["Frames"]):
        plain = isinstance(row, list) and all(type(x) in (int, float) and abs(x) < 1e4 for x in row)  # no NaN, either
        if not plain or len(row) != WIDTH:
            found = f"{len(row)} columns" if plain else "something that is no row of finite numbers of sensible size"
            raise InputError(f"{path}: frame {index} has {found}; a humanoid's frame has {WIDTH}")
    frames = np.array(data["Frames"], np.float64)  # (F, 44)
    bad = np.flatnonzero((frames[:-1, 0] < 2e-3) | (frames[:-1, 0] > 0.5))  # the last frame's duration means nothing
    if len(bad):
        raise InputError(f"{path}: frame {bad[0]} lasts {frames[bad[0], 0]:g} s; expected 0.002 to 0.5")
    return ("wrap" if data.get("Loop") == "wrap" else "clamp"), frames


def read_deepmimic(path: str, text: str, character: Character) -> Motion:
    """A DeepMimic file as a clip: root_position (F, 3) world, Z up [m], rotations (F, J, 4) unit xyzw, parent-relative.
    Row 0 is the root in the world. Heights are the file's. Raises InputError (see check_deepmimic)."""
    loop, frames = check_deepmimic(path, text)
    # Y up, +Z right -> Z up, +Y left: (x, y, z) -> (x, -z, y), for positions and for the axes of rotations alike
    root_position = frames[:, 1:4][:, [0, 2, 1]] * [1.0, -1.0, 1.0]  # (F, 3) world
    rotations = np.tile([0.0, 0.0, 0.0, 1.0], (len(frames), len(character.body_names), 1))  # (F, J, 4)
    column = 4
    for name, width in COLUMNS:
        if width == 4:
            w, x, y, z = frames[:, column : column + 4].T
            q = np.stack((x, -z, y, w), -1)
        else:  # a hinge about DeepMimic's +z axis, which is our -y
            half = -0.5 * frames[:, column]
            q = np.stack((0 * half, np.sin(half), 0 * half, np.cos(half)), -1)
        rotations[:, character.body_names.index(name)] = _unit(path, q, name)
        column += width
    time = np.concatenate(([0.0], np.cumsum(frames[:-1, 0])))  # (F,) [s]
    step = np.diff(time)
    notes = "Y up, metres, wxyz, arms hanging"
    if np.ptp(step) > 1e-3 * np.median(step):
        uniform = np.linspace(0.0, time[-1], round(time[-1] / float(np.median(step))) + 1)
        root_position, rotations = resample(time, uniform, root_position, rotations)
        notes += ", uneven frames resampled"
    return Motion("DeepMimic text", Clip((len(root_position) - 1) / time[-1], loop, root_position, rotations), notes)


def resample(
    old: np.ndarray, new: np.ndarray, root_position: np.ndarray, rotations: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Frames at the times `new` (N,), all within the times `old` (F,) [s]. (F, 3), (F, J, 4) -> (N, 3), (N, J, 4)."""
    low = np.clip(np.searchsorted(old, new, side="right") - 1, 0, len(old) - 2)  # (N,)
    blend = ((new - old[low]) / (old[low + 1] - old[low]))[:, None]  # (N, 1)
    position = (1 - blend) * root_position[low] + blend * root_position[low + 1]
    a, b, t = (torch.from_numpy(x) for x in (rotations[low], rotations[low + 1], blend[..., None]))
    return position, lib.slerp(a, b, t).numpy()


# ---- 2. poselib, MimicKit, PHC, ProtoMotions -------------------------------------------------------------------------


def read_pickled(path: str, tree: Any, character: Character, wanted: Optional[str]) -> Motion:
    """A motion from the tree that safe.read_pickle gives. Raises InputError."""
    if not isinstance(tree, dict):
        raise InputError(f"{path}: a pickle that holds no dictionary, as every motion does that is known here")
    if "skeleton_tree" in tree:
        return read_poselib(path, tree)
    if "frames" in tree:
        return read_mimickit(path, tree, character)
    if "rigid_body_pos" in tree:
        return read_protomotions(path, tree, character)
    if "dof_pos" in tree or "dof" in tree:
        raise InputError(f"{path}: a retargeted motion, such as GMR's: {NO_BODIES}")
    motions = {name: part for name, part in tree.items() if isinstance(part, dict) and "pose_aa" in part}
    if not motions:
        raise InputError(f"{path}: a pickle, but no motion that is known here; it holds {', '.join(tree)[:100]}")
    if wanted not in motions and (wanted is not None or len(motions) > 1):
        raise InputError(f"{path}: holds {len(motions)} motions; --motion NAME takes one of {', '.join(motions)[:800]}")
    part = motions[wanted or next(iter(motions))]
    trans = _field(path, part, "root_trans_offset")
    return read_smpl(path, "PHC", _field(path, part, "pose_aa"), trans, part.get("fps"), np.zeros(3))


def _field(path: str, tree: Any, key: str) -> Any:
    if not isinstance(tree, dict) or tree.get(key) is None:
        raise InputError(f"{path}: not a complete motion, it lacks {key}, or that holds Python objects")
    return safe.plain(tree[key])


def _numbers(path: str, value: Any, key: str, *shape: Optional[int]) -> np.ndarray:
    """An array of finite numbers in float64, of the shape asked for (None: any length). Raises InputError."""
    value = safe.plain(value)
    if type(value) in (int, float) and -1e4 < value < 1e4:  # larger integers might not even be convertible
        value = np.array(value, np.float64)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise InputError(f"{path}: {key} holds no numbers")
    if value.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, value.shape)):
        expected = ", ".join("any" if n is None else str(n) for n in shape)
        pose = "; a single pose is no motion" if value.shape == shape[1:] else ""
        raise InputError(f"{path}: {key} has the shape {value.shape}; expected ({expected}){pose}")
    with np.errstate(all="ignore"):  # of NaN that signal; they are refused below
        value = value.astype(np.float64)
    if not (np.abs(value) < 1e4).all():  # false for NaN, too
        raise InputError(f"{path}: {key} holds NaN, infinity or a number beyond 10 000")
    return value


def _texts(path: str, value: Any, key: str) -> List[str]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    several = isinstance(value, (list, tuple)) and 2 <= len(value) <= bvh.MAX_JOINTS
    if not several or not all(type(name) is str for name in value):
        raise InputError(f"{path}: {key} is not a list of 2 to {bvh.MAX_JOINTS} names")
    return list(value)


def _rate(path: str, value: Any) -> float:
    """Frames per second; 0 where there is none."""
    value = safe.plain(value)
    value = value.reshape(()) if isinstance(value, np.ndarray) and value.size == 1 else value
    return 0.0 if value is None else float(_numbers(path, value, "fps"))


def _unit(path: str, q: np.ndarray, key: str) -> np.ndarray:
    """Quaternions (DeepMimic's kick has norms of .58) normalised, and continuous in time. Raises InputError."""
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    if len(q) < 2 or len(q) > safe.MAX_FRAMES:
        raise InputError(f"{path}: {len(q)} frame(s); a motion needs at least 2, and {safe.MAX_FRAMES} at most")
    if norm.min() < 0.1:
        raise InputError(f"{path}: {key} holds a quaternion of norm {norm.min():.3g}; expected 1")
    return continuous(q / norm)


def _loop(value: Any) -> str:
    """Loop mode from a key that only our own exports have; "" where there is none."""
    value = value.item() if isinstance(value, np.ndarray) and value.shape == () else value
    return value if isinstance(value, str) and value in ("wrap", "clamp") else ""


def read_poselib(path: str, tree: Dict[str, Any]) -> Motion:
    """A motion of IsaacGymEnvs or ASE, with its skeleton: xyzw, parent-relative or not. Raises InputError."""

    def array(part: Any, key: str, *shape: Optional[int]) -> np.ndarray:
        return _numbers(path, _field(path, _field(path, part, key), "arr"), key, *shape)

    skeleton = _field(path, tree, "skeleton_tree")
    names = _texts(path, _field(path, skeleton, "node_names"), "node_names")
    J = len(names)
    parents = array(skeleton, "parent_indices", J).astype(int).tolist()
    if parents[0] != -1 or any(not 0 <= parent < j for j, parent in enumerate(parents) if j):
        raise InputError(f"{path}: parent_indices do not come before their children, root first")
    offsets = array(skeleton, "local_translation", J, 3)
    rotations = _unit(path, array(tree, "rotation", None, J, 4), "rotation")  # (F, J, 4) xyzw
    root_position = array(tree, "root_translation", len(rotations), 3)
    local = bool(_field(path, tree, "is_local") is True)
    if not local:
        rotations = local_rotations(rotations, parents)
    rate_and_loop = (_rate(path, tree.get("fps")), _loop(tree.get("loop")))
    content = Recording(*rate_and_loop, root_position, rotations, names, parents, offsets, "")
    return Motion("poselib", content, f"xyzw, {'parent-relative' if local else 'in the world'}")


def local_rotations(world: np.ndarray, parents: List[int]) -> np.ndarray:
    """Rotations in the world (F, J, 4) -> relative to the parents, row 0 in the world."""
    q = torch.from_numpy(np.ascontiguousarray(world))
    return torch.cat((q[:, :1], lib.quat_multiply(lib.quat_conjugate(q[:, parents[1:]]), q[:, 1:])), 1).numpy()


ONLY_34 = "only MimicKit's humanoid is known here, which has at least 2 rows of 34 numbers"


def _rows(path: str, rows: Any) -> np.ndarray:
    """MimicKit's frames, an array or a list of rows, as (F, columns). Raises InputError."""
    if isinstance(rows, (list, tuple)) and 2 <= len(rows) <= safe.MAX_FRAMES:
        rows = [safe.plain(row) for row in rows]
        if any(not isinstance(row, (list, tuple, np.ndarray)) or len(row) != 34 for row in rows):
            raise InputError(f"{path}: frames have rows of other lengths; {ONLY_34}")
        if any(not isinstance(x, (int, float, np.number)) or abs(x) > 1e30 for row in rows for x in row):
            raise InputError(f"{path}: frames hold something that is no number of sensible size")
        rows = np.array(rows, np.float64)
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != 34:
        raise InputError(f"{path}: frames have the shape {getattr(rows, 'shape', 'of no table')}; {ONLY_34}")
    return rows


def read_mimickit(path: str, tree: Dict[str, Any], character: Character) -> Motion:
    """A motion of MimicKit's humanoid, whose joints are our own. In its zero pose the arms point sideways, and the
    elbows turn about z. A file of the older skeleton with hanging arms is told by its right elbow, which bends the
    other way. A ball joint that holds NaN does not turn, as in MimicKit itself, whose humanoid_walk has such a neck.
    Raises InputError."""
    frames = _rows(path, _field(path, tree, "frames")).copy()
    balls = {character.body_names[b]: 6 + np.flatnonzero(character.dof_body == b) for b in character.balls.tolist()}
    still = []
    for name, columns in {"root": np.arange(3, 6), **balls}.items():
        lost = np.isnan(frames[:, columns]).any(1) if frames.dtype.kind == "f" else np.zeros(1)
        if lost.any():
            frames[np.ix_(lost, columns)] = 0.0
            still.append(f"NaN in the {name} in {lost.sum()} frames taken as no rotation")
    frames = _numbers(path, frames, "frames", None, 34)
    mode = float(_numbers(path, tree.get("loop_mode", 0), "loop_mode"))
    if mode not in (0.0, 1.0):
        raise InputError(f"{path}: loop_mode is neither 0 (clamp) nor 1 (wrap)")
    dofs = frames[:, 6:]  # (F, D), in the order of our character's dofs
    right, left = (dofs[:, character.dof_names.index(f"{side}_elbow")] for side in ("right", "left"))
    hanging = right.mean() < -1e-3 and left.mean() < -1e-3
    offsets = character.offsets.double().clone()
    axis = character.dof_axis.double().clone()
    for side, outward in (("right", -1.0), ("left", 1.0)):
        for body in (f"{side}_lower_arm", f"{side}_hand"):
            j = character.body_names.index(body)
            offsets[j] = offsets[j] if hanging else torch.tensor([0.0, outward, 0.0]) * offsets[j].norm()
        axis[character.dof_names.index(f"{side}_elbow")] = torch.tensor([0.0, 1.0, 0.0] if hanging else [0.0, 0.0, 1.0])
    rotvec = torch.zeros(len(frames), len(character.parents), 3, dtype=torch.float64)
    rotvec[:, 0] = torch.from_numpy(frames[:, 3:6])
    rotvec.index_add_(1, character.dof_body, torch.from_numpy(dofs)[..., None] * axis)
    rotations = _unit(path, lib.quat_from_rotvec(rotvec).numpy(), "frames")
    skeleton = (character.body_names, character.parents, offsets.numpy(), "+z")
    rate_and_loop = (_rate(path, tree.get("fps")), "wrap" if mode == 1 else "clamp")
    content = Recording(*rate_and_loop, frames[:, :3], rotations, *skeleton)
    return Motion("MimicKit", content, ", ".join(["exponential maps", *still]))


# Where ProtoMotions, whose files name no bodies, has ours, by how many there are: pelvis, torso, head, right arm, left
# arm, right leg, left leg; of a G1 the last of a joint's links, and no head, which sits on its pelvis.
BODIES = {
    15: "0 1 2  3 4 5  6 7 8  9 10 11 -  12 13 14 -",  # the character of IsaacGymEnvs
    23: "0 3 6  8 9 10  12 13 14  15 16 17 18  19 20 21 22",  # SOMA
    24: "0 11 13  20 21 22  15 16 17  5 6 7 8  1 2 3 4",  # SMPL
    33: "0 16 -  27 28 31  19 20 23  10 11 13 -  4 5 7 -",  # Unitree's G1
    52: "0 11 13  34 35 36  15 16 17  5 6 7 8  1 2 3 4",  # SMPL-X
}
LIMBS = [f"{side}_{limb}" for side in ("right", "left") for limb in ("upper_arm", "lower_arm", "hand")]
LIMBS += [f"{side}_{limb}" for side in ("right", "left") for limb in ("thigh", "shin", "foot", "toe")]


def read_protomotions(path: str, tree: Dict[str, Any], character: Character) -> Motion:
    """Positions [m] and rotations (xyzw) of bodies in the world, usually Z up. Raises InputError."""
    position = _field(path, tree, "rigid_body_pos")
    count = position.shape[1] if isinstance(position, np.ndarray) and position.ndim == 3 else 0
    if count not in BODIES or safe.plain(tree.get("state_conversion", "common")) != "common":
        raise InputError(f"{path}: ProtoMotions' {count} bodies have no names; known are {', '.join(map(str, BODIES))}")
    places = zip(["pelvis", "torso", "head", *LIMBS], BODIES[count].split())
    where = {body: int(number) for body, number in places if number != "-"}
    position = _numbers(path, position, "rigid_body_pos", None, count, 3)
    if count == 33:  # a G1's hips and shoulders are where the first of their three links is
        position[:, [4, 10, 19, 27]] = position[:, [2, 8, 17, 25]]
    rotation = _field(path, tree, "rigid_body_rot")
    world = _unit(path, _numbers(path, rotation, "rigid_body_rot", len(position), count, 4), "rigid_body_rot")
    content = from_bodies(path, character, position, world, where)
    content = content._replace(fps=_rate(path, tree.get("fps")), up="z")
    return Motion("ProtoMotions", content, f"{count} bodies, xyzw, in the world")


# ---- 3. SMPL ---------------------------------------------------------------------------------------------------------

# Each joint of SMPL's body: its parent, and its place in the parent's frame [m] (x left, y up, z forward) in the mean
# shape, left and right made equal. From the public smpl_humanoid.xml of PHC, as the body model itself is licensed.
SMPL = "Spine1 Pelvis 0 .1090 -.0267, Spine2 Spine1 0 .1352 .0011, Spine3 Spine2 0 .0529 .0254,"
SMPL += "Neck Spine3 0 .2139 -.0429, Head Neck 0 .0650 .0513, Hip Pelvis .0686 -.0910 -.0056,"
SMPL += "Knee Hip .0363 -.3789 -.0067, Ankle Knee -.0147 -.3982 -.0430, Foot Ankle .0259 -.0520 .1213,"
SMPL += "Collar Spine3 .0803 .1203 -.0364, Shoulder Collar .0935 .0316 -.0090,"
SMPL += "Elbow Shoulder .2567 -.0131 -.0245, Wrist Elbow .2523 .0084 -.0034"
# as their columns come
SMPL_ORDER = "Pelvis L_Hip R_Hip Spine1 L_Knee R_Knee Spine2 L_Ankle R_Ankle Spine3 L_Foot R_Foot Neck L_Collar"
SMPL_ORDER += " R_Collar Head L_Shoulder R_Shoulder L_Elbow R_Elbow L_Wrist R_Wrist"
SMPL_PELVIS = np.array([-0.0018, -0.2233, 0.0282])  # where the model's pelvis is when its translation is zero [m]


def read_smpl(path: str, name: str, poses: Any, trans: Any, fps: Any, pelvis: np.ndarray) -> Motion:
    """Rotation vectors of SMPL, SMPL-H or SMPL-X: poses (F, 66 or more) [rad], of which fingers and face are left out.
    trans: (F, 3) [m], Z up; the zero pose is a T-pose with Y up. Raises InputError."""
    flat = isinstance(poses, np.ndarray) and poses.ndim in (2, 3) and poses.size > 0
    poses = poses.reshape(len(poses), -1) if flat else np.zeros((0, 0))
    if poses.shape[1] < 66:
        raise InputError(f"{path}: poses are not rows of 66 numbers or more, three for each of SMPL's joints")
    poses = _numbers(path, poses, "poses", None, None)[:, :66].reshape(-1, 22, 3)
    root_position = _numbers(path, trans, "trans", len(poses), 3) + pelvis
    rotations = _unit(path, lib.quat_from_rotvec(torch.from_numpy(poses)).numpy(), "poses")
    names = SMPL_ORDER.split()
    bones = {bone.split()[0]: bone.split()[1:] for bone in SMPL.split(",")}
    above, offsets = [-1], [[0.0, 0.0, 0.0]]
    for joint in names[1:]:
        plain = joint.split("_")[-1]
        parent, *offset = bones[plain]
        above.append(names.index(parent if parent in names else joint.replace(plain, parent)))
        offsets.append([float(x) for x in offset])
        offsets[-1][0] *= -1.0 if joint.startswith("R_") else 1.0
    content = Recording(_rate(path, fps), "", root_position, rotations, names, above, np.array(offsets), "z")
    return Motion(name, content, "SMPL's mean skeleton, whatever the person's size")


# ---- 4. Bodies in the world ------------------------------------------------------------------------------------------


def from_bodies(
    path: str, character: Character, position: np.ndarray, world: np.ndarray, where: Dict[str, int]
) -> Recording:
    """A recording of our bodies from positions (F, B, 3) and rotations (F, B, 4) xyzw in the world, Z up. where: our
    bodies (or toes) -> which of the B they are. Bone lengths are measured. Rate and loop mode are open."""
    names = [name for name in (*character.body_names, "right_toe", "left_toe") if name in where]
    ours = dict(zip(character.body_names, [""] + [character.body_names[p] for p in character.parents[1:]]))
    parents = [-1] + [names.index(ours.get(name, name.replace("toe", "foot"))) for name in names[1:]]
    order = [where[name] for name in names]
    q = torch.from_numpy(np.ascontiguousarray(world[:, order]))  # (F, J, 4)
    p = torch.from_numpy(np.ascontiguousarray(position[:, order]))
    offsets = lib.quat_rotate(lib.quat_conjugate(q[:, parents[1:]]), p[:, 1:] - p[:, parents[1:]]).mean(0)
    offsets = np.concatenate((np.zeros((1, 3)), offsets.numpy()))
    local = _unit(path, local_rotations(q.numpy(), parents), "rotations")
    return Recording(0.0, "", p[:, 0].numpy(), local, names, parents, offsets, "+z")


def read_isaaclab(path: str, arrays: Dict[str, np.ndarray], character: Character) -> Motion:
    """A motion of Isaac Lab: positions [m] and rotations (wxyz) of bodies in the world, Z up. It holds no skeleton:
    bodies are known by our character's names, in any order, and bone lengths are measured. Raises InputError."""
    names = _texts(path, _field(path, arrays, "body_names"), "body_names")
    missing = [name for name in character.body_names if name not in names]
    if missing:
        raise InputError(f"{path}: a motion of another robot, it lacks {missing[0]}; only the humanoid can be read")
    B = len(names)
    position = _numbers(path, _field(path, arrays, "body_positions"), "body_positions", None, B, 3)
    wxyz = _numbers(path, _field(path, arrays, "body_rotations"), "body_rotations", len(position), B, 4)
    world = _unit(path, wxyz[..., [1, 2, 3, 0]], "body_rotations")  # (F, B, 4)
    where = {name: names.index(name) for name in character.body_names}
    content = from_bodies(path, character, position, world, where)
    content = content._replace(fps=_rate(path, arrays.get("fps")), loop=_loop(arrays.get("loop")))
    return Motion("Isaac Lab", content, "wxyz, in the world")


# ---- 5. Export -------------------------------------------------------------------------------------------------------


def body_states(clip: Clip, character: Character) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Position [m], rotation, velocity, angular velocity of bodies in the world. -> 4 x (F, J, 3 or 4)"""
    character = character._replace(offsets=character.offsets.double())
    p, q = lib.forward_kinematics(character, torch.from_numpy(clip.root_position), torch.from_numpy(clip.rotations))
    turn = lib.rotvec_from_quat(lib.quat_multiply(q[1:], lib.quat_conjugate(q[:-1]))) * clip.fps  # (F-1, J, 3)
    angular = 0.5 * (torch.cat((turn, turn[-1:])) + torch.cat((turn[:1], turn)))
    return p, q, torch.gradient(p, spacing=1 / clip.fps, dim=0)[0], angular


def poselib_bytes(clip: Clip, character: Character) -> bytes:
    """A poselib .npy, which is a pickle by definition; this one has names that NumPy 1 and 2 both know."""

    def array(x: Any, kind: type = np.float32) -> Dict[str, Any]:
        return OrderedDict(arr=np.asarray(x, kind), context={"dtype": np.dtype(kind).name})

    _, _, velocity, angular = body_states(clip, character)
    skeleton = OrderedDict(node_names=list(character.body_names), parent_indices=array(character.parents, np.int64))
    skeleton["local_translation"] = array(character.offsets)
    tree = OrderedDict(rotation=array(clip.rotations), root_translation=array(clip.root_position))
    tree.update(global_velocity=array(velocity), global_angular_velocity=array(angular))
    tree.update(skeleton_tree=skeleton, is_local=True, fps=clip.fps)
    tree.update({"__name__": "SkeletonMotion", "loop": clip.loop})  # the last one is ours; poselib takes what it knows
    holder = np.empty((), object)
    holder[()] = tree
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    # NumPy 2 calls its module numpy._core; under the old name, which it knows as well, NumPy 1 can read the file, too
    data = pickle.dumps(holder, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    return file.getvalue() + data


def isaaclab_bytes(clip: Clip, character: Character) -> bytes:
    """An Isaac Lab .npz file, without pickle. Dofs are our own: exponential maps of ball joints, angles of hinges."""
    p, q, velocity, angular = body_states(clip, character)
    dofs = lib.dof_positions(character, torch.from_numpy(clip.rotations).float())
    arrays = {
        "fps": np.float64(clip.fps),
        "dof_names": np.array(character.dof_names),
        "body_names": np.array(character.body_names),
        "dof_positions": dofs,
        "dof_velocities": torch.gradient(dofs, spacing=1 / clip.fps, dim=0)[0],
        "body_positions": p,
        "body_rotations": q[..., [3, 0, 1, 2]],  # wxyz
        "body_linear_velocities": velocity,
        "body_angular_velocities": angular,
        "loop": np.array(clip.loop),  # ours; Isaac Lab takes what it knows
    }
    file = io.BytesIO()
    floats = {key: np.asarray(x, np.float32) if isinstance(x, Tensor) else x for key, x in arrays.items()}
    np.savez(file, **floats)
    return file.getvalue()


def bvh_bytes(clip: Clip, character: Character) -> bytes:
    """A BVH file of our skeleton in centimetres, Y up, facing +Z."""
    skeleton = (character.body_names, character.parents, character.offsets.double().numpy(), "+z")
    return bvh.bvh_text(Recording(*clip, *skeleton)).encode()
