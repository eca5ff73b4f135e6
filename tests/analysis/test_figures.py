"""Matplotlib figures: the expected number of panels, none of them blank."""

import itertools

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
        (lambda: pictures.draw_heatmap(PICTURE, RANDOM.random((3, 4)), "Grad-CAM", "Title"), 4),
        (lambda: pictures.draw_token_heat(["a", "$", " "], np.array([1.0, 2, 3]), "Saliency"), 1),
        (lambda: attention(4, 4), 8),
        (lambda: attention(*[12] * 12), 6 * 8),
        (lambda: pictures.draw_hidden_states({"rnn": RANDOM.normal(size=(3, 9))}, "abc"), 2),
    ],
)
def test_every_panel_shows_something(figure, count):
    found = panels(figure())
    assert len(found) == count
    for panel in found:
        assert panel.std() > 5


def test_filters_of_deep_layers_use_all_colors():
    """The mean over many channels is far smaller than the weights."""
    filters = RANDOM.normal(size=(3, 3, 64, 8))
    figure = pictures.draw_filters(filters)
    assert figure.axes[0].images[0].get_clim()[1] == pytest.approx(abs(filters.mean(2)).max())
    assert "mean of 64 channels" in figure.get_suptitle()


def test_maps_of_cross_attention_leave_no_gaps():
    long, short = list("Wednesday, January 4th, 2034"), list("2034-01-04")
    weights = {"attention": RANDOM.random((4, len(short), len(long)))}
    figure = pictures.draw_attention(weights, short, long)
    width, height = figure.get_size_inches()
    assert height < 0.2 * width
    labels = figure.axes[0].get_xticklabels()
    assert {label.get_rotation() for label in labels} == {0}  # characters stand upright
    figure = pictures.draw_attention(weights, short, ["word", *long[1:]])
    assert {label.get_rotation() for label in figure.axes[0].get_xticklabels()} == {90}


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
    assert titles == ["a: 5 × 9", "b: 12 × 16 (clipped)"]


def test_a_heatmap_has_named_panels_a_color_bar_and_a_robust_scale():
    heat = np.linspace(0, 1, 12 * 16).reshape(12, 16)
    heat[0, 0] = 1000.0
    figure = pictures.draw_heatmap(PICTURE, heat, "Saliency", "Title")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["input", "Saliency", "overlay", ""]
    assert 0.9 < figure.axes[1].images[0].get_clim()[1] < 1.1  # not 1000
    opacity = figure.axes[2].images[1].get_array()[..., 3]
    assert opacity.max() == pytest.approx(0.85)
    assert np.asarray(opacity).mean() > 0.3


def test_labels_of_a_color_bar_do_not_overlap():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = pictures.draw_heatmap(PICTURE, 0.0018 * RANDOM.random((8, 8)), "Grad-CAM", "Title")
    FigureCanvasAgg(figure).draw()
    labels = [x for x in figure.axes[-1].get_xticklabels() if x.get_text()]
    extents = [label.get_window_extent() for label in labels]
    assert len(extents) > 2
    for left, right in itertools.pairwise(extents):
        assert left.x1 < right.x0


def test_a_constant_heatmap_is_drawn():
    figure = pictures.draw_heatmap(PICTURE, np.zeros((3, 4)), "Grad-CAM", "Title")
    assert figure.axes[1].images[0].get_clim() == (0, 1)


def test_what_is_a_picture():
    np.testing.assert_array_equal(pictures.as_picture(PICTURE[..., None]), PICTURE)
    color = RANDOM.integers(0, 255, (4, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pictures.as_picture(color), color)
    stretched = pictures.as_picture(np.array([[-1.0, 0.0, 1.0]]))
    np.testing.assert_array_equal(stretched, [[0, 127, 255]])
    assert pictures.as_picture(RANDOM.normal(size=(4, 5, 7))).shape == (4, 5)
    with pytest.raises(ValueError, match=r"a picture needs .* got shape \[4\]"):
        pictures.as_picture(np.zeros(4))


def test_a_series_is_drawn_without_its_padding():
    slope = np.stack([np.arange(8.0), np.arange(8.0)[::-1]], axis=1)
    drawn = pictures.series_picture(slope, height=8, width=7)
    assert drawn.dtype == np.uint8
    assert drawn.shape == (8, 7)
    columns = np.arange(7)
    assert (drawn[7 - columns, columns] == 0).all()  # the rising channel
    assert (drawn[columns, columns] == 0).all()  # the falling one
    padded = np.concatenate([slope, np.zeros((20, 2))])
    np.testing.assert_array_equal(pictures.series_picture(padded, height=8, width=7), drawn)
    flat = pictures.series_picture(np.full((5, 1), 3.0))
    assert (flat == 0).any(axis=0).all()
    assert pictures.series_picture(np.zeros((5, 1))).min() == 0
