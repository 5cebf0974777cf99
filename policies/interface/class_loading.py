"""Finding a class by ``package.module:Class`` or ``./file.py:Class``: a policy's, a world's."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from mixloop.common.errors import suggest

from .policy_error import PolicyError


def find_class(
    ref: str, *, key: str, verb: str, base: Path | str | None = None, label: str = ""
) -> type[Any]:
    """The class that ``where:Class`` names, unbuilt.

    Args:
        ref: ``package.module:Class`` or ``./file.py:Class``.
        key: what errors name: the setting that holds the reference.
        verb: the method its kind is known by, to suggest another class of the module.
        base: folder that file references are relative to (default: the working directory).
        label: what an error while importing calls it (default: ``ref``).

    Raises:
        PolicyError: when there is none, or importing it fails.
    """
    where, _, name = ref.rpartition(":")
    if is_file(where):
        path = find_file(where, base, ref, key)
        module = _imported(lambda: _load_file(path), ref, key)
    else:
        module = _imported(lambda: importlib.import_module(where), label or ref, key)
    cls = getattr(module, name, None)
    if isinstance(cls, type):
        return cls
    if cls is not None:
        raise PolicyError(f"{key}: {ref} is a {type(cls).__name__}, not a class")
    classes = (n for n, v in vars(module).items() if isinstance(v, type) and hasattr(v, verb))
    raise PolicyError(f"{key}: {ref}: no class {name!r} there{suggest(name, classes)}")


def is_file(where: str) -> bool:
    """Whether a reference's first part is a path, not a module's name."""
    return where.endswith(".py") or "/" in where


def find_file(where: str, base: Path | str | None, ref: str, key: str) -> Path:
    """The file that a reference names.

    Raises:
        PolicyError: when there is none.
    """
    path = Path(base or ".", Path(where).expanduser()).resolve()
    if not path.is_file():
        raise PolicyError(f"{key}: {ref}: there is no file {path}; correct the path")
    return path


def _load_file(path: Path) -> ModuleType:
    """The file as a module under a name of its own, so that two of the same name don't meet.

    It may import what lies beside it, now or while it decides, unless that is named like a package.
    """
    name = f"mixloop_policy_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    # pydantic and dataclasses look annotations up in sys.modules while the body runs
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _imported(load: Callable[[], ModuleType], ref: str, key: str) -> ModuleType:
    """What ``load`` imports; a failure names the line that failed."""
    try:
        return load()
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        line = f" ({Path(where.filename).name} line {where.lineno})"
        # a failing import statement ends in importlib's own frames, which help nobody
        shown = "" if "importlib" in where.filename else line
        cause = f"{type(error).__name__}: {error}{shown}"
        raise PolicyError(f"{key}: {ref} doesn't import: {cause}; mend the module") from error
