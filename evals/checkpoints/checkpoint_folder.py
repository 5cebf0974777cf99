"""A checkpoint's folder read as one: what changes while it is read is read again, or refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mixloop.common.errors import one_line
from mixloop.common.tokenizing import TokenProbe, read_probe

from .model_weights import read_model
from .text_encoding import (
    Encode,
    has_tokenizer,
    read_tokenizer,
    text_encoder,
    why_not_of_model,
    why_not_trained_with,
)
from .weight_sums import WeightSum

log = logging.getLogger(__name__)

_ATTEMPTS = 3
_PAUSE_SECONDS = 1.0

# others, such as a trainer's state or the mark that a checkpoint is complete, may come and go
_READ = (
    *("config.json", "generation_config.json", "adapter_config.json"),
    *("*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "*.jinja"),
    *("vocab.*", "merges.txt", "*.model"),
)


class CheckpointError(Exception):
    """The checkpoint can't be scored: one line naming the folder and the whole reason."""


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds, in memory: nothing of it changes with the files any more.

    `encode` makes the ids of a text that training had; `begins` says whether documents of the
    training data began with a beginning-of-text token.
    """

    config: Any
    tokenizer: Any
    encode: Encode
    model: Any
    begins: bool


def read_checkpoint(
    folder: Path,
    *,
    device: str,
    dtype: str,
    trained: TokenProbe | None = None,
    tokenizer: Path | None = None,
    weights: WeightSum | None = None,
) -> Checkpoint:
    """Reads a Hugging Face checkpoint folder.

    Args:
        folder: Safetensors only; no code from the checkpoint is run.
        device: torch's name of it.
        dtype: `auto` is float32 on a CPU and the checkpoint's own elsewhere.
        trained: The probe of the tokenizer that made the training data; None: not known.
        tokenizer: The folder of that tokenizer, for a checkpoint that carries none; None: such a
            one can't be scored.
        weights: What the model is to hold instead of the folder's own weights.

    Raises:
        CheckpointError: something is missing, damaged, or not what was trained.
    """
    places = {folder, *(place for _, place in weights.terms)} if weights else {folder}
    changed: list[str] = []
    for attempt in range(_ATTEMPTS):
        if attempt:
            log.warning("%s: %s changed while it was read", folder, ", ".join(changed))
            time.sleep(_PAUSE_SECONDS)
        before = _state(places)
        # what an earlier attempt has read goes first: two at a time may be too many
        read: Checkpoint | Exception | None = None
        try:
            read = _read(folder, device, dtype, trained, tokenizer, weights)
        # a folder that vanishes or is damaged fails in whatever way the parser at hand fails
        except Exception as error:
            read = error
        # one that is gone since was read in time, or its reader has failed
        after = _state(places)
        changed = sorted(name for name in after if before.get(name) != after[name])
        if changed:
            continue
        if isinstance(read, Exception):
            raise CheckpointError(f"{folder}: can't be scored: {one_line(read)}") from read
        return read
    raise CheckpointError(
        f"{folder}: can't be scored: {', '.join(changed)} changed while it was read, "
        f"{_ATTEMPTS} times"
    )


def _read(
    folder: Path,
    device: str,
    dtype: str,
    trained: TokenProbe | None,
    substitute: Path | None,
    weights: WeightSum | None,
) -> Checkpoint:
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise FileNotFoundError("no config.json: the folder is gone, or no checkpoint")
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # a config may name kernels of the hub, which are code; transformers' own choice is ours
    config._attn_implementation = config._experts_implementation = None
    if substitute is None or has_tokenizer(folder):
        source, tokenizer = folder, read_tokenizer(folder)
    else:
        source, tokenizer = substitute, _read_substitute(substitute, config)
    if tokenizer.eos_token_id is None:
        raise ValueError("its tokenizer has no end-of-text token")
    known = trained or read_probe(folder)
    encode = text_encoder(tokenizer, source, known)
    problem = why_not_trained_with(encode, folder, trained) or why_not_of_model(tokenizer, config)
    if problem is not None:
        raise ValueError(problem)
    begins = known is not None and known.begins
    model = read_model(folder, config, device, dtype, weights)
    return Checkpoint(config, tokenizer, encode, model, begins)


def _read_substitute(folder: Path, config: Any) -> Any:
    """The tokenizer of the training data, for a model that knows all its ids."""
    tokenizer = read_tokenizer(folder)
    ids = max(tokenizer.get_vocab().values()) + 1
    known = getattr(config.get_text_config(), "vocab_size", None)
    if known is None or ids > known:
        raise ValueError(
            f"it carries no tokenizer, and that of the training data ({folder}) has ids up to "
            f"{ids - 1}, of which the model knows {known}"
        )
    return tokenizer


def _state(places: Iterable[Path]) -> dict[str, tuple[int, int, int]]:
    """Size, time of the last change (ns) and inode of every file that is read, by name."""
    state: dict[str, tuple[int, int, int]] = {}
    for place in places:
        try:
            for file in place.iterdir() if place.is_dir() else [place]:
                if any(fnmatch(file.name, pattern) for pattern in _READ):
                    found = file.stat()
                    key = str(file.relative_to(place.parent))
                    state[key] = (found.st_size, found.st_mtime_ns, found.st_ino)
        except OSError:
            pass  # it vanishes: whoever reads it says so
    return state
