"""What a person types, and what comes back: text, files and exit codes."""

import csv
import dataclasses
import errno
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.own_cache import own_cache
from helpers.raising import raising
from helpers.small_runs import bright_quadrants
from PIL import Image

import flaxdl.cli.train
from flaxdl import Config
from flaxdl.analysis.profiling import profile
from flaxdl.cli import COMMANDS, main
from flaxdl.runs import config_json
from flaxdl.runs.restored import restore
from flaxdl.weights import load_weights

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "flaxdl"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a data set, a config and a trained run."""
    folder = tmp_path_factory.mktemp("project")
    inputs, label = bright_quadrants(80, 0)
    test_inputs, test_label = bright_quadrants(24, 1)
    np.savez(
        folder / "data.npz",
        train_inputs=inputs,
        train_label=label,
        test_inputs=test_inputs,
        test_label=test_label,
        classes=["top left", "top right", "bottom left", "bottom right"],
    )
    (folder / "quadrants.py").write_text(
        '"""Which quarter is bright."""\n'
        "from flaxdl import Config\n"
        "from flaxdl.data import Arrays, Images\n"
        "from flaxdl.models import SimpleCNN\n"
        "from flaxdl.training import AdamW\n"
        "config = Config(\n"
        f"    model=SimpleCNN(num_classes=4), data=Arrays({str(folder / 'data.npz')!r}),\n"
        "    transform=Images(), optimizer=AdamW(learning_rate=3e-3), batch_size=16,\n"
        "    epochs=12, evaluate_every=4, log_every=8)\n"
    )
    code = main(["train", "--config", str(folder / "quadrants.py"), "--workdir", str(folder / "w")])
    assert code == 0
    return folder


def run(capsys, *arguments):
    """Exit code, standard output and standard error of a command."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        code = stopped.code
    out, err = capsys.readouterr()
    return code, out, err


