"""The results page, made from benchmarks/results/: no number on it was typed.

`python book/build.py` writes it to book/results.md, and its figures, each in a wide and in a narrow version,
to book/assets/results/.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from PIL import Image

BOOK = Path(__file__).resolve().parent
FIGURES = BOOK / "assets" / "results"
sys.path.append(str(BOOK.parent / "benchmarks"))

import pretraining as pretraining_study  # noqa: E402
import quality  # noqa: E402
import speed as speed_study  # noqa: E402
import tower_speed as tower_study  # noqa: E402
from record import save_figure, with_interval  # noqa: E402

from inctrl_lite import benchmark_report  # noqa: E402
from inctrl_lite.benchmark_report import MEAN, MINE, PHONE, STORY, WIDE, dots, verdict  # noqa: E402
from inctrl_lite.files import write_text  # noqa: E402

K = 4  # of the verdict and the plot
SUBSETS = (
    "The images are resized and re-encoded subsets: these are *not* the published benchmarks, and not "
    "comparable with published numbers. Of MNIST there are ten test images a digit."
)
RUNS = {  # folder -> title, note
    "photo": ("Photographs and scans, photo detector", SUBSETS),
    "embedded": ("Unseen drawn worlds, tiny CLIP", ""),
    "real": ("Photographs and scans, tiny CLIP", SUBSETS),
    "untrained": (
        "Unseen drawn worlds, the tiny tower before training",
        "Only methods that need no text and no training: the tower is random, but for a whitened patch "
        "embedding.",
    ),
    "paper": ("The paper's protocol", ""),
}
PANELS = ("embedded", "photo")
SHOWN = {  # figure of a run -> caption
    "by_dataset": "AUROC against K, data set by data set. Bars of InCTRL-lite: 95 % intervals.",
    "gains": "InCTRL-lite minus the best training-free method of each data set, with 95 % intervals.",
    "ranks": "Mean rank of each method over the categories.",
    "categories": "AUROC of every category and every draw of the normal images, a dot each.",
    "draws": "Standard deviation of the AUROC over draws of the normal images, a dot for each category.",
    "cost": "Mean AUROC against milliseconds an image.",
}
METHODS = (
    "*Patch max* is the maximum of InCTRL's patch residual map: nothing is learned. *InCTRL-lite* is this "
    "package's own head; *untrained*, it has its random initial weights or leaves its prior out. *InCTRL "
    "(paper's head)* is the paper's head, trained here on the same auxiliary set. All methods of a run see "
    "the same frozen features and the same normal images."
)


@dataclass(frozen=True)
class Run:
    """A recorded run of `inctrl-lite benchmark`."""

    folder: Path

    @property
    def title(self) -> str:
        return RUNS[self.folder.name][0]

    @cached_property
    def facts(self) -> dict:
        return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))

    @cached_property
    def summary(self) -> pd.DataFrame:
        """With the mean over the data sets."""
        return pd.read_csv(self.folder / "summary.csv")

    @property
    def by_dataset(self) -> pd.DataFrame:
        return self.summary[self.summary["dataset"] != MEAN]

    @property
    def shots(self) -> list[int]:
        return sorted(self.summary["shots"].unique().tolist())

    @property
    def datasets(self) -> list[str]:
        return list(self.by_dataset["dataset"].unique())

    def what(self) -> str:
        """What was run, in sentences."""
        settings, note = self.facts["settings"], RUNS[self.folder.name][1]
        seeds = settings["seeds"] if isinstance(settings["seeds"], int) else len(settings["seeds"])
        more = f" This run was {self.facts['note']}." if "note" in self.facts else ""
        return (
            f"{len(self.datasets)} data sets, {seeds} draws of the normal images, backbone "
            f"`{settings['backbone']}`. {machine(self.facts['environment'])} {note}{more}"
        )


def recorded(results: Path) -> dict[str, Run]:
    """The runs that are there."""
    return {name: Run(results / name) for name in RUNS if (results / name / "run.json").exists()}


# --- the page ------------------------------------------------------------------------------------------


def results_page(results: Path) -> str:
    """The page as MyST Markdown."""
    runs = recorded(results)
    parts = [
        "# Results: how good is it?",
        "Every number and figure on this page comes from files in `benchmarks/results/`. What the measures "
        "mean, and how far to trust a difference, is the subject of notebooks "
        "[8](notebooks/08_evaluation.ipynb) and [9](notebooks/09_across_domains.ipynb).",
    ]
    if "photo" in runs:
        sentences = quality.verdict_sentences(runs["photo"].summary)
        parts += ["## In short", "\n".join(f"{i}. {said}" for i, said in enumerate(sentences, start=1))]
    panels = {runs[name].title: runs[name].summary for name in PANELS if name in runs}
    if panels:
        parts += [plot(panels), METHODS]
    if (results / "examples" / "examples.json").exists():
        parts += strip(results / "examples")
    for name, question in (
        ("photo", "How good on photographs and scans?"),
        ("embedded", "How good on drawn worlds?"),
        ("real", "How good is the tiny CLIP on photographs and scans?"),
        ("paper", "How good in the paper's protocol?"),
    ):
        if name in runs:
            parts += how_good(question, runs[name])
    main = [run for run in runs.values() if run.folder.name != "untrained"]
    if main:
        parts += datasets(main) + training(main) + normals(main)
    if "untrained" in runs:
        parts += pretraining(results, runs["untrained"])
    parts += cost(results, main)
    return "\n\n".join([*parts, *intervals(), *downloads(runs)]) + "\n"


def plot(panels: dict[str, pd.DataFrame]) -> str:
    """The dot plot, with its numbers as alternative text."""
    said = []
    for title, summary in panels.items():
        mean = summary[(summary["dataset"] == MEAN) & (summary["shots"] == K)].set_index("method")["auroc"]
        said.append(f"{title}: " + ", ".join(f"{m} {mean[m]:.3f}" for m in STORY if m in mean))
    caption = (
        f"Mean AUROC over the data sets with K = {K} normal images, with 95 % intervals. Last row: the "
        "training-free method with the best mean, chosen with the answers known; the diamond takes the best "
        "one of each data set. The two panels are different networks and images: compare within a panel."
    )
    return picture("dots", caption, alt=". ".join(said), lazy=False)


def strip(folder: Path) -> list[str]:
    """What the photo detector finds and misses, as pictures."""
    facts = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    n = facts["counts"]
    cards = []
    for shown in facts["shown"]:
        what = f"{shown['category']}, " + (shown["defect"] if shown["label"] else "normal")
        values = f"score {shown['score']:.2f}, threshold {shown['threshold']:.2f}"
        alt = f"A photograph ({what}) and its anomaly map: {shown['kind']}."
        image = f"```{{image}} {relative(folder / shown['file'])}\n:alt: {alt}\n```"
        kind = shown["kind"].capitalize()
        cards.append(f":::{{grid-item}}\n{image}\n**{kind}**: {what}<br><small>{values}</small>\n:::")
    return [
        "## What it finds, and what it misses",
        f"The photo detector saw {facts['shots']} normal images of each of {n['categories']} categories of "
        f"photographs, and took its first threshold from them. Of {n['anomalous']} images with a synthetic "
        f"defect, {n['found']} lay above it; of {n['normal']} other normal images, {n['false alarm']}. A "
        "rule chose these examples: the clearest hits, the clearest misses, the clearest false alarms.",
        "::::{grid} 1 2 2 2\n:gutter: 2\n:class-container: strip\n\n" + "\n".join(cards) + "\n::::",
        "The photographs come with scikit-image and scikit-learn; a program blended the defects in "
        "(`benchmarks/examples.py`).",
    ]


def how_good(question: str, run: Run) -> list[str]:
    """A run: a sentence, and its tables and figures, folded."""
    name = run.folder.name
    return [
        f"## {question}",
        sentence(run.summary),
        folded("The compared methods at each K, with intervals", table(quality.story(run.summary))),
        folded("All methods", run.what(), means(run.by_dataset, run.shots)),
        folded("Figures", *(figure(name, f) for f in ("by_dataset", "ranks") if drawn(name, f))),
    ]


def sentence(summary: pd.DataFrame) -> str:
    """How InCTRL-lite compares at `K`, and whether learning did it."""
    mean = summary[(summary["dataset"] == MEAN) & (summary["shots"] == K)].set_index("method")
    mine = mean.loc[MINE]
    words = {"better": "better than", "worse": "worse than"}
    compared = words.get(verdict(mine.gain_low, mine.gain_high), "not clearly different from")
    learned = "How much of that is learned was not measured in this run."
    if "trained" in mean and not pd.isna(mine.trained):
        said = verdict(mine.trained_low, mine.trained_high)
        learned = "Training changes the AUROC of this head by "
        learned += f"{with_interval(mine.trained, mine.trained_low, mine.trained_high, '+')}: {said}."
    mean_auroc = with_interval(mine.auroc, mine.low, mine.high)
    gain = with_interval(mine.gain, mine.gain_low, mine.gain_high, "+")
    return (
        f"InCTRL-lite has a mean AUROC of {mean_auroc} with K = {K} normal images. It "
        f"is {compared} the best training-free method, {mine.rival}: {gain}. {learned}"
    )


def datasets(runs: list[Run]) -> list[str]:
    """Tables that have a row or column for each data set."""
    parts = ["## Data set by data set", "The mean hides that the best method differs from set to set."]
    for run in runs:
        tables = {
            k: by_dataset(run.by_dataset[run.by_dataset["shots"] == k], run.datasets) for k in run.shots
        }
        tabs = [f":::{{tab-item}} K = {k}\n{found}\n:::" for k, found in tables.items()]
        note = "AUROC, mean over the categories and the draws, ± deviation over the draws. "
        inside = [note, "::::{tab-set}\n" + "\n".join(tabs) + "\n::::"]
        mine = run.by_dataset[(run.by_dataset["method"] == MINE) & run.by_dataset["rival"].notna()]
        if len(mine):
            inside += ["**Against the best training-free method of each data set.** " + against_best(mine)]
        name = run.folder.name
        inside += [figure(name, f) for f in ("gains", "categories") if drawn(name, f)]
        parts.append(folded(run.title, *inside))
    return parts


def training(runs: list[Run]) -> list[str]:
    """InCTRL-lite against its untrained self."""
    found = [run for run in runs if "trained" in run.summary and run.summary["trained"].notna().any()]
    tables = [folded(run.title, table(quality.training(run.summary))) for run in found]
    text = "The same head, untrained, is the rival that tells what learning did. Single parts of the score, "
    text += "other auxiliary sets and more shots are studied on the page [What training adds]"
    text += "(what_training_adds.md); why the paper's head falls, on the page [Why training falls]"
    text += (
        "(why_training_falls.md). This is about scores of images. What training adds to the photo detector's "
    )
    text += "*map*, which helps on real images too, is measured on the "
    text += "{ref}`first of these pages <map-with-prior>`."
    return ["## What does training add?", text, *tables] if tables else []


def normals(runs: list[Run]) -> list[str]:
    """How much the choice of the normal images matters."""
    shown = [folded(r.title, figure(r.folder.name, "draws")) for r in runs if drawn(r.folder.name, "draws")]
    text = "A detector that sees few normal images depends on which ones it sees: its AUROC changes from "
    text += "draw to draw."
    return ["## Does it matter which normal images?", text, *shown] if shown else []


def pretraining(results: Path, run: Run) -> list[str]:
    """What the training of the tiny tower adds."""
    inside = [run.what(), means(run.by_dataset, run.shots)]
    if (FIGURES / "pretraining.png").exists():
        text = (
            "Quality of the tiny tower against compute, over its pretraining runs. Large marks: the weights"
        )
        text += " that are shipped, a mean of the last two."
        inside.append(picture("pretraining", text, alt=text))
    text = "The tiny CLIP was trained from random weights on drawn pictures. This is what its tower is worth "
    text += "before that."
    return ["## What does the pretraining of the tower add?", text, folded(run.title, *inside)]


def cost(results: Path, runs: list[Run]) -> list[str]:
    """What `benchmarks/speed.py` measured, and quality against time."""
    inside = []
    parts = ["## What does it cost?"]
    if (results / "speed.json").exists():
        run = json.loads((results / "speed.json").read_text(encoding="utf-8"))
        scoring, step = run["scoring"], run["training step"]
        times = run["ms per image by K"]
        views = next(iter(times.values()))
        rows = [[k, *(f"{by[name]:.1f}" for name in views)] for k, by in times.items()]
        repeated = scoring["re-encoding 242 sentences and 4 normal images per query, over scoring"]
        stored = step["encoding in the step over stored features"]
        bare = scoring["scoring over bare encode_image"]
        parts.append(
            f"{machine(run['environment'])} Scoring ({scoring['setting']}) takes {bare:.2f} times what bare "
            "encoding takes; encoding sentences and normal images again for every query would take "
            f"{repeated:.0f} times as long. A training step ({step['setting']}) on stored features is "
            f"{stored:.0f} times as fast as one that encodes its images."
        )
        text = "The embedded detector in batches of 32: time of an image against K, and time against the "
        text += "number of images."
        inside += [
            markdown(["K (tiny detector)", *(f"ms per image, support set {name}" for name in views)], rows),
            picture("speed", text, alt=text),
        ]
    if (results / "tower_speed.json").exists():
        run = json.loads((results / "tower_speed.json").read_text(encoding="utf-8"))
        parts.append(tower_study.sentences(run))
        text = "Time of an image for each network, with the comparison and InCTRL-lite's head: against K, "
        text += "against the batch, and, where a network takes any size, against the side of the image."
        inside += [
            f"{machine(run['environment'])}\n\n{tower_study.table(run)}",
            picture("towers", text, alt=text),
        ]
    inside += [
        f"**{run.title}**\n\n{figure(run.folder.name, 'cost')}"
        for run in runs
        if drawn(run.folder.name, "cost")
    ]
    return [*parts, folded("Times and figures", *inside)] if inside else []


def intervals() -> list[str]:
    return [
        "## How were the intervals made?",
        "Three things in a result are chance: which images were tested, which normal images were drawn, and "
        "which weights a trained head began with. The intervals are for all three together: variances as in "
        "studies with several readers ({py:func}`~inctrl_lite.metrics.auroc_interval`). An interval of a "
        "*difference* is paired: both methods see the same images and draws. Several comparisons stand on "
        "this page and no interval is widened for that; so one that lies barely beside 0 says little.",
    ]


def downloads(runs: dict[str, Run]) -> list[str]:
    """The tables as files, and what is missing from them."""
    lines, missing = [], {}
    for run in runs.values():
        files = (run.folder / name for name in ("summary.csv", "cells.csv", "run.json"))
        links = ", ".join(f"{{download}}`{f.name} <{relative(f)}>`" for f in files if f.exists())
        lines.append(f"- {run.title}: {links}.")
        missing |= run.facts.get("missing", {})
    lines += [f"- {name} is not among the methods: {why}." for name, why in missing.items()]
    return ["## Where are the numbers?", "\n".join(lines)] if lines else []


# --- tables --------------------------------------------------------------------------------------------


def means(table: pd.DataFrame, shots: list[int]) -> str:
    """AUROC of each method, averaged over the data sets, and AP below it; the best of the methods first."""
    mean = table.pivot_table(index="method", columns="shots", values=["auroc", "ap"], sort=False)
    mean = mean.sort_values(("auroc", shots[len(shots) // 2]), ascending=False)
    rows = [
        [name, *(f"{row['auroc', k]:.3f}<br><small>AP&nbsp;{row['ap', k]:.3f}</small>" for k in shots)]
        for name, row in mean.iterrows()
    ]
    return markdown(["mean AUROC, and AP", *(f"K = {k}" for k in shots)], rows)


def by_dataset(table: pd.DataFrame, worlds: list[str]) -> str:
    """AUROC of each method on each data set, at one K."""
    found = {(row.method, row.dataset): row for row in table.itertuples()}
    rows = []
    for method in table["method"].unique():
        cells = [found.get((method, world)) for world in worlds]
        rows.append(
            [
                method,
                *("" if c is None else f"{c.auroc:.3f}<br><small>± {c.auroc_std:.3f}</small>" for c in cells),
            ]
        )
    return narrow(markdown(["method", *worlds], rows))


def against_best(mine: pd.DataFrame) -> str:
    """InCTRL-lite's paired differences. The rival is chosen with hindsight, which favours it."""
    rows = []
    for row in mine.sort_values(["dataset", "shots"]).itertuples():
        said = verdict(row.gain_low, row.gain_high)
        gain = with_interval(row.gain, row.gain_low, row.gain_high, "+")
        rows.append([f"{row.dataset}, K&nbsp;=&nbsp;{row.shots}", row.rival, gain, said])
    note = "The rival is chosen with hindsight for each data set, which favours it."
    head = ["data set", "best training-free method", "difference (95 % interval)", "InCTRL-lite is"]
    return f"{note}\n\n{narrow(markdown(head, rows))}"


