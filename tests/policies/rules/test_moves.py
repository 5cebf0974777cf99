"""The rest of the rules' language: scale, set, swap, for_each, schedules, further conditions."""

from __future__ import annotations

import random

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mixloop.policies.interface import (
    BenchmarkScore,
    Evaluation,
    Hold,
    Limits,
    Metric,
    Observation,
    PastDecision,
    PolicyError,
    Proposal,
    Source,
    load_policy,
)

SOURCES = {
    "prose": Source(unique_tokens=9000, tags=("web",)),
    "forum": Source(unique_tokens=3000, tags=("web",)),
    "code": Source(unique_tokens=2000, tags=("code",)),
    "maths": Source(unique_tokens=1000, tags=("math", "gsm8k"), drawn=1500, epochs=1.5),
    "owm": Source(unique_tokens=1000, tags=("math",), standby=True),
}
WEIGHTS = {"prose": 0.6, "forum": 0.2, "code": 0.15, "maths": 0.05, "owm": 0.0}


def score(value: float, stderr: float = 0.01) -> BenchmarkScore:
    metric = Metric(value=value, stderr=stderr, n=100, higher_is_better=False)
    return BenchmarkScore(metrics={"bits_per_byte": metric})


def observe(*values: dict[str, float], **changes: object) -> Observation:
    evaluations = tuple(
        Evaluation(
            step=100 * k,
            tokens=1000 * k,
            weights=WEIGHTS,
            benchmarks={name: score(value) for name, value in scored.items()},
        )
        for k, scored in enumerate(values, 1)
    )
    fields: dict[str, object] = {
        "step": 100 * len(values),
        "tokens": 1000 * len(values),
        "budget": 20_000,
        "phase": "stable",
        "sources": SOURCES,
        "weights": WEIGHTS,
        "evaluations": evaluations,
        "steering": dict.fromkeys(["gsm8k", "mmlu"], "bits_per_byte"),
    }
    return Observation(**fields | changes)


def decide(text: str, observation: Observation) -> Proposal | Hold:
    return load_policy("rules", yaml.safe_load(text)).decide(observation)


def rule(action: str, rest: str = "") -> str:
    return f"interventions: [{{name: r, {action}{', ' + rest if rest else ''}}}]"


@pytest.mark.parametrize(
    ("action", "changed"),
    [
        ("scale: {of: code, by: 2}", {"code": 0.30, "prose": 0.6 * (1 - 0.15 / 0.85)}),
        ("scale: {of: code, by: 2, cap: 0.2}", {"code": 0.20}),
        ("scale: {of: web, by: 0.5}", {"prose": 0.3, "forum": 0.1, "code": 0.15 + 0.4 * 0.75}),
        ("scale: {of: web, by: 0.5, from: code}", {"prose": 0.3, "code": 0.55, "maths": 0.05}),
        ("set: {prose: 0.5, owm: 0.5}", {"prose": 0.5, "owm": 0.5, "code": 0.0}),
        ("swap: {in: owm, out: maths}", {"owm": 0.05, "maths": 0.0, "prose": 0.6}),
        ("swap: {in: owm, out: web, part: 0.5}", {"owm": 0.4, "prose": 0.3, "forum": 0.1}),
    ],
)
def test_actions(action, changed):
    reply = decide(rule(action), observe({"gsm8k": 1.0}))
    assert isinstance(reply, Proposal), reply.reason
    assert {name: reply.weights[name] for name in changed} == pytest.approx(changed)
    assert sum(reply.weights.values()) == pytest.approx(1)


CALM = [2.9, 2.7, 2.54, 2.41, 2.3, 2.21, 2.14, 2.08]
"""A course smooth enough that what follows it isn't taken for jitter."""


