"""The house rules that a machine can check: budgets, which only fall; who imports whom; options that are explained."""

import ast
import dataclasses
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import amp_ppo_heading as heading
import amp_ppo_isaacgym as amp
import command_line

SCRIPTS = {"amp_ppo_isaacgym.py": amp, "amp_ppo_heading.py": heading}
FOLDER = Path(amp.__file__).resolve().parent
SIMULATORS = sorted(str(path.relative_to(FOLDER)) for path in (FOLDER / "simulators").glob("*.py"))
ROOMS = ("checkpoints", "command_line", "course", "evaluation", "falls", "files", "guards", "motion_lib", "processes")
ROOMS += ("clips", "console", "curves", "gait", "locks", "options", "report", "training_run")
PRODUCT = (*SCRIPTS, *(f"{room}.py" for room in ROOMS), *SIMULATORS)
DEPLOY = ("deploy/export.py", "deploy/player.py", "deploy/steer.py", "deploy/walker.py")
needs_mujoco = pytest.mark.skipif(sys.version_info < (3, 10), reason="mujoco needs Python 3.10")

# ---- Budgets ----

# lines, characters: these numbers are only ever made smaller
BUDGETS = {
    "amp_ppo_isaacgym.py": (700, 36_000),
    "amp_ppo_heading.py": (790, 41_000),
    "motion_lib.py": (420, None),
    "clips.py": (101, None),
    "files.py": (123, None),
    "locks.py": (31, None),
    "guards.py": (81, None),
    "falls.py": (64, None),
    "course.py": (110, None),
    "evaluation.py": (300, None),
    "gait.py": (130, None),
    "report.py": (200, None),
    "console.py": (110, None),
    "curves.py": (60, None),
    "simulators": (600, None),
    "command_line.py": (238, None),
    "options.py": (71, None),
    "processes.py": (113, None),
    "checkpoints.py": (167, None),
    "training_run.py": (330, None),
}


def read(root, name):
    return (root / name).read_text(encoding="utf-8")


def functions(tree):
    """All functions in a tree, by name: how many lines each has."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [(node.name, node.end_lineno - node.lineno + 1) for node in found]


@pytest.mark.parametrize("name", BUDGETS)
def test_no_room_outgrows_its_budget(root, name):
    lines, characters = BUDGETS[name]
    text = "".join(read(root, part) for part in (SIMULATORS if name == "simulators" else (name,)))
    assert len(text.splitlines()) <= lines
    assert characters is None or len(text) <= characters


def test_every_room_has_a_budget(root):
    """A module beside the scripts that is not in the list above would escape it."""
    assert {path.name for path in root.glob("*.py")} | {"simulators"} == set(BUDGETS)


def test_no_line_is_longer_than_120_columns(root):
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=str(root), stdout=subprocess.PIPE, check=False)
    names = listed.stdout.decode().split() or [str(path.relative_to(root)) for path in root.rglob("*.py")]
    long = []
    for name in names:
        if (root / name).exists():
            lines = read(root, name).splitlines()
            long += [f"{name}:{number}" for number, line in enumerate(lines, 1) if len(line) > 120]
    assert len(names) > 20 and long == []


@pytest.mark.parametrize("name", [*PRODUCT, *DEPLOY])
def test_functions_are_short(root, name):
    limits = {"main": 210}
    long = [found for found in functions(ast.parse(read(root, name))) if found[1] > limits.get(found[0], 45)]
    assert long == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_one_statement_a_line(root, script):
    """A tuple assigned to a tuple is several statements in one line, too; a few read well, a hundred do not."""
    nodes = list(ast.walk(ast.parse(read(root, script))))
    found = [node for node in nodes if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)]
    assert len([node for node in found if isinstance(node.targets[0], ast.Tuple)]) <= 12
    lines = [node.lineno for node in nodes if isinstance(node, ast.stmt)]
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_main_loop_is_algorithm(root, script):
    (main,) = [node for node in ast.parse(read(root, script)).body if getattr(node, "name", "") == "main"]
    lines = read(root, script).splitlines()[: main.end_lineno]
    (first,) = [number for number, line in enumerate(lines) if line.startswith("    for iteration")]
    (last,) = [number for number, line in enumerate(lines) if "Here the algorithm ends" in line]
    assert last - first >= 0.6 * (len(lines) - first)
    steps = [line.strip()[2] for line in lines[first:last] if re.match(r" *# [1-9]\. ", line)]
    assert steps == list("123456")  # the paper's six


@pytest.mark.parametrize("name", [*PRODUCT, *DEPLOY, "motions/convert.py", "motions/render.py", "motions/tools.py"])
def test_the_code_parses_as_python_3_8(root, name):
    ast.parse(read(root, name), feature_version=(3, 8))


# ---- Arrows ----

ALLOWED = {
    "files": set(),
    "guards": set(),
    "locks": {"files"},
    "clips": {"files"},
    "motion_lib": {"clips", "files"},
    "checkpoints": {"files", "motion_lib"},
    "course": set(),
    "evaluation": {"gait", "motion_lib"},
    "gait": {"motion_lib"},
    "console": {"files", "motion_lib"},
    "curves": {"processes"},
    "report": {"clips", "console", "files", "motion_lib"},
    "falls": {"files", "motion_lib"},
    "options": set(),
    "processes": {"files", "motion_lib"},
    "simulators": {"files", "guards", "motion_lib", "simulators"},
    "training_run": {"checkpoints", "console", "curves", "files", "locks", "motion_lib", "processes", "report"},
    "command_line": {"checkpoints", "files", "guards", "options", "processes", "simulators"},
}


def imported(tree):
    """Modules that are imported anywhere in a tree; a relative import is one of simulators."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add("simulators" if node.level else node.module.split(".")[0])
    return names


