"""Which tokens a set of sequences shares, and in what order to compute them. Pure.

Sequences become a tree of their common prefixes, and that becomes `PrefixFamily`s: a prefix long
enough, and shared by enough sequences, to be computed once and kept, and below it `Row`s, small
trees of tokens that are computed side by side. Every place in the tree has a *slot* number, so what
is wanted of a token (a log-probability of what follows it) is asked once, wherever and however
often it is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Tokens = tuple[int, ...]

MAX_TREE_TOKENS = 320
"""A tree of at most so many tokens is computed as one row, all of it under one dense mask."""
MIN_SHARED_TOKENS = 64
"""A prefix is kept for its family when that saves at least so many tokens: a pass of its own costs
about as much as so many on a CPU."""
_MIN_LONGER_TOKENS = 256
"""The same of a longer prefix than one that is kept, for prompts to generate from."""


@dataclass
class Node:
    """A stretch of tokens between two branchings; `start` is its depth in tokens.

    `slot` numbers its first token, `total` counts the tokens below and in it, `leaves` the
    sequences that end below or in it.
    """

    tokens: Tokens
    start: int
    slot: int
    parent: Node | None
    ends: list[int] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)
    total: int = 0
    leaves: int = 0


@dataclass(frozen=True)
class Row:
    """A tree of tokens below a family's prefix, in an order where parents come first.

    tokens, slots, positions: [n]; `parents[i]` is the index of token i's parent, -1 at the top.
    """

    tokens: Tokens
    slots: tuple[int, ...]
    positions: tuple[int, ...]
    parents: tuple[int, ...]

    @property
    def is_chain(self) -> bool:
        """Whether every token follows the one before it."""
        return all(parent == index - 1 for index, parent in enumerate(self.parents))


@dataclass
class PrefixFamily:
    """A shared prefix (may be empty), the rows right below it, and families with longer ones."""

    prefix: Row
    rows: list[Row] = field(default_factory=list)
    families: list[PrefixFamily] = field(default_factory=list)

    def tokens(self) -> int:
        """Tokens that computing this family takes."""
        here = len(self.prefix.tokens) + sum(len(row.tokens) for row in self.rows)
        return here + sum(family.tokens() for family in self.families)


@dataclass(frozen=True)
class PrefixPlan:
    """A family to compute, and per sequence the slots of its tokens, last one last."""

    family: PrefixFamily
    leaves: tuple[Node, ...]

    def slots(self, sequence: int, last: int) -> list[int]:
        """Slots of the `last` tokens of a sequence, in order."""
        slots: list[int] = []
        node: Node | None = self.leaves[sequence]
        while node is not None and len(slots) < last:
            end = node.slot + len(node.tokens)
            slots[:0] = range(max(node.slot, end - (last - len(slots))), end)
            node = node.parent
        return slots


def plan_prefixes(
    sequences: Sequence[Tokens], min_shared_tokens: int = MIN_SHARED_TOKENS
) -> PrefixPlan:
    """The order in which to compute these sequences, which must differ and not be empty.

    `min_shared_tokens`: what a prefix has to save to be computed on its own.
    """
    root, leaves = _build(sequences)
    return PrefixPlan(_family(root, (), min_shared_tokens), leaves)


def _build(sequences: Sequence[Tokens]) -> tuple[Node, tuple[Node, ...]]:
    """The tree of different sequences, and the node in which each of them ends."""
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    builder = _Builder(sequences, order)
    root = builder.node(0, len(order), 0, None)
    return root, tuple(builder.leaves[index] for index in range(len(sequences)))


class _Builder:
    """Builds the tree of sorted sequences."""

    def __init__(self, sequences: Sequence[Tokens], order: Sequence[int]) -> None:
        self.leaves: dict[int, Node] = {}
        self._sequences, self._order = sequences, order
        self._slots = 0

    def node(self, low: int, high: int, start: int, parent: Node | None) -> Node:
        """The node of sorted sequences low..high, which share their first `start` tokens."""
        first = self._sequences[self._order[low]]
        end = shared_length(first, self._sequences[self._order[high - 1]], start)
        node = Node(first[start:end], start, self._slots, parent)
        self._slots += end - start
        node.total = end - start
        node.leaves = high - low
        if len(first) == end:
            node.ends.append(self._order[low])
            self.leaves[self._order[low]] = node
            low += 1
        for begin, stop in self._branches(low, high, end):
            child = self.node(begin, stop, end, node)
            node.children.append(child)
            node.total += child.total
        return node

    def _branches(self, low: int, high: int, depth: int) -> Iterator[tuple[int, int]]:
        begin = low
        for index in range(low + 1, high + 1):
            if index == high or self._token(index, depth) != self._token(begin, depth):
                yield begin, index
                begin = index

    def _token(self, index: int, depth: int) -> int:
        return self._sequences[self._order[index]][depth]


def shared_length(first: Tokens, second: Tokens, start: int = 0) -> int:
    """Length of the common prefix of two sequences that agree up to `start`."""
    low, high = start, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _family(node: Node, carried: tuple[Node, ...], min_shared: int) -> PrefixFamily:
    """A family whose prefix is the carried nodes and the node itself."""
    family = PrefixFamily(_row((*carried, node)))
    for child in node.children:
        _place(child, (), family, min_shared)
    return family


def _place(node: Node, carried: tuple[Node, ...], family: PrefixFamily, min_shared: int) -> None:
    """Puts a subtree under a family: as a row, as a family of its own, or branch by branch."""
    above = sum(len(parent.tokens) for parent in carried)
    if above + node.total <= MAX_TREE_TOKENS or not node.children:
        family.rows.append(_row((*carried, node), below=node.children))
    elif (above + len(node.tokens)) * (node.leaves - 1) >= min_shared:
        family.families.append(_family(node, carried, min_shared))
    else:
        # too little is shared to keep it: each branch takes its own copy along
        if node.ends:
            family.rows.append(_row((*carried, node)))
        for child in node.children:
            _place(child, (*carried, node), family, min_shared)


def _row(chain: Sequence[Node], below: Sequence[Node] = ()) -> Row:
    tokens: list[int] = []
    slots: list[int] = []
    positions: list[int] = []
    parents: list[int] = []

    def add(node: Node, parent: int) -> int:
        for offset, token in enumerate(node.tokens):
            parents.append(parent)
            parent = len(tokens)
            tokens.append(token)
            slots.append(node.slot + offset)
            positions.append(node.start + offset)
        return parent

    def descend(nodes: Sequence[Node], parent: int) -> None:
        for node in nodes:
            descend(node.children, add(node, parent))

    last = -1
    for node in chain:
        last = add(node, last)
    descend(below, last)
    return Row(tuple(tokens), tuple(slots), tuple(positions), tuple(parents))


def chain(tokens: tuple[int, ...], start: int = 0) -> Row:
    """The row of tokens `start` and after."""
    places = tuple(range(start, len(tokens)))
    return Row(tokens[start:], places, places, tuple(place - start - 1 for place in places))


def batches(rows: Sequence[Row], tokens: int) -> Iterator[list[Row]]:
    """Rows to compute together: chains apart from trees, of like length, up to `tokens` a batch.

    A row longer than that is a batch of its own.
    """
    for chains in (True, False):
        batch: list[Row] = []
        size = 0
        chosen = (row for row in rows if row.is_chain == chains)
        for row in sorted(chosen, key=lambda row: (-len(row.tokens), row.slots)):
            if batch and size + len(row.tokens) > tokens:
                yield batch
                batch, size = [], 0
            batch.append(row)
            size += len(row.tokens)
        if batch:
            yield batch


def prompt_families(
    prompts: Sequence[Tokens], min_shared_tokens: int = MIN_SHARED_TOKENS
) -> list[tuple[int, list[int]]]:
    """Prompts to generate from, grouped by a prefix worth keeping: (its length, their indices).

    Prompts that share nothing worth it are together under length 0, which comes first. Every
    prompt keeps at least one token of its own.
    """
    unique = sorted(set(prompts))
    root, _ = _build(unique)
    prefixes: dict[int, tuple[int, Node]] = {}
    _assign(root, (0, root), prefixes, min_shared_tokens)
    families: dict[tuple[int, int], list[int]] = {}
    prefix_of = {tokens: prefixes[index] for index, tokens in enumerate(unique)}
    for index, prompt in enumerate(prompts):
        length, node = prefix_of[prompt]
        families.setdefault((length, node.slot if length else 0), []).append(index)
    return [
        (min(length, min(len(prompts[index]) for index in members) - 1), members)
        for (length, _), members in sorted(families.items())
    ]


def _assign(
    node: Node, above: tuple[int, Node], prefixes: dict[int, tuple[int, Node]], min_shared: int
) -> None:
    """Assigns every sequence below a node to the prefix it is generated from."""
    end = node.start + len(node.tokens)
    fresh = end - above[0]
    needed = max(_MIN_LONGER_TOKENS, min_shared) if above[0] else min_shared
    prefix = (end, node) if fresh * (node.leaves - 1) >= needed else above
    for index in node.ends:
        prefixes[index] = prefix
    for child in node.children:
        _assign(child, prefix, prefixes, min_shared)
