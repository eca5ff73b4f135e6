"""What a run's best network does with one input, as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.analysis import figures, interpretability
from flaxdl.config import Config
from flaxdl.data.text import FittedText
from flaxdl.data.text_pairs import END_TOKEN, START_TOKEN, FittedTextPairs
from flaxdl.errors import UserError
from flaxdl.models import Seq2SeqTransformer, translate
from flaxdl.runs.restored import RestoredRun, restore
from flaxdl.runs.tokens import check_tokens
from flaxdl.training.precision import matmul_precision

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
    workdir: str | Path, item: str | None, what: What, *, config: Config | None = None
) -> "Figure":
    """Draws what a run's best checkpoint does with an input.

    Args:
        workdir: the run's folder.
        item: a file or a text, as for `predict`; filters need none.
        what: what to draw.
        config: the run's config, where config.json cannot bring it back.

    Raises:
        UserError: if there is no run or checkpoint, the input is missing or cannot be read, or
            the model has nothing of the kind.
    """
    run = restore(workdir, config)
    if what == "filters":
        shapes = run.examples
        batch = {name: np.zeros(x.shape, x.dtype) for name, x in shapes.items() if name != "label"}
    elif item is None:
        raise UserError(f"--what {what} needs an image file or a text, as the run was trained on")
    else:
        batch = _read(run, item)
    model, variables = run.config.model, run.variables
    batch = {name: x for name, x in batch.items() if name not in ("label", "weight")}
    normalized = {**batch, "inputs": run.transform.normalize(jnp.asarray(batch["inputs"]))}
    inputs, others = run.config.task.model_arguments(normalized)
    with matmul_precision("float32"):
        match what:
            case "filters":
                kernels = interpretability.filters(model, variables, inputs, **others)
                return figures.draw_filters(np.asarray(kernels))
            case "features":
                maps = _first(interpretability.feature_maps(model, variables, inputs, **others))
                return figures.draw_feature_maps(_picture(batch), maps)
            case "receptive-field":
                fields = interpretability.receptive_fields(model, variables, inputs, **others)
                return figures.draw_receptive_fields(
                    _picture(batch), {name: np.asarray(field) for name, field in fields.items()}
                )
            case "attention":
                maps = _first(interpretability.attention(model, variables, inputs, **others))
                return _draw_attention(run, batch, maps)
            case "hidden-state":
                states = _first(interpretability.hidden_states(model, variables, inputs, **others))
                steps = _steps(run, batch)
                states = {name: state[: len(steps)] for name, state in states.items()}
                return figures.draw_hidden_states(states, steps)
            case "grad-cam" | "saliency":
                compute, kind = {
                    "grad-cam": (interpretability.grad_cam, "Grad-CAM"),
                    "saliency": (interpretability.saliency, "Saliency"),
                }[what]
                heat = np.asarray(compute(model, variables, inputs, **others))[0]
                title = f"{kind} of {_answer(run, batch)}"
                if heat.ndim == 2:
                    return figures.draw_heat(_picture(batch), heat, title)
                steps = _steps(run, batch)
                return figures.draw_token_heat(steps, heat[: len(steps)], title)


def _read(run: RestoredRun, item: str) -> dict[str, Any]:
    """A batch of the one input; an encoder-decoder gets what it writes itself as its targets."""
    shapes = {name: example.shape[1:] for name, example in run.examples.items()}
    batch = run.transform.read([item], shapes)
    check_tokens(run.config.model, batch)
    model, pairs = run.config.model, run.transform
    if isinstance(model, Seq2SeqTransformer) and isinstance(pairs, FittedTextPairs):
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
    run: RestoredRun, batch: dict[str, Any], maps: dict[str, np.ndarray]
) -> "Figure":
    """Attention over the real tokens; that of a decoder to the text it reads, not to itself."""
    read = _steps(run, batch)
    if "targets" not in batch:
        maps = {name: x[:, : len(read), : len(read)] for name, x in maps.items()}
        return figures.draw_attention(maps, read, read)
    written = _tokens(run, batch["targets"][0])
    crossing = {name: x for name, x in maps.items() if name.endswith("multihead_attn")}
    maps = {name: x[:, : len(written), : len(read)] for name, x in crossing.items()}
    return figures.draw_attention(maps, written, read)


def _picture(batch: dict[str, Any]) -> np.ndarray:
    return figures.as_picture(np.asarray(batch["inputs"][0]))


def _steps(run: RestoredRun, batch: dict[str, Any]) -> list[str]:
    """What the steps of a sequence are called: its tokens, or their numbers."""
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


def _answer(run: RestoredRun, batch: dict[str, Any]) -> str:
    """The most probable class, and how probable it is."""
    logits = jax.jit(run.inference.predict)(run.state, batch)
    probabilities = np.asarray(jax.nn.softmax(logits))[0]
    label = int(probabilities.argmax())
    name = run.classes[label] if run.classes else label
    return f"“{name}” ({probabilities[label]:.1%})"


def _first(outputs: interpretability.Outputs) -> dict[str, np.ndarray]:
    """What was put out for the first example of a batch."""
    return {name: np.asarray(x)[0] for name, x in outputs.items()}
