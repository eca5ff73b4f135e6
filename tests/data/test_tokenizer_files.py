"""Folders of tokenizers give the ids that `transformers` gives, and broken ones a message."""

import base64
import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from flaxdl.data import ArrayDataset, Text
from flaxdl.data.tokenizer_files import read_tokenizer

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*MARKS, "run", "[", "]", "drug", "a", "b", "É", "e", "é", "Run", "<", ">", "##s", "中"]
TEXTS = [
    "run [DRUG]", "a[DRUG]b", "Run runs É é", "[drug] <e1> b </e1>", "[DRUG] a  [X] b", "中a",
    "[MASK]s [mask] [PAD]", "a <E1>", "drugs drugsdrugs", "[DRUG][DRUG]",
]  # fmt: skip


def token(content, **settings):
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {"content": content, **flags, "special": True, **settings}


DECODER = {str(number): token(mark) for number, mark in enumerate(MARKS)}
N = len(PIECES)
FOLDERS = {
    "added_tokens.json": {"added_tokens.json": {"[DRUG]": N, "[X]": N + 1}},
    "added and special": {
        "added_tokens.json": {"[DRUG]": N, "[X]": N + 1},
        "tokenizer_config.json": {"additional_special_tokens": ["[DRUG]"], "cls_token": "[CLS]"},
    },
    "decoder": {"tokenizer_config.json": {"added_tokens_decoder": {
        **DECODER, str(N + 1): token("[X]", lstrip=True, rstrip=True), str(N): token("[DRUG]"),
        str(N + 2): token("<e1>", special=False, normalized=True),
    }}},
    "special without ids": {
        "tokenizer_config.json": {"additional_special_tokens": ["<e1>", "</e1>"]},
    },
    "maps of special tokens": {
        "special_tokens_map.json": {"mask_token": token("[MASK]", lstrip=True)},
        "tokenizer_config.json": {"do_lower_case": False},
    },
    "cased": {"tokenizer_config.json": {
        "do_lower_case": False, "added_tokens_decoder": {str(N): token("[DRUG]", normalized=True)},
    }},
    "single words": {"tokenizer_config.json": {"added_tokens_decoder": {
        **DECODER, str(N): token("drugs", single_word=True, special=False),
    }}},
    "accents": {"tokenizer_config.json": {"strip_accents": False}},
    "chinese": {"tokenizer_config.json": {"tokenize_chinese_chars": False}},
    "piece as added token": {"added_tokens.json": {"run": 5}},
}  # fmt: skip


