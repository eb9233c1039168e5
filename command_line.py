"""From the command line to a running script: by_device and merge_options, check_numbers, launch, a line an error."""

import atexit
import contextlib
import dataclasses
import importlib.util
import io
import os
import shutil
import sys
import traceback
from typing import Any, Callable, Dict, List, Literal, Optional, Tuple

import simulators

import torch
import tyro
from tqdm import tqdm

from checkpoints import Unsound, load_checkpoint
from files import HERE, InputError, plain, typed
from guards import STOPPED, guard_terminal, limit_memory
from options import by_device, complaint, is_a
from processes import in_group, join_processes, local_world, processes

# ---- 1. Options ----------


@dataclasses.dataclass
class General:
    """What is run, on what, and what is kept of it."""

    exp_name: Optional[str] = None
    """first part of the run's name, under runs/; None: none"""
    seed: int = 1
    """seed of everything random; the same seed on the same CPU, with as many processes, gives the same numbers"""
    cuda: bool = torch.cuda.is_available()
    """learn on the GPU"""
    sim: Literal["auto", "mujoco", "warp", "isaacgym"] = "auto"
    """the simulator; auto takes Isaac Gym if it is there, else MuJoCo, and MuJoCo Warp with --cuda if it is there"""
    save_interval: int = 250
    """save everything every so many iterations, and at the end"""
    resume: Optional[str] = None
    """folder of an interrupted run to go on with; its options are the defaults then"""
    track: bool = False
    """log to Weights & Biases as well (its WANDB_PROJECT and WANDB_ENTITY say where)"""


@dataclasses.dataclass
class Evaluation:
    """How the policy is judged, without noise."""

    evaluate: bool = False
    """no training: evaluate --checkpoint, print one JSON object, write roll-outs, pictures and a page to look at"""
    checkpoint: Optional[str] = None
    """checkpoint to evaluate, or, without --evaluate, to train on from; a run's folder: its best.pt, else latest.pt"""
    out: Optional[str] = None
    """folder to be made by --evaluate; None: one in the run's folder, or in runs/evaluations for a policy of no run"""
    eval_interval: by_device(int, 100, 50) = None
    """evaluate every so many iterations, and at the end (0: only at the end)"""
    eval_episodes: int = 32
    """episodes of an evaluation"""
    eval_seconds: float = 20.0
    """longest evaluation episode [s] (the paper's 20)"""
    capture_video: bool = False
    """film one episode of each evaluation (pip install -r requirements-motions.txt)"""


def merge_options(description: str, *groups: Any) -> Any:
    """One flat dataclass, Args, of General, the options in `groups` (dataclasses, the groups of --help), Evaluation."""
    groups = (General, *groups, Evaluation)
    fields = [field for group in groups for field in dataclasses.fields(group)]
    args = dataclasses.make_dataclass("Args", [(f.name, f.type, dataclasses.field(default=f.default)) for f in fields])
    first = "--motion-file (what is imitated), --style-weight (how closely), --total-timesteps (how long), --seed"
    args.__doc__ = description.split("\n\n")[0] + f"\n\nBegin with {first}; --evaluate judges a policy."
    args.groups = groups
    return args


def _command_line(kind: Any, argv: Optional[List[str]], defaults: Dict[str, Any]) -> Any:
    """Args of the command line; `defaults` go before the class's. Raises InputError; SystemExit for --help."""
    start = [x(**{f.name: defaults[f.name] for f in dataclasses.fields(x) if f.name in defaults}) for x in kind.groups]
    form = dataclasses.make_dataclass("All", [(x.__name__.lower(), tyro.conf.OmitArgPrefixes[x]) for x in kind.groups])
    if shutil.get_terminal_size().columns < 20:  # tyro would never end
        os.environ["COLUMNS"] = "80"

    def parse(words: List[str]) -> Any:
        with contextlib.redirect_stderr(io.StringIO()):  # tyro's own complaint has ten lines
            return tyro.cli(form, args=words, default=form(*start), description=kind.__doc__)

    words = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed = parse(["--help"] if {"--help", "-h"} & set(words) else words)
    except SystemExit as end:
        if end.code:
            raise InputError(complaint(kind, words, parse)) from end
        raise
    return kind(**{name: value for group in vars(parsed).values() for name, value in vars(group).items()})


