"""`digits`: 1,797 handwritten digits by 43 people, scanned and reduced to 8x8 pixels."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

_CITATION = """@misc{optdigits,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49}
}"""


class Digits(tfds.core.GeneratorBasedBuilder):
    """The test split of UCI's optical digits, as included in scikit-learn.

    Images are uint8[8, 8, 1], with brightness scaled from 0..16 to 0..255. They are divided, 80/20
    and stratified by digit, into 1,437 training and 360 test images; the division is fixed.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits: Any = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        train, test = train_test_split(
            np.arange(len(images)), test_size=0.2, random_state=0, stratify=digits.target
        )
        return {
            "train": self._generate_examples(np.sort(train), images, digits.target),
            "test": self._generate_examples(np.sort(test), images, digits.target),
        }

    def _generate_examples(
        self, indices: np.ndarray, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        from PIL import Image

        for index in indices:
            # A Pillow image, because TFDS needs TensorFlow to encode arrays.
            image = Image.fromarray(images[index, :, :, 0])
            yield int(index), {"image": image, "label": int(labels[index])}
