"""The double of Isaac Gym: every rule bites when broken, and what it reproduces is right, by hand-checked numbers."""

import math
import os
import subprocess
import sys
from pathlib import Path

import simulators

import numpy as np
import pytest
import torch
from conftest import put

import motion_lib as ml

pytest.importorskip("mujoco")  # its physics
DOUBLE = str(Path(__file__).resolve().parent / "isaacgym_double")
BALL = """<mujoco><worldbody><body name="ball"><freejoint/>
<geom type="sphere" pos="0 0 0.5" size="0.1" density="1000"/></body></worldbody></mujoco>"""


class World:
    """A simulator of the humanoid (or of an MJCF text) with everything done right, up to `until`."""

    def __init__(self, double, root, folder) -> None:
        self.gymapi, self.gymtorch = double
        self.gym, self.root, self.folder = self.gymapi.acquire_gym(), root, folder

    def params(self, gpu=True, dt=1 / 30, substeps=4, gravity=-9.81):
        params = self.gymapi.SimParams()
        params.dt, params.substeps, params.up_axis = dt, substeps, self.gymapi.UP_AXIS_Z
        params.gravity, params.physx.contact_collection = (
            self.gymapi.Vec3(0, 0, gravity),
            self.gymapi.ContactCollection(1),
        )
        params.use_gpu_pipeline = params.physx.use_gpu = gpu
        return params

    def build(self, envs=1, actors=1, mjcf=None, until="ready", height=0.9, drive=True, ground=True, **params):
        gymapi, gym = self.gymapi, self.gym
        self.sim = gym.create_sim(0, -1, gymapi.SIM_PHYSX, self.params(**params))
        if ground:
            gym.add_ground(self.sim, self.plane())
        self.asset, self.envs = self.load(mjcf), []
        for i in range(envs):
            self.envs.append(gym.create_env(self.sim, gymapi.Vec3(-1, -1, 0), gymapi.Vec3(1, 1, 1), 2))
            for _ in range(actors):
                pose = gymapi.Transform(gymapi.Vec3(0, 0, height))
                handle = gym.create_actor(self.envs[-1], self.asset, pose, "humanoid", i, 0, 0)
                if drive:
                    gym.set_actor_dof_properties(self.envs[-1], handle, self.drives(handle))
        if until == "ready":
            gym.prepare_sim(self.sim)
            self.ready()
        return self

    def ready(self):
        kinds = {
            "root": "actor_root_state",
            "dof": "dof_state",
            "body": "rigid_body_state",
            "contact": "net_contact_force",
        }
        acquired = {name: getattr(self.gym, f"acquire_{kind}_tensor")(self.sim) for name, kind in kinds.items()}
        self.states, self.dofs, self.bodies, self.contacts = (
            self.gymtorch.wrap_tensor(acquired[name]) for name in kinds
        )
        self.refresh()
        self.targets = torch.zeros(len(self.dofs))

    def plane(self):
        plane = self.gymapi.PlaneParams()
        plane.normal = self.gymapi.Vec3(0, 0, 1)
        return plane

    def load(self, mjcf=None):
        if mjcf is None:
            return self.gym.load_asset(self.sim, str(self.root / "motions"), "humanoid.xml", self.gymapi.AssetOptions())
        (self.folder / "some.xml").write_text(mjcf)
        return self.gym.load_asset(self.sim, str(self.folder), "some.xml", self.gymapi.AssetOptions())

    def drives(self, actor=0, **changes):
        props = self.gym.get_actor_dof_properties(self.envs[-1], actor)
        props["driveMode"].fill(self.gymapi.DOF_MODE_POS)
        props["effort"] = 200.0
        for name, value in changes.items():
            props[name] = value
        return props

    def refresh(self):
        for kind in ("actor_root_state", "dof_state", "rigid_body_state", "net_contact_force"):
            getattr(self.gym, f"refresh_{kind}_tensor")(self.sim)

    def simulate(self, times=1):
        for _ in range(times):
            self.gym.simulate(self.sim)
        self.gym.fetch_results(self.sim, True)
        self.refresh()

    def ids(self, *ids, dtype=torch.int32):
        self.kept = torch.tensor(ids, dtype=dtype)
        return self.kept

    def submit(self, setter, tensor, ids, count=None):
        """One indexed call; setter: "root", "dof" or "target"."""
        method = {"root": "actor_root_state", "dof": "dof_state", "target": "dof_position_target"}[setter]
        unwrap = self.gymtorch.unwrap_tensor
        count = len(ids) if count is None else count
        return getattr(self.gym, f"set_{method}_tensor_indexed")(self.sim, unwrap(tensor), unwrap(ids), count)

    def aim(self, targets=None):
        targets = self.targets if targets is None else targets
        return self.gym.set_dof_position_target_tensor(self.sim, self.gymtorch.unwrap_tensor(targets))


