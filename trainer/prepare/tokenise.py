"""`prepare`: text in, token store out. Tokenised by worker processes, in the input's order.

The store appears whole or not at all: it is written beside its place and renamed. One that it
replaces is renamed too, and stays for the runs that read it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mixloop.common.files import write_atomic
from mixloop.trainer.config import JobError
from mixloop.trainer.corpora import (
    BLANK,
    MARKS,
    SURROGATES,
    UNKNOWN,
    UNSURE,
    Account,
    Choice,
    Input,
    Piece,
    Selection,
    check_key,
    read_ids,
    read_pieces,
    select,
)
from mixloop.trainer.sources import (
    DTYPES,
    HEADER,
    Shard,
    StoreInfo,
    TokenizerInfo,
    dtype_for,
    fingerprint,
    inspect_tokenizer,
    keep_tokenizer,
    place_of_replaced,
    read_header,
    resolve_tokenizer,
    same_tokenizer,
    shards_fingerprint,
)

from .append import alone, grow
from .long_documents import Joiner, Window, windows
from .scratch import scratch_folder
from .store_files import StoreFiles
from .text_encoder import Changes, Spans, TextEncoder
from .worker_pool import Chunk, Setup, tokenised

_CHUNK_CHARS = 500_000
"""Text handed to a worker at once: about 0.1 s of work."""


@dataclass(frozen=True)
class Progress:
    """How far `prepare` is; `total` is the number of inputs, the file being read included."""

    documents: int
    tokens: int
    inputs_done: int
    inputs: int


@dataclass(frozen=True)
class Reading:
    """How records are read.

    Args:
        text_key: key (JSON), column (CSV, parquet, arrow, datasets) of the text.
        ids_key: of token ids, if the documents are tokenised already.
        config: a hub dataset's configuration.
    """

    text_key: str = "text"
    ids_key: str | None = None
    config: str | None = None


@dataclass(frozen=True)
class Ends:
    """Ids around each document; -1 for none."""

    bos_id: int
    eos_id: int


def select_inputs(
    inputs: list[str],
    choice: Choice | None = None,
    key: str = "text",
    option: str = "--text-key",
    checked: bool = True,
) -> Selection:
    """What of the inputs is read, and what is left.

    Args:
        inputs: see `prepare`.
        key: that each record has.
        option: that names the key.
        checked: whether every file's first record is looked at for it.

    Raises:
        ValueError: one line naming what is missing, in doubt, or without the key.
    """
    chosen = select(inputs, choice)
    for one in chosen.taken if checked else ():
        check_key(one, key, option)
    return chosen


def prepare(
    inputs: list[str],
    out: Path,
    tokenizer: str,
    *,
    text_key: str = "text",
    ids_key: str | None = None,
    sequence_length: int | None = None,
    workers: int = 1,
    progress: Callable[[Progress], None] | None = None,
    split: str | None = None,
    config: str | None = None,
    format: str | None = None,  # noqa: A002 - as the command has it
    include: tuple[str, ...] = (),
    overwrite: bool = False,
    shard_size: int | None = None,
    append: bool = False,
    bos: bool | None = None,
    eos: bool | None = None,
    parse_special_tokens: bool = False,
    account: Account | None = None,
    selected: Callable[[Selection], None] | None = None,
) -> StoreInfo:
    """Tokenise `inputs` into a store at `out`; each document is followed by the eos token.

    The result is the same, byte for byte, whatever the number of workers.

    Args:
        inputs: files, folders, globs, saved or hub datasets; see `docs/sources.md`.
        tokenizer: folder or hub name of a fast tokenizer; a copy is kept in the store.
        text_key: key (JSON), column (CSV, parquet, arrow, datasets) of the text.
        ids_key: key or column of token ids, if the documents are tokenised already.
        sequence_length: if given, refuse a result shorter than one sample of that length.
        workers: tokenising processes; 1 works in this one.
        progress: told how far it is.
        split, config: of a dataset, or of a folder laid out as one.
        format: of the files, where their content leaves it open.
        include: patterns of a folder's files to take.
        overwrite: replace a store that is there.
        shard_size: most tokens of a file; None: one file.
        append: add to the store that is there, as further shards. A run that uses it takes the
            growth at its next start, from each source's next epoch on.
        bos: put the tokenizer's BOS in front of each document; None: as the store that is appended
            to, else no.
        eos: put its EOS behind each document; None: as the store that is appended to, else yes,
            and no where `ids_key` is given.
        parse_special_tokens: special tokens that are written in a text become their ids.
        account: what decides on bad records, and counts them.
        selected: told what is read and what is left, before anything is.

    Raises:
        ValueError: one line naming file, line, key or name of what is wrong.
    """
    out = Path(out)
    _check_target(out, overwrite, append)
    account = account or Account()
    reading = Reading(text_key, ids_key, config)
    key = (text_key, "--text-key") if ids_key is None else (ids_key, "--ids-key")
    choice = Choice(split, config, format, include)
    chosen = select_inputs(inputs, choice, *key, checked=account.on_error == "stop")
    if selected is not None:
        selected(chosen)
    with ExitStack() as held:
        held.enter_context(_failing_in_a_line(out))
        work = held.enter_context(scratch_folder(out))
        if append:
            held.enter_context(alone(out))
        before = read_header(out) if append else None
        folder = resolve_tokenizer(tokenizer, work / "hub-tokenizer")
        facts = inspect_tokenizer(folder)
        if before is not None and not same_tokenizer(before.tokenizer, out / "tokenizer", facts):
            raise ValueError(f"{tokenizer}: not the tokenizer that {out} was made with")
        ends = _ends(facts, before, bos, eos, ids_key)
        parses = parse_special_tokens or ids_key is not None
        _check_special(before, parses)
        kind = dtype_for(facts.vocab_size)
        if before is not None and kind != before.dtype:
            raise ValueError(
                f"{out}: holds {before.dtype} tokens, its tokenizer's ids need {kind}; prepare it "
                "again with --overwrite"
            )
        first = 0 if before is None else max(1, len(before.shards))
        files = StoreFiles(work, DTYPES[kind].itemsize, shard_size, first)
        held.callback(files.abandon)
        setup = Setup(folder, kind, ends.bos_id, ends.eos_id, parse_special_tokens)
        seen: set[int] = {ends.eos_id}
        if ids_key is None:
            steps = _from_text(chosen.taken, reading, account, workers, setup)
        else:
            steps = _from_ids(chosen.taken, reading, account, facts, setup, seen)
        held.callback(steps.close)
        documents = 0
        for data, ended, inputs_done in steps:
            files.write(data)
            documents += ended
            if progress is not None:
                progress(Progress(documents, files.tokens, inputs_done, len(chosen.taken)))
        files.close()
        _check_amount(inputs, documents, files.tokens, sequence_length, account)
        if before is not None:
            return grow(out, before, work, files.shards, documents)
        ends = Ends(ends.bos_id, max(seen))  # none, or the tokenizer's
        probe = replace(facts.probe, begins=ends.bos_id >= 0, parses_special=parses)
        facts = replace(facts, probe=probe)
        info = _header(facts, kind, ends, documents, files.shards, shard_size is not None)
        _finish(work, out, folder, info, overwrite)
        return info


@contextmanager
def _failing_in_a_line(out: Path) -> Iterator[None]:
    """What the store's disk refuses, such as more than it holds, as a `ValueError`."""
    try:
        yield
    except OSError as error:
        where = error.filename or out  # a write names no file
        raise ValueError(f"{where}: {error.strerror or error}; no token store is made") from error


