"""Finding a world: ``name:key=value,…``, ``package.module:Class`` or ``./file.py:Class``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixloop.common.errors import suggest
from mixloop.policies.interface import PolicyError, find_class, raised

from .families import Dilution, Exponential, Flat, Power
from .interference import Interference
from .run_worlds import (
    RunDilutionWorld,
    RunExponentialWorld,
    RunFlatWorld,
    RunInterferenceWorld,
    RunPowerWorld,
    RunSkillsWorld,
)
from .skills import Skills
from .smollm2 import SmolLM2
from .world_protocol import World, WorldSource, world_sources

KEY = "world"
SHORT = {
    **{"P": "power", "E": "exponential", "D": "dilution", "F": "flat"},
    **{"S": "skills", "I": "interference"},
}


@dataclass(frozen=True)
class Setting:
    """What a built-in world is built for. A run's sources, benchmarks and budget, where it has one.

    ``value`` is each benchmark's part in the objective. None leaves a world its own default.
    """

    segments: int | None = None
    budget: int | None = None
    max_epochs: float | None = 5.0
    k: int | None = None
    sources: Mapping[str, WorldSource] | None = None
    benchmarks: Sequence[str] = ()
    value: Mapping[str, float] | None = None


Factory = Callable[[str, Setting], World]
"""What follows the name's colon, and the setting, to a world."""

_FACTORIES: dict[str, Factory] = {}


def register_world(name: str, factory: Factory) -> None:
    """Make ``name`` and ``name:ARGUMENT`` worlds.

    Raises:
        ValueError: when the name is taken.
    """
    if name in _FACTORIES:
        raise ValueError(f"{name} is a world already")
    _FACTORIES[name] = factory


def world_names() -> list[str]:
    """The built-in and registered worlds, sorted."""
    return sorted(_FACTORIES)


def load_world(
    ref: str, setting: Setting | None = None, *, base: Path | str | None = None
) -> World:
    """The world ``ref`` names.

    Args:
        ref: a name of :func:`world_names` (or one of :data:`SHORT`), with options as in
            ``power:k=12,sigma=0.01``; or a class, built without arguments or, written
            ``./file.py:Class:key=value,…``, with these.
        setting: what a built-in world is built for; a class is told ``k``, where it is given.
        base: folder that file references are relative to (default: the working directory).

    Raises:
        PolicyError: one line with the value and the mend.
    """
    name, _, argument = ref.partition(":")
    name = SHORT.get(name, name)
    if name in _FACTORIES:
        return _built(lambda: _FACTORIES[name](argument, setting or Setting()), ref)
    if ":" not in ref:
        forms = "name:key=value,…, package.module:Class or ./file.py:Class"
        mend = suggest(ref, world_names())
        raise PolicyError(f"{KEY}: no world is called {ref!r}{mend} (or write {forms})")
    where, _, last = ref.rpartition(":")
    where, options = (where, parse_options(last, ref)) if "=" in last else (ref, {})
    cls = find_class(where, key=KEY, verb="evaluate", base=base)
    if setting is not None and setting.k is not None:
        if "k" not in inspect.signature(cls).parameters:
            raise PolicyError(
                f"{KEY}: {ref} has sources of its own, and no option k for their number"
            )
        options.setdefault("k", setting.k)
    world: World = _built(lambda: cls(**options), ref, cls)
    _check_members(world, ref)
    return world


def parse_options(text: str, ref: str) -> dict[str, Any]:
    """``k=12,sigma=0.01`` as a mapping; numbers, true, false and null are read as such.

    Raises:
        PolicyError: for a part that is no ``key=value``.
    """
    options = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip().isidentifier():
            raise PolicyError(f"{KEY}: {ref}: {part!r} is no option; write key=value,key=value")
        options[key.strip()] = _value(value.strip())
    return options


def _value(text: str) -> Any:
    constants = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _built(build: Callable[[], World], ref: str, by: type[Any] | None = None) -> World:
    try:
        return build()
    except PolicyError:
        raise
    except Exception as error:
        raise PolicyError(f"{KEY}: {ref} can't be built: {raised(error, by)}; mend it") from error


def _check_members(world: Any, ref: str) -> None:
    for member in ("reset", "advance", "evaluate"):
        if not callable(getattr(world, member, None)):
            raise PolicyError(f"{KEY}: {ref} has no {member}(); add it (see docs/worlds.md)")
    if not getattr(world, "benchmarks", ()):
        raise PolicyError(f"{KEY}: {ref} has no benchmarks; name at least one")
    world_sources(world)


def _family(plain: type[Any], over_run: type[Any]) -> Factory:
    """A family's worlds: ``plain`` with sources of its own, ``over_run`` over a run's."""

    def build(argument: str, setting: Setting) -> World:
        options = parse_options(argument, argument)
        accepted = [name for name in inspect.signature(plain.__init__).parameters if name != "self"]
        for key in options:
            if key not in accepted:
                raise PolicyError(f"{KEY}: {key}: no option{suggest(key, accepted)}")
        segments = options.setdefault("segments", setting.segments or 40)
        if setting.budget:
            options.setdefault("unit", max(1, setting.budget // segments))
        options.setdefault("max_epochs", setting.max_epochs)
        if setting.sources is None:
            options.setdefault("k", setting.k or 5)
            plain_world: World = plain(**options)
            return plain_world
        for key in ("k", "m", "scarce"):
            if key in options:
                raise PolicyError(f"{KEY}: {key}: the run's own sources and benchmarks decide that")
        names = setting.benchmarks or ("bench-0",)
        run_world: World = over_run(setting.sources, names, setting.value, **options)
        return run_world

    return build


def _smollm2(argument: str, setting: Setting) -> World:
    options = parse_options(argument, argument)
    if setting.budget:
        options.setdefault("budget", setting.budget)
    if setting.segments:
        options.setdefault("segments", setting.segments)
    return SmolLM2(setting.sources, **options)


register_world("power", _family(Power, RunPowerWorld))
register_world("exponential", _family(Exponential, RunExponentialWorld))
register_world("dilution", _family(Dilution, RunDilutionWorld))
register_world("flat", _family(Flat, RunFlatWorld))
register_world("skills", _family(Skills, RunSkillsWorld))
register_world("interference", _family(Interference, RunInterferenceWorld))
register_world("smollm2", _smollm2)
