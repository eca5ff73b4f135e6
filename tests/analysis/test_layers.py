"""The table of layers against numbers computed by hand and published ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from flaxdl.analysis.layers import LayerRow, group_layers, inspect, layer_table
from flaxdl.layers import Conv, Linear, avg_pool
from flaxdl.models import VGG16, AlexNet, ResNet18, ResNet50, ResNet152, SimpleCNN, TextRNN


def images(size, channels=3):
    return jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)


def totals(rows):
    return sum(row.parameters for row in rows), sum(row.flops for row in rows)


@pytest.mark.quick
def test_simple_cnn_by_hand():
    assert inspect(SimpleCNN(), images(32)) == [
        # 32 * 32 * 32 outputs of 3 * 3 * 3 multiply-adds; 16 * 16 * 64 of 3 * 3 * 32; ...
        LayerRow("features.0", (1, 32, 32, 32), 896, 2 * 884_736, (3, 3), 32_768),
        LayerRow("features.3", (1, 16, 16, 64), 18_496, 2 * 4_718_592, (8, 8), 16_384),
        LayerRow("features.6", (1, 8, 8, 128), 73_856, 2 * 4_718_592, (18, 18), 8_192),
        LayerRow("classifier.1", (1, 256), 524_544, 2 * 524_288, None, 256),
        LayerRow("classifier.4", (1, 10), 2_570, 2 * 2_560, None, 10),
    ]


@pytest.mark.parametrize(
    ("model", "multiply_adds", "receptive_field"),
    [
        (AlexNet(), 714_188_480, 163),
        (VGG16(), 15_470_264_320, 196),
        (ResNet18(), 1_814_073_344, 435),
        # The stride is in the 3 x 3; in the 1 x 1 before it, as in 2015, it would be 483.
        (ResNet50(), 4_089_184_256, 427),
        (ResNet152(), 11_513_626_624, 1451),
    ],
)
def test_pretrained_models(model, multiply_adds, receptive_field):
    rows = inspect(model, images(224))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images(224))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert totals(rows) == (parameters, 2 * multiply_adds)
    last = [row.receptive_field for row in rows if row.receptive_field][-1]
    assert last == (receptive_field, receptive_field)


def test_windows_in_one_dimension():
    class Signal(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = Conv(4, 3, dilation=2, padding=2, name="wide")(x)
            x = avg_pool(x, 4, stride=2)
            x = x + Conv(4, 5, padding=2, groups=2, name="grouped")(x)
            return Conv(1, 2, name="last")(x)

    rows = {row.name: row for row in inspect(Signal(), jnp.ones((2, 20, 6)))}
    # wide: 1 + 2 * 2 = 5; pool: 5 + 3 = 8, then steps of 2; grouped: 8 + 4 * 2; last: 16 + 2.
    assert [row.receptive_field for row in rows.values()] == [(5,), (16,), (18,)]
    # 2 * 9 * 4 outputs of 5 * 4 / 2 multiply-adds.
    assert rows["grouped"].flops == 2 * 72 * 10


def test_loops_count_every_step():
    class Loop(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = self.param("kernel", nn.initializers.ones, (3, 3))
            return jax.lax.scan(lambda h, _: (h @ kernel, None), x, length=7)[0]

    (row,) = inspect(Loop(), jnp.ones((2, 3)))
    assert row == LayerRow("", (2, 3), 9, 2 * 7 * 2 * 3 * 3, None, 6)


def test_sequence_models_have_no_receptive_field():
    model = TextRNN(vocab_size=50, embedding_size=12, hidden_size=16, num_classes=4)
    rows = inspect(model, jax.ShapeDtypeStruct((2, 7), jnp.int32))
    assert all(row.receptive_field is None for row in rows)
    # Two directions of 3 gates: 7 steps of 16 units see 12 inputs and 16 units, for 2 texts.
    classifier = 2 * 2 * 32 * 4
    assert totals(rows)[1] == 2 * 2 * 2 * 7 * 3 * 16 * (12 + 16) + classifier


def test_table_prints_totals():
    rows = [LayerRow("fc", (1, 10), 110, 2_000_000, None, 2**18)]
    console = Console(width=100)
    with console.capture() as captured:
        console.print(layer_table(rows + inspect(Linear(2), jnp.ones((1, 4))), (224, 224, 3)))
    text = captured.get()
    assert "receptive field" in text
    assert "input: 224×224×3" in text
    assert "activations: 262,146 values, 1.0 MiB in float32" in text
    assert "fc" in text
    assert "120" in text  # 110 + 4 * 2 + 2 parameters
    assert "2.0" in text


@pytest.mark.quick
def test_layers_are_grouped_by_the_depth_of_their_names():
    rows = [
        LayerRow("conv1", (1, 8, 8, 4), 10, 1, (7, 7), 256),
        LayerRow("layer1.0.conv1", (1, 4, 4, 8), 20, 2, (9, 9), 128),
        LayerRow("layer1.0.downsample.0", (1, 4, 4, 6), 30, 4, (8, 8), 96),
        LayerRow("layer1.1.conv1", (1, 4, 4, 5), 40, 8, (15, 15), 80),
        LayerRow("fc", (1, 3), 50, 16, None, 3),
    ]
    assert group_layers(rows, 1) == [
        rows[0],
        LayerRow("layer1", (1, 4, 4, 5), 90, 14, (15, 15), 304),
        rows[4],
    ]
    assert group_layers(rows, 2)[1:3] == [
        LayerRow("layer1.0", (1, 4, 4, 6), 50, 6, (9, 9), 224),
        LayerRow("layer1.1", (1, 4, 4, 5), 40, 8, (15, 15), 80),
    ]
    assert group_layers(rows, 4) == rows
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        group_layers(rows, 0)
