"""States of objects and checkpoint files: what the future of a training depends on, and nothing that executes code."""

import hashlib
import math
import os
import sys
import warnings
from typing import Any, Dict, Optional, Set

import torch
from torch import Tensor

from files import HERE, InputError, alike, check_archive, find, plain, read_file, reading
from motion_lib import MotionLib


def get_state(x: Any) -> Any:
    """A copy of what the future of x depends on: tensors, generators, what has a state_dict, lists, tuples and dicts of
    these; of an object whose state_dict this function is, whatever attributes are of such a kind."""
    if isinstance(x, Tensor):
        return x.clone()  # a view would be saved with all that it is a view of
    if isinstance(x, torch.Generator):
        return x.get_state()
    if isinstance(x, (list, tuple)):
        return [get_state(y) if _has_state(y) else None for y in x]
    if not isinstance(x, dict) and type(x).state_dict is not get_state:
        return x.state_dict()
    return {name: get_state(y) for name, y in (x if isinstance(x, dict) else vars(x)).items() if _has_state(y)}


def _has_state(x: Any) -> bool:
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, (list, tuple)) else ()
    return any(_has_state(y) for y in parts) or isinstance(x, (Tensor, torch.Generator)) or hasattr(x, "state_dict")


def set_state(x: Any, state: Any) -> None:
    """Put get_state's copy back, in place. Raises ValueError or the like if it does not fit."""
    if not isinstance(x, torch.optim.Optimizer):
        check_kind("the state", get_state(x), state)
    if isinstance(x, Tensor):
        x.resize_(state.shape).copy_(state)
    elif isinstance(x, torch.Generator):
        x.set_state(state)
    elif isinstance(x, torch.optim.Optimizer):  # what it does is the script's, but for the rate that it has come to
        groups = zip(x.state_dict()["param_groups"], state["param_groups"])
        x.load_state_dict({**state, "param_groups": [{**mine, "lr": theirs["lr"]} for mine, theirs in groups]})
    elif getattr(type(x), "state_dict", get_state) is not get_state:
        x.load_state_dict(state)
    else:
        parts = vars(x) if hasattr(x, "state_dict") else x
        for key in state if isinstance(state, dict) else range(len(state)):
            if _has_state(parts[key]):
                set_state(parts[key], state[key])


class Unsound(RuntimeError):
    """A training has come to numbers that are not finite, and ends."""


def unsound(state: Any, name: str = "", seen: Optional[Set[int]] = None) -> str:
    """The name of what in a state is not finite, below 0 where it may not be, or larger than its memory, or ""."""
    seen = set() if seen is None else seen
    if isinstance(state, (dict, list, tuple)) and id(state) not in seen:
        seen.add(id(state))  # a small file may hold one part a billion times
        for key, part in state.items() if isinstance(state, dict) else enumerate(state):
            found = unsound(part, f"{name}.{key}"[-200:].strip("."), seen)
            if found:
                return found
    if isinstance(state, Tensor) and state.numel() * state.element_size() > state.untyped_storage().nbytes():
        return name
    if isinstance(state, (Tensor, int, float)):
        x = torch.as_tensor(state)
        low = 0.0 if name.endswith(("var", "count", "exp_avg_sq", "step", "lr", "iteration", "samples")) else -math.inf
        return "" if bool((x.isfinite() & (x >= low)).all()) else name
    return ""


def check_kind(name: str, own: Any, state: Any, inside: bool = True) -> None:
    """Raise ValueError if a saved state is not like an object's own: types, types and shapes of tensors, keys."""
    kind = next((x for x in (bool, (int, float), (list, tuple), dict) if isinstance(own, x)), type(own))
    if not isinstance(state, kind) or (isinstance(state, bool) and kind is not bool):
        raise ValueError(f"{name} is a {type(state).__name__} there and a {type(own).__name__} here")
    first = int(isinstance(own, Tensor) and own.shape[:1] == (0,))  # what has no rows yet may get any number of them
    if isinstance(own, Tensor) and (own.dtype != state.dtype or own.shape[first:] != state.shape[first:]):
        raise ValueError(f"{name} is {state.dtype} {(*state.shape,)} there and {own.dtype} {(*own.shape,)} here")
    if isinstance(own, (list, tuple)) and inside:
        check_kind(name, dict(enumerate(own)), dict(enumerate(state)))
    if isinstance(own, dict) and inside:
        if own.keys() != state.keys():
            raise ValueError(f"{name}: {', '.join(map(str, own.keys() ^ state.keys()))} on one side only")
        for key in own:
            check_kind(f"{name}.{key}", own[key], state[key])