def table(found: quality.Table) -> str:
    return narrow(markdown(list(found.columns), found.rows))


def narrow(table: str) -> str:
    """Deviations and intervals in small print below their values, which keeps tables narrow."""
    table = re.sub(r" ± ([\d.]+)(?= \|)", r"<br><small>±&nbsp;\1</small>", table)
    return re.sub(r" (\([+-]?[\d.]+ to [+-]?[\d.]+\))(?= \|)", r"<br><small>\1</small>", table)


def markdown(head: list[str], rows: list[list]) -> str:
    rows = [[*row, *[""] * (len(head) - len(row))] for row in rows]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


# --- figures -------------------------------------------------------------------------------------------


def draw_figures(results: Path) -> None:
    """Draw what the page shows, wide and for a phone; nothing, where it was drawn from the same tables."""
    made, stamp = hashlib.sha256(b"".join(_inputs(results))).hexdigest(), FIGURES / "stamp.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == made:
        return
    FIGURES.mkdir(parents=True, exist_ok=True)
    for path in FIGURES.glob("*.png"):
        path.unlink()
    card(results / "examples").save(FIGURES / "card.png", optimize=True)
    runs = recorded(results)
    panels = {runs[name].title: runs[name].summary for name in PANELS if name in runs}
    if panels:
        save_figure(dots(panels, K), FIGURES / "dots.png")
        save_figure(dots(panels, K, PHONE), FIGURES / "dots-phone.png")
    if (results / "pretraining.csv").exists():
        table = pd.read_csv(results / "pretraining.csv")
        save_figure(pretraining_study.draw(table), FIGURES / "pretraining.png")
        save_figure(pretraining_study.draw(table, PHONE), FIGURES / "pretraining-phone.png")
    if (results / "speed.json").exists():
        run = json.loads((results / "speed.json").read_text(encoding="utf-8"))
        measured = run["ms per image by K"], run["seconds by images"]
        save_figure(speed_study.plot(*measured), FIGURES / "speed.png")
        save_figure(speed_study.plot(*measured, PHONE), FIGURES / "speed-phone.png")
    if (results / "tower_speed.json").exists():
        towers = json.loads((results / "tower_speed.json").read_text(encoding="utf-8"))["towers"]
        save_figure(tower_study.figure(towers), FIGURES / "towers.png")
        save_figure(tower_study.figure(towers, PHONE), FIGURES / "towers-phone.png")
    for name, run in runs.items():
        cells, spent = (pd.read_csv(run.folder / f"{what}.csv") for what in ("cells", "cost"))
        for width, end in ((WIDE, ""), (PHONE, "-phone")):
            found = benchmark_report.figures(run.summary, cells, spent, width)
            for what in SHOWN if name != "untrained" else ():
                if what in found:
                    save_figure(found[what][1], FIGURES / f"{name}-{what}{end}.png")
    write_text(stamp, made)


