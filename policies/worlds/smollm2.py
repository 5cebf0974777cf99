"""SmolLM2's published trajectory, which no mixture changes: for replaying, not for judging.

Scores after each stage are the paper's (Allal et al. 2025, arXiv 2502.02737, table 8), in between
they are interpolated over tokens. What the model scored before the first token isn't published: it
is taken to be chance. Standard errors are binomial at each benchmark's full size.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .world_protocol import WorldSource

TRILLION = 10**12
_BILLION = 10**9

STAGES = (0, 6 * TRILLION, 8 * TRILLION, 10 * TRILLION, 11 * TRILLION)
"""Tokens at the ends of the stages."""

SCORES: dict[str, tuple[float, ...]] = {
    "mmlu": (0.25, 0.2962, 0.3796, 0.4254, 0.4887),
    "gsm8k": (0.0, 0.0432, 0.0462, 0.1001, 0.3260),
    "math": (0.0, 0.021, 0.0278, 0.0452, 0.1154),
    "humaneval": (0.0, 0.1097, 0.0915, 0.1768, 0.2260),
}
STDERR = {"mmlu": 0.0039, "gsm8k": 0.0056, "math": 0.0020, "humaneval": 0.024}

SOURCES = {
    "fineweb-edu": WorldSource(1300 * _BILLION, ("web",)),
    "dclm": WorldSource(3800 * _BILLION, ("web",)),
    "starcoderdata": WorldSource(250 * _BILLION, ("code",)),
    "stack-edu": WorldSource(125 * _BILLION, ("code",), standby=True),
    "openwebmath": WorldSource(12 * _BILLION, ("math",), standby=True),
    "infimm-webmath": WorldSource(40 * _BILLION, ("math",), standby=True),
    "finemath-4plus": WorldSource(10 * _BILLION, ("math",), standby=True),
    "finemath-3plus": WorldSource(34 * _BILLION, ("math",), standby=True),
    "cosmopedia-v2": WorldSource(30 * _BILLION, ("synthetic",), standby=True),
}


class SmolLM2:
    """The four benchmarks over 11T tokens, whatever is read.

    Args:
        sources: those of the run that replays it; without them, SmolLM2's own.
        budget: tokens of the whole run; the trajectory is stretched to it.
        segments: evaluations in it.
        noise: how many of the published standard errors the noise is.
        seed: of the noise.
    """

    benchmarks = tuple(SCORES)
    higher_is_better = frozenset(SCORES)
    metrics: Mapping[str, str] = {
        **{"mmlu": "accuracy", "gsm8k": "exact_match"},
        **{"math": "exact_match", "humaneval": "pass_at_1"},
    }

    def __init__(
        self,
        sources: Mapping[str, WorldSource] | None = None,
        budget: int = STAGES[-1],
        segments: int = 110,
        noise: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.sources = dict(sources or SOURCES)
        self.budget, self.segments, self.noise = budget, segments, noise
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Back to the first token, with noise drawn from the seed."""
        self.tokens = 0
        self._drawing = np.random.default_rng(seed)

    def advance(self, weights: Mapping[str, float], tokens: int) -> None:
        """Consume ``tokens``; the mixture changes nothing."""
        self.tokens += tokens

    def truth(self) -> dict[str, float]:
        """Published scores, interpolated over tokens: shares of items, 0 to 1."""
        at = self.tokens * STAGES[-1] / self.budget
        return {name: float(np.interp(at, STAGES, values)) for name, values in SCORES.items()}

    def evaluate(self) -> dict[str, tuple[float, float]]:
        """The scores with noise, and their standard errors."""
        scores: dict[str, tuple[float, float]] = {}
        for name, value in self.truth().items():
            stderr = STDERR[name] * self.noise
            noisy = value + stderr * self._drawing.standard_normal()
            scores[name] = (min(1.0, max(0.0, noisy)), stderr)
        return scores

    def optimum(self) -> dict[str, float]:
        """Any mixture, since all end alike: the sources in proportion to their size."""
        whole = sum(source.unique_tokens for source in self.sources.values())
        return {name: source.unique_tokens / whole for name, source in self.sources.items()}
