"""Fifty images after torchvision's TrivialAugmentWide, RandAugment and AutoAugment.

    python tests/reference/augmentation.py

writes `augmentation.json`: checksums of all images that each forced draw gives, on x86-64. Other
processors may fuse the multiply-adds of Pillow's filters and round a few pixels differently.
"""

import contextlib
import functools
import itertools
import json
import sys
import types
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILE = Path(__file__).with_name("augmentation.json")

BINS = 31
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
ENHANCING = ("Brightness", "Color", "Contrast", "Sharpness")
NAMES = ("Identity", *GEOMETRIC, *ENHANCING, "Posterize", "Solarize", "AutoContrast", "Equalize")
WITHOUT_MAGNITUDE = ("Identity", "AutoContrast", "Equalize")
POLICIES = 25

# Height, width, channels.
SIZES = (
    *[(32, 32, 3)] * 10,
    *[(28, 28, 1)] * 6,
    *[(24, 40, 3), (40, 24, 3), (33, 17, 3), (17, 33, 3), (19, 23, 3)] * 3,
    *[(24, 40, 1), (40, 24, 1), (33, 17, 1)],
    *[(1, 20, 3), (20, 1, 3), (1, 1, 3), (1, 20, 1), (20, 1, 1), (1, 1, 1)],
    *[(2, 3, 3), (3, 2, 1), (5, 64, 3), (64, 5, 1)],
    *[(8, 8, 1), (16, 16, 3), (48, 48, 3), (64, 96, 3), (96, 64, 1), (75, 50, 3)],
)


class Case(NamedTuple):
    """One operation of TrivialAugmentWide or RandAugment, or one policy of AutoAugment."""

    kind: str
    interpolation: str
    operation: str | int

    def __str__(self):
        return "-".join(map(str, self))


def cases() -> list[Case]:
    """Each operation and policy; those that move pixels with both interpolations."""
    interpolations = ("nearest", "bilinear")
    return [
        *(
            Case(kind, interpolation, name)
            for kind in ("TrivialAugmentWide", "RandAugment")
            for name in NAMES
            for interpolation in interpolations[: 1 + (name in GEOMETRIC)]
        ),
        *(Case("AutoAugment", how, n) for n in range(POLICIES) for how in interpolations),
    ]


def variants(case: Case) -> list[tuple]:
    """The forced draws: bin and sign, or for a policy the chances and signs of both operations."""
    if case.kind == "AutoAugment":
        signs = list(itertools.product((0, 1), repeat=2))
        return [((0.0, 0.0), sign) for sign in signs] + [
            (chances, (1, 0)) for chances in ((0.5, 0.5), (0.7, 0.5), (0.3, 0.9), (1.0, 1.0))
        ]
    if case.operation in WITHOUT_MAGNITUDE:
        return [(0, 0)]
    signs = (0, 1) if case.operation in (*GEOMETRIC, *ENHANCING) else (0,)
    return list(itertools.product(range(BINS), signs))


@functools.cache
def images() -> tuple[np.ndarray, ...]:
    """Fifty images: noise, gradients, and few or low levels, in turn."""
    random = np.random.RandomState(0)  # its numbers never change
    return tuple(_image(random, number % 4, *size) for number, size in enumerate(SIZES))


def _image(random, kind, H, W, C):
    noise = random.randint(0, 256, (H, W, C))
    slopes = random.randint(1, 9, (2, C))
    y, x = np.mgrid[:H, :W]
    gradient = (slopes[0] * y[..., None] + slopes[1] * x[..., None]) // 2 % 256
    values = (noise, gradient, noise // 64 * 60 + 20, 40 + noise // 4)[kind]
    return values.astype(np.uint8)


def fill(case: Case, channels: int) -> tuple[int, ...]:
    """The fill of a case: black, or with bilinear interpolation a color."""
    return (0,) if case.interpolation == "nearest" else (124, 116, 104)[:channels]


def theirs(case: Case, image: np.ndarray) -> list[np.ndarray]:
    """torchvision's results for each variant."""
    tv = import_torchvision()
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    settings = {
        "interpolation": tv.InterpolationMode(case.interpolation),
        "fill": None if case.interpolation == "nearest" else list(fill(case, image.shape[-1])),
    }
    results = []
    for one, sign in variants(case):
        if case.kind == "AutoAugment":
            module = tv.AutoAugment(**settings)
            drawn = (case.operation, one, sign)
            module.get_params = lambda _, drawn=drawn: drawn
            result = module(picture)
        elif case.kind == "RandAugment":
            with _drawn(NAMES.index(case.operation), sign):
                result = tv.RandAugment(num_ops=1, magnitude=one, **settings)(picture)
        else:
            bins = () if case.operation in WITHOUT_MAGNITUDE else (one,)
            with _drawn(NAMES.index(case.operation), *bins, sign):
                result = tv.TrivialAugmentWide(**settings)(picture)
        results.append(np.asarray(result).reshape(image.shape))
    return results


@contextlib.contextmanager
def _drawn(*numbers: int) -> Iterator[None]:
    """Makes `torch.randint` return these numbers, one after the other."""
    import torch

    original, remaining = torch.randint, iter(numbers)
    torch.randint = lambda *_, **__: torch.tensor([next(remaining)])
    try:
        yield
    finally:
        torch.randint = original


def import_torchvision() -> types.ModuleType:
    """Returns `torchvision.transforms`, also if its compiled part does not fit PyTorch's build.

    Raises:
        ImportError: if torchvision or PyTorch is not installed.
    """
    import torch  # noqa: F401

    # It registers compiled operations, which a CPU build of PyTorch lacks; transforms need none.
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType(""))
    import torchvision.transforms as tv

    return tv


def checksums(case: Case, results: list[list[np.ndarray]]) -> list[str]:
    """One checksum per variant, over all images.

    Args:
        case: the case.
        results: for each image, the result of each variant.
    """
    return [
        f"{zlib.crc32(b''.join(one[number].tobytes() for one in results)):08x}"
        for number in range(len(variants(case)))
    ]


def stored() -> dict[str, list[str]]:
    """The checksums of all cases."""
    return json.loads(FILE.read_text())


if __name__ == "__main__":
    found = {str(c): checksums(c, [theirs(c, image) for image in images()]) for c in cases()}
    lines = (f"  {json.dumps(name)}: {json.dumps(sums)}" for name, sums in found.items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