@pytest.fixture
def world(double, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MuJoCo leaves a note when a simulation breaks
    yield World(double, root, tmp_path)
    double[0].Sim.live, double[0].INVERT_LIMITS = None, ()


# ---- Rules -----------------------------------------------------------------------------------------------------------


def test_the_import_order(root):
    """simulators imports it before torch."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((DOUBLE, str(root)))}

    def run(code):
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )

    refusal = "PyTorch was imported before isaacgym modules"
    assert refusal in run("import sys; sys.modules['torch'] = None; import isaacgym").stderr
    assert run("from isaacgym import gymapi; import sys; assert 'torch' not in sys.modules").returncode == 0
    assert run("import simulators; print(simulators.isaacgym_fault)").stdout == "\n"
    assert refusal in run("import torch, simulators; print(simulators.isaacgym_fault)").stdout


def flex(w):
    w.gym.create_sim(0, -1, w.gymapi.SIM_FLEX, w.params())


def graphics(w):
    w.gym.create_sim(0, 0, w.gymapi.SIM_PHYSX, w.params())


def pipeline_without_gpu(w):
    params = w.params()
    params.physx.use_gpu = False
    w.gym.create_sim(0, -1, w.gymapi.SIM_PHYSX, params)


def second_sim(w):
    w.build(until="built").gym.create_sim(0, -1, w.gymapi.SIM_PHYSX, w.params())


def sideways_gravity(w):
    params = w.params()
    params.gravity = w.gymapi.Vec3(0, -9.81, 0)
    w.gym.create_sim(0, -1, w.gymapi.SIM_PHYSX, params)


def default_plane(w):
    w.build(until="built").gym.add_ground(w.sim, w.gymapi.PlaneParams())


def late_friction(w):
    shapes = w.build(until="built").gym.get_asset_rigid_shape_properties(w.asset)
    w.gym.set_asset_rigid_shape_properties(w.asset, shapes)


def actor(w, env=-1, group=None, filter=0, rotation=None):
    w.build(envs=2, until="built")
    pose = w.gymapi.Transform(r=rotation or w.gymapi.Quat())
    w.gym.create_actor(w.envs[env], w.asset, pose, "more", w.envs[env].index if group is None else group, filter, 0)


def drive_properties(w, **changes):
    w.build(until="built").gym.set_actor_dof_properties(w.envs[0], 0, w.drives(**changes))


def default_drive_properties(w):
    props = w.build(until="built", drive=False).drives()
    props["effort"] = w.gym.get_actor_dof_properties(w.envs[0], 0)["effort"]
    w.gym.set_actor_dof_properties(w.envs[0], 0, props)


def inverted_limits(w, write_back):
    w.gymapi.INVERT_LIMITS = ("right_knee",)
    w.build(until="built", drive=write_back).gym.prepare_sim(w.sim)


def default_contacts(w):
    w.build(until="built", drive=False).sim.params.physx.contact_collection = w.gymapi.CC_ALL_SUBSTEPS
    w.gym.prepare_sim(w.sim)
    w.gym.acquire_net_contact_force_tensor(w.sim)


def no_fetch(w):
    w.build(gpu=False).gym.simulate(w.sim)
    w.refresh()


def set_without_fetch(w):
    w.build(gpu=False).gym.simulate(w.sim)
    w.aim()


def indices(w, *ids, count=None, dtype=torch.int32):
    w.build(envs=2).submit("root", w.states, w.ids(*ids, dtype=dtype), count)


def targets(w, **tensor):
    w.build().aim(torch.zeros(tensor.pop("shape", 28), **tensor))


def every_second(w):
    w.build().aim(torch.zeros(28, 2)[:, 0])


def a_bare_tensor(w):
    w.build().gym.set_dof_position_target_tensor(w.sim, w.targets)


def twice(w, setter):
    w.build(envs=2)
    tensor = {"root": w.states, "dof": w.dofs, "target": w.targets}[setter]
    first, second = w.ids(0), w.ids(1)
    w.submit(setter, tensor, first)
    w.submit(setter, tensor, second)


def freed_targets(w):
    w.build().aim(torch.zeros(28))
    w.simulate()


def freed_indices(w):
    w.build().submit("root", w.states, torch.tensor([0], dtype=torch.int32))
    w.simulate()


def freed_before_the_call(w):
    descriptor = w.build().gymtorch.unwrap_tensor(torch.zeros(28))
    w.gym.set_dof_position_target_tensor(w.sim, descriptor)


def changed_targets(w):
    w.build().aim()
    w.targets += 1.0
    w.simulate()


def unsubmitted(w, tensor, submit=()):
    w.build(envs=2)
    getattr(w, tensor)[:, 0] += 0.1
    if submit:
        w.submit({"states": "root", "dofs": "dof"}[tensor], getattr(w, tensor), w.ids(*submit))
    w.simulate()


def state(w, setter, column, value):
    tensor = {"root": w.build().states, "dof": w.dofs}[setter]
    tensor[0, column] = value
    w.submit(setter, tensor, w.ids(0))


def undriven(w):
    w.build(until="built")
    props = w.drives()
    props["driveMode"][3] = w.gymapi.DOF_MODE_NONE
    w.gym.set_actor_dof_properties(w.envs[0], 0, props)
    w.gym.prepare_sim(w.sim)
    w.ready()
    w.aim()


RULES = {
    "flex": (flex, "must be SIM_PHYSX"),
    "graphics": (graphics, "must be -1"),
    "pipeline without use_gpu": (pipeline_without_gpu, "without physx.use_gpu"),
    "second sim": (second_sim, "live simulator already"),
    "gravity": (sideways_gravity, "along -Z"),
    "default plane": (default_plane, r"must be \+Z"),
    "late friction": (late_friction, "set friction before"),
    "earlier env": (lambda w: actor(w, env=0), "finish one env"),
    "group": (lambda w: actor(w, group=0), "collision group must be the env's index"),
    "filter": (lambda w: actor(w, filter=1), "collision filter must be 0"),
    "pose": (lambda w: actor(w, rotation=w.gymapi.Quat(0, 0, 0, 2)), "non-unit"),
    "dof properties' length": (
        lambda w: w.build(until="b").gym.set_actor_dof_properties(w.envs[0], 0, w.drives()[:27]),
        "wrong length",
    ),
    "dof properties' type": (
        lambda w: w.build(until="b").gym.set_actor_dof_properties(w.envs[0], 0, np.zeros((28, 10))),
        "must have the dtype",
    ),
    "lower > upper": (lambda w: drive_properties(w, lower=3.5), "lower > upper"),
    "negative stiffness": (lambda w: drive_properties(w, stiffness=-1), "negative stiffness"),
    "negative damping": (lambda w: drive_properties(w, damping=-1), "negative damping"),
    "negative effort": (lambda w: drive_properties(w, effort=-1), "negative effort"),
    "NaN gain": (lambda w: drive_properties(w, stiffness=math.nan), "not finite"),
    "imported effort": (default_drive_properties, "effort limits after import are unreliable"),
    "inverted limits written back": (lambda w: inverted_limits(w, True), "set_actor_dof_properties: lower > upper"),
    "inverted limits left alone": (lambda w: inverted_limits(w, False), "prepare_sim: lower > upper"),
    "default contact collection": (default_contacts, "must be CC_LAST_SUBSTEP"),
    "no fetch_results": (no_fetch, "fetch_results"),
    "setter before fetch_results": (set_without_fetch, "fetch_results"),
    "int64 indices": (lambda w: indices(w, 0, dtype=torch.int64), "index tensor has the wrong dtype"),
    "index out of range": (lambda w: indices(w, 2), "out of range"),
    "negative index": (lambda w: indices(w, -1), "out of range"),
    "duplicated index": (lambda w: indices(w, 1, 1), "duplicated"),
    "no index": (lambda w: indices(w), "empty"),
    "length": (lambda w: indices(w, 0, 1, count=1), "do not match the length"),
    "device": (lambda w: targets(w, device="meta"), "wrong device"),
    "dtype": (lambda w: targets(w, dtype=torch.float64), "wrong dtype"),
    "size": (lambda w: targets(w, shape=27), "wrong size"),
    "not contiguous": (every_second, "contiguous"),
    "not unwrapped": (a_bare_tensor, "unwrap_tensor"),
    "NaN target": (lambda w: w.build().aim(torch.full((28,), math.nan)), "not finite"),
    "two root calls": (lambda w: twice(w, "root"), "second call before simulate"),
    "two dof calls": (lambda w: twice(w, "dof"), "second call before simulate"),
    "two target calls": (lambda w: twice(w, "target"), "second call before simulate"),
    "freed targets": (freed_targets, "target tensor .* was freed before simulate"),
    "freed indices": (freed_indices, "index tensor .* was freed before simulate"),
    "freed at once": (freed_before_the_call, "storage was freed"),
    "changed targets": (changed_targets, "was changed before simulate"),
    "unsubmitted root": (lambda w: unsubmitted(w, "states"), "root tensor would overwrite edits"),
    "unsubmitted dofs": (lambda w: unsubmitted(w, "dofs"), "dof tensor would overwrite edits"),
    "a row not named": (lambda w: unsubmitted(w, "states", submit=(1,)), "root tensor would overwrite edits"),
    "dofs of an actor not named": (lambda w: unsubmitted(w, "dofs", submit=(0,)), "dof tensor would overwrite edits"),
    "NaN position": (lambda w: state(w, "root", 0, math.nan), "not finite"),
    "NaN dof": (lambda w: state(w, "dof", 1, math.inf), "not finite"),
    "quaternion": (lambda w: state(w, "root", 6, 1.01), "non-unit quaternion"),
    "target without drive": (undriven, "driveMode is not DOF_MODE_POS"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_raises(world, rule):
    scenario, message = RULES[rule]
    with pytest.raises(world.gymapi.GymViolation, match=message):
        scenario(world)


HINGE = '<joint name="hip" type="hinge" axis="0 1 0" limited="true" range="-90 90"/>'
MJCF = f"""<mujoco><default><geom condim="3" friction="1.0 0.05 0.05"/></default><worldbody><body name="a"><freejoint/>
<geom type="sphere" size="0.1" density="900"/>
<body name="b">{HINGE}<geom type="sphere" pos="0 0 -0.3" size="0.1" density="900"/></body>
</body></worldbody><actuator><motor joint="hip" gear="50"/></actuator></mujoco>"""


@pytest.mark.parametrize(
    "right, wrong",
    [
        ('density="900"', 'mass="4"'),
        ('condim="3"', 'condim="4"'),
        ("1.0 0.05 0.05", "0.8 0.05 0.05"),
        ("<geom type", '<geom solref="0.01 1" type'),
        ("<joint", '<joint frictionloss="1"'),
        (' limited="true"', ""),
        ('<motor joint="hip" gear="50"', '<general joint="hip" gainprm="50"'),
        ('<motor joint="hip" gear="50"', '<position joint="hip" kp="50" kv="5"'),
        ("<actuator>", '<contact><exclude body1="a" body2="b"/></contact><actuator>'),
    ],
)
def test_mjcf_that_the_importer_ignores(world, right, wrong):
    world.build(mjcf=MJCF)
    world.gym.destroy_sim(world.sim)
    with pytest.raises(world.gymapi.GymViolation, match="MJCF"):
        world.build(mjcf=MJCF.replace(right, wrong))


@pytest.mark.parametrize("stage", ["before prepare_sim", "after prepare_sim", "after destroy_sim"])
def test_the_call_order(world, stage):
    world.build(until="ready" if stage == "after prepare_sim" else "built")
    gymapi, gym, sim, env = world.gymapi, world.gym, world.sim, world.envs[0]
    props, targets = world.drives(), world.gymtorch.unwrap_tensor(torch.zeros(28))
    pose, shapes = gymapi.Transform(), gym.get_asset_rigid_shape_properties(world.asset)
    tensors = ("actor_root_state", "dof_state", "rigid_body_state", "net_contact_force")
    running = [lambda k=k, v=v: getattr(gym, f"{v}_{k}_tensor")(sim) for k in tensors for v in ("acquire", "refresh")]
    running += [
        lambda: gym.simulate(sim),
        lambda: gym.fetch_results(sim, True),
        lambda: gym.set_dof_position_target_tensor(sim, targets),
    ]
    for kind in ("actor_root_state", "dof_state", "dof_position_target"):
        running.append(lambda kind=kind: getattr(gym, f"set_{kind}_tensor_indexed")(sim, targets, targets, 1))
    building = [
        lambda: gym.add_ground(sim, world.plane()),
        lambda: world.load(),
        lambda: gym.create_env(sim, gymapi.Vec3(), gymapi.Vec3(), 1),
        lambda: gym.create_actor(env, world.asset, pose, "late", 0, 0, 0),
        lambda: gym.set_actor_dof_properties(env, 0, props),
        lambda: gym.set_asset_rigid_shape_properties(world.asset, shapes),
        lambda: gym.prepare_sim(sim),
    ]
    anytime = [
        lambda: gym.get_actor_dof_properties(env, 0),
        lambda: gym.get_sim_actor_count(sim),
        lambda: gym.destroy_sim(sim),
    ]
    if stage == "after destroy_sim":
        gym.destroy_sim(sim)
    wrong = {
        "before prepare_sim": running,
        "after prepare_sim": building,
        "after destroy_sim": running + building + anytime,
    }[stage]
    for call in wrong:
        with pytest.raises(gymapi.GymViolation, match=stage):
            call()


def test_misspelt_fields_and_wrong_types_are_refused(world):
    with pytest.raises(AttributeError, match="substep"):
        world.gymapi.SimParams().substep = 4
    with pytest.raises(TypeError, match="up_axis"):
        world.gymapi.SimParams().up_axis = 1
    with pytest.raises(TypeError):
        world.gymapi.SimParams().substeps = 2.5
    assert world.gym.create_sim(-1, -1, world.gymapi.SIM_PHYSX, world.params()) is None


# ---- What it reproduces ----------------------------------------------------------------------------------------------


def test_names_limits_and_masses(world, character):
    gym, env = world.build(actors=2, drive=False).gym, world.envs[0]
    assert gym.get_actor_rigid_body_names(env, 0) == gym.get_asset_rigid_body_names(world.asset) == character.body_names
    assert gym.get_actor_dof_names(env, 1) == character.dof_names
    props = gym.get_actor_dof_properties(env, 0)
    knee = character.dof_names.index("right_knee")
    assert (
        props["upper"][knee] == pytest.approx(math.radians(160))
        and props["lower"][knee] == 0
        and props["hasLimits"].all()
    )
    assert (
        props["stiffness"][knee] == 500 and props["damping"][knee] == 50 and props["armature"][knee] == np.float32(0.02)
    )
    assert (props["driveMode"] == world.gymapi.DOF_MODE_NONE).all()
    bodies = gym.get_actor_rigid_body_properties(env, 0)
    hand = bodies[character.body_names.index("left_hand")]  # a sphere: m = 4/3 pi r^3 rho, I = 2/5 m r^2
    assert hand.mass == pytest.approx(4 / 3 * math.pi * 0.04**3 * 1865)
    assert hand.inertia.y.y == pytest.approx(0.4 * hand.mass * 0.04**2) and hand.inertia.y.z == pytest.approx(
        0, abs=1e-9
    )
    assert bodies[2].com.z == pytest.approx(0.175)  # the head's one sphere
    assert (
        gym.find_actor_rigid_body_handle(env, 1, "head") == 17
        and gym.find_actor_rigid_body_handle(env, 1, "tail") == -1
    )
    assert (gym.get_sim_dof_count(world.sim), gym.get_sim_rigid_body_count(world.sim)) == (56, 30)


def test_inverted_limits_can_be_swapped_back(world, character):
    world.gymapi.INVERT_LIMITS = ("right_knee",)
    world.build(until="built", drive=False)
    knee, props = character.dof_names.index("right_knee"), world.drives()
    assert props["lower"][knee] == np.float32(math.radians(160)) and props["upper"][knee] == 0
    props["lower"], props["upper"] = (
        np.minimum(props["lower"], props["upper"]),
        np.maximum(props["lower"], props["upper"]),
    )
    assert world.gym.set_actor_dof_properties(world.envs[0], 0, props) and world.gym.prepare_sim(world.sim)


def test_friction_is_that_of_shapes_and_ground(world):
    """A box that slides at 1 m/s under mu = 0.5 loses 0.5 g t."""
    gymapi, gym = world.gymapi, world.gym
    world.sim = gym.create_sim(0, -1, gymapi.SIM_PHYSX, world.params(dt=0.1, substeps=100))
    plane = world.plane()
    plane.static_friction = plane.dynamic_friction = 0.5
    gym.add_ground(world.sim, plane)
    world.asset = world.load(BALL.replace('"sphere" pos="0 0 0.5" size="0.1"', '"box" size="0.1 0.1 0.02"'))
    shapes = gym.get_asset_rigid_shape_properties(world.asset)
    assert [shape.friction for shape in shapes] == [1.0]
    shapes[0].friction = 0.5
    gym.set_asset_rigid_shape_properties(world.asset, shapes)
    env = gym.create_env(world.sim, gymapi.Vec3(), gymapi.Vec3(), 1)
    gym.create_actor(env, world.asset, gymapi.Transform(gymapi.Vec3(0, 0, 0.02)), "box", 0, 0)
    gym.prepare_sim(world.sim)
    world.ready()
    world.states[0, 7] = 1.0
    world.submit("root", world.states, world.ids(0))
    world.simulate()
    assert world.states[0, 7] == pytest.approx(1.0 - 0.5 * 9.81 * 0.1, abs=0.02)


def test_positions_are_local_and_quaternions_xyzw(world):
    world.build(envs=2, height=3.0)
    assert world.states[:, :7].tolist() == [[0, 0, 3, 0, 0, 0, 1]] * 2
    world.states[1, 3:7] = torch.tensor([math.sqrt(0.5), 0, 0, math.sqrt(0.5)])  # a quarter turn about x takes z to -y
    world.submit("root", world.states, world.ids(1))
    world.simulate()
    torso = world.bodies.view(2, 15, 13)[:, 1, :3] - world.bodies.view(2, 15, 13)[:, 0, :3]
    assert torch.allclose(torso, torch.tensor([[0, 0, 0.236151], [0, -0.236151, 0]]), atol=2e-3)


def test_linear_velocity_is_that_of_the_centre_of_mass(world):
    """A ball 0.5 m above its link's origin flies along x and spins about x: the origin circles, its centre does not."""
    world.build(mjcf=BALL, gravity=0.0, ground=False, drive=False, dt=0.1, substeps=1000)
    world.states[0, 7:] = torch.tensor([1.0, 0, 0, 3.0, 0, 0])
    world.submit("root", world.states, world.ids(0))
    world.simulate()
    origin = torch.tensor([0.1, 0.5 * math.sin(0.3), 0.9 + 0.5 - 0.5 * math.cos(0.3)])
    assert torch.allclose(world.states[0, :3], origin, atol=1e-3)
    assert torch.allclose(world.states[0, 7:], torch.tensor([1.0, 0, 0, 3.0, 0, 0]), atol=2e-3)
    assert torch.allclose(world.bodies[0], world.states[0], atol=1e-6)


def test_three_dofs_are_the_exponential_map_and_the_velocity_in_the_childs_frame(world):
    world.build(drive=False, dt=1e-5, substeps=1, gravity=0.0, height=3.0)
    # a third of a turn about (1, 1, 1) takes x to y, y to z, z to x; its quaternion is (1, 1, 1, 1) / 2
    world.dofs[:3, 0] = torch.full((3,), 2 * math.pi / 3 / math.sqrt(3))
    world.dofs[0, 1] = 2.0  # about the torso's own x axis, which points along y now
    edited = world.dofs.clone()
    world.submit("dof", world.dofs, world.ids(0))
    world.refresh()
    assert torch.allclose(world.dofs, edited, atol=1e-6)
    world.simulate()
    assert torch.allclose(world.bodies[1, 3:7], torch.full((4,), 0.5), atol=1e-4)
    assert torch.allclose(world.bodies[1, 10:13] - world.bodies[0, 10:13], torch.tensor([0, 2.0, 0]), atol=2e-2)


def test_bodies_and_contacts_stay_old_until_simulate(world):
    world.build(height=0.9)
    world.simulate(times=30)
    weight = 9.81 * sum(body.mass for body in world.gym.get_actor_rigid_body_properties(world.envs[0], 0))
    assert world.contacts.sum(0).tolist() == pytest.approx([0, 0, weight], abs=15)  # it stands, on its feet only
    assert world.contacts.abs().sum(-1).nonzero()[:, 0].tolist() == [11, 14]
    bodies, contacts = world.bodies.clone(), world.contacts.clone()
    world.states[0, 2] = 2.0
    world.submit("root", world.states, world.ids(0))
    world.refresh()
    assert torch.equal(world.bodies, bodies) and torch.equal(world.contacts, contacts) and world.states[0, 2] == 2.0
    world.simulate()
    assert world.bodies[0, 2] == pytest.approx(2.0, abs=0.01) and not world.contacts.any()


def test_targets_persist(world, character):
    world.build(height=3.0, gravity=0.0)
    elbow = character.dof_names.index("left_elbow")
    world.targets[elbow] = -0.8
    world.aim()
    world.simulate(times=30)
    assert world.dofs[elbow, 0] == pytest.approx(-0.8, abs=0.02)
    other = torch.zeros(28)  # an indexed call with other targets moves the drives of the actors that it names
    world.submit("target", other, world.ids(0))
    world.simulate(times=30)
    assert world.dofs[elbow, 0] == pytest.approx(0.0, abs=0.02)


def test_actor_indices_are_the_simulators(world):
    world.build(envs=2, actors=2, gravity=0.0, height=3.0)

    def index(env, actor):
        return world.gym.get_actor_index(world.envs[env], actor, world.gymapi.DOMAIN_SIM)

    assert [index(0, 0), index(0, 1), index(1, 0), index(1, 1)] == [0, 1, 2, 3]
    assert world.gym.get_actor_index(world.envs[1], 0, world.gymapi.DOMAIN_ENV) == 0
    world.states[2, 2] = 5.0
    world.submit("root", world.states, world.ids(2))
    world.simulate()
    assert world.states[:, 2].tolist() == pytest.approx([3, 3, 5, 3], abs=1e-3)
    assert world.bodies.view(4, 15, 13)[:, 0, 2].tolist() == pytest.approx([3, 3, 5, 3], abs=1e-3)
    world.states[2, 2] = 4.0  # and now env 1's first actor by the env's number, which is another actor's
    world.submit("root", world.states, world.ids(1))
    with pytest.raises(world.gymapi.GymViolation, match="overwrite edits"):
        world.simulate()


def test_a_broken_state_is_nan_until_it_is_reset(world):
    world.build(envs=2, height=3.0)
    world.states[0, 10:] = 1e12
    world.submit("root", world.states, world.ids(0))
    world.simulate(times=2)
    assert world.states[0].isnan().all() and world.bodies[:15].isnan().all() and world.states[1].isfinite().all()
    world.states[0], world.dofs[:28] = world.states[1], world.dofs[28:]
    ids = world.ids(0)
    world.submit("root", world.states, ids)
    world.submit("dof", world.dofs, ids)
    world.simulate()
    assert torch.allclose(world.states[0], world.states[1], atol=1e-5)


@pytest.mark.parametrize("gpu", [True, False])
def test_the_same_physics_as_mujoco(world, character, walk, gpu):
    """One control step at a time from poses of the walk, on the ground, and five in a row: states agree to 1e-4."""
    n = 3
    mujoco = simulators.make("mujoco", character, n, 30, 4, torch.device("cpu"), 1)
    motion = walk.state(torch.zeros(n, dtype=torch.long), torch.tensor([0.1, 0.4, 0.8]))
    world.build(envs=n, gpu=gpu, until="built", drive=False)
    for env in world.envs:
        props = world.gym.get_actor_dof_properties(env, 0)
        props["driveMode"], props["effort"] = world.gymapi.DOF_MODE_POS, character.effort.numpy()
        world.gym.set_actor_dof_properties(env, 0, props)
    world.gym.prepare_sim(world.sim)
    world.ready()
    com = world.gym.get_actor_rigid_body_properties(world.envs[0], 0)[0].com
    com = torch.tensor([com.x, com.y, com.z]).expand(n, 3)

    def arm(q, w):
        return torch.linalg.cross(w, ml.quat_rotate(q, com))

    angular, q = motion.root_angular_velocity, motion.rotations[:, 0]
    world.states[:] = torch.cat((motion.root_position, q, motion.root_velocity + arm(q, angular), angular), -1)
    world.dofs[:] = torch.stack((ml.dof_positions(character, motion.rotations), motion.dof_velocity), -1).view(-1, 2)
    put(mujoco, torch.arange(n), motion)
    ids = world.ids(*range(n))
    world.submit("root", world.states, ids)
    world.submit("dof", world.dofs, ids)
    world.targets[:] = 0.3 * torch.sin(torch.arange(n * 28.0))
    world.aim()
    for _ in range(5):
        state, _ = mujoco.step(world.targets.view(n, 28))
        world.simulate()
        q, angular = state.rotations[:, 0], state.root_angular_velocity
        expected = torch.cat((state.root_position, q, state.root_velocity + arm(q, angular), angular), -1)
        assert torch.allclose(world.states, expected, atol=1e-4)
        assert torch.allclose(
            world.dofs.view(n, 28, 2)[..., 0], ml.dof_positions(character, state.rotations), atol=1e-4
        )
        assert torch.allclose(world.dofs.view(n, 28, 2)[..., 1], state.dof_velocity, atol=1e-3)
        position, rotation = ml.forward_kinematics(character, state.root_position, state.rotations)
        bodies = world.bodies.view(n, 15, 13)
        assert torch.allclose(bodies[..., :3], position, atol=1e-4)
        assert torch.allclose((bodies[..., 3:7] * rotation).sum(-1).abs(), torch.ones(n, 15), atol=1e-5)
