"""Two folders in; scores, heat maps and a report out."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from inctrl_lite import AnomalyDetector, InCTRL, InctrlError, scoring
from inctrl_lite.data.folders import read_labelled
from inctrl_lite.data.images import load_image
from inctrl_lite.evaluation import map_metrics
from inctrl_lite.metrics import image_metrics
from inctrl_lite.scoring import fit_folder, score_categories, score_folder, score_queries


@pytest.fixture
def detector(small_backbone):
    torch.manual_seed(0)
    model = InCTRL(small_backbone.embed_dim, small_backbone.num_patches, head="lite")
    return AnomalyDetector(model, small_backbone, device="cpu")


def save(path, seed: int):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def normals(tmp_path):
    return [save(tmp_path / "normals" / f"{i}.png", i) for i in range(6)][0].parent


@pytest.fixture
def flat(tmp_path):
    return [save(tmp_path / "flat" / f"{i}.png", 50 + i) for i in range(5)][0].parent


@pytest.fixture
def labelled(tmp_path):
    for i in range(4):
        save(tmp_path / "labelled" / "good" / f"{i}.png", 100 + i)
        save(tmp_path / "labelled" / "dent" / f"{i}.png", 200 + i)
    return tmp_path / "labelled"


def rows(out) -> list[dict[str, str]]:
    with open(out / "scores.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_flat_folder_is_scored_as_the_detector_scores_it(detector, normals, flat, tmp_path):
    out = tmp_path / "out"
    result = score_folder(normals, flat, out, shots=3, category="cup", seed=1, model=detector)
    assert len(set(result.normals)) == 3 and all((normals / name).is_file() for name in result.normals)
    detector.fit([normals / name for name in result.normals], "cup")
    expected = detector.predict(flat, "cup").scores
    np.testing.assert_allclose(result.predictions.scores, expected, atol=1e-6)
    table = rows(out)
    assert [row["name"] for row in table] == [f"{i}.png" for i in range(5)]
    np.testing.assert_allclose([float(row["score"]) for row in table], expected, atol=1e-6)
    assert "label" not in table[0] and result.metrics is None
    said = json.loads((out / "scores.json").read_text())
    assert said["normal_images"] == result.normals and said["metrics"] is None and said["skipped"] == []
    assert [s["name"] for s in said["scores"]] == [row["name"] for row in table]
    assert {k: said["settings"][k] for k in ("category", "shots", "seed")} == {
        "category": "cup",
        "shots": 3,
        "seed": 1,
    }


def test_the_seed_decides_which_normal_images_are_drawn(detector, normals, flat, tmp_path):
    drawn = [
        score_folder(normals, flat, tmp_path / "out", shots=3, seed=seed, model=detector).normals
        for seed in (0, 0, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1]
    assert len({frozenset(names) for names in drawn}) > 1


@pytest.mark.filterwarnings("ignore:.*also in the support set")
@pytest.mark.parametrize("inside", ["inctrl-scores", "."])
def test_a_second_run_does_not_score_the_first_ones_heat_maps(detector, flat, monkeypatch, inside):
    monkeypatch.chdir(flat)  # where the command line's default output folder is inside what is read
    first = score_folder(".", ".", inside, shots=2, model=detector)
    second = score_folder(".", ".", inside, shots=2, model=detector)
    assert first.normals == second.normals
    assert [p.name for p in first.predictions] == [p.name for p in second.predictions]


def test_a_single_image_is_a_query_too(detector, normals, flat, tmp_path):
    result = score_folder(normals, flat / "2.png", tmp_path / "out", model=detector)
    assert [p.name for p in result.predictions] == ["2.png"]


def test_labels_from_sub_folders_give_metrics(detector, normals, labelled, tmp_path):
    out = tmp_path / "out"
    result = score_folder(normals, labelled, out, model=detector)
    labels = [int("dent" in p.name) for p in result.predictions]
    assert sum(labels) == 4 and len(labels) == 8
    expected = image_metrics(labels, result.predictions.scores)
    assert {k: result.metrics[k] for k in expected} == expected
    low, high = result.metrics["auroc_interval"]
    assert low <= expected["auroc"] <= high
    assert (result.metrics["normal"], result.metrics["anomalous"]) == (4, 4)
    assert [int(row["label"]) for row in rows(out)] == labels
    assert "AUROC" in result.summary() and "AUROC" in (out / "report.html").read_text()


def test_a_query_of_the_support_set_is_kept_out_of_the_metrics(detector, normals, labelled, tmp_path):
    with pytest.warns(UserWarning, match="also in the support set"):
        result = score_folder(labelled / "good", labelled, tmp_path / "out", shots=2, model=detector)
    assert (result.metrics["normal"], result.metrics["anomalous"]) == (2, 4)
    assert sum(p.in_support for p in result.predictions) == 2
    assert "is in the support set" in (tmp_path / "out" / "report.html").read_text()


def test_every_image_has_its_heat_map_whatever_it_is_called(detector, normals, tmp_path):
    queries = tmp_path / "queries"
    names = ["a.png", "a.bmp", "sub/a.png", "b.1.png", "<script>.png"]
    for seed, name in enumerate(names):
        save(queries / name, 300 + seed)
    out = tmp_path / "out"
    result = score_folder(normals, queries, out, model=detector)
    maps = sorted(p.relative_to(out / "heatmaps").as_posix() for p in (out / "heatmaps").rglob("*.png"))
    assert maps == sorted(f"{name}.png" for name in names)
    for prediction in result.predictions:
        drawn = load_image(out / "heatmaps" / f"{prediction.name}.png")
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(prediction.overlay()))
    report = (out / "report.html").read_text()
    assert "<script>" not in report and "&lt;script&gt;.png" in report


def test_the_report_ranks_and_frames_and_is_cut(detector, normals, flat, tmp_path, monkeypatch):
    out = tmp_path / "out"
    scores = score_folder(normals, flat, out, model=detector).predictions.scores
    threshold = float(np.sort(scores)[2])  # two are above
    monkeypatch.setattr(scoring, "SHOWN", 3)
    result = score_folder(normals, flat, out, model=detector, threshold=threshold)
    assert [p.is_anomalous for p in result.predictions] == list(scores > threshold)
    assert f"2 above {threshold:.3f}\nthreshold: given" in result.summary()
    report = (out / "report.html").read_text()
    ranked = [f"<b>{result.predictions[i].name}</b>" for i in np.argsort(-scores)]
    body = report[report.index("most anomalous first") : report.index("<h2>Normal images")]
    places = [body.find(name) for name in ranked]
    assert places[:3] == sorted(places[:3]) and -1 not in places[:3] and places[3:] == [-1, -1]
    assert body.count('class="bad"') == 2 and body.count('class="good"') == 1
    assert "The first 3 of 5 are shown" in body
    assert len(rows(out)) == 5


def test_unreadable_files_are_skipped_only_when_asked_and_always_listed(detector, normals, flat, tmp_path):
    (flat / "9.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    with pytest.raises(InctrlError, match="9.png"):
        score_folder(normals, flat, out, model=detector)
    assert not out.exists()  # nothing half-written
    result = score_folder(normals, flat, out, model=detector, skip_unreadable=True)
    assert len(result.predictions) == 5 and "1 skipped" in result.summary()
    (skipped,) = json.loads((out / "scores.json").read_text())["skipped"]
    assert skipped["name"] == "9.png" and "not an image" in skipped["reason"]
    assert "Skipped" in (out / "report.html").read_text()


def test_one_normal_image_gives_scores_and_no_verdict(detector, normals, flat, tmp_path):
    result = score_folder(normals, flat, tmp_path / "out", shots=1, model=detector)
    assert result.settings["threshold"] is None and "no threshold" in result.summary()
    assert 'class="bad"' not in (tmp_path / "out" / "report.html").read_text()


def test_wrong_folders_are_named(detector, normals, flat, tmp_path):
    (tmp_path / "empty").mkdir()
    for wrong in ("nowhere", "empty"):
        with pytest.raises(InctrlError, match=wrong):
            score_folder(tmp_path / wrong, flat, tmp_path / "out", model=detector)
        with pytest.raises(InctrlError, match=wrong):
            score_folder(normals, tmp_path / wrong, tmp_path / "out", model=detector)
    with pytest.raises(InctrlError, match="6"):
        score_folder(normals, flat, tmp_path / "out", shots=7, model=detector)


# --- with a fitted detector --------------------------------------------------------------------------


def test_scores_stand_beside_those_of_the_normal_images(detector, normals, flat, tmp_path):
    result = score_folder(normals, flat, tmp_path / "out", model=detector)
    scores = result.settings["normal_scores"]
    assert len(scores) == 4 and result.settings["threshold"] == max(scores)
    said = f"normal images score {min(scores):.3f} to {max(scores):.3f}"
    assert said in result.summary()
    assert "expect about 1 false alarm in 5 normal images" in result.summary()
    row = rows(tmp_path / "out")[0]
    assert float(row["normal_lowest"]) == min(scores) and float(row["normal_highest"]) == max(scores)
    report = (tmp_path / "out" / "report.html").read_text()
    assert f"(normal images {min(scores):.3f} to {max(scores):.3f})" in report


def test_a_fitted_detector_scores_without_the_normal_images(detector, normals, flat, tmp_path):
    fit_folder(detector, normals, "cup", shots=3, seed=1)
    fitted = score_queries(detector, flat, tmp_path / "a")
    at_once = score_folder(normals, flat, tmp_path / "b", shots=3, category="cup", seed=1, model=detector)
    np.testing.assert_array_equal(fitted.predictions.scores, at_once.predictions.scores)
    assert fitted.normals == at_once.normals
    assert fitted.normals[0] in (tmp_path / "a" / "report.html").read_text()


@pytest.mark.parametrize("maps", ["npy", "tiff", "png"])
def test_raw_maps_have_the_size_of_the_picture(detector, normals, flat, tmp_path, maps):
    limits = (0.1, 0.4)
    result = score_folder(normals, flat, tmp_path / "out", model=detector, maps=maps, limits=limits)
    for prediction in result.predictions:
        path = tmp_path / "out" / "maps" / f"{prediction.name}.{maps}"
        values = np.load(path) if maps == "npy" else np.asarray(Image.open(path))
        expected = prediction.upsampled_map()
        assert values.shape == expected.shape == (40, 50) and prediction.limits == limits
        if maps == "png":
            grey = np.nan_to_num(((expected - 0.1) / 0.3).clip(0, 1) * 65535)
            np.testing.assert_allclose(values, grey, atol=1)
        else:
            np.testing.assert_array_equal(values, expected)


def test_masks_beside_the_queries_give_pixel_metrics(detector, normals, labelled, tmp_path):
    for i in range(4):
        mask = np.zeros((40, 50), np.uint8)
        mask[5:15, 5 + i : 25] = 255
        path = labelled / "ground_truth" / "dent" / f"{i}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    result = score_folder(normals, labelled, tmp_path / "out", model=detector)
    known = [item for item in read_labelled(labelled)]
    maps = [p.patch_map for p in result.predictions]
    expected = map_metrics(maps, known, detector.backbone.preprocessor)
    assert {k: result.metrics[k] for k in expected} == expected and "aupro" in expected
    assert "AUPRO" in result.summary() and "AUPRO" in (tmp_path / "out" / "report.html").read_text()


def test_maps_of_images_that_are_gone_are_removed_and_nothing_else(detector, normals, flat, tmp_path):
    out = tmp_path / "out"
    score_folder(normals, flat, out, model=detector, maps="npy")
    (out / "heatmaps" / "mine.png").write_bytes(b"kept")
    outside = save(tmp_path / "outside.png", 1)
    said = json.loads((out / "scores.json").read_text())
    said["scores"].append({"name": "../../outside"})
    (out / "scores.json").write_text(json.dumps(said))
    (flat / "3.png").unlink()
    score_folder(normals, flat, out, model=detector)
    left = {p.name for p in (out / "heatmaps").iterdir()}
    assert left == {"0.png.png", "1.png.png", "2.png.png", "4.png.png", "mine.png"}
    assert not (out / "maps" / "3.png.npy").exists() and outside.exists()


def test_a_folder_for_each_category_is_scored_in_one_run(detector, normals, flat, tmp_path):
    queries = tmp_path / "day"
    for seed, name in enumerate(("cup/a.png", "cup/b.png", "nut/a.png", "other/a.png")):
        save(queries / name, 400 + seed)
    fit_folder(detector, normals, "cup", shots=3)
    fit_folder(detector, flat, "nut")
    with pytest.warns(UserWarning, match="left out other, not among 'cup', 'nut'"):
        found = score_categories(detector, queries, tmp_path / "out")
    assert {k: len(v.predictions) for k, v in found.items()} == {"cup": 2, "nut": 1}
    assert [row["category"] for row in rows(tmp_path / "out")] == ["cup", "cup", "nut"]
    assert (tmp_path / "out" / "nut" / "report.html").exists()
    expected = detector.predict(queries / "nut" / "a.png", "nut").scores
    np.testing.assert_array_equal(found["nut"].predictions.scores, expected)
    with pytest.raises(
        InctrlError, match="no sub-folder called like a fitted category. Fitted: 'cup', 'nut'"
    ):
        score_categories(detector, flat, tmp_path / "again")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maps": "jpg"}, "maps as 'jpg': choose npy, tiff, png"),
        ({"limits": (0.4, 0.2)}, "maps lie in"),
        ({"threshold": 1.5}, "scores lie in"),
    ],
)
def test_wrong_options_are_said_before_anything_takes_time(
    detector, normals, flat, tmp_path, options, message
):
    with pytest.raises(InctrlError, match=message):
        score_folder(normals, flat, tmp_path / "out", model=detector, **options)
    assert not (tmp_path / "out").exists() and not detector.categories


def test_only_the_normal_images_of_a_labelled_folder_are_fitted(detector, labelled):
    taken = fit_folder(detector, labelled, "cup")
    assert len(taken) == 4 and all("good" in item.name for item in taken)


def test_a_category_that_the_caller_has_fitted_stays_as_it_is(detector, normals, flat, tmp_path):
    fit_folder(detector, flat, "object")
    before = detector.categories["object"]
    score_folder(normals, flat / "0.png", tmp_path / "out", model=detector)
    assert detector.categories == {"object": before}
