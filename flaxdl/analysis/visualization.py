"""Figures of the weights and activations of a run's best checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.analysis import figures, interpretability
from flaxdl.checks import did_you_mean
from flaxdl.config import Config
from flaxdl.data import Spectrogram, Waveforms
from flaxdl.data.text import FittedText
from flaxdl.data.text_pairs import END_TOKEN, START_TOKEN, FittedTextPairs
from flaxdl.errors import UserError
from flaxdl.models import translate
from flaxdl.models.generation import EncoderDecoder
from flaxdl.runs.forecasts import read_context
from flaxdl.runs.restored import RestoredRun, restore
from flaxdl.runs.tokens import check_tokens
from flaxdl.training.precision import matmul_precision
from flaxdl.training.tasks import Forecasting, MultiLabelClassification, Regression

if TYPE_CHECKING:
    from matplotlib.figure import Figure

What = Literal[
    "filters",
    "features",
    "receptive-field",
    "attention",
    "saliency",
    "grad-cam",
    "hidden-state",
]


def visualize(
    workdir: str | Path,
    item: str | None,
    what: What,
    *,
    layer: str | None = None,
    class_name: str | None = None,
    config: Config | None = None,
) -> "Figure":
    """Plots weights, activations or explanations of a run's best checkpoint for one input.

    Args:
        workdir: working directory of the run.
        item: file name or text, as for `predict`; not needed for `filters`. Sounds are drawn as
            spectrograms, so a run on `Waveforms` has only `filters`.
        what: kind of figure: `filters` (weights of a convolution), `features` (feature maps of each
            layer), `receptive-field` (pixels that the center unit of each layer depends on),
            `attention` (attention weights), `saliency` (input gradients of the prediction),
            `grad-cam` (class activation map) or `hidden-state` (states of a recurrent network).
        layer: name of the only layer to plot; for `grad-cam` and `filters`, the layer to use, by
            default the last or first one. Does not apply to `saliency`.
        class_name: class that `saliency` and `grad-cam` explain, by default the most probable one;
            or target of a regression, which is needed if there are several.
        config: config of the run, needed only if it uses classes that are not part of flaxdl.

    Raises:
        UserError: if the run, checkpoint, input, layer or class does not exist, or the input cannot
            be read.
    """
    _check_options(what, item, layer, class_name)
    run = restore(workdir, config)
    _check_drawable(run, what, class_name)
    batch = _placeholder(run) if what == "filters" or item is None else _read(run, item)
    model, variables = run.config.model, run.variables
    batch = {name: x for name, x in batch.items() if name not in ("label", "weight")}
    normalized = {**batch, "inputs": run.transform.normalize(jnp.asarray(batch["inputs"]))}
    inputs, others = run.config.task.model_arguments(normalized)
    label = None if class_name is None else jnp.array([_label(run, class_name)])

    def compute(method: Callable[..., Any], *options: Any) -> Any:
        return method(model, variables, inputs, *options, **others)

    with matmul_precision("float32"):
        match what:
            case "filters":
                return figures.draw_filters(np.asarray(compute(interpretability.filters, layer)))
            case "features":
                maps = interpretability.chosen(compute(interpretability.feature_maps), layer)
                return figures.draw_feature_maps(_picture(run, batch), _first(maps))
            case "receptive-field":
                fields = interpretability.chosen(compute(interpretability.receptive_fields), layer)
                return figures.draw_receptive_fields(_picture(run, batch), jax.device_get(fields))
            case "attention":
                maps = _first(compute(interpretability.attention))
                return _draw_attention(run, batch, maps, layer)
            case "hidden-state":
                states = interpretability.chosen(compute(interpretability.hidden_states), layer)
                return _draw_states(run, batch, _first(states))
            case "saliency":
                heat = compute(interpretability.saliency, label)
                return _draw_heat(run, batch, heat, "Saliency", class_name)
            case "grad-cam":
                heat = compute(interpretability.grad_cam, label, layer)
                title = "Grad-CAM" if layer is None else f"Grad-CAM of {layer}"
                return _draw_heat(run, batch, heat, title, class_name)


def _check_options(what: What, item: str | None, layer: str | None, class_name: str | None) -> None:
    if layer is not None and what == "saliency":
        raise UserError("--layer does not apply to saliency, which is computed for the input")
    if class_name is not None and what not in ("saliency", "grad-cam"):
        raise UserError(f"--class applies to saliency and grad-cam, got --what {what}")
    if item is None and what != "filters":
        raise UserError(f"--what {what} needs an input: a file or a text, as in the run's data")


def _check_drawable(run: RestoredRun, what: What, class_name: str | None) -> None:
    if isinstance(run.config.task, Forecasting) and what in ("saliency", "grad-cam"):
        raise UserError(f"--what {what} explains the class of an input, and forecasts have none")
    task = run.config.task
    names = task.target_names if isinstance(task, Regression) else ()
    if len(names) > 1 and what in ("saliency", "grad-cam") and class_name is None:
        raise UserError(
            f"--what {what} explains one target; choose one of {', '.join(names)} with --class"
        )
    is_waveform = isinstance(run.transform, Waveforms) and not isinstance(
        run.transform, Spectrogram
    )
    if is_waveform and what != "filters":
        raise UserError(
            f"--what {what} needs spectrograms (the transform LogMel or Spectrogram) and cannot "
            "draw waveforms, the inputs of this run"
        )


def _placeholder(run: RestoredRun) -> dict[str, Any]:
    """Returns a batch of zeros, for figures that need no input."""
    return {name: np.zeros(x.shape, x.dtype) for name, x in run.examples.items()}


def _draw_states(
    run: RestoredRun, batch: dict[str, Any], states: dict[str, np.ndarray]
) -> "Figure":
    """Draws hidden states without those of padding."""
    steps = _steps(run, batch)
    states = {name: state[: len(steps)] for name, state in states.items()}
    is_regression = isinstance(run.config.task, Regression)
    predicted = "" if run.classes is None and not is_regression else _prediction(run, batch)
    return figures.draw_hidden_states(states, steps, predicted)


def _draw_heat(
    run: RestoredRun, batch: dict[str, Any], heat: jax.Array, name: str, class_name: str | None
) -> "Figure":
    """Draws a heatmap over an image, or a score for each step of a sequence."""
    if class_name is None and isinstance(run.config.task, MultiLabelClassification):
        logits = jax.jit(run.inference.predict)(run.state, batch)
        class_name = (run.classes or ())[int(logits[0].argmax())]  # several may be predicted
    kind = "target" if isinstance(run.config.task, Regression) else "class"
    about = "" if class_name is None else f" for {kind} “{class_name}”"
    title = ", ".join(filter(None, [f"{name}{about}", _prediction(run, batch)]))
    scores = np.asarray(heat)[0]
    if scores.ndim == 2:
        return figures.draw_heatmap(_picture(run, batch), scores, name, title)
    steps = _steps(run, batch)
    return figures.draw_token_heat(steps, scores[: len(steps)], title)


def _read(run: RestoredRun, item: str) -> dict[str, Any]:
    """Reads one input as a batch; for an encoder-decoder model, adds its output as `targets`."""
    if isinstance(run.config.task, Forecasting):
        return read_context(run, item)
    shapes = {name: example.shape[1:] for name, example in run.examples.items()}
    batch = run.transform.read([item], shapes)
    check_tokens(run.config.model, batch)
    model, pairs = run.config.model, run.transform
    if isinstance(model, EncoderDecoder) and isinstance(pairs, FittedTextPairs):
        written = translate(
            model,
            run.variables,
            batch["inputs"],
            lengths=batch["lengths"],
            start_token=START_TOKEN,
            end_token=END_TOKEN,
            max_length=pairs.max_target_length - 1,
        )
        real = [int(token) for token in written[0] if token]  # zeros follow the end
        batch = batch | {"targets": np.array([[START_TOKEN, *real]], np.int32)}
    return batch


def _draw_attention(
    run: RestoredRun, batch: dict[str, Any], maps: dict[str, np.ndarray], layer: str | None
) -> "Figure":
    """Draws attention without padding; for an encoder-decoder model, only cross-attention."""
    keys = _steps(run, batch)
    if "targets" not in batch:
        maps = interpretability.chosen(maps, layer)
        maps = {name: x[:, : len(keys), : len(keys)] for name, x in maps.items()}
        return figures.draw_attention(maps, keys, keys)
    queries = _tokens(run, batch["targets"][0])
    # `self_attn` is the other attention in a decoder, and in the encoder.
    cross_attention = {name: x for name, x in maps.items() if not name.endswith("self_attn")}
    cross_attention = interpretability.chosen(cross_attention, layer)
    maps = {name: x[:, : len(queries), : len(keys)] for name, x in cross_attention.items()}
    return figures.draw_attention(maps, queries, keys)


def _picture(run: RestoredRun, batch: dict[str, Any]) -> np.ndarray:
    """Returns the input as an image; that of a sound has low frequencies at the top."""
    inputs = np.asarray(batch["inputs"])
    if isinstance(run.transform, Spectrogram):
        inputs = run.transform.pictures(inputs)
    return figures.as_picture(inputs[0])


def _steps(run: RestoredRun, batch: dict[str, Any]) -> list[str]:
    """Returns labels for the steps of a sequence: its tokens or, without tokens, step numbers."""
    inputs = np.asarray(batch["inputs"][0])
    length = int(batch["lengths"][0]) if "lengths" in batch else len(inputs)
    if inputs.ndim == 1:
        return _tokens(run, inputs[:length])
    return [str(step) for step in range(length)]


def _tokens(run: RestoredRun, ids: np.ndarray) -> list[str]:
    transform = run.transform
    if isinstance(transform, FittedText | FittedTextPairs):
        return [transform.vocabulary.id_to_token(int(number)) or "?" for number in ids]
    return [str(number) for number in ids]


def _label(run: RestoredRun, class_name: str) -> int:
    """Returns the label of a class by its name, or by its number if classes have no names."""
    if isinstance(run.config.task, Regression):
        return _target(run.config.task, class_name)
    names = run.classes or ()
    if class_name in names:
        return names.index(class_name)
    if not names and class_name.isdecimal():
        return int(class_name)
    listed = ", ".join([*names[:20], *(["…"] if len(names) > 20 else [])])
    classes = f"classes are {listed}" if names else "classes are numbers from 0"
    raise UserError(f"there is no class {class_name!r}; {classes}{did_you_mean(class_name, names)}")


def _target(task: Regression, name: str) -> int:
    """Returns the number of a target by its name."""
    names = task.target_names
    if name not in names:
        raise UserError(
            f"there is no target {name!r}; targets are {', '.join(names)}"
            f"{did_you_mean(name, names)}"
        )
    return names.index(name)


def _prediction(run: RestoredRun, batch: dict[str, Any]) -> str:
    """Returns the predicted class or classes with probabilities, or the numbers, as text.

    It is empty for other outputs, those of a custom task.
    """
    logits = jax.jit(run.inference.predict)(run.state, batch)
    task = run.config.task
    if isinstance(task, Regression):
        values = zip(task.target_names, task.in_own_units(logits)[0], strict=True)
        return "predicted " + ", ".join(f"{name} {value:.4g}" for name, value in values)
    if isinstance(task, MultiLabelClassification):
        found, predicted = np.asarray(task.probabilities(logits))[0], task.predicted(logits)[0]
        shown = [
            f"“{name}” ({probability:.1%})"
            for name, probability, is_predicted in zip(
                run.classes or (), found, predicted, strict=True
            )
            if is_predicted
        ]
        return f"predicted {', '.join(shown) or 'no class'}"
    if not run.has_class_labels:
        return ""
    probabilities = np.asarray(jax.nn.softmax(logits))[0]
    label = int(probabilities.argmax())
    name = run.classes[label] if run.classes else label
    return f"predicted “{name}” ({probabilities[label]:.1%})"


def _first(outputs: interpretability.Outputs) -> dict[str, np.ndarray]:
    """Returns the outputs for the first example of a batch."""
    return {name: np.asarray(x)[0] for name, x in outputs.items()}