def _check_target(out: Path, overwrite: bool, append: bool) -> None:
    if append and overwrite:
        raise ValueError("append and overwrite are both asked for; choose one")
    if append:
        return
    if out.exists() and not overwrite:
        raise ValueError(f"{out}: already there; remove it, choose another name, or append to it")
    if out.exists() and not (out / HEADER).is_file():
        raise ValueError(f"{out}: not a token store, so it is not overwritten")
    out.parent.mkdir(parents=True, exist_ok=True)


def _ends(
    facts: TokenizerInfo,
    before: StoreInfo | None,
    bos: bool | None,
    eos: bool | None,
    ids_key: str | None,
) -> Ends:
    """The ids to put around documents."""
    if before is not None:
        asked = {"bos": (bos, before.bos_id >= 0), "eos": (eos, before.eos_id >= 0)}
        for name, (now, then) in asked.items():
            if now is not None and now != then:
                had = "with" if then else "without"
                raise ValueError(f"{name}: the store that is appended to was made {had} it")
        if ids_key is None:
            return Ends(before.bos_id, before.eos_id)
        return Ends(-1, -1)
    if bos and facts.bos_id < 0:
        raise ValueError("bos: the tokenizer names no bos_token with an id (tokenizer_config.json)")
    with_eos = ids_key is None if eos is None else eos
    if with_eos and facts.eos_id < 0:
        raise ValueError(
            "eos: the tokenizer names no eos_token with an id (tokenizer_config.json); --no-eos "
            "goes without, but evaluation can't score what is trained on it"
        )
    return Ends(facts.bos_id if bos else -1, facts.eos_id if with_eos else -1)


