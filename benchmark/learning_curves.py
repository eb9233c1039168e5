"""Draw how the clips are learnt: the pose error (headings aligned) of each evaluation of a training, a line for each
seed.

    python benchmark/learning_curves.py [docs/curves.png] [--runs benchmark/table.jsonl] [--clips walk run ...]

The runs are those of benchmark/table.py with no further options. These evaluations choose the best policy; the table's
figures are of other episodes. Fallen time counts as 1 m, so that a line falls when the character stays on its feet.
"""

import argparse
import os
from collections import defaultdict

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from table import ROOT, SAMPLES, read_records

CLIPS = ("walk", "run", "jump", "cartwheel", "roll", "spinkick")  # upper row
CLIPS += ("dance_a", "crawl", "dance_b", "backflip", "spin")
COLUMNS = 6
TICKS = (0.01, 0.03, 0.1, 0.3, 1)  # of the pose error [m]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", default=os.path.join(ROOT, "docs", "curves.png"))
    parser.add_argument("--runs", default=os.path.join(ROOT, "benchmark", "table.jsonl"), help="raw figures")
    parser.add_argument("--clips", nargs="+", choices=list(SAMPLES), default=list(CLIPS), help="one picture each")
    args = parser.parse_args()
    runs = defaultdict(dict)  # clip -> seed -> curves; of a run that was made again with more samples, the later one
    for record in read_records(args.runs):
        if not record["options"]:
            runs[record["clip"]][record["seed"]] = record["curves"]
    rows = -(-len(args.clips) // COLUMNS)
    figure = Figure(figsize=(9.6, 1.8 * rows), layout="constrained")
    every = list(figure.subplots(rows, COLUMNS, sharey=True, squeeze=False).flat)
    for axes in every[len(args.clips) :]:
        axes.remove()
    for axes, clip in zip(every, args.clips):
        for curve in runs[clip].values():
            samples = [step / 1e6 for step in curve["samples"]]
            axes.plot(samples, curve["pose_error_m"], color="tab:blue", linewidth=1, alpha=0.8)
        axes.set(yscale="log", ylim=(0.008, 1.2), xlim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_title(clip, fontsize="medium")
        axes.set_yticks(TICKS, [f"{x:g}" for x in TICKS])
        axes.grid(alpha=0.3)
    figure.supxlabel("samples [millions]", fontsize="medium")
    figure.supylabel("pose error, headings aligned [m]", fontsize="medium")
    figure.savefig(args.out, dpi=160)


if __name__ == "__main__":
    main()
