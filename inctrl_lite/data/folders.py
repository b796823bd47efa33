"""Image folders: MVTec's layout, which most anomaly data sets share, and folders of good and bad images.

MVTec's layout::

    root/category/train/good/*.png                        normal images
    root/category/test/good/*.png                         normal images to test on
    root/category/test/scratch/*.png                      anomalous images, by kind of defect
    root/category/ground_truth/scratch/*_mask.png         where the defect is (optional)

Folders of normal images may be called good, normal or ok, in capitals or not. Normal images may also lie
directly in train/, and masks directly in ground_truth/. A category without train/ and test/ has its normal
images divided: a quarter of them is tested on.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from inctrl_lite.data.catalogue import SEED, TEST_SHARE
from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.images import SUFFIXES, find_images, scan_folder
from inctrl_lite.errors import InctrlError

NORMAL_NAMES = ("good", "normal", "ok")
MASKS = "ground_truth"


def load_folder(root: str | Path, domain: str = "industrial") -> list[Category]:
    """The categories of a data set in MVTec's layout, or of folders with good and bad images.

    Args:
        root: folder of category folders, or a single category folder (one that holds train/ and test/, or
            good/ and a folder for each kind of defect).
        domain: recorded with each category.

    Raises:
        InctrlError: the layout is another one, a class is empty, or a mask fits no image or several (named).
    """
    root = Path(root)
    if not root.is_dir():
        raise InctrlError(f"{root} is {'a file, not' if root.exists() else 'not'} a folder")
    if _is_category(root):
        return [_load_category(root, root.resolve().parent.name, domain)]
    folders = [folder for folder in _folders(root) if _is_category(folder)]
    if not folders:
        inside = ", ".join(sorted(p.name for p in root.iterdir())[:6]) or "nothing"
        raise InctrlError(
            f"{root} is not in MVTec's layout: expected CATEGORY/train/good and CATEGORY/test/DEFECT in it, "
            f"or CATEGORY/good and CATEGORY/DEFECT, found {inside}"
        )
    return [_load_category(folder, root.resolve().name, domain) for folder in folders]


def _folders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted."""
    try:
        return [f for f in sorted(folder.iterdir()) if f.is_dir() and not f.name.startswith((".", "__"))]
    except OSError as error:
        raise InctrlError(f"{folder} may not be opened: {error.strerror or error}") from error


def _is_normal(folder: Path) -> bool:
    return folder.name.lower() in NORMAL_NAMES


def _is_category(folder: Path) -> bool:
    names = {f.name for f in _folders(folder)}
    return bool(names & {"train", "test"}) or any(name.lower() in NORMAL_NAMES for name in names)


def _load_category(folder: Path, dataset: str, domain: str) -> Category:
    name = folder.resolve().name
    if not (folder / "train").is_dir() and not (folder / "test").is_dir():
        train, test = _divided(name, read_labelled(folder) or [])
        return Category(dataset=dataset, name=name, domain=domain, train=train, test=test)
    train = _training_images(folder / "train", name)
    if not (folder / "test").is_dir():
        raise InctrlError(
            f"category {name!r}: test images are expected in {folder / 'test'}, which is missing"
        )
    labelled = read_labelled(folder)
    if labelled is None:
        raise InctrlError(
            f"category {name!r}: normal test images are expected in {folder / 'test' / 'good'}, "
            "which is missing"
        )
    return Category(dataset=dataset, name=name, domain=domain, train=train, test=tuple(labelled))


def _training_images(train: Path, category: str) -> tuple[Item, ...]:
    """Images of train/good (or normal, or ok), or of train/ itself where images lie directly in it."""
    classes = _folders(train) if train.is_dir() else []
    normal = [folder for folder in classes if _is_normal(folder)]
    loose = _images(train) if train.is_dir() else []
    if normal and loose:
        raise InctrlError(
            f"{len(loose)} images lie beside the class folders of {train}, first {loose[0].name}: move them "
            f"into {normal[0].name}"
        )
    if not normal and not loose:
        raise InctrlError(
            f"category {category!r}: normal images are expected in {train / 'good'}, which is missing"
        )
    others = [folder.name for folder in classes if not _is_normal(folder)] if normal else []
    if others:
        warnings.warn(f"{train} should hold normal images only: left out {', '.join(others)}", stacklevel=2)
    return tuple(
        Item(path, 0, f"{category}/{path.relative_to(train.parent).as_posix()}")
        for folder in normal or [train]
        for path in find_images(folder)
    )


