"""deploy/: the exported policy is the policy, its physics the simulator's, and it walks, in ours and in any program."""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco", reason="MuJoCo needs Python 3.10")
pytest.importorskip("onnx", reason="pip install -r requirements-deploy.txt")
pytest.importorskip("onnxruntime", reason="pip install -r requirements-deploy.txt")

import mujoco
import mujoco.viewer
import onnxruntime

import motion_lib as ml
from deploy import export
from deploy.walker import Walker

POLICIES = ("walk", "heading")
INPUTS = {"walk": ["qpos", "qvel"], "heading": ["qpos", "qvel", "command"]}
CPU = ["CPUExecutionProvider"]


@pytest.fixture(scope="module")
def loaded(root):
    """Two pretrained policies, one of each script, in torch, by name."""
    return {name: export.load(str(root / f"pretrained/{name}.pt")) for name in POLICIES}


@pytest.fixture(scope="module")
def exported(root, tmp_path_factory):
    """A folder with walk.onnx, heading.onnx and what belongs to them, as the command writes them."""
    folder = tmp_path_factory.mktemp("exported")
    for name in POLICIES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["export.py", f"pretrained/{name}.pt", str(folder / f"{name}.onnx")])
            export.main()
    return folder


def session_of(folder, name):
    return onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), providers=CPU)


@pytest.mark.parametrize("name", POLICIES)
def test_it_is_equal_to_torch(loaded, exported, name):
    session = session_of(exported, name)
    states = export.random_states(loaded[name].policy, 1000, seed=7)
    assert [x.name for x in session.get_inputs()] == list(states) == INPUTS[name]
    with torch.no_grad():
        expected = loaded[name].policy(*map(torch.from_numpy, states.values())).numpy()
    (found,) = session.run(None, states)
    assert found.shape == (1000, 28) and np.abs(found - expected).max() < 1e-5
    assert expected.std() > 0.1
    (one,) = session.run(None, {key: x[:1] for key, x in states.items()})
    assert np.abs(one - expected[:1]).max() < 1e-5


@pytest.mark.parametrize("name", POLICIES)
def test_it_gives_the_targets_that_the_environment_sets(loaded, exported, name, monkeypatch):
    """While the script's own environment steps, commands included."""
    env = loaded[name].env
    norm, actor = loaded[name].policy.norm, loaded[name].policy.actor
    session = session_of(exported, name)
    monkeypatch.setattr(env.sim, "step", lambda targets, step=env.sim.step: (seen.append(targets), step(targets))[1])
    seen = []
    obs, _ = env.reset(3)
    for _ in range(20):
        coordinates = env.sim.state[:, 1:]
        nq = env.sim.model.nq
        inputs = {"qpos": coordinates[:, :nq].copy(), "qvel": coordinates[:, nq:].copy()}
        if name == "heading":
            inputs["command"] = torch.stack((env.goals.heading, env.goals.speed), -1).double().numpy()
        (targets,) = session.run(None, inputs)
        with torch.no_grad():
            obs = env.step(actor(norm(obs)))[0]
        assert np.abs(targets - seen[-1].numpy()).max() < 1e-4


def test_the_starts_of_a_policy_that_keeps_its_course(loaded, monkeypatch):
    """They face as the clip does; those of a policy that does not see where it faces all face +X."""
    env = loaded["walk"].env

    def yaws():
        q = export.starts(env)[0][:, [4, 5, 6, 3]]  # MuJoCo's wxyz
        return ml.heading(torch.from_numpy(q))

    assert yaws().abs().max() < 1e-5
    monkeypatch.setattr(export, "keeps_course", lambda args: True)
    assert 0.01 < yaws().abs().max() < 0.5


@pytest.mark.parametrize("name", POLICIES)
def test_the_physics_is_the_simulators(loaded, exported, name):
    """A control step from each start, under targets that shake it: plain MuJoCo with the MJCF against MujocoSim."""
    sim = loaded[name].env.sim
    model = mujoco.MjModel.from_xml_path(str(exported / f"{name}.xml"))
    assert model.nkey == export.STARTS and export.differences(model, sim.model) == []
    sim.state[:, 0] = 0.0
    sim.state[:, 1:] = np.concatenate((model.key_qpos, model.key_qvel), 1)
    targets = model.key_ctrl + np.random.default_rng(0).normal(0.0, 0.3, model.key_ctrl.shape)
    _, diverged = sim.step(torch.from_numpy(targets))
    data = mujoco.MjData(model)
    about = json.loads((exported / f"{name}.json").read_text())
    for i in range(model.nkey):
        mujoco.mj_resetDataKeyframe(model, data, i)
        data.ctrl[:] = targets[i]
        mujoco.mj_step(model, data, about["substeps"])
        assert data.time == pytest.approx(1.0 / about["control_hz"])
        assert np.abs(np.concatenate((data.qpos, data.qvel)) - sim.state[i, 1:]).max() < 1e-9
    assert not diverged.any()


