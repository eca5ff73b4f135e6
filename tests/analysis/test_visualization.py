"""`python -m flaxdl visualize`: figures of a run, and error messages."""

import re

import numpy as np
import pytest
from helpers.small_runs import bright_quadrants, small_config
from matplotlib.figure import Figure
from PIL import Image

import flaxdl
from flaxdl.analysis.visualization import visualize
from flaxdl.cli import main
from flaxdl.cli.visualize import _save
from flaxdl.data import Arrays, Dates, Text, TextPairs
from flaxdl.models import Seq2SeqRNN, Seq2SeqTransformer, TextRNN, TransformerClassifier
from flaxdl.training import SequenceToSequence

SMALL = {"hidden_size": 16, "num_heads": 2, "num_layers": 2, "feed_forward_size": 16}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    flaxdl.train(small_config(epochs=1.0), folder / "run", report=False)
    Image.fromarray(bright_quadrants(1, 3)[0][0, ..., 0]).save(folder / "one.png")
    return folder


def texts(folder, model):
    label = np.arange(32, dtype=np.int32) % 2
    inputs = np.array(["abba" if one else "cddc c" for one in label])
    arrays = {"train_inputs": inputs, "train_label": label}
    arrays |= {"test_inputs": inputs, "test_label": label}
    transform = Text(max_length=12)
    source = Arrays.from_memory(**arrays)
    config = small_config(model=model, data=source, transform=transform, epochs=1.0)
    flaxdl.train(config, folder, report=False)
    return folder


@pytest.mark.parametrize(
    ("what", "size"),
    [
        ("filters", (8 * 156, 4 * 156 + 60)),  # 32 in panels of 1.3 inches, 120 pixels an inch
        ("features", (8 * 156, 4 * 156 + 60)),
        ("receptive-field", (3 * 312, 312 + 60)),
        ("saliency", (3 * 348, 348 + 60)),
        ("grad-cam", (3 * 348, 348 + 60)),
    ],
)
def test_images(images, tmp_path, capsys, what, size):
    line = ["visualize", "--workdir", str(images / "run"), "--what", what]
    file = tmp_path / "picture.png"
    assert main([*line, str(images / "one.png"), "--to", str(file)]) == 0
    assert capsys.readouterr().out == f"wrote {file}\n"
    picture = Image.open(file)
    assert picture.size == size
    assert np.asarray(picture.convert("L"), float).std() > 20


def test_a_single_layer(images):
    run, image = images / "run", str(images / "one.png")
    maps = visualize(run, image, "features", layer="features.3")
    labels = [axes.get_ylabel().partition("\n")[0] for axes in maps.axes if axes.get_ylabel()]
    assert labels == ["features.3"]
    (field,) = visualize(run, image, "receptive-field", layer="features.0").axes
    assert field.get_title() == "features.0: 3 × 3"
    last, first = (
        visualize(run, image, "grad-cam", layer=layer).axes[1].images[0].get_array()
        for layer in ("features.6", "features.0")
    )
    assert (last.shape, first.shape) == ((2, 2), (8, 8))
    default = visualize(run, image, "grad-cam").axes[1].images[0].get_array()
    np.testing.assert_array_equal(default, last)
    title = visualize(run, None, "filters", layer="features.3").get_suptitle()
    assert title.startswith("64 filters of 3 × 3, mean of 32 channels")
    title = visualize(run, image, "grad-cam", layer="features.0").get_suptitle()
    assert title.startswith("Grad-CAM of features.0, predicted")


def test_another_class_is_explained_on_request(images):
    run, image = images / "run", str(images / "one.png")
    predicted = re.search("predicted “(.)”", visualize(run, image, "saliency").get_suptitle())[1]
    other = str((int(predicted) + 1) % 4)
    heat = {}
    for name in (predicted, other):
        figure = visualize(run, image, "saliency", class_name=name)
        assert f"for class “{name}”, predicted “{predicted}”" in figure.get_suptitle()
        heat[name] = figure.axes[1].images[0].get_array()
    default = visualize(run, image, "saliency").axes[1].images[0].get_array()
    np.testing.assert_allclose(heat[predicted], default)
    assert not np.allclose(heat[other], default)


