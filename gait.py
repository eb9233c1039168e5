"""How feet meet the ground, and how a body turns: figures of a motion, to stand beside those of its clip.

Pure functions of motions at the control rate. Units and frames are those of motion_lib.
Dimension key: E episodes, T frames, J bodies, P collision points of a foot.
"""

import math
import statistics
from collections import Counter
from typing import Dict, List, NamedTuple, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

import motion_lib as ml

NEAR = 0.03  # a point of a foot that is no higher may be in contact [m],
SLOW = 0.5  # if it is no faster over the ground [m/s]; the clips' feet swing at 1 and more
GAP = 0.13  # [s]
Root = Tuple[Tensor, Tensor]  # heights (E, T) [m] and rotations (E, T, 4), world, of a motion's root
STRIDES, ALTERNATING = 2, 0.75  # a gait: so many strides of each foot, and such a share of all of them, alternate


class Stride(NamedTuple):
    """From one touch-down of a foot to its next."""

    seconds: float
    way: float  # of the root over the ground, straight [m]
    slide: float  # of the foot over the ground while in contact [m]
    clearance: float  # greatest height of the foot's lowest point meanwhile [m]
    order: str  # who touches down meanwhile: a letter a foot, this one's first
    alternates: bool  # the other foot does so once, and not with this one


def contacts(
    character: ml.Character, position: Tensor, rotation: Tensor, foot: int, dt: float
) -> Tuple[Tensor, Tensor, Tensor]:
    """When a foot is in contact, how far it slides, how high it is; bodies (E, T, J, 3) [m], (E, T, J, 4), world.

    -> whether it is during each step of dt [s] (E, T - 1) bool, the way of its slowest point on the ground, if it is
    slow (E, T - 1) [m], and the foot's lowest point (E, T - 1) [m]"""
    mine = character.hull_body == foot
    point = position[..., foot, None, :] + ml.quat_rotate(rotation[..., foot, None, :], character.hull_point[mine])
    height = point[..., 2] - character.hull_radius[mine]  # (E, T, P)
    near = (height[:, :-1] <= NEAR) & (height[:, 1:] <= NEAR)
    way = torch.where(near, point[..., :2].diff(dim=1).norm(dim=-1), torch.inf).amin(-1)  # (E, T - 1) [m]
    still = way <= SLOW * dt
    # a gap of at most GAP is none: closing; and neither is a contact of one step: opening
    half = max(round(0.5 * GAP / dt), 1)
    closed = -F.max_pool1d(-F.max_pool1d(still.float()[:, None], 2 * half + 1, 1, half), 2 * half + 1, 1, half)
    pairs = -F.max_pool1d(-F.pad(closed, (1, 0), mode="replicate"), 2, 1)
    contact = F.max_pool1d(F.pad(pairs, (0, 1), mode="replicate"), 2, 1)[:, 0] > 0
    return contact, torch.where(contact & still, way, 0.0), height.amin(-1)[:, :-1]


def strides(contact: Tensor, slide: Tensor, height: Tensor, root: Tensor, letters: str, dt: float) -> List[Stride]:
    """All strides of an episode of two feet: (2, T - 1) each, see contacts; root (T - 1, 2) on the ground [m]."""
    fresh = contact[:, 1:] & ~contact[:, :-1]
    down = [(row.nonzero()[:, 0] + 1).tolist() for row in fresh]  # when each touches down
    found = []
    for foot in (0, 1):
        for begin, end in zip(down[foot], down[foot][1:]):
            other = [time for time in down[1 - foot] if begin <= time < end]
            phase = (other[0] - begin) / (end - begin) if other else 0.0
            found.append(
                Stride(
                    seconds=(end - begin) * dt,
                    way=float((root[end] - root[begin]).norm()),
                    slide=float(slide[foot, begin:end].sum()),
                    clearance=float(height[foot, begin:end].max()),
                    order=letters[foot] + letters[1 - foot] * len(other),
                    alternates=len(other) == 1 and 0.2 < phase < 0.8,
                )
            )
    return found


