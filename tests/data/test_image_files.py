import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from flaxdl.data.image_files import read_image

RED, HALF_RED_ON_WHITE = (255, 0, 0), (255, 127, 127)


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tiff", "webp", "jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_format_is_read(tmp_path, suffix, channels):
    Image.new("RGB", (6, 4), (40, 200, 90)).save(tmp_path / f"one.{suffix}")
    pixels = read_image(tmp_path / f"one.{suffix}", channels)
    assert pixels.shape == (4, 6, channels)
    assert pixels.dtype == np.uint8
    gray = 139  # 0.299 * 40 + 0.587 * 200 + 0.114 * 90 = 139.6, in the 16 bits that Pillow takes
    expected = [gray] if channels == 1 else [40, 200, 90]
    assert np.abs(pixels.astype(int) - expected).max() <= 3  # JPEG and WebP lose a little


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "LA", "RGBA", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_white_is_white_in_every_mode(tmp_path, mode, channels):
    white = {"I;16": 65535, "1": 1, "CMYK": (0, 0, 0, 0), "LA": (255, 255)}
    if mode == "P":
        image = Image.new("RGB", (3, 2), "white").quantize(4)
    else:
        image = Image.new(mode, (3, 2), white.get(mode, "white"))
    file = tmp_path / f"white.{'tiff' if mode == 'CMYK' else 'png'}"
    image.save(file)
    np.testing.assert_array_equal(read_image(file, channels), np.full((2, 3, channels), 255))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_are_scaled(tmp_path, suffix):
    levels = np.array([[0, 128, 257, 32768, 65407, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"deep.{suffix}")
    expected = np.rint(levels / 65535 * 255)  # 0 0 1 128 255 255; clipping would give 0 128 255 ...
    np.testing.assert_array_equal(read_image(tmp_path / f"deep.{suffix}", 1)[..., 0], expected)
    np.testing.assert_array_equal(read_image(tmp_path / f"deep.{suffix}", 3)[..., 2], expected)


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_what_is_transparent_is_white(tmp_path, mode):
    colors = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((255, 128, 0)):
        colors.putpixel((x, 0), (*RED, alpha))
    image = colors.quantize(8) if mode == "P" else colors.convert(mode)
    image.save(tmp_path / "clear.png")
    pixels = read_image(tmp_path / "clear.png", 3)[0]
    red = np.array([76, 76, 76] if mode == "LA" else RED)  # 0.299 * 255
    expected = [red, (red + 255) / 2, [255, 255, 255]]
    assert np.abs(pixels - np.array(expected)).max() <= 1


def test_a_transparent_color_is_white(tmp_path):
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), (0, 0, 255))
    image.save(tmp_path / "key.png", transparency=(0, 0, 255))
    np.testing.assert_array_equal(read_image(tmp_path / "key.png", 3)[0], [RED, (255, 255, 255)])


