"""The tokenizer of a run's sources: what a model is built by, and what its checkpoints carry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mixloop.trainer.batches import end_of_text
from mixloop.trainer.config import Job, JobError
from mixloop.trainer.sources import Store, copy_tokenizer, inspect_tokenizer, tokenizer_folder


class RunTokenizer:
    """The one that run.yaml names, else that of the sources.

    Args:
        job: what is trained.
        stores: its sources, open.
    """

    def __init__(self, job: Job, stores: Mapping[str, Store]) -> None:
        self._job = job
        self._stores = stores

    @property
    def vocab_size(self) -> int:
        """Token ids that a model must know.

        Raises:
            JobError: no source tells, and run.yaml names no tokenizer.
        """
        sizes = [store.info.vocab_size for store in self._stores.values()]
        if self._job.tokenizer is None and all(sizes):
            return max(sizes)
        return inspect_tokenizer(tokenizer_folder(self._job, self._stores)).vocab_size

    @property
    def eos_token_id(self) -> int:
        """The token that ends a document in every source.

        Raises:
            JobError: a source names none, or two name different ones.
        """
        return end_of_text(self._stores, "eos_token_id")

    def save(self, folder: Path) -> None:
        """Write its files into a folder.

        Raises:
            JobError: no source carries one, or it can't be read or written.
        """
        source = tokenizer_folder(self._job, self._stores)
        if not (source / "tokenizer.json").is_file():
            raise JobError(f"tokenizer {source}: no tokenizer.json there")
        try:
            copy_tokenizer(source, folder)
        except (OSError, ValueError) as error:
            raise JobError(f"{folder}: no tokenizer written: {error}") from error

    def complete(self, checkpoint: Path) -> str | None:
        """Put it beside weights that could be scored but for a tokenizer.

        Returns:
            Why there is none now; None when there is one, or no weights to score.
        """
        if not any(checkpoint.glob("*.safetensors")) or any(checkpoint.glob("tokenizer*")):
            return None
        try:
            self.save(checkpoint)
        except JobError as error:
            return str(error)
        return None
