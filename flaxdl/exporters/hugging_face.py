"""Export of BERT models to folders in the format of the `transformers` library."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from flaxdl.errors import UserError
from flaxdl.filesystem.outputs import writing
from flaxdl.filesystem.paths import local_path
from flaxdl.models.bert_options import BertOptions
from flaxdl.version import __version__
from flaxdl.weights import export_weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPECIAL_TOKENS = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_VERSION_KEY = "flaxdl_version"  # in config.json, marks folders written by this module
_FOLDER_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def export_hugging_face(
    model: nn.Module,
    variables: Mapping[str, Any],
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    tokenizer: "Tokenizer | None" = None,
    max_length: int | None = None,
    problem_type: str | None = None,
) -> None:
    """Writes a BERT model to a folder that `from_pretrained` of `transformers` loads.

    Args:
        model: one of flaxdl's BERT models.
        variables: variables of the model.
        path: output folder, which must be new, empty, or written by this function.
        classes: class names for the logits of a `BertForSequenceClassification`, or names of the
            targets of a regression.
        tokenizer: tokenizer that the model was trained with; by default, none is written.
        max_length: maximum number of tokens per text, stored with the tokenizer; by default, the
            model's `max_length`.
        problem_type: `problem_type` of a `BertForSequenceClassification`, such as `regression`; by
            default, `single_label_classification`.

    Raises:
        UserError: if the model is not a BERT model, if the number of classes does not match, or if
            the folder contains files that are not from an earlier export.
    """
    path = local_path(path)
    if not isinstance(model, BertOptions):
        raise UserError(f"export to a folder needs a BERT, got a {type(model).__name__}")
    description = {**model.to_hugging_face(), _VERSION_KEY: __version__}
    if problem_type is not None and "problem_type" in description:
        description["problem_type"] = problem_type
    if classes is not None and "id2label" in description:
        if len(classes) != len(description["id2label"]):
            raise UserError(
                f"classes must name the {len(description['id2label'])} logits, got {list(classes)}"
            )
        description["id2label"] = {str(number): name for number, name in enumerate(classes)}
        description["label2id"] = {name: number for number, name in enumerate(classes)}
    _check_folder(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            folder, old = Path(scratch) / "new", Path(scratch) / "old"
            folder.mkdir()
            _write_json(description, folder / "config.json")
            export_weights(variables, folder / "model.safetensors")
            if tokenizer is not None:
                length = max_length or model.max_length
                _write_tokenizer(tokenizer, folder, padding=model.padding_index, length=length)
            if path.exists():
                path.rename(old)
            try:
                folder.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise


def _write_tokenizer(
    tokenizer: "Tokenizer", folder: Path, *, padding: int | None, length: int
) -> None:
    # The file contains no truncation and padding, as on the hub, so that callers can choose both.
    tokenizer = type(tokenizer).from_str(tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        "unk_token": getattr(tokenizer.model, "unk_token", None),
        "pad_token": None if padding is None else tokenizer.id_to_token(padding),
        **{
            name: token
            for name, token in _SPECIAL_TOKENS.items()
            if tokenizer.token_to_id(token) is not None
        },
    }
    special = {name: token for name, token in special.items() if token is not None}
    _write_json(special, folder / "special_tokens_map.json")
    settings = {
        # Uses tokenizer.json unchanged, whereas BertTokenizer creates its own normalizer.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    _write_json(settings, folder / "tokenizer_config.json")


def _write_json(value: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_folder(path: Path) -> None:
    """Checks that the folder is new, empty, or contains only an earlier export.

    Raises:
        UserError: if `path` is not a folder, or contains other files; the message lists some.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is not a folder")
    found = {file.name for file in path.iterdir()} if path.exists() else set()
    if not found:
        return
    others = sorted(found.difference(_FOLDER_FILES))
    if not others:
        try:
            is_ours = _VERSION_KEY in json.loads((path / "config.json").read_text("utf-8"))
        except (OSError, ValueError, TypeError):
            is_ours = False
        others = [] if is_ours else sorted(found)
    if others:
        raise UserError(
            f"the folder {path} contains files that are not from an earlier export, "
            f"such as {', '.join(others[:3])}; choose a new folder"
        )
