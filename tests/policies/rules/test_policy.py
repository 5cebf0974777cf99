"""The rules policy: when it acts, when it holds, what it says, and what it refuses to load."""

from __future__ import annotations

import json
import random
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mixloop.policies.evidence import honest_difference
from mixloop.policies.interface import (
    BenchmarkScore,
    Evaluation,
    Hold,
    Metric,
    Observation,
    PastDecision,
    PolicyError,
    Proposal,
    Source,
    load_policy,
)
from mixloop.policies.mixture import total_variation

SOURCES = {
    "prose": Source(unique_tokens=9000, tags=("web",)),
    "forum": Source(unique_tokens=3000, tags=("web",)),
    "code": Source(unique_tokens=5000, tags=("code",)),
    "maths": Source(unique_tokens=2000, tags=("math",)),
    "owm": Source(unique_tokens=1000, tags=("math",), standby=True),
}
WEIGHTS = {"prose": 0.6, "forum": 0.2, "code": 0.15, "maths": 0.05, "owm": 0.0}


def bench(value: float, n: int = 8, spread: float = 0.0, seed: int = 0) -> BenchmarkScore:
    """Items with a fixed difficulty each, all moved to ``value``, jittered by ``spread``."""
    hard, jitter = random.Random(1), random.Random(seed)
    offsets = [jitter.gauss(0, spread) for _ in range(n)]
    centre = sum(offsets) / n
    values = [value + hard.gauss(0, 0.3) + offset - centre for offset in offsets]
    items = {str(k): {"bits_per_byte": v, "bytes": 100.0} for k, v in enumerate(values)}
    metric = Metric(value=sum(values) / n, stderr=0.3 / n**0.5, n=n, higher_is_better=False)
    return BenchmarkScore(metrics={"bits_per_byte": metric}, items=items)


def observe(*scores: dict[str, BenchmarkScore], **changes: object) -> Observation:
    evaluations = [
        Evaluation(step=100 * k, tokens=1000 * k, benchmarks=scored)
        for k, scored in enumerate(scores, 1)
    ]
    fields: dict[str, object] = {
        "step": 100 * len(scores),
        "tokens": 1000 * len(scores),
        "phase": "stable",
        "sources": SOURCES,
        "weights": WEIGHTS,
        "evaluations": tuple(evaluations),
        "steering": dict.fromkeys(["gsm8k", "math", "humaneval"], "bits_per_byte"),
    }
    return Observation(**fields | changes)


def rules(text: str) -> object:
    return load_policy("rules", yaml.safe_load(text))


def one(when: str, move: str = "{to: maths, from: prose, step: 0.05}", rest: str = "") -> str:
    return f"interventions: [{{name: r, when: {when}, move: {move}{', ' if rest else ''}{rest}}}]"


def past(step: int, rule: str = "r", verdict: str = "intervene", **more: object) -> PastDecision:
    fields = {"id": f"d{step}", "step": step, "tokens": 10 * step, "verdict": verdict, "rule": rule}
    return PastDecision(**fields | more)


ABOVE = "{level: {benchmark: gsm8k, above: 1.2}}"


def test_a_level_fires_and_the_reason_reads_as_a_sentence():
    observation = observe({"gsm8k": bench(1.9)})
    reply = rules(one(ABOVE)).decide(observation)
    assert isinstance(reply, Proposal)
    value = observation.evaluations[0].benchmarks["gsm8k"].metrics["bits_per_byte"].value
    assert reply.reason == (
        f"gsm8k bits_per_byte {value:.4g} above 1.2 (n=8, ±0.11): maths +0.05 from prose"
    )
    assert reply.weights == pytest.approx(WEIGHTS | {"prose": 0.55, "maths": 0.10})
    assert reply.evidence["rule"] == "r"
    assert reply.evidence["benchmark"] == "gsm8k"
    assert reply.evidence["values"] == [value]
    assert reply.evidence["tokens"] == [1000]
    assert reply.evidence["n"] == 8
    assert json.loads(json.dumps(reply.evidence, allow_nan=False)) == reply.evidence


def test_nothing_holds_says_what_was_nearest():
    text = """
    interventions:
      - {name: far, when: {level: {benchmark: gsm8k, above: 9}}, move: {to: maths}}
      - {name: near, when: {level: {benchmark: gsm8k, above: 2.5}}, move: {to: maths}}
    """
    reply = rules(text).decide(observe({"gsm8k": bench(1.9)}))
    assert isinstance(reply, Hold)
    assert reply.verdict == "hold"
    assert reply.reason.startswith("no rule holds; nearest near: gsm8k bits_per_byte")
    assert "not above 2.5" in reply.reason


