"""Speed of augmentation on the host: images per second of one core, and of Pillow alone.

    python benchmarks/augmentation.py

Measures each augmentation of `Images`, and each operation of TrivialAugment, RandAugment and
AutoAugment, in processor time of one thread. Pillow alone makes the calls of torchvision on images
that it already holds; the difference is mainly the conversion from and to arrays. Images have 224 x
224 pixels, those to be cropped and resized 500 x 375. Results are written to
`results/augmentation_VENDOR.json`.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import tyro
from PIL import Image, ImageOps
from speed import HERE, processor, vendor

from flaxdl.data import AutoAugment, Images, RandAugment, TrivialAugmentWide
from flaxdl.data.image_operations import OPERATIONS, RandomOperations, operate

BATCH = 32
SIZE = 224
BILINEAR = Image.Resampling.BILINEAR

Draws = Mapping[str, np.ndarray]
# Ours for a batch, and Pillow's for the same batch.
Pair = tuple[Callable[[], Any], Callable[[], Any]]


@dataclass(frozen=True, kw_only=True)
class Fixed(RandomOperations):
    """The same operations for every batch."""

    fixed: list[list[tuple[str, float]]] = field(default_factory=list)

    def operations(self, draws: Draws, height: int, width: int) -> list[list[tuple[str, float]]]:
        """Returns the fixed operations."""
        return self.fixed


def photographs(height: int, width: int) -> np.ndarray:
    """Returns smooth color images with some noise, uint8[B, H, W, 3]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (BATCH, 8, 8, 3), dtype=np.uint8)
    smooth = [
        Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in coarse
    ]
    noise = rng.integers(-8, 9, (BATCH, height, width, 3))
    return np.clip(np.stack([np.asarray(one) for one in smooth]) + noise, 0, 255).astype(np.uint8)


def with_operations(augmentation: RandomOperations) -> Pair:
    """Applies random operations to a batch."""
    images = photographs(SIZE, SIZE)
    pictures = [Image.fromarray(image) for image in images]
    draws = augmentation.draw(np.random.default_rng(0), BATCH)
    operations = augmentation.operations(draws, SIZE, SIZE)

    def pillow() -> None:
        for picture, steps in zip(pictures, operations, strict=True):
            result = picture
            for name, magnitude in steps:
                result = as_torchvision(result, name, magnitude)

    return lambda: augmentation.augment(images, draws), pillow


def as_torchvision(picture: Image.Image, name: str, magnitude: float) -> Image.Image:
    """Applies an operation with the calls of Pillow that torchvision makes."""
    if name not in ("TranslateX", "TranslateY"):
        return operate(picture, name, magnitude, resample=BILINEAR, fill=(0, 0, 0))
    x, y = (int(magnitude), 0) if name == "TranslateX" else (0, int(magnitude))
    matrix = (1, 0, -x, 0, 1, -y)
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, BILINEAR)


def one_operation(name: str) -> Pair:
    """Applies one operation with the magnitudes and signs of TrivialAugment."""
    fixed = [[(name, 0.0)]] * BATCH  # Invert, which TrivialAugment lacks
    if name in OPERATIONS:
        trivial = TrivialAugmentWide()
        draws = trivial.draw(np.random.default_rng(0), BATCH)
        draws["operations"] = np.full(BATCH, OPERATIONS.index(name))
        fixed = trivial.operations(draws, SIZE, SIZE)
    return with_operations(Fixed(interpolation="bilinear", fixed=fixed))


def with_images(
    transform: Images,
    pillow: Callable[[Image.Image, Mapping[str, Any]], Any],
    size: Sequence[int] = (SIZE, SIZE),
) -> Pair:
    """Transforms a batch of images of one size."""
    images = photographs(*size)
    pictures = [Image.fromarray(image) for image in images]
    draws = transform.draw(np.random.default_rng(0), BATCH)
    own = [{name: draw[number] for name, draw in draws.items()} for number in range(BATCH)]
    return (
        lambda: transform.prepare({"inputs": images}, draws),
        lambda: [pillow(*one) for one in zip(pictures, own, strict=True)],
    )


def resized_crop(picture: Image.Image, draws: Mapping[str, Any], size: int) -> Image.Image:
    """Crops the first area and ratio that fit, as `random_resized_crop`, with Pillow."""
    W, H = picture.size
    for area, ratio in zip(draws["areas"], draws["ratios"], strict=True):
        height, width = round((area * H * W / ratio) ** 0.5), round((area * H * W * ratio) ** 0.5)
        if 0 < height <= H and 0 < width <= W:
            top, left = (draws["places"] * (H - height + 1, W - width + 1)).astype(int)
            return picture.crop((left, top, left + width, top + height)).resize(
                (size, size), BILINEAR
            )
    return picture.resize((size, size), BILINEAR)


def padded_crop(picture: Image.Image, draws: Mapping[str, Any]) -> Image.Image:
    """Pads by 28 pixels and crops, with Pillow."""
    top, left = draws["offsets"].tolist()
    return ImageOps.expand(picture, 28).crop((left, top, left + SIZE, top + SIZE))


ROWS: dict[str, Callable[[], Pair]] = {
    **{
        f"random resized crop to {size}": lambda size=size: with_images(
            Images(size=SIZE, min_scale=0.08, train_size=size),
            lambda picture, draws: resized_crop(picture, draws, size),
            (375, 500),
        )
        for size in (224, 176)
    },
    "crop with padding": lambda: with_images(Images(crop_padding=28), padded_crop),
    "flip": lambda: with_images(
        Images(flip=True),
        lambda picture, draws: ImageOps.mirror(picture) if draws["flipped"] else picture,
    ),
    "rotation": lambda: with_images(
        Images(rotation=15), lambda picture, draws: picture.rotate(draws["degrees"], BILINEAR)
    ),
    "TrivialAugmentWide": lambda: with_operations(TrivialAugmentWide(interpolation="bilinear")),
    "RandAugment": lambda: with_operations(RandAugment(interpolation="bilinear")),
    "AutoAugment": lambda: with_operations(AutoAugment(interpolation="bilinear")),
    **{name: lambda name=name: one_operation(name) for name in (*OPERATIONS[1:], "Invert")},
}


def images_per_second(work: Callable[[], Any], seconds: float) -> float:
    """Returns the images per second of processor time, over at least `seconds`."""
    start, batches = time.process_time(), 0
    while (elapsed := time.process_time() - start) < seconds:
        work()
        batches += 1
    return BATCH * batches / elapsed


def main(rounds: int = 7, seconds: float = 0.2, out: Path = HERE / "results") -> None:
    """Measure and write the results.

    Args:
        rounds: Number of measurements of each side, in turn.
        seconds: Duration of each measurement.
        out: Folder of the results.
    """
    results: dict[str, Any] = {
        "machine": {"processor": processor()["model name"], "cores": os.cpu_count()},
        "pillow": PIL.__version__,
        "images_per_second_of_a_core": {},
    }
    for name, make in ROWS.items():
        sides = make()
        rates = [[images_per_second(side, seconds) for side in sides] for _ in range(rounds)]
        ours, pillow = (statistics.median(column) for column in zip(*rates, strict=True))
        ratios = [a / b for a, b in rates]
        row = {"ours": round(ours), "pillow": round(pillow)}
        row |= {"ratio": round(statistics.median(ratios), 2)}
        row |= {"ratios": [round(min(ratios), 2), round(max(ratios), 2)]}
        results["images_per_second_of_a_core"][name] = row
        print(f"{name:<30} {row}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"augmentation_{vendor()}.json"
    file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
