"""`glyphs`: 37,200 color images of letters and digits in 22 typefaces, 32x32 pixels."""

import hashlib
import string
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase

# The other fonts that ship with matplotlib have symbols in place of letters.
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
    "cmr10", "cmb10", "cmti10", "cmss10", "cmtt10", "cmmi10",
)  # fmt: skip

_COUNTS = {"train": 500, "test": 100}  # per character
_SIZE = 32  # pixels
_DRAWN = 48  # height of capitals in pixels, before they are rotated and reduced
_MIN_CONTRAST = 0.3  # between the brightness of ink and background, from 0 to 1
_BRIGHTNESS = np.array([0.299, 0.587, 0.114])  # ITU-R 601


class Glyphs(tfds.core.GeneratorBasedBuilder):
    """Characters drawn with the TrueType fonts that ship with matplotlib.

    Typeface, size, proportions, slant, angle, position, both colors, shading, sharpness and noise
    are random with a fixed seed. There are 500 training and 100 test images of each of the 62
    characters. Characters that differ only in size, such as c and C, or hardly at all, such as O
    and 0, cannot always be distinguished. Fonts and rendering depend on the versions of matplotlib
    and Pillow: the metadata records these and the SHA-256 of all images.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(_SIZE, _SIZE, 3)),
                    "label": tfds.features.ClassLabel(names=list(CHARACTERS)),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://matplotlib.org",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        import matplotlib
        import PIL

        images = {split: draw(split, count) for split, count in _COUNTS.items()}
        metadata: Any = self.info.metadata
        metadata["matplotlib"] = matplotlib.__version__
        metadata["pillow"] = PIL.__version__
        metadata["sha256"] = content_hash(images.values())
        return {split: self._generate_examples(drawn) for split, drawn in images.items()}

    def _generate_examples(self, images: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        from PIL import Image

        for number, image in enumerate(images):
            # Pillow images, because TFDS needs TensorFlow to encode arrays.
            label = CHARACTERS[number % len(CHARACTERS)]
            yield number, {"image": Image.fromarray(image), "label": label}


def draw(split: str, count: int) -> np.ndarray:
    """Draws `count` images of each character, in turn, as uint8[count * 62, 32, 32, 3]."""
    rng = np.random.default_rng((tuple(_COUNTS).index(split), 62))
    return np.concatenate([_draw_all_once(rng) for _ in range(count)])


def content_hash(splits: Iterable[np.ndarray]) -> str:
    """Returns the SHA-256 of all pixels; labels follow from the order of the images."""
    digest = hashlib.sha256()
    for images in splits:
        digest.update(images.tobytes())
    return digest.hexdigest()


def _draw_all_once(rng: np.random.Generator) -> np.ndarray:
    """Draws one image of each character, uint8[62, 32, 32, 3]."""
    n = len(CHARACTERS)
    shapes = np.stack([_shape(character, rng) for character in CHARACTERS])
    cover = shapes.astype(np.float32)[..., None] / 255  # [n, 32, 32, 1], 1 where there is ink
    ink, background = _colors(n, rng)
    # The background is shaded linearly, by up to 0.1 in each axis.
    y, x = np.mgrid[-1 : 1 : _SIZE * 1j, -1 : 1 : _SIZE * 1j].astype(np.float32)
    slope = rng.uniform(-0.1, 0.1, (2, n, 1, 1)).astype(np.float32)
    shading = (slope[0] * y + slope[1] * x)[..., None]
    images = cover * ink + (1 - cover) * (background + shading)
    noise = rng.standard_normal(images.shape, np.float32)
    images += noise * rng.uniform(0, 0.06, (n, 1, 1, 1)).astype(np.float32)
    return np.rint(images.clip(0, 1) * 255).astype(np.uint8)


def _shape(character: str, rng: np.random.Generator) -> np.ndarray:
    """Draws a character at a random position, uint8[32, 32], 255 where there is ink."""
    from PIL import Image

    drawn = _drawn(character, int(rng.integers(len(FONTS))))
    height = rng.uniform(12, 30)  # of a capital, in pixels
    width_ratio = np.exp(rng.uniform(-0.25, 0.25))
    slant = rng.uniform(-0.2, 0.2)
    angle = np.deg2rad(rng.uniform(-20, 20))
    # Maps pixels of the image to pixels of the drawing, relative to both centers.
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = _DRAWN / height * np.array([[1 / width_ratio, slant], [0, 1]]) @ rotation
    # Small characters can be farther from the center and still be fully visible.
    shift = rng.uniform(-1, 1, 2) * max(_SIZE / 2 - 0.55 * height, 1)
    center = np.array(drawn.size) / 2 - matrix @ (_SIZE / 2 + shift)
    coefficients = (*matrix[0], center[0], *matrix[1], center[1])
    image = drawn.transform(
        (_SIZE, _SIZE), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    coarse = int(rng.integers(8, 33))  # pixels; half of the images stay sharp
    if rng.random() < 0.5:
        image = image.resize((coarse, coarse), Image.Resampling.BILINEAR)
        image = image.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _colors(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws ink and background colors, float32[n, 1, 1, 3] each, with enough contrast."""
    pairs = rng.random((n, 2, 3), np.float32)
    while True:
        brightness = pairs @ _BRIGHTNESS.astype(np.float32)
        alike = np.flatnonzero(np.abs(brightness[:, 0] - brightness[:, 1]) < _MIN_CONTRAST)
        if not len(alike):
            return pairs[:, None, None, 0], pairs[:, None, None, 1]
        pairs[alike] = rng.random((len(alike), 2, 3), np.float32)


@cache
def _drawn(character: str, font: int) -> Any:
    """Draws a character upright, large and centered, as a grayscale image."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{FONTS[font]}.ttf")
    size = round(_DRAWN / 0.72)  # a capital's height is about 0.72 of a font's size
    face = ImageFont.truetype(str(path), size)
    left, top, right, bottom = face.getbbox(character)
    image = Image.new("L", (2 * _DRAWN, 2 * _DRAWN))
    place = (_DRAWN - (left + right) / 2, _DRAWN - (top + bottom) / 2)
    ImageDraw.Draw(image).text(place, character, font=face, fill=255)
    return image
