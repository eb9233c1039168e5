"""Keep the feet of a retargeted character where they stood, by mink on our MuJoCo model (requirements-motions.txt).

Dimension key: F frames, P = 4 points (heel and toe of each foot), B bodies.
"""

from typing import List, Tuple

import numpy as np
import torch

import motion_lib as lib
from motion_lib import Character, Clip, InputError
from motions.bvh import angles, continuous

NEAR = 0.04  # [m] a point lower than this, ...
SLOW = 0.5  # [m/s] ... and slower than this, stands on the ground
FADE = 0.15  # [s] over which a correction grows before a point stands, and fades after
FAR, TURN = 0.1, 40.0  # [m] of the hips, [deg] of a joint: more than planting took of any real clip (.035, 16)
STEPS = 8  # of the solver, a frame: each one halves what is left or better


def sole_points(character: Character) -> List[Tuple[int, np.ndarray]]:
    """Body and place in its frame [m] of right heel and toe, left heel and toe: the middles of the sole's edges."""
    points = []
    for side in ("right", "left"):
        foot = character.body_names.index(f"{side}_foot")
        hull = character.hull_point[character.hull_body == foot].double().numpy()  # the corners of a box
        for x in (hull[:, 0].min(), hull[:, 0].max()):
            points.append((foot, np.array([x, hull[:, 1].mean(), hull[:, 2].min()])))
    return points


def point_positions(character: Character, clip: Clip) -> np.ndarray:
    """Where heels and toes are in the world. -> (F, P, 3) [m]."""
    double = character._replace(offsets=character.offsets.double())
    p, q = lib.forward_kinematics(double, torch.from_numpy(clip.root_position), torch.from_numpy(clip.rotations))
    points = sole_points(character)
    return torch.stack([p[:, j] + lib.quat_rotate(q[:, j], torch.from_numpy(x)) for j, x in points], 1).numpy()


def contacts(position: np.ndarray, fps: float) -> np.ndarray:
    """Which points (F, P, 3) [m] stand on the ground, low and slow, a tenth of a second at least. -> (F, P) bool"""
    speed = np.linalg.norm(np.gradient(position, axis=0), axis=-1) * fps  # (F, P)
    stands = (position[..., 2] < NEAR) & (speed < SLOW)
    for point in range(stands.shape[1]):
        for first, last in runs(stands[:, point]):
            if last - first + 1 < 0.1 * fps and first > 0 and last < len(stands) - 1:
                stands[first : last + 1, point] = False
    return stands


def runs(mask: np.ndarray) -> List[Tuple[int, int]]:
    """First and last index of each run of True. (F,) -> [(first, last), ...]."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(int)))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2])]


def targets(position: np.ndarray, stands: np.ndarray, fps: float) -> np.ndarray:
    """Where the points (F, P, 3) should be. -> (F, P, 3) [m]. On one spot of the ground while they stand, else where
    they are plus what is left of the corrections before and after."""
    correction = np.zeros_like(position)
    weight = np.zeros(position.shape[:2])
    time = np.arange(len(position)) / fps
    for point in range(position.shape[1]):
        for first, last in runs(stands[:, point]):
            spot = position[first : last + 1, point].mean(0) * [1.0, 1.0, 0.0]
            held = np.clip(np.arange(len(position)), first, last)
            shift = spot - position[held, point]  # (F, 3), held before and after
            # (F,) 0 while it stands, 1 far away
            away = np.maximum(time[first] - time, time - time[last]).clip(0.0, FADE) / FADE
            fade = 0.5 + 0.5 * np.cos(np.pi * away)
            take = fade > weight[:, point]
            correction[take, point] = (fade[:, None] * shift)[take]
            weight[take, point] = fade[take]
    return position + correction


def ik_model(character: Character):
    """MuJoCo's model with a ball joint for each hinge triple, a site at each heel and toe. Raises InputError."""
    try:
        import mink  # noqa: F401
        import mujoco
    except ImportError as error:
        advice = "pip install -r requirements-motions.txt, or use --no-plant"
        raise InputError(f"planting the feet of another skeleton needs {error.name}: {advice}") from error
    spec = mujoco.MjSpec.from_file(character.path)
    for motor in list(spec.actuators):
        spec.delete(motor)
    for body in character.balls.tolist():
        for d in np.flatnonzero(character.dof_body.numpy() == body):
            spec.delete(spec.joint(character.dof_names[d]))
        spec.body(character.body_names[body]).add_joint(name=f"ball{body}", type=mujoco.mjtJoint.mjJNT_BALL)
    for i, (body, position) in enumerate(sole_points(character)):
        spec.body(character.body_names[body]).add_site(name=f"point{i}", pos=position)
    return spec.compile()


