"""Pictures of every kind come out as upright RGB; what cannot is refused by name."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from inctrl_lite.data.images import MAX_PIXELS, find_images, load_image, load_mask
from inctrl_lite.errors import InctrlError

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def colours(height: int = 12, width: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tiff(path, image: Image.Image):
    image.save(path, "TIFF")
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "PNG"])
def test_lossless_files_come_back_exactly(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(colours()).save(path, **({"lossless": True} if suffix == "webp" else {}))
    for source in (path, str(path)):
        image = load_image(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), colours())


def test_jpeg_comes_back_nearly(tmp_path):
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / "a.JPG", quality=95)
    assert np.abs(np.asarray(load_image(tmp_path / "a.JPG")).astype(int) - (200, 100, 50)).max() <= 3


def test_arrays_and_tensors_of_the_same_picture_are_equal():
    expected = colours()
    tensor = torch.tensor(expected).permute(2, 0, 1)
    sources = [
        expected,
        np.asfortranarray(expected),
        expected.astype(np.uint16) * 257,
        expected / 255,
        (expected / 255).astype(np.float32),
        np.dstack([expected, np.full(expected.shape[:2], 255, np.uint8)]),
        Image.fromarray(expected),
        tensor,
        tensor.float() / 255,
        (tensor / 255).requires_grad_(),
    ]
    for source in sources:
        np.testing.assert_array_equal(np.asarray(load_image(source)), expected)


def test_floats_are_rounded_to_the_nearest():
    assert np.asarray(load_image(np.array([[0.5, 0.2, 1.0005]])))[0, :, 0].tolist() == [128, 51, 255]


def test_grey_is_repeated_over_the_channels():
    grey = colours()[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    for source in (grey, grey[..., None], torch.tensor(grey)[None], Image.fromarray(grey), grey / 255):
        np.testing.assert_array_equal(np.asarray(load_image(source)), expected)
    black_and_white = load_image(grey > 128)
    np.testing.assert_array_equal(np.asarray(black_and_white)[..., 0], np.where(grey > 128, 255, 0))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_by_their_full_range_not_clipped(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(
        np.asarray(load_image(tmp_path / f"a.{suffix}"))[..., 0].ravel(), range(256)
    )


def test_32_bit_files_must_hold_something_that_makes_sense(tmp_path):
    small = tiff(tmp_path / "i.tif", Image.fromarray(np.full((2, 2), 65535, np.int32)))
    assert load_image(small).getpixel((0, 0)) == WHITE
    half = tiff(tmp_path / "f.tif", Image.fromarray(np.full((2, 2), 0.2, np.float32)))
    assert load_image(half).getpixel((0, 0)) == (51, 51, 51)
    with pytest.raises(InctrlError, match=r"big\.tif: its values reach from 70000"):
        load_image(tiff(tmp_path / "big.tif", Image.fromarray(np.full((2, 2), 70000, np.int32))))
    with pytest.raises(InctrlError, match=r"wide\.tif: .*from 7 to 7.*\[0, 1\]"):
        load_image(tiff(tmp_path / "wide.tif", Image.fromarray(np.full((2, 2), 7, np.float32))))


def test_transparency_is_laid_over_white(tmp_path):
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    rgba.save(tmp_path / "rgba.png")
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "number.png", transparency=1)
    palette.save(tmp_path / "bytes.png", transparency=bytes([255, 0]))
    for name in ("rgba", "number", "bytes"):
        image = load_image(tmp_path / f"{name}.png")
        assert (image.getpixel((0, 0)), image.getpixel((1, 0))) == (RED, WHITE)
    half = load_image(Image.new("RGBA", (1, 1), (0, 0, 0, 128)))
    assert half.getpixel((0, 0)) == (127, 127, 127)
    assert load_image(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0)) == WHITE


def test_cmyk_and_palette_become_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(np.subtract(load_image(tmp_path / "cmyk.jpg").getpixel((4, 4)), RED)).max() <= 3
    palette = Image.new("P", (1, 1))
    palette.putpalette([*GREEN])
    assert load_image(palette).getpixel((0, 0)) == GREEN


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_the_rotation_a_camera_noted_is_applied(tmp_path, suffix):
    lying = Image.new("RGB", (40, 20), "black")
    lying.paste("white", (0, 0, 10, 20))  # its left end is the top of the upright picture
    exif = Image.Exif()
    exif[274] = 6  # turn clockwise by a quarter to see it upright
    lying.save(tmp_path / f"a.{suffix}", exif=exif)
    upright = load_image(tmp_path / f"a.{suffix}")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 3))[0] > 240 and upright.getpixel((10, 36))[0] < 15


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_odd_shapes_are_pictures_too(tmp_path, size):
    Image.new("RGB", size, RED).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").size == size


def claim(path, width: int, height: int):
    """A PNG of some fifty bytes whose header claims this size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


