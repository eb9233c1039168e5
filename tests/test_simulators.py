"""What all simulators promise, what MuJoCo promises besides, and what choose() and make() refuse."""

import math
import re

import simulators

import numpy as np
import pytest
import torch
from conftest import put

import motion_lib as ml
from checkpoints import put_back

mujoco = pytest.importorskip("mujoco")  # also the physics of the double of Isaac Gym
CPU = torch.device("cpu")
UPRIGHT = torch.tensor([0.0, 0.0, 0.0, 1.0])


@pytest.fixture(autouse=True)
def in_tmp_path(monkeypatch, tmp_path):
    """What a simulator leaves in its working directory is this test's own."""
    monkeypatch.chdir(tmp_path)


def isaacgym_maker(double, monkeypatch, character):
    """Yields make(num_envs, gpu=False, control_hz=30, substeps=4): an IsaacGymSim on the double of Isaac Gym's API.

    The API has one simulator at a time: the next one, and the end, destroy it."""
    from simulators import isaacgym_sim

    monkeypatch.setattr(isaacgym_sim, "gymapi", double[0])
    monkeypatch.setattr(isaacgym_sim, "gymtorch", double[1])
    alive = []

    def close():
        while alive:
            sim = alive.pop()
            sim.gym.destroy_sim(sim.sim)

    def make(num_envs, gpu=False, control_hz=30, substeps=4):
        close()
        if gpu:  # without CUDA the double keeps its tensors in CPU memory, under the GPU pipeline's rules
            timestep = 1.0 / (control_hz * substeps)
            alive.append(isaacgym_sim.IsaacGymSim(character, num_envs, timestep, substeps, CPU, on_gpu=True))
        else:
            alive.append(simulators.make("isaacgym", character, num_envs, control_hz, substeps, CPU, 1))
        return alive[-1]

    yield make
    close()


@pytest.fixture
def make_isaacgym(double, monkeypatch, character):
    yield from isaacgym_maker(double, monkeypatch, character)


@pytest.fixture(params=["mujoco", "warp", "isaacgym, cpu pipeline", "isaacgym, gpu pipeline"])
def any_sim(request, character):
    """any_sim(num_envs, control_hz=30, substeps=4) -> each of the simulators in turn."""
    if request.param == "warp":
        pytest.importorskip("mujoco_warp", reason="pip install -r requirements-warp.txt (Python 3.11 or newer)")
    if request.param in ("mujoco", "warp"):
        return lambda num_envs, control_hz=30, substeps=4: simulators.make(
            request.param, character, num_envs, control_hz, substeps, CPU, 2
        )
    make_isaacgym = request.getfixturevalue("make_isaacgym")
    return lambda num_envs, **rates: make_isaacgym(num_envs, gpu="gpu" in request.param, **rates)


def make_mujoco(character, num_envs, substeps=3, threads=2):
    return simulators.make("mujoco", character, num_envs, 30, substeps, CPU, threads)


def at_rest(character, n=1, height=0.9, dof=None, yaw=0.0):
    """n characters at the origin, upright but for a yaw [rad], their dofs (n, D) zero if not given."""
    zero = torch.zeros(n, 3)
    position = torch.tensor([[0.0, 0.0, height]]).repeat(n, 1)
    dof = torch.zeros(n, 28) if dof is None else dof
    rotations = ml.rotations_from_dofs(character, ml.quat_from_yaw(torch.full((n,), yaw)), dof)
    return ml.MotionState(position, rotations, zero.clone(), zero.clone(), torch.zeros(n, 28))


def random_poses(character, n, seed=0):
    """(n, D) dofs up to 0.3 rad, with knees and elbows in their range, arms and legs apart so that nothing touches."""
    dof = 0.6 * torch.rand(n, 28, generator=torch.Generator().manual_seed(seed)) - 0.3
    for d, name in enumerate(character.dof_names):
        if name.endswith(("shoulder_x", "hip_x", "knee", "elbow")):
            dof[:, d] = 0.4 if name in ("left_shoulder_x", "left_hip_x", "left_knee", "right_knee") else -0.4
    return dof


