"""Reading files that may lie.

Nothing in them is executed, and no header makes this allocate more than the file really holds.
"""

import io
import itertools
import math
import os
import pickletools
import re
import zipfile
import zlib
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from motion_lib import InputError, reading

# of a file, and of what an archive unpacks to: an hour of motion at 30 frames a second takes about 30 MiB
MAX_BYTES = 64 * 2**20
TOO_LARGE = f"{MAX_BYTES >> 20} MiB; cut the motion into shorter files"
MAX_FRAMES = 200_000  # almost two hours at 30 frames a second


def read_bytes(path: str) -> bytes:
    """The whole file. Raises InputError if it cannot be read, or is larger than MAX_BYTES."""
    with reading(path, "a motion file"), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        raw = file.read(size) if size <= MAX_BYTES else b""
    if size > MAX_BYTES:
        raise InputError(f"{path}: larger than {TOO_LARGE}")
    return raw


def frame_rate(step: float) -> float:
    """Frames a second for a frame time [s], where 0.033333 s means 30; 0 for a nonsensical one."""
    fps = 1.0 / step if step > 1e-9 else 0.0
    return float(round(fps)) if fps > 0.5 and abs(1 / round(fps) - step) < 1.1e-6 else fps


def read_part(path: str, start: float, end: float, fps: Optional[float]) -> bytes:
    """Of a BVH file of any size, its header and the frames from start to end [s], at this or its rate. InputError."""
    with reading(path, f"a BVH file; others may have {TOO_LARGE}"), open(path, "rb") as file:
        head = re.match(rb"(?is)\s*HIERARCHY.*?\n[ \t]*frame[ \t]+time[ \t:]*([\d.e-]+)[^\n]*\n", file.read(2**20))
        fps = fps or frame_rate(float(head.group(1)))
        file.seek(head.end())
        lines = iter(lambda: file.readline(2**20), b"")
        rows: List[bytes] = []
        room = MAX_BYTES
        for row in itertools.islice(lines, math.ceil(start * fps - 1e-6), math.floor(end * fps + 1e-6) + 1):
            rows.append(row)
            room -= len(row)
            if room < 0:
                raise InputError(f"{path}: from --start to --end it is larger than {TOO_LARGE}")
        count = b"MOTION\nFrames: %d" % len(rows)  # the first such line counts
        return re.sub(rb"(?i)\nMOTION[ \t\r]*(?=\n)", b"\n" + count, head.group()) + b"".join(rows)


# ---- 1. NumPy's own formats ------------------------------------------------------------------------------------------


def _header(file: io.BytesIO) -> Tuple[Tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type, from the start of a .npy file. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"version {version} of the .npy format")
    return read[version](file)


def read_archive(path: str, raw: bytes) -> Dict[str, bytes]:
    """The members of a zip archive. Raises InputError."""
    with reading(path, "a whole archive; is it truncated?"), zipfile.ZipFile(io.BytesIO(raw)) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
            raise InputError(f"{path}: unpacks to more than {TOO_LARGE}")
        return {member.filename: archive.read(member) for member in archive.infolist()}


def read_npz(path: str, members: Dict[str, bytes]) -> Dict[str, Optional[np.ndarray]]:
    """The arrays of an .npz archive; None for those that hold objects, which only a pickle can. Raises InputError."""
    arrays: Dict[str, Optional[np.ndarray]] = {}
    for filename, member in members.items():
        with reading(path, f"an archive of arrays, for the sake of {filename[:40]}"):
            file = io.BytesIO(member)
            shape, fortran, dtype = _header(file)
            data = file.read()
            if not dtype.hasobject and math.prod(shape) * dtype.itemsize != len(data):
                raise ValueError(f"its header promises {shape}, but {len(data)} bytes follow")
            codes = np.frombuffer(data, dtype.str[0] + "u4") if dtype.kind == "U" else np.zeros(1)
            if codes.max(initial=0) > 0x10FFFF:  # Python would fail where it is printed
                raise ValueError("a text that holds no characters")
            name = filename[:-4] if filename.endswith(".npy") else filename
            order = "F" if fortran else "C"
            arrays[name] = None if dtype.hasobject else np.frombuffer(data, dtype).reshape(shape, order=order)
    return arrays


def read_npy(path: str, raw: bytes) -> Any:
    """What a .npy file with a single Python object holds (see read_pickle). Raises InputError."""
    file = io.BytesIO(raw)
    with reading(path, "a whole .npy file"):
        shape, _, dtype = _header(file)
    if shape != () or dtype != np.dtype(object):
        raise InputError(f"{path}: an array {shape} of {dtype}, not a motion; poselib's files hold one Python object")
    return read_pickle(path, file.read())


