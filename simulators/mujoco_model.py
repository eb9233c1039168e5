"""What both simulators on MuJoCo share: the character's model, and MuJoCo's coordinates to and from a MotionState."""

import re
import sys
from typing import Any, Set, Tuple

import mujoco
import torch
from torch import Tensor

import motion_lib as ml
from motion_lib import Character, InputError, MotionState

_said: Set[str] = set()  # kinds of warnings


def _say_once(warning: str) -> None:
    """In place of MuJoCo's own handler, which prints every warning and writes it into MUJOCO_LOG.TXT where it runs."""
    kind = re.split(r"\d", warning)[0]  # up to the number of a dof or a time
    if kind not in _said:
        _said.add(kind)
        print(f"MuJoCo, for the first time: {warning}", file=sys.stderr)


def _replace_drives(spec: Any, character: Character, timestep: float) -> None:
    """A ball joint for each triple of hinges, and a PD position actuator for each dof in place of the motors."""
    for motor in list(spec.actuators):
        spec.delete(motor)
    dof_body = character.dof_body.tolist()
    for d, (name, body) in enumerate(zip(character.dof_names, dof_body)):
        joint = spec.joint(name)
        is_ball = dof_body.count(body) == 3
        if is_ball and d == dof_body.index(body):
            parent = spec.body(character.body_names[body])
            parent.add_joint(name=f"ball{body}", type=mujoco.mjtJoint.mjJNT_BALL, armature=joint.armature)
        if is_ball:
            spec.delete(joint)
        else:  # the gains move from the joint, where MuJoCo reads a passive spring, to the actuator
            joint.stiffness = 0.0 * joint.stiffness
            joint.damping = 0.0 * joint.damping
        target = f"ball{body}" if is_ball else name
        actuator = spec.add_actuator(name=name, target=target, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        # on a ball joint, which has no limits here, the gear picks a component of the exponential map
        axis = character.dof_axis[d].tolist() if is_ball else [1, 0, 0]
        actuator.gear = axis + [0, 0, 0]
        kp = float(character.kp[d])
        kd = float(character.kd[d])
        effort = float(character.effort[d])
        # kp (target - q - h dq) - kd dq with the physics step h: _compile says why
        actuator.set_to_position(kp=kp, kv=kd + timestep * kp)
        actuator.forcelimited = True
        actuator.forcerange = (-effort, effort)


def _compile(character: Character, timestep: float) -> Any:
    """The character's MjModel with its drives and a floor. Raises what MuJoCo raises."""
    spec = mujoco.MjSpec.from_file(character.path)
    spec.copy().compile()  # what is wrong with the file as it stands is said in the file's own terms
    _replace_drives(spec, character, timestep)
    spec.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 1], friction=[1.0, 0.05, 0.05])
    spec.option.timestep = timestep
    model = spec.compile()
    # Stable PD (Tan, Liu, Turk 2011): of the drive force at the end of a step of length h,
    #   kp (target - q - h dq) - kd dq - (h kd + h^2 kp) ddq,
    # the last term goes into the inertia, where the contact solver sees it. MuJoCo's implicit integrators add it after
    # contacts are solved: at h = 1/60 a character under noisy targets then falls sooner than at 1/480 (docs/log.md).
    model.dof_armature[6:] += (timestep * character.kd + timestep**2 * character.kp).cpu().numpy()
    data = mujoco.MjData(model)
    mujoco.mj_setConst(model, data)
    data.time = 1.0
    mujoco.mj_step(model, data)
    if data.time < 1.0:  # MuJoCo has found the state broken and reset it
        raise ValueError("its motion is not finite, or too fast to simulate, from its rest pose on")
    return model


class MujocoModel:
    """The character in MuJoCo, and MuJoCo's coordinates qpos (n, nq), qvel (n, nv) to and from a MotionState."""

    def __init__(self, character: Character, timestep: float, device: torch.device) -> None:
        """timestep [s] of the physics, device of the coordinates. Raises InputError if MuJoCo refuses the character."""
        mujoco.set_mju_user_warning(_say_once)
        try:
            self.compiled = _compile(character, timestep)
        except (ValueError, mujoco.FatalError) as error:
            raise InputError(f"{character.path}: MuJoCo refuses it: {' '.join(str(error).split())}") from error
        self.character = character
        address = self.compiled.jnt_qposadr[self.compiled.body_jntadr[1:]]
        start = torch.as_tensor(address, device=device).long()  # (J,), of no meaning for welded bodies
        self.rotating = torch.cat((torch.zeros_like(start[:1]), character.balls))  # bodies with a quaternion in qpos
        quat_start = start[self.rotating] + (self.rotating == 0) * 3  # the root's stands behind its position
        self.quats = quat_start[:, None] + torch.tensor([1, 2, 3, 0], device=device)  # xyzw out of MuJoCo's wxyz
        self.angles = start[character.hinges]
        self.axis = character.dof_axis[character.hinge_dofs]

    def read(self, qpos: Tensor, qvel: Tensor) -> MotionState:
        """Coordinates (n, nq), (n, nv) -> state of batch (n,)."""
        rotations = qpos.new_zeros(len(qpos), len(self.character.parents), 4)  # (n, J, 4) xyzw
        rotations[..., 3] = 1.0
        rotations[:, self.rotating] = qpos[:, self.quats]
        half = 0.5 * qpos[:, self.angles, None]
        rotations[:, self.character.hinges] = torch.cat((self.axis * torch.sin(half), torch.cos(half)), -1)
        # MuJoCo's free joint has its linear velocity in the world and its angular velocity in the root's own frame
        angular = ml.quat_rotate(rotations[:, 0], qvel[:, 3:6])
        return MotionState(qpos[:, :3], rotations, qvel[:, :3], angular, qvel[:, 6:])

    def write(self, state: MotionState) -> Tuple[Tensor, Tensor]:
        """State of batch (n,) -> coordinates (n, nq), (n, nv)."""
        rotations = state.rotations
        qpos = rotations.new_zeros(len(rotations), self.compiled.nq)
        qpos[:, :3] = state.root_position
        qpos[:, self.quats] = rotations[:, self.rotating]
        qpos[:, self.angles] = (ml.rotvec_from_quat(rotations[:, self.character.hinges]) * self.axis).sum(-1)
        angular = ml.quat_rotate(ml.quat_conjugate(rotations[:, 0]), state.root_angular_velocity)  # in the root's frame
        return qpos, torch.cat((state.root_velocity, angular, state.dof_velocity), -1)
