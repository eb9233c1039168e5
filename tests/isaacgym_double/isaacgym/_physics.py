"""The mechanics behind the double: an MJCF file as Isaac Gym's importer reads it, moved by MuJoCo.

Arrays are float64 numpy; A actors of one model, D dofs, L bodies (links). Quaternions are xyzw outside MuJoCo's own
qpos. Positions are in the env's frame [m], velocities in the world's [m/s, rad/s]."""

import xml.etree.ElementTree as ET
from typing import Any, List, Tuple

import mujoco
import numpy as np


class GymViolation(RuntimeError):
    """A rule of the API was broken. The real one would crash, hang, or silently compute something else."""


# ---- Quaternions, wxyz as in qpos ------------------------------------------------------------------------------------


def rotate(q: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) turned by unit quaternions (..., 4)."""
    t = 2.0 * np.cross(q[..., 1:], v)
    return v + q[..., :1] * t + np.cross(q[..., 1:], t)


def conjugate(q: np.ndarray) -> np.ndarray:
    return q * np.array([1.0, -1.0, -1.0, -1.0])


def exponential_map(q: np.ndarray) -> np.ndarray:
    """Rotation vectors (..., 3) of the shorter way round, at most pi long."""
    q = np.where(q[..., :1] < 0.0, -q, q)
    sine = np.linalg.norm(q[..., 1:], axis=-1, keepdims=True)
    return q[..., 1:] * np.where(sine > 1e-9, 2.0 * np.arctan2(sine, q[..., :1]) / np.maximum(sine, 1e-9), 2.0)


def from_exponential_map(r: np.ndarray) -> np.ndarray:
    """Unit quaternions (..., 4) of rotation vectors (..., 3)."""
    half = 0.5 * np.linalg.norm(r, axis=-1, keepdims=True)
    return np.concatenate((np.cos(half), 0.5 * np.sinc(half / np.pi) * r), -1)


# ---- Import ----------------------------------------------------------------------------------------------------------

# attributes that the importer ignores or stumbles over -> the values that change nothing (friction, condim: PhysX's)
IGNORED = {
    "geom": {
        "mass": (),
        "condim": ("3",),
        "friction": ("1", "1.0"),
        "solref": (),
        "solimp": (),
        "solmix": (),
        "margin": (),
        "gap": (),
    },
    "joint": {
        "frictionloss": (),
        "solreflimit": (),
        "solimplimit": (),
        "solreffriction": (),
        "solimpfriction": (),
        "margin": (),
    },
}


def check_mjcf(path: str) -> None:
    """Raise GymViolation on what Isaac Gym's importer would ignore in silence, or hang on."""
    for element in ET.parse(path).iter():
        for name, harmless in IGNORED.get(element.tag, {}).items():
            if name in element.keys() and (element.get(name).split() or [""])[0] not in harmless:
                raise GymViolation(f'MJCF: {element.tag} {name}="{element.get(name)}" is ignored by the importer')
        if element.tag in ("general", "exclude") or "kv" in element.keys():
            raise GymViolation(
                f"MJCF: {'kv' if 'kv' in element.keys() else element.tag} is ignored by the importer, or hangs it"
            )
        if element.tag == "joint" and "range" in element.keys() and element.get("limited") != "true":
            raise GymViolation(f'MJCF: the range of joint {element.get("name")} has no effect without limited="true"')


