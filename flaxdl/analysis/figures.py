"""Pictures of what is inside a network, as figures of Matplotlib, which notebooks show.

Legend: H height, W width, C channels, N heads, T tokens or steps, S tokens looked at, D features.
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

_MOST_LAYERS = 6  # of a deep network; what is drawn is spread evenly over it
_MOST_MAPS = 8
_MOST_FILTERS = 64
_INCH = 1.3  # the side of a small panel


def as_picture(array: np.ndarray) -> np.ndarray:
    """An input as uint8 grey [H, W] or colour [H, W, 3].

    Bytes are taken as they are, other numbers stretched from the least to the greatest. Of channels
    that are neither grey nor colour the mean is shown.

    Raises:
        UserError: if it is no image [H, W, C] and no table [H, W].
    """
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise UserError(f"a picture needs [H, W] or [H, W, C], got shape {list(array.shape)}")
    if array.dtype != np.uint8:
        low, high = float(array.min()), float(array.max())
        array = (255 * (array - low) / (high - low or 1)).astype(np.uint8)
    if array.ndim == 2 or array.shape[-1] == 3:
        return array
    return array.mean(axis=-1).astype(np.uint8)


def draw_filters(filters: np.ndarray) -> "Figure":
    """Draws filters [height, width, C, filters], those over three channels in colour.

    Of others the mean over the channels is drawn, red above zero and blue below.
    """
    count = min(filters.shape[-1], _MOST_FILTERS)
    columns = min(8, count)
    channels = "1 channel" if filters.shape[2] == 1 else f"{filters.shape[2]} channels"
    title = f"{filters.shape[-1]} filters of {_size(filters.shape[:2])}, {channels}"
    if count < filters.shape[-1]:
        title += f", the first {count}"
    figure, axes = _panels(math.ceil(count / columns), columns, title)
    limit = float(np.abs(filters).max())
    for number, panel in enumerate(axes.flat):
        if number >= count:
            panel.remove()
        elif filters.shape[2] == 3:
            panel.imshow(as_picture(filters[..., number]))
        else:
            _draw_signed(panel, filters[..., number].mean(-1), limit)
    return figure


def draw_feature_maps(picture: np.ndarray, maps: Mapping[str, np.ndarray]) -> "Figure":
    """Draws a picture, and below it some feature maps [H, W, C] of each layer, a row for each.

    Red is above zero, blue below; each layer has its own scale.
    """
    layers = _spread(maps)
    columns = min(_MOST_MAPS, max(x.shape[-1] for x in layers.values()))
    title = (
        f"Feature maps of {_some(layers, maps)}, the channels that vary most, with their "
        "numbers: red is above zero, blue below"
    )
    figure, axes = _panels(1 + len(layers), columns, title)
    _show(axes[0, 0], picture)
    axes[0, 0].set_title("input", fontsize=8)
    for panel in axes[0, 1:]:
        panel.remove()
    for row, (name, x) in zip(axes[1:], layers.items(), strict=True):
        # Those that differ most within themselves show most.
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
    """Draws over a picture which pixels [H, W] the middle of each layer's maps sees, in a frame."""
    from matplotlib.patches import Rectangle

    layers = _spread(fields)
    columns = min(3, len(layers))
    rows = math.ceil(len(layers) / columns)
    title = f"Receptive field of the middle position of {_some(layers, fields)}"
    figure, axes = _panels(rows, columns, title, side=2.6)
    for panel, layer in zip_longest(axes.flat, layers.items()):
        if layer is None:
            panel.remove()
            continue
        name, field = layer
        _show(panel, picture)
        _overlay(panel, field, picture.shape)
        top, left, height, width = extent(field)
        frame = Rectangle(
            (left - 0.5, top - 0.5), width, height, fill=False, color="deepskyblue", lw=2
        )
        panel.add_patch(frame)
        edges = (top == 0, left == 0, top + height == len(field), left + width == field.shape[1])
        panel.set_title(
            f"{name}: {_size((height, width))}{', up to the edge' if any(edges) else ''}",
            fontsize=9,
        )
    return figure


