"""Tables and figures of a benchmark run: summary.csv, summary.md, report.html and a folder of figures."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from inctrl_lite.baselines import METHODS
from inctrl_lite.files import write_text, write_whole
from inctrl_lite.metrics import CellScores, auroc_interval
from inctrl_lite.report import Section, Table, write_report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVEL = 0.95
MEAN = "mean"  # what the tables call the unweighted mean over the data sets
MINE = "InCTRL-lite"
# What every comparison shows: nothing learned; the package's head untrained and trained; the paper's head.
STORY = ("patch max", "InCTRL-lite, untrained", MINE, "InCTRL (paper's head)")
UNTRAINED = STORY[1]
NOTE = (
    "AUROC: mean over the categories of a data set, over the draws of the normal images and over the trained "
    "heads, ± standard deviation over the draws. ¹ best, ² second best of a column. InCTRL and "
    "InCTRL-lite are trained once, on the auxiliary set alone; all methods see the same frozen features and "
    "the same normal images. InCTRL-lite is this package's own head; InCTRL (paper's head) is the paper's, "
    "trained here."
)


def write_tables(folder: Path, cells: pd.DataFrame, records: list[dict], cost: pd.DataFrame | None) -> None:
    """Write everything that is derived from finished cells.

    Args:
        folder: of the run.
        cells: one row for each method and cell.
        records: the cells as they were written, with all scores.
        cost: columns method, milliseconds.
    """
    summary = summarise_cells(cells, records)
    write_text(folder / "cells.csv", cells.to_csv(index=False, float_format="%.5f"))
    write_text(folder / "summary.csv", summary.to_csv(index=False, float_format="%.4f"))
    tables = [table for k in sorted(summary["shots"].unique().tolist()) for table in _tables(summary, k)]
    published = published_table(cells)
    if published:
        tables.append(published)
    write_text(
        folder / "summary.md", NOTE + "\n\n" + "\n\n".join(markdown(*table) for table in tables) + "\n"
    )
    drawn = figures(summary, cells, cost)
    for name, (_, figure) in drawn.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        write_whole(folder / "figures" / f"{name}.png", partial(Path.write_bytes, data=buffer.getvalue()))
    sections = [Section(title, table=table) for title, table in tables]
    sections += [Section(title, figure=figure) for title, figure in drawn.values()]
    write_report(folder / "report.html", "Benchmark of generalist anomaly detection", NOTE, sections)


# --- numbers -----------------------------------------------------------------------------------------


def summarise_cells(cells: pd.DataFrame, records: list[dict]) -> pd.DataFrame:
    """One row per data set (and their `MEAN`), K and method.

    Columns: auroc, ap, f1_max and their deviations over prompt seeds (`_std`); low, high: interval of the
    AUROC over images, draws of the support set and trained heads (`metrics.auroc_interval`); for methods that
    are trained, `rival`: the best training-free method there, and `gain`, gain_low, gain_high: paired
    difference to it; `over_untrained` and its interval: paired difference to the untrained InCTRL-lite head.
    """
    measures = ["auroc", "ap", "f1_max"]
    by_seed = cells.groupby(["dataset", "shots", "method", "seed"], sort=False)[measures].mean()
    mean = by_seed.groupby(["shots", "method", "seed"], sort=False).mean().reset_index()
    by_seed = pd.concat([by_seed.reset_index(), mean.assign(dataset=MEAN)])
    groups = by_seed.groupby(["dataset", "shots", "method"], sort=False)[measures]
    table = groups.mean().join(groups.std().add_suffix("_std")).reset_index()
    scores = method_scores(records)
    extra = []
    for (dataset, k), part in table.groupby(["dataset", "shots"], sort=False):
        found = _in_every_dataset(scores[k]) if dataset == MEAN else _of_dataset(scores[k], dataset)
        rivals = part[[is_training_free(method) for method in part["method"]]]
        best = rivals.loc[rivals["auroc"].idxmax(), "method"] if len(rivals) else None
        for method, mine in found.items():
            _, low, high = auroc_interval(mine, level=LEVEL)
            row = {"dataset": dataset, "shots": k, "method": method, "low": low, "high": high}
            if best in found and not is_training_free(method):
                gain = auroc_interval(mine, against=found[best], level=LEVEL)
                row |= {"rival": best, "gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}
            if method == MINE and UNTRAINED in found:
                added = auroc_interval(mine, against=found[UNTRAINED], level=LEVEL)
                row |= {"trained": added.value, "trained_low": added.low, "trained_high": added.high}
            extra.append(row)
    columns = ["dataset", "shots", "method", "low", "high", "rival", "gain", "gain_low", "gain_high"]
    columns += ["trained", "trained_low", "trained_high"]
    return table.merge(pd.DataFrame(extra, columns=columns), on=["dataset", "shots", "method"])


def is_training_free(method: str) -> bool:
    """Whether a method learns nothing; one that the registry does not know counts as such."""
    return method not in METHODS or not METHODS[method].kind.is_trained


def is_ablation(method: str) -> bool:
    """Whether a method is another one with something left out."""
    return method in METHODS and METHODS[method].ablation_of is not None


def method_scores(records: list[dict]) -> dict[int, dict[str, list[CellScores]]]:
    """Scores of every method at every K, for `metrics.auroc_interval`: K -> method -> cells.

    A record's "seed" numbers the draw of the support set. "head" numbers the trained head, in the record or
    in a method's part of it; 0 where it is missing. Scores are a list over images, or a list over heads of
    lists.
    """
    scores: dict[int, dict[str, list[CellScores]]] = {}
    for record in records:
        for method, found in record["methods"].items():
            if "error" in found:
                continue
            first = found.get("head", record.get("head", 0))
            cells = scores.setdefault(record["shots"], {}).setdefault(method, [])
            for head, values in enumerate(np.atleast_2d(found["scores"]), start=first):  # [heads, images]
                place = (record["dataset"], record["category"], record["seed"], head)
                cells.append(CellScores(*place, record["labels"], values))
    return scores


def _of_dataset(scores: dict[str, list[CellScores]], dataset: str) -> dict[str, list[CellScores]]:
    """The methods' cells of one data set; a method without any is left out."""
    found = {name: [c for c in cells if c.dataset == dataset] for name, cells in scores.items()}
    return {name: cells for name, cells in found.items() if cells}


