"""The benchmark: goes on after a kill, keeps settings apart, names what failed; its intervals are right."""

import json
from dataclasses import replace

import layouts
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import draw_category
from typer.testing import CliRunner

from inctrl_lite import benchmark, benchmark_report, evaluation, load_backbone
from inctrl_lite.backbones.timm_model import TimmCNN
from inctrl_lite.baselines import METHODS, Images, methods_for
from inctrl_lite.baselines.nearest import GlobalNearest, PatchMax
from inctrl_lite.benchmark import HEADS, Protocol, run_benchmark
from inctrl_lite.benchmark_report import MEAN, MINE, STORY, method_scores, summarise_cells
from inctrl_lite.data.category import Item
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.errors import InctrlError
from inctrl_lite.evaluation import map_metrics, resize_mask
from inctrl_lite.files import read_checked
from inctrl_lite.metrics import auroc
from inctrl_lite.preprocess import Preprocessor
from inctrl_lite.store import FeatureStore

FIGURES = benchmark_report.figures


@pytest.fixture
def protocol(small_categories):
    tests = {"one": lambda: [draw_category("nut")], "two": lambda: [draw_category("bolt")]}
    return Protocol("small", lambda: small_categories, tests, steps=2, batches=2)


@pytest.fixture
def run(protocol, small_backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("INCTRL_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(benchmark_report, "figures", lambda *_: {})  # seconds each time

    def run(protocol=protocol, **kwargs):
        settings = {"shots": (2,), "seeds": 2, "progress": False} | kwargs
        return run_benchmark(protocol, tmp_path / "out", backbone=small_backbone, **settings)

    return run


def test_all_methods_on_all_cells(run, protocol, small_backbone, monkeypatch):
    monkeypatch.setattr(benchmark_report, "figures", FIGURES)
    result = run()
    methods = set(methods_for(small_backbone, "lite"))
    assert set(result.cells["method"]) == methods and not result.failed
    instances = sum(HEADS if METHODS[name].kind.is_trained else 1 for name in methods)
    assert len(result.cells) == instances * 2 * 2  # data sets, draws
    assert result.cells[["auroc", "ap", "f1_max"]].stack().between(0, 1).all()
    names = ["cells.csv", "summary.csv", "summary.md", "run.json", "report.html", "cost.csv"]
    names += [
        f"figures/{f}.png" for f in ("by_dataset", "heatmap", "categories", "draws", "ranks", "gains", "cost")
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


def test_other_features_are_another_run(protocol, small_backbone, small_folder, tmp_path, monkeypatch):
    """The name of the backbone is the same, the blocks that are compared are not."""
    monkeypatch.setenv("INCTRL_LITE_CACHE", str(tmp_path / "cache"))
    other = load_backbone(f"local-dir:{small_folder}", taps=(1, 2))
    nothing = replace(protocol, tests={})
    backbones = small_backbone, other
    runs = [run_benchmark(nothing, tmp_path, backbone=one, progress=False) for one in backbones]
    assert other.name == small_backbone.name and runs[0].folder != runs[1].folder


def test_the_contents_of_a_category_are_its_names_labels_and_pictures(tmp_path):
    category = draw_category("nut")
    first, *rest = category.test
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "b.png").write_bytes(b"22")
    items = [
        first,
        replace(first, label=1),
        replace(first, name="another"),
        replace(first, image=255 - first.image),
        *(replace(first, image=tmp_path / name) for name in ("a.png", "b.png")),
    ]
    found = [benchmark.contents(replace(category, test=(item, *rest))) for item in items]
    assert len(set(found)) == len(items) and found[0] == benchmark.contents(draw_category("nut"))


def test_another_auxiliary_set_is_another_run(run, protocol):
    assert run().folder != run(replace(protocol, trained_on="something else")).folder


def test_cells_of_changed_images_are_computed_again(run, protocol):
    first = run()
    changed = {**protocol.tests, "two": lambda: [replace(draw_category("nut"), name="bolt")]}
    second = run(replace(protocol, tests=changed))
    assert second.folder == first.folder
    one, two = (r.cells[r.cells["dataset"] == "two"]["auroc"].tolist() for r in (first, second))
    assert one != two
    kept = [r.cells[r.cells["dataset"] == "one"]["seconds"].dropna().tolist() for r in (first, second)]
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

    monkeypatch.setattr(METHODS["global embedding"].kind, "score", fail)
    result = run()
    assert any("one/nut, global embedding: RuntimeError: out of luck" in line for line in result.failed)
    assert "global embedding" not in set(result.cells["method"])
    assert set(STORY) <= set(result.cells["method"])


def test_a_method_that_cannot_be_trained_is_named_and_the_others_go_on(run, monkeypatch):
    def fail(self, auxiliary, seed):
        raise InctrlError("no masks to learn from")

    monkeypatch.setattr(METHODS["InCTRL (paper's head)"].kind, "_train", fail)
    result = run()
    first, second = result.failed  # one line a category, with all methods that are trained in this way
    assert first.startswith("one/nut, InCTRL (paper's head), InCTRLv2, InCTRL-lite, ")
    assert first.endswith(": no masks to learn from") and second.startswith("two/bolt, ")
    assert "InCTRL (paper's head)" not in set(result.cells["method"])
    assert "patch max" in set(result.cells["method"])


def test_an_unreadable_image_fails_its_category_alone(run, protocol, tmp_path):
    broken = draw_category("screw")
    (tmp_path / "half.png").write_bytes(b"\x89PNG")
    broken = replace(broken, test=(replace(broken.test[0], image=tmp_path / "half.png"), *broken.test[1:]))
    result = run(replace(protocol, tests={"bad": lambda: [broken], **protocol.tests}))  # the first of all
    (line,) = result.failed  # once, though every method failed on every draw
    assert line.startswith("bad/screw, all methods: ") and "half.png" in line
    assert set(result.cells["dataset"]) == {"one", "two"}
    assert set(STORY) <= set(pd.read_csv(result.folder / "cost.csv")["method"])


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


def record(scores: dict[str, list], labels=(0, 0, 1, 1), dataset="d", category="a", seed=0, **more) -> dict:
    methods = {name: {"scores": values} for name, values in scores.items()}
    place = {"dataset": dataset, "category": category, "shots": 2, "seed": seed}
    return place | {"labels": list(labels), "methods": methods} | more


def test_heads_are_in_the_record_or_in_the_scores():
    one, two = [0.1, 0.2, 0.8, 0.9], [0.3, 0.2, 0.8, 0.9]
    apart = method_scores([record({"A": one}, head=0), record({"A": two}, head=1)])
    together = method_scores([record({"A": [one, two]})])
    assert [cell.head for cell in apart[2]["A"]] == [cell.head for cell in together[2]["A"]] == [0, 1]
    assert [list(cell.scores) for cell in together[2]["A"]] == [one, two]
    failed = record({"A": one}) | {"methods": {"B": {"error": "out of luck"}}}
    assert method_scores([failed]) == {}


def test_intervals_belong_to_their_data_set_and_method():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 15)
    records = [
        record({MINE: rng.normal(labels * 3, 1.0), "patch max": rng.normal(labels, 1.0)},
               labels, dataset, category, seed)
        for dataset in ("one", "two") for category in "ab" for seed in range(2)
    ]  # fmt: skip
    cells = pd.DataFrame(
        {key: r[key] for key in ("dataset", "category", "shots", "seed")}
        | {"method": name, "auroc": auroc(r["labels"], found["scores"]), "ap": 0.5, "f1_max": 0.5}
        for r in records
        for name, found in r["methods"].items()
    )
    summary = summarise_cells(cells, records).set_index(["dataset", "method"])
    assert (summary["low"] < summary["auroc"]).all() and (summary["auroc"] < summary["high"]).all()
    mine, rival = (summary.xs(name, level="method") for name in (MINE, "patch max"))
    np.testing.assert_allclose(mine["gain"], mine["auroc"] - rival["auroc"])
    assert (mine["rival"] == "patch max").all() and rival["gain"].isna().all()
    width = rival["high"] - rival["low"]
    assert width[MEAN] < 0.85 * width[["one", "two"]].max()  # twice as many images and draws


def test_command_line_says_what_is_missing(tmp_path):
    from inctrl_lite.cli import app

    result = CliRunner().invoke(app, ["benchmark", "--protocol", "real"])
    assert result.exit_code == 2 and "needs a folder" in result.output
    result = CliRunner().invoke(app, ["benchmark", "--protocol", "paper", "--data", str(tmp_path)])
    assert "trains on 'mvtec'" in str(result.exception)


def test_a_damaged_cell_is_computed_again(run):
    first = run()
    path = sorted(first.folder.rglob("K*.json"))[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match=path.name):
        second = run()
    assert second.cells["auroc"].tolist() == first.cells["auroc"].tolist()


def test_names_that_differ_in_spaces_have_files_of_their_own():
    names = [benchmark.file_name(name) for name in ("metal nut", "metal_nut", "metal/nut", "bottle")]
    assert len(set(names)) == 4 and names[-1] == "bottle" and not any("/" in name for name in names)


@pytest.mark.parametrize("chunk", [256, 5])
def test_a_cell_holds_the_scores_and_the_pixel_metrics_of_all_test_images(chunk, tmp_path, monkeypatch):
    """Whatever fits into memory at once, and with a map that is wider than high."""
    monkeypatch.setattr(benchmark, "CHUNK", chunk)
    torch.manual_seed(0)
    cnn = timm.create_model("test_efficientnet", num_classes=0)
    backbone = TimmCNN(cnn, "wide", preprocessor=Preprocessor((64, 128), "squeeze"))
    store, category = FeatureStore(backbone, tmp_path), draw_category("nut")
    cells = [benchmark.Cell(tmp_path / f"{seed}.json", 2, seed) for seed in (0, 1)]
    two_heads = {"patch max": [PatchMax(), GlobalNearest()]}
    benchmark.run_category(category, cells, two_heads, backbone, store)
    for cell in cells:
        found = json.loads(read_checked(cell.path))
        answer = found["methods"]["patch max"]
        normals = Images(draw_support(category, 2, cell.seed), backbone, store)
        queries = Images(category.test, backbone, store)
        for scores, method in zip(answer["scores"], two_heads["patch max"], strict=True):
            expected = method.fit(normals, "nut").score(queries).scores
            assert scores == pytest.approx(expected.tolist(), abs=1e-5)
        assert found["normals"] == [item.name for item in normals.items]
        assert ("pixel_auroc" in answer) == (cell.seed == 0)
    assert json.loads(read_checked(cells[0].path))["methods"]["patch max"]["pixel_auroc"] > 0.9


def test_pixel_metrics_need_the_masks_of_all_anomalous_images():
    mask, preprocessor = np.eye(8, dtype=bool), Preprocessor((8, 8))
    items = [
        Item(np.zeros((8, 8, 3), np.uint8), label, "x", mask=mask if label else None) for label in (0, 1)
    ]
    maps = np.stack([np.zeros((8, 8)), mask.astype(float)])
    assert map_metrics(maps, items, preprocessor)["pixel_auroc"] == 1
    assert map_metrics(maps, [items[0], replace(items[1], mask=None)], preprocessor) == {}
    both = np.concatenate([maps, maps[1:]])
    assert map_metrics(both, [*items, replace(items[1], mask=None)], preprocessor) == {}


def test_pixels_are_counted_on_pictures_of_a_bounded_size(monkeypatch):
    seen = []
    monkeypatch.setattr(evaluation, "pixel_metrics", lambda *both: seen.append([x.shape for x in both]) or {})
    mask = np.ones((30, 90), bool)
    item = Item(np.zeros((30, 90, 3), np.uint8), 1, "x", mask=mask)
    for pixels in (45, 256):  # smaller pictures stay as they are
        map_metrics(np.ones((1, 4, 4)), [item], Preprocessor((8, 8), "squeeze"), pixels)
    assert seen == [[(1, 15, 45)] * 2, [(1, 30, 90)] * 2]


def test_what_the_model_does_not_see_counts_as_the_lowest_score():
    """A defect outside the crop is missed, and the rest of the picture is not called one."""
    mask = np.zeros((40, 80), bool)
    mask[:, 20:60] = True  # all that the crop sees
    item = Item(np.zeros((40, 80, 3), np.uint8), 1, "x", mask=mask)
    maps = np.full((1, 4, 4), -3.0)
    maps[0, :, :3] = -1.0
    found = map_metrics(maps, [item], Preprocessor((40, 40), "crop"))
    assert found["pixel_auroc"] > 0.85


@pytest.mark.parametrize("mode", ["crop", "squeeze", "letterbox"])
def test_pixel_metrics_follow_the_preprocessor(mode):
    """A map that is bright where the defect lies in the model's input is perfect, however it got there."""
    preprocessor = Preprocessor((40, 40), mode)
    items, maps = [], []
    for width, height in ((120, 80), (80, 120), (600, 400)):
        mask = np.zeros((height, width), bool)
        mask[height // 2 : height * 3 // 4, width // 2 : width * 5 // 8] = True
        items.append(Item(np.zeros((height, width, 3), np.uint8), 1, "x", "square", mask))
        maps.append(preprocessor.to_model(mask).numpy())
    found = map_metrics(np.stack(maps), items, preprocessor)
    assert found["pixel_auroc"] > 0.99 and found["aupro"] > 0.95


def test_a_thin_defect_survives_the_reduced_mask():
    mask = np.zeros((1000, 700), bool)
    mask[500, 100:600] = True
    assert resize_mask(mask, (179, 256)).any(0).sum() > 120


@pytest.fixture
def summary() -> pd.DataFrame:
    """Two data sets and their mean at K = 4; the untrained head is missing."""
    values = {"patch max": (0.8, 0.6), "raw pixels": (0.5, 0.9), MINE: (0.9, 0.7), STORY[3]: (0.6, 0.6)}
    rows = []
    for method, (one, two) in values.items():
        for dataset, value in (("one", one), ("two", two), (MEAN, (one + two) / 2)):
            rows.append([dataset, 4, method, value, value - 0.1, value + 0.05])
    return pd.DataFrame(rows, columns=["dataset", "shots", "method", "auroc", "low", "high"])


def test_the_best_training_free_method_is_chosen_by_the_mean_or_for_each_data_set(summary):
    best, each = benchmark_report.best_training_free(summary, 4)
    assert best in ("patch max", "raw pixels")  # both have 0.7
    assert each == pytest.approx((0.8 + 0.9) / 2)


@pytest.mark.parametrize("width", [9.0, benchmark_report.PHONE])
def test_dots_show_every_method_once_in_its_colour(summary, width):
    figure = benchmark_report.dots({"drawn": summary, "photographs": summary}, 4, width)
    first, second = figure.axes
    beside = first.get_position().y0 == second.get_position().y0
    assert beside == (width > benchmark_report.PHONE)
    for axes in figure.axes:
        texts = [text.get_text() for text in axes.texts]
        assert texts[:2] == ["0.700", "not in this run"] and texts[2:4] == ["0.800", "0.600"]
        shown = [container.lines[0] for container in axes.containers]
        assert [line.get_xdata()[0] for line in shown] == pytest.approx([0.7, 0.8, 0.6, 0.7])
        colours = [benchmark_report.colour(method) for method in (STORY[0], *STORY[2:])]
        assert [line.get_color() for line in shown][:3] == colours


def test_methods_have_colours_of_their_own():
    colours = benchmark_report.METHOD_COLOURS
    assert len(set(colours.values())) == len(colours) and set(STORY) <= set(colours)
    assert benchmark_report.OTHER_METHODS not in colours.values()