# ---- 2. Pickles ------------------------------------------------------------------------------------------------------
# A pickle is a program. Python's unpickler runs all of it: even with a closed list of globals, an index of 2^31 in one
# opcode makes it fill a table of 34 GB, and a shape of 2^40 makes numpy allocate. So this reads the few opcodes that
# motions are made of, and what numpy, torch and joblib name stands for functions of ours, which believe no size.

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


class _Inline(_Array):
    """An array under construction whose numbers come next in the file, as joblib writes them."""

    def __init__(self, file: io.BytesIO) -> None:
        self.file = file

    def build(self, state: Any) -> None:
        kind, shape = state["dtype"], state["shape"]
        if state.get("numpy_array_alignment_bytes") is not None:
            self.file.read(self.file.read(1)[0])
        size = math.prod(shape) * kind.dtype().itemsize if kind.code != "O" else 0
        super().build((1, shape, kind, state["order"] == "F", self.file.read(max(size, 0))))


RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
SCALAR = ("numpy.core.multiarray scalar", "numpy._core.multiarray scalar")
TENSOR = ("torch._utils _rebuild_tensor_v2", "torch.storage _load_from_bytes")
JOBLIB = "joblib.numpy_pickle NumpyArrayWrapper"
CONVERSION = "protomotions.simulator.base_simulator.simulator_state StateConversion"  # an enumeration, of texts
STORAGES = {"Float": "f4", "Double": "f8", "Half": "f2", "Long": "i8", "Int": "i4", "Byte": "u1", "Bool": "b1"}
STORAGES = {f"torch {name}Storage": code for name, code in STORAGES.items()}
GETATTR = ("__builtin__ getattr", "builtins getattr")  # by which Python 3.11.0 to 3.11.3 name an enumeration's member
ALLOWED = (*RECONSTRUCT, *SCALAR, *TENSOR, *STORAGES, JOBLIB, CONVERSION, *GETATTR)
ALLOWED += ("numpy ndarray", "numpy dtype", "collections OrderedDict")


def _global(path: str, name: str) -> _Name:
    if name not in ALLOWED:
        wanted = name.replace(" ", ".")[:60]
        raise InputError(f"{path}: it asks for {wanted!r}, which no motion needs; refused, nothing was executed")
    return _Name(name)


def _tensor(storage: np.ndarray, offset: int, shape: Tuple[int, ...], strides: Tuple[int, ...]) -> np.ndarray:
    """A tensor of torch: numbers of a storage, no more of them than it has."""
    sound = type(storage) is np.ndarray and storage.ndim == 1 and len(shape) == len(strides) < 9 and 0 not in shape
    if not sound or not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
        raise ValueError("a tensor without a storage, or of an absurd shape")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
    if last >= len(storage) or math.prod(shape) > len(storage) - offset:
        raise ValueError("a tensor that does not fit its storage")
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


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
COUNTS.update(APPEND=1, SETITEM=2, BUILD=1, REDUCE=2, NEWOBJ=2, STACK_GLOBAL=2, BINPERSID=1)
MARKED = ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS")


