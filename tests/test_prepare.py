"""Each official layout in miniature, prepared and read back; then what a download may lack."""

import gzip
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from layouts import (
    LAYOUTS,
    aitex,
    batch,
    brainmri,
    cifar10,
    elpv,
    grey,
    headct,
    mnist,
    mvtec,
    save,
    sdd,
    spot,
)
from PIL import Image
from sklearn.model_selection import train_test_split
from test_backbones import Intruder

from inctrl_lite.data.catalogue import CATALOGUE, MULTI_CLASS
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.folders import load_folder
from inctrl_lite.data.images import load_image, load_mask
from inctrl_lite.data.manifest import load_manifest, read_manifest, read_prompts, write_prompts
from inctrl_lite.data.prepare import prepare
from inctrl_lite.errors import InctrlError

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def made(tmp_path):
    """Build a miniature, prepare it and read its manifest: the categories."""

    def made(name, **options):
        LAYOUTS[name](tmp_path / "raw")
        return read_manifest(prepare(name, tmp_path / "raw", tmp_path / "out", **options))

    return made


def sizes(category) -> tuple[int, int, int]:
    labels = [item.label for item in category.test]
    return len(category.train), labels.count(0), labels.count(1)


# --- the nine layouts --------------------------------------------------------------------------------


def test_mvtec(made, tmp_path):
    categories = made("mvtec")
    assert tuple(c.name for c in categories) == CATALOGUE["mvtec"].categories
    assert {sizes(c) for c in categories} == {(3, 2, 2)}
    bottle = categories[0]
    assert (bottle.dataset, bottle.domain) == ("mvtec", "industrial")
    assert [(i.name, i.label, i.defect) for i in bottle.test] == [
        ("bottle/test/good/000.png", 0, "good"),
        ("bottle/test/good/001.png", 0, "good"),
        ("bottle/test/scratch/000.png", 1, "scratch"),
        ("bottle/test/scratch/001.png", 1, "scratch"),
    ]
    assert load_mask(bottle.test[2].mask, (8, 8)).sum() == 4
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["manifest.csv"]  # no copies


def test_visa_keeps_its_jpg_training_normals(made):
    categories = made("visa")
    assert tuple(c.name for c in categories) == CATALOGUE["visa"].categories
    assert {sizes(c) for c in categories} == {(3, 1, 1)}
    candle = categories[0]
    assert [i.name for i in candle.train] == [f"candle/Data/Images/Normal/000{n}.JPG" for n in (1, 2, 3)]
    assert [(i.name, i.label) for i in candle.test] == [
        ("candle/Data/Images/Anomaly/000.JPG", 1),
        ("candle/Data/Images/Normal/0000.JPG", 0),
    ]
    assert load_mask(candle.test[0].mask, (8, 8)).sum() == 4


def test_elpv_leaves_out_what_nobody_was_sure_of(made):
    (cells,) = made("elpv")
    assert (cells.name, cells.domain, sizes(cells)) == ("elpv", "surface", (6, 2, 3))
    assert [i.defect for i in cells.test if i.label] == ["mono", "poly", "poly"]
    names = {i.name for i in cells.train + cells.test}
    assert "elpv/images/cell0012.png" not in names and "elpv/images/cell0013.png" not in names


def test_sdd_cuts_photographs_in_three(made, tmp_path):
    (steel,) = made("sdd")
    assert (steel.name, sizes(steel)) == ("SDD", (8, 3, 1))  # 11 normal thirds, a quarter rounded up
    (broken,) = (item for item in steel.test if item.label)
    assert broken.name == "SDD/images/kos02/Part3_2.png" and broken.defect == "defect"
    assert load_image(broken.image).size == (6, 4)
    assert np.argwhere(load_mask(broken.mask, (6, 4))).tolist() == [
        [1, 2]
    ]  # row 8 of 11, the third begins at 7
    assert np.unique(np.asarray(Image.open(broken.mask))).tolist() == [0, 255]
    rows = {row.file: row for row in load_manifest(tmp_path / "out" / "manifest.csv").rows}
    crops = [rows[f"images/kos01/Part0_{i}.png"] for i in range(3)]
    assert [row.crop for row in crops] == ["0,0,6,3", "0,3,6,7", "0,7,6,11"]
    assert {row.source for row in crops} == {"kos01/Part0.jpg"}
    whole = np.asarray(load_image(tmp_path / "raw" / "kos01" / "Part0.jpg"))
    thirds = [np.asarray(load_image(tmp_path / "out" / row.file)) for row in crops]
    assert np.array_equal(np.concatenate(thirds), whole)