def test_the_first_rule_that_holds_and_can_move_fires():
    text = f"""
    interventions:
      - {{name: full, when: {ABOVE}, move: {{to: maths, cap: 0.05}}}}
      - {{name: second, when: {ABOVE}, move: {{to: code, from: web}}}}
      - {{name: third, when: {ABOVE}, move: {{to: forum}}}}
    """
    reply = rules(text).decide(observe({"gsm8k": bench(1.9)}))
    assert reply.evidence["rules"] == ["second"]
    assert reply.weights["code"] == pytest.approx(0.20)
    # three to one, as they stand
    assert reply.weights["prose"] == pytest.approx(0.6 - 0.0375)


@pytest.mark.parametrize(
    ("move", "changed"),
    [
        ("{to: maths, from: rest, step: 0.1}", {"maths": 0.15, "prose": 0.6 * (1 - 0.1 / 0.95)}),
        ("{to: math, from: web, step: 0.1}", {"maths": 0.15, "owm": 0.0}),
        ("{to: owm, from: [prose, code], step: 0.1}", {"owm": 0.1, "prose": 0.52, "code": 0.13}),
        ("{to: [maths, owm], from: web, step: 0.1}", {"maths": 0.15, "owm": 0.0}),
        ("{to: maths, from: web, step: 0.1, cap: 0.08}", {"maths": 0.08}),
        ("{to: maths, from: web, step: 0.3, floor: 0.19}", {"forum": 0.2 - 1 / 140}),
        ("{to: maths, from: code, step: 0.3}", {"maths": 0.2, "code": 0.0}),
        ("{to: web, from: code, step: 0.1}", {"prose": 0.675, "forum": 0.225, "code": 0.05}),
    ],
)  # fmt: skip
def test_moves(move, changed):
    reply = rules(one(ABOVE, move)).decide(observe({"gsm8k": bench(1.9)}))
    assert isinstance(reply, Proposal), reply.reason
    assert {name: reply.weights[name] for name in changed} == pytest.approx(changed)
    assert sum(reply.weights.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("move", "why"),
    [
        ("{to: maths, cap: 0.05}", "maths at 0.05 has reached its cap 0.05"),
        ("{to: maths, from: owm}", "owm has nothing left"),
        ("{to: maths, from: web, floor: 0.7}", "prose, forum has nothing left above floor 0.7"),
    ],
)
def test_a_move_with_nothing_to_do_holds(move, why):
    reply = rules(one(ABOVE, move)).decide(observe({"gsm8k": bench(1.9)}))
    assert isinstance(reply, Hold)
    assert reply.reason.endswith(f"but {why}")


def trend(is_: str, more: str = "") -> str:
    return f"{{trend: {{benchmark: gsm8k, over: 1, is: {is_}{more}}}}}"


@pytest.mark.parametrize(
    ("older", "newer", "spread", "is_", "more", "outcome"),
    [
        (2.0, 1.8, 0.02, "better", "", "fires"),
        (2.0, 1.8, 0.02, "worse", "", "hold"),
        (2.0, 1.8, 0.02, "not-better", "", "hold"),
        (2.0, 1.8, 0.02, "flat", "", "hold"),
        (1.8, 2.0, 0.02, "worse", "", "fires"),
        (1.8, 2.0, 0.02, "not-better", "", "fires"),
        (2.0, 1.97, 0.40, "better", "", "inconclusive"),
        (1.97, 2.0, 0.40, "worse", "", "inconclusive"),
        (2.0, 2.0, 0.01, "flat", ", margin: 0.05", "fires"),
        (2.0, 2.0, 0.50, "flat", ", margin: 0.05", "inconclusive"),
        (2.0, 1.8, 0.01, "flat", ", margin: 0.05", "hold"),
        (2.0, 1.99, 0.01, "not-better", ", margin: 0.05", "fires"),
        (2.0, 1.80, 0.01, "better", ", margin: 0.05", "fires"),
        (2.0, 1.98, 0.01, "better", ", margin: 0.05", "hold"),
    ],
)
def test_trends(older, newer, spread, is_, more, outcome):
    scores = [bench(older, 12, spread, 3), bench(newer, 12, spread, 4)]
    reply = rules(one(trend(is_, more))).decide(observe(*({"gsm8k": s} for s in scores)))
    got = "fires" if isinstance(reply, Proposal) else reply.verdict
    assert got == outcome, reply.reason


