"""files.py and what uses it: messages, the terminal, files found and written, and nothing that a link leads away."""

import ast
import io
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import checkpoints
import evaluation
import files
import guards
import motion_lib as ml

PRODUCT = ["*.py", "simulators/*.py", "motions/*.py"]


def sources(root):
    return sorted(path for pattern in PRODUCT for path in root.glob(pattern))


# ---- Messages ----


@given(st.text(max_size=3000))
def test_a_message_is_one_line_that_no_terminal_obeys(text):
    said = str(files.InputError(text))
    assert said.isprintable() or said == ""
    assert len(said) < 1200


def test_long_names_are_cut():
    said = str(files.InputError("x" * 10**6 + " the end"))
    assert len(said) < 1200 and said.startswith("xxx") and said.endswith(" the end")


def test_control_characters_in_names_stay_out_of_the_terminal(run_script, tmp_path, root):
    name = "\x1b]0;owned\x07\x9b31m.npz"
    (tmp_path / name).write_bytes(b"no clip")
    result = run_script("amp_ppo_isaacgym.py", "--no-cuda", "--motion-file", name)
    assert result.code == 2 and len(result.err.splitlines()) == 1
    assert "\\x1b]0;owned\\x07\\x9b31m.npz" in result.err and "\x1b" not in result.err and "\x9b" not in result.err


def test_what_a_training_prints_of_names_is_escaped(run_script, tmp_path, root):
    """Names of clips stand in the report on falls and among the options."""
    name = "\x1b[31mred\x9b.npz"
    (tmp_path / name).write_bytes((root / "motions/walk.npz").read_bytes())
    flags = "--num-envs 2 --num-steps 4 --num-minibatches 2 --total-timesteps 8 --hidden 8 8 --disc-batch 8".split()
    flags += "--clone-updates 2 --replay-size 8 --eval-episodes 1 --eval-seconds 0.1".split()
    flags += "--fall-bodies none --no-cuda".split()
    result = run_script("amp_ppo_isaacgym.py", *flags, "--motion-file", name)
    assert result.code == 0, result.err
    said = result.out + result.err
    assert "nothing counts as a fall" in said
    assert "\x1b" not in said and "\x9b" not in said and "\\x1b[31mred" in said


# ---- The terminal ----


class Broken(io.StringIO):
    """A stream on a full disk."""

    encoding = "utf-8"

    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise OSError(28, "No space left on device")


def test_a_terminal_that_cannot_be_written_ends_nothing():
    for stream in (Broken(), None, closed()):
        terminal = guards.Terminal(stream)
        assert terminal.write("text") == 4
        terminal.flush()
        print("more", file=terminal)
    assert not guards.Terminal(None).isatty()  # tyro asks, before it shows --help


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@given(
    st.text(alphabet=st.characters(codec=None), max_size=50), st.sampled_from(["ascii", "latin-1", "cp1252", "utf-8"])
)
def test_names_that_an_encoding_lacks_are_escaped(text, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="")
    guards.Terminal(stream).write(text)
    guards.Terminal(stream).flush()
    assert raw.getvalue().decode(encoding) == text.encode(encoding, "backslashreplace").decode(encoding)


# ---- Reading ----


@pytest.mark.parametrize("error", [KeyError("a\nb"), RuntimeError("x" * 5000), RecursionError(), MemoryError("big")])
def test_whatever_a_parser_raises_is_one_short_line(error):
    with pytest.raises(files.InputError) as caught, files.reading("name", "a thing"):
        raise error
    said = str(caught.value)
    assert said.startswith("name: not a thing (") and type(error).__name__ in said and "\n" not in said
    assert len(said) < 400


def test_files_are_found_beside_the_project(monkeypatch, tmp_path, root):
    monkeypatch.chdir(tmp_path)
    assert os.path.samefile(files.find("motions/walk.npz"), root / "motions/walk.npz")
    (tmp_path / "motions").mkdir()
    (tmp_path / "motions/walk.npz").write_bytes(b"mine")
    assert files.find("motions/walk.npz") == "motions/walk.npz"  # the user's own goes first
    assert files.find("nowhere.npz") == "nowhere.npz"


