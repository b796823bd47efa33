"""The command line. Every command is one library call; heavy imports wait until a command runs."""

from __future__ import annotations

import json as json_
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inctrl_lite import __version__
from inctrl_lite.data.commands import app as data_app
from inctrl_lite.errors import InctrlError
from inctrl_lite.export_command import export

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inctrl_lite.data.category import Category
    from inctrl_lite.detector import AnomalyDetector

app = typer.Typer(
    name="inctrl-lite",
    help=(
        "Generalist anomaly detection: one trained model finds anomalies in any domain, from a handful of "
        "normal images, without further training (InCTRL, CVPR 2024).\n\n"
        "Start with [bold]inctrl-lite demo[/bold]; score your own photos with [bold]inctrl-lite score[/bold]."
    ),
    epilog="Exit codes: 0 done, 1 something in the input is wrong (the message says what), 2 wrong usage, "
    "130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")
app.command()(export)

Shots = Annotated[int, typer.Option("--shots", "-k", min=1, help="K: how many normal images are given.")]
Seed = Annotated[int, typer.Option(help="Which K normal images are drawn.")]
Model = Annotated[
    str,
    typer.Option(
        help="'photo' (for photographs), 'tiny' (for teaching), a folder of a trained model, a .pyth file of "
        "the public code, or a Hub id."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps, ...")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Out = Annotated[Path, typer.Option(help="Folder for the results; made if missing.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Category_ = Annotated[str, typer.Option("--category", help="What the images show, in words: 'metal nut'.")]
CategoryOfMany = Annotated[
    str | None, typer.Option("--category", help="What the images show, in words: 'metal nut'.")
]
ImageSize = Annotated[
    int | None,
    typer.Option(min=32, help="Side of the input in pixels, for 'photo': 320 finds smaller defects."),
]
DetectorFile = Annotated[Path, typer.Option("--detector", help="A file that `inctrl-lite fit` wrote.")]
RegionOption = Annotated[
    str | None,
    typer.Option(
        "--region", help="What counts: a mask file (white counts), or LEFT,TOP,RIGHT,BOTTOM in pixels."
    ),
]
Tiles = Annotated[
    str | None,
    typer.Option(
        "--tiles", help="For small defects in large pictures: auto, or the side of a tile in pixels."
    ),
]
AnyRotation = Annotated[
    bool, typer.Option("--any-rotation", help="Parts may lie in any direction: compare rotated copies too.")
]
KeepAspect = Annotated[
    bool, typer.Option("--keep-aspect", help="Keep the aspect ratio of long or wide pictures ('photo').")
]
Bits = Annotated[
    int | None, typer.Option("--bits", min=8, max=16, help="How many bits grey values of 16 really have.")
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Go on past images that cannot be read, and list them.")
]


INTERRUPTED = 130  # exit code after Ctrl-C


@app.command()
def demo(
    out: Out = Path("inctrl-demo"),
    shots: Shots = 4,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Score domains that the embedded model has never seen, from K normal images each.

    Draws the procedural evaluation worlds (needs no network, no GPU), prints AUROC and AP by domain beside
    a training-free baseline on the same features, and writes an HTML report with anomaly maps.
    """
    from inctrl_lite.demo import run_demo

    result = run_demo(out, shots=shots, seed=seed, device=device, progress=not quiet)
    if json:
        _print_json({"report": str(result.report), "table": result.table.to_dict("records")})
    else:
        print(result.summary())


@app.command()
def fit(
    normals: Annotated[Path, typer.Option(help="Folder of normal images.")],
    out: Annotated[Path, typer.Option(help="The detector file to write, such as bottle.inctrl.")],
    category: Category_ = "object",
    categories: Annotated[
        bool, typer.Option("--categories", help="Each sub-folder of --normals is a category of its own.")
    ] = False,
    shots: Annotated[
        int | None,
        typer.Option("--shots", "-k", min=1, help="K: how many normal images are drawn. Default: all."),
    ] = None,
    seed: Seed = 0,
    model: Model = "photo",
    image_size: ImageSize = None,
    region: RegionOption = None,
    tiles: Tiles = None,
    any_rotation: AnyRotation = False,
    keep_aspect: KeepAspect = False,
    bits: Bits = None,
    skip_unreadable: SkipUnreadable = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Take in what normal looks like, once, and write it to a detector file for `calibrate` and `score`.

    Needs no training and no anomalous image. The first threshold comes from the normal images themselves;
    `calibrate` makes a better one.
    """
    from inctrl_lite.data.images import find_images
    from inctrl_lite.detector import AnomalyDetector
    from inctrl_lite.files import check_writable
    from inctrl_lite.scoring import fit_folder

    check_writable(out.parent)
    if out.is_dir():
        raise InctrlError(f"{out} is a folder: give the file to write, such as {out / 'x.inctrl'}")
    folders = {category: normals}
    if categories:
        find_images(normals)  # is it a folder with images?
        folders = {p.name: p for p in sorted(normals.iterdir()) if p.is_dir() and not p.name.startswith(".")}
        if not folders:
            raise InctrlError(f"{normals} has no sub-folders: leave --categories out")
    detector = AnomalyDetector.from_pretrained(model, image_size=image_size, device=device)
    skipped: list[tuple[str, str]] | None = [] if skip_unreadable else None
    view = _view(region, tiles, any_rotation, keep_aspect, bits)
    for name, folder in folders.items():
        fit_folder(detector, folder, name, shots=shots, seed=seed, skipped=skipped, **view)
    detector.save(out)
    if json:
        _print_json(
            {"detector": str(out), "categories": _categories_fitted(detector), "skipped": skipped or []}
        )
        return
    for name, reason in skipped or []:
        print(f"left out {name}: {reason}")
    _print_fitted(detector)
    print(f"detector: {out}")


@app.command()
def calibrate(
    detector: DetectorFile,
    normals: Annotated[
        Path | None, typer.Option(help="Folder of normal images that were not fitted.")
    ] = None,
    labelled: Annotated[
        Path | None,
        typer.Option(help="Folder with sub-folders good/ and others, in place of --normals."),
    ] = None,
    false_alarms: Annotated[
        float, typer.Option(help="With --normals: wanted share of false alarms, such as 0.01.")
    ] = 0.05,
    recall: Annotated[
        float | None,
        typer.Option(help="With --labelled: wanted share of found anomalies. Default: the best F1."),
    ] = None,
    category: CategoryOfMany = None,
    out: Annotated[Path | None, typer.Option(help="Write another file. Default: the same one.")] = None,
    skip_unreadable: SkipUnreadable = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Set the threshold of a detector file, with a known rate of false alarms or of found anomalies.

    From normal images alone, the rate is promised on average over sets of normal images, as long as later
    ones come from the same source. A rate of 0.01 needs 99 images.
    """
    from inctrl_lite.data.folders import normal_images, read_labelled
    from inctrl_lite.detector import AnomalyDetector
    from inctrl_lite.files import check_writable, locked

    if (normals is None) == (labelled is None):
        raise typer.BadParameter("give either --normals or --labelled")
    target = out or detector
    check_writable(target.parent)
    with locked(target.parent, name=target.name):  # two calibrations must not overwrite each other
        loaded = AnomalyDetector.load(detector, device=device)
        name = loaded.category(category)
        skipped: list[tuple[str, str]] | None = [] if skip_unreadable else None
        if normals is not None:
            images = [(item.name, item.image) for item in normal_images(normals)]
            loaded.calibrate(category=name, normals=images, false_alarm_rate=false_alarms, skipped=skipped)
        elif labelled is not None:
            items = read_labelled(labelled)
            if items is None:
                raise InctrlError(f"{labelled} has no sub-folder good/ (or normal/, or ok/), so no labels")
            found = [(item.name, item.image) for item in items]
            loaded.calibrate(found, [int(item.label or 0) for item in items], name, recall=recall)
        loaded.save(target)
    if json:
        fitted = _categories_fitted(loaded)[name]
        _print_json({"detector": str(target), "category": name, **fitted, "skipped": skipped or []})
        return
    for left_out, reason in skipped or []:
        print(f"left out {left_out}: {reason}")
    _print_fitted(loaded, [name])
    print(f"detector: {target}")


@app.command()
def score(
    queries: Annotated[
        Path,
        typer.Option(
            help="Image or folder to score. Sub-folders 'good' and others are read as labels (MVTec style). "
            "With a detector of several categories: a folder with a sub-folder for each."
        ),
    ],
    normals: Annotated[
        Path | None, typer.Option(help="Folder of normal images, from which K are drawn.")
    ] = None,
    detector: Annotated[
        Path | None, typer.Option(help="A file that `inctrl-lite fit` wrote, in place of --normals.")
    ] = None,
    out: Out = Path("inctrl-scores"),
    shots: Annotated[
        int,
        typer.Option(
            "--shots",
            "-k",
            min=0,
            help="K: how many normal images are given. 0, without --normals: the model's prior alone (weak).",
        ),
    ] = 4,
    category: CategoryOfMany = None,
    seed: Seed = 0,
    model: Model = "photo",
    image_size: ImageSize = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Score above which an image is anomalous; default: from the normal images."),
    ] = None,
    region: RegionOption = None,
    tiles: Tiles = None,
    any_rotation: AnyRotation = False,
    keep_aspect: KeepAspect = False,
    bits: Bits = None,
    maps: Annotated[
        str | None, typer.Option(help="Also write raw anomaly maps: npy, tiff (float32) or png (16 bits).")
    ] = None,
    limits: Annotated[
        str | None,
        typer.Option(
            help="LOW,HIGH: map values drawn darkest and brightest. Default: from the normal images."
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="With --detector: wait for new images; one line of JSON for each."),
    ] = False,
    skip_unreadable: SkipUnreadable = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images at a time; scores do not depend on it.")
    ] = 32,
    engine: Annotated[
        str, typer.Option(help="torch, or onnx: ONNX Runtime, faster on a CPU (extra 'export').")
    ] = "torch",
    device: Device = "auto",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Score a folder of photos against K normal ones, or with a detector file.

    Writes scores.csv, scores.json, heat maps and report.html to the output folder; metrics too, if the
    folder of queries carries labels.
    """
    from inctrl_lite.detector import AnomalyDetector
    from inctrl_lite.engine import with_engine
    from inctrl_lite.scoring import score_categories, score_folder, score_queries

    alone = normals is None and detector is None and shots == 0
    if not alone and (normals is None) == (detector is None):
        raise typer.BadParameter("give either --normals (to fit now) or --detector (a file from fit)")
    if normals is not None and shots == 0:
        raise typer.BadParameter("0 shots use no normal images: leave --normals out")
    view = _view(region, tiles, any_rotation, keep_aspect, bits)
    options: dict[str, Any] = {
        "threshold": threshold,
        "skip_unreadable": skip_unreadable,
        "batch_size": batch_size,
        "progress": not quiet,
        "maps": maps,
        "limits": None if limits is None else _two_numbers(limits),
    }
    if normals is not None or alone:
        if watch:
            raise typer.BadParameter("--watch needs --detector: fit once, then watch")
        result = score_folder(
            normals,
            queries,
            out,
            shots=shots,
            category=category or "object",
            seed=seed,
            model=model,
            image_size=image_size,
            device=device,
            engine=engine,
            **options,
            **view,
        )
        print(_json_text(result.to_dict()) if json else result.summary())
        return
    if any(value for value in view.values()):
        raise typer.BadParameter("region, tiles and the like belong to `fit`: the detector file holds them")
    assert detector is not None
    loaded = with_engine(AnomalyDetector.load(detector, device=device), engine)
    if watch:
        from inctrl_lite.watch import watch_folder

        for line in watch_folder(loaded, queries, category, threshold=threshold):
            print(json_.dumps(line, allow_nan=False), flush=True)
        return
    options["settings"] = {"detector": str(detector)}
    if category is None and len(loaded.categories) > 1:
        results = score_categories(loaded, queries, out, **options)
        if json:
            _print_json({name: result.to_dict() for name, result in results.items()})
        else:
            print("\n\n".join(f"{name}\n{result.summary()}" for name, result in results.items()))
        return
    result = score_queries(loaded, queries, out, category=category, **options)
    print(_json_text(result.to_dict()) if json else result.summary())


@app.command()
def train(
    data: Annotated[
        str,
        typer.Option(
            help="Auxiliary data set: a manifest, a folder in MVTec layout, or 'industrial' (procedural)."
        ),
    ] = "industrial",
    out: Out = Path("runs/inctrl"),
    backbone: Annotated[
        str,
        typer.Option(
            help="One of `inctrl-lite info`, an open_clip architecture, local-dir:FOLDER or timm:MODEL."
        ),
    ] = "tiny",
    pretrained: Annotated[
        str | None, typer.Option(help="Weights tag or file of an open_clip architecture.")
    ] = None,
    head: Annotated[
        str,
        typer.Option(
            help="'paper' (InCTRL), 'lite' (InCTRL-lite), 'prior' (InCTRL-lite without text), or 'v2' "
            "(InCTRLv2, which also learns a map, from masks)."
        ),
    ] = "paper",
    shots: Shots = 4,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    steps_per_epoch: Annotated[int, typer.Option(min=1)] = 100,
    batch_size: Annotated[int, typer.Option(min=2, help="Half normal, half anomalous queries.")] = 16,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of initialisation and episodes.")] = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train a model on an auxiliary data set. Interrupted, the same command goes on where it was.

    On several GPUs: accelerate launch -m inctrl_lite train ...
    """
    from inctrl_lite.backbones import load_backbone
    from inctrl_lite.device import process_group
    from inctrl_lite.training import TrainConfig
    from inctrl_lite.training import train as train_model

    config = TrainConfig(
        head=head,
        shots=shots,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
    frozen = load_backbone(backbone, pretrained)
    if head == "prior":
        from inctrl_lite.prior import learn_prior

        learn_prior(_categories(data), frozen, out, device=device, seed=seed, progress=not quiet)
        print(_json_text({"model": str(out)}) if json else f"prior learned; model in {out}")
        return
    _, history = train_model(_categories(data), frozen, config, out=out, device=device, progress=not quiet)
    if not process_group(device).is_main:
        return
    if json:
        _print_json({"model": str(out), "last": history[-1]})
    else:
        print(f"trained for {len(history)} steps, last loss {history[-1]['loss']:.4f}; model in {out}")


@app.command()
def evaluate(
    data: Annotated[
        str, typer.Option(help="A manifest, a folder in MVTec layout, or the name of a procedural world.")
    ],
    model: Model = "photo",
    shots: Shots = 4,
    seeds: Annotated[
        int, typer.Option(min=1, help="How many draws of the normal images to average over.")
    ] = 3,
    out: Annotated[Path | None, typer.Option(help="Write the rows to this CSV file.")] = None,
    device: Device = "auto",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """AUROC and AP of a trained model by category: mean and standard deviation over the draws.

    Where the data set has masks, also pixel AUROC and AUPRO of the anomaly map: the residual map, the photo
    detector's weighted residual map, or InCTRLv2's pixel map.
    """
    import pandas as pd

    from inctrl_lite.detector import AnomalyDetector
    from inctrl_lite.device import process_group
    from inctrl_lite.evaluation import evaluate as evaluate_model
    from inctrl_lite.files import check_writable, write_text
    from inctrl_lite.store import FeatureStore

    if out is not None:
        check_writable(out.parent)
    detector = AnomalyDetector.from_pretrained(model, device=device)
    store, categories = FeatureStore(detector.backbone), _categories(data)
    tables = [
        evaluate_model(
            detector.model,
            detector.backbone,
            categories,
            shots=shots,
            seed=seed,
            store=store,
            progress=not quiet,
        )
        for seed in range(seeds)
    ]
    if not process_group(device).is_main:
        return
    rows = pd.concat(tables, ignore_index=True)
    if out is not None:
        write_text(out, rows.to_csv(index=False))
    if json:
        _print_json(rows.to_dict("records"))
        return
    measured = [name for name in ("auroc", "ap", "pixel_auroc", "aupro") if rows[name].notna().any()]
    table = rows.groupby(["dataset", "category"], sort=False)[measured].agg(["mean", "std"])
    table.loc[("mean", ""), :] = table.mean()
    print(table.to_string(float_format="{:.3f}".format, na_rep="-"))  # one draw has no deviation


@app.command()
def benchmark(
    protocol: Annotated[
        str, typer.Option(help="embedded (procedural worlds), real (folders of --data) or paper.")
    ] = "embedded",
    shots: Annotated[list[int] | None, typer.Option(min=1, help="Values of K: --shots 2 4 8.")] = None,
    more: Annotated[list[int] | None, typer.Argument(hidden=True)] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many draws of the normal images.")] = 3,
    data: Annotated[Path | None, typer.Option(help="Folder of data sets in MVTec layout.")] = None,
    auxiliary: Annotated[
        str, typer.Option(help="What the paper's protocol trains on: mvtec (tested on the others) or visa.")
    ] = "mvtec",
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/benchmark"),
    backbone: Annotated[
        str | None,
        typer.Option(help="Another backbone; timm:vit_small_patch14_dinov2.lvd142m for the patch methods."),
    ] = None,
    pretrained: Annotated[str | None, typer.Option(help="Weights tag or file of --backbone.")] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """InCTRL, InCTRL-lite and other methods on the same features and normal images, with intervals.

    Killed and started again, it goes on where it was. Exit code 1 if any cell failed. On several GPUs:
    accelerate launch -m inctrl_lite benchmark ...
    """
    from inctrl_lite import benchmark as b
    from inctrl_lite.backbones import load_backbone
    from inctrl_lite.device import process_group

    if protocol not in ("embedded", "real", "paper"):
        raise typer.BadParameter(f"{protocol!r}: choose embedded, real or paper", param_hint="--protocol")
    if protocol == "embedded":
        chosen = b.embedded()
    elif data is None:
        raise typer.BadParameter(f"the {protocol} protocol needs a folder of data sets", param_hint="--data")
    else:
        chosen = b.real(data) if protocol == "real" else b.paper(data, auxiliary)
    processes = process_group(device)
    run = b.run_benchmark(
        chosen,
        out,
        shots=sorted({*(shots or (2, 4, 8)), *(more or ())}),
        seeds=seeds,
        device=device,
        backbone=load_backbone(backbone, pretrained, device=processes.device) if backbone else None,
        progress=not quiet,
    )
    if not processes.is_main:
        return
    if len(run.cells):
        print((run.folder / "summary.md").read_text(encoding="utf-8"))
    print(f"results: {run.folder}")
    if run.failed:
        raise InctrlError(f"{len(run.failed)} failed:\n  " + "\n  ".join(run.failed))


course_app = typer.Typer(
    no_args_is_help=True, help="Get the lessons; for teachers: hand them out, or solve them."
)
app.add_typer(course_app, name="course")
Notebooks = Annotated[Path | None, typer.Option(help="A folder of notebooks; without it, the lessons.")]


@course_app.command("get")
def course_get(folder: Annotated[Path, typer.Argument()] = Path("inctrl_lite_course")) -> None:
    """Copy the lessons into a folder; a file that is there already is kept as it is."""
    from inctrl_lite.course import lay_out

    written, kept = lay_out(folder)
    for path in kept:
        print(f"kept as it is: {path}")
    print(f"{folder}: {len(written)} lessons copied, {len(kept)} kept")
    print(f"open them with: jupyter lab {folder}")


@course_app.command("zip")
def course_zip(out: Path = Path("course.zip"), notebooks: Notebooks = None) -> None:
    """Pack the notebooks for students: no outputs, exercises open."""
    from inctrl_lite.course import lessons, student_zip

    print(student_zip(notebooks or lessons(), out))


@course_app.command("nbgrader")
def course_nbgrader(out: Path = Path("nbgrader"), notebooks: Notebooks = None) -> None:
    """Write an nbgrader course: a source assignment for each lesson, with points for its exercises."""
    from inctrl_lite.course import lessons
    from inctrl_lite.grading import nbgrader_course

    written = nbgrader_course(notebooks or lessons(), out)
    print(f"{len(written)} assignments in {out / 'source'}; next: nbgrader generate_assignment NAME")


@course_app.command("slides")
def course_slides(
    numbers: Annotated[
        list[str] | None, typer.Argument(metavar="[LESSON]...", help="As 04 or A1; without one, all.")
    ] = None,
    out: Path = Path("slides"),
    notebooks: Notebooks = None,
) -> None:
    """Run lessons and write lecture slides (reveal.js), which need no network; key S shows the notes."""
    from inctrl_lite.course import lessons
    from inctrl_lite.slides import course_slides as pages

    for path in pages(notebooks or lessons(), out, numbers or ()):
        print(path, flush=True)


@course_app.command("solve")
def course_solve(out: Path = Path("solved"), notebooks: Notebooks = None) -> None:
    """Write solved versions, with the answer keys in place of the stubs."""
    from inctrl_lite.course import lessons, solve

    for path in solve(notebooks or lessons(), out):
        print(path)


@app.command()
def info(json: Json = False) -> None:
    """Versions, device, backbones and where features are kept."""
    from inctrl_lite.backbones import PRESETS
    from inctrl_lite.environment import environment
    from inctrl_lite.store import cache_folder

    facts: dict[str, object] = {**environment(), "feature cache": str(cache_folder())}
    presets = {
        name: f"{preset.about} ({preset.megabytes} MB, {preset.licence}, "
        f"{'fetched once from the network' if preset.network else 'no network needed'})"
        for name, preset in PRESETS.items()
    }
    if json:
        _print_json(facts | {"backbones": presets})
        return
    print("\n".join(f"{name:18} {value}" for name, value in facts.items()))
    print("\nbackbones")
    print("\n".join(f"{name:18} {value}" for name, value in presets.items()))


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """What `inctrl-lite` does before any command."""
    if version:
        print(__version__)
        raise typer.Exit()


def _categories(data: str) -> list[Category]:
    """The categories of a procedural world, a manifest or a folder."""
    from inctrl_lite.data import worlds
    from inctrl_lite.data.manifest import load_dataset

    if data == worlds.AUXILIARY or data in worlds.EVALUATION:
        return worlds.load_world(data)
    if not Path(data).is_dir() and Path(data).suffix != ".csv":
        names = ", ".join((worlds.AUXILIARY, *worlds.EVALUATION))
        raise InctrlError(f"{data!r} is neither a manifest, a folder nor a procedural world. Worlds: {names}")
    return load_dataset(data)


def _view(
    region: str | None, tiles: str | None, any_rotation: bool, keep_aspect: bool, bits: int | None
) -> dict[str, Any]:
    """The options of `AnomalyDetector.fit` that say what is looked at."""
    box: Any = region
    if region is not None and not Path(region).exists() and region.count(",") == 3:
        box = region.split(",")
    side: int | str | None = tiles
    if tiles is not None and tiles != "auto":
        if not tiles.isdecimal():
            raise InctrlError(f"--tiles {tiles}: give auto, or the side of a tile in pixels")
        side = int(tiles)
    return {
        "region": box,
        "tiles": side,
        "any_rotation": any_rotation,
        "keep_aspect": keep_aspect,
        "bits": bits,
    }


def _two_numbers(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InctrlError(f"--limits {text}: give two numbers, such as 0.05,0.3") from error
    return low, high


def _categories_fitted(detector: AnomalyDetector) -> dict[str, dict[str, Any]]:
    """What the terminal's JSON says of each category."""
    return {
        name: {
            "normal_images": list(fitted.names),
            "normal_scores": list(fitted.normal_scores),
            "threshold": fitted.threshold,
            "threshold_source": fitted.threshold_source,
            "expected_false_alarm_rate": fitted.expected_rate,
        }
        for name, fitted in detector.categories.items()
    }


def _print_fitted(detector: AnomalyDetector, names: Sequence[str] | None = None) -> None:
    for name in names or detector.categories:
        fitted = detector.categories[name]
        threshold = "none" if fitted.threshold is None else f"{fitted.threshold:.3f}"
        print(f"{name}: {fitted.shots} normal images, threshold {threshold} ({fitted.threshold_source})")
        if fitted.normal_scores:
            low, high = min(fitted.normal_scores), max(fitted.normal_scores)
            print(f"{name}: normal images score {low:.3f} to {high:.3f}")


def _json_text(value: Any) -> str:
    return json_.dumps(value, indent=2, default=str, allow_nan=False)


def _print_json(value: Any) -> None:
    print(_json_text(value))


def main() -> None:
    """Run the command line; an `InctrlError` becomes one message and exit code 1."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        app()
    except InctrlError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # of a path that nobody looked at closely: too long, on a lost disk
        what = f"{error.filename}: " if error.filename else ""
        print(f"error: {what}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as ended:  # typer makes this of Ctrl-C, and says nothing
        if ended.code == INTERRUPTED:
            print("interrupted", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