def test_trend_evidence_names_both_evaluations():
    observation = observe(
        *({"gsm8k": bench(v, spread=0.01, seed=k)} for k, v in enumerate((2, 1.9, 1.8)))
    )
    reply = rules(one("{trend: {benchmark: gsm8k, over: 2, is: better}}")).decide(observation)
    difference = honest_difference(observation, "gsm8k", 0, 2)
    assert difference.stderr > observation.difference("gsm8k", 0, 2).stderr
    assert reply.evidence["stderr_trajectory"] == difference.trajectory
    assert reply.evidence["tokens"] == [1000, 3000]
    assert reply.evidence["z"] == difference.z
    assert reply.evidence["gain"] == difference.gain
    assert "better over 2 evaluations (" in reply.reason


def test_too_few_or_missing_evaluations_are_inconclusive():
    policy = rules(one("{trend: {benchmark: gsm8k, over: 3, is: not-better}}"))
    for observation, why in [
        (observe(), "no evaluation yet"),
        (observe({"gsm8k": bench(2)}), "gsm8k has 1 of the 4 evaluations needed"),
        (observe({"gsm8k": bench(2)}, {"math": bench(2)}), "gsm8k has no score at step 200"),
        (observe({"gsm8k": bench(float("nan"))}), "gsm8k has no score at step 100"),
    ]:
        reply = policy.decide(observation)
        assert isinstance(reply, Hold)
        assert (reply.verdict, reply.reason) == ("inconclusive", f"r: {why}")


def test_one_item_never_makes_a_trend():
    observation = observe({"gsm8k": bench(2.0, n=1)}, {"gsm8k": bench(2.5, n=1)})
    for is_ in ("flat", "worse", "better", "not-better"):
        reply = rules(one(trend(is_))).decide(observation)
        assert isinstance(reply, Hold)
        assert reply.verdict == "inconclusive"


def test_pooled_benchmarks():
    when = "[{level: {benchmark: [gsm8k, math], above: 1.5}}]"
    reply = rules(one(when)).decide(observe({"gsm8k": bench(2.0), "math": bench(1.4)}))
    assert isinstance(reply, Proposal)
    assert reply.evidence["benchmark"] == "gsm8k+math"
    assert reply.evidence["n"] == 16


def test_a_level_may_ask_for_significance():
    when = "{level: {benchmark: gsm8k, above: 1.9, z: 3}}"
    reply = rules(one(when)).decide(observe({"gsm8k": bench(2.0)}))
    assert isinstance(reply, Hold)
    assert reply.verdict == "inconclusive"
    assert "needs z 3" in reply.reason


def test_lag_compares_relative_gains():
    def both(gsm8k: float, math: float, seed: int) -> dict[str, BenchmarkScore]:
        return {"gsm8k": bench(gsm8k, 12, 0.01, seed), "math": bench(math, 12, 0.01, seed + 9)}

    policy = rules(one("{lag: {benchmark: gsm8k, than: [math]}}"))
    lags = policy.decide(observe(both(2.0, 2.0, 1), both(1.98, 1.7, 2)))
    assert isinstance(lags, Proposal)
    assert "gsm8k lags math (relative gain" in lags.reason
    leads = policy.decide(observe(both(2.0, 2.0, 1), both(1.7, 1.98, 2)))
    assert isinstance(leads, Hold)
    assert leads.verdict == "hold"


def test_lag_takes_both_sides_in_one_metric():
    """A headline that steers one benchmark is not held against bits per byte of another."""

    def scored(gsm8k: float, right: float, math: float, seed: int) -> dict[str, BenchmarkScore]:
        bits = bench(gsm8k, 12, 0.01, seed)
        headline = Metric(value=right, stderr=0.01, n=12)
        both = bits.model_copy(update={"metrics": bits.metrics | {"exact_match": headline}})
        return {"gsm8k": both, "math": bench(math, 12, 0.01, seed + 9)}

    policy = rules(one("{lag: {benchmark: gsm8k, than: [math]}}"))
    steering = {"gsm8k": "exact_match", "math": "bits_per_byte"}
    observation = observe(scored(2.0, 0.2, 2.0, 1), scored(1.98, 0.8, 1.7, 2), steering=steering)
    reply = policy.decide(observation)
    assert isinstance(reply, Proposal), "0.2 to 0.8 looks like no lag at all"
    (condition,) = reply.evidence["conditions"]
    assert condition["metric"] == "bits_per_byte"