def ours(root):
    return {path.stem for path in root.glob("*.py")} | {"simulators"}


@pytest.mark.parametrize("name", PRODUCT[len(SCRIPTS) :])
def test_arrows_run_one_way(root, name):
    room = name.split("/")[0].replace(".py", "")
    assert imported(ast.parse(read(root, name))) & ours(root) <= ALLOWED[room]


def test_nothing_imports_a_script(root):
    """Tests and benchmarks apart."""
    files = [*root.glob("*.py"), *root.glob("simulators/*.py"), *root.glob("motions/*.py")]
    scripts = {path.stem for path in root.glob("amp_ppo_*.py")}
    assert len(files) > 15 and len(scripts) == 2
    assert [path.name for path in files if imported(ast.parse(path.read_text(encoding="utf-8"))) & scripts] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_knows_few_names_of_each_room(root, script):
    tree = ast.parse(read(root, script))
    for room in set(ALLOWED) - {"clips", "files", "gait", "guards", "locks", "motion_lib", "options"}:
        names = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == room:
                names |= {alias.name for alias in node.names}
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == room:
                names.add(node.attr)
        assert 0 < len(names) <= 10 or (room, script) == ("course", "amp_ppo_isaacgym.py"), room  # it has no courses


# ---- Options ----


def fields(module):
    return {field.name: field for field in dataclasses.fields(module.Args)}


def documented(group):
    """Name -> docstring of every field of a group of options, as it stands under the field."""
    body = ast.parse(inspect.getsource(group)).body[0].body
    texts = {}
    for field, text in zip(body, body[1:]):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            texts[field.target.id] = ast.literal_eval(text.value)
    return texts


@pytest.mark.parametrize("module", SCRIPTS.values())
def test_every_option_is_documented(module):
    texts = {}
    for group in module.Args.groups:
        texts.update(documented(group))
    assert set(texts) == set(fields(module))
    assert [name for name, text in texts.items() if not text.strip() or "\n" in text or text.endswith(".")] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_is_read(root, script):
    """In the script outside check_args, which only fills in and refuses, or in a room."""
    nodes = [node for node in ast.parse(read(root, script)).body if getattr(node, "name", "") != "check_args"]
    for room in ("command_line", "training_run", "evaluation", "report", "console"):
        nodes += ast.parse(read(root, f"{room}.py")).body
    used = set()
    for part in (part for node in nodes for part in ast.walk(node)):
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Load):
            if "args" in (getattr(part.value, "id", ""), getattr(part.value, "attr", "")):  # args.x or self.args.x
                used.add(part.attr)
    assert set(fields(SCRIPTS[script])) - used == set()


