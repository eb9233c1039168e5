"""motion_lib: quaternions, the character, kinematics and velocities against MuJoCo, clips, loops, sampling, files."""

import json
import math
import os
import pickle
import re
import stat
import struct
from pathlib import Path

import simulators

import numpy as np
import pytest
import torch
from conftest import put
from hypothesis import given
from hypothesis import strategies as st

import clips
import files
import motion_lib as ml
from clips import save_clip


def t64(*values):
    return torch.tensor(values, dtype=torch.float64)


# ---- Quaternions -----------------------------------------------------------------------------------------------------

HALF = math.sqrt(0.5)
QI, QJ, QK, ONE = t64(1, 0, 0, 0), t64(0, 1, 0, 0), t64(0, 0, 1, 0), t64(0, 0, 0, 1)
Z90 = t64(0, 0, HALF, HALF)  # a quarter turn about Z

vectors = st.tuples(*[st.floats(-1.8, 1.8)] * 3).map(lambda v: t64(*v))  # no longer than 3.12 < pi
rotations = vectors.map(ml.quat_from_rotvec)


@pytest.mark.parametrize(
    "a, b, product",
    [
        *((QI, QJ, QK), (QJ, QK, QI), (QK, QI, QJ), (QJ, QI, -QK), (QK, QJ, -QI), (QI, QK, -QJ)),
        *((QI, QI, -ONE), (QJ, QJ, -ONE), (QK, QK, -ONE), (ONE, QJ, QJ), (QK, ONE, QK)),
    ],
)
def test_hamilton_table(a, b, product):
    assert torch.equal(ml.quat_multiply(a, b), product)


def test_rotate_by_hand():
    x, y, z = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(ml.quat_rotate(Z90, x), y)
    torch.testing.assert_close(ml.quat_rotate(Z90, y), -x)
    torch.testing.assert_close(ml.quat_rotate(Z90, z), z)
    torch.testing.assert_close(ml.quat_rotate(ml.quat_conjugate(Z90), y), x)
    # first a quarter turn about X takes Y to Z, then one about Y takes Z to X
    both = ml.quat_multiply(t64(0, HALF, 0, HALF), t64(HALF, 0, 0, HALF))
    torch.testing.assert_close(ml.quat_rotate(both, y), x)


@given(rotations, rotations, vectors)
def test_product_is_composition(a, b, v):
    torch.testing.assert_close(
        ml.quat_rotate(ml.quat_multiply(a, b), v), ml.quat_rotate(a, ml.quat_rotate(b, v)), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(ml.quat_rotate(ml.quat_conjugate(a), ml.quat_rotate(a, v)), v, atol=1e-9, rtol=0)


@given(rotations, rotations, vectors)
def test_product_and_rotation_against_mujoco(a, b, v):
    mujoco = pytest.importorskip("mujoco")
    wxyz = [3, 0, 1, 2]
    product, rotated = np.zeros(4), np.zeros(3)
    mujoco.mju_mulQuat(product, a.numpy()[wxyz], b.numpy()[wxyz])
    mujoco.mju_rotVecQuat(rotated, v.numpy(), a.numpy()[wxyz])
    np.testing.assert_allclose(ml.quat_multiply(a, b).numpy()[wxyz], product, atol=1e-9)
    np.testing.assert_allclose(ml.quat_rotate(a, v).numpy(), rotated, atol=1e-9)


def test_batches_broadcast():
    q = torch.stack((Z90, ONE))  # (2, 4)
    v = torch.eye(3, dtype=torch.float64)  # (3, 3)
    rotated = ml.quat_rotate(q[:, None], v)  # (2, 3, 3)
    torch.testing.assert_close(rotated[0], t64([0, 1, 0], [-1, 0, 0], [0, 0, 1]))
    torch.testing.assert_close(rotated[1], v)


@pytest.mark.parametrize(
    "vector, quaternion",
    [
        ((0, 0, 0), (0, 0, 0, 1)),
        ((math.pi / 2, 0, 0), (HALF, 0, 0, HALF)),
        ((0, -math.pi / 3, 0), (0, -0.5, 0, math.sqrt(0.75))),
        ((0, 0, math.pi), (0, 0, 1, 0)),
        ((1e-10, 0, 0), (5e-11, 0, 0, 1)),
    ],
)
def test_exponential_map_by_hand(vector, quaternion):
    torch.testing.assert_close(ml.quat_from_rotvec(t64(*vector)), t64(*quaternion), atol=1e-15, rtol=1e-12)
    torch.testing.assert_close(ml.rotvec_from_quat(t64(*quaternion)), t64(*vector), atol=1e-15, rtol=1e-12)


@given(vectors)
def test_log_inverts_exp(v):
    torch.testing.assert_close(ml.rotvec_from_quat(ml.quat_from_rotvec(v)), v, atol=1e-9, rtol=0)
    # -q is the same rotation
    torch.testing.assert_close(ml.rotvec_from_quat(-ml.quat_from_rotvec(v)), v, atol=1e-9, rtol=0)


@given(st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(x * x for x in q) > 0.01))
def test_exp_inverts_log(q):
    q = t64(*q) / t64(*q).norm()
    back = ml.quat_from_rotvec(ml.rotvec_from_quat(q))
    torch.testing.assert_close(back * torch.sign((back * q).sum()), q, atol=1e-9, rtol=0)
    assert ml.rotvec_from_quat(q).norm() <= math.pi + 1e-9


def test_gradients_of_small_rotations_are_finite_in_float32():
    for size in (0.0, 1e-30, 1e-8, 1e-6, 1e-3):
        v = torch.tensor([size, 0.0, 0.0])
        assert torch.isfinite(ml.quat_from_rotvec(v)).all()
        torch.testing.assert_close(ml.rotvec_from_quat(ml.quat_from_rotvec(v)), v, rtol=1e-5, atol=1e-12)


@given(rotations, rotations)
def test_slerp_ends_middle_and_pace(a, b):
    def at(t, a=a, b=b):
        return ml.slerp(a, b, t64(t))

    def angle(p, q):
        return float(ml.rotvec_from_quat(ml.quat_multiply(ml.quat_conjugate(p), q)).norm())

    assert angle(at(0.0), a) < 1e-7 and angle(at(1.0), b) < 1e-7
    whole = angle(a, b)
    assert abs(angle(a, at(0.5)) - whole / 2) < 1e-7 and abs(angle(at(0.5), b) - whole / 2) < 1e-7
    assert abs(angle(a, at(0.25)) - whole / 4) < 1e-7
    if whole < 3.1:  # the shorter arc, whatever the signs
        assert angle(at(0.3), at(0.3, b=-b)) < 1e-7
    assert abs(float(at(0.3).norm()) - 1) < 1e-9


def test_slerp_by_hand():
    # halfway from upright to a quarter turn about Z: an eighth of a turn
    torch.testing.assert_close(ml.slerp(ONE, Z90, t64(0.5)), t64(0, 0, math.sin(math.pi / 8), math.cos(math.pi / 8)))


def test_heading_by_hand():
    torch.testing.assert_close(ml.heading(Z90), t64(math.pi / 2)[0])
    assert float(ml.heading(t64(HALF, 0, 0, HALF))) == pytest.approx(0.0)  # on its side, +X still points forward
    assert float(ml.heading(t64(0, 0, 1, 0))) == pytest.approx(math.pi)
    # pitched down by an eighth of a turn after a yaw of 0.7
    pitched = ml.quat_multiply(ml.quat_from_yaw(t64(0.7))[0], t64(0, math.sin(math.pi / 8), 0, math.cos(math.pi / 8)))
    assert float(ml.heading(pitched)) == pytest.approx(0.7)


