"""Checkpoints that lie: one line each, nothing executed, nothing opened, no memory that the file does not have."""

import copy
import io
import math
import os
import re
import warnings
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import amp_ppo_isaacgym as amp
import checkpoints
import command_line
import files
import motion_lib as ml

SCRIPT, HEADING = "amp_ppo_isaacgym.py", "amp_ppo_heading.py"
TINY = "--num-envs 4 --num-steps 4 --num-minibatches 2 --total-timesteps 32 --hidden 8 8 --disc-batch 8 --no-cuda"
TINY += " --clone-updates 2 --replay-size 32 --replay-keep 8 --eval-episodes 1 --eval-seconds 0.2 --save-interval 1"


def tiny(root):
    named = ["--motion-file", root / "motions/walk.npz", "--character-file", root / "motions/humanoid.xml"]
    return [*TINY.split(), *named]


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """The last checkpoint of a tiny training of two iterations."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", [str(root / SCRIPT), *map(str, tiny(root))])
        patch.setattr("training_run._note_signals", list)
        args, _ = command_line.parse_args(amp.Args, amp.KIND)
        amp.check_args(args)
        for _ in amp.main(args):
            pass
    (path,) = folder.glob("runs/*/latest.pt")
    return torch.load(path, weights_only=True)


@pytest.fixture
def put(tmp_path, trained):
    """put(change) -> the folder of a run whose checkpoint change(checkpoint) has altered."""

    def write(change=lambda checkpoint: None):
        content = copy.deepcopy(trained)
        changed = change(content)
        (tmp_path / "run").mkdir(exist_ok=True)
        torch.save(content if changed is None else changed, tmp_path / "run/latest.pt")
        return tmp_path / "run"

    return write


def refused(result, text=""):
    """One line on stderr, exit code 2."""
    assert result.code == 2, (result.code, result.err)
    lines = result.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 1300, result.err
    assert text in lines[0], lines[0]
    assert "Traceback" not in result.err and "Warning" not in result.err


def into(*keys):
    """A function that sets what lies there in a checkpoint to a value."""

    def change(value):
        def apply(content):
            place = content
            for key in keys[:-1]:
                place = place[key]
            place[keys[-1]] = value(place[keys[-1]]) if callable(value) else value

        return apply

    return change


WEIGHT = into("shared", "agent", "actor.0.weight")
OFFSET = into("shared", "action_offset")


def laughs():
    """A list that stands for 10^40 numbers."""
    part = [0.0] * 10
    for _ in range(40):
        part = [part] * 10
    return part


# what is wrong in the part that an evaluation reads
POLICIES = {
    "NaN in a weight": WEIGHT(lambda x: x * math.nan),
    "one infinity": WEIGHT(lambda x: x.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(math.inf))),
    "infinite after the cast": WEIGHT(lambda x: x.double() * 1e300),
    "double": WEIGHT(lambda x: x.double()),
    "half": WEIGHT(lambda x: x.half()),
    "bool": WEIGHT(lambda x: x > 0),
    "integers": WEIGHT(lambda x: x.long()),
    "complex": WEIGHT(lambda x: x + 0j),
    "a scalar": WEIGHT(lambda x: x.sum()),
    "another shape": WEIGHT(lambda x: x[:, 1:].clone()),
    "one more dimension": WEIGHT(lambda x: x[None].clone()),
    "a number": WEIGHT(1.0),
    "a list": WEIGHT([1.0]),
    "None": WEIGHT(None),
    "a text": WEIGHT("weight"),
    "claims what it does not hold": WEIGHT(torch.zeros(1).expand(10**6, 10**6)),
    "offset is a number": OFFSET(0.0),
    "offset is a scalar": OFFSET(torch.tensor(0.0)),
    "offset is bool": OFFSET(lambda x: x > 0),
    "offset NaN": OFFSET(lambda x: x * math.nan),
    "a negative variance": into("shared", "agent", "obs_norm.var")(lambda x: -x),
    "a negative count": into("shared", "agent", "obs_norm.count")(lambda x: -x),
    "a weight too many": lambda content: content["shared"]["agent"].update(extra=torch.zeros(1)),
    "agent is a list": into("shared", "agent")([]),
    "agent is None": into("shared", "agent")(None),
    "no agent": into("shared")({}),
    "shared is a list": into("shared")([]),
    "shared is None": into("shared")(None),
    "shared laughs": into("shared", "agent", "obs_norm.var")(laughs()),
    "kind is a number": into("kind")(3),
    "another kind": into("kind")("amp_ppo_heading"),
    "character is a list": into("character")([]),
    "bodies are a number": into("character", "bodies")(3),
    "bodies are a text": into("character", "bodies")("pelvis"),
    "bodies are lists": into("character", "bodies")([[]]),
    "bodies laugh": into("character", "bodies")(laughs()),
    "bodies are others": into("character", "bodies")(["\x1b[31m" * 1000]),
    "args are a list": into("args")([]),
    "args are None": into("args")(None),
    "args are a text": into("args")("--evaluate"),
    "metrics are None": into("metrics")(None),
    "samples are a text": into("samples")("many"),
    "all is a list": lambda content: [content],
    "all is a tensor": lambda content: torch.zeros(3),
    "all is a number": lambda content: 3,
}


def remove(*keys):
    def change(content):
        place = content
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return change


# wrong values of options
OPTIONS = {
    "hidden": [(8,), (8, 8, 8), [8, 8], (8.0, 8.0), 8, "8 8", (True, 8), (10**30, 8), (0, 8), (-1, 8), (10**9, 8)],
    "task": ["fly", None, 3, ["speed"]],
    "target_speed": ["1", math.nan, math.inf, torch.tensor(1.0), True],
    "control_hz": [30.0, 0, -1, None, 10**5000],
    "motion_file": [None, 3, b"motions/walk.npz", "\x00", "\ud800", ""],
    "character_file": [None, 3, "\x00", "nowhere.xml"],
    "fall_bodies": [("toe",), "head", (3,), (), ["head"]],
    "eval_seconds": ["long", -1.0, math.nan, laughs()],
    "eval_episodes": [0, 1.5, 10**9, None, {}],
    "disc_steps": [1, "2"],
    "no_such_option": [1],
}
CASES = [(name, i) for name, values in OPTIONS.items() for i in range(len(values))]


# what is wrong in the part that only --resume reads
RUNS = {
    "no processes": remove("processes"),
    "processes is a number": into("processes")(1),
    "two processes": into("processes")(lambda x: x * 2),
    "a process is a list": into("processes", 0)([]),
    "a process is empty": into("processes", 0)({}),
    "no random numbers": remove("processes", 0, "random"),
    "random is short": into("processes", 0, "random")(lambda x: x[:10].clone()),
    "random is float": into("processes", 0, "random")(lambda x: x.float()),
    "random is a list": into("processes", 0, "random")([]),
    "demo is None": into("processes", 0, "demo")(None),
    "env is a list": into("processes", 0, "env")([]),
    "env lacks time": remove("processes", 0, "env", "time"),
    "time is NaN": into("processes", 0, "env", "time")(lambda x: x * math.nan),
    "time is long": into("processes", 0, "env", "time")(lambda x: x.long()),
    "pool is shorter": into("processes", 0, "env", "pool")(lambda x: x[:-1]),
    "pool is a tensor": into("processes", 0, "env", "pool")(torch.zeros(3)),
    "sim is None": into("processes", 0, "env", "sim")(None),
    "replay has another width": into("processes", 0, "replay", "data")(lambda x: x[:, 1:].clone()),
    "replay is bool": into("processes", 0, "replay", "data")(lambda x: x > 0),
    "replay has no rows": into("processes", 0, "replay", "data")(torch.tensor(3.0)),
    "replay has a name more": into("processes", 0, "replay", "size")(3),
    "no rates": remove("rates"),
    "rates are texts": into("rates")(["a", "b", "c"]),
    "rates are few": into("rates")([1.0]),
    "no progress": remove("progress"),
    "progress is None": into("progress")(None),
    "iteration is a text": into("progress", "iteration")("1"),
    "iteration is bool": into("progress", "iteration")(True),
    "best is None": into("progress", "best")(None),
    "metrics hold a text": into("progress", "metrics", "pose_error_m")("low"),
    "metrics hold a tensor": into("progress", "metrics", "pose_error_m")(torch.zeros(1)),
    "no data": remove("data"),
    "data is a list": into("data")([]),
    "data of numbers": into("data", "script")(3),
    "optimiser is None": into("shared", "ppo")(None),
    "optimiser is empty": into("shared", "ppo")({}),
    "moments NaN": into("shared", "ppo", "state", 0, "exp_avg")(lambda x: x * math.nan),
    "moments negative": into("shared", "ppo", "state", 0, "exp_avg_sq")(lambda x: -x - 1),
    "moments of another shape": into("shared", "ppo", "state", 0, "exp_avg")(lambda x: x[1:].clone()),
    "moments are missing": remove("shared", "ppo", "state", 0),
    "moments of nobody": into("shared", "ppo", "state")(lambda x: {**x, 99: x[0]}),
    "step is NaN": into("shared", "disc", "state", 0, "step")(lambda x: x * math.nan),
    "step is negative": into("shared", "disc", "state", 0, "step")(lambda x: -x),
    "rate is a text": into("shared", "ppo", "param_groups", 0, "lr")("fast"),
    "rate is bool": into("shared", "ppo", "param_groups", 0, "lr")(True),
    "rate is below 0": into("shared", "disc", "param_groups", 0, "lr")(-1e-3),
    "samples are below 0": into("progress", "samples")(-(10**9)),
    "best is NaN": into("progress", "best")(math.nan),
    "a tensor is all": lambda content: torch.zeros(3),
    "rate is NaN": into("shared", "ppo", "param_groups", 0, "lr")(math.nan),
    "a group too few": into("shared", "ppo", "param_groups")(lambda x: x[:1]),
}


def evaluation_of(run_script, folder, root):
    files_ = ("--motion-file", root / "motions/walk.npz", "--character-file", root / "motions/humanoid.xml")
    return run_script(SCRIPT, "--no-cuda", "--evaluate", "--checkpoint", folder / "latest.pt", *files_)


def read(path, character, objects):
    """What a script does with a checkpoint to be evaluated."""
    checkpoint = checkpoints.load_checkpoint(str(path), amp.KIND)
    clip = os.path.join(os.path.dirname(amp.__file__), "motions/walk.npz")
    checkpoints.fit_checkpoint(checkpoint, ml.MotionLib(clip, character), objects)


@pytest.fixture(scope="module")
def objects(trained):
    """Networks of the sizes in the checkpoint, as a script builds them."""
    agent = trained["shared"]["agent"]

    class Env:
        obs_size = len(agent["obs_norm.mean"])
        action_offset = trained["shared"]["action_offset"]
        disc_obs_size = len(agent["disc_norm.mean"])

    return {"agent": amp.Agent(Env, (8, 8), -2.5), "action_offset": torch.zeros(28)}


def test_a_sound_checkpoint_is_read(put, character, objects, trained):
    read(put() / "latest.pt", character, objects)
    assert torch.equal(objects["agent"].actor[0].weight, trained["shared"]["agent"]["actor.0.weight"])


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_that_does_not_fit_changes_nothing(put, character, objects, name):
    before = copy.deepcopy(objects["agent"].state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(files.InputError) as caught:
            read(put(POLICIES[name]) / "latest.pt", character, objects)
    said = str(caught.value)
    assert said.isprintable() and len(said) < 1200
    assert all(torch.equal(x, before[key]) for key, x in objects["agent"].state_dict().items())


@pytest.mark.parametrize("name", ["NaN in a weight", "bool", "agent is None", "bodies laugh", "all is a number"])
def test_a_script_says_so_in_one_line(put, run_script, root, name):
    refused(evaluation_of(run_script, put(POLICIES[name]), root))


@pytest.mark.parametrize("name, i", CASES)
def test_options_of_a_checkpoint_are_checked(put, run_script, root, name, i):
    here = {"motion_file": "motions/walk.npz", "character_file": "motions/humanoid.xml", name: OPTIONS[name][i]}
    folder = put(lambda content: content["args"].update(here))
    refused(run_script(SCRIPT, "--no-cuda", "--evaluate", "--checkpoint", folder / "latest.pt"))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_does_not_fit_is_not_resumed(put, run_script, name):
    result = run_script(SCRIPT, "--no-cuda", "--resume", put(RUNS[name]), "--total-timesteps", 64)
    refused(result)


BEYOND = {
    "clip": into("processes", 0, "env", "clip")(lambda x: x + 99),
    "clip in the pool": into("processes", 0, "env", "pool")(lambda x: [x[0] + 99, *x[1:]]),
}


@pytest.mark.parametrize("name", BEYOND)
def test_a_number_that_only_the_script_can_judge_ends_a_run_in_one_line(put, run_script, name):
    """It names the checkpoint, and the place for whoever has changed the script."""
    more = ("--episode-steps", 1, "--total-timesteps", 64, "--save-interval", 2)  # all take the pool's states at once
    result = run_script(SCRIPT, "--no-cuda", "--resume", put(BEYOND[name]), *more)
    last = result.err.splitlines()[-1]
    assert result.code == 2 and last.startswith("error: ") and "run: the training cannot go on from this" in last
    assert re.search(r"Error: .*\.py, line \d+\)$", last) and "Traceback" not in result.err


def test_what_an_optimiser_does_is_the_scripts(put, run_script, tmp_path, trained):
    """Gradient ascent, or other moments, are not taken from a file; the rate that it has come to is."""

    def change(content):
        for group in content["shared"]["disc"]["param_groups"]:
            group.update(maximize=True, betas=(0.1, 0.2), weight_decay=1e3, params=[0] * 6, lr=0.125)

    result = run_script(SCRIPT, "--no-cuda", "--resume", put(change), "--total-timesteps", 48)
    assert result.code == 0, result.err
    (after,) = torch.load(tmp_path / "run/latest.pt", weights_only=True)["shared"]["disc"]["param_groups"]
    assert after == {**trained["shared"]["disc"]["param_groups"][0], "lr": 0.125}


def test_torchs_advice_is_not_passed_on(put):
    """To read what it refuses without that protection."""
    with pytest.raises(files.InputError) as caught:
        checkpoints.load_checkpoint(str(put(into("samples")(10**5000)) / "latest.pt"), amp.KIND)
    assert "weights_only" not in str(caught.value) and "PyTorch" not in str(caught.value)


def test_a_fault_after_the_next_save_is_the_scripts_own(put, run_script, monkeypatch):
    monkeypatch.setattr("training_run.Run.finish", lambda run, evaluate: [][0])
    with pytest.raises(IndexError):
        run_script(SCRIPT, "--no-cuda", "--resume", put(), "--total-timesteps", 64)


def test_a_sound_run_is_resumed(put, run_script):
    result = run_script(SCRIPT, "--no-cuda", "--resume", put(), "--total-timesteps", 64)
    assert result.code == 0, result.err


# ---- Files that are not what torch.save writes ----


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members:
            file.writestr(name, data)


def call(name, *arguments):
    """A pickle that calls a global with whole numbers."""
    module, attribute = name.rsplit(".", 1)
    pushed = b"".join(b"J" + x.to_bytes(4, "little", signed=True) for x in arguments)
    return b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b"(" + pushed + b"tR."


@pytest.mark.parametrize("name", ["builtins.bytearray", "os.system", "torch.FloatTensor", "torch.Size", "builtins.set"])
def test_nothing_but_tensors_is_made(tmp_path, name):
    """Some of these torch itself would call, and allocate 2 GB."""
    archive(tmp_path / "x.pt", [("x/data.pkl", call(name, 2**31 - 1)), ("x/version", "3\n"), ("x/byteorder", "little")])
    with pytest.raises(files.InputError, match=r"it asks for .*; refused, nothing was executed"):
        checkpoints.load_checkpoint(str(tmp_path / "x.pt"), amp.KIND)


def test_nothing_is_executed(tmp_path, payload):
    for form in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"kind": payload(tmp_path / "executed")}, tmp_path / "x.pt", **form)
        with pytest.raises(files.InputError) as caught:
            checkpoints.load_checkpoint(str(tmp_path / "x.pt"), amp.KIND)
        assert len(str(caught.value)) < 500 and "weights_only" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_an_old_pickle_with_an_archive_behind_it_is_refused(tmp_path, put):
    sound = (put() / "latest.pt").read_bytes()
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(3)}, buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "both.pt").write_bytes(buffer.getvalue() + sound)
    with pytest.raises(files.InputError, match="not an archive that"):
        checkpoints.load_checkpoint(str(tmp_path / "both.pt"), amp.KIND)


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path, put):
    with zipfile.ZipFile(put() / "latest.pt") as source:
        members = [(name, source.read(name)) for name in source.namelist()]
    archive(tmp_path / "x.pt", [*members, ("archive/data/99", bytes(10**8))], zipfile.ZIP_DEFLATED)
    with pytest.raises(files.InputError, match="unpacks to more than its size"):
        checkpoints.load_checkpoint(str(tmp_path / "x.pt"), amp.KIND)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive(tmp_path / "x.pt", [*members, members[0]])
    with pytest.raises(files.InputError, match="a name twice"):
        checkpoints.load_checkpoint(str(tmp_path / "x.pt"), amp.KIND)


@given(st.binary(max_size=60), st.integers(0, 10**6), st.booleans())
def test_bytes_that_are_changed(tmp_path_factory, trained, character, objects, data, place, whole):
    """Anywhere in the file; or a file of nothing else."""
    path = tmp_path_factory.mktemp("changed") / "x.pt"
    if whole:
        path.write_bytes(data)
    else:
        buffer = io.BytesIO()
        torch.save(trained, buffer)
        raw = bytearray(buffer.getvalue())
        place %= len(raw)
        raw[place : place + len(data)] = data
        path.write_bytes(raw)
    try:
        read(path, character, objects)
    except files.InputError as error:
        assert len(str(error)) < 1200


# ---- Old PyTorch ----


@pytest.mark.parametrize("version, old", [("2.4.1", True), ("1.13.1+cu117", True), ("2.6.0", False), ("2.13.0", False)])
def test_foreign_checkpoints_and_old_pytorch(put, monkeypatch, version, old):
    """Versions are numbers: 2.13 is not older than 2.6. A run of one's own goes on."""
    folder = put()
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.delenv("AMP_TRUST_CHECKPOINTS", raising=False)
    assert checkpoints.load_checkpoint(str(folder), amp.KIND)["kind"] == amp.KIND  # --resume
    if old:
        for value in ("", "0"):  # no is not yes
            monkeypatch.setenv("AMP_TRUST_CHECKPOINTS", value)
            with pytest.raises(files.InputError, match=r"CVE-2025-32434.*AMP_TRUST_CHECKPOINTS=1"):
                checkpoints.load_checkpoint(str(folder / "latest.pt"), amp.KIND)
        monkeypatch.setenv("AMP_TRUST_CHECKPOINTS", "1")
    assert checkpoints.load_checkpoint(str(folder / "latest.pt"), amp.KIND)["kind"] == amp.KIND