def _in_every_dataset(scores: dict[str, list[CellScores]]) -> dict[str, list[CellScores]]:
    """The methods that have cells in every data set: a mean over fewer would not compare with theirs."""
    datasets = {name: {cell.dataset for cell in cells} for name, cells in scores.items()}
    all_datasets = set().union(*datasets.values())
    return {name: cells for name, cells in scores.items() if datasets[name] == all_datasets}


def verdict(low: float, high: float) -> str:
    """What an interval of a difference says."""
    return "better" if low > 0 else "worse" if high < 0 else "no clear difference"


# --- tables ------------------------------------------------------------------------------------------


def _tables(summary: pd.DataFrame, k: int) -> list[tuple[str, Table]]:
    """AUROC of all methods at one K, and InCTRL's differences."""
    part = summary[summary["shots"] == k]
    datasets = [d for d in part["dataset"].unique() if d != MEAN] + [MEAN]
    wide = part.pivot(index="method", columns="dataset", values="auroc")
    ranks = wide[[not is_ablation(name) for name in wide.index]].rank(ascending=False, method="min")
    spread = part.pivot(index="method", columns="dataset", values="auroc_std")
    rows = []
    for method in part["method"].unique():
        row = [method]
        for d in datasets:
            value = wide[d][method] if d in wide else np.nan
            mark = {1.0: " ¹", 2.0: " ²"}.get(ranks[d].get(method), "")
            deviation = "" if np.isnan(spread[d][method]) else f" ± {spread[d][method]:.3f}"
            row.append("-" if np.isnan(value) else f"{value:.3f}{deviation}{mark}")
        rows.append(row)
    tables = [(f"AUROC, K = {k}", Table(["method", *datasets], rows))]
    mine = part[(part["method"] == MINE) & part["rival"].notna()]
    if len(mine):
        rows = [
            [
                r.dataset,
                r.rival,
                f"{r.gain:+.3f}",
                f"{r.gain_low:+.3f} to {r.gain_high:+.3f}",
                verdict(r.gain_low, r.gain_high),
            ]
            for r in mine.itertuples()
        ]
        head = ["data set", "best training-free method", "difference", f"{LEVEL:.0%} interval", f"{MINE} is"]
        title = f"{MINE} against the best training-free method of each data set, K = {k}"
        tables.append((title, Table(head, rows)))
    return tables