def test_aitex_cuts_strips_into_tiles(made, tmp_path):
    with pytest.warns(UserWarning, match="0100_025_08.png is left out, .*: it has no mask"):
        (fabric,) = made("aitex")
    assert (fabric.name, sizes(fabric)) == ("AITEX", (3, 1, 3))
    assert {i.name.rpartition("_")[0] for i in fabric.train} == {
        "AITEX/images/good/2306881-210020u_0001_000_05"
    }
    broken = {i.name: i for i in fabric.test if i.label}
    assert {name: item.defect for name, item in broken.items()} == {
        "AITEX/images/defect/0001_002_00_02.png": "broken end",
        "AITEX/images/defect/0044_019_04_00.png": "fuzzyball",  # from mask 1
        "AITEX/images/defect/0044_019_04_01.png": "fuzzyball",  # from mask 2
    }
    narrow = broken["AITEX/images/defect/0001_002_00_02.png"]
    assert load_image(narrow.image).size == (128, 256)
    assert np.argwhere(load_mask(narrow.mask, (128, 256))).tolist() == [[10, 600 - 512]]
    strip = np.asarray(load_image(tmp_path / "raw" / "Defect_images" / "0001_002_00.png"))
    assert np.array_equal(np.asarray(load_image(narrow.image)), strip[:, 512:])


def test_brainmri_reads_the_folders_and_not_their_copies(made):
    (brain,) = made("brainmri")
    assert (brain.name, brain.domain, sizes(brain)) == ("brainmri", "medical", (3, 1, 2))
    assert [i.name for i in brain.test if i.label] == ["brainmri/yes/Y1.jpg", "brainmri/yes/Y10.JPG"]


def test_headct_reads_labels_by_number(made):
    (head,) = made("headct")
    assert (head.name, sizes(head)) == ("headct", (6, 2, 4))
    assert [i.name for i in head.test if i.label] == [f"headct/head_ct/head_ct/00{n}.png" for n in range(4)]


@pytest.mark.parametrize(("name", "train"), [("mnist", 2), ("cifar10", 1)])
def test_one_class_against_all_others(made, name, train):
    categories = made(name)
    assert tuple(c.name for c in categories) == CATALOGUE[name].categories
    assert {sizes(c) for c in categories} == {(train, 1, 9)}
    third = categories[2]
    assert {i.defect for i in third.test if i.label} == set(CATALOGUE[name].categories) - {third.name}
    names = [i.name for c in categories for i in c.train + c.test]
    assert len(names) == len(set(names))


def test_several_classes_against_the_others(made, tmp_path):
    (even,) = made("mnist", protocol=MULTI_CLASS)
    assert (even.dataset, even.name, sizes(even)) == ("mnist-multiclass", "even digit", (10, 5, 5))
    assert {i.defect for i in even.test if i.label} == set("13579")
    cifar10(tmp_path / "cifar")
    (animal,) = read_manifest(
        prepare("cifar10", tmp_path / "cifar", tmp_path / "animals", protocol=MULTI_CLASS)
    )
    assert (animal.name, sizes(animal)) == ("animal", (6, 6, 4))
    assert {i.defect for i in animal.test if i.label} == {"airplane", "automobile", "ship", "truck"}


def test_pixels_of_arrays_arrive_in_the_right_place(made, tmp_path):
    seven = made("mnist")[7]
    assert {int(np.asarray(load_image(i.image))[0, 0, 0]) for i in seven.train} == {170, 171}
    cifar10(tmp_path / "cifar")
    cat = read_manifest(prepare("cifar10", tmp_path / "cifar", tmp_path / "cats", only=["cat"]))[0]
    picture = np.asarray(load_image(cat.train[0].image))
    assert cat.name == "cat" and picture.shape == (32, 32, 3) and picture[1, 0].tolist() == [3, 103, 203]
    assert picture[0, 1].tolist() == [7, 7, 7]


