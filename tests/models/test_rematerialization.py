"""Rematerialization: `remat=True` computes the same gradients and stores less for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.models import (
    BertForSequenceClassification,
    ResNet,
    Seq2SeqTransformer,
    TransformerClassifier,
)


def texts(count=4, length=32):
    return np.random.default_rng(0).integers(1, 64, (count, length)).astype(np.int32)


TRANSFORMER = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_heads": 4,
    "num_layers": 1,
    "feed_forward_size": 128,
    "max_length": 32,
}


@pytest.mark.parametrize(
    ("build", "inputs", "keywords"),
    [
        (
            lambda **kw: ResNet(
                num_classes=4, depths=(1, 1, 1, 1), small_images=True, drop_path_rate=0.5, **kw
            ),
            np.random.default_rng(0).standard_normal((8, 32, 32, 3)).astype(np.float32),
            {},
        ),
        (
            lambda **kw: TransformerClassifier(
                num_classes=4, **TRANSFORMER | {"num_layers": 2}, drop_path_rate=0.5, **kw
            ),
            texts(),
            {},
        ),
        pytest.param(
            lambda **kw: Seq2SeqTransformer(**TRANSFORMER, **kw),
            *(texts(), {"targets": texts()}),
            marks=pytest.mark.whole,
        ),
        pytest.param(
            lambda **kw: BertForSequenceClassification(num_classes=4, **TRANSFORMER, **kw),
            *(texts(), {}),
            marks=pytest.mark.whole,
        ),
    ],
    ids=["ResNet", "TransformerClassifier", "Seq2SeqTransformer", "Bert"],
)
def test_rematerialized_blocks_give_the_same_gradients_from_fewer_stored_values(
    build, inputs, keywords
):
    variables = jax.jit(build().init)(jax.random.key(0), inputs, **keywords)
    found = []
    for remat in (False, True):
        model = build(remat=remat)

        def loss(params, model=model):
            outputs, _ = model.apply(
                variables | {"params": params},
                inputs,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1)},
                **keywords,
            )
            return jnp.sum(jnp.square(outputs))

        gradients = jax.jit(jax.grad(loss))
        # What the forward pass leaves for the backward one. The CPU's compiler drops the barriers
        # that keep it from storing the rest again, so that its own figure says nothing.
        _, backward = jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p), variables["params"])
        stored = sum(x.size for x in jax.tree.leaves(backward))
        found.append((gradients(variables["params"]), stored))
    (plain, much), (anew, little) = found
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    for ours, theirs in zip(jax.tree.leaves(anew), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale)
    assert little < 0.8 * much
