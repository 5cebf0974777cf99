"""Which tokens a set of sequences shares, and in what order to compute them. Pure.

Sequences become a trie; the trie becomes `Family`s: a prefix long enough, and shared by enough
sequences, to be computed once and kept, and below it `Row`s, small trees of tokens that are
computed side by side. Every place in the trie has a *slot* number, so what is wanted of a token
(a log-probability of what follows it) is asked once, wherever and however often it is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Tokens = tuple[int, ...]

# a tree of at most this many tokens is computed as one row, all of it under one dense mask
ROW_TOKENS = 320
# a prefix is kept for its family when that saves at least this many tokens: a pass of its own
# costs about as much as so many on a CPU
WORTH_TOKENS = 64


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
        own = len(self.prefix.tokens) + sum(len(row.tokens) for row in self.rows)
        return own + sum(family.tokens() for family in self.families)


@dataclass(frozen=True)
class PrefixPlan:
    """A family to compute, and per sequence the slots of its tokens, last one last."""

    family: PrefixFamily
    leaves: tuple[Node, ...]

    def slots(self, sequence: int, last: int) -> list[int]:
        """Slots of the `last` tokens of a sequence, in order."""
        found: list[int] = []
        node: Node | None = self.leaves[sequence]
        while node is not None and len(found) < last:
            own = range(node.slot, node.slot + len(node.tokens))
            found[:0] = own[max(0, len(own) - (last - len(found))) :]
            node = node.parent
        return found


def plan_prefixes(sequences: Sequence[Tokens], worth: int = WORTH_TOKENS) -> PrefixPlan:
    """The order in which to compute these sequences, which must differ and not be empty.

    `worth`: tokens that a prefix has to save to be computed on its own.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    leaves: dict[int, Node] = {}
    root = _Builder(sequences, order, leaves).node(0, len(order), 0, None)
    return PrefixPlan(
        _family(root, (), worth), tuple(leaves[index] for index in range(len(sequences)))
    )


class _Builder:
    """Builds the compressed trie of sorted sequences."""

    def __init__(
        self, sequences: Sequence[Tokens], order: Sequence[int], leaves: dict[int, Node]
    ) -> None:
        self._sequences, self._order, self._leaves = sequences, order, leaves
        self._slots = 0

    def node(self, low: int, high: int, start: int, parent: Node | None) -> Node:
        """The node of sorted sequences low..high, which share their first `start` tokens."""
        first = self._sequences[self._order[low]]
        end = _shared(first, self._sequences[self._order[high - 1]], start)
        made = Node(first[start:end], start, self._slots, parent)
        self._slots += end - start
        made.total = end - start
        made.leaves = high - low
        if len(first) == end:
            made.ends.append(self._order[low])
            self._leaves[self._order[low]] = made
            low += 1
        for begin, stop in self._branches(low, high, end):
            child = self.node(begin, stop, end, made)
            made.children.append(child)
            made.total += child.total
        return made

    def _branches(self, low: int, high: int, depth: int) -> Iterator[tuple[int, int]]:
        begin = low
        for index in range(low + 1, high + 1):
            if index == high or self._token(index, depth) != self._token(begin, depth):
                yield begin, index
                begin = index

    def _token(self, index: int, depth: int) -> int:
        return self._sequences[self._order[index]][depth]


def _shared(one: Tokens, other: Tokens, start: int) -> int:
    """Length of the common prefix of two sequences that agree up to `start`."""
    low, high = start, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _family(node: Node, carried: tuple[Node, ...], worth: int) -> PrefixFamily:
    """A family whose prefix is the carried nodes and the node itself."""
    made = PrefixFamily(_row((*carried, node)))
    for child in node.children:
        _place(child, (), made, worth)
    return made


def _place(node: Node, carried: tuple[Node, ...], family: PrefixFamily, worth: int) -> None:
    """Puts a subtree under a family: as a row, as a family of its own, or branch by branch."""
    above = sum(len(one.tokens) for one in carried)
    if above + node.total <= ROW_TOKENS or not node.children:
        family.rows.append(_row((*carried, node), below=node.children))
    elif (above + len(node.tokens)) * (node.leaves - 1) >= worth:
        family.families.append(_family(node, carried, worth))
    else:
        # too little is shared to keep it: each branch takes its own copy along
        if node.ends:
            family.rows.append(_row((*carried, node)))
        for child in node.children:
            _place(child, (*carried, node), family, worth)


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
        for row in sorted(chosen, key=lambda one: (-len(one.tokens), one.slots)):
            if batch and size + len(row.tokens) > tokens:
                yield batch
                batch, size = [], 0
            batch.append(row)
            size += len(row.tokens)
        if batch:
            yield batch


# prompts share a prefix worth keeping apart from their relatives' shorter one
_LONGER_TOKENS = 256


def prompt_families(
    prompts: Sequence[Tokens], worth: int = WORTH_TOKENS
) -> list[tuple[int, list[int]]]:
    """Prompts to generate from, grouped by a prefix worth keeping: (its length, their indices).

    Prompts that share nothing worth it are together under length 0, which comes first. Every
    prompt keeps at least one token of its own.
    """
    unique = sorted(set(prompts))
    leaves: dict[int, Node] = {}
    root = _Builder(unique, range(len(unique)), leaves).node(0, len(unique), 0, None)
    groups: dict[int, tuple[int, Node]] = {}
    _group(root, (0, root), groups, worth)
    found: dict[tuple[int, int], list[int]] = {}
    member = {tokens: groups[index] for index, tokens in enumerate(unique)}
    for index, prompt in enumerate(prompts):
        length, node = member[prompt]
        found.setdefault((length, node.slot if length else 0), []).append(index)
    return [
        (min(length, min(len(prompts[index]) for index in members) - 1), members)
        for (length, _), members in sorted(found.items())
    ]


def _group(
    node: Node, above: tuple[int, Node], groups: dict[int, tuple[int, Node]], worth: int
) -> None:
    """Assigns every sequence below a node to the prefix it is generated from."""
    end = node.start + len(node.tokens)
    fresh = end - above[0]
    needed = max(_LONGER_TOKENS, worth) if above[0] else worth
    own = (end, node) if fresh * (node.leaves - 1) >= needed else above
    for index in node.ends:
        groups[index] = own
    for child in node.children:
        _group(child, own, groups, worth)