def assert_close(one, two, atol):
    """Two MotionStates are the same; q and -q are one rotation."""
    torch.testing.assert_close(one.root_position, two.root_position, atol=atol, rtol=0)
    torch.testing.assert_close(one.root_velocity, two.root_velocity, atol=atol, rtol=0)
    torch.testing.assert_close(one.root_angular_velocity, two.root_angular_velocity, atol=atol, rtol=0)
    torch.testing.assert_close(one.dof_velocity, two.dof_velocity, atol=atol, rtol=0)
    turned = ml.rotvec_from_quat(ml.quat_multiply(ml.quat_conjugate(one.rotations), two.rotations))
    assert turned.norm(dim=-1).max() <= atol


def test_the_contact_solver_gives_what_newtons_gives(all_motions):
    """PGS is faster with so few contacts. A step on from moments of all clips, crawling and lying ones too."""
    clip, time = all_motions.sample(300, 0.0, torch.Generator().manual_seed(0))
    state = all_motions.state(clip, time)
    targets = ml.dof_positions(all_motions.character, state.rotations)
    fast, exact = (make_mujoco(all_motions.character, 300) for _ in range(2))
    assert fast.model.opt.solver == mujoco.mjtSolver.mjSOL_PGS
    exact.model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    exact.model.opt.tolerance = 1e-10
    for sim in (fast, exact):
        sim.set_state(torch.ones(300, dtype=torch.bool), state)
    before = exact.state.copy()
    ours, newtons = fast.step(targets)[0], exact.step(targets)[0]
    change = np.abs(exact.state - before)[:, fast.velocity :].mean()
    difference = (ours.dof_velocity - newtons.dof_velocity).abs()
    assert change > 0.5  # [rad/s]
    assert difference.mean() < 1e-4 and difference.amax(-1).quantile(0.98) < 1e-2
    assert (ours.root_position - newtons.root_position).norm(dim=-1).quantile(0.98) < 1e-4


# ---- What all promise ------------------------------------------------------------------------------------------------


def test_states_read_back_as_they_were_set(any_sim, all_motions):
    """Through each simulator's own coordinates; one step is too short to move anything."""
    sim = any_sim(20, control_hz=20_000, substeps=1)
    state = all_motions.state(torch.arange(20), torch.full((20,), 0.3))
    state.root_position[:, 2] += 1.0  # in the air
    put(sim, torch.arange(20), state)
    back, diverged = sim.step(ml.dof_positions(all_motions.character, state.rotations))
    assert not diverged.any()
    torch.testing.assert_close(back.root_position, state.root_position, atol=1e-3, rtol=0)
    torch.testing.assert_close(back.root_velocity, state.root_velocity, atol=0.02, rtol=0)
    torch.testing.assert_close(back.root_angular_velocity, state.root_angular_velocity, atol=0.15, rtol=0)
    assert (back.rotations * state.rotations).sum(-1).abs().min() > 0.9999


def test_setting_some_environments_leaves_the_others(any_sim, character, walk):
    sim = any_sim(4)
    put(sim, torch.arange(4), walk.state(torch.zeros(4, dtype=torch.long), 0.2 * torch.arange(4)))
    before = sim.state_dict()
    put(sim, torch.tensor([2, 0]), at_rest(character, 2, height=5.0))
    changed = {name: (x != before[name]).flatten(1).any(1).tolist() for name, x in sim.kept.items()}
    assert {name: rows[1] or rows[3] for name, rows in changed.items()} == dict.fromkeys(changed, False)
    assert any(rows[0] and rows[2] for rows in changed.values())
    state, _ = sim.step(torch.zeros(4, 28))
    assert state.root_position[[0, 2], 2].tolist() == pytest.approx([5.0, 5.0], abs=0.01)
    assert state.root_position[[1, 3], 2].max() < 1.0