# ---- A stranger's checkpoint ----


@pytest.mark.parametrize("path", ["/etc/hostname", "../secret.npz", "motions/../../x.json", "/dev/zero"])
@pytest.mark.parametrize("option", ["motion_file", "character_file"])
def test_paths_elsewhere_are_opened_only_if_they_are_typed(put, run_script, monkeypatch, option, path):
    folder = put(lambda content: content["args"].update({"motion_file": "motions/walk.npz", option: path}))
    opened = []
    monkeypatch.setattr("motion_lib.find", lambda name: opened.append(name) or name)
    result = run_script(SCRIPT, "--no-cuda", "--evaluate", "--checkpoint", folder / "latest.pt")
    typed = f"--{option.replace('_', '-')}"
    if option == "motion_file":
        refused(result, f"the checkpoint names {path}; if that is meant, type {typed}")
    else:
        refused(result, f"if that is meant, type {typed}")
    assert opened == []


@pytest.mark.parametrize("way", ["http://127.0.0.1:9/way.csv", "/etc/hostname", "way.csv"])
def test_commands_of_a_checkpoint_are_not_opened(monkeypatch, tmp_path, root, way):
    """Nor is anything fetched: what a checkpoint names as commands is not taken."""
    import amp_ppo_heading as heading

    content = torch.load(root / "pretrained/heading.pt", weights_only=True)
    content["args"]["eval_commands"] = way
    torch.save(content, tmp_path / "x.pt")
    flags = ["--no-cuda", "--evaluate", "--checkpoint", str(tmp_path / "x.pt")]
    args, _ = command_line.parse_args(heading.Args, heading.KIND, flags)
    assert args.eval_commands is None
    args, _ = command_line.parse_args(heading.Args, heading.KIND, [*flags, "--eval-commands", "mine.csv"])
    assert args.eval_commands == "mine.csv"