def test_of_an_animation_the_first_image_counts(tmp_path):
    frames = [Image.new("L", (4, 4), level) for level in (10, 200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif", 1).max() == 10


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_of_a_camera(tmp_path, orientation):
    upright = np.array([[10, 60, 110], [160, 210, 250]], np.uint8)
    stored = {  # how such a camera writes the upright image
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png", 1)[..., 0], upright)


ORIENTATION_6 = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
EXIF = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\x00\x00garbage!garbage!",
        EXIF + b"\x00\x05\x01\x12",  # cut
        EXIF + b"\x00\x01" + ORIENTATION_6.replace(b"\x06", b"\x09") + bytes(4),
        b"Exif\x00\x00",
        b"",
    ],
)
def test_broken_exif_data_do_not_matter(tmp_path, suffix, exif):
    image = Image.fromarray(np.repeat(np.array([[40, 200]], np.uint8), 8, axis=1))
    image.save(tmp_path / f"one.{suffix}", **({} if suffix == "tiff" else {"exif": exif}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about EXIF data that are cut
        pixels = read_image(tmp_path / f"one.{suffix}", 1)[..., 0]
    assert np.abs(pixels - np.asarray(image).astype(int)).max() <= 3


def test_the_orientation_is_applied_though_the_rest_cannot_be_written_again(tmp_path):
    photo = Image.fromarray(np.array([[10, 200]], np.uint8))
    strange = b"\x01\x1a\x00\x05\x00\x00\x00\x01\xff\xff\xff\xf0"  # a ratio beyond the end
    photo.save(tmp_path / "x.png", exif=EXIF + b"\x00\x02" + ORIENTATION_6 + strange + bytes(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(read_image(tmp_path / "x.png", 1)[..., 0], [[10], [200]])


@pytest.mark.parametrize("white", [255, 1000, 65535])
def test_16_bits_of_a_portable_graymap_are_scaled(tmp_path, white):
    levels = np.array([[0, white // 2, white]], ">u2" if white > 255 else "u1")
    (tmp_path / "x.pgm").write_bytes(b"P5 3 1 %d\n" % white + levels.tobytes())
    np.testing.assert_allclose(read_image(tmp_path / "x.pgm", 1)[0, :, 0], [0, 127, 255], atol=1)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(
        ">I", zlib.crc32(kind + content)
    )  # fmt: skip


def bomb(path, side=20_000):
    """A few bytes that claim to be an image of 400 million pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    content = zlib.compress(bytes(1000))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", content)
        + chunk(b"IEND", b"")
    )


def cut(path):
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("empty.png", lambda path: path.write_bytes(b""), "it is empty"),
        ("text.jpg", lambda path: path.write_text("no image"), "cannot identify"),
        ("page.png", lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n"), "cannot identify"),
        ("cut.png", cut, "truncated"),
        ("cut.jpg", cut, "truncated"),
        ("bomb.png", bomb, "exceeds limit"),
        (
            "deep.tiff",
            lambda p: Image.new("I", (2, 2)).save(p),
            r"32-bit pixels \(mode I\) have no defined white",
        ),
        ("folder.png", lambda path: path.mkdir(), "it is a folder"),
    ],
)
def test_what_is_no_image_is_named_with_the_reason(tmp_path, name, write, reason):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} cannot be read as an image: .*{reason}"):
        read_image(tmp_path / name, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_pillow_only_warns_of_is_refused(tmp_path):
    bomb(tmp_path / "large.png", side=12_000)
    with pytest.raises(
        ValueError, match="large.png cannot .*: it has 144,000,000 pixels, more than"
    ):
        read_image(tmp_path / "large.png", 3)


@pytest.mark.parametrize("turned", [False, True])
def test_what_resizing_would_make_huge_is_refused(tmp_path, turned):
    for length in (200, 201):
        size = (length, 4) if turned else (4, length)
        Image.new("L", size).save(tmp_path / f"{length}.png")
    assert max(read_image(tmp_path / "200.png", 1).shape) == 200
    reason = f"it has {size[0]} x {size[1]} pixels; the longer side must be at most 50"
    with pytest.raises(ValueError, match=f"201.png cannot be read as an image: {reason}"):
        read_image(tmp_path / "201.png", 1)


def test_files_without_permission_are_named(tmp_path, monkeypatch):
    Image.new("L", (4, 4)).save(tmp_path / "mine.png")

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(os, "stat", refuse)  # as in a folder that may not be entered
    with pytest.raises(ValueError, match=r"mine.png cannot be read as an image: .*Permission den"):
        read_image(tmp_path / "mine.png", 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp"])
def test_damaged_files_give_an_image_or_a_clear_error(tmp_path, suffix):
    rng = np.random.default_rng(0)
    file = tmp_path / f"whole.{suffix}"
    pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, exif=Image.Exif() if suffix == "jpg" else b"")
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    damaged = tmp_path / f"damaged.{suffix}"
    errors = []
    for _ in range(60):
        data = whole.copy()
        places = rng.integers(
            0, min(len(data), rng.choice([30, 400, len(data)])), rng.integers(1, 9)
        )
        data[places] = rng.integers(0, 256, len(places))
        damaged.write_bytes(data[: rng.choice([len(data), rng.integers(len(data))])].tobytes())
        try:
            image = read_image(damaged, 3)
        except ValueError as error:
            errors.append(str(error))
        else:
            assert (image.dtype, image.shape[-1]) == (np.uint8, 3)
    assert errors
    assert all(str(damaged) in error for error in errors)
