"""Reading files that may lie.

Nothing in them is executed, and no header makes this allocate more than the file really holds.

raw = read_bytes(path); arrays = read_npz(path, raw); tree = read_pickle(path, raw); tree = read_npy(path, raw)
"""

import io
import math
import os
import pickletools
import zipfile
from typing import Any, Dict, List, Tuple

import numpy as np

from motion_lib import InputError

# of a file, and of what an archive unpacks to: an hour of motion at 30 frames a second takes about 30 MiB
MAX_BYTES = 64 * 2**20
MAX_FRAMES = 200_000  # almost two hours at 30 frames a second


def read_bytes(path: str) -> bytes:
    """The whole file. Raises InputError if it cannot be read, or is larger than MAX_BYTES."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            raw = file.read(size) if size <= MAX_BYTES else b""
    except OSError as error:
        raise InputError(f"{path}: cannot read the motion file: {error.strerror}") from error
    if size > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES >> 20} MiB; cut the motion into shorter files")
    return raw


# ---- 1. NumPy's own formats ------------------------------------------------------------------------------------------


def _header(file: io.BytesIO) -> Tuple[Tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type, from the start of a .npy file. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"version {version} of the .npy format")
    return read[version](file)


def read_npz(path: str, raw: bytes) -> Dict[str, np.ndarray]:
    """The arrays of an .npz archive, none of which may hold objects. Raises InputError."""
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                limit = f"{MAX_BYTES >> 20} MiB"
                raise InputError(f"{path}: unpacks to more than {limit}; cut the motion into shorter files")
            for member in archive.infolist():
                file = io.BytesIO(archive.read(member))
                shape, fortran, dtype = _header(file)
                data = file.read()
                if dtype.hasobject:
                    fault = f"{member.filename} holds objects, which only a pickle can"
                    raise InputError(f"{path}: {fault}; no .npz motion needs them")
                if math.prod(shape) * dtype.itemsize != len(data):
                    raise ValueError(f"the header of {member.filename} promises {shape}, but {len(data)} bytes follow")
                name = member.filename[:-4] if member.filename.endswith(".npy") else member.filename
                arrays[name] = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    except InputError:
        raise
    except Exception as error:  # whatever zipfile, zlib and numpy raise on a broken archive
        raise InputError(f"{path}: not a readable .npz archive ({_brief(error)}); is it truncated?") from error
    return arrays


def read_npy(path: str, raw: bytes) -> Any:
    """What a .npy file with a single Python object holds (see read_pickle). Raises InputError."""
    file = io.BytesIO(raw)
    try:
        shape, _, dtype = _header(file)
    except Exception as error:  # numpy's header parser raises what Python's own parser does
        raise InputError(f"{path}: not a readable .npy file ({_brief(error)})") from error
    if shape != () or dtype != np.dtype(object):
        raise InputError(f"{path}: an array {shape} of {dtype}, not a motion; poselib's files hold one Python object")
    return read_pickle(path, file.read())


def _brief(error: Exception) -> str:
    """An exception in a few words on one line: the message may quote the file at length."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


# ---- 2. Pickles ------------------------------------------------------------------------------------------------------
# A pickle is a program. Python's unpickler runs all of it: even with a closed list of globals, an index of 2^31 in one
# opcode makes it fill a table of 34 GB, and a shape of 2^40 makes numpy allocate. So this reads the few opcodes that
# dictionaries, lists, numbers, texts and numpy arrays are made of, and the four names that numpy needs stand for
# functions of ours, which believe no size.

CODES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")  # types of numbers in arrays


