"""Vocabularies: learnt from texts, or read from the files that published models come with."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flaxdl.spelling import did_you_mean

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE_NAME = "tokenizer.json"  # in workdirs and published folders
_BERT_FILE_NAME = "vocab.txt"
LEARNT = ("characters", "words")
_PADDING, _UNKNOWN = "<pad>", "<unk>"  # ids 0 and 1


def learn(
    texts: Sequence[str],
    kind: str,
    *,
    max_vocabulary: int = 30_000,
    lowercase: bool = False,
    marks: Sequence[str] = (),
) -> "Tokenizer":
    """Counts characters or words, and numbers them by frequency; `marks` come first, from id 2."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    vocabulary = Tokenizer(models.WordLevel(unk_token=_UNKNOWN))
    # One way to write é, else the same text has two sets of tokens.
    steps = [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
    vocabulary.normalizer = normalizers.Sequence(steps)
    if kind == "characters":
        any_character = Regex("(?m:.)")  # newlines too, in the spelling of Oniguruma
        vocabulary.pre_tokenizer = pre_tokenizers.Split(any_character, "isolated")
        vocabulary.decoder = decoders.Fuse()
    else:
        vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=max_vocabulary,
        special_tokens=[_PADDING, _UNKNOWN, *marks],
        show_progress=False,
    )
    vocabulary.train_from_iterator(texts, trainer)
    return vocabulary


def load(name: str) -> "Tokenizer":
    """Reads a vocabulary: a file, a folder that holds one, or that of a published model.

    Raises:
        ValueError: if there is none, or it cannot be read.
    """
    path = Path(name).expanduser()
    if not path.exists():
        path = _published(name)
    if path.is_dir():
        there = [path / file for file in (FILE_NAME, _BERT_FILE_NAME) if (path / file).is_file()]
        if not there:
            raise ValueError(f"{path} holds neither {FILE_NAME} nor {_BERT_FILE_NAME}")
        path = there[0]
    try:
        return _read_bert(path) if path.suffix == ".txt" else _read(path)
    except Exception as error:  # the library raises no narrower kind
        raise ValueError(f"{path} cannot be read as a tokenizer: {error}") from error


def _published(name: str) -> Path:
    from flaxdl.weights import hub

    if Path(name).suffix in (".json", ".txt"):
        raise ValueError(f"no such tokenizer: {name}")
    try:
        return hub.locate(name)
    except ValueError as error:
        raise ValueError(
            f"tokenizer must be 'characters', 'words', the path of a {FILE_NAME}, a "
            f"{_BERT_FILE_NAME} or a folder with one of them, or a published model, got {name!r}"
            f"{did_you_mean(name, LEARNT) or f'. {error}'}"
        ) from error


def _read(path: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def _read_bert(path: Path) -> "Tokenizer":
    """Reads BERT's own format: a word piece a line, and the options in tokenizer_config.json."""
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    pieces = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    ids = {piece.rstrip("\r"): number for number, piece in enumerate(pieces)}
    missing = [mark for mark in ("[UNK]", "[CLS]", "[SEP]") if mark not in ids]
    if missing:
        raise ValueError(f"the word pieces lack {', '.join(missing)}")
    options = _bert_options(path.with_name("tokenizer_config.json"))
    model = models.WordPiece(
        ids, unk_token="[UNK]", max_input_chars_per_word=100, continuing_subword_prefix="##"
    )
    vocabulary = Tokenizer(model)
    vocabulary.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
        strip_accents=options.get("strip_accents"),  # None: where letters are made small
        lowercase=options.get("do_lower_case", True),
    )
    vocabulary.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    vocabulary.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    marks = [mark for mark in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if mark in ids]
    vocabulary.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks])
    vocabulary.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(mark, ids[mark]) for mark in ("[CLS]", "[SEP]")],
    )
    return vocabulary


def _bert_options(path: Path) -> dict[str, Any]:
    """Published options; without them they are those of BERT's uncased models."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
