"""Matplotlib figures of filters, feature maps, attention, heatmaps and hidden states.

Legend: H height, W width, C channels, N heads, T tokens or steps (queries), S tokens attended to
(keys), D features.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxdl.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_MAX_LAYERS = 6  # spread evenly over a deeper network
_MAX_MAPS = 8
_MAX_FILTERS = 64
_INCH = 1.3  # the side of a small panel


def as_picture(array: np.ndarray) -> np.ndarray:
    """Converts an input to a uint8 image, grayscale [H, W] or color [H, W, 3].

    Other dtypes than uint8 are scaled from their minimum and maximum to 0 to 255. Channels that
    are neither grayscale nor color are averaged.

    Raises:
        UserError: if the array is neither [H, W, C] nor [H, W].
    """
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise UserError(f"a picture needs [H, W] or [H, W, C], got shape {list(array.shape)}")
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        array = (255 * (array - low) / (high - low or 1)).astype(np.uint8)
    if array.ndim == 2 or array.shape[-1] == 3:
        return array
    return array.mean(axis=-1).astype(np.uint8)


def series_picture(series: np.ndarray, height: int = 64, width: int = 128) -> np.ndarray:
    """Draws the channels of a series [T, C] as black lines on white, uint8 [height, width].

    Zeros at the end, as of padding, are left out. The lines fill the height.
    """
    real = np.flatnonzero(np.any(series != 0, axis=1))
    series = series[: real[-1] + 1] if len(real) else series
    low, high = series.min(), series.max()
    places = np.linspace(0, len(series) - 1, width + 1)
    picture = np.full((height, width), 255, np.uint8)
    rows = np.arange(height)[:, None]
    for channel in np.moveaxis(series, -1, 0):
        values = np.interp(places, np.arange(len(series)), channel)
        heights = np.rint((height - 1) * (high - values) / (high - low or 1))  # from the top
        first = np.minimum(heights[:-1], heights[1:])
        last = np.maximum(heights[:-1], heights[1:])
        picture[(rows >= first) & (rows <= last)] = 0
    return picture


def draw_filters(filters: np.ndarray) -> "Figure":
    """Draws filters [height, width, C, filters], in color if there are three channels.

    Otherwise the mean over the channels is drawn, positive in red and negative in blue.
    """
    count = min(filters.shape[-1], _MAX_FILTERS)
    columns = min(8, count)
    channels = filters.shape[2]
    title = f"{filters.shape[-1]} filters of {_size(filters.shape[:2])}"
    if channels != 3:
        mean = "" if channels == 1 else f", mean of {channels} channels"
        title += f"{mean} (red is positive, blue negative)"
    if count < filters.shape[-1]:
        title += f", the first {count}"
    figure, axes = _panels(math.ceil(count / columns), columns, title)
    drawn = filters if channels == 3 else filters.mean(axis=2)
    limit = float(np.abs(drawn).max())
    for number, panel in enumerate(axes.flat):
        if number >= count:
            panel.remove()
        elif channels == 3:
            panel.imshow(as_picture(drawn[..., number]))
        else:
            _draw_signed(panel, drawn[..., number], limit)
    return figure


def draw_feature_maps(picture: np.ndarray, maps: Mapping[str, np.ndarray]) -> "Figure":
    """Draws an image and, below it, a row of feature maps [H, W, C] for each layer.

    Positive values are red, negative ones blue; each layer has its own scale.
    """
    layers = _spread(maps)
    columns = min(_MAX_MAPS, max(x.shape[-1] for x in layers.values()))
    title = (
        f"Feature maps of {_some(layers, maps)} (channels with the largest variance; red is "
        "positive, blue negative)"
    )
    figure, axes = _panels(1 + len(layers), columns, title)
    _show(axes[0, 0], picture)
    axes[0, 0].set_title("input", fontsize=8)
    for panel in axes[0, 1:]:
        panel.remove()
    for row, (name, x) in zip(axes[1:], layers.items(), strict=True):
        # Constant maps show nothing.
        chosen = np.sort(np.argsort(-x.std(axis=(0, 1)), kind="stable")[:columns])
        limit = float(np.abs(x).max())
        for panel, channel in zip_longest(row, chosen):
            if channel is None:
                panel.remove()
                continue
            _draw_signed(panel, x[..., channel], limit)
            panel.set_title(f"{channel}", fontsize=6, pad=2)
        row[0].set_ylabel(f"{name}\n{'×'.join(map(str, x.shape))}", fontsize=7)
    return figure


def draw_receptive_fields(picture: np.ndarray, fields: Mapping[str, np.ndarray]) -> "Figure":
    """Draws over an image the receptive field [H, W] of the center unit of each layer, framed."""
    from matplotlib.patches import Rectangle

    layers = _spread(fields)
    columns = min(3, len(layers))
    rows = math.ceil(len(layers) / columns)
    title = (
        f"Receptive field of the center unit of {_some(layers, fields)}\n"
        "(orange: size of the gradient; blue: extent)"
    )
    figure, axes = _panels(rows, columns, title, side=2.6)
    for panel, layer in zip_longest(axes.flat, layers.items()):
        if layer is None:
            panel.remove()
            continue
        name, field = layer
        _show(panel, _gray(picture))
        _overlay(panel, np.sqrt(field), picture)  # the Gaussian tails are faint
        top, left, height, width = extent(field)
        frame = Rectangle(
            (left - 0.5, top - 0.5), width, height, fill=False, color="deepskyblue", lw=2
        )
        panel.add_patch(frame)
        edges = (top == 0, left == 0, top + height == len(field), left + width == field.shape[1])
        panel.set_title(
            f"{name}: {_size((height, width))}{' (clipped)' if any(edges) else ''}",
            fontsize=9,
        )
    return figure


def extent(field: np.ndarray) -> tuple[int, int, int, int]:
    """Returns top, left, height and width of the nonzero part of a receptive field [H, W]."""
    rows, columns = (np.flatnonzero(field.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, 0, 0, 0
    return (
        int(rows[0]),
        int(columns[0]),
        int(rows[-1] - rows[0] + 1),
        int(columns[-1] - columns[0] + 1),
    )


def draw_heatmap(picture: np.ndarray, heat: np.ndarray, name: str, title: str) -> "Figure":
    """Draws an image, a heatmap [h, w] scaled to its size, and the heatmap over the gray image.

    Colors end at the 99th percentile, since single pixels of gradients are far above all others.

    Args:
        picture: image, uint8 [H, W] or [H, W, 3].
        heat: nonnegative values.
        name: name of the method, as title of the heatmap.
        title: title of the figure.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _panels(1, 3, title, side=2.9)
    height, width = picture.shape[:2]
    panels = dict(zip(("input", name, "overlay"), axes[0], strict=True))
    for label, panel in panels.items():
        panel.set_title(label, fontsize=9)
    limit = float(np.percentile(heat, 99)) or float(heat.max()) or 1.0
    _show(panels["input"], picture)
    drawn = panels[name].imshow(
        heat,
        cmap="inferno",
        vmin=0,
        vmax=limit,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation=_interpolation(heat, picture),
    )
    extend = "max" if heat.max() > limit else "neither"
    bar = figure.colorbar(
        drawn,
        ax=panels[name],
        location="bottom",
        extend=extend,
        pad=0.02,
        ticks=MaxNLocator(4),  # more labels of small numbers would overlap
    )
    bar.ax.tick_params(labelsize=7)
    _show(panels["overlay"], _gray(picture))
    _overlay(panels["overlay"], np.minimum(heat, limit), picture)
    return figure


