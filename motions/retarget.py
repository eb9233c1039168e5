"""From a recording of another skeleton to a clip of our character.

Joints are found by name, rest poses aligned, feet planted.

What is taken over is the direction of every bone and its turn about itself, relative to a rest pose in which both
skeletons stand upright; the path is scaled by the ratio of the legs' lengths. Then, unless the proportions are ours,
inverse kinematics (mink, on our MuJoCo model) moves heels and toes to where they stood.
Dimension key: F frames, J joints of the recording, B our bodies.
"""

import json
import math
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

import motion_lib as lib
from motion_lib import Character, Clip, InputError
from motions.bvh import Recording, continuous

# Our bodies -> names of joints in other skeletons, without side, case and punctuation; the first one that occurs is
# taken. Mixamo and LaFAN1: UpLeg, Leg, Foot, Arm, ForeArm, Hand. CMU: the same, or femur, tibia, humerus, radius,
# wrist. SMPL: Hip, Knee, Ankle, Shoulder.
LIMBS = {
    "upper_arm": ("arm", "upperarm", "uparm", "shldr", "humerus", "shoulder"),
    "lower_arm": ("forearm", "lowerarm", "lowarm", "loarm", "radius", "elbow"),
    "hand": ("hand", "wrist"),
    "thigh": ("upleg", "upperleg", "thigh", "femur", "hip"),
    "shin": ("leg", "lowerleg", "lowleg", "loleg", "shin", "calf", "tibia", "knee"),
    "foot": ("foot", "ankle"),
    "toe": ("toebase", "toe", "toes", "ball"),
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
    """Our bodies (and the toes) -> joints of a skeleton, as far as their names tell."""
    by_plain = {_plain(name): name for name in reversed(names)}
    joints = {}
    for side in SIDES:
        for limb, candidates in LIMBS.items():
            forms = [form for name in candidates for form in (side + name, side[0] + name, name + side, name + side[0])]
            found = [by_plain[form] for form in forms if form in by_plain]
            joints.update({f"{side}_{limb}": name for name in found[:1]})
    # pelvis and torso are named in too many ways, but they are where the legs and the arms meet
    for body, limb in (("pelvis", "thigh"), ("torso", "upper_arm")):
        if f"left_{limb}" in joints and f"right_{limb}" in joints:
            left, right = (_ancestors(names.index(joints[f"{side}_{limb}"]), parents) for side in SIDES)
            joints[body] = names[next(j for j in left if j in right)]
    joints.update([("head", by_plain[form]) for form in ("head", "neck1", "neck") if form in by_plain][:1])
    return joints


def _ancestors(joint: int, parents: List[int]) -> List[int]:
    """A joint, its parent, and so on up to the root."""
    line = [joint]
    while parents[line[-1]] >= 0:
        line.append(parents[line[-1]])
    return line


def _may_stand_for(joint: Any, body: str) -> bool:
    """Whether a joint map may give this value for this body."""
    return isinstance(joint, str) or (joint is None and body in OPTIONAL)


def load_joint_map(path: Optional[str]) -> JointMap:
    """A JSON file {"left_thigh": "LeftUpLeg", "left_toe": null, ...}: our bodies or toes -> joints.

    Raises InputError."""
    if path is None:
        return {}
    known = ["pelvis", "torso", "head", *(f"{side}_{limb}" for side in SIDES for limb in LIMBS)]
    try:
        with open(path, encoding="utf-8-sig") as file:
            data = json.load(file)
    except OSError as error:
        raise InputError(f"{path}: cannot read the joint map: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file ({str(error)[:80]})") from error
    if not isinstance(data, dict) or not all(_may_stand_for(joint, body) for body, joint in data.items()):
        nullable = ", ".join(OPTIONAL)
        raise InputError(f'{path}: not a joint map {{"left_thigh": "LeftUpLeg", ...}}; only {nullable} may be null')
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise InputError(f"{path}: {unknown[0]!r:.40} is no body of the character; known are {', '.join(known)}")
    return data


def find_joints(recording: Recording, joint_map: JointMap) -> Dict[str, int]:
    """Our bodies -> indices of joints, guesses overridden by `joint_map`. Raises InputError."""
    joints: Dict[str, Any] = {**guess_joints(recording.names, recording.parents), **joint_map}
    joints = {body: name for body, name in joints.items() if name is not None}
    absent = sorted(set(joints.values()) - set(recording.names))
    if absent:
        names = ", ".join(recording.names)[:300]
        raise InputError(f"--joint-map: the file has no joint {absent[0]!r:.60}; it has {names}")
    needed = ["pelvis", "torso", *(f"{side}_{limb}" for side in SIDES for limb in LIMBS if limb not in ("hand", "toe"))]
    missing = [body for body in needed if body not in joints]
    if missing:
        names = ", ".join(recording.names)[:300]
        advice = "give a --joint-map (motions/README.md)"
        raise InputError(f"no joint found for {', '.join(missing)}; {advice}. The file has {names}")
    index = {body: recording.names.index(name) for body, name in joints.items()}
    for side in SIDES:
        for chain in (("upper_arm", "lower_arm", "hand"), ("thigh", "shin", "foot", "toe")):
            found = [index[f"{side}_{limb}"] for limb in chain if f"{side}_{limb}" in index]
            if any(a == b or a not in _ancestors(b, recording.parents) for a, b in zip(found, found[1:])):
                fault = f"the joints of the {side} {chain[0]} do not hang on one another"
                raise InputError(f"{fault}; correct them with a --joint-map")
    return index


# ---- 2. Rest pose ----------------------------------------------------------------------------------------------------


class Alignment(NamedTuple):
    """How a skeleton's joints lie to our bodies, found in a pose in which it stands."""

    joints: List[int]  # (B,) the joint of each body; -1 for none
    world: Tensor  # (4,) from the recording's world to ours, Z up
    body: Tensor  # (B, 4) from a body's frame to its joint's frame
    leg: float  # thigh and shin together, in the recording's unit
    notes: str


def skeleton_poses(recording: Recording, root_position: Tensor, rotations: Tensor) -> Tuple[Tensor, Tensor]:
    """Positions (..., J, 3) and rotations (..., J, 4) of all joints in the recording's world."""
    offsets = torch.from_numpy(recording.offsets)
    p = [root_position]
    q = [rotations[..., 0, :]]
    for j, parent in enumerate(recording.parents[1:], 1):
        p.append(p[parent] + lib.quat_rotate(q[parent], offsets[j]))
        q.append(lib.quat_multiply(q[parent], rotations[..., j, :]))
    return torch.stack(p, -2), torch.stack(q, -2)


def all_poses(recording: Recording) -> Tuple[Tensor, Tensor]:
    """skeleton_poses of every frame of the recording: (F, J, 3), (F, J, 4)."""
    return skeleton_poses(recording, torch.from_numpy(recording.root_position), torch.from_numpy(recording.rotations))


def _unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=-1, keepdim=True).clamp_min(1e-9)


