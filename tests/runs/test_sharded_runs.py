"""Runs that were trained sharded are evaluated, predicted and exported sharded."""

import json
import math
from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.small_runs import quadrant_source, small_config
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image
from safetensors.numpy import load_file

import flaxdl
from flaxdl.data import Images, Transform
from flaxdl.layers import Linear
from flaxdl.models import AlexNet
from flaxdl.runs.plan import Plan
from flaxdl.runs.restored import RestoredRun
from flaxdl.training import MeshShape
from flaxdl.training.distributed.mesh import make_mesh, replicated
from flaxdl.training.distributed.placement import put_batch
from flaxdl.training.metrics import EvaluationSums

pytestmark = pytest.mark.eight_devices


class Deep(nn.Module):
    """Many layers of one size, none of which is a large part of the whole."""

    @nn.compact
    def __call__(self, x, train=False):
        x = Linear(128, name="first")(x.reshape(x.shape[0], -1))
        for number in range(16):
            x = x + nn.relu(Linear(128, name=f"hidden.{number}")(x))
        return Linear(4, name="last")(x)


def config(**mesh):
    return small_config(model=Deep(), transform=Images(), epochs=2.0, mesh=MeshShape(**mesh))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run that was trained with fsdp = 8."""
    folder = tmp_path_factory.mktemp("sharded")
    flaxdl.train(config(fsdp=8), folder / "run", report=False)
    for number, image in enumerate(quadrant_source().arrays["test_inputs"][:5]):
        Image.fromarray(image[..., 0]).save(folder / f"{number}.png")
    return folder / "run"


def bytes_of_each(tree):
    """The most that a device holds of a tree of arrays."""
    held = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values())


def peak(function, run, *arguments):
    """Bytes on a device while a function of the run's state is computed, apart from the state."""
    compiled = jax.jit(function, out_shardings=replicated(run.mesh)).lower(*arguments).compile()
    analysis = compiled.memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def test_no_device_ever_holds_more_than_a_sixth_of_the_model(workdir):
    run = flaxdl.restore(workdir, config())
    assert dict(run.mesh.shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    images = quadrant_source().arrays["test_inputs"][:16]
    batch = {"inputs": images, "weight": np.ones(16, np.float32)}
    labelled = run.put({**batch, "label": np.zeros(16, np.int32)})
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(run.state))
    held = bytes_of_each(run.state)
    sums = EvaluationSums(run.state.sums, {})
    evaluating = peak(run.inference.evaluate, run, run.state, sums, labelled)
    predicting = peak(run.inference.predict, run, run.state, run.put(batch))
    assert held + max(evaluating, predicting) <= whole / 6
    # The training step gathers what it needs, which is more than that.
    assert held + peak(run.steps.predict, run, run.state, put_batch(batch, run.mesh)) > whole / 6