def test_drop_under_gravity_without_contact(any_sim, character):
    sim = any_sim(2)
    put(sim, torch.arange(2), at_rest(character, 2, height=3.0))
    for _ in range(12):
        state, _ = sim.step(torch.zeros(2, 28))
    # v = g t; semi-implicit Euler of step h falls g t (t + h) / 2
    t, h = 12 / 30, 1 / 120
    fallen = torch.tensor([[0.0, 0.0, -9.81 * t]]).repeat(2, 1)
    torch.testing.assert_close(state.root_velocity, fallen, atol=1e-3, rtol=0)
    assert state.root_position[0, 2] == pytest.approx(3.0 - 0.5 * 9.81 * t * (t + h), abs=1e-3)
    body = ml.forward_kinematics(character, state.root_position, state.rotations)
    assert ml.lowest_points(character, *body).min() > 1.0
    assert ml.dof_positions(character, state.rotations).abs().max() < 1e-3


def test_free_flight(any_sim, character):
    """Thrown upwards at 2 m/s, turning: gravity does the rest."""
    sim = any_sim(1, substeps=3)
    state = at_rest(character, height=5.0)
    state.root_velocity[0] = torch.tensor([1.0, -0.5, 2.0])
    state.root_angular_velocity[0] = torch.tensor([0.0, 0.0, 1.0])
    put(sim, torch.tensor([0]), state)
    # half a second; the centre of mass lies above the root, which circles around it by a few millimetres
    for _ in range(15):
        state, diverged = sim.step(torch.zeros(1, 28))
    assert not diverged.any()
    expected = torch.tensor([0.5, -0.25, 5 + 1.0 - 9.81 / 8])
    torch.testing.assert_close(state.root_position[0], expected, atol=0.03, rtol=0)
    assert float(ml.heading(state.rotations[0, 0])) == pytest.approx(0.5, abs=0.03)


def test_targets_are_held_and_reached(any_sim, character):
    """In free fall: exponential-map targets on the ball joints, angles on the hinges."""
    target = random_poses(character, 1, seed=5).repeat(2, 1)
    sim = any_sim(2)
    put(sim, torch.tensor([0]), at_rest(character, 1, 100.0, target[:1]))
    put(sim, torch.tensor([1]), at_rest(character, 1, 100.0))
    for step in range(30):
        state, _ = sim.step(target)
        off = (ml.dof_positions(character, state.rotations) - target).abs().amax(-1)
        assert off[0] < 0.01  # held throughout
        if step == 0:
            assert off[1] > 0.05  # not there at once
    assert off[1] < 0.01  # and reached


def test_torque_limit(any_sim, character):
    """A knee has 150 Nm: a target 10 rad off pulls no harder than one 5 rad off, and one 0.1 rad off less hard."""
    sim = any_sim(3, substeps=3)
    put(sim, torch.arange(3), at_rest(character, 3, height=3.0))
    target = torch.zeros(3, 28)
    knee = character.dof_names.index("left_knee")
    target[:, knee] = torch.tensor([0.1, 5.0, 10.0])
    state, _ = sim.step(target)
    angle = ml.dof_positions(character, state.rotations)[:, knee]
    assert 0.01 < angle[0] < 0.9 * angle[1]
    torch.testing.assert_close(angle[2], angle[1], atol=1e-6, rtol=0)