def _divided(category: str, items: list[Item]) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Training and test images of a category that is not divided."""
    names = [item.name for item in items if item.label == 0]
    if len(names) < 2:
        raise InctrlError(
            f"category {category!r} has {len(names)} normal images: at least 2 are needed, to train and test"
        )
    tested = held_out(names)
    train = tuple(item for item in items if item.label == 0 and item.name not in tested)
    return train, tuple(item for item in items if item.label == 1 or item.name in tested)


def held_out(names: Iterable[str]) -> set[str]:
    """The quarter of the names that is tested on where a data set does not say.

    What scikit-learn's train_test_split makes of the sorted names with the public code's seed, so that it is
    the same on every machine.
    """
    names = sorted(names)
    order = np.random.RandomState(SEED).permutation(len(names))
    return {names[i] for i in order[: int(np.ceil(TEST_SHARE * len(names)))]}


def read_labelled(folder: str | Path) -> list[Item] | None:
    """The labelled images of a folder whose sub-folders say what is in them, or None when none do.

    Sub-folders called good, normal or ok hold normal images, all others a kind of defect each. A folder
    with test/ in it is read from there. Masks are read from ground_truth/ beside test/ or the classes.

    Raises:
        InctrlError: a class without images, images beside the classes, or a mask that fits no image or
            several (named).
    """
    folder = Path(folder)
    # Resolved, so that the names of images in "." begin with the folder's name too.
    test, name = folder, folder.resolve().name
    if (folder / "test").is_dir():
        test, name = folder / "test", f"{name}/test"
    classes = [f for f in _folders(test) if f.name != MASKS]
    if not any(_is_normal(f) for f in classes):
        return None
    if loose := _images(test):
        raise InctrlError(
            f"{len(loose)} images lie beside the class folders of {test}, first {loose[0].name}: move them "
            "into one"
        )
    images = {kind: find_images(kind) for kind in classes}
    anomalous = {kind: found for kind, found in images.items() if not _is_normal(kind)}
    masks = _match_masks(folder / MASKS, test, [path for found in anomalous.values() for path in found])
    return [
        Item(
            image=path,
            label=int(kind in anomalous),
            name=f"{name}/{path.relative_to(test).as_posix()}",
            defect=kind.name if kind in anomalous else "good",
            mask=masks.get(path),
        )
        for kind, found in images.items()
        for path in found
    ]


def normal_images(folder: str | Path) -> list[Item]:
    """The normal images of a folder, which may be a labelled one.

    Of a folder in MVTec's layout, those of train/ are taken; of a folder with good/ (or normal/, or ok/)
    beside other folders, those of good/; otherwise all images in it.

    Raises:
        InctrlError: no image, or a layout that is not clear (named).
    """
    folder = Path(folder)
    if (folder / "train").is_dir():
        return list(_training_images(folder / "train", folder.resolve().name))
    classes = _folders(folder) if folder.is_dir() else []
    if any(map(_is_normal, classes)) and not all(map(_is_normal, classes)):
        return [item for item in read_labelled(folder) or [] if item.label == 0]
    return [Item(path, 0, path.relative_to(folder).as_posix()) for path in find_images(folder)]


def _match_masks(folder: Path, test: Path, images: list[Path]) -> dict[Path, Path]:
    """The mask of each image that has one.

    A mask is called like its image, with or without `_mask` at the end. It lies in the same sub-folder, or
    elsewhere in that kind of defect's folder, or directly in `folder`, as long as it fits one image only.
    """
    if not folder.is_dir():
        return {}
    same_place: dict[tuple[str, ...], list[Path]] = {}  # by sub-folders and stem
    anywhere: dict[tuple[str, ...], list[Path]] = {}  # by kind of defect and stem, and by stem alone
    for image in images:
        place, stem = image.relative_to(test).parent.parts, image.stem
        same_place.setdefault((*place, stem), []).append(image)
        for key in ((place[0], stem), (stem,)):
            anywhere.setdefault(key, []).append(image)
    found: dict[Path, Path] = {}
    lost = []
    for mask in scan_folder(folder)[0]:
        place, stem = mask.relative_to(folder).parent.parts, mask.stem.removesuffix("_mask")
        if place and place[0].lower() in NORMAL_NAMES:
            continue
        fitting = same_place.get((*place, stem)) or anywhere.get((*place[:1], stem), [])
        if not fitting:
            lost.append(mask)
        elif len(fitting) > 1:
            raise InctrlError(
                f"the mask {mask} fits {len(fitting)} images, {fitting[0]} and {fitting[1]}: put masks into "
                "a folder for each kind of defect, and give images of one folder different names"
            )
        elif fitting[0] in found:
            raise InctrlError(
                f"{fitting[0]} has two masks, {found[fitting[0]]} and {mask}: remove one, or merge them"
            )
        else:
            found[fitting[0]] = mask
    if lost:
        kind = "".join(lost[0].relative_to(folder).parent.parts[:1])
        raise InctrlError(
            f"{len(lost)} masks have no image, first {lost[0]}: remove them or add the images to "
            f"{test / kind}"
        )
    return found


def _images(folder: Path) -> list[Path]:
    """The images directly in a folder."""
    files = sorted(folder.iterdir())
    return [p for p in files if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()]