@pytest.mark.parametrize("option, value", [("evaluate", True), ("checkpoint", "/etc/hostname"), ("resume", "/tmp")])
def test_what_is_done_is_not_taken_from_a_checkpoint(put, root, option, value):
    folder = put(lambda content: content["args"].update({option: value}))
    args, _ = command_line.parse_args(amp.Args, amp.KIND, ["--resume", str(folder), "--no-cuda"])
    assert (args.evaluate, args.checkpoint, args.resume) == (False, None, str(folder))


@pytest.mark.parametrize(
    "option, value", [("eval_episodes", 10**10), ("eval_seconds", 1e13), ("substeps", 10**10), ("control_hz", 10**10)]
)
def test_how_long_an_evaluation_takes_is_not_up_to_a_stranger(put, option, value):
    """More than 10^8 steps of the physics, an hour perhaps, only for who types how many episodes are meant."""
    lie = {"motion_file": "motions/walk.npz", "character_file": "motions/humanoid.xml", option: value}
    folder = put(lambda content: content["args"].update(lie))
    flags = ["--no-cuda", "--evaluate", "--checkpoint", str(folder / "latest.pt")]
    with pytest.raises(files.InputError, match="physics steps; if meant, type --eval-episodes"):
        command_line.parse_args(amp.Args, amp.KIND, flags)
    args, _ = command_line.parse_args(amp.Args, amp.KIND, [*flags, "--eval-episodes", "7"])
    assert args.eval_episodes == 7
    command_line.parse_args(amp.Args, amp.KIND, ["--no-cuda", "--resume", str(folder)])  # one's own


