"""The public conformance suite: the list of checks, a report, and a class for pytest."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from mixloop.policies.interface import Policy

from . import checks
from .checks import ConformanceCheck
from .edge_cases import ORDINARY, SITUATIONS, SampleNames
from .policy_runner import Subject, subject

SLOW = 0.05
"""Seconds a decision should stay below; reported, and only asserted where asked for."""

_GENERAL = (
    ConformanceCheck("ordinary", "answers an ordinary run", checks.fits_an_ordinary_run),
    ConformanceCheck("sources", "names only the run's sources", checks.known_sources),
    ConformanceCheck("simplex", "stays on the simplex", checks.on_the_simplex),
    ConformanceCheck("plan", "plans forward in time", checks.plans_ahead),
    ConformanceCheck("bounds", "passes the guards", checks.within_bounds),
    ConformanceCheck("standby", "leaves sources on standby out", checks.standby_stays_out),
    ConformanceCheck("instances", "two instances answer alike", checks.same_for_two_instances),
    ConformanceCheck("stateless", "keeps nothing between calls", checks.same_when_asked_again),
    ConformanceCheck("untouched", "leaves the observation as it is", checks.observation_untouched),
    ConformanceCheck("json", "travels as JSON", checks.crosses_processes),
    ConformanceCheck("random", "no global randomness", checks.no_global_randomness),
    ConformanceCheck("clock", "no time of day", checks.no_clock),
)


def conformance_checks() -> list[ConformanceCheck]:
    """Every check of the suite, in order."""
    every = list(_GENERAL)
    for situation in SITUATIONS:
        if situation != checks.ORDINARY:
            name = re.sub(r"\W+", "-", situation.lower())
            run = partial(checks.survives, situation)
            every.append(ConformanceCheck(name, f"survives {situation}", run))
    return every


@dataclass(frozen=True)
class CheckResult:
    """What one check found; ``detail`` is one line, empty where all is well."""

    name: str
    title: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """What the suite found.

    ``slowest`` is the longest decision in seconds, ``slowest_in`` where; ``not_for`` the
    situations that the policy's own ``check`` refuses, with the reason.
    """

    results: tuple[CheckResult, ...]
    slowest: float
    slowest_in: str
    not_for: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(result.passed for result in self.results)

    def failures(self) -> list[CheckResult]:
        """The checks that didn't."""
        return [result for result in self.results if not result.passed]


def check_policy(
    policy: str | type[Any] | Callable[[], Policy],
    options: Mapping[str, Any] | None = None,
    *,
    base: Path | str | None = None,
    sources: Mapping[str, Any] | None = None,
    benchmarks: Any = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Report:
    """Run the whole suite on a policy.

    Args:
        policy: a reference as in run.yaml, a class, or a function that makes an instance.
        options: what run.yaml has under ``policy: {with: …}``.
        base: folder that file references are relative to.
        sources: names with their tags, of the runs it is shown; default: ``SOURCES``.
        benchmarks: their names; default: ``BENCHMARKS``.
        clock: seconds, for the time a decision takes.

    Raises:
        PolicyError: when there is no such policy or its options don't fit.
    """
    return report(
        subject(policy, options, base=base, names=_names(sources, benchmarks), clock=clock)
    )


def _names(sources: Mapping[str, Any] | None, benchmarks: Any) -> SampleNames:
    return SampleNames(sources or ORDINARY.sources, benchmarks or ORDINARY.benchmarks)


def report(tested: Subject) -> Report:
    """Every check run on the subject."""
    results = tuple(_result(check, tested) for check in conformance_checks())
    answers = tested.answers()
    slowest = max(answers, key=lambda answer: answer.seconds)
    refused = {answer.situation: answer.refusal for answer in answers if answer.refusal}
    return Report(results, slowest.seconds, slowest.situation, refused)


def _result(check: ConformanceCheck, tested: Subject) -> CheckResult:
    try:
        check(tested)
    except AssertionError as failure:
        return CheckResult(check.name, check.title, False, " ".join(str(failure).split()))
    return CheckResult(check.name, check.title, True)


class PolicyConformance:
    """The suite as a class for pytest: inherit, name the policy, and every check is a test.

    ```python
    class TestMine(PolicyConformance):
        policy = "./mine.py:Mine"  # or the class itself
        options = {"step": 0.05}
    ```

    ``sources`` and ``benchmarks`` are as in ``check_policy``. The answers are shared by the tests
    of a class.
    """

    policy: ClassVar[Any]
    options: ClassVar[Mapping[str, Any]] = {}
    base: ClassVar[Path | str | None] = None
    sources: ClassVar[Mapping[str, Any] | None] = None
    benchmarks: ClassVar[Any] = None
    _subject: ClassVar[Subject | None] = None

    @classmethod
    def subject(cls) -> Subject:
        """The policy under test, made once per class."""
        if "_subject" not in vars(cls) or cls._subject is None:
            names = _names(cls.sources, cls.benchmarks)
            cls._subject = subject(cls.policy, cls.options, base=cls.base, names=names)
        return cls._subject


def _as_test(check: ConformanceCheck) -> Callable[[PolicyConformance], None]:
    def test(self: PolicyConformance) -> None:
        check(self.subject())

    test.__doc__ = check.title
    return test


for _check in conformance_checks():
    setattr(PolicyConformance, f"test_{_check.name.replace('-', '_')}", _as_test(_check))
