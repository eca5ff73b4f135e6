import logging
from dataclasses import replace

import numpy as np
import pytest

from flaxdl import Config, Init
from flaxdl.data import ArrayDataset, Arrays, Images, Text, TextTable
from flaxdl.models import (
    BertForSequenceClassification,
    LeNet5,
    Seq2SeqTransformer,
    TextRNN,
    TransformerLM,
)
from flaxdl.runs.config_json import to_json
from flaxdl.runs.setup import set_up
from flaxdl.runs.tokens import check_tokens, fit_transform, with_default_tokenizer

SEQ2SEQ = Seq2SeqTransformer(vocab_size=10, target_vocab_size=6, max_length=4)


def ids(*tokens):
    return np.array([tokens], np.int32)


def test_what_fits_passes():
    check_tokens(SEQ2SEQ, {"inputs": ids(0, 9, 9, 9), "targets": ids(5), "label": ids(99)})
    check_tokens(TransformerLM(vocab_size=10), {"inputs": ids(9)}, vocab_size=10)
    check_tokens(TextRNN(10, 4, 4, 2), {"inputs": np.zeros((0, 5), np.int32)})
    check_tokens(LeNet5(), {"inputs": np.full((1, 8, 8, 1), 255, np.uint8)})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"inputs": ids(3, 10)},
            "inputs have 11 .* model.vocab_size is 10; set --model.vocab-s.*11",
        ),
        ({"inputs": ids(-1)}, "inputs must be token ids of 0 or more, got -1"),
        ({"targets": ids(6)}, "targets have 7 .* is 6; set --model.target-vocab-size 7"),
        ({"inputs": ids(1, 1, 1, 1, 1)}, "inputs are 5 .* is 4; set --model.max-length 5, or"),
    ],
)
def test_what_does_not_fit_is_named(arrays, message):
    with pytest.raises(ValueError, match=message):
        check_tokens(SEQ2SEQ, arrays)


def test_targets_share_the_vocabulary_unless_they_have_their_own():
    model = Seq2SeqTransformer(vocab_size=10)
    check_tokens(model, {"targets": ids(9)})
    with pytest.raises(ValueError, match="set --model.vocab-size 12"):
        check_tokens(model, {"targets": ids(11)})


def test_tokens_that_the_data_know_must_fit_even_where_none_is_met():
    with pytest.raises(ValueError, match="inputs have 30 .* set --model.vocab-size 30"):
        check_tokens(TextRNN(10, 4, 4, 2), {"inputs": ids(3)}, vocab_size=30)


def test_types_of_tokens_must_fit():
    pairs = {"inputs": ids(3, 4), "token_types": ids(0, 1)}
    bert = BertForSequenceClassification(num_classes=2, vocab_size=60)
    check_tokens(bert, pairs, vocab_size=60)
    expected = "token_types have 2 .* text pairs .* model.type_vocab_size is 1; set --model.type"
    with pytest.raises(ValueError, match=expected):
        check_tokens(bert.clone(type_vocab_size=1), pairs, vocab_size=60)
    check_tokens(bert.clone(type_vocab_size=1), {"inputs": ids(3), "token_types": ids(0)})
    with pytest.raises(ValueError, match="TextRNN does not accept token_types, which .* data.pair"):
        check_tokens(TextRNN(10, 4, 4, 2), pairs)


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "good", "bad"]


def folder(path, pieces=PIECES):
    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (path / "model.safetensors").touch()
    return path


TRAIN = ArrayDataset({"inputs": np.array(["good a", "bad b"], object)})


def config(tokenizer, weights, **init):
    return Config(
        model=TextRNN(8, 4, 4, 2),
        data=Arrays("t.npz"),
        transform=Text(tokenizer, max_length=8),
        init=Init(weights=None if weights is None else str(weights), **init),
    )


def encoded(config):
    return fit_transform(config, TRAIN).encode(["a good"])["inputs"][0, :5].tolist()


@pytest.mark.parametrize("source", ["", "model.safetensors", "model.safetensors:ema"])
def test_the_tokenizer_of_the_weights_is_the_default(tmp_path, source):
    weights = folder(tmp_path / "bert")
    assert encoded(config(None, f"{weights}/{source}")) == [2, 4, 6, 3, 0]
    assert encoded(config(str(weights), f"{weights}/{source}")) == [2, 4, 6, 3, 0]


@pytest.mark.parametrize("weights", ["resnet18", "file", None])
def test_without_one_characters_are_the_default(tmp_path, weights):
    if weights == "file":
        weights = tmp_path / "weights.pth"
        weights.touch()
    assert encoded(config(None, weights)) == encoded(config("characters", weights))