def _uprightness(p: Tensor, index: Dict[str, int]) -> Tensor:
    """How nearly the poses (..., J, 3) stand, whatever way is up. -> (...).

    It is the worst cosine of hips to trunk and thighs to shins."""

    def at(body: str) -> Tensor:
        return p[..., index[body], :]

    trunk = _unit(0.5 * (at("left_upper_arm") + at("right_upper_arm")) - 0.5 * (at("left_thigh") + at("right_thigh")))
    cosines = []
    for side in SIDES:
        thigh = _unit(at(f"{side}_shin") - at(f"{side}_thigh"))
        shin = _unit(at(f"{side}_foot") - at(f"{side}_shin"))
        cosines += [-(trunk * thigh).sum(-1), (thigh * shin).sum(-1)]
    return torch.stack(cosines).amin(0)


def _shortest(a: Tensor, b: Tensor) -> Tensor:
    """The shortest rotation from direction a (3,) to direction b (3,); about x if they are opposite. -> (4,)."""
    if float(a @ b) < -0.9999:
        return HALF_TURN
    q = torch.cat((torch.linalg.cross(a, b), (1 + a @ b)[None]))
    return q / q.norm()


def align(character: Character, recording: Recording, index: Dict[str, int]) -> Alignment:
    """Find the rest pose: the zero pose if the skeleton stands in it (in a T, in an A or with hanging arms).

    It does in most files; else the mean of the frames in which it stands best, as in LaFAN1. Raises InputError for a
    skeleton without legs."""
    zero = torch.zeros(1, 3, dtype=torch.float64)
    p, q = skeleton_poses(recording, zero, UPRIGHT.expand(1, len(recording.names), 4))  # of N = 1 rest pose
    bones = [(f"{side}_{a}", f"{side}_{b}") for side in SIDES for a, b in (("thigh", "shin"), ("shin", "foot"))]
    leg = sum(float((p[0, index[a]] - p[0, index[b]]).norm()) for a, b in bones) / 2
    if leg < 1e-3:
        raise InputError("the legs have no length; correct the joints with a --joint-map")
    where = "zero pose"
    if float(_uprightness(p, index)) < 0.85:
        p, q = all_poses(recording)
        standing = _uprightness(p, index)
        best = standing.topk(min(30, len(p))).indices
        best = best[standing[best] > standing.max() - 0.01]
        p = p[best]
        q = q[best]
        where = f"{len(best)} frames that stand best (no rest pose: angles may be off by several degrees)"

    def at(body: str) -> Tensor:  # (N, 3)
        return p[:, index[body]]

    # the up axis: of the rest pose, as a person who crawls through a whole clip has it, too
    trunk = (at("left_upper_arm") + at("right_upper_arm") - at("left_foot") - at("right_foot")).sum(0)
    axis = int(trunk.abs().argmax())
    up = recording.up or ("+" if trunk[axis] > 0 else "-") + "xyz"[axis]
    world = torch.tensor(UP["+" + up[1]], dtype=torch.float64)
    world = lib.quat_multiply(HALF_TURN, world) if up[0] == "-" else world
    left = at("left_thigh") - at("right_thigh") + at("left_upper_arm") - at("right_upper_arm")
    left = lib.quat_rotate(world, left)  # our world, Z up
    if float(left[:, :2].norm(dim=-1).min()) < 1e-6 * leg:
        raise InputError("left and right are at the same place in the rest pose; correct the joints with a --joint-map")
    # our frame at rest, X forward, Y left, Z up -> the recording's world
    facing = lib.quat_from_yaw(torch.atan2(-left[:, 0], left[:, 1]))
    stand = lib.quat_multiply(lib.quat_conjugate(world), facing)  # (N, 4)
    frames, drops = zip(*[_body_frames(character, index, *pose) for pose in zip(p, q, stand)])
    drop = sum(drops) / len(drops)
    arms = "arms hanging" if drop > 0.94 else "T-pose" if drop < 0.35 else "A-pose"
    notes = f"{up[1].upper()} up{' (downwards)' if up[0] == '-' else ''}, {arms} in the {where}"
    joints = [index.get(name, -1) for name in character.body_names]
    return Alignment(joints, world, _mean_rotation(torch.stack(frames)), leg, notes)


