"""MVTec's layout in, categories out; other layouts are refused with what was expected and what was found."""

import numpy as np
import pytest
from PIL import Image

from inctrl_lite.data.folders import load_folder, read_labelled
from inctrl_lite.errors import InctrlError

BOTTLE = {
    "train/good": ["000.png", "001.JPG"],
    "test/good": ["000.png"],
    "test/broken": ["000.png", "001.png"],
    "test/stain": ["000.JPG"],
    "ground_truth/broken": ["000_mask.png"],
    "ground_truth/stain": ["000.png"],  # some data sets leave out the _mask
}


def make(root, layout: dict[str, list[str]]):
    for folder, files in layout.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for file in files:
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(root / folder / file)
    return root


@pytest.fixture
def bottle(tmp_path):
    return make(tmp_path / "factory" / "bottle", BOTTLE)


def test_a_category_in_mvtecs_layout(bottle):
    (category,) = load_folder(bottle.parent, domain="surface")
    assert (category.dataset, category.name, category.domain) == ("factory", "bottle", "surface")
    assert [(i.name, i.label) for i in category.train] == [
        ("bottle/train/good/000.png", 0),
        ("bottle/train/good/001.JPG", 0),
    ]
    masks = bottle / "ground_truth"
    assert [(i.name, i.label, i.defect, i.mask) for i in category.test] == [
        ("bottle/test/broken/000.png", 1, "broken", masks / "broken" / "000_mask.png"),
        ("bottle/test/broken/001.png", 1, "broken", None),
        ("bottle/test/good/000.png", 0, "good", None),
        ("bottle/test/stain/000.JPG", 1, "stain", masks / "stain" / "000.png"),
    ]
    assert all(item.image.is_file() for item in category.train + category.test)


def test_a_single_category_folder_is_a_data_set_of_one(bottle):
    (category,) = load_folder(bottle)
    (again,) = load_folder(bottle.parent)
    assert (category.dataset, category.name) == (again.dataset, again.name)
    assert [i.name for i in category.test] == [i.name for i in again.test]


def test_categories_come_sorted_and_other_folders_are_left_out(bottle):
    make(bottle.parent / "apple", {"train/good": ["0.png"], "test/good": ["0.png"]})
    (bottle.parent / "licence").mkdir()
    (bottle.parent / ".cache" / "train").mkdir(parents=True)
    assert [c.name for c in load_folder(bottle.parent)] == ["apple", "bottle"]


def test_here_has_a_name_too(bottle, monkeypatch):
    """Names become file names of heat maps: "." must not turn into "/test/..."."""
    monkeypatch.chdir(bottle)
    (category,) = load_folder(".")
    assert (category.dataset, category.name) == ("factory", "bottle")
    assert category.test[0].name == "bottle/test/broken/000.png"
    monkeypatch.chdir(bottle / "test")
    assert read_labelled(".")[0].name == "test/broken/000.png"
    assert read_labelled("..")[0].name == "bottle/test/broken/000.png"


def test_labels_are_read_from_sub_folders_without_a_test_folder(tmp_path):
    make(tmp_path / "photos", {"OK": ["a.png"], "dent/deep": ["b.png"], "Good": ["c.png"]})
    items = read_labelled(tmp_path / "photos")
    assert [(i.name, i.label, i.defect) for i in items] == [
        ("photos/Good/c.png", 0, "good"),
        ("photos/OK/a.png", 0, "good"),
        ("photos/dent/deep/b.png", 1, "dent"),
    ]


def test_a_flat_folder_has_no_labels(tmp_path):
    make(tmp_path, {"photos": ["a.png"], "days/monday": ["b.png"], "days/tuesday": ["c.png"]})
    assert read_labelled(tmp_path / "photos") is None
    assert read_labelled(tmp_path / "days") is None


def test_another_layout_is_refused_with_what_was_found(tmp_path):
    make(tmp_path, {"shop/photos": ["a.png"], "shop/more": ["b.png"]})
    with pytest.raises(InctrlError, match=r"shop is not in MVTec's layout: expected .* found more, photos"):
        load_folder(tmp_path / "shop")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InctrlError, match="found nothing"):
        load_folder(tmp_path / "empty")
    with pytest.raises(InctrlError, match="nowhere is not a folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(InctrlError, match="a.png is a file, not a folder"):
        load_folder(tmp_path / "shop" / "photos" / "a.png")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("train/good", r"'bottle': normal images are expected in .*train/good, which is missing"),
        ("test", r"'bottle': test images are expected in .*test, which is missing"),
        ("test/good", r"'bottle': normal test images are expected in .*test/good, which is missing"),
    ],
)
def test_a_missing_part_is_named(tmp_path, missing, message):
    kept = {folder: files for folder, files in BOTTLE.items() if not folder.startswith(missing)}
    with pytest.raises(InctrlError, match=message):
        load_folder(make(tmp_path / "bottle", kept))


@pytest.mark.parametrize("part", ["train/good", "test/good", "test/stain"])
def test_an_empty_part_is_named(tmp_path, part):
    without = {k: v for k, v in BOTTLE.items() if k != "ground_truth/stain"}
    with pytest.raises(InctrlError, match=f"no images in .*bottle/{part}"):
        load_folder(make(tmp_path / "bottle", without | {part: []}))


@pytest.mark.parametrize("kind", ["broken", "scratch"])
def test_a_mask_without_image_is_named(bottle, kind):
    make(bottle / "ground_truth" / kind, {"more": []})
    Image.new("L", (4, 4)).save(bottle / "ground_truth" / kind / "007_mask.png")
    with pytest.raises(InctrlError, match=f"1 masks have no image, first .*007_mask.png.*test/{kind}"):
        load_folder(bottle)


