"""Pictures of every kind come out as upright RGB; what cannot is refused by name."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from inctrl_lite.data.images import (
    MAX_ASPECT,
    MAX_PIXELS,
    find_images,
    load_image,
    load_mask,
    picture_size,
    scan_folder,
)
from inctrl_lite.errors import InctrlError

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def colours(height: int = 12, width: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tiff(path, image: Image.Image):
    image.save(path, "TIFF")
    return path


@pytest.mark.parametrize("suffix", "png bmp tif webp PNG ppm tga pcx sgi dib jp2 ico qoi dds".split())
def test_lossless_files_come_back_exactly(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    kind = {"webp": {"lossless": True}, "ico": {"sizes": [(9, 12)]}}
    Image.fromarray(colours()).save(path, **kind.get(suffix, {}))
    assert find_images(tmp_path) == [path]
    for source in (path, str(path)):
        image = load_image(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), colours())


def test_jpeg_comes_back_nearly(tmp_path):
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / "a.JPG", quality=95)
    assert np.abs(np.asarray(load_image(tmp_path / "a.JPG")).astype(int) - (200, 100, 50)).max() <= 3


@pytest.mark.parametrize("suffix", ["gif", "avif", "jfif", "pgm"])
def test_other_formats_that_people_have(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    grey = Image.fromarray(np.full((16, 16), 200, np.uint8))
    grey.save(path, {"jfif": "JPEG", "pgm": "PPM"}.get(suffix))
    assert find_images(tmp_path) == [path]
    assert np.abs(np.asarray(load_image(path)).astype(int) - 200).max() <= 3


def test_a_format_is_known_by_its_content_not_by_its_ending(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "a.jpg", "PNG")
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.jpg")), colours())


def test_a_format_without_signature_is_known_by_its_ending_alone(tmp_path):
    """Anything might be taken for it, also what is damaged."""
    Image.fromarray(colours()).save(tmp_path / "a.png", "TGA")
    with pytest.raises(InctrlError, match="a.png is not an image"):
        load_image(tmp_path / "a.png")


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


def grey_png(path, values: np.ndarray):
    Image.fromarray(values).save(path, "PNG")
    return path


@pytest.mark.parametrize("largest", [255, 4095])
def test_values_that_use_a_part_of_their_bits_are_not_black(tmp_path, largest):
    """A camera's 12 bits in a file of 16, or a picture of 8 bits saved as 32."""
    ramp = np.linspace(0, largest, 256).astype(np.uint16).reshape(16, 16)
    sources = [
        grey_png(tmp_path / "a.png", ramp),
        tiff(tmp_path / "b.tif", Image.fromarray(ramp)),
        tiff(tmp_path / "c.tif", Image.fromarray(ramp.astype(np.int32))),
        Image.fromarray(ramp),
        ramp,
        torch.tensor(ramp),
    ]
    bits = {255: 8, 4095: 12}[largest]
    for source in sources:
        with pytest.warns(UserWarning, match=f"values up to {largest} are read as {bits} bits"):
            found = np.asarray(load_image(source))[..., 0].ravel()
        np.testing.assert_allclose(found, range(256), atol=1)


