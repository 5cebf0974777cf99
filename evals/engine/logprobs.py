"""Log-probabilities collected from passes, by request."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


class LogprobCollector:
    """Log-probabilities collected from passes: per request, its tokens' and whether greedy."""

    def __init__(self, requests: int) -> None:
        self._parts: list[list[float]] = [[] for _ in range(requests)]
        self._greedy = [True] * requests
        self._wanted: dict[int, list[tuple[int, int]]] = {}

    def want(self, request: int, slots: Sequence[int], tail: Sequence[int]) -> None:
        """Asks what `tail` gets when read after these slots."""
        for slot, target in zip(slots, tail, strict=True):
            self._wanted.setdefault(slot, []).append((request, target))

    def wanted_places(self, slots: Sequence[int]) -> list[int]:
        """Which tokens of a pass something is still wanted of."""
        seen: set[int] = set()
        places = []
        for place, slot in enumerate(slots):
            if slot in self._wanted and slot not in seen:
                places.append(place)
                seen.add(slot)
        return places

    def take(self, slots: Sequence[int], logits: torch.Tensor) -> None:
        """logits: [len(slots), vocabulary]."""
        logits = logits.float()
        asked = [
            (place, request, target)
            for place, slot in enumerate(slots)
            for request, target in self._wanted.pop(slot)
        ]
        places = torch.tensor([place for place, _, _ in asked], device=logits.device)
        targets = torch.tensor([target for _, _, target in asked], device=logits.device)
        scores = logits[places, targets] - logits.logsumexp(-1)[places]
        greedy = logits.argmax(-1)[places] == targets
        for (_, request, _), score, best in zip(
            asked, scores.tolist(), greedy.tolist(), strict=True
        ):
            self._parts[request].append(score)
            self._greedy[request] &= best

    def results(self) -> list[tuple[float, bool]]:
        """(sum of log-probabilities, all greedy) by request."""
        # exactly rounded, so the sum does not depend on the order the tokens came in
        return [
            (math.fsum(parts), greedy)
            for parts, greedy in zip(self._parts, self._greedy, strict=True)
        ]
