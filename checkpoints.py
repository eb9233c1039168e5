"""States of objects and checkpoint files: what the future of a training depends on, and nothing that executes code.

A script uses get_state, set_state and fit_checkpoint. Nothing here knows what is trained, or how.
"""

import os
import warnings
from typing import Any, Dict, List

import torch
from torch import Tensor

from motion_lib import Character, InputError


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


def load_checkpoint(path: str, name: str) -> Dict[str, Any]:
    """Read a checkpoint of the kind `name` without executing anything in it. Raises InputError."""
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file; a run that was stopped before its first save has to be started anew")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign pickles before it refuses them
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        found = checkpoint["kind"]
        faults = [key for key, x in checkpoint["shared"]["agent"].items() if not bool(x.isfinite().all())]
        dict(checkpoint["args"], **checkpoint["character"])
    except Exception as error:  # whatever the unpickler raises on a file that is not a checkpoint
        raise InputError(f"{path}: cannot be read as a checkpoint of this script ({type(error).__name__})") from error
    if found != name:
        raise InputError(f"{path}: a checkpoint of {found}; this script reads those of {name}")
    if faults:
        raise InputError(f"{path}: {faults[0]} holds NaN or infinities; take an earlier checkpoint")
    return checkpoint


def fit_checkpoint(checkpoint: Dict[str, Any], character: Character, objects: Dict[str, Any]) -> None:
    """Put what all processes share into objects, by name. Raises InputError if it is of another character or size."""
    for key, mine in names_of(character).items():
        theirs = checkpoint["character"].get(key, [])
        if theirs != mine:
            odd = ", ".join(sorted(set(theirs) ^ set(mine))[:5]) or "their order"
            raise InputError(f"the checkpoint is of another character than {character.path}; {key} differ: {odd}")
    put_back(objects, checkpoint["shared"])


def names_of(character: Character) -> Dict[str, List[str]]:
    return {"bodies": character.body_names, "dofs": character.dof_names}


def put_back(objects: Dict[str, Any], states: Dict[str, Any]) -> None:
    for name, x in objects.items():
        try:
            set_state(x, states[name])
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            fault = " ".join(str(error).split())[:200]
            raise InputError(f"the checkpoint does not fit these options, in {name}: {fault}") from error
