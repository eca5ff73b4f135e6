"""Config files: loaded, and listed without being run."""

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


def load_config(path: str | Path) -> Config:
    """Runs a config file, which is Python and may do anything, and returns its `config`.

    The file is imported under its own name, so that worker processes find what it defines. It can
    import modules beside it, unless Python or an installed package has one of the same name.

    Raises:
        UserError: if there is no such file, it fails (naming the line), it defines no `config`, or
            it has the name of another module.
    """
    path = local_path(path)
    if not path.is_file():
        known = {
            p.name: p for folder in (Path("configs"), path.parent) for p in folder.glob("*.py")
        }
        near = get_close_matches(path.name, known, n=1)
        hint = f"; did you mean {str(known[near[0]])!r}?" if near else ""
        raise UserError(f"there is no config file {path}{hint}")
    config = getattr(_import(path), "config", None)
    if not isinstance(config, Config):
        del sys.modules[path.stem]
        raise UserError(
            f"{path} must define config = flaxdl.Config(...), "
            + ("but defines no config" if config is None else f"but config is a {type(config)}")
        )
    return config


def _import(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"a config file must end in .py, got {path}")
    if _is_taken(path.stem):
        raise UserError(
            f"a config file cannot be called {path.name}, since it would replace Python's or an "
            f"installed module {path.stem!r}; rename it"
        )
    _add_to_path(str(path.resolve().parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[path.stem]
        raise UserError(_located(error, path)) from error
    return module


def _located(error: Exception, path: Path) -> str:
    """Names the line of a config file, or of a module that it imports, that raised an error."""
    message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        message = f"{type(error).__name__}: {error.msg}"  # which has no file and line
    frames = user_frames(error)
    if not frames:
        return f"{path}: {message}"
    frame = frames[-1]
    is_config = os.path.realpath(frame.filename) == os.path.realpath(path)
    return f"{path if is_config else shown_path(frame.filename)}, line {frame.lineno}: {message}"


def _add_to_path(folder: str) -> None:
    """Makes modules beside a config file importable, before others of the same name.

    If one of them is named like a module of Python or an installed one, all come last.
    """
    if folder not in sys.path:
        beside = [path.stem for path in Path(folder).glob("*.py")]
        beside += [path.parent.name for path in Path(folder).glob("*/__init__.py")]
        sys.path.insert(len(sys.path) if any(map(_is_installed, beside)) else 0, folder)


def _is_taken(name: str) -> bool:
    """Returns whether code that imports this name expects another module than a config file."""
    if name in sys.modules and name not in sys.stdlib_module_names:
        return not isinstance(getattr(sys.modules[name], "config", None), Config)
    return _is_installed(name)


def _is_installed(name: str) -> bool:
    """Returns whether a module of this name belongs to Python or an installed package."""
    if name in sys.stdlib_module_names:
        return True
    installed = [
        folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")
    ]
    spec = importlib.machinery.PathFinder.find_spec(name, installed)
    return spec is not None and spec.origin is not None  # not a mere folder


def list_configs(folder: Path) -> dict[str, str]:
    """Path → first line of the docstring, for each config file; nothing is run."""
    return {str(path): _first_line(path) for path in sorted(folder.glob("*.py"))}


def _first_line(path: Path) -> str:
    try:
        docstring = ast.get_docstring(ast.parse(path.read_text()))
    except (OSError, ValueError, SyntaxError) as error:  # a list shows what else there is
        return f"(cannot be read: {error})"
    return (docstring or "(says nothing of itself)").partition("\n")[0]
