"""What passes between this project and the outside: error lines, files."""

import contextlib
import difflib
import errno
import glob
import os
import pickletools
import re
import sys
import zipfile
from typing import Iterator, List, Optional, Tuple

HERE = os.path.dirname(os.path.abspath(__file__))


def plain(text: str, most: int = 1200) -> str:
    """One line for a terminal of a text that may come from files: what it would obey is escaped, and length is cut."""
    text = text if len(text) < 2 * most else text[:most] + text[-most:]
    text = "".join(x if x.isprintable() else ascii(x)[1:-1] for x in text)
    return text if len(text) < most else f"{text[: most - 400]} ... {text[-300:]}"


class InputError(ValueError):
    """A file or an option that cannot be used; the message is one line: what is wrong, where, and what to do."""

    def __init__(self, text: str) -> None:
        super().__init__(plain(str(text)))


@contextlib.contextmanager
def reading(path: str, kind: str) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read that should be of some kind into one line. Raises InputError."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would never end
            raise InputError(f"{path}: a folder, a pipe or a device; expected a file")
        yield
    except InputError:
        raise
    except OSError as error:
        hint = alike(path, f"motions/*{os.path.splitext(path)[1]}") if error.errno == errno.ENOENT else ""
        raise InputError(f"{path}: cannot read this file: {error.strerror or error}{hint}") from error
    except zipfile.BadZipFile as error:  # it begins like an archive, and does not go on like one
        raise InputError(f"{path}: damaged or incomplete; copy or download it again") from error
    except Exception as error:  # whatever parsers raise on a file that is not ours
        fault = " ".join(str(error)[:1000].split(". ")[0].split())[:200]  # torch goes on with bad advice
        raise InputError(f"{path}: not {kind} ({type(error).__name__}: {fault})") from error


def find(path: str) -> str:
    """The path, or where the same lies beside this file if nothing is there: the defaults work from any folder."""
    beside = os.path.join(HERE, path)
    return beside if not os.path.exists(path) and os.path.exists(beside) else path


def alike(path: str, *patterns: str) -> str:
    """What to say of a file that is not there: the one whose name is most like its, or else which there are.

    patterns: "motions/*.npz"; what follows the folder is looked for beside the path, too."""
    home = os.path.dirname(path) or "."
    places = [(folder, rest) for x, _, rest in (y.partition("/") for y in patterns) for folder in (find(x), home)]
    found = [y for x, rest in places for y in sorted(glob.glob(os.path.join(glob.escape(x), rest)))]
    found = [os.path.normpath(re.sub(r"/latest\.pt$", "", x)) for x in found]  # a run goes by its folder
    there = {re.sub(r"\.[a-z]+$", "", os.path.basename(x)): x for x in found}
    asked = path if os.path.isdir(home) else re.sub(r"/(best|latest)\.pt$", "", path)
    near = difflib.get_close_matches(re.sub(r"\.[a-z]+$", "", os.path.basename(asked)), there, 1)
    beside = [x for x, y in there.items() if (os.path.dirname(y) or ".") == os.path.normpath(home)] or there
    return f"; perhaps you meant {there[near[0]]}" if near else f"; there are: {', '.join(beside)}" * bool(there)


def check_archive(path: str, names: Tuple[str, ...]) -> None:
    """Refuse what is not an archive of torch.save that holds as much as it says, and names no others than these, or
    storages, to be called when it is read. Raises InputError, or whatever a broken archive leads to."""
    with open(path, "rb") as file:  # an older form, which is no such archive, would allocate what it is told to
        members = zipfile.ZipFile(file).infolist() if file.read(4) == b"PK\3\4" else []
    if not any(member.filename.endswith("/data.pkl") for member in members):
        raise InputError(f"{path}: no checkpoint, not an archive that torch.save writes")
    whole = {member.filename for member in members if member.file_size == member.compress_size}
    if len(whole) < len(members) or sum(member.file_size for member in members) > os.path.getsize(path):
        raise InputError(f"{path}: unpacks to more than its size, or holds a name twice")
    known = (*names, *[f"torch {x}Storage" for x in ("Float", "Double", "Long", "Int", "Byte", "Bool")])
    with zipfile.ZipFile(path) as archive:
        for name in [name for name in whole if name.endswith(".pkl")]:
            for opcode, argument, _ in pickletools.genops(archive.read(name)):
                if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL") and argument not in known:
                    raise InputError(f"{path}: it asks for {argument}; refused, nothing was executed")


def read_file(path: str) -> bytes:
    """All that a file holds. Raises InputError."""
    with reading(path, "a file"), open(path, "rb") as file:
        return file.read()


def typed(option: str, argv: Optional[List[str]] = None) -> bool:
    """Whether an option stands on the command line."""
    return any(word.split("=")[0].replace("_", "-") == option for word in (sys.argv[1:] if argv is None else argv))


def write_file(path: str, data: bytes) -> None:
    """Write a whole file or nothing: `path` is as it was until all of it is on the disk. Raises OSError."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):  # which a file would replace
        raise OSError(errno.EEXIST, "a pipe or a device is there", path)
    temporary = f"{path}.{os.urandom(8).hex()}.tmp"
    file = open(temporary, "xb")  # x: it is new, never a link that somebody has put there
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # it is gone if all went well
            os.remove(temporary)


@contextlib.contextmanager
def optional() -> Iterator[None]:
    """What fails in here, whatever libraries that draw and film raise, costs only what was to be written."""
    try:
        yield
    except Exception as error:
        print("the figures stand, but not all could be written:", plain(str(error) or repr(error)), file=sys.stderr)
