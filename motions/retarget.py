"""From a recording of another skeleton to a clip of our character.

What is taken over is the direction of every bone and its turn about itself, relative to a rest pose in which both
skeletons stand upright; the path is scaled by the ratio of the legs' lengths. Then, unless the proportions are ours,
inverse kinematics (mink, on our MuJoCo model) moves heels and toes to where they stood.
Dimension key: F frames, J joints of the recording, B our bodies.
"""

import json
import math
from collections import Counter
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

import motion_lib as lib
from motion_lib import Character, Clip, InputError
from motions import plant as feet
from motions.bvh import Recording, continuous

# Our bodies -> names of joints in other skeletons, without side, case and punctuation; the first one that occurs is
# taken. Mixamo and LaFAN1: UpLeg, Leg, Foot, Arm, ForeArm, Hand. CMU: the same, or femur, tibia, humerus, radius,
# wrist. SMPL: Hip, Knee, Ankle, Shoulder. SOMA: Leg, Shin. OptiTrack: UArm, FArm. Daz: ThighBend, ShldrBend.
LIMBS = {
    "upper_arm": ("arm", "upperarm", "uparm", "uarm", "shldrbend", "shldr", "humerus", "shoulder"),
    "lower_arm": ("forearm", "forearmbend", "lowerarm", "lowarm", "loarm", "farm", "radius", "elbow"),
    "hand": ("hand", "wrist"),
    "thigh": ("upleg", "upperleg", "thigh", "thighbend", "femur", "hip", "leg"),
    "shin": ("lowerleg", "lowleg", "loleg", "shin", "calf", "tibia", "leg", "knee"),
    "foot": ("foot", "ankle"),
    "toe": ("toebase", "toe", "toes", "toe0", "ball", "foot"),
}
SIDES = ("right", "left")
OPTIONAL = ("head", "right_hand", "left_hand", "right_toe", "left_toe")
UNITS = {"metres": 1.0, "centimetres": 0.01, "inches": 0.0254, "millimetres": 0.001}

JointMap = Dict[str, Optional[str]]  # our bodies (or toes) -> joints; None: there is none

# The rotation that takes a world's up axis to +z, the two others in their order: for Y up, (x, y, z) -> (z, x, y).
UP = {"+z": (0.0, 0.0, 0.0, 1.0), "+y": (0.5, 0.5, 0.5, 0.5), "+x": (-0.5, -0.5, -0.5, 0.5)}
HALF_TURN = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)  # about x
UPRIGHT = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)


# ---- 1. Which joint is which -----------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    """LeftUpLeg, mixamorig:LeftUpLeg, left_up_leg and leftUpLeg are one."""
    return "".join(c for c in name.split(":")[-1].lower() if c.isalnum())


def guess_joints(names: List[str], parents: List[int]) -> Dict[str, str]:
    """Our bodies (and the toes) -> joints of a skeleton, as far as their names tell. A prefix that many names share
    (Bip01, m_avg_, DEF-, J_Bip_) is left out if more is found so."""
    short = [name[:99] for name in names]
    counts = Counter(name[:length] for name in short for length in range(2, min(len(name), 24)))
    prefixes = ["", *sorted((prefix for prefix, count in counts.items() if count >= 12), key=len)[:200]]
    guesses = [_guess([name[len(x) :] if name.startswith(x) else name for name in short], parents) for x in prefixes]
    return {body: names[joint] for body, joint in max(guesses, key=len).items()}  # the first of the longest


def _guess(names: List[str], parents: List[int]) -> Dict[str, int]:
    """guess_joints for names without a prefix; joints as indices."""
    by_plain = {_plain(name): j for j, name in reversed(list(enumerate(names)))}
    joints: Dict[str, int] = {}
    for side in SIDES:
        for limb, candidates in LIMBS.items():
            forms = [form for name in candidates for form in (side + name, side[0] + name, name + side, name + side[0])]
            found = [by_plain[form] for form in forms if form in by_plain and by_plain[form] not in joints.values()]
            if limb in ("hand", "foot"):  # of wrist and hand, or ankle and foot, the one that carries the other
                found.sort(key=lambda j: len(_ancestors(j, parents)))
            joints.update({f"{side}_{limb}": j for j in found[:1]})
    # pelvis and torso are named in too many ways, but they are where the legs and the arms meet
    for body, limb in (("pelvis", "thigh"), ("torso", "upper_arm")):
        if f"left_{limb}" in joints and f"right_{limb}" in joints:
            left, right = (_ancestors(joints[f"{side}_{limb}"], parents) for side in SIDES)
            joints[body] = next(j for j in left if j in right)
    joints.update([("head", by_plain[form]) for form in ("head", "neck1", "neck") if form in by_plain][:1])
    return joints


