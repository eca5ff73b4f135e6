"""Models that write: from training on the command line to what they write there."""

import json
import signal

import flax.linen as nn
import jax
import jax.export
import numpy as np
import pytest
from helpers.small_runs import interrupt_at

import flaxdl
from flaxdl import BeamSearch, Config, Sampling
from flaxdl.cli import main
from flaxdl.data import Dates, Documents, Text, TextPairs
from flaxdl.layers import Embedding
from flaxdl.models import RNNLM, Seq2SeqTransformer, TransformerLM
from flaxdl.runs import prediction
from flaxdl.runs.items import SkippedItem
from flaxdl.runs.prediction import predict_each
from flaxdl.runs.restored import restore
from flaxdl.training import AdamW, Interrupted, LanguageModeling, SequenceToSequence

SMALL = {"hidden_size": 32, "num_heads": 2, "num_layers": 1, "feed_forward_size": 64}
ALPHABET = "abcdefghijklmnopqrstuvwxyz"

LANGUAGE_MODEL = f'''"""Says the alphabet."""
from flaxdl import Config
from flaxdl.data import Documents, Text
from flaxdl.models import TransformerLM
from flaxdl.training import AdamW, LanguageModeling, Selection
config = Config(
    model=TransformerLM(vocab_size=32, max_length=32, dropout=0.0, **{SMALL}),
    data=Documents("PATH", window=32), transform=Text(max_length=32),
    task=LanguageModeling(prompt="klm"), optimizer=AdamW(learning_rate=1e-2),
    batch_size=16, epochs=8, evaluate_every=8, selection=Selection(metric="loss"))
'''


@pytest.fixture(scope="module")
def alphabet(tmp_path_factory):
    """A folder with a text that says the alphabet again and again, and a config."""
    folder = tmp_path_factory.mktemp("alphabet")
    (folder / "text.txt").write_text(ALPHABET * 200)
    config = LANGUAGE_MODEL.replace("PATH", str(folder / "text.txt"))
    (folder / "alphabet.py").write_text(config)
    return folder


@pytest.fixture(scope="module")
def run(alphabet):
    flaxdl.train(flaxdl.load_config(alphabet / "alphabet.py"), alphabet / "run", report=False)
    return alphabet / "run"


def test_a_language_model_continues_prompts_of_any_length(run):
    found = flaxdl.predict(run, ["abc", "xyzab"], sampling=Sampling(temperature=0, num_tokens=6))
    assert [one.item for one in found] == ["abc", "xyzab"]
    assert found[0].text.startswith("abcdefghi")
    assert found[1].text == "xyzabcdefgh"
    (longest,) = flaxdl.predict(run, ["a"], sampling=Sampling(temperature=0))
    assert len(longest.text) == 32  # all positions of the model


def test_what_is_drawn_is_decided_by_the_seed(run):
    texts = [
        flaxdl.predict(run, ["a"], sampling=Sampling(temperature=3.0, seed=seed))[0].text
        for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("prompt", "num_tokens"), [("a", 32), (ALPHABET, 7), (ALPHABET + "abcdef", None)]
)
def test_more_tokens_than_positions_are_refused(run, prompt, num_tokens):
    with pytest.raises(
        ValueError, match=f"prompt has {len(prompt)} tokens.* model.max_length is 32"
    ):
        flaxdl.predict(run, [prompt], sampling=Sampling(num_tokens=num_tokens))


def test_prompts_that_are_too_long_do_not_cost_the_others_theirs(run):
    trained, sampling = restore(run), Sampling(temperature=0, num_tokens=6)
    items = ["abc", ALPHABET + "a", "", "xyzab"]
    first, long, empty, last = predict_each(trained, items, sampling=sampling)
    whole = flaxdl.predict(run, ["abc", "xyzab"], sampling=sampling)
    assert [first, last] == whole
    assert isinstance(long, SkippedItem)
    assert "the prompt has 27 tokens, and at least 6 more must fit" in long.error
    assert isinstance(empty, SkippedItem)
    assert (long.item, empty.item) == (items[1], "")


