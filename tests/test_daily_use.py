"""What happens to a training in daily use: folders, terminals, signals, moved files, wrong numbers, long data sets."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import simulators

import pytest
import torch

import amp_ppo_heading as heading
import amp_ppo_isaacgym as amp
import clips
import command_line
import evaluation
import files
import locks
import motion_lib as ml
import report
import training_run

SCRIPT, HEADING = "amp_ppo_isaacgym.py", "amp_ppo_heading.py"
TINY = "--num-envs 4 --num-steps 4 --num-minibatches 2 --total-timesteps 32 --hidden 8 8 --disc-batch 8 --no-cuda"
TINY += " --clone-updates 2 --replay-size 32 --replay-keep 8 --eval-episodes 1 --eval-seconds 0.2 --save-interval 1"
TINY = TINY.split()
QUICK = ("--no-cuda", "--eval-episodes", 1, "--eval-seconds", 0.2)


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **more}


def start(root, folder, *flags, shell="", **more):
    """The base script as a process of its own, or in a shell's command where SCRIPT stands for it."""
    command = [sys.executable, str(root / SCRIPT), *map(str, flags)]
    if shell:
        command = ["bash", "-c", shell.replace("SCRIPT", " ".join(command))]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    return subprocess.Popen(command, cwd=str(folder), env=environment(**more), start_new_session=True, **pipes)


def saved(folder):
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("runs/*/latest.pt"))]


def await_file(process, folder, pattern):
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def run_of(folder):
    (run,) = folder.glob("runs/*")
    return run


def refused(result, text):
    assert result.code == 2 and len(result.err.splitlines()) == 1 and result.err.startswith("error: "), result.err
    assert text in result.err


@pytest.fixture
def policy(root, tmp_path):
    """A pretrained checkpoint in tmp_path."""
    (tmp_path / "policy.pt").write_bytes((root / "pretrained/walk.pt").read_bytes())
    return tmp_path / "policy.pt"


# ---- Wrong results without a word ----


def test_visits_of_a_clip_that_occurs_twice(tmp_path, root, character):
    """Its two entries are one clip: half of the steps are not lost."""
    for name in ("walk", "crawl"):
        shutil.copy(str(root / f"motions/{name}.npz"), str(tmp_path))
    entries = [{"file": f"{name}.npz"} for name in ("walk", "crawl", "walk", "walk")]
    (tmp_path / "set.json").write_text(json.dumps({"clips": entries}))
    motions = ml.MotionLib(str(tmp_path / "set.json"), character)
    times = torch.arange(60) / 30
    walk, crawl = (evaluation.reference_poses(motions, torch.full((60,), i), times) for i in (0, 1))
    steps = torch.tensor([60, 60])
    metrics, *_ = evaluation.nearest_clips(motions, torch.stack((walk, crawl)), steps, 60, 1 / 30)
    visits = {name: x for name, x in metrics.items() if name.startswith("visits_")}
    assert visits == {"visits_walk.npz": 0.5, "visits_crawl.npz": 0.5}


def test_networks_begin_the_same_whatever_the_threads(root, tmp_path, monkeypatch, signals):
    first = []
    for threads in (1, 2):
        (tmp_path / str(threads)).mkdir()
        monkeypatch.chdir(tmp_path / str(threads))
        flags = ["--motion-file", str(root / "motions/walk.npz"), *TINY, "--hidden", "256", "128"]
        monkeypatch.setattr(sys, "argv", [str(root / SCRIPT), *flags])
        args, _ = command_line.parse_args(amp.Args, amp.KIND)
        built = []

        class Kept(amp.Agent):
            def __init__(self, *arguments, built=built):
                super().__init__(*arguments)
                built.append({name: x.clone() for name, x in self.state_dict().items()})

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        with monkeypatch.context() as patch:
            patch.setattr(amp, "Agent", Kept)
            next(amp.main(args))
        torch.set_num_threads(before)
        first.append(built[0])
    assert all(torch.equal(x, first[1][name]) for name, x in first[0].items())


def test_training_on_nothing_is_refused(run_script):
    refused(
        run_script(SCRIPT, "--no-cuda", "--task", "none", "--style-weight", 0), "--task none needs a --style-weight"
    )


