"""The folder of a run: its files, and the config and data that it belongs to."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from flaxdl.config import Config
from flaxdl.data import Transform, facts
from flaxdl.errors import UserError
from flaxdl.filesystem.atomic import atomic_write, sync, sync_folder
from flaxdl.filesystem.locks import is_held, locked
from flaxdl.filesystem.paths import local_path
from flaxdl.ops.dispatch import is_reference
from flaxdl.runs.config_json import differences, from_json, to_json, upgraded
from flaxdl.training.checkpoints.folder import CheckpointFolder, check_path
from flaxdl.training.distributed.collectives import is_first
from flaxdl.training.distributed.mesh import MeshShape

_LOGGER = logging.getLogger(__name__)
_RECORDED_VERSIONS = ("flaxdl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def recorded_versions() -> dict[str, str]:
    """The versions of the packages that decide the numbers of a run, and how `flaxdl.ops` does."""
    versions = {name: metadata.version(name) for name in _RECORDED_VERSIONS}
    return versions | {"flaxdl.ops": "reference" if is_reference() else "fast"}


class Workdir:
    """A run's folder: `config.json`, `metrics.jsonl`, `checkpoints/`, the events, the report."""

    def __init__(self, path: str | Path):
        self.path = local_path(path)
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.events = self.path / "events"
        self.times = self.path / "times.json"
        self.predictions = self.path / "predictions.npz"
        self.report = self.path / "report.html"
        self._config = self.path / "config.json"
        self._lock = self.path / ".lock"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs out, and everyone who is not in the user's group from what is written.

        The folder is made; where nothing claims it, it is taken away again. Those who only read are
        not kept out. The lock is the first process's, and ends with it, however that ends. On a
        file system without locks a warning says that there is none.

        Raises:
            UserError: if another run is in the folder, or it cannot be written or read back.
        """
        import filelock

        check_path(self.checkpoints)
        lock = contextlib.ExitStack()
        mask = os.umask(0o022)
        os.umask(mask | 0o002)
        try:
            is_new = is_first() and not os.path.lexists(self.path)
            try:
                if is_first():
                    self.path.mkdir(parents=True, exist_ok=True)
                    # Not 0, since `flaxdl runs` takes it for a moment.
                    lock.enter_context(locked(self._lock, timeout=0.2))
            except filelock.Timeout:
                raise UserError(
                    f"another run is training in {self.path}; "
                    "wait for its end, or choose another --workdir"
                ) from None
            except OSError as error:
                raise self._unwritable(error) from error
            try:
                yield
            finally:
                if is_new and not self._config.exists():
                    with contextlib.suppress(OSError):
                        self._lock.unlink(missing_ok=True)
                        self.path.rmdir()
                lock.close()
        finally:
            os.umask(mask)

    @property
    def has_checkpoints(self) -> bool:
        """Whether a run has saved its state here."""
        if not os.path.isdir(self.checkpoints):  # may be a file of weights, under any name
            return False
        return bool(CheckpointFolder(self.checkpoints).steps())

    def fitted(self, transform: Transform) -> Transform | None:
        """The transform as the run in the folder has fitted it; None before its first checkpoint.

        A network that has learned token ids must see the same ones when its run is resumed, even if
        the data that they were learned from, or the file that they came from, have changed.

        Raises:
            UserError: if it cannot be read.
        """
        return transform.restore(self.path) if self.has_checkpoints else None

    def check_config(self, config: Config, *, accept_changes: bool) -> None:
        """Checks that the folder is free, or holds a run of this config.

        Args:
            config: the run.
            accept_changes: log the differences instead of raising them.

        Raises:
            UserError: if it belongs to another config, with what differs, or to an unknown one.
        """
        if self._config.exists():
            changes = differences(upgraded(self._read()["config"], config), to_json(config))
            self._report("another config", changes, accept_changes)
        elif self.has_checkpoints:
            fault = f"no {self._config.name}, which says what it is a run of"
            self._report("unknown origin", [fault], accept_changes)

    def check_data(self, data: Mapping[str, Any], *, accept_changes: bool) -> bool:
        """Checks that the run in the folder, if there is one, began with these data.

        Args:
            data: facts about the data, see `flaxdl.data.facts`.
            accept_changes: log the differences instead of raising them.

        Returns:
            True if there are differences, which were accepted.

        Raises:
            UserError: if the run began with other data, with what differs.
        """
        if not self._config.exists():
            return False
        changes = facts.differences(self.data(), data)
        self._report("other data", changes, accept_changes)
        return bool(changes)

    def _report(self, what: str, changes: Sequence[str], accept_changes: bool) -> None:
        if not changes:
            return
        listed = "\n  ".join(changes)
        if not accept_changes:
            raise UserError(
                f"{self.path} holds a run of {what}:\n  {listed}\n"
                "Use another --workdir, or --accept-changes to resume all the same"
            )
        _LOGGER.warning("resuming a run of %s:\n  %s", what, listed)

    def claim(self, config: Config, data: Mapping[str, Any]) -> None:
        """Records the config and the data that the folder belongs to from now on.

        Raises:
            UserError: if the folder cannot be written.
        """
        versions = self.versions() if self._config.exists() else recorded_versions()
        mesh = to_json(config.mesh)  # no part of the config, since it may change on resume
        values = {"config": to_json(config), "data": data, "mesh": mesh, "versions": versions}
        text = json.dumps(values, indent=2) + "\n"
        if self._config.exists() and self._config.read_text() == text:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._config) as unfinished:
                unfinished.write_text(text)
        except OSError as error:
            raise self._unwritable(error) from error

    def sync(self) -> None:
        """Waits until the files in the folder itself are on disk, as far as that is possible."""
        for path in self.path.iterdir():
            if path.is_file():
                with contextlib.suppress(OSError):
                    sync(path)
        sync_folder(self.path)

    def check_shared(self) -> None:
        """Checks that this process sees what another one has claimed.

        Raises:
            UserError: if it does not.
        """
        if not self._config.exists():
            raise UserError(
                f"the workdir {self.path} must be on a file system that all processes share, "
                f"but here it has no {self._config.name}"
            )

    @property
    def is_in_use(self) -> bool:
        """Returns whether a run is training here, as far as its lock tells."""
        return is_held(self._lock)

    def config_record(self) -> dict[str, Any]:
        """The config of the run as JSON, which needs none of the classes that it names.

        Raises:
            UserError: if there is no run.
        """
        return upgraded(self._read()["config"])

    def config(self) -> Config:
        """The config of the run that is in this folder.

        Raises:
            UserError: if there is none, it needs classes that flaxdl does not have, or it is no
                config.
        """
        try:
            config = from_json(self.config_record())
        except UserError:
            raise
        except Exception as error:  # of a class whose fields have other names or types
            raise UserError(f"{self._config} cannot be read: {error}") from error
        if not isinstance(config, Config):
            raise UserError(f"{self._config} cannot be read: it holds a {type(config).__name__}")
        return config

    def mesh_shape(self) -> MeshShape:
        """The arrangement of devices that the run was trained on last.

        Runs of earlier versions did not record it.

        Raises:
            UserError: if there is no run, or the record cannot be read.
        """
        record = self._read().get("mesh")
        if record is None:
            return MeshShape()
        try:
            shape = from_json(upgraded(record))
        except (ValueError, TypeError) as error:
            raise UserError(f"{self._config} cannot be read: mesh: {error}") from error
        if not isinstance(shape, MeshShape):
            raise UserError(f"{self._config} cannot be read: mesh must be a MeshShape")
        return shape

    def versions(self) -> dict[str, str]:
        """The versions with which the run began, as far as they are recorded.

        Raises:
            UserError: if there is no run.
        """
        versions = self._read().get("versions")
        known = versions if isinstance(versions, dict) else {}
        return {str(name): str(version) for name, version in known.items()}

    def data(self) -> dict[str, Any]:
        """The facts about the data that `claim` was given.

        Raises:
            UserError: if there is no run, or `config.json` does not hold them.
        """
        return self._read()["data"]

    def warn_of_other_versions(self) -> None:
        """Logs which packages have another version now than when the run began.

        The operations of `flaxdl.ops` count as one, which is `fast` or `reference`.

        Raises:
            UserError: if there is no run.
        """
        now = recorded_versions()
        changed = [
            f"{name} {version} → {now[name]}"
            for name, version in ({"flaxdl.ops": "fast"} | self.versions()).items()
            if now.get(name, version) != version
        ]
        if changed:
            _LOGGER.warning(
                "this run began with other versions: %s; its numbers may differ slightly from "
                "those of a run that was not interrupted",
                ", ".join(changed),
            )

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"the workdir {self.path} cannot be written ({error.strerror}); "
            "choose another with --workdir"
        )

    def _read(self) -> dict[str, Any]:
        try:
            if os.path.lexists(self._config) and not self._config.is_file():
                raise UserError("it is no file")  # a pipe would be waited for
            record = json.loads(self._config.read_text())
        except FileNotFoundError:
            raise UserError(f"{self.path} holds no run: there is no {self._config}") from None
        except (ValueError, OSError, RecursionError) as error:
            raise UserError(f"{self._config} cannot be read: {error}") from error
        known = record if isinstance(record, dict) else {}
        missing = [name for name in ("config", "data") if not isinstance(known.get(name), dict)]
        if missing:
            raise UserError(f"{self._config} cannot be read: it has no {' and no '.join(missing)}")
        fault = facts.fault_of(record["data"])
        if fault is not None:
            raise UserError(f"{self._config} cannot be read: data.{fault}")
        return record