# ---- Nothing unsound is saved ----


@given(st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 3))
def test_whatever_is_not_finite_is_found(value, place):
    state = {"a": [torch.zeros(3), {"b": torch.zeros(2)}], "c": 1.0, "d": torch.zeros((), dtype=torch.long)}
    assert checkpoints.unsound(state) == ""
    if place == 0:
        state["a"][0][2] = value
    elif place == 1:
        state["a"][1]["b"][0] = value
    elif place == 2:
        state["c"] = value
    else:
        state["e"] = (1, [value])
    assert checkpoints.unsound(state) == ("a.0", "a.1.b", "c", "e.1.0")[place]


def test_variances_below_zero_are_found():
    assert checkpoints.unsound({"norm": {"mean": -torch.ones(2), "var": torch.ones(2)}}) == ""
    assert checkpoints.unsound({"norm": {"var": torch.tensor([1.0, -1e-9])}}) == "norm.var"


def test_what_stands_for_too_much_is_looked_at_once():
    assert checkpoints.unsound(laughs()) == ""
    assert checkpoints.unsound({"x": torch.zeros(1).expand(10**9, 10**9)}) == "x"


@pytest.mark.parametrize(
    "option, rate",
    [
        ("--critic-learning-rate", 1e6),
        ("--critic-learning-rate", 1e14),
        ("--learning-rate", 1e14),
        ("--disc-learning-rate", 1e14),
    ],
)
def test_a_training_that_is_lost_says_so_and_saves_nothing_unsound(run_script, root, tmp_path, option, rate):
    result = run_script(SCRIPT, *tiny(root), option, rate, "--total-timesteps", 16 * 60)
    last = result.err.splitlines()[-1]
    assert result.code == 1 and last.startswith("error: ") and "finite" in last and "Traceback" not in result.err
    paths = list(tmp_path.glob("runs/*/*.pt"))
    assert "nothing has been saved" in last or any(str(path.relative_to(tmp_path)) in last for path in paths)
    for path in paths:
        content = torch.load(path, weights_only=True)
        assert checkpoints.unsound({key: content.get(key) for key in ("shared", "processes", "progress")}) == ""


def test_a_state_that_is_not_finite_ends_a_run_before_it_is_saved(root, tmp_path, monkeypatch, signals):
    """Even where every update was finite: here somebody else has put NaN into the returns' mean."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(root / SCRIPT), *map(str, tiny(root))])
    args, _ = command_line.parse_args(amp.Args, amp.KIND)
    amp.check_args(args)
    steps = amp.main(args)
    agent, _, _ = next(steps)
    before = torch.load(next(tmp_path.glob("runs/*/latest.pt")), weights_only=True)
    agent.obs_norm.mean[3] = math.nan
    with pytest.raises(checkpoints.Unsound, match="finite"):
        list(steps)
    after = torch.load(next(tmp_path.glob("runs/*/latest.pt")), weights_only=True)
    assert after["samples"] == before["samples"] == 16 and checkpoints.unsound(after["shared"]) == ""
