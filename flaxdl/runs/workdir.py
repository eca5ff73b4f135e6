"""Working directory of a run: its files and the record of its config and data."""

import contextlib
import json
import logging
import os
import sys
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
from flaxdl.runs.fitted_task import with_fitted_fields
from flaxdl.training.checkpoints.folder import CheckpointFolder, check_path
from flaxdl.training.distributed.collectives import is_first
from flaxdl.training.distributed.mesh import MeshShape
from flaxdl.training.tasks import Task

_LOGGER = logging.getLogger(__name__)
_RECORDED_VERSIONS = ("flaxdl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def recorded_versions() -> dict[str, str]:
    """Returns the package versions that affect numerical results, and the mode of `flaxdl.ops`."""
    versions = {name: metadata.version(name) for name in _RECORDED_VERSIONS}
    return versions | {"flaxdl.ops": "reference" if is_reference() else "fast"}


def command_line() -> list[str] | None:
    """Returns the command line of this program; None if it is not one of flaxdl's commands."""
    program, *arguments = sys.argv or [""]
    path = Path(program)
    if path.name == "__main__.py" and path.parent.name == "flaxdl":
        return ["python", "-m", "flaxdl", *arguments]
    if path.name == "train.py":
        return ["python", "train.py", *arguments]
    return ["flaxdl", *arguments] if path.stem == "flaxdl" else None


class Workdir:
    """Working directory of a run: config, metrics, checkpoints, TensorBoard events and report.

    Args:
        path: path of the folder, which need not exist.
        is_shared: False if each process of the run has a folder of its own, and only that of the
            first one is kept up to date.
    """

    def __init__(self, path: str | Path, *, is_shared: bool = True):
        self.is_shared = is_shared
        self.path = local_path(path)
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.events = self.path / "events"
        self.times = self.path / "times.json"
        self.tuned_task = self.path / "tuned_task.json"
        self.predictions = self.path / "predictions.npz"
        self.report = self.path / "report.html"
        self._config = self.path / "config.json"
        self._lock = self.path / ".lock"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Context manager that locks the folder against other runs.

        The folder is created if necessary, and removed again if no run claims it. New files are not
        writable by other users (umask 0o002). Other processes can still read the folder. The first
        process holds the lock; the operating system releases it when the process ends for any
        reason. On a file system without locks, a warning is logged instead.

        Raises:
            UserError: if another run is training in the folder, or if it cannot be written.
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
                    # Not 0, since `flaxdl runs` briefly acquires the lock.
                    lock.enter_context(locked(self._lock, timeout=0.2))
            except filelock.Timeout:
                raise UserError(
                    f"another run is training in {self.path}; "
                    "wait until it ends, or use another --workdir"
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
        """True if a run has saved a checkpoint here."""
        if not os.path.isdir(self.checkpoints):  # the path may be a weights file
            return False
        return bool(CheckpointFolder(self.checkpoints).steps())

    def fitted(self, transform: Transform) -> Transform | None:
        """Restores the fitted transform of the run; returns None before its first checkpoint.

        A resumed run must use the token ids that its model was trained with, even if the training
        texts or the tokenizer file have changed.

        Raises:
            UserError: if the fitted transform cannot be read.
        """
        return transform.restore(self.path) if self.has_checkpoints else None

    def fitted_task(self, config: Config) -> Task | None:
        """Restores the fitted task of the run, which a resumed run uses even if its data changed.

        Returns None before the first checkpoint, for another task, or if nothing was fitted.

        Raises:
            UserError: if the fitted task cannot be read.
        """
        if not self.has_checkpoints or not self.has_task_of(config):
            return None
        fields = self.data().get("task")
        return with_fitted_fields(config.task, fields) if fields else None

    def has_task_of(self, config: Config) -> bool:
        """Returns whether the run in the folder was recorded with the task of this config.

        Raises:
            UserError: if the record cannot be read.
        """
        if not self._config.exists():
            return False
        return upgraded(self._read()["config"], config).get("task") == to_json(config.task)

    def check_config(self, config: Config, *, accept_changes: bool) -> None:
        """Checks that the folder contains no run, or a run with this config.

        Args:
            config: configuration of the run.
            accept_changes: True to log differences instead of raising an error.

        Raises:
            UserError: if the folder contains a run with another config (the message lists the
                differences) or with an unknown config.
        """
        if self._config.exists():
            changes = differences(upgraded(self._read()["config"], config), to_json(config))
            self._report("another config", changes, accept_changes)
        elif self.has_checkpoints:
            fault = f"no {self._config.name}, which would record its config"
            self._report("unknown origin", [fault], accept_changes)

    def check_data(self, data: Mapping[str, Any], *, accept_changes: bool) -> bool:
        """Checks that the run in the folder, if there is one, began with the same data.

        Args:
            data: facts about the data, see `flaxdl.data.facts`.
            accept_changes: True to log differences instead of raising an error.

        Returns:
            True if there are differences that were accepted.

        Raises:
            UserError: if the run began with other data; the message lists the differences.
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
                f"{self.path} has a run of {what}:\n  {listed}\n"
                "Use another --workdir, or --accept-changes to resume anyway"
            )
        _LOGGER.warning("resuming a run of %s:\n  %s", what, listed)

    def claim(self, config: Config, data: Mapping[str, Any]) -> None:
        """Records the config and the data of the run in the folder.

        Raises:
            UserError: if the folder cannot be written.
        """
        versions = self.versions() if self._config.exists() else recorded_versions()
        mesh = to_json(config.mesh)  # not part of the config, since it may change on resume
        values = {"config": to_json(config), "data": data, "mesh": mesh, "versions": versions}
        is_unchanged = self._config.exists() and self._read()["config"] == values["config"]
        command = self.command() if is_unchanged else command_line()
        if command is not None:
            values["command"] = command
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
        """Flushes the files in the folder (not in subfolders) to disk, where possible."""
        for path in self.path.iterdir():
            if path.is_file():
                with contextlib.suppress(OSError):
                    sync(path)
        sync_folder(self.path)

    def check_shared(self) -> None:
        """Checks that all processes share the folder.

        Raises:
            UserError: if this process does not find the `config.json` written by the first one.
        """
        if self.is_shared and not self._config.exists():
            raise UserError(
                f"the workdir {self.path} must be on a file system shared by all processes, "
                f"but this process finds no {self._config.name} in it"
            )

    @property
    def is_in_use(self) -> bool:
        """True if a run is training here, according to its lock."""
        return is_held(self._lock)

    def config_record(self) -> dict[str, Any]:
        """Returns the config of the run as JSON, without importing its classes.

        Raises:
            UserError: if there is no run.
        """
        return upgraded(self._read()["config"])

    def config(self) -> Config:
        """Returns the config of the run in this folder.

        Raises:
            UserError: if there is no run, or if its config is invalid or needs classes that are not
                part of flaxdl.
        """
        try:
            config = from_json(self.config_record())
        except UserError:
            raise
        except Exception as error:  # a class whose fields have other names or types
            raise UserError(f"{self._config} cannot be read: {error}") from error
        if not isinstance(config, Config):
            raise UserError(f"{self._config} cannot be read: it contains a {type(config).__name__}")
        return config

    def mesh_shape(self) -> MeshShape:
        """Returns the shape of the mesh that the run was last trained on.

        Earlier versions did not record it; for their runs, the default is returned.

        Raises:
            UserError: if there is no run, or if the recorded mesh is invalid.
        """
        record = self._read().get("mesh")
        if record is None:
            return MeshShape()
        try:
            shape = from_json(upgraded(record))
        except (ValueError, TypeError) as error:
            raise UserError(f"{self._config} has an invalid mesh: {error}") from error
        if not isinstance(shape, MeshShape):
            raise UserError(f"{self._config} has an invalid mesh: it must be a MeshShape")
        return shape

    def versions(self) -> dict[str, str]:
        """Returns the recorded package versions that the run began with.

        Raises:
            UserError: if there is no run.
        """
        versions = self._read().get("versions")
        known = versions if isinstance(versions, dict) else {}
        return {str(name): str(version) for name, version in known.items()}

    def command(self) -> list[str] | None:
        """Returns the command line that started the run; None if it is not recorded.

        Raises:
            UserError: if there is no run.
        """
        command = self._read().get("command")
        is_known = isinstance(command, list) and all(isinstance(part, str) for part in command)
        return command if is_known else None

    def data(self) -> dict[str, Any]:
        """Returns the facts about the data recorded by `claim`.

        Raises:
            UserError: if there is no run, or if `config.json` lacks them.
        """
        return self._read()["data"]

    def warn_of_other_versions(self) -> None:
        """Logs a warning if package versions have changed since the run began.

        The mode of `flaxdl.ops`, `fast` or `reference`, counts as a version.

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
                "versions have changed since this run began: %s; the results may differ slightly "
                "from those of an uninterrupted run",
                ", ".join(changed),
            )

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"the workdir {self.path} cannot be written ({error.strerror}); use another --workdir"
        )

    def _read(self) -> dict[str, Any]:
        try:
            if os.path.lexists(self._config) and not self._config.is_file():
                raise UserError("not a regular file")  # reading a pipe would block
            record = json.loads(self._config.read_text())
        except FileNotFoundError:
            raise UserError(f"{self.path} has no run: {self._config} does not exist") from None
        except (ValueError, OSError, RecursionError) as error:
            raise UserError(f"{self._config} cannot be read: {error}") from error
        known = record if isinstance(record, dict) else {}
        missing = [name for name in ("config", "data") if not isinstance(known.get(name), dict)]
        if missing:
            raise UserError(f"{self._config} cannot be read: it lacks {' and '.join(missing)}")
        fault = facts.find_error(record["data"])
        if fault is not None:
            raise UserError(f"{self._config} cannot be read: data.{fault}")
        return record
