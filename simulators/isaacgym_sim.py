"""NVIDIA Isaac Gym Preview 4: PhysX on the GPU."""

import os
from typing import Any, Dict, List, Optional, Tuple

from isaacgym import gymapi, gymtorch

import numpy as np
import torch
from torch import Tensor

import motion_lib as ml
from motion_lib import Character, InputError, MotionState

from . import MAX_SPEED, Sim


class IsaacGymSim(Sim):
    """Isaac Gym on the GPU, or on the CPU without CUDA: the whole state in tensors that PhysX writes in place.

    Its dofs of a hinge triple are one ball joint's exponential map, its linear velocities those of centres of mass.
    It prints what a report of a fault needs. A process can have one at a time."""

    def __init__(
        self, character: Character, num_envs: int, timestep: float, substeps: int, device: torch.device, on_gpu: bool
    ) -> None:
        """timestep of the physics [s], on_gpu: where it runs; make() has the others. Raises InputError if it fails."""
        self.character = character
        self.device = device
        self.substeps = substeps
        self.on_gpu = on_gpu
        self.gym = gymapi.acquire_gym()
        self.target = torch.zeros(num_envs, len(character.dof_names), device=device)  # (N, D) [rad], Isaac Gym's order
        self.pending: Optional[Tensor] = None  # environments whose states wait for the next step to be submitted
        self.rest = torch.eye(13, device=device)[6]  # a root at the origin, upright and at rest
        self.sim = self._create_sim(timestep)
        asset = self._load_asset()
        dof_names = self.gym.get_asset_dof_names(asset)
        body_names = self.gym.get_asset_rigid_body_names(asset)
        self.dofs = self._order(character.dof_names, dof_names)  # (D,) where the character's dofs stand in Isaac Gym's
        self.bodies = self._order(character.body_names, body_names)  # (J,)
        drives = self._drives(asset)
        inertial = self._create_actors(asset, drives, num_envs)
        com = inertial[int(self.bodies[0])].com
        self.com = torch.tensor([com.x, com.y, com.z], device=device)  # of the root, in its own frame [m]
        self.gym.prepare_sim(self.sim)
        self._wrap_tensors(num_envs)
        print("Isaac Gym self-check (for bug reports):")
        print("  bodies: " + ", ".join(f"{name} {body.mass:.2f} kg" for name, body in zip(body_names, inertial)))
        for name, row in zip(dof_names, drives):
            keys = ("lower", "upper", "stiffness", "damping", "effort", "armature")
            print(f"  {name}: " + ", ".join(f"{key} {row[key]:.4g}" for key in keys))
        self._self_check(drives)

    def _order(self, wanted: List[str], found: List[str]) -> Tensor:
        """Where the wanted names stand among those found."""
        if sorted(wanted) != sorted(found):
            raise InputError(f"{self.character.path}: Isaac Gym reads other dofs or bodies from it: {', '.join(found)}")
        return torch.tensor([found.index(name) for name in wanted], dtype=torch.long, device=self.device)

    def _create_sim(self, timestep: float) -> Any:
        """An empty simulation with flat ground, a physics step of timestep [s]."""
        params = gymapi.SimParams()
        params.dt = timestep
        params.substeps = 1
        params.up_axis = gymapi.UP_AXIS_Z
        params.gravity = gymapi.Vec3(0.0, 0.0, -9.81)
        params.use_gpu_pipeline = self.on_gpu
        params.physx.use_gpu = self.on_gpu
        params.physx.solver_type = 1
        params.physx.num_position_iterations = 4
        params.physx.num_velocity_iterations = 0
        params.physx.contact_offset = 0.02
        params.physx.rest_offset = 0.0
        params.physx.bounce_threshold_velocity = 0.2
        params.physx.max_depenetration_velocity = 10.0
        params.physx.default_buffer_size_multiplier = 5.0
        params.physx.max_gpu_contact_pairs = 8 * 1024 * 1024
        params.physx.contact_collection = gymapi.CC_LAST_SUBSTEP  # the default is reported broken
        sim = self.gym.create_sim(self.device.index or 0, -1, gymapi.SIM_PHYSX, params)  # -1: nothing is drawn
        if sim is None:
            raise InputError("--sim isaacgym: create_sim failed (its reason stands above); --sim mujoco is there")
        ground = gymapi.PlaneParams()
        ground.normal = gymapi.Vec3(0.0, 0.0, 1.0)
        self.gym.add_ground(sim, ground)
        return sim

    def _load_asset(self) -> Any:
        """The character as Isaac Gym reads it, with the friction of its shapes, which the importer ignores."""
        options = gymapi.AssetOptions()
        options.angular_damping = 0.01
        options.max_angular_velocity = 100.0
        options.default_dof_drive_mode = int(gymapi.DOF_MODE_NONE)
        folder, file = os.path.split(os.path.abspath(self.character.path))
        asset = self.gym.load_asset(self.sim, folder, file, options)
        if asset is None:
            raise InputError(f"{self.character.path}: Isaac Gym cannot load it (its reason stands above)")
        shapes = self.gym.get_asset_rigid_shape_properties(asset)
        for shape in shapes:
            shape.friction = 1.0
        self.gym.set_asset_rigid_shape_properties(asset, shapes)
        return asset

    def _drives(self, asset: Any) -> np.ndarray:
        """(D,) dof properties with position drives, in Isaac Gym's order of the dofs."""
        props = self.gym.get_asset_dof_properties(asset)
        order = self.dofs.cpu().numpy()
        props["driveMode"].fill(gymapi.DOF_MODE_POS)
        props["stiffness"][order] = self.character.kp.cpu().numpy()
        props["damping"][order] = self.character.kd.cpu().numpy()
        props["effort"][order] = self.character.effort.cpu().numpy()
        limits = np.stack((props["lower"], props["upper"]))
        props["lower"] = limits.min(0)  # some come inverted
        props["upper"] = limits.max(0)
        return props

    def _create_actors(self, asset: Any, drives: np.ndarray, num_envs: int) -> List[Any]:
        """One character in each environment -> inertial properties of its bodies, in Isaac Gym's order."""
        lower = gymapi.Vec3(-2.0, -2.0, 0.0)
        upper = gymapi.Vec3(2.0, 2.0, 2.0)
        start = gymapi.Transform(gymapi.Vec3(0.0, 0.0, 2.0))
        actors = []
        for i in range(num_envs):
            env = self.gym.create_env(self.sim, lower, upper, int(num_envs**0.5))
            # the collision group i keeps environments apart; the filter 0 lets a character's bodies collide
            actor = self.gym.create_actor(env, asset, start, "character", i, 0, 0)
            self.gym.set_actor_dof_properties(env, actor, drives)
            actors.append(self.gym.get_actor_index(env, actor, gymapi.DOMAIN_SIM))
        self.actors = torch.tensor(actors, dtype=torch.int32, device=self.device)  # (N,)
        return self.gym.get_actor_rigid_body_properties(env, actor)

    def _wrap_tensors(self, num_envs: int) -> None:
        """Make members of the tensors that PhysX writes."""
        wrap = gymtorch.wrap_tensor
        self._refresh()
        self.root = wrap(self.gym.acquire_actor_root_state_tensor(self.sim))  # (N, 13) position, xyzw, velocities
        self.dof_state = wrap(self.gym.acquire_dof_state_tensor(self.sim))  # (N D, 2) position, velocity
        self.dof = self.dof_state.view(num_envs, -1, 2)  # (N, D, 2)
        self.body = wrap(self.gym.acquire_rigid_body_state_tensor(self.sim)).view(num_envs, -1, 13)  # (N, J, 13)
        self.contact = wrap(self.gym.acquire_net_contact_force_tensor(self.sim)).view(num_envs, -1, 3)  # (N, J, 3) [N]
        self.kept = {"root": self.root, "dof": self.dof, "target": self.target}
        self._refresh()

    def _refresh(self) -> None:
        self.gym.refresh_actor_root_state_tensor(self.sim)
        self.gym.refresh_dof_state_tensor(self.sim)
        self.gym.refresh_rigid_body_state_tensor(self.sim)
        self.gym.refresh_net_contact_force_tensor(self.sim)

    def _self_check(self, drives: np.ndarray) -> None:
        """Refuse the character if its links turn otherwise than forward kinematics says, or contacts act in the air."""
        lower = torch.tensor(drives["lower"].astype(np.float32), device=self.device)[self.dofs]
        upper = torch.tensor(drives["upper"].astype(np.float32), device=self.device)[self.dofs]
        some = torch.tensor([0.3, -0.2, 0.4], device=self.device).repeat(len(lower))[: len(lower)]
        dof = some.clamp(lower, upper)[None]  # (1, D) [rad]
        zero = torch.zeros(1, 3, device=self.device)
        up = torch.tensor([[0.0, 0.0, 2.0]], device=self.device)
        pose = ml.rotations_from_dofs(self.character, ml.quat_from_rotvec(zero), dof)
        first = torch.ones(1, dtype=torch.bool, device=self.device)
        self.set_state(first, MotionState(up, pose, zero, zero, 0.0 * dof))
        state, _ = self.step(dof)
        self._refresh()
        read_back = self._off_links(state.rotations)
        as_set = self._off_links(pose)
        print(f"  links off forward kinematics: {read_back:.5f} rad (read back), {as_set:.3f} rad (as set, a step ago)")
        ground = float(self.contact[0].sum(0).norm())  # what bodies do to one another adds up to nothing
        print(f"  force of the ground on a character in the air: {ground:.3f} N")
        if not (read_back < 0.01 and as_set < 0.2 and ground < 1.0):
            self.gym.destroy_sim(self.sim)
            fault = "joints off forward kinematics, or contact in the air"
            raise InputError(f"--sim isaacgym: {fault}; please report the self-check above")

    def _off_links(self, rotations: Tensor) -> float:
        """Largest angle [rad] between the first copy's links and what parent-relative rotations (1, J, 4) say."""
        link = self.body[:1, self.bodies, 3:7]
        _, expected = ml.forward_kinematics(self.character, self.root[:1, :3], rotations)
        return float(ml.rotvec_from_quat(ml.quat_multiply(ml.quat_conjugate(expected), link)).norm(dim=-1).max())

    def set_state(self, chosen: Tensor, state: MotionState) -> None:
        env_ids = chosen.nonzero()[:, 0]  # waits for the device, once a control step: PhysX has to be told how many
        if not len(env_ids):
            return
        state = MotionState(*(x[env_ids] for x in state))
        q = state.rotations[:, 0]
        angular = state.root_angular_velocity
        # v_com = v_link + w x R(q) com
        linear = state.root_velocity + torch.linalg.cross(angular, ml.quat_rotate(q, self.com))
        self.root[env_ids] = torch.cat((state.root_position, q, linear, angular), -1)
        dof = torch.stack((ml.dof_positions(self.character, state.rotations), state.dof_velocity), -1)  # (n, D, 2)
        self.dof[env_ids[:, None], self.dofs] = dof
        # a second indexed call before the next simulation would undo the first: all wait for step()
        self.pending = env_ids if self.pending is None else torch.cat((self.pending, env_ids)).unique()

    def step(self, targets: Tensor) -> Tuple[MotionState, Tensor]:
        gym = self.gym
        n = len(targets)
        if self.pending is not None:
            # members, like all that PhysX reads: they have to live until the simulation
            self.ids = self.actors[self.pending]
            self.pending = None
            ids = gymtorch.unwrap_tensor(self.ids)
            gym.set_actor_root_state_tensor_indexed(self.sim, gymtorch.unwrap_tensor(self.root), ids, len(self.ids))
            gym.set_dof_state_tensor_indexed(self.sim, gymtorch.unwrap_tensor(self.dof_state), ids, len(self.ids))
        self.target[:n, self.dofs] = targets
        gym.set_dof_position_target_tensor(self.sim, gymtorch.unwrap_tensor(self.target))
        for _ in range(self.substeps):
            gym.simulate(self.sim)
        if not self.on_gpu:
            gym.fetch_results(self.sim, True)
        gym.refresh_actor_root_state_tensor(self.sim)
        gym.refresh_dof_state_tensor(self.sim)
        root = self.root[:n]  # (n, 13)
        dof = self.dof[:n, self.dofs]  # (n, D, 2)
        fast = torch.cat((root[:, 7:], dof[..., 1]), -1).abs().amax(-1)
        sound = torch.isfinite(root).all(-1) & torch.isfinite(dof).flatten(1).all(-1) & (fast < MAX_SPEED)
        root = torch.where(sound[:, None], root, self.rest)
        dof = torch.where(sound[:, None, None], dof, torch.zeros_like(dof))
        q = root[:, 3:7]
        angular = root[:, 10:]
        linear = root[:, 7:10] - torch.linalg.cross(angular, ml.quat_rotate(q, self.com))
        rotations = ml.rotations_from_dofs(self.character, q, dof[..., 0])
        return MotionState(root[:, :3], rotations, linear, angular, dof[..., 1]), ~sound

    def load_state_dict(self, state: Dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.pending = torch.arange(len(self.root), device=self.device)  # all are submitted by the next step