@pytest.mark.parametrize(
    ("when", "values", "outcome"),
    [
        ("{ledger: {source: maths, above: 1.4}}", [1.0], "fires"),
        ("{ledger: {source: maths, above: 1.6}}", [1.0], "hold"),
        ("{ledger: {source: math, above: 2.4, at: end}}", [1.0], "fires"),  # 1.5 + 0.05 * 19
        ("{ledger: {source: math, above: 2.5, at: end}}", [1.0], "hold"),
        ("{ratio: {benchmark: gsm8k, to: mmlu, above: 1.9, z: 2}}", [2.0], "fires"),
        ("{ratio: {benchmark: gsm8k, to: mmlu, above: 1.99, z: 2}}", [2.0], "inconclusive"),
        ("{ratio: {benchmark: gsm8k, to: mmlu, below: 1.9}}", [2.0], "hold"),
        ("{regression: {benchmark: gsm8k}}", [*CALM, 2.03, 2.25], "fires"),
        ("{regression: {benchmark: gsm8k}}", [*CALM, 2.03, 2.05], "inconclusive"),
        ("{regression: {benchmark: gsm8k}}", [2.0, 1.5, 1.7], "inconclusive"),  # jitter, or a fall
        ("{regression: {benchmark: gsm8k, margin: 0.5}}", [*CALM, 2.03, 2.13], "hold"),
        ("{plateau: {benchmark: gsm8k, over: 1}}", [*CALM, 1.8, 1.8], "fires"),
        ("{plateau: {benchmark: gsm8k, over: 1}}", [*CALM, 1.98, 1.6], "hold"),
        ("{plateau: {benchmark: gsm8k, over: 1}}", [*CALM, 1.98, 1.93], "inconclusive"),
    ],
)
def test_further_conditions(when, values, outcome):
    observation = observe(*({"gsm8k": value, "mmlu": 1.0} for value in values))
    reply = decide(rule(f"when: {when}, move: {{to: code}}"), observation)
    got = "fires" if isinstance(reply, Proposal) else reply.verdict
    assert got == outcome, reply.reason


def test_the_more_evaluations_a_best_was_chosen_from_the_more_it_takes_to_regress():
    text = rule("when: {regression: {benchmark: gsm8k}}, move: {to: code}")
    few = [2.0] * 6 + [1.995, 2.04]
    assert isinstance(decide(text, observe(*({"gsm8k": v} for v in few))), Proposal)
    many = [2.0] * 60 + few[6:]
    reply = decide(text, observe(*({"gsm8k": v} for v in many)))
    assert isinstance(reply, Hold)
    assert reply.verdict == "inconclusive"


def test_priority_and_once():
    text = """
    interventions:
      - {name: low, move: {to: code}}
      - {name: high, priority: 2, once: true, move: {to: maths}}
    """
    first = decide(text, observe({"gsm8k": 1.0}))
    assert first.evidence["rule"] == "high"
    done = PastDecision(id="d1", step=50, tokens=500, verdict="intervene", rule="high")
    second = decide(text, observe({"gsm8k": 1.0}, decisions=(done,)))
    assert second.evidence["rule"] == "low"


def test_one_rule_for_each_benchmark_that_has_a_place():
    text = """
    interventions:
      - name: help-{benchmark}
        for_each: benchmark
        when: {regression: {benchmark: "{benchmark}"}}
        move: {to: "{benchmark}", step: 0.1}
    """
    observation = observe({"gsm8k": 1.0, "mmlu": 1.0}, {"gsm8k": 1.3, "mmlu": 1.3})
    reply = decide(text, observation)
    # nothing is tagged mmlu
    assert reply.evidence["rules"] == ["help-gsm8k"]
    assert reply.weights["maths"] == pytest.approx(0.15)
    assert reply.evidence["tests"] == 1


def test_a_late_source_enters_sized_to_last():
    text = "introduce: {source: owm, after: 2k, share: 0.5}"
    early = decide(text, observe({"gsm8k": 1.0}))
    assert isinstance(early, Hold)
    observation = observe({"gsm8k": 1.0}, {"gsm8k": 1.0}, limits=Limits(max_epochs=5))
    reply = decide(text, observation)
    assert reply.weights["owm"] == pytest.approx(5 * 1000 / 18_000)
    capped = decide("introduce: {source: owm, after: 2k, share: 0.1}", observation)
    assert capped.weights["owm"] == pytest.approx(0.1)


