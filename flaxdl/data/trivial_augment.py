"""TrivialAugment: one random operation per image, with a random magnitude."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from flaxdl.data.image_operations import (
    OPERATIONS,
    Magnitudes,
    RandomOperations,
    bits,
    check_number,
    magnitude_of,
    spaced,
)


@dataclass(frozen=True, kw_only=True)
class TrivialAugmentWide(RandomOperations):
    """TrivialAugment with the wide range of magnitudes, as in torchvision's `TrivialAugmentWide`.

    Each image gets one of 14 operations, with a random magnitude and sign. It has nothing to tune.
    Müller and Hutter, "TrivialAugment", https://arxiv.org/abs/2103.10158.
    """

    num_magnitude_bins: int = 31
    """Number of magnitudes of each operation."""

    def __post_init__(self):
        super().__post_init__()
        check_number("augment.num_magnitude_bins", self.num_magnitude_bins, 2)

    def draw(self, rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        """Draws the operation, its magnitude and its sign for each image, as arrays [size]."""
        return {
            "operations": rng.integers(len(OPERATIONS), size=size),
            "bins": rng.integers(self.num_magnitude_bins, size=size),
            "negative": rng.random(size) < 0.5,
        }

    def operations(
        self, draws: Mapping[str, np.ndarray], height: int, width: int
    ) -> list[list[tuple[str, float]]]:
        """Returns one operation per image; magnitudes do not depend on the image size."""
        magnitudes = _magnitudes(self.num_magnitude_bins)
        names = [OPERATIONS[place] for place in draws["operations"]]
        drawn = zip(names, draws["bins"], draws["negative"], strict=True)
        return [
            [(name, magnitude_of(magnitudes, name, number, is_negative=negative))]
            for name, number, negative in drawn
        ]


@cache
def _magnitudes(count: int) -> Magnitudes:
    return {
        "Identity": (),
        "ShearX": spaced(0, 0.99, count),
        "ShearY": spaced(0, 0.99, count),
        "TranslateX": spaced(0, 32, count),  # pixels, whatever the size of the image
        "TranslateY": spaced(0, 32, count),
        "Rotate": spaced(0, 135, count),
        "Brightness": spaced(0, 0.99, count),
        "Color": spaced(0, 0.99, count),
        "Contrast": spaced(0, 0.99, count),
        "Sharpness": spaced(0, 0.99, count),
        "Posterize": bits(6, count),
        "Solarize": spaced(255, 0, count),
        "AutoContrast": (),
        "Equalize": (),
    }
