"""The heading task with several seeds, or with several style weights: a row of a table each, and raw figures.

    python benchmark/heading.py [--seeds 1 2 3] [--style-weights [0 0.25 ...]] [--at-a-time 2] [--folder runs/heading]
                                [--out FILE.jsonl] [option of amp_ppo_heading.py ...]
    python benchmark/heading.py --table [--out FILE.jsonl]      # the table in Markdown, from the file

Each run has one core and one thread. What its training ends with is evaluated on other episodes: under commands that
are drawn as in the training, and on the figure-eight. Each finished run adds one JSON object to the file: command,
commit, machine, both evaluations' figures, the curves of those of the training. What is in the file is not run again.
Ctrl-C lets the trainings save; the same command goes on with them.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

from table import (
    OTHER_EPISODES,
    last_figures,
    parser_of,
    print_stamps,
    read_records,
    record_of,
    run_all,
    saved_run,
    spread,
    start,
    train,
)
from train import ROOT

SCRIPT = "amp_ppo_heading.py"
WEIGHTS = ["0", "0.25", "0.5", "1", "2", "4"]
COMMANDS = os.path.join(ROOT, "motions", "figure_eight.csv")
# columns: title, figure, digits after the point; a figure that an evaluation does not have is left out
DRAWN = (("return", "task_return", 3), ("course error [degrees]", "course_error_deg", 1))
DRAWN += (("speed error [m/s]", "speed_error_m_s", 2), ("lag [s]", "lag_s", 2), ("pose error [m]", "pose_error_m", 3))
DRAWN += (("clearance [m]", "swing_clearance_m", 3), ("clips' clearance", "clip_swing_clearance_m", 3))
DRAWN += (("cadence [Hz]", "cadence_hz", 2), ("clips' cadence", "clip_cadence_hz", 2))
DRAWN += (("foot slide [m]", "foot_slide_m", 3), ("clips' slide", "clip_foot_slide_m", 3))
EIGHT = (("8: course error", "course_error_deg", 1), ("8: speed [m/s]", "path_speed_m_s", 2))
EIGHT += (("8: path error [m]", "path_error_m", 2),)


class Row(NamedTuple):
    """A run: its seed, and the options besides."""

    seed: int
    extra: List[str]

    def options(self) -> List[str]:
        """All that is typed."""
        return [*self.extra, "--seed", str(self.seed)]

    def command(self) -> str:
        return " ".join(["OMP_NUM_THREADS=1 taskset -c 0 python", SCRIPT, *self.options()])

    def home(self, folder: str) -> str:
        """The folder that it has for itself."""
        name = "_".join(["heading", str(self.seed), *[word.lstrip("-") for word in self.extra]])
        return os.path.join(folder, re.sub(r"[^\w.-]+", "_", name))


def measure(row: Row, own: argparse.Namespace, core: int) -> Iterator[subprocess.Popen]:
    """Train, or go on, and evaluate twice; yields each process that is to be waited for. Adds the record to own.out."""
    home = os.path.abspath(row.home(own.folder))
    yield from train(SCRIPT, row, home, core)
    last = os.path.join(os.path.relpath(saved_run(home), home), "latest.pt")
    evaluate = ["--evaluate", "--checkpoint", last, "--seed", str(row.seed + OTHER_EPISODES)]
    yield start(SCRIPT, evaluate, home, core, "evaluate")
    yield start(SCRIPT, [*evaluate, "--eval-commands", COMMANDS], home, core, "figure_eight")
    record = {**record_of(row, home), "evaluation": " ".join(["python", SCRIPT, *evaluate])}
    record.update(metrics=last_figures(home, "evaluate"), figure_eight=last_figures(home, "figure_eight"))
    with open(own.out, "a") as file:
        file.write(json.dumps(record) + "\n")
    print(f"- {' '.join(row.options())}: {json.dumps(record['metrics'])}", flush=True)


def falls(evaluations: List[Dict[str, Any]]) -> str:
    """How many of the episodes of each evaluation, one a seed, have ended in a fall."""
    numbers = ", ".join(str(round(x["fall_rate"] * x["episodes"])) for x in evaluations)
    return f"{numbers} of {evaluations[0]['episodes']}"


def cells(evaluations: List[Dict[str, Any]], columns: Tuple) -> List[str]:
    """Mean and spread of each column's figure, empty if an evaluation does not have it."""
    have = [all(name in x for x in evaluations) for _, name, _ in columns]
    return [spread([x[c[1]] for x in evaluations], c[2]) if ok else "" for c, ok in zip(columns, have)]


def print_table(records: List[Dict[str, Any]]) -> None:
    """Markdown: a row for each set of options, over its seeds, and what it was measured on."""
    groups: Dict[str, Dict[int, Dict]] = {}
    for record in records:
        groups.setdefault(" ".join(record["options"]), {})[record["seed"]] = record
    titles = ["options", "seeds", "samples", "minutes", "falls", *[c[0] for c in DRAWN], "8: falls"]
    titles += [c[0] for c in EIGHT]
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for options, seeds in groups.items():
        rows = [seeds[seed] for seed in sorted(seeds)]
        both = [[row[name] for row in rows] for name in ("metrics", "figure_eight")]
        line = [options, ", ".join(map(str, sorted(seeds))), f"{rows[0]['samples'] / 1e6:.1f} M"]
        line += [spread([row["minutes"] for row in rows], 0), falls(both[0]), *cells(both[0], DRAWN)]
        line += [falls(both[1]), *cells(both[1], EIGHT)]
        print(f"| {' | '.join(line)} |")
    print_stamps(records)


def main() -> None:
    parser = parser_of(__doc__, "heading")
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", help="default: 1 2 3, and 1 with --style-weights")
    add("--style-weights", nargs="*", metavar="WEIGHT", help="a run with each of these; none: 0 0.25 0.5 1 2 4")
    own, extra = parser.parse_known_args()
    if not own.table:
        weights = own.style_weights
        variants = [[]] if weights is None else [["--style-weight", weight] for weight in weights or WEIGHTS]
        seeds = own.seeds or ([1, 2, 3] if weights is None else [1])
        code = run_all([Row(seed, [*variant, *extra]) for seed in seeds for variant in variants], own, measure)
        if code:
            sys.exit(code)
    print_table(read_records(own.out))


if __name__ == "__main__":
    main()
