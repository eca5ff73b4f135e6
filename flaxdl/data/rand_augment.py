"""RandAugment: a few random operations per image, all with the same magnitude."""

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
class RandAugment(RandomOperations):
    """RandAugment, as in torchvision.

    Each image gets `num_ops` of 14 operations, with random signs; the same one may occur twice.
    Cubuk et al., "RandAugment", https://arxiv.org/abs/1909.13719.
    """

    num_ops: int = 2
    """Number of operations per image."""
    magnitude: int = 9
    """Magnitude of all operations, from 0 to `num_magnitude_bins` - 1."""
    num_magnitude_bins: int = 31
    """Number of magnitudes between the weakest and the strongest."""

    def __post_init__(self):
        super().__post_init__()
        check_number("augment.num_ops", self.num_ops, 1)
        check_number("augment.num_magnitude_bins", self.num_magnitude_bins, 2)
        check_number("augment.magnitude", self.magnitude, 0, self.num_magnitude_bins - 1)

    def draw(self, rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        """Draws the operations and their signs for each image, as arrays [size, num_ops]."""
        shape = (size, self.num_ops)
        return {
            "operations": rng.integers(len(OPERATIONS), size=shape),
            "negative": rng.random(shape) < 0.5,
        }

    def operations(
        self, draws: Mapping[str, np.ndarray], height: int, width: int
    ) -> list[list[tuple[str, float]]]:
        """Returns `num_ops` operations per image."""
        magnitudes = rand_augment_magnitudes(self.num_magnitude_bins, height, width)

        def operation(place: int, negative: bool) -> tuple[str, float]:
            name = OPERATIONS[place]
            return name, magnitude_of(magnitudes, name, self.magnitude, is_negative=negative)

        return [
            [operation(*one) for one in zip(places, signs, strict=True)]
            for places, signs in zip(draws["operations"], draws["negative"], strict=True)
        ]


@cache
def rand_augment_magnitudes(count: int, height: int, width: int) -> Magnitudes:
    """Returns the magnitudes of each operation; translations depend on the size of the image."""
    return {
        "Identity": (),
        "ShearX": spaced(0, 0.3, count),
        "ShearY": spaced(0, 0.3, count),
        # 150 pixels of the 331 x 331 images of the AutoAugment paper.
        "TranslateX": spaced(0, 150 / 331 * width, count),
        "TranslateY": spaced(0, 150 / 331 * height, count),
        "Rotate": spaced(0, 30, count),
        "Brightness": spaced(0, 0.9, count),
        "Color": spaced(0, 0.9, count),
        "Contrast": spaced(0, 0.9, count),
        "Sharpness": spaced(0, 0.9, count),
        "Posterize": bits(4, count),
        "Solarize": spaced(255, 0, count),
        "AutoContrast": (),
        "Equalize": (),
    }
