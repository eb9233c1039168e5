"""gymapi as far as this repository needs it: names, defaults and call order, and a GymViolation for every broken rule.

Where the rules are enforced:
    torch imported first                                          __init__.py
    wrong simulator type or axis, graphics, GPU without use_gpu,
    a second live simulator                                       Gym.create_sim
    creation after prepare_sim; acquire, set, simulate before it;
    any call after destroy_sim                                    _enter, which every method calls first
    features of the MJCF that the importer ignores                _physics.check_mjcf, Gym.load_asset
    shape friction after an actor of the asset exists             Gym.set_asset_rigid_shape_properties
    environments filled one after the other, groups, filters      Gym.create_actor
    dof properties                                                _check_dof_properties, and again in Gym.prepare_sim
    contacts collected in a way that works                        Gym.acquire_net_contact_force_tensor
    CPU pipeline: no refresh, no setter before fetch_results      Sim.refresh, Sim.read
    refresh over edits that were never submitted                  Sim.refresh (root and dof states)
    device, dtype, size, contiguity, freed memory                 Sim.read, gymtorch.unwrap_tensor
    indices: int32, own length, range, no duplicates, not empty   Sim.read_indices
    one indexed call per setter and simulate                      Gym._set_indexed
    finite states and targets, unit quaternions                   Gym._set_indexed, Gym._set_targets
    targets only for dofs in position mode                        Gym._set_targets
    memory freed or changed before simulate consumes it           Gym.simulate

The double's liberties: without CUDA the GPU pipeline's tensors lie in CPU memory, under the GPU pipeline's rules; a
submitted state is the state at once; actors never touch one another; damping, velocity limits and solver settings of
PhysX are accepted and unused."""

import copy
import operator
import os
from enum import IntEnum
from typing import Any, Callable, Dict, List, Optional, Tuple

from isaacgym._physics import Batch, Character, GymViolation

import numpy as np

INVERT_LIMITS: Tuple[str, ...] = ()
"""names of dofs whose limits are reported swapped (lower > upper), as the real importer does; set before load_asset"""

# ---- Constants -------------------------------------------------------------------------------------------------------

UpAxis = IntEnum("UpAxis", "UP_AXIS_Y UP_AXIS_Z", start=0)
SimType = IntEnum("SimType", "SIM_PHYSX SIM_FLEX", start=0)
DofDriveMode = IntEnum("DofDriveMode", "DOF_MODE_NONE DOF_MODE_POS DOF_MODE_VEL DOF_MODE_EFFORT", start=0)
ContactCollection = IntEnum("ContactCollection", "CC_NEVER CC_LAST_SUBSTEP CC_ALL_SUBSTEPS", start=0)
IndexDomain = IntEnum("IndexDomain", "DOMAIN_ACTOR DOMAIN_ENV DOMAIN_SIM", start=0)
UP_AXIS_Y, UP_AXIS_Z = UpAxis
SIM_PHYSX, SIM_FLEX = SimType
DOF_MODE_NONE, DOF_MODE_POS, DOF_MODE_VEL, DOF_MODE_EFFORT = DofDriveMode
CC_NEVER, CC_LAST_SUBSTEP, CC_ALL_SUBSTEPS = ContactCollection
DOMAIN_ACTOR, DOMAIN_ENV, DOMAIN_SIM = IndexDomain
STATE_NONE, STATE_POS, STATE_VEL, STATE_ALL = range(4)
INVALID_HANDLE = -1
UNSET = float(np.finfo(np.float32).max)  # what the importer leaves as effort and velocity limits

DOF_PROPERTIES = np.dtype(
    [("hasLimits", "?"), ("lower", "f4"), ("upper", "f4"), ("driveMode", "i4"), ("velocity", "f4"), ("effort", "f4")]
    + [("stiffness", "f4"), ("damping", "f4"), ("friction", "f4"), ("armature", "f4")],
    align=True,
)

# ---- Parameter records -----------------------------------------------------------------------------------------------