def test_order_of_quaternions_and_of_environments(any_sim, character):
    sim = any_sim(3)
    for i, yaw in ((0, 0.0), (1, 0.5 * math.pi), (2, -0.5 * math.pi)):
        put(sim, torch.tensor([i]), at_rest(character, 1, 3.0 + i, yaw=yaw))
    state, _ = sim.step(torch.zeros(3, 28))
    half = math.sqrt(0.5)
    expected = torch.tensor([[0, 0, 0, 1.0], [0, 0, half, half], [0, 0, -half, half]])
    torch.testing.assert_close(state.rotations[:, 0], expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(state.root_position[:, 2], torch.tensor([3.0, 4.0, 5.0]), atol=0.01, rtol=0)


def test_environments_do_not_touch_one_another(any_sim, walk):
    """Two that stand in the same place move as each would alone; a step of the first leaves the second as it is."""
    sim = any_sim(2)
    put(sim, torch.arange(2), walk.state(torch.zeros(2, dtype=torch.long), torch.full((2,), 0.2)))
    for _ in range(5):
        both, _ = sim.step(torch.zeros(2, 28))
    torch.testing.assert_close(both.root_position[0], both.root_position[1], atol=1e-5, rtol=0)
    before = sim.state_dict()
    sim.step(torch.ones(1, 28))
    sim.load_state_dict(before)
    one, _ = sim.step(torch.zeros(2, 28))
    torch.testing.assert_close(one.root_position[0], one.root_position[1], atol=1e-4, rtol=0)


def test_a_state_dict_is_all_that_the_next_steps_depend_on(any_sim, walk):
    """On the ground, with contacts: from the same state dict come the same steps, whatever has been in between."""
    sim = any_sim(3)
    clip = torch.zeros(3, dtype=torch.long)
    put(sim, torch.arange(3), walk.state(clip, 0.3 * torch.arange(3)))
    for _ in range(3):
        sim.step(torch.zeros(3, 28))
    before = sim.state_dict()
    expected = [sim.step(torch.full((3, 28), 0.1))[0] for _ in range(3)]
    assert any(not x.equal(before[name]) for name, x in sim.state_dict().items())
    put(sim, torch.arange(3), walk.state(clip, torch.zeros(3)))
    sim.step(torch.zeros(2, 28))  # of the first two only, as an evaluation does
    sim.load_state_dict(before)
    again = [sim.step(torch.full((3, 28), 0.1))[0] for _ in range(3)]
    for one, two in zip(expected, again):
        assert_close(one, two, atol=1e-3)
    # the targets of copies that a step leaves out are part of it
    found = []
    for _ in range(2):
        sim.step(torch.ones(3, 28))
        sim.load_state_dict(before)
        sim.step(torch.zeros(1, 28))
        found.append(sim.state_dict())
        sim.step(-torch.ones(3, 28))
    for name, x in found[0].items():
        torch.testing.assert_close(x, found[1][name], atol=1e-3, rtol=0)


def test_a_state_dict_of_another_simulator_is_refused(any_sim):
    sim = any_sim(3)
    sim.step(torch.zeros(3, 28))
    before = sim.state_dict()
    name = next(iter(before))
    extra = {**before, "more": torch.zeros(1)}
    fewer = {key: x for key, x in before.items() if key != name}
    for state in (extra, fewer, {}):
        with pytest.raises(ml.InputError, match=r"sim: .* on one side only"):
            put_back({"sim": sim}, {"sim": state})
    last = list(before)[-1]
    # one row would broadcast to all three; the tensors before it must not have been taken over
    for rows in (1, 2, 4):
        wrong = {key: torch.zeros_like(x) for key, x in before.items()}
        wrong[last] = before[last].new_zeros(rows, *before[last].shape[1:])
        with pytest.raises(ml.InputError, match=re.escape(f"sim.{last} is {before[last].dtype} ({rows}, ")):
            put_back({"sim": sim}, {"sim": wrong})
    assert all(x.equal(before[key]) for key, x in sim.kept.items())


def test_divergence_is_told_and_contained(any_sim, character):
    """One flies off at 1000 m/s: it is put to rest, and the others never notice."""
    sim = any_sim(3)
    state = at_rest(character, 3, height=10.0)
    state.root_velocity[1, 2] = 1000.0
    put(sim, torch.arange(3), state)
    state, diverged = sim.step(torch.zeros(3, 28))
    assert diverged.tolist() == [False, True, False]
    assert state.root_velocity[1].tolist() == [0, 0, 0] and state.dof_velocity[1].abs().max() == 0
    assert ml.dof_positions(character, state.rotations)[1].abs().max() == 0
    torch.testing.assert_close(state.root_position[[0, 2], 2], torch.full((2,), 9.993), atol=1e-3, rtol=0)


# ---- MuJoCo ----------------------------------------------------------------------------------------------------------


def test_mujoco_reads_back_every_frame_as_it_was_set(character, all_motions):
    """From MuJoCo's coordinates, not from what was handed in."""
    for number in range(20):
        frames = int(all_motions.last[number]) + 1
        time = torch.arange(frames) / all_motions.fps[number]
        state = all_motions.state(torch.full((frames,), number), time)
        sim = make_mujoco(character, frames)
        put(sim, torch.arange(frames), state)
        assert_close(sim.read(), state, atol=1e-4)
        sim.step(torch.zeros(frames, 28))
        put(sim, torch.arange(frames), state)
        assert_close(sim.read(), state, atol=1e-4)
        assert (sim.state[:, 0] == 0).all()  # its clock as well: the physics knows no hour


def test_the_number_of_threads_changes_nothing(character, walk):
    found = []
    for threads in (1, 3, 50):
        sim = make_mujoco(character, 8, threads=threads)
        assert len(sim.data) == min(threads, 8)
        put(sim, torch.arange(8), walk.state(torch.zeros(8, dtype=torch.long), 0.1 * torch.arange(8)))
        generator = torch.Generator().manual_seed(1)
        for _ in range(5):
            sim.step(0.3 * torch.randn(8, 28, generator=generator))
        found.append(sim.state_dict()["state"])
    assert found[0].equal(found[1]) and found[0].equal(found[2])


def test_drives_are_stable_at_any_rate(character):
    """MuJoCo's model has kp and kd of the character, and its inertia grows by h kd + h^2 kp."""
    knee = character.dof_names.index("right_knee")
    assert (character.kp[knee], character.kd[knee]) == (500, 50)
    for substeps in (1, 4):
        model = make_mujoco(character, 1, substeps).model
        h = 1 / (30 * substeps)
        assert model.opt.timestep == h and model.nu == 28 and model.nv == 34
        # a knee has an armature of 0.02 in the file
        assert model.dof_armature[6 + knee] == pytest.approx(0.02 + h * 50 + h**2 * 500)
        assert not model.dof_damping.any() and not model.jnt_stiffness.any()
        assert model.actuator_gainprm[knee, 0] == 500
        assert model.actuator_biasprm[knee, 1:3].tolist() == pytest.approx([-500, -(50 + h * 500)])
        assert model.actuator_forcerange[knee].tolist() == [-150, 150]


def test_warnings_are_told_once_and_leave_no_file(character, monkeypatch, tmp_path, capfd):
    """MuJoCo by itself prints each of them and writes each into MUJOCO_LOG.TXT in the working directory."""
    from simulators import mujoco_model

    monkeypatch.setattr(mujoco_model, "_said", set())
    sim = make_mujoco(character, 16)
    capfd.readouterr()
    for _ in range(3):
        sim.state[:, 3] = np.nan
        _, diverged = sim.step(torch.zeros(16, 28))
        assert diverged.all()
    (line,) = capfd.readouterr().err.splitlines()
    assert "MuJoCo, for the first time" in line and "unstable" in line
    assert list(tmp_path.iterdir()) == []


# ---- What is refused -------------------------------------------------------------------------------------------------


def replaced(path, old, new, count=1):
    """A change of the character file that must hit something."""
    text = path.read_text(encoding="utf-8")
    changed, hits = re.subn(old, new, text, count=count)
    assert hits
    return changed


@pytest.mark.parametrize(
    "old, new, count, fault",
    [
        ('size="0.09"', 'size="nan"', 1, "size"),
        ('density="2226"', 'density="nan"', 1, "density"),  # MuJoCo would take its default density
        ('density="2226"', 'density="inf"', 1, "density"),
        ('density="2226"', 'density="-5"', 1, "density"),
        ('stiffness="1000"', 'stiffness="nan"', 1, "stiffness"),
        ('stiffness="1000"', 'stiffness="1e30"', 1, "stiffness"),
        ('stiffness="1000"', 'stiffness="-1"', 1, "stiffness"),
        ('damping="100"', 'damping="-1"', 1, "damping"),
        ('armature="0.02"', 'armature="-5"', 1, "armature"),
        ('gear="200"', 'gear="nan"', 1, "gear"),
        ('gear="200"', 'gear="-200"', 1, "gear"),
        ('range="-60 60"', 'range="-60 nan"', 1, "range"),
        ('range="-60 60"', 'range="60 -60"', 1, "range"),
        ('pos="0 0 0.9"', 'pos="0 0 nan"', 1, "pos"),
        ('pos="0 0 0.236151"', 'pos="0 0 1e30"', 1, "pos"),
        ('pos="0 0 0.236151"', 'pos="0 0 1e8"', 1, "from its rest pose on"),
        ('axis="0 1 0" limited="true" range="-160 0"', 'axis="0 0 0" limited="true" range="-160 0"', 1, "axis"),
        ('type="sphere" pos="0 0 0.07"', 'type="mesh" pos="0 0 0.07"', 1, "geom pelvis: must be"),
        ("<geom name[^>]*/>", "", 0, ""),
        ('<geom name="head"[^>]*/>', "", 1, ""),
    ],
)
@pytest.mark.filterwarnings("ignore:Inertia matrix is too close to singular")
def test_a_character_that_cannot_be_simulated_is_one_line(root, tmp_path, old, new, count, fault):
    path = tmp_path / "character.xml"
    path.write_text(replaced(root / "motions/humanoid.xml", old, new, count), encoding="utf-8")
    with pytest.raises(ml.InputError) as refusal:
        make_mujoco(ml.load_character(str(path)), 1)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 300
    assert fault in message[len(str(path)) :]


def test_a_simulator_without_a_name_is_refused(character):
    with pytest.raises(ValueError, match="no simulator has the name auto"):
        simulators.make("auto", character, 1, 30, 4, CPU, 1)


ABSENT = "ModuleNotFoundError: No module named 'isaacgym'"
BROKEN = "RuntimeError: No gym module found for this Python"


@pytest.fixture
def choose(monkeypatch):
    """choose(name, cuda, fault, installed): what is chosen with these packages installed, and Isaac Gym's fault."""

    def run(name, cuda=False, fault=ABSENT, installed=("mujoco", "mujoco_warp")):
        monkeypatch.setattr(simulators, "isaacgym_fault", fault)
        monkeypatch.setattr(simulators, "find_spec", lambda package: package if package in installed else None)
        return simulators.choose(name, cuda)

    return run


def test_auto_takes_the_best_that_is_installed(choose, capsys):
    assert choose("auto", cuda=False, fault="") == choose("auto", cuda=True, fault="") == "isaacgym"
    assert choose("auto", cuda=True, fault="", installed=()) == "isaacgym"
    assert choose("auto", cuda=False) == "mujoco"
    assert choose("auto", cuda=True) == "warp"
    assert capsys.readouterr().err == ""
    assert choose("auto", cuda=True, installed=("mujoco",)) == "mujoco"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("physics stays on the CPU") and "requirements-warp.txt" in line
    assert choose("auto", fault=BROKEN) == "mujoco"
    (line,) = capsys.readouterr().err.splitlines()
    assert BROKEN in line and "trying MuJoCo" in line


def test_what_is_asked_for_by_name_is_never_another_simulator(choose, capsys):
    for name in ("mujoco", "warp", "isaacgym"):
        assert choose(name, fault="") == name
    assert choose("warp", cuda=True) == "warp"
    assert choose("mujoco", cuda=False) == "mujoco"
    assert capsys.readouterr().err == ""
    assert choose("mujoco", cuda=True) == "mujoco"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("physics stays on the CPU") and "--sim warp" in line


def test_what_is_not_installed_is_refused_with_advice(choose):
    for name in ("auto", "mujoco"):
        with pytest.raises(ml.InputError, match=r"--sim mujoco: pip install mujoco"):
            choose(name, installed=())
    with pytest.raises(ml.InputError, match=r"--sim warp: pip install -r requirements-warp\.txt"):
        choose("warp", installed=("mujoco",))
    for fault in (ABSENT, BROKEN):
        with pytest.raises(ml.InputError) as refusal:
            choose("isaacgym", fault=fault)
        for part in (fault, "developer.nvidia.com/isaac-gym", "Python 3.8", "--sim mujoco"):
            assert part in str(refusal.value)