def _ancestors(joint: int, parents: List[int]) -> List[int]:
    """A joint, its parent, and so on up to the root."""
    line = [joint]
    while parents[line[-1]] >= 0:
        line.append(parents[line[-1]])
    return line


def load_joint_map(path: Optional[str]) -> JointMap:
    """A JSON file {"left_thigh": "LeftUpLeg", "left_toe": null, ...}: our bodies -> joints. Raises InputError."""
    if path is None:
        return {}
    known = ["pelvis", "torso", "head", *(f"{side}_{limb}" for side in SIDES for limb in LIMBS)]
    with lib.reading(path, "a JSON file"), open(path, encoding="utf-8-sig") as file:
        data = json.load(file)
    known_null = isinstance(data, dict) and all(body in OPTIONAL for body, joint in data.items() if joint is None)
    if not known_null or not all(joint is None or isinstance(joint, str) for joint in data.values()):
        raise InputError(f'{path}: no joint map {{"left_thigh": "LeftUpLeg", ...}}; {", ".join(OPTIONAL)} may be null')
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise InputError(f"{path}: {unknown[0]!r:.40} is no body of the character; known are {', '.join(known)}")
    return data


def find_joints(recording: Recording, joint_map: JointMap) -> Dict[str, int]:
    """Our bodies -> indices of joints, guesses overridden by `joint_map`. Raises InputError."""
    joints: Dict[str, Any] = {**guess_joints(recording.names, recording.parents), **joint_map}
    joints = {body: name for body, name in joints.items() if name is not None}
    absent = sorted(set(joints.values()) - set(recording.names))
    names = ", ".join(recording.names)[:300]
    if absent:
        raise InputError(f"--joint-map: the file has no joint {absent[0]!r:.60}; it has {names}")
    needed = ["pelvis", "torso", *(f"{side}_{limb}" for side in SIDES for limb in LIMBS if limb not in ("hand", "toe"))]
    missing = [body for body in needed if body not in joints]
    if missing:
        raise InputError(f"no joint found for {', '.join(missing)}; give a --joint-map. The file has {names}")
    index = {body: recording.names.index(name) for body, name in joints.items()}
    for side in SIDES:
        for chain in (("upper_arm", "lower_arm", "hand"), ("thigh", "shin", "foot", "toe")):
            found = [index[f"{side}_{limb}"] for limb in chain if f"{side}_{limb}" in index]
            if any(a == b or a not in _ancestors(b, recording.parents) for a, b in zip(found, found[1:])):
                fault = f"the joints of the {side} {chain[0]} do not hang on one another"
                raise InputError(f"{fault}; correct them with a --joint-map")
    return index


# ---- 2. Rest pose ----------------------------------------------------------------------------------------------------

# Skeletons whose zero pose is no pose: which way x and y of the joints' frames point in a T-pose (forward, back, left,
# right, up, down) at pelvis, trunk, right and left arm, right and left leg; how far the bone from ankle to toe drops
# where the sole is flat [deg] (of LaFAN1 and Mixamo from toes that never turn, of Bandai Namco from a bow that stands).
# They are told by the left shin's name, and by whether a T comes out.
KNOWN = {
    "LaFAN1": ("leftleg", "UF UF RB LB DF DF", 21.5),
    "Bandai Namco": ("lowerlegl", "UR UF LD LU UL DL", 40.0),
    "Mixamo": ("leftleg", "LU LU FR BL RD RD", 30.0),
}
TOWARD = {"F": (1.0, 0, 0), "B": (-1.0, 0, 0), "L": (0, 1.0, 0), "R": (0, -1.0, 0), "U": (0, 0, 1.0), "D": (0, 0, -1.0)}


class Alignment(NamedTuple):
    """How a skeleton's joints lie to our bodies, found in a pose in which it stands."""

    joints: List[int]  # (B,) the joint of each body; -1 for none
    world: Tensor  # (4,) from the world in which the recording moves to ours, Z up
    body: Tensor  # (B, 4) from a body's frame to its joint's frame
    leg: float  # thigh and shin together, in the recording's unit
    notes: str


