"""Options of ``bayes``: what a user writes under ``policy: {use: bayes, with: …}``.

```yaml
explore: 10               # evaluations after which nothing is tried for its own sake
radius: 0.25              # share of the tokens by which exploration may leave the centre
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

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from .mixtures import Mixture
from .protocol import OptionsModel

Share = Annotated[float, Field(ge=0, le=1)]


class Point(OptionsModel):
    """A mixture tried elsewhere: its objective (bits per byte, lower is better), standard error."""

    weights: Mixture
    value: float
    stderr: Annotated[float, Field(gt=0)]


class Prior(OptionsModel):
    """What is known before the run.

    ``weights`` is the mixture to begin from and to go back to; ``strength`` how far from the
    run's own start towards it. ``points`` are mixtures measured elsewhere; they say which sources
    help, and the run's own scores soon outweigh them.
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
    """Options of ``Bayes``.

    ``explore`` None: two more than there are sources, at most ten. ``proposals``: who picks the
    mixtures to try, ``uncertainty`` (where the model's own upper confidence bound is greatest) or
    ``optuna`` (its GPSampler; imports torch). ``standby``: whether sources on standby may be used.
    """

    explore: Annotated[int, Field(ge=0)] | None = None
    radius: Annotated[float, Field(gt=0, le=1)] = 0.25
    caution: Annotated[float, Field(ge=0)] = 1.0
    evidence: float = 3.0
    proposals: Literal["uncertainty", "optuna"] = "uncertainty"
    standby: bool = False
    prior: Prior = Prior()