def _check_special(before: StoreInfo | None, parses: bool) -> None:
    """One store, one way to read what looks like a special token."""
    if before is None or before.probe is None or before.probe.parses_special == parses:
        return
    had = "with" if before.probe.parses_special else "without"
    raise ValueError(
        f"parse_special_tokens: the store that is appended to was made {had} it (token ids count "
        "as with)"
    )


# --- text -------------------------------------------------------------------------------------

_Steps = Generator[tuple[bytes, int, int]]  # tokens, documents ended, inputs read through


def _from_text(
    inputs: list[Input], reading: Reading, account: Account, workers: int, setup: Setup
) -> _Steps:
    encoder: list[TextEncoder] = []  # of this process, where windows don't agree

    def encode_again(text: str) -> Spans:
        if not encoder:
            encoder.append(setup.encoder())
        return encoder[0].encode_window(text, Changes(), slice(None))

    joiner = Joiner(encode_again)
    # closed in this thread: the collector may come in one that the pool waits for
    with closing(tokenised(_chunks(inputs, reading, account), workers, setup)) as steps:
        for chunk, tokens in steps:
            _count(account, tokens.changes)
            if tokens.window is None:
                yield tokens.data, len(chunk.windows), chunk.inputs_done
                continue
            [window] = chunk.windows
            if not window.begin and setup.bos_id >= 0:
                yield _bytes(setup, [setup.bos_id]), 0, chunk.inputs_done
            for ids in joiner.add(window, tokens.window):
                yield _bytes(setup, ids), 0, chunk.inputs_done
            if window.last:
                end = [setup.eos_id] if setup.eos_id >= 0 else []
                yield _bytes(setup, end), 1, chunk.inputs_done
    if joiner.unsure:
        account.changed[UNSURE] += joiner.unsure


def _chunks(inputs: list[Input], reading: Reading, account: Account) -> Iterator[Chunk]:
    held: list[Window] = []
    size = 0
    for done, source in enumerate(inputs):
        pieces = read_pieces(source, reading.text_key, account, reading.config)
        for window in windows(_counting_ends(pieces, account)):
            account.changed[BLANK] -= window.last
            if not window.whole and held:
                yield Chunk(held, done)
                held, size = [], 0
            held.append(window)
            size += len(window.text)
            if size >= _CHUNK_CHARS or not window.whole:
                yield Chunk(held, done)
                held, size = [], 0
    if held:
        yield Chunk(held, len(inputs))


def _counting_ends(pieces: Iterable[Piece], account: Account) -> Iterator[Piece]:
    for piece in pieces:
        account.changed[BLANK] += piece.ends
        yield piece


def _count(account: Account, changes: Changes) -> None:
    if changes.surrogates:
        account.changed[SURROGATES] += changes.surrogates
    if changes.unknown:
        account.changed[UNKNOWN] += changes.unknown
        account.examples[UNKNOWN] |= changes.which
    if changes.marks:
        account.changed[MARKS] += changes.marks
        account.examples[MARKS] |= changes.which_marks