def test_headct_without_its_inner_folder(tmp_path):
    for number, place in enumerate(("head_ct", ".")):
        root = headct(tmp_path / str(number) / "raw")
        for path in sorted((root / "head_ct" / "head_ct").iterdir()):
            path.rename(root / place / path.name)
        (root / "head_ct" / "head_ct").rmdir()
        (head,) = read_manifest(
            prepare("headct", tmp_path / str(number) / "raw", tmp_path / str(number) / "out")
        )
        assert sizes(head) == (6, 2, 4)


@pytest.mark.parametrize("dotted", [False, True])
def test_mnist_unzipped(tmp_path, dotted):
    root = mnist(tmp_path / "raw")
    there = [(c.name, sizes(c)) for c in read_manifest(prepare("mnist", root, tmp_path / "zipped"))]
    for path in sorted(root.iterdir()):
        name = path.stem.replace("-idx", ".idx") if dotted else path.stem
        (root / name).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    categories = read_manifest(prepare("mnist", root, tmp_path / "out"))
    assert [(c.name, sizes(c)) for c in categories] == there
    (root / name).write_bytes((root / name).read_bytes()[:-1])
    with pytest.raises(InctrlError, match=f"{name} should hold 20 values"):
        prepare("mnist", root, tmp_path / "cut")


@pytest.mark.parametrize(
    ("name", "train", "test"), [("mnist", "training", "testing"), ("cifar10", "train", "test")]
)
def test_folders_of_png_files(tmp_path, name, train, test):
    """As Kaggle offers them; the public README names these."""
    for start, category in enumerate(CATALOGUE[name].categories):
        for number in range(3):
            split = test if number == 2 else train
            save(tmp_path / "raw" / "folder" / split / category / f"{number}.png", grey(10 * start + number))
    categories = read_manifest(prepare(name, tmp_path / "raw", tmp_path / "out"))
    assert [c.name for c in categories] == list(CATALOGUE[name].categories)
    assert {sizes(c) for c in categories} == {(2, 1, 9)}
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["manifest.csv"]  # no copies
    (several,) = read_manifest(prepare(name, tmp_path / "raw", tmp_path / "all", protocol=MULTI_CLASS))
    assert len(several.test) == 10
    empty = next((tmp_path / "raw" / "folder" / test).iterdir())
    for path in empty.iterdir():
        path.unlink()
    with pytest.raises(InctrlError, match=f"no images in .*{test}/{empty.name}"):
        prepare(name, tmp_path / "raw", tmp_path / "less")


# --- what they have in common ------------------------------------------------------------------------


def test_the_split_is_scikit_learns_of_the_sorted_files(made):
    (head,) = made("headct")
    names = [f"headct/head_ct/head_ct/{n:03}.png" for n in range(4, 12)]
    train, test = train_test_split(names, test_size=0.25, random_state=42)
    assert {i.name for i in head.train} == set(train)
    assert {i.name for i in head.test if not i.label} == set(test)


@pytest.mark.filterwarnings("ignore:.*0100_025_08.png is left out")
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_manifest_is_the_same_on_every_file_system(tmp_path, monkeypatch, name):
    root = LAYOUTS[name](tmp_path / "raw")
    here = prepare(name, root, tmp_path / "here").read_text().splitlines()
    for method in ("iterdir", "glob", "rglob"):
        listed = getattr(Path, method)
        monkeypatch.setattr(Path, method, lambda *a, listed=listed: iter(sorted(listed(*a), reverse=True)))
    there = prepare(name, root, tmp_path / "there").read_text().splitlines()
    assert here[1:] == there[1:]


def test_archives_may_wrap_everything_in_folders(tmp_path):
    deep = "raw/elpv-dataset/elpv-dataset-411fd72/src/elpv_dataset/data"  # as ELPV's repository does
    elpv(tmp_path / deep)
    manifest = prepare("elpv", tmp_path / "raw", tmp_path)
    assert json.loads(manifest.read_text().splitlines()[0][1:])["root"] == deep
    assert len(read_manifest(manifest)) == 1


