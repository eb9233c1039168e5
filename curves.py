"""The curves of a training: means of what is noted in an iteration, and their names.

A script uses Log. Nothing here knows what is trained, or how.
"""

import math
from collections import defaultdict
from typing import Any, Dict, List

import torch
from torch import Tensor

from processes import average

SAME = ("episodes", "fall_bodies")  # in all evaluations of a training
SHOWN = ("eval", "reward", "policy", "disc", "episode")  # groups of curves, in TensorBoard's order


def curve_name(name: str) -> str:
    """The name of a curve group/name in TensorBoard, which sorts by it: 1_eval/name, in the order of SHOWN."""
    group = name.split("/")[0]
    return f"{1 + SHOWN.index(group)}_{name}" if group in SHOWN else name


class Log:
    """Means over the entries of all tensors that were added under a name since the last means(), NaN left out."""

    def __init__(self) -> None:
        self.parts: Dict[str, List[Tensor]] = defaultdict(list)
        self.smooth: Dict[str, float] = {}  # averages of the means over some 200 calls

    def add(self, group: str, **values: Tensor) -> None:
        """Note tensors, of one shape for each name, as group/name."""
        for name, x in values.items():
            self.parts[f"{group}/{name}"].append(x.detach())

    def keep(self, group: str, figures: Dict[str, Any]) -> Dict[str, float]:
        """Figures of now and then, those that are numbers and change, as group/name; they stay among the averages."""
        told = {name: x for name, x in figures.items() if isinstance(x, (int, float)) and name not in SAME}
        named = {f"{group}/{name}": x for name, x in told.items()}
        self.smooth.update(named)
        return named

    def means(self) -> Dict[str, float]:
        """The mean of each name over entries and processes, or NaN: the one transfer from the device."""
        columns = [torch.stack(parts).float() for parts in self.parts.values()]
        table = torch.stack([torch.stack((x.nansum(), (~x.isnan()).sum().float())) for x in columns])  # (names, 2)
        average(table)
        means = {name: total / n if n else math.nan for name, (total, n) in zip(self.parts, table.tolist())}
        self.parts.clear()
        for name, x in means.items():
            if not math.isnan(x):
                before = self.smooth.get(name, x)
                self.smooth[name] = before + (x - before) / 200
        return means