def published_table(cells: pd.DataFrame) -> tuple[str, Table] | None:
    """Published numbers beside those measured here; None where no paper reports these data sets."""
    published = pd.read_csv(
        io.StringIO(files("inctrl_lite").joinpath("published.csv").read_text(encoding="utf-8"))
    )
    measured = cells.groupby(["dataset", "shots", "method"])["auroc"].mean()
    rows = []
    known = {d for d in cells["dataset"].unique() if d in set(published["dataset"])}
    for row in published[published["dataset"].isin(known)].itertuples():
        here = measured.get((row.dataset, row.shots, row.method), np.nan)
        spread = "" if np.isnan(row.deviation) else f" ± {row.deviation:.3f}"
        found = "-" if np.isnan(here) else f"{here:.3f}"
        rows.append([row.method, row.dataset, row.shots, found, f"{row.auroc:.3f}{spread}", row.source])
    head = ["method", "data set", "K", "here", "published", "source"]
    return (
        ("Published AUROC (other backbones or full data sets may differ)", Table(head, rows))
        if rows
        else None
    )


def markdown(title: str, table: Table) -> str:
    """A table with its title."""
    lines = [f"### {title}", "", "| " + " | ".join(table.columns) + " |", "|---" * len(table.columns) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in table.rows])


# --- figures -----------------------------------------------------------------------------------------

# One colour for a method in every figure, told apart by readers with colour blindness (Okabe and Ito).
METHOD_COLOURS = {
    MINE: "black",
    UNTRAINED: "#56b4e9",
    "patch max": "#0072b2",
    "InCTRL (paper's head)": "#d55e00",
    "PatchCore": "#009e73",
    "AnomalyDINO-style": "#cc79a7",
    "WinCLIP": "#e69f00",
    "raw pixels": "#7a7a7a",
    "global embedding": "#8c564b",
}
OTHER_METHODS = "#9a9a9a"  # they have their names beside them
SHOWN = (*STORY, "PatchCore", "AnomalyDINO-style", "WinCLIP", "raw pixels")
MARKERS = "osD^vP<X"


WIDE, PHONE = 7.5, 4.2  # inches


def figures(
    summary: pd.DataFrame, cells: pd.DataFrame, cost: pd.DataFrame | None, width: float = WIDE
) -> dict[str, tuple[str, Figure]]:
    """All figures by file name, each with its title.

    Args:
        summary, cells, cost: the tables of a run.
        width: of a figure in inches, `WIDE` or `PHONE`.
    """
    import seaborn as sns

    with sns.axes_style("whitegrid"):
        found = {
            "by_dataset": ("AUROC against K by data set, with 95 % intervals", by_dataset(summary, width)),
            "heatmap": ("AUROC by method and data set", heatmap(summary)),
            "categories": ("AUROC of every category and draw", categories(cells, width)),
            "draws": ("How much the choice of the normal images matters", draws(cells, width)),
        }
        if cells["method"].nunique() > 2:
            found["ranks"] = ("Mean rank over the categories", ranks(cells, width))
        if summary["gain"].notna().any():
            found["gains"] = (f"{MINE} against the best training-free method", gains(summary, width))
        if cost is not None and len(cost):
            found["cost"] = ("Quality and time", quality_and_time(summary, cost, width))
    return found


def colour(method: str) -> str:
    """The colour of a method."""
    return METHOD_COLOURS.get(method, OTHER_METHODS)


