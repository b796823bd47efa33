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

if TYPE_CHECKING:
    from inctrl_lite.data.category import Category

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
    a training-free baseline on the same features, and writes an HTML report with residual maps.
    """
    from inctrl_lite.demo import run_demo

    result = run_demo(out, shots=shots, seed=seed, device=device, progress=not quiet)
    if json:
        _print_json({"report": str(result.report), "table": result.table.to_dict("records")})
    else:
        print(result.summary())


@app.command()
def score(
    normals: Annotated[Path, typer.Option(help="Folder of normal images, from which K are drawn.")],
    queries: Annotated[
        Path,
        typer.Option(
            help="Image or folder to score. Sub-folders 'good' and others are read as labels (MVTec style)."
        ),
    ],
    out: Out = Path("inctrl-scores"),
    shots: Shots = 4,
    category: Annotated[str, typer.Option(help="What the images show, in words: 'metal nut'.")] = "object",
    seed: Seed = 0,
    model: Model = "photo",
    image_size: Annotated[
        int | None,
        typer.Option(min=32, help="Side of the input in pixels, for 'photo': 320 finds smaller defects."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Score above which an image is anomalous; default: from the normal images."),
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option(help="Go on past images that cannot be read, and list them in the report.")
    ] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images at a time; scores do not depend on it.")
    ] = 32,
    device: Device = "auto",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Score a folder of photos against K normal ones.

    Writes scores.csv, scores.json, heat maps and report.html to the output folder; metrics too, if the
    folder of queries carries labels.
    """
    from inctrl_lite.scoring import score_folder

    result = score_folder(
        normals,
        queries,
        out,
        shots=shots,
        category=category,
        seed=seed,
        model=model,
        image_size=image_size,
        threshold=threshold,
        skip_unreadable=skip_unreadable,
        batch_size=batch_size,
        device=device,
        progress=not quiet,
    )
    if json:
        _print_json(result.to_dict())
    else:
        print(result.summary())


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
        typer.Option(help="'paper' (InCTRL), 'lite' (InCTRL-lite), or 'prior' (InCTRL-lite without text)."),
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
    """AUROC and AP of a trained model by category: mean and standard deviation over the draws."""
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
    table = rows.groupby(["dataset", "category"], sort=False)[["auroc", "ap"]].agg(["mean", "std"])
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


course_app = typer.Typer(no_args_is_help=True, help="For teachers: hand out the notebooks, or solve them.")
app.add_typer(course_app, name="course")
Notebooks = Annotated[Path, typer.Option(help="The repository's notebooks/ folder.")]


@course_app.command("zip")
def course_zip(out: Path = Path("course.zip"), notebooks: Notebooks = Path("notebooks")) -> None:
    """Pack the notebooks for students: no outputs, exercises open."""
    from inctrl_lite.course import student_zip

    print(student_zip(notebooks, out))


@course_app.command("solve")
def course_solve(out: Path = Path("solved"), notebooks: Notebooks = Path("notebooks")) -> None:
    """Write solved versions, with the answer keys in place of the stubs."""
    from inctrl_lite.course import solve

    for path in solve(notebooks, out):
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
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