class _Record:
    """Named, typed fields with defaults; like the real classes it refuses unknown names and values of a wrong type."""

    def __init__(self, *values: Any, **named: Any) -> None:
        if (values or named) and type(self) not in (Vec3, Quat, Transform):
            raise TypeError(f"{type(self).__name__} takes no arguments")
        self.__dict__.update(copy.deepcopy(self._defaults))
        for name, value in list(zip(self._defaults, values)) + list(named.items()):
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._defaults:
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        kind = type(self._defaults[name])
        if kind in (float, int):
            value = float(value) if kind is float else operator.index(value)
        elif not isinstance(value, kind):
            raise TypeError(f"{type(self).__name__}.{name} takes a {kind.__name__}, not {value!r}")
        self.__dict__[name] = value

    def array(self) -> np.ndarray:
        return np.array(list(self.__dict__.values()))


def _record(name: str, **defaults: Any) -> type:
    return type(name, (_Record,), {"_defaults": defaults})


Vec3 = _record("Vec3", x=0.0, y=0.0, z=0.0)
Quat = _record("Quat", x=0.0, y=0.0, z=0.0, w=1.0)
Transform = _record("Transform", p=Vec3(), r=Quat())
Mat33 = _record("Mat33", x=Vec3(), y=Vec3(), z=Vec3())
PhysXParams = _record(
    "PhysXParams",
    **dict(
        always_use_articulations=False,
        bounce_threshold_velocity=0.2,
        contact_collection=CC_ALL_SUBSTEPS,
        contact_offset=0.02,
    ),
    **dict(default_buffer_size_multiplier=2.0, friction_correlation_distance=0.025, friction_offset_threshold=0.04),
    **dict(
        max_depenetration_velocity=100.0, max_gpu_contact_pairs=1024 * 1024, num_position_iterations=4, num_subscenes=0
    ),
    **dict(num_threads=0, num_velocity_iterations=1, rest_offset=0.001, solver_type=1, use_gpu=False),
)
SimParams = _record(
    "SimParams",
    **dict(
        dt=1.0 / 60.0,
        substeps=2,
        up_axis=UP_AXIS_Y,
        gravity=Vec3(0.0, -9.8, 0.0),
        use_gpu_pipeline=False,
        num_client_threads=0,
    ),
    **dict(physx=PhysXParams(), stress_visualization=False, enable_actor_creation_warning=True),
)
PlaneParams = _record(
    "PlaneParams",
    **dict(
        normal=Vec3(0.0, 1.0, 0.0),
        distance=0.0,
        static_friction=1.0,
        dynamic_friction=1.0,
        restitution=0.0,
        segmentation_id=0,
    ),
)
AssetOptions = _record(
    "AssetOptions",
    **dict(angular_damping=0.5, armature=0.0, collapse_fixed_joints=False, default_dof_drive_mode=0, density=1000.0),
    **dict(disable_gravity=False, enable_gyroscopic_forces=True, fix_base_link=False, flip_visual_attachments=False),
    **dict(
        linear_damping=0.0,
        max_angular_velocity=64.0,
        max_linear_velocity=1000.0,
        override_com=False,
        override_inertia=False,
    ),
    **dict(replace_cylinder_with_capsule=False, slices_per_cylinder=20, thickness=0.02, use_mesh_materials=False),
)
RigidBodyProperties = _record(
    "RigidBodyProperties", mass=0.0, invMass=0.0, com=Vec3(), inertia=Mat33(), invInertia=Mat33(), flags=0
)
RigidShapeProperties = _record(
    "RigidShapeProperties",
    **dict(friction=1.0, rolling_friction=0.0, torsion_friction=0.0, restitution=0.0, compliance=0.0, thickness=0.0),
    **dict(contact_offset=0.0, rest_offset=0.0, filter=0),
)


class Tensor:
    """A descriptor: where a tensor lies, not the tensor. `buffer` is the memory of those that the simulator owns."""

    def __init__(self) -> None:
        self.device, self.dtype, self.shape, self.data_address, self.own_data = -1, None, (), 0, False
        self.torch_device = self.storage = self.buffer = None
        self.offset = 0

    @property
    def ndim(self) -> int:
        return len(self.shape)


# ---- Handles ---------------------------------------------------------------------------------------------------------