def figures(
    character: ml.Character, position: Tensor, rotation: Tensor, steps: Tensor, feet: Tuple[str, str], dt: float
) -> Dict[str, float]:
    """Gait of episodes of bodies (E, T, J, 3) [m], (E, T, J, 4), world, lived for steps (E,) of dt [s]; feet: names.

    -> means over the strides that alternate, and who touches down in most of them; nothing if that is no gait"""
    parts = [contacts(character, position, rotation, character.body_names.index(foot), dt) for foot in feet]
    contact, slide, height = [torch.stack(x, 1).cpu() for x in zip(*parts)]  # (E, 2, T - 1)
    root = position[:, :, 0, :2].cpu()
    letters = "".join(foot[0].upper() for foot in feet)
    found = []
    for e, n in enumerate(steps.tolist()):
        found += strides(contact[e, :, :n], slide[e, :, :n], height[e, :, :n], root[e], letters, dt)
    good = [stride for stride in found if stride.alternates]
    if len(good) < max(2 * STRIDES, ALTERNATING * len(found)):
        return {}
    order, _ = Counter(stride.order for stride in good if stride.order[0] == letters[0]).most_common(1)[0]
    return {
        "cadence_hz": 1.0 / statistics.mean(stride.seconds for stride in good),
        "stride_m": statistics.mean(stride.way for stride in good),
        "foot_slide_m": statistics.mean(stride.slide for stride in good),
        "swing_clearance_m": statistics.mean(stride.clearance for stride in good),
        "contact_order": order,
    }


def turned(rotation: Tensor, steps: Tensor, window: int) -> float:
    """How far roots (E, T, 4), world, turn in a window of steps, back and forth not counted [turns]: the mean over all
    windows within the steps (E,) lived; 0 if there is none."""
    step = ml.rotvec_from_quat(ml.quat_multiply(rotation[:, 1:], ml.quat_conjugate(rotation[:, :-1])))  # (E, T - 1, 3)
    angle = F.pad(step.cumsum(1), (0, 0, 1, 0))  # (E, T, 3) since the start, about the world's axes [rad]
    turn = (angle[:, window:] - angle[:, :-window]).norm(dim=-1) / (2 * math.pi)  # (E, T - window)
    lived = torch.arange(turn.shape[1], device=steps.device) + window <= steps[:, None]
    return float((turn * lived).sum() / lived.sum().clamp_min(1))


def risen(height: Tensor, steps: Tensor, window: int) -> float:
    """How far the highest of heights (E, T) [m] in a window of steps is above the lowest; the mean is as in turned."""
    window = min(window, height.shape[1] - 1)
    high, low = (sign * F.max_pool1d(sign * height[:, None], window + 1, 1)[:, 0] for sign in (1, -1))
    lived = torch.arange(high.shape[1], device=steps.device) + window <= steps[:, None]
    return float(((high - low) * lived).sum() / lived.sum().clamp_min(1))


def cycles(own: Root, clip: Root, steps: Tensor, cycle: int, own_cycle: float, dt: float) -> Dict[str, float]:
    """How far episodes rise and turn in a cycle, beside a clip that loops; no turns if it turns by less than a half.
    steps (E,) lived; cycle, own_cycle: control steps of dt [s] of a cycle of the clip's, of the character's."""
    always = torch.full_like(steps, clip[0].shape[1] - 1)
    figures = {"rise_m": risen(own[0], steps, round(own_cycle)), "clip_rise_m": risen(clip[0], always, cycle)}
    a, b = turned(own[1], steps, cycle) / cycle, turned(clip[1], always, cycle) / cycle  # turns in a step
    turns = {"turns_per_cycle": a * own_cycle, "turns_per_s": a / dt, "clip_turns_per_cycle": b * cycle}
    return {**figures, **turns, "clip_turns_per_s": b / dt} if b * cycle >= 0.5 else figures
