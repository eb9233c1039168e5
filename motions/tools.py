"""What the tools in motions/ and deploy/ share: whatever is wrong with a command line, a file or a disk is one line.

Nothing here knows what a tool does.
"""

import argparse
import contextlib
import difflib
import functools
import re
import sys
from typing import Iterator, NoReturn

from files import InputError


def refuse(parser: argparse.ArgumentParser, fault: str) -> NoReturn:
    """Raise InputError for a command line that argparse refuses: what is wrong and what to do, as a training says it.

    fault: argparse's own words."""
    names = re.findall(r"--[a-z][a-z-]*", parser.format_usage())
    choices = re.fullmatch(r"argument (\S+): invalid choice: (.+) \(choose from (.*)\)", fault)
    kind = re.fullmatch(r"argument (\S+): invalid (int|float) value: (\S+)", fault)
    count = re.fullmatch(r"argument (\S+): expected (.*?)(?: arguments?)?", fault)
    unknown = re.fullmatch(r"unrecognized arguments: (\S+).*", fault)
    word, known = "", names
    if choices:
        word, known = choices[2].strip("'"), choices[3].replace("'", "").split(", ")
        fault = f"{choices[1]} {word}: it takes one of {', '.join(known)}"
    elif kind:
        number = "a whole number" if kind[2] == "int" else "a number"
        fault = f"{kind[1]} {kind[3]}: it takes {number}".replace("'", "")
    elif count:
        fault = f"{count[1]}: it takes {count[2]} {'value' if count[2].endswith('one') else 'values'}"
    elif unknown and unknown[1].startswith("-"):
        word = unknown[1].split("=")[0]
        fault = f"{word}: there is no such option"
    elif unknown:
        fault = f"{unknown[1]}: one word too many"
    near = [f" Perhaps you meant {x}." for x in difflib.get_close_matches(word, known, 1) if word]
    raise InputError(f"{fault}.{''.join(near)}{'' if choices else ' --help shows all.'}")


def one_line_parser(**about: object) -> argparse.ArgumentParser:
    """An argparse parser of these arguments whose complaints are InputErrors; its own have up to nine lines.

    It takes no option by a part of its name: the next option may have that part, too."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **about)
    parser.error = functools.partial(refuse, parser)
    return parser


@contextlib.contextmanager
def one_line(packages: str) -> Iterator[None]:
    """A tool's main: what is wrong with its input, or with the disk, ends it with one line and exit code 2.

    packages: requirement files that bring what it imports."""
    try:
        yield
        return
    except ModuleNotFoundError as error:
        fault = f"{error}; pip install -r {packages}"
    except OSError as error:
        path = re.sub(r"\.[0-9a-f]{16}\.tmp$", "", str(error.filename or ""))  # see files.write_file
        fault = f"{path}: {error.strerror}" if path and error.strerror else str(error)
    except InputError as error:
        fault = str(error)
    print(f"error: {fault}", file=sys.stderr)
    sys.exit(2)