class Asset:
    def __init__(self, sim: "Sim", character: Character, options: AssetOptions) -> None:
        self.sim, self.character, self.actors = sim, character, 0
        self.shapes = [RigidShapeProperties() for _ in range(character.model.ngeom)]
        model = character.model
        self.dof_properties = np.zeros(len(character.dof_names), DOF_PROPERTIES)
        values = dict(hasLimits=model.jnt_limited[1:], lower=model.jnt_range[1:, 0], upper=model.jnt_range[1:, 1])
        values.update(stiffness=character.stiffness, damping=character.damping, armature=model.dof_armature[6:])
        values.update(driveMode=options.default_dof_drive_mode, velocity=UNSET, effort=UNSET)
        for name, value in values.items():
            self.dof_properties[name] = value
        for d, name in enumerate(character.dof_names):
            if name in INVERT_LIMITS:
                own = self.dof_properties[d]
                own["lower"], own["upper"] = float(own["upper"]), float(own["lower"])


class Actor:
    def __init__(self, asset: Asset, pose: Transform, name: str, index: int) -> None:
        self.asset, self.pose, self.name, self.index = asset, copy.deepcopy(pose), name, index
        self.dof_properties = asset.dof_properties.copy()


class Env:
    def __init__(self, sim: "Sim", index: int) -> None:
        self.sim, self.index, self.actors = sim, index, []

    def body_start(self, actor: int) -> int:
        """Index in this env of an actor's first body."""
        return sum(len(a.asset.character.body_names) for a in self.actors[:actor])


class Sim:
    live: Optional["Sim"] = None  # the process's only simulator

    def __init__(self, params: SimParams, compute: int) -> None:
        self.params, self.compute = copy.deepcopy(params), compute
        self.gpu, self.prepared = params.use_gpu_pipeline, False
        self.sim = self  # so that every handle has one
        self.ground, self.envs, self.actors, self.batches = -1.0, [], [], []
        self.tensors, self.submitted = (
            {},
            {},
        )  # by kind: the descriptor; what root and dofs held when last in step with the simulation
        self.pending: List[
            Tuple[str, str, Tensor, Any]
        ] = []  # setter, role, descriptor, its content if that may not change
        self.unfetched = False

    def read(self, setter: str, role: str, tensor: Any, size: int, dtype: str = "float32") -> Any:
        """The tensor that a setter was handed, checked."""
        from isaacgym import gymtorch

        if self.unfetched and not self.gpu:
            raise GymViolation(f"{setter}: on the CPU pipeline fetch_results(sim, True) comes first after simulate")
        if not isinstance(tensor, Tensor):
            raise GymViolation(f"{setter}: takes descriptors from gymtorch.unwrap_tensor, not {type(tensor).__name__}")
        if str(tensor.torch_device) != self.device:
            raise GymViolation(
                f"{setter}: the {role} tensor lies on the wrong device, {tensor.torch_device}, not {self.device}"
            )
        if str(tensor.dtype) != f"torch.{dtype}":
            raise GymViolation(f"{setter}: the {role} tensor has the wrong dtype, {tensor.dtype}, not {dtype}")
        if int(np.prod(tensor.shape)) != size:
            raise GymViolation(f"{setter}: the {role} tensor has the wrong size, {tensor.shape}, not {size} numbers")
        content = gymtorch.alive(tensor)
        if content is None:
            raise GymViolation(f"{setter}: the {role} tensor's storage was freed")
        return content

    def read_indices(self, setter: str, tensor: Any, count: int) -> Any:
        """The int32 tensor (n,) of sim-domain actor indices that a setter was handed, checked."""
        if isinstance(tensor, Tensor) and int(np.prod(tensor.shape)) != count:
            raise GymViolation(f"{setter}: {int(np.prod(tensor.shape))} indices do not match the length {count}")
        content = self.read(setter, "index", tensor, count, "int32")
        if count == 0:
            raise GymViolation(f"{setter}: empty indices")
        if int(content.min()) < 0 or int(content.max()) >= len(self.actors):
            raise GymViolation(f"{setter}: actor index out of range (there are {len(self.actors)} actors)")
        if len(content.unique()) < count:
            raise GymViolation(f"{setter}: duplicated actor indices")
        return content

    def current(self, kind: str) -> np.ndarray:
        """One of the simulator's tensors as physics has it now, float64."""
        found = np.zeros(self.tensors[kind].shape)
        for batch in self.batches:
            if kind == "root":
                found[batch.actors] = batch.read_root()
            elif kind == "dof":
                found[batch.dofs] = batch.read_dofs()
            else:
                found[batch.bodies] = batch.body_state if kind == "body" else batch.contact
        return found

    def refresh(self, kind: str) -> bool:
        """Bring one of the tensors up to date."""
        if self.unfetched and not self.gpu:
            raise GymViolation(
                f"refresh of the {kind} tensor: on the CPU pipeline fetch_results(sim, True) comes first after simulate"
            )
        buffer = self.tensors[kind].buffer
        if kind in self.submitted and not _same(buffer, self.submitted[kind]):
            raise GymViolation(
                f"refresh of the {kind} tensor would overwrite edits that no indexed setter has submitted"
            )
        buffer.copy_(buffer.new_tensor(self.current(kind)))
        if kind in self.submitted:
            self.submitted[kind] = buffer.clone()
        return True


