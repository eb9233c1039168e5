"""IsaacGymSim against the strict double of Isaac Gym's API in isaacgym_double/, and against MujocoSim.

What all simulators promise is in test_simulators.py."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys

import simulators

import pytest
import torch
from conftest import put
from test_simulators import isaacgym_maker
from torch.utils._python_dispatch import TorchDispatchMode

import amp_ppo_isaacgym as amp
import motion_lib as ml

mujoco = pytest.importorskip("mujoco")  # the physics of the double
CPU = torch.device("cpu")
SCRIPT = "amp_ppo_isaacgym.py"


@pytest.fixture
def make_sim(double, monkeypatch, character):
    """make_sim(num_envs, gpu=False) -> an IsaacGymSim on the double, destroyed after the test or by the next one."""
    yield from isaacgym_maker(double, monkeypatch, character)


def env_on(sim, motions, num_envs, episode_steps=300):
    return amp.AMPEnv(amp.Args(cuda=False, target_speed=1.0), motions, sim, num_envs, episode_steps)


# ---- Against MujocoSim, and by itself --------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu pipeline", "gpu pipeline"])
def test_both_simulators_give_the_same_episodes(make_sim, walk, character, gpu):
    """Same seed and actions, resets by falls and time-outs on the way: the same observations and rewards."""
    envs = [env_on(make_sim(24, gpu), walk, 24, 22)]
    envs.append(env_on(simulators.make("mujoco", character, 24, 30, 4, CPU, 2), walk, 24, 22))
    option = envs[1].sim.model.opt  # the double solves as MuJoCo does by itself
    option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    option.tolerance = 1e-8
    option.disableflags = 0
    start = [env.reset(5)[0] for env in envs]
    torch.testing.assert_close(*start, atol=1e-4, rtol=0)
    generator, ended, fell = torch.Generator().manual_seed(2), 0, 0
    same = torch.ones(24, dtype=torch.bool)
    for _ in range(40):
        action = 0.6 * torch.randn(24, 28, generator=generator)
        (obs, reward, terminated, truncated, info), other = [env.step(action) for env in envs]
        # a foot that just grazes the ground touches it in one simulator and not in the other, for a difference of 1e-7
        same &= (info["final_obs"] - other[4]["final_obs"]).abs().amax(-1) < 1e-4
        for mine, its in ((obs, other[0]), (reward, other[1]), (info["disc_obs"], other[4]["disc_obs"])):
            torch.testing.assert_close(mine[same], its[same], atol=1e-4, rtol=0)
        assert terminated[same].equal(other[2][same]) and truncated[same].equal(other[3][same])
        on = (~(terminated | truncated)).nonzero()[:, 0]
        for env in envs:  # from the same state again: contacts would let the differences grow without bound
            put(env.sim, on, ml.MotionState(*(x[on] for x in info["state"])))
        ended, fell = ended + int((terminated | truncated)[same].sum()), fell + int(terminated[same].sum())
    assert same.sum() >= 20 and ended > 24 and 0 < fell < ended


def test_velocities_are_those_of_the_root_and_not_of_its_centre_of_mass(make_sim, walk):
    sim = make_sim(1)
    assert 0.01 < sim.com.norm() < 0.2
    state = walk.state(torch.zeros(1, dtype=torch.long), torch.zeros(1))
    state = state._replace(root_velocity=torch.zeros(1, 3), root_angular_velocity=torch.tensor([[0.0, 2.0, 0.0]]))
    put(sim, torch.zeros(1, dtype=torch.long), state)
    expected = torch.linalg.cross(state.root_angular_velocity[0], ml.quat_rotate(state.rotations[0, 0], sim.com))
    torch.testing.assert_close(sim.root[0, 7:10], expected)


def test_two_resets_before_a_step_are_one_call(make_sim, walk):
    sim = make_sim(4)
    calls = record(sim)
    for ids, time in (([0, 1], 0.1), ([1, 3], 0.5)):
        put(sim, torch.tensor(ids), walk.state(torch.zeros(len(ids), dtype=torch.long), torch.full((len(ids),), time)))
    state, _ = sim.step(torch.zeros(4, 28))  # the double raises on a second indexed call
    assert calls.count("set_actor_root_state_tensor_indexed") == calls.count("set_dof_state_tensor_indexed") == 1
    height = state.root_position[:, 2]
    assert height[0] != height[1] and height[1] == pytest.approx(height[3])
    sim.step(torch.zeros(4, 28))
    assert calls.count("set_dof_state_tensor_indexed") == 1  # nothing was reset


def test_a_broken_environment_is_reset(make_sim, walk, monkeypatch):
    sim = make_sim(3)
    env = env_on(sim, walk, 3)
    env.reset(0)
    refresh = sim.gym.refresh_dof_state_tensor

    def broken(handle):
        refresh(handle)
        sim.dof[1, 5, 0], sim.root[2, 8] = float("nan"), 1e4

    monkeypatch.setattr(sim.gym, "refresh_dof_state_tensor", broken)
    obs, _, terminated, _, info = env.step(torch.zeros(3, 28))
    assert info["diverged"].tolist() == [False, True, True] and terminated[1:].all() and torch.isfinite(obs).all()
    assert torch.isfinite(info["final_obs"]).all() and info["state"].root_position[1].tolist() == [0, 0, 0]
    monkeypatch.setattr(sim.gym, "refresh_dof_state_tensor", refresh)
    obs, _, _, _, info = env.step(torch.zeros(3, 28))  # the double raises on states that are not finite
    assert not info["diverged"].any() and torch.isfinite(obs).all()


def test_limits_that_come_inverted_are_swapped(make_sim, double, monkeypatch, capsys):
    monkeypatch.setattr(double[0], "INVERT_LIMITS", ("right_knee", "left_hip_x"))
    make_sim(1)  # the double raises on limits that are set inverted
    assert "right_knee: lower 0, upper 2.793" in capsys.readouterr().out


# ---- No host round trips ---------------------------------------------------------------------------------------------


class Recorder:
    """A gym that notes the names of calls, and is `inside` while one runs: what happens there is the double's own."""

    def __init__(self, gym, calls):
        self.gym, self.calls, self.inside = gym, calls, False

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            self.inside = True
            try:
                return getattr(self.gym, name)(*arguments)
            finally:
                self.inside = False

        return call