def test_what_is_drawn_differs_between_batches(run, monkeypatch):
    monkeypatch.setattr(prediction, "_MAX_BATCH_SIZE", 1)
    found = flaxdl.predict(run, ["a", "a"], sampling=Sampling(temperature=3.0))
    assert found[0].text != found[1].text


def test_training_ends_with_a_sample(alphabet, run, capsys):
    line = ["--config", str(alphabet / "alphabet.py"), "--workdir", str(run)]
    assert main(["train", *line]) == 0
    assert capsys.readouterr().out.startswith("klm")


def test_prompts_on_the_command_line(run, capsys):
    flags = ["--temperature", "0", "--num-tokens", "4", "--workdir", str(run)]
    assert main(["predict", "tuv", *flags]) == 0
    assert capsys.readouterr().out == "tuvwxyz\n"
    assert main(["predict", "tuv", *flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"item": "tuv", "text": "tuvwxyz"}


def test_lines_of_a_file_and_what_is_no_list(run, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").write_text("tuv\n\nabc\n")
    flags = ["--temperature", "0", "--num-tokens", "4", "--workdir", str(run)]
    assert main(["predict", *flags, "--from-file", "prompts"]) == 0
    assert capsys.readouterr().out == "tuvwxyz\nabcdefg\n"
    assert caplog.messages == ["prompts: skipped 1 blank line"]
    caplog.clear()
    assert main(["predict", *flags, "prompts", "--to", "answers.csv"]) == 0
    (message,) = caplog.messages
    assert message.startswith("prompts is treated as text; use --from-file")
    assert (tmp_path / "answers.csv").read_text().startswith("item,text,error\nprompts,prompts")


def test_an_encoder_decoder_rewrites_texts(tmp_path, capsys):
    config = Config(
        model=Seq2SeqTransformer(vocab_size=64, max_length=32, dropout=0.0, **SMALL),
        data=Dates(train=64, test=16),
        transform=TextPairs(max_length=32, max_target_length=11),
        task=SequenceToSequence(),
        optimizer=AdamW(learning_rate=1e-2),
        batch_size=16,
        epochs=25,
        evaluate_every=25,
    )
    result = flaxdl.train(config, tmp_path, report=False)
    assert set(result.metrics) >= {"loss", "accuracy", "exact_match"}
    (found,) = flaxdl.predict(tmp_path, ["May 3rd, 1985"])
    assert len(found.text) == 10  # it has learnt at least the form
    assert found.text[4] == found.text[7] == "-"
    beams = BeamSearch(beams=4, length_penalty=1.0)
    (best,) = flaxdl.predict(tmp_path, ["May 3rd, 1985"], beam_search=beams)
    assert len(best.text) == 10
    flags = ["--beams", "4", "--length-penalty", "1", "--workdir", str(tmp_path)]
    capsys.readouterr()
    assert main(["predict", "May 3rd, 1985", *flags]) == 0
    assert best.text in capsys.readouterr().out
    with pytest.raises(ValueError, match="inputs must have between 1 and 32 characters"):
        flaxdl.predict(tmp_path, ["3" * 33])


def test_beams_are_of_encoder_decoders(run, capsys):
    with pytest.raises(ValueError, match="task SequenceToSequence, got LanguageModeling"):
        flaxdl.predict(run, ["a"], beam_search=BeamSearch(beams=2))
    assert main(["predict", "a", "--beams", "0", "--workdir", str(run)]) == 2
    assert "beams must be at least 1, got 0" in " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def recurrent(alphabet, tmp_path_factory):
    """A run of a recurrent language model with a burn-in, and another one that was interrupted."""
    config = Config(
        model=RNNLM(None, embedding_size=16, hidden_size=32, cell="gru", dropout=0.1),
        data=Documents(str(alphabet / "text.txt"), window=20, burn_in=8),
        transform=Text(max_length=20),
        task=LanguageModeling(),
        optimizer=AdamW(learning_rate=2e-2),
        batch_size=32,
        epochs=4,
    )
    folder = tmp_path_factory.mktemp("recurrent")
    whole = flaxdl.train(config, folder / "whole", report=False)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 20, signal.SIGTERM)
        with pytest.raises(Interrupted, match="saved at step 20"):
            flaxdl.train(config, folder / "resumed", report=False)
    resumed = flaxdl.train(config, folder / "resumed", report=False)
    return folder / "whole", whole, resumed


def test_a_recurrent_language_model_continues_prompts_of_any_length(recurrent):
    workdir, whole, _ = recurrent
    assert whole.metrics["accuracy"] == 1.0
    found = flaxdl.predict(
        workdir, ["abc", "xyzab"], sampling=Sampling(temperature=0, num_tokens=30)
    )
    assert found[0].text.startswith(ALPHABET + "abcdefg")
    assert found[1].text == "xyzab" + (ALPHABET * 2)[2:32]
    (longest,) = flaxdl.predict(workdir, ["w"], sampling=Sampling(temperature=0))
    assert longest.text == ("wxyz" + ALPHABET)[:21]  # as many new tokens as a text has
    for prompt in (ALPHABET[:20], ALPHABET):
        with pytest.raises(ValueError, match="has 20 tokens or more, but .*max_length = 20"):
            flaxdl.predict(workdir, [prompt])


def test_a_recurrent_language_model_resumes_exactly(recurrent):
    _, whole, resumed = recurrent
    assert jax.tree.all(jax.tree.map(np.array_equal, resumed.variables, whole.variables))
    assert resumed.metrics == whole.metrics


def test_the_states_of_a_recurrent_language_model_are_drawn(recurrent):
    figure = flaxdl.visualize(recurrent[0], "abcdefg", "hidden-state")
    assert figure.get_suptitle() == "Hidden state over time"
    figure.canvas.draw()


def test_an_exported_language_model_takes_no_burn_in(recurrent, tmp_path):
    workdir, whole, _ = recurrent
    flaxdl.export(workdir, tmp_path / "model.stablehlo")
    program = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    batch = whole.run.transform.encode([ALPHABET[:20]])
    found = program.call(batch)
    inputs = batch.pop("inputs")
    expected = whole.run.config.model.apply(whole.variables, inputs, **batch)
    np.testing.assert_allclose(found, expected, atol=1e-4)


class Bigrams(nn.Module):
    """A language model that knows nothing but the last token."""

    vocab_size: int = 32

    @nn.compact
    def __call__(self, tokens, lengths=None, train=False):
        return Embedding(self.vocab_size, self.vocab_size, name="logits")(tokens)


def test_any_model_can_be_trained_but_only_known_ones_write(alphabet, tmp_path):
    config = Config(
        model=Bigrams(),
        data=Documents(str(alphabet / "text.txt"), window=32),
        transform=Text(max_length=32),
        task=LanguageModeling(),
        optimizer=AdamW(learning_rate=0.3),
        batch_size=16,
        epochs=8,
        evaluate_every=8,
    )
    assert flaxdl.train(config, tmp_path, report=False).metrics["accuracy"] == 1.0
    with pytest.raises(
        ValueError, match="needs a TransformerLM or RNNLM.* got Bigrams and FittedText"
    ):
        flaxdl.predict(tmp_path, ["abc"], config=config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 20}, "set --model.vocab-size 28"),
        ({"max_length": 16}, "set --model.max-length 32"),
    ],
)
def test_a_model_too_small_for_the_tokens_is_refused(alphabet, tmp_path, changes, message):
    sizes = {"vocab_size": 32, "max_length": 32} | changes
    config = Config(
        model=TransformerLM(**sizes, **SMALL),
        data=Documents(str(alphabet / "text.txt"), window=32),
        transform=Text(max_length=32),
        task=LanguageModeling(),
    )
    with pytest.raises(ValueError, match=message):
        flaxdl.train(config, tmp_path, report=False)
