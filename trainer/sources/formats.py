"""Sources of every format that is read in place: which one a path holds, and opening it.

| format | what | detected by |
|---|---|---|
| `store` | `mixloop prepare` | `store.json` in the folder |
| `megatron` | `NAME.bin` and `NAME.idx` | the index beside the path |
| `datatrove` | tokenised folders of datatrove (nanotron's too) | `*.ds` in or under the folder |
| `arrow` | `datasets.save_to_disk` with an `input_ids` column | `state.json` and `*.arrow` |

Formats other than our own carry no tokenizer: ids are as they are, and the run names the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mixloop.trainer.config import Job, JobError

from .datatrove import open_datatrove, verify_datatrove
from .fingerprints import id_range
from .hf_datasets import open_arrow, verify_arrow
from .megatron import index_of, open_megatron, verify_megatron
from .token_store import HEADER, Store, StoreInfo, read_header, verify_store
from .tokenizer import inspect_tokenizer, same_tokenizer


class _Format(NamedTuple):
    open: Callable[..., Store]
    verify: Callable[..., list[str]]
    options: tuple[str, ...] = ()


_FORMATS = {
    "store": _Format(Store.open, verify_store),
    "megatron": _Format(open_megatron, verify_megatron, ("eos_id",)),
    "datatrove": _Format(open_datatrove, verify_datatrove, ("eos_id", "dtype")),
    "arrow": _Format(open_arrow, verify_arrow, ("eos_id", "column")),
}


def detect(path: Path) -> str | None:
    """The format of what lies at a path, by its files' names; None for none of ours."""
    if (path / HEADER).is_file():
        return "store"
    if index_of(path).is_file():
        return "megatron"
    if (path / "state.json").is_file():
        return "arrow"
    if path.is_dir() and any(path.rglob("*.ds")):
        return "datatrove"
    return None


def open_source(path: Path, options: Mapping[str, Any] | None = None) -> Store:
    """Open what lies at a path.

    Args:
        path: a folder, or the prefix of a Megatron source.
        options: `format` (default: found out), `eos_id`, `dtype` (of datatrove folders without
            metadata), `column` (of arrow datasets).

    Raises:
        JobError: nothing there that can be read, or it is damaged; one line with the mend.
    """
    kind, others = _format(path, options)
    return _FORMATS[kind].open(path, **others)


def source_info(path: Path, options: Mapping[str, Any] | None = None) -> StoreInfo:
    """What a source is, as cheaply as its format allows.

    Raises:
        JobError: as for `open_source`.
    """
    kind, others = _format(path, options)
    return read_header(path) if kind == "store" else _FORMATS[kind].open(path, **others).info


def verify_source(path: Path, options: Mapping[str, Any] | None = None) -> list[str]:
    """What is wrong with the whole of a source.

    Of a token store that is its content, by checksums; of the other formats, which have none, the
    structure.

    Args:
        path: as for `open_source`.
        options: as for `open_source`.

    Returns:
        A line for each file that is damaged.

    Raises:
        JobError: it can't be opened at all.
    """
    kind, others = _format(path, options)
    others.pop("eos_id", None)
    return _FORMATS[kind].verify(path, **others)


def _format(path: Path, options: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """The format of what lies at a path, named or found out, and the other options, checked."""
    others = {key: value for key, value in (options or {}).items() if value is not None}
    kind = others.pop("format", "auto")
    if kind == "auto":
        kind = detect(path) or ("store" if not path.exists() else None)
    if kind is None and (path / "dataset_dict.json").is_file():
        raise JobError(f"{path}: a dataset of several splits; name the folder of one of them")
    if kind is None:
        raise JobError(
            f"{path}: none of the formats {', '.join(_FORMATS)}; make a token store of it with "
            "`mixloop prepare` (of token ids with --ids-key)"
        )
    legal = _FORMATS[kind].options
    if strange := [key for key in others if key not in legal]:
        words = f"{', '.join(legal)} are" if legal else "their header says it"
        raise JobError(f"{strange[0]}: not an option of {kind} sources ({words})")
    return kind, others


def open_stores(job: Job) -> dict[str, Store]:
    """Every source, in the job's order, checked against each other and the job.

    Raises:
        JobError: a missing or damaged source, sources of different tokenizers, or one shorter
            than one sample. One line, naming the source.
    """
    stores: dict[str, Store] = {}
    for name, source in job.sources.items():
        try:
            stores[name] = open_source(source.path, source.options)
        except JobError as error:
            raise JobError(f"sources.{name}: {error}") from error
    _check_tokenizers(stores)
    for name, store in stores.items():
        if store.samples(job.sequence_length) == 0:
            raise JobError(
                f"sources.{name}: {store.info.tokens} tokens are fewer than one sample of "
                f"sequence_length {job.sequence_length}"
            )
    return stores


def _check_tokenizers(stores: Mapping[str, Store]) -> None:
    first, *others = [name for name, store in stores.items() if store.info.tokenizer] or [""]
    for name in others:
        one, other = stores[first], stores[name]
        if other.info.tokenizer == one.info.tokenizer or _same_files(one, other):
            continue
        raise JobError(
            f"sources.{name}: made with another tokenizer than sources.{first} "
            f"(vocabulary {other.info.vocab_size} and {one.info.vocab_size}); "
            "prepare both with the same one"
        )


def _same_files(one: Store, other: Store) -> bool:
    """Whether two stores, whose headers hash their tokenizers differently, carry the same one."""
    try:
        facts = inspect_tokenizer(other.tokenizer)
    except JobError:
        return False
    return same_tokenizer(one.info.tokenizer, one.tokenizer, facts)


def tokenizer_folder(job: Job, stores: Mapping[str, Store]) -> Path:
    """The run's tokenizer: the one it names, else that of the first source that carries one.

    Raises:
        JobError: none does.
    """
    if job.tokenizer is not None:
        return job.tokenizer
    for store in stores.values():
        if store.info.tokenizer:
            return store.tokenizer
    formats = ", ".join(sorted({store.info.format for store in stores.values()}))
    raise JobError(
        f"tokenizer: no source carries one ({formats} don't); name its folder "
        "(run.yaml: trainer.tokenizer)"
    )


def check_vocabulary(job: Job, stores: Mapping[str, Store]) -> None:
    """That the run's tokenizer is the one its sources were made with, as far as they tell.

    Raises:
        JobError: no tokenizer, another one, or ids beyond its vocabulary.
    """
    folder = tokenizer_folder(job, stores)
    silent = [name for name, store in stores.items() if not store.info.tokenizer]
    if job.tokenizer is None and not silent:
        return
    facts = inspect_tokenizer(folder)
    for name, store in stores.items():
        if store.info.tokenizer and not same_tokenizer(
            store.info.tokenizer, store.tokenizer, facts
        ):
            raise JobError(
                f"tokenizer: {folder} is not the tokenizer sources.{name} was prepared with"
            )
    for name in silent:
        lowest, highest = id_range(stores[name].stream)
        if lowest < 0 or highest >= facts.vocab_size:
            raise JobError(
                f"sources.{name}: holds the id {lowest if lowest < 0 else highest}, the tokenizer "
                f"{folder} has {facts.vocab_size}; name the one it was made with "
                "(trainer.tokenizer)"
            )
