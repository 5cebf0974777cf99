"""Keys and values of rows being decoded, and how their newest tokens attend to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch

from .attention import KeyValue, Part, Rows, attend_to, padded_index, ranges


class RowCaches:
    """Keys and values of rows being decoded, a few tokens a row and pass.

    A row's own tokens lie in [kv_heads, room, d] of its place; lengths[i] of them are in use, the
    last `counts[i]` of which are those of the coming pass. Places 0..n-1 are the rows of a pass,
    in its order.
    """

    def __init__(self, places: int, *, together: bool = False) -> None:
        self.places = places
        # on a CPU each row attends by itself and none is padded; elsewhere calls cost more
        self._together = together
        self._padding: Rows | None = None
        self._newest_at: tuple[torch.Tensor, torch.Tensor] | None = None
        self._seen: torch.Tensor | None = None
        self.lengths: list[int] = []
        self.counts: list[int] = []
        self._layers: list[KeyValue] = []
        self._masks: list[torch.Tensor | None] = []
        self._ranges: list[tuple[int, int]] = []

    def add(self, kept: Sequence[KeyValue], spans: Sequence[tuple[int, int]]) -> None:
        """Takes new rows: their keys and values are these spans (start, end) of a kept pass."""
        self._grow(max(end - start for start, end in spans) + 1, kept)
        for start, end in spans:
            place = len(self.lengths)
            self.lengths.append(end - start)
            for mine, theirs in zip(self._layers, kept, strict=True):
                for own, new in zip(mine, theirs, strict=True):
                    own[place, :, : end - start] = new[0, :, start:end]

    def remove(self, place: int) -> None:
        """Drops a row; the last row takes its place."""
        last = len(self.lengths) - 1
        length = self.lengths.pop()
        if place == last:
            return
        self.lengths[place] = length
        for pair in self._layers:
            for own in pair:
                own[place, :, :length] = own[last, :, :length]

    def advance(self, counts: Sequence[int]) -> None:
        """Makes room for so many more tokens in each row; call before each decoding pass."""
        self.counts = list(counts)
        self.lengths = [n + count for n, count in zip(self.lengths, counts, strict=True)]
        self._grow(max(self.lengths), self._layers)
        self._ranges = ranges(counts)
        if self._together:
            self._padding, self._seen = self._padded_rows(), None
        else:
            self._masks = [_newest(n, c) for n, c in zip(self.lengths, counts, strict=True)]

    def forget(self, place: int, count: int) -> None:
        """Takes back a row's last `count` tokens."""
        self.lengths[place] -= count

    def _grow(self, room: int, like: Sequence[KeyValue]) -> None:
        if self._layers and self._layers[0][0].shape[2] >= room:
            return
        room = -(-room // 128) * 128
        old = self._layers
        self._layers = []
        for layer, pair in enumerate(like):
            grown = [x.new_zeros((self.places, x.shape[1], room, x.shape[3])) for x in pair]
            if old:
                for new, before in zip(grown, old[layer], strict=True):
                    new[:, :, : before.shape[2]] = before
            self._layers.append((grown[0], grown[1]))

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> Part:
        """See `Own`: the pass holds `counts[i]` tokens of row i, then those of the next."""
        if self._padding is not None:
            return self._all_rows(layer, self._padding, (q, k, v), scale)
        parts = [
            self._row(layer, place, begin, end, (q, k, v), scale)
            for place, (begin, end) in enumerate(self._ranges)
        ]
        return torch.cat([out for out, _ in parts], 2), torch.cat([w for _, w in parts], 2)

    def _row(
        self,
        layer: int,
        place: int,
        begin: int,
        end: int,
        qkv: tuple[torch.Tensor, ...],
        scale: float,
    ) -> Part:
        """One row by itself, so that none is padded to another's length."""
        q, k, v = (x[:, :, begin:end] for x in qkv)
        keys, values = (x[place : place + 1] for x in self._layers[layer])
        length, count = self.lengths[place], end - begin
        keys[:, :, length - count : length] = k
        values[:, :, length - count : length] = v
        heads, kv_heads, d = q.shape[1], k.shape[1], q.shape[3]
        # the heads of a group side by side: [1, kv_heads, group * count, d]
        folded = q.reshape(1, kv_heads, heads // kv_heads * count, d)
        mask = self._masks[place]
        if mask is not None:
            mask = mask.to(q.device).repeat(heads // kv_heads, 1)
        out, weight = attend_to(
            folded, keys[:, :, :length], values[:, :, :length], scale, mask=mask
        )
        return out.reshape(1, heads, count, d), weight.reshape(1, heads, count)

    def _padded_rows(self) -> Rows:
        """Queries padded to the most of a row, and what each may see of the longest row."""
        device = self._layers[0][0].device
        width, longest = max(self.counts), self._longest()
        index, back = padded_index(self.counts)
        lengths, counts = torch.tensor(self.lengths), torch.tensor(self.counts)
        # query j of a row is its token lengths - counts + j; padding sees what the first one does
        own = torch.arange(width).clamp(max=(counts - 1)[:, None])
        last = (lengths - counts)[:, None] + own
        beyond = torch.arange(longest) > last[..., None]
        mask = torch.zeros(beyond.shape).masked_fill(beyond, -math.inf)[:, None]
        rows = torch.arange(len(counts)).repeat_interleave(counts)
        ends = torch.tensor([end for _, end in self._ranges]).repeat_interleave(counts)
        newest = lengths.repeat_interleave(counts) - ends + torch.arange(len(rows))
        self._newest_at = rows.to(device), newest.to(device)
        return Rows(index.to(device), back.to(device), mask.to(device))

    def _longest(self) -> int:
        """Tokens of the longest row, up to where kernels like to end; there is room for it."""
        return min(-(-max(self.lengths) // 16) * 16, self._layers[0][0].shape[2])

    def _all_rows(
        self, layer: int, rows: Rows, qkv: tuple[torch.Tensor, ...], scale: float
    ) -> Part:
        """All rows in one product, shorter ones padded."""
        q, k, v = qkv
        keys, values = self._layers[layer]
        # all rows at once: two copies a row and layer are hundreds of kernels to launch
        place, at = cast(tuple[torch.Tensor, torch.Tensor], self._newest_at)
        keys[place, :, at] = k[0].transpose(0, 1)
        values[place, :, at] = v[0].transpose(0, 1)
        n, longest = len(self.lengths), self._longest()
        padded = rows.padded(q)
        _, heads, width, d = padded.shape
        kv_heads = k.shape[1]
        folded = padded.reshape(n, kv_heads, heads // kv_heads * width, d)
        if self._seen is None:  # the same in every layer
            mask = cast(torch.Tensor, rows.mask).to(q.dtype)
            self._seen = mask.repeat(1, 1, heads // kv_heads, 1)
        held = keys[:n, :, :longest], values[:n, :, :longest]
        out, weight = attend_to(folded, *held, scale, mask=self._seen)
        out, weight = out.reshape(n, heads, width, d), weight.reshape(n, heads, width)
        return rows.packed(out), rows.packed(weight[..., None])[..., 0]


def _newest(length: int, count: int) -> torch.Tensor | None:
    """Additive [count, length]: of the last `count` tokens each sees none after itself."""
    if count == 1:
        return None
    later = torch.ones((count, length), dtype=torch.bool).triu(length - count + 1)
    return torch.zeros((count, length)).masked_fill(later, -math.inf)
