"""Checkpoints: written beside their place, manifest last, renamed; found, verified and retired.

A folder `step-00001200` is complete or absent. It holds the model and tokenizer in Hugging Face
format, `trainer_state.pt` (and `trainer_state/`, which `trainer.reference` writes) for resume, and
`manifest.json` with every file's size and hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from mixloop.common.files import fsync_folder, open_regular
from mixloop.contract import FileEntry, Manifest, read_manifest, write_manifest

STATE_FILE = "trainer_state.pt"
_NAME = re.compile(r"step-(\d{8,})")
SCRATCH = ".writing-"
"""How the name of what is not a checkpoint yet, or no longer, begins."""


def folder_name(step: int) -> str:
    """`step-00001200`."""
    return f"step-{step:08d}"


def list_steps(checkpoints: Path) -> dict[int, Path]:
    """Checkpoint folders by step, ascending; whether they are sound is not looked at.

    Raises:
        OSError: the folder is there and can't be read, which is not the same as empty.
    """
    try:
        matches = [(_NAME.fullmatch(path.name), path) for path in checkpoints.iterdir()]
    except FileNotFoundError:
        return {}
    return dict(sorted((int(match[1]), path) for match, path in matches if match and path.is_dir()))


def fault(folder: Path) -> str | None:
    """Why a checkpoint folder is not usable; None when it is complete.

    Sizes are checked, hashes are not: a torn write changes the size, and hashing a large model
    at every start costs minutes.
    """
    manifest = read_manifest(folder).value
    if manifest is None:
        return "no readable manifest.json"
    for name, entry in manifest.files.items():
        try:
            facts = (folder / name).stat()
        except OSError:
            return f"{name} is missing"
        if not stat.S_ISREG(facts.st_mode):
            return f"{name} is no file"
        size = facts.st_size
        if size != entry.bytes:
            return f"{name} has {size} bytes, its manifest says {entry.bytes}"
    return None


def newest(
    checkpoints: Path, say: Callable[[str], None] = lambda text: None
) -> tuple[Path, Manifest] | None:
    """The newest complete checkpoint; broken ones are skipped with a word to `say`.

    Raises:
        OSError: the folder is there and can't be read.
    """
    for folder in reversed(list_steps(checkpoints).values()):
        manifest = read_manifest(folder).value
        trouble = fault(folder)
        if manifest is not None and trouble is None:
            return folder, manifest
        say(f"checkpoint {folder.name} skipped: {trouble}")
    return None


def entry(path: Path) -> FileEntry:
    """A file's size and hash; it is on the disk afterwards.

    Raises:
        OSError: it could not be read or synced.
    """
    with contextlib.suppress(OSError):  # some mounts know no modes
        path.chmod(0o644)  # safetensors makes its files private; evaluators may be another user
    with os.fdopen(open_regular(path, follow=True), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        return FileEntry(bytes=os.fstat(file.fileno()).st_size, sha256=digest)


def save(
    checkpoints: Path,
    step: int,
    write: Callable[[Path], None],
    manifest: Callable[[dict[str, FileEntry]], Manifest],
    hashed: Mapping[str, FileEntry] | None = None,
) -> Path:
    """Write a checkpoint.

    Args:
        checkpoints: the run's folder of checkpoints.
        step: optimizer steps done; names the folder.
        write: puts the model, tokenizer and state into the folder it is given.
        manifest: makes the manifest from the files' sizes and hashes.
        hashed: files by name in the folder that are hashed and on the disk already.

    Returns:
        The folder. One that is already there and complete is left as it is: at a given step of a
        given schedule there is only one.

    Raises:
        OSError: the disk did not take it; nothing half-written is left under the final name.
    """
    target = checkpoints / folder_name(step)
    if target.exists() and fault(target) is None:
        return target
    work = checkpoints / f"{SCRATCH}{target.name}-{os.getpid()}"
    for remains in checkpoints.glob(f"{SCRATCH}step-*-{os.getpid()}"):  # of a failed one, that
        shutil.rmtree(remains, ignore_errors=True)  # the disk did not let go of then
    work.mkdir(parents=True)
    try:
        write(work)
        files = sorted(path for path in work.rglob("*") if path.is_file())
        named = {path.relative_to(work).as_posix(): path for path in files}
        ready = hashed or {}
        entries = {name: ready.get(name) or entry(path) for name, path in named.items()}
        for folder in {path.parent for path in files} - {work}:
            fsync_folder(folder)
        write_manifest(work, manifest(entries))
        fsync_folder(work)
        if target.exists():
            discard(target)
        work.rename(target)
        fsync_folder(checkpoints)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def discard(folder: Path) -> None:
    """Remove a checkpoint: renamed first, so that nobody sees it half gone."""
    doomed = folder.parent / f"{SCRATCH}gone-{folder.name}-{os.getpid()}"
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def retire(checkpoints: Path, keep: int | None, held: frozenset[int], current: int) -> list[int]:
    """Remove all but the newest `keep` sound checkpoints and those `held`.

    Broken ones are neither counted nor touched, nor are those beyond `current` (the step just
    saved), which are of a branch that was left: `current` itself always stays.

    Returns:
        The steps removed.

    Raises:
        OSError: a folder could not be read or renamed.
    """
    if keep is None:
        return []
    folders = list_steps(checkpoints)
    sound = [step for step in folders if step <= current and fault(folders[step]) is None]
    removed = [step for step in sound[:-keep] if step not in held and step != current]
    for step in removed:
        discard(folders[step])
    return removed


def sweep(checkpoints: Path) -> None:
    """Remove what a crash left half-written or half-removed."""
    for entry in checkpoints.glob(f"{SCRATCH}*"):
        shutil.rmtree(entry, ignore_errors=True)