def make(folder, files, *, as_json=None):
    """A folder with these files, and vocab.txt or a tokenizer.json with these settings."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    if as_json is not None:
        description = json.loads(read_tokenizer(folder).to_str())
        description["normalizer"] |= as_json
        (folder / "tokenizer.json").write_text(json.dumps(description))
        (folder / "vocab.txt").unlink()
    for name, content in files.items():
        if name == "tokenizer_config.json" and as_json is not None:
            content = {"tokenizer_class": "BertTokenizer", **content}
        (folder / name).write_text(json.dumps(content))
    return folder


def same_ids(folder):
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    ours = read_tokenizer(folder)
    for text in TEXTS:
        assert ours.encode(text).ids == reference(text)["input_ids"], text
    assert ours.get_vocab() == reference.get_vocab()


@pytest.mark.parametrize("name", FOLDERS)
def test_added_tokens_and_case_are_those_of_transformers(tmp_path, name):
    same_ids(make(tmp_path / "bert", FOLDERS[name]))


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("name", ["decoder", "cased", "accents", "chinese"])
def test_options_decide_over_tokenizer_json_as_in_transformers(tmp_path, name, lowercase):
    normalizer = {"lowercase": lowercase, "strip_accents": lowercase, "handle_chinese_chars": True}
    same_ids(make(tmp_path / "bert", FOLDERS[name], as_json=normalizer))


def test_a_tokenizer_json_of_another_class_is_taken_as_it_is(tmp_path):
    folder = make(tmp_path / "bert", {}, as_json={"lowercase": False})
    options = {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    same_ids(folder)
    plain = read_tokenizer(folder / "tokenizer.json")
    assert plain.encode("Run").ids == read_tokenizer(folder).encode("Run").ids == [2, 14, 3]


def test_added_tokens_are_counted_and_saved(tmp_path):
    folder = make(tmp_path / "bert", FOLDERS["added_tokens.json"])
    text = Text(str(folder), max_length=8).fit(ArrayDataset({"inputs": np.zeros(1)}))
    assert text.vocab_size == N + 2
    (tmp_path / "run").mkdir()
    text.save(tmp_path / "run")
    restored = Text(str(folder), max_length=8).restore(tmp_path / "run")
    for one in (text, restored):
        assert one.encode(["run [DRUG]"])["inputs"][0, :5].tolist() == [2, 5, N, 3, 0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"added_tokens.json": {"<e>": 50}}, "its added token '<e>' must have id 50, got 19"),
        ({"added_tokens.json": {"run": 6}}, r"its added token 'run' must have id 6, got 5"),
        ({"added_tokens.json": ["run"]}, "vocab.txt cannot .*must be a JSON object, got a list"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"19": {"special": True}}}},
         "cannot be read as a tokenizer: 'content'"),
        ({"tokenizer_config.json": {"cls_token": "<s>"}}, "the word pieces lack <s>"),
    ],
)  # fmt: skip
def test_options_that_contradict_the_vocabulary_are_named(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        read_tokenizer(make(tmp_path / "bert", files))


def test_pieces_with_capitals_that_no_text_can_reach_are_told(tmp_path, caplog):
    folder = make(tmp_path / "bert", {})
    read_tokenizer(folder)
    (message,) = caplog.messages
    assert "has 2 word pieces with capital letters, such as É, but texts are lowercased" in message
    caplog.clear()
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    read_tokenizer(folder)
    assert caplog.messages == []


def described(**parts):
    """A tokenizer.json with these parts."""
    return json.dumps(
        {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
            "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
            "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "[UNK]"},
        }
        | parts
    )  # fmt: skip


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*normalizers):
    return {"type": "Sequence", "normalizers": list(normalizers)}


TENFOLD = replace({"String": "a"}, "a" * 10)
TEMPLATE = [{"Sequence": {"id": "A", "type_id": 0}}]
CHARSMAP = base64.b64encode((4).to_bytes(4, "little") + bytes(4) + b"a" * 200 + b"\0").decode()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"normalizer": sequence(*[TENFOLD] * 9)}, "its normalizer may make texts 1,000,000,000"),
        ({"normalizer": sequence(sequence(TENFOLD, TENFOLD), TENFOLD)}, "1,000 times longer"),
        ({"normalizer": replace({"Regex": "x*"}, "y" * 200)}, "201 times longer, the limit is 100"),
        ({"normalizer": {"type": "Prepend", "prepend": "z" * 200}}, "201 times longer"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}}, "200 times"),
        ({"decoder": {"type": "Sequence", "decoders": [TENFOLD] * 3}}, "its decoder may .* 1,000"),
        ({"post_processor": {"type": "TemplateProcessing", "single": TEMPLATE * 200, "pair": [],
                             "special_tokens": {}}}, "its post_processor may make texts 200"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "precompiled"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 2**32 - 1}, "unk_token": "a"}},
         "ids must be below 2..31, got 4294967295"),
        ({"normalizer": {"type": "Unheard of"}}, ""),
        ({"normalizer": 3}, ""),
    ],
)  # fmt: skip
def test_tokenizers_that_are_broken_or_meant_to_break_are_refused(tmp_path, parts, message, capfd):
    (tmp_path / "tokenizer.json").write_text(described(**parts))
    with pytest.raises(
        ValueError, match=f"tokenizer.json cannot be read as a tokenizer: .*{message}"
    ):
        read_tokenizer(tmp_path)
    capfd.readouterr()  # Rust reports a panic there


def test_growth_that_tokenizers_have_is_allowed(tmp_path):
    normalizer = sequence(
        {"type": "Prepend", "prepend": "▁"}, replace({"String": " "}, "▁"), {"type": "NFKC"},
        replace({"Regex": " {2,}"}, " "),
    )  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(described(normalizer=normalizer))
    assert isinstance(read_tokenizer(tmp_path), Tokenizer)


def test_texts_that_a_tokenizer_cannot_encode_are_an_error(tmp_path, capfd):
    (tmp_path / "tokenizer.json").write_text(described())
    text = Text(str(tmp_path)).fit(ArrayDataset({"inputs": np.zeros(1)}))
    with pytest.raises(ValueError, match="the texts cannot be tokenized: .*UNK"):
        text.encode(["c"])
    single = [{"SpecialToken": {"id": "missing", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    (tmp_path / "tokenizer.json").write_text(described(post_processor=template))
    with pytest.raises(ValueError, match=r"tokenize"):  # a panic of Rust
        Text(str(tmp_path)).fit(ArrayDataset({"inputs": np.zeros(1)})).encode(["a"])
    capfd.readouterr()


def test_other_interruptions_pass():
    from flaxdl.data.tokenizer_files import tokenizer_errors

    with pytest.raises(KeyboardInterrupt), tokenizer_errors("reading"):
        raise KeyboardInterrupt
