import jax
import numpy as np
import pytest

from flaxdl.weights import load_weights, matching, pattern_mask, pytorch_key, state_dict

pytestmark = pytest.mark.quick

VARIABLES = {
    "params": {
        "layer1.0": {
            "conv1": {"kernel": np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)},
            "bn1": {"scale": np.ones(5), "bias": np.zeros(5)},
        },
        "fc": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.arange(3.0)},
        "rnn": {"weight_ih_l0": np.arange(8.0).reshape(4, 2)},
    },
    "batch_stats": {"layer1.0": {"bn1": {"mean": np.zeros(5), "var": np.ones(5)}}},
}


def test_names_and_layouts_are_pytorchs():
    exported = state_dict(VARIABLES)
    assert exported.keys() == {
        "layer1.0.conv1.weight",
        "layer1.0.bn1.weight",
        "layer1.0.bn1.bias",
        "layer1.0.bn1.running_mean",
        "layer1.0.bn1.running_var",
        "layer1.0.bn1.num_batches_tracked",
        "fc.weight",
        "fc.bias",
        "rnn.weight_ih_l0",
    }
    kernel = VARIABLES["params"]["layer1.0"]["conv1"]["kernel"]
    assert exported["layer1.0.conv1.weight"].shape == (5, 4, 2, 3)
    assert exported["layer1.0.conv1.weight"][4, 1, 0, 2] == kernel[0, 2, 1, 4]
    np.testing.assert_array_equal(exported["fc.weight"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(exported["rnn.weight_ih_l0"][1], [2, 3])


def test_shapes_are_exported_as_shapes():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), VARIABLES)
    exported = state_dict(shapes)
    assert {key: tuple(value.shape) for key, value in exported.items()} == {
        key: np.shape(value) for key, value in state_dict(VARIABLES).items()
    }


def test_round_trip_is_exact():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), VARIABLES)
    restored = load_weights(shapes, state_dict(VARIABLES))
    jax.tree.map(np.testing.assert_array_equal, restored, VARIABLES)


def test_all_misfits_are_listed_at_once():
    source = state_dict(VARIABLES)
    del source["fc.bias"]
    source["head.weight"] = np.zeros(3)
    source["fc.weight"] = np.zeros((7, 2))
    with pytest.raises(ValueError, match="do not fit") as error:
        load_weights(VARIABLES, source)
    assert "missing: fc.bias" in str(error.value)
    assert "unexpected: head.weight" in str(error.value)
    assert "fc.weight has shape [7, 2], expected [3, 2]" in str(error.value)


def test_omitted_leaves_keep_their_value():
    source = state_dict(VARIABLES)
    source["fc.weight"] = np.zeros((7, 2))
    del source["fc.bias"]
    source["layer1.0.bn1.bias"] = np.full(5, 3.0)
    loaded = load_weights(VARIABLES, source, omit=("fc.*",))
    np.testing.assert_array_equal(loaded["params"]["fc"]["kernel"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(loaded["params"]["layer1.0"]["bn1"]["bias"], [3] * 5)


def test_omitting_needs_a_value_to_keep():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), VARIABLES)
    with pytest.raises(ValueError, match=r"fc\..* at its initial value"):
        load_weights(shapes, state_dict(VARIABLES), omit=("fc.*",))


def test_a_pattern_without_a_match_is_an_error_with_near_names():
    with pytest.raises(ValueError, match=r"no_decay: .*'layer1.0.bn2.\*'.* layer1.0.bn1"):
        matching(state_dict(VARIABLES), ["layer1.0.bn2.*"], field="no_decay")


def test_a_lone_string_is_not_taken_for_patterns():
    with pytest.raises(ValueError, match="sequence of patterns"):
        matching(["a"], "a")


def test_mask_follows_the_patterns():
    mask = pattern_mask(VARIABLES["params"], ["*.bias", "*bn1.weight"], field="no_decay")
    assert mask == {
        "layer1.0": {"conv1": {"kernel": False}, "bn1": {"scale": True, "bias": True}},
        "fc": {"kernel": False, "bias": True},
        "rnn": {"weight_ih_l0": False},
    }


def test_colliding_names_are_refused():
    with pytest.raises(ValueError, match=r"share the PyTorch key 'a\.b\.weight'"):
        state_dict({"params": {"a.b": {"kernel": np.ones((1, 1))}, "a": {"b": {"scale": 1.0}}}})


def test_key_of_a_path():
    assert pytorch_key(("bert", "encoder.layer.0", "scale")) == "bert.encoder.layer.0.weight"
