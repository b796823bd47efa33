"""The benchmark: goes on after a kill, keeps settings apart, names what failed; its intervals are right."""

import json
from dataclasses import replace

import layouts
import numpy as np
import pandas as pd
import pytest
from conftest import draw_category
from typer.testing import CliRunner

from inctrl_lite import benchmark, benchmark_report
from inctrl_lite.benchmark import Protocol, run_benchmark
from inctrl_lite.benchmark_report import MEAN, resample
from inctrl_lite.errors import InctrlError
from inctrl_lite.metrics import aupro, auroc, pixel_metrics

FIGURES = benchmark_report.figures


@pytest.fixture
def protocol(small_categories):
    tests = {"one": lambda: [draw_category("nut")], "two": lambda: [draw_category("bolt")]}
    return Protocol("small", lambda: small_categories, tests, steps=2, batches=2)


@pytest.fixture
def run(protocol, small_backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("INCTRL_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(benchmark_report, "RESAMPLES", 50)
    monkeypatch.setattr(benchmark_report, "figures", lambda *_: {})  # seconds each time

    def run(protocol=protocol, **kwargs):
        settings = {"shots": (2,), "seeds": 2, "progress": False} | kwargs
        return run_benchmark(protocol, tmp_path / "out", backbone=small_backbone, **settings)

    return run


def test_all_methods_on_all_cells(run, protocol, monkeypatch):
    monkeypatch.setattr(benchmark_report, "figures", FIGURES)
    result = run()
    methods = {*benchmark.FREE, *benchmark.trained_methods(protocol)}
    assert set(result.cells["method"]) == methods and not result.failed
    assert len(result.cells) == len(methods) * 2 * 2  # data sets, seeds
    assert result.cells[["auroc", "ap", "f1_max"]].stack().between(0, 1).all()
    names = ["cells.csv", "summary.csv", "summary.md", "run.json", "report.html", "cost.csv"]
    names += [
        f"figures/{f}.png"
        for f in ("by_dataset", "heatmap", "categories", "prompts", "ranks", "gains", "cost")
    ]
    for name in names:
        assert (result.folder / name).stat().st_size
    summary = pd.read_csv(result.folder / "summary.csv")
    mine = summary[summary["method"] == "patch max"].set_index("dataset")["auroc"]
    assert mine[MEAN] == pytest.approx((mine["one"] + mine["two"]) / 2, abs=1e-3)
    assert "RegAD" in json.loads((result.folder / "run.json").read_text())["missing"]


def test_goes_on_where_it_was(run, monkeypatch):
    first = run()
    paths = sorted(first.folder.rglob("K*.json"))
    times = {path: path.stat().st_mtime_ns for path in paths}
    paths[0].unlink()
    second = run()
    again = {path: path.stat().st_mtime_ns for path in paths}
    assert [path for path in paths if again[path] != times[path]] == [paths[0]]
    assert second.cells["auroc"].tolist() == first.cells["auroc"].tolist()
    monkeypatch.setattr(benchmark, "train_methods", None)  # everything is there: nothing is trained
    assert len(run().cells) == len(first.cells)


def test_other_settings_are_another_run(run):
    assert run().folder != run(seeds=1).folder


def test_another_auxiliary_set_is_another_run(run, protocol):
    assert run().folder != run(replace(protocol, trained_on="something else")).folder


def test_cells_of_changed_images_are_computed_again(run, protocol):
    first = run()
    changed = {**protocol.tests, "two": lambda: [replace(draw_category("nut"), name="bolt")]}
    second = run(replace(protocol, tests=changed))
    assert second.folder == first.folder
    one, two = (r.cells[r.cells["dataset"] == "two"]["auroc"].tolist() for r in (first, second))
    assert one != two
    kept = [r.cells[r.cells["dataset"] == "one"]["seconds"].tolist() for r in (first, second)]
    assert kept[0] == kept[1]  # these were not


def test_the_papers_protocol_tests_mvtec_after_visa(tmp_path):
    for name in ("mvtec", "visa", "elpv"):
        layouts.mvtec(tmp_path / name, ("bottle",))
    assert set(benchmark.paper(tmp_path).tests) == {"visa", "elpv"}
    assert set(benchmark.paper(tmp_path, "visa").tests) == {"mvtec"}
    assert benchmark.paper(tmp_path).trained_on != benchmark.paper(tmp_path, "visa").trained_on


def test_a_failing_method_is_named_and_the_others_go_on(run, monkeypatch):
    def fail(self, queries):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(benchmark.TRAINING_FREE[2], "score", fail)
    result = run()
    assert any("one/nut, class embedding NN: RuntimeError: out of luck" in line for line in result.failed)
    assert "class embedding NN" not in set(result.cells["method"])
    assert {"InCTRL", "patch max"} <= set(result.cells["method"])


def test_an_unreadable_image_fails_its_category_alone(run, protocol, tmp_path):
    broken = draw_category("screw")
    (tmp_path / "half.png").write_bytes(b"\x89PNG")
    broken = replace(broken, test=(replace(broken.test[0], image=tmp_path / "half.png"), *broken.test[1:]))
    result = run(replace(protocol, tests={"bad": lambda: [broken], **protocol.tests}))  # the first of all
    (line,) = result.failed  # once, though every method failed on every draw
    assert line.startswith("bad/screw, all methods: ") and "half.png" in line
    assert set(result.cells["dataset"]) == {"one", "two"}
    assert "InCTRL" in set(pd.read_csv(result.folder / "cost.csv")["method"])


def test_what_cannot_be_tested_is_named(run, small_categories):
    def unreadable():
        raise InctrlError("no such folder")

    tests = {
        "gone": unreadable,
        "one class": lambda: [draw_category("nut", anomalous=0)],
        "few": lambda: [draw_category("bolt", train=2)],
    }
    result = run(
        Protocol("small", lambda: small_categories, tests, steps=1, batches=1), shots=(2, 4), seeds=1
    )
    text = "\n".join(result.failed)
    assert "gone: no such folder" in text and "one class/nut: normal and anomalous" in text
    assert "few/bolt, K = 4: only 2 normal images" in text
    assert set(result.cells["dataset"]) == {"few"} and set(result.cells["shots"]) == {2}


def record(scores: dict[str, list[float]], labels=(0, 0, 1, 1), category="a", seed=0) -> dict:
    methods = {name: {"scores": values} for name, values in scores.items()}
    return {"category": category, "seed": seed, "labels": list(labels), "methods": methods}


def test_resampling_keeps_methods_and_seeds_paired():
    perfect, random = [0.1, 0.2, 0.8, 0.9], [0.1, 0.8, 0.2, 0.9]
    values = resample([record({"A": perfect, "B": random}), record({"A": perfect, "B": random}, seed=1)])
    assert np.all(values["A"] == 1)
    np.testing.assert_allclose(values["B"].mean(), auroc([0, 0, 1, 1], random), atol=0.05)
    one = resample([record({"A": random, "B": random})])
    np.testing.assert_array_equal(one["A"], one["B"])  # the same images for both


def test_aupro_of_a_perfect_and_of_a_blind_map():
    masks = np.zeros((2, 20, 20), bool)
    masks[0, 2:6, 2:6] = masks[0, 12:16, 12:16] = True
    assert aupro(masks, masks.astype(float)) == pytest.approx(1.0)
    half = masks.astype(float)
    half[0, 12:16, 12:16] = 0  # one of two defects is missed
    assert aupro(masks, half) == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    blind = np.mean([aupro(masks, rng.random(masks.shape)) for _ in range(20)])
    assert blind == pytest.approx(0.15, abs=0.03)  # overlap = rate: area 0.3 ** 2 / 2 over 0.3
    assert pixel_metrics(masks, half)["pixel_auroc"] == pytest.approx(0.75)
    with pytest.raises(InctrlError, match="needs defects"):
        aupro(masks & False, half)


def test_command_line_says_what_is_missing(tmp_path):
    from inctrl_lite.cli import app

    result = CliRunner().invoke(app, ["benchmark", "--protocol", "real"])
    assert result.exit_code == 2 and "needs a folder" in result.output
    result = CliRunner().invoke(app, ["benchmark", "--protocol", "paper", "--data", str(tmp_path)])
    assert "trains on 'mvtec'" in str(result.exception)
