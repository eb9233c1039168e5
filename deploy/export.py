"""Export a policy: one ONNX file from MuJoCo's coordinates to PD targets, and the physics that belongs to it.

    python deploy/export.py pretrained/heading.pt policy.onnx       # policy.onnx, policy.xml, policy.json
    python deploy/export.py runs/NAME policy.onnx                   # the best policy of a run of yours
    python deploy/export.py my.pt policy.onnx --script my_amp.py    # of a copy of a script (it is executed)

Observation, normaliser, actor, offset and scale are in the ONNX file; policy.xml is the character with its drives,
floor, time step, solver and some states to start from; policy.json says names, rates and units. deploy/player.py
walks with them; docs/deploy.md says more. Any other option goes to the script, --motion-file CLIP for instance.
It needs `pip install -r requirements-deploy.txt`. Bad input ends with one line that says what is wrong, exit code 2.

Dimension key: n characters, nq and nv MuJoCo's coordinates, A actions, J bodies; frames, units: motion_lib.py.
"""

import argparse
import contextlib
import glob
import hashlib
import importlib.util
import inspect
import io
import json
import os
import shlex
import sys
import warnings
import xml.etree.ElementTree as ET
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import simulators  # before torch, for Isaac Gym

import numpy as np
import torch
from torch import Tensor, nn

import motion_lib as ml
from checkpoints import fit_checkpoint
from command_line import parse_args
from files import HERE, InputError, find, read_file, write_file
from motions.render import COLOURS
from motions.tools import one_line, one_line_parser

TURN_RATE = 2.0  # of a command; told to turn all at once, it may stumble [rad/s]
STARTS = 8  # states to start from that are written into the MJCF
TOLERANCE = 1e-5  # by how much ONNX Runtime may differ from torch [rad]
CHECKED = 1000  # states on which that is looked at
# What the simulated physics depends on, of the arrays of an MjModel by the beginning of their names
PHYSICS = ("actuator_", "body_", "dof_", "geom_", "jnt_", "qpos0", "qpos_spring")
LOOKS = ("geom_matid", "geom_rgba")  # but these
MARK = "checkpoint_sha256"  # by what an MJCF and an ONNX file say which checkpoint they were made from
LOOK = """<mujoco>
  <visual><headlight ambient="0.45 0.45 0.45" diffuse="0.55 0.55 0.55" specular="0 0 0"/></visual>
  <asset>
    <texture type="skybox" builtin="gradient" rgb1="0.75 0.85 0.95" rgb2="1 1 1" width="64" height="384"/>
    <texture name="floor" type="2d" builtin="checker" rgb1=".97 .97 .97" rgb2=".85 .87 .9" width="256" height="256"/>
    <material name="floor" texture="floor" texrepeat="1 1" texuniform="true"/>
  </asset>
</mujoco>
"""


# ---- 1. From a checkpoint to a policy --------------------------------------------------------------------------------


class Policy(nn.Module):
    """PD targets for MuJoCo's coordinates: observation, normaliser, actor, offset and scale."""

    def __init__(self, script: Any, env: Any, agent: nn.Module) -> None:
        """script: the module that env, its AMPEnv on MuJoCo, and agent, its Agent, are from."""
        super().__init__()
        self.observe = script.observe
        self.obs = script.AMPEnv.obs
        self.course = [keeps_course(env.args)] if hasattr(env.args, "keep_course") else []  # a copy may lack the option
        self.norm = agent.obs_norm
        self.actor = agent.average_actor
        self.character = env.motions.character
        self.coordinates = env.sim.shared
        self.offset = env.action_offset  # (A,) [rad]
        self.scale = env.args.action_scale  # [rad]
        self.commanded = hasattr(env, "goals")  # whether it is told a heading and a speed

    def forward(self, qpos: Tensor, qvel: Tensor, command: Optional[Tensor] = None) -> Tensor:
        """qpos (n, nq), qvel (n, nv), command (n, 2): heading [rad, world], speed [m/s]; double
        -> targets (n, A) [rad, exponential map], double."""
        state = self.coordinates.read(qpos.float(), qvel.float())
        body_position, _ = ml.forward_kinematics(self.character, state.root_position, state.rotations)
        seen = self.observe(state, body_position, self.character, *self.course)  # (n, D)
        # in place of the environment: what the script's own obs() asks of it, and coordinates and command can tell
        told = SimpleNamespace(history=seen[:, None], yaw=ml.heading(state.rotations[:, 0]))
        if command is not None:
            told.goals = SimpleNamespace(heading=command[:, 0].float(), speed=command[:, 1].float())
        action = self.actor(self.norm(self.obs(told)))
        return (self.offset + self.scale * action).double()


