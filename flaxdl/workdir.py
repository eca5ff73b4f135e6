"""The folder of a run: what lies where in it, and whose it is."""

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from flaxdl.config import Config, differences, from_json, to_json

_RECORDED_VERSIONS = ("flaxdl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Workdir:
    """A run's folder with `config.json`, `metrics.jsonl`, `checkpoints/` and the events."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.events = self.path / "events"
        self._config = self.path / "config.json"

    @property
    def has_checkpoints(self) -> bool:
        """Whether a run has saved its state here."""
        return any(path.name.isdigit() for path in self.checkpoints.glob("*"))

    def claim(
        self, config: Config, *, data: Mapping[str, Any], accept_changes: bool = False
    ) -> None:
        """Makes the folder this config's, or checks that it already is.

        Args:
            config: the run.
            data: facts about the data that later commands need, such as class names.
            accept_changes: goes on in a folder whose config differs.

        Raises:
            ValueError: if the folder cannot be written, or belongs to another config; the
                message lists what differs.
        """
        record = to_json(config)
        if self._config.exists() and not accept_changes:
            changes = differences(self._read()["config"], record)
            if changes:
                raise ValueError(
                    f"{self.path} holds a run of another config:\n  "
                    + "\n  ".join(changes)
                    + "\nUse another --workdir, or --accept-changes to go on with the new values"
                )
            return
        versions = {name: metadata.version(name) for name in _RECORDED_VERSIONS}
        text = json.dumps({"config": record, "data": data, "versions": versions}, indent=2)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            unfinished = self._config.with_suffix(".tmp")
            unfinished.write_text(text + "\n")
            unfinished.replace(self._config)
        except OSError as error:
            raise ValueError(
                f"the workdir {self.path} cannot be written ({error.strerror}); "
                "choose another with --workdir"
            ) from error

    def config(self) -> Config:
        """The config of the run that is in this folder.

        Raises:
            ValueError: if there is none, or it needs classes that flaxdl does not have.
        """
        return from_json(self._read()["config"])

    def data(self) -> dict[str, Any]:
        """The facts about the data that `claim` was given."""
        return self._read()["data"]

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self._config.read_text())
        except FileNotFoundError:
            raise ValueError(f"{self.path} holds no run: there is no {self._config}") from None
        except (ValueError, OSError) as error:
            raise ValueError(f"{self._config} cannot be read: {error}") from error
