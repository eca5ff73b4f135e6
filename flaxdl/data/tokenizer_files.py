"""Loading of pretrained tokenizers, with the same token ids as in `transformers`."""

import base64
import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flaxdl.errors import UserError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_LOGGER = logging.getLogger(__name__)

FILE_NAME = "tokenizer.json"  # in workdirs and pretrained folders
BERT_FILE_NAME = "vocab.txt"
_BERT_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer")
_NAMED = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
_MAX_GROWTH = 100  # factor by which a tokenizer may lengthen a text; SentencePiece needs up to 33


@contextmanager
def tokenizer_errors(what: str) -> Iterator[None]:
    """Context manager that raises errors of the `tokenizers` library as UserErrors.

    The message starts with `what`. Some of these errors are Rust panics, which do not derive from
    `Exception`.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise UserError(f"{what}: {error}") from error
        raise


def has_tokenizer(folder: Path) -> bool:
    """Returns True if a folder contains a tokenizer.json or a vocab.txt."""
    return any((folder / name).is_file() for name in (FILE_NAME, BERT_FILE_NAME))


def read_tokenizer(path: Path) -> "Tokenizer":
    """Reads a tokenizer.json, a vocab.txt, or a folder with one of them.

    Options and added tokens in the folder apply as in `transformers`. In particular, BERT's options
    determine lowercasing, even if its tokenizer.json differs. If the path is a tokenizer.json, only
    this file is read.

    Raises:
        UserError: if there is no tokenizer, if it cannot be read, or if it may make texts more than
            100 times longer.
    """
    file = _tokenizer_of(path) if path.is_dir() else path
    with tokenizer_errors(f"{file} cannot be read as a tokenizer"):
        is_alone = file is path and file.suffix != ".txt"
        options = {} if is_alone else _options(file.parent)
        read = _read_pieces if file.suffix == ".txt" else _read_json
        tokenizer = read(file, options)
        if options:
            _add_tokens(tokenizer, options)
        if largest_id(tokenizer) >= 2**31:
            raise UserError(f"ids must be below 2**31, got {largest_id(tokenizer)}")
    return tokenizer


def _tokenizer_of(folder: Path) -> Path:
    for name in (FILE_NAME, BERT_FILE_NAME):
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder} contains neither {FILE_NAME} nor {BERT_FILE_NAME}; to write a {FILE_NAME}, call "
        "save_pretrained on a tokenizer of transformers"
    )


def largest_id(tokenizer: "Tokenizer") -> int:
    """Returns the largest token id; -1 if there are no tokens."""
    return max(tokenizer.get_vocab().values(), default=-1)


def _options(folder: Path) -> dict[str, Any]:
    """Returns the options in a folder, with special and added tokens from older file formats."""
    options = _json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in options:
        options |= _json(folder / "special_tokens_map.json")
        special = _special(options)
        options["added_tokens_decoder"] = {
            number: {
                "content": token,
                "special": token in special,
                "normalized": token not in special,
            }
            for token, number in _json(folder / "added_tokens.json").items()
        }
    return options


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file.name}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file.name} must be a JSON object, got a {type(values).__name__}")
    return values


def _special(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the special tokens in options (BERT's five and additional ones) by content."""
    extra = options.get("extra_special_tokens") or options.get("additional_special_tokens") or []
    extra = extra.values() if isinstance(extra, dict) else extra
    named = (options.get(name, token) for name, token in _NAMED.items())
    return {_content(token): token for token in (*named, *extra) if token}


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _read_json(path: Path, options: Mapping[str, Any]) -> "Tokenizer":
    from tokenizers import Tokenizer

    description = json.loads(path.read_text(encoding="utf-8"))
    kind = options.get("tokenizer_class", _BERT_CLASSES[0] if "do_lower_case" in options else None)
    if kind is not None and kind.removesuffix("Fast") in _BERT_CLASSES:
        description["normalizer"] = {"type": "BertNormalizer", **_bert_normalizer(options)}
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        growth = _growth(description.get(part))
        if growth > _MAX_GROWTH:
            raise UserError(
                f"its {part} may make texts {growth:,.0f} times longer, the limit is {_MAX_GROWTH}"
            )
    return Tokenizer.from_str(json.dumps(description))


