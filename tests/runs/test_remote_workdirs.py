"""Workdirs in buckets: what is there is enough to go on, and damage is found."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers import remote_runs, stopping
from helpers.buckets import faulty
from helpers.damage import damage_file
from helpers.small_runs import interrupt_at, small_config, train
from helpers.stopping import assert_same, metric_lines

import flaxdl
from flaxdl.errors import SaveError, UserError
from flaxdl.filesystem import remote_lock
from flaxdl.filesystem.remote import RemoteFolder
from flaxdl.filesystem.remote_lock import RemoteLock
from flaxdl.filesystem.snapshots import DamagedSnapshot, Snapshot, Snapshots, StoredFile
from flaxdl.report.write import write_report
from flaxdl.runs import mirror
from flaxdl.runs.remote_workdir import reading_copy, training_workdir
from flaxdl.training.checkpoints.folder import CheckpointFolder, CorruptCheckpoint
from flaxdl.training.checkpoints.manifest import write_manifest
from flaxdl.training.interruption import Interrupted

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of each test's own, and copies at any time."""
    monkeypatch.setenv("FLAXDL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mirror, "_POLL", 0.01)
    monkeypatch.setattr(mirror, "_CHECKPOINT_INTERVAL", 0.01)
    monkeypatch.setattr(remote_lock, "_POLL", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def url(tmp_path):
    (tmp_path / "bucket").mkdir()
    return f"file://{tmp_path}/bucket/run"


@contextmanager
def training_folder(url):
    """A local folder that is copied to the bucket."""
    with training_workdir(url) as workdir:
        yield workdir.path


def bucket_files(url):
    """All files of a workdir in a `file://` bucket, by name."""
    root = Path(url.removeprefix("file://"))
    return {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}


def write_checkpoint(folder, step, content):
    """A complete checkpoint without a model, and the line of metrics that belongs to it."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "split": "train", "loss": 1.0}) + "\n")
    path = folder / "checkpoints" / f"{step}.partial"
    (path / "d").mkdir(parents=True)
    (path / "d" / "array").write_bytes(content)
    write_manifest(path, step, step)
    path.rename(folder / "checkpoints" / f"{step}")


def steps_of(folder):
    return CheckpointFolder(folder / "checkpoints").steps()


def fill(url, steps=(10, 20)):
    """Writes a run of a few checkpoints without a model to a bucket."""
    with training_folder(url) as folder:
        (folder / "config.json").write_text("{}")
        for step in steps:
            write_checkpoint(folder, step, f"state {step}".encode() * 100)


def go_on(url):
    """Starts a run that does nothing, and ends it."""
    with training_folder(url):
        pass


def test_a_run_goes_on_from_the_bucket_alone_and_ends_the_same(tmp_path, url, cache, monkeypatch):
    train(small_config(), tmp_path / "local")
    for step in (7, 13):
        with monkeypatch.context() as patch:
            interrupt_at(patch, step, signal.SIGTERM)
            with pytest.raises(Interrupted):
                train(small_config(), url)
        shutil.rmtree(cache)
    train(small_config(), url)
    shutil.rmtree(cache)
    assert_same(reading_copy(url), tmp_path / "local")


def test_commands_read_a_run_in_a_bucket(tmp_path, url, cache):
    train(small_config(), url)
    train(small_config(), tmp_path / "local")
    shutil.rmtree(cache)
    flaxdl.export(url, tmp_path / "weights.safetensors")
    flaxdl.export(tmp_path / "local", tmp_path / "expected.safetensors")
    ours, theirs = (tmp_path / f"{name}.safetensors" for name in ("weights", "expected"))
    assert ours.read_bytes() == theirs.read_bytes()
    with pytest.raises(UserError, match="needs an output file; set --to FILE"):
        write_report([url])
    write_report([url, tmp_path / "local"], tmp_path / "both.html")
    assert (tmp_path / "both.html").stat().st_size > 10_000
    tuned = small_config(init=flaxdl.Init(weights=url), epochs=0.2)
    found = train(tuned, tmp_path / "tuned").run.state.params
    assert set(found) == set(flaxdl.restore(url).state.params)


def test_a_finished_run_is_copied_with_its_report(tmp_path, url):
    flaxdl.train(small_config(), url)
    names = bucket_files(url)
    assert {"config.json", "metrics.jsonl", "report.html"} <= names.keys()
    assert metric_lines(Path(url.removeprefix("file://")))[-1]["split"] == "test"
    assert "lock.json" not in names
    snapshots = Snapshots(RemoteFolder(url), "0")
    assert "report.html" in snapshots.read(snapshots.names()[0]).files


def test_nothing_is_written_if_nothing_has_changed(url):
    fill(url)
    before = bucket_files(url).keys()
    go_on(url)
    assert bucket_files(url).keys() == before


def test_unchanged_files_are_not_copied_again_and_old_ones_are_removed(url, cache):
    for step in range(10, 60, 10):
        with training_folder(url) as folder:
            write_checkpoint(folder, step, b"state")
            for old in steps_of(folder)[:-2]:
                shutil.rmtree(folder / "checkpoints" / f"{old}")
        shutil.rmtree(cache)
    snapshots = Snapshots(RemoteFolder(url), "0")
    newest, before = map(snapshots.read, snapshots.names())
    of_30, of_40 = (f"checkpoints/{step}/d/array" for step in (30, 40))
    assert newest.files[of_40] == before.files[of_40]
    assert of_30 in before.files
    assert of_30 not in newest.files
    named = {file.object for one in (newest, before) for file in one.files.values()}
    assert {name for name in bucket_files(url) if name.startswith("objects/")} == named


def test_each_damage_is_found_and_an_earlier_state_is_used(url, cache, caplog):
    """One object at a time; benchmarks/remote_runs.py does more."""
    fill(url)
    fill(url, (30,))
    originals = {name: path.read_bytes() for name, path in bucket_files(url).items()}
    snapshots = Snapshots(RemoteFolder(url), "0")
    newest = snapshots.names()[0]
    needed = {file.object for file in snapshots.read(newest).files.values()} | {newest}
    random = np.random.default_rng(0)
    stored = sorted(name for name in originals if name.startswith(("objects/", "snapshots/")))
    for _ in range(40):
        name = stored[random.integers(len(stored))]
        path, content = bucket_files(url)[name], originals[name]
        damage_file(path, random)
        shutil.rmtree(cache)
        caplog.clear()
        folder = reading_copy(url)
        CheckpointFolder(folder / "checkpoints").recover()
        text = (folder / "metrics.jsonl").read_text()
        lines = [json.loads(line)["step"] for line in text.splitlines()]
        assert set(steps_of(folder)) <= set(lines)
        assert (folder / "config.json").exists()
        assert steps_of(folder) in ([10, 20, 30], [10, 20], [10, 30], [20, 30])
        if name == newest and not path.exists():  # as if it had never been written
            assert steps_of(folder) == [10, 20]
        else:
            assert ("using the newest undamaged files" in caplog.text) == (name in needed)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def test_a_run_whose_snapshots_are_all_damaged_is_refused(url, cache):
    fill(url)
    for name, path in bucket_files(url).items():
        if name.endswith("config.json"):
            path.write_text("{ }")
    before = {name: path.read_bytes() for name, path in bucket_files(url).items()}
    shutil.rmtree(cache)
    with pytest.raises(CorruptCheckpoint, match="config.json is changed.*Nothing was changed"):
        go_on(url)
    assert {name: path.read_bytes() for name, path in bucket_files(url).items()} == before


def test_a_killed_run_goes_on_from_its_local_copy_if_that_is_newer(url, cache):
    fill(url)
    local = next(cache.glob("runs/*/training/run"))
    write_checkpoint(local, 30, b"not yet in the bucket")
    with training_folder(url) as folder:
        assert steps_of(folder) == [10, 20, 30]
    shutil.rmtree(cache)
    assert steps_of(reading_copy(url)) == [10, 20, 30]


def test_a_local_copy_that_another_machine_has_overtaken_is_replaced(url, cache, monkeypatch):
    fill(url)
    monkeypatch.setenv("FLAXDL_CACHE", str(cache.with_name("other")))
    fill(url, (30,))
    monkeypatch.setenv("FLAXDL_CACHE", str(cache))
    local = next(cache.glob("runs/*/training/run"))
    write_checkpoint(local, 25, b"of a run that was overtaken")
    with training_folder(url) as folder:
        assert steps_of(folder) == [10, 20, 30]


def test_a_bucket_that_was_emptied_is_not_filled_again_by_mistake(tmp_path, url):
    fill(url)
    shutil.rmtree(tmp_path / "bucket" / "run")
    with pytest.raises(UserError, match="has no run any more, but there is a copy of one in"):
        go_on(url)
    with pytest.raises(UserError, match="there is no run in .*another run"):
        reading_copy(f"file://{tmp_path}/bucket/another run")


def test_a_checkpoint_that_is_replaced_while_it_is_copied_is_left_out(url, cache, monkeypatch):
    """After a loss spike, checkpoints and lines are removed, and written with other content."""
    stage = mirror._stage

    def stage_and_roll_back(folder, names, staging):
        staged = stage(folder, [n for n in names if n.startswith("checkpoints/")], staging)
        shutil.rmtree(folder / "checkpoints" / "20")
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        (folder / "metrics.jsonl").write_text(lines[0])
        write_checkpoint(folder, 20, b"of other batches")
        monkeypatch.setattr(mirror, "_stage", stage)
        rest = {n for n in names if not n.startswith("checkpoints/")}
        return staged | {n: folder / n for n in rest}

    with training_folder(url) as folder:
        monkeypatch.setattr(mirror, "_POLL", 1000.0)
        (folder / "config.json").write_text("{}")
        write_checkpoint(folder, 10, b"before")
        write_checkpoint(folder, 20, b"of the spike")
        monkeypatch.setattr(mirror, "_stage", stage_and_roll_back)
    snapshots = Snapshots(RemoteFolder(url), "0")
    files = snapshots.read(snapshots.names()[0]).files
    assert "checkpoints/10/d/array" in files
    assert not any(name.startswith("checkpoints/20/") for name in files)


def test_two_runs_do_not_train_in_one_folder(url, monkeypatch):
    monkeypatch.setattr(remote_lock, "_RENEWAL", 0.02)
    remote = RemoteFolder(url)
    monkeypatch.setattr(remote_lock, "_system", lambda: "another machine")
    with RemoteLock(remote, "first").held():
        monkeypatch.setattr(remote_lock, "_system", lambda: "this machine")
        with pytest.raises(UserError, match="another run, on .*, is training in file:"):
            go_on(url)
    go_on(url)


def test_the_lock_of_a_machine_that_is_gone_expires(url, monkeypatch, caplog):
    remote = RemoteFolder(url)
    remote.write("lock.json", b'{"owner": "1", "host": "colab", "system": "x", "process": 1}')
    monkeypatch.setattr(remote_lock, "_EXPIRY", 0.05)
    go_on(url)
    assert "is locked by a run on colab; waiting" in caplog.text
    assert "lock.json" not in remote.names()


def test_the_lock_of_a_process_that_was_killed_here_is_taken_over_at_once(url, caplog):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    holder = {**remote_lock._this_process(), "owner": "1", "process": ended.pid}
    RemoteFolder(url).write("lock.json", json.dumps(holder).encode())
    go_on(url)
    assert not caplog.text


def test_a_run_that_has_lost_its_lock_writes_nothing_more(url, cache, monkeypatch, caplog):
    monkeypatch.setattr(remote_lock, "_RENEWAL", 0.02)

    def lose_it():
        with training_folder(url) as folder:
            (folder / "config.json").write_text("{}")
            RemoteFolder(url).write("lock.json", b'{"owner": "another"}')
            time.sleep(0.1)
            write_checkpoint(folder, 10, b"state")

    with pytest.raises(SaveError, match="another run has started there"):
        lose_it()
    assert not any("checkpoints/10" in name for name in bucket_files(url))
    assert "lock.json" in bucket_files(url)


@pytest.mark.parametrize("fault", ["bucket", "disk"])
def test_a_failure_to_copy_is_reported_and_tried_again(url, monkeypatch, caplog, fault):
    failures = iter(range(2))

    def fail(*args):
        for _ in failures:
            error = errno.ENOSPC if fault == "disk" else errno.EIO
            raise OSError(error, os.strerror(error))
        return original(*args)

    owner, name = (mirror, "_link") if fault == "disk" else (Snapshots, "commit")
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, fail)
    with training_folder(url) as folder:
        (folder / "config.json").write_text("{}")
        write_checkpoint(folder, 10, b"state")
        deadline = time.monotonic() + 30
        while not RemoteFolder(url).names("snapshots/") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert RemoteFolder(url).names("snapshots/")
    assert caplog.text.count("this will be tried again") == 2


def test_a_bucket_that_remains_unreachable_is_an_error_at_the_end(url, monkeypatch):
    def fail(*_):
        raise OSError("gs://bucket/run: 503 Service Unavailable")

    def lose_it(folder):
        monkeypatch.setattr(RemoteFolder, "upload", fail)
        (folder / "config.json").write_text("{}")

    with (
        pytest.raises(SaveError, match="run is not copied to file:.*503 Service Unavail"),
        training_folder(url) as folder,
    ):
        lose_it(folder)
    assert (folder / "config.json").exists()


def on(*sampled):
    """Runs a test with buckets of these kinds; with others only in whole."""
    kinds = [
        kind if kind in sampled else pytest.param(kind, marks=pytest.mark.whole)
        for kind in ("s3", "gs")
    ]
    return pytest.mark.parametrize("bucket", kinds, indirect=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return stopping.uninterrupted("small_cnn", tmp_path_factory.mktemp("uninterrupted"))


@on("s3")
def test_a_run_that_is_killed_goes_on_from_the_bucket_alone(bucket, tmp_path, uninterrupted):
    """Killed at random moments, and all files of the machine lost; benchmarks do more."""
    whole, seconds = uninterrupted
    random = np.random.default_rng(0)
    phases = remote_runs.kill_and_compare(f"{bucket}/run", whole, seconds, 2, random)
    assert phases.total() == 2


@on("gs")
def test_a_run_with_a_faulty_network_ends_the_same(bucket, tmp_path, uninterrupted, monkeypatch):
    with faulty(monkeypatch, bucket, fraction=0.2) as proxy:
        remote_runs.run_and_compare(remote_runs.remote_run(f"{bucket}/run"), uninterrupted[0])
    faults = {name: count for name, count in proxy.counts.items() if name != "ok"}
    assert sum(faults.values()) > 5


@on("s3")
def test_asked_to_stop_a_run_puts_its_last_checkpoint_into_the_bucket(bucket, cache):
    step, seconds = remote_runs.stop_and_time(f"{bucket}/run")
    assert seconds < 30
    shutil.rmtree(cache)
    assert steps_of(reading_copy(f"{bucket}/run"))[-1] == step


def test_a_local_copy_that_has_lost_its_checkpoints_is_completed(url, cache):
    fill(url)
    local = next(cache.glob("runs/*/training/run"))
    shutil.rmtree(local / "checkpoints")
    with training_folder(url) as folder:
        assert steps_of(folder) == [10, 20]


def test_a_newer_local_copy_survives_the_damage_of_the_newest_manifest(url, cache):
    fill(url)
    local = next(cache.glob("runs/*/training/run"))
    write_checkpoint(local, 30, b"not yet in the bucket")
    for name, path in bucket_files(url).items():
        if name.startswith("snapshots/"):
            path.write_text("damaged")
    with training_folder(url) as folder:
        assert steps_of(folder) == [10, 20, 30]
    shutil.rmtree(cache)
    assert steps_of(reading_copy(url)) == [10, 20, 30]


def test_a_lock_that_another_run_has_left_is_taken_again(url):
    with training_folder(url) as folder:
        (folder / "config.json").write_text("{}")
        RemoteFolder(url).remove(["lock.json"])
        write_checkpoint(folder, 10, b"state")
    assert steps_of(reading_copy(url)) == [10]


def test_a_drive_that_is_not_mounted_is_an_error(tmp_path):
    with pytest.raises(
        UserError, match="the folder .*/MyDrive must exist; create it, or mount the drive"
    ):
        go_on(f"file://{tmp_path}/MyDrive/run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_a_manifest_names_only_files_of_its_folder(name):
    stored = StoredFile("objects/1/000001/x", 1, "0" * 64)
    snapshot = Snapshot(1, "1", {name: stored})
    with pytest.raises(DamagedSnapshot, match="outside of its folder"):
        Snapshot.parse(snapshot.name, snapshot.manifest)
    other = hashlib.sha256(b"[]").hexdigest()[:16]
    with pytest.raises(DamagedSnapshot, match="is not a manifest"):
        Snapshot.parse(f"snapshots/000001-1-{other}.json", b"[]")


def test_objects_of_another_writer_are_not_removed_before_it_names_them(url):
    fill(url)
    remote = RemoteFolder(url)
    remote.write("objects/abc/000009/checkpoints/90/d/array", b"being uploaded")
    remote.write("objects/abc/000001/metrics.jsonl", b"of an upload that never ended")
    fill(url, (30,))
    names = remote.names("objects/abc/")
    assert names == ["objects/abc/000009/checkpoints/90/d/array"]


def test_a_run_that_was_overtaken_stays_locked_out_when_the_other_has_ended(
    url, cache, monkeypatch
):
    def overtake():
        with training_folder(url) as folder:
            (folder / "config.json").write_text("{}")
            write_checkpoint(folder, 10, b"of this run")
            RemoteFolder(url).remove(["lock.json"])
            monkeypatch.setenv("FLAXDL_CACHE", str(cache.with_name("other")))
            fill(url, (20,))
            write_checkpoint(folder, 30, b"of this run")

    with pytest.raises(SaveError, match="another run has started there.*the same command on this"):
        overtake()
    assert 30 not in steps_of(reading_copy(url))
    assert 20 in steps_of(reading_copy(url))
