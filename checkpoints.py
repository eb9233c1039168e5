"""States of objects and checkpoint files: what the future of a training depends on, and nothing that executes code.

A script uses get_state, set_state and fit_checkpoint. Nothing here knows what is trained, or how.
"""

import math
import os
import warnings
from typing import Any, Dict, List, Optional, Set

import torch
from torch import Tensor

from files import InputError, check_archive, reading
from motion_lib import Character


def get_state(x: Any) -> Any:
    """A copy of what the future of x depends on: tensors, generators, what has a state_dict, lists, tuples and dicts of
    these; of an object whose state_dict this function is, whatever attributes are of such a kind."""
    if isinstance(x, Tensor):
        return x.clone()  # a view would be saved with all that it is a view of
    if isinstance(x, torch.Generator):
        return x.get_state()
    if isinstance(x, (list, tuple)):
        return [get_state(y) if _has_state(y) else None for y in x]
    if isinstance(x, dict):
        return {name: get_state(y) for name, y in x.items() if _has_state(y)}
    if type(x).state_dict is not get_state:
        return x.state_dict()
    return {name: get_state(y) for name, y in vars(x).items() if _has_state(y)}


def _has_state(x: Any) -> bool:
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, (list, tuple)) else ()
    return any(_has_state(y) for y in parts) or isinstance(x, (Tensor, torch.Generator)) or hasattr(x, "state_dict")


def set_state(x: Any, state: Any) -> None:
    """Put get_state's copy back, in place. Raises ValueError, KeyError, RuntimeError or the like if it does not fit."""
    if isinstance(x, Tensor):
        if x.shape != state.shape:
            raise ValueError(f"a tensor of shape {tuple(state.shape)} there is {tuple(x.shape)} here")
        x.copy_(state)
    elif isinstance(x, torch.Generator):
        x.set_state(state)
    elif isinstance(x, (list, tuple, dict)):
        for key in range(len(x)) if not isinstance(x, dict) else state:
            if _has_state(x[key]):
                set_state(x[key], state[key])
    elif isinstance(x, torch.optim.Optimizer):  # what it does is the script's, but for the rate that it has come to
        groups = zip(x.state_dict()["param_groups"], state["param_groups"])
        x.load_state_dict({**state, "param_groups": [{**mine, "lr": theirs["lr"]} for mine, theirs in groups]})
    elif type(x).state_dict is not get_state:
        x.load_state_dict(state)
    else:
        if state.keys() != get_state(x).keys():
            raise KeyError(", ".join(sorted(state.keys() ^ get_state(x).keys())))
        for name, part in state.items():
            set_state(getattr(x, name), part)


class Unsound(RuntimeError):
    """A training has come to numbers that are not finite, and ends."""


def unsound(state: Any, name: str = "", seen: Optional[Set[int]] = None) -> str:
    """The name of the first tensor or number in a state that is not finite, is below 0 where none may be, or claims
    more than its memory holds, or ""."""
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
    alike = [x for x in (bool, (int, float), (list, tuple), dict) if isinstance(own, x)] or [type(own)]
    if not isinstance(state, alike[0]) or (isinstance(state, bool) and alike[0] is not bool):
        raise ValueError(f"{name} is a {type(state).__name__} there and a {type(own).__name__} here")
    if isinstance(own, Tensor) and (own.dtype != state.dtype or own.shape != state.shape):
        there, here = ((x.dtype, tuple(x.shape)) for x in (state, own))
        raise ValueError(f"{name} is {there[0]} {there[1]} there and {here[0]} {here[1]} here")
    if isinstance(own, dict) and inside:
        if own.keys() != state.keys():
            raise ValueError(f"{name}: {', '.join(map(str, own.keys() ^ state.keys()))} on one side only")
        for key in own:
            check_kind(f"{name}.{key}", own[key], state[key])
    if isinstance(own, (list, tuple)):
        if len(own) != len(state):
            raise ValueError(f"{name} has {len(state)} parts there and {len(own)} here")
        for key, (x, y) in enumerate(zip(own, state)):
            check_kind(f"{name}.{key}", x, y)


def _check_optimizer(name: str, x: torch.optim.Optimizer, state: Any) -> None:
    """Raise ValueError if rates and moments in a saved state are not those of an optimizer's parameters."""
    check_kind(f"{name}.lr", *[[group["lr"] for group in y["param_groups"]] for y in (x.state_dict(), state)])
    own = enumerate(y.detach().cpu() for group in x.param_groups for y in group["params"])
    check_kind(name, {i: dict(step=torch.zeros(()), exp_avg=y, exp_avg_sq=y) for i, y in own}, state["state"])


def load_checkpoint(path: str, name: str) -> Dict[str, Any]:
    """Read a checkpoint of the kind `name`, or that of a folder of a run of one's own, without executing anything.

    Raises InputError."""
    own = os.path.isdir(path)
    path = os.path.join(path, "latest.pt") if own else path
    if not os.path.isfile(path):
        raise InputError(f"{path!r}: no such file; a run stopped before its first save has to be started anew")
    version = [int(x) for x in torch.__version__.split("+")[0].split(".")[:2]]
    if version < [2, 6] and not own and "AMP_TRUST_CHECKPOINTS" not in os.environ:
        danger = "with this old PyTorch a foreign checkpoint can execute code (CVE-2025-32434)"
        raise InputError(f"{path}: {danger}; if it is yours, set AMP_TRUST_CHECKPOINTS=1")
    written = os.stat(path).st_mtime_ns
    with reading(path, "a checkpoint of this script"):
        check_archive(path, ("torch._utils _rebuild_tensor_v2", "collections OrderedDict"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what it refuses
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            kinds = {"kind": "", "character": {}, "args": {}, "samples": 0, "metrics": {}, "shared": {}}
            for key, kind in kinds.items():
                check_kind(key, kind, checkpoint[key], inside=False)
        fault = unsound({key: checkpoint.get(key) for key in ("shared", "processes", "progress", "rates")})
    if checkpoint["kind"] != name:
        raise InputError(f"{path}: a checkpoint of {checkpoint['kind']}; this script reads those of {name}")
    if fault:
        raise InputError(f"{path}: {fault} holds NaN, infinities or a variance, rate or count below 0")
    return {**checkpoint, "written": written}


def fit_checkpoint(checkpoint: Dict[str, Any], character: Character, objects: Dict[str, Any]) -> None:
    """Put what all processes share into objects, by name. Raises InputError if it is of another character or size."""
    for key, mine in names_of(character).items():
        theirs = checkpoint["character"].get(key)
        if theirs != mine:
            theirs = [x for x in theirs if isinstance(x, str)] if isinstance(theirs, list) else []
            odd = ", ".join(sorted(set(theirs) ^ set(mine))[:5]) or "their order"
            raise InputError(f"the checkpoint is of another character than {character.path}; {key} differ: {odd}")
    put_back(objects, checkpoint["shared"])


def names_of(character: Character) -> Dict[str, List[str]]:
    """What has to be the same in a checkpoint."""
    return {"bodies": character.body_names, "dofs": character.dof_names}


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
