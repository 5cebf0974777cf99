"""Small files: written whole or not at all."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from mixloop.common.files import write_atomic
from mixloop.contract import Order, write_order


def test_a_write_is_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, b"old")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_order(path, Order("r", 1, 1, {"web": float("nan")}))
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_atomic(tmp_path / "folder", b"new")
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "x.json"]


def test_a_write_that_the_disk_does_not_take_names_the_file(tmp_path: Path) -> None:
    """`mixloop train` ended with a traceback on a full disk: a descriptor has no name."""
    path = tmp_path / "job.json"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            write_atomic(path, b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


def test_a_write_replaces_a_link_and_leaves_its_target(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"theirs")
    link.symlink_to(target)
    write_atomic(link, b"ours")
    assert target.read_bytes() == b"theirs"
    assert not link.is_symlink()