@given(st.floats(-3.14, 3.14), vectors)
def test_yaw_round_trip(yaw, v):
    q = ml.quat_from_yaw(t64(yaw))[0]
    assert float(ml.heading(q)) == pytest.approx(yaw, abs=1e-9)
    torch.testing.assert_close(ml.quat_rotate(q, v)[2], v[2])


# ---- The character file ----------------------------------------------------------------------------------------------


def test_bodies_of_the_humanoid(character):
    arm = ["{}_upper_arm", "{}_lower_arm", "{}_hand"]
    leg = ["{}_thigh", "{}_shin", "{}_foot"]
    limbs = [name.format(side) for limb in (arm, leg) for side in ("right", "left") for name in limb]
    assert character.body_names == ["pelvis", "torso", "head"] + limbs
    parent = dict(zip(character.body_names, (character.body_names[p] if p >= 0 else None for p in character.parents)))
    assert parent["pelvis"] is None and parent["head"] == "torso" and parent["left_hand"] == "left_lower_arm"
    assert parent["right_upper_arm"] == "torso" and parent["right_foot"] == "right_shin"
    assert parent["left_thigh"] == "pelvis"
    assert character.offsets[0].tolist() == [0, 0, 0]  # where the root stands is not its offset
    torch.testing.assert_close(character.offsets[13], torch.tensor([0.0, 0.0, -0.421546]))
    torch.testing.assert_close(character.offsets[3], torch.tensor([-0.02405, -0.18311, 0.24350]))


def test_dofs_of_the_humanoid(character):
    assert len(character.dof_names) == 28 and len(character.dof_body.tolist()) == 28
    dofs = {name: d for d, name in enumerate(character.dof_names)}
    assert character.dof_names[:4] == ["abdomen_x", "abdomen_y", "abdomen_z", "neck_x"]
    shoulder = ["right_shoulder_x", "right_shoulder_y", "right_shoulder_z"]
    assert character.dof_names[6:11] == shoulder + ["right_elbow", "left_shoulder_x"]
    bodies = {name: character.body_names[character.dof_body[d]] for name, d in dofs.items()}
    assert bodies["abdomen_z"] == "torso" and bodies["right_ankle_x"] == "right_foot"
    assert bodies["left_elbow"] == "left_lower_arm"
    assert character.dof_axis[dofs["left_hip_z"]].tolist() == [0, 0, 1]
    assert character.dof_axis[dofs["right_knee"]].tolist() == [0, 1, 0]
    for name, kp, kd, effort in (
        ("abdomen_y", 1000, 100, 200),
        ("neck_z", 100, 10, 50),
        ("right_elbow", 300, 30, 70),
        ("left_knee", 500, 50, 150),
        ("left_ankle_x", 400, 40, 90),
    ):
        d = dofs[name]
        assert (float(character.kp[d]), float(character.kd[d]), float(character.effort[d])) == (kp, kd, effort)


def test_collision_points_of_the_humanoid(character):
    # 6 spheres of one point, 10 capsules of two, 2 boxes of eight corners
    assert character.hull_body.shape == character.hull_radius.shape == (42,)
    assert character.hull_point.shape == (42, 3)
    foot = character.hull_point[character.hull_body == character.body_names.index("left_foot")]
    assert foot.shape == (8, 3)
    torch.testing.assert_close(foot.amin(0), torch.tensor([-0.0435, -0.045, -0.05]))
    torch.testing.assert_close(foot.amax(0), torch.tensor([0.1335, 0.045, 0.005]))
    thigh = character.hull_body == character.body_names.index("right_thigh")
    assert sorted(character.hull_point[thigh, 2].tolist()) == pytest.approx([-0.36, -0.06])
    assert character.hull_radius[thigh].tolist() == pytest.approx([0.055, 0.055])


def test_bodies_by_depth(character):
    """Every body once, in the level below its parent's, and level_order puts the concatenated levels in file order."""
    order = [0]
    above = [0]
    for bodies, places in character.levels:
        for body, place in zip(bodies.tolist(), places.tolist()):
            assert character.parents[body] == above[place]
        above = bodies.tolist()
        order += above
    assert sorted(order) == list(range(15)) and torch.tensor(order)[character.level_order].tolist() == list(range(15))


def test_balls_and_hinges(character):
    balls = [
        "torso",
        "head",
        "right_upper_arm",
        "left_upper_arm",
        "right_thigh",
        "right_foot",
        "left_thigh",
        "left_foot",
    ]
    assert [character.body_names[j] for j in character.balls] == balls
    hinges = ["right_lower_arm", "left_lower_arm", "right_shin", "left_shin"]
    assert [character.body_names[j] for j in character.hinges] == hinges
    names = ["right_elbow", "left_elbow", "right_knee", "left_knee"]
    assert [character.dof_names[d] for d in character.hinge_dofs] == names


MANY = "".join(f'<body name="n{i}"/>' for i in range(986))  # and 15 others
BAD_CHARACTERS = {  # what is done to the humanoid's file (a regular expression and what stands in its place), complaint
    "no XML": (r"(?s).*", "no XML at all", "not a character file"),
    "of another kind": (r"(?s)<worldbody.*</worldbody>", "", "not a character file"),
    "no bodies": (r"(?s)<worldbody.*</worldbody>", "<worldbody/>", "not a character file"),
    "unknown encoding": (r"\A", '<?xml version="1.0" encoding="klingon"?>', "klingon"),
    "two hinges": (r"<joint name=.neck_y.*", "", "body head: needs"),
    "another order": (
        r'"neck_x" type="hinge" axis="1 0 0"',
        '"neck_x" type="hinge" axis="0 1 0"',
        "body head: needs",
    ),
    "a slide": (r'"left_knee" type="hinge"', '"left_knee" type="slide"', "body left_shin: needs"),
    "a shifted hinge": (
        r'"left_knee" type="hinge"',
        '"left_knee" type="hinge" pos="0 0 1"',
        "body left_shin: needs",
    ),
    "a turned body": (r'<body name="head"', '<body name="head" quat="0 1 0 0"', "body head: needs"),
    "a body in a frame": (r'(?s)(<body name="head".*?</body>)', r"<frame>\1</frame>", "not a character file"),
    "no motor": (r"<motor[^>]*left_knee.*", "", "left_knee"),
    "no gains": (r' stiffness="100"', "", "not a character file"),
    "no axis": (r' axis="1 0 0"', "", "not a character file"),
    "no size": (r' size="0.09"', "", "not a character file"),
    "an empty size": (r' size="0.09"', ' size=""', "not a character file"),
    "no number": (r'pos="0 0 0.223894"', 'pos="0 0 high"', "high"),
    "a cylinder": (r'type="sphere" pos="0 0 0.175"', 'type="cylinder" pos="0 0 0.175"', "geom head: must be sphere"),
    "a turned foot": (r'(?=size="0.0885)', 'euler="0 0 90" ', "_foot: must be sphere or box"),
    "a capsule of two lengths": (r'fromto="0 0 -0.06 0 0 -0.36" size="0.055"', 'size="0.055 0.2"', "right_thigh: must"),
    "a shape of a class": (r'(?=type="box")', 'class="foot" ', "right_foot: must be"),
    "no joints": (r"<joint.*|<motor.*", "", "needs joints"),
    "no geoms": (r"<geom.*", "", "needs joints, geoms"),
    "a name twice": (r"body name=\"left_", 'body name="right_', "another name for each of at most 1000 bodies"),
    "a thousand bodies": (r'(?=<body name="head")', MANY, "at most 1000 bodies"),
}


