"""Tokenizers: train a byte-level BPE, fingerprint one, and copy one into a store or checkpoint.

A tokenizer here is a folder with a `tokenizer.json`, which is taken as it is, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixloop.common.errors import one_line
from mixloop.common.tokenizing import (
    RECORD,
    TOKENIZER_FILE,
    TokenProbe,
    exact_config,
    read_tokenizer_file,
    special_tokens,
    take_probe,
)
from mixloop.trainer.config import JobError

from .token_store import read_header

if TYPE_CHECKING:
    from tokenizers import Tokenizer


END_OF_TEXT = "<|endoftext|>"
_CONFIG = "tokenizer_config.json"
_AS_THEY_ARE = (TOKENIZER_FILE, "chat_template.jinja")
_FILES = (*_AS_THEY_ARE, _CONFIG, "special_tokens_map.json")
# what decides which ids a text becomes; templates, truncation and decoding do not
_IDENTITY = ("model", "added_tokens", "normalizer", "pre_tokenizer")
_NOT_IDS = ("dropout", "trim_offsets")  # chance is switched off; places are no ids


@dataclass(frozen=True)
class TokenizerInfo:
    """What a store and a model need to know of a tokenizer.

    `vocab_size` is its highest id and one, added tokens and holes among the ids included, so that a
    model has a row for each id. `eos_id` and `bos_id` are -1 where it names none. `probe` are the
    ids by which whoever scores a model knows that it reads texts as training did.
    """

    fingerprint: str
    vocab_size: int
    eos_token: str | None
    eos_id: int
    probe: TokenProbe
    bos_id: int = -1


def train_tokenizer(texts: Iterable[str], out: Path, vocab_size: int) -> Path:
    """Train a byte-level BPE (GPT-2's scheme) and write it to the folder `out`.

    Args:
        texts: documents; iterated once.
        out: folder to write, created if absent.
        vocab_size: ids in all, the end-of-text token and the 256 bytes included.

    Raises:
        ValueError: a vocabulary too small for the bytes, or no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise ValueError(f"vocab_size {vocab_size} is too small: 256 bytes and {END_OF_TEXT}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    some = False

    def noted() -> Iterable[str]:
        nonlocal some
        for text in texts:
            some = some or bool(text)
            yield text

    tokenizer.train_from_iterator(noted(), trainer=trainer)
    if not some:
        raise ValueError("no text to train a tokenizer on")
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "bos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")
    return out


def resolve_tokenizer(name: str, scratch: Path) -> Path:
    """A local tokenizer folder for `name`: itself, or the hub's files as they are.

    A repository without a `tokenizer.json` is converted into `scratch`: what transformers makes of
    it is then the tokenizer.

    Raises:
        ValueError: neither a folder with a tokenizer.json nor a loadable hub name.
    """
    folder = Path(name).expanduser()
    if (folder / TOKENIZER_FILE).is_file():
        return folder
    if folder.exists() or name.startswith((".", "/", "~")):
        raise ValueError(f"tokenizer {name}: no tokenizer.json there")
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(name, allow_patterns=list(_FILES)))
    # what a name or a connection can be wrong in: the hub's own errors are of both kinds
    except (OSError, ValueError) as error:
        raise ValueError(
            f"tokenizer {name}: neither a folder nor a hub name: {one_line(error)}"
        ) from error
    return found if (found / TOKENIZER_FILE).is_file() else _converted(name, scratch)


def _converted(name: str, scratch: Path) -> Path:
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(name).save_pretrained(scratch)
    except (OSError, ValueError) as error:
        raise ValueError(f"tokenizer {name}: {one_line(error)}") from error
    if not (scratch / TOKENIZER_FILE).is_file():
        raise ValueError(f"tokenizer {name}: only fast tokenizers (tokenizer.json) are supported")
    return scratch


def load_raw(folder: Path) -> Tokenizer:
    """The `tokenizers.Tokenizer` of a folder, without truncation or padding."""
    return read_tokenizer_file(folder)


def inspect_tokenizer(folder: Path) -> TokenizerInfo:
    """Fingerprint, size and end-of-text token of a tokenizer folder.

    Raises:
        JobError: no tokenizer there.
    """
    try:
        tokenizer = load_raw(folder)
    except (OSError, ValueError) as error:
        raise JobError(f"tokenizer {folder}: no readable tokenizer.json: {error}") from error
    named = special_tokens(folder, tokenizer)
    eos, bos = named.get("eos_token"), named.get("bos_token")
    ids = tokenizer.get_vocab(with_added_tokens=True)
    return TokenizerInfo(
        fingerprint=_identity(tokenizer),
        vocab_size=max(ids.values()) + 1,
        eos_token=eos,
        eos_id=-1 if eos is None else ids[eos],
        probe=take_token_probe(tokenizer),
        bos_id=-1 if bos is None else ids[bos],
    )


