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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixloop.trainer.config import Job, JobError

from .token_store import HEADER, Store, StoreInfo, read_header, verify_store

FORMATS = ("store", "megatron", "datatrove", "arrow")


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


def index_of(path: Path) -> Path:
    """The `.idx` of a Megatron source named by its prefix, its `.bin` or its `.idx`."""
    if path.suffix in (".bin", ".idx"):
        return path.with_suffix(".idx")
    return path.with_name(f"{path.name}.idx")


def open_source(path: Path, options: Mapping[str, Any] | None = None) -> Store:
    """Open what lies at a path.

    Args:
        options: `format` (default: found out), `eos_id`, `dtype` (of datatrove folders without
            metadata), `column` (of arrow datasets).

    Raises:
        JobError: nothing there that can be read, or it is damaged; one line with the mend.
    """
    kind, given = _format(path, options)
    if kind == "store":
        _only(kind, given)
        return Store.open(path)
    if kind == "megatron":
        from .megatron import open_megatron

        return open_megatron(index_of(path), **_only(kind, given, "eos_id"))
    if kind == "datatrove":
        from .datatrove import open_datatrove

        return open_datatrove(path, **_only(kind, given, "eos_id", "dtype"))
    from .hf_datasets import open_arrow

    return open_arrow(path, **_only(kind, given, "eos_id", "column"))


def _format(path: Path, options: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """The format of what lies at a path, given or found out, and the other options."""
    given = {key: value for key, value in (options or {}).items() if value is not None}
    kind = given.pop("format", "auto")
    if kind == "auto":
        kind = detect(path) or ("store" if not path.exists() else None)
    if kind is None and (path / "dataset_dict.json").is_file():
        raise JobError(f"{path}: a dataset of several splits; name the folder of one of them")
    if kind is None:
        raise JobError(
            f"{path}: none of the formats {', '.join(FORMATS)}; make a token store of it with "
            "`mixloop prepare`"
        )
    return kind, given


def _only(kind: str, given: Mapping[str, Any], *known: str) -> dict[str, Any]:
    strange = [key for key in given if key not in known]
    if strange:
        legal = f"{', '.join(known)} are" if known else "their header says it"
        raise JobError(f"{strange[0]}: not an option of {kind} sources ({legal})")
    return dict(given)


def verify_source(path: Path, options: Mapping[str, Any] | None = None) -> list[str]:
    """What is wrong with the whole of a source: content by the checksums of a token store; the
    structure of the other formats, which have none.

    Args:
        options: as for `open_source`.

    Returns:
        A line for each file that is damaged.

    Raises:
        JobError: it can't be opened at all.
    """
    kind, given = _format(path, options)
    given.pop("eos_id", None)
    if kind == "store":
        return verify_store(path)
    if kind == "megatron":
        from .megatron import verify_megatron

        return verify_megatron(index_of(path))
    if kind == "datatrove":
        from .datatrove import verify_datatrove

        return verify_datatrove(path, **given)
    from .hf_datasets import verify_arrow

    return verify_arrow(path, **given)


def source_info(path: Path, options: Mapping[str, Any] | None = None) -> StoreInfo:
    """What a source is, as cheaply as its format allows.

    Raises:
        JobError: as for `open_source`.
    """
    kind, given = _format(path, options)
    if kind == "store":
        _only(kind, given)
        return read_header(path)
    return open_source(path, options).info


def open_stores(job: Job) -> dict[str, Store]:
    """Every source, in the job's order, checked against each other and the job.

    Raises:
        JobError: a missing or damaged source, sources of different tokenizers, or one shorter
            than one sample. One line, naming the source.
    """
    from .formats import open_source

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
    known = [name for name, store in stores.items() if store.info.tokenizer]
    for name in known[1:]:
        first = known[0]
        if stores[name].info.tokenizer != stores[first].info.tokenizer:
            raise JobError(
                f"sources.{name}: made with another tokenizer than sources.{first} "
                f"(vocabulary {stores[name].info.vocab_size} and "
                f"{stores[first].info.vocab_size}); prepare both with the same one"
            )


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
