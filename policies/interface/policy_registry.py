"""Finding a policy by name, entry point, ``package.module:Class`` or ``./file.py:Class``."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from mixloop.common.errors import suggest

from .class_loading import find_class, find_file, is_file
from .policy_building import build_policy, options_schema
from .policy_error import PolicyError
from .policy_protocol import Policy

GROUP = "mixloop.policies"
KEY = "policy.use"
VERB = "decide"
_BUILTIN = {
    "ado": "mixloop.policies.baselines.ado:Ado",
    "bayes": "mixloop.policies.bayes.policy:BayesPolicy",
    "experiment": "mixloop.policies.experiment.policy:ExperimentPolicy",
    "law": "mixloop.policies.law.policy:LawPolicy",
    "odm": "mixloop.policies.baselines.odm:Odm",
    "olmix": "mixloop.policies.baselines.olmix:Olmix",
    "proportional": "mixloop.policies.baselines.proportional:Proportional",
    "rules": "mixloop.policies.rules.policy:RulesPolicy",
    "static": "mixloop.policies.baselines.static:Static",
}
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
    policy = build_policy(cls, options or {}, ref)
    if not isinstance(policy, Policy):
        raise PolicyError(f"{KEY}: {ref} has no decide(observation) method; add one")
    return policy


def policy_names() -> list[str]:
    """The built-in and installed policies, sorted."""
    return sorted({*_BUILTIN, *(entry.name for entry in entry_points(group=GROUP))})


def policy_origin(ref: str) -> str:
    """Where a policy comes from: ``built in``, the package that brings it, a file or a module."""
    if ref in _BUILTIN:
        return "built in"
    if ":" in ref:
        return "a file" if is_file(ref.rpartition(":")[0]) else "a module"
    entry = _entry_point(ref)
    if entry is None:
        return "nowhere"
    package = entry.dist
    version = f"{package.name} {package.version}, " if package else ""
    return f"{version}{entry.value}"


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
    return find_class(ref, key=KEY, verb=VERB, base=base)


def policy_digest(ref: str, base: Path | str | None = None) -> str:
    """``sha256:…`` of the source file that holds the policy: it changes when the file does.

    A file reference is hashed without being imported. Helper modules it imports don't count.

    Raises:
        PolicyError: when there is no such policy or its source can't be read.
    """
    where, _, _ = ref.rpartition(":")
    if is_file(where):
        path: Path | None = find_file(where, base, ref, KEY)
    else:
        source = inspect.getsourcefile(policy_class(ref, base=base))
        path = Path(source) if source else None
    if path is None:
        raise PolicyError(f"{KEY}: {ref} has no source file to take a digest of")
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def policy_options_schema(ref: str, base: Path | str | None = None) -> dict[str, Any]:
    """JSON schema of the policy's options, for editors and ``mixloop policies``."""
    return options_schema(policy_class(ref, base=base))


def _named(ref: str) -> type[Any]:
    # a built-in name can't be taken over by an installed package
    if ref in _BUILTIN:
        return find_class(_BUILTIN[ref], key=KEY, verb=VERB)
    if ref.endswith(".py"):
        raise PolicyError(f"{KEY}: {ref} names no class; write {ref}:ClassName")
    entry = _entry_point(ref)
    if entry is None:
        mend = suggest(ref, policy_names())
        raise PolicyError(f"{KEY}: no policy is called {ref!r}{mend} (or {_FORMS})")
    label = f"{entry.name} ({entry.value})"
    return find_class(f"{entry.module}:{entry.attr}", key=KEY, verb=VERB, label=label)


def _entry_point(name: str) -> EntryPoint | None:
    return next(iter(entry_points(group=GROUP, name=name)), None)