def extent(field: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, height and width of what is not zero in a receptive field [H, W]."""
    rows, columns = (np.flatnonzero(field.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, 0, 0, 0
    return (
        int(rows[0]),
        int(columns[0]),
        int(rows[-1] - rows[0] + 1),
        int(columns[-1] - columns[0] + 1),
    )


def draw_heat(picture: np.ndarray, heat: np.ndarray, title: str) -> "Figure":
    """Draws a picture, heat [h, w] stretched to its size, and the heat over the picture."""
    figure, axes = _panels(1, 3, title, side=2.8)
    height, width = picture.shape[:2]
    panels = dict(zip(("input", "heat", "together"), axes[0], strict=True))
    for name, panel in panels.items():
        panel.set_title(name, fontsize=9)
    _show(panels["input"], picture)
    stretched = (-0.5, width - 0.5, height - 0.5, -0.5)
    panels["heat"].imshow(heat, cmap="inferno", vmin=0, extent=stretched)
    _show(panels["together"], picture)
    _overlay(panels["together"], heat, picture.shape)
    return figure


def draw_token_heat(tokens: Sequence[str], heat: np.ndarray, title: str) -> "Figure":
    """Draws a bar for each token, as long as its heat [T] is great."""
    figure = _figure(5, 0.8 + 0.22 * len(tokens))
    figure.suptitle(title, fontsize=10, wrap=True)
    panel = figure.subplots()
    places = np.arange(len(tokens))
    panel.barh(places, heat, color="tab:blue")
    panel.set_yticks(places, [_printable(token) for token in tokens], fontsize=8)
    panel.invert_yaxis()
    panel.set_xlabel("norm of the gradient", fontsize=8)
    panel.tick_params(axis="x", labelsize=7)
    return figure


def draw_attention(
    maps: Mapping[str, np.ndarray], queries: Sequence[str], keys: Sequence[str]
) -> "Figure":
    """Draws attention [N, T, S], a row for each layer, a panel for each head.

    Args:
        maps: the weights by layer.
        queries: the tokens that look, T of them.
        keys: the tokens that are looked at, S of them.
    """
    layers = _spread(maps)
    columns = min(_MOST_MAPS, max(len(heads) for heads in layers.values()))
    longest = max(len(queries), len(keys))
    side = min(max(_INCH, 0.12 * longest), 6.0)
    most = max(float(heads.max()) for heads in layers.values())
    there = max(len(heads) for heads in layers.values())
    first = f", the first {columns} of {there} heads" if columns < there else ""
    title = (
        f"Attention of {_some(layers, maps)}{first}, from 0 (dark) to {most:.2f} (bright): "
        "each row of a panel is a token that looks"
    )
    figure, axes = _panels(len(layers), columns, title, side=side)
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
            panel.set_xticks(range(len(keys)), map(_printable, keys), fontsize=size, rotation=90)
    return figure


def draw_hidden_states(states: Mapping[str, np.ndarray], steps: Sequence[str]) -> "Figure":
    """Draws hidden states [T, D]: steps from left to right, a line of colour for each unit.

    The units lie in the order of their mean over the steps.
    """
    width = min(max(5.0, 0.22 * len(steps) + 1.5), 16.0)
    figure = _figure(width, 0.6 + 3.2 * len(states))
    figure.suptitle("Hidden state over time: red above zero, blue below", fontsize=10)
    axes = figure.subplots(len(states), 1, squeeze=False)[:, 0]
    for panel, (name, state) in zip(axes, states.items(), strict=True):
        ordered = state.T[np.argsort(-state.mean(axis=0))]
        _draw_signed(panel, ordered, float(np.abs(state).max()))
        panel.set_aspect("auto")
        panel.set_yticks([])
        panel.set_xticks(range(len(steps)), map(_printable, steps), fontsize=8)
        panel.set_ylabel(f"{name}: {state.shape[1]} units, by their mean", fontsize=8)
    return figure


def _panels(
    rows: int, columns: int, title: str, side: float = _INCH
) -> "tuple[Figure, np.ndarray]":
    figure = _figure(max(columns * side, 4.5), rows * side + 0.5)
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


def _draw_signed(panel: "Axes", values: np.ndarray, limit: float) -> None:
    panel.imshow(
        values, cmap="RdBu_r", vmin=-(limit or 1), vmax=limit or 1, interpolation="nearest"
    )


def _overlay(panel: "Axes", heat: np.ndarray, shape: Sequence[int]) -> None:
    """Lays heat [h, w] over a panel with a picture of this shape: the hotter, the more orange."""
    height, width = shape[:2]
    heat = heat / (float(heat.max()) or 1)
    orange = np.broadcast_to(np.array([1.0, 0.5, 0.05]), (*heat.shape, 3))
    panel.imshow(
        np.concatenate([orange, 0.8 * np.sqrt(heat)[..., None]], axis=-1),
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="nearest" if heat.shape == (height, width) else "bilinear",
    )


def _spread(layers: Mapping[str, Any]) -> dict[str, Any]:
    """At most so many layers as can be drawn, the first and the last among them."""
    names = list(layers)
    if len(names) > _MOST_LAYERS:
        places = np.linspace(0, len(names) - 1, _MOST_LAYERS).round().astype(int)
        names = [names[place] for place in places]
    return {name: layers[name] for name in names}


def _some(drawn: Mapping[str, Any], layers: Mapping[str, Any]) -> str:
    noun = "layer" if len(layers) == 1 else "layers"
    of = "" if len(drawn) == len(layers) else f" of {len(layers)}"
    return f"{len(drawn)}{of} {noun}"


def _size(sides: Sequence[int]) -> str:
    return " × ".join(map(str, sides))


def _printable(token: str) -> str:
    """A token such that it can be seen, and is no formula to Matplotlib."""
    shown = {" ": "␣", "\n": "⏎", "\t": "⇥"}.get(token, token)
    return shown.replace("$", r"\$")