class _Array:
    """A numpy array under construction."""

    value: Any = None

    def build(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        shape = (shape,) if type(shape) is int else shape
        if len(shape) > 8 or not all(type(n) is int and 0 <= n <= MAX_BYTES for n in shape):
            raise ValueError("an array's shape is absurd")
        count = math.prod(shape)
        if kind.code == "O" and type(data) is list and len(data) == count == 1:
            self.value = data[0]
        elif kind.code != "O" and type(data) is bytes and len(data) == count * kind.dtype().itemsize:
            self.value = np.frombuffer(data, kind.dtype()).reshape(shape, order="F" if fortran else "C")
        else:
            raise ValueError("an array's shape and its data disagree")


class _Type:
    """A numpy type under construction: of numbers, or O for objects."""

    order = "<"

    def __init__(self, code: str) -> None:
        self.code = "O" if code in ("O", "O8", "O4") else code
        if self.code != "O" and code not in CODES:
            raise ValueError("an array holds neither numbers nor an object")

    def build(self, state: Any) -> None:
        if state[1] not in ["<", ">", "|", "="]:  # a list: it compares, where a set or a dictionary would hash
            raise ValueError("an array with an unknown byte order")
        self.order = state[1]

    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Name(str):
    """A global that a pickle names; nothing is imported for it."""


RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
ALLOWED = (*RECONSTRUCT, "numpy ndarray", "numpy dtype", "collections OrderedDict")


def _global(name: str) -> _Name:
    if name not in ALLOWED:
        wanted = name.replace(" ", ".")[:60]
        raise InputError(f"it asks for {wanted!r}, which no motion needs; refused, nothing was executed")
    return _Name(name)


def _reduce(function: Any, arguments: Any) -> Any:
    """What calling one of the allowed globals gives."""
    if type(function) is not _Name or type(arguments) is not tuple:
        raise ValueError("a call of something that is no function")
    if function in RECONSTRUCT and len(arguments) == 3 and arguments[0] == "numpy ndarray":
        return _Array()
    if function == "numpy dtype" and type(arguments[0]) is str:
        return _Type(arguments[0])
    if function == "collections OrderedDict" and len(arguments) <= 1:
        return _set({}, [x for pair in (arguments[0] if arguments else []) for x in (pair[0], pair[1])])
    raise ValueError("a call that makes no motion")


def _set(target: Any, items: List[Any]) -> Dict[str, Any]:
    """Keys are texts: hashing a tuple of tuples of ... could take for ever."""
    if type(target) is not dict or len(items) % 2 or not all(type(key) is str for key in items[::2]):
        raise ValueError("a dictionary with other keys than texts")
    target.update(zip(items[::2], items[1::2]))
    return target


LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT")
VALUES += ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "SHORT_BINSTRING", "BINSTRING", "STRING")
VALUES += ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8")
# opcodes that take so many things off the stack; and those that take all down to the last mark
COUNTS = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "EMPTY_LIST": 0, "EMPTY_DICT": 0}
COUNTS.update(APPEND=1, SETITEM=2, BUILD=1, REDUCE=2, STACK_GLOBAL=2)
MARKED = ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS")


def _apply(name: str, items: List[Any], stack: List[Any]) -> None:
    """Carry out one opcode of COUNTS or MARKED with what it has taken off the stack."""
    if "TUPLE" in name:
        stack.append(tuple(items))
    elif name in ("EMPTY_LIST", "LIST"):
        stack.append(items)
    elif name in ("EMPTY_DICT", "DICT"):
        stack.append(_set({}, items))
    elif name in ("SETITEM", "SETITEMS"):
        _set(stack[-1], items)
    elif name in ("APPEND", "APPENDS"):
        if type(stack[-1]) is not list:
            raise ValueError("an item for something that is no list")
        stack[-1].extend(items)
    elif name == "REDUCE":
        stack.append(_reduce(*items))
    elif name == "BUILD":
        if not isinstance(stack[-1], (_Array, _Type)):
            raise ValueError("a state for something that has none")
        stack[-1].build(items[0])
    else:  # STACK_GLOBAL; the format refuses what is no text
        stack.append(_global("{:.60} {:.60}".format(*items)))


def _run(raw: bytes) -> Any:
    """The object that a pickle describes. Raises InputError, or whatever a broken pickle leads to."""
    stack: List[Any] = []
    marks: List[int] = []  # heights of the stack
    memo: Dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(raw):
        name = opcode.name
        if name in COUNTS or name in MARKED:
            bottom = marks.pop() if name in MARKED else len(stack) - COUNTS[name]
            if not (marks[-1] if marks else 0) <= bottom <= len(stack):
                raise ValueError("the stack is empty")
            items = stack[bottom:]
            del stack[bottom:]
            _apply(name, items, stack)
        elif name in VALUES or name in LITERALS:
            stack.append(LITERALS.get(name, argument))
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_global(argument))
        elif name == "STOP":
            return stack[-1]
        elif name not in ("PROTO", "FRAME"):
            raise InputError(f"it uses the pickle opcode {name}, which no motion needs; refused, nothing was executed")
    raise ValueError("the pickle has no end")


def read_pickle(path: str, raw: bytes) -> Any:
    """The tree of dictionaries (keys are texts), lists, tuples, numbers, texts and numpy arrays in a pickle.

    Nothing is executed. A part may occur many times in the tree, so never walk over it without a limit: a file of 1 kB
    can stand for 2^100 numbers.
    Raises InputError for anything else, globals other than numpy's arrays and OrderedDict first of all."""
    try:
        return plain(_run(raw))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # whatever a broken pickle leads to
        raise InputError(f"{path}: not a readable pickle ({_brief(error)})") from error


def plain(value: Any) -> Any:
    """The array itself, where `value` is one under construction."""
    return value.value if isinstance(value, _Array) else value