def test_predict_prints_a_table_and_json(project, capsys):
    image, label = bright_quadrants(1, seed=5)
    file = project / "one.png"
    Image.fromarray(image[0, ..., 0]).save(file)
    names = ["top left", "top right", "bottom left", "bottom right"]
    code, out, _ = run(capsys, "predict", "--workdir", project / "w", file)
    assert code == 0
    assert names[label[0]] in out
    code, out, _ = run(capsys, "predict", "--workdir", project / "w", "--json", file, file)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["label"] for line in lines] == [names[label[0]]] * 2
    assert sum(lines[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_predict_takes_folders_and_lists_and_writes_files(project, capsys, monkeypatch, tmp_path):
    folder = tmp_path / "a folder with a name that is far too long for a line of eighty characters"
    (folder / "more").mkdir(parents=True)
    files = [str(folder / name) for name in ("0.png", "1.png", "more/2.png")]
    for file, image in zip(files, bright_quadrants(3, seed=5)[0], strict=True):
        Image.fromarray(image[..., 0]).save(file)
    (folder / "broken.png").write_bytes(b"nothing")
    line = ("predict", "--workdir", project / "w")
    code, out, err = run(capsys, *line, folder)
    assert code == 2
    assert f"1 of 4 items have no prediction:\n  {folder}/broken.png cannot be read" in err
    assert all(f" {file} " in out for file in files)  # nothing is cut
    assert "broken" not in out

    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, err = run(capsys, *line, f"~/{folder.name}", "--to", "~/answers.csv")
    assert (code, out) == (2, f"wrote {tmp_path}/answers.csv: 3 predictions\n")
    with (tmp_path / "answers.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["item", "label", "probability", "error"]
    by_item = {row[0]: row[1:] for row in rows}
    assert list(by_item) == sorted([*files, f"{folder}/broken.png"])
    assert "cannot be read as an image" in by_item[f"{folder}/broken.png"][2]

    (tmp_path / "names.txt").write_text("\n".join(files[:2]))
    names = ("--from-file", "~/names.txt")
    code, _, _ = run(capsys, *line, files[2], *names, "--to", tmp_path / "deep" / "answers.jsonl")
    assert code == 0
    records = (tmp_path / "deep" / "answers.jsonl").read_text().splitlines()
    records = [json.loads(record) for record in records]
    assert [record["item"] for record in records] == [files[2], *files[:2]]
    for record in records:
        assert by_item[record["item"]] == [record["label"], str(record["probability"]), ""]
        assert record["probability"] == record["probabilities"][record["label"]]
    code, out, _ = run(capsys, *line, *names, folder / "broken.png", "--json")
    assert code == 2
    assert [json.loads(text).get("label") for text in out.splitlines()] == [
        None,
        *(record["label"] for record in records[1:]),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["answers.csv", "deep", folder.name, "names.txt"]
    )


def test_evaluate_prints_what_the_run_measured(project, capsys):
    code, out, _ = run(capsys, "evaluate", "--workdir", project / "w", "--json")
    last = json.loads((project / "w" / "metrics.jsonl").read_text().splitlines()[-1])
    assert code == 0
    assert json.loads(out)["accuracy"] == pytest.approx(last["accuracy"], abs=1e-6)
    _, out, _ = run(capsys, "evaluate", "--workdir", project / "w", "--split", "validation")
    assert out.startswith("validation  loss")


def test_flags_change_fields_and_get_a_workdir_of_their_own(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    flags = ("--optimizer.learning-rate", "0.004", "--epochs", "1", "--model.dropout", "0.1")
    code, _, _ = run(capsys, "train", "--config", "quadrants.py", *flags)
    assert code == 0
    (workdir,) = (project / "runs").iterdir()
    assert workdir.name.startswith("quadrants-")
    config = json.loads((workdir / "config.json").read_text())["config"]
    assert config["optimizer"]["learning_rate"] == 0.004
    assert config["model"]["dropout"] == 0.1


def test_export_writes_what_pytorch_reads(project, capsys):
    file = project / "exported" / "quadrants.safetensors"
    code, out, _ = run(capsys, "export", "--workdir", project / "w", "--to", file)
    assert (code, out) == (0, f"wrote {file}\n")
    variables = restore(project / "w").variables
    jax.tree.map(np.testing.assert_array_equal, load_weights(variables, file), variables)


def test_files_are_written_to_the_home_folder(project, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(project)
    (tmp_path / "run").symlink_to(project / "w")
    line = ("--workdir", "~/run", "--to")
    assert run(capsys, "export", *line, "~/a.safetensors")[0] == 0
    assert run(capsys, "visualize", "--what", "filters", *line, "~/b.png")[0] == 0
    assert run(capsys, "report", *line, "~/c.html")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.safetensors", "b.png", "c.html", "run",
    ]  # fmt: skip
    assert not (project / "~").exists()


def test_a_learning_rate_is_found_and_drawn(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    code, out, _ = run(capsys, "train", "--config", "quadrants.py", "--find-learning-rate",
                       "--workdir", "sweep")  # fmt: skip
    assert code == 0
    steepest, tenth, plot = out.splitlines()
    rate = r"--optimizer\.learning-rate \d\.\de-\d\d"
    assert re.fullmatch(rf"{rate}  \(steepest descent\)", steepest)
    assert re.fullmatch(rf"{rate}  \(minimum / 10\)", tenth)
    assert plot == f"plot: {Path('sweep', 'learning_rate.png')}"
    assert [file.name for file in (project / "sweep").iterdir()] == ["learning_rate.png"]


def test_a_dry_run_says_what_a_run_would_be_and_writes_nothing(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    before = sorted(project.rglob("*"))
    line = ("train", "--config", "quadrants.py", "--dry-run")
    code, out, _ = run(capsys, *line, "--workdir", "w", "--seed", "3", "--overfit-batches", "1")
    assert code == 0
    model, data, classes, work, train, validation, verdict = out.splitlines()
    assert model == "SimpleCNN with 618,244 parameters (2.4 MiB)"
    assert data == "72 train, 8 validation, 24 test examples; trains on 1 batch only"
    assert classes.startswith("train / validation / test by class: top left 16 / 2 / 5, ")
    assert work.startswith("48 steps of 16 examples, 12 epochs; float32 on 1 x ")
    assert train.startswith("train       loss 1.")
    assert validation.startswith("validation  loss 1.")
    assert verdict == "dry run passed; nothing was saved"
    assert sorted(project.rglob("*")) == before
    code, out, err = run(capsys, *line, "--init.weights", "nowhere.safetensors")
    assert code == 2
    assert "nowhere.safetensors" in err


def test_a_profile_names_the_most_expensive_modules(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    profiles = []

    def kept(*given):
        profiles.append(profile(*given))
        return profiles[0]

    monkeypatch.setattr("flaxdl.cli.train.profile", kept)
    code, out, _ = run(capsys, "train", "--config", "quadrants.py", "--profile",
                       "--workdir", "traced")  # fmt: skip
    assert code == 0
    sources = {operation.source for operation in profiles[0].operations}
    assert any(source.startswith("classifier.1/dot_general") for source in sources)
    rows = [line.split() for line in out.splitlines() if line.rstrip().endswith("%")]
    modules = {"features.0", "features.3", "features.6", "classifier.1", "classifier.4"}
    assert modules < {row[0] for row in rows}
    fractions = [float(row[-1].removesuffix("%")) for row in rows]
    assert fractions == sorted(fractions, reverse=True)
    assert sum(fractions) == pytest.approx(100, abs=0.5)
    assert re.search(r"a step takes \d+\.\d ms", out)
    assert "tensorboard --logdir traced/profile" in out
    for name in ("*.xplane.pb", "*.trace.json.gz"):
        assert list((project / "traced").glob(f"profile/**/{name}"))


def test_help_shows_every_field(project, capsys):
    code, out, _ = run(capsys, "train", "--config", project / "quadrants.py", "--help")
    assert code == 0
    for flag in (
        "--workdir",
        "--model.num-classes",
        "--optimizer.clip-norm",
        "--optimizer.layer-decay",
        "--data.path",
        "--init.weights",
        "--freeze",
        "--freeze-epochs",
    ):
        assert flag in out
    help_text = " ".join(out.replace("│", " ").split())
    assert "Learning rate at the peak of the schedule. (default: 0.003)" in help_text
    flags = re.findall(r"^ *│? *--([a-z][\w.-]*)", out, re.MULTILINE)
    assert flags[:2] == ["config", "workdir"]
    fields = ["batch-size", "epochs", "precision", "seed", "evaluate-every", "freeze"]
    start = flags.index("batch-size")
    assert flags[start : start + 6] == fields
    assert flags.index("profile") < start  # flags of the command come before those of the config
    groups = re.findall(r"^(?:╭─)? ([\w.-]+) options", out, re.MULTILINE)
    assert groups == [
        *("model", "data", "transform", "task", "init", "optimizer", "optimizer.schedule"),
        *("ema", "selection", "spike-recovery", "mesh", "distributed"),
    ]


def test_help_has_the_words_that_users_of_pytorch_search_for(project, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    code, out, _ = run(capsys, "train", "--config", project / "quadrants.py", "--help")
    assert code == 0
    for words in ("early stopping", "gradient clipping", "gradient accumulation", "freeze",
                  "mixed precision", "label smoothing", "num_workers", "range test"):  # fmt: skip
        assert words in out.lower(), words


def test_help_shows_empty_defaults(project, capsys):
    code, out, _ = run(capsys, "train", "--config", project / "quadrants.py", "--help")
    assert code == 0
    assert "(default: none)" in out
    _, predict, _ = run(capsys, "predict", "--help")
    assert "(optional with --from-file)" in " ".join(predict.replace("│", " ").split())
    assert "(default: )" not in out + predict


def test_help_breaks_lines_only_where_the_terminal_ends(project, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "129")  # in a wider terminal, groups may be side by side
    code, out, _ = run(capsys, "train", "--config", project / "quadrants.py", "--help")
    assert code == 0
    assert "or gradient before the run aborts; checked at every log line of" in out
    assert "the run trains on the first N batches only, each augmented once, without" in out


def test_the_same_command_finds_its_run_in_a_later_version(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setattr("flaxdl.run.train", lambda config, workdir, **_: found.append(workdir))
    found = []
    flags = ("--batch-size", "8", "--seed", "3", "--freeze", "classifier*", "--log-every", "7")
    flags += ("--optimizer.learning-rate", "0.5", "--train-fraction", "0.5", "--epochs", "2")
    assert main(["train", "--config", "quadrants.py", *flags]) == 0
    lines = (
        "optimizer.learning_rate: 0.003 → 0.5",
        'freeze: [] → ["classifier*"]',
        "batch_size: 16 → 8",
        "epochs: 12 → 2.0",
        "train_fraction: 1.0 → 0.5",
        "seed: 0 → 3",
        "log_every: 8 → 7",
    )
    mark = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]
    assert found == [Path("runs") / f"quadrants-{mark}"]


def test_the_mark_of_a_run_knows_every_field():
    fields = {field.name for field in dataclasses.fields(Config) if field.compare}
    assert fields == set(flaxdl.cli.train._HASH_ORDER)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "usage:"),
        (["train", "--config", "CONFIG", "--optimizer.learning-rat", "1"], "learning-rate"),
        (["train", "--config", "CONFIG", "--batch-size", "many"], "batch-size"),
        (["train", "--config", "CONFIG", "--precision", "float8"], "bfloat16"),
        pytest.param(
            ["train", "--config", "CONFIG", "--batch-size", "20"],
            "multiple of the 8 devices",
            marks=pytest.mark.eight_devices,
        ),
        (["train", "--config", "CONFIG", "--data.path", "no.npz"], "no.npz"),
        (["train", "--config", "quadrant.py"], "did you mean 'quadrants.py'"),
        (["train", "--config", "CONFIG", "--workdir", "w", "--seed", "3"], "seed: 0 → 3"),
        (["train", "--config", "CONFIG", "--freeze", "convv.*"], "matches no parameter"),
        (["train", "--config", "CONFIG", "--init.weights", "resnet5"], "did you mean 'resnet50'"),
        (["evaluate", "--workdir", "nowhere"], "nowhere has no run"),
        (["evaluate", "--weights", "resnet50"], "either --workdir"),
        (["evaluate", "--workdir", "w", "--batch-size", "8"], "either --workdir"),
        (["evaluate", "--weights", "resnet51", "--data", "."], "did you mean 'resnet5"),
        (["export", "--workdir", "w", "--to", "model.onnx"], "a .safetensors file, a .stablehlo"),
        (["export", "--workdir", "w", "--to", "folder"], "a BERT"),
        (["evaluate", "--workdir", "w", "--split", "tets"], "test"),
        (["predict", "--workdir", "w"], "at least one file or text"),
        (["predict", "--workdir", "w", "data.npz"], "data.npz cannot be read as an image"),
        (
            ["predict", "--workdir", "w", "x.png", "--to", "x.xlsx"],
            ".csv or .jsonl file, got x.xlsx",
        ),
        (["predict", "--workdir", "w", "x.png", "--to", "x.csv", "--json"], "not both"),
        (["predict", "--workdir", "w", "--from-file", "no.txt"], "no.txt cannot be read"),
        (
            ["predict", "--workdir", "w", "x.png", "--num-tokens", "0"],
            "num_tokens must be at least 1",
        ),
        (["runs", "nowhere"], "there is no folder nowhere; pass the folder"),
        (["train", "--config", "CONFIG", "--epochs", "inf"], "epochs must be positive and finite"),
        (["inspect", "ResNet51"], "did you mean 'ResNet50'"),
        (["inspect", "generate"], "no model 'generate'"),
        (["predcit"], "did you mean 'predict'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(project, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(project)
    code, out, err = run(capsys, *[a.replace("CONFIG", "quadrants.py") for a in arguments])
    assert code == 2
    assert message in " ".join((out + err).replace("│", " ").split())
    assert "Traceback" not in out + err


def test_a_flag_that_was_renamed_is_an_error_with_the_new_flag(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    fields = {
        ("flaxdl.Config", "bunch_size"): "batch_size",
        ("flaxdl.Config", "optimiser"): "optimizer",
        ("flaxdl.training.AdamW", "rate"): "learning_rate",
        ("flaxdl.models.SimpleCNN", "drop_out"): "dropout",
    }
    monkeypatch.setattr(config_json, "_EARLIER_FIELDS", fields)
    monkeypatch.setattr(config_json, "_EARLIER_CLASSES", {"flaxdl.models.Old": "flaxdl.models.New"})
    flags = ("--bunch-size=8", "--optimiser.rate", "0.1", "--model.drop-out", "0", "--epochs", "1")
    for command in ("train", "inspect"):
        code, _, err = run(capsys, command, "--config", "quadrants.py", *flags)
        assert (code, err.splitlines()) == (
            2,
            [
                "--bunch-size has been renamed to --batch-size",
                "--optimiser.rate has been renamed to --optimizer.learning-rate",
                "--model.drop-out has been renamed to --model.dropout",
            ],
        )
    code, _, err = run(capsys, "inspect", "SimpleCNN", "--drop-out", "0")
    assert (code, err) == (2, "--drop-out has been renamed to --dropout\n")
    code, _, err = run(capsys, "inspect", "Old")
    assert (code, err) == (2, "the model Old has been renamed to New\n")


PHOTOS = """
from flaxdl import Config
from flaxdl.data import ImageFolder, Images
from flaxdl.models import SimpleCNN

config = Config(
    model=SimpleCNN(num_classes=2),
    data=ImageFolder("photos", validation_fraction=0.0, test_fraction=0.0, max_unreadable=1),
    transform=Images(size=8), batch_size=16, epochs=1)
"""


@pytest.fixture
def photos_in_a_process(tmp_path, monkeypatch):
    """A working directory with a folder of 24 images, which another process reads."""
    for number in range(24):
        file = tmp_path / "photos" / ("cat" if number < 12 else "dog") / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((9, 9), 50).save(file)
    monkeypatch.setattr("flaxdl.data.prefetch.num_workers", lambda dataset: 1)
    monkeypatch.chdir(tmp_path)


def test_a_mistake_that_a_process_finds_is_one_message(photos_in_a_process, capsys):
    for file in Path("photos", "dog").iterdir():
        file.write_bytes(b"nothing")
    Path("bad_photos.py").write_text(PHOTOS)
    code, _, err = run(capsys, "train", "--config", "bad_photos.py")
    assert code == 2
    assert "images cannot be read, more than max_unreadable = 1" in err
    assert "Traceback" not in err


def start(project, *arguments):
    # A process of its own needs no eight devices, and the checkout is not its working directory.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *map(str, arguments)],
        cwd=project,
        env=environment | {"PYTHONPATH": str(REPOSITORY), "JAX_COMPILATION_CACHE_DIR": own_cache()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_terminated_and_started_again_from_the_shell(project):
    line = ("--config", "quadrants.py", "--workdir", "killed", "--epochs", "500")
    process = start(project, *line)
    metrics = project / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "SIGTERM: checkpoint saved at step" in output
    assert "Traceback" not in output
    again = start(project, *line[:-1], "500", "--accept-changes")
    deadline = time.monotonic() + 120
    text = ""
    assert again.stdout is not None
    while "resuming from step" not in text and time.monotonic() < deadline:
        text += again.stdout.readline()
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=60)
    assert "resuming from step" in text
    assert again.returncode == 130


def in_the_shell(project, line, **environment):
    """What bash makes of a line, in which `train` is `python train.py`."""
    return subprocess.run(
        ["bash", "-c", f'train() {{ "{sys.executable}" "{REPOSITORY}/train.py" "$@"; }}\n{line}'],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_who_stops_reading_is_no_error(project):
    done = in_the_shell(project, "set -o pipefail; train --config quadrants.py --help | head -n 2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: train.py")


@pytest.mark.parametrize("is_unbuffered", [True, False])
def test_a_reader_that_is_gone_is_noticed_without_poll(monkeypatch, is_unbuffered):
    monkeypatch.delattr("select.poll")
    reader, writer = os.pipe()
    os.close(reader)
    with io.TextIOWrapper(os.fdopen(writer, "wb", 0), write_through=is_unbuffered) as unread:
        monkeypatch.setattr("sys.stdout", unread)
        monkeypatch.setitem(COMMANDS, "inspect", lambda *_: print("a line"))
        assert main(["inspect"]) == 0


@pytest.mark.parametrize("has_poll", [True, False])
def test_other_broken_pipes_are_errors(monkeypatch, capfd, has_poll):
    lose_a_worker = raising(BrokenPipeError(errno.EPIPE, "worker"), PACKAGE / "run.py")
    if not has_poll:
        monkeypatch.delattr("select.poll")
    monkeypatch.setitem(COMMANDS, "inspect", lose_a_worker)
    with pytest.raises(BrokenPipeError, match="worker"):
        main(["inspect", "ResNet50"])


def test_colours_are_for_terminals_that_want_them(project):
    line = "train --config quadrants.py --help"
    on_a_terminal = f"export -f train; script -qec '{line}' /dev/null"
    shown = {"TERM": "xterm", "SHELL": "/bin/bash"}
    assert "\x1b" not in in_the_shell(project, line, **shown).stdout
    assert "\x1b[" in in_the_shell(project, on_a_terminal, **shown).stdout
    assert "\x1b[" not in in_the_shell(project, on_a_terminal, NO_COLOR="1", **shown).stdout


COMPLETE = """
source completion.bash
complete_line() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    $(complete -p flaxdl | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    echo "${COMPREPLY[@]}"
}
complete_line flaxdl ""
complete_line flaxdl train --optimizer.mo
complete_line flaxdl train --config quadrants.py --data.pa
complete_line flaxdl evaluate --workdir w --split t
"""


def test_the_shell_completes_commands_flags_and_values(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    for shell in ("zsh", "fish", "bash"):
        code, out, _ = run(capsys, "completion", shell, "quadrants.py")
        assert code == 0
        assert "--optimizer.learning-rate" in out
    (project / "completion.bash").write_text(out)
    commands, flag, field, values = in_the_shell(project, COMPLETE).stdout.splitlines()
    assert set(commands.split()) == {"-h", "--help", *COMMANDS}
    assert flag == "--optimizer.momentum-dtype"
    assert field == "--data.path"
    assert set(values.split()) == {"train", "test"}


@pytest.mark.quick
def test_inspect_prints_layers_and_totals(capsys):
    code, out, _ = run(capsys, "inspect", "LeNet5", "--shape", "32", "32", "1")
    assert code == 0
    assert "conv2" in out
    assert "10×10×16" in out
    assert "61,706" in out
    code, out, _ = run(capsys, "inspect", "TextRNN", "--vocab-size", "50", "--embedding-size", "8",
                       "--hidden-size", "16", "--num-classes", "3")  # fmt: skip
    assert code == 0
    # Embedding, both directions of a GRU, and the linear layer.
    assert f"{50 * 8 + 2 * (3 * 16 * (8 + 16) + 2 * 3 * 16) + 32 * 3 + 3:,}" in out
    code, out, _ = run(capsys, "inspect", "Seq2SeqRNN", "--vocab-size", "50", "--embedding-size",
                       "8", "--hidden-size", "16", "--shape", "10")  # fmt: skip
    assert code == 0
    decoder = next(line.split() for line in out.splitlines() if line.split()[:1] == ["decoder"])
    # The decoder reads embedding and context; it runs ten times.
    assert decoder[2:] == [f"{3 * 16 * (24 + 16) + 2 * 3 * 16:,}", "0.0", "-"]


@pytest.mark.quick
def test_inspect_groups_layers_and_cuts_nothing_when_piped(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = run(capsys, "inspect", "ResNet18", "--shape", "64", "64", "3", "--depth", "1")
    assert code == 0
    rows = [line.split() for line in out.splitlines() if "×" in line and "input" not in line]
    assert [row[0] for row in rows] == ["conv1", "bn1", *(f"layer{n}" for n in range(1, 5))]
    assert rows[2][:3] == ["layer1", "16×16×64", f"{4 * (64 * 64 * 9 + 2 * 64):,}"]
    assert "input: 64×64×3" in out
    assert "receptive field" in out


@pytest.mark.quick
def test_the_version_is_printed(capsys):
    assert run(capsys, "--version") == (0, f"flaxdl {flaxdl.__version__}\n", "")


@pytest.mark.quick
@pytest.mark.parametrize("command", [("train", "--list"), ("configs",)], ids=" ".join)
@pytest.mark.parametrize("in_clone", [True, False])
def test_the_list_names_every_config_with_a_summary(
    command, in_clone, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(REPOSITORY if in_clone else tmp_path)
    code, out, _ = run(capsys, *command)
    assert code == 0
    listed = [line.split()[0] for line in out.splitlines()]
    assert listed == sorted(path.stem for path in (REPOSITORY / "configs").glob("*.py"))
    assert all(len(line.split()) > 3 for line in out.splitlines())


@pytest.mark.quick
def test_configs_prints_a_file_to_edit(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for path in (REPOSITORY / "configs").glob("*.py"):
        assert run(capsys, "configs", path.stem) == (0, path.read_text(), "")
    Path("mine.py").write_text(run(capsys, "configs", "digits_cnn")[1])
    assert flaxdl.load_config("mine.py") == flaxdl.load_config("digits_cnn")
    code, out, err = run(capsys, "configs", "digit_cnn")
    assert (code, out) == (2, "")
    assert "no config file digit_cnn; did you mean 'digits_cnn'?" in err


def test_configs_are_utf_8_in_every_locale(tmp_path):
    for name in ("digits_cnn", "dates_seq2seq"):
        done = subprocess.run(
            [sys.executable, "-m", "flaxdl", "configs", name],
            env=os.environ | {"PYTHONIOENCODING": "cp1252"},  # as on Windows
            capture_output=True,
            check=True,
            timeout=120,
        )
        assert done.stdout == (REPOSITORY / f"configs/{name}.py").read_bytes()
        assert "±".encode() in done.stdout


@pytest.mark.quick
def test_every_command_takes_configs_by_name(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    workdirs = []
    monkeypatch.setattr(flaxdl.cli.train, "command", lambda _, workdir: workdirs.append(workdir))
    for config in ("digits_cnn", str(REPOSITORY / "configs" / "digits_cnn.py")):
        for flags in ((), ("--epochs", "3")):
            assert run(capsys, "train", "--config", config, *flags)[0] == 0
    assert workdirs[0] == Path("runs/digits_cnn")
    assert workdirs[:2] == workdirs[2:]  # and the same hash
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    code, out, _ = run(capsys, "inspect", "--config=digits_cnn")
    assert code == 0
    assert "input: 8×8×1" in out
    code, out, _ = run(capsys, "completion", "fish", "languages_lstm")
    assert code == 0
    assert "--model.embedding-size" in out


def test_the_list_continues_after_a_config_that_cannot_be_read(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    for name, text in (("a", "config = ("), ("b", '"""Something.\n\nMore."""'), ("c", "x = 1")):
        Path(f"configs/{name}.py").write_text(text)
    code, out, _ = run(capsys, "train", "--list")
    assert code == 0
    names, lines = zip(*(line.split(maxsplit=1) for line in out.splitlines()[:3]), strict=True)
    assert names == ("configs/a.py", "configs/b.py", "configs/c.py")
    assert lines[0].startswith("(cannot be read: ")
    assert lines[1:] == ("Something.", "(no docstring)")


@pytest.mark.quick
def test_closed_streams_are_no_error(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)  # as Python does for `>&-`
    assert main(["inspect", "LeNet5", "--shape", "32", "32", "1"]) == 0
    assert main(["inspect", "LeNet6"]) == 2
    for stream in (sys.stdout, sys.stderr):
        stream.close()


@pytest.mark.quick
def test_output_that_cannot_be_written_is_one_message(monkeypatch, capsys):
    for buffering in (1, -1):  # by line, or until the end
        with Path("/dev/full").open("w", buffering) as full:
            monkeypatch.setattr(sys, "stdout", full)
            assert main(["inspect", "LeNet5", "--shape", "32", "32", "1"]) == 2
        message = "the output cannot be written: No space left on device\n"
        assert capsys.readouterr().err == message


@pytest.mark.quick
def test_names_that_the_terminal_cannot_show_are_no_error(monkeypatch, tmp_path):
    with (tmp_path / "out").open("w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setitem(COMMANDS, "inspect", lambda *_: print(os.fsdecode(b"\xff"), "ä"))
        assert main(["inspect"]) == 0
    assert (tmp_path / "out").read_text() == "\\udcff \\xe4\n"


def test_only_the_first_process_draws_and_prints(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setattr("flaxdl.cli.train.is_first", lambda: False)
    for name in ("find_learning_rate", "profile"):
        monkeypatch.setattr(f"flaxdl.cli.train.{name}", lambda *_: None)
    for flag in ("--find-learning-rate", "--profile"):
        code, out, err = run(capsys, "train", "--config", "quadrants.py", flag, "--workdir", "new")
        assert (code, out, err) == (0, "", "")
    assert not (project / "new").exists()


@pytest.mark.parametrize(
    "line",
    [
        ("train", "--config", "NAME.py"),
        ("train", "--config", "quadrants.py", "--workdir", "NAME"),
        ("train", "--config", "quadrants.py", "--workdir", "new", "--data.path", "NAME"),
        ("train", "--config", "quadrants.py", "--workdir", "new", "--init.weights", "NAME"),
        ("evaluate", "--workdir", "NAME"),
        ("predict", "--workdir", "w", "NAME"),
        ("report", "--workdir", "NAME"),
        ("export", "--workdir", "w", "--to", "NAME.safetensors"),
    ],
)
def test_a_name_that_is_too_long_is_one_message(project, capsys, monkeypatch, line):
    monkeypatch.chdir(project)
    code, _, err = run(capsys, *[word.replace("NAME", "n" * 300) for word in line])
    assert code == 2
    assert "File name too long" in err
    assert "Traceback" not in err
    assert not (project / "new").exists()