def test_texts_read_by_a_recurrent_network(tmp_path):
    model = TextRNN(
        vocab_size=16, embedding_size=4, hidden_size=8, num_classes=2, pooling="final_states"
    )
    run = texts(tmp_path, model)
    figure = visualize(run, "abba", "hidden-state")
    assert re.search(r"predicted “[01]” \(\d", figure.get_suptitle())
    states, _ = figure.axes  # and a color bar
    assert [label.get_text() for label in states.get_xticklabels()] == list("abba")
    assert states.images[0].get_array().shape == (16, 4)  # both directions
    (bars,) = visualize(run, "abba", "saliency").axes
    assert len(bars.patches) == 4
    assert main(["visualize", "abba", "--workdir", str(run), "--what", "saliency"]) == 0
    assert (run / "saliency.png").exists()


def test_texts_read_by_a_transformer(tmp_path):
    run = texts(
        tmp_path, TransformerClassifier(vocab_size=16, max_length=12, num_classes=2, **SMALL)
    )
    figure = visualize(run, "cddc c", "attention")
    assert len(figure.axes) == 2 * 2  # layers and heads
    for panel in figure.axes:
        np.testing.assert_allclose(panel.images[0].get_array().sum(-1), 1, atol=1e-5)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["c", "d", "d", "c", "␣", "c"]


@pytest.mark.parametrize(
    ("model", "maps"),
    [
        (Seq2SeqTransformer(vocab_size=64, max_length=32, **SMALL), 2 * 2),  # layers and heads
        (Seq2SeqRNN(vocab_size=64, embedding_size=8, hidden_size=8), 1),
    ],
    ids=["transformer", "rnn"],
)
def test_an_encoder_decoder_shows_what_each_written_token_looks_at(model, maps, tmp_path):
    config = small_config(
        model=model,
        data=Dates(train=64, test=16),
        transform=TextPairs(max_length=32, max_target_length=11),
        task=SequenceToSequence(),
        epochs=1.0,
    )
    flaxdl.train(config, tmp_path, report=False)
    figure = visualize(tmp_path, "May 3, 1985", "attention")
    assert len(figure.axes) == maps
    weights = figure.axes[0].images[0].get_array()
    written = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert written[0] == "<start>"
    assert weights.shape == (len(written), len("May 3, 1985"))
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--what", "attention", "IMAGE"], "need an attention layer; SimpleCNN has none"),
        (["--what", "hidden-state", "IMAGE"], "need a recurrent layer; SimpleCNN has none"),
        (["--what", "grad-cam"], "needs an input: a file or a text"),
        (["--what", "grad-cam", "nowhere.png"], "nowhere.png"),
        (["--what", "filters", "--to", "/nowhere/a.png"], "cannot be written"),
        (["--what", "filters", "--to", "a.jpg"], "the output must be a .png file, got a.jpg"),
        (["--what", "grad-cat", "IMAGE"], "grad-cam"),
        (["--what", "features", "--layer", "features.4", "IMAGE"], "did you mean 'features."),
        (["--what", "grad-cam", "--layer", "fc", "IMAGE"], "choose one of features.0, features.3"),
        (["--what", "saliency", "--layer", "features.0", "IMAGE"], "does not apply to saliency"),
        (["--what", "features", "--class", "1", "IMAGE"], "--class applies to saliency and"),
        (["--what", "saliency", "--class", "cat", "IMAGE"], "there is no class 'cat'; classes are"),
    ],
)
def test_mistakes_are_one_message(images, capsys, arguments, message):
    arguments = [str(images / "one.png") if one == "IMAGE" else one for one in arguments]
    try:
        code = main(["visualize", "--workdir", str(images / "run"), *arguments])
    except SystemExit as stopped:
        code = stopped.code
    out, err = capsys.readouterr()
    assert code == 2
    assert message in " ".join((out + err).replace("│", " ").split())


def test_characters_that_the_font_lacks_are_one_warning(tmp_path, capsys):
    figure = Figure()
    figure.suptitle("ヤマガラ")
    _save(figure, tmp_path / "a.png")
    assert capsys.readouterr().err.count("drawn as boxes") == 1
    assert (tmp_path / "a.png").stat().st_size > 0