# ---- Checks ----------------------------------------------------------------------------------------------------------


def _same(a: Any, b: Any) -> bool:
    """Whether two tensors are equal, NaN being equal to NaN."""
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _enter(handle: Any, kind: type, method: str, stage: str = "any") -> Sim:
    """The simulator of a handle, which must be of a kind and alive, "building" or "running" if the stage says so."""
    if not isinstance(handle, kind):
        raise GymViolation(f"{method}: {handle!r} is no {kind.__name__}")
    sim = handle.sim
    if Sim.live is not sim:
        raise GymViolation(f"{method}: called after destroy_sim")
    if sim.prepared and stage == "building":
        raise GymViolation(f"{method}: called after prepare_sim")
    if not sim.prepared and stage == "running":
        raise GymViolation(f"{method}: called before prepare_sim")
    return sim


def _check_finite(values: np.ndarray, what: str) -> None:
    if not np.isfinite(values).all():
        raise GymViolation(f"{what}: not finite")


def _actor(env: Any, handle: int, method: str, stage: str = "any") -> Actor:
    _enter(env, Env, method, stage)
    if handle not in range(len(env.actors)):
        raise GymViolation(f"{method}: the env has no actor {handle}")
    return env.actors[handle]


def _check_dof_properties(props: Any, count: int, method: str) -> None:
    if not isinstance(props, np.ndarray) or props.dtype != DOF_PROPERTIES:
        raise GymViolation(f"{method}: dof properties must have the dtype that get_actor_dof_properties returns")
    if props.shape != (count,):
        raise GymViolation(f"{method}: {props.shape} dof properties for {count} dofs have the wrong length")
    for name in DOF_PROPERTIES.names:
        _check_finite(props[name], f"{method}: {name}")
    if (props["lower"] > props["upper"]).any():
        raise GymViolation(f"{method}: lower > upper limit; the importer reports some pairs inverted, swap them")
    for name in ("stiffness", "damping", "effort", "armature", "friction", "velocity"):
        if (props[name] < 0.0).any():
            raise GymViolation(f"{method}: negative {name}")
    driven = props["driveMode"] == DOF_MODE_POS
    if (props["effort"][driven] >= UNSET).any():
        raise GymViolation(f"{method}: effort limits after import are unreliable, set them")
    if (~driven & (props["driveMode"] != DOF_MODE_NONE)).any() or props["friction"].any():
        raise NotImplementedError("the double knows position drives without joint friction only")


def _getter(kind: type, value: Callable[[Any], Any], stage: str = "any") -> Callable[..., Any]:
    """A method get_*(handle) -> value(handle); an actor's handle is its env and its number there."""

    def method(self: "Gym", handle: Any, *actor: int) -> Any:
        if kind is Actor:
            return value(_actor(handle, *actor, "get_actor_*"))
        _enter(handle, kind, f"a getter of {kind.__name__}" if stage == "any" else "acquire or refresh", stage)
        return value(handle, *actor)

    return method


