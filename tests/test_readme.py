"""Every command of README.md, as written and in order, in a copy of the checkout; only the sizes are cut down."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
import webbrowser
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

pytest.importorskip("mujoco", reason="MuJoCo needs Python 3.10")
pytest.importorskip("viser", reason="viser is not installed: pip install -r requirements-test.txt")

NOT_RUN = {  # how a command begins: why
    "pip install": "it needs the network",
    "apt-get install": "it needs the network",
    "uv run": "it needs the network",
    "python -m pytest": "that is this suite",
    "python benchmark/time_to_walk.py": "it trains five times; tests/test_benchmark.py runs it",
}
JUDGE = "--no-cuda --eval-episodes 2 --eval-seconds 0.5"
TRAIN = f"{JUDGE} --num-envs 16 --num-steps 8 --clone-updates 2 --disc-batch 64 --replay-size 512 --total-timesteps 512"
ADDED = {  # a program: what is added to its command
    "amp_ppo_isaacgym.py": TRAIN,
    "amp_ppo_heading.py": TRAIN,
    "motions/view.py": "--port 0",
    "deploy/steer.py": "--port 0",
    "tensorboard": "--inspect",
}
FIRST = ["python", "amp_ppo_isaacgym.py"]
PROGRAMS = {"python": [], "tensorboard": ["-m", "tensorboard.main"], "torchrun": ["-m", "torch.distributed.run"]}


def commands(text):
    """Commands of a Markdown text: lines of its blocks, and what stands in running text and has an argument."""
    for part in re.findall(r"```bash\n(.*?)```|`([^`\n]+)`", re.sub(r"```bibtex.*?```", "", text, flags=re.S), re.S):
        for line in "".join(part).splitlines():
            for command in line.split("&&"):
                words = shlex.split(command, comments=True)
                if len(words) > 1 and words[0] in (*PROGRAMS, "pip", "uv", "apt-get"):
                    yield words


def why_not(words):
    """The reason for which a command is not run, or ""."""
    return "".join(reason for start, reason in NOT_RUN.items() if " ".join(words).startswith(start))


@pytest.fixture
def copy(root, tmp_path):
    """A copy of what belongs to the checkout."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, stdout=subprocess.PIPE)
    names = listed.stdout.decode().split("\n") if listed.returncode == 0 else os.listdir(root)
    for name in filter(None, names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if (root / name).is_dir():
            shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("runs", "node_modules"))
        elif (root / name).exists():
            shutil.copy(root / name, tmp_path / name)
    return tmp_path


def command_of(words, folder):
    """A command with the name of a run that is there, and with small sizes."""
    (added,) = [more for name, more in ADDED.items() if name in words] or [""]
    added = JUDGE if "--evaluate" in words else f"{JUDGE} --total-timesteps 1024" if "--resume" in words else added
    begun = sorted(str(path.relative_to(folder)) for path in (folder / "runs").glob("walk*"))
    return [word.replace("runs/NAME", begun[0] if begun else "") for word in words] + added.split()


def run(words, folder):
    """Run a command in a process of its own -> what it wrote."""
    command = [sys.executable, *PROGRAMS[words[0]], *command_of(words, folder)[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, (words, done.stdout.decode())
    return done.stdout.decode()


def look(address):
    """What a browser does with a page, until Ctrl-C ends it."""
    with urllib.request.urlopen(address, timeout=60) as page:
        assert b"<html" in page.read()
    raise KeyboardInterrupt


def test_what_is_run(root):
    """All but what is listed, and nothing is listed for nothing."""
    found = [" ".join(words) for words in commands((root / "README.md").read_text())]
    left = {start for start in NOT_RUN if any(command.startswith(start) for command in found)}
    assert left == set(NOT_RUN)
    done = {command for command in found if not why_not(command.split())}
    assert len(done) >= 12 and {"python amp_ppo_isaacgym.py", "python deploy/steer.py pretrained/heading.pt"} <= done


def test_every_command_of_the_readme(root, copy, run_script, monkeypatch):
    """The first training, and what draws or starts processes itself, in processes of their own; the rest in this one,
    which has loaded the libraries."""
    before = {path.relative_to(copy) for path in copy.rglob("*")}
    monkeypatch.setattr(webbrowser, "open", look)
    started = []
    with ThreadPoolExecutor(1) as pool:  # begun in order
        for words in commands((root / "README.md").read_text()):
            if why_not(words):
                continue
            if "runs" in " ".join(words):  # it looks at what is there
                wait([done for _, done in started])
            if words[0] != "python" or words == FIRST or "motions/render.py" in words:
                started.append((words, pool.submit(run, words, copy)))
                continue
            with monkeypatch.context() as patch:
                if "--evaluate" in words:
                    patch.delenv("AMP_PAGE")  # those of the trainings are not needed
                _, script, *options = command_of(words, copy)
                assert (copy / script).exists()
                code, out, err = run_script(script, *options)
            assert code == 0 and "not all could be written" not in err, (words, out, err)
            assert "http" in out or "motions/view.py" not in words
    for words, done in started:
        assert "Traceback" not in done.result() and "not all could be written" not in done.result(), words
    made = {path.relative_to(copy) for path in copy.rglob("*")} - before
    assert {Path("mine.bvh"), Path("mine.npz"), Path("walk.png"), Path("runs")} <= made
    assert len(list((copy / "runs").glob("walk*"))) == 1 and len(list((copy / "runs").glob("*"))) == 5
    assert not any(path.parts[0] == "pretrained" for path in made)
    shown = [path for path in made if path.parts[:2] == ("runs", "evaluations") and path.name == "index.html"]
    assert sorted(re.sub(r"_\d{8}-\d{6}", "_TIME", str(path.parent.name)) for path in shown) == [
        "heading_TIME",
        "walk_TIME",
    ]