def _figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **kwargs: Any
) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def _wrapped(text: str, width: float) -> str:
    """A label that fits below a figure of this width."""
    return textwrap.fill(text, round(11 * width))


def best_training_free(summary: pd.DataFrame, shots: int) -> tuple[str, float]:
    """The training-free method with the best mean AUROC at K; and the mean of each data set's own best one.

    Both are chosen afterwards, with the answers known, which favours them.
    """
    part = summary[(summary["shots"] == shots) & summary["method"].map(is_training_free)]
    mean = part[part["dataset"] == MEAN].set_index("method")["auroc"]
    return str(mean.idxmax()), float(part[part["dataset"] != MEAN].groupby("dataset")["auroc"].max().mean())


def dots(panels: Mapping[str, pd.DataFrame], shots: int, width: float = 9.0) -> Figure:
    """Mean AUROC of the compared methods at one K, with 95 % intervals: a panel for each run.

    Args:
        panels: title -> summary of a run.
        shots: K.
        width: of the figure in inches; at most `PHONE`, panels stand below each other.
    """
    stacked = width <= PHONE
    rows, columns = (len(panels), 1) if stacked else (1, len(panels))
    figure, axes = _figure(width, 3.1 * rows, rows, columns, sharex=True)
    for number, (ax, (title, summary)) in enumerate(zip(axes.flat, panels.items(), strict=True)):
        mean = summary[(summary["dataset"] == MEAN) & (summary["shots"] == shots)].set_index("method")
        best, each = best_training_free(summary, shots)
        names = [*STORY, best]
        for place, method in enumerate(names):
            if method not in mean.index:
                ax.text(0.02, place, "not in this run", transform=ax.get_yaxis_transform(), va="center")
                continue
            row = mean.loc[method]
            error = [[max(row.auroc - row.low, 0)], [max(row.high - row.auroc, 0)]]
            ax.errorbar(row.auroc, place, xerr=error, fmt="o", color=colour(method), capsize=3, linewidth=2)
            above = (row.auroc, place - 0.18)
            name = f" ({best})" if place == len(STORY) else ""
            ax.annotate(f"{row.auroc:.3f}{name}", above, ha="center", va="bottom", fontsize=9)
        ax.plot(each, len(STORY), "D", color="black", markerfacecolor="none")
        labels = [*STORY, "best training-free,\nchosen afterwards"]
        ax.set_yticks(range(len(names)), labels if stacked or not number else [""] * len(names))
        ax.set_ylim(len(names) - 0.4, -0.7)
        heading = title.replace(", ", ",\n") if stacked else title  # a phone is narrower than a title
        ax.set_title(heading, fontsize=10, fontweight="bold", pad=14)
        ax.grid(axis="x", color="0.9")
        ax.set_axisbelow(True)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(left=False, labelbottom=True)
        ax.set_xlabel(f"mean AUROC, K = {shots} (95 % interval)")
    return figure


