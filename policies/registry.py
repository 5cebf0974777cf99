"""Finding a policy by name, entry point, ``package.module:Class`` or ``./file.py:Class``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from . import options as policy_options
from .errors import PolicyError, suggest
from .protocol import Policy

GROUP = "mixloop.policies"
KEY = "policy.use"
_BUILTIN = {"static": ".static:Static", "rules": ".rules:Rules", "law": ".law:Law"}
_FORMS = "write a name, package.module:Class or ./file.py:Class"


def load_policy(
    ref: str, options: Mapping[str, Any] | None = None, *, base: Path | str | None = None
) -> Policy:
    """The policy ``ref`` names, built with its options.

    Args:
        ref: a built-in name, the name of an entry point in the group ``mixloop.policies``,
            ``package.module:Class``, or ``./file.py:Class``.
        options: validated by the class's pydantic ``Options`` model if it has one, else passed as
            keyword arguments.
        base: folder that file references are relative to (default: the working directory).

    Raises:
        PolicyError: one line with the key, the value and the mend.
    """
    if options is not None and not isinstance(options, Mapping):
        raise PolicyError(f"policy.with: {options!r} is no mapping; write option: value pairs")
    cls = policy_class(ref, base=base)
    policy = policy_options.build(cls, options or {}, ref)
    if not isinstance(policy, Policy):
        raise PolicyError(f"{KEY}: {ref} has no decide(observation) method; add one")
    return policy


def policy_names() -> list[str]:
    """The built-in and installed policies, sorted."""
    return sorted({*_BUILTIN, *(entry.name for entry in entry_points(group=GROUP))})


def policy_class(ref: str, *, base: Path | str | None = None) -> type[Any]:
    """The class ``ref`` names, unbuilt.

    Raises:
        PolicyError: when there is none, or importing it fails.
    """
    if ":" not in ref:
        return _named(ref)
    where, _, name = ref.rpartition(":")
    if not where or not name:
        raise PolicyError(f"{KEY}: {ref!r} is no policy; {_FORMS}")
    if _is_file(where):
        path = _file(where, base, ref)
        return _attribute(_import(lambda: _load_file(path), ref), name, ref)
    return _attribute(_import(lambda: importlib.import_module(where), ref), name, ref)


def policy_digest(ref: str, base: Path | str | None = None) -> str:
    """``sha256:…`` of the source file that holds the policy: it changes when the file does.

    A file reference is hashed without being imported. Helper modules it imports don't count.

    Raises:
        PolicyError: when there is no such policy or its source can't be read.
    """
    where, _, _ = ref.rpartition(":")
    if _is_file(where):
        path: Path | None = _file(where, base, ref)
    else:
        source = inspect.getsourcefile(policy_class(ref, base=base))
        path = Path(source) if source else None
    if path is None:
        raise PolicyError(f"{KEY}: {ref} has no source file to take a digest of")
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def policy_options_schema(ref: str, base: Path | str | None = None) -> dict[str, Any]:
    """JSON schema of the policy's options, for editors and ``mixloop policies``."""
    return policy_options.schema(policy_class(ref, base=base))


def _named(ref: str) -> type[Any]:
    # a built-in name can't be taken over by an installed package
    if ref in _BUILTIN:
        module, _, name = _BUILTIN[ref].partition(":")
        return _attribute(importlib.import_module(module, __package__), name, ref)
    if ref.endswith(".py"):
        raise PolicyError(f"{KEY}: {ref} names no class; write {ref}:ClassName")
    found = [entry for entry in entry_points(group=GROUP) if entry.name == ref]
    if not found:
        mend = suggest(ref, policy_names())
        raise PolicyError(f"{KEY}: no policy is called {ref!r}{mend} (or {_FORMS})")
    return _from_entry_point(found[0])


def _from_entry_point(entry: EntryPoint) -> type[Any]:
    module = _import(lambda: importlib.import_module(entry.module), f"{entry.name} ({entry.value})")
    return _attribute(module, entry.attr, entry.value)


def _is_file(where: str) -> bool:
    return where.endswith(".py") or "/" in where


def _file(where: str, base: Path | str | None, ref: str) -> Path:
    path = Path(base or ".", Path(where).expanduser()).resolve()
    if not path.is_file():
        raise PolicyError(f"{KEY}: {ref}: there is no file {path}; correct the path")
    return path


def _load_file(path: Path) -> ModuleType:
    """The file as a module under a name of its own, so that two of the same name don't meet."""
    name = f"mixloop_policy_{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    # pydantic and dataclasses look annotations up in sys.modules while the body runs
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import(load: Any, ref: str) -> ModuleType:
    try:
        module: ModuleType = load()
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        line = f" ({Path(where.filename).name} line {where.lineno})"
        # a failing import statement ends in importlib's own frames, which help nobody
        shown = "" if "importlib" in where.filename else line
        cause = f"{type(error).__name__}: {error}{shown}"
        raise PolicyError(f"{KEY}: {ref} doesn't import: {cause}; mend the module") from error
    return module


def _attribute(module: ModuleType, name: str, ref: str) -> type[Any]:
    found = getattr(module, name, None)
    if isinstance(found, type):
        return found
    if found is not None:
        raise PolicyError(f"{KEY}: {ref} is a {type(found).__name__}, not a class")
    classes = (n for n, v in vars(module).items() if isinstance(v, type) and hasattr(v, "decide"))
    raise PolicyError(f"{KEY}: {ref}: no class {name!r} there{suggest(name, classes)}")