@pytest.mark.parametrize("warp, samples", [(False, 3_000_000), (True, 8_000_000)])
def test_defaults_follow_where_the_physics_runs(monkeypatch, warp, samples):
    """A machine with CUDA but without MuJoCo Warp learns on the GPU, and simulates on the CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    find = simulators.find_spec
    given = {"mujoco_warp": find("os") if warp else None}
    monkeypatch.setattr(simulators, "find_spec", lambda name: given[name] if name in given else find(name))
    args, _ = command_line.parse_args(amp.Args, amp.KIND, ["--cuda"])
    assert args.cuda and args.sim == ("warp" if warp else "mujoco") and args.total_timesteps == samples


# ---- Changed and moved files ----


@pytest.fixture
def begun(run_script, root, tmp_path):
    """A run of two iterations, of a clip in tmp_path -> its folder."""
    shutil.copy(str(root / "motions/walk.npz"), str(tmp_path / "clip.npz"))
    result = run_script(SCRIPT, *TINY, "--motion-file", "clip.npz")
    assert result.code == 0, result.err
    return run_of(tmp_path)


def test_another_content_under_the_same_name(run_script, root, tmp_path, begun):
    shutil.copy(str(root / "motions/run.npz"), str(tmp_path / "clip.npz"))
    more = ("--no-cuda", "--resume", begun, "--total-timesteps", 64)
    refused(run_script(SCRIPT, *more), "the motion data is not what the run began with; type --motion-file")
    for typed in (("--motion-file", "clip.npz"), ("--motion_file=clip.npz",)):
        result = run_script(SCRIPT, *more, *typed)
        assert result.code == 0, result.err
        more = (*more[:-1], 96)
    assert saved(tmp_path)[0]["samples"] == 96


def test_an_evaluation_says_that_the_clip_is_another_one(run_script, root, tmp_path, begun):
    """Under the same name, or one that is typed; what has only moved is the same."""
    shutil.copy(str(tmp_path / "clip.npz"), str(tmp_path / "moved.npz"))
    shutil.copy(str(root / "motions/run.npz"), str(tmp_path / "clip.npz"))
    shutil.copy(str(tmp_path / "clip.npz"), str(tmp_path / "other.npz"))
    shutil.copy(str(root / "motions/humanoid.xml"), str(tmp_path / "heavier.xml"))
    with open(str(tmp_path / "heavier.xml"), "a") as file:
        file.write("<!-- another -->")
    flags = (*QUICK, "--evaluate", "--checkpoint", begun)
    kept = "motions/humanoid.xml"
    for typed, said in (
        ((), ("motion", "clip.npz now, clip.npz then")),
        (("--motion-file", "other.npz"), ("motion", "other.npz now, clip.npz then")),
        (("--motion-file", "moved.npz"), ()),
        (
            ("--motion-file", "moved.npz", "--character-file", "heavier.xml"),
            ("character", f"heavier.xml now, {kept} then"),
        ),
    ):
        result = run_script(SCRIPT, *flags, *typed)
        assert result.code == 0 and "pose_error_m" in result.out, result.err
        lines = [line for line in result.err.splitlines() if "is not what the checkpoint was trained on" in line]
        start = "warning: the {} data is not what the checkpoint was trained on: {}"
        assert lines == ([start.format(*said)] if said else [])


def test_a_clip_that_has_moved_and_a_resume_of_the_checkpoint_itself(run_script, tmp_path, begun):
    (tmp_path / "clip.npz").rename(tmp_path / "moved.npz")
    more = ("--no-cuda", "--resume", begun / "latest.pt", "--total-timesteps", 64)  # a file: its run is meant
    refused(run_script(SCRIPT, *more), "clip.npz: no such motion file")
    result = run_script(SCRIPT, *more, "--motion-file", "moved.npz")
    assert result.code == 0 and "other clips" not in result.err, result.err
    assert [x["samples"] for x in saved(tmp_path)] == [64]


def test_a_script_that_has_changed_is_said_and_kept(run_script, root, tmp_path, begun, monkeypatch):
    first = (begun / "code" / SCRIPT).read_bytes()
    monkeypatch.setattr(training_run, "read_file", lambda path: b"another")
    result = run_script(SCRIPT, "--no-cuda", "--resume", begun, "--total-timesteps", 64)
    assert result.code == 0 and result.err.count("the script has changed since the run began") == 1
    assert (begun / "code" / SCRIPT).read_bytes() == first and list(begun.glob(f"code/resumed_*_{SCRIPT}"))
    assert list(begun.glob("*.py")) == []


@pytest.mark.parametrize("option", ["--resume", "--checkpoint"])
def test_a_name_that_is_empty_is_no_name(run_script, tmp_path, option):
    """As of a variable that is not set: no other training begins."""
    flags = ("--evaluate",) if option == "--checkpoint" else ()
    refused(run_script(SCRIPT, "--no-cuda", *flags, option, ""), "'': no such file")
    assert not (tmp_path / "runs").exists()


def test_a_name_of_a_run_is_one_folder_and_one_line(run_script, tmp_path):
    """In runs/, where a restart looks for it."""
    result = run_script(SCRIPT, *TINY, "--exp-name", "../a\n\x1b[31m/b")
    assert result.code == 0 and "\x1b" not in result.out, result.err
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith(".._a\\n\\x1b[31m_b__walk__") and (run / "latest.pt").exists()


def test_what_a_killed_save_has_left_is_removed(run_script, tmp_path, begun):
    for name in ("latest.pt.0123456789abcdef.tmp", "notes.tmp"):
        (begun / name).write_text("half")
    result = run_script(SCRIPT, "--no-cuda", "--resume", begun, "--total-timesteps", 64)
    assert result.code == 0 and [x.name for x in begun.glob("*.tmp")] == ["notes.tmp"], result.err


# ---- Lost work: the lock, signals, terminals ----


def test_one_process_a_folder_and_a_lock_that_dies_with_it(run_script, root, tmp_path):
    process = start(root, tmp_path, *TINY, "--total-timesteps", 10**7)
    await_file(process, tmp_path, "runs/*/latest.pt")
    run = run_of(tmp_path)
    refused(run_script(SCRIPT, "--no-cuda", "--resume", run), f"process {process.pid} is training in this folder")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (content,) = saved(tmp_path)
    result = run_script(SCRIPT, "--no-cuda", "--resume", run, "--total-timesteps", content["samples"] + 16)
    assert result.code == 0, result.err


def test_a_save_between_reading_and_locking_is_not_lost(run_script, begun, monkeypatch):
    """Another process saves, and ends, while this one starts."""
    lock = training_run.lock
    monkeypatch.setattr(training_run, "lock", lambda path: (os.utime(begun / "latest.pt"), lock(path))[1])
    result = run_script(SCRIPT, "--no-cuda", "--resume", begun, "--total-timesteps", 64)
    refused(result, "another process has just saved there")


@pytest.mark.parametrize("link", [os.symlink, os.link, lambda _, path: os.mkfifo(str(path))])
def test_a_lock_that_is_a_link_or_a_pipe_is_not_followed(run_script, tmp_path, begun, link):
    (tmp_path / "victim").write_text("precious")
    assert not (begun / "lock").exists()  # it ended
    link(tmp_path / "victim", begun / "lock")
    result = run_script(SCRIPT, "--no-cuda", "--resume", begun, "--total-timesteps", 64)
    assert result.code == 2 and len(result.err.splitlines()) == 1 and "lock" in result.err
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_lock_that_is_removed_while_another_takes_it(tmp_path, monkeypatch):
    """A run ends, and removes it: of two others that come then one gets it."""
    fcntl = pytest.importorskip("fcntl")
    flock = fcntl.flock
    path = str(tmp_path / "lock")
    first = locks.lock(path)

    def late(file, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        os.remove(path)
        first.close()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    second = locks.lock(path)
    assert os.path.samestat(os.fstat(second.fileno()), os.stat(path))
    with pytest.raises(files.InputError, match=f"process {os.getpid()} is training in this folder"):
        locks.lock(path)


def test_signals_end_a_run_in_good_order(root, tmp_path):
    """All at once, each in a folder of its own; what nohup ignores stays ignored."""
    kinds = {
        "HUP": (129, ""),
        "QUIT": (131, ""),
        "INT": (130, ""),
        "USR1": (138, ""),
        "nohup": (143, "trap '' HUP; exec SCRIPT"),
    }
    processes = {}
    for name, (_, shell) in kinds.items():
        (tmp_path / name).mkdir()
        processes[name] = start(root, tmp_path / name, *TINY, "--total-timesteps", 10**7, shell=shell)
    for name, process in processes.items():
        await_file(process, tmp_path / name, "runs/*/latest.pt")
        process.send_signal(signal.SIGHUP if name == "nohup" else getattr(signal, f"SIG{name}"))
    time.sleep(0.5)
    assert processes["nohup"].poll() is None
    processes["nohup"].send_signal(signal.SIGTERM)
    for name, process in processes.items():
        out, err = process.communicate()
        assert process.returncode == kinds[name][0], (name, err)
        assert "Traceback" not in err and err.count("finishing this iteration, then saving") == 1
        run = run_of(tmp_path / name).relative_to(tmp_path / name)
        assert out == "" and err.splitlines()[-1] == f"python {root / SCRIPT} --resume {run}"
        assert re.fullmatch(r"stopped after [\d,]+ samples; to go on:", err.splitlines()[-2])


def test_signals_that_come_at_once_are_one(signals, capfd):
    """As those of timeout, which sends each to the process and to its group; the second would end it unsaved."""
    caught = training_run._note_signals()
    for kind in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), kind)
    assert caught == [signal.SIGTERM, signal.SIGTERM, signal.SIGHUP]
    assert capfd.readouterr().err.count("finishing this iteration, then saving") == 1


TERMINALS = {
    "closed": "SCRIPT >&- 2>&-",
    "stdin too": "SCRIPT <&- >&- 2>&-",
    "full": "SCRIPT >/dev/full 2>/dev/full",
    "nobody reads": "SCRIPT 2>&1 | head -1",
}


def test_terminals_that_cannot_be_written(root, tmp_path):
    """The training goes on, and saves; nothing is written where a closed stream was."""
    folders = [tmp_path / name for name in TERMINALS]
    for folder in folders:
        folder.mkdir()
    processes = [start(root, x, *TINY, shell=shell) for x, shell in zip(folders, TERMINALS.values())]
    (tmp_path / "é").mkdir()
    shutil.copy(str(root / "motions/walk.npz"), str(tmp_path / "é/gäng.npz"))
    flags = ("--motion-file", "gäng.npz", *TINY)
    processes.append(start(root, tmp_path / "é", *flags, PYTHONIOENCODING="ascii"))
    for process, folder in zip(processes, [*folders, tmp_path / "é"]):
        out, err = process.communicate()
        assert process.returncode == 0 and "Traceback" not in out + err, (folder, err)
        assert [x["samples"] for x in saved(folder)] == [32], folder
    assert "g\\xe4ng" in out


# ---- Evaluation ----


def test_an_evaluation_prints_before_it_writes(run_script, policy, monkeypatch, capsys):
    """Where nothing can be written, and a picture fails, the figures stand."""

    def full(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(clips, "write_file", full)
    monkeypatch.setattr(report, "write_file", full)
    monkeypatch.setattr(report, "_write_figure", lambda *arguments: 1 / 0)
    result = run_script(SCRIPT, "--evaluate", "--checkpoint", policy, *QUICK)
    assert result.code == 0 and json.loads(result.out.splitlines()[-1])["episodes"] == 1
    assert result.err.count("the figures stand, but not all could be written") == 3


def test_the_heading_evaluation_without_pictures(run_script, root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    shutil.copy(str(root / "pretrained/heading.pt"), str(tmp_path / "x.pt"))
    result = run_script(HEADING, "--evaluate", "--checkpoint", "x.pt", *QUICK)
    assert result.code == 0 and json.loads(result.out.splitlines()[-1])["episodes"] == 1, result.err
    assert result.err.count("the figures stand") == 2 and "Traceback" not in result.err


def test_evaluations_of_one_checkpoint_at_once_into_a_pipe(root, tmp_path, policy):
    """Of a policy that lies in no run's folder."""
    read = "python -c 'import json, sys; print(json.load(sys.stdin)[\"episodes\"])'"
    flags = ("--evaluate", "--checkpoint", policy, *QUICK)
    processes = [start(root, tmp_path, *flags, shell=f"set -o pipefail; SCRIPT | {read}") for _ in range(2)]
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0 and out == "1\n" and "Traceback" not in err, err
    written = sorted(tmp_path.glob("runs/evaluations/policy_2*"))
    assert len(written) == 2  # a folder each
    assert [sorted(os.listdir(x)) for x in written] == [["figures.json", "pose_error.png", "rollouts"]] * 2