@pytest.mark.parametrize(
    "path, hint",
    [
        ("pretrained/wlak.pt", "or folder; perhaps you meant ROOT/pretrained/walk.pt"),
        ("walk.pt", "or folder; perhaps you meant ROOT/pretrained/walk.pt"),
        ("runs/walk__2026112-013402", "or folder; perhaps you meant runs/walk__20261126-013402"),
        ("runs/walk__2026112-013402/best.pt", "or folder; perhaps you meant runs/walk__20261126-013402"),
        ("runs/walk__20261126-013402/bset.pt", "or folder; perhaps you meant runs/walk__20261126-013402/best.pt"),
        ("runs/nothing", "or folder; there are: jump__20261126-013500, walk__20261126-013402"),
        ("runs", "--checkpoint FILE trains on from a policy; there are: jump__20261126-013500, walk__20261126-013402"),
        ("runs/young", "a run stopped before its first save has to be started anew; there are: "),
    ],
)
def test_a_missing_checkpoint_is_told_what_is_like_it(root, tmp_path, monkeypatch, path, hint):
    """A policy in its folder, or among ours; a run; or which there are."""
    monkeypatch.chdir(tmp_path)
    for name in ("walk__20261126-013402", "jump__20261126-013500", "young", "evaluations"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "args.json").touch()
        for kept in ("latest.pt", "best.pt")[: 2 * ("__" in name)]:
            (tmp_path / "runs" / name / kept).touch()
    with pytest.raises(files.InputError) as fault:
        checkpoints.load_checkpoint(path, "amp_ppo_isaacgym")
    said = str(fault.value)
    assert f": no such file{' ' * hint.startswith('or')}" in said and hint.replace("ROOT", str(root)) in said
    assert said.endswith(hint.replace("ROOT", str(root))) or path == "runs/young"