class Loaded(NamedTuple):
    """A checkpoint with what it was trained in."""

    script: Any  # the module
    args: Any  # its options
    env: Any  # its AMPEnv, STARTS copies on MuJoCo
    policy: Policy
    samples: int  # control steps that it was trained with
    options: Tuple[str, ...]  # of the script, that were typed
    digest: str  # SHA-256 of the file, followed by the options if there are any; all that is exported carries it


def import_script(path: str) -> Any:
    """The module in a script file, which is executed. Raises InputError if it is not like amp_ppo_isaacgym.py."""
    name = os.path.splitext(os.path.basename(path))[0]
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such script")
    known = getattr(sys.modules.get(name), "__file__", None)
    if known and os.path.samefile(known, path):
        return sys.modules[name]
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise InputError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their types up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"{path}: it cannot be imported ({type(error).__name__}: {error})") from error
    missing = [
        x for x in ("KIND", "KEY_BODIES", "Args", "AMPEnv", "Agent", "observe", "check_args") if not hasattr(module, x)
    ]
    if missing:
        raise InputError(f"{path}: not a script like amp_ppo_isaacgym.py; it has no {', '.join(missing)}")
    return module


def find_script(checkpoint: str, given: Optional[str], options: List[str]) -> Tuple[Any, Any, Dict]:
    """The script whose kind a checkpoint is of, its options, and the checkpoint's content. Raises InputError."""
    argv = ["--evaluate", "--checkpoint", checkpoint, "--sim", "mujoco", "--no-cuda", *options]
    argv += ["--eval-episodes", str(STARTS)]
    faults = []
    for path in [given] if given else sorted(glob.glob(os.path.join(HERE, "amp_ppo_*.py"))):
        script = import_script(path)
        try:
            args, content = parse_args(script.Args, script.KIND, argv)
            script.check_args(args)
            return script, args, content
        except InputError as error:
            faults.append(str(error))
    # the script that it belongs to says something else than that it belongs to another
    told = [fault for fault in faults if ", and this is " not in fault]
    raise InputError(
        told[0] if told else faults[0].split("; python ")[0] + "; --script FILE names the one that it is of"
    )


def load(checkpoint: str, script: Optional[str] = None, options: Tuple[str, ...] = ()) -> Loaded:
    """A checkpoint file, or a run's folder, as the policy that it is; options: of the script. Raises InputError."""
    module, args, content = find_script(checkpoint, script, list(options))
    device = torch.device("cpu")
    character = ml.load_character(args.character_file, "cpu", module.KEY_BODIES)
    motions = ml.MotionLib(args.motion_file, character, "cpu", straight=keeps_course(args))
    sim = simulators.make("mujoco", character, STARTS, args.control_hz, args.substeps, device, 1)
    env = module.AMPEnv(args, motions, sim, STARTS, max(round(args.eval_seconds * args.control_hz), 1))
    named = list(inspect.signature(module.Agent).parameters)[1:]  # after env: options, by their names
    agent = module.Agent(env, *[getattr(args, name) for name in named])
    fit_checkpoint(content, motions, {"agent": agent, "action_offset": env.action_offset})
    policy = Policy(module, env, agent).requires_grad_(False)
    try:
        policy(*map(torch.from_numpy, random_states(policy, 1).values()))
    except AttributeError as error:
        fault = f"more than coordinates and command tell ({error})"
        raise InputError(f"{module.__file__}: what its policy sees needs {fault}") from error
    digest = hashlib.sha256(read_file(args.checkpoint) + " ".join(options).encode()).hexdigest()
    return Loaded(module, args, env, policy, content["samples"], options, digest)