def test_a_late_source_that_guards_trimmed_goes_on_and_one_that_is_there_rests():
    text = "introduce: {source: owm, after: 1k, share: 0.2}"

    def after(weights: dict[str, float]) -> Proposal | Hold:
        done = PastDecision(
            id="d1", step=100, tokens=1000, verdict="intervene", rule="introduce owm",
            weights_before=WEIGHTS, weights_after=weights, evidence={"share": 0.2},
        )  # fmt: skip
        return decide(text, observe({"gsm8k": 1.0}, weights=weights, decisions=(done,)))

    part = after(WEIGHTS | {"prose": 0.5, "owm": 0.1})
    assert isinstance(part, Proposal)
    assert part.weights["owm"] == pytest.approx(0.2)
    assert isinstance(after(WEIGHTS | {"prose": 0.4, "owm": 0.2}), Hold)


@pytest.mark.parametrize(
    ("spec", "together"),
    [("{to: [code, math], share: 0.5}", 0.5), ("{to: [code, math], by: 1.5}", 0.3),
     ("{to: [code, math], by: 9, cap: 0.6}", 0.6)],
)  # fmt: skip
def test_annealing_comes_with_the_decay(spec, together):
    text = f"anneal: {spec}"
    assert isinstance(decide(text, observe({"gsm8k": 1.0})), Hold)
    reply = decide(text, observe({"gsm8k": 1.0}, phase="decay"))
    assert reply.weights["code"] + reply.weights["maths"] == pytest.approx(together)
    assert reply.weights["owm"] == 0.0  # on standby: a tag doesn't bring it in
    assert reply.evidence["rule"] == "anneal 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (rule("move: {to: code}, swap: {in: owm, out: web}"), "give one of move, scale, set"),
        (rule("when: {phase: stable}"), "give one of .*not none"),
        (rule("scale: {of: code, by: 1}"), "scale: by 1 changes nothing"),
        (rule("move: {to: code}", "once: true, max_times: 2"), "once and max_times"),
        (rule("move: {to: code}", "for_each: benchmark"), r"write r-\{benchmark\}"),
        (rule("move: {to: code}", "after: 2k, until: 1k"), "until is not after"),
        ("anneal: {to: code}", "anneal.0: give one of share and by"),
        ("introduce: [{source: a, after: 1}, {source: a, after: 2}]", "introduce names 'a' twice"),
        ("stages: [{until: 2k, weights: {a: 1}}, {until: 1k, weights: {a: 1}}]", "'2' ends at 1k"),
        ("stages: [{weights: {a: 1}}, {until: 1k, weights: {a: 1}}]", "'1' has no until"),
        ("stages: [{until: 1k, phase: decay, weights: {a: 1}}]", "until or phase, not both"),
        ("{initial: {a: 1}, stages: [{weights: {a: 1}}]}", "initial or stages"),
        ("stages: [{weights: {a: 0.5}}]", "stages.0.weights: the weights sum to 0.5"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line(text, message):
    with pytest.raises(PolicyError, match=message) as caught:
        load_policy("rules", yaml.safe_load(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (rule("swap: {in: owmm, out: web}"), "interventions.0.swap.in: .*'owmm'; did you mean"),
        (rule("scale: {of: wob, by: 2}"), "interventions.0.scale.of: no source or tag 'wob'"),
        (rule("set: {prose: 0.5, x: 0.5}"), "interventions.0.set: no source is called 'x'"),
        (rule("when: {ledger: {source: z, above: 1}}, move: {to: code}"), "ledger.source: .*'z'"),
        (rule("move: {to: code}", "trial: {of: gsm9k}"), "trial.of: .*'gsm9k'; did you mean"),
        ("introduce: {source: own, after: 1}", "introduce.0.source: .*'own'; did you mean"),
        ("anneal: {to: cod, share: 0.5}", "anneal.0.to: no source or tag 'cod'"),
        ("stages: [{weights: {pros: 1.0}}]", "stages.0.weights: no source is called 'pros'"),
    ],
)
def test_names_are_checked_before_the_run(text, message):
    policy = load_policy("rules", yaml.safe_load(text))
    tags = {name: source.tags for name, source in SOURCES.items()}
    with pytest.raises(PolicyError, match=message):
        policy.check(tags, ["gsm8k", "mmlu"])


TRIED = """
anneal: {to: code, by: 2}
introduce: {source: owm, after: 3k, share: 0.2}
interventions:
  - name: try
    move: {to: ["{benchmarks}"], step: 0.2}
    trial: {over: 1, least: 2}
  - {name: halve, when: {plateau: {benchmark: mmlu, over: 1}}, scale: {of: web, by: 0.5}}
  - {name: swap, priority: 1, when: {regression: {benchmark: gsm8k}}, swap: {in: owm, out: web}}
"""
levels = st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)), max_size=8)


