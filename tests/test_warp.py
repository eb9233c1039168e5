"""WarpSim on Warp's CPU device, which replays the same graph as a GPU would: against MuJoCo in C, and by itself.

Its kernels compile for about a minute when they are first used and are cached in Warp's own folder from then on; all
tests use the same. What all simulators promise is in test_simulators.py."""

import importlib
import json
import linecache
import math
import os
import subprocess
import sys
from collections import Counter

import simulators

import pytest
import torch
from conftest import put
from torch.utils._python_dispatch import TorchDispatchMode

import amp_ppo_isaacgym as amp
import motion_lib as ml

mujoco = pytest.importorskip("mujoco")
mujoco_warp = pytest.importorskip("mujoco_warp", reason="pip install -r requirements-warp.txt (Python 3.11 or newer)")
warp = pytest.importorskip("warp")
CPU = torch.device("cpu")
SCRIPTS = ("amp_ppo_isaacgym.py", "amp_ppo_heading.py")
ARGS = amp.Args(cuda=False, target_speed=1.0)


def make_sim(character, num_envs, name="warp"):
    return simulators.make(name, character, num_envs, 30, 4, CPU, 2)


def make_env(motions, num_envs, name="warp", episode_steps=300, seed=0):
    """An environment in its first states, in a simulator of its own."""
    env = amp.AMPEnv(ARGS, motions, make_sim(motions.character, num_envs, name), num_envs, episode_steps)
    env.reset(seed)
    return env


def noise(steps, num_envs, scale, seed=0):
    return scale * torch.randn(steps, num_envs, 28, generator=torch.Generator().manual_seed(seed))


# ---- Against MuJoCo in C ---------------------------------------------------------------------------------------------


def contacts_in_c(sim):
    """What touches what at each physics step of the next control step.

    -> for each environment a list over physics steps of (sorted pairs of geoms in contact, number of constraints)."""
    found, data = [], mujoco.MjData(sim.model)
    for state, control in zip(sim.state, sim.control[:, 0]):
        mujoco.mj_setState(sim.model, data, state, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        data.ctrl[:] = control
        steps = []
        for _ in range(sim.control.shape[1]):
            mujoco.mj_step(sim.model, data)
            steps.append((sorted(map(tuple, data.contact.geom[data.contact.exclude == 0].tolist())), data.nefc))
        found.append(steps)
    return found


def contacts_in_warp(sim):
    """The same for WarpSim, by single physics steps instead of its graph, and the coordinates at their end, by name.

    The simulator is put back."""
    before, found = sim.state_dict(), [[] for _ in sim.kept["qpos"]]
    for _ in range(4):
        mujoco_warp.step(sim.model, sim.data)
        n = int(sim.data.nacon.numpy()[0])
        pairs, world = sim.data.contact.geom.numpy()[:n], sim.data.contact.worldid.numpy()[:n]
        rows = sim.data.nefc.numpy()
        for i, steps in enumerate(found):
            steps.append((sorted(map(tuple, pairs[world == i].tolist())), int(rows[i])))
    end = {name: sim.kept[name].clone() for name in ("qpos", "qvel")}
    sim.load_state_dict(before)
    return found, end


def test_thirty_control_steps_as_in_c_until_a_contact_differs(walk):
    """The same actions. Contacts differ when at any physics step other geoms touch, or other constraints act."""
    num_envs = 24
    c, w = (make_env(walk, num_envs, name, seed=2) for name in ("mujoco", "warp"))
    for name in ("solver", "tolerance", "disableflags"):  # Warp has no PGS, and small differences grow
        setattr(c.sim.model.opt, name, getattr(w.sim.shared.compiled.opt, name))
    same, compared, touching = torch.ones(num_envs, dtype=torch.bool), 0, 0
    for action in noise(30, num_envs, 0.08):
        target = w.action_offset + ARGS.action_scale * action
        c.sim.control[:] = target.double().numpy()[:, None]
        w.sim.kept["ctrl"][:] = target
        in_c, (in_warp, end) = contacts_in_c(c.sim), contacts_in_warp(w.sim)
        one, two = c.step(action), w.step(action)
        on = ~(two[2] | two[3])
        for name, x in end.items():  # the graph is those physics steps
            assert x[on].equal(w.sim.kept[name][on])
        same &= torch.tensor([a == b for a, b in zip(in_c, in_warp)])
        torch.testing.assert_close(two[4]["final_obs"][same], one[4]["final_obs"][same], atol=1e-3, rtol=0)
        torch.testing.assert_close(two[1][same], one[1][same], atol=1e-3, rtol=0)
        assert two[2][same].equal(one[2][same]) and two[3][same].equal(one[3][same]) and not two[4]["diverged"].any()
        same &= ~(one[2] | one[3])  # what comes next is another episode
        compared += int(same.sum())
        touching += sum(bool(steps[-1][0]) for steps, s in zip(in_c, same) if s)
    assert compared > 400 and touching > 300  # of 720


# ---- Broken worlds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what",
    ["NaN position", "infinite position", "NaN velocity", "huge velocity", "fast flight", "NaN in the solver's start"],
)
def test_a_broken_world_is_put_to_rest(walk, what):
    """Corrupt one world: it ends as diverged, starts anew, keeps no NaN, and the others never notice, bit for bit."""
    env, healthy = make_env(walk, 4), make_env(walk, 4)
    actions = noise(4, 4, 0.1)
    for e in (env, healthy):
        e.step(actions[0])
    kept = env.sim.kept
    where = {"position": ("qpos", 2), "velocity": ("qvel", 9), "flight": ("qvel", 2), "start": ("qacc_warmstart", 0)}
    name, column = where[what.split()[-1]]
    kept[name][1, column] = {"NaN": math.nan, "infinite": math.inf, "huge": 1e12, "fast": 1e3}[what.split()[0]]
    others = [0, 2, 3]
    for step, action in enumerate(actions[1:]):
        obs, reward, terminated, _, info = env.step(action)
        expected = healthy.step(action)
        assert obs[others].equal(expected[0][others]) and not info["diverged"][others].any()
        assert info["diverged"][1] == terminated[1] == (step == 0)
        numbers = (obs, reward, info["final_obs"], info["disc_obs"], *kept.values())
        assert all(torch.isfinite(x).all() for x in numbers)


