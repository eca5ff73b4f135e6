"""Several steps at once, and data that lie on the devices: the same runs, step by step."""

import json
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers.sampling import sampled
from helpers.small_runs import interrupt_at, small_config, train

from flaxdl.config import Config
from flaxdl.config_files import load_config
from flaxdl.data import Arrays, Images, Transform
from flaxdl.data.dataset import ArrayDataset
from flaxdl.models import SimpleCNN
from flaxdl.runs import device_data
from flaxdl.runs.setup import set_up
from flaxdl.training import SGD, Diverged, Interrupted
from flaxdl.training.distributed.mesh import MeshShape, make_mesh
from flaxdl.training.distributed.parallel import gather_examples

pytestmark = pytest.mark.eight_devices


def source():
    rng = np.random.default_rng(0)
    return Arrays.from_memory(
        train_inputs=rng.integers(0, 256, (80, 8, 8, 1), dtype=np.uint8),
        train_label=rng.integers(0, 4, 80).astype(np.int32),
        validation_fraction=0.2,
    )


def config(**changes) -> Config:
    """Three epochs of eight steps, with a line after every fifth and every evaluation."""
    changes = {
        "transform": Images(),
        "batch_size": 8,
        "epochs": 3.0,
        "evaluate_every": 1.25,
        "log_every": 5,
    } | changes
    return small_config(model=SimpleCNN(num_classes=4), data=source(), **changes)


def lines(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "examples_per_second"} for line in found]


def assert_same_run(workdir, expected):
    found, wanted = lines(workdir), lines(expected)
    assert [(line["step"], line["split"]) for line in found] == [
        (line["step"], line["split"]) for line in wanted
    ]
    for line, other in zip(found, wanted, strict=True):
        numbers, others = ({k: v for k, v in x.items() if k != "split"} for x in (line, other))
        assert numbers == pytest.approx(others, rel=2e-4, abs=1e-6)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("plain")
    train(config(), workdir)
    return workdir


@pytest.fixture
def on_devices(monkeypatch):
    """Lets the CPU say that it has the memory of a GPU."""
    monkeypatch.setattr(device_data, "_memory", lambda mesh: 2**30)


@pytest.mark.parametrize("count", sampled([3, 4], (3).__eq__))
def test_several_steps_at_once_are_the_same_run(plain, tmp_path, count):
    train(config(steps_per_call=count), tmp_path)
    assert_same_run(tmp_path, plain)


def test_unfreezing_comes_between_calls(tmp_path):
    frozen = {"freeze": ("features.*",), "freeze_epochs": 7 / 8}
    for count in (1, 3):
        train(config(steps_per_call=count, **frozen), tmp_path / str(count))
    assert_same_run(tmp_path / "3", tmp_path / "1")


def test_data_on_the_devices_are_the_same_run(plain, tmp_path, on_devices):
    assert set_up(config()).data_on_devices is not None
    train(config(), tmp_path)
    assert_same_run(tmp_path, plain)


def test_both_on_eight_devices(plain, tmp_path, on_devices):
    train(config(steps_per_call=5, mesh=MeshShape(data=4, fsdp=2)), tmp_path)
    assert_same_run(tmp_path, plain)


def test_a_run_goes_on_with_other_numbers_of_steps_at_once(
    plain, tmp_path, on_devices, monkeypatch
):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7, signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(config(steps_per_call=2), tmp_path)
    train(config(steps_per_call=3), tmp_path)
    assert_same_run(tmp_path, plain)


def test_a_diverged_run_is_explained_though_its_data_lie_on_the_devices(tmp_path, on_devices):
    broken = config(optimizer=SGD(learning_rate=1e30), max_bad_steps=2, steps_per_call=2)
    with pytest.raises(Diverged, match="First non-finite value at step"):
        train(broken, tmp_path)


def test_weights_of_examples_are_kept():
    data = {"inputs": np.arange(6.0), "weight": np.array([1, 0, 1, 0.5, 1, 1])}
    batch = {"index": np.array([3, 1]), "weight": np.ones(2)}
    found = gather_examples(data, batch)
    np.testing.assert_array_equal(found["inputs"], [3, 1])
    np.testing.assert_array_equal(found["weight"], [0.5, 0])


def dataset(count=80):
    return ArrayDataset({"inputs": np.zeros((count, 8, 8, 1), np.uint8)})


@pytest.mark.parametrize(
    ("data", "transform", "memory"),
    [
        (dataset(), Transform(), 0),  # a CPU
        (dataset(), Transform(), 16 * 80 * 64 - 1),
        (dataset(), Images(flip=True), 2**30),  # another image each time
        (ArrayDataset({"inputs": np.array(["a text"], object)}), Transform(), 2**30),
    ],
)
def test_data_stay_where_they_are(monkeypatch, data, transform, memory):
    monkeypatch.setattr(device_data, "_memory", lambda mesh: memory)
    assert device_data.copy_to_devices(data, transform, make_mesh(MeshShape())) is None


def test_data_lie_on_every_device(on_devices):
    mesh = make_mesh(MeshShape())
    arrays = dataset().arrays() | {"label": np.arange(80)}
    kept = device_data.copy_to_devices(ArrayDataset(arrays), Transform(), mesh)
    assert kept is not None
    assert kept["label"].dtype == np.int32  # JAX has no 64 bits unless asked for
    assert kept["inputs"].sharding.is_fully_replicated
    assert len(kept["inputs"].sharding.device_set) == len(jax.devices())


@pytest.mark.parametrize("count", [6, 11])
def test_more_steps_at_once_than_there_are_between_lines(count):
    with pytest.raises(ValueError, match=rf"at most log_every \(5 steps\) .* got {count}"):
        set_up(config(steps_per_call=count))


def test_pmap_takes_one_step_at_a_time():
    with pytest.raises(ValueError, match="got 4; use parallel 'jit'"):
        set_up(config(steps_per_call=4, parallel="pmap"))


def test_texts_of_all_lengths_come_one_batch_at_a_time():
    texts = load_config("configs/languages_textrnn.py")
    texts = replace(texts, transform=replace(texts.transform, bucket_lengths=(8, 16)))
    with pytest.raises(ValueError, match="steps_per_call 4 needs batches of one shape"):
        set_up(replace(texts, steps_per_call=4))
