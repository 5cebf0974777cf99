"""How many samples each source gives to each quantum: exact shares under fixed weights.

Measured in units of 1/2^24 sample, source i is entitled to ``A_i(n) = carried_i + w_i n`` after n
samples. Its j-th sample is released once ``A_i > (j - 1) 2^24`` and falls due once
``A_i >= j 2^24``: Pfair windows (Baruah, Cohen, Plaxton and Varvel 1996; Tijdeman 1980, "The
chairman assignment problem"). Each quantum takes the released samples that fall due first, ties by
source index. Samples are jobs of unit length with integer windows, and several of one source may go
into one quantum, so earliest-due-first meets every due time if any rule can; while nothing is
carried a rule can, because fluid shares do. Hence floor or ceil of ``A_i`` at every quantum.

A carried remainder may make more fall due than a quantum holds: then the least entitled wait. (By
due time instead, 1 in 10 random runs of 200 changes went beyond 2 samples; this way none did. No
rule bounds it for every adversary: one that always takes the weight from whoever was just served
drives the last of k sources to H(k) - 1 behind, H the harmonic number.)

The state after k quanta has a closed form. What is released and not yet given then is what a
priority queue still holds after inserting releases and deleting the most urgent, quantum after
quantum. Such a leftover is the basis, greedy from the latest due time down, of a laminar matroid:
of the samples released by quantum t no more may be left than the queue held after t. At most a few
samples per source come into question, so a seek costs a look at the queue's length since the
oldest of them was released, and no replay. Who waits in an overload doesn't matter once it is over,
since by then all that was due is given; a seek into one walks from the last quantum before it.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixloop.contract import SCALE, SHIFT

Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]
_Words = npt.NDArray[Any]  # uint32 or uint64

_MASK = SCALE - 1
_FAR = np.iinfo(np.int64).max
_SCAN = 8192  # quanta looked at together
_BYTES = 255  # sources at most that a byte can number, and nobody; their waits fit 32 bits


def _ceil_div(numerator: Ints, denominator: Ints) -> Ints:
    return -(-numerator // denominator)


@dataclass(frozen=True)
class _Released:
    """Released samples that may be left over: source, release (quantum), due (samples from now)."""

    source: Ints
    release: Ints
    due: Ints


def _even_out(owed: Ints) -> Ints:
    """Entitlements of the sources with weight, shifted alike to sum to less than a sample.

    Sources without weight give nothing, also not what they owe, and get nothing back. A fraction of
    a sample can stay open; what is more falls to the others, in equal parts.
    """
    total = int(owed.sum())
    each, more = divmod(max(0, abs(total) - SCALE + 1), owed.size)
    part = each + (np.arange(owed.size) < more)
    return np.asarray(owed - part if total > 0 else owed + part, np.int64)


class SourceQuotas:
    """Shares of one stretch of constant weights and quantum.

    Args:
        weights: integers summing to `SCALE`, shape [sources].
        quantum: samples of a quantum.
        carried: entitlement less what was drawn, in units of 1/SCALE sample; sums to 0.
    """

    def __init__(self, weights: Ints, quantum: int, carried: Ints) -> None:
        self.quantum = quantum
        self._sources = weights.size
        self._active = np.flatnonzero(weights)
        self._weights = weights[self._active]
        self._owed = _even_out(carried[self._active])
        self._clips = bool((self._owed <= -SCALE).any())
        self._word = np.dtype(np.uint32 if self._weights.size <= _BYTES else np.uint64)
        self._bits = self._word.type(self._word.itemsize * 8 - SHIFT)
        self._shut = self._word.type(SCALE - 1) << self._bits
        self._low = (self._word.type(1) << self._bits) - self._word.type(1)

    # --- quantum after quantum ---------------------------------------------------------------

    def walk(self, start: int, ends: Ints, drawn: Ints) -> Ints:
        """Draws so far after each of some consecutive quanta.

        Args:
            start: samples before the first of them.
            ends: samples after each, shape [quanta]; a shorter last quantum is legal.
            drawn: draws by source after `start` samples, shape [sources].

        Returns:
            Draws by source since the stretch began, shape [quanta, sources].
        """
        turns = start >> SHIFT  # whole multiples of SCALE: exact integers, kept out of the sums
        before = self._weights * turns
        ends = ends - (turns << SHIFT)
        entitled = self._weights * ends[:, None]
        entitled += self._owed
        floor = entitled >> SHIFT
        entitled &= _MASK
        draws = self._walk(drawn[self._active] - before, ends, floor, self._wait(entitled))
        draws += before
        if self._weights.size == self._sources:
            return draws
        result = np.zeros((ends.size, self._sources), np.int64)
        result[:, self._active] = draws
        return result

    def _wait(self, rest: Ints) -> _Words:
        """Samples until the next one of each source falls due, less one; below them the source.

        No two of a quantum are alike, so any sorting gives the same order. Those whose next sample
        is not released come last.
        """
        wait = rest.astype(np.uint32)
        np.subtract(np.uint32(SCALE - 1), wait, out=wait)
        wait //= self._weights.astype(np.uint32)
        wait[rest == 0] = SCALE - 1  # the others wait less
        wait = wait.astype(self._word, copy=False)
        wait <<= self._bits
        wait |= np.arange(self._weights.size, dtype=self._word)
        return wait

    def _walk(self, start: Ints, ends: Ints, floor: Ints, wait: _Words) -> Ints:
        """`_next` for every quantum.

        Mostly each source has its floor, and those have one sample more that fall due first,
        whatever was before. So this is supposed of all quanta at once. It is right where it was
        right in the quantum before and takes nothing back; the others are worked out one by one,
        until it is right again.
        """
        quanta, sources = floor.shape
        spare = ends - floor.sum(axis=1)
        ranked = np.sort(wait, axis=1)
        flat, begin = ranked.reshape(-1), np.arange(0, ranked.size, sources)
        last = flat.take(begin + np.minimum(np.maximum(spare, 1), sources) - 1)
        unfit = (spare < 0) | (spare > sources) | (last >= self._shut) & (spare > 0)
        last += self._word.type(1)
        last[spare <= 0] = 0
        more = wait < last[:, None]
        draws: Ints = floor + more
        # a floor that rose has caught up with the sample that was given early
        rose = floor[1:] != floor[:-1]
        taken = np.flatnonzero((more[:-1] > rose) > more[1:]) // sources + 1
        wrong = unfit.copy()
        wrong[taken] = True
        wrong[0] |= bool((start > draws[0]).any())
        rows = [*np.flatnonzero(wrong).tolist(), quanta]
        row = rows[0]
        if len(rows) > 1 and sources <= _BYTES:
            ahead = start - floor[0]
            row = self._run(ahead, rows, spare, unfit, rose, ranked, draws)
        while row < quanta:
            before = draws[row - 1] if row else start
            due = self._next(before, int(ends[row]), floor[row], ranked[row])
            right = bool((due == draws[row]).all())
            draws[row] = due
            row = rows[bisect_right(rows, row)] if right else row + 1
        return draws

    def _run(
        self,
        ahead: Ints,
        rows: list[int],
        spare: Ints,
        unfit: _Bools,
        rose: _Bools,
        ranked: _Words,
        draws: Ints,
    ) -> int:
        """Mend `draws` in as many of the quanta as no source is beyond floor or ceil in.

        Who has one sample more than its floor is a string of bytes, a source each, since sets of a
        few dozen are joined and cut fastest so.

        Args:
            ahead: draws of each source beyond its first floor.
            rows: quanta that are wrong if the one before is right; last, how many there are.
            spare: samples of each quantum beyond the floors.
            unfit: the quanta whose spare samples don't fit the sources open.
            rose: where a source's floor rose after a quantum, shape [quanta - 1, sources].
            ranked: each quantum's sources by when their next sample falls due.
            draws: what is supposed of each quantum; mended in place.

        Returns:
            The first quantum that is not mended.
        """
        end, width = rows[-1], ranked.shape[1]
        free, beyond = spare.tolist(), unfit.tolist()
        orders = ranked.astype(np.uint8).tobytes()  # the lowest byte is the source
        caught = rose.view(np.uint8) - np.uint8(1) | np.arange(width, dtype=np.uint8)
        risen = b"\xff" * width + caught.tobytes()  # 255 is nobody
        mended: list[int] = []
        gone: list[bytes] = []
        come: list[bytes] = []
        done = 0
        for row in rows[:-1]:
            if row < done:
                continue
            if row:
                more = orders[(row - 1) * width :][: free[row - 1]]
            else:
                more = np.flatnonzero(ahead > 0).astype(np.uint8).tobytes()
                open_ = orders[: int((ranked[0] < self._shut).sum())]
                if bool((ahead > 1).any()) or more.translate(None, open_):
                    return 0
            for done in range(row, end):
                at = done * width
                more = more.translate(None, risen[at : at + width])
                need = free[done] - len(more)
                if need < 0 or beyond[done]:
                    end = done
                    break
                more += orders[at : at + width].translate(None, more)[:need]
                supposed = orders[at : at + free[done]]
                less = supposed.translate(None, more)
                if not less:
                    break
                mended += [done] * len(less)
                gone.append(less)
                come.append(more.translate(None, supposed))
            done += 1
            if done >= end:
                break
        if mended:
            draws[mended, np.frombuffer(b"".join(gone), np.uint8)] -= 1
            draws[mended, np.frombuffer(b"".join(come), np.uint8)] += 1
        return end

    def _next(self, before: Ints, end: int, floor: Ints, ranked: _Words) -> Ints:
        """Draws after one more quantum: what floor demands, then what falls due first."""
        due = np.maximum(before, floor)
        free = end - int(due.sum())
        if free < 0:
            return self._overloaded(before, end, floor)
        if free > 0:
            order = (ranked[ranked < self._shut] & self._low).astype(np.intp)
            due[order[(due == floor)[order]][:free]] += 1
        return due

    def _overloaded(self, before: Ints, end: int, floor: Ints) -> Ints:
        """More is due than the quantum has: the most entitled first, ties by source index."""
        pending = np.maximum(floor - before, 0)
        source = np.repeat(np.arange(before.size), pending)
        number = np.arange(source.size) - np.repeat(np.cumsum(pending) - pending, pending)
        owed = self._owed + self._weights * end - before * SCALE
        taken = np.lexsort((source, number * SCALE - owed[source]))[: end - int(before.sum())]
        return before + np.bincount(source[taken], minlength=before.size)

    # --- any quantum at once -----------------------------------------------------------------

    def after(self, quanta: int) -> Ints:
        """Draws by source after `quanta` whole quanta, shape [sources], without replay."""
        begin, back = quanta, 1
        drawn, overdue = self._closed(begin)
        while overdue:  # look for a quantum before the overload began
            begin, back = max(0, quanta - back), 2 * back
            drawn, overdue = self._closed(begin)
        if begin == quanta:
            return drawn
        ends = np.arange(begin + 1, quanta + 1) * self.quantum
        return np.asarray(self.walk(begin * self.quantum, ends, drawn)[-1], np.int64)

    def _closed(self, quanta: int) -> tuple[Ints, bool]:
        """Draws after `quanta` quanta if the first due always went first; whether some are late."""
        result = np.zeros(self._sources, np.int64)
        if quanta == 0:
            return result, False
        samples = quanta * self.quantum
        turns, offset = samples >> SHIFT, samples & _MASK
        entitled = self._owed + self._weights * offset
        released = np.maximum((entitled + _MASK) >> SHIFT, -self._weights * turns)
        queue = int(released.sum()) - offset
        depth = 1
        left = np.zeros_like(released)
        while queue and not self._left_over(quanta, turns, entitled, released, queue, depth, left):
            depth *= 2
        drawn = released - left
        result[self._active] = drawn + self._weights * turns
        return result, bool((drawn < entitled >> SHIFT).any())

    def _left_over(
        self,
        quanta: int,
        turns: int,
        entitled: Ints,
        released: Ints,
        queue: int,
        depth: int,
        left: Ints,
    ) -> bool:
        """Fill `left` with the queue's content by source; False if `depth` is too small to know."""
        jobs = self._newest(quanta, turns, entitled, released, depth)
        kept = self._greedy(jobs, quanta, queue)
        left[:] = np.bincount(jobs.source[kept], minlength=left.size)
        if kept.size == queue and bool((jobs.due[kept] > 0).all()):
            return True  # older samples were due by now, so they come after all of these
        considered = np.bincount(jobs.source, minlength=left.size)
        exhausted = considered >= released + self._weights * turns
        return bool(((left < considered) | exhausted).all())

    def _newest(
        self, quanta: int, turns: int, entitled: Ints, released: Ints, depth: int
    ) -> _Released:
        """The newest `depth` released samples of each source."""
        source = np.repeat(np.arange(released.size), depth)
        job = released[source] - np.tile(np.arange(depth), released.size)
        real = job + self._weights[source] * turns >= 1
        source, job = source[real], job[real]
        weight, missing = self._weights[source], job * SCALE - entitled[source]
        release = quanta + (missing - SCALE) // (weight * self.quantum) + 1
        return _Released(source, np.maximum(release, 1), _ceil_div(missing, weight))

    def _greedy(self, jobs: _Released, quanta: int, queue: int) -> Ints:
        """Indices of the jobs still in the queue: latest due first, while every bound allows."""
        releases, position = np.unique(jobs.release, return_inverse=True)
        room = self._shortest(releases, quanta, jobs)
        kept = []
        for job in np.lexsort((jobs.source, jobs.due))[::-1]:
            nested = room[position[job] :]
            if nested.min() > 0:
                nested -= 1
                kept.append(job)
                if len(kept) == queue:
                    break
        return np.array(kept, np.int64)

    def _shortest(self, releases: Ints, quanta: int, jobs: _Released) -> Ints:
        """The queue's least length from each release up to the next (the last: up to now)."""
        room = np.full(releases.size, _FAR)
        begin = int(releases[0])
        alone = releases.size > 1 and int((jobs.release == begin).sum()) == 1
        if alone and int(self._owed.sum()) >= 0 and jobs.due[jobs.release == begin][0] > 0:
            # A sample within its window keeps the queue from being empty, and by itself it asks
            # for no more: the longest look back is saved.
            room[0], begin = 1, int(releases[1])
        for first in range(begin, quanta + 1, _SCAN):
            times = np.arange(first, min(first + _SCAN, quanta + 1))
            lengths = self._lengths(times)
            part = np.searchsorted(releases, times, side="right") - 1
            starts = np.flatnonzero(np.diff(part, prepend=-1))
            least = np.minimum.reduceat(lengths, starts)
            room[part[starts]] = np.minimum(room[part[starts]], least)
        return room

    def _lengths(self, times: Ints) -> Ints:
        """The queue's length after each of these quanta."""
        samples = times * self.quantum
        offset = samples & _MASK
        released = (self._owed + _MASK + self._weights * offset[:, None]) >> SHIFT
        if self._clips:
            released = np.maximum(released, -self._weights * (samples >> SHIFT)[:, None])
        return np.asarray(released.sum(axis=1) - offset, np.int64)