@pytest.mark.parametrize(
    "capacity, lost", [({"nconmax": 1}, [True, True]), ({"njmax": 4}, [True, False]), ({}, [False, False])]
)
def test_a_full_store_counts_as_divergence(character, monkeypatch, capacity, lost):
    """One lies in the ground, the other is in the air, four joints at limits. All worlds share a store of contacts."""
    real = mujoco_warp.make_data
    monkeypatch.setattr(mujoco_warp, "make_data", lambda model, **sizes: real(model, **{**sizes, **capacity}))
    sim = make_sim(character, 2)
    zero, height = torch.zeros(2, 3), torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.0, 3.0]])
    lying = ml.rotations_from_dofs(
        character, ml.quat_from_rotvec(torch.tensor([[0.0, 1.57, 0.0]] * 2)), torch.zeros(2, 28)
    )
    put(sim, torch.arange(2), ml.MotionState(height, lying, zero, zero, torch.zeros(2, 28)))
    state, diverged = sim.step(torch.zeros(2, 28))
    assert diverged.tolist() == lost and (state.root_position[:, 2] == 0.9).tolist() == lost  # the pose of rest
    put(sim, torch.tensor([0]), ml.MotionState(height[1:], lying[1:], zero[1:], zero[1:], torch.zeros(1, 28)))
    if "njmax" in capacity:
        assert not sim.step(torch.zeros(2, 28))[1].any()  # it is not held against a world for ever


def test_absurd_targets_are_contained(walk):
    env = make_env(walk, 4)
    action = torch.zeros(4, 28)
    action[0], action[1], action[2], action[3] = 1e30, math.inf, -math.inf, math.nan
    for _ in range(5):
        obs, reward, _, _, info = env.step(action)
        assert all(torch.isfinite(x).all() for x in (obs, reward, info["final_obs"]))


# ---- State -----------------------------------------------------------------------------------------------------------