def test_a_folder_stands_for_its_best_checkpoint(run_script, begun):
    result = run_script(SCRIPT, "--evaluate", "--checkpoint", begun, *QUICK)
    assert result.code == 0 and list(begun.glob("best_2*/pose_error.png")), result.err


def test_a_ctrl_c_during_an_evaluation_is_one_line(run_script, policy, monkeypatch):
    monkeypatch.setattr(report, "write", lambda *arguments: signal.raise_signal(signal.SIGINT))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    result = run_script(SCRIPT, "--evaluate", "--checkpoint", policy, *QUICK)
    assert result.code == 130 and result.err == "error: stopped by Ctrl-C; nothing is lost that was saved\n"


# ---- What others raise costs only what they would have made ----


def test_films_and_trackers_that_fail(run_script, root, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no such host\x1b[31m")

    spec = command_line.importlib.util.find_spec
    monkeypatch.setattr(command_line.importlib.util, "find_spec", lambda name: spec("os" if name in GIVEN else name))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=fail))
    monkeypatch.setattr(report, "film_episode", fail)
    result = run_script(SCRIPT, *TINY, "--track", "--capture-video", "--eval-interval", 1)
    assert result.code == 0 and [x["samples"] for x in saved(tmp_path)] == [32], result.err
    assert result.err.count("Weights & Biases: no such host") == 1 and "\x1b[31m" not in result.err
    assert result.err.count("not written (no such host") == 1