def random_states(policy: Policy, n: int, seed: int = 0) -> Dict[str, np.ndarray]:
    """What a policy is given, by name, for n states all around the rest pose: up to 3 m/s and rad/s, any command."""
    import mujoco

    model = policy.coordinates.compiled
    random = np.random.default_rng(seed)
    qpos = np.tile(model.qpos0, (n, 1))
    for row in qpos:
        mujoco.mj_integratePos(model, row, random.normal(size=model.nv), 1.0)
    states = {"qpos": qpos, "qvel": random.uniform(-3.0, 3.0, (n, model.nv))}
    if policy.commanded:
        states["command"] = np.stack((random.uniform(-np.pi, np.pi, n), random.uniform(0.0, 4.0, n)), -1)
    return states


def keeps_course(args: Any) -> bool:
    """Whether the policy sees which way it faces (--keep-course); a copy of a script may lack the option."""
    return getattr(args, "keep_course", False)


def starts(env: Any, seed: int = 1) -> Tuple[np.ndarray, np.ndarray]:
    """The script's own first states, moved to x = y = 0 -> qpos (n, nq), qvel (n, nv). All face +X, unless the policy
    sees which way it faces."""
    _, info = env.reset(seed)
    state = info["state"]
    if not keeps_course(env.args):
        state = ml.turn_state(state, ml.quat_from_yaw(-ml.heading(state.rotations[:, 0])))
    state.root_position[:, :2] = 0.0
    qpos, qvel = env.sim.shared.write(state)
    return qpos.double().numpy(), qvel.double().numpy()


# ---- 2. The physics as one MJCF file ---------------------------------------------------------------------------------


def numbers(x: Any) -> str:
    """Numbers as XML has them, to the last digit."""
    return " ".join(repr(float(y)) for y in np.atleast_1d(x))


def settings(option: Any) -> List[str]:
    """Names of all that an MjOption holds."""
    return [name for name in dir(option) if not name.startswith("_") and not callable(getattr(option, name))]


def option_of(model: Any) -> ET.Element:
    """The option element of an MjModel: time step, solver and whatever else its simulator has set, flags included."""
    import mujoco

    spec = mujoco.MjSpec()
    for name in settings(model.opt):
        setattr(spec.option, name, getattr(model.opt, name))
    option = ET.fromstring(spec.to_xml()).find("option")
    option.set("timestep", numbers(model.opt.timestep))  # MuJoCo writes six digits
    return option


def with_drives(path: str, model: Any) -> ET.Element:
    """The character's file with what simulators/ have made of it in MuJoCo, `model`: ball joints, drives, the inertia
    of stable PD, floor, time step and solver. Everything else stays as it is in the file."""
    tree = ET.parse(path).getroot()
    bodies = {body.get("name"): body for body in tree.iter("body")}
    for j in range(1, model.njnt):  # joint 0 is the root's
        joint = model.joint(j)
        body = bodies[model.body(model.jnt_bodyid[j]).name]
        armature = numbers(model.dof_armature[model.jnt_dofadr[j]])
        old = body.findall("joint")
        if len(old) == 3:
            body.insert(list(body).index(old[0]), ET.Element("joint", name=joint.name, type="ball", armature=armature))
            for hinge in old:
                body.remove(hinge)
        else:  # the gains are the actuator's now
            old[0].set("armature", armature)
            old[0].attrib.pop("stiffness", None)
            old[0].attrib.pop("damping", None)
    for section in tree.findall("actuator") + tree.findall("option"):
        tree.remove(section)
    drives = ET.SubElement(tree, "actuator")
    for i in range(model.nu):
        actuator = model.actuator(i)
        element = ET.SubElement(drives, "position", name=actuator.name, joint=model.joint(actuator.trnid[0]).name)
        element.set("gear", numbers(actuator.gear))
        element.set("kp", numbers(actuator.gainprm[:1]))
        element.set("kv", numbers(-actuator.biasprm[2:3]))
        element.set("forcelimited", "true")
        element.set("forcerange", numbers(actuator.forcerange))
    floor = model.geom("floor")
    size = {"size": numbers(floor.size), "friction": numbers(floor.friction), "condim": str(int(floor.condim[0]))}
    tree.find("worldbody").append(ET.Element("geom", name="floor", type="plane", material="floor", **size))
    tree.insert(0, option_of(model))
    return tree