def skeleton_poses(recording: Recording, root_position: Tensor, rotations: Tensor) -> Tuple[Tensor, Tensor]:
    """Positions (..., J, 3) and rotations (..., J, 4) of all joints in the recording's world."""
    q = [rotations[..., 0, :]]
    for j, parent in enumerate(recording.parents[1:], 1):
        q.append(lib.quat_multiply(q[parent], rotations[..., j, :]))
    world = torch.stack(q, -2)
    return joint_positions(recording, root_position, world), world


def joint_positions(recording: Recording, root_position: Tensor, world: Tensor) -> Tensor:
    """Positions (..., J, 3) of joints whose rotations in the world are (..., J, 4)."""
    offsets = torch.from_numpy(recording.offsets)
    p = [root_position]
    for j, parent in enumerate(recording.parents[1:], 1):
        p.append(p[parent] + lib.quat_rotate(world[..., parent, :], offsets[j]))
    return torch.stack(p, -2)


def all_poses(recording: Recording) -> Tuple[Tensor, Tensor]:
    """skeleton_poses of every frame of the recording: (F, J, 3), (F, J, 4)."""
    return skeleton_poses(recording, torch.from_numpy(recording.root_position), torch.from_numpy(recording.rotations))


def _unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=-1, keepdim=True).clamp_min(1e-9)


def _trunk(p: Tensor, index: Dict[str, int]) -> Tensor:
    """From the middle of the hips to the middle of the shoulders. (..., J, 3) -> (..., 3)"""
    shoulders, hips = ([index[f"{side}_{limb}"] for side in SIDES] for limb in ("upper_arm", "thigh"))
    return p[..., shoulders, :].mean(-2) - p[..., hips, :].mean(-2)


def _our_trunk(character: Character, pelvis: Tensor, torso: Tensor) -> Tensor:
    """The same of our character, whose pelvis and torso are turned so. (..., 4), (..., 4) -> (..., 3) [m]"""
    offsets, at = character.offsets.double(), character.body_names.index
    shoulders, hips = (offsets[[at(f"{side}_{limb}") for side in SIDES]].mean(0) for limb in ("upper_arm", "thigh"))
    return lib.quat_rotate(pelvis, offsets[at("torso")] - hips) + lib.quat_rotate(torso, shoulders)


def _uprightness(p: Tensor, index: Dict[str, int]) -> Tensor:
    """How nearly poses (..., J, 3) stand: the worst cosine of hips to trunk and thighs to shins. -> (...)"""
    trunk = _unit(_trunk(p, index))
    cosines = []
    for side in SIDES:
        hip, knee, ankle = (p[..., index[f"{side}_{limb}"], :] for limb in ("thigh", "shin", "foot"))
        cosines += [-(trunk * _unit(knee - hip)).sum(-1), (_unit(knee - hip) * _unit(ankle - knee)).sum(-1)]
    return torch.stack(cosines).amin(0)


def _shortest(a: Tensor, b: Tensor) -> Tensor:
    """The shortest rotation between unit vectors (..., 3); if opposite, about x, or z for x. -> (..., 4)"""
    cosine = (a * b).sum(-1, keepdim=True)
    q = torch.cat((torch.linalg.cross(a, b), 1 + cosine), -1)
    half_turn = torch.where(a[..., :1].abs() < 0.9, HALF_TURN, HALF_TURN[[1, 2, 0, 3]])
    return torch.where(cosine < -0.9999, half_turn, q / q.norm(dim=-1, keepdim=True).clamp_min(1e-9))


def _frame(x: Tensor, y: Tensor) -> Tensor:
    """The rotation (4,) that takes +x to x (3,) and +y to y (3,), which lies square to it."""
    first = _shortest(torch.tensor([1.0, 0.0, 0.0]).double(), x)
    turned = lib.quat_rotate(first, torch.tensor([0.0, 1.0, 0.0]).double())
    angle = torch.atan2(torch.linalg.cross(turned, y) @ x, turned @ y)
    return lib.quat_multiply(lib.quat_from_rotvec(angle * x), first)


