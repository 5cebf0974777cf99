"""A new policy to start from: a small one that works, and its test."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from mixloop.controller.errors import BadInput

POLICY = '''\
"""Gives more tokens to the benchmark that gains least."""

import math

from mixloop.policies import Hold, MissingScore, Observation, Proposal, in_force
from pydantic import BaseModel, Field


class Options(BaseModel):
    step: float = Field(0.05, gt=0, le=1, description="share of all tokens that a decision moves")
    over: int = Field(2, ge=1, description="evaluations to look back")
    z: float = Field(2.0, ge=0, description="standard errors that a benchmark must be behind")


class {cls}:
    """Moves a step to the sources of the benchmark that gains significantly less than the rest."""

    Options = Options

    def __init__(self, options: Options) -> None:
        self.options = options

    def decide(self, observation: Observation) -> Proposal | Hold:
        gains = self.gains(observation)
        if len(gains) < 2:
            return Hold("fewer than two benchmarks can be compared", verdict="inconclusive")
        slowest = min(gains, key=lambda name: gains[name].gain)
        others = [gain for name, gain in gains.items() if name != slowest]
        behind = sum(other.gain for other in others) / len(others) - gains[slowest].gain
        spread = math.hypot(gains[slowest].stderr, *(o.stderr / len(others) for o in others))
        evidence = {{"benchmark": slowest, "behind": behind, "stderr": spread}}
        if behind < self.options.z * spread:
            return Hold(f"{{slowest}} gains least, not significantly", evidence, "inconclusive")
        sources = observation.sources.items()
        to = [name for name, s in sources if slowest in s.tags and not s.standby]
        if not to:
            return Hold(f"{{slowest}} gains least, but no source is tagged with it", evidence)
        weights = {{n: (1 - self.options.step) * w for n, w in in_force(observation).items()}}
        for name in to:
            weights[name] += self.options.step / len(to)
        reason = f"{{slowest}} is {{behind:.3g}} ±{{spread:.2g}} behind: {{', '.join(to)}} up"
        return Proposal(weights, reason, evidence=evidence)

    def gains(self, observation: Observation):
        """Benchmark to its paired gain over the last evaluations, where it can be told."""
        found = {{}}
        for benchmark in observation.steering:
            try:
                gain = observation.difference(
                    benchmark, -1 - self.options.over, -1, metric="bits_per_byte"
                )
            except MissingScore:
                continue
            if math.isfinite(gain.stderr):
                found[benchmark] = gain
        return found
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


def test_a_step_goes_to_the_sources_of_the_benchmark_that_lags():
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