def differences(a: Any, b: Any) -> List[str]:
    """Arrays and options on which the physics depends, and that differ between two MjModels."""
    names = [name for name in dir(a) if name.startswith(PHYSICS) and name not in LOOKS]
    arrays = {name: (getattr(a, name), getattr(b, name)) for name in names}
    arrays.update({name: (getattr(a.opt, name), getattr(b.opt, name)) for name in settings(a.opt)})
    odd = [name for name, (x, y) in arrays.items() if np.shape(x) != np.shape(y)]
    return odd + [name for name, (x, y) in arrays.items() if name not in odd and not np.allclose(x, y, 1e-9, 1e-12)]


def mjcf_of(loaded: Loaded) -> str:
    """The MJCF text of a policy's physics, with states to start from. Raises InputError if it came out differently."""
    import mujoco

    model = loaded.env.sim.shared.compiled
    tree = with_drives(loaded.env.motions.character.path, model)
    tree.extend(ET.fromstring(LOOK))
    right, left, trunk = COLOURS["policy"]
    for body in tree.iter("body"):
        side = body.get("name").split("_")[0]
        for geom in body.findall("geom"):
            geom.attrib.setdefault("rgba", {"right": right, "left": left}.get(side, trunk))
    keys = ET.SubElement(tree, "keyframe")
    control = numbers(loaded.policy.offset.double().numpy())
    for i, (qpos, qvel) in enumerate(zip(*starts(loaded.env))):
        ET.SubElement(keys, "key", name=f"start{i}", qpos=numbers(qpos), qvel=numbers(qvel), ctrl=control)
    ET.SubElement(ET.SubElement(tree, "custom"), "text", name=MARK, data=loaded.digest)
    ET.indent(tree)
    text = ET.tostring(tree, encoding="unicode") + "\n"
    odd = differences(model, mujoco.MjModel.from_xml_string(text))
    if odd:
        raise InputError(f"{loaded.env.motions.character.path}: its MJCF with drives differs in {', '.join(odd[:5])}")
    return text


# ---- 3. The policy as one ONNX file ----------------------------------------------------------------------------------


@contextlib.contextmanager
def traced(module: Any) -> Iterator[None]:
    """Let len(tensor) in a module be the tensor's size, which a trace follows, and not a number, which it keeps."""
    module.len = lambda x: x.shape[0] if isinstance(x, Tensor) else x.__len__()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces that its newer exporter will be the only one some day
            yield
    finally:
        del module.len


def onnx_of(policy: Policy, metadata: Dict[str, str]) -> bytes:
    """The ONNX file of a policy, checked against torch. Raises InputError if the two differ."""
    from simulators import mujoco_model

    import onnx
    import onnxruntime

    inputs = random_states(policy, CHECKED)
    tensors = tuple(map(torch.from_numpy, inputs.values()))
    buffer = io.BytesIO()
    with torch.no_grad(), traced(mujoco_model):
        expected = policy(*tensors).numpy()
        few = tuple(x[:2] for x in tensors)
        names = dict(input_names=list(inputs), output_names=["targets"])
        axes = {name: {0: "n"} for name in (*inputs, "targets")}
        # not the newer exporter, which needs onnxscript, and twelve seconds in place of one
        torch.onnx.export(policy, few, buffer, **names, dynamic_axes=axes, opset_version=17, dynamo=False)
    model = onnx.load_model_from_string(buffer.getvalue())
    onnx.helper.set_model_props(model, metadata)
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, inputs)
    worst = np.abs(found - expected).max()
    if not worst < TOLERANCE:
        raise InputError(f"the exported policy differs from torch's by {worst:.2g} rad; nothing was written")
    return data


