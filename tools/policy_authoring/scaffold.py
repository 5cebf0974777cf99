"""A new policy to start from: a small one that works, and its test."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from mixloop.common.errors import BadInput

POLICY = '''\
"""Gives tokens to the sources that give most back for them."""

import math

from mixloop.policies import Hold, MissingScore, Observation, Proposal, in_force
from mixloop.policies.evidence import honest_difference
from pydantic import BaseModel, Field


class Options(BaseModel):
    step: float = Field(0.05, gt=0, le=1, description="share of all tokens that a decision moves")
    over: int = Field(2, ge=1, description="evaluations to look back")
    z: float = Field(2.0, ge=0, description="standard errors between the best return and the rest")


class {cls}:
    """Moves a step to the sources whose benchmark gained most per token they got."""

    Options = Options

    def __init__(self, options: Options) -> None:
        self.options = options

    def decide(self, observation: Observation) -> Proposal | Hold:
        found = self.returns(observation)
        if len(found) < 2:
            return Hold("fewer than two benchmarks can be compared", verdict="inconclusive")
        best = max(found, key=lambda name: found[name][0])
        others = [value for name, value in found.items() if name != best]
        ahead = found[best][0] - sum(value for value, _ in others) / len(others)
        spread = math.hypot(found[best][1], *(stderr / len(others) for _, stderr in others))
        evidence = {{"benchmark": best, "ahead": ahead, "stderr": spread}}
        if ahead < self.options.z * spread:
            return Hold(f"{{best}} gains most, not significantly", evidence, "inconclusive")
        to = tagged(observation, best)
        weights = {{n: (1 - self.options.step) * w for n, w in in_force(observation).items()}}
        for name in to:
            weights[name] += self.options.step / len(to)
        reason = f"{{best}} gains {{ahead:.2g}} ±{{spread:.1g}} more than the rest per 1% of tokens"
        return Proposal(weights, reason, evidence=evidence)

    def returns(self, observation: Observation) -> dict[str, tuple[float, float]]:
        """Benchmark to its gain, and standard error, per hundredth of the tokens it was given."""
        found = {{}}
        for benchmark in observation.steering:
            try:
                older, newer = (observation.evaluation(i) for i in (-1 - self.options.over, -1))
                gain = honest_difference(observation, benchmark, older, newer, "bits_per_byte")
            except MissingScore:
                continue
            given = sum(
                newer.drawn.get(name, 0.0) - older.drawn.get(name, 0.0)
                for name in tagged(observation, benchmark)
            )
            percent = 100 * given / max(1, newer.tokens - older.tokens)
            if percent > 0 and math.isfinite(gain.stderr):
                found[benchmark] = (gain.gain / percent, gain.stderr / percent)
        return found


def tagged(observation: Observation, benchmark: str) -> list[str]:
    """The active sources that are tagged with a benchmark."""
    sources = observation.sources.items()
    return [name for name, s in sources if benchmark in s.tags and not s.standby]
'''

TEST = '''\
"""{cls} conforms, and does what it says."""

from pathlib import Path

from mixloop.policies import Hold, Proposal, load_policy
from mixloop.policies.testing import PolicyConformance, run_so_far

HERE = Path(__file__).parent
REF = "./{name}.py:{cls}"


class Test{cls}(PolicyConformance):
    policy = REF
    base = HERE


def test_a_step_goes_to_the_sources_that_gave_most():
    seen = run_so_far(12)
    policy = load_policy(REF, {{"step": 0.1, "z": 0}}, base=HERE)
    reply = policy.decide(seen)
    assert isinstance(reply, Proposal)
    gaining = [n for n, w in reply.weights.items() if w > seen.weights[n]]
    assert gaining
    assert all(reply.evidence["benchmark"] in seen.sources[name].tags for name in gaining)


def test_without_significance_it_holds():
    policy = load_policy(REF, {{"z": 100}}, base=HERE)
    reply = policy.decide(run_so_far(12))
    assert isinstance(reply, Hold)
    assert reply.verdict == "inconclusive"
'''


def write_policy(name: str, directory: Path) -> tuple[str, Path]:
    """Write ``NAME.py`` and ``test_NAME.py``; returns the policy's reference and the test's path.

    Raises:
        BadInput: for a name that can't be a module's, or a file that is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise BadInput(f"policies new: {name!r} is no module name; write one such as my_policy")
    if not directory.is_dir():
        raise BadInput(f"policies new: there is no folder {directory}; make it first")
    cls = "".join(part.capitalize() for part in name.split("_") if part)
    files = {directory / f"{name}.py": POLICY, directory / f"test_{name}.py": TEST}
    for path in files:
        if path.exists():
            raise BadInput(f"policies new: {path} is there already; give another name")
    for path, template in files.items():
        with path.open("x", encoding="utf-8") as file:
            file.write(template.format(name=name, cls=cls))
    policy, test = files
    shown = policy.as_posix()
    return f"{shown if '/' in shown else './' + shown}:{cls}", test
