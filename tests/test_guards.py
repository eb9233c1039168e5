"""guards.py: what a user can mend is one line, from a script's first import on; memory that is not there is refused."""

import os
import signal
import subprocess
import sys

import pytest

SCRIPTS = ("amp_ppo_isaacgym.py", "amp_ppo_heading.py")
STOPPED = "error: stopped by Ctrl-C; nothing is lost that was saved\n"
NO_MEMORY = "error: not enough memory; lower --num-envs, --num-steps, --hidden or --replay-size"
LIMIT = "soft, hard = resource.getrlimit(resource.RLIMIT_DATA)"
linux = pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="Linux tells how much memory it has")


def python(root, folder, *words, shell="", **variables):
    """What a command of Python's does in a folder: exit code, output, errors."""
    command = [sys.executable, *map(str, words)]
    if shell:
        command = ["bash", "-c", f'{shell}; exec "$@"', "bash", *command]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": f"{folder}{os.pathsep}{root}", **variables}
    done = subprocess.run(command, cwd=str(folder), env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


# ---- While modules are imported ----

SWALLOWED = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10**9):
        pass
except BaseException:
    print("swallowed")
"""


@pytest.mark.parametrize("script", [*SCRIPTS, "motions/view.py", "motions/render.py", "motions/convert.py"])
def test_a_ctrl_c_during_the_imports_is_one_line(root, tmp_path, script):
    """Even in a module that would swallow it."""
    (tmp_path / "torch.py").write_text(SWALLOWED)
    assert python(root, tmp_path, root / script) == (130, "", STOPPED)


def test_a_ctrl_c_that_is_ignored_stays_so(root, tmp_path):
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nprint(1)\nos._exit(7)")
    assert python(root, tmp_path, root / SCRIPTS[0], shell="trap '' INT") == (7, "1\n", "")


def test_a_ctrl_c_between_the_imports_and_the_script_is_one_line(root, tmp_path):
    code, out, err = python(root, tmp_path, "-c", "import guards, signal; signal.raise_signal(signal.SIGINT)")
    assert (code, out, err) == (-signal.SIGINT, "", STOPPED)


def test_another_program_can_catch_its_ctrl_c(root, tmp_path):
    """A notebook's, or pytest's, that has imported this."""
    program = """
import guards, signal
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("caught")
"""
    assert python(root, tmp_path, "-c", program) == (0, "caught\n", "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_package_that_is_missing_is_named(root, tmp_path, script):
    (tmp_path / "torch.py").write_text("import no_such_package")
    said = "error: No module named 'no_such_package'; pip install -r requirements.txt\n"
    assert python(root, tmp_path, root / script) == (1, "", said)


def test_no_memory_for_the_imports_is_one_line(root, tmp_path):
    (tmp_path / "torch.py").write_text("raise MemoryError")
    assert python(root, tmp_path, root / SCRIPTS[0]) == (1, "", "error: not enough memory\n")


def test_a_library_that_cannot_be_imported_is_one_line(root, tmp_path):
    """tqdm, which torch imports, reads all TQDM_ variables then; torch and MuJoCo have such variables, too."""
    code, out, err = python(root, tmp_path, root / SCRIPTS[0], TQDM_MININTERVAL="x")
    assert (code, out, err.count("\n")) == (1, "", 1) and err.startswith("error: ") and "'x'; an environment" in err
    (tmp_path / "torch.py").write_text("raise RuntimeError('odd\\nmany lines')")
    said = f"error: {tmp_path}/torch.py: odd many lines; an environment variable may be odd\n"
    assert python(root, tmp_path, root / SCRIPTS[0]) == (1, "", said)


def test_what_only_a_programmer_can_mend_has_its_traceback(root, tmp_path):
    code, _, err = python(root, tmp_path, "-c", "import guards; [][0]")
    assert code == 1 and err.startswith("Traceback") and err.endswith("IndexError: list index out of range\n")


# ---- Memory ----


@linux
def test_memory_that_is_not_there_is_refused(root, tmp_path):
    """A millionth of what is free is soon used up."""
    program = f"""
import guards, resource
guards.limit_memory(10**6)
{LIMIT}
try:
    bytearray(2 * soft)  # what the process has is at most what pytest, of which it is a fork, has had
except MemoryError:
    print(0 < soft < 10**10, hard)
"""
    assert python(root, tmp_path, "-c", program) == (0, "True -1\n", "")


@linux
def test_a_limit_that_a_user_has_set_stays(root, tmp_path):
    program = f"import guards, resource; guards.limit_memory(1); {LIMIT}; print(soft, hard)"
    said = python(root, tmp_path, "-c", program, shell="ulimit -d 1000000")
    assert said == (0, "1024000000 1024000000\n", "")


@linux
def test_more_environments_than_fit_are_one_line(root, tmp_path):
    """Where so many bytes are free; it says so before anything is simulated."""
    flags = "--no-cuda --num-envs 300000 --total-timesteps 1000000000".split()
    code, _, err = python(root, tmp_path, root / SCRIPTS[0], *flags, shell="ulimit -d 1200000")
    assert code == 2 and err.splitlines()[-1] == NO_MEMORY and "Traceback" not in err


def test_a_script_limits_its_memory(run_script, monkeypatch):
    """With the number of processes; not on a GPU."""
    import command_line

    called = []
    monkeypatch.setattr(command_line, "limit_memory", called.append)
    run_script(SCRIPTS[0], "--no-cuda", "--motion-file", "nowhere.npz")
    assert called == [1]
    monkeypatch.setattr(command_line.torch.cuda, "device_count", lambda: 1)
    run_script(SCRIPTS[0], "--cuda", "--sim", "mujoco", "--motion-file", "nowhere.npz")
    assert called == [1]
