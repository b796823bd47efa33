"""Miniatures of the nine official layouts: the names, headers and mask conventions of the real ones."""

import gzip
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from inctrl_lite.data.catalogue import CATALOGUE


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def grey(number: int, height: int = 8, width: int = 8) -> np.ndarray:
    """A plain image; every number has its own brightness and its own bytes."""
    image = np.full((height, width), 40 + number % 200, np.uint8)
    image[0, : 1 + number % width] = number // 8 % 256
    return image


def spot(height: int = 8, width: int = 8) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[2:4, 2:4] = 255
    return mask


def mvtec(root: Path, categories=CATALOGUE["mvtec"].categories) -> Path:
    """A category: three training normals, two normal and two anomalous test images."""
    for start, category in enumerate(categories):
        files = ["train/good/000", "train/good/001", "train/good/002", "test/good/000", "test/good/001"]
        for number, file in enumerate([*files, "test/scratch/000", "test/scratch/001"]):
            save(root / category / f"{file}.png", grey(100 * start + number))
        for number in ("000", "001"):
            save(root / category / f"ground_truth/scratch/{number}_mask.png", spot())
    (root / "license.txt").write_text("CC BY-NC-SA 4.0")
    return root


def visa(root: Path) -> Path:
    """A category: three training normals, one normal and one anomalous test image, all called .JPG."""
    lines = ["object,split,label,image,mask"]
    for start, category in enumerate(CATALOGUE["visa"].categories):
        images = f"{category}/Data/Images"
        for number, split in enumerate(("test", "train", "train", "train")):
            name = f"{images}/Normal/{number:04}.JPG"
            save(root / name, grey(100 * start + number))
            lines.append(f"{category},{split},normal,{name},")
        name, mask = f"{images}/Anomaly/000.JPG", f"{category}/Data/Masks/Anomaly/000.png"
        save(root / name, grey(100 * start + 9))
        save(root / mask, spot() // 255)  # VisA's masks hold small numbers, 1 for the first kind of defect
        lines.append(f"{category},test,anomaly,{name},{mask}")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(lines) + "\n")
    return root


def elpv(root: Path) -> Path:
    """Eight normal cells, one mono and two poly anomalous ones, two of which nobody was sure."""
    probabilities = ["0.0"] * 8 + ["1.0"] * 3 + ["0.3333333333333333", "0.6666666666666666"]
    lines = []
    for number, probability in enumerate(probabilities, start=1):
        save(root / f"images/cell{number:04}.png", grey(number))
        lines.append(f"images/cell{number:04}.png  {probability:18}  {'mono' if number == 9 else 'poly'}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def sdd(root: Path) -> Path:
    """Four photographs 11 pixels high, hence thirds of 3, 4 and 4; a defect in the last third of the last."""
    for number in range(4):
        part = root / f"kos{1 + number // 2:02}"
        photograph, mask = grey(number, 11, 6), np.zeros((11, 6), np.uint8)
        photograph[3:7] += 50
        photograph[7:] += 100
        if number == 3:
            mask[8, 2] = 255
        save(part / f"Part{number}.jpg", photograph)
        save(part / f"Part{number}_label.bmp", mask)
    return root


def aitex(root: Path) -> Path:
    """A normal strip of four tiles, a defective one of two and a half, one with two masks, one with none."""
    rng = np.random.default_rng(0)

    def strip(width):
        return rng.integers(0, 255, (256, width), dtype=np.uint8)

    save(root / "NODefect_images/2306881-210020u/0001_000_05.png", strip(1024))
    save(root / "Defect_images/0001_002_00.png", strip(640))
    mask = np.zeros((256, 640), np.uint8)
    mask[10, 600] = 255  # in the narrow last tile
    save(root / "Mask_images/0001_002_00_mask.png", mask)
    save(root / "Defect_images/0044_019_04.png", strip(512))
    for number, column in ((1, 5), (2, 300)):
        mask = np.zeros((256, 512), np.uint8)
        mask[0, column] = 255
        save(root / f"Mask_images/0044_019_04_mask{number}.png", mask)
    save(root / "Defect_images/0100_025_08.png", strip(512))
    return root


def brainmri(root: Path) -> Path:
    """Four slices without and two with a tumor, all twice, as in the archive."""
    for top in (root, root / "brain_tumor_dataset"):
        for number, name in enumerate(
            ("no/1 no.jpeg", "no/N1.JPG", "no/No11.jpg", "no/no 2.jpg", "yes/Y1.jpg", "yes/Y10.JPG")
        ):
            save(top / name, grey(number))
    return root


def headct(root: Path) -> Path:
    """Four heads with a hemorrhage and eight without."""
    lines = ["id, hemorrhage"]
    for number in range(12):
        save(root / f"head_ct/head_ct/{number:03}.png", grey(number))
        lines.append(f"{number},{int(number < 4)}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def mnist(root: Path) -> Path:
    """Two training images and one test image of each digit; the pixels say which."""
    root.mkdir(parents=True, exist_ok=True)
    for prefix, each, shift in (("train", 2, 30), ("t10k", 1, 40)):
        labels = np.repeat(np.arange(10, dtype=np.uint8), each)
        images = np.repeat(labels * 20 + shift + np.tile(np.arange(each, dtype=np.uint8), 10), 28 * 28)
        size = len(labels)
        for kind, head, body in (
            ("images-idx3", struct.pack(">IIII", 0x803, size, 28, 28), images),
            ("labels-idx1", struct.pack(">II", 0x801, size), labels),
        ):
            (root / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + body.tobytes()))
    return root


def cifar10(root: Path) -> Path:
    """Batch number i holds an image of class 2i and one of 2i + 1, the test batch one of each class."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for i in range(5):
        (folder / f"data_batch_{i + 1}").write_bytes(batch([2 * i, 2 * i + 1]))
    (folder / "test_batch").write_bytes(batch(list(range(10)), shift=10))
    return root


def batch(labels: list[int], shift: int = 0) -> bytes:
    """A batch as Python 2 pickled it in 2009. Red is the label, green 100 more, blue 200 and `shift` more."""
    colours = np.array([[c, c + 100, c + 200 + shift] for c in labels], np.uint8)
    images = np.broadcast_to(colours[:, :, None, None], (len(labels), 3, 32, 32)).copy()
    images[:, :, 0, 1] = 7  # second pixel of the first row
    data = images.tobytes()

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    return b"".join(
        (
            b"\x80\x02}(",
            text("labels") + b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e",
            text("data")
            + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
            + text("b")
            + b"\x87R",
            b"(K\x01K" + bytes([len(labels)]) + b"M\x00\x0c\x86",
            b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|"),
            b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + struct.pack("<i", len(data)) + data + b"tb",
            b"u.",
        )
    )


LAYOUTS = {
    layout.__name__: layout for layout in (mvtec, visa, elpv, sdd, aitex, brainmri, headct, mnist, cifar10)
}
