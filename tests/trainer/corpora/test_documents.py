"""The documents of every format, as they are; what is wrong has a place, or is counted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixloop.trainer.corpora import Account, check_key, read_ids, read_pieces, select
from mixloop.trainer.corpora import documents as module

TEXTS = ["one", "zwei\r\nlines\rand more\n", 'drei, "quoted"; tab\there', "  四 👩‍👧 "]


def read(path: Path, account: Account | None = None, key: str = "text") -> list[str]:
    (source,) = select([str(path)]).taken
    pieces = read_pieces(source, key, account or Account(), None)
    return [piece.text for piece in pieces]


def write_csv(path: Path, delimiter: str) -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(["id", "text"])
        rows.writerows(enumerate(TEXTS))


def write_arrow(path: Path, new: Any) -> None:
    table = pa.table({"text": TEXTS, "n": [1, 2, 3, 4]})
    with new(str(path), table.schema) as writer:
        writer.write_table(table)


WRITERS = {
    "lines.jsonl": lambda p: p.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS)),
    "bom.jsonl": lambda p: p.write_bytes(
        b"\xef\xbb\xbf" + "".join(json.dumps({"text": t}) + "\r\n\r\n" for t in TEXTS).encode()
    ),
    "array.json": lambda p: p.write_text(json.dumps([{"text": t, "m": [1]} for t in TEXTS])),
    "pretty.json": lambda p: p.write_text(json.dumps([{"text": t} for t in TEXTS], indent=2)),
    "values.json": lambda p: p.write_text(
        "\n".join(json.dumps({"text": t}, indent=1) for t in TEXTS)
    ),
    "a.csv": lambda p: write_csv(p, ","),
    "semicolons.csv": lambda p: write_csv(p, ";"),
    "a.tsv": lambda p: write_csv(p, "\t"),
    "a.parquet": lambda p: pq.write_table(pa.table({"text": TEXTS}), p),
    "large.parquet": lambda p: pq.write_table(
        pa.table({"text": pa.array(TEXTS, pa.large_string()).dictionary_encode()}), p
    ),
    "bytes.parquet": lambda p: pq.write_table(
        pa.table({"text": [text.encode() for text in TEXTS]}), p
    ),
    "stream.arrow": lambda p: write_arrow(p, pa.ipc.new_stream),
    "file.arrow": lambda p: write_arrow(p, pa.ipc.new_file),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_texts_as_they_are(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    assert read(tmp_path / name) == TEXTS
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert read(packed) == TEXTS


def test_plain_text_is_one_document_without_its_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "first\r\nsecond\rthird\n\nü" * 50
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read(file) == [text]
    monkeypatch.setattr(module, "PIECE_CHARS", 7)  # cuts characters in two
    (source,) = select([str(file)]).taken
    pieces = list(read_pieces(source, "text", Account(), None))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_a_long_array_is_read_value_by_value(tmp_path: Path) -> None:
    rows = [{"text": "x" * size, "n": size} for size in (10, 700_000, 5, 300_000)]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(rows))
    assert read(file) == [row["text"] for row in rows]
    file.write_text(json.dumps(rows)[:-4])
    with pytest.raises(ValueError, match=r"a\.json: not JSON after record 3: "):
        read(file)


DEEP = b'{"m": ' + b"[" * 99999 + b"]" * 99999 + b"}"
A, B = b'{"text": "a"}', b'{"text": "b"}'
# what stands on the second line of a file of JSON lines
SECOND = [
    (b'{"text": null}', "line 2: 'text' is null", "null"),
    (b'{"t": 1}', r"line 2: no key 'text' \(there are: t\)", "key"),
    (b'{"text": [', "line 2: not JSON", "not JSON"),
    (b'"text"', "line 2: not a JSON object", "not a JSON object"),
    (b'{"text": "\xe9"}', "line 2: not UTF-8", "not UTF-8"),
    (b'{"text": 7}', "line 2: 'text' is int", "not text"),
    (DEEP, "line 2: not JSON: nested too deeply", "not JSON"),
]
BAD = [
    *(("a.jsonl", b"\n".join([A, line, B]), message, kind) for line, message, kind in SECOND),
    ("a.csv", b"n,text\n1,a\n1,2,3\n2,b\n", "line 3: 3 columns where the header has 2", "columns"),
    ("a.csv", b"n,text\n1,a\n1,\xe9\n2,b\n", "line 3: not UTF-8", "not UTF-8"),
    ("a.json", b'[%b, {"text": null}, %b]' % (A, B), "record 2: 'text' is null", "null"),
]


@pytest.mark.parametrize(("name", "content", "message", "kind"), BAD)
def test_a_bad_record_stops_with_its_place_or_is_counted(
    tmp_path: Path, name: str, content: bytes, message: str, kind: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        read(file)
    assert str(file) in str(refused.value)
    assert "--on-error skip" in str(refused.value)
    assert "\n" not in str(refused.value)
    account = Account("skip", most=1)
    assert read(file, account) == ["a", "b"]
    ((counted, count),) = account.skipped.items()
    assert kind in counted
    assert count == 1
    with pytest.raises(ValueError, match=r"more than --max-errors 0 bad records \(1 "):
        read(file, Account("skip", most=0))


def test_other_fields_are_nobodys_business(tmp_path: Path) -> None:
    """Rows whose other fields come and go, or change their types, as in RedPajama."""
    rows: list[dict[str, Any]] = [
        {"text": "a", "meta": None},
        {"meta": {"symlink_target": "x"}, "text": "b"},
        {"text": "c", "meta": [1, "two"], "n": float("nan")},
        {"text": "d"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(tmp_path / "a.jsonl") == ["a", "b", "c", "d"]


def test_a_cell_may_be_a_book(tmp_path: Path) -> None:
    text = "a line, with commas\n" * 20_000
    (tmp_path / "a.csv").write_text(f'n,text\n1,"{text}"\n2,short\n', newline="")
    assert read(tmp_path / "a.csv") == [text, "short"]


def test_null_rows_of_tables(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet, row 2: 'text' is null"):
        read(tmp_path / "a.parquet")
    account = Account("skip")
    assert read(tmp_path / "a.parquet", account) == ["a", "b"]
    assert account.skipped == {"null": 1}
    assert account.lines() == ["left out 1 bad records: 1 null"]


def test_a_file_cut_short_gives_what_is_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).bytes(300_000).hex()
    packed = gzip.compress(b'{"text": "a"}\n' + json.dumps({"text": noise}).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"a.jsonl.gz: unreadable after line 1: "):
        read(tmp_path / "a.jsonl.gz")
    account = Account("skip")
    assert read(tmp_path / "a.jsonl.gz", account) == ["a"]
    assert account.skipped == {"unreadable": 1}
    (tmp_path / "b.txt").write_bytes(b"caf\xe9 " * 9)
    with pytest.raises(ValueError, match=r"b.txt: not UTF-8 text \(byte 3\)"):
        read(tmp_path / "b.txt")
    assert read(tmp_path / "b.txt", account) == []
    assert account.skipped == {"unreadable": 1, "not UTF-8": 1}


def test_a_missing_key_is_told_before_anything_is_read(tmp_path: Path) -> None:
    for name, writer in WRITERS.items():
        writer(tmp_path / name)
        (source,) = select([str(tmp_path / name)]).taken
        check_key(source, "text", "--text-key")
        with pytest.raises(
            ValueError, match=rf"{name}: no (key|column) 'body' \(there are: .*text"
        ):
            check_key(source, "body", "--text-key")


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.uint16())])
def test_ids_of_a_column(tmp_path: Path, kind: Any) -> None:
    rows = [[1, 2, 3], [4], [], [5, 6]]
    pq.write_table(pa.table({"input_ids": pa.array(rows, kind)}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"input_ids": r}) + "\n" for r in rows))
    for name in ("a.parquet", "a.jsonl"):
        (source,) = select([str(tmp_path / name)]).taken
        found = [ids for _, ids in read_ids(source, "input_ids", Account(), None)]
        assert [ids.tolist() for ids in found] == rows
        assert all(ids.dtype == np.int64 for ids in found)
    (tmp_path / "b.jsonl").write_text('{"input_ids": [1, 2.5]}\n')
    (source,) = select([str(tmp_path / "b.jsonl")]).taken
    with pytest.raises(ValueError, match="'input_ids' is a list of others, not a list of tok"):
        list(read_ids(source, "input_ids", Account(), None))
