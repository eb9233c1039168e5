"""motions/tools.py: what a tool's command line is refused with."""

import pytest

from files import InputError
from motions.tools import one_line_parser


@pytest.fixture
def parser():
    made = one_line_parser(prog="tool")
    made.add_argument("clip")
    made.add_argument("--layout", choices=("side", "pinned"), help="not --lay")
    made.add_argument("--port", type=int)
    made.add_argument("--seconds", type=float)
    made.add_argument("--size", type=int, nargs=2)
    return made


@pytest.mark.parametrize(
    "words, fault",
    [
        ("a --layuot=side", "--layuot: there is no such option. Perhaps you meant --layout."),
        ("a --layou side", "--layou: there is no such option. Perhaps you meant --layout."),
        ("a --xyz 3", "--xyz: there is no such option."),
        ("a b c", "b: one word too many."),
        ("a --port x", "--port x: it takes a whole number."),
        ("a --seconds 1s", "--seconds 1s: it takes a number."),
        ("a --port", "--port: it takes one value."),
        ("a --size 3", "--size: it takes 2 values."),
        ("", "the following arguments are required: clip."),
    ],
)
def test_a_bad_command_line_is_one_line_that_helps(parser, words, fault, capsys):
    with pytest.raises(InputError) as error:
        parser.parse_args(words.split())
    assert str(error.value) == f"{fault} --help shows all."
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("word, more", [("pined", " Perhaps you meant pinned."), ("x y", "")])
def test_a_wrong_choice_is_one_line_that_names_the_others(parser, word, more):
    with pytest.raises(InputError) as error:
        parser.parse_args(["a", "--layout", word])
    assert str(error.value) == f"--layout {word}: it takes one of side, pinned.{more}"


def test_a_good_command_line_is_read(parser):
    args, others = parser.parse_known_args("a --layout side --motion-file b".split())
    assert (args.clip, args.layout, others) == ("a", "side", ["--motion-file", "b"])