def record(sim):
    """Names of all calls of the API from now on."""
    calls = []
    sim.gym = Recorder(sim.gym, calls)
    return calls


class Operations(TorchDispatchMode):
    """Names of the tensor operations outside the recorder's calls."""

    def __init__(self, recorder):
        super().__init__()
        self.recorder, self.names = recorder, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not self.recorder.inside:
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_step_costs_the_same_calls_for_any_number_of_environments(make_sim, walk, monkeypatch):
    seen = []
    for num_envs in (2, 64):
        sim = make_sim(num_envs, gpu=True)
        reset = torch.arange(num_envs - 1)
        put(sim, reset, walk.state(torch.zeros_like(reset), 0.01 * reset))
        calls, targets, copies = record(sim), torch.zeros(num_envs, 28), []
        with monkeypatch.context() as patch:
            for name in ("cpu", "numpy", "tolist"):  # these a dispatch mode does not see on the CPU
                real = getattr(torch.Tensor, name)

                def watched(self, *arguments, name=name, real=real, sim=sim, copies=copies):
                    if not sim.gym.inside:
                        copies.append(name)
                    return real(self, *arguments)

                patch.setattr(torch.Tensor, name, watched)
            with Operations(sim.gym) as operations:
                sim.step(targets)
        assert copies == []
        seen.append((calls, operations.names))
        sim.gym = sim.gym.gym
    (calls, operations), (more_calls, more_operations) = seen
    assert calls == more_calls and calls.count("simulate") == 4 and "fetch_results" not in calls
    assert operations == more_operations and len(operations) > 20
    assert [name for name in operations if "nonzero" in name or "_local_scalar_dense" in name or "unique" in name] == []


# ---- The self-check --------------------------------------------------------------------------------------------------


