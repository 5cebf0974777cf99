"""A fixed text's token ids: what says that two tokenizers, however they came to be, are one.

Two files can differ and tokenise alike, and one file gives two tokenizers to two loaders. So the
ids themselves are compared: those of whoever tokenised the training data with those of whoever
scores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixloop.common.files import read_json

RECORD = "tokenizer_probe.json"
"""The file beside a `tokenizer.json` that holds its probe."""

VERSION = 1  # of the texts below

# what tokenizers differ in: groups of digits, contractions, white space, leading spaces, case,
# composed characters, scripts. No special token of any tokenizer is among them
_TEXTS = (
    "In 1997 there were 12,345 (of 9876543210) things; don't STOP'S, I'll, WE'VE: 50% of $3.14.",
    " A leading space,  two spaces,   three,\ta tab\t\tand a trailing one ",
    "def f(x):\n    return x_1.y  # naïve\n\n\n    if not x:\r\n        pass\n",
    "Ça coûte 10 € à l'hôtel; cafe\u0301, ﬁn, Ⅷ, x² ≤ 10⁻³; Straße, ΑΒΓ, Привет, שלום, नमस्ते",
    "北京 is 12345 km 東京。한국어 ไทย 👩‍👩‍👧 🇪🇺",
    "https://example.org/a?b=c&d=e#f user@example.org CamelCaseXMLHttp 0xFF 1e-5 a\\n — “so” …",
    "\n\n  \n",
    "zero\u200bwidth, no\u00a0break\ufeff",
)
_KEPT = 16  # ids told in full


@dataclass(frozen=True)
class TokenProbe:
    """The probe text's ids: the hash of all, and the first of them for a person.

    `begins` says whether a beginning-of-text token stood in front of each document that was
    tokenised for training, `parses_special` whether special tokens that were written in one became
    their ids.
    """

    sha256: str
    ids: tuple[int, ...] = ()
    version: int = VERSION
    begins: bool = False
    parses_special: bool = False

    @classmethod
    def from_json(cls, content: Any) -> TokenProbe | None:
        """What a file holds; None where that is no probe of these texts."""
        if not isinstance(content, Mapping) or content.get("version") != VERSION:
            return None
        digest, ids = content.get("sha256"), content.get("ids")
        if not isinstance(digest, str) or not isinstance(ids, Sequence):
            return None
        begins, parses = (content.get(name) is True for name in ("begins", "parses_special"))
        return cls(digest, tuple(ids), begins=begins, parses_special=parses)

    def to_json(self) -> dict[str, Any]:
        """As `from_json` takes it."""
        return asdict(self)

    def difference(self, trained: TokenProbe) -> str | None:
        """How these ids differ from those of training, for a person; None where they don't."""
        if trained.version != self.version or trained.sha256 == self.sha256:
            return None
        for place, (mine, theirs) in enumerate(zip(self.ids, trained.ids, strict=False)):
            if mine != theirs:
                return f"token {place + 1} of the probe text is {mine}, in training it was {theirs}"
        return f"tokens after the first {len(self.ids)} of the probe text"


def take_probe(encode: Callable[[str], Sequence[int]]) -> TokenProbe:
    """The probe of a tokenizer.

    Args:
        encode: a text's ids without any that the tokenizer adds of its own.
    """
    ids = [list(encode(text)) for text in _TEXTS]
    digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    return TokenProbe(digest, tuple([token for row in ids for token in row][:_KEPT]))


def read_probe(folder: Path) -> TokenProbe | None:
    """The probe recorded beside a tokenizer; None where there is none that can be compared."""
    try:
        return TokenProbe.from_json(read_json(folder / RECORD, follow=True))
    except (OSError, ValueError, RecursionError):
        return None
