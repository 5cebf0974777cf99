"""The newest checkpoint's model, kept until another one is asked for."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixloop.evals import EvalSettings

if TYPE_CHECKING:
    from mixloop.evals.checkpoints import Encode
    from mixloop.evals.engine import CheckpointLM


class ModelCache:
    """Loads checkpoints as the settings have it, one at a time."""

    def __init__(self, settings: EvalSettings) -> None:
        self._settings = settings
        self._loaded: tuple[tuple[Path, ...], CheckpointLM | str] | None = None
        self._texts: tuple[str, Any, Encode] | None = None

    def load(self, checkpoint: Path, earlier: Sequence[Path] = ()) -> CheckpointLM | str:
        """The checkpoint's model, or why there is none; loaded once until :meth:`release`.

        Its weights are the mean with those of the `earlier` ones.
        """
        folders = (checkpoint, *earlier)
        if self._loaded is None or self._loaded[0] != folders:
            # the old one goes first: two at a time may be too many
            self.release()
            self._loaded = (folders, self._load(folders))
        return self._loaded[1]

    def release(self) -> None:
        """Lets go of the loaded model."""
        self._loaded = None
        # its modules know one another: the weights would wait for a chance collection
        gc.collect()

    def _load(self, folders: tuple[Path, ...]) -> CheckpointLM | str:
        from mixloop.evals.checkpoints import CheckpointError, WeightSum
        from mixloop.evals.engine import load_checkpoint

        settings, checkpoint = self._settings, folders[0]
        try:
            lm = load_checkpoint(
                checkpoint,
                device=settings.device,
                dtype=settings.dtype,
                max_length=settings.max_length,
                batch_tokens=settings.batch_tokens,
                seed=settings.seed,
                add_bos=settings.add_bos,
                trained=settings.trained_probe,
                tokenizer=settings.trained_tokenizer,
                weights=WeightSum.mean(folders) if len(folders) > 1 else None,
            )
        except CheckpointError as error:
            return str(error)
        self._share_tokenizer(lm, checkpoint)
        return lm

    def _share_tokenizer(self, lm: CheckpointLM, checkpoint: Path) -> None:
        """Of equal tokenizers the first: `tokenizers` 0.23 never frees the words each has read."""
        from mixloop.evals.engine import tokenizer_identity

        identity = tokenizer_identity(lm.tokenizer, lm.encode, checkpoint)
        if self._texts is None or self._texts[0] != identity:
            self._texts = identity, lm.tokenizer, lm.encode
        _, lm.tokenizer, lm.encode = self._texts