@pytest.mark.parametrize(
    ("when", "fires"),
    [
        ("{tokens: {above: 1k}}", True),
        ("{tokens: {above: 2k}}", False),
        ("{tokens: {below: 1k}}", False),
        ("{phase: stable}", True),
        ("{phase: [warmup, decay]}", False),
        ("{tokens: {above: 1k}, phase: stable}", True),
        ("[{tokens: {above: 1k}}, {phase: decay}]", False),
        ("[]", True),
    ],
)
def test_tokens_and_phases(when, fires):
    reply = rules(one(when)).decide(observe({"gsm8k": bench(2)}))
    assert isinstance(reply, Proposal) is fires


@pytest.mark.parametrize(
    ("rest", "decisions", "resting"),
    [
        ("after: 4k", [], "starts at 4k tokens"),
        ("until: 3k", [], "ended at 3k tokens"),
        ("phases: decay", [], "only in decay, now stable"),
        ("max_times: 1", [past(100)], "fired 1 of 1 times"),
        ("max_times: 1", [past(100, verdict="refused")], ""),
        ("cooldown: 2001", [past(100)], "cooling down: 2k of 2k tokens"),
        ("cooldown: 2k", [past(100)], ""),
        ("cooldown: 3 evaluations", [past(100)], "cooling down: 2 of 3 evaluations"),
        ("cooldown: 2 evaluations", [past(100)], ""),
        ("cooldown: {evaluations: 3}", [past(100, rule="other")], ""),
        ("cooldown: 3 evaluations", [past(100, verdict="hold")], ""),
        ("cooldown: 3 evaluations", [past(100, "x", evidence={"rules": ["x", "r"]})],
         "cooling down: 2 of 3 evaluations"),
    ],
)  # fmt: skip
def test_when_a_rule_rests(rest, decisions, resting):
    scores = [{"gsm8k": bench(1.9)}] * 3
    reply = rules(one(ABOVE, rest=rest)).decide(observe(*scores, decisions=tuple(decisions)))
    if resting:
        assert isinstance(reply, Hold)
        assert reply.reason == f"every rule rests: r {resting}"
    else:
        assert isinstance(reply, Proposal)


def test_combined_moves_are_summed_where_they_agree():
    text = f"""
    combine: true
    interventions:
      - {{name: a, when: {ABOVE}, move: {{to: maths, from: rest, step: 0.05}}}}
      - {{name: b, when: {ABOVE}, move: {{to: code, from: rest, step: 0.10}}}}
      - {{name: c, when: {ABOVE}, move: {{to: prose, from: maths, step: 0.01}}}}
    """
    reply = rules(text).decide(observe({"gsm8k": bench(1.9)}))
    assert reply.evidence["rules"] == ["a", "b"]
    expected = {"maths": 0.10, "code": 0.25, "prose": 0.6 - 0.15 * 0.75, "forum": 0.2 - 0.15 * 0.25}
    # c gives to prose, so the others' "rest" spares it; then nothing but forum pays
    assert reply.weights["maths"] == pytest.approx(expected["maths"])
    assert reply.weights["code"] == pytest.approx(expected["code"])
    assert sum(reply.weights.values()) == pytest.approx(1)


def test_initial_is_reached_before_anything_else():
    text = "initial: {prose: 0.5, code: 0.5}\n" + one(ABOVE)
    reply = rules(text).decide(observe({"gsm8k": bench(1.9)}))
    assert reply.evidence["rule"] == "initial"
    assert reply.weights == {"prose": 0.5, "forum": 0.0, "code": 0.5, "maths": 0.0, "owm": 0.0}
    reached = past(50, "initial", weights_after={"prose": 0.5, "code": 0.5})
    after = rules(text).decide(observe({"gsm8k": bench(1.9)}, decisions=(reached,)))
    assert after.evidence["rule"] == "r"