def test_weights_without_a_tokenizer_are_warned_of(tmp_path, caplog):
    weights = tmp_path / "weights.pth"
    weights.touch()
    encoded(config(None, weights, omit=("*embedding*",)))
    encoded(config("words", weights))
    assert warnings(caplog) == []
    encoded(config(None, weights))
    (message,) = warnings(caplog)
    assert "have no tokenizer" in message


def test_a_run_without_weights_is_recorded_with_the_name_of_its_tokenizer():
    earlier = to_json(config("characters", None))
    assert to_json(with_default_tokenizer(config(None, None))) == earlier
    assert with_default_tokenizer(config(None, "bert")).transform.tokenizer is None
    assert with_default_tokenizer(config("words", None)).transform.tokenizer == "words"
    images = replace(config(None, None), transform=Images())
    assert with_default_tokenizer(images) is images


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_another_tokenizer_is_refused_where_tokens_have_other_ids(tmp_path, caplog):
    weights = folder(tmp_path / "bert")
    other = folder(tmp_path / "other", [*PIECES[:4], *PIECES[:3:-1]])
    expected = (
        "transform.tokenizer .*other' is not the tokenizer of init.weights: 4 tokens have "
        "different ids, such as 'a' is 7 instead of 4, 'b' is 6 .*; omit transform.tokenizer to use"
    )
    with pytest.raises(ValueError, match=expected):
        encoded(config(str(other), weights))
    with pytest.raises(ValueError, match="transform.tokenizer 'characters' is not the tokenizer"):
        encoded(config("characters", weights))
    with pytest.raises(ValueError, match="4 tokens have different ids"):
        encoded(config(str(other), weights, omit=("*position_embeddings*",)))
    # Embeddings that are drawn at random suit any tokenizer.
    assert encoded(config(str(other), weights, omit=("*embedding*",))) == [2, 7, 5, 3, 0]
    assert warnings(caplog) == []


def test_a_superset_is_accepted_and_a_subset_told(tmp_path, caplog):
    weights = folder(tmp_path / "bert")
    larger = folder(tmp_path / "larger", [*PIECES, "new", "##er"])
    assert encoded(config(str(larger), weights)) == [2, 4, 6, 3, 0]
    assert warnings(caplog) == []
    smaller = folder(tmp_path / "smaller", [*PIECES[:6], "ok"])
    assert encoded(config(str(smaller), weights)) == [2, 4, 1, 3, 0]
    (message,) = warnings(caplog)
    assert "lacks 2 of the 8 tokens of init.weights, such as 'bad', 'good'; omit" in message
    strange = folder(tmp_path / "strange", [*PIECES[:4], *"uvwxyz"])
    more = folder(tmp_path / "more", [*PIECES, "c"])
    with pytest.raises(ValueError, match="lacks 5 of the 9 tokens of init.weights, such as 'a'"):
        encoded(config(str(strange), more))


def test_other_normalization_is_told(tmp_path, caplog):
    weights = folder(tmp_path / "bert")
    cased = folder(tmp_path / "cased")
    (cased / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    encoded(config(str(cased), weights))
    (message,) = warnings(caplog)
    assert (
        "normalizes texts differently from the tokenizer of init.weights: BertNormalizer("
        in message
    )


def table(path, content):
    path.write_text(content)
    return str(path)


def test_text_rnn_takes_a_table_by_default(tmp_path):
    content = "text,label\n" + "".join(f"word {n} {'ab'[n % 2]},{'ab'[n % 2]}\n" for n in range(60))
    setup = set_up(
        Config(
            model=TextRNN(vocab_size=40, embedding_size=4, hidden_size=4, num_classes=2),
            data=TextTable(table(tmp_path / "t.csv", content)),
            transform=Text(max_length=12),
            batch_size=8,
        )
    )
    assert setup.examples["lengths"].shape == (1,)


def test_pairs_for_a_bert_of_one_type_are_refused_at_setup(tmp_path):
    content = "a,b,label\n" + "".join(f"good {n},bad,{'ab'[n % 2]}\n" for n in range(60))
    data = TextTable(table(tmp_path / "t.csv", content), text="a", pair="b")
    sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "feed_forward_size": 8}
    model = BertForSequenceClassification(num_classes=2, vocab_size=8, type_vocab_size=1, **sizes)
    text = Text(str(folder(tmp_path / "bert")), max_length=12)
    run = Config(model=model, data=data, transform=text, batch_size=8)
    with pytest.raises(ValueError, match="but model.type_vocab_size is 1; set --model.type-vocab"):
        set_up(run)
    setup = set_up(replace(run, model=model.clone(type_vocab_size=2)))
    assert setup.examples["token_types"].shape == (1, 12)
