"""Options of ``experiment``: what a user writes under ``policy: {use: experiment, with: …}``.

```yaml
times: [0.05, 0.2]        # parts of the budget at which experiments are asked for
before_decay: true        # … and once more before the learning rate decays
tokens: 20B               # of one branch; without it by the budget, the middle ones longest
design: merges            # one expert per source, or tilts: +0.3 of one source each
prior: {web: 0.7, code: 0.3}   # where it starts from and stays unless shown better
tags: 0.75                # of the mixture, for sources tagged with a benchmark's name
```
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mixloop.common.units import Tokens
from mixloop.policies.interface import OptionsModel, Share
from mixloop.policies.mixture import Mixture


class ExperimentOptions(OptionsModel):
    """When experiments are made, and how far they are followed.

    ``significance`` is the chance that sources which are all alike pass for different at one
    look. ``blind`` is how wrong a short horizon may be about a source, in parts of how much
    sources differ: it counts as noise. ``caution`` standard deviations of a gain are taken off
    it. ``returns`` is the exponent by which returns diminish in the plan (losses fall with data
    as a power law), ``substitution`` the one by which a source's own data counts (1: sources
    replace each other without loss). ``keen`` is how much more a token is taken to be worth in
    the decay, where scarce sources are kept for it. ``floor`` is the part of its prior share
    that a source keeps unless it is shown to be useless, ``tags`` the part of the mixture that
    goes to sources tagged with a benchmark's name, as far as experiments bear the tags out as a
    whole, whatever they say of one of them but that it is useless: what pays off late no branch
    shows. ``step`` is the divergence (nats) that one decision may go. ``strength`` is the merge
    fit's pull to the prior, in bits per byte per nat. ``use_standby`` lets experiments and
    plans bring in sources that stand by.
    """

    times: tuple[Share, ...] = (0.05, 0.2)
    before_decay: bool = True
    tokens: Annotated[Tokens, Field(gt=0)] | None = None
    design: Literal["merges", "tilts"] = "merges"
    tilt: Annotated[float, Field(gt=0, le=1)] = 0.3
    prior: Mixture | None = None
    significance: Annotated[float, Field(gt=0, lt=1)] = 0.02
    blind: Annotated[float, Field(ge=0)] = 0.2
    caution: Annotated[float, Field(ge=0)] = 1.0
    returns: Annotated[float, Field(gt=0)] = 2.0
    substitution: Annotated[float, Field(gt=0, le=1)] = 0.85
    keen: Annotated[float, Field(ge=1)] = 1.5
    floor: Share = 0.15
    tags: Share = 0.75
    step: Annotated[float, Field(gt=0)] = 0.5
    strength: Annotated[float, Field(ge=0)] = 0.01
    draws: Annotated[int, Field(ge=2, le=64)] = 24
    use_standby: bool = False
