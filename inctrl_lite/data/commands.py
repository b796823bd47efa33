"""`inctrl-lite data`: the paper's nine data sets, from the catalogue to a verified manifest."""

from __future__ import annotations

import json as json_
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="The paper's nine data sets: list, info, download, prepare, verify.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="Name of the data set; 'inctrl-lite data list' has them all.")]
Folder = Annotated[
    Path, typer.Option(help="Where data sets are kept: FOLDER/NAME/raw and FOLDER/NAME/manifest.csv.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


@app.command("list")
def list_(json: Json = False) -> None:
    """Show the catalogue, one line per data set."""
    from inctrl_lite.data.catalogue import CATALOGUE
    from inctrl_lite.data.download import TORCHVISION

    if json:
        print(json_.dumps([asdict(info) for info in CATALOGUE.values()], indent=2))
        return
    print(f"{'name':9} {'domain':11} {'categories':>10}  {'fetched':8} licence")
    for info in CATALOGUE.values():
        how = "direct" if info.url or info.name in TORCHVISION else "by hand"
        print(f"{info.name:9} {info.domain:11} {len(info.categories):10}  {how:8} {info.licence}")


@app.command()
def info(name: Name, json: Json = False) -> None:
    """Show licence, citation, layout and expected counts of a data set, and how certain they are."""
    from inctrl_lite.data.catalogue import find_dataset

    entry = find_dataset(name)
    if json:
        print(json_.dumps(asdict(entry), indent=2))
        return
    facts = {
        "title": entry.title,
        "domain": entry.domain,
        "categories": ", ".join(entry.categories),
        "licence": entry.licence,
        "citation": entry.citation,
        "home": entry.home,
        "address": f"{entry.url} (not tried when this was written)" if entry.url else "",
        "layout": entry.layout,
        "by hand": entry.by_hand,
        "note": entry.note,
    }
    print("\n".join(f"{key:12} {value}" for key, value in facts.items() if value))
    for protocol, counts in entry.counts.items():
        doubt = "" if counts.certain else "not certain: "
        print(
            f"{protocol or 'counts':12} {counts.train} training normals, {counts.normal} normal and "
            f"{counts.anomalous} anomalous test images; {doubt}{counts.source}"
        )


@app.command()
def download(name: Name, folder: Folder = Path("data"), quiet: Quiet = False) -> None:
    """Download and unpack a data set, or say what to download by hand and where to put it."""
    from inctrl_lite.data.download import download as fetch

    raw = fetch(name, folder / name / "raw", progress=not quiet)
    print(f"{name} is in {raw}; next: inctrl-lite data prepare {name} --folder {folder}")


@app.command()
def prepare(
    name: Name,
    folder: Folder = Path("data"),
    raw: Annotated[
        Path | None, typer.Option(help="Folder of the unpacked data set, if it is not FOLDER/NAME/raw.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="MNIST and CIFAR-10: 'one-vs-all' (the default) or 'multi-class'.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="A category to prepare; may be repeated.")] = None,
) -> None:
    """Read the official layout and write a manifest, for 'train --data' and 'evaluate --data'."""
    from inctrl_lite.data.catalogue import MULTI_CLASS
    from inctrl_lite.data.prepare import prepare as write

    out = folder / (f"{name}-multiclass" if protocol == MULTI_CLASS else name)
    manifest = write(name, raw or folder / name / "raw", out, protocol=protocol, only=only or ())
    print(f"{manifest}; next: inctrl-lite data verify {out.name} --folder {folder}")


@app.command()
def verify(
    name: Annotated[str, typer.Argument(help="Name of a prepared data set, or the path of its manifest.")],
    folder: Folder = Path("data"),
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Compare a prepared data set with the catalogue. Find unreadable files, duplicates and leaks."""
    from inctrl_lite.data.verify import verify as check

    report = check(name if name.endswith(".csv") else folder / name / "manifest.csv", progress=not quiet)
    print(json_.dumps(report.to_dict(), indent=2) if json else report.summary())
    if not report.is_sound:
        raise typer.Exit(1)
