"""Pictures of what is inside a network: as many panels as there should be, and none is blank."""

import numpy as np
import pytest

from flaxdl.analysis import figures as pictures

RANDOM = np.random.default_rng(0)
PICTURE = RANDOM.integers(0, 255, (12, 16), dtype=np.uint8)


def panels(figure):
    """The pixels of each panel of a figure, as a file of it would have them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., :3]
    found = []
    for axes in figure.axes:
        left, bottom, right, top = axes.get_window_extent().extents.astype(int)
        found.append(image[len(image) - top + 2 : len(image) - bottom - 2, left + 2 : right - 2])
    return found


def maps(*channels):
    return {f"layer{i}": RANDOM.normal(size=(6, 8, c)) for i, c in enumerate(channels)}


def attention(*heads):
    weights = {f"layer{i}": RANDOM.random((n, 3, 3)) for i, n in enumerate(heads)}
    return pictures.draw_attention(weights, ["a", "$b", "\n"], ["a", "b", "c"])


@pytest.mark.parametrize(
    ("figure", "count"),
    [
        (lambda: pictures.draw_filters(RANDOM.normal(size=(3, 3, 1, 10))), 10),
        (lambda: pictures.draw_filters(RANDOM.normal(size=(7, 7, 3, 96))), 64),
        (lambda: pictures.draw_feature_maps(PICTURE, maps(3, 12)), 1 + 3 + 8),
        (lambda: pictures.draw_feature_maps(PICTURE, maps(*[2] * 20)), 1 + 6 * 2),
        (lambda: pictures.draw_heat(PICTURE, RANDOM.random((3, 4)), "Grad-CAM"), 3),
        (lambda: pictures.draw_token_heat(["a", "$", " "], np.array([1.0, 2, 3]), "Saliency"), 1),
        (lambda: attention(4, 4), 8),
        (lambda: attention(*[12] * 12), 6 * 8),
        (lambda: pictures.draw_hidden_states({"rnn": RANDOM.normal(size=(3, 9))}, "abc"), 1),
    ],
)
def test_every_panel_shows_something(figure, count):
    found = panels(figure())
    assert len(found) == count
    for panel in found:
        assert panel.std() > 5


def test_receptive_fields_are_framed():
    field = np.zeros((12, 16))
    field[3:8, 4:13] = RANDOM.random((5, 9)) + 0.1
    assert pictures.extent(field) == (3, 4, 5, 9)
    assert pictures.extent(np.zeros((4, 4))) == (0, 0, 0, 0)
    figure = pictures.draw_receptive_fields(PICTURE, {"a": field, "b": np.ones((12, 16))})
    assert len(panels(figure)) == 2
    frame = figure.axes[0].patches[0]
    assert (frame.get_xy(), frame.get_width(), frame.get_height()) == ((3.5, 2.5), 9, 5)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["a: 5 × 9", "b: 12 × 16, up to the edge"]


def test_what_is_a_picture():
    np.testing.assert_array_equal(pictures.as_picture(PICTURE[..., None]), PICTURE)
    colour = RANDOM.integers(0, 255, (4, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pictures.as_picture(colour), colour)
    stretched = pictures.as_picture(np.array([[-1.0, 0.0, 1.0]]))
    np.testing.assert_array_equal(stretched, [[0, 127, 255]])
    assert pictures.as_picture(RANDOM.normal(size=(4, 5, 7))).shape == (4, 5)
    with pytest.raises(ValueError, match=r"a picture needs .* got shape \[4\]"):
        pictures.as_picture(np.zeros(4))