def test_large_layers_are_not_gathered_either():
    """AlexNet has two thirds of its parameters in one layer; nothing is computed here."""
    small = small_config(model=AlexNet(num_classes=4), mesh=MeshShape(fsdp=8))
    examples = {
        "inputs": jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32),
        "label": jax.ShapeDtypeStruct((1,), np.int32),
        "weight": jax.ShapeDtypeStruct((1,), np.float32),
    }
    plan = Plan(small, Transform(), tuple("abcd"), examples, 1, make_mesh(small.mesh))
    run = RestoredRun.of(plan, plan.shapes())
    place = NamedSharding(run.mesh, PartitionSpec("data"))
    batch = {
        name: jax.ShapeDtypeStruct((8, *x.shape[1:]), x.dtype, sharding=place)
        for name, x in examples.items()
    }
    whole = sum(leaf.size * 4 for leaf in jax.tree.leaves(run.state.params))
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * 4
        for leaf in jax.tree.leaves(run.state.params)
    )
    sums = EvaluationSums(run.state.sums, {})
    evaluating = peak(run.inference.evaluate, run, run.state, sums, batch)
    predicting = peak(run.inference.predict, run, run.state, batch)
    assert held + max(evaluating, predicting) <= whole / 6


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_on_fewer_devices_the_mesh_shrinks_and_results_agree(workdir, monkeypatch, count):
    items = [str(workdir.parent / f"{number}.png") for number in range(5)]
    expected = flaxdl.evaluate(workdir, config=config())
    predictions = flaxdl.predict(workdir, items, config=config())
    devices = jax.devices()[:count]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    run = flaxdl.restore(workdir, config())
    sizes = {1: (1, 1), 2: (1, 2), 4: (1, 4), 6: (3, 2)}
    assert (run.mesh.shape["data"], run.mesh.shape["fsdp"]) == sizes[count]
    found = flaxdl.evaluate(workdir, config=config())
    assert found == pytest.approx(expected, rel=1e-5)
    for one, other in zip(
        flaxdl.predict(workdir, items, config=config()), predictions, strict=True
    ):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_it_is_evaluated_as_it_was_in_training(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (test,) = [line for line in lines if line["split"] == "test"]
    found = flaxdl.evaluate(workdir, config=config())
    assert found == pytest.approx({name: test[name] for name in ("loss", "accuracy")}, rel=1e-5)


def test_it_is_exported(workdir, tmp_path):
    run = flaxdl.restore(workdir, config())
    flaxdl.export(workdir, tmp_path / "weights.safetensors", config=config())
    found = load_file(tmp_path / "weights.safetensors")
    expected = flaxdl.state_dict(run.variables)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    flaxdl.export(workdir, tmp_path / "program.stablehlo", config=config())
    program = jax.export.deserialize(bytearray((tmp_path / "program.stablehlo").read_bytes()))
    images = quadrant_source().arrays["test_inputs"][:3]
    logits = run.model.apply(jax.device_get(run.variables), run.transform.normalize(images))
    np.testing.assert_allclose(program.call({"inputs": images}), logits, rtol=1e-4, atol=1e-5)


def test_the_mesh_is_recorded_and_follows_the_last_session(tmp_path):
    small = replace(config(fsdp=2), epochs=1.0)
    flaxdl.train(small, tmp_path, report=False)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["mesh"] == {
        "class": "flaxdl.training.MeshShape",
        "data": None,
        "fsdp": 2,
        "tensor": 1,
    }
    assert "mesh" not in record["config"]  # it may change on resume
    flaxdl.train(replace(small, mesh=MeshShape(tensor=2)), tmp_path, report=False)
    assert flaxdl.restore(tmp_path, config()).mesh.shape["tensor"] == 2
    del record["mesh"]  # as earlier versions wrote it
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert flaxdl.restore(tmp_path, config()).mesh.shape["data"] == 8


@pytest.mark.parametrize(
    "mesh", [3, {"class": "flaxdl.training.SGD"}, {"class": "flaxdl.training.MeshShape", "fsdp": 0}]
)
def test_a_damaged_record_of_the_mesh_is_named(workdir, tmp_path, mesh):
    record = json.loads((workdir / "config.json").read_text()) | {"mesh": mesh}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(flaxdl.UserError, match=r"config\.json has an invalid mesh"):
        flaxdl.restore(tmp_path, config())


@pytest.mark.parametrize(
    ("shape", "count", "expected"),
    [
        (MeshShape(fsdp=8), 8, (1, 8, 1)),
        (MeshShape(fsdp=4, tensor=2), 4, (1, 2, 2)),
        (MeshShape(data=4, tensor=2), 3, (3, 1, 1)),
        (MeshShape(data=2, fsdp=2, tensor=2), 8, (2, 2, 2)),
    ],
)
def test_a_shape_fits_any_number_of_devices(shape, count, expected):
    mesh = make_mesh(shape.fit_to(count), devices=jax.devices()[:count])
    assert tuple(mesh.shape.values()) == expected