@pytest.mark.parametrize("pattern, replacement, complaint", BAD_CHARACTERS.values(), ids=BAD_CHARACTERS.keys())
def test_bad_character_files(tmp_path, character, pattern, replacement, complaint):
    path = tmp_path / "character.xml"
    text, found = re.subn(pattern, replacement, Path(character.path).read_text(encoding="utf-8"))
    assert found
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ml.InputError, match=complaint) as error:
        ml.load_character(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_character_file(tmp_path):
    for path, complaint in ((tmp_path / "none.xml", "cannot read"), (tmp_path, "expected a file")):
        with pytest.raises(ml.InputError, match=complaint):
            ml.load_character(str(path))


# ---- Forward kinematics and velocities against MuJoCo ----------------------------------------------------------------


def frames_of_all_clips(motions, stride=1):
    """Clip numbers and times of every stride-th frame."""
    clips = [torch.full((int(n) // stride + 1,), c) for c, n in enumerate(motions.last)]
    times = [torch.arange(len(c)) * stride / motions.fps[c[0]] for c in clips]
    return torch.cat(clips), torch.cat(times)


def in_mujoco(character, num_envs):
    return simulators.make("mujoco", character, num_envs, 30.0, 3, torch.device("cpu"), threads=1)


def mujoco_data(sim, env):
    """MuJoCo's own kinematics and velocities of one environment of a MujocoSim."""
    mujoco = pytest.importorskip("mujoco")
    data = mujoco.MjData(sim.model)
    mujoco.mj_setState(sim.model, data, sim.state[env], mujoco.mjtState.mjSTATE_FULLPHYSICS)
    mujoco.mj_forward(sim.model, data)
    return data


def test_forward_kinematics_against_mujoco(character, all_motions):
    pytest.importorskip("mujoco")
    clip, time = frames_of_all_clips(all_motions, 7)
    state = all_motions.state(clip, time)
    sim = in_mujoco(character, len(clip))
    put(sim, torch.arange(len(clip)), state)
    position, rotation = ml.forward_kinematics(character, state.root_position, state.rotations)
    for env in range(len(clip)):
        data = mujoco_data(sim, env)
        np.testing.assert_allclose(position[env].numpy(), data.xpos[1:16], atol=1e-5)
        theirs = data.xquat[1:16][:, [1, 2, 3, 0]]
        mine = rotation[env].numpy()
        np.testing.assert_allclose(mine * np.sign((mine * theirs).sum(-1, keepdims=True)), theirs, atol=1e-5)


def test_forward_kinematics_by_hand(character):
    """Upright, then with the right arm lifted sideways: the forearm and the hand point to -Y."""
    rotations = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(2, 15, 1)
    shoulder, hand = character.body_names.index("right_upper_arm"), character.body_names.index("right_hand")
    rotations[1, shoulder] = ml.quat_from_rotvec(torch.tensor([-math.pi / 2, 0.0, 0.0]))
    position, rotation = ml.forward_kinematics(character, torch.tensor([[1.0, 2.0, 0.9]] * 2), rotations)
    torch.testing.assert_close(position[0, hand], torch.tensor([0.97595, 1.81689, 0.845916]))
    torch.testing.assert_close(position[1, hand], torch.tensor([0.97595, 1.81689 - 0.533735, 1.379651]))
    torch.testing.assert_close(rotation[1, hand], rotations[1, shoulder])


def qpos_of_frame(sim, character, clip, frame):
    """MuJoCo's position coordinates of a clip's frame, in double precision."""
    qpos = np.zeros(sim.model.nq)
    qpos[:3] = clip.root_position[frame]
    qpos[3:7] = clip.rotations[frame, 0, [3, 0, 1, 2]]
    for body in set(character.dof_body.tolist()):
        start, q = sim.model.jnt_qposadr[sim.model.body_jntadr[body + 1]], clip.rotations[frame, body]
        if character.dof_body.tolist().count(body) == 3:
            qpos[start : start + 4] = q[[3, 0, 1, 2]]
        else:
            qpos[start] = 2 * np.arctan2(q[1], q[3])
    return qpos


def test_velocities_against_mujoco(character, all_motions):
    """At a frame, the velocity is the mean of the differences to its neighbours; MuJoCo takes the differences."""
    mujoco = pytest.importorskip("mujoco")
    rng = np.random.default_rng(0)
    for number, clip in enumerate(all_motions.clips):
        frames = rng.choice(np.arange(1, len(clip.root_position) - 1), 4, replace=False)
        time = torch.tensor(frames / clip.fps, dtype=torch.float32)
        sim = in_mujoco(character, 4)
        put(sim, torch.arange(4), all_motions.state(torch.full((4,), number), time))
        for env, frame in enumerate(frames):
            before, here, after = (qpos_of_frame(sim, character, clip, frame + step) for step in (-1, 0, 1))
            one, two = np.zeros((2, sim.model.nv))
            mujoco.mj_differentiatePos(sim.model, one, 1 / clip.fps, before, here)
            mujoco.mj_differentiatePos(sim.model, two, 1 / clip.fps, here, after)
            mine = sim.state[env, -sim.model.nv :]
            # relative to the clip's speeds (up to 30 rad/s), as the motion library keeps them in single precision
            np.testing.assert_allclose(mine, 0.5 * (one + two), atol=1e-5, rtol=1e-5)


def steady_motion(seed=0):
    """All turn at constant rates about fixed axes, and the root moves: rate (15, 3) [rad/s], velocity (3,) [m/s]."""
    generator = torch.Generator().manual_seed(seed)
    rate = torch.rand(15, 3, generator=generator, dtype=torch.float64) * 2 - 1
    return rate, t64(0.7, -0.4, 0.2)


def steady_pose(character, rate, velocity, time):
    rate = rate.clone()
    for body in range(1, 15):
        dofs = character.dof_body.tolist().count(body)
        rate[body] *= {3: t64(1, 1, 1), 1: t64(0, 1, 0), 0: t64(0, 0, 0)}[dofs]
    return t64(0, 0, 1) + velocity * time, ml.quat_from_rotvec(rate * time)


def test_body_velocities_against_mujoco(character, write_clip):
    """A state of the library, set in the simulator, moves every body as the motion does: world velocities that MuJoCo
    gives for the bodies, against finite differences of their positions."""
    mujoco = pytest.importorskip("mujoco")
    rate, velocity = steady_motion()
    poses = [steady_pose(character, rate, velocity, i / 5) for i in range(6)]
    positions, rotations = [torch.stack(x) for x in zip(*poses)]
    path = write_clip(fps=5.0, root_position=positions, rotations=rotations)
    motions = ml.MotionLib(path, character)
    sim = in_mujoco(character, 1)
    for time in (0.4, 0.53):  # at a frame and between two
        state = motions.state(torch.tensor([0]), torch.tensor([time]))
        put(sim, torch.tensor([0]), state)
        data = mujoco_data(sim, 0)
        h = 1e-5
        (back, q_back), (ahead, q_ahead) = (
            ml.forward_kinematics(character, *steady_pose(character, rate, velocity, time + step)) for step in (-h, h)
        )
        linear = ((ahead - back) / (2 * h)).numpy()
        angular = (ml.rotvec_from_quat(ml.quat_multiply(q_ahead, ml.quat_conjugate(q_back))) / (2 * h)).numpy()
        for body in range(15):
            theirs = np.zeros(6)  # angular, linear, in the world
            mujoco.mj_objectVelocity(sim.model, data, mujoco.mjtObj.mjOBJ_XBODY, body + 1, theirs, 0)
            np.testing.assert_allclose(theirs, np.concatenate((angular[body], linear[body])), atol=1e-5)
        np.testing.assert_allclose(state.root_velocity[0].numpy(), [0.7, -0.4, 0.2], atol=1e-5)


def test_lowest_points_against_mujoco(character, all_motions):
    """MuJoCo's own geoms: centre, axes and sizes in the world."""
    mujoco = pytest.importorskip("mujoco")
    clip, time = frames_of_all_clips(all_motions, 29)
    state = all_motions.state(clip, time)
    sim = in_mujoco(character, len(clip))
    put(sim, torch.arange(len(clip)), state)
    lowest = ml.lowest_points(character, *ml.forward_kinematics(character, state.root_position, state.rotations))
    for env in range(len(clip)):
        data = mujoco_data(sim, env)
        theirs = np.full(15, np.inf)
        for geom in range(sim.model.ngeom):
            body = sim.model.geom_bodyid[geom] - 1
            up = np.abs(data.geom_xmat[geom].reshape(3, 3)[2])  # world Z along the geom's axes
            size = sim.model.geom_size[geom]
            if body < 0:
                continue
            reach = {
                mujoco.mjtGeom.mjGEOM_SPHERE: size[0],
                mujoco.mjtGeom.mjGEOM_CAPSULE: size[0] + up[2] * size[1],
                mujoco.mjtGeom.mjGEOM_BOX: up @ size,
            }[mujoco.mjtGeom(sim.model.geom_type[geom])]
            theirs[body] = min(theirs[body], data.geom_xpos[geom][2] - reach)
        np.testing.assert_allclose(lowest[env].numpy(), theirs, atol=1e-5)


def test_dof_positions_by_hand(character):
    rotations = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(15, 1)
    names = character.body_names
    rotations[names.index("torso")] = ml.quat_from_rotvec(torch.tensor([0.3, -0.2, 0.5]))
    bent = [0.0, -0.5, 0.0, math.sqrt(0.75)]  # by 60 degrees
    rotations[names.index("left_lower_arm")] = torch.tensor(bent)
    position = ml.dof_positions(character, rotations)
    expected = torch.zeros(28)
    expected[:3] = torch.tensor([0.3, -0.2, 0.5])
    expected[character.dof_names.index("left_elbow")] = -math.pi / 3
    torch.testing.assert_close(position, expected, atol=1e-6, rtol=0)


def test_dof_positions_round_trip(character):
    dof = 2.0 * torch.rand(6, 28, generator=torch.Generator().manual_seed(0)) - 1.0
    root = ml.quat_from_yaw(torch.arange(6.0))
    rotations = ml.rotations_from_dofs(character, root, dof)
    torch.testing.assert_close(rotations[:, 0], root)
    torch.testing.assert_close(ml.dof_positions(character, rotations), dof, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(), (0,), (6,), (2, 3), (1, 2, 3)])
def test_kinematics_of_any_batch_shape(character, shape):
    generator = torch.Generator().manual_seed(0)
    dof = torch.rand(6, 28, generator=generator)
    root = ml.quat_from_rotvec(torch.rand(6, 3, generator=generator))
    rotations = ml.rotations_from_dofs(character, root, dof)
    position, rotation = ml.forward_kinematics(character, root[:, :3], rotations)
    lowest = ml.lowest_points(character, position, rotation)
    n = math.prod(shape)

    def shaped(x):
        return x[:n].reshape(shape + x.shape[1:])

    mine = ml.rotations_from_dofs(character, shaped(root), shaped(dof))
    torch.testing.assert_close(mine, shaped(rotations))
    torch.testing.assert_close(ml.dof_positions(character, mine), shaped(dof), atol=1e-6, rtol=0)
    there = ml.forward_kinematics(character, shaped(root)[..., :3], mine)
    torch.testing.assert_close(there, (shaped(position), shaped(rotation)))
    torch.testing.assert_close(ml.lowest_points(character, *there), shaped(lowest))


def test_turning_a_state(walk):
    """A quarter turn about Z takes X to Y, in place and in direction; joints and forward speed stay."""
    state = walk.state(torch.tensor([0, 0]), torch.tensor([0.1, 0.9]))
    turned = ml.turn_state(state, t64(0, 0, HALF, HALF).float().expand(2, 4))
    for name in ("root_position", "root_velocity", "root_angular_velocity"):
        x, y, z = getattr(state, name).unbind(-1)
        torch.testing.assert_close(getattr(turned, name), torch.stack((-y, x, z), -1), atol=1e-6, rtol=0)
    assert turned.rotations[:, 1:].equal(state.rotations[:, 1:]) and turned.dof_velocity.equal(state.dof_velocity)
    gained = ml.heading(turned.rotations[:, 0]) - ml.heading(state.rotations[:, 0])
    torch.testing.assert_close(gained, torch.full((2,), math.pi / 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(ml.forward_speed(turned), ml.forward_speed(state), atol=1e-5, rtol=0)


# ---- Clip files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, hint",
    [
        ("motions/wlk.npz", "perhaps you meant ROOT/motions/walk.npz"),
        ("walk.npz", "perhaps you meant ROOT/motions/walk.npz"),
        ("own/my_dance2.npz", "perhaps you meant own/my_dance.npz"),
        ("own/zzz.npz", "there are: my_dance"),
        ("nowhere/mine.bvh", "there are: backflip, cartwheel, crawl, "),
    ],
)
def test_a_missing_clip_is_told_what_is_like_it(root, character, tmp_path, monkeypatch, name, hint):
    """In its folder, or among ours; or which clips there are, if in its folder are none, of ours."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/my_dance.npz").touch()
    with pytest.raises(ml.InputError) as fault:
        ml.load_clip(name, character.body_names)
    said = str(fault.value)
    assert said.startswith(f"{name}: no such motion file; {hint.replace('ROOT', str(root))}")
    assert said.endswith("walk_forward") == name.startswith("nowhere")


def test_save_and_load(tmp_path, character):
    rng = np.random.default_rng(1)
    rotations = rng.normal(size=(4, 15, 4))
    rotations /= np.linalg.norm(rotations, axis=-1, keepdims=True)
    clip = ml.Clip(24.0, "wrap", rng.normal(size=(4, 3)), rotations)
    path = str(tmp_path / "clip.npz")
    save_clip(path, clip, character.body_names, "my source", "my licence")
    back = ml.load_clip(path, character.body_names)
    assert (back.fps, back.loop) == (24.0, "wrap")
    np.testing.assert_allclose(back.root_position, clip.root_position, atol=1e-6)
    np.testing.assert_allclose(back.rotations, rotations, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(back.rotations, axis=-1), 1, atol=1e-12)  # freed of the rounding
    assert os.listdir(tmp_path) == ["clip.npz"]  # no temporary file is left
    with np.load(path, allow_pickle=False) as file:
        assert (str(file["source"]), str(file["license"])) == ("my source", "my licence")
        assert file["root_position"].dtype == file["rotations"].dtype == np.float32


IDENTITY = np.tile([0.0, 0.0, 0.0, 1.0], (5, 15, 1))
BAD_ARRAYS = {  # arrays, complaint
    "lacks rotations, source": (dict(rotations=None, source=None), "lacks rotations "),
    "lacks fps": (dict(fps=None), "lacks fps"),
    "one frame": (dict(root_position=np.zeros((1, 3)), rotations=IDENTITY[:1]), "1 frame"),
    "no frame": (dict(root_position=np.zeros((0, 3)), rotations=IDENTITY[:0]), "0 frame"),
    "frame counts": (dict(root_position=np.zeros((4, 3))), r"root_position \(4, 3\), rotations \(5, 15, 4\)"),
    "a scalar position": (dict(root_position=np.zeros(())), r"expected \(F, 3\), \(F, 15, 4\)"),
    "flat rotations": (dict(rotations=IDENTITY.reshape(5, 60)), r"rotations \(5, 60\)"),
    "NaN position": (dict(root_position=np.full((5, 3), np.nan)), "NaN or infinity"),
    "infinite rotation": (dict(rotations=IDENTITY * np.array([1.0, 1.0, 1.0, np.inf])), "NaN or infinity"),
    "centimetres": (dict(root_position=np.full((5, 3), 2e4)), "the unit is metres"),
    "non-unit": (dict(rotations=IDENTITY * 1.01), r"of pelvis in frame 0 has norm 1\.01;"),
    "zero rotation": (dict(rotations=IDENTITY * 0.0), "has norm 0;"),
    "fps 0": (dict(fps=0.0), r"fps is 0\.0;"),
    "fps NaN": (dict(fps=np.nan), "fps is nan;"),
    "two fps": (dict(fps=np.array([30.0, 30.0])), "not a motion clip"),
    "fps text": (dict(fps=np.array("30")), "real numbers"),
    "complex positions": (dict(root_position=np.full((5, 3), 0.9 + 0j)), "real numbers"),
    "complex rotations": (dict(rotations=IDENTITY.astype(complex)), "real numbers"),
    "dates": (dict(root_position=np.zeros((5, 3), "datetime64[s]")), "real numbers"),
    "spans of time": (dict(fps=np.timedelta64(30, "s")), "real numbers"),
    "true and false": (dict(rotations=IDENTITY.astype(bool)), "real numbers"),
    "objects": (dict(root_position=np.zeros((5, 3), object)), "allow_pickle"),
    "records": (dict(root_position=np.zeros((5, 3), "f4,f4")), "real numbers"),
    "loop mode": (dict(loop=np.array("bounce")), "'bounce'"),
    "text positions": (dict(root_position=np.full((5, 3), "1.0")), "real numbers"),
}


@pytest.mark.parametrize("arrays, complaint", BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_bad_clips(write_clip, character, arrays, complaint):
    path = write_clip(**arrays)
    with pytest.raises(ml.InputError, match=complaint) as error:
        ml.load_clip(path, character.body_names)
    assert path in str(error.value) and "\n" not in str(error.value)


def test_a_clip_of_another_skeleton(write_clip, character):
    names = list(character.body_names)
    names[2] = "skull"
    with pytest.raises(ml.InputError, match=r"skeleton.*head.*skull"):
        ml.load_clip(write_clip(body_names=np.array(names)), character.body_names)
    swapped = np.array(character.body_names)[[0, 2, 1, *range(3, 15)]]
    with pytest.raises(ml.InputError, match=r"skeleton.*order"):
        ml.load_clip(write_clip(body_names=swapped), character.body_names)
    with pytest.raises(ml.InputError, match="skeleton"):
        fewer = write_clip(body_names=np.array(character.body_names[:14]), rotations=IDENTITY[:, :14])
        ml.load_clip(fewer, character.body_names)


def test_files_that_are_no_clips(tmp_path, write_clip, character, payload):
    whole = open(write_clip(frames=50), "rb").read()
    proof = tmp_path / "executed"
    contents = {
        "empty.npz": b"",
        "text.npz": b"this is no archive",
        "truncated.npz": whole[: len(whole) // 2],
        "array.npz": whole[:-30],
        "pickle.npz": pickle.dumps(payload(proof)),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    broken = bytearray(whole)
    broken[len(whole) // 3] ^= 0xFF  # fails the archive's checksum
    (tmp_path / "flipped.npz").write_bytes(broken)
    names = np.array([payload(proof)], dtype=object)  # pickled inside an otherwise good archive
    with open(tmp_path / "inside.npz", "wb") as file:
        np.savez(file, fps=10.0, loop="clamp", body_names=names, root_position=np.zeros((5, 3)), rotations=IDENTITY)
    for name in [*contents, "flipped.npz", "inside.npz", "none.npz"]:
        with pytest.raises(ml.InputError) as error:
            ml.load_clip(str(tmp_path / name), character.body_names)
        assert name in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "walk.bvh").write_text("HIERARCHY")
    with pytest.raises(ml.InputError, match=rf"; python motions/convert.py {tmp_path}/walk.bvh makes one of BVH"):
        ml.load_clip(str(tmp_path / "walk.bvh"), character.body_names)
    with pytest.raises(ml.InputError):
        ml.load_clip(str(tmp_path), character.body_names)  # a folder
    assert not proof.exists()


def test_a_clip_that_unpacks_to_too_much(write_clip, character):
    path = Path(write_clip())
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, 2**30 + 1)  # what its first array claims to unpack to
    path.write_bytes(data)
    with pytest.raises(ml.InputError, match="more than 1 GiB"):
        ml.load_clip(str(path), character.body_names)


def test_whatever_goes_wrong_is_one_line():
    for error, line in (
        (KeyError("fps"), "a.npz: not a clip (KeyError: 'fps')"),
        (ValueError("two\n\n  lines"), "a.npz: not a clip (ValueError: two lines)"),
        (OSError(13, "Permission denied"), "a.npz: cannot read this file: Permission denied"),
        (OSError("odd"), "a.npz: cannot read this file: odd"),
        (ml.InputError("said already"), "said already"),
    ):
        with pytest.raises(ml.InputError) as caught, ml.reading("a.npz", "a clip"):
            raise error
        assert str(caught.value) == line
    with pytest.raises(KeyboardInterrupt), ml.reading("a.npz", "a clip"):
        raise KeyboardInterrupt


def test_find_clips(tmp_path, write_clip):
    write_clip("b.npz")
    write_clip("a.npz")
    (tmp_path / "notes.txt").write_text("not a clip")
    both = [str(tmp_path / "a.npz"), str(tmp_path / "b.npz")]
    assert ml.find_clips(str(tmp_path)) == (both, [1.0, 1.0], [1.0, 1.0], False)
    assert ml.find_clips(str(tmp_path / "a.npz")) == (both[:1], [1.0], [1.0], False)
    (tmp_path / "sub").mkdir()
    data = tmp_path / "sub" / "set.json"
    entries = [{"file": "../b.npz", "weight": 3}, {"file": "../a.npz", "rates": [1, 1.5]}]
    data.write_text(json.dumps({"clips": entries, "mirror": True}))
    files, weights, rates, mirror = ml.find_clips(str(data))
    assert [os.path.realpath(file) for file in files] == [str(tmp_path / name) for name in ("b.npz", "a.npz", "a.npz")]
    assert (weights, rates, mirror) == ([3.0, 0.5, 0.5], [1.0, 1.0, 1.5], True)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"clips": []}',
        '{"clips": {}}',
        '{"clips": [{"file": "a.npz", "wieght": 2}]}',
        '{"clips": 3}',
        '{"clips": ["a.npz"]}',
        '{"clips": [{"weight": 1}]}',
        '{"clips": [{"file": 7}]}',
        '{"clips": [{"file": "a.npz", "weight": "much"}]}',
        '{"clips": [{"file": "a.npz", "weight": 0}]}',
        '{"clips": [{"file": "a.npz", "weight": -1}]}',
        '{"clips": [{"file": "a.npz", "weight": NaN}]}',
        '{"clips": [{"file": "a.npz", "weight": Infinity}]}',
        '{"clips": [{"file": "a.npz", "rates": []}]}',
        '{"clips": [{"file": "a.npz"}], "mirror": "yes"}',
        '{"clips": [{"file": "a.npz"}], "weight": 2}',
        '{"clips": [{"file": "a.npz", "rates": 2}]}',
        '{"clips": [{"file": "a.npz", "rates": [1, 0]}]}',
        "[" * 100_000,
    ],
)
def test_bad_dataset_files(tmp_path, write_clip, text):
    write_clip("a.npz")
    path = tmp_path / "set.json"
    path.write_text(text)
    with pytest.raises(ml.InputError) as error:
        ml.find_clips(str(path))
    assert "set.json" in str(error.value) and "\n" not in str(error.value)


def test_a_clip_at_several_rates(tmp_path, write_clip, character):
    write_clip("a.npz")
    write_clip("b.npz")
    path = tmp_path / "set.json"
    path.write_text('{"clips": [{"file": "a.npz", "weight": 3, "rates": [1, 1.5]}, {"file": "b.npz"}]}')
    motions = ml.MotionLib(str(path), character)
    plain = ml.MotionLib(str(tmp_path / "a.npz"), character)
    assert [os.path.basename(file) for file in motions.files] == ["a.npz", "a.npz", "b.npz"]
    assert motions.weight.tolist() == pytest.approx([0.375, 0.375, 0.25])
    assert motions.length[1] == pytest.approx(float(plain.length[0]) / 1.5)
    time = torch.linspace(0, 0.3, 7)
    own = plain.state(torch.zeros(7, dtype=torch.long), 1.5 * time)
    fast = motions.state(torch.ones(7, dtype=torch.long), time)
    for name, x in fast._asdict().items():
        expected = getattr(own, name) * (1.5 if "velocity" in name else 1.0)
        torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)


def test_missing_dataset_and_empty_folder(tmp_path, character):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ml.InputError, match=str(path)):
            ml.find_clips(str(path))
    (tmp_path / "set.json").write_text('{"clips": [{"file": "gone.npz"}]}')
    with pytest.raises(ml.InputError, match=r"gone\.npz"):
        ml.MotionLib(str(tmp_path / "set.json"), character)


# ---- Sampling, interpolation and loops -------------------------------------------------------------------------------


def same_rotation(a, b, atol):
    torch.testing.assert_close(a * torch.sign((a * b).sum(-1, keepdim=True)), b, atol=atol, rtol=0)


def test_frames_are_reproduced(all_motions):
    for number, clip in enumerate(all_motions.clips):
        # a loop's last frame is the next cycle's first
        frames = np.arange(len(clip.root_position) - (clip.loop == "wrap"))
        time = torch.tensor(frames / clip.fps, dtype=torch.float32)
        state = all_motions.state(torch.full((len(frames),), number), time)
        # a time in single precision is off by up to 1e-7 of itself: 1e-5 of a frame
        position = torch.tensor(clip.root_position[frames], dtype=torch.float32)
        torch.testing.assert_close(state.root_position, position, atol=1e-5, rtol=0)
        same_rotation(state.rotations, torch.tensor(clip.rotations[frames], dtype=torch.float32), 2e-5)


def test_halfway_between_frames(write_clip, character):
    position = np.zeros((2, 3)) + [[0, 0, 0.9], [1, 0, 1.1]]
    rotations = IDENTITY[:2].copy()
    rotations[1, 0] = [0, 0, HALF, HALF]
    motions = ml.MotionLib(write_clip(root_position=position, rotations=rotations, fps=2.0), character)
    state = motions.state(torch.tensor([0]), torch.tensor([0.25]))
    torch.testing.assert_close(state.root_position, torch.tensor([[0.5, 0.0, 1.0]]))
    eighth = torch.tensor([0.0, 0.0, math.sin(math.pi / 8), math.cos(math.pi / 8)])
    torch.testing.assert_close(state.rotations[0, 0], eighth)
    torch.testing.assert_close(state.root_velocity, torch.tensor([[2.0, 0.0, 0.4]]))
    torch.testing.assert_close(state.root_angular_velocity, torch.tensor([[0.0, 0.0, math.pi]]))
    assert state.dof_velocity.abs().max() == 0
    assert motions.length.tolist() == [0.5]


def square_walk(write_clip, loop="wrap"):
    """A cycle of 1 s: a metre along +X, then in its last quarter a left turn by 90 degrees; it bobs and ends higher."""
    yaw = np.array([0.0, 0.0, 0.0, math.pi / 2])[[0, 1, 2, 2, 3]]
    rotations = IDENTITY.copy()
    rotations[:, 0] = np.stack((0 * yaw, 0 * yaw, np.sin(yaw / 2), np.cos(yaw / 2)), -1)
    x = [0.0, 1 / 3, 2 / 3, 1.0, 1.0]
    position = np.stack((x, [0.0] * 5, [0.9, 1.0, 0.9, 0.8, 0.95]), -1) + [5.0, 7.0, 0.0]
    return write_clip("square.npz", loop=np.array(loop), fps=4.0, root_position=position, rotations=rotations)


def test_a_turning_loop_walks_a_square(write_clip, character):
    motions = ml.MotionLib(square_walk(write_clip), character)
    cycles = torch.arange(9)
    state = motions.state(torch.zeros(9, dtype=torch.long), cycles.float())
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]) + torch.tensor([5.0, 7.0])
    torch.testing.assert_close(state.root_position[:, :2], corners[cycles % 4], atol=1e-5, rtol=0)
    torch.testing.assert_close(state.root_position[:, 2], torch.full((9,), 0.9))  # the height starts afresh
    same_rotation(state.rotations[:, 0], ml.quat_from_yaw(cycles * math.pi / 2), 1e-5)
    # a quarter into the second cycle: a third of a metre to the left of the corner, moving left at 4/3 m/s
    state = motions.state(torch.tensor([0]), torch.tensor([1.25]))
    torch.testing.assert_close(state.root_position[0], torch.tensor([6.0, 7 + 1 / 3, 1.0]))
    torch.testing.assert_close(state.root_velocity[0, :2], torch.tensor([0.0, 4 / 3]), atol=1e-5, rtol=0)
    # backwards: the cycle before the first one ended where the first begins
    state = motions.state(torch.tensor([0]), torch.tensor([-1.0]))
    torch.testing.assert_close(state.root_position[0, :2], torch.tensor([5.0, 8.0]), atol=1e-5, rtol=0)


def test_a_loop_that_is_made_straight(character, root):
    """The walk turns left by 6.9 degrees a cycle. Straight, it goes on and on along one line, in the same steps."""
    path = str(root / "motions" / "walk.npz")
    turning = ml.MotionLib(path, character)
    motions = ml.MotionLib(path, character, straight=True)
    assert math.degrees(turning.turn) == pytest.approx(6.886, abs=1e-3)
    assert motions.turn.abs().max() < 1e-6
    time = torch.linspace(0, 20, 601)
    clip = torch.zeros(601, dtype=torch.long)
    state = motions.state(clip, time)
    way = state.root_position - state.root_position[0]
    line = motions.way[0] / motions.way[0].norm()
    assert torch.linalg.cross(way, line.expand(601, 3))[:, 2].abs().max() < 0.1  # off the line [m]
    assert ml.heading(state.rotations[:, 0]).abs().max() < math.radians(15)
    # 6.9 degrees on 1.27 s is what the yaw rate lost; seen from the root, nothing else has changed
    before = turning.state(clip, time)
    lost = before.root_angular_velocity[:, 2] - state.root_angular_velocity[:, 2]
    torch.testing.assert_close(lost, (turning.turn / turning.length).expand(601), atol=2e-3, rtol=0)
    torch.testing.assert_close(ml.forward_speed(state), ml.forward_speed(before), atol=1e-3, rtol=0)
    torch.testing.assert_close(state.rotations[:, 1:], before.rotations[:, 1:])
    torch.testing.assert_close(state.root_position[:, 2], before.root_position[:, 2])


def test_what_is_not_made_straight(write_clip, character):
    """A loop that is meant to turn is refused; what does not loop stays as it is."""
    with pytest.raises(ml.InputError, match=r"square.npz: turns 90 degrees a cycle; --no-keep-course"):
        ml.MotionLib(square_walk(write_clip), character, straight=True)
    once = square_walk(write_clip, loop="clamp")
    free = ml.MotionLib(once, character)
    motions = ml.MotionLib(once, character, straight=True)
    assert torch.equal(motions.rotations, free.rotations) and torch.equal(motions.root_position, free.root_position)


def test_mean_forward_speed(write_clip, character, tmp_path):
    sideways = np.stack((np.zeros(5), np.linspace(0, 1.0, 5), np.full(5, 0.9)), -1)  # the character faces +x
    write_clip("sideways.npz", root_position=sideways)
    fast = np.stack((np.linspace(0, 2.0, 5), np.zeros(5), np.full(5, 0.9)), -1)  # 2 m in 0.4 s
    write_clip("fast.npz", root_position=fast)
    path = tmp_path / "set.json"
    clips = [{"file": "sideways.npz", "weight": 3.0}, {"file": "fast.npz", "weight": 1.0}]
    path.write_text(json.dumps({"clips": clips}))
    assert ml.MotionLib(str(path), character).statistics()[1] == pytest.approx(0.25 * 5.0, abs=1e-5)


def in_first_heading(motions, clip, cycle, state):
    """The state turned back by the heading that `cycle` cycles gain, without its horizontal position."""
    back = ml.quat_from_yaw(-cycle * motions.turn[clip])
    return dict(
        height=state.root_position[:, 2],
        root=ml.quat_multiply(back, state.rotations[:, 0]),
        joints=state.rotations[:, 1:],
        velocity=ml.quat_rotate(back, state.root_velocity),
        angular_velocity=ml.quat_rotate(back, state.root_angular_velocity),
        dof_velocity=state.dof_velocity,
    )


@given(st.integers(1, 8), st.floats(0.02, 0.98))
def test_a_cycle_later_the_pose_is_the_same(all_motions, cycle, phase):
    clip = all_motions.loop.nonzero()[:, 0]
    length = all_motions.length[clip]
    now = in_first_heading(all_motions, clip, 0, all_motions.state(clip, phase * length))
    later = in_first_heading(all_motions, clip, cycle, all_motions.state(clip, (phase + cycle) * length))
    for name in ("height", "velocity", "angular_velocity", "dof_velocity"):
        # t + k L is exact to 1e-6 s, accelerations reach 1e3
        torch.testing.assert_close(now[name], later[name], atol=0.02, rtol=1e-3)
    for name in ("root", "joints"):
        same_rotation(now[name], later[name], 1e-3)


def test_the_seam_is_continuous(all_motions):
    clip = all_motions.loop.nonzero()[:, 0]
    assert len(clip) == 16
    for cycle in (1, 2, 5):
        seam = cycle * all_motions.length[clip]
        before, after = all_motions.state(clip, seam - 1e-5), all_motions.state(clip, seam + 1e-5)
        torch.testing.assert_close(before.root_position[:, :2], after.root_position[:, :2], atol=1e-3, rtol=0)
        yaw = [ml.heading(state.rotations[:, 0]) for state in (before, after)]
        torch.testing.assert_close(*yaw, atol=1e-3, rtol=0)
        for name in ("root_velocity", "root_angular_velocity", "dof_velocity"):
            torch.testing.assert_close(getattr(before, name), getattr(after, name), atol=0.05, rtol=0)


def test_a_clip_that_does_not_loop_holds_its_ends(write_clip, character):
    motions = ml.MotionLib(square_walk(write_clip, "clamp"), character)
    clip = torch.zeros(3, dtype=torch.long)
    first, last = motions.state(clip[:1], torch.tensor([0.0])), motions.state(clip[:1], torch.tensor([1.0]))
    for time, end in ((torch.tensor([-0.1, -3.0, -1e4]), first), (torch.tensor([1.001, 2.0, 1e4]), last)):
        for mine, theirs in zip(motions.state(clip, time), end):
            torch.testing.assert_close(mine, theirs.expand_as(mine))
    torch.testing.assert_close(last.root_position[0], torch.tensor([6.0, 7.0, 0.95]))
    # one-sided differences at the ends: nothing is known beyond them
    torch.testing.assert_close(first.root_velocity[0], torch.tensor([4 / 3, 0.0, 0.4]), atol=1e-5, rtol=0)
    torch.testing.assert_close(last.root_velocity[0], torch.tensor([0.0, 0.0, 0.6]), atol=1e-5, rtol=0)


def test_sampling_leaves_room_for_the_span(write_clip, character):
    generator = torch.Generator().manual_seed(3)
    for loop, span, latest in (("clamp", 0.25, 0.75), ("clamp", 0.0, 1.0), ("clamp", 5.0, 0.0), ("wrap", 0.25, 1.0)):
        motions = ml.MotionLib(square_walk(write_clip, loop), character)
        clip, time = motions.sample(2000, span, generator)
        assert clip.dtype == torch.long and set(clip.tolist()) == {0}
        assert time.min() >= 0.0 and time.max() <= latest
        if latest:  # uniform: every tenth holds 200 of the 2000, give or take
            assert torch.histc(time / latest, 10, 0.0, 1.0).sub(200).abs().max() < 80


def test_sampling_follows_the_weights(write_clip, character, tmp_path):
    for name in ("a", "b", "c"):
        write_clip(f"{name}.npz", frames=3 if name == "c" else 30)  # the length does not matter
    path = tmp_path / "set.json"
    clips = [{"file": f"{name}.npz", "weight": weight} for name, weight in (("a", 1), ("b", 2), ("c", 5))]
    path.write_text(json.dumps({"clips": clips}))
    motions = ml.MotionLib(str(path), character)
    clip, time = motions.sample(8000, 0.1, torch.Generator().manual_seed(0))
    count = torch.bincount(clip, minlength=3)
    assert (count - torch.tensor([1000, 2000, 5000])).abs().max() < 200  # 4.5 standard deviations
    assert time[clip == 2].max() <= 0.1 < time[clip == 0].max()
    again = motions.sample(8000, 0.1, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], clip) and torch.equal(again[1], time)


def test_any_batch_shape(all_motions):
    clip, time = torch.arange(20).reshape(4, 5), torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    state = all_motions.state(clip, time)
    assert [tuple(x.shape) for x in state] == [(4, 5, 3), (4, 5, 15, 4), (4, 5, 3), (4, 5, 3), (4, 5, 28)]
    one = all_motions.state(clip[2, 3], time[2, 3])
    for mine, theirs in zip(one, state):
        torch.testing.assert_close(mine, theirs[2, 3])


def test_statistics_by_hand(write_clip, character, tmp_path):
    """Clips of one pose: means by weight."""
    bent = IDENTITY.copy()
    bent[:, character.body_names.index("left_shin")] = [0.0, 0.5, 0.0, math.sqrt(0.75)]  # the knee by 60 degrees
    write_clip("a.npz")
    write_clip("b.npz", root_position=np.tile([0.0, 0.0, 0.8], (5, 1)), rotations=bent)
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"clips": [{"file": "a.npz", "weight": 1.0}, {"file": "b.npz", "weight": 2.0}]}))
    mean, speed = ml.MotionLib(str(path), character).statistics()
    knee = character.dof_names.index("left_knee")
    assert mean[knee] == pytest.approx(2 / 3 * math.pi / 3, abs=1e-5) and mean.abs().sum() == pytest.approx(mean[knee])
    assert speed == pytest.approx(0.0, abs=1e-6)


# ---- Mirror images ---------------------------------------------------------------------------------------------------


def test_a_mirror_image(character, root):
    clip = ml.load_clip(str(root / "motions/turn_left1.npz"), character.body_names)
    other = ml.mirror_clip(clip, character)
    twice = ml.mirror_clip(other, character)
    np.testing.assert_allclose(twice.rotations, clip.rotations)
    np.testing.assert_allclose(twice.root_position, clip.root_position)
    body, mirrored = [
        ml.forward_kinematics(character, torch.tensor(c.root_position), torch.tensor(c.rotations))[0]
        for c in (clip, other)
    ]
    names = [name.replace("left", "?").replace("right", "left").replace("?", "right") for name in character.body_names]
    swapped = mirrored[:, [character.body_names.index(name) for name in names]]
    torch.testing.assert_close(swapped, body * t64(1.0, -1.0, 1.0), atol=1e-5, rtol=0)


def test_mirrored_clips_are_as_likely_and_turn_the_other_way(root, character):
    motions = ml.MotionLib(str(root / "motions/locomotion.json"), character)
    assert len(motions.files) == len(motions.clips) == 36 and motions.files[18] == f"{motions.files[0]} (mirrored)"
    torch.testing.assert_close(motions.weight[:18], motions.weight[18:])
    torch.testing.assert_close(motions.turn[:18], -motions.turn[18:], atol=1e-5, rtol=0)
    assert motions.weight[15] == pytest.approx(2 / 30)  # the run: 2 of 5, half of it mirrored, a third at each rate
    clip, _ = motions.sample(20_000, 1 / 30, torch.Generator().manual_seed(0))
    shares = torch.bincount(clip, minlength=36) / 20_000
    torch.testing.assert_close(shares, motions.weight, atol=0.01, rtol=0)


def test_an_asymmetric_skeleton_has_no_mirror_image(character, root):
    lame = character._replace(offsets=character.offsets * torch.linspace(1, 1.2, 15)[:, None])
    with pytest.raises(ml.InputError, match="no mirror images"):
        ml.mirror_clip(ml.load_clip(str(root / "motions/walk.npz"), character.body_names), lame)


def test_joints_that_no_simulator_could_follow(write_clip, character):
    """A knee turned about X, and a hand that turns at all; a knee about its own axis Y and a hip about any are fine."""
    names = character.body_names
    for body, q, fault in (
        ("left_shin", [0.1, 0.0, 0.0, math.sqrt(0.99)], "left_shin turns off its hinge axis"),
        ("right_hand", [0.0, 0.1, 0.0, math.sqrt(0.99)], "right_hand .* is welded and turns, in frame 3"),
        ("left_shin", [0.0, 0.1, 0.0, math.sqrt(0.99)], None),
        ("left_thigh", [0.1, 0.0, 0.0, math.sqrt(0.99)], None),
    ):
        rotations = IDENTITY.copy()
        rotations[3, names.index(body)] = q
        path = write_clip(rotations=rotations)
        if fault is None:
            ml.MotionLib(path, character)
        else:
            with pytest.raises(ml.InputError, match=fault):
                ml.MotionLib(path, character)


@pytest.mark.parametrize("height, fault", [(100.9, True), (-99.0, True), (2.1, True), (1.5, False), (0.0, False)])
def test_a_clip_that_is_nowhere_near_the_ground(write_clip, character, height, fault):
    """Up there every episode would end in its first step, down there all heights be other ones. Soles: .9 m lower."""
    position = np.tile([0.0, 0.0, height], (5, 1))
    position[0, 2] += 0.05
    path = write_clip(root_position=position)
    if not fault:
        ml.MotionLib(path, character)
    else:
        with pytest.raises(ml.InputError, match=r"clip.npz: never within 1 m of the ground .* --lift"):
            ml.MotionLib(path, character)


def test_a_flight_that_begins_on_the_ground(write_clip, character):
    position = np.tile([0.0, 0.0, 30.0], (5, 1))
    position[2, 2] = 0.9
    ml.MotionLib(write_clip(root_position=position), character)


# ---- Writing files ---------------------------------------------------------------------------------------------------


def test_write_file(tmp_path):
    path = tmp_path / "a.bin"
    for data in (b"first", b"", b"longer than the first"):
        files.write_file(str(path), data)
        assert path.read_bytes() == data and os.listdir(tmp_path) == ["a.bin"]


def test_a_written_file_has_the_permissions_of_any_other(tmp_path):
    for mask in (0o022, 0o007):
        before = os.umask(mask)
        try:
            files.write_file(str(tmp_path / "mine"), b"")
            (tmp_path / "plain").write_bytes(b"")
        finally:
            os.umask(before)
        modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("mine", "plain")]
        assert modes == [0o666 & ~mask] * 2
        (tmp_path / "plain").unlink()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_is_written_as_a_whole_or_not_at_all(tmp_path, monkeypatch, step, error):
    """At the moment of failure all stands beside the old file; afterwards there is only the old file."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(*_):
        (other,) = set(os.listdir(tmp_path)) - {"a.bin"}
        assert (tmp_path / other).read_bytes() == b"new" and path.read_bytes() == b"old"
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        files.write_file(str(path), b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none/a.bin", tmp_path / "folder"):
        with pytest.raises(OSError):
            files.write_file(str(path), b"new")
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == []


def test_no_link_is_followed(tmp_path, monkeypatch):
    """Neither one at the temporary name, were it guessed, nor one at the name itself, which is replaced."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "a.bin.tmp").symlink_to(victim)
    (tmp_path / "a.bin").symlink_to(victim)
    files.write_file(str(tmp_path / "a.bin"), b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"new" and not (tmp_path / "a.bin").is_symlink()
    monkeypatch.setattr(os, "urandom", bytes)  # zeros
    guessed = tmp_path / "a.bin.0000000000000000.tmp"
    guessed.symlink_to(victim)
    with pytest.raises(FileExistsError):
        files.write_file(str(tmp_path / "a.bin"), b"newer")
    assert guessed.is_symlink() and (tmp_path / "a.bin").read_bytes() == b"new"
    assert victim.read_bytes() == b"precious"


def test_a_clip_is_written_by_write_file(tmp_path, character, monkeypatch):
    written = {}
    monkeypatch.setattr(clips, "write_file", written.__setitem__)
    save_clip("clip.npz", ml.Clip(10.0, "clamp", np.zeros((5, 3)), IDENTITY), character.body_names, "a", "b")
    assert list(written) == ["clip.npz"]
    (tmp_path / "clip.npz").write_bytes(written["clip.npz"])
    assert ml.load_clip(str(tmp_path / "clip.npz"), character.body_names).fps == 10.0
