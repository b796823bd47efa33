"""Any picture a user may hand over, as an RGB image, or an error that says which one and why."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from inctrl_lite.errors import InctrlError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

# Pillow reads many more, some by running other programs.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")

# A file of a few kilobytes can claim to hold gigapixels. This is just below Pillow's own limit, at which it
# only warns; so many pixels take 270 MB of memory.
MAX_PIXELS = 89_000_000

T = TypeVar("T")


def find_images(folder: str | Path) -> list[Path]:
    """All image files below a folder, sorted; hidden ones and macOS's resource forks are left out.

    Raises:
        InctrlError: the folder is missing, is a file, or holds no image.
    """
    folder = Path(folder)
    if not folder.exists():
        raise InctrlError(f"no folder {folder}")
    if not folder.is_dir():
        raise InctrlError(f"{folder} is a file: give the folder that holds the images")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts)
    )
    if not found:
        raise InctrlError(
            f"no images in {folder}: looked for {', '.join(SUFFIXES)} in it and its sub-folders"
        )
    return found


def load_image(source: Any) -> Image.Image:
    """A picture as RGB, upright.

    Args:
        source: a path; a PIL image of any mode; an array [H, W], [H, W, 1 | 3 | 4] of uint8, uint16 or
            floats in [0, 1]; a tensor [1 | 3, H, W] of uint8 or floats in [0, 1].

    Greyscale is repeated over the channels, transparency is laid over white, 16-bit depth is scaled
    down by its full range, and the rotation that a camera noted (EXIF) is applied.

    Raises:
        InctrlError: unreadable, damaged, empty, more than `MAX_PIXELS`, or not an image at all.
    """
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source))
    if isinstance(source, Image.Image):
        return _decode(source, "the image", _to_rgb)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if type(source).__module__.partition(".")[0] == "torch":
        return _from_tensor(source)
    raise InctrlError(
        f"cannot take a {type(source).__name__} as an image: give a path, PIL image, array or tensor"
    )


def _from_file(path: Path) -> Image.Image:
    with _open(path) as image:
        return _decode(image, str(path), _to_rgb)


def _open(path: Path) -> Image.Image:
    """A file whose header is read and whose pixels are not."""
    if not path.exists():
        raise InctrlError(f"no image {path}")
    if path.is_dir():
        raise InctrlError(f"{path} is a folder, not an image")
    if path.stat().st_size == 0:
        raise InctrlError(f"{path} is empty (0 bytes): fetch it again or remove it")
    try:
        return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise InctrlError(
            f"{path} is not an image that can be read: remove it or save it as PNG or JPEG"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InctrlError(f"{path} is refused: {error}. Make it smaller first") from error
    except Exception as error:  # each decoder fails in its own way
        raise InctrlError(f"{path} cannot be read ({error}): fetch it again or remove it") from error


def _decode(image: Image.Image, name: str, convert: Callable[[Image.Image], T]) -> T:
    """`convert(image)`, which decodes the pixels, if there are not too many of them."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InctrlError(
            f"{name} claims {width} x {height} pixels, more than the {MAX_PIXELS:,} that are accepted: "
            "make it smaller first"
        )
    try:
        return convert(ImageOps.exif_transpose(image))
    except InctrlError as error:
        raise InctrlError(f"{name}: {error}") from error
    except Exception as error:  # each decoder fails in its own way
        raise InctrlError(
            f"{name} cannot be decoded ({error}): it is damaged, cut short or unusual. Fetch it again, save "
            "it as PNG or JPEG, or remove it"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow has several names for it
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise InctrlError(
                f"its values reach from {values.min()} to {values.max()}: 8 or 16 bits are expected"
            )
        return _from_array(values.astype(np.uint16))
    if image.mode == "F":
        return _from_array(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or 0 in array.shape:
        raise InctrlError(
            f"cannot take an array of shape {array.shape} as an image: give [H, W] or [H, W, 3]"
        )
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = (array // 257).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise InctrlError("the array holds NaN or infinite values, so it is no image")
        if array.min() < -1e-3 or array.max() > 1 + 1e-3:
            raise InctrlError(
                f"the array's values reach from {array.min():.3g} to {array.max():.3g}: floats must lie in "
                "[0, 1]. Divide by 255, or undo the normalisation"
            )
        array = np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InctrlError(
            f"cannot take an array of {array.dtype} as an image: give uint8, uint16 or floats in [0, 1]"
        )
    return _decode(Image.fromarray(np.ascontiguousarray(array)), "the array", _to_rgb)


def _from_tensor(tensor: Any) -> Image.Image:
    array = tensor.detach().cpu().float().numpy() if tensor.is_floating_point() else tensor.cpu().numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = np.moveaxis(array, 0, -1)
    elif array.ndim != 2:
        raise InctrlError(f"cannot take a tensor of shape {list(array.shape)} as an image: give [3, H, W]")
    return _from_array(array)


def load_mask(source: Path | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An anomaly mask as bool [H, W]: everything that is not black.

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
            mask = _decode(image, name, _not_black)
    if mask.shape != (size[1], size[0]):
        raise InctrlError(
            f"{name} has shape {mask.shape}, its image {size[1], size[0]} (height, width): they must match"
        )
    return mask


def _not_black(image: Image.Image) -> np.ndarray:
    if image.mode[0] in "IF":  # in 8 bits, small numbers would be black
        return np.asarray(image) != 0
    return np.asarray(image.convert("RGBA"))[..., :3].any(axis=-1)