class _Machine:
    """Carries out the opcodes that motions are made of."""

    def __init__(self, path: str, raw: bytes, storages: Optional[Dict[str, bytes]]) -> None:
        self.path = path
        self.file = io.BytesIO(raw)
        self.storages = storages  # the numbers of an archive's tensors; None: references to them stay as they are
        self.loads = 0

    def reduce(self, function: Any, arguments: Any) -> Any:
        """What calling one of the allowed globals gives."""
        if type(function) is not _Name or type(arguments) is not tuple:
            raise ValueError("a call of something that is no function")
        if function in RECONSTRUCT and len(arguments) == 3 and arguments[0] == "numpy ndarray":
            return _Array()
        if function == "numpy dtype" and type(arguments[0]) is str:
            return _Type(arguments[0])
        if function in SCALAR and len(arguments) == 2:
            array = _Array()
            array.build((1, (), arguments[0], False, arguments[1]))
            return array.value.item()
        if function == "collections OrderedDict" and len(arguments) <= 1:
            return _set({}, [x for pair in (arguments[0] if arguments else []) for x in (pair[0], pair[1])])
        if function == TENSOR[0]:
            return _tensor(*arguments[:4])
        if function == TENSOR[1] and self.storages is not None and self.loads < 1000:
            self.loads += 1
            return self.old_storage(arguments[0])
        if function == JOBLIB and not arguments:
            return _Inline(self.file)
        if function == CONVERSION and type(arguments[0]) is str:
            return arguments[0]
        if function in GETATTR and arguments[0] == CONVERSION and type(arguments[1]) is str:
            return arguments[1].lower()  # the value of COMMON is common
        raise ValueError("a call that makes no motion")

    def old_storage(self, raw: bytes) -> np.ndarray:
        """The numbers of a tensor in a plain pickle: five pickles, how many they are, and themselves."""
        inner = _Machine(self.path, raw, None)
        _, _, _, reference, _ = [inner.run() for _ in range(5)]
        return np.frombuffer(raw, STORAGES[reference[1]], reference[4], inner.file.tell() + 8)

    def storage(self, reference: Any) -> Any:
        """The numbers that ("storage", type, key, device, how many, ...) refers to."""
        if self.storages is None:
            return reference
        return np.frombuffer(self.storages[reference[2]], STORAGES[reference[1]], reference[4])

    def apply(self, name: str, items: List[Any], stack: List[Any]) -> None:
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
        elif name in ("REDUCE", "NEWOBJ"):
            stack.append(self.reduce(*items))
        elif name == "BINPERSID":
            stack.append(self.storage(items[0]))
        elif name == "BUILD":
            if not isinstance(stack[-1], (_Array, _Type)):
                raise ValueError("a state for something that has none")
            stack[-1].build(items[0])
        else:  # STACK_GLOBAL; the format refuses what is no text
            stack.append(_global(self.path, "{:.80} {:.60}".format(*items)))

    def run(self) -> Any:
        """The object that the next pickle describes. Raises InputError, or whatever a broken pickle leads to."""
        stack: List[Any] = []
        marks: List[int] = []  # heights of the stack
        memo: Dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(self.file):
            name = opcode.name
            if name in COUNTS or name in MARKED:
                bottom = marks.pop() if name in MARKED else len(stack) - COUNTS[name]
                if not (marks[-1] if marks else 0) <= bottom <= len(stack):
                    raise ValueError("the stack is empty")
                items = stack[bottom:]
                del stack[bottom:]
                self.apply(name, items, stack)
            elif name in VALUES or name in LITERALS:
                stack.append(LITERALS.get(name, argument))
            elif name == "MARK":
                marks.append(len(stack))
            elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
                memo[len(memo) if argument is None else argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                stack.append(memo[argument])
            elif name == "GLOBAL":
                stack.append(_global(self.path, argument))
            elif name == "STOP":
                return stack[-1]
            elif name not in ("PROTO", "FRAME"):
                fault = f"it uses the pickle opcode {name}, which no motion needs"
                raise InputError(f"{self.path}: {fault}; refused, nothing was executed")
        raise ValueError("the pickle has no end")


def read_pickle(path: str, raw: bytes, storages: Optional[Dict[str, bytes]] = None) -> Any:
    """The tree of dictionaries (keys are texts), lists, tuples, numbers, texts, arrays in a pickle. Nothing is run.
    A part may occur many times, so never walk over it without a limit: 1 kB can stand for 2^100 numbers. storages: of
    an archive's tensors. Raises InputError for anything else, globals other than those of ALLOWED first of all."""
    with reading(path, "a readable pickle"):
        return plain(_Machine(path, raw, storages or {}).run())


def read_torch(path: str, members: Dict[str, bytes]) -> Any:
    """read_pickle for an archive of torch.save, whose tensors' numbers are members of their own. Raises InputError."""
    pickles = [raw for name, raw in members.items() if name.endswith("/data.pkl")]
    storages = {name.split("/")[-1]: raw for name, raw in members.items() if "/data/" in name}
    return read_pickle(path, pickles[0], storages)


def inflate(path: str, raw: bytes) -> bytes:
    """What joblib or gzip have packed. Raises InputError."""
    with reading(path, "a readable packed file"):
        unpacked = zlib.decompressobj(47).decompress(raw, MAX_BYTES + 1)  # 47: both kinds of headers
    if len(unpacked) > MAX_BYTES:
        raise InputError(f"{path}: unpacks to more than {TOO_LARGE}")
    return unpacked


def plain(value: Any) -> Any:
    """The array itself, where `value` is one under construction."""
    return value.value if isinstance(value, _Array) else value