def _mean_rotation(q: Tensor) -> Tensor:
    """The rotations (..., 4) nearest to all of (N, ..., 4), whatever their signs.

    It is the main axis of q q^T summed over N."""
    return torch.linalg.eigh((q[..., :, None] * q[..., None, :]).sum(0)).eigenvectors[..., -1] if len(q) > 1 else q[0]


def _body_frames(
    character: Character, index: Dict[str, int], p: Tensor, q: Tensor, stand: Tensor
) -> Tuple[Tensor, float]:
    """From our bodies' frames to their joints' (B, 4), and the sine by which an arm drops.

    Given joints p (J, 3), q (J, 4) at rest."""
    names = character.body_names
    toward = {"upper_arm": "lower_arm", "lower_arm": "hand", "thigh": "shin", "shin": "foot"}
    pose = UPRIGHT.repeat(len(names), 1)  # (B, 4) of our character standing as the skeleton does at rest, facing +X

    def direction(a: str, b: str) -> Tensor:
        return _unit(lib.quat_rotate(lib.quat_conjugate(stand), p[index[b]] - p[index[a]]))

    for b, name in enumerate(names[1:], 1):
        side, _, limb = name.partition("_")
        parent = pose[character.parents[b]]
        tip = f"{side}_{toward.get(limb, 'toe')}"
        if limb in toward:  # along the bone, not turned about it
            bone = _unit(character.offsets[names.index(tip)].double())
            turn = _shortest(lib.quat_rotate(parent, bone), direction(name, tip)) if tip in index else UPRIGHT
            pose[b] = lib.quat_multiply(turn, parent)
        elif limb == "foot" and tip in index:  # the sole is flat at rest, however the bone slopes from ankle to toe
            x, y, _ = direction(name, tip).tolist()
            yaw = math.atan2(y, x) if math.hypot(x, y) > 0.3 else 0.0
            pose[b] = lib.quat_from_yaw(torch.tensor(yaw if abs(yaw) < 1.0 else 0.0, dtype=torch.float64))
    joints = [index.get(name, -1) for name in names]
    rest = lib.quat_multiply(stand, pose)  # in the recording's world
    drop = -float(direction("left_upper_arm", "left_lower_arm")[2])
    return lib.quat_multiply(lib.quat_conjugate(q[joints]), rest), drop


