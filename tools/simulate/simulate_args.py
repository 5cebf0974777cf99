"""What ``mixloop simulate`` was asked for: arguments and run.yaml to entrants and arenas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mixloop.common.errors import BadInput, explain_error
from mixloop.common.units import parse_tokens
from mixloop.controller.config import RunConfig, load_config
from mixloop.controller.decisions import planned_tokens
from mixloop.policies.guards import GuardSettings
from mixloop.policies.interface import PolicyError, is_file, load_policy
from mixloop.policies.worlds import SHORT

from .contest import Contest, PolicyEntry, SimulationSetup

SEEDS = 20
SEEDS_OF_A_RUN = 5
FAMILIES = ("power", "exponential", "dilution")
SIZED = {*FAMILIES, "flat"}


@dataclass(frozen=True)
class SimulateArgs:
    """The command's arguments, as given."""

    config: Path | None = None
    policies: Sequence[str] = ()
    options: str | None = None
    worlds: Sequence[str] = ()
    seeds: int | None = None
    k: Sequence[int] = ()
    segments: int | None = None
    budget: str | None = None
    guards: Sequence[str] = ()
    jobs: int | None = None


def prepare(wanted: SimulateArgs) -> Contest:
    """Entrants and arenas, each tried once.

    Raises:
        BadInput: one line on the first thing that is wrong.
    """
    config = _run(wanted)
    try:
        entrants = _entrants(wanted, config)
        arenas = _arenas(wanted, config)
        for arena in arenas:
            arena.world(0)
    except PolicyError as error:
        raise BadInput(str(error)) from None
    seeds = wanted.seeds or (SEEDS if config is None else SEEDS_OF_A_RUN)
    return Contest(tuple(entrants), tuple(arenas), seeds, config)


def _run(wanted: SimulateArgs) -> RunConfig | None:
    """The run with the command's guards, budget and segments in place of its own."""
    if wanted.config is None:
        return None
    if wanted.k:
        raise BadInput("--k: the run's own sources decide how many there are; leave it out")
    config = load_config(wanted.config)
    budget = _budget(wanted) or config.budget
    guards = _guards(config.guards, wanted.guards)
    every = config.evals.every or config.trainer.checkpoint_every or max(1, budget // 40)
    if wanted.segments:
        every = max(1, budget // wanted.segments)
    evals = config.evals.model_copy(update={"every": every})
    return config.model_copy(update={"budget": budget, "guards": guards, "evals": evals})


def _budget(wanted: SimulateArgs) -> int | None:
    if wanted.budget is None:
        return None
    try:
        budget = parse_tokens(wanted.budget)
    except ValueError as error:
        raise BadInput(f"--budget: {error}") from None
    if budget < 1:
        raise BadInput("--budget: must be above 0 tokens")
    return budget


def _guards(base: GuardSettings, given: Sequence[str]) -> GuardSettings:
    try:
        return GuardSettings.model_validate(base.model_dump() | key_values(given, "--guard"))
    except ValidationError as error:
        raise BadInput(f"--guard: {explain_error(error, GuardSettings)}") from None


def key_values(given: Sequence[str], option: str) -> dict[str, Any]:
    """``max_epochs=5`` and the like, each value read as YAML.

    Raises:
        BadInput: for one that is no ``key=value``.
    """
    found = {}
    for part in given:
        key, equals, value = part.partition("=")
        if not equals:
            raise BadInput(f"{option}: {part!r}: write key=value")
        found[key.strip()] = _yaml(value, option)
    return found


def policy_options(text: str | None) -> dict[str, Any] | None:
    """``--with``: a YAML or JSON mapping, or a file that holds one; None when not given.

    Raises:
        BadInput: when it is neither.
    """
    if text is None:
        return None
    path = Path(text)
    if path.suffix in {".yaml", ".yml", ".json"}:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise BadInput(f"--with: {path}: can't be read: {error.strerror}") from None
    found = _yaml(text, "--with")
    if not isinstance(found, dict):
        raise BadInput(f"--with: {found!r} is no mapping; write '{{option: value}}' or a file")
    return found


def _yaml(text: str, option: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise BadInput(f"{option}: {text!r} is no YAML value") from None


def absolute(ref: str, base: Path) -> str:
    """A file reference seen from anywhere; other references as they are."""
    where, colon, rest = ref.partition(".py:")
    if colon and is_file(where + ".py"):
        return f"{base / Path(where + '.py').expanduser()}:{rest}"
    return ref


def _entrants(wanted: SimulateArgs, config: RunConfig | None) -> list[PolicyEntry]:
    base = Path.cwd()
    own = config.policy if config is not None else None
    refs = list(dict.fromkeys(wanted.policies))
    options = policy_options(wanted.options)
    if options is not None and len(refs) > 1:
        raise BadInput("--with: says options of one policy; give one --policy")
    if not refs:
        if own is None or wanted.config is None:
            raise BadInput("simulate: give a run.yaml, or at least one --policy NAME")
        refs, base = [own.use], wanted.config.parent.resolve()
    made = []
    for ref in refs:
        mine = own.options if own is not None and own.use == ref else {}
        chosen = mine if options is None else options
        made.append(PolicyEntry(ref, absolute(ref, base), chosen))
        load_policy(made[-1].ref, chosen)
    return made


def _arenas(wanted: SimulateArgs, config: RunConfig | None) -> list[SimulationSetup]:
    if config is not None:
        return _arenas_of_a_run(wanted, config)
    made = []
    budget = _budget(wanted)
    guards = _guards(GuardSettings(), wanted.guards).model_dump()
    for ref in dict.fromkeys(wanted.worlds or FAMILIES):
        sized = SHORT.get(ref.partition(":")[0], ref.partition(":")[0]) in SIZED
        for k in (wanted.k or (5,)) if sized and "k=" not in ref else (None,):
            arena = SimulationSetup(
                label=f"{ref} k={k}" if k else ref,
                ref=absolute(ref, Path.cwd()),
                guards=guards,
                k=k,
                segments=wanted.segments,
                budget=budget,
            )
            made.append(arena)
    return made


def _arenas_of_a_run(wanted: SimulateArgs, config: RunConfig) -> list[SimulationSetup]:
    assert wanted.config is not None
    base = Path.cwd() if wanted.worlds else wanted.config.parent.resolve()
    every = config.evals.every or config.budget
    shared = SimulationSetup(
        label="",
        ref="",
        config=config,
        sizes=planned_tokens(config),
        segments=max(1, round(config.budget / every)),
    )
    refs = dict.fromkeys(wanted.worlds or [config.simulate.world])
    return [replace(shared, label=ref, ref=absolute(ref, base)) for ref in refs]