def card(examples: Path) -> Image.Image:
    """What others see of a link to the site: its name, its purpose, two examples."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    drawn.text(0.05, 0.85, "inctrl_lite", fontsize=54, fontweight="bold", va="center")
    drawn.text(
        0.05,
        0.69,
        "Show it a few normal photographs,\nand it marks what is different in others.",
        fontsize=27,
        va="center",
    )
    for number, path in enumerate(sorted(examples.glob("found-*.jpg"))[1:3]):
        axes = drawn.add_axes((0.05 + 0.46 * number, 0.06, 0.44, 0.5))
        axes.imshow(Image.open(path))
        axes.set_axis_off()
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB").quantize(256)


def _inputs(results: Path) -> Iterator[bytes]:
    files = (path for path in sorted(results.rglob("*")) if path.suffix in (".csv", ".json", ".jpg"))
    yield from (path.read_bytes() for path in files)
    drawn_by = (benchmark_report.__file__, pretraining_study.__file__, speed_study.__file__)
    drawn_by += (tower_study.__file__, __file__)
    yield from (Path(file).read_bytes() for file in drawn_by)


def drawn(run: str, name: str) -> bool:
    """Whether a run has such a figure."""
    return (FIGURES / f"{run}-{name}.png").exists()


def figure(run: str, name: str) -> str:
    return picture(f"{run}-{name}", SHOWN[name], alt=f"{RUNS[run][0]}. {SHOWN[name]}")


def picture(name: str, caption: str, alt: str, lazy: bool = True) -> str:
    """A figure that has a version for narrow screens."""
    look = ' loading="lazy"' if lazy else ""
    return (
        "```{raw} html\n<figure class='align-default'><picture>\n"
        f'<source media="(max-width: 600px)" srcset="_static/results/{name}-phone.png">\n'
        f'<img src="_static/results/{name}.png" alt="{html.escape(alt)}"{look}></picture>\n'
        f"<figcaption>{html.escape(caption, quote=False)}</figcaption></figure>\n```"
    )


# --- pieces --------------------------------------------------------------------------------------------


def folded(title: str, *inside: str) -> str:
    """A box that opens on demand."""
    return f":::::{{dropdown}} {title}\n" + "\n\n".join(inside) + "\n:::::"


def machine(environment: dict[str, str]) -> str:
    """Where it was measured, in a sentence."""
    where = environment.get("processor") or environment["device"]
    return f"Measured with torch {environment['torch']} on {environment['platform']} ({where})."


def relative(path: Path) -> str:
    return Path(os.path.relpath(path, BOOK)).as_posix()
