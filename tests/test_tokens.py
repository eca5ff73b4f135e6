import numpy as np
import pytest

from flaxdl.models import LeNet5, Seq2SeqTransformer, TextRNN, TransformerLM
from flaxdl.tokens import check_tokens

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
        ({"inputs": ids(-1)}, "inputs must be token ids from 0 on, got -1"),
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
