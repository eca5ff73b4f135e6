"""Exported weights: PyTorch loads them with `strict=True` and computes the same results."""

import json
import math
from functools import partial

import jax
import numpy as np
import pytest
import reference
from helpers.image_parity import channels_first
from helpers.parity import assert_close
from helpers.pytorch_seq2seq import make_seq2seq
from safetensors.numpy import load_file

from flaxdl.layers import ResidualBlock, TransformerBlock
from flaxdl.models import (
    RNNLM,
    VGG11,
    AlexNet,
    Bert,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    LeNet5,
    ResNet,
    Seq2SeqRNN,
    Seq2SeqTransformer,
    SimpleCNN,
    SimpleRNN,
    TextRNN,
    TransformerClassifier,
    TransformerLM,
)
from flaxdl.weights import export_weights, load_weights, state_dict
from flaxdl.weights.names import TIED_KEYS, leaves_by_key

CONFIG = json.loads((reference.FOLDER / "bert_small_config.json").read_text())
SIZES = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_heads": 2,
    "num_layers": 2,
    "feed_forward_size": 12,
    "max_length": 16,
    "positions": "learned",
}
IMAGES = reference.inputs("image", (2, 3, 32, 32))
SEQUENCE = reference.inputs("sequence", (2, 6, 32))
TOKENS = reference.tokens("tokens", (2, 11), 11)


def module(torch, forward, **parts):
    """A PyTorch module with named submodules that computes `forward(self, *inputs)`."""

    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return forward(self, *inputs)

    result = Module()
    for name, part in parts.items():
        result.add_module(name, part)
    return result


def sequential_classifier(torch, features, pooled, classifier):
    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))

    return module(
        torch,
        forward,
        features=torch.nn.Sequential(*features),
        avgpool=torch.nn.AdaptiveAvgPool2d(pooled),
        classifier=torch.nn.Sequential(*classifier),
    )


def simple_cnn(torch):
    nn = torch.nn
    features = []
    for inside, outside in ((3, 32), (32, 64), (64, 128)):
        features += [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    features[-1] = nn.AdaptiveAvgPool2d(4)
    classifier = [nn.Flatten(), nn.Linear(2048, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 10)]
    return sequential_classifier(torch, features, 4, classifier)


def lenet(torch):
    nn, functional = torch.nn, torch.nn.functional

    def squash(x):
        return 1.7159 * torch.tanh(2 / 3 * x)

    def forward(self, x):
        x = functional.avg_pool2d(squash(self.conv1(x)), 2)
        x = functional.avg_pool2d(squash(self.conv2(x)), 2)
        return self.fc3(squash(self.fc2(squash(self.fc1(x.flatten(1))))))

    return module(
        torch,
        forward,
        conv1=nn.Conv2d(3, 6, 5),
        conv2=nn.Conv2d(6, 16, 5),
        fc1=nn.Linear(400, 120),
        fc2=nn.Linear(120, 84),
        fc3=nn.Linear(84, 10),
    )


def alexnet(torch):
    nn = torch.nn
    relu, pool = nn.ReLU(), nn.MaxPool2d(3, 2)
    features = [nn.Conv2d(3, 64, 11, 4, 2), relu, pool, nn.Conv2d(64, 192, 5, padding=2), relu]
    features += [pool, nn.Conv2d(192, 384, 3, padding=1), relu, nn.Conv2d(384, 256, 3, padding=1)]
    features += [relu, nn.Conv2d(256, 256, 3, padding=1), relu, pool]
    classifier = [nn.Dropout(), nn.Linear(9216, 4096), relu, nn.Dropout(), nn.Linear(4096, 4096)]
    return sequential_classifier(torch, features, 6, [*classifier, relu, nn.Linear(4096, 10)])


def vgg(torch):
    nn = torch.nn
    features, inside = [], 3
    for outside in (64, 128, 256, 512, 512):
        features += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU()]
        features += [nn.MaxPool2d(2)]
        inside = outside
    classifier = [nn.Linear(25088, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()]
    classifier += [nn.Dropout(), nn.Linear(4096, 10)]
    return sequential_classifier(torch, features, 7, classifier)


def resnet(torch):
    nn = torch.nn

    def bottleneck(inside, features, stride):
        def forward(self, x):
            out = self.bn1(self.conv1(x)).relu()
            out = self.bn3(self.conv3(self.bn2(self.conv2(out)).relu()))
            return (out + self.downsample(x)).relu()

        outside = 4 * features
        skip = [nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)]
        return module(
            torch,
            forward,
            conv1=nn.Conv2d(inside, features, 1, bias=False),
            bn1=nn.BatchNorm2d(features),
            conv2=nn.Conv2d(features, features, 3, stride, 1, bias=False),
            bn2=nn.BatchNorm2d(features),
            conv3=nn.Conv2d(features, outside, 1, bias=False),
            bn3=nn.BatchNorm2d(outside),
            downsample=nn.Sequential(*skip),
        )

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))

    return module(
        torch,
        forward,
        conv1=nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        bn1=nn.BatchNorm2d(64),
        layer1=nn.Sequential(bottleneck(64, 64, 1)),
        layer2=nn.Sequential(bottleneck(256, 128, 2)),
        layer3=nn.Sequential(bottleneck(512, 256, 2)),
        layer4=nn.Sequential(bottleneck(1024, 512, 2)),
        fc=nn.Linear(2048, 10),
    )


