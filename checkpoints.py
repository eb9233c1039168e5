"""States of objects and checkpoint files: what the future of a training depends on, and nothing that executes code.

A script uses get_state, set_state and fit_checkpoint. Nothing here knows what is trained, or how.
"""

import math
import os
import warnings
import zipfile
from typing import Any, Dict, List

import torch
from torch import Tensor

from files import InputError, reading
from motion_lib import Character


def get_state(x: Any) -> Any:
    """A copy of what the future of x depends on: tensors, generators, what has a state_dict, and lists of these; of an
    object whose state_dict this function is, whatever attributes are of such a kind."""
    if isinstance(x, Tensor):
        return x.clone()  # a view would be saved with all that it is a view of
    if isinstance(x, torch.Generator):
        return x.get_state()
    if isinstance(x, list):
        return [get_state(y) for y in x]
    if type(x).state_dict is not get_state:
        return x.state_dict()
    return {name: get_state(y) for name, y in vars(x).items() if _has_state(y)}


def _has_state(x: Any) -> bool:
    listed = isinstance(x, list) and len(x) > 0 and all(_has_state(y) for y in x)
    return listed or isinstance(x, (Tensor, torch.Generator)) or hasattr(x, "state_dict")


def set_state(x: Any, state: Any) -> None:
    """Put get_state's copy back, in place. Raises ValueError, KeyError, RuntimeError or the like if it does not fit."""
    if isinstance(x, Tensor):
        if x.shape != state.shape:
            raise ValueError(f"a tensor of shape {tuple(state.shape)} there is {tuple(x.shape)} here")
        x.copy_(state)
    elif isinstance(x, torch.Generator):
        x.set_state(state)
    elif isinstance(x, list):
        for y, part in zip(x, state):
            set_state(y, part)
    elif type(x).state_dict is not get_state:
        x.load_state_dict(state)
    else:
        if state.keys() != get_state(x).keys():
            raise KeyError(", ".join(sorted(state.keys() ^ get_state(x).keys())))
        for name, part in state.items():
            set_state(getattr(x, name), part)


class Unsound(RuntimeError):
    """A training has come to numbers that are not finite, and ends."""


def unsound(state: Any, name: str = "") -> str:
    """The name of the first tensor or number in a state that is not finite, or of a variance below 0, or ""."""
    if isinstance(state, dict):
        parts = state.items()
    elif isinstance(state, (list, tuple)):
        parts = enumerate(state)
    else:
        low = -math.inf if not name.endswith("var") else 0.0
        x = torch.as_tensor(state) if isinstance(state, (Tensor, int, float)) else torch.zeros(())
        return "" if bool((x.isfinite() & (x >= low)).all()) else name
    for key, part in parts:
        found = unsound(part, f"{name}.{key}".strip("."))
        if found:
            return found
    return ""


def _check_kind(name: str, own: Any, state: Any) -> None:
    """Raise ValueError if a saved state is not like an object's own: types, types and shapes of tensors, keys."""
    alike = [x for x in ((int, float), (list, tuple), dict) if isinstance(own, x)] or [type(own)]
    if own is not None and not isinstance(state, alike[0]):
        raise ValueError(f"{name} is a {type(state).__name__} there and a {type(own).__name__} here")
    if isinstance(own, Tensor) and (own.dtype != state.dtype or own.shape != state.shape):
        there, here = ((x.dtype, tuple(x.shape)) for x in (state, own))
        raise ValueError(f"{name} is {there[0]} {there[1]} there and {here[0]} {here[1]} here")
    if isinstance(own, dict):
        if own.keys() != state.keys():
            raise ValueError(f"{name}: {', '.join(map(str, own.keys() ^ state.keys()))} on one side only")
        for key in own:
            _check_kind(f"{name}.{key}", own[key], state[key])
    if isinstance(own, (list, tuple)):
        if len(own) != len(state):
            raise ValueError(f"{name} has {len(state)} parts there and {len(own)} here")
        for key, (x, y) in enumerate(zip(own, state)):
            _check_kind(f"{name}.{key}", x, y)


def _check_optimizer(name: str, x: torch.optim.Optimizer, state: Any) -> None:
    """Raise ValueError if the moments in a saved state are not those of an optimizer's parameters."""
    _check_kind(name, x.state_dict()["param_groups"], state["param_groups"])
    parameters = [parameter for group in x.param_groups for parameter in group["params"]]
    for index, moments in state["state"].items():
        own = {"step": torch.zeros(()), "exp_avg": parameters[index], "exp_avg_sq": parameters[index]}
        _check_kind(f"{name}.{index}", {key: y.detach().cpu() for key, y in own.items()}, moments)


def load_checkpoint(path: str, name: str) -> Dict[str, Any]:
    """Read a checkpoint of the kind `name`, or a run folder's latest.pt, without executing anything in it.

    Raises InputError."""
    path = os.path.join(path, "latest.pt") if os.path.isdir(path) else path
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file; a run that was stopped before its first save has to be started anew")
    if torch.__version__ < "2.6" and "AMP_TRUST_CHECKPOINTS" not in os.environ:
        danger = "with this old PyTorch a foreign checkpoint can execute code (CVE-2025-32434)"
        raise InputError(f"{path}: {danger}; if it is yours, set AMP_TRUST_CHECKPOINTS=1")
    with reading(path, "a checkpoint of this script"):
        with zipfile.ZipFile(path) as archive:  # torch.save's form; an older one would allocate what it is told to
            if sum(member.file_size for member in archive.infolist()) > 2 * os.path.getsize(path):
                raise InputError(f"{path}: unpacks to far more than its size; not a checkpoint of this script")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign pickles before it refuses them
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        kinds = {"kind": "", "character": {}, "args": {}, "samples": 0, "metrics": {}, "shared": {}}
        found = {key: checkpoint[key] for key in kinds}
        for key, own in kinds.items():
            if not isinstance(found[key], type(own)):
                raise ValueError(f"{key} is a {type(found[key]).__name__}")
        fault = unsound({key: checkpoint.get(key) for key in ("shared", "processes")})
    if found["kind"] != name:
        raise InputError(f"{path}: a checkpoint of {found['kind']}; this script reads those of {name}")
    if fault:
        raise InputError(f"{path}: {fault} holds NaN, infinities or a negative variance; take another checkpoint")
    return checkpoint


def fit_checkpoint(checkpoint: Dict[str, Any], character: Character, objects: Dict[str, Any]) -> None:
    """Put what all processes share into objects, by name. Raises InputError if it is of another character or size."""
    for key, mine in names_of(character).items():
        theirs = checkpoint["character"].get(key, [])
        if theirs != mine:
            odd = ", ".join(sorted(set(map(str, theirs)) ^ set(mine))[:5]) or "their order"
            raise InputError(f"the checkpoint is of another character than {character.path}; {key} differ: {odd}")
    put_back(objects, checkpoint["shared"])


def names_of(character: Character) -> Dict[str, List[str]]:
    """What has to be the same in a checkpoint."""
    return {"bodies": character.body_names, "dofs": character.dof_names}


def put_back(objects: Dict[str, Any], states: Dict[str, Any]) -> None:
    """Put states into objects, by name, all or none. Raises InputError if one does not fit."""
    try:
        for name, x in objects.items():
            check = _check_optimizer if isinstance(x, torch.optim.Optimizer) else _check_kind
            check(name, x if check is _check_optimizer else get_state(x), states[name])
        for name, x in objects.items():
            set_state(x, states[name])
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"the checkpoint does not fit these options: {' '.join(str(error).split())}") from error
