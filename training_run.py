"""What a training keeps besides its algorithm: options, processes, means for the log, the run's folder, checkpoints, signals.

A script uses ten names: by_device, merge_options and launch (the command line), processes, average and moments (several processes
under torchrun; without it there is one, whose means are its own), Log, Run, get_state, set_state. Nothing here knows what is trained.
"""

import atexit
import contextlib
import dataclasses
import datetime
import glob
import importlib.util
import io
import json
import math
import os
import platform
import shutil
import signal
import sys
import time
import warnings
from collections import defaultdict
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
import torch.distributed as dist
import tyro
from torch import Tensor
from tqdm import tqdm
from typing_extensions import Annotated

from motion_lib import InputError, write_file

# ---- 1. Options ------------------------------------------------------------------------------------------------------


def by_device(kind: Any, cpu: Any, cuda: Any) -> Any:
    """Type of an option (int or two of them) whose default depends on the device; its default in the class is None."""
    metavar = "INT INT" if isinstance(cpu, tuple) else "INT"
    shown = [str(x).strip("()").replace(",", "") for x in (cpu, cuda)]
    hint = tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {shown[0]}, with --cuda {shown[1]})")
    return Annotated[Optional[kind], hint, (cpu, cuda)]


def merge_options(description: str, *groups: Any) -> Any:
    """One flat dataclass, Args, of the options in several dataclasses, which are the groups of --help."""
    fields = [field for group in groups for field in dataclasses.fields(group)]
    columns = [(field.name, field.type, dataclasses.field(default=field.default)) for field in fields]
    args = dataclasses.make_dataclass("Args", columns)
    args.__doc__ = description
    args.groups = groups
    return args


def _command_line(kind: Any, argv: Optional[List[str]], defaults: Dict[str, Any]) -> Any:
    """Args from the command line; `defaults` go before those of the class."""
    columns = []
    for group in kind.groups:
        names = {field.name for field in dataclasses.fields(group)}
        default = group(**{name: value for name, value in defaults.items() if name in names})
        columns.append((group.__name__, tyro.conf.OmitArgPrefixes[group], default))
    nested = dataclasses.make_dataclass("Options", [column[:2] for column in columns])
    default = nested(*[column[2] for column in columns])
    parsed = tyro.cli(nested, args=argv, default=default, description=kind.__doc__)
    args = kind(**{name: value for group in vars(parsed).values() for name, value in vars(group).items()})
    for field in dataclasses.fields(kind):
        extra = getattr(field.type, "__metadata__", [None])[-1]
        if getattr(args, field.name) is None and isinstance(extra, tuple):
            setattr(args, field.name, extra[args.cuda])
    return args


def parse_args(kind: Any, name: str, argv: Optional[List[str]] = None, restarted: Optional[str] = None) -> Tuple:
    """Args of the command line, and the checkpoint that --evaluate or --resume names, whose options are the defaults, or None.

    name: kind of the checkpoints that fit; restarted: the run that torchrun has started anew. Raises InputError."""
    args = _command_line(kind, argv, {})
    resume = restarted or args.resume
    if args.evaluate != (args.checkpoint is not None):
        raise InputError("--evaluate and --checkpoint FILE go together")
    if args.evaluate and resume is not None:
        raise InputError("--evaluate and --resume exclude each other")
    checkpoint = None
    if args.evaluate or resume is not None:
        checkpoint = load_checkpoint(args.checkpoint or os.path.join(resume, "latest.pt"), name)
        unknown = sorted(set(checkpoint["args"]) - {field.name for field in dataclasses.fields(kind)})
        if unknown:
            raise InputError(f"the checkpoint is of another version of this script: it has an option {unknown[0]}")
        defaults = dict(checkpoint["args"], resume=None)
        if args.evaluate:  # what belongs to the machine, or to one evaluation, is not taken from a checkpoint
            for option in ("cuda", "sim", "track", "capture_video", "eval_commands"):
                defaults.pop(option, None)
        args = _command_line(kind, argv, defaults)
    args.resume = resume
    gpus = torch.cuda.device_count()
    if args.cuda and gpus < _group_size(local=True):
        raise InputError(f"--cuda: every process needs a GPU and PyTorch finds {gpus}; --no-cuda trains on the CPU")
    if args.track and importlib.util.find_spec("wandb") is None:
        raise InputError("--track: Weights & Biases is not installed; pip install wandb")
    if args.capture_video and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise InputError("--capture-video: pip install imageio[ffmpeg]")
    return args, checkpoint