def residual_block(torch):
    nn = torch.nn
    layers = [nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()]
    layers += [nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)]
    return module(torch, lambda self, x: (self.block(x) + x).relu(), block=nn.Sequential(*layers))


def recurrent(cell):
    def make(torch):
        nn = torch.nn
        rnn = getattr(nn, cell.upper())(32, 16, num_layers=2, batch_first=True)
        return module(
            torch, lambda self, x: self.fc(self.rnn(x)[0][:, -1]), rnn=rnn, fc=nn.Linear(16, 3)
        )

    return make


def text_rnn(torch):
    nn = torch.nn
    return module(
        torch,
        lambda self, tokens: self.fc(self.rnn(self.embedding(tokens))[0][:, -1]),
        embedding=nn.Embedding(11, 12, padding_idx=0),
        rnn=nn.GRU(12, 16, batch_first=True, bidirectional=True),
        fc=nn.Linear(32, 4),
    )


def document_block(torch):
    nn = torch.nn

    def attend(self, x):
        query, key, value = (
            linear(x).unflatten(-1, (4, -1)).movedim(2, 1)
            for linear in (self.W_q, self.W_k, self.W_v)
        )
        found = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.W_o(found.movedim(1, 2).flatten(2))

    def forward(self, x):
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.ff(x))

    names = ("W_q", "W_k", "W_v", "W_o")
    return module(
        torch,
        forward,
        attn=module(torch, attend, **{name: nn.Linear(32, 32) for name in names}),
        norm1=nn.LayerNorm(32),
        ff=nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)),
        norm2=nn.LayerNorm(32),
    )


def stack(torch, kind, vocab_size):
    """PyTorch's encoder or decoder, preceded by token and position embeddings."""
    nn = torch.nn
    layer = getattr(nn, f"Transformer{kind}Layer")(8, 2, 12, 0.0, batch_first=True)
    result = getattr(nn, f"Transformer{kind}")(layer, 2, nn.LayerNorm(8))
    result.embedding = nn.Embedding(vocab_size, 8)
    result.position_embedding = nn.Embedding(16, 8)
    return result


def embedded(part, tokens):
    return part.embedding(tokens) + part.position_embedding.weight[: tokens.shape[1]]


def causal(torch, length):
    return torch.ones(length, length, dtype=torch.bool).triu(1)


def transformer_classifier(torch):
    return module(
        torch,
        lambda self, tokens: self.fc(self.encoder(embedded(self.encoder, tokens)).mean(1)),
        encoder=stack(torch, "Encoder", 11),
        fc=torch.nn.Linear(8, 3),
    )


