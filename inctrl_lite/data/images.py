"""Any picture a user may hand over, as an RGB image, or an error that says which one and why."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from inctrl_lite.errors import InctrlError

Image.init()
# Everything that Pillow reads, but for what it gives to other programs (EPS, WMF), what it only recognises
# (BUFR, GRIB, HDF5, MPEG) and what has no signature, so that anything may be taken for it.
FORMATS = tuple(
    name
    for name, (_, accept) in Image.OPEN.items()
    if accept and name not in ("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC")
)
TGA = ".tga"  # has no signature either, but is common: read where a file is called so
SUFFIXES = tuple(
    sorted(suffix for suffix, name in Image.EXTENSION.items() if name in FORMATS or suffix == TGA)
)
LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")  # may change pixels, also where the file does not say so

# Endings of files that lie beside images and are none. They are passed over without a word.
NO_IMAGES = frozenset(
    ".txt .md .rst .csv .tsv .json .jsonl .xml .yaml .yml .toml .html .htm .log .ini .db .py .ipynb .sha256 "
    ".md5 .lnk .url".split()
)
DOCUMENTS = frozenset("license licence readme copying authors".split())  # and of files without an ending

# A file of a few kilobytes can claim to hold gigapixels. This is just below Pillow's own limit, at which it
# only warns; so many pixels take 270 MB of memory.
MAX_PIXELS = 89_000_000
# A strip of 1 x 1,000,000 pixels is small, but not once its short side is resized to 240.
MAX_ASPECT = 200

DARK = 16  # a picture whose largest value of 255 is smaller looks black

T = TypeVar("T")


def find_images(folder: str | Path) -> list[Path]:
    """All image files below a folder, sorted; hidden ones and macOS's resource forks are left out.

    Whatever else is left out and might be a picture is counted in one warning; see `scan_folder`.

    Raises:
        InctrlError: the folder is missing, is a file, may not be opened, or holds no image.
    """
    images, left_out = scan_folder(folder)
    if not images:
        found = f". Left out: {_counted(left_out)}" if left_out else ""
        raise InctrlError(
            f"no images in {folder} and its sub-folders: looked for PNG, JPEG, TIFF, BMP, WebP, GIF and all "
            f"others that Pillow reads{found}"
        )
    if left_out:
        warnings.warn(f"{folder}: left out {_counted(left_out)}", stacklevel=2)
    return images


def scan_folder(folder: str | Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """What lies below a folder: (image files, [(path, why it is left out)]), each sorted.

    Left out are folders that may not be opened, linked folders (they may lead in a circle), links that lead
    nowhere, and files whose ending belongs to no format that can be read, such as HEIC or DICOM. Hidden files
    and files that are surely no pictures, such as tables and texts, are not mentioned.

    Raises:
        InctrlError: the folder is missing or is a file.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise InctrlError(f"{folder} is a file: give the folder that holds the images")
        raise InctrlError(f"no folder {folder}")
    images: list[Path] = []
    left_out: list[tuple[Path, str]] = []

    def refused(error: OSError) -> None:
        left_out.append((Path(error.filename), "folder that may not be opened"))

    for place, below, files in os.walk(folder, onerror=refused):
        below[:] = [name for name in below if _is_visible(name)]
        linked = [Path(place, name) for name in below if Path(place, name).is_symlink()]
        left_out += [(path, "linked folder") for path in linked]
        for path in (Path(place, name) for name in files if _is_visible(name)):
            suffix = path.suffix.lower()
            if suffix not in SUFFIXES:
                if suffix not in NO_IMAGES and path.name.lower() not in DOCUMENTS:
                    left_out.append((path, f"file of a kind that cannot be read ({suffix or 'no ending'})"))
            elif path.is_file():
                images.append(path)
            else:
                left_out.append((path, "link that leads nowhere"))
    return sorted(images), sorted(left_out)


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _counted(left_out: list[tuple[Path, str]]) -> str:
    """How many of each kind, with the first of them."""
    counts = Counter(reason for _, reason in left_out)
    first = {reason: path for path, reason in reversed(left_out)}
    return "; ".join(f"{count} x {reason}, first {first[reason]}" for reason, count in counts.items())


