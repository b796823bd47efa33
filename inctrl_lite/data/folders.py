"""Image folders: MVTec's layout, which most anomaly data sets share, and plain heaps of photos.

MVTec's layout::

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
        raise InctrlError(f"{root} is {'a file, not' if root.exists() else 'not'} a folder")
    if (root / "train").is_dir() or (root / "test").is_dir():
        return [_load_category(root, root.resolve().parent.name, domain)]
    folders = [f for f in sorted(root.iterdir()) if f.is_dir() and not f.name.startswith((".", "__"))]
    folders = [f for f in folders if (f / "train").is_dir() or (f / "test").is_dir()]
    if not folders:
        inside = ", ".join(sorted(p.name for p in root.iterdir())[:6]) or "nothing"
        raise InctrlError(
            f"{root} is not in MVTec's layout: expected CATEGORY/train/good and CATEGORY/test/DEFECT in it, "
            f"found {inside}"
        )
    return [_load_category(folder, root.resolve().name, domain) for folder in folders]


def _load_category(folder: Path, dataset: str, domain: str) -> Category:
    name, train = folder.resolve().name, folder / "train" / "good"
    for needed, what in ((train, "normal images"), (folder / "test", "test images")):
        if not needed.is_dir():
            raise InctrlError(f"category {name!r}: {what} are expected in {needed}, which is missing")
    test = read_labelled(folder)
    if test is None:
        raise InctrlError(
            f"category {name!r}: normal test images are expected in {folder / 'test' / 'good'}, "
            "which is missing"
        )
    pool = find_images(train)
    return Category(
        dataset=dataset,
        name=name,
        domain=domain,
        train=tuple(Item(p, 0, f"{name}/train/good/{p.relative_to(train).as_posix()}") for p in pool),
        test=tuple(test),
    )


def read_labelled(folder: str | Path) -> list[Item] | None:
    """The labelled images of a folder whose sub-folders say what is in them, or None when none do.

    Sub-folders called good, normal or ok hold normal images, all others a kind of defect each. A folder
    with test/ in it is read from there, with masks from ground_truth/.

    Raises:
        InctrlError: a class without images, images beside the classes, or masks without images (named).
    """
    folder = Path(folder)
    # Resolved, so that the names of images in "." begin with the folder's name too.
    test, name = folder, folder.resolve().name
    if (folder / "test").is_dir():
        test, name = folder / "test", f"{name}/test"
    classes = [f for f in sorted(test.iterdir()) if f.is_dir() and not f.name.startswith((".", "__"))]
    if not any(f.name.lower() in NORMAL_NAMES for f in classes):
        return None
    if loose := _images(test):
        raise InctrlError(
            f"{len(loose)} images lie beside the class folders of {test}, first {loose[0].name}: move them "
            "into one"
        )
    masks = _masks(folder / "ground_truth")
    items: list[Item] = []
    for kind in classes:
        normal = kind.name.lower() in NORMAL_NAMES
        for path in find_images(kind):
            items.append(
                Item(
                    image=path,
                    label=0 if normal else 1,
                    name=f"{name}/{kind.name}/{path.relative_to(kind).as_posix()}",
                    defect="good" if normal else kind.name,
                    mask=None if normal else masks.pop((kind.name, path.stem), None),
                )
            )
    if masks:
        (kind_name, _), lost = next(iter(masks.items()))
        raise InctrlError(
            f"{len(masks)} masks have no image, first {lost}: remove them or add the images to "
            f"{test / kind_name}"
        )
    return items


def _masks(folder: Path) -> dict[tuple[str, str], Path]:
    """Mask files by the kind of defect and the stem of their image."""
    kinds = [kind for kind in sorted(folder.glob("*")) if kind.is_dir()]
    return {
        (kind.name, path.stem.removesuffix("_mask")): path
        for kind in kinds
        if kind.name.lower() not in NORMAL_NAMES
        for path in _images(kind)
    }


def _images(folder: Path) -> list[Path]:
    """The images directly in a folder."""
    files = sorted(folder.iterdir())
    return [p for p in files if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