def _fill_in(args: Any) -> None:
    """Choose the simulator, and give options their defaults by where the physics runs. Raises InputError."""
    args.sim = simulators.choose(args.sim, args.cuda)
    for field in dataclasses.fields(args):
        by_device = getattr(field.type, "__metadata__", [None])[-1]
        if getattr(args, field.name) is None and by_device is not None:
            setattr(args, field.name, by_device[args.cuda and args.sim != "mujoco"])


def _options_of(checkpoint: Dict[str, Any], kind: Any, argv: Optional[List[str]], evaluate: bool) -> Dict[str, Any]:
    """Options that a checkpoint gives as defaults; but what belongs to a machine if it is to evaluate."""
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    for name, value in checkpoint["args"].items():
        if name not in types or not is_a(value, types[name]):
            odd = [str(x)[:50] if isinstance(x, (str, float, int)) else f"a {type(x).__name__}" for x in (name, value)]
            raise InputError(f"the checkpoint is of another version of this script: option {' is '.join(odd)}")
        option = f"--{name.replace('_', '-')}"
        if evaluate and option in ("--motion-file", "--character-file") and not typed(option, argv):
            if os.path.isabs(value) or os.pardir in value.replace(os.sep, "/").split("/"):  # a stranger's, perhaps
                raise InputError(f"the checkpoint names {value}; if that is meant, type {option}")
    not_taken = ("evaluate", "checkpoint", "resume", "out")
    not_taken += ("cuda", "sim", "track", "capture_video", "eval_commands") if evaluate else ()
    return {name: value for name, value in checkpoint["args"].items() if name not in not_taken}


def parse_args(kind: Any, name: str, argv: Optional[List[str]] = None, restarted: Optional[str] = None) -> Tuple:
    """Args of the command line; the checkpoint, of the kind `name`, that --checkpoint or --resume names, or None. To
    evaluate or to resume, its options are the defaults. restarted: a run of torchrun. Raises InputError."""
    args = _command_line(kind, argv, {})
    resume = None if args.evaluate else restarted if args.resume is None else args.resume
    path = args.checkpoint
    if (args.evaluate and path is None) or (args.resume is not None and (args.evaluate or path is not None)):
        raise InputError("--evaluate needs --checkpoint FILE (or FOLDER of a run); both go without --resume")
    if not args.evaluate and (args.out or getattr(args, "eval_commands", None)) is not None:
        raise InputError("--out and --eval-commands need --evaluate")
    resume = os.path.dirname(resume) or "." if resume is not None and os.path.isfile(resume) else resume
    if path is not None and os.path.isdir(path):
        best = os.path.join(path, "best.pt")
        path = best if os.path.exists(best) else os.path.join(path, "latest.pt")
    named = path if resume is None else resume
    checkpoint = None if named is None else load_checkpoint(named, name)
    if args.evaluate or resume is not None:
        args = _command_line(kind, argv, _options_of(checkpoint, kind, argv, args.evaluate))
        steps = args.eval_episodes * args.eval_seconds * args.control_hz * args.substeps
        if args.evaluate and steps > 1e8 and not typed("--eval-episodes", argv):  # a stranger's, perhaps
            raise InputError(f"the checkpoint asks for {steps:.2g} physics steps; if meant, type --eval-episodes")
    args.checkpoint, args.resume = (path, None) if resume is None else (None, resume)
    if args.cuda and torch.cuda.device_count() < local_world():
        raise InputError("--cuda: PyTorch finds no CUDA device, or fewer than processes; --no-cuda trains on the CPU")
    _fill_in(args)
    for option in ("hidden", "disc_steps", "keep_course") if checkpoint else ():
        theirs = checkpoint["args"].get(option, getattr(kind, option, None))
        if theirs not in (None, getattr(args, option, theirs)) and is_a(theirs, kind.__annotations__[option]):
            value = "" if isinstance(theirs, bool) else " " + str(theirs).strip("()").replace(",", "")
            raise InputError(f"{named} needs --{'no-' * (theirs is False)}{option.replace('_', '-')}{value}")
    if args.track and importlib.util.find_spec("wandb") is None:
        raise InputError("--track: Weights & Biases is not installed; pip install wandb")
    if args.capture_video and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise InputError("--capture-video: pip install -r requirements-motions.txt")
    return args, checkpoint


