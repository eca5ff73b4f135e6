"""The pages in docs/: their Python runs, their commands exist, and what they name is there.

The Python blocks of a page run in order and share their names, in a folder with the files that the
pages speak of. Blocks titled "PyTorch" have names of their own, and those titled "Both" see all.
Commands are parsed by the command line itself, and run where that is cheap. Instead of downloads
there are weights that are all the same.
"""

import dataclasses
import functools
import importlib
import inspect
import io
import json
import re
import shlex
import shutil
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import soundfile
import tyro
import yaml
from PIL import Image

import flaxdl
from flaxdl.cli import COMMANDS, main
from flaxdl.pretrained import pretrained_model
from flaxdl.weights import export_weights
from flaxdl.weights.hub import pretrained_weights

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("guides/*.md")])

FENCE = re.compile(r"^```([\w{}-]*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r"\n\n([^\n]*):\n\n\Z")  # a line of its own above a block
SHELLS = ("console", "sh", "yaml")
# Programs other than flaxdl that the pages call.
PROGRAMS = {".", "cd", "eval", "gcloud", "git", "ls", "pip", "pytest", "python3", "tensorboard"}
CHEAP = {"--help", "--list", "--version", "--dry-run"}
ENDS = {"&", "&&", "|", "||", ";", "(", ")"}
# Flags of other programs; `--distributed`, which stands for a group of flags; and a flag of
# RandAugment, which no config uses (tests/runs/test_augmented_runs.py tests it).
OTHER_FLAGS = {
    "--transform.augment.magnitude",
    *("--require-hashes", "--no-deps", "--signal", "--logdir", "--distributed"),
    *("--gpu", "--parts", "--seeds", "--xla_cpu_prefer_vector_width"),
}

every_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda path: path.relative_to(DOCS).with_suffix("").as_posix()
)


class Block(NamedTuple):
    """A fenced block: its language, the title above it, its text, and the lines before it."""

    language: str
    title: str
    text: str
    lines: int = 0


def blocks(page):
    text = page.read_text("utf-8")
    for found in FENCE.finditer(text):
        title = TITLE.search(text[: found.start()])
        lines = text[: found.start(2)].count("\n")
        yield Block(found[1], title[1] if title else "", found[2], lines)