def draw_token_heat(tokens: Sequence[str], heat: np.ndarray, title: str) -> "Figure":
    """Draws a bar chart of a score [T] for each token."""
    figure = _figure(5, 0.8 + 0.22 * len(tokens))
    figure.suptitle(title, fontsize=10, wrap=True)
    panel = figure.subplots()
    places = np.arange(len(tokens))
    panel.barh(places, heat, color="tab:blue")
    panel.set_yticks(places, [_printable(token) for token in tokens], fontsize=8)
    panel.set_ylim(len(tokens) - 0.4, -0.6)
    panel.set_ylabel("position", fontsize=8)
    panel.set_xlabel("gradient norm", fontsize=8)
    panel.tick_params(axis="x", labelsize=7)
    return figure


def draw_attention(
    maps: Mapping[str, np.ndarray], queries: Sequence[str], keys: Sequence[str]
) -> "Figure":
    """Draws attention weights [N, T, S], a row for each layer and a panel for each head.

    Args:
        maps: attention weights by layer.
        queries: the T query tokens (rows).
        keys: the S key tokens (columns), to which the queries attend.
    """
    layers = _spread(maps)
    columns = min(_MAX_MAPS, max(len(heads) for heads in layers.values()))
    longest = max(len(queries), len(keys))
    side = min(max(_INCH, 0.12 * longest), 6.0)
    most = max(float(heads.max()) for heads in layers.values())
    there = max(len(heads) for heads in layers.values())
    first = f", the first {columns} of {there} heads" if columns < there else ""
    title = (
        f"Attention of {_some(layers, maps)}{first}, from 0 (dark) to {most:.2f} (bright): "
        "rows are queries, columns keys"
    )
    # Each row has room for its maps, the labels above and below, and the name of the layer.
    height = max(side * len(queries) / longest + 0.35, 0.065 * max(map(len, layers)))
    figure, axes = _panels(len(layers), columns, title, side=side, height=height)
    figure.set_layout_engine("constrained", h_pad=0.08)
    rotation = 90 if any(len(key) > 1 for key in keys) else 0
    size = min(7.0, 60 * side / longest)
    for row, (name, heads) in zip(axes, layers.items(), strict=True):
        for number, panel in enumerate(row):
            if number >= len(heads):
                panel.remove()
                continue
            panel.imshow(heads[number], cmap="viridis", vmin=0, vmax=most)
            panel.set_title(f"head {number}", fontsize=7, pad=3)
            if number == 0:
                panel.set_yticks(range(len(queries)), map(_printable, queries), fontsize=size)
                panel.set_ylabel(name, fontsize=7)
            panel.set_xticks(
                range(len(keys)), map(_printable, keys), fontsize=size, rotation=rotation
            )
    return figure


