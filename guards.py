"""Ctrl-C, missing packages, the terminal, memory that is not there. simulators imports this before all that is slow."""

import contextlib
import os
import signal
import sys
import threading
from traceback import walk_stack, walk_tb
from typing import Any

STOPPED = "error: stopped by Ctrl-C; nothing is lost that was saved"


def _interrupted(number: int, frame: Any) -> None:
    """Ctrl-C ends all at once while modules are imported, some of which would swallow a KeyboardInterrupt."""
    if not any(outer.f_code.co_name == "_find_and_load" for outer, _ in walk_stack(frame)):
        signal.default_int_handler(number, frame)
    with contextlib.suppress(OSError):
        os.write(2, f"{STOPPED}\n".encode())
    os._exit(130)


def _shown(kind: Any, error: BaseException, trace: Any) -> None:
    """One line in place of a traceback for what a user can mend."""
    lines = {KeyboardInterrupt: STOPPED, MemoryError: "error: not enough memory"}
    lines[ModuleNotFoundError] = f"error: {error}; pip install -r requirements.txt"
    modules = [frame.f_code.co_filename for frame, _ in walk_tb(trace) if frame.f_code.co_name == "<module>"]
    if len(modules) > 1 and not modules[-1].startswith(os.path.dirname(__file__)):  # a library's own fault
        lines.setdefault(kind, f"error: {modules[-1]}: {error}; an environment variable may be odd")
    if kind not in lines:
        return sys.__excepthook__(kind, error, trace)
    print(" ".join(lines[kind].split()), file=sys.stderr)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a script, and no other program that has its own
    signal.signal(signal.SIGINT, _interrupted)
    sys.excepthook = _shown
if "OMP_WAIT_POLICY" not in os.environ:  # torch's threads soon leave their core to others when they wait
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")


class Terminal:
    """stdout or stderr that never ends a training: text that cannot be written is escaped, or dropped."""

    def __init__(self, stream: Any) -> None:
        self.stream = open(os.devnull, "w") if stream is None else stream  # of a process whose stream is closed

    def write(self, text: str) -> int:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        with contextlib.suppress(OSError, ValueError, AttributeError):  # full, gone, closed, none at all
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guard_terminal() -> None:
    """From now on stdout and stderr are a Terminal each, and a thread that a full disk ends leaves no traceback."""
    while os.open(os.devnull, os.O_RDWR) <= 2:  # no file comes to stand in the place of a closed stream
        continue
    sys.stdout = Terminal(sys.stdout)
    sys.stderr = Terminal(sys.stderr)
    threading.excepthook = lambda fault: issubclass(fault[0], (OSError, SystemExit)) or sys.excepthook(*fault[:3])


def limit_memory(processes: int) -> None:
    """Have memory refused that Linux has not free for each process: else it is granted, and who uses it is ended."""
    with contextlib.suppress(ImportError, OSError, LookupError, ValueError), open("/proc/meminfo") as meminfo:
        import resource

        kib = {line.split()[0]: int(line.split()[1]) for line in meminfo}
        free = 1024 * (kib["MemAvailable:"] + kib["SwapFree:"])
        with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/memory.max") as file:
            free = min(free, int(file.read()))  # of a container
        own = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resource.setrlimit(resource.RLIMIT_DATA, (own + free // processes, resource.getrlimit(resource.RLIMIT_DATA)[1]))