def _known_rest(recording: Recording, index: Dict[str, int], letters: str, slope: float) -> Tensor:
    """Rotations (J, 4) of a known skeleton's joints in a T-pose, in our world; see KNOWN."""
    axes = torch.tensor([[TOWARD[c] for c in pair] for pair in letters.split()]).double()  # (6, 2, 3)
    parts = dict(zip(("pelvis", "trunk", "right arm", "left arm", "right leg", "left leg"), (_frame(*x) for x in axes)))
    sole = lib.quat_from_rotvec(torch.tensor([0.0, math.radians(slope - 90.0), 0.0]).double())
    q: List[Any] = [None] * len(recording.names)
    for body, j in index.items():
        side, _, limb = body.partition("_")
        part = f"{side} {'leg' if limb in ('thigh', 'shin', 'foot', 'toe') else 'arm'}" if limb else "trunk"
        q[j] = parts["pelvis" if body == "pelvis" else part]
        q[j] = lib.quat_multiply(sole, q[j]) if limb in ("foot", "toe") else q[j]
    for j in range(len(q) - 1, 0, -1):  # a joint between two of them is as the lower one
        q[recording.parents[j]] = q[j] if q[recording.parents[j]] is None else q[recording.parents[j]]
    for j in range(1, len(q)):
        q[j] = q[recording.parents[j]] if q[j] is None else q[j]
    return torch.stack(q)


def leg_length(recording: Recording, index: Dict[str, int]) -> float:
    """Thigh and shin together, in the recording's unit. Raises InputError for a skeleton without legs."""
    zero = torch.zeros(3, dtype=torch.float64)
    p, _ = skeleton_poses(recording, zero, UPRIGHT.expand(len(recording.names), 4))
    bones = [(f"{side}_{a}", f"{side}_{b}") for side in SIDES for a, b in (("thigh", "shin"), ("shin", "foot"))]
    leg = sum(float((p[index[a]] - p[index[b]]).norm()) for a, b in bones) / 2
    if leg < 1e-3:
        raise InputError("the legs have no length; correct the joints with a --joint-map")
    return leg


def rest_pose(recording: Recording, index: Dict[str, int]) -> Tuple[Tensor, Tensor, str, str]:
    """(N, J, 3), (N, J, 4) in which it stands, what that is, the up axis or "": the zero pose, if it is a T, an A or
    has hanging arms, as in most files; else a T-pose that is known; else the frames in which it stands best."""
    zero = torch.zeros(1, 3, dtype=torch.float64)
    p, q = skeleton_poses(recording, zero, UPRIGHT.expand(1, len(recording.names), 4))
    if float(_uprightness(p, index)) > 0.85:
        return p, q, "zero pose", ""
    for name, (shin, letters, slope) in KNOWN.items():
        q = _known_rest(recording, index, letters, slope)[None]
        p = joint_positions(recording, zero, q)
        pairs = [(f"right_{x}", f"left_{x}") for x in ("thigh", "upper_arm")] + [("left_upper_arm", "left_lower_arm")]
        left = min(float(_unit(p[0, index[b]] - p[0, index[a]])[1]) for a, b in pairs)
        named = _plain(recording.names[index["left_shin"]]).endswith(shin)
        if named and float(_uprightness(p, index)) > 0.95 and left > 0.95:
            return p, q, f"T-pose that is known of {name}", "+y"
    p, q = all_poses(recording)
    standing = _uprightness(p, index)
    best = standing.topk(min(30, len(p))).indices
    best = best[standing[best] > standing.max() - 0.01]
    where = f"{len(best)} frames that stand best (no rest pose: angles may be off by several degrees)"
    return p[best], q[best], where, ""


def _up_axis(p: Tensor, index: Dict[str, int]) -> Tuple[str, float]:
    """The axis of the world that goes from the feet to the shoulders in poses (N, J, 3), and the cosine to it."""
    trunk = p[:, [index["left_upper_arm"], index["right_upper_arm"]]] - p[:, [index["left_foot"], index["right_foot"]]]
    mean = _unit(trunk.sum(1)).mean(0)
    axis = int(mean.abs().argmax())
    return ("+" if mean[axis] > 0 else "-") + "xyz"[axis], float(mean[axis].abs())