class Character:
    """What the importer makes of an MJCF file: names, properties, one spherical joint for each x, y, z hinge triple."""

    def __init__(self, path: str) -> None:
        check_mjcf(path)
        self.path, self.model = path, mujoco.MjModel.from_xml_path(path)
        model = self.model
        if (
            model.njnt == 0
            or model.jnt_type[0] != mujoco.mjtJoint.mjJNT_FREE
            or (model.jnt_type[1:] != mujoco.mjtJoint.mjJNT_HINGE).any()
        ):
            raise NotImplementedError(f"{path}: the double knows one floating base with hinges")
        self.body_names = [model.body(b).name for b in range(1, model.nbody)]
        self.dof_names = [model.joint(j).name for j in range(1, model.njnt)]
        self.dof_body = model.jnt_bodyid[1:].tolist()
        self.ball_dofs = []  # of each ball joint, its three dofs
        for body in sorted(set(self.dof_body)):
            own = [d for d, b in enumerate(self.dof_body) if b == body]
            if len(own) == 3 and np.allclose(model.jnt_axis[1:][own], np.eye(3)) and not model.jnt_pos[1:][own].any():
                self.ball_dofs.append(own)
            elif len(own) != 1:
                raise NotImplementedError(f"{path}: a body needs one hinge, or three about x, y, z without an offset")
        # a MuJoCo with polynomial springs keeps their coefficients in columns, of which the first is the plain spring's
        self.stiffness, self.damping = (
            x if x.ndim == 1 else x[:, 0] for x in (model.jnt_stiffness[1:], model.dof_damping[6:])
        )

    def body_properties(self) -> List[Tuple[float, np.ndarray, np.ndarray]]:
        """Each body's mass [kg], centre of mass (3,) in its frame [m], inertia (3, 3) about it in its axes [kg m^2]."""
        found = []
        for b in range(1, self.model.nbody):
            axes = rotate(self.model.body_iquat[b], np.eye(3)).T  # the principal axes are its columns
            inertia = axes @ np.diag(self.model.body_inertia[b]) @ axes.T
            found.append((float(self.model.body_mass[b]), self.model.body_ipos[b].copy(), inertia))
        return found

    def compile(
        self, props: np.ndarray, friction: List[float], floor: float, gravity: List[float], timestep: float
    ) -> Any:
        """The MuJoCo model with position drives as dof properties (D,) say.

        friction: of each geom; floor: the ground's, negative without ground (of two shapes that touch the larger one
        counts, which is MuJoCo's rule)."""
        spec = mujoco.MjSpec.from_file(self.path)
        for motor in list(spec.actuators):
            spec.delete(motor)
        for d, name in enumerate(self.dof_names):
            ball = next((own for own in self.ball_dofs if d in own), None)
            if ball is not None and d == ball[0]:
                parent = spec.body(self.body_names[self.dof_body[d] - 1])
                parent.add_joint(name=f"ball{self.dof_body[d]}", type=mujoco.mjtJoint.mjJNT_BALL)
            joint = spec.joint(name)
            if ball is not None:
                spec.delete(joint)
            else:
                joint.stiffness, joint.damping = 0.0 * joint.stiffness, 0.0 * joint.damping
            target = name if ball is None else f"ball{self.dof_body[d]}"
            actuator = spec.add_actuator(name=name, target=target, trntype=mujoco.mjtTrn.mjTRN_JOINT)
            actuator.gear = [1.0, 0, 0, 0, 0, 0] if ball is None else [float(ball.index(d) == i) for i in range(6)]
            driven = bool(props["driveMode"][d] == 1)
            kp, kd = (float(props["stiffness"][d]), float(props["damping"][d])) if driven else (0.0, 0.0)
            actuator.set_to_position(kp=kp, kv=kd + timestep * kp)
            actuator.forcelimited, actuator.forcerange = True, (-float(props["effort"][d]), float(props["effort"][d]))
        for geom, coefficient in zip(spec.geoms, friction):
            geom.friction = [coefficient, 0.05, 0.05]
        if floor >= 0.0:
            spec.worldbody.add_geom(
                name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 1], friction=[floor, 0.05, 0.05]
            )
        spec.option.timestep, spec.option.gravity = timestep, gravity
        model = spec.compile()
        for j in range(1, model.njnt):
            if model.jnt_type[j] == mujoco.mjtJoint.mjJNT_HINGE:
                own = props[self.dof_names.index(model.joint(j).name)]
                model.jnt_limited[j], model.jnt_range[j] = own["hasLimits"], (own["lower"], own["upper"])
        # the drive is integrated implicitly: what of it depends on the acceleration counts as inertia, as in MujocoSim
        driven = props["driveMode"] == 1
        gain, damping = (np.where(driven, props[key], 0.0).astype(np.float64) for key in ("stiffness", "damping"))
        model.dof_armature[6:] = props["armature"] + timestep * damping + timestep**2 * gain
        mujoco.mj_setConst(model, mujoco.MjData(model))
        return model


# ---- Motion ----------------------------------------------------------------------------------------------------------