@settings(max_examples=15, deadline=None)
@given(levels, st.sampled_from([None, "warmup", "stable", "decay"]), st.integers(0, 9))
def test_whatever_was_seen_the_answer_is_pure_and_on_the_simplex(values, phase, seed):
    drawing = random.Random(seed)
    names = ["try", "undo try", "halve", "introduce owm", "anneal 1"]
    past = tuple(
        PastDecision(
            id=f"d{k}", step=100 * k, tokens=1000 * k, verdict="intervene",
            rule=drawing.choice(names), weights_before=WEIGHTS, weights_after=WEIGHTS,
        )
        for k in range(drawing.randint(0, 4))
    )  # fmt: skip
    observation = observe(
        *({"gsm8k": a, "mmlu": b} for a, b in values), phase=phase, decisions=past
    )
    before = observation.model_dump_json()
    reply = decide(TRIED, observation)
    assert observation.model_dump_json() == before
    assert decide(TRIED, Observation.model_validate_json(before)) == reply
    if isinstance(reply, Proposal):
        assert set(reply.weights) == set(SOURCES)
        assert min(reply.weights.values()) >= 0
        assert sum(reply.weights.values()) == pytest.approx(1, abs=1e-9)


TWO_EPOCHS = Limits(max_epochs=2)
LASTS = {"forum": 6000 / 19_000, "code": 4000 / 19_000, "owm": 2000 / 19_000}
"""Shares at which two epochs last to the end, with 19,000 tokens to come."""


@pytest.mark.parametrize(
    ("action", "changed"),
    [
        ("move: {to: code, step: 0.1}", {"code": LASTS["code"]}),
        ("move: {to: [code, maths], from: prose, step: 0.05}", {"code": 0.2, "prose": 0.55}),
        ("move: {to: [code, forum], from: prose, step: 0.15}", {"code": LASTS["code"]}),
        ("scale: {of: code, by: 2}", {"code": LASTS["code"]}),
        ("scale: {of: prose, by: 0.5, from: [code, forum]}", {"forum": LASTS["forum"]}),
        ("swap: {in: owm, out: forum}", {"owm": LASTS["owm"], "forum": 0.2 - LASTS["owm"]}),
        ("set: {code: 1.0}", {"code": 1.0, "prose": 0.0}),
    ],
)  # fmt: skip
def test_no_source_is_raised_further_than_its_epochs_last(action: str, changed: dict[str, float]):
    observation = observe({"gsm8k": 1.9}, limits=TWO_EPOCHS)
    reply = decide(rule(action), observation)
    assert isinstance(reply, Proposal)
    assert {name: reply.weights[name] for name in changed} == pytest.approx(changed)
    assert sum(reply.weights.values()) == pytest.approx(1)
    assert ("no further: lasts to the end" in reply.reason) == ("set" not in action)
    freely = decide(f"exhaust: true\n{rule(action)}", observation)
    assert freely == decide(rule(action), observe({"gsm8k": 1.9}))


def test_a_move_to_what_lasts_no_longer_is_held_and_says_how_it_could_be_made():
    held = decide(rule("move: {to: maths}"), observe({"gsm8k": 1.9}, limits=TWO_EPOCHS))
    assert isinstance(held, Hold)
    assert "maths would be used up before the end" in held.reason
    assert "exhaust: true" in held.reason
    annealed = observe({"gsm8k": 1.9}, limits=TWO_EPOCHS, phase="decay", tokens=19_000)
    # half a source in the last 1,000 tokens is none too much
    raised = decide("anneal: {to: maths, share: 0.3}", annealed).weights
    assert raised["maths"] == pytest.approx(0.3)