@pytest.mark.parametrize("module", SCRIPTS.values())
def test_help(module, capsys):
    """In groups, a sentence for every option, its default, of both devices where it differs; no constant's name."""
    with pytest.raises(SystemExit) as end:
        command_line.parse_args(module.Args, module.KIND, ["--help"])
    said, errors = capsys.readouterr()
    assert (end.value.code, errors) == (0, "")
    said = re.sub("\x1b\\[[0-9;]*m|[─│╭╮╰╯]", " ", said)  # colours and frames
    boxes = re.split(r"\n *(\w+) options *\n", said)[1:]
    titles = ["general", "data", "task", "training", "discriminator", "evaluation"]
    assert boxes[::2] == titles
    for group, box in zip(module.Args.groups, boxes[1::2]):
        box = " ".join(box.split())
        for name, sentence in documented(group).items():
            # up to the default: what --help says of this option
            entry = re.search(rf" --{name.replace('_', '-')}[ ,].*? {re.escape(sentence)} \(default: (.*?)\)", box)
            assert entry, name
            devices = getattr(fields(module)[name].type, "__metadata__", None)
            if devices:
                cpu, cuda = (" ".join(map(str, x if isinstance(x, tuple) else (x,))) for x in devices[-1])
                assert entry.group(1) == f"{cpu}, with physics on a GPU {cuda}", name
    assert "by_device" not in said
    assert set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", said)) == {"WANDB_PROJECT", "WANDB_ENTITY"}


@needs_mujoco
@pytest.mark.parametrize("module", SCRIPTS.values())
def test_defaults_depend_on_the_device_and_explicit_options_win(module, monkeypatch):
    def parse(*argv):
        args = command_line.parse_args(module.Args, module.KIND, argv)[0]
        module.check_args(args)
        return args

    optional = {"exp_name", "resume", "target_speed", "eval_commands", "checkpoint", "out"}
    args = parse("--no-cuda")
    assert {name for name, x in vars(args).items() if x is None} <= optional
    assert (args.num_envs, args.hidden, args.disc_updates, args.sim) == (256, (256, 128), 2, "mujoco")
    args = parse("--no-cuda", "--num-envs", "24", "--num-steps", "6", "--hidden", "7", "5", "--num-minibatches", "9")
    assert (args.num_envs, args.num_steps, args.num_minibatches, args.hidden) == (24, 6, 9, (7, 5))
    monkeypatch.setattr(command_line.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(command_line.simulators, "choose", lambda name, cuda: name)
    args = parse("--cuda", "--sim", "warp", "--disc-updates", "3")
    assert (args.num_envs, args.hidden, args.disc_updates) == (4096, (1024, 512), 3)
    # the physics makes the pace: with MuJoCo's on the CPU so many environments would only wait
    args = parse("--cuda", "--sim", "mujoco")
    assert (args.num_envs, args.hidden, args.disc_updates) == (256, (256, 128), 2)


def commands(text, script):
    """Flags of every command in a text that runs the script."""
    for line in text.replace("\\\n", " ").splitlines():
        for command in line.split("&&"):
            if script in command and "python" in command and "`" not in command:
                words = shlex.split(command, comments=True)
                if script in words and words[words.index(script) - 1].startswith("python"):
                    yield words[words.index(script) + 1 :]


@needs_mujoco
@pytest.mark.parametrize("document", ["README.md", "docstring"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_commands_of_the_documents_parse(root, document, script, monkeypatch):
    module = SCRIPTS[script]
    if document == "README.md":
        text = "\n".join(read(root, document).split("```")[1::2])  # its code blocks
    else:
        text = ast.get_docstring(ast.parse(read(root, script)))
    found = list(commands(text, script))
    assert [] in found  # the command without options
    assert any("--evaluate" in flags for flags in found)
    monkeypatch.setattr(command_line, "load_checkpoint", lambda path, name: {"args": {}})
    for flags in found:
        given = [flag for flag in flags if not flag.startswith("[")]
        args, _ = command_line.parse_args(module.Args, module.KIND, [x for x in given if x != "--cuda"])
        named = [args.motion_file, args.character_file, args.checkpoint, getattr(args, "eval_commands", None)]
        there = [file for file in named if file and not file.startswith(("runs/", "mine."))]  # but the user's
        assert [file for file in there if not (root / file).exists()] == []
        args.cuda = False
        module.check_args(args)


# ---- The environment of the process ----


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "set_by_user", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}], ids=lambda x: "".join(x) or "none"
)
def test_threads_that_wait_leave_their_core(root, script, set_by_user):
    """GOMP_SPINCOUNT is set when torch is first looked for, unless the user has decided."""
    program = f"""
import os, sys
sys.path.insert(0, {str(root)!r})

class Watch:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))
            sys.stdout.flush()
            os._exit(0)

sys.meta_path.insert(0, Watch)
import {script[:-3]}
"""
    env = {name: x for name, x in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**env, **set_by_user}, stdout=subprocess.PIPE, check=True
    )
    expected = "None" if "OMP_WAIT_POLICY" in set_by_user else set_by_user.get("GOMP_SPINCOUNT", "5000")
    assert done.stdout.decode().split() == [expected, set_by_user.get("OMP_WAIT_POLICY", "None")]