def test_a_camera_whose_bits_are_known_is_always_read_alike(tmp_path):
    bright, dark = np.full((4, 4), 3000, np.uint16), np.full((4, 4), 300, np.uint16)
    found = [load_image(grey_png(tmp_path / "a.png", v), bits=12).getpixel((0, 0))[0] for v in (bright, dark)]
    assert found == [3000 * 255 // 4095, 300 * 255 // 4095]
    with pytest.raises(InctrlError, match="from 5000 to 5000: 12 bits are expected"):
        load_image(np.full((4, 4), 5000, np.uint16), bits=12)


def test_bits_that_a_file_declares_need_no_guess(tmp_path):
    dark = np.full((4, 4), 400, ">u2")
    written(tmp_path / "a.pgm", b"P5 4 4 4095\n" + dark.tobytes())
    assert load_image(tmp_path / "a.pgm").getpixel((0, 0))[0] == pytest.approx(400 / 4095 * 255, abs=1)
    written(tmp_path / "b.pgm", b"P5 4 4 4095\n" + (dark // 2).astype(">u2").tobytes())
    with pytest.warns(UserWarning, match="look black"):  # as it is, not made lighter
        assert load_image(tmp_path / "b.pgm").getpixel((0, 0))[0] == 200 * 255 // 4095
    body = np.packbits(np.unpackbits(dark.view(np.uint8)).reshape(16, 16)[:, 4:].ravel())
    written(tmp_path / "a.tif", tiff_of(body.tobytes(), 4, 4, [12]))
    assert load_image(tmp_path / "a.tif").getpixel((0, 0))[0] == 400 * 255 // 4095


def test_black_is_black(tmp_path):
    for dtype in (np.uint8, np.uint16):
        assert load_image(grey_png(tmp_path / "a.png", np.zeros((4, 4), dtype))).getextrema() == ((0, 0),) * 3


def test_a_picture_that_looks_black_and_is_not_gets_a_warning(tmp_path):
    with pytest.warns(UserWarning, match=f"images in {tmp_path} look black"):
        load_image(grey_png(tmp_path / "a.png", np.eye(4, dtype=np.uint8)))
    with pytest.warns(UserWarning, match="look black"):
        load_image(np.full((4, 4, 3), 0.01))


def png_of(body: bytes, width: int, height: int, kind: int) -> bytes:
    """A PNG of 16 bits: rows of `body`, unfiltered."""
    row = len(body) // height
    lines = b"".join(b"\0" + body[y * row : (y + 1) * row] for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return chunks([(b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")])


def tiff_of(body: bytes, width: int, height: int, bits: list[int]) -> bytes:
    """An uncompressed TIFF of one strip."""
    n = len(bits)
    place = 8 + 2 + 12 * 9 + 4
    bits_entry = (258, 3, n, place if n > 1 else bits[0])
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        bits_entry,
        (259, 3, 1, 1),
        (262, 3, 1, 2 if n > 1 else 1),
    ]
    entries += [(273, 4, 1, place + 2 * n), (277, 3, 1, n), (278, 3, 1, height), (279, 4, 1, len(body))]
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, 9) + table + bytes(4) + struct.pack(f"<{n}H", *bits) + body


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colours_of_16_bits(tmp_path, suffix):
    def colour_file(value: int):
        body = np.full((4, 4, 3), value, ">u2" if suffix == "png" else "<u2").tobytes()
        content = png_of(body, 4, 4, 2) if suffix == "png" else tiff_of(body, 4, 4, [16, 16, 16])
        return written(tmp_path / f"a.{suffix}", content)

    assert load_image(colour_file(65535)).getpixel((0, 0)) == WHITE
    for value in (4000, 200):  # Pillow keeps the upper 8 bits, and hardly anything is left
        with pytest.raises(
            InctrlError, match=rf"a\.{suffix}: it has 16 bits a colour .* save it with 8 bits"
        ):
            load_image(colour_file(value))


@pytest.mark.parametrize("suffix", ["tif", "gif", "png", "webp"])
def test_frames_and_pages_that_are_left_out_are_said(tmp_path, suffix):
    pages = [Image.fromarray(colours() // (1 + i)) for i in range(3)]
    pages[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match=f"images in {tmp_path} have several frames or pages"):
        image = load_image(tmp_path / f"a.{suffix}")
    if suffix in ("tif", "png"):
        np.testing.assert_array_equal(np.asarray(image), colours())


def test_the_preview_in_a_telephones_photograph_is_no_page(tmp_path):
    pages = [Image.fromarray(colours() // (1 + i)) for i in range(2)]
    pages[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=pages[1:])
    assert load_image(tmp_path / "a.jpg").size == (9, 12)


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


@pytest.mark.parametrize("size", [(1, 1), (1, MAX_ASPECT), (3 * MAX_ASPECT, 3)])
def test_odd_shapes_are_pictures_too(tmp_path, size):
    Image.new("RGB", size, RED).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").size == size


@pytest.mark.parametrize(
    "size", [(1, 1_000_000), (1_000_000, 1), (1, MAX_ASPECT + 1), (2, 2 * MAX_ASPECT + 1)]
)
def test_strips_that_are_small_in_the_file_and_huge_once_resized_are_refused(tmp_path, size):
    path = claim(tmp_path / "strip.png", *size)
    with pytest.raises(InctrlError, match=r"strip\.png has .* pixels: one side .* Cut it into pieces"):
        load_image(path)
    with pytest.raises(InctrlError, match="Cut it into pieces"):
        load_mask(path, size)
    with pytest.raises(InctrlError, match="the array has .* Cut it into pieces"):
        load_image(np.zeros(size[::-1], np.uint8))


def chunks(parts: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks."""
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def claim(path, width: int, height: int):
    """A PNG of some fifty bytes whose header claims this size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return written(path, chunks([(b"IHDR", head), (b"IDAT", zlib.compress(b""))]))


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
        tmp_path / "empty.png" / "below.png": "no image .*below.png",
        tmp_path / "a\0b.png": "no image ",
        tmp_path / ("a" * 300): "cannot be read: File name too long",
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


def touch(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_images_are_found_sorted_in_every_case_and_depth(tmp_path):
    wanted = ["B.JPG", "a.png", "sub/d.webp", "sub/deep/c.TiFf"]
    passed_over = [".hidden.png", ".git/x.png", "__MACOSX/._a.png", "notes.txt", "labels.csv", "LICENSE"]
    touch(tmp_path, wanted + passed_over)
    (tmp_path / "folder.png").mkdir()
    assert [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)] == wanted


@pytest.mark.skipif(os.name == "nt", reason="Windows lets not everybody make links")
def test_what_is_left_out_is_counted_and_named(tmp_path):
    touch(tmp_path, ["a.png", "b.heic", "c.HEIC", "sub/d.dcm", "scan", "e.pdf"])
    touch(tmp_path, ["more/f.png"])
    (tmp_path / "linked").symlink_to(tmp_path / "more")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere.png")
    images, left_out = scan_folder(tmp_path)
    assert [p.name for p in images] == ["a.png", "f.png"]
    unknown = "file of a kind that cannot be read"
    assert [(path.relative_to(tmp_path).as_posix(), why) for path, why in left_out] == [
        ("b.heic", f"{unknown} (.heic)"),
        ("c.HEIC", f"{unknown} (.heic)"),
        ("e.pdf", f"{unknown} (.pdf)"),
        ("linked", "linked folder"),
        ("lost.png", "link that leads nowhere"),
        ("scan", f"{unknown} (no ending)"),
        ("sub/d.dcm", f"{unknown} (.dcm)"),
    ]
    with pytest.warns(
        UserWarning, match=r"left out 2 x .*\(\.heic\), first .*b\.heic; 1 x .*; 1 x linked folder"
    ):
        assert find_images(tmp_path) == images


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may open every folder")
def test_a_folder_that_may_not_be_opened_is_named(tmp_path):
    touch(tmp_path, ["a.png", "closed/b.png"])
    (tmp_path / "closed").chmod(0o000)
    try:
        with pytest.warns(UserWarning, match="1 x folder that may not be opened, first .*closed"):
            assert [p.name for p in find_images(tmp_path)] == ["a.png"]
        with pytest.raises(InctrlError, match="no images in .*1 x folder that may not be opened"):
            find_images(tmp_path / "closed")
        with pytest.raises(InctrlError, match="b.png cannot be read: Permission denied"):
            load_image(tmp_path / "closed" / "b.png")
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_a_folder_that_the_system_refuses_is_named(tmp_path, monkeypatch):
    """As above, for whoever runs the tests as root."""
    touch(tmp_path, ["a.png", "closed/b.png"])
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.warns(UserWarning, match="1 x folder that may not be opened, first .*closed"):
        assert [p.name for p in find_images(tmp_path)] == ["a.png"]


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
    with pytest.raises(InctrlError, match="no images in .*looked for PNG, JPEG, .* Pillow reads$"):
        find_images(tmp_path)
    touch(tmp_path, ["a.heic", "b.heic"])
    with pytest.raises(InctrlError, match=r"no images in .* Left out: 2 x .*\(\.heic\), first .*a\.heic"):
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


def test_a_thin_line_in_a_jpeg_mask_stays_thin(tmp_path):
    """JPEG blurs edges: counted as whatever is not black, the line would grow to more than twice its size."""
    line = np.zeros((64, 64), np.uint8)
    line[np.arange(64), np.arange(64)] = line[np.arange(63), np.arange(1, 64)] = 255
    Image.fromarray(line).save(tmp_path / "m.jpg", quality=75)
    mask = load_mask(tmp_path / "m.jpg", (64, 64))
    assert mask.sum() == pytest.approx((line > 0).sum(), rel=0.15)
    assert (mask & (line > 0)).sum() > 0.85 * mask.sum()


def test_masks_of_another_size_or_damaged_are_named(tmp_path):
    Image.new("L", (4, 3)).save(tmp_path / "m.png")
    with pytest.raises(InctrlError, match=r"m\.png has shape \(3, 4\), its image \(4, 3\)"):
        load_mask(tmp_path / "m.png", (3, 4))
    with pytest.raises(InctrlError, match=r"the mask has shape \(2, 2\)"):
        load_mask(np.zeros((2, 2), bool), (3, 4))
    with pytest.raises(InctrlError, match="bad.png"):
        load_mask(written(tmp_path / "bad.png", b"no picture at all"), (3, 4))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_is_known_before_the_pixels_are_read(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert picture_size(tmp_path / "a.jpg") == load_image(tmp_path / "a.jpg").size
    assert picture_size(np.zeros((5, 7), np.uint8)) == (7, 5)
