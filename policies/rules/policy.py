"""``rules``: interventions as a person would make them, written down in advance.

SmolLM2's authors watched the benchmarks of a run and moved points between sources by hand
(Allal et al. 2025); this is that method as a policy. The language is in ``options``.

At every decision, in this order: the initial mixture or the declared stage, if it isn't in force;
what is due by schedule (introductions, annealing); a trial that failed is undone; while one runs,
everything waits; then the interventions by priority.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mixloop.policies.interface import Hold, Observation, Proposal
from mixloop.policies.mixture import check_names, in_force, still_reaching, total_variation

from .interventions import RuleStatus, check_rule, hold, propose, undo, with_judgements
from .moves import CannotMove, Moved, Tags, check_places, places
from .options import Intervention, RulesOptions, expand
from .stages import carry_on, is_declared, stage_due, stage_names
from .timetable import check_schedule, scheduled


class RulesPolicy:
    """The first intervention whose conditions hold is made; otherwise hold."""

    Options = RulesOptions

    def __init__(self, options: RulesOptions | None = None) -> None:
        self.options = options or RulesOptions()

    def check(self, sources: Tags, benchmarks: Sequence[str]) -> None:
        """Raise ``PolicyError`` for a source, tag or benchmark that the run doesn't have."""
        check_names("source", self.options.initial or {}, sources, "policy.with.initial")
        for index, stage in enumerate(self.options.stages):
            check_names("source", stage.weights, sources, f"policy.with.stages.{index}.weights")
        check_schedule(self.options, sources)
        for index, rule in enumerate(self.options.interventions):
            for expanded in expand([rule], benchmarks, places(sources)):
                _check_names(expanded, sources, benchmarks, f"policy.with.interventions.{index}")

    def evaluations_needed(
        self, sources: Mapping[str, Sequence[str]], benchmarks: Sequence[str]
    ) -> dict[str, int]:
        """By rule, and 0 for what goes by tokens alone."""
        options = self.options
        timed = options.initial or options.stages or options.introduce or options.anneal
        rules = expand(options.interventions, benchmarks, places(sources))
        needed = {"the timetable": 0} if timed else {}
        return needed | {rule.name: rule.evaluations_needed for rule in rules}

    def decide(self, observation: Observation) -> Proposal | Hold:
        """The move of the first rule that holds; or a hold that says which rule was nearest."""
        # before the first score nobody knows which benchmarks there are
        benchmarks = observation.benchmarks() or self._named_benchmarks()
        self.check(_tags(observation), sorted(benchmarks))
        initial = self.options.initial
        if initial is not None and still_reaching(observation, initial, "initial"):
            return _to_initial(observation, initial)
        stages = self.options.stages
        due = stage_due(stages, observation) if stages else None
        if due is not None:
            return due
        reply = scheduled(self.options, observation) or self._intervene(observation)
        return self._carrying(reply, observation) if stages else reply

    def declares(
        self,
        observation: Observation,
        weights: Mapping[str, float],
        plan: Sequence[tuple[int, Mapping[str, float]]],
    ) -> bool:
        """Whether a proposal is nothing but what the configured stages declare."""
        return is_declared(self.options.stages, observation, weights, plan)

    def _carrying(self, reply: Proposal | Hold, observation: Observation) -> Proposal | Hold:
        """Whatever is ordered now, by this policy or the guards, carries the later stages along."""
        stages = self.options.stages
        evidence = {**reply.evidence, "stages": stage_names(stages, observation)}
        if isinstance(reply, Hold):
            return Hold(reply.reason, evidence, reply.verdict)
        plan = carry_on(stages, observation, reply.weights)
        return Proposal(reply.weights, reply.reason, plan, evidence)

    def _named_benchmarks(self) -> set[str]:
        conditions = (c for rule in self.options.interventions for c in rule.when)
        named = {name for condition in conditions for name in condition.benchmarks()}
        return {name for name in named if "{" not in name}

    def _intervene(self, observation: Observation) -> Proposal | Hold:
        steering = observation.steering_benchmarks()
        rules = expand(self.options.interventions, steering, places(_tags(observation)))
        statuses = [check_rule(rule, observation) for rule in rules]
        return with_judgements(self._answer(statuses, observation), statuses, observation)

    def _answer(self, statuses: list[RuleStatus], observation: Observation) -> Proposal | Hold:
        ending = next((status for status in statuses if status.in_trial("ending")), None)
        if ending is not None:
            return undo(ending)
        trying = [status for status in statuses if status.in_trial("running", "judging")]
        if any(not status.trial.answered for status in trying if status.trial):
            return hold(trying, [])
        moved, stuck = self._move([status for status in statuses if status.holds], observation)
        tests = sum(len(status.tested()) for status in statuses)
        return propose(moved, tests) if moved else hold(statuses, stuck)

    def _move(
        self, firing: list[RuleStatus], observation: Observation
    ) -> tuple[list[tuple[RuleStatus, Moved]], list[tuple[RuleStatus, str]]]:
        """The moves to make, and the rules that hold but can't move, with the reason."""
        weights, sources = in_force(observation), observation.sources
        moved: list[tuple[RuleStatus, Moved]] = []
        stuck: list[tuple[RuleStatus, str]] = []
        raised: set[str] = set()
        lowered: set[str] = set()
        spared: set[str] = set()
        lasting = self.options.lasting(observation)
        if self.options.combine:
            # "rest" spares every source that some move of this decision gives to
            spared = {n for s in firing for n in s.rule.change.ends(weights, sources)[0]}
        for status in firing:
            change = status.rule.change
            to, origin = change.ends(weights, sources)
            if to & lowered or (origin - to) & raised:
                stuck.append((status, "another rule's move goes the other way"))
                continue
            done = change.carry_out(weights, sources, spared, lasting)
            if isinstance(done, CannotMove):
                stuck.append((status, done.why))
                continue
            moved.append((status, done))
            if not self.options.combine:
                break
            weights = done.weights
            raised |= {name for name, gain in done.gains.items() if gain > 0}
            lowered |= {name for name, gain in done.gains.items() if gain < 0}
        return moved, stuck


def _tags(observation: Observation) -> Tags:
    return {name: source.tags for name, source in observation.sources.items()}


def _check_names(rule: Intervention, sources: Tags, benchmarks: Sequence[str], where: str) -> None:
    rule.check_places(sources, where)
    for condition in rule.when:
        check_names("benchmark", condition.benchmarks(), benchmarks, f"{where}.when")
        if condition.ledger is not None:
            check_places(sources, f"{where}.when.ledger", source=condition.ledger.source)
    if rule.trial is not None:
        check_names("benchmark", rule.trial.of or (), benchmarks, f"{where}.trial.of")


def _to_initial(observation: Observation, initial: Mapping[str, float]) -> Proposal:
    left = total_variation(in_force(observation), initial)
    weights = {name: initial.get(name, 0.0) for name in observation.sources}
    reason = f"initial: to the mixture configured, {left:.3g} of the tokens to move"
    evidence = {"rule": "initial", "rules": ["initial"], "distance": left}
    return Proposal(weights, reason, evidence=evidence)