def by_dataset(summary: pd.DataFrame, width: float = WIDE) -> Figure:
    """A panel for each data set and one for their mean: lines of `SHOWN` methods."""
    datasets = [d for d in summary["dataset"].unique() if d != MEAN] + [MEAN]
    columns = min(5 if width > PHONE else 2, len(datasets))
    rows = -(-len(datasets) // columns)
    figure, axes = _figure(2.5 * columns, 2.3 * rows + 0.6, rows, columns, sharey=True)
    methods = [m for m in SHOWN if m in set(summary["method"])]
    ks = sorted(summary["shots"].unique().tolist())
    for ax, dataset in zip(axes.flat, datasets, strict=False):
        part = summary[summary["dataset"] == dataset].set_index(["method", "shots"])
        for i, method in enumerate(methods):
            line = part.loc[[(method, k) for k in ks if (method, k) in part.index]]
            at = np.array([k for _, k in line.index]) * 2 ** (0.05 * (i - len(methods) / 2))
            error = [line["auroc"] - line["low"], line["high"] - line["auroc"]]
            ax.errorbar(
                at,
                line["auroc"],
                yerr=np.clip(error, 0, None) if method == MINE else None,
                color=colour(method),
                marker=MARKERS[i % len(MARKERS)],
                markersize=4,
                linewidth=2 if method == MINE else 1,
                capsize=2,
                label=method,
                zorder=3 if method == MINE else 2,
            )
        ax.set_title(dataset, fontsize=9, fontweight="bold" if dataset == MEAN else None)
        ax.set_xscale("log", base=2)
        ax.set_xticks(ks, [str(k) for k in ks])
        ax.minorticks_off()
    for ax in axes.flat[len(datasets) :]:
        ax.set_axis_off()
    for ax in axes[-1]:  # a label below all panels would lie in the legend
        ax.set_xlabel("normal images K", fontsize=9)
    figure.supylabel("AUROC", fontsize=10)
    figure.legend(
        *axes.flat[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4 if width > PHONE else 2,
        frameon=False,
    )
    return figure


def heatmap(summary: pd.DataFrame) -> Figure:
    """Method x data set at the middle K."""
    import seaborn as sns

    ks = sorted(summary["shots"].unique().tolist())
    k = ks[len(ks) // 2]
    part = summary[summary["shots"] == k]
    wide = part.pivot(index="method", columns="dataset", values="auroc")
    wide = wide[[d for d in part["dataset"].unique() if d != MEAN] + [MEAN]].sort_values(
        MEAN, ascending=False
    )
    figure, axes = _figure(0.75 * wide.shape[1] + 3.2, 0.36 * len(wide) + 1.6)
    sns.heatmap(
        wide,
        annot=True,
        fmt=".2f",
        cmap="cividis",
        vmin=0.4,
        vmax=1,
        ax=axes[0, 0],
        annot_kws={"size": 8},
        cbar_kws={"label": f"AUROC at K = {k}"},
    )
    axes[0, 0].set(xlabel="", ylabel="")
    axes[0, 0].tick_params(axis="x", rotation=40)
    for label in axes[0, 0].get_xticklabels():
        label.set_ha("right")
    return figure


def categories(cells: pd.DataFrame, width: float = WIDE) -> Figure:
    """A dot for every category and draw at the middle K, InCTRL-lite and patch max side by side."""
    import seaborn as sns

    ks = sorted(cells["shots"].unique().tolist())
    k = ks[len(ks) // 2]
    shown = [m for m in (MINE, "patch max") if m in set(cells["method"])]
    part = cells[(cells["shots"] == k) & cells["method"].isin(shown)]
    figure, axes = _figure(width, 0.45 * part["dataset"].nunique() + 1.3)
    sns.stripplot(
        part,
        x="auroc",
        y="dataset",
        hue="method",
        hue_order=shown,
        palette={method: colour(method) for method in shown},
        dodge=True,
        size=3,
        alpha=0.6,
        ax=axes[0, 0],
    )
    axes[0, 0].axvline(0.5, color="grey", linestyle=":", linewidth=1)
    axes[0, 0].set(xlabel=f"AUROC at K = {k} (dotted: guessing)", ylabel="")
    axes[0, 0].legend(frameon=False, title=None)
    return figure


def draws(cells: pd.DataFrame, width: float = WIDE) -> Figure:
    """Standard deviation of the AUROC over draws of the normal images, a dot for each category."""
    import seaborn as sns

    shown = [m for m in (MINE, "patch max", "PatchCore", "global embedding") if m in set(cells["method"])]
    part = cells[cells["method"].isin(shown)]
    spread = part.groupby(["method", "shots", "dataset", "category"])["auroc"].std().reset_index()
    figure, axes = _figure(width, 3.4)
    sns.stripplot(
        spread,
        x="shots",
        y="auroc",
        hue="method",
        hue_order=shown,
        palette={method: colour(method) for method in shown},
        dodge=True,
        size=3.5,
        alpha=0.7,
        ax=axes[0, 0],
    )
    axes[0, 0].set(xlabel="normal images K", ylabel="standard deviation of AUROC over draws")
    axes[0, 0].legend(frameon=False, title=None)
    return figure


def ranks(cells: pd.DataFrame, width: float = WIDE) -> Figure:
    """Mean rank of each method over all categories at the middle K, with Nemenyi's critical difference.

    Two methods whose ranks differ by less are not told apart at the 5 % level (Demsar, JMLR 2006).
    """
    from scipy.stats import studentized_range

    ks = sorted(cells["shots"].unique().tolist())
    k = ks[len(ks) // 2]
    part = cells[(cells["shots"] == k) & ~cells["method"].map(is_ablation)]
    wide = part.pivot_table(index=["dataset", "category"], columns="method", values="auroc").dropna(axis=1)
    mean = wide.rank(axis=1, ascending=False).mean().sort_values()
    m, n = len(mean), len(wide)
    critical = studentized_range.ppf(0.95, m, np.inf) / np.sqrt(2) * np.sqrt(m * (m + 1) / (6 * n))
    figure, axes = _figure(width, 0.3 * m + 1.3)
    ax: Axes = axes[0, 0]
    best = mean.iloc[0]
    ax.axvspan(best, best + critical, color="0.92", label="not told apart from the best")
    ax.scatter(mean, range(m), color=[colour(name) for name in mean.index], zorder=3)
    ax.set_yticks(range(m), mean.index)
    ax.invert_yaxis()
    ax.set_xlabel(f"mean rank over {n} categories at K = {k} (1 is best)")
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def gains(summary: pd.DataFrame, width: float = WIDE) -> Figure:
    """InCTRL-lite minus the best training-free method of each data set, with its interval."""
    import seaborn as sns

    mine = summary[(summary["method"] == MINE) & summary["gain"].notna()]
    shots, datasets = sorted(mine["shots"].unique().tolist()), list(mine["dataset"].unique())
    figure, axes = _figure(width, 0.42 * len(datasets) + 1.2)
    ax = axes[0, 0]
    for i, (k, shade) in enumerate(zip(shots, sns.color_palette("colorblind"), strict=False)):
        part = mine[mine["shots"] == k].set_index("dataset").reindex(datasets)
        place = [n + 0.22 * (i - (len(shots) - 1) / 2) for n in range(len(datasets))]
        error = [part["gain"] - part["gain_low"], part["gain_high"] - part["gain"]]
        marker = "osD^v"[i % 5]
        ax.errorbar(part["gain"], place, xerr=error, fmt=marker, color=shade, markersize=4, label=f"K = {k}")
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(datasets)), datasets)
    ax.invert_yaxis()
    ax.set_xlabel(_wrapped(f"AUROC: {MINE} minus the best training-free method there (95 % interval)", width))
    ax.legend(
        frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4 if width > PHONE else 2
    )  # clear of every bar
    return figure


def quality_and_time(summary: pd.DataFrame, cost: pd.DataFrame, width: float = WIDE) -> Figure:
    """Mean AUROC against milliseconds an image, encoding included, at the middle K."""
    ks = sorted(summary["shots"].unique().tolist())
    k = ks[len(ks) // 2]
    part = summary[(summary["shots"] == k) & (summary["dataset"] == MEAN)].merge(cost, on="method")
    figure, axes = _figure(width, 4.0)
    ax = axes[0, 0]
    ax.scatter(
        part["milliseconds"],
        part["auroc"],
        color=[colour(method) for method in part["method"]],
    )
    ax.set_xscale("log")
    ax.margins(x=0.25)
    ax.set(
        xlabel=_wrapped("milliseconds an image, encoding included (batch of 32)", width),
        ylabel=f"mean AUROC at K = {k}",
    )
    place = {"xytext": (6, -9), "textcoords": "offset points", "fontsize": 8}
    names = [
        ax.annotate(row.method, (row.milliseconds, row.auroc), **place)
        for row in part.sort_values("auroc").itertuples()
    ]
    figure.draw_without_rendering()  # fixes where things are
    taken: list[Any] = []
    for name in names:  # up, until none lies on another
        while any(name.get_window_extent().overlaps(other) for other in taken):
            name.xyann = (name.xyann[0], name.xyann[1] + 2)
        taken.append(name.get_window_extent())
    return figure