def rnn_lm(tie_weights):
    def make(torch):
        result = module(
            torch,
            lambda self, tokens: self.decoder(self.rnn(self.encoder(tokens))[0]),
            encoder=torch.nn.Embedding(11, 8),
            rnn=torch.nn.LSTM(8, 8, batch_first=True),
            decoder=torch.nn.Linear(8, 11),
        )
        if tie_weights:
            result.decoder.weight = result.encoder.weight
        return result

    return make


def transformer_lm(torch):
    def forward(self, tokens):
        mask = causal(torch, tokens.shape[1])
        return self.fc(self.encoder(embedded(self.encoder, tokens), mask=mask))

    return module(torch, forward, encoder=stack(torch, "Encoder", 11), fc=torch.nn.Linear(8, 11))


def seq2seq(torch):
    def forward(self, tokens):
        memory = self.encoder(embedded(self.encoder, tokens))
        targets = embedded(self.decoder, tokens)
        mask = causal(torch, tokens.shape[1])
        return self.fc(self.decoder(targets, memory, tgt_mask=mask))

    return module(
        torch,
        forward,
        encoder=stack(torch, "Encoder", 11),
        decoder=stack(torch, "Decoder", 11),
        fc=torch.nn.Linear(8, 11),
    )


WORD_SIZES = {"vocab_size": 11, "embedding_size": 6, "hidden_size": 8, "target_vocab_size": 11}


def rnn_seq2seq(torch, attention):
    model = make_seq2seq(torch, **WORD_SIZES, attention=attention)
    forward = model.forward
    model.forward = lambda tokens: forward(tokens, tokens)
    return model


# name → our module, PyTorch's, the inputs of both
FAMILIES = {
    "SimpleCNN": (SimpleCNN(), simple_cnn, IMAGES),
    "LeNet5": (LeNet5(), lenet, IMAGES),
    "AlexNet": (AlexNet(10), alexnet, reference.inputs("image", (1, 3, 63, 70))),
    "VGG": (VGG11(10, depths=(1, 1, 1, 1, 1), batch_norm=True), vgg, IMAGES),
    "ResNet": (ResNet(10, depths=(1, 1, 1, 1), bottleneck=True), resnet, IMAGES),
    "ResidualBlock": (ResidualBlock(3), residual_block, IMAGES),
    **{
        f"SimpleRNN {cell}": (
            SimpleRNN(hidden_size=16, num_classes=3, cell=cell, num_layers=2),
            recurrent(cell),
            SEQUENCE,
        )
        for cell in ("rnn", "lstm", "gru")
    },
    "TextRNN": (
        TextRNN(vocab_size=11, embedding_size=12, hidden_size=16, num_classes=4, cell="gru"),
        text_rnn,
        TOKENS,
    ),
    "TransformerBlock": (
        TransformerBlock(hidden_size=32, num_heads=4, feed_forward_size=64),
        document_block,
        SEQUENCE,
    ),
    "TransformerClassifier": (
        TransformerClassifier(num_classes=3, **SIZES),
        transformer_classifier,
        TOKENS,
    ),
    **{
        f"RNNLM{' tied' * tie_weights}": (
            RNNLM(vocab_size=11, embedding_size=8, hidden_size=8, tie_weights=tie_weights),
            rnn_lm(tie_weights),
            TOKENS,
        )
        for tie_weights in (False, True)
    },
    "TransformerLM": (TransformerLM(**SIZES), transformer_lm, TOKENS),
    **{
        f"Seq2SeqRNN {attention}": (
            Seq2SeqRNN(attention=attention, **WORD_SIZES),
            partial(rnn_seq2seq, attention=attention),
            TOKENS,
        )
        for attention in ("additive", None)
    },
    "Seq2SeqTransformer": (Seq2SeqTransformer(target_vocab_size=11, **SIZES), seq2seq, TOKENS),
}