def test_data_and_manifest_can_move_together(tmp_path):
    headct(tmp_path / "old" / "raw")
    prepare("headct", tmp_path / "old" / "raw", tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert len(read_manifest(tmp_path / "new" / "manifest.csv")) == 1


@pytest.mark.skipif(not (SHARED / "mvtec").is_dir(), reason="the real subsets (../shared/data) are not here")
def test_real_categories_are_read_as_the_folder_reader_reads_them(tmp_path):
    there = sorted(p.name for p in (SHARED / "mvtec").iterdir())
    with pytest.warns(UserWarning, match="105 anomalous images have no mask.* for bottle, screw"):
        prepared = read_manifest(prepare("mvtec", SHARED / "mvtec", tmp_path, only=there))
    assert [(c.name, *sizes(c)) for c in prepared] == [
        ("bottle", 209, 20, 63),
        ("pill", 267, 26, 141),
        ("screw", 260, 60, 50),
        ("toothbrush", 40, 20, 30),
    ]
    for ours, theirs in zip(prepared, load_folder(SHARED / "mvtec"), strict=True):
        assert {(i.name, i.label, i.defect, i.mask is None) for i in ours.train + ours.test} == {
            (i.name, i.label, i.defect, i.mask is None) for i in theirs.train + theirs.test
        }
        assert [i.name for i in draw_support(ours, 8)] == [i.name for i in draw_support(theirs, 8)]


# --- normal images ----------------------------------------------------------------------------------


def test_prompts_are_recorded_and_found_again(made, tmp_path):
    categories = made("visa")
    path = write_prompts(tmp_path / "prompts.json", categories, shots=2, seed=3)
    record = json.loads(path.read_text())
    assert (record["dataset"], record["shots"], record["seed"]) == ("visa", 2, 3)
    found = read_prompts(path, categories)
    for category in categories:
        assert found[category.name] == draw_support(category, 2, 3)
    assert read_prompts(path, categories[:1]).keys() == {"candle"}


def test_prompts_that_changed_are_refused(made, tmp_path):
    categories = made("visa")
    path = write_prompts(tmp_path / "prompts.json", categories, shots=2)
    first = draw_support(categories[0], 2)[0]
    save(first.image, grey(77))
    with pytest.raises(InctrlError, match=f"{first.name} is not the image it was"):
        read_prompts(path, categories)
    path.write_text(path.read_text().replace(first.name, "candle/lost.JPG"))
    with pytest.raises(InctrlError, match="'candle' has no normal image candle/lost.JPG"):
        read_prompts(path, categories)
    (brain,) = read_manifest(prepare("brainmri", brainmri(tmp_path / "mri"), tmp_path / "brain"))
    with pytest.raises(InctrlError, match="holds normal images of visa .* none for 'brainmri'"):
        read_prompts(path, [brain])
    path.write_text("[]")
    with pytest.raises(InctrlError, match="prompts.json is not a record of normal images"):
        read_prompts(path, categories)


def test_more_prompts_than_normals_are_refused(made, tmp_path):
    with pytest.raises(InctrlError, match="'candle' has 3 normal images .* choose from 1 to 3"):
        write_prompts(tmp_path / "prompts.json", made("visa"), shots=4)
    assert not (tmp_path / "prompts.json").exists()


# --- what a download may lack ------------------------------------------------------------------------


def refused(name, root: Path, message: str, **options):
    """`prepare` names the fault and leaves no manifest."""
    with pytest.raises(InctrlError, match=message):
        prepare(name, root, root.parent / "out", **options)
    assert not (root.parent / "out" / "manifest.csv").exists()


def test_a_missing_category_is_named(tmp_path):
    root = mvtec(tmp_path / "raw", ["bottle", "screw"])
    refused("mvtec", root, r"lacks 13 of the data set's categories: cable, .*--only bottle --only screw")
    assert len(read_manifest(prepare("mvtec", root, tmp_path / "out", only=["screw"]))) == 1


def test_an_unexpected_folder_is_left_out_with_a_warning(tmp_path):
    root = mvtec(tmp_path / "raw")
    mvtec(root, ["my_own_bottles"])
    with pytest.warns(UserWarning, match=r"folders that are no part of the data set .*\(1\): my_own_bottles"):
        manifest = prepare("mvtec", root, tmp_path / "out")
    assert len(read_manifest(manifest)) == 15


@pytest.mark.parametrize("name", LAYOUTS)
def test_another_layout_is_refused_with_what_was_found(tmp_path, name):
    save(tmp_path / "raw" / "photos" / "a.png", grey(0))
    refused(name, tmp_path / "raw", r"does not hold .* expected .*, found photos")


def test_a_folder_that_is_none_is_refused(tmp_path):
    refused("visa", tmp_path / "nowhere", "nowhere is no folder")
    (tmp_path / "VisA.tar").write_bytes(b"")
    refused("visa", tmp_path / "VisA.tar", "VisA.tar is a file: unpack it")


def test_an_empty_test_class_is_named(tmp_path):
    root = mvtec(tmp_path / "a" / "raw")
    for path in (root / "cable").glob("*/scratch/*"):
        path.unlink()
    refused("mvtec", root, "no images in .*cable/test/scratch")
    root = elpv(tmp_path / "b" / "raw")
    (root / "labels.csv").write_text((root / "labels.csv").read_text().replace("1.0 ", "0.0 "))
    refused("elpv", root, "category 'elpv' has no anomalous test images")


def test_masks_must_fit_their_images(tmp_path):
    root = mvtec(tmp_path / "a" / "raw")
    mask = save(root / "pill" / "ground_truth" / "scratch" / "000_mask.png", spot(8, 9))
    refused("mvtec", root, r"000_mask.png is \(9, 8\) pixels large, its image \(8, 8\)")
    mask.write_text("no image")
    refused("mvtec", root, "000_mask.png is not an image that can be read")
    root = mvtec(tmp_path / "b" / "raw")
    (root / "pill" / "test" / "scratch" / "001.png").unlink()
    refused("mvtec", root, "1 masks have no image, first .*001_mask.png")
    root = sdd(tmp_path / "c" / "raw")
    save(root / "kos02" / "Part3_label.bmp", np.zeros((11, 7), np.uint8))
    refused("sdd", root, r"Part3_label.bmp has shape \(11, 7\), its image \(11, 6\)")
    root = sdd(tmp_path / "d" / "raw")
    (root / "kos01" / "Part1.jpg").unlink()
    refused("sdd", root, "the mask .*Part1_label.bmp has no image")
    root = sdd(tmp_path / "e" / "raw")
    (root / "kos01" / "Part1_label.bmp").unlink()
    refused("sdd", root, "Part1.jpg has no mask Part1_label.bmp")


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (np.zeros((256, 640), np.uint8), "0001_002_00_mask.png is black"),
        (
            np.ones((256, 512), np.uint8),
            r"0001_002_00_mask.png has shape \(256, 512\), its image \(256, 640\)",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*0100_025_08.png is left out")
def test_a_fabric_strip_whose_mask_is_no_use_is_left_out(tmp_path, mask, why):
    root = aitex(tmp_path / "raw")
    save(root / "Mask_images" / "0001_002_00_mask.png", mask)
    with pytest.warns(UserWarning, match=f"0001_002_00.png is left out, .*{why}"):
        manifest = prepare("aitex", root, tmp_path / "out")
    (fabric,) = read_manifest(manifest)
    assert sizes(fabric) == (3, 1, 2)  # the rest is prepared


def test_anomalous_images_without_mask_are_named(tmp_path):
    root = mvtec(tmp_path / "raw", ["bottle", "screw"])
    (root / "bottle" / "ground_truth" / "scratch" / "001_mask.png").unlink()
    with pytest.warns(
        UserWarning, match=r"1 anomalous images have no mask, first bottle/test/scratch/001\.png"
    ):
        manifest = prepare("mvtec", root, tmp_path / "out", only=["bottle", "screw"])
    assert len(read_manifest(manifest)) == 2


def test_a_fabric_mask_without_strip_is_named(tmp_path):
    root = aitex(tmp_path / "raw")
    (root / "Defect_images" / "0001_002_00.png").unlink()
    (root / "Defect_images" / "0100_025_08.png").unlink()
    refused("aitex", root, "the mask .*0001_002_00_mask.png has no image in Defect_images")


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("visa", "pcb4/Data/Images/Normal/0002.JPG"),
        ("visa", "pcb4/Data/Masks/Anomaly/000.png"),
        ("elpv", "images/cell0003.png"),
        ("headct", "head_ct/head_ct/011.png"),
    ],
)
def test_a_listed_file_that_is_missing_is_named(tmp_path, name, lost):
    root = LAYOUTS[name](tmp_path / "raw")
    (root / lost).unlink()
    refused(name, root, f"1 files that .*csv lists are not there, first {lost}")


