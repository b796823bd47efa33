"""What verification finds in a data set, and what it says about it."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from layouts import LAYOUTS, grey, mvtec, save

from inctrl_lite.data.catalogue import CATALOGUE, MULTI_CLASS, ONE_VS_ALL, Counts
from inctrl_lite.data.manifest import load_manifest, write_manifest
from inctrl_lite.data.prepare import prepare
from inctrl_lite.data.verify import verify
from inctrl_lite.errors import InctrlError

# What the miniatures hold: training normals, normal and anomalous test images.
MINIATURES = {
    "mvtec": (45, 30, 30),
    "visa": (36, 12, 12),
    "elpv": (6, 2, 3),
    "sdd": (8, 3, 1),
    "aitex": (3, 1, 3),
    "brainmri": (3, 1, 2),
    "headct": (6, 2, 4),
    "mnist": (20, 10, 90),
    "cifar10": (10, 10, 90),
}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Prepare a miniature of a data set whose catalogue entry expects just what the miniature holds."""

    def made(name, **options):
        counts = dict.fromkeys(CATALOGUE[name].counts, Counts(*MINIATURES[name], True, "counted here"))
        monkeypatch.setitem(CATALOGUE, name, replace(CATALOGUE[name], counts=counts))
        LAYOUTS[name](tmp_path / "raw")
        return prepare(name, tmp_path / "raw", tmp_path / "out", **options)

    return made


def found(report, level: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(finding.what, finding.files) for finding in report.findings if finding.level == level]


@pytest.mark.filterwarnings("ignore:.*0100_025_08.png is left out")
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_sound_data_set_has_no_errors(made, name):
    report = verify(made(name))
    assert report.is_sound and not found(report, "error") and not found(report, "warning")
    assert tuple(sum(column) for column in zip(*report.counts.values(), strict=True)) == MINIATURES[name]
    assert report.summary().endswith("sound: no errors")


def test_a_difference_from_certain_counts_is_an_error(made, monkeypatch):
    manifest = made("headct")
    counts = {"": Counts(75, 25, 100, True, "stated by its author")}
    monkeypatch.setitem(CATALOGUE, "headct", replace(CATALOGUE["headct"], counts=counts))
    ((what, _),) = found(verify(manifest), "error")
    assert "(6, 2, 4)" in what and "(75, 25, 100) are expected (stated by its author)" in what
    counts = {"": Counts(75, 25, 100, False, "from memory")}
    monkeypatch.setitem(CATALOGUE, "headct", replace(CATALOGUE["headct"], counts=counts))
    report = verify(manifest)
    assert report.is_sound and "not certain (from memory)" in found(report, "warning")[0][0]


def test_a_category_with_other_counts_is_named(made, monkeypatch):
    manifest = made("visa")
    counts = {"": Counts(36, 12, 12, True, "counted", {"candle": (1, 1), "pcb3": (101, 100)})}
    monkeypatch.setitem(CATALOGUE, "visa", replace(CATALOGUE["visa"], counts=counts))
    ((what, _),) = found(verify(manifest), "error")
    assert what.startswith("pcb3 has 1 normal and 1 anomalous test images, 101 and 100 are expected")


def test_counts_of_a_part_are_not_compared(made):
    ((what, _),) = found(verify(made("mvtec", only=["bottle", "pill"])), "note")
    assert what == "2 of 15 categories are prepared: totals not compared"


def test_protocols_have_counts_of_their_own(made, monkeypatch):
    manifest = made("cifar10", protocol=MULTI_CLASS)
    counts = {ONE_VS_ALL: Counts(0, 0, 0, True, ""), MULTI_CLASS: Counts(6, 6, 4, True, "")}
    monkeypatch.setitem(CATALOGUE, "cifar10", replace(CATALOGUE["cifar10"], counts=counts))
    assert verify(manifest).findings == ()


def test_a_data_set_of_ones_own_has_nothing_to_compare_with(made):
    manifest = made("headct")
    write_manifest(manifest, replace(load_manifest(manifest), dataset="my-bottles"))
    ((what, _),) = found(verify(manifest), "note")
    assert "my-bottles is not in the catalogue" in what
    write_manifest(manifest, replace(load_manifest(manifest), dataset="headct-multiclass"))
    ((what, _),) = found(verify(manifest), "note")
    assert "headct-multiclass is not in the catalogue" in what


