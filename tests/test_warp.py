"""WarpSim on Warp's CPU device, which replays the same graph as a GPU would: against MujoCo in C, and by itself.

Its kernels compile for about a minute when they are first used and are cached in Warp's own folder from then on; all tests use the same."""

import json
import os
import subprocess
import sys

import mujoco
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import amp_ppo_isaacgym as amp
import motion_lib as ml

mujoco_warp = pytest.importorskip("mujoco_warp", reason="pip install -r requirements-warp.txt (Python 3.11 or newer)")
CPU, SCRIPT = torch.device("cpu"), "amp_ppo_isaacgym.py"


def make_env(motions, num_envs, simulator=amp.WarpSim, episode_steps=300, seed=0):
    """An environment in its first states, in a simulator of its own."""
    args = amp.Args(cuda=False, target_speed=1.0)
    env = amp.AMPEnv(args, motions, simulator(args, motions.character, num_envs, CPU), num_envs, episode_steps)
    env.reset(seed)
    return env


def noise(steps, num_envs, scale, seed=0):
    return scale * torch.randn(steps, num_envs, 28, generator=torch.Generator().manual_seed(seed))


# ---- Against MuJoCo in C --------------------------------------------------------------------------------------------------------


def contacts_in_c(sim):
    """What touches what at each physics step of the next control step -> for each environment, a list over physics steps of
    (sorted pairs of geoms in contact, number of constraint rows)."""
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
    """The same for WarpSim, which is put back, and the coordinates at the end of the control step. Its physics steps one by one, not its graph."""
    kept, found = sim.snapshot(), [[] for _ in sim.kept[0]]
    for _ in range(4):
        mujoco_warp.step(sim.model, sim.data)
        n = int(sim.data.nacon.numpy()[0])
        pairs, world, rows = sim.data.contact.geom.numpy()[:n], sim.data.contact.worldid.numpy()[:n], sim.data.nefc.numpy()
        for i, steps in enumerate(found):
            steps.append((sorted(map(tuple, pairs[world == i].tolist())), int(rows[i])))
    end = [x.clone() for x in sim.kept[:2]]
    sim.restore(kept)
    return found, end


def test_thirty_control_steps_as_in_c_until_a_contact_differs(walk):
    """The same actions; contacts differ when, at any physics step, other geoms touch or the number of constraint rows is another."""
    num_envs = 24
    c, w = (make_env(walk, num_envs, simulator, seed=2) for simulator in (amp.MujocoSim, amp.WarpSim))
    same, compared, touching = torch.ones(num_envs, dtype=torch.bool), 0, 0
    for action in noise(30, num_envs, 0.08):
        target = w.action_offset + w.action_scale * action
        c.sim.control[:] = target.double().numpy()[:, None]
        w.sim.kept[-1][:] = target
        in_c, (in_warp, end) = contacts_in_c(c.sim), contacts_in_warp(w.sim)
        one, two = c.step(action), w.step(action)
        for mine, graph in zip(end, w.sim.kept):  # the graph is those physics steps
            ended = two[2] | two[3]
            assert mine[~ended].equal(graph[~ended])
        same &= torch.tensor([a == b for a, b in zip(in_c, in_warp)])
        torch.testing.assert_close(two[4]["final_obs"][same], one[4]["final_obs"][same], atol=1e-3, rtol=0)
        torch.testing.assert_close(two[1][same], one[1][same], atol=1e-3, rtol=0)
        assert two[2][same].equal(one[2][same]) and two[3][same].equal(one[3][same]) and not two[4]["diverged"].any()
        same &= ~(one[2] | one[3])  # what comes next is another episode
        compared += int(same.sum())
        touching += sum(bool(steps[-1][0]) for steps, s in zip(in_c, same) if s)
        print(int(same.sum()), float((two[4]["final_obs"]-one[4]["final_obs"])[same].abs().max()) if same.any() else None)
    print(compared, touching, same.sum())
