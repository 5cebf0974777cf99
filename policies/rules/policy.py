"""``rules``: interventions as a person would make them, written down in advance.

SmolLM2's authors watched the benchmarks of a run and moved points between sources by hand
(Allal et al. 2025); this is that method as a policy. The language is in ``rules_options``.

At every decision, in this order: the initial mixture or the declared stage, if it isn't in force;
what is due by schedule (introductions, annealing); a trial that failed is undone; while one runs,
everything waits; then the interventions by priority.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mixloop.policies.evidence import steering_benchmarks
from mixloop.policies.interface import Hold, Observation, Proposal
from mixloop.policies.mixture import check_names, in_force, still_reaching

from .interventions import RuleStatus, check_rule, hold, propose, to_initial, undo
from .moves import CannotMove, Moved, act, check_action, check_places, giving, receiving, takes_rest
from .options import Intervention, RulesOptions, expand
from .stages import carry_on, is_declared, stage_due, stage_names
from .timetable import check_schedule, scheduled

Sources = Mapping[str, Sequence[str]]


class RulesPolicy:
    """The first intervention whose conditions hold is made; otherwise hold."""

    Options = RulesOptions

    def __init__(self, options: RulesOptions | None = None) -> None:
        self.options = options or RulesOptions()

    def check(self, sources: Sources, benchmarks: Sequence[str]) -> None:
        """Raise ``PolicyError`` for a source, tag (``sources``: name to tags) or benchmark that
        the run doesn't have."""
        check_names("source", self.options.initial or {}, sources, "policy.with.initial")
        for index, stage in enumerate(self.options.stages):
            check_names("source", stage.weights, sources, f"policy.with.stages.{index}.weights")
        check_schedule(self.options, sources)
        places = _places(sources)
        for index, rule in enumerate(self.options.interventions):
            expanded = expand([rule], benchmarks, places)
            for one in expanded:
                _check_rule(one, sources, benchmarks, f"policy.with.interventions.{index}")

    def decide(self, observation: Observation) -> Proposal | Hold:
        """The move of the first rule that holds, with its evidence; or a hold that says which
        rule was nearest."""
        tags = {name: source.tags for name, source in observation.sources.items()}
        # before the first score nobody knows which benchmarks there are
        known = observation.benchmarks()
        self.check(tags, sorted(known or self._named_benchmarks()))
        initial = self.options.initial
        if initial is not None and still_reaching(observation, initial, "initial"):
            return to_initial(observation, initial)
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

    def _rules(self, observation: Observation) -> list[Intervention]:
        tags = {name: source.tags for name, source in observation.sources.items()}
        benchmarks = steering_benchmarks(observation)
        return expand(self.options.interventions, benchmarks, _places(tags))

    def _intervene(self, observation: Observation) -> Proposal | Hold:
        findings = [check_rule(rule, observation) for rule in self._rules(observation)]
        for finding in findings:
            if finding.trial is not None and finding.trial.state == "ending":
                return undo(finding)
        trying = [f for f in findings if f.trial and f.trial.state in ("running", "judging")]
        if any(not finding.trial.told for finding in trying if finding.trial):
            return hold(trying, [])
        firing = [finding for finding in findings if finding.holds]
        moved, stuck = self._move(firing, observation)
        tests = sum(len(finding.tested()) for finding in findings)
        return propose(moved, tests) if moved else hold(findings, stuck)

    def _move(
        self, firing: list[RuleStatus], observation: Observation
    ) -> tuple[list[tuple[RuleStatus, Moved]], list[tuple[RuleStatus, str]]]:
        """The moves to make, and the rules that hold but can't move, with the reason."""
        weights = in_force(observation)
        moved: list[tuple[RuleStatus, Moved]] = []
        stuck: list[tuple[RuleStatus, str]] = []
        given: set[str] = set()
        taken: set[str] = set()
        # "rest" spares every source that some move of this decision gives to
        spared = set() if not self.options.combine else _receivers(firing, observation)
        for finding in firing:
            rule, rest = finding.rule, takes_rest(finding.rule)
            to = receiving(rule, weights, observation.sources)
            named = giving(rule, weights, observation.sources)
            if to & taken or (named - to) & given:
                stuck.append((finding, "another rule's move goes the other way"))
                continue
            done = act(rule, weights, observation.sources, spared if rest else ())
            if isinstance(done, CannotMove):
                stuck.append((finding, done.why))
                continue
            moved.append((finding, done))
            if not self.options.combine:
                break
            weights = done.weights
            given |= {name for name, gain in done.gains.items() if gain > 0}
            taken |= {name for name, gain in done.gains.items() if gain < 0}
        return moved, stuck


def _places(sources: Sources) -> set[str]:
    """Everything a move may name: sources and tags."""
    return {*sources, *(tag for tags in sources.values() for tag in tags)}


def _check_rule(
    rule: Intervention, sources: Sources, benchmarks: Sequence[str], where: str
) -> None:
    check_action(rule, sources, where)
    for condition in rule.when:
        check_names("benchmark", condition.benchmarks(), benchmarks, f"{where}.when")
        if condition.ledger is not None:
            check_places(sources, f"{where}.when.ledger", source=condition.ledger.source)
    if rule.trial is not None:
        check_names("benchmark", rule.trial.of or (), benchmarks, f"{where}.trial.of")


def _receivers(firing: list[RuleStatus], observation: Observation) -> set[str]:
    weights, sources = in_force(observation), observation.sources
    return {name for f in firing for name in receiving(f.rule, weights, sources)}