GIVEN = ("wandb", "imageio_ffmpeg")


def test_curves_that_cannot_be_written(run_script, tmp_path, monkeypatch):
    from torch.utils import tensorboard

    monkeypatch.setattr(tensorboard.SummaryWriter, "add_scalar", lambda *x: 1 / 0)
    result = run_script(SCRIPT, *TINY)
    assert "Traceback" not in result.err and [x["samples"] for x in saved(tmp_path)] == [32]


# ---- From anywhere ----


def test_a_copy_under_another_name_and_a_runs_own_copy(run_script, root, tmp_path):
    """my_amp.py reads the checkpoints of the script that it is a copy of; a run's copy works from elsewhere."""
    assert run_script(SCRIPT, *TINY).code == 0  # in tmp_path, with the default files, which lie beside the script
    begun = run_of(tmp_path)
    for path in (*root.glob("*.py"), *root.glob("simulators/*.py")):
        copy = tmp_path / "copy" / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(path), str(copy))
    os.symlink(root / "motions", tmp_path / "copy/motions")
    os.symlink(root / "pretrained", tmp_path / "copy/pretrained")
    (tmp_path / "copy" / SCRIPT).rename(tmp_path / "copy/my_amp.py")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(str(root / "pretrained/walk.pt"), str(tmp_path / "elsewhere/walk.pt"))
    command = [sys.executable, "../copy/my_amp.py", "--evaluate", "--checkpoint", "walk.pt", *map(str, QUICK)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    own = [sys.executable, str(begun / "code" / SCRIPT), *TINY]
    both = [subprocess.Popen(x, cwd=str(tmp_path / "elsewhere"), **pipes) for x in (command, own)]
    for process in both:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert "episodes" in json.loads(out.splitlines()[-1])
    evaluations, run = sorted((tmp_path / "elsewhere/runs").iterdir())
    assert evaluations.name == "evaluations" and run.name.startswith("walk__") and (run / "best.pt").exists()


def test_code_in_an_odd_folder_is_copied_too(root, tmp_path):
    """Its name is no pattern of names."""
    home = tmp_path / "amp [1] *"
    for path in (*root.glob("*.py"), *root.glob("simulators/*.py")):
        (home / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(path), str(home / path.relative_to(root)))
    os.symlink(root / "motions", home / "motions")
    err = start(home, tmp_path, *TINY).communicate()[1]
    imported = {path.name for path in home.glob("*.py")} - {HEADING, "course.py"}
    assert imported <= {path.name for path in run_of(tmp_path).glob("code/*.py")}, err


# ---- Numbers ----


@pytest.mark.parametrize("module", [amp, heading])
@pytest.mark.parametrize(
    "words, said",
    [
        ("--gamma 1.5", "--gamma 1.5: expected a number from 0 to 0.9999"),
        ("--anneal 2", "--anneal 2.0: expected a number from 0 to 1"),
        ("--action-std-log -11", "--action-std-log -11.0: expected a number from -10 to 2"),
        ("--disc-steps 1", "--disc-steps 1: expected a number from 2 to 1,000"),
        ("--max-grad-norm 0", "--max-grad-norm 0.0: expected a number from 1e-09 to 1,000,000,000,000,000"),
        ("--average-share 2", "--average-share 2.0: expected a number from 0 to 1"),
        ("--target-kl 0", "--target-kl 0.0: expected a number from 1e-09 to 1,000,000,000,000,000"),
        ("--style-weight -1", "--style-weight -1.0: expected a number from 0 to 1,000,000,000,000,000"),
        ("--total-timesteps 1e6", "--total-timesteps 1e6: it takes a whole number; type --total-timesteps 1000000"),
        ("--hidden 1.5e2 2e2", "--hidden 1.5e2 2e2: it takes 2 whole numbers; type --hidden 150 200"),
        ("--gamma x1e6", "--gamma x1e6: it takes a number"),
        ("--bogus", "--bogus: there is no such option. --help shows all."),
        ("--num-env 8", "--num-env: there is no such option. Perhaps you meant --num-envs. --help shows all."),
    ],
)
def test_what_is_wrong_with_a_number_is_named(module, words, said):
    with pytest.raises(files.InputError) as error:
        module.check_args(command_line.parse_args(module.Args, module.KIND, ["--no-cuda", *words.split()])[0])
    assert str(error.value) == said


def test_a_target_may_lie_behind():
    """As a speed has no default of its own."""
    args, _ = command_line.parse_args(amp.Args, amp.KIND, ["--no-cuda", "--target-speed", "-1.5"])
    amp.check_args(args)
    assert args.target_speed == -1.5


@pytest.mark.parametrize(
    "flags",
    [
        ("--num-envs", 10**9),
        ("--num-envs", 10**9, "--total-timesteps", 10**14),
        ("--num-steps", 10**9, "--total-timesteps", 10**14),
        ("--hidden", 10**9, 8),
        ("--eval-episodes", 10**9),
        ("--disc-batch", 10**12),
        ("--replay-size", 10**14),
        ("--num-envs", 10**30),
        ("--hidden", 10**8, 10**8),
    ],
)
def test_numbers_that_no_memory_holds(run_script, flags):
    before = time.perf_counter()
    result = run_script(SCRIPT, "--no-cuda", *flags)
    assert result.code == 2 and result.err.splitlines()[-1].startswith("error: ") and "Traceback" not in result.err
    assert time.perf_counter() - before < 20


def test_speeds_from_zero(run_script, root, tmp_path):
    result = run_script(HEADING, *TINY, "--speed-range", 0, 1)
    assert result.code == 0, result.err


def test_nothing_of_a_bar_after_the_error_and_no_nan(run_script, tmp_path, monkeypatch):
    monkeypatch.setattr(training_run.Run, "save_when_due", lambda self: 1 / 0)
    monkeypatch.setattr(command_line, "_explain", lambda error, resumed: (f"error: {type(error).__name__}", 2))
    result = run_script(SCRIPT, *TINY)
    assert result.err.endswith("\nerror: ZeroDivisionError\n") and "nan" not in result.err + result.out
    assert "Ctrl-C saves and stops" in result.err


# ---- Long data sets ----


def frames_compared(motions, episodes, steps, monkeypatch):
    """How many frames of the clips the nearest-clip error has looked at, and its figures."""
    seen = []
    poses_of = evaluation.reference_poses

    def count(motions, clip, time):
        seen.append(len(time))
        return poses_of(motions, clip, time)

    monkeypatch.setattr(evaluation, "reference_poses", count)
    poses = torch.zeros(episodes, steps, 14, 3)
    metrics, *_ = evaluation.nearest_clips(motions, poses, torch.full((episodes,), steps), steps, 1 / 30)
    return sum(seen), metrics


def test_the_cost_of_nearest_clips_is_bounded(write_clip, tmp_path, character, monkeypatch):
    long = ml.MotionLib(write_clip("long.npz", frames=30 * 1000, fps=30.0), character)
    frames, metrics = frames_compared(long, 1, 2, monkeypatch)
    assert frames < 30 * 210 and metrics["share_of_clips_compared"] == pytest.approx(0.2, rel=1e-3)


def test_many_clips_load_soon_and_are_compared_in_part(write_clip, tmp_path, character, monkeypatch):
    """2000 links to one clip: the time is linear with a small constant."""
    path = write_clip(frames=40, fps=30.0)
    folders = {}
    for count in (200, 2000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for i in range(count):
            os.symlink(path, folder / f"{i:04d}.npz")
        before = time.process_time()
        folders[count] = ml.MotionLib(str(folder), character), time.process_time() - before
    (_, short), (motions, long) = folders.values()
    assert long < 20 * short + 1 and long < 15
    frames, metrics = frames_compared(motions, 1, 2, monkeypatch)
    assert frames < 30 * 400 and 0 < metrics["share_of_clips_compared"] < 0.06
    assert sum(x for name, x in metrics.items() if name.startswith("visits_")) == pytest.approx(1.0)
