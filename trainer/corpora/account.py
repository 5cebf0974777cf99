"""What came of the records: those that were left out, and what tokenising changed of the text."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Literal

SURROGATES = "half surrogates became U+FFFD"
UNKNOWN = "characters are unknown to the tokenizer and lost"
BLANK = "blank documents are left out"
MARKS = "marks in texts became ids of their own (the tokenizer doesn't call them special)"
UNSURE = "places in long documents may be tokenised otherwise than in the whole"

_EXAMPLES = 10

OnError = Literal["stop", "skip"]


class Account:
    """Counts what isn't as it should be, and decides whether that ends the work.

    Args:
        on_error: what a bad record does: `stop`, or `skip` it and count it.
        most: bad records that are skipped at most.

    Attributes:
        skipped: bad records, by kind.
        changed: what of the text the tokens don't say, by kind.
        examples: of what was changed, by kind.
    """

    def __init__(self, on_error: OnError = "stop", most: int = 1000) -> None:
        self.on_error = on_error
        self.most = most
        self.skipped: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.examples: dict[str, set[str]] = defaultdict(set)

    def bad(self, kind: str, message: str) -> None:
        """A record that is not what it should be.

        Args:
            kind: what is wrong, as it is counted.
            message: one line with file, line and what is wrong.

        Raises:
            ValueError: it ends the work: the message and the mend.
        """
        if self.on_error == "stop":
            raise ValueError(f"{message} (--on-error skip leaves such records out)")
        self.skipped[kind] += 1
        if self.skipped.total() > self.most:
            counts = ", ".join(f"{count} {kind}" for kind, count in self.skipped.most_common())
            raise ValueError(
                f"{message}: more than --max-errors {self.most} bad records ({counts})"
            )

    def lines(self) -> list[str]:
        """What was counted, a line each, for a person."""
        said = []
        if self.skipped:
            counts = ", ".join(f"{count:,} {kind}" for kind, count in self.skipped.most_common())
            said.append(f"left out {self.skipped.total():,} bad records: {counts}")
        for kind, count in self.changed.most_common():
            examples = sorted(self.examples[kind])[:_EXAMPLES]
            such_as = f", such as {' '.join(examples)}" if examples else ""
            if count:
                said.append(f"{count:,} {kind}{such_as}")
        return said