def test_the_self_check_prints_what_a_bug_report_needs(make_sim, capsys, character):
    make_sim(1)
    out = capsys.readouterr().out
    assert all(name in out for name in [*character.body_names, *character.dof_names])
    assert (
        re.search(r"pelvis 10\.\d+ kg", out)
        and "right_knee: lower 0, upper 2.793, stiffness 500, damping 50, effort 150" in out
    )
    ((read, was_set),) = re.findall(r"forward kinematics: ([\d.]+) rad \(read back\), ([\d.]+) rad", out)
    assert float(read) < 1e-4 and float(was_set) < 0.15
    assert float(re.search(r"in the air: ([\d.]+) N", out).group(1)) < 0.01


def test_the_self_check_refuses_contact_in_the_air(make_sim, double, monkeypatch):
    gym, gymtorch = type(double[0].acquire_gym()), double[1]
    refresh, wrap = gym.refresh_net_contact_force_tensor, gymtorch.wrap_tensor
    wrapped = []
    monkeypatch.setattr(gymtorch, "wrap_tensor", lambda x: wrapped.append(wrap(x)) or wrapped[-1])

    def touching(self, sim):
        refresh(self, sim)
        if len(wrapped) == 4:  # root, dofs, bodies, contacts
            wrapped[-1][2, 2] = 50.0

    monkeypatch.setattr(gym, "refresh_net_contact_force_tensor", touching)
    with pytest.raises(ml.InputError, match="contact in the air"):
        make_sim(1)


def test_the_self_check_refuses_joints_of_another_convention(make_sim, monkeypatch, capsys):
    """As if the three dofs of a joint were Euler angles."""

    def euler(character, root_rotation, dof):
        rotations = ml.quat_from_rotvec(torch.zeros(*dof.shape[:-1], len(character.parents), 3))
        rotations[..., 0, :] = root_rotation
        for d, body in enumerate(character.dof_body.tolist()):
            turn = ml.quat_from_rotvec(character.dof_axis[d] * dof[..., d, None])
            rotations[..., body, :] = ml.quat_multiply(rotations[..., body, :], turn)
        return rotations

    monkeypatch.setattr(ml, "rotations_from_dofs", euler)
    with pytest.raises(ml.InputError, match="please report"):
        make_sim(1)


# ---- Whole runs ------------------------------------------------------------------------------------------------------

SMALL = ["--num-envs", "8", "--num-steps", "8", "--num-minibatches", "2", "--hidden", "16", "16", "--disc-batch", "32"]
SMALL += ["--total-timesteps", "192", "--eval-interval", "2", "--eval-episodes", "3", "--eval-seconds", "1"]
SMALL += ["--clone-updates", "2"]


def run(root, folder, *arguments, program=None, double=True):
    """The script, or a program in its place, in a process of its own that finds the double of Isaac Gym."""
    paths = [str(root / "tests/isaacgym_double")] if double else []
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, str(root)]), "OMP_NUM_THREADS": "1"}
    files = ["--motion-file", str(root / "motions/walk.npz"), "--character-file", str(root / "motions/humanoid.xml")]
    command = [sys.executable, *(["-c", program] if program else [str(root / SCRIPT)]), *files, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_a_run_on_the_cpu_pipeline(root, tmp_path):
    done = run(root, tmp_path, "--sim", "auto", "--no-cuda", *SMALL)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("walk__")
    assert "simulator isaacgym" in done.stderr and "self-check" in done.stdout
    assert json.loads((folder / "args.json").read_text())["args"]["sim"] == "isaacgym"
    trained = json.loads(done.stdout.splitlines()[-1])
    assert trained["episodes"] == 3
    for sim in ("isaacgym", "mujoco"):  # what was learnt in one simulator can be looked at in the other
        shown = run(root, tmp_path, "--evaluate", "--checkpoint", str(folder / "latest.pt"), "--sim", sim, "--no-cuda")
        assert shown.returncode == 0, shown.stderr
        assert ("self-check" in shown.stdout) == (sim == "isaacgym")
        pose_error = json.loads(shown.stdout.splitlines()[-1])["pose_error_m"]
        assert pose_error == pytest.approx(trained["pose_error_m"], abs=0.02)


def test_a_run_on_the_gpu_pipeline(root, tmp_path):
    """The script as it is, but for the simulator that it is given: on a GPU, as far as the double is concerned."""
    program = f"""if True:
        import runpy, sys
        import simulators
        def make(name, character, num_envs, control_hz, substeps, device, threads):
            from simulators.isaacgym_sim import IsaacGymSim
            assert name == "isaacgym"
            return IsaacGymSim(character, num_envs, 1.0 / (control_hz * substeps), substeps, device, on_gpu=True)
        simulators.make = make
        sys.argv[0] = {str(root / SCRIPT)!r}
        runpy.run_path(sys.argv[0], run_name="__main__")
    """
    done = run(root, tmp_path, "--sim", "isaacgym", "--no-cuda", *SMALL, program=program)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "latest.pt").exists()
    assert json.loads(done.stdout.splitlines()[-1])["episodes"] == 3