class Batch:
    """All actors of one model: states, drive targets, and what the last step has left of bodies and contacts."""

    def __init__(
        self, character: Character, model: Any, actors: np.ndarray, dofs: np.ndarray, bodies: np.ndarray
    ) -> None:
        """actors (A,), dofs (A, D), bodies (A, L): rows of the simulator's tensors that are this batch's."""
        self.model, self.data = model, mujoco.MjData(model)
        self.actors, self.dofs, self.bodies = actors, dofs, bodies
        self.qpos, self.qvel = np.tile(model.qpos0, (len(actors), 1)), np.zeros((len(actors), model.nv))
        self.targets = np.zeros(dofs.shape)
        self.body_state, self.contact = np.zeros(bodies.shape + (13,)), np.zeros(bodies.shape + (3,))
        self.com = model.body_ipos[1]
        hinges = [j for j in range(1, model.njnt) if model.jnt_type[j] == mujoco.mjtJoint.mjJNT_HINGE]
        balls = [j for j in range(1, model.njnt) if model.jnt_type[j] == mujoco.mjtJoint.mjJNT_BALL]
        self.hinge_q, self.hinge_dofs = model.jnt_qposadr[hinges], model.jnt_dofadr[hinges] - 6
        self.ball_q = model.jnt_qposadr[balls][:, None] + np.arange(4)
        self.ball_dofs = np.array(character.ball_dofs, dtype=int).reshape(-1, 3)

    def read_root(self) -> np.ndarray:
        """(A, 13): position, quaternion, velocity of the centre of mass, angular velocity."""
        q = self.qpos[:, 3:7]
        angular = rotate(q, self.qvel[:, 3:6])  # MuJoCo's is in the root's own frame
        linear = self.qvel[:, :3] + np.cross(angular, rotate(q, np.broadcast_to(self.com, angular.shape)))
        return np.concatenate((self.qpos[:, :3], q[:, [1, 2, 3, 0]], linear, angular), -1)

    def write_root(self, rows: np.ndarray, root: np.ndarray) -> None:
        """Inverse of read_root for some rows: root (n, 13)."""
        q = root[:, [6, 3, 4, 5]] / np.linalg.norm(root[:, 3:7], axis=-1, keepdims=True)
        linear = root[:, 7:10] - np.cross(root[:, 10:13], rotate(q, np.broadcast_to(self.com, root[:, :3].shape)))
        self.qpos[rows, :7] = np.concatenate((root[:, :3], q), -1)
        self.qvel[rows, :6] = np.concatenate((linear, rotate(conjugate(q), root[:, 10:13])), -1)

    def read_dofs(self) -> np.ndarray:
        """(A, D, 2): angle or exponential-map component [rad], velocity in the child's frame [rad/s]."""
        state = np.stack((np.zeros(self.dofs.shape), self.qvel[:, 6:]), -1)
        state[:, self.hinge_dofs, 0] = self.qpos[:, self.hinge_q]
        state[:, self.ball_dofs, 0] = exponential_map(self.qpos[:, self.ball_q])
        return state

    def write_dofs(self, rows: np.ndarray, state: np.ndarray) -> None:
        """Inverse of read_dofs for some rows: state (n, D, 2)."""
        self.qpos[rows[:, None], self.hinge_q] = state[:, self.hinge_dofs, 0]
        self.qpos[rows[:, None, None], self.ball_q] = from_exponential_map(state[:, self.ball_dofs, 0])
        self.qvel[rows, 6:] = state[..., 1]

    def step(self, steps: int) -> None:
        """Advance every actor by some MuJoCo steps (none: only find out where the bodies are)."""
        model, data = self.model, self.data
        for i in range(len(self.actors)):
            data.time, data.qpos[:], data.qvel[:], data.ctrl[:] = 1.0, self.qpos[i], self.qvel[i], self.targets[i]
            data.qacc_warmstart[:] = 0.0
            if steps:
                if np.isfinite(self.qpos[i]).all() and np.isfinite(self.qvel[i]).all():
                    mujoco.mj_step(model, data, steps)
                    self.contact[i] = self._contact_forces()
                if (
                    abs(data.time - 1.0 - steps * model.opt.timestep) > 1e-9
                ):  # MuJoCo has reset a broken state: here it becomes NaN
                    self.qpos[i], self.qvel[i], self.body_state[i], self.contact[i] = (np.nan,) * 4
                    continue
                self.qpos[i], self.qvel[i] = data.qpos, data.qvel
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            mujoco.mj_comVel(model, data)
            angular, arm = data.cvel[1:, :3], data.xipos[1:] - data.subtree_com[model.body_rootid[1:]]
            linear = data.cvel[1:, 3:] + np.cross(
                angular, arm
            )  # cvel is that of the point at the whole tree's centre of mass
            self.body_state[i] = np.concatenate((data.xpos[1:], data.xquat[1:][:, [1, 2, 3, 0]], linear, angular), -1)

    def _contact_forces(self) -> np.ndarray:
        """(L, 3): sum of the contact forces on each body in the last step, world [N]."""
        total, wrench = np.zeros((self.model.nbody, 3)), np.zeros(6)
        for c in range(self.data.ncon):
            contact = self.data.contact[c]
            mujoco.mj_contactForce(self.model, self.data, c, wrench)
            force = wrench[:3] @ contact.frame.reshape(3, 3)  # on the second geom; the first feels the opposite
            total[self.model.geom_bodyid[contact.geom[1]]] += force
            total[self.model.geom_bodyid[contact.geom[0]]] -= force
        return total[1:]
