"""What an audit looks at and what it says: plain records, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mixloop.contract import Line, Manifest, Status

AUDIT_SCHEMA = "mixloop/audit/1"


@dataclass(frozen=True)
class Finding:
    """Something that does not agree; `where` is a file, `line` a line of it, from 1."""

    kind: str
    where: str
    detail: str
    line: int | None = None
    step: int | None = None
    sample: int | None = None


@dataclass(frozen=True)
class StoreFacts:
    """A source's store as it lies on the disk now; `trouble` says why it could not be read."""

    path: str
    samples: int | None = None
    fingerprint: str | None = None
    trouble: str | None = None


@dataclass(frozen=True)
class Evidence:
    """The files of a run, read.

    Attributes:
        lines: the schedule's sound lines, each with its number in the file.
        damaged: findings on lines that can't be read.
        status: None when the run has no readable heartbeat.
        checkpoints: every complete checkpoint's manifest by folder name.
        broken: why a checkpoint folder is not usable, by name.
        stores: what is known of the sources' stores; an absent name is one nobody gave a path for.
    """

    lines: tuple[tuple[int, Line], ...]
    damaged: tuple[Finding, ...]
    status: Status | None
    checkpoints: Mapping[str, Manifest]
    broken: Mapping[str, str]
    stores: Mapping[str, StoreFacts]
    torn: bool = False


@dataclass(frozen=True)
class Share:
    """A source in a segment: what its weight asks for, what it gave, what it is owed since.

    `owed` is the entitlement less the draws since the run began, in samples; `exact` that `drawn`
    is the floor or ceiling of the entitlement within the segment, carried remainder included.
    """

    weight: float
    samples: float
    drawn: int
    owed: float
    exact: bool


@dataclass(frozen=True)
class SegmentFacts:
    """A stretch of constant weights and quantum on the run's branch, as far as it was consumed."""

    sample: int
    step: int
    samples: int
    quantum: int
    fence: int
    generation: int
    incarnation: int
    shares: Mapping[str, Share]

    @property
    def worst(self) -> tuple[str, float]:
        """The source that is furthest from its due, and by how many samples."""
        return max(((n, s.owed) for n, s in self.shares.items()), key=lambda item: abs(item[1]))

    @property
    def exact(self) -> bool:
        """Whether every source has floor or ceil of its share."""
        return all(share.exact for share in self.shares.values())


@dataclass(frozen=True)
class IncarnationFacts:
    """An incarnation: where it began, how its ranks were laid out, and where the next took over.

    `until` is the first sample the run did not take from it (None: it is the last); `left` that
    nothing of it counts any more, since a later one began at or before its first sample; `stages`
    has (first sample, quantum) of its steps, several where they grow.
    """

    incarnation: int
    parent: str | None
    step: int
    sample: int
    until: int | None
    world: int
    micro_batch: int
    accumulation: int
    quantum: int
    rewind: bool
    left: bool
    stages: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class LedgerFacts:
    """A ledger that was compared: `status.json` or a checkpoint; `agrees` on all counts."""

    where: str
    incarnation: int
    step: int
    sample: int
    tokens: int
    generation: int
    surviving: bool
    agrees: bool


@dataclass(frozen=True)
class SourceFacts:
    """A source: what it gave, and its store against what the schedule recorded."""

    samples: int
    drawn: int
    tokens: int
    epochs: float
    store: str
    path: str | None = None


@dataclass(frozen=True)
class TraceFacts:
    """Recorded batches that were compared.

    `verified` lines agree with the run's branch, `left` only with one that a later incarnation
    left; `hashed` of them carried a hash of the token ids that was derived again. `steps` are the
    steps of the run's branch that all their ranks recorded, `gaps` those between the first and
    last of them that not all did.
    """

    files: int
    lines: int
    verified: int
    left: int
    hashed: int
    steps: int
    gaps: int


@dataclass(frozen=True)
class Report:
    """An audit's outcome; consistent when there are no findings."""

    run: str | None
    seed: int
    sequence_length: int
    step: int
    sample: int
    tokens: int
    incarnations: tuple[IncarnationFacts, ...]
    segments: tuple[SegmentFacts, ...]
    pending: int
    voids: int
    ledgers: tuple[LedgerFacts, ...]
    sources: Mapping[str, SourceFacts]
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]
    trace: TraceFacts | None = None

    @property
    def ok(self) -> bool:
        """Whether everything agrees."""
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, `schema` first."""
        return {"schema": AUDIT_SCHEMA, "ok": self.ok, **asdict(self)}