def _bytes(setup: Setup, ids: Iterable[int] | npt.NDArray[np.int64]) -> bytes:
    return np.asarray(ids, np.int64).astype(DTYPES[setup.dtype]).tobytes()


# --- ids --------------------------------------------------------------------------------------


def _from_ids(
    inputs: list[Input],
    reading: Reading,
    account: Account,
    facts: TokenizerInfo,
    setup: Setup,
    seen: set[int],
) -> _Steps:
    """Rows of ids as documents; the tokenizer's EOS goes into `seen` where one has it."""
    assert reading.ids_key is not None
    for done, source in enumerate(inputs, start=1):
        for where, ids in read_ids(source, reading.ids_key, account, reading.config):
            if not len(ids):
                continue
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= facts.vocab_size:
                raise ValueError(
                    f"{where}: the id {low if low < 0 else high} is none of the tokenizer's "
                    f"{facts.vocab_size}; name the tokenizer that made them"
                )
            if facts.eos_id not in seen and np.any(ids == facts.eos_id):
                seen.add(facts.eos_id)
            parts = [ids]
            if setup.bos_id >= 0 and ids[0] != setup.bos_id:
                parts.insert(0, np.asarray([setup.bos_id]))
            if setup.eos_id >= 0 and ids[-1] != setup.eos_id:
                parts.append(np.asarray([setup.eos_id]))
            yield _bytes(setup, np.concatenate(parts)), 1, done - 1
        yield b"", 0, done


# --- the store --------------------------------------------------------------------------------


def _check_amount(
    inputs: list[str], documents: int, tokens: int, sequence_length: int | None, account: Account
) -> None:
    if not documents:
        counted = "; ".join(account.lines())
        raise ValueError(
            f"{', '.join(inputs)}: no document with text in it{f' ({counted})' if counted else ''}"
        )
    if sequence_length is not None and tokens < sequence_length:
        raise ValueError(
            f"{', '.join(inputs)}: {tokens} tokens are fewer than one sample of "
            f"sequence_length {sequence_length}"
        )


def _header(
    facts: TokenizerInfo,
    kind: str,
    ends: Ends,
    documents: int,
    files: list[Shard],
    sharded: bool,
) -> StoreInfo:
    if sharded:
        whole = shards_fingerprint(facts.fingerprint, kind, files)
    else:
        whole = fingerprint(facts.fingerprint, kind, files[0].sha256)
    return StoreInfo(
        tokens=sum(file.tokens for file in files),
        documents=documents,
        dtype=kind,
        vocab_size=facts.vocab_size,
        tokenizer=facts.fingerprint,
        fingerprint=whole,
        eos_id=ends.eos_id,
        bos_id=ends.bos_id,
        shards=tuple(files) if sharded else (),
        probe=facts.probe,
    )


def _finish(work: Path, out: Path, tokenizer: Path, info: StoreInfo, overwrite: bool) -> None:
    assert info.probe is not None
    keep_tokenizer(tokenizer, work / "tokenizer", info.probe)
    shutil.rmtree(work / "hub-tokenizer", ignore_errors=True)
    write_atomic(work / HEADER, json.dumps(info.to_json(), indent=2).encode())
    _check_target(out, overwrite, append=False)  # somebody else's, since then
    if not out.exists():
        work.rename(out)
        return
    try:
        old = read_header(out).fingerprint
    except JobError:
        old = "damaged"
    aside = place_of_replaced(out, old)
    # whoever reads it finds the same content elsewhere
    spare = old == info.fingerprint or aside.exists()
    if spare:
        aside = work.with_name(f"{work.name}-replaced")  # as scratch, should this process die
    out.rename(aside)  # runs that read it go on with what they have
    try:
        work.rename(out)
    except OSError:
        aside.rename(out)
        raise
    if spare:
        shutil.rmtree(aside)
    shutil.rmtree(place_of_replaced(out, info.fingerprint), ignore_errors=True)  # it is back