def load_image(source: Any, bits: int | None = None) -> Image.Image:
    """A picture as RGB, upright.

    Args:
        source: a path; a PIL image of any mode; an array [H, W], [H, W, 1 | 3 | 4] of uint8, uint16 or
            floats in [0, 1]; a tensor [1 | 3, H, W] of uint8 or floats in [0, 1].
        bits: how many bits the values of a grey image with 16 or 32 bits really have (a camera's 12, for
            example); None takes the smallest of 8, 12 and 16 that holds them, and warns if that is not 16.

    Greyscale is repeated over the channels, transparency is laid over white, `bits` are scaled to 8, and the
    rotation that a camera noted (EXIF) is applied. Of several frames or pages, the first is read, with a
    warning. A picture that looks black although it is not gets a warning, too. Warnings name the folder and
    not the file, so that a folder of alike images gives one line.

    Raises:
        InctrlError: unreadable, damaged, empty, more than `MAX_PIXELS`, longer than `MAX_ASPECT` times its
            width, or not an image at all.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        with _open(path) as image:
            _warn_of_frames(image, path)
            return _decode(image, str(path), lambda image: _to_rgb(image, f"images in {path.parent}", bits))
    if isinstance(source, Image.Image):
        return _decode(source, "the image", lambda image: _to_rgb(image, "an image", bits))
    if isinstance(source, np.ndarray):
        return _from_array(source, bits)
    if type(source).__module__.partition(".")[0] == "torch":
        return _from_tensor(source, bits)
    raise InctrlError(
        f"cannot take a {type(source).__name__} as an image: give a path, PIL image, array or tensor"
    )


def fingerprint(picture: Image.Image) -> bytes:
    """Digest of a picture's size and pixels."""
    digest = hashlib.blake2b(repr(picture.size).encode(), digest_size=16)
    digest.update(picture.tobytes())
    return digest.digest()


def picture_size(source: Any, bits: int | None = None) -> tuple[int, int]:
    """(width, height) of what `load_image` gives, without decoding the pixels of a file.

    Raises:
        InctrlError: as `load_image`, but damage to the pixels of a file is not noticed.
    """
    if not isinstance(source, (str, os.PathLike)):
        return load_image(source, bits).size
    with open_image(Path(source)) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)  # by 90 degrees
        return image.size[::-1] if turned else image.size


def open_image(path: str | Path) -> Image.Image:
    """A file whose header is read and whose pixels are not; close it, or use it in a `with` block.

    Raises:
        InctrlError: missing, a folder, empty, or of no format that can be read.
    """
    return _open(Path(path))


