"""One rule written for every benchmark, and the names it leaves open."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .errors import PolicyError
from .move_options import Action
from .rules_options import Intervention

ONE, ALL = "{benchmark}", "{benchmarks}"


def expand(
    rules: Sequence[Intervention], benchmarks: Sequence[str], places: Collection[str]
) -> list[Intervention]:
    """The rules with every ``for_each`` written out, highest priority first.

    Args:
        benchmarks: those that steer.
        places: sources and tags of the run; a rule for a benchmark that is neither is left out.
    """
    found: list[Intervention] = []
    named = [benchmark for benchmark in benchmarks if benchmark in places]
    for rule in rules:
        open_ = _text_of(rule)
        each = [b for b in benchmarks if b in places or not _placed(rule)]
        if rule.for_each:
            found += [_filled(rule, {ONE: [name]}, benchmarks, places) for name in each]
        elif ALL in open_:
            found += [_filled(rule, {}, benchmarks, places)] if _can_be_filled(rule, named) else []
        else:
            found.append(rule)
    return sorted(found, key=lambda rule: -rule.priority)


def _filled(
    rule: Intervention,
    names: Mapping[str, Sequence[str]],
    benchmarks: Sequence[str],
    places: Collection[str],
) -> Intervention:
    data = rule.model_dump(by_alias=True, exclude_none=True, exclude={"for_each"})
    actions = set(Action.model_fields)
    filled = {}
    for key, value in data.items():
        # all benchmarks as places are those that are places
        every = [b for b in benchmarks if b in places] if key in actions else list(benchmarks)
        filled[key] = _replaced(value, {ALL: every, **names})
    try:
        return Intervention.model_validate(filled)
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise PolicyError(f"policy.with.interventions: {rule.name}: {first}") from None


def _replaced(value: Any, names: Mapping[str, Sequence[str]]) -> Any:
    """Placeholders in every text replaced; one alone in a list becomes all it stands for."""
    if isinstance(value, dict):
        return {key: _replaced(entry, names) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        found: list[Any] = []
        for entry in value:
            found += names[entry] if entry in _known(names, entry) else [_replaced(entry, names)]
        return found
    if isinstance(value, str):
        for key, words in names.items():
            value = value.replace(key, ", ".join(words)) if key != ALL else value
    return value


def _known(names: Mapping[str, Sequence[str]], entry: object) -> Collection[str]:
    return names if isinstance(entry, str) else ()


def _placed(rule: Intervention) -> bool:
    """Whether an action of the rule names the benchmark as a source or tag."""
    return ONE in str([getattr(rule, key) for key in Action.model_fields])


def _can_be_filled(rule: Intervention, named: Sequence[str]) -> bool:
    """An action on all benchmarks' tags needs one that there is."""
    return bool(named) or ALL not in str([getattr(rule, key) for key in Action.model_fields])


def _text_of(rule: Intervention) -> str:
    return rule.model_dump_json(by_alias=True)
