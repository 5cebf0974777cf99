"""Keys and values of rows being decoded, and how their newest tokens attend to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch

from .attention import KeyValue, PaddedRows, Part, attend_folded, padded_index, ranges

_BLOCK = 128  # tokens by which the room of every row grows
_KERNEL = 16  # tokens at whose multiples kernels like the longest row to end


class RowCaches:
    """Keys and values of rows being decoded, a few tokens a row and pass.

    A row's own tokens lie in [kv_heads, capacity, d] of its place; lengths[i] of them are in use,
    the last `counts[i]` of which are those of the coming pass. Places 0..n-1 are the rows of a
    pass, in its order.

    Args:
        places: The most rows.
        padded: Whether all rows attend in one padded product; on a CPU each row attends by itself
            and none is padded, elsewhere calls cost more.
    """

    def __init__(self, places: int, *, padded: bool = False) -> None:
        self.places = places
        self.lengths: list[int] = []
        self.counts: list[int] = []
        self._layers: list[KeyValue] = []
        self._padded = padded
        self._ranges: list[tuple[int, int]] = []
        # by row, where each attends by itself
        self._masks: list[torch.Tensor | None] = []
        # of the coming pass, where rows are padded: its queries, the places of its new tokens, and
        # the mask over queries of a folded group, which is the same in every layer
        self._queries: PaddedRows | None = None
        self._newest_at: tuple[torch.Tensor, torch.Tensor] | None = None
        self._folded_mask: torch.Tensor | None = None

    def add(self, kept: Sequence[KeyValue], spans: Sequence[tuple[int, int]]) -> None:
        """Takes new rows: their keys and values are these spans (start, end) of a kept pass."""
        self._grow(max(end - start for start, end in spans) + 1, kept)
        for start, end in spans:
            place = len(self.lengths)
            self.lengths.append(end - start)
            for held, computed in zip(self._layers, kept, strict=True):
                for rows, new in zip(held, computed, strict=True):
                    rows[place, :, : end - start] = new[0, :, start:end]

    def remove(self, place: int) -> None:
        """Drops a row; the last row takes its place."""
        last = len(self.lengths) - 1
        length = self.lengths.pop()
        if place == last:
            return
        self.lengths[place] = length
        for pair in self._layers:
            for rows in pair:
                rows[place, :, :length] = rows[last, :, :length]

    def advance(self, counts: Sequence[int]) -> None:
        """Makes room for so many more tokens in each row; call before each decoding pass."""
        self.counts = list(counts)
        self.lengths = [n + count for n, count in zip(self.lengths, counts, strict=True)]
        self._grow(max(self.lengths), self._layers)
        self._ranges = ranges(counts)
        if self._padded:
            self._queries, self._folded_mask = self._padded_queries(), None
        else:
            self._masks = [_newest(n, c) for n, c in zip(self.lengths, counts, strict=True)]

    def take_back(self, place: int, count: int) -> None:
        """Takes back a row's last `count` tokens."""
        self.lengths[place] -= count

    def _grow(self, capacity: int, like: Sequence[KeyValue]) -> None:
        if self._layers and self._layers[0][0].shape[2] >= capacity:
            return
        capacity = -(-capacity // _BLOCK) * _BLOCK
        before, self._layers = self._layers, []
        for layer, pair in enumerate(like):
            k, v = (x.new_zeros((self.places, x.shape[1], capacity, x.shape[3])) for x in pair)
            if before:
                for new, old in zip((k, v), before[layer], strict=True):
                    new[:, :, : old.shape[2]] = old
            self._layers.append((k, v))

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> Part:
        """See `RowAttention`: the pass holds `counts[i]` tokens of row i, then the next row's."""
        if self._queries is not None:
            return self._all_rows(layer, self._queries, (q, k, v), scale)
        parts = [
            self._row(layer, place, [x[:, :, begin:end] for x in (q, k, v)], scale)
            for place, (begin, end) in enumerate(self._ranges)
        ]
        return torch.cat([out for out, _ in parts], 2), torch.cat([w for _, w in parts], 2)

    def _row(self, layer: int, place: int, qkv: Sequence[torch.Tensor], scale: float) -> Part:
        """One row by itself, so that none is padded to another's length."""
        q, k, v = qkv
        keys, values = (x[place : place + 1] for x in self._layers[layer])
        length, count = self.lengths[place], self.counts[place]
        keys[:, :, length - count : length] = k
        values[:, :, length - count : length] = v
        mask = self._masks[place]
        if mask is not None:
            mask = mask.to(q.device).repeat(q.shape[1] // k.shape[1], 1)
        return attend_folded(q, keys[:, :, :length], values[:, :, :length], scale, mask)

    def _padded_queries(self) -> PaddedRows:
        """Queries padded to the most of a row, and what each may see of the longest row."""
        device = self._layers[0][0].device
        width, longest = max(self.counts), self._longest()
        index, back = padded_index(self.counts)
        lengths, counts = torch.tensor(self.lengths), torch.tensor(self.counts)
        # query j of a row is its token lengths - counts + j; padding sees what the first one does
        query = torch.arange(width).clamp(max=(counts - 1)[:, None])
        last = (lengths - counts)[:, None] + query
        beyond = torch.arange(longest) > last[..., None]
        mask = torch.zeros(beyond.shape).masked_fill(beyond, -math.inf)[:, None]
        rows = torch.arange(len(counts)).repeat_interleave(counts)
        ends = torch.tensor([end for _, end in self._ranges]).repeat_interleave(counts)
        newest = lengths.repeat_interleave(counts) - ends + torch.arange(len(rows))
        self._newest_at = rows.to(device), newest.to(device)
        return PaddedRows(index.to(device), back.to(device), mask.to(device))

    def _longest(self) -> int:
        """Tokens of the longest row, up to where kernels like to end; there is room for it."""
        return min(-(-max(self.lengths) // _KERNEL) * _KERNEL, self._layers[0][0].shape[2])

    def _all_rows(
        self, layer: int, queries: PaddedRows, qkv: tuple[torch.Tensor, ...], scale: float
    ) -> Part:
        """All rows in one product, shorter ones padded."""
        q, k, v = qkv
        keys, values = self._layers[layer]
        # all rows at once: two copies a row and layer are hundreds of kernels to launch
        place, at = cast(tuple[torch.Tensor, torch.Tensor], self._newest_at)
        keys[place, :, at] = k[0].transpose(0, 1)
        values[place, :, at] = v[0].transpose(0, 1)
        n, longest = len(self.lengths), self._longest()
        if self._folded_mask is None:
            mask = cast(torch.Tensor, queries.mask).to(q.dtype)
            self._folded_mask = mask.repeat(1, 1, q.shape[1] // k.shape[1], 1)
        held = keys[:n, :, :longest], values[:n, :, :longest]
        return queries.packed(attend_folded(queries.padded(q), *held, scale, self._folded_mask))


def _newest(length: int, count: int) -> torch.Tensor | None:
    """Additive [count, length]: of the last `count` tokens each sees none after itself."""
    if count == 1:
        return None
    later = torch.ones((count, length), dtype=torch.bool).triu(length - count + 1)
    return torch.zeros((count, length)).masked_fill(later, -math.inf)