def test_without_isaac_gym_it_says_what_to_do(root, tmp_path):
    done = run(root, tmp_path, "--sim", "isaacgym", *SMALL, double=False)
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "runs").exists()
    (line,) = done.stderr.splitlines()
    for words in ("No module named 'isaacgym'", "developer.nvidia.com/isaac-gym", "Python 3.8", "--sim mujoco"):
        assert words in line


def test_an_isaac_gym_that_fails_to_import_is_named(root, tmp_path):
    """Also when the simulator is left open, and MuJoCo steps in."""
    (tmp_path / "isaacgym").mkdir()
    (tmp_path / "isaacgym/__init__.py").write_text("raise RuntimeError('No gym module found for this Python')")
    program = f"""if True:
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import simulators
        print(simulators.choose(sys.argv[-1], cuda=False))
    """
    done = run(root, tmp_path, "auto", program=program, double=False)
    assert done.returncode == 0 and done.stdout == "mujoco\n"
    assert "RuntimeError: No gym module found for this Python" in done.stderr and "trying MuJoCo" in done.stderr
    done = run(root, tmp_path, "isaacgym", program=program, double=False)
    assert done.returncode == 1 and done.stdout == ""
    assert "InputError: --sim isaacgym" in done.stderr and "No gym module found for this Python" in done.stderr


# ---- Static proof ----------------------------------------------------------------------------------------------------


def test_every_call_exists_with_these_arguments(root, tmp_path):
    """mypy with the package isaacgym-stubs, whose two methods named lambda are no Python, and which has no gymtorch."""
    pytest.importorskip("mypy")
    stubs = tmp_path / "isaacgym"
    stubs.mkdir()
    (original,) = [file for file in importlib.metadata.files("isaacgym-stubs") if file.name == "gymapi.pyi"]
    text = original.locate().read_text(encoding="utf-8")
    (stubs / "gymapi.pyi").write_text(re.sub(r"\bdef lambda\(", "def lambda_(", text), encoding="utf-8")
    (stubs / "__init__.pyi").write_text("")
    (stubs / "gymtorch.pyi").write_text(
        "from isaacgym import gymapi\nfrom torch import Tensor\n"
        "def wrap_tensor(x: gymapi.Tensor) -> Tensor: ...\ndef unwrap_tensor(x: Tensor) -> gymapi.Tensor: ...\n"
    )
    right = (root / "simulators/isaacgym_sim.py").read_text(encoding="utf-8")
    right = right.replace("from . import", "from simulators import")  # the copy is no part of the package
    wrong = right.replace("gym.simulate(self.sim)", "gym.simulate(self.sim, 1)")
    wrong = wrong.replace("gym.fetch_results(", "gym.fetch_result(").replace("params.dt =", "params.dT =")
    found = []
    for number, source in enumerate((right, wrong)):
        (tmp_path / f"module{number}.py").write_text(source, encoding="utf-8")
        flags = ["--ignore-missing-imports", "--follow-imports=skip", "--explicit-package-bases"]
        files = [f"module{number}.py", *(f"isaacgym/{name}.pyi" for name in ("__init__", "gymapi", "gymtorch"))]
        command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), *flags, *files]
        out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
        assert out.splitlines()[-1].startswith(("Found", "Success")), out
        found.append(re.findall(rf"^module{number}\.py:\d+: error: (.*)", out, re.M))
    assert found[0] == []
    told = "".join(found[1])
    assert len(found[1]) == 3 and "Too many arguments" in told and "fetch_result" in told and '"dT"' in told
