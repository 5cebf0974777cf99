"""Options of ``bayes``: what a user writes under ``policy: {use: bayes, with: …}``.

```yaml
explore: 14               # evaluations after which nothing is tried for its own sake
radius: 0.35              # share of the tokens by which exploration may leave the centre
trust: 0.4                # … and by which the best mixture may
caution: 1.0              # standard errors that count against a change
evidence: 3.0             # log Bayes factor without which the mixture goes back to the centre
prior:
  weights: {web: 0.7, code: 0.2, maths: 0.1}   # the centre, instead of the run's own start
  strength: 0.8                                # how far towards it, 0 to 1
  points:                                      # measured mixtures, as a search returns them
    - {weights: {web: 0.9, code: 0.1}, value: 1.02, stderr: 0.004}
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mixloop.policies.interface import OptionsModel, Share
from mixloop.policies.mixture import Mixture

_SEARCH_KEYS = {"schema", "run", "tokens", "target", "from", "objective", "start", "uncertainty"}
_SEARCH_KEYS |= {"predicted", "gain", "verdict", "surrogate", "errors", "trial", "measured", "best"}
"""What a search writes into its prior beside what is used here."""


class _SearchAnswer(OptionsModel):
    """Part of a search's answer: what the search tells beside it may stay."""

    @model_validator(mode="before")
    @classmethod
    def _of_search(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: entry for key, entry in value.items() if key not in _SEARCH_KEYS}


class Score(OptionsModel):
    """A loss (bits per byte) and its standard error."""

    value: float
    stderr: Annotated[float, Field(gt=0)]


class Point(_SearchAnswer):
    """A mixture tried elsewhere: its objective (a loss), and each benchmark's where known."""

    weights: Mixture
    value: float
    stderr: Annotated[float, Field(gt=0)]
    benchmarks: Mapping[str, Score] = Field(default_factory=dict)

    def score(self, benchmark: str) -> Score:
        """The benchmark's, or else the objective's."""
        return self.benchmarks.get(benchmark) or Score(value=self.value, stderr=self.stderr)


class Prior(_SearchAnswer):
    """What is known before the run; a search's ``prior.json`` can be put here as it is.

    ``weights`` is the mixture to begin from and to go back to. ``points`` are mixtures measured
    elsewhere: they say which sources help, and the run's own scores soon outweigh them.
    ``strength`` is how far all this is trusted: how far from the run's own start towards
    ``weights``, and how much of the effects seen in ``points`` is expected of this run.
    """

    weights: Mixture | None = None
    strength: Share = 1.0
    points: tuple[Point, ...] = ()

    def mixtures(self) -> Iterator[dict[str, float]]:
        """Every mixture named here."""
        yield from (point.weights for point in self.points)
        if self.weights is not None:
            yield self.weights


class BayesOptions(OptionsModel):
    """What is tried, how far it goes, and what is known before the run.

    ``explore`` None: two more than there are sources, at most fourteen. ``proposals`` says who
    picks the mixtures to try: ``design`` (those from which the model learns most) or ``optuna``
    (its GPSampler; imports torch). ``standby``: whether sources on standby may be used.
    ``branches``: whether experiments are asked for where the run may spend on them; what they point
    at then takes the centre's place, and nothing is tried in the run itself any more.
    """

    explore: Annotated[int, Field(ge=0)] | None = None
    radius: Annotated[float, Field(gt=0, le=1)] = 0.35
    trust: Annotated[float, Field(gt=0, le=1)] = 0.4
    caution: Annotated[float, Field(ge=0)] = 1.0
    evidence: float = 3.0
    proposals: Literal["design", "optuna"] = "design"
    standby: bool = False
    branches: bool = True
    prior: Prior = Prior()