# ---- 2. Several processes under torchrun (without it there is one, whose means are its own) --------------------------


class Processes(NamedTuple):
    """Where this process stands among those that train together."""

    rank: int
    world: int  # how many there are, on all machines
    device: torch.device  # of this process
    cores: int  # its share of the CPU's cores


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _group_size(local: bool = False) -> int:
    """How many processes train together; local: on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE" if local else "WORLD_SIZE"]) if _in_group() else 1


def processes(cuda: bool) -> Processes:
    """This process among all, rank 0 of 1 without torchrun, and what it may use of its machine."""
    world = _group_size()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    device = torch.device("cuda" if cuda else "cpu")
    if cuda and world > 1:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return Processes(dist.get_rank() if world > 1 else 0, world, device, max(cores // _group_size(local=True), 1))


def _join_processes() -> Optional[str]:
    """Join the other processes of torchrun, if it is the launcher -> the run to go on with after a restart, or None."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return None
    env = os.environ
    rank = int(env["RANK"])
    restarts = env["TORCHELASTIC_RESTART_COUNT"]
    store = None
    if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun's own store still holds what an attempt before the restart has written
        if int(env["GROUP_WORLD_SIZE"]) > 1 and int(env["TORCHELASTIC_MAX_RESTARTS"]) > 0:
            raise InputError("restarts on several machines: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun")
        store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False)
        store = dist.PrefixStore(restarts, store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    patience = datetime.timedelta(hours=1)  # process 0 evaluates while the others wait
    dist.init_process_group(backend, timeout=patience, store=store, rank=rank, world_size=int(env["WORLD_SIZE"]))
    run_id = env["TORCHELASTIC_RUN_ID"]
    if run_id == "none" and restarts != "0":
        raise InputError("torchrun can restart a run that has a name: --standalone or --rdzv-id; or go on with --resume")
    found = glob.glob(os.path.join("runs", f"*__{glob.escape(run_id)}", "latest.pt"))
    choice = [os.path.dirname(found[0]) if found and run_id != "none" else None]
    dist.broadcast_object_list(choice)  # they go on together, or not at all
    return choice[0]


def average(*tensors: Tensor) -> None:
    """Replace tensors, which all processes have, by their mean over the processes, in one message."""
    world = _group_size()
    if world == 1:
        return
    message = torch.cat([x.flatten() for x in tensors])
    dist.all_reduce(message)
    message /= world
    for x, mean in zip(tensors, message.split([x.numel() for x in tensors])):
        x.copy_(mean.view_as(x))


def moments(x: Tensor) -> Tuple[Tensor, Tensor, int]:
    """Mean, variance and number of the rows (n, ...) of all processes, n the same in each. (...), (...), int."""
    var, own = torch.var_mean(x, 0, unbiased=False)
    mean = own.clone()
    average(mean)
    # E[(x - mean)^2] = E_processes[var + (own - mean)^2]
    var = var + (own - mean) ** 2
    average(var)
    return mean, var, len(x) * _group_size()


def _gather(part: Any) -> List[Any]:
    """The part of each process, by rank, on the CPU of process 0; nothing elsewhere. Every process has to call it."""
    if _group_size() == 1:
        return [part]
    rank = dist.get_rank()
    buffer = io.BytesIO()
    torch.save(part, buffer)
    parts = [b""] * _group_size()
    dist.gather_object(buffer.getvalue(), parts if rank == 0 else None)
    return [torch.load(io.BytesIO(x), map_location="cpu", weights_only=True) for x in parts] if rank == 0 else []


# ---- 3. The log ------------------------------------------------------------------------------------------------------


class Log:
    """Means over the entries of all tensors that were added under a name since the last call of means(), NaN left out."""

    def __init__(self) -> None:
        self.parts: Dict[str, List[Tensor]] = defaultdict(list)
        self.smooth: Dict[str, float] = {}  # averages of the means over some 200 calls

    def add(self, group: str, **values: Tensor) -> None:
        """Note tensors, of one shape for each name, as group/name."""
        for name, x in values.items():
            self.parts[f"{group}/{name}"].append(x.detach())

    def means(self) -> Dict[str, float]:
        """The mean of each name over entries and processes, NaN where there is none: the one transfer from the device."""
        columns = [torch.stack(parts).float() for parts in self.parts.values()]
        table = torch.stack([torch.stack((x.nansum(), (~x.isnan()).sum().float())) for x in columns])  # (names, 2)
        average(table)
        means = {}
        for name, (total, count) in zip(self.parts, table.tolist()):
            means[name] = total / count if count else math.nan
        self.parts.clear()
        for name, x in means.items():
            before = self.smooth.get(name, x)
            self.smooth[name] = before if math.isnan(x) else x if math.isnan(before) else before + (x - before) / 200
        return means


# ---- 4. State and checkpoints ----------------------------------------------------------------------------------------


def _has_state(x: Any) -> bool:
    tensors = isinstance(x, list) and len(x) > 0 and all(isinstance(y, Tensor) for y in x)
    return tensors or isinstance(x, (Tensor, torch.Generator)) or hasattr(x, "state_dict")


def get_state(x: Any) -> Dict[str, Any]:
    """What an object's attributes hold for the future: tensors, lists of tensors, generators, whatever has a state_dict."""
    return {name: _state_of(value) for name, value in vars(x).items() if _has_state(value)}


def _state_of(x: Any) -> Any:
    if isinstance(x, list):
        return [_state_of(y) for y in x]
    if isinstance(x, torch.Generator):
        return x.get_state()
    return x.clone() if isinstance(x, Tensor) else x.state_dict()  # a view would be saved with all that it is a view of


def set_state(x: Any, state: Dict[str, Any]) -> None:
    """Put get_state's result back, in place. Raises ValueError, KeyError or the like if it is of another kind of object."""
    if set(state) != set(get_state(x)):
        raise ValueError(f"state of {', '.join(sorted(set(state) ^ set(get_state(x))))}")
    for name, value in state.items():
        _put_state(name, getattr(x, name), value)


def _put_state(name: str, x: Any, state: Any) -> None:
    if isinstance(x, list):
        for own, value in zip(x, state):
            _put_state(name, own, value)
    elif isinstance(x, torch.Generator):
        x.set_state(state)
    elif isinstance(x, Tensor):
        if x.shape != state.shape:
            raise ValueError(f"{name} has shape {tuple(state.shape)} there and {tuple(x.shape)} here")
        x.copy_(state)
    else:
        x.load_state_dict(state)


def load_checkpoint(path: str, name: str) -> Dict[str, Any]:
    """Read a checkpoint of the kind `name` without executing anything in it. Raises InputError."""
    if not os.path.isfile(path):
        advice = "a run that was stopped before its first checkpoint has to be started anew"
        raise InputError(f"{path}: no such file" + f"; {advice}" * path.endswith("latest.pt"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign pickles before it refuses them
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        found = checkpoint["kind"]
        finite = {key: bool(x.isfinite().all()) for key, x in checkpoint["shared"]["agent"].items()}
        dict(checkpoint["args"])
    except Exception as error:  # whatever the unpickler raises on a file that is not a checkpoint
        raise InputError(f"{path}: cannot be read as a checkpoint of this script ({type(error).__name__})") from error
    if found != name:
        raise InputError(f"{path}: a checkpoint of the kind {found}; this script reads {name}")
    for key, sound in finite.items():
        if not sound:
            raise InputError(f"{path}: {key} holds NaN or infinities; take an earlier checkpoint")
    return checkpoint


def fit_checkpoint(checkpoint: Dict[str, Any], identity: Dict[str, Any], objects: Dict[str, Any]) -> None:
    """Put a checkpoint's shared state into objects; identity: what must be the same there. Raises InputError."""
    for key, mine in identity.items():
        theirs = checkpoint["identity"].get(key, [])
        if theirs != mine:
            odd = ", ".join(sorted(set(theirs) ^ set(mine))[:5]) or "their order"
            raise InputError(f"the checkpoint does not fit the character: {key} differ: {odd}")
    try:
        for key, x in objects.items():
            _put_state(key, x, checkpoint["shared"][key])
    except (RuntimeError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the checkpoint does not fit: {' '.join(str(error).split())[:200]}") from error


# ---- 5. The run ------------------------------------------------------------------------------------------------------


class Run:
    """Folder of a training, its curves and checkpoints, how far it is, and the signals that end it in good order.

    A disk that is full or gone stops nothing: that is said once, and the next save tries again. Only process 0 writes."""

    def __init__(self, args: Any, kind: str, batch: int, identity: Dict, shared: Dict, own: Dict, checkpoint: Any) -> None:
        """Begin a run, or go on with the checkpoint of one.

        batch: samples of an iteration of all processes; shared, own: name -> what has a state that all processes share, or that
        each has for itself; identity: what has to be the same in a checkpoint. Raises InputError."""
        self.args = args
        self.kind = kind
        self.batch = batch
        self.identity = identity
        self.shared = shared
        self.own = own
        self.rank, self.world, self.device, _ = processes(args.cuda)
        self.progress: Dict[str, Any] = {"iteration": 0, "samples": 0, "best": -math.inf, "metrics": {}}
        if checkpoint is not None:
            self._restore(checkpoint)
        self.iterations = self.progress["iteration"] + (args.total_timesteps - self.progress["samples"]) // batch
        if self.progress["iteration"] >= self.iterations:
            raise InputError(f"the run is complete; for more of it raise --total-timesteps {args.total_timesteps}")
        self.caught = _note_signals()
        self.started = time.time()
        self.fault = ""
        self.said: List[str] = []
        self.writer: Any = None
        self.folder = self._start() if self.rank == 0 else ""
        total = self.progress["samples"] + (self.iterations - self.progress["iteration"]) * batch
        bar = dict(unit=" samples", unit_scale=True, dynamic_ncols=True, disable=self.rank > 0)
        self.bar = tqdm(total=total, initial=self.progress["samples"], **bar)

    def _restore(self, checkpoint: Dict[str, Any]) -> None:
        """Put a checkpoint back: what all processes share, what is this one's own, random numbers. Raises InputError."""
        path = self.args.resume
        parts = checkpoint.get("processes", [])
        if len(parts) != self.world:
            raise InputError(f"--resume {path}: the run has {len(parts)} processes and there are {self.world} now")
        fit_checkpoint(checkpoint, self.identity, self.shared)
        part = parts[self.rank]
        fit_checkpoint({"identity": {}, "shared": part}, {}, self.own)
        torch.set_rng_state(part["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(part["random_cuda"], self.device)
        self.progress = dict(checkpoint["progress"])
        iteration = torch.tensor(float(self.progress["iteration"]))
        average(iteration)
        if float(iteration) != self.progress["iteration"]:
            raise InputError(f"--resume {path}: not the same checkpoint on all machines; they have to share the folder")

    def _start(self) -> str:
        """Make the run's folder, with all that is needed to repeat it, or note in it that the run goes on -> its path."""
        args = self.args
        clip = os.path.splitext(os.path.basename(os.path.normpath(args.motion_file)))[0]
        now = time.strftime("%Y%m%d-%H%M%S")
        launch = os.environ["TORCHELASTIC_RUN_ID"] if _in_group() else "none"  # a restart finds the run by it
        last = f"{now}-{os.getpid()}" if launch == "none" else launch
        folder = args.resume or os.path.join("runs", f"{args.exp_name}__{clip}__{args.sim}__{args.seed}__{last}")
        os.makedirs(folder, exist_ok=bool(args.resume) or launch != "none")
        if args.track:
            import wandb

            wandb.init(name=os.path.basename(folder), config=vars(args), sync_tensorboard=True)
        packages = ("torch", "numpy", "mujoco", "mujoco_warp", "warp", "isaacgym")
        versions = {name: getattr(sys.modules[name], "__version__", "unknown") for name in packages if name in sys.modules}
        versions.update(python=sys.version, platform=platform.platform())
        told = {"args": vars(args), "processes": self.world, "versions": versions, "command": sys.argv}
        note = f"args_resumed_{now}.json" if args.resume else "args.json"
        write_file(os.path.join(folder, note), json.dumps(told, indent=1).encode())
        if not args.resume:
            here = os.path.dirname(os.path.abspath(__file__))
            for source in (os.path.abspath(sys.argv[0]), *glob.glob(os.path.join(here, "[!a]*.py"))):
                shutil.copy(source, folder)
            shutil.copytree(os.path.join(here, "simulators"), os.path.join(folder, "simulators"), dirs_exist_ok=True)
        group = f"{self.world} process{'es' * (self.world > 1)}"
        options = ", ".join(f"{name} {value}" for name, value in vars(args).items())
        print(f"{folder}: simulator {args.sim}, learning on {self.device}, {group}; options: {options}")
        return folder

    @contextlib.contextmanager
    def forgiving(self) -> Iterator[None]:
        """Around what writes: an OSError is said once and costs only what was to be written."""
        try:
            yield
        except OSError as error:
            self.fault = str(error)
            self.writer = None
            self.say(f"{self.folder}: not written ({error}); the training goes on, and tries again at its next save")

    def say(self, text: str) -> None:
        """Tell the user something on stderr, once, without harm to the progress bar; an empty text is not said."""
        if text and text not in self.said:
            self.said.append(text)
            tqdm.write(f"after {self.progress['samples']} samples: {text}", file=sys.stderr)

    def stopping(self) -> bool:
        """Whether a signal has reached any of the processes: they stop together. Every process has to call it."""
        flag = torch.tensor(float(bool(self.caught)))
        average(flag)
        return bool(flag > 0)

    def log(self, scalars: Dict[str, float], picture: str = "") -> None:
        """A point of every curve that is a number, and a .gif or .png file as a picture; process 0 writes them."""
        from torch.utils.tensorboard import SummaryWriter

        if self.rank > 0 or self.fault:
            return
        with self.forgiving():
            if self.writer is None:  # what is there of later iterations is void
                self.writer = SummaryWriter(self.folder, purge_step=self.progress["samples"])
            for name, x in scalars.items():
                if not math.isnan(x):
                    self.writer.add_scalar(name, x, self.progress["samples"])
            if picture:
                self._add_picture(picture)

    def _add_picture(self, path: str) -> None:
        """Show a picture file in TensorBoard as it is, moving or not (SummaryWriter.add_video would need moviepy)."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with open(path, "rb") as file:
            data = file.read()
        width, height = Image.open(io.BytesIO(data)).size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
        name = os.path.splitext(os.path.basename(path))[0].split("_")[0]
        summary = Summary(value=[Summary.Value(tag=f"eval/{name}", image=image)])
        self.writer.file_writer.add_summary(summary, self.progress["samples"])

    def count(self, iteration: int, scalars: Dict[str, float]) -> None:
        """One iteration is done, with these means."""
        self.progress["iteration"] = iteration
        self.progress["samples"] += self.batch
        self.bar.set_postfix_str("", refresh=False)
        self.bar.update(self.batch)

    def keep_best(self, score: float, metrics: Dict[str, float], policy: Dict[str, Any]) -> None:
        """Note an evaluation, and save the objects of the policy as best.pt if its score is the best so far."""
        self.progress["metrics"] = metrics
        if score > self.progress["best"]:
            self.progress["best"] = score
            with self.forgiving():
                self._write("best.pt", policy, {})

    def save(self) -> None:
        """Everything that the coming iterations depend on, as latest.pt. Every process has to call it."""
        own = {name: _state_of(x) for name, x in self.own.items()}
        own["random"] = torch.get_rng_state()
        if self.device.type == "cuda":
            own["random_cuda"] = torch.cuda.get_rng_state(self.device)
        parts = _gather(own)
        if self.rank > 0:
            return
        self.fault = ""
        with self.forgiving():
            if self.writer is not None:
                self.writer.flush()
            self._write("latest.pt", self.shared, {"processes": parts, "progress": self.progress})

    def _write(self, name: str, shared: Dict[str, Any], more: Dict[str, Any]) -> None:
        content = {"kind": self.kind, "identity": self.identity, "args": dict(vars(self.args), resume=None)}
        content.update(samples=self.progress["samples"], metrics=self.progress["metrics"])
        content["shared"] = {key: _state_of(x) for key, x in shared.items()}
        buffer = io.BytesIO()  # torch.save to a disk that fills up may abort the process
        torch.save({**content, **more}, buffer)
        write_file(os.path.join(self.folder, name), buffer.getbuffer())

    def finish(self) -> None:
        """Say how the run has ended. Raises SystemExit after a signal, InputError if the last save failed."""
        self.bar.close()
        if self.rank > 0:
            return
        with self.forgiving():
            if self.writer is not None:
                self.writer.close()
        if self.fault:
            raise InputError(f"{self.folder}: not written ({self.fault}); free some space and --resume it")
        script = os.path.basename(sys.argv[0])
        if self.caught:
            print(f"stopped after {self.progress['samples']} samples; python {script} --resume {self.folder}")
            sys.exit(128 + self.caught[0])
        minutes = (time.time() - self.started) / 60
        print(f"{minutes:.1f} minutes; python {script} --evaluate --checkpoint {self.folder}/latest.pt")
        print(json.dumps(self.progress["metrics"]))


def _note_signals() -> List[int]:
    """From now on SIGINT and SIGTERM are noted in this list, for the run to stop in good order; a second one ends the process.

    Under torchrun it does not: torchrun passes on what the processes may have got already, and ends them itself after 30 seconds."""
    caught: List[int] = []

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        if not _in_group():
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    return caught


def launch(main: Callable, kind: Any, name: str, check: Callable) -> None:
    """Run main(args, checkpoint), a generator, to its end; what is wrong with the input is one line, and exit code 2.

    kind: what merge_options has made; name: kind of the checkpoints; check(args) raises InputError for options that cannot work."""
    status: Any = 0
    rank = 0
    try:
        restarted = _join_processes()
        rank = processes(cuda=False).rank
        if rank > 0:  # process 0 speaks for all
            sys.stdout = sys.stderr = open(os.devnull, "w")
        args, checkpoint = parse_args(kind, name, restarted=restarted)
        check(args)
        for _ in main(args, checkpoint):
            pass
    except (InputError, OSError) as error:
        print(f"error: {f'process {rank}: ' if rank else ''}{error}", file=sys.__stderr__)
        status = 2
    except SystemExit as end:
        status = end.code
    except RuntimeError as error:
        if not _in_group() or "gloo" not in str(error).lower() and not isinstance(error, getattr(dist, "DistError", ())):
            raise
        print(f"error: process {rank}: another process is gone; --resume goes on from the last save", file=sys.__stderr__)
        status = 1
    if _in_group():  # threads of gloo that still hold a tensor abort an interpreter that is taken down (pytorch issue 190489)
        atexit._run_exitfuncs()
        sys.__stdout__.flush()
        sys.__stderr__.flush()
        os._exit(status or 0)
    if status:
        sys.exit(status)
