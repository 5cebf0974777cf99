"""What ``mixloop simulate`` is asked for: from arguments and run.yaml to policies and setups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mixloop.common.errors import BadInput, explain_error
from mixloop.common.units import parse_tokens
from mixloop.common.yaml import parse_mapping, parse_value
from mixloop.controller.config import RunConfig, load_config
from mixloop.controller.decisions import planned_tokens
from mixloop.policies.guards import GuardSettings
from mixloop.policies.interface import PolicyError, is_file, load_policy
from mixloop.policies.worlds import SHORT, world_names

from .tasks import PolicyEntry, SimulationSetup

SEEDS = 20
SEEDS_OF_A_RUN = 5
FAMILIES = ("power", "exponential", "dilution")
SIZED = {*FAMILIES, "flat", "skills", "interference"}


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


@dataclass(frozen=True)
class SimulationPlan:
    """What is simulated: each policy in each setup, once a seed; ``config`` is the run, if any."""

    policies: Sequence[PolicyEntry]
    setups: Sequence[SimulationSetup]
    seeds: int
    config: RunConfig | None = None


def plan_simulations(args: SimulateArgs) -> SimulationPlan:
    """Policies and setups, each tried once.

    Raises:
        BadInput: one line on the first thing that is wrong.
    """
    config = _run(args)
    try:
        policies = _policies(args, config)
        setups = _setups(args) if config is None else _setups_of_a_run(args, config)
        for setup in setups:
            setup.world(0)
    except PolicyError as error:
        raise BadInput(str(error)) from None
    seeds = args.seeds or (SEEDS if config is None else SEEDS_OF_A_RUN)
    return SimulationPlan(policies, setups, seeds, config)


def _run(args: SimulateArgs) -> RunConfig | None:
    """The run with the command's guards, budget and segments in place of its own."""
    if args.config is None:
        return None
    if args.k:
        raise BadInput("--k: the run's own sources decide how many there are; leave it out")
    config = load_config(args.config)
    budget = _budget(args) or config.budget
    guards = _guards(config.guards, args.guards)
    every = config.evals.every or config.trainer.checkpoint_every or max(1, budget // 40)
    if args.segments:
        every = max(1, budget // args.segments)
    evals = config.evals.model_copy(update={"every": every})
    experiments = config.experiments.model_copy(update={"receipts": False})  # nothing trains twins
    changed = {"budget": budget, "guards": guards, "evals": evals, "experiments": experiments}
    return config.model_copy(update=changed)


def _budget(args: SimulateArgs) -> int | None:
    if args.budget is None:
        return None
    try:
        budget = parse_tokens(args.budget)
    except ValueError as error:
        raise BadInput(f"--budget: {error}") from None
    if budget < 1:
        raise BadInput("--budget: must be above 0 tokens")
    return budget


def _guards(base: GuardSettings, changes: Sequence[str]) -> GuardSettings:
    try:
        return GuardSettings.model_validate(base.model_dump() | _key_values(changes))
    except ValidationError as error:
        raise BadInput(f"--guard: {explain_error(error, GuardSettings)}") from None


def _key_values(texts: Sequence[str]) -> dict[str, Any]:
    """``--guard``: ``max_epochs=5`` and the like, each value read as YAML."""
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise BadInput(f"--guard: {text!r}: write key=value")
        values[key.strip()] = parse_value(value, "--guard")
    return values


def _absolute(ref: str, base: Path) -> str:
    """A file reference seen from anywhere; other references as they are."""
    where, colon, rest = ref.partition(".py:")
    if colon and is_file(where + ".py"):
        return f"{base / Path(where + '.py').expanduser()}:{rest}"
    return ref


def _policies(args: SimulateArgs, config: RunConfig | None) -> list[PolicyEntry]:
    options = parse_mapping(args.options, "--with")
    refs, base = list(dict.fromkeys(args.policies)), Path.cwd()
    if options is not None and len(refs) > 1:
        raise BadInput("--with: says options of one policy; give one --policy")
    if not refs:
        if config is None or args.config is None:
            raise BadInput("simulate: give a run.yaml, or at least one --policy NAME")
        refs, base = [config.policy.use], args.config.parent.resolve()
    entries = []
    for ref in refs:
        configured = config.policy.options if config and config.policy.use == ref else {}
        entry = PolicyEntry(ref, _absolute(ref, base), configured if options is None else options)
        load_policy(entry.ref, entry.options)
        entries.append(entry)
    return entries


def _setups(args: SimulateArgs) -> list[SimulationSetup]:
    setups = []
    budget = _budget(args)
    guards = _guards(GuardSettings(), args.guards).model_dump()
    for ref in dict.fromkeys(args.worlds or FAMILIES):
        for k in _sizes(ref, args.k):
            setup = SimulationSetup(
                label=f"{ref} k={k}" if k else ref,
                ref=_absolute(ref, Path.cwd()),
                guards=guards,
                k=k,
                segments=args.segments,
                budget=budget,
            )
            setups.append(setup)
    return setups


def _sizes(ref: str, asked: Sequence[int]) -> Sequence[int | None]:
    """The numbers of sources that a world is tried with; None: its own."""
    name = ref.partition(":")[0]
    name = SHORT.get(name, name)
    if asked and "k=" in ref:
        raise BadInput(f"--k: --world {ref} says k too; leave one of the two out")
    if asked and name in world_names() and name not in SIZED:
        raise BadInput(f"--k: the world {ref} has sources of its own; leave --k out")
    if name in SIZED and "k=" not in ref:
        return asked or (5,)
    return asked or (None,)


def _setups_of_a_run(args: SimulateArgs, config: RunConfig) -> list[SimulationSetup]:
    assert args.config is not None
    base = Path.cwd() if args.worlds else args.config.parent.resolve()
    every = config.evals.every or config.budget
    sizes, segments = planned_tokens(config), max(1, round(config.budget / every))
    return [
        SimulationSetup(ref, _absolute(ref, base), config, sizes, segments=segments)
        for ref in dict.fromkeys(args.worlds or [config.simulate.world])
    ]