def test_unreadable_and_missing_files_are_named(made, tmp_path):
    manifest = made("mvtec")
    raw = tmp_path / "raw"
    (raw / "bottle" / "train" / "good" / "000.png").write_bytes(b"half a picture")
    (raw / "cable" / "test" / "good" / "001.png").unlink()
    (raw / "wood" / "ground_truth" / "scratch" / "001_mask.png").unlink()
    save(raw / "pill" / "ground_truth" / "scratch" / "000_mask.png", np.ones((9, 8), np.uint8))
    save(raw / "pill" / "ground_truth" / "scratch" / "001_mask.png", np.zeros((8, 8), np.uint8))
    report = verify(manifest)
    errors = {what.partition(":")[0]: files for what, files in found(report, "error")}
    assert errors["2 files are missing"] == (
        "cable/test/good/001.png",
        "wood/ground_truth/scratch/001_mask.png",
    )
    (unreadable,) = errors["1 images cannot be read"]
    assert unreadable.startswith("bottle/train/good/000.png: ")
    ((what, (mask,)),) = [e for e in found(report, "error") if "masks" in e[0]]
    assert mask.startswith("pill/ground_truth/scratch/000_mask.png: ") and "(9, 8)" in mask
    ((what, files),) = found(report, "warning")
    assert "all black" in what and files == ("pill/ground_truth/scratch/001_mask.png",)
    assert "NOT sound" in report.summary() and "000.png" in report.summary()


@pytest.mark.filterwarnings("ignore:1 anomalous images have no mask")
def test_missing_masks_are_an_error(made, tmp_path):
    mask = tmp_path / "raw" / "bottle" / "ground_truth" / "scratch" / "001_mask.png"
    mvtec(tmp_path / "raw")
    content = mask.read_bytes()
    manifest = made("mvtec")
    assert verify(manifest).is_sound
    mask.unlink()
    prepare("mvtec", tmp_path / "raw", tmp_path / "out")
    report = verify(manifest)
    ((what, files),) = found(report, "error")
    assert what.startswith("1 anomalous images have no mask") and files == ("bottle/test/scratch/001.png",)
    write_manifest(manifest, replace(load_manifest(manifest), dataset="my-bottles"))
    assert verify(manifest).is_sound  # whoever draws masks may draw some
    mask.write_bytes(content)


def test_what_reading_warns_of_is_found(made, tmp_path):
    manifest = made("mvtec")
    for number in (0, 1):
        values = np.full((8, 8), 4000 + number, np.uint16)  # 12 bits in 16
        save(tmp_path / "raw" / "bottle" / "train" / "good" / f"00{number}.png", values)
    ((what, files),) = found(verify(manifest), "warning")
    assert what.startswith("2 images in ") and "read as 12 bits" in what
    assert files == ("bottle/train/good/000.png", "bottle/train/good/001.png")


def test_duplicates_are_told_by_what_they_do(made, tmp_path):
    manifest = made("mvtec")
    screw = tmp_path / "raw" / "screw"
    grid = tmp_path / "raw" / "grid"
    shutil.copy(grid / "train/good/000.png", grid / "test/scratch/000.png")  # a leak, and anomalous as well
    shutil.copy(screw / "train/good/000.png", screw / "train/good/001.png")  # twice in training
    shutil.copy(screw / "train/good/002.png", screw / "test/good/000.png")  # a leak
    shutil.copy(screw / "test/good/001.png", screw / "test/scratch/000.png")  # normal and anomalous
    shutil.copy(
        screw / "test/scratch/001.png", tmp_path / "raw/zipper/test/scratch/001.png"
    )  # two categories
    report = verify(manifest)
    ((what, files),) = found(report, "error")
    assert "normal and anomalous at once" in what
    assert files == (
        "grid/test/scratch/000.png = grid/train/good/000.png",
        "screw/test/good/001.png = screw/test/scratch/000.png",
    )
    ((what, files),) = found(report, "warning")
    assert "in training and test" in what and "AUROC too high" in what
    assert files == ("screw/test/good/000.png = screw/train/good/002.png",)
    ((what, files),) = found(report, "note")
    assert "more than once in one split" in what
    assert files == ("screw/train/good/000.png = screw/train/good/001.png",)


def test_errors_come_first(made, monkeypatch):
    manifest = made("sdd")
    counts = {"": Counts(857, 286, 54, True, "stated")}
    monkeypatch.setitem(CATALOGUE, "sdd", replace(CATALOGUE["sdd"], counts=counts))
    assert [finding.level for finding in verify(manifest).findings] == ["error", "note"]


def test_pieces_of_one_photograph_in_both_splits_are_noted(made):
    manifest = made("sdd")
    rows = load_manifest(manifest).rows
    splits = {}
    for row in rows:
        splits.setdefault(row.source, set()).add(row.split)
    torn = tuple(sorted(source for source, both in splits.items() if len(both) == 2))
    ((what, files),) = found(verify(manifest), "note")
    assert torn and files == torn and "as in the public protocol" in what


def test_long_lists_are_cut_in_the_summary_only(made, tmp_path):
    manifest = made("headct")
    for path in (tmp_path / "raw" / "head_ct" / "head_ct").iterdir():
        path.unlink()
    report = verify(manifest)
    assert len(report.to_dict()["findings"][0]["files"]) == 12
    assert "and 7 more" in report.summary() and report.summary().count(".png") == 5


def test_what_is_no_manifest_is_refused(tmp_path):
    save(tmp_path / "a.png", grey(0))
    with pytest.raises(InctrlError, match="is not a manifest"):
        verify(tmp_path / "a.png")
    with pytest.raises(InctrlError, match="cannot read the manifest"):
        verify(tmp_path / "manifest.csv")