def _check_optimizer(name: str, x: torch.optim.Optimizer, state: Any) -> None:
    """Raise ValueError if rates and moments in a saved state are not those of an optimizer's parameters."""
    check_kind(f"{name}.lr", *[[group["lr"] for group in y["param_groups"]] for y in (x.state_dict(), state)])
    own = enumerate(y.detach().cpu() for group in x.param_groups for y in group["params"])
    check_kind(name, {i: dict(step=torch.zeros(()), exp_avg=y, exp_avg_sq=y) for i, y in own}, state["state"])


def load_checkpoint(path: str, name: str, own: bool = False) -> Dict[str, Any]:
    """Read a checkpoint of the kind `name`, or that of a folder of one's own run; executes nothing. InputError."""
    own = own or os.path.isdir(path)
    path = os.path.join(path, "latest.pt") if os.path.isdir(path) else path
    if not os.path.isfile(path):
        hint = "; --resume takes a run's folder, --checkpoint FILE trains on from a policy" if own else " or folder"
        if path.endswith("latest.pt") and os.path.exists(os.path.join(os.path.dirname(path), "args.json")):
            hint = "; a run stopped before its first save has to be started anew"
        raise InputError(f"{path!r}: no such file{hint}{alike(path, 'runs/*/latest.pt', 'pretrained/*.pt')}")
    version = [int(x) for x in torch.__version__.split("+")[0].split(".")[:2]]
    if version < [2, 6] and not own and os.environ.get("AMP_TRUST_CHECKPOINTS") != "1":
        danger = "with this old PyTorch a foreign checkpoint can execute code (CVE-2025-32434)"
        raise InputError(f"{path}: {danger}; if it is yours, set AMP_TRUST_CHECKPOINTS=1")
    written = os.stat(path).st_mtime_ns
    with reading(path, "a checkpoint of this script"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what it refuses
        check_archive(path, ("torch._utils _rebuild_tensor_v2", "collections OrderedDict"))
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        for key, kind in dict(kind="", character={}, args={}, samples=0, metrics={}, shared={}).items():
            check_kind(key, kind, checkpoint[key], inside=False)
        fault = unsound({key: checkpoint.get(key) for key in ("shared", "processes", "progress", "rates")})
    if checkpoint["kind"] != name:
        script = f"{checkpoint['kind']}.py"
        use = f"; python {script} {f'--resume {os.path.dirname(path)}' if own else f'--evaluate --checkpoint {path}'}"
        use *= os.path.isfile(os.path.join(HERE, script))  # else a stranger's word
        raise InputError(f"{path}: a checkpoint of {checkpoint['kind']}, and this is {name}{use}")
    if fault:
        raise InputError(f"{path}: {fault} holds NaN, infinities or a variance, rate or count below 0")
    return {**checkpoint, "written": written}


def fit_checkpoint(checkpoint: Dict[str, Any], motions: MotionLib, objects: Dict[str, Any]) -> None:
    """Put what all processes share into objects, by name; say which data is another. Raises InputError if none fits."""
    mine = identity(motions)
    for key, names in mine["character"].items():
        if (theirs := checkpoint["character"].get(key)) != names:
            theirs = [x for x in theirs if isinstance(x, str)] if isinstance(theirs, list) else []
            odd = ", ".join(sorted(set(theirs) ^ set(names))[:5]) or "their order"
            raise InputError(f"the checkpoint is not of --character-file {motions.character.path}; {key} differ: {odd}")
    clips = ", ".join(motions.files[:2]) + ", ..." * (len(motions.files) > 2)
    for (key, x), now in zip(mine["data"].items(), (clips, motions.character.path)):
        if isinstance(checkpoint.get("data"), dict) and checkpoint["data"].get(key, x) != x:
            files = f"{now} now, {checkpoint['args'].get(f'{key}_file', 'unknown')} then"
            print(plain(f"warning: the {key} data is not what the checkpoint was trained on: {files}"), file=sys.stderr)
    put_back(objects, checkpoint["shared"])


def identity(motions: MotionLib) -> Dict[str, Dict]:
    """What a checkpoint is of: names of bodies and dofs, which have to stay, and hashes of clips and character file."""
    character = motions.character
    clips = (motions.root_position, motions.rotations, motions.weight, motions.fps, motions.loop)
    held = {"motion": b"".join(x.cpu().numpy().tobytes() for x in clips), "character": read_file(find(character.path))}
    data = {key: hashlib.sha256(x).hexdigest() for key, x in held.items()}
    return {"character": {"bodies": character.body_names, "dofs": character.dof_names}, "data": data}


def put_back(objects: Dict[str, Any], states: Dict[str, Any]) -> None:
    """Put states into objects, by name, all or none. Raises InputError if one does not fit."""
    try:
        for name, x in objects.items():
            check = _check_optimizer if isinstance(x, torch.optim.Optimizer) else check_kind
            check(name, x if check is _check_optimizer else get_state(x), states[name])
        for name, x in objects.items():
            set_state(x, states[name])
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the checkpoint does not fit these options: {' '.join(str(error).split())}") from error
