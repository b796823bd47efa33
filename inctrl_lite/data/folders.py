"""Image folders: MVTec's layout, which most anomaly data sets share, and plain heaps of photos.

root/category/train/good/*.png                        normal images
root/category/test/good/*.png                         normal images to test on
root/category/test/scratch/*.png                      anomalous images, by kind of defect
root/category/ground_truth/scratch/*_mask.png         where the defect is (optional)
"""

from __future__ import annotations

from pathlib import Path

from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.images import SUFFIXES, find_images
from inctrl_lite.errors import InctrlError

NORMAL_NAMES = ("good", "normal", "ok")


def load_folder(root: str | Path, domain: str = "industrial") -> list[Category]:
    """The categories of a data set in MVTec's layout.

    Args:
        root: folder of category folders, or a single category folder (one that holds train/ and test/).
        domain: recorded with each category.

    Raises:
        InctrlError: the layout is another one, a class is empty, or a mask has no image (named).
    """
    root = Path(root)
    if not root.is_dir():
        raise InctrlError(f"no folder {root}")
    if (root / "train").is_dir() or (root / "test").is_dir():
        return [_load_category(root, root.parent.name, domain)]
    folders = [f for f in sorted(root.iterdir()) if f.is_dir() and not f.name.startswith((".", "__"))]
    folders = [f for f in folders if (f / "train").is_dir() or (f / "test").is_dir()]
    if not folders:
        inside = ", ".join(sorted(p.name for p in root.iterdir())[:6]) or "nothing"
        raise InctrlError(
            f"{root} is not in MVTec's layout: expected CATEGORY/train/good and CATEGORY/test/DEFECT in it, "
            f"found {inside}"
        )
    return [_load_category(folder, root.name, domain) for folder in folders]


def _load_category(folder: Path, dataset: str, domain: str) -> Category:
    train = folder / "train" / "good"
    if not train.is_dir():
        raise InctrlError(
            f"category {folder.name!r}: normal images are expected in {train}, which is missing"
        )
    if not (folder / "test").is_dir():
        raise InctrlError(
            f"category {folder.name!r}: test images are expected in {folder / 'test'}, which is missing"
        )
    test = read_labelled(folder)
    assert test is not None
    return Category(
        dataset=dataset,
        name=folder.name,
        domain=domain,
        train=tuple(
            Item(path, 0, f"{folder.name}/train/good/{path.relative_to(train).as_posix()}")
            for path in find_images(train)
        ),
        test=tuple(test),
    )


def read_labelled(folder: str | Path) -> list[Item] | None:
    """The labelled images of a folder whose sub-folders say what is in them, or None when none do.

    Sub-folders called good, normal or ok hold normal images, all others a kind of defect each. A folder
    with test/ in it is read from there, with masks from ground_truth/.

    Raises:
        InctrlError: a class without images, or masks without images (named).
    """
    folder = Path(folder)
    test, name = (
        (folder / "test", f"{folder.name}/test") if (folder / "test").is_dir() else (folder, folder.name)
    )
    classes = [f for f in sorted(test.iterdir()) if f.is_dir() and not f.name.startswith((".", "__"))]
    if not any(f.name.lower() in NORMAL_NAMES for f in classes):
        return None
    items: list[Item] = []
    for kind in classes:
        normal = kind.name.lower() in NORMAL_NAMES
        masks = {} if normal else _masks(folder / "ground_truth" / kind.name)
        for path in find_images(kind):
            items.append(
                Item(
                    image=path,
                    label=0 if normal else 1,
                    name=f"{name}/{kind.name}/{path.relative_to(kind).as_posix()}",
                    defect="good" if normal else kind.name,
                    mask=masks.pop(path.stem, None),
                )
            )
        if masks:
            lost = next(iter(masks.values()))
            raise InctrlError(
                f"{len(masks)} masks have no image in {kind}, first {lost}: remove them or add the images"
            )
    return items


def _masks(folder: Path) -> dict[str, Path]:
    """Mask files by the stem of their image."""
    if not folder.is_dir():
        return {}
    files = (
        p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
    )
    return {path.stem.removesuffix("_mask"): path for path in files}
