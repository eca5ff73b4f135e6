"""Functions that find, load and list config files."""

import ast
import importlib.machinery
import importlib.util
import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from flaxdl.config import Config
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path
from flaxdl.tracebacks import shown_path, user_frames


def find_config(name: str | Path) -> Path:
    """Returns the path of a config file.

    A name without folder and `.py`, such as `digits_cnn`, is searched for in the working directory,
    in its folder `configs/` and among the configs included in flaxdl, in this order.

    Args:
        name: path or name of the config file.

    Raises:
        UserError: if there is no such file; the message suggests a similar name.
    """
    path = local_path(name)
    if _is_name(path):
        files = [folder / f"{path}.py" for folder in (Path(), Path("configs"), _packaged())]
        path = next((file for file in files if file.is_file()), path)
    if not path.is_file():
        known = {Path(name).stem: name for name in _names()}
        known |= {file.stem: str(file) for file in path.parent.glob("*.py")}
        near = get_close_matches(path.stem, known, n=1)
        hint = f"did you mean {known[near[0]]!r}? " if near else ""
        raise UserError(
            f"there is no config file {path}; {hint}`flaxdl train --list` shows what there is"
        )
    return path


def load_config(path: str | Path) -> Config:
    """Executes a config file, which may contain any Python code, and returns its `config`.

    The file is imported as a module with the name of the file, so that worker processes can
    unpickle the objects defined in it. It can import modules from its folder, unless the standard
    library or an installed package has a module of the same name.

    Args:
        path: path of the file, or the name of a config, such as `digits_cnn`, as in `find_config`.

    Raises:
        UserError: if the file does not exist, raises an exception (the message states the line),
            does not define `config`, or has the name of another module.
    """
    path = find_config(path)
    config = getattr(_import(path), "config", None)
    if not isinstance(config, Config):
        del sys.modules[path.stem]
        raise UserError(
            f"{path} must define config = flaxdl.Config(...), "
            + (
                "but does not"
                if config is None
                else f"but config is of type {type(config).__name__}"
            )
        )
    return config


def _import(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"a config file must end in .py, got {path}")
    if _is_taken(path.stem):
        raise UserError(
            f"a config file cannot be called {path.name}: it would shadow the standard library's "
            f"or an installed module {path.stem!r}; rename it"
        )
    _add_to_path(str(path.resolve().parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        raise UserError(_located_message(error, path)) from error
    return module


def _located_message(error: Exception, path: Path) -> str:
    """Returns the message of an error with its line in the config file or an imported module."""
    message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        message = f"{type(error).__name__}: {error.msg}"  # without file and line
    frames = user_frames(error)
    if not frames:
        return f"{path}: {message}"
    frame = frames[-1]
    is_config = os.path.realpath(frame.filename) == os.path.realpath(path)
    return f"{path if is_config else shown_path(frame.filename)}, line {frame.lineno}: {message}"


def _add_to_path(folder: str) -> None:
    """Adds the folder of a config file to `sys.path`, so that the file can import its neighbors.

    The folder is added at the beginning or, if one of its modules has the name of a standard
    library or installed module, at the end.
    """
    if folder not in sys.path:
        names = [path.stem for path in Path(folder).glob("*.py")]
        names += [path.parent.name for path in Path(folder).glob("*/__init__.py")]
        sys.path.insert(len(sys.path) if any(map(_is_installed, names)) else 0, folder)


def _is_taken(name: str) -> bool:
    """Returns True if the name belongs to a module other than a config file."""
    if name in sys.modules and name not in sys.stdlib_module_names:
        return not isinstance(getattr(sys.modules[name], "config", None), Config)
    return _is_installed(name)


def _is_installed(name: str) -> bool:
    """Returns True if the standard library or an installed package has a module of this name."""
    if name in sys.stdlib_module_names:
        return True
    installed = [
        folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")
    ]
    spec = importlib.machinery.PathFinder.find_spec(name, installed)
    return spec is not None and spec.origin is not None  # None for a folder without __init__.py


def list_configs() -> dict[str, str]:
    """Returns the first docstring line of each config, without executing the configs.

    The keys are valid arguments of `find_config`: paths of the files in the folder `configs/` of
    the working directory, and names of the configs included in flaxdl.
    """
    return {name: _first_line(find_config(name)) for name in _names()}


def _names() -> list[str]:
    local, packaged = Path("configs"), _packaged()
    is_checkout = local.is_dir() and local.samefile(packaged)
    files = [] if is_checkout else sorted(local.glob("*.py"))
    return [*map(str, files), *sorted(file.stem for file in packaged.glob("*.py"))]


def _packaged() -> Path:
    """Returns the folder of the configs included in flaxdl."""
    package = Path(__file__).parent
    installed = package / "configs"  # the location in a wheel
    return installed if installed.is_dir() else package.parent / "configs"


def _is_name(path: Path) -> bool:
    return len(path.parts) == 1 and path.suffix != ".py"


def _first_line(path: Path) -> str:
    try:
        docstring = ast.get_docstring(ast.parse(path.read_text()))
    except (OSError, ValueError, SyntaxError) as error:  # still list the other files
        return f"(cannot be read: {error})"
    return (docstring or "(no docstring)").partition("\n")[0]
