"""The folder of a run's checkpoints: names, completeness, damage.

A checkpoint is a folder named by its step. It is written under another name, gets a manifest of its
files, and only then its own name: where the name is, all of it is. Damage after that is seen by the
manifest.
"""

import errno
import logging
import os
import shutil
from pathlib import Path

from flaxdl.training.manifest import damage_of, write_manifest

_LOGGER = logging.getLogger(__name__)
_PARTIAL = ".partial"  # behind the name of what is being written or removed


class Damaged(ValueError):
    """The files of a checkpoint are not those that were written."""


class CheckpointFolder:
    """A folder of checkpoints; only what has the run's lock may change it.

    Args:
        path: the folder, which may be missing.
    """

    def __init__(self, path: Path):
        self.path = path.absolute()
        self._aside = self.path / "damaged"

    def make_room(self, step: int, size: int) -> None:
        """Makes the folder in the workdir, if it is missing, but not the workdir.

        What cannot be written is not begun: of Orbax, stopped by the disk, threads complain on the
        terminal, and others wait for twenty minutes for a folder that never comes.

        Args:
            step: that of the checkpoint to come.
            size: its bytes.

        Raises:
            OSError: if nothing can be written there, or the disk has no room.
        """
        self.path.mkdir(exist_ok=True)
        disk = shutil.disk_usage(self.path)
        if disk.total > 0 and disk.free < size:  # file systems without an end have total 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.partial(step).mkdir()
        self.partial(step).rmdir()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first."""
        return sorted(int(path.name) for path in self.path.glob("*") if path.name.isdigit())

    def of(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.path / f"{step}"

    def partial(self, step: int) -> Path:
        """Where the checkpoint of a step is written."""
        return self.path / f"{step}{_PARTIAL}"

    def complete(self, step: int) -> None:
        """Gives what is written its manifest and its name."""
        write_manifest(self.partial(step))
        self.partial(step).rename(self.of(step))

    def remove(self, step: int) -> None:
        """Removes a checkpoint; whoever looks finds all of it or nothing."""
        self.of(step).rename(self.partial(step))
        shutil.rmtree(self.partial(step), ignore_errors=True)

    def remove_partial(self) -> None:
        """Removes what was not written, or not removed, to the end."""
        for path in self.path.glob(f"*{_PARTIAL}*"):
            shutil.rmtree(path, ignore_errors=True)

    def check(self, step: int) -> None:
        """Reads all files of a checkpoint.

        Raises:
            Damaged: naming those that are not as they were written.
        """
        damage = damage_of(self.of(step))
        if damage is not None:
            raise Damaged(f"the checkpoint of step {step} in {self.path} is damaged: {damage}")

    def recover(self) -> int:
        """Moves damaged checkpoints aside; returns the newest sound step, 0 if there was none.

        Raises:
            Damaged: if there are checkpoints and none of them is sound; then nothing is changed.
        """
        damages = {step: damage_of(self.of(step)) for step in self.steps()}
        damages = {step: damage for step, damage in damages.items() if damage is not None}
        sound = [step for step in self.steps() if step not in damages]
        described = "; ".join(f"that of step {step}: {damage}" for step, damage in damages.items())
        if damages and not sound:
            raise Damaged(
                f"all checkpoints in {self.path} are damaged; {described}. Nothing was changed: "
                "bring a sound one back, or begin anew in another --workdir"
            )
        self.remove_partial()
        for step in damages:
            self._set_aside(step)
        if damages:
            _LOGGER.warning(
                "damaged checkpoints were moved to %s; %s. The run goes on from step %d",
                self._aside,
                described,
                max(sound),
            )
        return max(sound, default=0)

    def _set_aside(self, step: int) -> None:
        self._aside.mkdir(exist_ok=True)
        place, number = self._aside / f"{step}", 1
        while place.exists():
            place, number = self._aside / f"{step}.{number}", number + 1
        self.of(step).rename(place)