def test_a_difference_in_the_physics_is_found(exported):
    model = mujoco.MjModel.from_xml_path(str(exported / "walk.xml"))
    other = mujoco.MjModel.from_xml_path(str(exported / "walk.xml"))
    other.dof_armature[9] *= 1.001
    other.opt.timestep *= 1.001
    other.opt.disableflags ^= mujoco.mjtDisableBit.mjDSBL_ISLAND
    assert export.differences(model, other) == ["dof_armature", "disableflags", "timestep"]


@pytest.mark.parametrize("name", POLICIES)
def test_what_the_files_say(loaded, exported, name, root):
    about = json.loads((exported / f"{name}.json").read_text())
    model = mujoco.MjModel.from_xml_path(str(exported / about["model"]))
    args = loaded[name].args
    assert (about["control_hz"], about["substeps"]) == (args.control_hz, args.substeps)
    assert about["timestep_s"] == model.opt.timestep
    assert about["actuators"] == [model.actuator(i).name for i in range(model.nu)] == model_names(loaded[name])
    assert "right_foot" not in about["fall_bodies"] and "head" in about["fall_bodies"]
    assert about.get("speed_range_m_s") == {"walk": None, "heading": list(getattr(args, "speed_range", ()))}[name]
    assert about.get("turn_rate_rad_s") == {"walk": None, "heading": 2.0}[name]
    digest = hashlib.sha256((root / f"pretrained/{name}.pt").read_bytes()).hexdigest()
    metadata = session_of(exported, name).get_modelmeta().custom_metadata_map
    assert digest == about["checkpoint"]["sha256"] == metadata.pop("checkpoint_sha256")
    assert {key: json.loads(x) for key, x in metadata.items()} == {key: about[key] for key in metadata}
    assert set(metadata) == {"control_hz", "substeps", "actuators"} and digest.encode() in model.text_data


def model_names(policy):
    return policy.env.motions.character.dof_names


# ---- The player ----


@pytest.mark.parametrize("name", POLICIES)
def test_the_player_walks_as_well_as_the_policy(loaded, exported, name, run_script):
    """20 s without a fall, under different commands, as in the policy's own evaluation."""
    script, args, env, policy, *_ = loaded[name]
    agent = script.Agent(env, args.hidden, args.action_std_log)
    agent.average_actor, agent.obs_norm = policy.actor, policy.norm
    figures = script.evaluate(agent, env, args)[0]
    commands = [[], ["--heading", 150, "--speed", 3.2]]
    for command in commands if policy.commanded else [[]]:
        code, out, err = run_script("deploy/player.py", exported / f"{name}.onnx", "--headless", *command)
        assert (code, err) == (0, "") and out.startswith("20.0 s, ") and out.endswith(", no fall\n")
        assert float(out.split()[2]) > 15.0
    assert figures["fall_rate"] == 0.0


def test_the_player_says_that_it_fell(exported, run_script, tmp_path):
    for ending in ("onnx", "json", "xml"):
        shutil.copy(exported / f"walk.{ending}", tmp_path)
    text = (tmp_path / "walk.xml").read_text()
    (tmp_path / "walk.xml").write_text(text.replace('kp="500.0"', 'kp="5.0"'))  # hips and knees give way
    code, out, err = run_script("deploy/player.py", "walk.onnx", "--headless")
    assert (code, err) == (1, "") and out.endswith(", it fell\n") and float(out.split()[0]) < 5.0
    (tmp_path / "walk.xml").unlink()
    code, out, err = run_script("deploy/player.py", "walk.onnx", "--headless")
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: walk.onnx: ") and "walk.xml" in err