def moving_up_axis(recording: Recording, index: Dict[str, int], likely: str) -> str:
    """The up axis of the world in which the recording moves: the likely one, unless it clearly stands along another.
    The zero pose of a person may be Y up, as SMPL's is, in a world that is Z up. Someone who crawls does not tell."""
    some = slice(None, None, len(recording.rotations) // 1000 + 1)
    part = recording._replace(root_position=recording.root_position[some], rotations=recording.rotations[some])
    p, _ = all_poses(part)
    standing = p[_uprightness(p, index) > 0.6]  # of our crawl, roll and spin kick 0, 11 and 9 % of the frames
    if len(standing) < 0.2 * len(p) or any(_up_axis(pose[None], index)[0] == likely for pose in standing):
        return likely
    up, cosine = _up_axis(standing, index)
    return up if cosine > 0.9 else likely


def world_to_ours(up: str) -> Tensor:
    """The rotation (4,) from a world whose up axis is "+y", for instance, to ours, Z up."""
    world = torch.tensor(UP["+" + up[1]], dtype=torch.float64)
    return lib.quat_multiply(HALF_TURN, world) if up[0] == "-" else world


def align(character: Character, recording: Recording, index: Dict[str, int]) -> Alignment:
    """How the joints lie to our bodies, from a pose in which the skeleton stands. Raises InputError."""
    leg = leg_length(recording, index)
    p, q, where, up = rest_pose(recording, index)
    # of the rest pose, as a person who crawls through a whole clip has it, too
    rest_up = "+z" if up else _up_axis(p, index)[0]
    likely = f"+{recording.up}" if len(recording.up) == 1 else up or rest_up
    up = recording.up if len(recording.up) == 2 else moving_up_axis(recording, index, likely)
    world = world_to_ours(rest_up)
    pairs = [[index[f"{side}_{limb}"] for limb in ("thigh", "upper_arm")] for side in SIDES]  # right, left
    left = lib.quat_rotate(world, (p[:, pairs[1]] - p[:, pairs[0]]).sum(1))  # (N, 3) our world, Z up
    if float(left[:, :2].norm(dim=-1).min()) < 1e-6 * leg:
        raise InputError("left and right are at the same place in the rest pose; correct the joints with a --joint-map")
    # our frame at rest, X forward, Y left, Z up -> the rest pose's world
    facing = lib.quat_from_yaw(torch.atan2(-left[:, 0], left[:, 1]))
    stand = lib.quat_multiply(lib.quat_conjugate(world), facing)  # (N, 4)
    frames, drops = zip(*[_body_frames(character, index, *pose) for pose in zip(p, q, stand)])
    drop = sum(drops) / len(drops)
    arms = "arms hanging" if drop > 0.94 else "T-pose" if drop < 0.35 else "A-pose"
    notes = f"{up[1].upper()} up{' (downwards)' if up[0] == '-' else ''}, {arms} in the {where}"
    joints = [index.get(name, -1) for name in character.body_names]
    return Alignment(joints, world_to_ours(up), _mean_rotation(torch.stack(frames)), leg, notes)


def _mean_rotation(q: Tensor) -> Tensor:
    """The rotations (..., 4) nearest to all of (N, ..., 4), whatever their signs: main axes of summed q q^T."""
    return torch.linalg.eigh((q[..., :, None] * q[..., None, :]).sum(0)).eigenvectors[..., -1] if len(q) > 1 else q[0]


def _body_frames(
    character: Character, index: Dict[str, int], p: Tensor, q: Tensor, stand: Tensor
) -> Tuple[Tensor, float]:
    """From our bodies' frames to their joints' (B, 4) at rest, joints p (J, 3), q (J, 4), and how far an arm drops."""
    names = character.body_names
    toward = {"upper_arm": "lower_arm", "lower_arm": "hand", "thigh": "shin", "shin": "foot"}
    pose = UPRIGHT.repeat(len(names), 1)  # (B, 4) of our character standing as the skeleton does at rest, facing +X

    def seen(v: Tensor) -> Tensor:
        return _unit(lib.quat_rotate(lib.quat_conjugate(stand), v))

    def direction(a: str, b: str) -> Tensor:
        return seen(p[index[b]] - p[index[a]])

    for b, name in enumerate(names[1:], 1):
        side, _, limb = name.partition("_")
        parent = pose[character.parents[b]]
        tip = f"{side}_{toward.get(limb, 'toe')}"
        if limb in toward:  # along the bone, not turned about it
            bone = _unit(character.offsets[names.index(tip)].double())
            turn = _shortest(lib.quat_rotate(parent, bone), direction(name, tip)) if tip in index else UPRIGHT
            pose[b] = lib.quat_multiply(turn, parent)
        elif limb == "hand":  # welded
            pose[b] = parent
        elif limb == "foot" and tip in index:  # the sole is flat at rest, however the bone slopes from ankle to toe
            x, y, _ = direction(name, tip).tolist()
            yaw = math.atan2(y, x) if math.hypot(x, y) > 0.3 else 0.0
            pose[b] = lib.quat_from_yaw(torch.tensor(yaw if abs(yaw) < 1.0 else 0.0, dtype=torch.float64))
    # some zero poses lean, Xia's by 11 degrees
    lean = _shortest(_unit(_our_trunk(character, UPRIGHT, UPRIGHT)), seen(_trunk(p, index)))
    pose[[0, names.index("torso")]] = lean
    joints = [index.get(name, -1) for name in names]
    rest = lib.quat_multiply(stand, pose)  # in the recording's world
    drop = -float(direction("left_upper_arm", "left_lower_arm")[2])
    return lib.quat_multiply(lib.quat_conjugate(q[joints]), rest), drop


# ---- 3. Transfer -----------------------------------------------------------------------------------------------------


def hinged(character: Character, world: Tensor) -> Tensor:
    """Rotations in the world (F, B, 4), those below hinges about the hinge only: the parent is turned about its
    own bone until the hinge lies square to both; what is left, the turn of the forearm about itself, is dropped."""
    world = world.clone()
    down = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)
    for b, d in zip(character.hinges.tolist(), character.hinge_dofs.tolist()):
        a = character.parents[b]
        sense = -1.0 if "elbow" in character.dof_names[d] else 1.0
        relative = lib.quat_multiply(lib.quat_conjugate(world[:, a]), world[:, b])
        v = lib.quat_rotate(relative, down)  # (F, 3) the lower bone, seen from the upper
        # Rz(turn) Ry(bend) (0, 0, -1) = (-sin bend cos turn, -sin bend sin turn, -cos bend)
        sine = v[:, :2].norm(dim=-1)
        turn = torch.atan2(-sense * v[:, 1], -sense * v[:, 0])
        over = turn.abs() > 2.6  # bent the wrong way: leave it so (at 2.2, or if it is little, arms flip more often)
        turn = torch.where(over, turn - math.pi * turn.sign(), turn)
        bend = torch.atan2(sine, -v[:, 2]) * torch.where(over, -sense, sense)
        turn = turn * (sine / 0.26).clamp_max(1.0) ** 2  # a straight limb does not tell how it would bend
        zero = torch.zeros_like(turn)
        world[:, a] = lib.quat_multiply(world[:, a], lib.quat_from_yaw(turn))
        world[:, b] = lib.quat_multiply(world[:, a], lib.quat_from_rotvec(torch.stack((zero, bend, zero), -1)))
    return world