@pytest.mark.parametrize(
    ("name", "table", "old", "new", "message"),
    [
        ("visa", "split_csv/1cls.csv", "object,split", "object;split", "the columns should be object,split"),
        ("visa", "split_csv/1cls.csv", "test,normal,", "valid,normal,", "the line of .* makes no sense"),
        ("visa", "split_csv/1cls.csv", "pcb3,", "pcb5,", "category 'pcb3' has no training normals"),
        ("visa", "split_csv/1cls.csv", ",candle/", ",../candle/", "the line of '../candle.* makes no sense"),
        ("elpv", "labels.csv", "0.0 ", "0,0 ", "line 1: a file, a probability and a kind are expected"),
        ("elpv", "labels.csv", "images/", "/etc/", "line 1: '/etc/cell0001.png' leads out"),
        ("headct", "labels.csv", "3,1", "3,2", "line 5: the label is 2"),
        ("headct", "labels.csv", "3,1", "3", "line 5: an id and a label are expected"),
        ("headct", "labels.csv", "\n", " ", "category 'headct' has no training normals"),
    ],
)
def test_a_table_that_makes_no_sense_is_named(tmp_path, name, table, old, new, message):
    root = LAYOUTS[name](tmp_path / "raw")
    (root / table).write_text((root / table).read_text().replace(old, new))
    refused(name, root, message)


