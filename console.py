"""What stands on the terminal and names a run: words about a training and an evaluation, and the last line, JSON."""

import json
import math
import os
import re
import shlex
import sys
import textwrap
from typing import Any, Dict, List, Tuple

from files import plain
from motion_lib import MotionLib

# options that stand in the name of a run anyhow, or tell no runs apart
NAMED = "exp.name|motion.file|character.file|sim|no.cuda|cuda|track|capture.video|eval.[a-z]*|save.interval"
PAUSES = 10.0, 60.0  # before the first line about a training, where there is no bar, and before each other one [s]
TOLD = dict(tempo=("tempo {}", 2), task_return=("task return {}", 2), course_error_deg=("course {} degrees off", 0))
WRAP = dict(width=79, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def short(x: float, digits: int = 2) -> str:
    """A number in a sentence, .97 for instance, or "-" if there is none."""
    text = f"{x:.{digits}f}" if isinstance(x, (int, float)) and math.isfinite(x) else "-"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def run_name(args: Any, script: str, last: str) -> str:
    """Name of a run's folder, walk__seed-2__20261126-013402: the clip, what was typed, another script, `last`."""
    clip = os.path.splitext(os.path.basename(os.path.normpath(args.motion_file)))[0]
    words = re.sub(rf"--({NAMED})(=[^\0]*|\0[^-\0][^\0]*)?(\0|$)", "", "\0".join(sys.argv[1:]))
    options = re.match(r".{0,40}(?![^-])|.{40}", re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-"))[0]  # whole words
    own = os.path.splitext(os.path.basename(script))[0].replace("amp_ppo_", "")
    parts = (args.exp_name, clip, options, own * (own != "isaacgym"), last)  # the base script's go without it
    return plain("__".join(part for part in parts if part)).replace(os.sep, "_")


def command(*words: str, world: int = 0) -> str:
    """What runs this script with some words, to be typed in a shell; world: processes of torchrun, if it is used."""
    program = f"torchrun --standalone --nproc-per-node={world}" if world else "python"
    return plain(f"{program} {shlex.join([sys.argv[0], *words])}")


def start_lines(args: Any, motions: MotionLib, falls: str, span: Tuple[int, int], where: str, again: str) -> List[str]:
    """What stands on the terminal when a training starts, at most 80 columns wide as far as names allow.
    falls: what counts as one; span: samples from, to; where: device and processes; again: command that goes on."""
    clips = os.path.basename(os.path.normpath(args.motion_file))
    clips += f" ({len(motions.files)} clips)" * (len(motions.files) > 1)
    begun = f", {span[0]:,} done" if span[0] else f", starting from {args.checkpoint}" if args.checkpoint else ""
    lines = [f"{clips}, imitated by {os.path.basename(motions.character.path)}; simulator {args.sim}, {where}"]
    lines += [falls, f"{span[1]:,} samples{begun}, {args.num_envs} characters at a time"]
    lines += ["the run is kept in the folder below; Ctrl-C saves and stops; to go on:"]
    return [*(textwrap.fill(plain(line), **WRAP) for line in lines), again]


def amount(n: int) -> str:
    """A number of samples in few characters: 0, 205k, 1.23M, 2G."""
    large = f"{n / 1e9:.3g}G" if n >= 1e9 else f"{n / 1e6:.3g}M"
    return large if n >= 1e6 else f"{n / 1e3:.0f}k" if n >= 1e4 else str(n)


def progress(done: int, total: int, length: float = math.nan, longest: int = 0, error: float = math.nan) -> str:
    """How far a training is, and what is known of length, longest [steps], error [m]: a bar has 20 of 80 columns."""
    parts = [f"{amount(done)}/{amount(total)}", *[f"up for {short(length, 0)}/{longest} steps"] * math.isfinite(length)]
    parts += [f"error {short(error, 2 if error >= 0.0995 else 3)} m"] * math.isfinite(error)
    text = ", ".join(parts)
    return text if len(text) <= 44 else text.replace(" steps", "")  # 16 are of "99:59:59 left"


def verdict(samples: int, metrics: Dict[str, Any]) -> str:
    """An evaluation of a training in a line, for a file."""
    falls = f"{samples:,} samples, falls {short(100 * metrics.get('fall_rate', math.nan), 0)} %"
    return f"{falls}, error {short(metrics.get('pose_error_m'), 3)} m, speed {short(metrics.get('speed_m_s'))} m/s"


def sentence(args: Any, motions: MotionLib, metrics: Dict[str, Any]) -> str:
    """The figures of an evaluation in a sentence: "32 episodes, no falls, pose error .022 m, speed 1.04 of .97 m/s"."""
    count = metrics.get("episodes", 0)
    falls = round(count * metrics.get("fall_rate", 0.0))
    parts = [f"{count} episode{'s' * (count != 1)}", f"{falls or 'no'} fall{'s' * (falls != 1)}"]
    parts += [f"pose error {short(metrics.get('pose_error_m'), 3)} m"]
    wanted = metrics.get("commanded_speed_m_s", getattr(args, "target_speed", None))
    wanted = motions.statistics()[1] if wanted is None else wanted
    own = metrics.get("path_speed_m_s", metrics.get("speed_m_s"))
    turns = [short(metrics[name]) for name in ("turns_per_cycle", "clip_turns_per_cycle") if name in metrics]
    told = f"turns {' of '.join(turns)} a cycle"  # of a cartwheel, which need not get anywhere
    parts += [f"speed {short(own)} of {short(wanted)} m/s"] if abs(wanted) >= 0.3 else [told] * (len(turns) == 2)
    parts += [text.format(short(metrics[name], digits)) for name, (text, digits) in TOLD.items() if name in metrics]
    advice = "falls count as 1 m a step; most clips take 1 to 10 M: --total-timesteps 3000000"
    return "\n".join([", ".join(parts), *[advice] * (falls > count / 2 and args.total_timesteps < 1_000_000)])


def four_digits(x: Any) -> Any:
    """Figures as JSON has them: with four significant digits, and null for what is not finite."""
    text = json.dumps(x)
    return json.loads(text, parse_float=lambda digits: float(f"{float(digits):.4g}"), parse_constant=lambda name: None)


def tell(args: Any, motions: MotionLib, metrics: Dict[str, Any], folder: str, again: str = "") -> None:
    """Say on stderr how an evaluation went and where it is; on stdout `again`, a command, and as the last line JSON."""
    lines = [textwrap.fill(line, **WRAP) for line in sentence(args, motions, metrics).splitlines()]
    files = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    lines += [plain(f"{args.out} exists; written to {folder}")] * (bool(files) and args.out not in (None, folder))
    lines += [plain(f"{folder}/index.html: the motion; open it in a browser")] * ("index.html" in files)
    others = ", ".join(x for x in files if x != "index.html")
    others += "; no page (AMP_PAGE=no)" * (os.environ.get("AMP_PAGE") == "no")
    lines += [plain(f"{folder}: {others}")] * bool(files)
    lines += ["the same policy on other episodes:"] * bool(again)
    print(*lines, sep="\n", file=sys.stderr, flush=True)
    print(*[again] * bool(again), json.dumps(four_digits(metrics)), sep="\n", flush=True)