def transfer(
    character: Character, recording: Recording, found: Alignment, index: Dict[str, int], scale: float
) -> Tuple[Clip, str]:
    """The recording's bone directions on our character, its hips where the recording's are times `scale`. Feet as they
    come; and a remark on what is dropped, as our hands are welded."""
    p, q = all_poses(recording)
    world = lib.quat_multiply(lib.quat_multiply(found.world, q[:, found.joints]), found.body)  # (F, B, 4)
    for b, joint in enumerate(found.joints):
        if joint < 0:
            world[:, b] = world[:, character.parents[b]]
    # other spines bend elsewhere: pelvis and torso are turned until the line from hips to shoulders is the recording's
    trunk = [0, character.body_names.index("torso")]
    ours, theirs = _our_trunk(character, *world[:, trunk].unbind(1)), lib.quat_rotate(found.world, _trunk(p, index))
    world[:, trunk] = lib.quat_multiply(_shortest(_unit(ours), _unit(theirs))[:, None], world[:, trunk])
    world = hinged(character, world)
    parents = character.parents
    rotations = torch.cat((world[:, :1], lib.quat_multiply(lib.quat_conjugate(world[:, parents[1:]]), world[:, 1:])), 1)
    welded = sorted(set(range(1, len(parents))) - set(character.dof_body.tolist()))
    lost = lib.rotvec_from_quat(rotations[:, welded]).norm(dim=-1).amax(0).rad2deg()  # (2,)
    dropped = [f"{character.body_names[b]} to {turn:.0f} deg" for b, turn in zip(welded, lost.tolist()) if turn > 1.0]
    rotations[:, welded] = UPRIGHT
    thighs = [character.body_names.index(f"{side}_thigh") for side in SIDES]
    hips = 0.5 * (p[:, index["left_thigh"]] + p[:, index["right_thigh"]])
    ours = lib.quat_rotate(world[:, 0], character.offsets[thighs].double().mean(0))
    root_position = scale * lib.quat_rotate(found.world, hips) - ours
    clip = Clip(recording.fps, recording.loop, root_position.numpy(), continuous(rotations.numpy()))
    return clip, f", turns dropped of {', '.join(dropped)}" if dropped else ""


