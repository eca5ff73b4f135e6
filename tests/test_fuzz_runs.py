"""What a run reads of its workdir and command line, broken at random, is refused in one message.

FLAXDL_FUZZ_CASES of each kind are drawn from a seed, by default 100; tests/weights/test_fuzz.py
does the same to files of weights, test_damage.py to checkpoints.
"""

import io
import json
import os
import tracemalloc
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
from helpers.broken_files import mutate
from helpers.processor_time import earlier_objects_frozen, takes_at_most
from helpers.small_runs import small_config

from flaxdl.cli import main
from flaxdl.data import ArrayDataset, Arrays, Images, Text, TextTable
from flaxdl.models import SimpleCNN
from flaxdl.runs.config_json import to_json
from flaxdl.runs.workdir import Workdir
from flaxdl.training.checkpoints.manifest import find_damage, write_manifest
from flaxdl.training.writers.metrics_file import MetricsFile

CASES = int(os.environ.get("FLAXDL_FUZZ_CASES", "100"))
SEED = int(os.environ.get("FLAXDL_FUZZ_SEED", "0"))
SLOWEST = 2  # seconds of processor time for one case
MOST_MEMORY = 50 * 2**20  # bytes of Python objects

WORDS = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}, {"type": "NFC"}]},
    "pre_tokenizer": {"type": "Whitespace"}, "decoder": {"type": "WordPiece", "prefix": "##",
    "cleanup": True},
    "post_processor": {"type": "TemplateProcessing", "special_tokens": {},
        "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]},
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "run": 1, "aa": 2}, "unk_token": "[UNK]"},
}  # fmt: skip

METRICS = b"".join(
    json.dumps({"step": s, "split": n, "loss": 0.5 / s, "accuracy": None}).encode() + b"\n"
    for s in range(1, 20)
    for n in ("train", "validation")
)


def fuzz(read, cases):
    """Calls `read(case)` for all cases; it returns or raises ValueError."""
    random = np.random.default_rng(SEED)
    count = refused = 0
    tracemalloc.start()
    try:
        with earlier_objects_frozen():
            while count < CASES:
                case = cases(random)
                with takes_at_most(SLOWEST):
                    try:
                        read(case)
                    except ValueError:
                        refused += 1
                assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
                count += 1
    except BaseException as error:
        error.add_note(f"case {count} of FLAXDL_FUZZ_SEED={SEED}: {case!r}")
        raise
    finally:
        tracemalloc.stop()
    assert refused > CASES / 10


def test_broken_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"

    def read(data):
        path.write_bytes(data)
        for line in MetricsFile(path).lines:
            assert type(line["step"]) is int

    fuzz(read, lambda random: mutate(METRICS, METRICS, random))


def test_broken_configs(tmp_path):
    config = small_config(
        data=Arrays("data.npz"), transform=Images(), model=SimpleCNN(num_classes=4)
    )
    folder = Workdir(tmp_path)
    folder.claim(config, {"classes": None, "steps_per_epoch": 3, "example": {}})
    file = tmp_path / "config.json"
    sound = file.read_bytes()
    assert folder.config() == config

    def read(data):
        file.write_bytes(data)
        to_json(folder.config())
        folder.data()

    fuzz(read, lambda random: mutate(sound, sound, random))


def test_broken_manifests(tmp_path):
    (tmp_path / "d").mkdir()
    for name in ("_METADATA", "d/0123456789", "manifest.ocdbt"):
        (tmp_path / name).write_bytes(name.encode())
    write_manifest(tmp_path, 3)
    manifest = tmp_path / "SHA256SUMS"
    sound = manifest.read_bytes()

    def read(data):
        manifest.write_bytes(data)
        assert (find_damage(tmp_path, 3) is None) == (data == sound)
        raise ValueError("as it should be")

    fuzz(read, lambda random: mutate(sound, sound, random))


TEXTS = ["run [DRUG] a", "É b"]


def test_broken_tokenizers(tmp_path, capfd):
    tokenizer = json.dumps(WORDS).encode()
    settings = json.dumps({"do_lower_case": False, "added_tokens_decoder": {
        "3": {"content": "[DRUG]", "special": True}}}).encode()  # fmt: skip

    def read(files):
        for name, data in zip(("tokenizer.json", "tokenizer_config.json"), files, strict=True):
            (tmp_path / name).write_bytes(data)
        text = Text(str(tmp_path), max_length=8).fit(ArrayDataset({"inputs": np.zeros(1)}))
        ids = text.encode(TEXTS, TEXTS)["inputs"]
        text.decode(ids)
        assert ids.min() >= 0

    read((tokenizer, settings))
    fuzz(read, lambda random: (mutate(tokenizer, tokenizer, random), settings))
    fuzz(read, lambda random: (tokenizer, mutate(settings, settings, random)))
    capfd.readouterr()  # Rust reports panics there


def test_broken_tables(tmp_path, caplog):
    rows = "".join(f'"text {n}, ""quoted""";{n % 2}\n' for n in range(9))
    table = f"sep=;\ntext;label\n{rows}".encode()
    lines = b"".join(b'{"text": "a", "label": %d}\n' % (n % 2) for n in range(9))

    def read(case):
        suffix, data = case
        path = tmp_path / f"t.{suffix}"
        path.write_bytes(data)
        splits = TextTable(str(path), validation_fraction=0, test_fraction=0).load(seed=0)
        assert len(splits.train) == len(splits.train.labels()) > 1
        caplog.clear()

    fuzz(read, lambda random: ("csv", mutate(table, lines, random)))
    fuzz(read, lambda random: ("jsonl", mutate(lines, table, random)))


FLAGS = [
    *("--epochs", "--batch-size", "--model.num-classes", "--optimizer", "--optimizer.clip-norm"),
    *("--workdir", "--freeze", "--selection.patience", "--precision", "--data.path", "--seed"),
    *("--=", "--"),
]
VALUES = ["1", "-1", "nan", "1e999", "None", "[]", "\0", "ü" * 9, "a b", "{", "float8", "--help"]


def test_broken_command_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "fuzzed_config.py"
    config.write_text(
        "from flaxdl import Config\nfrom flaxdl.data import Arrays\n"
        "from flaxdl.models import SimpleCNN\n"
        "config = Config(model=SimpleCNN(), data=Arrays('nowhere.npz'))\n"
    )

    def arguments(random):
        words = [w for _ in range(3) for w in (random.choice(FLAGS), random.choice(VALUES))]
        return [str(word) for word in words[: random.integers(1, 7)]]

    def read(words):
        output = io.StringIO()
        with redirect_stdout(output), redirect_stderr(output):
            try:
                code = main(["train", "--config", str(config), *words])
            except SystemExit as stopped:
                code = stopped.code
            except ValueError as error:
                raise AssertionError("a traceback, not a message") from error
        assert code in (0, 2), output.getvalue()  # 0 where it was asked for help
        assert output.getvalue().strip()
        if code == 2:
            raise ValueError(output.getvalue())

    fuzz(read, arguments)
