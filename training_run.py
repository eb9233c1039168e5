"""What a training keeps besides its algorithm, in a Run: the folder with curves and checkpoints, signals."""

import contextlib
import glob
import hashlib
import io
import json
import math
import os
import platform
import signal
import sys
import time
from typing import Any, Callable, Dict, List

import torch
from tqdm import tqdm

import console
import report
from checkpoints import Unsound, check_kind, fit_checkpoint, get_state, identity, load_checkpoint, put_back, unsound
from curves import curve_name
from files import HERE, InputError, find, plain, read_file, reading, typed, write_file
from locks import lock
from motion_lib import MotionLib
from processes import average, gather, in_group, processes, share


class Run:
    """Folder of a training, its curves and checkpoints, how far it is, and the signals that end it in good order.
    A disk that is full or gone stops nothing: that is said once, and the next save tries again. Process 0 writes."""

    def __init__(
        self, args: Any, kind: str, motions: MotionLib, batch: int, shared: Dict, own: Dict, checkpoint: Any
    ) -> None:
        """Begin a run, or go on with the checkpoint of args.resume; batch: samples of an iteration of all processes;
        shared, own: name -> what has a state that all processes share, or each has for itself. Raises InputError."""
        self.args = args
        self.motions = motions
        self.content = {"kind": kind, **identity(motions), "args": dict(vars(args), resume=None)}
        script = read_file(sys.argv[0]) if os.path.isfile(sys.argv[0]) else b""
        self.content["data"]["script"] = hashlib.sha256(script).hexdigest()
        self.batch, self.shared = batch, shared
        self.rank, self.world, self.device, _ = processes(args.cuda)
        self.random = {"random": torch.default_generator}
        if self.device.type == "cuda":
            self.random["random_cuda"] = torch.cuda.default_generators[torch.cuda.current_device()]
        self.own = {**own, **self.random}
        self.progress = {"iteration": 0, "samples": 0, "best": -1e30, "metrics": {}, "seconds": 0.0}
        self.said: List[str] = []
        self.content["rates"] = [group["lr"] for group in _groups(shared)]
        share(*[y for x in shared.values() if isinstance(x, torch.nn.Module) for y in x.state_dict().values()])
        if args.resume is not None:
            self._restore(checkpoint)
        left = args.total_timesteps - self.progress["samples"]
        self.iterations = self.progress["iteration"] + left // batch
        if left < batch:
            raise InputError(f"the run is complete; for more of it raise --total-timesteps {args.total_timesteps}")
        self.caught = _note_signals()
        self.stopped, self.rate = False, math.nan  # samples a second
        self.counted = time.monotonic()
        self.started = self.counted - self.progress["seconds"]  # as if it had never been interrupted
        self.told = (self.counted, self.progress["samples"], console.PAUSES[0])  # last when, how far, and how soon next
        self.writer = self.best = None  # best: samples and evaluation of best.pt, once this process has written it
        self.fault = ""  # why nothing is saved
        self.folder = self._start() if self.rank == 0 else ""
        self.again = console.command("--resume", self.folder, world=self.world * in_group())

    def _restore(self, checkpoint: Dict[str, Any]) -> None:
        """Put a checkpoint back: what all processes share, what is this one's own. Raises InputError."""
        parts = checkpoint.get("processes")
        if not isinstance(parts, list) or len(parts) != self.world:
            n = len(parts) if isinstance(parts, list) else "no"
            raise InputError(f"the run to resume has {n} processes, and there are {self.world} now")
        with reading("the checkpoint", "that of a run"):
            for key, mine in (("data", self.content["data"]), ("rates", self.content["rates"])):
                check_kind(key, mine, checkpoint[key])
            progress = {"seconds": 0.0, **checkpoint["progress"]}  # older runs have not kept them
            check_kind("progress", {**self.progress, "metrics": {}}, {**progress, "metrics": {}})
            for name, x in checkpoint["progress"]["metrics"].items():
                check_kind(str(name)[:50], 0.0, x)
        for option, key in (("--motion-file", "motion"), ("--character-file", "character")):
            if checkpoint["data"][key] != self.content["data"][key] and not typed(option):
                raise InputError(f"the {key} data is not what the run began with; type {option} to go on with it")
        fit_checkpoint(checkpoint, self.motions, self.shared)
        same = checkpoint["data"]["motion"] == self.content["data"]["motion"]
        put_back(self.own if same else self.random, parts[self.rank])
        if not same:
            self._say("other clips than the run began with: episodes and replayed transitions begin anew")
        for group, rate, before in zip(_groups(self.shared), self.content["rates"], checkpoint["rates"]):
            if rate != before:  # it was typed; otherwise the run goes on with the rate that it has come to
                group["lr"] = rate
        self.progress, self.written = progress, checkpoint["written"]
        if checkpoint["data"]["script"] != self.content["data"]["script"]:
            self._say("the script has changed since the run began; this one's copy is kept beside the first")
        iteration = torch.tensor(float(self.progress["iteration"]), dtype=torch.float64)
        average(iteration)
        if float(iteration) != self.progress["iteration"]:
            raise InputError("not the same checkpoint on all machines; they have to share the folder of the run")

    def _start(self) -> str:
        """Make the folder, with all that is needed to repeat the run, or note in it that it goes on -> its path."""
        args = self.args
        now = time.strftime("%Y%m%d-%H%M%S")
        script = os.path.abspath(sys.argv[0])
        launch = os.environ["TORCHELASTIC_RUN_ID"] if in_group() else "none"
        last = now if launch == "none" else launch  # by which a restart finds the run
        folder = args.resume or os.path.join("runs", console.run_name(args, script, last))
        if not args.resume and launch == "none":
            folder = report.new_folder(folder)
        code = os.path.join(folder, "code")
        os.makedirs(code, exist_ok=True)
        self.lock = lock(os.path.join(folder, "lock"))
        for path in glob.glob(os.path.join(glob.escape(folder), "*.pt.*.tmp")):  # a save that was killed
            os.remove(path)
        if args.resume and os.stat(os.path.join(folder, "latest.pt")).st_mtime_ns != self.written:
            raise InputError(f"{folder}: another process has just saved there; start again to go on with that")
        if args.track:
            self._track(folder)
        with contextlib.suppress(Exception):  # hints, which cost no training; a run's own copy does without
            from motions.checks import before_training

            for line in () if args.resume else before_training(self.motions):
                self._say(line)
        packages = ("torch", "numpy", "mujoco", "mujoco_warp", "warp", "isaacgym")
        versions = {x: getattr(sys.modules[x], "__version__", "unknown") for x in packages if x in sys.modules}
        versions.update(python=sys.version, platform=platform.platform())
        told = {"args": vars(args), "processes": self.world, "versions": versions, "command": sys.argv}
        self.options = json.dumps(told, indent=1)
        write_file(os.path.join(folder, f"args{f'_resumed_{now}' if args.resume else ''}.json"), self.options.encode())
        mine = ("simulators/*.py", "motions/*.py", "motions/view_*", *(f"{x}.py" for x in list(sys.modules)))  # it runs
        sources = [path for x in mine for path in glob.glob(os.path.join(glob.escape(HERE), x))]
        data = [find(path) for path in (args.motion_file, self.motions.character.path, *self.motions.files)]
        for source in () if args.resume else (*sources, *data):
            place = os.path.relpath(os.path.abspath(source), HERE)
            if os.path.isfile(source) and not place.startswith(os.pardir):
                os.makedirs(os.path.dirname(os.path.join(code, place)), exist_ok=True)
                write_file(os.path.join(code, place), read_file(source))
        if os.path.isfile(script):  # it may lie elsewhere, or have changed
            copy = f"resumed_{now}_" * bool(args.resume) + os.path.basename(script)
            write_file(os.path.join(code, copy), read_file(script))
        return folder

    def begin(self, falls: str) -> None:
        """Say what is to come, in five lines, and start the progress bar; falls: what counts as one."""
        span = (self.progress["samples"], self.iterations * self.batch)
        where = f"learning on {self.device}" + f", {self.world} processes" * (self.world > 1)
        print(*console.start_lines(self.args, self.motions, falls, span, where, self.again), sep="\n", file=sys.stderr)
        shown = sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).lines > 0  # 0: a program's
        style = dict(dynamic_ncols=True, bar_format="{bar} {remaining} left, {desc}", smoothing=0, disable=not shown)
        self.bar = tqdm(total=span[1], initial=span[0], desc=console.progress(*span), **style)

    def _track(self, folder: str) -> None:
        """Log to Weights & Biases as well; whatever it raises costs only that."""
        try:
            import wandb

            wandb.init(name=os.path.basename(folder), config=vars(self.args), sync_tensorboard=True)
        except Exception as error:
            self._say(f"Weights & Biases: {' '.join(str(error).split())[:200]}; the training goes on without it")

    def attempt(self, write: Callable, *args: Any) -> str:
        """write(*args); a fault is said once, and costs only what was to be written -> it, or "". Raises Unsound."""
        try:
            write(*args)
        except Unsound:
            raise
        except Exception as error:  # libraries that draw, film and log raise what they like
            reason = getattr(error, "strerror", None)  # without the path, which is another one each time
            fault = plain(str(reason or error) or type(error).__name__)
            text = f"not written ({fault}); the training goes on, and tries again at its next save"
            self._say(f"{self.folder}: {text}", reason or write.__name__)
            return fault
        return ""

    def due(self, interval: int) -> bool:
        """Whether something is to be done that is done every `interval` iterations, and after the last one."""
        iteration = self.progress["iteration"]
        return iteration == self.iterations or (interval > 0 and iteration % interval == 0)

    def _say(self, text: str, key: str = "") -> None:
        """Tell the user something, once for a key, above the progress bar; an empty text is not said."""
        if text and (key or text) not in self.said:
            self.said.append(key or text)
            tqdm.write(plain(f"after {self.progress['samples']} samples: {text}"), file=sys.stderr)

    def count(self, iteration: int, scalars: Dict[str, float], warning: str) -> None:
        """An iteration is done; a warning is said once. Raises Unsound if no update of some network was finite."""
        lost = [name for name, x in scalars.items() if name.endswith("/skipped") and x == 1.0]
        if lost:
            self._give_up(f"no update of {lost[0].split('/')[0]} in an iteration was finite; lower its learning rate")
        self.progress["iteration"] = iteration
        self.progress["samples"] += self.batch
        now = time.monotonic()  # a clock that is set back is no speed
        self.rate, self.counted = self.batch / max(now - self.counted, 1e-9), now
        self.shown = (self.progress["samples"], self.bar.total, scalars["episode/length"], self.args.episode_steps)
        text = console.progress(*self.shown, self.progress["metrics"].get("pose_error_m", math.nan))
        self.bar.set_description_str(text, refresh=False)
        self.bar.update(self.batch)
        if now - self.told[0] >= self.told[2]:
            self._tell(text)
        if iteration >= 400:
            self._say(warning)

    def _tell(self, text: str) -> None:
        """Say how far the training is, and a text, where there is no bar."""
        before, self.told = self.told, (time.monotonic(), self.progress["samples"], console.PAUSES[1])
        if self.rank == 0 and self.bar.disable:
            rate = (self.told[1] - before[1]) / max(self.told[0] - before[0], 1e-9)  # evaluations included
            print(f"{text}, {rate:.0f} samples/s", file=sys.stderr, flush=True)

    def _give_up(self, text: str) -> None:
        """Raise Unsound, with what is left of the run."""
        if self.rank > 0:  # process 0 says it
            sys.exit(1)
        kept = os.path.join(self.folder, "latest.pt")
        raise Unsound(f"{text}; {f'the last save is {kept}' if os.path.exists(kept) else 'nothing has been saved'}")

    def log(self, scalars: Dict[str, float]) -> None:
        """A point of every curve that has a number."""
        if self.rank == 0 and not self.fault:
            self.fault = self.attempt(self._add, scalars)

    def _add(self, scalars: Dict[str, float]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        samples = self.progress["samples"]
        if self.writer is None:  # what is there of later samples is void
            self.writer = SummaryWriter(self.folder, purge_step=samples)
            self.writer.add_text("options", f"```\n{self.options}\n```", samples)
        for name, x in {**scalars, "samples_per_s": self.rate}.items():
            if not math.isnan(x):
                self.writer.add_scalar(curve_name(name), x, samples)

    def keep_best(self, score: float, result: Any, policy: Dict[str, Any]) -> None:
        """Note an evaluation.Result; the best one's policy is saved as best.pt."""
        numbers = {name: x for name, x in result.metrics.items() if isinstance(x, (int, float)) and math.isfinite(x)}
        self.progress["metrics"] = numbers  # a figure that has none is no reason to stop
        if score > self.progress["best"] or not os.path.exists(os.path.join(self.folder, "best.pt")):
            self.progress["best"] = max(self.progress["best"], score)  # in this order: a score may be NaN
            self.best = self.progress["samples"], result
            self.attempt(self._write, "best.pt", policy, {})
        text = console.progress(*self.shown, numbers.get("pose_error_m", math.nan))
        self.bar.set_description_str(text, refresh=False)
        self._tell(console.verdict(self.progress["samples"], result.metrics))
        if self.args.capture_video:
            film = f"{self.folder}/episode_{self.progress['iteration']}.mp4"
            self.attempt(report.film_episode, film, result.clips[0], self.motions)

    def save_when_due(self) -> bool:
        """Save all as latest.pt if it is time, or a signal has come -> whether to stop. Every process calls it."""
        flag = torch.tensor(float(bool(self.caught)))
        average(flag)  # they stop together
        self.stopped = bool(flag > 0)
        if self.stopped or self.due(self.args.save_interval):
            parts = gather({name: get_state(x) for name, x in self.own.items()})
            if self.rank == 0:
                self.fault = self.attempt(self._save, parts)
        return self.stopped

    def _save(self, parts: List[Any]) -> None:
        self.writer = None if self.fault else self.writer  # its thread has died of a fault
        if self.writer is not None:
            self.writer.flush()
        self._write("latest.pt", self.shared, {"processes": parts, "progress": self.progress})

    def _write(self, name: str, shared: Dict[str, Any], more: Dict[str, Any]) -> None:
        self.progress["seconds"] = time.monotonic() - self.started
        content = {**self.content, **self.progress, **more, "shared": {key: get_state(x) for key, x in shared.items()}}
        fault = unsound({key: content.get(key) for key in ("shared", "processes", "progress")})
        if fault:
            self._give_up(f"{fault} is not finite any more, so it is not saved; lower the learning rates")
        buffer = io.BytesIO()  # torch.save to a disk that fills up may abort the process
        torch.save(content, buffer)
        write_file(os.path.join(self.folder, name), buffer.getbuffer())

    def finish(self, evaluate: Callable) -> None:
        """Say how the run has ended, and show its best policy, which evaluate() judges. SystemExit, InputError."""
        self.bar.close()
        if self.rank > 0:
            return
        if self.fault:
            raise InputError(f"{self.folder}: not written ({self.fault}); free some space and --resume it")
        if self.writer is not None:
            self.writer.close()
        with contextlib.suppress(OSError):
            os.remove(os.path.join(self.folder, "lock"))  # while it is held
        if self.stopped and self.progress["iteration"] < self.iterations:
            print(f"stopped after {self.progress['samples']:,} samples; to go on:\n{self.again}", file=sys.stderr)
            sys.exit(128 + (self.caught or [signal.SIGTERM])[0])
        path = os.path.join(self.folder, "best.pt")
        if self.best is None:  # it was the best before the run went on
            checkpoint = load_checkpoint(path, self.content["kind"], own=True)
            put_back({x: y for x, y in self.shared.items() if x in checkpoint["shared"]}, checkpoint["shared"])
            self.best = checkpoint["samples"], evaluate()
        minutes = (time.monotonic() - self.started) / 60
        samples, result = self.best
        print(f"trained for {minutes:.1f} minutes; the best policy, after {samples:,} samples:", file=sys.stderr)
        again = console.command("--evaluate", "--checkpoint", path, "--seed", str(self.args.seed + 1000))
        shown = report.write(self.args, self.motions, result, path)
        console.tell(self.args, self.motions, result.metrics, shown, again)


def _groups(objects: Dict[str, Any]) -> List[Dict]:
    """Parameter groups of the optimisers among them."""
    return [group for x in objects.values() if isinstance(x, torch.optim.Optimizer) for group in x.param_groups]


def _note_signals() -> List[int]:
    """From now on signals that end a process are noted in this list, unless they are ignored (nohup); a second one ends
    the process, but not under torchrun, which passes on what a process may have got already."""
    caught: List[int] = []
    since = 0.0  # [s]
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU")  # of users and of schedulers
    kinds = [kind for kind in signal.Signals if kind.name in names and signal.getsignal(kind) != signal.SIG_IGN]

    def note(number: int, frame: Any) -> None:
        nonlocal since
        if not caught and not in_group():
            since = time.monotonic()
            with contextlib.suppress(OSError):  # print() might wait for itself here
                os.write(2, b"\nfinishing this iteration, then saving; once more stops at once\n")
        elif not in_group() and time.monotonic() > since + 0.2:  # timeout, for one, sends each signal twice
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        caught.append(number)

    for kind in kinds:
        signal.signal(kind, note)
    return caught