def plant(character: Character, clip: Clip) -> Tuple[Clip, str]:
    """The clip with heels and toes held where they stand on the ground at z = 0, and a remark on how much they slid. As
    little else is changed as that takes; if that is too much, the clip stays as it is, and the remark says so. Raises
    InputError if mink is not installed."""
    model = ik_model(character)
    import mink

    before = point_positions(character, clip)
    stands = contacts(before, clip.fps)
    if not stands.any():
        return clip, "feet not planted (they never stand)"
    goal = targets(before, stands, clip.fps)
    configuration = mink.Configuration(model)
    feet = [mink.FrameTask(f"point{i}", "site", position_cost=10.0, orientation_cost=0.0) for i in range(goal.shape[1])]
    pelvis = mink.FrameTask(character.body_names[0], "body", position_cost=1.0, orientation_cost=1.0)
    posture = mink.PostureTask(model, cost=0.3)
    tasks = [*feet, pelvis, posture]
    limits = [mink.ConfigurationLimit(model)]  # of elbows and knees; the balls have none
    # (B,) of each body's joint in qpos; the root's rotation follows its position
    start = model.jnt_qposadr[model.body_jntadr[1:].clip(0)]
    balls = [0, *character.balls.tolist()]
    hinges = character.hinges.tolist()
    columns = [start[b] + (3 if b == 0 else 0) + np.arange(4) for b in balls]
    bends = lib.dof_positions(character, torch.from_numpy(clip.rotations))[:, character.hinge_dofs].numpy()  # (F, H)
    low, high = model.jnt_range[model.body_jntadr[1:][hinges]].T
    root_position = clip.root_position.copy()
    rotations = clip.rotations.copy()
    q = model.qpos0.copy()
    for frame in range(len(goal)):
        q[:3] = clip.root_position[frame]
        for b, column in zip(balls, columns):
            q[column] = clip.rotations[frame, b][[3, 0, 1, 2]]  # MuJoCo's quaternions are wxyz
        q[start[hinges]] = bends[frame].clip(low, high)
        configuration.update(q)
        pelvis.set_target_from_configuration(configuration)
        posture.set_target_from_configuration(configuration)
        for task, point in zip(feet, goal[frame]):
            task.set_target(mink.SE3.from_translation(point))
        for _ in range(STEPS):
            velocity = mink.solve_ik(configuration, tasks, 1.0, "daqp", damping=1e-6, limits=limits)
            configuration.integrate_inplace(velocity, 1.0)
        root_position[frame] = configuration.q[:3]
        for b, column in zip(balls, columns):
            rotations[frame, b] = configuration.q[column][[1, 2, 3, 0]]
        about_y = torch.from_numpy(configuration.q[start[hinges]][:, None] * [0.0, 1.0, 0.0])  # (H, 3)
        rotations[frame, hinges] = lib.quat_from_rotvec(about_y)
    result = clip._replace(root_position=root_position, rotations=continuous(rotations))
    slid = [100 * slide(x, stands) for x in (before, point_positions(character, result))]
    moved = np.linalg.norm(root_position - clip.root_position, axis=-1).max()
    turn = float(angles(clip.rotations, result.rotations).rad2deg().max())
    said = f"sliding {slid[0]:.1f} -> {slid[1]:.1f} cm at worst"
    if moved > FAR or turn > TURN or slid[1] > slid[0] + 0.1:
        by = f"{said}, hips moved by {100 * moved:.0f} cm, a joint by {turn:.0f} deg"
        return clip, f"feet not planted (it would run away: {by})"
    return result, f"feet planted ({said})"


def slide(position: np.ndarray, stands: np.ndarray) -> float:
    """The largest distance [m] on the ground of a point (F, P, 3) from where a run of standing (F, P) has begun."""
    furthest = 0.0
    for point in range(stands.shape[1]):
        for first, last in runs(stands[:, point]):
            way = position[first : last + 1, point, :2] - position[first, point, :2]
            furthest = max(furthest, float(np.linalg.norm(way, axis=-1).max()))
    return furthest