# ---- 3. Transfer -----------------------------------------------------------------------------------------------------


def hinged(character: Character, world: Tensor) -> Tensor:
    """Bodies' rotations in the world (F, B, 4) with those below hinges made to turn about the hinge only.

    Their parent is turned about its own bone until the hinge lies square to both bones, and what is left, the turn of
    the forearm about itself, is dropped."""
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
        # bent the wrong way, by a little or squarely: leave it so
        over = (turn.abs() > math.pi / 2) & ((turn.abs() > 2.6) | (sine < 0.26))
        turn = torch.where(over, turn - math.pi * turn.sign(), turn)
        bend = torch.atan2(sine, -v[:, 2]) * torch.where(over, -sense, sense)
        turn = turn * (sine / 0.26).clamp_max(1.0) ** 2  # a straight limb does not tell how it would bend
        zero = torch.zeros_like(turn)
        world[:, a] = lib.quat_multiply(world[:, a], lib.quat_from_yaw(turn))
        world[:, b] = lib.quat_multiply(world[:, a], lib.quat_from_rotvec(torch.stack((zero, bend, zero), -1)))
    return world


def transfer(character: Character, recording: Recording, found: Alignment, index: Dict[str, int], scale: float) -> Clip:
    """The recording's bone directions on our character, its hips where the recording's are times `scale`.

    Feet as they come."""
    p, q = all_poses(recording)
    world = lib.quat_multiply(lib.quat_multiply(found.world, q[:, found.joints]), found.body)  # (F, B, 4)
    for b, joint in enumerate(found.joints):
        if joint < 0:
            world[:, b] = world[:, character.parents[b]]
    world = hinged(character, world)
    parents = character.parents
    rotations = torch.cat((world[:, :1], lib.quat_multiply(lib.quat_conjugate(world[:, parents[1:]]), world[:, 1:])), 1)
    welded = sorted(set(range(1, len(parents))) - set(character.dof_body.tolist()))
    rotations[:, welded] = UPRIGHT
    thighs = [character.body_names.index(f"{side}_thigh") for side in SIDES]
    hips = 0.5 * (p[:, index["left_thigh"]] + p[:, index["right_thigh"]])
    ours = lib.quat_rotate(world[:, 0], character.offsets[thighs].double().mean(0))
    root_position = scale * lib.quat_rotate(found.world, hips) - ours
    return Clip(recording.fps, recording.loop, root_position.numpy(), continuous(rotations.numpy()))


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


def retarget(
    character: Character, recording: Recording, whole: Recording, joint_map: JointMap, plant: bool, ground: bool
) -> Tuple[Clip, str]:
    """The recording as a clip of our character, and what was understood of it.

    whole: the recording before it was cut, as the part that stands may lie outside the cut.
    plant: move the feet of a character of other proportions to where they stood.
    ground: find the ground's height, instead of taking the file's. Raises InputError."""
    index = find_joints(recording, joint_map)
    found = align(character, whole, index)
    limbs = [character.body_names.index(f"{side}_{limb}") for side in SIDES for limb in ("shin", "foot")]
    scale = sum(float(character.offsets[limb].double().norm()) for limb in limbs) / 2 / found.leg
    exact = [(name, unit) for name, unit in UNITS.items() if abs(scale / unit - 1) < 1e-3]
    # a person's leg, hip to ankle, is .6 to 1.1 m long
    human = [(name, unit) for name, unit in UNITS.items() if 0.6 < found.leg * unit < 1.1]
    likely = exact or human or [("of an unknown kind", math.nan)]
    same = same_proportions(character, recording, found, scale)
    scale = exact[0][1] if same and exact else scale
    clip = transfer(character, recording, found, index, scale)
    notes = f"{found.notes}, leg {found.leg:.4g} units (likely {likely[0][0]}), scale {scale:.4g}"
    if same or not plant:
        return clip, f"{notes}, {'our proportions' if same else 'other proportions, feet not planted'}"
    from motions import plant as feet  # here, as it needs packages that nothing else does

    if ground:
        clip = clip._replace(root_position=clip.root_position - [0.0, 0.0, feet.ground_height(character, clip)])
    clip, stood = feet.plant(character, clip)
    return clip, f"{notes}, other proportions, feet planted ({stood})"