def test_any_missing_file_is_told_what_is_like_it(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, hint in {
        "motions/humanod.xml": f"; perhaps you meant {root}/motions/humanoid.xml",
        "x.csv": "; there are: figure_eight",
        "x.strange": "",
    }.items():
        with pytest.raises(files.InputError) as fault:
            files.read_file(path)
        assert str(fault.value).endswith(f"{path}: cannot read this file: No such file or directory{hint}")


def test_byte_order_marks_and_capitals(monkeypatch, tmp_path, root, character):
    walk = (root / "motions/walk.npz").read_bytes()
    (tmp_path / "WALK.NPZ").write_bytes(walk)
    assert [os.path.basename(x) for x in ml.find_clips(str(tmp_path))[0]] == ["WALK.NPZ"]
    (tmp_path / "set.json").write_text('\ufeff{"clips": [{"file": "WALK.NPZ"}]}', encoding="utf-8")
    assert len(ml.MotionLib(str(tmp_path / "set.json"), character).clips) == 1
    (tmp_path / "way.csv").write_text("\ufeff0, 90, 1\n", encoding="utf-8")
    assert float(evaluation.load_commands(str(tmp_path / "way.csv"), 1)[1]) == pytest.approx(np.pi / 2)
    monkeypatch.syspath_prepend(str(root / "motions"))
    retarget = pytest.importorskip("retarget")
    (tmp_path / "map.json").write_text("\ufeff{}", encoding="utf-8")
    assert retarget.load_joint_map(str(tmp_path / "map.json")) == {}


def test_a_pipe_is_not_read(tmp_path, character):
    """Whatever it is named as, or if a stranger has put it in a roll-out's place: it would never end."""
    readers = {
        "000.npz": files.read_file,
        "clip.npz": lambda path: ml.MotionLib(path, character),
        "set.json": lambda path: ml.MotionLib(path, character),
        "a.xml": ml.load_character,
        "way.csv": lambda path: evaluation.load_commands(path, 1),
        "latest.pt": lambda path: checkpoints.load_checkpoint(path, "any"),
    }
    for name, read in readers.items():
        os.mkfifo(tmp_path / name)
        with pytest.raises(files.InputError, match=f"{name}'?: (a folder, a pipe or a device|no such)"):
            read(str(tmp_path / name))
    with pytest.raises(files.InputError, match="expected a file"):
        ml.load_character("/dev/zero")


# ---- Writing ----


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        files.write_file(str(path), b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_links_are_replaced_and_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for name in ("latest.pt", "args.json"):
        os.symlink(victim, tmp_path / name)
        files.write_file(str(tmp_path / name), b"ours")
        assert (tmp_path / name).read_bytes() == b"ours" and not (tmp_path / name).is_symlink()
    assert victim.read_bytes() == b"precious"


def test_what_is_no_file_is_not_replaced(tmp_path):
    """As root a page for /dev/full would stand in its place."""
    os.mkfifo(str(tmp_path / "pipe"))
    os.mkdir(str(tmp_path / "folder"))
    os.symlink("/dev/null", str(tmp_path / "link"))
    for name in ("pipe", "folder", "link"):
        with pytest.raises(OSError, match="Is a directory" if name == "folder" else "a pipe or a device"):
            files.write_file(str(tmp_path / name), b"new")
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "pipe"] and os.path.islink(tmp_path / "link")


def test_a_temporary_name_that_exists_is_not_taken(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    monkeypatch.setattr(os, "urandom", bytes)
    os.symlink(victim, tmp_path / f"file.{bytes(8).hex()}.tmp")
    with pytest.raises(FileExistsError):
        files.write_file(str(tmp_path / "file"), b"ours")
    assert victim.read_bytes() == b"precious"


WRITERS = (
    "savez",
    "savez_compressed",
    "savefig",
    "copy",
    "copyfile",
    "copytree",
    "write_text",
    "write_bytes",
    "imsave",
)
# savefig, savez and torch.save write into memory; the lock is opened without following links
INTO_MEMORY = {("report.py", "savefig"), ("clips.py", "savez"), ("formats.py", "savez")}


def test_all_files_are_written_by_one_function(root):
    """No other place opens a file to write, or has a library write one."""
    found = []
    for path in sources(root):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            modes = [
                x.value for x in (*node.args[1:2], *(k.value for k in node.keywords)) if isinstance(x, ast.Constant)
            ]
            if name == "open" and any(isinstance(x, str) and set(x) & set("wax+") and len(x) < 4 for x in modes):
                found.append((path.name, ast.unparse(node) if hasattr(ast, "unparse") else name))
            if name in WRITERS and (path.name, name) not in INTO_MEMORY and not ast.dump(node).count("'clone'"):
                owner = getattr(getattr(node.func, "value", None), "id", "")
                if owner in ("np", "shutil", "figure", "imageio") or name.startswith("write_"):
                    found.append((path.name, name))
    allowed = {("files.py", "open(temporary, 'xb')")}
    allowed |= {(name, "open(os.devnull, 'w')") for name in ("command_line.py", "guards.py")}
    assert set(found) - allowed == set()


def test_links_where_an_evaluation_is_to_write_are_not_followed(run_script, tmp_path, root):
    """It makes a folder of its own."""
    (tmp_path / "precious").mkdir()
    os.symlink(tmp_path / "precious", tmp_path / "mine")
    flags = ("--checkpoint", root / "pretrained/walk.pt", "--no-cuda", "--eval-episodes", 1, "--eval-seconds", 0.2)
    result = run_script("amp_ppo_isaacgym.py", "--evaluate", *flags, "--out", "mine")
    assert result.code == 0 and json.loads(result.out.splitlines()[-1])["episodes"] == 1
    assert os.listdir(tmp_path / "precious") == [] and (tmp_path / "mine").is_symlink()
    assert sorted(os.listdir(tmp_path / "mine-2")) == ["figures.json", "pose_error.png", "rollouts"]


# ---- The page of view.py ----

EVIL = "\\x3cscript\\x3ealert(1)\\x3c/script\\x3e`${alert(2)}`</script><script>alert(3)</script>"


def test_names_go_into_the_page_as_json(root, monkeypatch):
    """No character of a file's name ends a text of the page's script, or is an escape in it."""
    monkeypatch.syspath_prepend(str(root / "motions"))
    view = pytest.importorskip("view")
    take = view.Take(EVIL, torch.zeros(2, 3), torch.zeros(2, 15, 4), torch.zeros(2, 15, dtype=torch.bool))
    head = view.head_of([take], 30.0, EVIL)
    legend, figures, title = (x for x in head.splitlines() if "3cscript" in x)
    text = legend[legend.index('</summary>" + ') + len('</summary>" + ') : legend.rindex(" +")]
    figures, name = (x[x.index(" = ") + 3 : x.rindex(";")] for x in (figures, title))
    for x in (text, figures, name):
        assert x == json.dumps(json.loads(x)).replace("<", "\\u003c")  # one text of JSON, that ends nothing
    assert json.loads(text) == view.legend_of([take]) and "&lt;script" in json.loads(text)
    assert head.count("<script") == head.count("</script") == 1


# ---- MuJoCo ----


def test_mujoco_writes_no_log_and_does_not_flood(root, tmp_path):
    program = f"""
import sys
sys.path.insert(0, {str(root)!r})
import simulators, torch
import motion_lib as ml
character = ml.load_character("motions/humanoid.xml")
sim = simulators.make("mujoco", character, 4, 30, 4, torch.device("cpu"), 1)
sim.state[:, 40:] = float("nan")
for _ in range(20):
    sim.step(torch.full((4, len(character.dof_names)), float("nan")))
    sim.state[:, 40:] = 1e9
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=str(tmp_path), stderr=subprocess.PIPE, check=True)
    assert os.listdir(tmp_path) == [] and done.stderr.decode().count("\n") <= 4


# ---- Archives ----


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10**7))
    with pytest.raises(files.InputError, match="unpacks to more than its size"):
        files.check_archive(str(tmp_path / "bomb.pt"), ())