def prose(page):
    """The text of a page without its fenced blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the files that the pages speak of, among them a trained run."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("benchmarks", "configs", "docs", "train.py"):
        (folder / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)
    for number in range(96):
        kind = ("cat", "dog", "parrot")[number % 3]
        path = folder / "pets" / kind / f"{kind}{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), np.uint8)).save(path)
    for number in range(64):
        path = folder / "birds" / ("owl", "wren")[number % 2] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.integers(-900, 900, 8000).astype(np.int16), 16_000)
    words = np.array(["dull", "slow", "fine", "warm", "great", "plot", "end", "cast"])
    rows = [f"{' '.join(rng.choice(words, 6))},{number % 3 + 1}" for number in range(150)]
    (folder / "reviews.csv").write_text("\n".join(["review,stars", *rows, ""]))
    write_weights(folder / "resnet18.safetensors").rename(folder / "resnet18.pth")
    config = flaxdl.load_config(ROOT / "configs" / "digits_cnn.py")
    config = dataclasses.replace(config, epochs=2, evaluate_every=1, log_every=10)
    flaxdl.train(config, folder / "runs" / "digits_cnn", report=False)
    return folder


def write_weights(path):
    """Writes weights for the ImageNet model that a file is named after; returns the path."""
    model = pretrained_model(re.split(r"[-.]", path.name)[0])
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32))
    weights = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), shapes)
    export_weights(weights, path)
    return path


@pytest.fixture
def here(project, tmp_path, monkeypatch):
    """A copy of the project as working directory, where downloads give weights of our own."""
    folder = tmp_path / "project"
    shutil.copytree(project, folder, symlinks=True)
    monkeypatch.chdir(folder)

    def download(url, path, sha256):
        return write_weights(tmp_path / Path(path).with_suffix(".safetensors").name)

    for module in ("flaxdl.pretrained", "flaxdl.weights.hub"):
        monkeypatch.setattr(f"{module}.download", download)
    return folder


@every_page
def test_the_python_of_a_page_runs_and_its_commands_exist(page, here):
    names = run_page(page)
    if page.name == "from_pytorch.md":
        check_names_of_from_pytorch(names)


def run_page(page):
    """Runs the Python of a page and checks its commands, in order; returns the names."""
    theirs, ours = {}, {"__name__": "__main__"}
    for block in blocks(page):
        if block.language in SHELLS:
            for command in commands(block):
                check_command(command)
        if block.language != "python":
            continue
        if block.title.endswith(".py`"):  # a config file, which commands refer to
            Path(block.title.strip("`")).write_text(block.text)
        code = compile("\n" * block.lines + block.text, page, "exec")
        if not block.title.startswith(("PyTorch", "Both")):
            exec(code, ours)
        elif find_spec("torch") is not None:
            exec(code, theirs | ours if block.title == "Both" else theirs)
    return ours


def check_names_of_from_pytorch(names):
    assert names["logits"].shape == (8, 10)
    assert 0 <= names["accuracy"] <= 1
    assert names["test_logits"].shape == (8, 4)
    assert 0 <= names["striped_accuracy"] <= 1
    assert np.isfinite(names["absolute_error"])
    assert int(names["state"].step) == 2
    assert pretrained_weights(names["photographs"].init.weights).name == "resnet50"
    jax.tree.map(np.testing.assert_array_equal, names["again"], names["variables"])
    assert names["resnet_variables"]["params"]["fc"]["bias"].shape == (1000,)


@pytest.mark.quick
@every_page
def test_every_block_is_of_a_known_kind(page):
    found = list(blocks(page))
    languages = {x.language for x in found if not x.language.startswith("{")}  # directives of MyST
    assert languages <= {"python", "text", *SHELLS}
    assert page.read_text("utf-8").count("```") == 2 * len(found)


# --------------------------------------------------------------------------------------- commands


class Parsed(BaseException):
    """Raised instead of running a command whose arguments were accepted."""


def commands(block):
    """Yields the commands of a block as lists of words, without the output that is shown."""
    if block.language == "yaml":
        yield from _in_yaml(yaml.safe_load(block.text))
        return
    text = block.text.replace("\\\n", " ")
    if block.language == "console":
        text = "".join(f"{line[2:]}\n" for line in text.splitlines() if line.startswith("$ "))
    waiting = ""
    for line in text.splitlines():
        waiting += f"{line}\n"
        try:
            words = _words(waiting)
        except ValueError:  # the quotation ends in a later line
            continue
        waiting = ""
        yield from _commands_in(words)
    assert not waiting, waiting


def _in_yaml(value):
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _in_yaml(item)
    elif isinstance(value, str) and "train.py" in value:
        yield from _commands_in(_words(value.replace("$JOB_COMPLETION_INDEX", "0")))


def _words(text):
    words = shlex.shlex(text, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    return list(words)


def _commands_in(words):
    words = [word for before, word in pairwise(["", *words]) if ">" not in (before, word)]
    command = []
    for word in [*words, ";"]:
        if word not in ENDS:
            command.append(word)
        elif command:
            yield command
            command = []
    for word in words:
        if re.search(r"\b(train\.py|flaxdl)\s", word):  # a command in quotation marks
            yield from _commands_in(_words(re.sub(r"^(--\w+=|\$\()|\)$", "", word)))


def check_command(words):
    """Parses a command of flaxdl, or checks that another one is known."""
    start = words.index("python") + 1 if "python" in words else None
    if start is not None and words[start] == "train.py":
        call(["train", *words[start + 1 :]], program="train.py")
    elif start is not None and words[start : start + 2] == ["-m", "flaxdl"]:
        call(words[start + 2 :], program="python -m flaxdl")
    elif start is not None:
        assert (ROOT / words[start]).is_file(), words
    elif words[0] == "flaxdl":
        call(words[1:], program="flaxdl")
    else:
        assert words[0] in PROGRAMS, words


def call(arguments, program):
    """Runs a cheap command; stops others once their arguments are accepted."""
    is_cheap = bool(CHEAP & {*arguments}) or arguments[:1] == ["runs"]
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patches:
        if not is_cheap:
            patches.setattr(tyro, "cli", functools.partial(_parse, tyro.cli))
        try:
            with redirect_stdout(output), redirect_stderr(output):
                code = main(arguments, program)
        except Parsed:
            return
        except SystemExit as stopped:
            code = stopped.code
    assert code == 0, f"{shlex.join([program, *arguments])}\n{output.getvalue()}"
    assert is_cheap, f"{arguments} were not parsed by tyro"


def _parse(cli, command, **keywords):
    if inspect.isclass(command):
        cli(command, **keywords)
        raise Parsed

    @functools.wraps(command)
    def parsed(*_, **__):
        raise Parsed

    return cli(parsed, **keywords)


@pytest.mark.quick
@pytest.mark.parametrize(
    "line",
    [
        "python train.py --config configs/digits_cnn.py --epoch 3",
        "python train.py --config configs/digits_cnn.py --epochs three",
        "flaxdl predict --workdir runs/digits_cnn --form-file new.txt",
        "python -m flaxdl evaluat --workdir runs/digits_cnn",
        "python benchmarks/nothing.py",
        "flaxdl",
        "conda install flaxdl",
    ],
)
def test_a_wrong_command_is_found(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    (command,) = commands(Block("console", "", f"$ {line}\noutput\n"))
    with pytest.raises(AssertionError):
        check_command(command)


@pytest.mark.quick
def test_commands_are_found_in_quotations_and_after_variables():
    text = (
        'ssh --command="\n  cd flaxdl && python train.py --list"\nA=1 python \\\n  train.py --x 1'
    )
    found = list(commands(Block("sh", "", text)))
    assert ["python", "train.py", "--list"] in found
    assert ["A=1", "python", "train.py", "--x", "1"] in found
    (_, inner) = commands(Block("sh", "", 'eval "$(flaxdl completion bash a.py)"'))
    assert inner == ["flaxdl", "completion", "bash", "a.py"]
    (copied,) = commands(Block("console", "", "$ flaxdl configs a > b.py\n"))
    assert copied == ["flaxdl", "configs", "a"]


# ---------------------------------------------------------------------------- what the pages name


@pytest.fixture(scope="module")
def known_flags():
    """All flags of all commands, from their help texts."""
    names = (
        *("digits_cnn", "dates_seq2seq", "docs_rnn_lm", "docs_bert_mlm"),
        *("finetune_bert", "finetune_resnet50", "imagenet_vgg16"),
    )
    lines = [["train", "--config", str(ROOT / "configs" / f"{name}.py")] for name in names]
    lines += [[name] for name in COMMANDS if name not in ("train", "inspect")]
    lines += [["inspect", "ResNet50"], ["inspect", *lines[0][1:]]]
    output = io.StringIO()
    for line in lines:
        with redirect_stdout(output), pytest.raises(SystemExit):
            main([*line, "--help"])
    return {*re.findall(r"--[a-z][\w.-]*", output.getvalue()), "--version", "--list"}


@every_page
def test_flags_exist(page, known_flags):
    spans = re.findall(r"`([^`]+)`", prose(page))
    named = {flag for span in spans for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", span)}
    assert named - OTHER_FLAGS <= known_flags


@pytest.mark.quick
@every_page
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not link.startswith("https://"):
            assert (page.parent / link.partition("#")[0]).exists(), link


@pytest.mark.quick
@every_page
def test_files_exist(page):
    folders = "benchmarks|configs|docs|flaxdl|notebooks|tests"
    for path in re.findall(rf"(?<![\w/])((?:{folders})/[\w/.]+\.\w+)", page.read_text("utf-8")):
        assert path == "configs/NAME.py" or (ROOT / path).exists(), path


@pytest.mark.quick
@every_page
def test_names_exist(page):
    for name in re.findall(r"`(flaxdl(?:\.\w+)+)", prose(page)):
        assert resolve(name) is not None, name


def resolve(name):
    """The module, class, function or attribute of a dotted name; None if there is none."""
    try:
        return importlib.import_module(name)
    except ImportError:
        owner, _, last = name.rpartition(".")
        return getattr(resolve(owner), last, None) if owner else None


# ------------------------------------------------------------------------------ what tables repeat


@pytest.mark.quick
def test_measured_errors_are_those_of_the_results():
    measured = json.loads((ROOT / "benchmarks/results/parity.json").read_text())["errors"]
    table = section("benchmarks.md", "Agreement with PyTorch")
    written = dict(re.findall(r"`(\w+)` \| ([\d.e-]+) \|", table))
    assert written == {name: f"{error:.1e}" for name, error in measured.items()}


@pytest.mark.quick
def test_measured_speeds_are_those_of_the_results():
    columns = []
    for vendor in ("amd", "intel"):
        results = (ROOT / f"benchmarks/results/speed_{vendor}.md").read_text()
        for part in results.split("| Inference |"):
            columns.append(dict(re.findall(r"^\| `?([\w ]+?)`? \|[^|]*\| ([\d.]+)", part, re.M)))
    table = section("benchmarks.md", "Speed on a CPU")
    rows = re.findall(r"^\| `?([a-z][\w ]+?)`? ((?:\| [\d.]+ [^|]*){4})\|$", table, re.M)
    written = {name: re.findall(r"\| ([\d.]+)", cells) for name, cells in rows}
    assert written == {name: [column[name] for column in columns] for name in columns[0]}


@pytest.mark.quick
def test_measured_augmentations_are_those_of_the_results():
    results = json.loads((ROOT / "benchmarks/results/augmentation_amd.json").read_text())
    measured = results["images_per_second_of_a_core"]
    table = section("benchmarks.md", "Data augmentation")
    rows = re.findall(r"^\| `?([\w ]+?)`? \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \|$", table, re.M)
    assert {"random resized crop to 224", "flip", "RandAugment"} <= {name for name, *_ in rows}
    for name, *written in rows:
        row = measured[name]
        assert written == [f"{row['ours']:,}", f"{row['pillow']:,}", f"{row['ratio']:.2f}"], name


@pytest.mark.quick
def test_measured_reversals_are_those_of_the_results():
    results = json.loads((ROOT / "benchmarks/results/bottleneck.json").read_text())["models"]
    table = section("benchmarks.md", "The bottleneck of an encoder-decoder")
    titles = {"GRU without attention": "none", "GRU with attention": "dot"}
    header, *rows = (line.strip("|").split("|") for line in table.splitlines() if line[:1] == "|")
    lengths = [cell.strip().replace(" to ", "-") for cell in header[2:]]
    written = {}
    for title, size, *cells in rows[1:]:
        kind = titles.get(title.strip(), title.strip().lower())
        written[kind, size.strip()] = [cell.strip() for cell in cells]
    assert written == {
        (kind, size): [f"{100 * one['exact_match'][group]:.1f} %" for group in lengths]
        for kind, sizes in results.items()
        for size, one in sizes.items()
    }


@pytest.mark.quick
def test_measured_effects_of_pretraining_are_those_of_the_results():
    results = json.loads((ROOT / "benchmarks/results/pretraining.json").read_text())["test"]
    arms = {name: list(rates.values()) for name, rates in results.items()}
    assert all(len(rates) == 1 and len(rates[0]) == 5 for rates in arms.values())
    table = section("benchmarks.md", "Pretraining on unlabeled text")
    rows = re.findall(r"^\| ([\d,]+) \| (.+?) \| (.+?) \| (.+?) \|$", table, re.M)
    assert len(rows) == len(arms) / 2
    for count, *written in rows:
        random, pretrained = (
            100 * np.array(list(arms[f"{arm}, {count.replace(',', '')}"][0].values()))
            for arm in ("random", "pretrained")
        )
        gain = pretrained - random
        assert written == [
            *(
                f"{x.mean():.1f} % ({x.min():.1f} % to {x.max():.1f} %)"
                for x in (random, pretrained)
            ),
            f"{gain.mean():+.1f} ({gain.min():+.1f} to {gain.max():+.1f})",
        ]


@pytest.mark.quick
def test_measured_sounds_are_those_of_the_results():
    results = json.loads((ROOT / "benchmarks/results/sounds.json").read_text())["configs"]
    table = section("benchmarks.md", "Sounds with noise")
    header, _, *rows = (
        line.strip("|").split("|") for line in table.splitlines() if line[:1] == "|"
    )
    groups = [cell.strip().replace(" to ", "-").removesuffix(" dB") for cell in header[2:]]
    written = {name.strip(" `"): [cell.strip() for cell in cells] for name, *cells in rows}
    assert written == {name: sound_cells(runs, groups) for name, runs in results.items()}
    for name, runs in results.items():
        doc = (ROOT / f"configs/{name}.py").read_text()
        low, high = (f"{100 * f(one['accuracy'] for one in runs.values()):.1f}" for f in (min, max))
        found = re.search(
            r"accuracy: ([\d.]+ % ± [\d.]+) \(five\s+seeds, ([\d.]+) to ([\d.]+)\)", doc
        )
        assert found is not None
        assert list(found.groups()) == [sound_cells(runs, [])[0], low, high]
        assert len(runs) == 5


def sound_cells(runs, groups):
    """Accuracy in percent: mean and deviation over seeds, then the mean of each group."""
    total = [100 * run["accuracy"] for run in runs.values()]
    means = (np.mean([100 * run["by_snr"][group] for run in runs.values()]) for group in groups)
    cells = [f"{np.mean(total):.1f} % ± {np.std(total, ddof=1):.1f}"]
    return [*cells, *(f"{mean:.1f} %" for mean in means)]


def section(page, title):
    return (DOCS / page).read_text("utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
