"""What runs inside a Ray actor: a scorer and the newest checkpoint's model. Light to import."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from mixloop.evals import EvalSettings, Scorecard
from mixloop.evals.scoring import Scorer, WorkUnit

from .supervision import set_up_process


def _end(reason: str) -> None:
    """The driver sees the death; the reason goes to the worker's log with what actors print."""
    logging.getLogger(__name__).error("%s", reason)
    os._exit(1)


class ScoringActor:
    """Scores units one at a time, in its process's main thread (MATH's scorer needs that)."""

    def __init__(self, settings_json: str) -> None:
        settings = EvalSettings.model_validate_json(settings_json)
        set_up_process(settings, _end)
        self._scorer = Scorer(settings)
        self._newest = ""

    def ready(self) -> int:
        """The process's id, once everything is imported."""
        return os.getpid()

    def score(self, name: str, checkpoint: str, unit: str, earlier: Sequence[str] = ()) -> str:
        """The unit's score, as JSON. The model is read once per `name`, the newest is kept."""
        if name != self._newest:
            self._scorer.release()
            self._newest = name
        folders = [Path(folder) for folder in earlier]
        score = self._scorer.run(WorkUnit.model_validate_json(unit), Path(checkpoint), folders)
        return score.model_dump_json()

    def samples(self, card: str, path: str) -> None:
        """Writes the samples of the checkpoint scored last beside its scorecard's file."""
        self._scorer.samples(Scorecard.model_validate_json(card), Path(path))