def draw_hidden_states(
    states: Mapping[str, np.ndarray], steps: Sequence[str], prediction: str = ""
) -> "Figure":
    """Draws hidden states [T, D]: steps from left to right, units from top to bottom.

    Units are sorted by their mean over the steps.

    Args:
        states: hidden states by layer.
        steps: labels of the steps.
        prediction: text about the prediction, for the title.
    """
    width = min(max(5.0, 0.22 * len(steps) + 1.5), 16.0)
    figure = _figure(width, 0.6 + 3.2 * len(states))
    title = f"Hidden state over time, {prediction}" if prediction else "Hidden state over time"
    figure.suptitle(title, fontsize=10, wrap=True)
    axes = figure.subplots(len(states), 1, squeeze=False)[:, 0]
    for panel, (name, state) in zip(axes, states.items(), strict=True):
        ordered = state.T[np.argsort(-state.mean(axis=0))]
        drawn = _draw_signed(panel, ordered, float(np.abs(state).max()))
        figure.colorbar(drawn, ax=panel, pad=0.01).ax.tick_params(labelsize=7)
        panel.set_aspect("auto")
        panel.set_yticks([])
        panel.set_xticks(range(len(steps)), map(_printable, steps), fontsize=8)
        panel.set_ylabel(f"{name}: {state.shape[1]} units, sorted by mean", fontsize=8)
    axes[-1].set_xlabel("position", fontsize=8)
    return figure


def _panels(
    rows: int, columns: int, title: str, side: float = _INCH, height: float | None = None
) -> "tuple[Figure, np.ndarray]":
    figure = _figure(max(columns * side, 4.5), rows * (height or side) + 0.5)
    figure.suptitle(title, fontsize=10, wrap=True)
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    return figure, axes


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=120)


def _show(panel: "Axes", picture: np.ndarray) -> None:
    panel.imshow(picture, cmap="gray", vmin=0, vmax=255)


def _draw_signed(panel: "Axes", values: np.ndarray, limit: float) -> "AxesImage":
    return panel.imshow(
        values, cmap="RdBu_r", vmin=-(limit or 1), vmax=limit or 1, interpolation="nearest"
    )


def _overlay(panel: "Axes", heat: np.ndarray, picture: np.ndarray) -> None:
    """Overlays a heatmap [h, w] on a panel with an image: more opaque orange for larger values."""
    height, width = picture.shape[:2]
    opacity = 0.85 * heat / (float(heat.max()) or 1)
    orange = np.broadcast_to(np.array([1.0, 0.45, 0.0]), (*heat.shape, 3))
    panel.imshow(
        np.concatenate([orange, opacity[..., None]], axis=-1),
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation=_interpolation(heat, picture),
    )


def _interpolation(heat: np.ndarray, picture: np.ndarray) -> str:
    return "nearest" if heat.shape == picture.shape[:2] else "bilinear"


def _gray(picture: np.ndarray) -> np.ndarray:
    return picture if picture.ndim == 2 else picture.mean(axis=-1)


def _spread(layers: Mapping[str, Any]) -> dict[str, Any]:
    """Returns at most `_MAX_LAYERS` evenly spaced layers, including the first and the last."""
    names = list(layers)
    if len(names) > _MAX_LAYERS:
        places = np.linspace(0, len(names) - 1, _MAX_LAYERS).round().astype(int)
        names = [names[place] for place in places]
    return {name: layers[name] for name in names}


def _some(drawn: Mapping[str, Any], layers: Mapping[str, Any]) -> str:
    noun = "layer" if len(layers) == 1 else "layers"
    of = "" if len(drawn) == len(layers) else f" of {len(layers)}"
    return f"{len(drawn)}{of} {noun}"


def _size(sides: Sequence[int]) -> str:
    return " × ".join(map(str, sides))


def _printable(token: str) -> str:
    """Returns a token with whitespace made visible, and escaped for Matplotlib's math mode."""
    shown = {" ": "␣", "\n": "⏎", "\t": "⇥"}.get(token, token)
    return shown.replace("$", r"\$")