def test_an_evaluation_leaves_the_training_undisturbed(walk):
    """Bit for bit, although it takes the same worlds: what the solver starts from comes back as well."""
    logs = []
    for evaluated in (False, True):
        env, log = make_env(walk, 6, episode_steps=12), []
        for step, action in enumerate(noise(20, 6, 0.2)):
            if evaluated and step == 9:
                before = env.sim.state_dict()
                other = amp.AMPEnv(ARGS, walk, env.sim, 3, 300)
                other.reset(8)
                for one in noise(5, 3, 0.5):
                    other.step(one)
                env.sim.load_state_dict(before)
            obs, reward, *_ = env.step(action)
            log += [obs, reward]
        logs.append(log)
    assert all(one.equal(two) for one, two in zip(*logs))
    start, time = env.sim.kept["qacc_warmstart"], env.sim.kept["time"]
    assert start.abs().amax(-1).gt(0).all()
    put(env.sim, torch.tensor([2]), walk.state(torch.zeros(1, dtype=torch.long), torch.zeros(1)))
    assert start[2].eq(0).all() and start[1].ne(0).any() and time[2] == 0 < time[1]


def test_states_are_views_and_what_is_returned_is_not(walk):
    env = make_env(walk, 2)
    assert {name: x.data_ptr() for name, x in env.sim.kept.items()} == {
        name: getattr(env.sim.data, name).ptr for name in ("qpos", "qvel", "qacc_warmstart", "time", "ctrl")
    }
    state, _ = env.sim.step(torch.zeros(2, 28))
    before = [x.clone() for x in state]
    env.sim.step(torch.zeros(2, 28))
    assert all(one.equal(two) for one, two in zip(before, state))


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: numbers read from tensors, shapes that depend on values."""

    READERS = ("cpu", "numpy", "tolist")  # of torch.Tensor; a dispatch mode does not see them on the CPU
    WORDS = ("nonzero", "_local_scalar_dense", "unique", "masked_select", "repeat_interleave.Tensor", "is_nonzero")
    HOST = ("pool_age", "self.size", "flag")  # names of tensors with one number that never lie on a GPU

    def __init__(self, patch):
        super().__init__()
        self.names, self.waits = [], Counter()
        for name in self.READERS:
            real = getattr(torch.Tensor, name)
            patch.setattr(
                torch.Tensor,
                name,
                lambda x, *rest, name=name, real=real: (self.waits.update([name]), real(x, *rest))[1],
            )

    @staticmethod
    def reader():
        """The line that reads a number: of the innermost caller that is no file of PyTorch."""
        frame = sys._getframe(2)
        while "/torch/" in frame.f_code.co_filename:
            frame = frame.f_back
        return linecache.getline(frame.f_code.co_filename, frame.f_lineno)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        masks = [
            x for x in (args[1] if "aten.index" in name and isinstance(args[1], (list, tuple)) else ()) if x is not None
        ]
        if any(word in name for word in self.WORDS) or any(x.dtype == torch.bool for x in masks):
            line = self.reader()
            if "_local_scalar_dense" not in name or not any(word in line for word in self.HOST):
                self.waits.update([name])
        self.names.append(name)
        return function(*args, **(kwargs or {}))


def test_a_step_is_the_same_operations_for_any_number_of_worlds_and_none_waits(walk, monkeypatch):
    seen = []
    for num_envs in (3, 32):
        sim = make_sim(walk.character, num_envs)
        chosen, targets = torch.arange(num_envs) > 0, torch.zeros(num_envs, 28)
        state = walk.state(torch.zeros(num_envs, dtype=torch.long), 0.01 * torch.arange(num_envs))
        with monkeypatch.context() as patch, Waits(patch) as waits:
            sim.set_state(chosen, state)
            sim.step(targets)
        assert not waits.waits
        seen.append(waits.names)
    assert seen[0] == seen[1] and len(seen[0]) > 30


def test_what_waits_is_found(monkeypatch):
    x = torch.arange(4.0)
    reads = [
        lambda: x.tolist(),
        lambda: x[x > 1],
        lambda: x.sum().item(),
        lambda: bool(x[0] > 1),
        lambda: (x > 1).nonzero(),
    ]
    reads += [
        lambda: x.index_put((x > 1,), x[0]),
        lambda: x.numpy(),
        lambda: x.unique(),
        lambda: float(x[1]),
        lambda: x[x > 1].cpu(),
    ]
    for read in reads:
        with monkeypatch.context() as patch, Waits(patch) as waits:
            read()
        assert waits.waits, read
    with monkeypatch.context() as patch, Waits(patch) as waits:
        torch.where(x > 1, x, 0.0)[torch.tensor([1, 2])] += x[:2]
    assert not waits.waits


def files_of(root, script):
    """Options of a tiny training on Warp: its files and sizes."""
    motion = "motions/walk.npz" if "isaacgym" in script else "motions/locomotion.json"
    files = ["--motion-file", root / motion, "--character-file", root / "motions/humanoid.xml"]
    return files, [
        "--num-envs",
        8,
        "--num-minibatches",
        2,
        "--hidden",
        16,
        16,
        "--disc-batch",
        32,
        "--eval-episodes",
        4,
        "--clone-updates",
        2,
    ]


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_iteration_waits_for_the_device_once(root, run_script, monkeypatch, script):
    """Roll-out and update, resets included."""
    files, sizes = files_of(root, script)
    # 34 steps an iteration, so that every environment falls or times out, and the pool is drawn anew
    sizes += ["--num-steps", 34, "--episode-steps", 20, "--eval-interval", 0, "--eval-seconds", 0.1]
    counts = {}
    for iterations in (1, 1 + 2):
        with monkeypatch.context() as patch, Waits(patch) as waits:
            total = ["--total-timesteps", 8 * 34 * iterations]
            result = run_script(script, "--sim", "warp", "--no-cuda", *files, *sizes, *total)
        assert result.code == 0, result.err
        counts[iterations] = waits.waits
    per_iteration = {name: (n - counts[1][name]) / 2 for name, n in counts[3].items() if n != counts[1][name]}
    assert per_iteration == {"tolist": 1, "aten.nonzero.default": 1}  # the log, the time-outs


# ---- Whole runs ------------------------------------------------------------------------------------------------------


def test_a_gpu_that_warp_does_not_find_is_one_line(character):
    if warp.is_cuda_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ml.InputError, match="Warp finds no CUDA device; it needs a driver"):
        simulators.make("warp", character, 1, 30, 4, torch.device("cuda"), 1)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_whole_training(root, tmp_path, run_script, script):
    """What it learnt is then looked at on MuJoCo in C."""
    files, sizes = files_of(root, script)
    sizes += ["--num-steps", 8, "--total-timesteps", 192, "--eval-interval", 2, "--eval-seconds", 1]
    done = run_script(script, "--sim", "warp", "--no-cuda", *files, *sizes)
    assert done.code == 0, done.err
    assert "MuJoCo Warp on cpu; it compiles" in done.err and "simulator warp" in done.err
    (folder,) = (tmp_path / "runs").iterdir()
    saved = json.loads((folder / "args.json").read_text())
    assert saved["args"]["sim"] == "warp" and saved["versions"]["mujoco_warp"] == mujoco_warp.__version__
    assert json.loads(done.out.splitlines()[-1])["episodes"] == 4
    shown = run_script(
        script, "--evaluate", "--checkpoint", folder / "latest.pt", "--sim", "mujoco", "--no-cuda", *files
    )
    assert shown.code == 0, shown.err
    assert "MuJoCo Warp" not in shown.err
    assert json.loads(shown.out.splitlines()[-1])["episodes"] == 4


def test_the_distance_from_c(root, monkeypatch):
    """That of benchmark/warp_against_c.py: rounding, as long as the contacts are the same."""
    monkeypatch.syspath_prepend(str(root / "benchmark"))
    found = importlib.import_module("warp_against_c").distances(amp, 16, 2, CPU)
    assert found["twice"] == 0
    for row in found["rows"]:
        assert 0 < sorted(row["root_m"])[8] < 1e-6 and 0 < sorted(row["velocity_rad_s"])[8] < 1e-3


def test_the_gpu_benchmark_refuses_without_a_gpu(root, tmp_path):
    env, program = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}, str(root / "benchmark/gpu.sh")
    done = subprocess.run(
        ["bash", program], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2 and done.stdout == "" and list(tmp_path.iterdir()) == []
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: benchmark/gpu.sh") and "CUDA" in line
