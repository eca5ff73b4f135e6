"""Whose mistake an error is: exit code, message and traceback of the command line."""

import builtins
import errno
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.raising import raising
from helpers.small_runs import bright_quadrants
from PIL import Image

import flaxdl
from flaxdl.cli import main
from flaxdl.config import Config
from flaxdl.errors import UserError
from flaxdl.tracebacks import frames_of, user_frames
from flaxdl.training.distributed.collectives import run_on_all

CONFIG = '''"""A config with a model, a source and a transform of its own."""
from dataclasses import dataclass

import jax.numpy as jnp
from flaxdl import Config
from flaxdl.data import Arrays, Images
from flaxdl.models import SimpleCNN


class Model(SimpleCNN):
    def __call__(self, inputs, *, train=False):
        MODEL
        return super().__call__(inputs, train=train)


@dataclass(frozen=True)
class Source(Arrays):
    def load(self, seed):
        SOURCE
        return super().load(seed)


@dataclass(frozen=True)
class Transform(Images):
    def prepare(self, batch, draws):
        TRANSFORM
        return super().prepare(batch, draws)


config = Config(
    model=Model(num_classes=4), data=Source("data.npz"), transform=Transform(), batch_size=16,
    epochs=1)
'''
NUMBERS = {"MODEL": 12, "SOURCE": 19, "TRANSFORM": 26}  # lines


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with data."""
    inputs, label = bright_quadrants(40, 0)
    np.savez(tmp_path / "data.npz", train_inputs=inputs, train_label=label)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, **lines):
    text = CONFIG
    for place in NUMBERS:
        text = text.replace(f"        {place}\n", f"        {lines.get(place, 'pass')}\n")
    Path(f"{name}.py").write_text(text)
    return f"{name}.py"


def train(capsys, file, *flags):
    """Exit code and standard error of a dry run."""
    code = main(["train", "--config", file, "--dry-run", *flags])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "line", "error", "function"),
    [
        ("MODEL", "inputs + [1]", "TypeError", "__call__"),
        ("MODEL", "train and inputs + [1]", "TypeError", "__call__"),  # in the jitted step only
        ("MODEL", "jnp.zeros(3) + jnp.zeros(4)", "TypeError", "__call__"),  # raised by JAX
        ("SOURCE", "{}['train']", "KeyError: 'train'", "load"),
        ("SOURCE", "open('no.txt')", "FileNotFoundError", "load"),
        ("SOURCE", "int('no number')", "ValueError", "load"),  # not one of ours
        ("TRANSFORM", "1 / 0", "ZeroDivisionError", "prepare"),
    ],
)
def test_an_error_in_the_users_code_is_shown_with_its_place(
    project, capsys, place, line, error, function
):
    code, err = train(capsys, write(f"own_{place.lower()}", **{place: line}))
    assert code == 2
    assert "Traceback (most recent call last)" in err
    assert f"    {line}" in err
    assert error in err
    assert err.splitlines()[-1] == (
        f"this error was raised by your code: own_{place.lower()}.py, line {NUMBERS[place]}, "
        f"in {function}"
    )


def test_an_error_of_flaxdl_in_the_users_code_is_one_message(project, capsys):
    code, err = train(capsys, write("misuse", SOURCE="Arrays('no.npz').load(seed)"))
    assert code == 2
    place = f"misuse.py, line {NUMBERS['SOURCE']}"
    assert err == f"no such file: no.npz (in your code: {place})\n"


@pytest.fixture
def photos(project, monkeypatch):
    """A folder of images that another process decodes."""
    for number in range(24):
        file = project / "photos" / ("cat" if number < 12 else "dog") / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((9, 9), 50).save(file)
    monkeypatch.setattr("flaxdl.data.prefetch.num_workers", lambda dataset: 1)


PHOTOS = """
import multiprocessing
from dataclasses import dataclass
from flaxdl import Config
from flaxdl.data import ImageFolder, Images
from flaxdl.models import SimpleCNN

class Strange(Exception):
    def __init__(self, name, number):  # Python cannot copy it to another process
        super().__init__(f"{name} is strange")

@dataclass(frozen=True)
class Broken(Images):
    def prepare(self, batch, draws):
        if multiprocessing.parent_process() is None:
            return super().prepare(batch, draws)
        LINE

config = Config(
    model=SimpleCNN(num_classes=2),
    data=ImageFolder("photos", validation_fraction=0.0, test_fraction=0.0),
    transform=Broken(size=8), batch_size=16, epochs=1)
