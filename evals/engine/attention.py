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


class RowAttention(Protocol):
    """How each token of a pass attends to its own row."""

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> Part:
        """Output [1, heads, n, d] and log-sum-exp [1, heads, n]."""


@dataclass
class Pass:
    """One forward pass: its rows, and the prefix they share per layer (None: nothing shared).

    With `keep`, the keys and values the pass computed are in `kept`, by layer, afterwards.
    """

    rows: RowAttention
    prefix: Sequence[KeyValue] | None = None
    keep: bool = False
    kept: list[KeyValue] = field(default_factory=list)
    layer: int = 0


_active: list[Pass] = []

# what models pass whose scores are capped, have sinks, or are biased by distance
_NOT_OFFERED = ("softcap", "s_aux", "position_bias")


@contextmanager
def active(current: Pass) -> Iterator[None]:
    """Within this, every attention call of a model set to `NAME` belongs to the pass."""
    _active.append(current)
    try:
        yield
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
    """The attention interface of transformers; calls come in layer order, one a layer.

    Raises:
        NotImplementedError: attention that is more than a softmax over keys.
    """
    for name in _NOT_OFFERED:
        if options.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if not _active:
        return _plain(query, key, value, scale).transpose(1, 2), None
    current = _active[-1]
    layer, current.layer = current.layer, current.layer + 1
    if current.keep:
        current.kept.append((key, value))
    out, weight = current.rows.attend(layer, query, key, value, scale)
    if current.prefix is not None:
        out = _join((out, weight), attend_folded(query, *current.prefix[layer], scale))
    return out.to(query.dtype).transpose(1, 2), None


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal rows of one length: the same model called by others, outside any pass."""
    if k.shape[2] != q.shape[2]:
        raise NotImplementedError("a cache: this model is set up for shared prefixes")
    return attend_to(q, k, v, scale, causal=True)[0]


def _join(first: Part, second: Part) -> torch.Tensor:
    """The attention over the union of two sets of keys, from the attention over each."""
    (a, la), (b, lb) = first, second
    # in float32: a share rounded to half precision would cost more than the attention itself
    return torch.lerp(a.float(), b.float(), torch.sigmoid(lb - la)[..., None].float())


def attend_folded(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
) -> Part:
    """Attention of grouped queries, the heads of a group side by side in the query axis.

    q: [batch, heads, n, d]; k, v: [batch, kv_heads, keys, d]; mask as `attend_to` takes it, for
    the folded queries [group * n].
    """
    batch, heads, n, d = q.shape
    kv_heads = k.shape[1]
    folded = q.reshape(batch, kv_heads, heads // kv_heads * n, d)
    out, weight = attend_to(folded, k, v, scale, mask=mask)
    return out.reshape(batch, heads, n, d), weight.reshape(batch, heads, n)


def attend_to(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    *,
    causal: bool = False,
    mask: torch.Tensor | None = None,
) -> Part:
    """Attention and its log-sum-exp; keys and values of grouped queries are repeated.

    mask: additive, broadcast to [batch, heads, n, keys].
    """
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    full = None if mask is None else mask.to(q.dtype).expand(*q.shape[:3], k.shape[2])
    if q.device.type == "cpu":
        part = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=full, scale=scale
        )
        return cast(Part, part)
    # one kernel in place of a dozen: small models wait for kernels to be launched
    if q.is_cuda and q.shape[3] % _ALIGNED == 0 and (mask is None or k.shape[2] % _ALIGNED == 0):
        out, weight, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, full, True, 0.0, causal, scale=scale
        )
        return out, weight[..., : q.shape[2]]  # it comes padded
    return dense(q, k, v, scale, causal=causal, mask=mask)


_ALIGNED = 8  # numbers: what CUDA's kernel asks of a head and of a row of its mask
_MAX_SCORES = 2**27  # held at a time where no fused kernel bounds them


def dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    *,
    causal: bool = False,
    mask: torch.Tensor | None = None,
) -> Part:
    """The same by plain products, for devices whose fused kernels keep the log-sum-exp back.

    Some queries at a time, so that the scores never take more than a bounded memory.
    """
    step = max(1, _MAX_SCORES // (q.shape[0] * q.shape[1] * k.shape[2]))
    places = torch.arange(k.shape[2], device=q.device)
    parts = []
    for begin in range(0, q.shape[2], step):
        end = min(begin + step, q.shape[2])
        scores = torch.matmul(q[:, :, begin:end], k.transpose(-1, -2)).float() * scale
        if causal:
            later = places[None, :] > places[begin:end, None]
            scores = scores.masked_fill(later, -math.inf)
        if mask is not None:
            scores = scores + (mask if mask.shape[2] == 1 else mask[:, :, begin:end])
        weight = scores.logsumexp(-1)
        parts.append((torch.matmul((scores - weight[..., None]).exp().to(v.dtype), v), weight))
    return torch.cat([out for out, _ in parts], 2), torch.cat([w for _, w in parts], 2)


@dataclass(frozen=True)
class CausalRow:
    """The whole pass is one causal row."""

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> Part:
        """See `RowAttention`."""
        return attend_to(q, k, v, scale, causal=True)


@dataclass(frozen=True)
class PaddedRows:
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
        """See `RowAttention`."""
        q, k, v = (self.padded(x) for x in (q, k, v))
        return self.packed(attend_to(q, k, v, scale, causal=self.mask is None, mask=self.mask))

    def padded(self, x: torch.Tensor) -> torch.Tensor:
        """[1, heads, n, d] to [rows, heads, width, d]."""
        return x[0].transpose(0, 1)[self.index].transpose(1, 2)

    def packed(self, part: Part) -> Part:
        """[rows, heads, width, d] to [1, heads, n, d], and the log-sum-exps likewise."""
        out, weight = (x.transpose(1, 2).flatten(0, 1)[self.back].transpose(0, 1) for x in part)
        return out[None], weight[None]


def padded_index(lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where packed rows of these lengths lie when padded: `PaddedRows.index` and `.back`."""
    width = max(lengths)
    index = torch.zeros((len(lengths), width), dtype=torch.long)
    back: list[int] = []
    for row, (begin, end) in enumerate(ranges(lengths)):
        index[row, : end - begin] = torch.arange(begin, end)
        back += range(row * width, row * width + end - begin)
    return index, torch.tensor(back)


def ranges(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Where (start, end) runs of these lengths lie one behind the other."""
    ends = list(accumulate(counts))
    return [(end - count, end) for end, count in zip(ends, counts, strict=True)]