# Above Pillow's own limit it warns, above twice that it refuses; we refuse in all three cases.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("height", [MAX_PIXELS // 1000 + 1, 100_000, 1_000_000])
def test_bombs_are_refused_by_their_header(tmp_path, height):
    path = claim(tmp_path / "bomb.png", 1000, height)
    with pytest.raises(InctrlError, match=r"bomb\.png.*make it smaller|bomb\.png.*Make it smaller"):
        load_image(path)
    with pytest.raises(InctrlError, match="smaller"):
        load_mask(path, (1000, height))


def test_our_limit_lies_below_the_one_at_which_pillow_only_warns():
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS


def written(path, content: bytes):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow says some of it twice
def test_cut_short_anywhere_is_an_error_with_the_files_name(tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(colours(40, 40)).save(whole)
    content = whole.read_bytes()
    for part in (0.02, 0.3, 0.7):
        cut = written(tmp_path / f"cut.{suffix}", content[: int(part * len(content))])
        with pytest.raises(InctrlError, match=rf"cut\.{suffix}.*remove it"):
            load_image(cut)


def test_a_damaged_picture_given_as_a_pil_image_is_an_error_too(tmp_path):
    Image.fromarray(colours(40, 40)).save(tmp_path / "a.png")
    written(tmp_path / "a.png", (tmp_path / "a.png").read_bytes()[:500])
    with Image.open(tmp_path / "a.png") as image, pytest.raises(InctrlError, match="the image cannot be"):
        load_image(image)


def test_files_that_are_no_image_are_named(tmp_path):
    (tmp_path / "folder.png").mkdir()
    cases = {
        written(tmp_path / "empty.png", b""): "empty.png is empty",
        written(tmp_path / "text.png", b"just words, and not few of them"): "text.png is not an image",
        # Pillow would hand PostScript to another program.
        written(
            tmp_path / "script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
        ): "not an image",
        tmp_path / "folder.png": "folder.png is a folder",
        tmp_path / "missing.png": "no image .*missing.png",
    }
    for path, message in cases.items():
        with pytest.raises(InctrlError, match=message):
            load_image(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.full((4, 4), np.nan), "NaN or infinite"),
        (np.full((4, 4, 3), np.inf, np.float32), "NaN or infinite"),
        (torch.full((3, 4, 4), float("nan")), "NaN or infinite"),
        (np.full((4, 4, 3), 128.0), r"from 128 to 128.*Divide by 255"),
        (torch.full((3, 4, 4), -2.1), r"from -2.1 to -2.1.*undo the normalisation"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\)"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (torch.zeros(8, 8, 3), r"shape \[8, 8, 3\]"),
        (42, "cannot take a int"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(source, message):
    with pytest.raises(InctrlError, match=message):
        load_image(source)


def test_images_are_found_sorted_in_every_case_and_depth(tmp_path):
    wanted = ["B.JPG", "a.png", "sub/d.webp", "sub/deep/c.TiFf"]
    left_out = [".hidden.png", ".git/x.png", "__MACOSX/._a.png", "notes.txt", "png", "a.png.part"]
    for name in wanted + left_out:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)] == wanted


def test_a_hidden_folder_that_was_asked_for_is_searched(tmp_path):
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "a.png").touch()
    assert [p.name for p in find_images(tmp_path / ".data")] == ["a.png"]


def test_folders_without_images_are_named(tmp_path):
    file = written(tmp_path / "a.txt", b"x")
    with pytest.raises(InctrlError, match="no folder .*nowhere"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(InctrlError, match="a.txt is a file"):
        find_images(file)
    with pytest.raises(InctrlError, match=r"no images in .*\.png, \.jpg"):
        find_images(tmp_path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_masks_are_whatever_is_not_black(tmp_path, dtype):
    values = np.zeros((3, 4), dtype)
    values[1, 2], values[2, 0] = 1, 255  # scaled to 8 bits as a picture is, the 1 would vanish
    values = values / 4 if dtype == np.float32 else values
    path = tiff(tmp_path / "m.tif", Image.fromarray(values))
    for source in (path, values):
        mask = load_mask(source, (4, 3))
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, values > 0)


def test_coloured_and_transparent_masks(tmp_path):
    blue = Image.new("RGB", (2, 1))
    blue.putpixel((1, 0), (0, 0, 1))  # rounds to 0 as grey
    blue.save(tmp_path / "blue.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "blue.png", (2, 1)), [[False, True]])
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((1, 0), (255, 255, 255, 255))
    clear.save(tmp_path / "clear.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "clear.png", (2, 1)), [[False, True]])


def test_masks_of_another_size_or_damaged_are_named(tmp_path):
    Image.new("L", (4, 3)).save(tmp_path / "m.png")
    with pytest.raises(InctrlError, match=r"m\.png has shape \(3, 4\), its image \(4, 3\)"):
        load_mask(tmp_path / "m.png", (3, 4))
    with pytest.raises(InctrlError, match=r"the mask has shape \(2, 2\)"):
        load_mask(np.zeros((2, 2), bool), (3, 4))
    with pytest.raises(InctrlError, match="bad.png"):
        load_mask(written(tmp_path / "bad.png", b"no picture at all"), (3, 4))