def test_masks_of_normal_images_are_nobodys_business(bottle):
    make(bottle, {"ground_truth/good": ["000_mask.png"]})
    (category,) = load_folder(bottle)
    assert [i.mask for i in category.test if i.label == 0] == [None]


@pytest.mark.parametrize("name", ["ok", "Good", "NORMAL"])
def test_normal_images_may_be_called_otherwise(tmp_path, name):
    layout = {folder.replace("good", name): files for folder, files in BOTTLE.items()}
    (category,) = load_folder(make(tmp_path / "bottle", layout))
    assert [i.name for i in category.train] == [
        f"bottle/train/{name}/000.png",
        f"bottle/train/{name}/001.JPG",
    ]
    assert [i.label for i in category.test].count(0) == 1
    assert {i.defect for i in category.test} == {"good", "broken", "stain"}


def test_training_images_may_lie_in_train_itself(tmp_path):
    layout = {folder: files for folder, files in BOTTLE.items() if folder != "train/good"}
    make(tmp_path / "bottle", layout | {"train": ["a.png"], "train/monday": ["b.png"]})
    (category,) = load_folder(tmp_path / "bottle")
    assert [i.name for i in category.train] == ["bottle/train/a.png", "bottle/train/monday/b.png"]


def test_images_beside_train_good_are_not_lost_silently(bottle):
    Image.new("RGB", (4, 4)).save(bottle / "train" / "stray.png")
    with pytest.raises(
        InctrlError, match="1 images lie beside the class folders of .*train, first stray.png"
    ):
        load_folder(bottle)


def test_folders_beside_train_good_are_named(bottle):
    make(bottle, {"train/bad": ["0.png"]})
    with pytest.warns(UserWarning, match="train should hold normal images only: left out bad"):
        (category,) = load_folder(bottle)
    assert len(category.train) == 2


def test_good_and_bad_images_without_a_division(tmp_path):
    parts = {"ok": [f"{i}.png" for i in range(8)], "dent": ["a.png"], "ground_truth/dent": ["a.png"]}
    make(tmp_path / "factory" / "nut", parts)
    (category,) = load_folder(tmp_path / "factory")
    (again,) = load_folder(tmp_path / "factory" / "nut")
    assert [i.name for i in category.train] == [i.name for i in again.train]
    assert len(category.train) == 6 and [i.label for i in category.test] == [1, 0, 0]
    assert category.test[0].mask is not None and {i.defect for i in category.test} == {"dent", "good"}
    assert not {i.name for i in category.train} & {i.name for i in category.test}
    make(tmp_path / "few", {"good": ["a.png"], "bad": ["b.png"]})
    with pytest.raises(InctrlError, match="'few' has 1 normal images: at least 2"):
        load_folder(tmp_path / "few")


def masks_of(items) -> dict[str, str]:
    return {i.name.partition("test/")[2]: i.mask.name for i in items if i.mask}


def test_masks_may_lie_in_ground_truth_itself(tmp_path):
    layout = {k: v for k, v in BOTTLE.items() if not k.startswith("ground_truth")}
    layout["test/broken"] = ["30.png", "31.png"]
    make(tmp_path / "bottle", layout | {"ground_truth": ["30_mask.png", "000.png"]})
    assert masks_of(read_labelled(tmp_path / "bottle")) == {
        "broken/30.png": "30_mask.png",
        "stain/000.JPG": "000.png",  # test/good/000.png is no candidate
    }


def test_masks_of_images_in_deeper_folders(tmp_path):
    make(
        tmp_path / "bottle",
        {
            "test/good": ["0.png"],
            "test/broken/left": ["0.png", "1.png"],
            "test/broken/right": ["0.png"],
            "test/broken": ["0.png"],
            "ground_truth/broken": ["0.png"],
            "ground_truth/broken/left": ["0_mask.png"],
            "ground_truth/broken/right": ["0.png"],
            "ground_truth/broken/all": ["1_mask.png"],  # elsewhere, but it fits one image only
        },
    )
    items = read_labelled(tmp_path / "bottle")
    assert masks_of(items) == {
        "broken/0.png": "0.png",
        "broken/left/0.png": "0_mask.png",
        "broken/left/1.png": "1_mask.png",
        "broken/right/0.png": "0.png",
    }
    folders = {i.name.partition("test/")[2]: i.mask.parent.name for i in items if i.mask}
    assert folders["broken/0.png"] == "broken" and folders["broken/left/0.png"] == "left"


def test_a_mask_that_fits_several_images_is_named(bottle):
    Image.new("L", (4, 4)).save(bottle / "ground_truth" / "000_mask.png")
    with pytest.raises(InctrlError, match=r"the mask .*000_mask\.png fits 2 images, .*broken.* and .*stain"):
        load_folder(bottle)


def test_two_masks_of_one_image_are_named(bottle):
    Image.new("L", (4, 4)).save(bottle / "ground_truth" / "broken" / "000.png")
    with pytest.raises(InctrlError, match=r"broken/000\.png has two masks, .*000\.png and .*000_mask\.png"):
        load_folder(bottle)


def test_images_beside_the_class_folders_are_not_lost_silently(bottle):
    Image.new("RGB", (4, 4)).save(bottle / "test" / "stray.jpeg")
    with pytest.raises(InctrlError, match="1 images lie beside the class folders .*stray.jpeg"):
        load_folder(bottle)