def check_numbers(args: Any, ranges: Dict[str, Tuple[float, float]], from_zero: Tuple[str, ...]) -> None:
    """Refuse what is out of its range: from 1 for whole numbers (but `from_zero`), else from 0 if it has a default."""
    for name, value in vars(args).items():
        if name.endswith("_weights") and not any(value):
            raise InputError(f"--{name.replace('_', '-')}: one has to lie above 0, else the reward is the same for all")
        for x in value if isinstance(value, tuple) else (value,):
            high = 10**8 if type(x) is int and name not in ("seed", "total_timesteps") else 10**15
            low = int(name not in from_zero) if type(x) is int else -high * (getattr(type(args), name) is None)
            low, high = ranges.get(name, (low, high))
            if type(x) in (int, float) and not low <= x <= high:
                raise InputError(f"--{name.replace('_', '-')} {x}: expected a number from {low:,} to {high:,}")


# ---- 2. Launch ----------


def launch(main: Callable, kind: Any, name: str, check: Callable) -> None:
    """Run main(args, checkpoint), a generator, to its end; what is wrong with the input is one line, and exit code 2.

    kind: what merge_options has made; name: kind of the checkpoints; check(args) refuses options with InputError."""
    status: Any = 0
    fault = resumed = ""
    guard_terminal()
    try:
        restarted = join_processes()
        quiet = open(os.devnull, "w") if processes().rank > 0 else None  # process 0 speaks for all
        with contextlib.redirect_stdout(quiet or sys.stdout), contextlib.redirect_stderr(quiet or sys.stderr):
            args, checkpoint = parse_args(kind, name, restarted=restarted)
            check(args)
            if args.evaluate and sys.stderr.isatty():  # it is silent for a while
                print(f"evaluating {args.eval_episodes} episodes of {args.eval_seconds:g} s ...", file=sys.stderr)
            if not args.cuda:  # CUDA's address space is larger than any memory
                limit_memory(local_world())
            resumed = args.resume or ""  # a run that goes on, until it has saved anew
            for done, _ in enumerate(main(args, checkpoint), 1):
                resumed = resumed if done < args.save_interval else ""
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        fault, status = _explain(error, resumed)
    for bar in list(getattr(tqdm, "_instances", ())):  # nothing of it after the error's line
        bar.close()
    if fault and _first_to_say():
        print(fault, file=sys.stderr)
    if in_group():  # threads of gloo that still hold a tensor abort an interpreter that is taken down (pytorch#190489)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)
    sys.exit(status)


def _explain(error: BaseException, resumed: str = "") -> Tuple[str, int]:
    """The line and the exit code for what has ended a script; what only a programmer can mend is raised again."""
    if isinstance(error, (InputError, OSError, Unsound)):
        return f"error: {plain(str(error))}", 1 if isinstance(error, Unsound) else 2
    if isinstance(error, KeyboardInterrupt):
        return STOPPED, 130
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(x in text for x in ("allocate", "out of memory", "size calculation")):
        return "error: not enough memory; lower --num-envs, --num-steps, --hidden or --replay-size", 2
    if in_group() and ("gloo" in text or type(error).__module__.startswith("torch.distributed")):
        # below the progress bar that process 0 may have left
        return "\nerror: another process is gone; --resume goes on from the last save, --max-restarts by itself", 1
    if resumed:  # a number in a foreign checkpoint may be out of a range that only the script knows
        where = [x for x in traceback.extract_tb(error.__traceback__) if x.filename.startswith(HERE)][-1]
        fault = f"{type(error).__name__}: {str(error)[:300]}; {os.path.basename(where.filename)}, line {where.lineno}"
        return f"error: {plain(f'{resumed}: the training cannot go on from this checkpoint ({fault})')}", 2
    raise error


def _first_to_say() -> bool:
    """Whether no other process has said what is wrong; who cannot join a group says it himself."""
    with contextlib.suppress(RuntimeError):  # the store is gone with the process that kept it
        return not in_group() or torch.distributed.distributed_c10d._get_default_store().add("said", 1) == 1
    return True