@pytest.mark.parametrize(("name", "table"), [("visa", "split_csv/1cls.csv"), ("headct", "labels.csv")])
def test_a_table_with_a_huge_field_is_named(tmp_path, name, table):
    root = LAYOUTS[name](tmp_path / "raw")
    with (root / table).open("a") as file:
        file.write("a" * 200_000 + ",1\n")
    refused(name, root, f"{table} is no table that can be read .*field larger than field limit")


def test_wrong_choices_list_the_right_ones(tmp_path):
    root = mnist(tmp_path / "raw")
    refused("mnist", root, "no protocol 'few'. There are: one-vs-all, multi-class", protocol="few")
    refused("mnist", root, "no category '11'. There are: 0, 1,", only=["11"])
    refused("mnist", root, "one category of all classes", only=["1"], protocol=MULTI_CLASS)


def test_files_of_mnist_that_are_none_are_refused(tmp_path):
    root = mnist(tmp_path / "raw")
    path = root / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    refused("mnist", root, "train-images.* is damaged or cut short")
    path.write_bytes(b"<html>")
    refused("mnist", root, "train-images.* is damaged or cut short")
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    refused("mnist", root, "should hold 15680 values")
    path.write_bytes(gzip.compress(struct.pack(">IIII", 0x803, 2**31, 28, 28)))
    refused("mnist", root, "should hold 1683627180032 values")
    for other in (
        (root / "train-labels-idx1-ubyte.gz").read_bytes(),
        gzip.compress(struct.pack(">I", 0x803)),
    ):
        path.write_bytes(other)
        refused("mnist", root, "is not the file of MNIST that it is called")
    path.write_bytes((root / "t10k-images-idx3-ubyte.gz").read_bytes())
    refused("mnist", root, "images and labels do not belong together")
    path.write_bytes(whole)
    labels = struct.pack(">II", 0x801, 20) + bytes([10] * 20)
    (root / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    refused("mnist", root, "images and labels do not belong together")


def test_a_batch_with_code_in_it_is_refused(tmp_path):
    root = cifar10(tmp_path / "raw")
    path = root / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps({"data": Intruder(tmp_path / "broken-in"), "labels": []}))
    refused("cifar10", root, "data_batch_3 is refused: it is not a batch of CIFAR-10")
    assert not (tmp_path / "broken-in").exists()
    for damaged in (batch([1, 2])[:-100], batch([1, 50]), b"", pickle.dumps([1, 2])):
        path.write_bytes(damaged)
        refused("cifar10", root, "data_batch_3 is refused")


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    root = sdd(tmp_path / "raw")
    (root / "kos01" / "Part0.jpg").write_bytes(b"\xff\xd8\xff half a photograph")
    refused("sdd", root, "Part0.jpg")


# --- manifests ---------------------------------------------------------------------------------------


