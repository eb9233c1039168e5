"""motion_lib: quaternions, the character, forward kinematics and velocities against MuJoCo, clips, loops, sampling, pose error."""

import json
import math
import os
import pickle

import numpy as np
import pytest
import torch
from conftest import put
from hypothesis import given
from hypothesis import strategies as st

import amp_ppo_isaacgym as amp
import motion_lib as ml

CPU = torch.device("cpu")


def t64(*values):
    return torch.tensor(values, dtype=torch.float64)


# ----------------------------------------------------------------------------------------------------------------------------------
# Quaternions
# ----------------------------------------------------------------------------------------------------------------------------------

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


# ----------------------------------------------------------------------------------------------------------------------------------
# The character file
# ----------------------------------------------------------------------------------------------------------------------------------


def test_bodies_of_the_humanoid(character):
    arm = ["{}_upper_arm", "{}_lower_arm", "{}_hand"]
    leg = ["{}_thigh", "{}_shin", "{}_foot"]
    limbs = [name.format(side) for limb in (arm, leg) for side in ("right", "left") for name in limb]
    assert character.body_names == ["pelvis", "torso", "head"] + limbs
    parent = dict(zip(character.body_names, (character.body_names[p] if p >= 0 else None for p in character.parents)))
    assert parent["pelvis"] is None and parent["head"] == "torso" and parent["left_hand"] == "left_lower_arm"
    assert (
        parent["right_upper_arm"] == "torso"
        and parent["left_thigh"] == "pelvis"
        and parent["right_foot"] == "right_shin"
    )
    assert character.offsets[0].tolist() == [0, 0, 0]  # where the root stands is not its offset
    torch.testing.assert_close(character.offsets[13], torch.tensor([0.0, 0.0, -0.421546]))
    torch.testing.assert_close(character.offsets[3], torch.tensor([-0.02405, -0.18311, 0.24350]))


def test_dofs_of_the_humanoid(character):
    assert len(character.dof_names) == 28 and len(character.dof_body.tolist()) == 28
    dofs = {name: d for d, name in enumerate(character.dof_names)}
    assert character.dof_names[:4] == ["abdomen_x", "abdomen_y", "abdomen_z", "neck_x"]
    assert character.dof_names[6:11] == [
        "right_shoulder_x",
        "right_shoulder_y",
        "right_shoulder_z",
        "right_elbow",
        "left_shoulder_x",
    ]
    bodies = {name: character.body_names[character.dof_body[d]] for name, d in dofs.items()}
    assert (
        bodies["abdomen_z"] == "torso"
        and bodies["left_elbow"] == "left_lower_arm"
        and bodies["right_ankle_x"] == "right_foot"
    )
    assert character.dof_axis[dofs["left_hip_z"]].tolist() == [0, 0, 1] and character.dof_axis[
        dofs["right_knee"]
    ].tolist() == [
        0,
        1,
        0,
    ]
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
    assert (
        character.hull_body.shape == (42,)
        and character.hull_point.shape == (42, 3)
        and character.hull_radius.shape == (42,)
    )
    foot = character.hull_point[character.hull_body == character.body_names.index("left_foot")]
    assert foot.shape == (8, 3)
    torch.testing.assert_close(foot.amin(0), torch.tensor([-0.0435, -0.045, -0.05]))
    torch.testing.assert_close(foot.amax(0), torch.tensor([0.1335, 0.045, 0.005]))
    thigh = character.hull_body == character.body_names.index("right_thigh")
    assert sorted(character.hull_point[thigh, 2].tolist()) == pytest.approx([-0.36, -0.06])
    assert character.hull_radius[thigh].tolist() == pytest.approx([0.055, 0.055])