# ---- The API ---------------------------------------------------------------------------------------------------------


class Gym:
    """The methods in the order in which a program calls them."""

    # -- simulator and ground

    def create_sim(
        self,
        compute_device: int = 0,
        graphics_device: int = 0,
        type: SimType = SIM_PHYSX,
        params: Optional[SimParams] = None,
    ) -> Optional[Sim]:
        """None where there is no such device."""
        if Sim.live is not None:
            raise GymViolation("create_sim: there is a live simulator already, and one is all a process can have")
        if type is not SIM_PHYSX:
            raise GymViolation("create_sim: the simulator type must be SIM_PHYSX")
        if not isinstance(params, SimParams):
            raise GymViolation("create_sim: params must be SimParams")
        if params.use_gpu_pipeline and not params.physx.use_gpu:
            raise GymViolation("create_sim: use_gpu_pipeline without physx.use_gpu")
        gravity = params.gravity
        if params.up_axis != UP_AXIS_Z or gravity.x or gravity.y or gravity.z > 0.0:
            raise GymViolation(
                "create_sim: MJCF has Z up, so up_axis must be UP_AXIS_Z and gravity must point along -Z"
            )
        if params.dt <= 0.0 or params.substeps < 1:
            raise GymViolation("create_sim: dt and substeps must be positive")
        if graphics_device != -1:
            raise GymViolation("create_sim: the graphics device must be -1, nothing is drawn")
        if compute_device < 0:
            return None
        Sim.live = Sim(params, compute_device)
        return Sim.live

    def destroy_sim(self, sim: Sim, /) -> None:
        _enter(sim, Sim, "destroy_sim")
        Sim.live = None

    def add_ground(self, sim: Sim, params: PlaneParams) -> None:
        _enter(sim, Sim, "add_ground", "building")
        if (params.normal.x, params.normal.y, params.normal.z) != (0.0, 0.0, 1.0):
            raise GymViolation("add_ground: the normal must be +Z, where up is")
        if params.static_friction < 0.0 or params.distance or params.static_friction != params.dynamic_friction:
            raise NotImplementedError("the double's ground is z = 0 with one coefficient of friction")
        sim.ground = params.static_friction

    # -- assets

    def load_asset(
        self, sim: Sim, rootpath: str, filename: str, options: Optional[AssetOptions] = None
    ) -> Optional[Asset]:
        """None where there is no such file."""
        _enter(sim, Sim, "load_asset", "building")
        options, path = options or AssetOptions(), os.path.join(rootpath, filename)
        if options.collapse_fixed_joints:
            raise GymViolation("load_asset: collapse_fixed_joints would merge welded bodies into their parents")
        if (
            options.fix_base_link
            or options.disable_gravity
            or options.armature
            or options.override_com
            or options.override_inertia
        ):
            raise NotImplementedError("the double leaves base, gravity, armature and inertia as the file has them")
        return Asset(sim, Character(path), options) if os.path.isfile(path) else None

    get_asset_rigid_body_names = _getter(Asset, lambda asset: list(asset.character.body_names))
    get_asset_rigid_body_count = _getter(Asset, lambda asset: len(asset.character.body_names))
    get_asset_dof_names = _getter(Asset, lambda asset: list(asset.character.dof_names))
    get_asset_dof_count = _getter(Asset, lambda asset: len(asset.character.dof_names))
    get_asset_dof_properties = _getter(Asset, lambda asset: asset.dof_properties.copy())
    get_asset_rigid_shape_properties = _getter(Asset, lambda asset: copy.deepcopy(asset.shapes))
    get_asset_rigid_shape_count = _getter(Asset, lambda asset: len(asset.shapes))

    def set_asset_rigid_shape_properties(self, asset: Asset, props: List[RigidShapeProperties], /) -> bool:
        _enter(asset, Asset, "set_asset_rigid_shape_properties", "building")
        if asset.actors:
            raise GymViolation(
                "set_asset_rigid_shape_properties: an actor of the asset exists already, set friction before"
            )
        if len(props) != len(asset.shapes) or any(shape.friction < 0.0 for shape in props):
            raise GymViolation(
                f"set_asset_rigid_shape_properties: needs {len(asset.shapes)} shapes without negative friction"
            )
        asset.shapes = copy.deepcopy(props)
        return True

    # -- environments and actors

    def create_env(self, sim: Sim, lower: Vec3, upper: Vec3, num_per_row: int, /) -> Env:
        _enter(sim, Sim, "create_env", "building")
        if num_per_row < 1 or not (isinstance(lower, Vec3) and isinstance(upper, Vec3)):
            raise GymViolation("create_env: takes the space's lower and upper corner and how many are in a row")
        sim.envs.append(Env(sim, len(sim.envs)))
        return sim.envs[-1]

    def create_actor(
        self,
        env: Env,
        asset: Asset,
        pose: Transform,
        name: str = "",
        group: int = -1,
        filter: int = -1,
        segmentationId: int = 0,
    ) -> int:
        """The actor's handle: its number in the env."""
        sim = _enter(env, Env, "create_actor", "building")
        _enter(asset, Asset, "create_actor", "building")
        if env is not sim.envs[-1]:
            raise GymViolation("create_actor: finish one env before creating the next")
        if group != env.index:
            raise GymViolation(f"create_actor: the collision group must be the env's index, {env.index}, not {group}")
        if filter != 0:
            raise GymViolation("create_actor: the collision filter must be 0, which leaves self-collision on")
        if abs(np.linalg.norm(pose.r.array()) - 1.0) > 1e-3:
            raise GymViolation("create_actor: the pose has a non-unit quaternion")
        asset.actors += 1
        sim.actors.append(Actor(asset, pose, name, len(sim.actors)))
        env.actors.append(sim.actors[-1])
        return len(env.actors) - 1

    get_env_count = _getter(Sim, lambda sim: len(sim.envs))
    get_actor_count = _getter(Env, lambda env: len(env.actors))
    get_sim_actor_count = _getter(Sim, lambda sim: len(sim.actors))
    get_sim_dof_count = _getter(Sim, lambda sim: sum(len(a.asset.character.dof_names) for a in sim.actors))
    get_sim_rigid_body_count = _getter(Sim, lambda sim: sum(len(a.asset.character.body_names) for a in sim.actors))
    get_actor_rigid_body_names = _getter(Actor, lambda actor: list(actor.asset.character.body_names))
    get_actor_rigid_body_count = _getter(Actor, lambda actor: len(actor.asset.character.body_names))
    get_actor_dof_names = _getter(Actor, lambda actor: list(actor.asset.character.dof_names))
    get_actor_dof_count = _getter(Actor, lambda actor: len(actor.asset.character.dof_names))
    get_actor_dof_properties = _getter(Actor, lambda actor: actor.dof_properties.copy())  # rad, Nm/rad, Nms/rad, Nm

    def get_actor_index(self, env: Env, actor: int, domain: IndexDomain, /) -> int:
        index = _actor(env, actor, "get_actor_index").index
        return index if domain == DOMAIN_SIM else actor

    def find_actor_rigid_body_handle(self, env: Env, actor: int, name: str, /) -> int:
        """The body's index in the env, or INVALID_HANDLE."""
        names = _actor(env, actor, "find_actor_rigid_body_handle").asset.character.body_names
        return env.body_start(actor) + names.index(name) if name in names else INVALID_HANDLE

    def set_actor_dof_properties(self, env: Env, actor: int, props: np.ndarray, /) -> bool:
        found = _actor(env, actor, "set_actor_dof_properties", "building")
        _check_dof_properties(props, len(found.dof_properties), "set_actor_dof_properties")
        found.dof_properties = props.copy()
        return True

    def get_actor_rigid_body_properties(self, env: Env, actor: int, /) -> List[RigidBodyProperties]:
        found = []
        for mass, com, inertia in _actor(
            env, actor, "get_actor_rigid_body_properties"
        ).asset.character.body_properties():
            props = RigidBodyProperties()
            props.mass, props.invMass, props.com = mass, 1.0 / mass, Vec3(*com)
            for matrix, rows in ((props.inertia, inertia), (props.invInertia, np.linalg.inv(inertia))):
                matrix.x, matrix.y, matrix.z = (Vec3(*row) for row in rows)
            found.append(props)
        return found

    # -- tensors

    def prepare_sim(self, sim: Sim, /) -> bool:
        """From here on nothing can be created; the simulator's tensors exist, all zero until the first refresh."""
        from isaacgym import gymtorch

        _enter(sim, Sim, "prepare_sim", "building")
        on_cuda = sim.gpu and gymtorch.torch.cuda.is_available()
        sim.device = f"cuda:{sim.compute}" if on_cuda else "cpu"
        batches: Dict[Any, List[Actor]] = {}  # actors that can share a model
        for actor in sim.actors:
            _check_dof_properties(actor.dof_properties, len(actor.dof_properties), "prepare_sim")
            batches.setdefault((id(actor.asset), actor.dof_properties.tobytes()), []).append(actor)
        dof_start = np.cumsum([0] + [len(actor.asset.character.dof_names) for actor in sim.actors])
        body_start = np.cumsum([0] + [len(actor.asset.character.body_names) for actor in sim.actors])
        gravity = [0.0, 0.0, sim.params.gravity.z]
        for actors in batches.values():
            asset, ids = actors[0].asset, np.array([actor.index for actor in actors])
            character, friction = asset.character, [shape.friction for shape in asset.shapes]
            model = character.compile(
                actors[0].dof_properties, friction, sim.ground, gravity, sim.params.dt / sim.params.substeps
            )
            dofs = dof_start[ids][:, None] + np.arange(len(character.dof_names))
            batch = Batch(character, model, ids, dofs, body_start[ids][:, None] + np.arange(len(character.body_names)))
            for row, actor in enumerate(actors):
                pose = np.concatenate((actor.pose.p.array(), actor.pose.r.array(), np.zeros(6)))
                batch.write_root(np.array([row]), pose[None])
            batch.step(0)
            sim.batches.append(batch)
        sim.driven = np.concatenate(
            [actor.dof_properties["driveMode"] == DOF_MODE_POS for actor in sim.actors] or [np.zeros(0, bool)]
        )
        shapes = {
            "root": (len(sim.actors), 13),
            "dof": (dof_start[-1], 2),
            "body": (body_start[-1], 13),
            "contact": (body_start[-1], 3),
        }
        sim.tensors = {kind: gymtorch.zeros(tuple(map(int, shape)), sim.device) for kind, shape in shapes.items()}
        sim.submitted = {kind: sim.tensors[kind].buffer.clone() for kind in ("root", "dof")}
        sim.prepared = True
        return True

    acquire_actor_root_state_tensor = _getter(Sim, lambda sim: sim.tensors["root"], "running")
    acquire_dof_state_tensor = _getter(Sim, lambda sim: sim.tensors["dof"], "running")
    acquire_rigid_body_state_tensor = _getter(Sim, lambda sim: sim.tensors["body"], "running")
    refresh_actor_root_state_tensor = _getter(Sim, lambda sim: sim.refresh("root"), "running")
    refresh_dof_state_tensor = _getter(Sim, lambda sim: sim.refresh("dof"), "running")
    refresh_rigid_body_state_tensor = _getter(Sim, lambda sim: sim.refresh("body"), "running")
    refresh_net_contact_force_tensor = _getter(Sim, lambda sim: sim.refresh("contact"), "running")

    def acquire_net_contact_force_tensor(self, sim: Sim, /) -> Tensor:
        _enter(sim, Sim, "acquire_net_contact_force_tensor", "running")
        if sim.params.physx.contact_collection != CC_LAST_SUBSTEP:
            fault = "physx.contact_collection must be CC_LAST_SUBSTEP (the default is broken)"
            raise GymViolation(f"acquire_net_contact_force_tensor: {fault}")
        return sim.tensors["contact"]

    # -- setters

    def set_actor_root_state_tensor_indexed(self, sim: Sim, states: Tensor, actors: Tensor, count: int, /) -> bool:
        return self._set_indexed(sim, "set_actor_root_state_tensor_indexed", "root", states, actors, count)

    def set_dof_state_tensor_indexed(self, sim: Sim, states: Tensor, actors: Tensor, count: int, /) -> bool:
        return self._set_indexed(sim, "set_dof_state_tensor_indexed", "dof", states, actors, count)

    def set_dof_position_target_tensor_indexed(self, sim: Sim, targets: Tensor, actors: Tensor, count: int, /) -> bool:
        return self._set_indexed(sim, "set_dof_position_target_tensor_indexed", "target", targets, actors, count)

    def set_dof_position_target_tensor(self, sim: Sim, targets: Tensor, /) -> bool:
        setter = "set_dof_position_target_tensor"
        _enter(sim, Sim, setter, "running")
        content = sim.read(setter, "target", targets, len(sim.driven))
        for batch in sim.batches:
            self._set_targets(
                sim, batch, np.arange(len(batch.actors)), content.cpu().numpy().ravel()[batch.dofs], setter
            )
        sim.pending.append((setter, "target", targets, content.clone()))
        return True

    def _set_targets(self, sim: Sim, batch: Batch, rows: np.ndarray, targets: np.ndarray, setter: str) -> None:
        """Targets (n, D) for rows (n,) of a batch."""
        if not sim.driven[batch.dofs[rows]].all():
            raise GymViolation(f"{setter}: a dof's driveMode is not DOF_MODE_POS, it has no position target")
        _check_finite(targets, setter)
        batch.targets[rows] = targets

    def _set_indexed(self, sim: Sim, setter: str, kind: str, tensor: Tensor, actors: Tensor, count: int) -> bool:
        _enter(sim, Sim, setter, "running")
        if any(earlier == setter for earlier, _, _, _ in sim.pending):
            raise GymViolation(f"{setter}: a second call before simulate would drop the first one's indices")
        index, shape = (
            sim.read_indices(setter, actors, count),
            {"root": (-1, 13), "dof": (-1, 2), "target": (-1,)}[kind],
        )
        content = sim.read(
            setter, kind, tensor, len(sim.driven) if kind == "target" else int(np.prod(sim.tensors[kind].shape))
        )
        rows = content.cpu().numpy().astype(np.float64).reshape(shape)
        for batch in sim.batches:
            own = np.isin(batch.actors, index.cpu().numpy()).nonzero()[0]
            named = batch.actors[own] if kind == "root" else batch.dofs[own]
            if kind == "target":
                self._set_targets(sim, batch, own, rows[named], setter)
                continue
            _check_finite(rows[named], setter)
            if kind == "root" and (abs(np.linalg.norm(rows[named, 3:7], axis=-1) - 1.0) > 1e-3).any():
                raise GymViolation(f"{setter}: a non-unit quaternion")
            (batch.write_root if kind == "root" else batch.write_dofs)(own, rows[named])
            if tensor.data_address == sim.tensors[kind].data_address:
                sim.submitted[kind][named.ravel()] = content.reshape(shape)[named.ravel()]
        sim.pending.append((setter, "index", actors, index.clone()))
        sim.pending.append((setter, kind, tensor, content.clone() if kind == "target" else None))
        return True

    # -- stepping

    def simulate(self, sim: Sim, /) -> None:
        """Advance by dt in `substeps` steps of physics."""
        from isaacgym import gymtorch

        _enter(sim, Sim, "simulate", "running")
        pending, sim.pending = sim.pending, []
        for setter, role, tensor, content in pending:
            now = gymtorch.alive(tensor)
            if now is None:
                raise GymViolation(
                    f"simulate: the {role} tensor given to {setter} was freed before simulate consumed it"
                )
            if content is not None and not _same(now, content):
                raise GymViolation(
                    f"simulate: the {role} tensor given to {setter} was changed before simulate consumed it"
                )
        for batch in sim.batches:
            batch.step(sim.params.substeps)
        sim.unfetched = True

    def fetch_results(self, sim: Sim, wait: bool, /) -> None:
        _enter(sim, Sim, "fetch_results", "running")
        sim.unfetched = sim.unfetched and not wait


def acquire_gym() -> Gym:
    return Gym()
