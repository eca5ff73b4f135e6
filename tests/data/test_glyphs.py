import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flaxdl.data import Tfds
from flaxdl.data.embedded import glyphs
from flaxdl.data.embedded.glyphs import CHARACTERS, FONTS, content_hash, draw


@pytest.fixture(scope="module")
def few():
    """Five images of each character."""
    return draw("train", 5)


def test_there_is_an_image_of_each_character_in_turn(few):
    assert (few.shape, few.dtype) == ((5 * 62, 32, 32, 3), np.uint8)
    assert len(CHARACTERS) == len(set(CHARACTERS)) == 62


def test_what_is_drawn_is_always_the_same(few):
    code = "from flaxdl.data.embedded.glyphs import *; print(content_hash([draw('train', 5)]))"
    for seed in ("1", "2"):  # of Python's own hashes
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        )  # fmt: skip
        assert done.stdout.strip() == content_hash([few])
    assert content_hash([draw("test", 5)]) != content_hash([few])
    np.testing.assert_array_equal(draw("train", 2), few[: 2 * 62])


def test_every_typeface_has_every_character():
    for font in range(len(FONTS)):
        shapes = {glyphs._drawn(character, font).tobytes() for character in CHARACTERS}
        assert len(shapes) >= 60, FONTS[font]  # l, I and 1 may look alike; boxes would all be one


def test_ink_stands_out_from_the_ground(few):
    brightness = few @ np.array([0.299, 0.587, 0.114]) / 255
    ranges = np.ptp(brightness.reshape(len(few), -1), axis=1)
    assert np.mean(ranges > 0.25) > 0.97  # blur takes contrast from thin strokes
    assert len({image.tobytes() for image in few}) == len(few)
    assert 90 < few.mean() < 165


def test_the_builder_keeps_pixels_and_records_their_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, "_COUNTS", {"train": 4, "test": 2})
    splits = Tfds("glyphs", data_dir=str(tmp_path), validation_fraction=0.0).load(seed=0)
    assert splits.classes == tuple(CHARACTERS)
    assert (len(splits.train), len(splits.test)) == (248, 124)
    drawn = {"train": draw("train", 4), "test": draw("test", 2)}
    for split, images in drawn.items():
        arrays = getattr(splits, split).arrays()
        found = {
            (i.tobytes(), int(n)) for i, n in zip(arrays["inputs"], arrays["label"], strict=True)
        }
        assert found == {(image.tobytes(), n % 62) for n, image in enumerate(images)}
    metadata = json.loads(Path(tmp_path, "glyphs/1.0.0/metadata.json").read_text())
    assert metadata["sha256"] == content_hash(drawn.values())
    assert sorted(metadata) == ["matplotlib", "pillow", "sha256"]


def test_there_are_as_many_as_the_docstring_says():
    assert sum(glyphs._COUNTS.values()) * 62 == 37_200
    assert "37,200" in glyphs.__doc__
    assert len(FONTS) == 22