def _identity(tokenizer: Tokenizer) -> str:
    """Hash of what makes a tokenizer's ids, the same for each version that saved its file.

    Versions write merges, defaults and the order of entries differently; the one that is installed
    reads them all, and what it writes is compared, without what is off.
    """
    written = json.loads(tokenizer.to_str())
    parts = {key: _plain(written.get(key)) for key in _IDENTITY}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"sha256:{digest}"


def _plain(part: Any) -> Any:
    """A part of a tokenizer without what changes no id, and a sequence of one as that one."""
    if isinstance(part, list):
        return [_plain(one) for one in part]
    if not isinstance(part, dict):
        return part
    inside = part.get("normalizers") or part.get("pretokenizers") or ()
    if part.get("type") == "Sequence" and len(inside) <= 1:
        return _plain(inside[0]) if inside else None
    if part.get("type") == "BPE":
        part = {**part, "merges": [" ".join(pair) for pair in part["merges"]]}
    kept = ((key, _plain(value)) for key, value in part.items() if key not in _NOT_IDS)
    # 0 is an id; what is off may be written or not
    return {key: value for key, value in kept if value not in (None, "") and value is not False}


def same_tokenizer(fingerprint: str, folder: Path, other: TokenizerInfo) -> bool:
    """Whether a store was made with a tokenizer.

    Args:
        fingerprint: of the store's tokenizer, as its header has it.
        folder: of the store's tokenizer, read where the header's version hashed otherwise.
    """
    if fingerprint == other.fingerprint:
        return True
    try:
        return inspect_tokenizer(folder).fingerprint == other.fingerprint
    except JobError:
        return False


def take_token_probe(tokenizer: Tokenizer) -> TokenProbe:
    """The probe of a tokenizer as `prepare` uses it."""
    return take_probe(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)


def _probe_elsewhere(folder: Path) -> TokenProbe:
    """The probe of data that `prepare` didn't tokenise: other tools take special tokens for ids."""
    return replace(take_token_probe(load_raw(folder)), parses_special=True)


def trained_probe(stores: Iterable[Path], tokenizer: Path | None) -> TokenProbe | None:
    """The probe of the tokenizer that made a run's data; None where none can be read.

    Documents begin with a token of their own, and special tokens that are written in them are ids,
    where that is so in every store.

    Args:
        stores: where the run's sources lie.
        tokenizer: the folder that the run names, if it names one.
    """
    folders, probes = [], []
    for path in stores:
        try:
            probes.append(read_header(path).probe)
        except JobError:  # another format, or not prepared yet
            continue
        folders.append(path / "tokenizer")
    known = [probe for probe in probes if probe is not None]
    if known:
        return replace(
            known[0],
            begins=all(probe.begins for probe in known),
            parses_special=all(probe.parses_special for probe in known),
        )
    for folder in (*folders, *([tokenizer] if tokenizer is not None else [])):
        try:
            return _probe_elsewhere(folder)
        except (OSError, ValueError):
            continue
    return None


def trained_tokenizer(stores: Iterable[Path], tokenizer: Path | None) -> Path | None:
    """The folder of the tokenizer that made a run's data; None where there is none to be found.

    Args:
        stores: where the run's sources lie.
        tokenizer: the folder that the run names, if it names one.
    """
    named = [tokenizer] if tokenizer is not None else []
    folders = (*named, *(path / "tokenizer" for path in stores))
    return next((folder for folder in folders if (folder / TOKENIZER_FILE).is_file()), None)


def keep_tokenizer(source: Path, target: Path, probe: TokenProbe) -> list[Path]:
    """Write the tokenizer that tokenised a store into the folder `target`.

    `tokenizer.json` goes over byte for byte. Beside it lie a `tokenizer_config.json` by which
    transformers takes the file as it is, and the probe.

    Returns:
        The files written.
    """
    target.mkdir(parents=True, exist_ok=True)
    written = _copy(_AS_THEY_ARE, source, target)
    made = {_CONFIG: exact_config(source, load_raw(source)), RECORD: probe.to_json()}
    for name, content in made.items():
        (target / name).write_text(json.dumps(content, indent=2), "utf-8")
    return [*written, *(target / name for name in made)]


def copy_tokenizer(source: Path, target: Path) -> list[Path]:
    """Copy a tokenizer from a store's or any folder into a checkpoint's.

    The probe that was recorded when the training data was tokenised goes along; a folder without
    one gets its own.

    Returns:
        The files written.
    """
    if not (source / RECORD).is_file():
        return keep_tokenizer(source, target, _probe_elsewhere(source))
    target.mkdir(parents=True, exist_ok=True)
    return _copy((*_AS_THEY_ARE, _CONFIG, RECORD), source, target)


def _copy(names: Iterable[str], source: Path, target: Path) -> list[Path]:
    there = [name for name in names if (source / name).is_file()]
    return [Path(shutil.copyfile(source / name, target / name)) for name in there]