def weight(key, shape):
    """A weight by the rule of the reference values; large ones repeat a few numbers."""
    if key.endswith("num_batches_tracked"):
        return np.int64(0)
    if math.prod(shape) < 2**20:
        return reference.weight(key, shape)
    scale = np.float32(math.sqrt(2 / math.prod(shape[1:])))
    return np.resize(scale * reference.inputs(key, 2**16 + 1), shape)


def random_variables(model, *inputs, **options):
    """Variables with distinct values, which are faster than `init`."""
    shapes = jax.eval_shape(lambda key: model.init(key, *inputs, **options), jax.random.key(0))
    values = {key: weight(key, value.shape) for key, value in state_dict(shapes).items()}
    tied = (TIED_KEYS.keys() & values.keys()) - leaves_by_key(shapes).keys()
    values |= {key: values[TIED_KEYS[key]] for key in tied}
    return load_weights(shapes, values)


def exported(variables, path):
    """Writes the variables, reads them back, and checks that they are bit-identical."""
    export_weights(variables, path)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    assert jax.tree.all(jax.tree.map(np.array_equal, load_weights(shapes, path), variables))


@pytest.mark.parametrize("name", FAMILIES)
def test_pytorch_loads_every_family_and_computes_the_same(name, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_in_torch

    model, make, inputs = FAMILIES[name]
    is_image = inputs.ndim == 4
    ours = np.moveaxis(inputs, 1, -1) if is_image else inputs
    options = {"targets": inputs} if name.startswith("Seq2Seq") else {}
    path = tmp_path / "model.safetensors"
    variables = random_variables(model, ours, **options)
    try:
        exported(variables, path)
        with torch.device("meta"):
            theirs = make(torch)
        theirs.load_state_dict(load_in_torch(path), strict=True, assign=True)
    finally:
        path.unlink()
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(inputs)).numpy()
    logits = np.asarray(jax.jit(model.apply)(variables, ours, **options))
    if is_image and logits.ndim == 4:
        logits = channels_first(logits)
    assert_close(logits, expected, 1e-5)


@pytest.mark.parametrize(
    "kind", [Bert, BertForMaskedLM, BertForPreTraining, BertForSequenceClassification]
)
def test_hugging_face_loads_every_bert_and_computes_the_same(kind, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import load_file as load_in_torch

    model = kind.from_hugging_face(CONFIG)
    tokens = reference.tokens("tokens", (2, 11), 97)
    mask = np.arange(11) < np.array([[11], [7]])
    path = tmp_path / "model.safetensors"
    variables = random_variables(model, tokens)
    exported(variables, path)

    name = "BertModel" if kind is Bert else kind.__name__
    theirs = getattr(transformers, name)(transformers.BertConfig(**CONFIG))
    theirs.load_state_dict(load_in_torch(path), strict=True)
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(tokens), attention_mask=torch.tensor(mask).long())
    results = jax.tree.leaves(jax.jit(model.apply)(variables, tokens, mask=mask))
    for ours, there in zip(results, expected.to_tuple(), strict=True):
        assert_close(ours, there.numpy(), 1e-5)


def test_the_file_holds_pytorchs_names_and_layouts(tmp_path):
    """The file contains the state dict; this test does not need PyTorch."""
    model = ResNet(10, depths=(1, 1, 1, 1), small_images=True)
    variables = random_variables(model, np.zeros((1, 8, 8, 3), np.float32))
    path = tmp_path / "model.safetensors"
    export_weights(variables, path)
    expected = state_dict(variables)
    written = load_file(path)
    assert written.keys() == expected.keys()
    for key, value in written.items():
        assert value.dtype == expected[key].dtype
        np.testing.assert_array_equal(value, expected[key])


def test_exports_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"to a .safetensors file, got '.*model.pth'"):
        export_weights({}, tmp_path / "model.pth")
    shapes = {"params": {"kernel": jax.ShapeDtypeStruct((2, 2), np.float32)}}
    with pytest.raises(ValueError, match="must contain arrays, got only the shape of weight"):
        export_weights(shapes, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())