def test_files_that_moved_are_named_with_what_to_do(tmp_path):
    root = headct(tmp_path / "raw")
    manifest = prepare("headct", root, tmp_path / "out")
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(
        InctrlError, match=r"12 of its files are not there, first .*000.png. Was the data moved\?"
    ):
        read_manifest(manifest)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# {", "{", None),  # the mark is for people
        ("# {", "# [", "is not a manifest"),
        ('"version": 1', '"version": 2', "is a manifest of version 2, this package reads 1"),
        ("file,category", "path,category", "the columns should be file,category"),
        (",0,train,", ",1,train,", "line 3: an anomalous image cannot be in the training split"),
        (",0,train,", ",0,valid,", "line 3: label is '0' .*, split 'valid'"),
        (",0,train,", ",normal,train,", "line 3: label is 'normal'"),
        (",0,train,", ",train,", "line 3: 8 fields are expected"),
        ("head_ct/head_ct/000.png", "../../secret.png", "'../../secret.png' leads out"),
        ("head_ct/head_ct/000.png", "C:/secret.png", "'C:/secret.png' leads out"),
        ("head_ct/head_ct/000.png", "", "no file is named"),
        ("head_ct/head_ct/000.png", "head_ct/head_ct/001.png", "001.png is listed twice"),
        (",1,test,", ",0,test,", "category 'headct' has no anomalous test images"),
        (",0,test,", ",1,test,", "category 'headct' has no normal test images"),
        (",0,train,", ",0,test,", "category 'headct' has no training normals"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_named(tmp_path, old, new, message):
    manifest = prepare("headct", headct(tmp_path / "raw"), tmp_path)
    manifest.write_text(manifest.read_text().replace(old, new))
    if message is None:
        assert len(read_manifest(manifest)) == 1
    else:
        with pytest.raises(InctrlError, match=message):
            read_manifest(manifest)


def test_a_manifest_that_went_through_windows(tmp_path):
    """Backslashes, a byte order mark and other line ends."""
    manifest = prepare("headct", headct(tmp_path / "raw"), tmp_path)
    before = load_manifest(manifest)
    first, *lines = manifest.read_text().splitlines()
    lines = [line.replace("/", "\\") for line in lines]
    manifest.write_bytes("\r\n".join([first, *lines]).encode("utf-8-sig"))
    assert load_manifest(manifest) == before
    head = json.loads(first[1:]) | {"root": ".\\raw"}
    manifest.write_text("\n".join([f"# {json.dumps(head)}", *lines]))
    assert len(read_manifest(manifest)) == 1
    manifest.write_text("\n".join([first, *lines]).replace("head_ct\\head_ct\\000", "..\\..\\000"))
    with pytest.raises(InctrlError, match="'../../000.png' leads out"):
        load_manifest(manifest)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_manifest_in_another_encoding_is_named(tmp_path, encoding):
    manifest = prepare("headct", headct(tmp_path / "raw"), tmp_path)
    manifest.write_bytes(manifest.read_text().replace("headct", "köpfe").encode(encoding))
    with pytest.raises(InctrlError, match="manifest.csv is not a manifest in UTF-8: save it as UTF-8"):
        read_manifest(manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text + "a" * 200_000, "line 15: field larger than field limit .*Prepare it again"),
        (lambda text: "# " + "[" * 200_000, "is not a manifest"),
        (lambda text: text.replace('"root": "raw"', '"root": 5'), "is not a manifest"),
        (lambda text: text.replace("000.png", "0\0.png"), "leads out of|NUL"),
    ],
)
def test_a_hostile_manifest_is_one_line(tmp_path, change, message):
    manifest = prepare("headct", headct(tmp_path / "raw"), tmp_path)
    manifest.write_text(change(manifest.read_text()))
    with pytest.raises(InctrlError, match=message):
        read_manifest(manifest)


def test_a_hostile_record_is_one_line(made, tmp_path):
    (tmp_path / "record.json").write_text("[" * 200_000)
    with pytest.raises(InctrlError, match="record.json is not a record of normal images"):
        read_prompts(tmp_path / "record.json", made("visa"))


def test_a_photograph_that_lies_on_its_side_has_a_mask_that_fits(tmp_path):
    """Cameras note the rotation (EXIF); masks are drawn upright."""
    root = mvtec(tmp_path / "raw", ["bottle"])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey(3, 8, 5)).save(root / "bottle" / "test" / "scratch" / "000.png", exif=exif)
    save(root / "bottle" / "ground_truth" / "scratch" / "000_mask.png", spot(5, 8))
    (bottle,) = read_manifest(prepare("mvtec", root, tmp_path / "out", only=["bottle"]))
    turned = next(i for i in bottle.test if i.label)
    assert load_mask(turned.mask, load_image(turned.image).size).shape == (5, 8)