def _open(path: Path) -> Image.Image:
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # a zero byte is a ValueError
        raise InctrlError(f"no image {path}") from error
    except OSError as error:
        raise InctrlError(f"{path} cannot be read: {error.strerror or error}") from error
    if path.is_dir():
        raise InctrlError(f"{path} is a folder, not an image")
    if size == 0:
        raise InctrlError(f"{path} is empty (0 bytes): fetch it again or remove it")
    try:
        return Image.open(path, formats=(*FORMATS, "TGA") if path.suffix.lower() == TGA else FORMATS)
    except UnidentifiedImageError as error:
        raise InctrlError(
            f"{path} is not an image that can be read: remove it or save it as PNG or JPEG"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InctrlError(f"{path} is refused: {error}. Make it smaller first") from error
    except Exception as error:  # each decoder fails in its own way
        raise InctrlError(f"{path} cannot be read ({error}): fetch it again or remove it") from error


def _warn_of_frames(image: Image.Image, path: Path) -> None:
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception:  # a file that is cut short; decoding it says so
        return
    # Telephones add a preview to their photographs (MPO); the layers of a PSD file are no frames.
    if frames > 1 and image.format not in ("MPO", "PSD"):
        warnings.warn(
            f"images in {path.parent} have several frames or pages: the first of each is read, the others "
            "are left out",
            stacklevel=3,
        )


def _decode(image: Image.Image, name: str, convert: Callable[[Image.Image], T]) -> T:
    """`convert(image)`, which decodes the pixels, if there are not too many of them."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InctrlError(
            f"{name} claims {width} x {height} pixels, more than the {MAX_PIXELS:,} that are accepted: "
            "make it smaller first"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InctrlError(
            f"{name} has {width} x {height} pixels: one side is more than {MAX_ASPECT} times as long as the "
            "other. Cut it into pieces first"
        )
    try:
        return convert(image)
    except InctrlError as error:
        raise InctrlError(f"{name}: {error}") from error
    except Warning:  # whoever turns warnings into errors wants to see them
        raise
    except Exception as error:  # each decoder fails in its own way
        raise InctrlError(
            f"{name} cannot be decoded ({error}): it is damaged, cut short or unusual. Fetch it again, save "
            "it as PNG or JPEG, or remove it"
        ) from error


def _to_rgb(image: Image.Image, where: str, bits: int | None = None) -> Image.Image:
    # Of colours with 16 bits Pillow keeps the upper 8. What uses 12 of them is left with 4.
    cut = image.mode[0] not in "IF" and any(";16" in repr(tile) for tile in getattr(image, "tile", ()))
    if bits is None and image.format in ("PPM", "JPEG2000"):
        bits = 16  # Pillow has scaled them by what their headers say
    declared = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # of a TIFF file: bits per sample
    if bits is None and 8 < declared < 16:
        bits = declared
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey; Pillow has several names for it
        image = Image.fromarray(_to_8_bits(np.asarray(image), where, bits))
    elif image.mode == "F":
        image = Image.fromarray(_floats_to_8_bits(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    largest = int(np.asarray(image).max())
    if cut and largest < DARK:
        raise InctrlError(
            "it has 16 bits a colour and uses the lower 12 at most, so that it would be read as black: save "
            "it with 8 bits a colour"
        )
    if 0 < largest < DARK:
        warnings.warn(
            f"{where} look black: their values do not reach {DARK} of 255. Are they scaled as they "
            "should be?",
            stacklevel=2,
        )
    return image


def _to_8_bits(values: np.ndarray, where: str, bits: int | None) -> np.ndarray:
    """Whole numbers of up to 16 bits as uint8."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= 2 ** (bits or 16):
        raise InctrlError(f"its values reach from {low} to {high}: {bits or '8 to 16'} bits are expected")
    used = bits or next(b for b in (8, 12, 16) if high < 2**b)
    if bits is None and used < 16 and high > 0:
        warnings.warn(
            f"{where} have more bits than they use: values up to {2**used - 1} are read as {used} bits, so "
            "that the image is not black. Other images of the same camera may be read as more bits: to be "
            "sure, save them with 8 bits, or give load_image the number of bits",
            stacklevel=2,
        )
    return (values.astype(np.uint32) * 255 // (2**used - 1)).astype(np.uint8)


def _floats_to_8_bits(array: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] as uint8."""
    if not np.isfinite(array).all():
        raise InctrlError("the array holds NaN or infinite values, so it is no image")
    if array.min() < -1e-3 or array.max() > 1 + 1e-3:
        raise InctrlError(
            f"the array's values reach from {array.min():.3g} to {array.max():.3g}: floats must lie in "
            "[0, 1]. Divide by 255, or undo the normalisation"
        )
    return np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)


def _from_array(array: np.ndarray, bits: int | None = None) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or 0 in array.shape:
        raise InctrlError(
            f"cannot take an array of shape {array.shape} as an image: give [H, W] or [H, W, 3]"
        )
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = _to_8_bits(array, "arrays", bits)
    elif np.issubdtype(array.dtype, np.floating):
        array = _floats_to_8_bits(array)
    elif array.dtype != np.uint8:
        raise InctrlError(
            f"cannot take an array of {array.dtype} as an image: give uint8, uint16 or floats in [0, 1]"
        )
    picture = Image.fromarray(np.ascontiguousarray(array))
    return _decode(picture, "the array", lambda image: _to_rgb(image, "arrays"))


def _from_tensor(tensor: Any, bits: int | None = None) -> Image.Image:
    array = tensor.detach().cpu().float().numpy() if tensor.is_floating_point() else tensor.cpu().numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = np.moveaxis(array, 0, -1)
    elif array.ndim != 2:
        raise InctrlError(f"cannot take a tensor of shape {list(array.shape)} as an image: give [3, H, W]")
    return _from_array(array, bits)


def load_mask(source: Path | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An anomaly mask as bool [H, W]: everything that is not black.

    JPEG and other formats that may change pixels blur the edges of a mask. Of these, everything lighter than
    the middle between black and white counts.

    Args:
        size: (width, height) of its image.

    Raises:
        InctrlError: unreadable, or of another size than the image.
    """
    if isinstance(source, np.ndarray):
        name, mask = "the mask", source.astype(bool)
    else:
        name = f"the mask {source}"
        with _open(Path(source)) as image:
            mask = _decode(image, name, _mask_pixels)
    if mask.shape != (size[1], size[0]):
        raise InctrlError(
            f"{name} has shape {mask.shape}, its image {size[1], size[0]} (height, width): they must match"
        )
    return mask


def _mask_pixels(image: Image.Image) -> np.ndarray:
    threshold = 127 if image.format in LOSSY else 0
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # in 8 bits, small numbers would be black
        return np.asarray(image) != 0
    return np.asarray(image.convert("RGBA"))[..., :3].max(axis=-1) > threshold