def test_unknown_names_fail_early_and_at_the_decision():
    tags = {name: source.tags for name, source in SOURCES.items()}
    observation = observe({"gsm8k": bench(1.9)})
    for text, message in [
        (one(ABOVE, "{to: mathz}"), "interventions.0.move.to: no source or tag 'mathz'; did you"),
        (one(ABOVE, "{to: maths, from: [web, cod]}"), "move.from: no source or tag 'cod'"),
        (one("{level: {benchmark: gsm8, above: 1}}"), "benchmark is called 'gsm8'; did you mean"),
        (one("{lag: {benchmark: gsm8k, than: mth}}"), "benchmark is called 'mth'"),
        ("initial: {pros: 1.0}", "policy.with.initial: no source is called 'pros'"),
    ]:
        policy = rules(text)
        with pytest.raises(PolicyError, match=message):
            policy.check(tags, ["gsm8k", "math"])
        with pytest.raises(PolicyError, match=message):
            policy.decide(observation)
    rules(one(ABOVE)).check(tags, ["gsm8k"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("intervention: []", "with.intervention: unknown option .*did you mean 'interventions'?"),
        (one(ABOVE, "{to: a, stp: 1}"), "interventions.0.move.stp: .*did you mean 'step'?"),
        (one(ABOVE, "{from: a}"), "interventions.0.move.to: missing"),
        (one(ABOVE, "{to: a, step: -1}"), r"move.step: .*greater than 0 \(value -1\)"),
        (one(ABOVE, "{to: []}"), "move.to: name at least one"),
        (one("{level: {benchmark: b}}"), "when.0.level: give one of above and below"),
        (one("{level: {benchmark: b, above: 1, below: 2}}"), "give one of above and below"),
        (one("{}"), "when.0: an empty condition"),
        (one("{trnd: 1}"), "when.0.trnd: unknown option .*did you mean 'trend'?"),
        (one("{trend: {benchmark: b, is: flatt}}"), "trend.is: .*'flat', 'worse'.*'flatt'"),
        (one("{trend: {benchmark: b}}"), "trend.is: missing"),
        (one("{tokens: {above: 5X}}"), "tokens.above: '5X' is not a token count"),
        (one("{tokens: {}}"), "tokens: give above, below or both"),
        (one("{phase: anneal}"), "phase.0: .*'warmup', 'stable' or 'decay'"),
        (one(ABOVE, rest="cooldown: 5 days"), "cooldown: '5 days' is no cooldown"),
        (one(ABOVE, rest="max_times: 0"), "max_times: .*greater than or equal to 1"),
        ("initial: {a: 0.5}", "initial: the weights sum to 0.5, not 1"),
        ("interventions: [{name: initial, move: {to: a}}]", "'initial' is reserved"),
        ("interventions: [{name: x, move: {to: a}}, {name: x, move: {to: a}}]", "used twice"),
    ],
)
def test_mistakes_in_the_file_get_one_line(text, message):
    with pytest.raises(PolicyError, match=message) as caught:
        rules(text)
    assert "\n" not in str(caught.value)


FULL = """
initial: {prose: 0.6, forum: 0.2, code: 0.15, maths: 0.05}
combine: true
interventions:
  - name: a
    when:
      - level: {benchmark: gsm8k, above: 1.0}
      - trend: {benchmark: [gsm8k, math], over: 1, is: not-better}
    move: {to: math, from: rest, step: 0.2, cap: 0.5, floor: 0.01}
  - {name: b, when: {lag: {benchmark: math, than: gsm8k}}, move: {to: owm, from: web}}
  - {name: c, when: {level: {benchmark: math, below: 3}}, move: {to: code, from: [web, maths]}}
"""
shares = st.lists(st.floats(0, 1), min_size=5, max_size=5).filter(lambda w: sum(w) > 0.01)


@settings(max_examples=60, deadline=None)
@given(shares, st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), max_size=4), st.booleans())
def test_always_pure_on_the_simplex_and_jsonable(raw, levels, combine):
    total = sum(raw)
    weights = {name: w / total for name, w in zip(SOURCES, raw, strict=True)}
    scores = [{"gsm8k": bench(a), "math": bench(b, seed=k)} for k, (a, b) in enumerate(levels)]
    observation = observe(*scores, weights=weights)
    before = observation.model_dump_json()
    text = FULL if combine else FULL.replace("combine: true", "").replace("initial", "#")
    policy = rules(text)
    reply = policy.decide(observation)
    assert observation.model_dump_json() == before
    assert rules(text).decide(Observation.model_validate_json(before)) == reply
    assert reply.reason
    assert "\n" not in reply.reason
    json.dumps(reply.evidence, allow_nan=False)
    if isinstance(reply, Proposal):
        assert set(reply.weights) == set(SOURCES)
        assert min(reply.weights.values()) >= 0
        assert sum(reply.weights.values()) == pytest.approx(1, abs=1e-9)
        assert total_variation(reply.weights, weights) > 0


def test_a_long_run_with_many_sources_decides_in_time():
    names = [f"s{k}" for k in range(64)]
    scores = {b: bench(1.9, 400) for b in ("gsm8k", "math", "humaneval", "mmlu")}
    observation = observe(
        *([scores] * 110),
        sources={name: Source(unique_tokens=10, tags=("t",)) for name in names},
        weights=dict.fromkeys(names, 1 / 64),
    )
    policy = rules(one(f"[{trend('not-better')}, {ABOVE}]", "{to: s3, from: t}"))
    start = time.process_time()
    assert isinstance(policy.decide(observation), Proposal)
    assert time.process_time() - start < 0.5