def metadata_of(about: Dict[str, Any]) -> Dict[str, str]:
    """What the ONNX file repeats of policy.json, for who gets nothing but that file."""
    metadata = {name: json.dumps(about[name]) for name in ("control_hz", "substeps", "actuators")}
    metadata[MARK] = about["checkpoint"]["sha256"]
    return metadata


def description(loaded: Loaded, onnx: str, mjcf: str) -> Dict[str, Any]:
    """What policy.json says; onnx, mjcf: paths of the files beside it."""
    args = loaded.args
    env = loaded.env
    model = env.sim.shared.compiled
    names = env.motions.character.body_names
    falls = [name for name, always in zip(names, env.fallen.watched.all(0).tolist()) if always]
    inputs = {
        "qpos": f"(n, {model.nq}) double: MuJoCo's positions [m, quaternions wxyz, rad]",
        "qvel": f"(n, {model.nv}) double: MuJoCo's velocities [m/s, rad/s]",
    }
    result = {
        "policy": os.path.basename(onnx),
        "model": os.path.basename(mjcf),
        "control_hz": args.control_hz,
        "substeps": args.substeps,
        "timestep_s": model.opt.timestep,
        "inputs": inputs,
        "outputs": {"targets": f"(n, {model.nu}) double: MuJoCo's ctrl [rad, exponential map]"},
        "actuators": [model.actuator(i).name for i in range(model.nu)],
        "starts": STARTS,
        "fall_bodies": falls,
    }
    if loaded.policy.commanded:
        inputs["command"] = "(n, 2) double: target heading [rad, world, from +X to the left], target speed [m/s]"
        result["speed_range_m_s"] = list(args.speed_range)
        result["turn_rate_rad_s"] = TURN_RATE
    checkpoint = {"file": os.path.basename(args.checkpoint), "sha256": loaded.digest, "kind": loaded.script.KIND}
    result["checkpoint"] = {**checkpoint, "samples": loaded.samples, "options": list(loaded.options)}
    return result


# ---- 4. The command --------------------------------------------------------------------------------------------------


def parse() -> Tuple[argparse.Namespace, List[str]]:
    """The options, and those of the script. Raises InputError."""
    parser = one_line_parser(description=__doc__)
    parser.add_argument("checkpoint", help="checkpoint (.pt), or folder of a run")
    parser.add_argument("out", metavar="OUT.onnx", help="file to write; OUT.xml and OUT.json stand beside it")
    parser.add_argument("--script", help="script that the checkpoint is of, if it is none of ours")
    args, options = parser.parse_known_args()
    if not args.out.endswith(".onnx"):
        raise InputError(f"{args.out}: expected a name that ends in .onnx")
    if not os.path.isdir(os.path.dirname(os.path.abspath(args.out))):
        raise InputError(f"{args.out}: there is no such folder")
    return args, options


def main() -> None:
    with one_line("requirements.txt -r requirements-deploy.txt"):
        args, options = parse()
        checkpoint = find(args.checkpoint)
        stem = args.out[: -len(".onnx")]
        loaded = load(checkpoint, args.script, tuple(options))
        about = description(loaded, args.out, f"{stem}.xml")
        files = {args.out: onnx_of(loaded.policy, metadata_of(about)), f"{stem}.xml": mjcf_of(loaded).encode()}
        files[f"{stem}.json"] = json.dumps(about, indent=2).encode() + b"\n"
        inputs = "qpos, qvel, command" if loaded.policy.commanded else "qpos, qvel"
        contents = (f"{inputs} -> PD targets", "the character with its drives", "names, rates, units")
        for (path, data), content in zip(files.items(), contents):
            write_file(path, data)
            print(f"{path}: {content}; {len(data) / 1000:.0f} kB")
        player = os.path.join(os.path.dirname(sys.argv[0]), "player.py")
        print(f"python {shlex.quote(player)} {shlex.quote(args.out)} walks with it")


if __name__ == "__main__":
    main()
