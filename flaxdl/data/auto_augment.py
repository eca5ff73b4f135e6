"""AutoAugment: pairs of operations that were found by search on ImageNet."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flaxdl.data.image_operations import Magnitudes, RandomOperations, magnitude_of
from flaxdl.data.rand_augment import rand_augment_magnitudes

_BINS = 10

# Two operations each: name, probability, magnitude from 0 to 9. Some of the 25 occur twice.
IMAGENET_POLICIES: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
    (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
)


@dataclass(frozen=True, kw_only=True)
class AutoAugment(RandomOperations):
    """AutoAugment with the policies found on ImageNet, as torchvision's `AutoAugment`.

    Each image gets one of 25 policies: two operations, each applied with its own probability and
    with a random sign. Cubuk et al., "AutoAugment", https://arxiv.org/abs/1805.09501.
    """

    def draw(self, rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        """Draws the policy of each image [size], and for its operations [size, 2]."""
        return {
            "policies": rng.integers(len(IMAGENET_POLICIES), size=size),
            "chances": rng.random((size, 2)),  # an operation is applied up to its probability
            "negative": rng.random((size, 2)) < 0.5,
        }

    def operations(
        self, draws: Mapping[str, np.ndarray], height: int, width: int
    ) -> list[list[tuple[str, float]]]:
        """Returns those operations of each image's policy that are applied, at most two."""
        magnitudes: Magnitudes = {**rand_augment_magnitudes(_BINS, height, width), "Invert": ()}
        drawn = zip(draws["policies"], draws["chances"], draws["negative"], strict=True)
        return [
            [
                (name, magnitude_of(magnitudes, name, number, is_negative=negative))
                for (name, probability, number), chance, negative in zip(
                    IMAGENET_POLICIES[policy], chances, signs, strict=True
                )
                if chance <= probability
            ]
            for policy, chances, signs in drawn
        ]