@pytest.mark.parametrize(
    "text",
    [
        "no XML at all",
        "<mujoco/>",
        "<mujoco><worldbody/></mujoco>",
        # two hinges on a body
        '<mujoco><worldbody><body name="a"><body name="b"><joint name="x"/><joint name="y"/></body></body></worldbody></mujoco>',
        # a joint without a motor
        '<mujoco><worldbody><body name="a"><body name="b"><joint name="x" axis="1 0 0" range="0 1" stiffness="1" damping="1"/>'
        "</body></body></worldbody></mujoco>",
        # a joint without gains
        '<mujoco><worldbody><body name="a"><body name="b"><joint name="x" axis="1 0 0" range="0 1"/></body></body></worldbody>'
        '<actuator><motor joint="x" gear="1"/></actuator></mujoco>',
        # a geom without a size
        '<mujoco><worldbody><body name="a"><geom type="sphere"/></body></worldbody></mujoco>',
        # a number that is none
        '<mujoco><worldbody><body name="a"><body name="b" pos="0 0 high"/></body></worldbody></mujoco>',
    ],
)
def test_bad_character_files(tmp_path, text):
    path = tmp_path / "character.xml"
    path.write_text(text)
    with pytest.raises(ml.InputError) as error:
        ml.load_character(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_character_file(tmp_path):
    for path in (tmp_path / "none.xml", tmp_path):
        with pytest.raises(ml.InputError, match="cannot read"):
            ml.load_character(str(path))


# ----------------------------------------------------------------------------------------------------------------------------------
# Forward kinematics and velocities against MuJoCo
# ----------------------------------------------------------------------------------------------------------------------------------


def frames_of_all_clips(motions, stride=1):
    """Clip numbers and times of every stride-th frame."""
    clips = [torch.full((int(n) // stride + 1,), c) for c, n in enumerate(motions.last)]
    times = [torch.arange(len(c)) * stride / motions.fps[c[0]] for c in clips]
    return torch.cat(clips), torch.cat(times)


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
    sim = amp.MujocoSim(amp.Args(substeps=3), character, len(clip), CPU)
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
        sim = amp.MujocoSim(amp.Args(substeps=3), character, 4, CPU)
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
    """Joints and root turn at constant rates about fixed axes, and the root moves: rate (15, 3) [rad/s], velocity (3,) [m/s]."""
    generator = torch.Generator().manual_seed(seed)
    rate = torch.rand(15, 3, generator=generator, dtype=torch.float64) * 2 - 1
    return rate, t64(0.7, -0.4, 0.2)


def steady_pose(character, rate, velocity, time):
    rate = rate.clone()
    for body in range(1, 15):
        dofs = character.dof_body.tolist().count(body)
        rate[body] *= {3: t64(1, 1, 1), 1: t64(0, 1, 0), 0: t64(0, 0, 0)}[dofs]
    return t64(0, 0, 3) + velocity * time, ml.quat_from_rotvec(rate * time)


def test_body_velocities_against_mujoco(character, write_clip):
    """A state of the library, set in the simulator, moves every body as the motion does: world velocities that MuJoCo gives for the
    bodies, against finite differences of their positions."""
    mujoco = pytest.importorskip("mujoco")
    rate, velocity = steady_motion()
    poses = [steady_pose(character, rate, velocity, i / 5) for i in range(6)]
    path = write_clip(
        fps=5.0, root_position=torch.stack([p for p, _ in poses]), rotations=torch.stack([q for _, q in poses])
    )
    motions = ml.MotionLib(path, character)
    sim = amp.MujocoSim(amp.Args(substeps=3), character, 1, CPU)
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
    sim = amp.MujocoSim(amp.Args(substeps=3), character, len(clip), CPU)
    put(sim, torch.arange(len(clip)), state)
    lowest = ml.lowest_points(character, *ml.forward_kinematics(character, state.root_position, state.rotations))
    for env in range(len(clip)):
        data = mujoco_data(sim, env)
        theirs = np.full(15, np.inf)
        for geom in range(sim.model.ngeom):
            body, up = (
                sim.model.geom_bodyid[geom] - 1,
                np.abs(data.geom_xmat[geom].reshape(3, 3)[2]),
            )  # world Z along the geom's axes
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
    rotations[names.index("left_lower_arm")] = torch.tensor(
        [0.0, -0.5, 0.0, math.sqrt(0.75)]
    )  # the elbow bent by 60 degrees
    position = ml.dof_positions(character, rotations)
    expected = torch.zeros(28)
    expected[:3] = torch.tensor([0.3, -0.2, 0.5])
    expected[character.dof_names.index("left_elbow")] = -math.pi / 3
    torch.testing.assert_close(position, expected, atol=1e-6, rtol=0)


# ----------------------------------------------------------------------------------------------------------------------------------
# Clip files
# ----------------------------------------------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path, character):
    rng = np.random.default_rng(1)
    rotations = rng.normal(size=(4, 15, 4))
    rotations /= np.linalg.norm(rotations, axis=-1, keepdims=True)
    clip = ml.Clip(24.0, "wrap", rng.normal(size=(4, 3)), rotations)
    path = str(tmp_path / "clip.npz")
    ml.save_clip(path, clip, character.body_names, "my source", "my licence")
    back = ml.load_clip(path, character.body_names)
    assert (back.fps, back.loop) == (24.0, "wrap")
    np.testing.assert_allclose(back.root_position, clip.root_position, atol=1e-6)
    np.testing.assert_allclose(back.rotations, rotations, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(back.rotations, axis=-1), 1, atol=1e-12)  # freed of the rounding
    assert os.listdir(tmp_path) == ["clip.npz"]  # no temporary file is left
    with np.load(path, allow_pickle=False) as file:
        assert (str(file["source"]), str(file["license"])) == ("my source", "my licence")
        assert {key: file[key].dtype.name for key in ("root_position", "rotations")} == {
            "root_position": "float32",
            "rotations": "float32",
        }


IDENTITY = np.tile([0.0, 0.0, 0.0, 1.0], (5, 15, 1))
BAD_ARRAYS = {
    "lacks rotations, source": dict(rotations=None, source=None),
    "lacks fps": dict(fps=None),
    "one frame": dict(root_position=np.zeros((1, 3)), rotations=IDENTITY[:1]),
    "no frame": dict(root_position=np.zeros((0, 3)), rotations=IDENTITY[:0]),
    "frame counts": dict(root_position=np.zeros((4, 3))),
    "a scalar position": dict(root_position=np.zeros(())),
    "flat rotations": dict(rotations=IDENTITY.reshape(5, 60)),
    "NaN position": dict(root_position=np.full((5, 3), np.nan)),
    "infinite rotation": dict(rotations=IDENTITY * np.array([1.0, 1.0, 1.0, np.inf])),
    "centimetres": dict(root_position=np.full((5, 3), 2e4)),
    "non-unit": dict(rotations=IDENTITY * 1.01),
    "zero rotation": dict(rotations=IDENTITY * 0.0),
    "fps 0": dict(fps=0.0),
    "fps NaN": dict(fps=np.nan),
    "two fps": dict(fps=np.array([30.0, 30.0])),
    "fps text": dict(fps=np.array("fast")),
    "loop mode": dict(loop=np.array("bounce")),
    "text positions": dict(root_position=np.full((5, 3), "x")),
}


@pytest.mark.parametrize("arrays", BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_bad_clips(write_clip, character, arrays):
    path = write_clip(**arrays)
    with pytest.raises(ml.InputError) as error:
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
        ml.load_clip(
            write_clip(body_names=np.array(character.body_names[:14]), rotations=IDENTITY[:, :14]), character.body_names
        )


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
    with pytest.raises(ml.InputError):
        ml.load_clip(str(tmp_path), character.body_names)  # a folder
    assert not proof.exists()


def test_find_clips(tmp_path, write_clip):
    write_clip("b.npz")
    write_clip("a.npz")
    (tmp_path / "notes.txt").write_text("not a clip")
    assert ml.find_clips(str(tmp_path)) == ([str(tmp_path / "a.npz"), str(tmp_path / "b.npz")], [1.0, 1.0])
    assert ml.find_clips(str(tmp_path / "a.npz")) == ([str(tmp_path / "a.npz")], [1.0])
    (tmp_path / "sub").mkdir()
    data = tmp_path / "sub" / "set.json"
    data.write_text(json.dumps({"clips": [{"file": "../b.npz", "weight": 3}, {"file": "../a.npz"}]}))
    files, weights = ml.find_clips(str(data))
    assert [os.path.realpath(file) for file in files] == [str(tmp_path / "b.npz"), str(tmp_path / "a.npz")]
    assert weights == [3.0, 1.0]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"clips": []}',
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


def test_missing_dataset_and_empty_folder(tmp_path, character):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ml.InputError, match=str(path)):
            ml.find_clips(str(path))
    (tmp_path / "set.json").write_text('{"clips": [{"file": "gone.npz"}]}')
    with pytest.raises(ml.InputError, match=r"gone\.npz"):
        ml.MotionLib(str(tmp_path / "set.json"), character)


# ----------------------------------------------------------------------------------------------------------------------------------
# Sampling, interpolation and loops
# ----------------------------------------------------------------------------------------------------------------------------------


def same_rotation(a, b, atol):
    torch.testing.assert_close(a * torch.sign((a * b).sum(-1, keepdim=True)), b, atol=atol, rtol=0)


def test_frames_are_reproduced(all_motions):
    for number, clip in enumerate(all_motions.clips):
        frames = np.arange(
            len(clip.root_position) - (clip.loop == "wrap")
        )  # a loop's last frame is the next cycle's first
        state = all_motions.state(
            torch.full((len(frames),), number), torch.tensor(frames / clip.fps, dtype=torch.float32)
        )
        # a time in single precision is off by up to 1e-7 of itself: 1e-5 of a frame
        torch.testing.assert_close(
            state.root_position, torch.tensor(clip.root_position[frames], dtype=torch.float32), atol=1e-5, rtol=0
        )
        same_rotation(state.rotations, torch.tensor(clip.rotations[frames], dtype=torch.float32), 2e-5)


def test_halfway_between_frames(write_clip, character):
    position = np.zeros((2, 3)) + [[0, 0, 0.9], [1, 0, 1.1]]
    rotations = IDENTITY[:2].copy()
    rotations[1, 0] = [0, 0, HALF, HALF]
    motions = ml.MotionLib(write_clip(root_position=position, rotations=rotations, fps=2.0), character)
    state = motions.state(torch.tensor([0]), torch.tensor([0.25]))
    torch.testing.assert_close(state.root_position, torch.tensor([[0.5, 0.0, 1.0]]))
    torch.testing.assert_close(
        state.rotations[0, 0], torch.tensor([0.0, 0.0, math.sin(math.pi / 8), math.cos(math.pi / 8)])
    )
    torch.testing.assert_close(state.root_velocity, torch.tensor([[2.0, 0.0, 0.4]]))
    torch.testing.assert_close(state.root_angular_velocity, torch.tensor([[0.0, 0.0, math.pi]]))
    assert state.dof_velocity.abs().max() == 0
    assert motions.length.tolist() == [0.5]


def square_walk(write_clip, loop="wrap"):
    """A cycle of 1 s: one metre along +X, then, in its last quarter, a left turn by 90 degrees; it bobs, and ends higher up."""
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


def test_mean_forward_speed(write_clip, character, tmp_path):
    sideways = np.stack((np.zeros(5), np.linspace(0, 1.0, 5), np.full(5, 0.9)), -1)  # the character faces +x
    write_clip("sideways.npz", root_position=sideways)
    write_clip(
        "fast.npz", root_position=np.stack((np.linspace(0, 2.0, 5), np.zeros(5), np.full(5, 0.9)), -1)
    )  # 2 m in 0.4 s
    path = tmp_path / "set.json"
    path.write_text(
        json.dumps({"clips": [{"file": "sideways.npz", "weight": 3.0}, {"file": "fast.npz", "weight": 1.0}]})
    )
    assert ml.MotionLib(str(path), character).statistics()[2] == pytest.approx(0.25 * 5.0, abs=1e-5)


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
        torch.testing.assert_close(
            now[name], later[name], atol=0.02, rtol=1e-3
        )  # t + k L is exact to 1e-6 s, accelerations reach 1e3
    for name in ("root", "joints"):
        same_rotation(now[name], later[name], 1e-3)


def test_the_seam_is_continuous(all_motions):
    clip = all_motions.loop.nonzero()[:, 0]
    assert len(clip) == 16
    for cycle in (1, 2, 5):
        seam = cycle * all_motions.length[clip]
        before, after = all_motions.state(clip, seam - 1e-5), all_motions.state(clip, seam + 1e-5)
        torch.testing.assert_close(before.root_position[:, :2], after.root_position[:, :2], atol=1e-3, rtol=0)
        torch.testing.assert_close(
            ml.heading(before.rotations[:, 0]), ml.heading(after.rotations[:, 0]), atol=1e-3, rtol=0
        )
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
    path.write_text(
        json.dumps(
            {"clips": [{"file": "a.npz", "weight": 1}, {"file": "b.npz", "weight": 2}, {"file": "c.npz", "weight": 5}]}
        )
    )
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


# ----------------------------------------------------------------------------------------------------------------------------------
# Pose error
# ----------------------------------------------------------------------------------------------------------------------------------


def track(*x):
    """One episode of two bodies; both are x metres from the origin: (1, T, 2, 3)."""
    return torch.tensor([float(v) for v in x])[None, :, None, None].expand(1, len(x), 2, 1) * torch.tensor(
        [1.0, 0.0, 0.0]
    )


def error(simulated, reference, steps=None, horizon=None):
    steps = simulated.shape[1] if steps is None else steps
    horizon = steps if horizon is None else horizon
    return float(ml.pose_error(simulated, reference, torch.tensor([steps]), horizon)[0])


def test_pose_error_of_perfect_imitation():
    motion = track(0, 1, 4, 9, 16)
    assert error(motion, motion) == 0
    assert error(motion, track(0, 1, 4, 9, 16, 25, 36)) == 0  # the reference goes on
    assert error(motion[:, :1], motion) == 0


def test_pose_error_of_a_constant_offset():
    still, off = track(0, 0, 0), track(0, 0, 0).clone()
    off[:, :, 1, 2] = 0.5  # one of the two bodies is half a metre too high
    assert error(off, still) == pytest.approx(0.25)
    off[:, :, 0] += torch.tensor([0.3, 0.4, 0.0])  # and the other one half a metre away, too
    assert error(off, still) == pytest.approx(0.5)


def test_pose_error_ignores_the_pace():
    assert error(track(0, 0, 1, 1, 2, 2, 3, 3), track(0, 1, 2, 3, 4)) == 0  # at half the speed
    assert error(track(0, 2, 4), track(0, 1, 2, 3, 4, 5)) == pytest.approx(
        0.4
    )  # at double: three of five steps hit, two miss by 1 m


def test_pose_error_starts_at_the_episodes_own_phase():
    # the first frames are always matched with one another, 3 m apart; the three others with a frame 1 m away
    assert error(track(0, 0, 0, 0), track(3, 1)) == pytest.approx((3 + 1 + 1 + 1) / 4)


def test_lost_steps_count_one_metre():
    motion = track(0, 1, 2, 3)
    assert error(motion, motion, steps=4, horizon=10) == pytest.approx(0.6)
    assert error(motion + 0.1 * track(1, 1, 1, 1), motion, steps=4, horizon=5) == pytest.approx((4 * 0.1 + 1) / 5)
    assert error(motion, motion, steps=0, horizon=10) == pytest.approx(1.0)
    # what comes after the fall does not count
    assert error(track(0, 1, 50, 60), motion, steps=2, horizon=2) == 0
    assert error(track(0, 1, 50, 60), motion, steps=2, horizon=4) == pytest.approx(0.5)


def best_path_by_enumeration(cost):
    """Mean over the cheapest of all warping paths that end in the last row; the best over the columns it may end in."""

    def paths(i, j):
        if (i, j) == (0, 0):
            yield [cost[0][0]]
        for di, dj in ((1, 0), (0, 1), (1, 1)):
            if i >= di and j >= dj:
                for path in paths(i - di, j - dj):
                    yield [*path, cost[i][j]]

    cheapest = [min(paths(len(cost) - 1, j), key=sum) for j in range(len(cost[0]))]
    return min(sum(path) / len(path) for path in cheapest)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**31))
def test_pose_error_against_all_paths(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    simulated, reference = (
        torch.rand(3, 4, 2, 3, generator=generator),
        torch.rand(3, columns, 2, 3, generator=generator),
    )
    steps = torch.tensor([rows, 1, 4])
    errors, _ = ml.pose_error(simulated, reference, steps, 4)
    for e, alive in enumerate(steps.tolist()):
        cost = [
            [(simulated[e, i] - reference[e, j]).norm(dim=-1).mean().item() for j in range(columns)]
            for i in range(alive)
        ]
        expected = (best_path_by_enumeration(cost) * alive + (4 - alive)) / 4
        assert float(errors[e]) == pytest.approx(expected, abs=1e-5)


def test_pose_error_with_a_horizon_for_each_episode():
    motion = track(0, 1, 2, 3).repeat(2, 1, 1, 1)
    errors, _ = ml.pose_error(motion, motion, torch.tensor([4, 2]), torch.tensor([4, 8]))
    assert errors.tolist() == pytest.approx([0.0, 0.75])


def test_the_error_of_each_body_over_time():
    """Two bodies, of which the second is off by 3 cm in the last frame of three; the pace does not count, nor do frames after a fall."""
    reference = torch.zeros(1, 5, 2, 3)
    reference[0, :, :, 0] = torch.tensor([0.0, 1, 2, 3, 4])[:, None]
    simulated = reference[:, ::2].clone()  # twice as fast
    simulated[0, 2, 1, 1] = 0.03
    error, bodies = ml.pose_error(simulated, reference, torch.tensor([3]), 3)
    torch.testing.assert_close(bodies[0, 2], torch.tensor([0.0, 0.03]))
    assert bodies[0, 0].max() == 0 and error < 0.6
    two = torch.cat((bodies, bodies + 1.0))
    mean = ml.mean_over_episodes(two, torch.tensor([3, 1]))
    torch.testing.assert_close(mean[0], torch.tensor([0.5, 0.5]))  # both live
    torch.testing.assert_close(mean[2], torch.tensor([0.0, 0.03]))  # the second has fallen
    assert ml.mean_over_episodes(two, torch.tensor([1, 1]))[1].isnan().all()


def test_relative_positions_by_hand(character):
    position = torch.zeros(15, 3) + torch.tensor([2.0, 3.0, 0.5])
    position[1] = torch.tensor([2.0, 4.0, 1.5])  # a metre along world +Y and one up
    relative = ml.relative_positions(position, ml.quat_from_yaw(torch.tensor(math.pi / 2)))
    assert relative.shape == (14, 3)
    torch.testing.assert_close(relative[0], torch.tensor([1.0, 0.0, 1.0]), atol=1e-6, rtol=0)  # which is ahead of it
    assert relative[1:].abs().max() == 0


@given(st.floats(-3, 3), st.floats(-50, 50), st.floats(-50, 50))
def test_relative_positions_do_not_depend_on_place_and_heading(walk, yaw, x, y):
    times = torch.tensor([0.1, 0.5, 1.0])
    state = walk.state(torch.zeros(3, dtype=torch.long), times)
    here, _ = ml.forward_kinematics(walk.character, state.root_position, state.rotations)
    turn = ml.quat_from_yaw(torch.tensor(yaw))
    rotations = torch.cat(
        (ml.quat_multiply(turn.expand(3, 4), state.rotations[:, 0])[:, None], state.rotations[:, 1:]), 1
    )
    root_position = ml.quat_rotate(turn, state.root_position) + torch.tensor([x, y, 0.0])
    there, _ = ml.forward_kinematics(walk.character, root_position, rotations)
    mine, theirs = ml.relative_positions(here, state.rotations[:, 0]), ml.relative_positions(there, rotations[:, 0])
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)
