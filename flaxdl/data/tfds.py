"""Source for TFDS datasets, including three that come with flaxdl, read without TensorFlow."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from flaxdl.checks import did_you_mean
from flaxdl.data.dataset import ArrayDataset, Dataset, RecordDataset
from flaxdl.data.prepare import open_builder, quiet, without_module
from flaxdl.data.source import Source, Splits, hold_out
from flaxdl.errors import UserError

# Decoded splits up to this size are kept in memory, where fetching a batch takes microseconds.
_MEMORY_LIMIT = 2**30  # bytes


@dataclass(frozen=True)
class Tfds(Source):
    """A TFDS dataset: `digits`, `glyphs`, `languages`, or any dataset in ArrayRecord format.

    Splits use TFDS syntax, such as `train[:90%]` or `train+validation`.
    """

    name: str
    """Dataset name, such as `mnist`, or with config and version, such as `glue/sst2:2.0.0`."""
    train: str = "train"
    """Training split."""
    validation: str | None = None
    """Split for model selection; by default, part of the training split is held out."""
    test: str | None = "test"
    """Test split, evaluated once, at the end of the run."""
    validation_fraction: float = 0.1
    """Fraction of the training split held out for validation if `validation` is not set."""
    inputs: str | None = None
    """Name of the input feature; by default, the first supervised key of the dataset."""
    label: str | None = None
    """Name of the label feature; by default, the second supervised key of the dataset."""
    data_dir: str | None = None
    """Directory with prepared datasets; by default, $TFDS_DATA_DIR or ~/tensorflow_datasets."""

    def load(self, seed: int) -> Splits:
        """Prepares the dataset if necessary, and opens or reads its splits.

        Raises:
            UserError: if the dataset, a split or a feature does not exist (the message lists those
                that do), or if the dataset cannot be prepared.
        """
        builder = open_builder(self.name, self.data_dir)
        fields = self._fields(builder.info)
        train = self._read(builder, self.train, fields)
        if self.validation is None:
            train, validation = hold_out(train, fraction=self.validation_fraction, seed=seed)
        else:
            validation = self._read(builder, self.validation, fields)
        test = None if self.test is None else self._read(builder, self.test, fields)
        names = getattr(builder.info.features[fields["label"]], "names", None)
        return Splits(train, validation, test, classes=tuple(names) if names else None)

    def _fields(self, info: Any) -> dict[str, str]:
        """Returns the name of the feature for each field."""
        inputs, label = info.supervised_keys or ("", "")
        fields = {"inputs": self.inputs or inputs, "label": self.label or label}
        for field, feature in fields.items():
            if feature not in info.features:
                raise UserError(
                    f"{field} must be one of the features {', '.join(info.features)} "
                    f"of {self.name}, got {feature!r}{did_you_mean(feature, info.features)}"
                )
        return fields

    def _read(self, builder: Any, split: str, fields: dict[str, str]) -> Dataset:
        where = f"split {split!r} of {self.name}"
        self._check_split(builder.info, split)
        try:
            with quiet():
                records = builder.as_data_source(split=split)
        except NotImplementedError:
            raise UserError(
                f"{self.name} in {builder.data_path} is not in ArrayRecord format, the only one "
                f"that can be read without TensorFlow; move it away and prepare it again with "
                f"`tfds build {self.name} --file_format=array_record`"
            ) from None
        except ImportError as error:
            raise UserError(without_module(self.name, error)) from error
        features = builder.info.features
        sizes_differ = None in features[fields["inputs"]].shape
        dataset = RecordDataset(
            records,
            fields,
            num_classes=getattr(features[fields["label"]], "num_classes", None),
            sizes_differ=sizes_differ,
            where=where,
            version=f"{builder.info.full_name} {split}",
        )
        with quiet():  # decoding the first record warns about OpenCV
            example = dataset.gather(np.zeros(1, np.int64))
        size = sum(array.nbytes for array in example.values()) * len(dataset)
        if sizes_differ or size > _MEMORY_LIMIT:
            return dataset
        return ArrayDataset(dataset.arrays())

    def _check_split(self, info: Any, split: str) -> None:
        for name in re.findall(r"[A-Za-z_]\w*(?=\[|\+|$)", split):
            if info.splits and name not in info.splits:
                raise UserError(
                    f"{self.name} has the splits {', '.join(info.splits)}, "
                    f"got {split!r}{did_you_mean(name, info.splits)}"
                )
        try:
            empty = info.splits and info.splits[split].num_examples == 0
        except ValueError as error:
            reason = str(error).splitlines()[-1]
            raise UserError(f"split {split!r} of {self.name}: {reason}") from None
        if empty:
            raise UserError(f"split {split!r} of {self.name} is empty")