def _bert_normalizer(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "clean_text": True,
        "handle_chinese_chars": options.get("tokenize_chinese_chars", True),
        "strip_accents": options.get("strip_accents"),  # None: same as lowercase
        "lowercase": options.get("do_lower_case", True),
    }


def _growth(step: Any) -> float:
    """Returns the maximum factor by which a step of a tokenizer may lengthen a text."""
    if not isinstance(step, dict):
        return 1
    match step.get("type"):
        case "Sequence":
            lists = [value for value in step.values() if isinstance(value, list)]
            return math.prod(_growth(part) for parts in lists for part in parts)
        case "Replace":
            pattern = step["pattern"].get("String")  # a regular expression may match empty text
            added = len(step["content"])
            return max(added / len(pattern), 1) if pattern else added + 1
        case "Prepend":
            return len(step["prepend"]) + 1
        case "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"] or "")
            trie = int.from_bytes(charsmap[:4], "little")
            return max(map(len, charsmap[4 + trie :].split(b"\0")), default=0) or 1
        case "TemplateProcessing":
            return max(
                sum("Sequence" in piece for piece in step[kind]) for kind in ("single", "pair")
            )
    return 1


def _read_pieces(path: Path, options: Mapping[str, Any]) -> "Tokenizer":
    """Reads BERT's vocab.txt, with one word piece per line."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pieces = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    ids = {piece.rstrip("\r"): number for number, piece in enumerate(pieces)}
    named = {name: _content(options.get(name) or token) for name, token in _NAMED.items()}
    unknown, start, end = named["unk_token"], named["cls_token"], named["sep_token"]
    missing = [token for token in (unknown, start, end) if token not in ids]
    if missing:
        raise UserError(f"the word pieces lack {', '.join(missing)}")
    _warn_about_case(path, ids, options)
    tokenizer = Tokenizer(
        models.WordPiece(
            ids, unk_token=unknown, max_input_chars_per_word=100, continuing_subword_prefix="##"
        )
    )
    tokenizer.normalizer = normalizers.BertNormalizer(**_bert_normalizer(options))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start}:0 $A:0 {end}:0",
        pair=f"{start}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(token, ids[token]) for token in (start, end)],
    )
    tokenizer.add_tokens(
        [_token(token, is_special=True) for token in named.values() if token in ids]
    )
    return tokenizer


def _warn_about_case(path: Path, ids: Mapping[str, int], options: Mapping[str, Any]) -> None:
    if "do_lower_case" in options:
        return
    upper = [piece for piece in ids if piece != piece.lower() and not piece.startswith("[")]
    if upper:
        _LOGGER.warning(
            "%s has %s word pieces with capital letters, such as %s, but texts are lowercased; to "
            'preserve case, set "do_lower_case": false in tokenizer_config.json in the same folder',
            path,
            f"{len(upper):,}",
            upper[0],
        )


def _add_tokens(tokenizer: "Tokenizer", options: Mapping[str, Any]) -> None:
    """Adds tokens that the options declare with an id, then special tokens without an id.

    Raises:
        UserError: if a token would get an id other than the declared one.
    """
    special = _special(options)
    declared = {int(number): token for number, token in options["added_tokens_decoder"].items()}
    for number, token in sorted(declared.items()):
        content = _content(token)
        tokenizer.add_tokens([_token(token, is_special=content in special)])
        found = tokenizer.token_to_id(content)
        if found != number:
            raise UserError(f"its added token {content!r} must have id {number}, got {found}")
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for content, token in special.items():
        # A special token of BERT that is not in the vocabulary would have no embedding.
        is_missing = content in _NAMED.values() and tokenizer.token_to_id(content) is None
        if content not in known and not is_missing:
            tokenizer.add_tokens([_token(token, is_special=True)])


def _token(token: str | Mapping[str, Any], *, is_special: bool) -> "AddedToken":
    from tokenizers import AddedToken

    if isinstance(token, str):
        return AddedToken(token, special=is_special)
    flags: dict[str, bool] = {name: token[name] for name in _FLAGS if name in token}
    is_special = is_special or token.get("special", False)
    return AddedToken(token["content"], special=is_special, **flags)