def test_what_the_player_refuses_is_one_line(exported, run_script, tmp_path):
    (tmp_path / "README.md").write_text("# no policy")
    together = "deploy/export.py writes .onnx, .xml and .json, side by side\n"
    cases = [
        (["a.onnx", "--spee", "1"], "unrecognized arguments: --spee 1\n"),
        (["README.md"], f"README.md: there is no README.md.onnx; {together}"),
        (["nothing.onnx"], f"nothing.onnx: there is no nothing.onnx; {together}"),
        (["alone.onnx"], f"alone.onnx: there is no alone.json; {together}"),
        ([exported / "walk.onnx", "--speed", 2], "it takes no commands\n"),
        ([exported / "walk.onnx", "--speed", 1.2], "it takes no commands\n"),
        ([exported / "walk.onnx", "--heading", 90], "it takes no commands\n"),
        ([exported / "heading.onnx", "--speed", 5], "it takes speeds from 1.0 to 3.5 m/s\n"),
    ]
    for ending in ("onnx", "xml"):
        shutil.copy(exported / f"walk.{ending}", tmp_path / f"alone.{ending}")
    for odd in ("onnx", "xml", "json"):
        for ending in ("onnx", "xml", "json"):
            shutil.copy(exported / f"{'heading' if ending == odd else 'walk'}.{ending}", tmp_path / f"{odd}.{ending}")
        cases.append(([f"{odd}.onnx"], "is of another policy; deploy/export.py writes all three\n"))
    for arguments, fault in cases:
        code, out, err = run_script("deploy/player.py", *arguments, "--headless")
        assert (code, out, err.count("\n")) == (2, "", 1) and "error: " in err and err.endswith(fault)


def test_other_options_are_another_export(root, exported, run_script, tmp_path):
    """Finer physics has drives of its own: its MJCF does not go with the policy of an export without it."""
    code, _, err = run_script("deploy/export.py", root / "pretrained/walk.pt", "finer.onnx", "--substeps", 4)
    assert code == 0, err
    about = json.loads((tmp_path / "finer.json").read_text())
    assert about["checkpoint"]["options"] == ["--substeps", "4"] and about["substeps"] == 4
    shutil.copy(exported / "walk.onnx", tmp_path / "finer.onnx")
    code, out, err = run_script("deploy/player.py", "finer.onnx", "--headless")
    assert (code, out) == (2, "") and "is of another policy" in err


@pytest.mark.parametrize("low, high, speed", [(2.0, 3.0, 2.0), (0.5, 1.0, 1.0), (1.5, 1.5, 1.5)])
def test_the_player_knows_a_speed_in_any_range(exported, run_script, tmp_path, low, high, speed):
    """Without --speed it is the nearest to 1.2 m/s; of another one the message has the range."""
    for ending in ("onnx", "xml"):
        shutil.copy(exported / f"heading.{ending}", tmp_path)
    about = json.loads((exported / "heading.json").read_text())
    (tmp_path / "heading.json").write_text(json.dumps({**about, "speed_range_m_s": [low, high]}))
    code, out, err = run_script("deploy/player.py", "heading.onnx", "--headless")
    told = run_script("deploy/player.py", "heading.onnx", "--headless", "--speed", speed)
    assert (code, out, err) == tuple(told) and err == "" and out.startswith("20.0 s, ")
    code, out, err = run_script("deploy/player.py", "heading.onnx", "--headless", "--speed", 5)
    assert (code, out, err) == (2, "", f"error: heading.onnx: it takes speeds from {low} to {high} m/s\n")


@pytest.mark.parametrize("display", ["", ":77"])  # none, and one that is gone
def test_the_player_walks_where_there_is_no_screen(exported, run_script, monkeypatch, display):
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr(sys, "platform", "linux")
    code, out, err = run_script("deploy/player.py", exported / "walk.onnx")
    assert (code, err) == (0, "") and out.startswith("20.0 s, ")


class Window:
    """MuJoCo's window with somebody who presses keys, one a control step; it is closed after 12 of these."""

    def __init__(self, keys, press, heard):
        self.keys = [*keys, *[None] * (12 - len(keys))]
        self.press = press
        self.heard = heard
        self.cam = type("Camera", (), {"lookat": np.zeros(3)})

    def is_running(self):
        key = self.keys.pop(0) if self.keys else 0
        self.heard(self.press, key)
        return key != 0

    def sync(self):
        assert self.cam.lookat.any()


