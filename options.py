"""Options and their types: whether a value fits one, and what is wrong with a command line, in a line."""

import dataclasses
import difflib
import re
from typing import Any, Callable, List, Literal, Optional, Union

import tyro
from typing_extensions import Annotated, get_args, get_origin

WORDS = {int: "whole number", float: "number", str: "word"}


def by_device(kind: Any, cpu: Any, cuda: Any) -> Any:
    """Type of an option (int, or two of them) whose default depends on the device; in the class its default is None."""
    shown = [str(x).strip("()").replace(",", "") for x in (cpu, cuda)]
    hint = f"(default: {shown[0]}, with physics on a GPU {shown[1]})"
    metavar = "INT INT" if isinstance(cpu, tuple) else "INT"
    return Annotated[Optional[kind], tyro.conf.arg(metavar=metavar, help_behavior_hint=hint), (cpu, cuda)]


def is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of the type of an option."""
    parts = get_args(kind)
    if get_origin(kind) in (Annotated, Union):
        return any(is_a(value, part) for part in parts)
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in parts
    if get_origin(kind) is tuple:
        parts = parts[:1] * len(value) if parts[-1] is Ellipsis and isinstance(value, tuple) else parts
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(is_a, value, parts))
    alike = type(value) is kind or (kind is float and type(value) is int)
    return alike and (type(value) is not int or abs(value) < 2**63)


def wanted(kind: Any) -> str:
    """What an option of a type takes: "a number", "one of speed, none"."""
    parts = get_args(kind)
    if get_origin(kind) in (Annotated, Union):
        return wanted(parts[0])  # of Optional[X], X
    if get_origin(kind) is Literal:
        return f"one of {', '.join(parts)}"
    if get_origin(kind) is tuple:
        return f"{'' if parts[-1] is Ellipsis else len(parts)} {WORDS[parts[0]]}s".strip()
    return "no value" if kind is bool else f"a {WORDS[kind]}"


def complaint(args: Any, words: List[str], parse: Callable) -> str:
    """What is wrong with a command line that parse(words) refuses with SystemExit; args: dataclass of all options."""
    kinds = {f"--{field.name.replace('_', '-')}": field.type for field in dataclasses.fields(args)}
    kinds.update({name.replace("--", "--no-", 1): bool for name, kind in kinds.items() if kind is bool})
    parts: List[List[str]] = []  # an option and its values each
    for word in words:
        if not parts or re.match("--|-[A-Za-z]", word):
            parts.append([])
        parts[-1].append(word)
    for part in parts:
        name = part[0].split("=")[0].replace("_", "-")
        if name not in kinds:
            near = difflib.get_close_matches(name.strip("-"), [x.strip("-") for x in kinds], 1)  # dashes are alike
            near = [f"Perhaps you meant --{x}." for x in near]
            option = part[0].startswith("-")
            what = f"{part[0]}: there is no such option." if option else f"unexpected argument {part[0]}."
            return " ".join([what, *near, "--help shows all."])
        try:
            parse(part)
        except SystemExit:
            given, takes = " ".join(part), wanted(kinds[name])
            full = re.sub(r"(?<=[ =])\d+(\.\d+)?[eE]\d\d?(?= |$)", lambda found: f"{float(found[0]):.0f}", given)
            return f"{given}: it takes {takes}" + f"; type {full}" * ("whole" in takes and full != given)
    return f"{' '.join(words)}: these options do not go together; --help shows all"
