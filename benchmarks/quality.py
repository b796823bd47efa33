"""How good are the detectors that come with the package? python benchmarks/quality.py [--data FOLDER]

Runs of `inctrl-lite benchmark`, each of which goes on where it was: the tiny CLIP on the unseen drawn
worlds; its tower before training, for what needs no text; and with --data (folders of real images in
MVTec's layout) the tiny CLIP and the photo detector on real images. Copies them to
benchmarks/results/{embedded,untrained,real,photo}/ and writes benchmarks/results/quality.md: what is
compared with what, who is better where, and what training adds. The same numbers go into README.md and into
the photo detector's card. `--only` without a name writes the texts from the recorded runs alone.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib
import pandas as pd
from record import RESULTS, gains, keep, with_interval

from inctrl_lite import load_backbone
from inctrl_lite.backbones import Backbone
from inctrl_lite.benchmark import embedded, real, run_benchmark
from inctrl_lite.benchmark_report import MEAN, MINE, STORY, best_training_free, markdown, verdict
from inctrl_lite.files import write_text
from inctrl_lite.report import Table
from inctrl_lite.tiny.pretrain import Pretraining, Recipe

ROOT = Path(__file__).resolve().parents[1]
SHOTS = (1, 2, 4, 8)
TITLES = {
    "photo": "Photo detector on real images",
    "real": "Tiny CLIP on real images",
    "embedded": "Tiny CLIP on unseen drawn worlds",
}


def untrained(folder: Path) -> Backbone:
    """The tiny tower before its first training step: random, but for the whitened patch embedding."""
    Pretraining(folder, Recipe(triplets=300, held_out=0)).export(folder / "weights")
    backbone = load_backbone(f"local-dir:{folder / 'weights'}")
    backbone.name = "untrained tower"
    backbone.text_encoder = None  # it has read nothing
    return backbone


def story(summary: pd.DataFrame) -> Table:
    """Mean AUROC over the data sets by K: the four rows of every comparison, raw pixels, the best rival."""
    mean = summary[summary["dataset"] == MEAN].set_index(["method", "shots"])
    shots = sorted(summary["shots"].unique().tolist())
    rows = []
    for method in ("raw pixels", *STORY):
        if method in mean.index.get_level_values(0):
            cells = [mean.loc[(method, k)] for k in shots]
            rows.append([method, *(with_interval(c.auroc, c.low, c.high) for c in cells)])
    best = {k: best_training_free(summary, k)[0] for k in shots}
    if set(best.values()) - set(STORY):
        cells = (f"{mean.loc[(name, k), 'auroc']:.3f} {name}" for k, name in best.items())
        rows.append(["best training-free method, chosen afterwards", *cells])
    return Table(["mean AUROC (95 % interval)", *(f"K = {k}" for k in shots)], rows)


def training(summary: pd.DataFrame) -> Table:
    """What training adds: InCTRL-lite minus its untrained self, and minus the best training-free method."""
    mine = summary[(summary["method"] == MINE) & (summary["dataset"] == MEAN)]
    rows = []
    for row in mine.sort_values("shots").itertuples():
        added = with_interval(row.trained, row.trained_low, row.trained_high, "+")
        gain = with_interval(row.gain, row.gain_low, row.gain_high, "+")
        rows.append([row.shots, added, verdict(row.trained_low, row.trained_high), row.rival, gain])
    head = ["K", f"{MINE} minus untrained", "trained is", "best training-free method", f"{MINE} minus it"]
    return Table(head, rows)


def by_dataset(summary: pd.DataFrame) -> Table:
    """AUROC of the four rows and of raw pixels on every data set at K = 4."""
    part = summary[summary["shots"] == 4].set_index(["dataset", "method"])["auroc"]
    methods = [m for m in ("raw pixels", *STORY) if m in part.index.get_level_values(1)]
    rows = [
        [dataset, *(f"{part.get((dataset, m), float('nan')):.3f}" for m in methods)]
        for dataset in part.index.unique(0)
    ]
    return Table(["data set, K = 4", *methods], rows)


def verdict_sentences(summary: pd.DataFrame) -> list[str]:
    """What the photo run says, in plain sentences."""
    mean = summary[summary["dataset"] == MEAN].set_index(["method", "shots"])
    shots = sorted(summary["shots"].unique().tolist())
    mine, plain, raw, untrained = (
        mean.loc[(method, 4)] for method in (MINE, "patch max", "raw pixels", f"{MINE}, untrained")
    )
    added = mean.loc[[(MINE, k) for k in shots], ["trained", "trained_low", "trained_high"]].to_numpy()
    words = {"better": "better than", "worse": "worse than"}
    compared = words.get(verdict(mine.gain_low, mine.gain_high), "not clearly different from")
    return [
        f"On {summary['dataset'].nunique() - 1} small sets of real images, with K = 4 normal images, the "
        f"photo detector has a mean AUROC of {mine.auroc:.3f} "
        f"(95 % interval {mine.low:.3f} to {mine.high:.3f}). Raw pixels have {raw.auroc:.3f}; "
        "patch max, for which nothing is learned on the same network, has "
        f"{plain.auroc:.3f}.",
        f"The detector is {compared} the best training-free method on the same network, {mine.rival}: "
        f"{with_interval(mine.gain, mine.gain_low, mine.gain_high, '+')}. "
        f"Without its learned prior, it has {untrained.auroc:.3f}.",
        f"Against the same head without its prior, training on drawings changes AUROC by "
        f"{gains(added, shots)}.",
    ]


def tables() -> str:
    """The verdict and the tables of all runs that are recorded, as Markdown."""
    text = [" ".join(verdict_sentences(read("photo")))]
    for name, title in TITLES.items():
        if (RESULTS / name / "summary.csv").exists():
            text += [f"## {title}", *run_tables(read(name))]
    return "\n\n".join(text) + "\n"


def run_tables(summary: pd.DataFrame) -> list[str]:
    """The tables of one run."""
    found = [("Mean over the data sets", story(summary))]
    if "trained" in summary:
        found.append(("What training adds", training(summary)))
    found.append(("Data set by data set", by_dataset(summary)))
    return [markdown(*table) for table in found]


def read(name: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / name / "summary.csv")


def blocks() -> dict[Path, dict[str, str]]:
    """What stands between marks in texts: file -> mark -> text. tests/test_numbers.py holds files to it."""
    sentences = verdict_sentences(read("photo"))
    photo = [table.replace("### ", "**", 1).replace("\n", "**\n", 1) for table in run_tables(read("photo"))]
    return {
        ROOT / "README.md": {
            "claim": " ".join(sentences[:2]),
            "results": "\n\n".join([" ".join(sentences), *photo]),
        },
        ROOT / "inctrl_lite" / "photo" / "MODEL_CARD.md": {
            "results": "\n\n".join([" ".join(sentences), *photo])
        },
        ROOT / "book" / "landing.md": {"claim": " ".join(sentences[:2])},
    }


def fill(text: str, marks: dict[str, str]) -> str:
    """A text with what stands between `<!-- mark -->` and `<!-- end of mark -->` replaced."""
    for mark, inside in marks.items():
        start, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}\n{inside}\n{end}{after}"
    return text


def write_blocks(blocks: dict[Path, dict[str, str]]) -> None:
    """Write what stands between the marks of texts."""
    for path, marks in blocks.items():
        write_text(path, fill(path.read_text(encoding="utf-8"), marks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument(
        "--only", nargs="*", choices=[*TITLES, "untrained"], help="some runs; none: tables alone"
    )
    options = parser.parse_args()
    matplotlib.use("agg")
    wanted = [*TITLES, "untrained"] if options.only is None else options.only
    settings = {"shots": SHOTS, "seeds": options.seeds}
    photographs = real(options.data) if options.data else None  # what is wrong is found before the rest
    for name in wanted:
        backbone, protocol = load_backbone("photo" if name == "photo" else "tiny"), embedded()
        if name in ("photo", "real"):
            if photographs is None:
                continue
            protocol = photographs
        if name == "untrained":
            backbone, protocol = untrained(options.out / "tower"), replace(protocol, name="untrained")
        run = run_benchmark(protocol, options.out, backbone=backbone, **settings)
        keep(run.folder, RESULTS / name)
    write_text(RESULTS / "quality.md", tables())
    write_blocks(blocks())
    print(tables())


if __name__ == "__main__":
    main()
