"""From the command line to a running script: options in groups, checks, and what becomes of errors.

A script uses by_device, merge_options, check_numbers and launch. Nothing here knows what is trained, or how.
"""

import atexit
import contextlib
import dataclasses
import importlib.util
import os
import sys
from typing import Any, Callable, Dict, List, Literal, Optional, Tuple

import torch
import torch.distributed as dist
import tyro
from typing_extensions import Annotated

from checkpoints import load_checkpoint
from motion_lib import InputError
from processes import in_group, join_processes, local_world, processes

# ---- 1. Options ----------


def by_device(kind: Any, cpu: Any, cuda: Any) -> Any:
    """Type of an option (int, or two of them) whose default depends on the device; in the class its default is None."""
    shown = [str(x).strip("()").replace(",", "") for x in (cpu, cuda)]
    hint = f"(default: {shown[0]}, with --cuda {shown[1]})"
    metavar = "INT INT" if isinstance(cpu, tuple) else "INT"
    return Annotated[Optional[kind], tyro.conf.arg(metavar=metavar, help_behavior_hint=hint), (cpu, cuda)]


@dataclasses.dataclass
class General:
    """What is run, on what, and what is kept of it."""

    exp_name: Optional[str] = None
    """first part of the run's name, under runs/; None: the script's name"""
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
    """no training: evaluate --checkpoint, print one JSON object and write the roll-outs as clips beside it"""
    checkpoint: Optional[str] = None
    """checkpoint to evaluate"""
    eval_interval: by_device(int, 100, 250) = None
    """evaluate every so many iterations, and at the end (0: only at the end)"""
    eval_episodes: int = 32
    """episodes of an evaluation"""
    eval_seconds: float = 20.0
    """longest evaluation episode [s] (the paper's 20)"""
    capture_video: bool = False
    """film one episode of each evaluation (pip install imageio[ffmpeg])"""


def merge_options(description: str, *groups: Any) -> Any:
    """One flat dataclass, Args, of General, the options in `groups` (dataclasses, the groups of --help), Evaluation."""
    groups = (General, *groups, Evaluation)
    fields = [field for group in groups for field in dataclasses.fields(group)]
    args = dataclasses.make_dataclass("Args", [(f.name, f.type, dataclasses.field(default=f.default)) for f in fields])
    args.__doc__ = description
    args.groups = groups
    return args


def _command_line(kind: Any, argv: Optional[List[str]], defaults: Dict[str, Any]) -> Any:
    """Args of the command line; `defaults` go before those of the class."""
    columns = [(group.__name__.lower(), tyro.conf.OmitArgPrefixes[group]) for group in kind.groups]
    start = []
    for group in kind.groups:
        names = {field.name for field in dataclasses.fields(group)}
        start.append(group(**{name: value for name, value in defaults.items() if name in names}))
    nested = dataclasses.make_dataclass("Options", columns)
    parsed = tyro.cli(nested, args=argv, default=nested(*start), description=kind.__doc__)
    args = kind(**{name: value for group in vars(parsed).values() for name, value in vars(group).items()})
    for field in dataclasses.fields(kind):
        by_device = getattr(field.type, "__metadata__", [None])[-1]
        if getattr(args, field.name) is None and by_device is not None:
            setattr(args, field.name, by_device[args.cuda])
    return args


def parse_args(kind: Any, name: str, argv: Optional[List[str]] = None, restarted: Optional[str] = None) -> Tuple:
    """Args of the command line, and the checkpoint that --evaluate or --resume names, or None.

    The checkpoint's options are the defaults. name: kind of checkpoint that fits; restarted: a run that torchrun has
    started anew. Raises InputError."""
    args = _command_line(kind, argv, {})
    resume = restarted or args.resume
    checkpoint = None
    if args.evaluate != (args.checkpoint is not None) or (args.evaluate and resume is not None):
        raise InputError("--evaluate and --checkpoint FILE go together, and without --resume")
    if getattr(args, "eval_commands", None) is not None and not args.evaluate:
        raise InputError("--eval-commands needs --evaluate")
    if args.evaluate or resume is not None:
        checkpoint = load_checkpoint(args.checkpoint if args.evaluate else os.path.join(resume, "latest.pt"), name)
        unknown = sorted(set(checkpoint["args"]) - {field.name for field in dataclasses.fields(kind)})
        if unknown:
            raise InputError(f"the checkpoint is of another version of this script: it has an option {unknown[0]}")
        # what belongs to the machine, or to one evaluation, is not taken from a checkpoint
        not_taken = ("cuda", "sim", "track", "capture_video", "eval_commands") if args.evaluate else ()
        args = _command_line(kind, argv, {k: v for k, v in checkpoint["args"].items() if k not in not_taken})
    args.resume = resume
    if args.cuda and torch.cuda.device_count() < local_world():
        raise InputError("--cuda: PyTorch does not find a GPU for each process; --no-cuda trains on the CPU")
    if args.track and importlib.util.find_spec("wandb") is None:
        raise InputError("--track: Weights & Biases is not installed; pip install wandb")
    if args.capture_video and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise InputError("--capture-video: pip install imageio[ffmpeg]")
    return args, checkpoint


def check_numbers(args: Any, signed: Tuple[str, ...], from_zero: Tuple[str, ...]) -> None:
    """Refuse numbers that are not finite, real ones below 0 (but `signed`) and whole ones below 1 (but `from_zero`)."""
    for name, value in vars(args).items():
        for x in value if isinstance(value, tuple) else (value,):
            low = -1e15 if name in signed else 1 if type(x) is int and name not in from_zero else 0
            if type(x) in (int, float) and not low <= x < 1e15:
                bound = f" from {low}" if low >= 0 else ""
                raise InputError(f"--{name.replace('_', '-')} {x}: expected a finite number{bound}")


# ---- 2. Launch ----------


def launch(main: Callable, kind: Any, name: str, check: Callable) -> None:
    """Run main(args, checkpoint), a generator, to its end; what is wrong with the input is one line, and exit code 2.

    kind: what merge_options has made; name: kind of the checkpoints; check(args) refuses options with InputError."""
    status: Any = 0
    fault = ""
    try:
        restarted = join_processes()
        quiet = open(os.devnull, "w") if processes().rank > 0 else None  # process 0 speaks for all
        with contextlib.redirect_stdout(quiet or sys.stdout), contextlib.redirect_stderr(quiet or sys.stderr):
            args, checkpoint = parse_args(kind, name, restarted=restarted)
            check(args)
            for _ in main(args, checkpoint):
                pass
    except (InputError, OSError) as error:
        fault = f"error: {error}"
        status = 2
    except SystemExit as end:
        status = end.code
    except RuntimeError as error:
        of_group = "gloo" in str(error).lower() or type(error).__module__.startswith("torch.distributed")
        if not (in_group() and of_group):
            raise
        # below the progress bar that process 0 may have left
        fault = "\nerror: another process is gone; --resume goes on from the last save, --max-restarts by itself"
        status = 1
    if fault and _first_to_say(fault):
        print(fault, file=sys.stderr)
    if in_group():  # threads of gloo that still hold a tensor abort an interpreter that is taken down (pytorch#190489)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)
    if status:
        sys.exit(status)


def _first_to_say(text: str) -> bool:
    """Whether no other process has said this."""
    if not in_group():  # a plain run, or join_processes has refused
        return not (dist.is_available() and dist.is_torchelastic_launched()) or os.environ["RANK"] == "0"
    try:
        return dist.distributed_c10d._get_default_store().add(text, 1) == 1
    except RuntimeError:  # gone with the process that kept it
        return True