@pytest.mark.parametrize(
    "name, expected",
    [("heading", ["30 degrees, 1.20", "30 degrees, 1.00", "30 degrees, 1.25", "15 degrees, 1.25"]), ("walk", [])],
)
def test_the_arrow_keys_steer_in_the_window(exported, run_script, monkeypatch, name, expected):
    """Left, down (as slow as it can be told), up, right; G is MuJoCo's own. The policy is told the same."""
    commands = []

    def launch(model, data, key_callback, **options):
        def heard(press, key):
            if key:
                press(key)
            commands.append(model)

        return Window([263, 264, 265, ord("G"), 262], key_callback, heard)

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(mujoco.viewer.glfw, "init", lambda: True)
    monkeypatch.setattr(mujoco.viewer, "launch_passive", launch)
    monkeypatch.setattr(os, "_exit", leave)
    told = ["--heading", 15] if expected else []
    code, out, err = run_script("deploy/player.py", exported / f"{name}.onnx", *told)
    assert (code, err, len(commands)) == (0, "", 13) and out.splitlines()[-1].startswith("0.4 s, ")
    assert out.splitlines()[:-1] == [f"told {words} m/s" for words in expected]


def test_a_walker_in_a_program(exported):
    """It turns the command no faster than the export says, the shorter way round, and begins anew."""
    about = json.loads((exported / "heading.json").read_text())
    walker = Walker(str(exported / "heading.onnx"))
    assert walker.commanded and walker.speeds == about["speed_range_m_s"]
    hz = about["control_hz"]
    assert walker.step(3.0, 2.0) and walker.heading == pytest.approx(2.0 / hz)
    assert walker.step(-3.0, 99.0) and walker.heading == pytest.approx(0.0)
    assert walker.step(0.01) and walker.heading == 0.01
    walker.heading = 3.0
    walker.step(-3.0)
    assert walker.heading == pytest.approx(3.0 + 2.0 / hz)  # through pi
    walker.reset(3)
    assert walker.heading == 0.0 and (walker.data.qpos == walker.model.key_qpos[3]).all()
    del walker.about["turn_rate_rad_s"]  # an older export
    assert walker.step(-1.0) and walker.heading == pytest.approx(-2.0 / hz)
    walker.data.qpos[2:5] = 0.3, 0.7, 0.7  # it lies
    assert not all(walker.step() for _ in range(30))