def same_proportions(character: Character, recording: Recording, found: Alignment, scale: float) -> bool:
    """Whether the skeleton is ours but for its size and rest pose, to within 2 mm a bone."""
    for b, parent in enumerate(character.parents):
        j = found.joints[b]
        above = found.joints[parent]
        if b and (j < 0 or recording.parents[j] != above):
            return False
        offset = lib.quat_rotate(lib.quat_conjugate(found.body[parent]), torch.from_numpy(recording.offsets[j])) * scale
        if b and float((offset - character.offsets[b]).norm()) > 2e-3:
            return False
    return True


def path_at_root(recording: Recording, index: Dict[str, int]) -> Tuple[Recording, List[str]]:
    """The recording with the positions of joints from root to pelvis carried by the root, and warnings of others.
    Bandai Namco's root joint stands still, for instance, and its Hips move. What else moves is taken as still."""
    leg = leg_length(recording, index)
    places = recording.places or {}
    path = _ancestors(index["pelvis"], recording.parents)[::-1]
    rotations = torch.from_numpy(recording.rotations)
    shift = np.zeros_like(recording.root_position)
    q = rotations[:, 0]
    for j in path[1:]:
        if j in places:
            shift += lib.quat_rotate(q, torch.from_numpy(places[j] - recording.offsets[j])).numpy()
        q = lib.quat_multiply(q, rotations[:, j])
    chains = {j for joint in index.values() for j in _ancestors(joint, recording.parents)} - set(path)
    moves = {j: np.abs(places[j] - recording.offsets[j]).max() / leg for j in chains & set(places)}
    most, worst = max([(move, recording.names[j]) for j, move in moves.items()], default=(0.0, ""))
    said = f"warning: {worst} moves by {100 * most:.0f} % of the leg in its parent's frame; its mean place is taken"
    warnings = [said] if most > 0.03 else []
    return recording._replace(root_position=recording.root_position + shift, places=None), warnings


def retarget(
    character: Character, recording: Recording, whole: Recording, index: Dict[str, int], plant: bool, ground: bool
) -> Tuple[Clip, str]:
    """The recording as a clip of our character, and what was understood of it. whole: before it was cut, as what
    stands may lie outside. index: our bodies -> joints. plant: move feet of other proportions to where they stood.
    ground: find the ground's height instead of taking the file's. Raises InputError."""
    found = align(character, whole, index)
    limbs = [character.body_names.index(f"{side}_{limb}") for side in SIDES for limb in ("shin", "foot")]
    scale = sum(float(character.offsets[limb].double().norm()) for limb in limbs) / 2 / found.leg
    # a person's leg, hip to ankle, is .6 to 1.1 m long
    likely = next((name for name, unit in UNITS.items() if 0.6 < found.leg * unit < 1.1), "of an unknown kind")
    same = same_proportions(character, recording, found, scale)
    exact = [unit for unit in UNITS.values() if same and abs(scale / unit - 1) < 1e-3]
    scale = exact[0] if exact else scale
    clip, dropped = transfer(character, recording, found, index, scale)
    notes = f"{found.notes}, leg {found.leg:.4g} units (likely {likely}), scale {scale:.4g}{dropped}"
    if same or not plant:
        return clip, f"{notes}, {'our proportions' if same else 'other proportions, feet not planted'}"
    if ground:
        height = np.quantile(feet.point_positions(character, clip)[..., 2].min(-1), 0.25)  # of a quarter of the frames
        clip = clip._replace(root_position=clip.root_position - [0.0, 0.0, height])
    clip, stood = feet.plant(character, clip)
    return clip, f"{notes}, other proportions, {stood}"
