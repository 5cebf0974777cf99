"""Attention over packed rows that share a prefix whose keys and values are never copied.

All tokens of a pass lie in one row, [1, n], without padding: linear layers waste nothing. This
module is transformers' attention function for such a pass. Each token attends to the shared
prefix (one dense product for all of them) and to its own row, and the two softmaxes are joined by
their log-sum-exps (cascade attention; the identity is that of FlashAttention, Dao et al. 2022,
arXiv 2205.14135, section 3.1). With grouped queries the heads of a group are folded into the
query axis, so keys and values are not repeated either.

Shapes: q [1, heads, n, d]; k, v [1, kv_heads, n, d]; prefix k, v [1, kv_heads, p, d].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol, cast

import torch

NAME = "mixloop"

KeyValue = tuple[torch.Tensor, torch.Tensor]
Part = tuple[torch.Tensor, torch.Tensor]  # output and the log-sum-exp of its scores


class Own(Protocol):
    """How each token of a pass attends to its own row."""

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> Part:
        """Output [1, heads, n, d] and log-sum-exp [1, heads, n]."""


@dataclass
class Pass:
    """One forward pass: the shared prefix per layer (None: nothing shared) and the own rows.

    With `keep`, the keys and values the pass computed are in `kept`, by layer, afterwards.
    """

    own: Own
    prefix: Sequence[KeyValue] | None = None
    keep: bool = False
    kept: list[KeyValue] = field(default_factory=list)
    layer: int = 0


_active: list[Pass] = []

# what models pass whose scores are capped, have sinks, or are biased by distance
_NOT_OFFERED = ("softcap", "s_aux", "position_bias")


@contextmanager
def running(one: Pass) -> Iterator[Pass]:
    """Within this, every attention call of a model set to `NAME` belongs to the pass."""
    _active.append(one)
    try:
        yield one
    finally:
        _active.pop()


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface; calls come in layer order, one a layer.

    Raises NotImplementedError for attention that is more than a softmax over keys.
    """
    for name in _NOT_OFFERED:
        if options.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if not _active:
        return _plain(query, key, value, scale).transpose(1, 2), None
    one = _active[-1]
    layer, one.layer = one.layer, one.layer + 1
    if one.keep:
        one.kept.append((key, value))
    found, weight = one.own.attend(layer, query, key, value, scale)
    if one.prefix is not None:
        found = _join((found, weight), _to_prefix(query, *one.prefix[layer], scale))
    return found.to(query.dtype).transpose(1, 2), None


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal rows of one length: the same model called by others, outside any pass."""
    if k.shape[2] != q.shape[2]:
        raise NotImplementedError("a cache: this model is set up for shared prefixes")
    heads = q.shape[1]
    return _attend(q, _repeated(k, heads), _repeated(v, heads), scale, causal=True)[0]


def register() -> None:
    """Makes the attention known to transformers under `NAME`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)


def _to_prefix(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Part:
    _, heads, n, d = q.shape
    kv_heads = k.shape[1]
    folded = q.reshape(1, kv_heads, heads // kv_heads * n, d)
    out, weight = _attend(folded, k, v, scale)
    return out.reshape(1, heads, n, d), weight.reshape(1, heads, n)


def _join(one: Part, other: Part) -> torch.Tensor:
    """The attention over the union of two sets of keys, from the attention over each."""
    (a, la), (b, lb) = one, other
    # in float32: a share rounded to half precision would cost more than the attention itself
    return torch.lerp(a.float(), b.float(), torch.sigmoid(lb - la)[..., None].float())


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    *,
    causal: bool = False,
    mask: torch.Tensor | None = None,
) -> Part:
    """Attention and its log-sum-exp; q, k and v have the same number of heads.

    mask: additive, broadcast to [batch, heads, n, keys].
    """
    if q.device.type == "cpu":
        if mask is not None:
            mask = mask.to(q.dtype).expand(*q.shape[:3], k.shape[2])
        out = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=mask, scale=scale
        )
        return cast(Part, out)
    return dense(q, k, v, scale, causal=causal, mask=mask)


def dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    *,
    causal: bool = False,
    mask: torch.Tensor | None = None,
) -> Part:
    """The same by plain products, for devices whose fused kernels keep the log-sum-exp."""
    scores = torch.matmul(q, k.transpose(-1, -2)).float() * scale
    if causal:
        n, keys = scores.shape[-2:]
        later = torch.ones((n, keys), dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    if mask is not None:
        scores = scores + mask
    weight = scores.logsumexp(-1)
    shares = (scores - weight[..., None]).exp().to(v.dtype)
    return torch.matmul(shares, v), weight


def _repeated(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


@dataclass(frozen=True)
class OneChain:
    """The whole pass is one causal row."""

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> Part:
        """See `Own`."""
        heads = q.shape[1]
        return _attend(q, _repeated(k, heads), _repeated(v, heads), scale, causal=True)


@dataclass(frozen=True)
class Rows:
    """Rows of a pass, padded for the attention alone.

    `index` [rows, width] is each place's token in the pass (0 in padding), `back` [n] each
    token's place in the padded rows; `mask` [rows, 1, width, width] is additive, None: causal.
    """

    index: torch.Tensor
    back: torch.Tensor
    mask: torch.Tensor | None = None

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> Part:
        """See `Own`."""
        heads = q.shape[1]
        q, k, v = self._padded(q), self._padded(k), self._padded(v)
        k, v = _repeated(k, heads), _repeated(v, heads)
        out, weight = _attend(q, k, v, scale, causal=self.mask is None, mask=self.mask)
        return self._packed(out), self._packed(weight[..., None])[..., 0]

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        """[1, heads, n, d] to [rows, heads, width, d]."""
        return x[0].transpose(0, 1)[self.index].transpose(1, 2)

    def _packed(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, heads, width, d] to [1, heads, n, d]."""
        flat = x.transpose(1, 2).flatten(0, 1)
        return flat[self.back].transpose(0, 1)[None]


class RowCaches:
    """Keys and values of rows being decoded, a few tokens a row and pass.

    A row's own tokens lie in [kv_heads, room, d] of its place; lengths[i] of them are in use, the
    last `counts[i]` of which are those of the coming pass. Places 0..n-1 are the rows of a pass,
    in its order.
    """

    def __init__(self, places: int) -> None:
        self.places = places
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
        self._masks = [_newest(n, c) for n, c in zip(self.lengths, counts, strict=True)]
        self._ranges = _ranges(counts)

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
        out, weight = _attend(folded, keys[:, :, :length], values[:, :, :length], scale, mask=mask)
        return out.reshape(1, heads, count, d), weight.reshape(1, heads, count)


def _newest(length: int, count: int) -> torch.Tensor | None:
    """Additive [count, length]: of the last `count` tokens each sees none after itself."""
    if count == 1:
        return None
    later = torch.ones((count, length), dtype=torch.bool).triu(length - count + 1)
    return torch.zeros((count, length)).masked_fill(later, -math.inf)


def _ranges(counts: Sequence[int]) -> list[tuple[int, int]]:
    ends = list(accumulate(counts))
    return [(end - count, end) for end, count in zip(ends, counts, strict=True)]
