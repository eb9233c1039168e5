"""What passes between this project and the outside: error lines, files found, read and written, the terminal."""

import contextlib
import os
import sys
from typing import Any, Iterator

HERE = os.path.dirname(os.path.abspath(__file__))


class InputError(ValueError):
    """A file or an option that cannot be used; the message is one line: what is wrong, where, and what to do.

    Names in it may come from files: what a terminal would obey is escaped, and a long one is cut."""

    def __init__(self, text: str) -> None:
        plain = "".join(x if x.isprintable() else ascii(x)[1:-1] for x in str(text))
        super().__init__(plain if len(plain) < 1200 else f"{plain[:800]} ... {plain[-300:]}")


@contextlib.contextmanager
def reading(path: str, kind: str) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read that should be of some kind into one line. Raises InputError."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot read this file: {error.strerror or error}") from error
    except Exception as error:  # whatever parsers raise on a file that is not ours
        raise InputError(f"{path}: not {kind} ({type(error).__name__}: {' '.join(str(error).split())})") from error


def find(path: str) -> str:
    """The path, or where the same lies beside this file if nothing is there: the defaults work from any folder."""
    beside = os.path.join(HERE, path)
    return beside if not os.path.exists(path) and os.path.exists(beside) else path


def write_file(path: str, data: bytes) -> None:
    """Write a whole file or nothing: `path` is as it was until all of it is on the disk. Raises OSError."""
    temporary = f"{path}.{os.urandom(8).hex()}.tmp"
    file = open(temporary, "xb")  # x: it is new, never a link that somebody has put there
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


class Terminal:
    """stdout or stderr that never ends a training: text that cannot be written is escaped, or dropped."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        with contextlib.suppress(OSError, ValueError, AttributeError):  # full, gone, closed, none at all
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guard_terminal() -> None:
    """From now on stdout and stderr are a Terminal each."""
    sys.stdout = Terminal(sys.stdout)
    sys.stderr = Terminal(sys.stderr)