"""


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("batch['nothing']", "KeyError: 'nothing'"),
        ("int('no number')", "ValueError: invalid literal for int()"),
        ("raise Strange('cat', 3)", "RuntimeError: Strange: cat is strange"),
    ],
)
def test_an_error_in_a_worker_process_is_shown_with_its_place(photos, capsys, line, error):
    Path("broken_photos.py").write_text(PHOTOS.replace("LINE", line))
    code, err = train(capsys, "broken_photos.py")
    assert code == 2
    assert error in err
    assert f"    {line}" in err
    place = "broken_photos.py, line 17, in prepare"
    assert err.splitlines()[-1] == f"this error was raised by your code: {place}"


def test_a_library_that_cython_compiled_is_not_the_users_code(project, capsys):
    Path("bad.parquet").write_bytes(b"PAR1 is no table PAR1")
    Path("of_a_table.py").write_text(
        "from flaxdl import Config\n"
        "from flaxdl.data import Text, TextTable\n"
        "from flaxdl.models import TextRNN\n"
        "config = Config(\n"
        "    model=TextRNN(None, 8, 8, None), data=TextTable('bad.parquet'), transform=Text())\n"
    )
    code, err = train(capsys, "of_a_table.py")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "bad.parquet" in err
    with pytest.raises(TypeError, match="SeedSequence") as raised:
        run_on_all(partial(np.random.default_rng, 1.5))
    assert any(frame.filename.endswith(".pyx") for frame in frames_of(raised.value))
    assert user_frames(raised.value) == []


def test_a_bug_of_flaxdl_in_a_config_file_shows_all_of_its_traceback(project, capsys, monkeypatch):
    monkeypatch.setattr(Config, "__post_init__", raising(TypeError("a bug"), PACKAGE / "run.py"))
    code, err = train(capsys, write_plain("of_a_bug"))
    assert code == 2
    assert f'File "{PACKAGE / "run.py"}", line 3, in broken' in err
    assert err.splitlines()[-1] == "of_a_bug.py, line 4: TypeError: a bug"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG])
def test_an_error_of_the_system_hides_no_line_of_the_user(project, capsys, number):
    line = f"raise OSError({number}, 'It says so', 'some/file')"
    code, err = train(capsys, write(f"system_{number}", SOURCE=line))
    assert code == 2
    assert err.splitlines()[-1].startswith(f"this error was raised by your code: system_{number}")


def test_a_full_disk_is_one_message(project, capsys, monkeypatch):
    error = OSError(errno.ENOSPC, "No space left on device", "some/file")
    monkeypatch.setattr("flaxdl.cli.train.set_up", raising(error, PACKAGE / "run.py"))
    code, err = train(capsys, write_plain("of_a_full_disk"))
    assert (code, err) == (2, "No space left on device: some/file\n")


PACKAGE = Path(flaxdl.__file__).parent


def write_plain(name):
    """A config without code of its own."""
    Path(f"{name}.py").write_text(
        "from flaxdl import Config\n"
        "from flaxdl.data import Arrays\n"
        "from flaxdl.models import SimpleCNN\n"
        "config = Config(model=SimpleCNN(num_classes=4), data=Arrays('data.npz'))\n"
    )
    return f"{name}.py"


@pytest.mark.parametrize(
    "file",
    [
        PACKAGE / "run.py",  # a bug of ours
        Path(np.__file__).parent / "broken.py",  # of an installed library
        Path(json.__file__),  # of Python's
        "<string>",
    ],
)
@pytest.mark.parametrize("error", [TypeError, ValueError, OSError])
def test_a_bug_is_raised(project, monkeypatch, file, error):
    monkeypatch.setattr("flaxdl.data.Arrays.load", raising(error("a bug"), file))
    with pytest.raises(error, match="a bug"):
        main(["train", "--config", write_plain("plain"), "--dry-run"])


def test_a_bug_behind_no_line_of_the_user_is_raised(project, monkeypatch):
    monkeypatch.setattr("flaxdl.cli.train.set_up", builtins.divmod)  # called wrongly
    with pytest.raises(TypeError, match="divmod"):
        main(["train", "--config", write_plain("plain_two"), "--dry-run"])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "import numpy as np\n\ndef size():\n    return np.zeros(-1)\n\nsize()\n",
            [
                "Traceback (most recent call last):",
                '  File "{0}/faulty.py", line 6, in <module>',
                "    size()",
                '  File "{0}/faulty.py", line 4, in size',
                "    return np.zeros(-1)",
                "ValueError: negative dimensions are not allowed",
                "",
                "faulty.py, line 4: ValueError: negative dimensions are not allowed",
            ],
        ),
        (
            "x = 1\nconfig = (\n",
            [
                '  File "{0}/faulty.py", line 2',
                "    config = (",
                "SyntaxError: '(' was never closed",
                "",
                "faulty.py, line 2: SyntaxError: '(' was never closed",
            ],
        ),
        (
            "import helper_of_faulty\n",
            [
                "Traceback (most recent call last):",
                '  File "{0}/faulty.py", line 1, in <module>',
                "    import helper_of_faulty",
                '  File "{0}/helper_of_faulty.py", line 2, in <module>',
                "    y = foo",
                "NameError: name 'foo' is not defined",
                "",
                "helper_of_faulty.py, line 2: NameError: name 'foo' is not defined",
            ],
        ),
        (  # a message of flaxdl says enough
            "from flaxdl.training import SGD\nSGD(learning_rate=-1.0)\n",
            ["faulty.py, line 2: learning_rate must not be negative, got -1.0"],
        ),
    ],
)
def test_a_config_file_that_fails_shows_its_own_lines(project, capsys, text, shown):
    Path("helper_of_faulty.py").write_text("x = 1\ny = foo\n")
    Path("faulty.py").write_text(text)
    code, err = train(capsys, "faulty.py")
    assert code == 2
    lines = [line for line in err.splitlines() if not line or set(line) - set(" ^~")]
    assert lines == [line.format(project) for line in shown]


def test_user_errors_are_one_message(monkeypatch, capsys):
    broken = raising(UserError("no such thing"), PACKAGE / "run.py")
    monkeypatch.setitem(flaxdl.cli.COMMANDS, "inspect", broken)
    assert main(["inspect", "LeNet5"]) == 2
    assert capsys.readouterr().err == "no such thing\n"


def test_a_bug_ends_the_process_with_code_1():
    lines = [
        "import sys, flaxdl.cli.inspect",
        "from flaxdl.cli import leave, main",
        "flaxdl.cli.inspect.layer_table = divmod",
        "leave(main(['inspect', 'LeNet5', '--shape', '32', '32', '1']))",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("TypeError: unsupported operand type(s)")
