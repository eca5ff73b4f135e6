"""Several processes without a shared disk, with a workdir in a bucket."""

import shutil
import signal
import time

import numpy as np
import pytest
from helpers.launch import finish, start, write_config
from helpers.stopping import metric_lines

from flaxdl.runs.remote_workdir import _local_copy, reading_copy

SHARDED = ("--mesh.fsdp", "4")  # each process has a half of the parameters


@pytest.fixture
def stopped(bucket, tmp_path, monkeypatch):
    """The URL of a run of two processes that was stopped, and whose disks were lost."""
    monkeypatch.setenv("FLAXDL_CACHE", str(tmp_path / "cache"))
    url, config = f"{bucket}/run", write_config(tmp_path)
    processes = start(config, url, *SHARDED)
    metrics = _local_copy(url, "training") / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or not metrics.read_text():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    ends = finish(processes)
    assert [code for code, _ in ends] == [143, 143], ends
    # The second process has written nothing.
    assert list(metrics.parents[2].rglob("metrics.jsonl")) == [metrics]
    shutil.rmtree(tmp_path / "cache")
    return url, config


@pytest.mark.parametrize(
    "bucket", ["s3", pytest.param("gs", marks=pytest.mark.whole)], indirect=True
)
@pytest.mark.parametrize("count", [1, pytest.param(4, marks=pytest.mark.whole)])
def test_a_run_goes_on_with_another_number_of_processes(stopped, tmp_path, count):
    url, config = stopped
    ends = finish(start(config, url, *SHARDED, count=count, devices=4 // count))
    assert [code for code, _ in ends] == [0] * count, ends
    assert "resuming from step" in ends[0][1]
    shutil.rmtree(tmp_path / "cache")
    alone = tmp_path / "alone"
    ((code, errors),) = finish(start(config, alone, *SHARDED, count=1, devices=4))
    assert code == 0, errors
    for our, their in zip(metric_lines(reading_copy(url)), metric_lines(alone), strict=True):
        assert our.keys() == their.keys()
        for name in our.keys() - {"split"}:
            np.testing.assert_allclose(our[name], their[name], rtol=2e-2, atol=5e-3, err_msg=name)