def test_the_programs_of_the_manual(root, exported, tmp_path):
    """As they stand in docs/deploy.md, with the file that is to be copied: both walk for 20 s."""
    shutil.copy(root / "deploy/walker.py", tmp_path)
    for ending in ("onnx", "json", "xml"):
        shutil.copy(exported / f"heading.{ending}", tmp_path / f"policy.{ending}")
    programs = re.findall("```python\n(.*?)```", (root / "docs/deploy.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(programs) == 2
    for program in programs:
        out = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
        x, y, z = map(float, out.stdout.strip("[] \n").split())
        assert 15.0 < np.hypot(x, y) < 40.0 and z > 0.7


@pytest.mark.parametrize("name", ["player", "walker"])
def test_what_is_to_be_copied_is_small_and_needs_nothing_of_ours(root, name):
    text = (root / f"deploy/{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {getattr(node, "module", alias.name).split(".")[0] for node in imports for alias in node.names}
    others = {"player": {"numpy", "mujoco", "walker"}, "walker": {"numpy", "mujoco", "onnxruntime"}}
    assert names - set(sys.stdlib_module_names) == others[name]


# ---- What it is given ----


def test_runs_and_variants(exported, root, run_script, tmp_path):
    """A run's folder; a copy of a script, whose checkpoints are of its own kind."""
    (tmp_path / "run").mkdir()
    content = torch.load(root / "pretrained/heading.pt", weights_only=True)
    content["kind"] = "my_amp"
    torch.save(content, tmp_path / "run/latest.pt")
    code, out, err = run_script("deploy/export.py", "run", "mine.onnx")
    assert (code, out, err.count("\n")) == (2, "", 1) and "a checkpoint of my_amp" in err and "--script FILE" in err
    text = (root / "amp_ppo_heading.py").read_text(encoding="utf-8")
    (tmp_path / "my_amp.py").write_text(text.replace('KIND = "amp_ppo_heading"', 'KIND = "my_amp"'), encoding="utf-8")
    code, out, err = run_script("deploy/export.py", "run", "mine.onnx", "--script", "my_amp.py")
    written = [line.split(":")[0] for line in out.splitlines()]
    assert (code, err, written[:3]) == (0, "", ["mine.onnx", "mine.xml", "mine.json"])
    assert written[3].endswith("deploy/player.py mine.onnx walks with it")
    mine, other = (file.read_bytes() for file in (tmp_path / "run/latest.pt", root / "pretrained/heading.pt"))
    marks = [hashlib.sha256(file).hexdigest().encode() for file in (mine, other)]
    for ending in ("onnx", "xml"):  # the same but for the checkpoint's hash
        text = (tmp_path / f"mine.{ending}").read_bytes()
        assert text.count(marks[0]) == 1
        assert text.replace(*marks) == (exported / f"heading.{ending}").read_bytes()


def test_a_copy_without_a_course_is_exported(root, run_script, tmp_path):
    """It knows neither the option nor observe()'s argument."""
    text = (root / "amp_ppo_isaacgym.py").read_text(encoding="utf-8")
    option = text[text.index("    keep_course: bool") : text.index("    reset_mode: Literal")]
    for part, instead in (
        (option, ""),
        (", course: bool)", ")"),
        (" * course]", " * 0]"),
        (", args.keep_course)", ")"),
    ):
        assert part in text
        text = text.replace(part, instead)
    text = text.replace(", self.args.keep_course)", ")").replace(", straight=args.keep_course)", ")")
    assert "keep_course" not in text
    (tmp_path / "my_copy.py").write_text(text, encoding="utf-8")
    content = torch.load(root / "pretrained/walk.pt", weights_only=True)
    torch.save(content, tmp_path / "walk.pt")
    code, out, err = run_script("deploy/export.py", "walk.pt", "a.onnx", "--script", "my_copy.py")
    assert (code, err) == (0, "") and (tmp_path / "a.onnx").exists(), out


def test_an_observation_that_needs_more_is_one_line(root, run_script, tmp_path):
    text = (root / "amp_ppo_isaacgym.py").read_text(encoding="utf-8")
    assert text.count("return self.history[:, -1]\n") == 1
    text = text.replace("return self.history[:, -1]\n", "return self.history[:, -1] + 0 * self.steps[:, None]\n")
    (tmp_path / "my_clock.py").write_text(text, encoding="utf-8")
    code, out, err = run_script("deploy/export.py", root / "pretrained/walk.pt", "a.onnx", "--script", "my_clock.py")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "my_clock.py: what its policy sees needs more than coordinates and command tell" in err and "steps" in err


@pytest.mark.parametrize(
    "arguments, fault",
    [
        (["nothing.pt", "a.onnx"], "nothing.pt: no such file or folder; there are: walk\n"),
        (["README.md", "a.onnx"], "README.md: no checkpoint, not an archive that torch.save writes"),
        (["walk.npz", "a.onnx"], "walk.npz: no checkpoint, not an archive that torch.save writes"),
        (["walk.pt", "a.pt"], "a.pt: expected a name that ends in .onnx"),
        (["walk.pt", "no/such/a.onnx"], "no/such/a.onnx: there is no such folder"),
        (["walk.pt", "folder.onnx"], "folder.onnx: Is a directory"),
        (["walk.pt", "a.onnx", "--script", "none.py"], "none.py: no such script"),
        (["walk.pt", "a.onnx", "--script", "empty.py"], "empty.py: not a script like amp_ppo_isaacgym.py; it has no"),
        (["walk.pt", "a.onnx", "--script", "broken.py"], "broken.py: it cannot be imported (SyntaxError: "),
        (["walk.pt", "a.onnx", "--script", "ends.py"], "ends.py: it cannot be imported (SystemExit: 0"),
        (["walk.pt", "a.onnx", "--motion-file", "nothing.npz"], "nothing.npz: no such motion file"),
    ],
)
def test_bad_input_is_one_line(root, run_script, tmp_path, arguments, fault):
    for name in ("pretrained/walk.pt", "motions/walk.npz"):
        shutil.copy(root / name, tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    scripts = {"empty.py": "", "broken.py": "(", "ends.py": "raise SystemExit(0)"}
    for name, text in {"README.md": "# no checkpoint", "a.onnx": "kept", **scripts}.items():
        (tmp_path / name).write_text(text)
    code, out, err = run_script("deploy/export.py", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.replace("'", "").startswith(f"error: {fault}")
    assert (tmp_path / "a.onnx").read_text() == "kept"


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_one_line(run_script, root, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, out, err = run_script("deploy/export.py", root / "pretrained/walk.pt", "a.onnx")
    assert (code, out, err.count("\n")) == (2, "", 1) and err.endswith(" -r requirements-deploy.txt\n")


def test_the_model_card_is_of_these_files(root):
    """Who puts another policy here has to look at its card: hashes, figures, samples."""
    card = (root / "pretrained/README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: mit\n")
    for path in sorted((root / "pretrained").glob("*.pt")):
        assert f"`{path.name}`" in card and hashlib.sha256(path.read_bytes()).hexdigest() in card, path.name
