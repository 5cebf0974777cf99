"""``mixloop doctor``: what this machine offers a run, what is missing, and the mend.

Nothing heavy is imported: versions come from the packages' metadata, GPUs from the driver. The
sandboxes are tried, not guessed at.
"""

from __future__ import annotations

import os
import platform
import shutil
import ssl
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mixloop.common.errors import one_line
from mixloop.controller import views
from mixloop.controller.tracking import CERTIFICATES
from mixloop.evals import BENCHMARKS, SandboxMode
from mixloop.evals.benchmarks import load_items
from mixloop.evals.items import ItemsError, hub_reachable
from mixloop.evals.sandbox import ARCHITECTURES, NOT_COVERED, Sandbox, SandboxError, landlock_abi

if TYPE_CHECKING:
    from rich.table import Table


SCHEMA = "mixloop/doctor/1"
SHOWN = ("torch", "transformers", "lm-eval", "mlflow")
OPTIONAL = {
    "ray": "spreads the scoring of a checkpoint over workers",
    "reasoning-gym": "the demo's maths source",
}
LOW_DISK, LOW_MEMORY = 2 * 2**30, 2 * 2**30


@dataclass(frozen=True)
class Row:
    """One finding. `mend` says what to do; empty where there is nothing to do."""

    what: str
    status: Literal["ok", "warn", "missing"]
    detail: str
    mend: str = ""


def examine() -> dict[str, Any]:
    """All findings, as `mixloop doctor --json` prints them."""
    machine = [_python(), *_packages(), _devices(), _processors(), _memory(), _disk(), _user()]
    rows = [
        *machine,
        *_sandboxes(),
        _hub(),
        *_certificates(),
        *(_items(name) for name in BENCHMARKS),
    ]
    return {
        "schema": SCHEMA,
        "ok": all(row.status != "missing" for row in rows),
        "rows": [asdict(row) for row in rows],
        "sandbox_does_not_cover": list(NOT_COVERED),
    }


def report_table(report: dict[str, Any]) -> Table:
    """The findings for a person."""
    table = views.table("mixloop doctor", ("what", "", "found", "mend"))
    for row in report["rows"]:
        table.add_row(*(views.cell(row[key]) for key in ("what", "status", "detail", "mend")))
    return table


def _python() -> Row:
    detail = f"{platform.python_version()} at {sys.executable}, {platform.platform()}"
    return Row("python", "ok", detail)


def _packages() -> list[Row]:
    from packaging.requirements import Requirement

    try:
        listed = [Requirement(text) for text in metadata.requires("mixloop") or ()]
    except metadata.PackageNotFoundError:
        return [Row("mixloop", "warn", "runs, but is not installed", "pip install mixloop")]
    needed = [package for package in listed if not package.marker or package.marker.evaluate()]
    versions = {package.name: str(package.specifier) for package in needed}
    rows = [_package(name, wanted) for name, wanted in versions.items()]
    shown = [row for row in rows if row.what in SHOWN or row.status != "ok"]
    if len(shown) < len(rows):
        shown.append(Row("other packages", "ok", f"{len(rows) - len(shown)} in order"))
    return shown + [_optional(name, use) for name, use in OPTIONAL.items()]


def _package(name: str, wanted: str) -> Row:
    from packaging.specifiers import SpecifierSet

    mend = f"pip install '{name}{wanted}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Row(name, "missing", "not installed", mend)
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return Row(name, "warn", f"{version}, which is not {wanted}", mend)
    return Row(name, "ok", version)


def _optional(name: str, use: str) -> Row:
    try:
        return Row(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Row(name, "ok", f"not installed (optional: {use})")


def _devices() -> Row:
    """GPUs by the driver's word: importing torch to ask would take seconds."""
    listed = _output(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    if not listed:
        return Row("devices", "ok", "cpu (no NVIDIA driver answers)")
    gpus = "; ".join(listed.splitlines())
    try:
        build = metadata.version("torch")
    except metadata.PackageNotFoundError:
        build = ""
    if build.endswith("+cpu"):
        detail = f"{gpus}, but torch {build} can't use it"
        return Row("devices", "warn", detail, "install torch with CUDA")
    return Row("devices", "ok", f"cpu; {gpus}")


def _certificates() -> list[Row]:
    """The file that MLflow's client trusts servers by, if one is named."""
    named = os.environ.get(CERTIFICATES)
    if not named:
        return []
    try:
        context = ssl.create_default_context()
        folder = Path(named).is_dir()
        context.load_verify_locations(None if folder else named, named if folder else None)
    except OSError as error:  # of which an ssl.SSLError is one
        mend = f"name a file of certificates (PEM) by {CERTIFICATES}, or unset it"
        return [Row("MLflow's certificates", "warn", f"{named}: {one_line(error)}", mend)]
    return [Row("MLflow's certificates", "ok", named)]


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _processors() -> Row:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    note = f", OMP_NUM_THREADS={threads}" if threads else ""
    return Row("cores", "ok", f"{usable} of {os.cpu_count()}, {platform.machine()}{note}")


def _memory() -> Row:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for line in _lines(Path("/sys/fs/cgroup/memory.max")):
        total = min(total, int(line)) if line.isdigit() else total
    detail = f"{_gib(free)} of {_gib(total)} available"
    mend = "close something, or set evals.memory" if free < LOW_MEMORY else ""
    return Row("memory", "warn" if mend else "ok", detail, mend)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _disk() -> Row:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    mend = "make room, or set TMPDIR" if free < LOW_DISK else ""
    return Row("disk", "warn" if mend else "ok", f"{_gib(free)} free in {folder}", mend)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _user() -> Row:
    user = os.getuid()
    detail = "root: programs are run as a user that owns nothing" if user == 0 else f"user {user}"
    return Row("user", "ok", detail)


def _sandboxes() -> list[Row]:
    kinds: tuple[SandboxMode, ...] = ("landlock", "bwrap")
    reasons = {kind: _probe(kind) for kind in kinds}
    chosen = next((kind for kind, reason in reasons.items() if reason is None), None)
    abi = landlock_abi() if sys.platform == "linux" else 0
    listed = "a list for" if platform.machine() in ARCHITECTURES else "no list for"
    kernel = f"landlock ABI {abi}, seccomp: {listed} {platform.machine()}"
    others = "; ".join(
        f"{kind}: {reason or 'works too'}" for kind, reason in reasons.items() if kind != chosen
    )
    if chosen is None:
        mend = "a kernel with landlock (5.13 or later), or bubblewrap: apt install bubblewrap"
        return [
            Row("sandbox", "missing", f"none: HumanEval will be missing ({others})", mend),
            Row("kernel", "warn", kernel),
        ]
    found = Row("sandbox", "ok", f"{chosen} ({others})")
    return [found, _imports(chosen), Row("kernel", "ok", kernel)]


def _imports(kind: SandboxMode) -> Row:
    """Every module of the standard library, imported by a program."""
    box = Sandbox(kind)
    try:
        lost = box.not_imported()
    except (OSError, SandboxError) as error:
        return Row("imports", "warn", f"can't be tried: {error}", "run doctor again")
    finally:
        box.close()
    if not lost:
        return Row("imports", "ok", "programs can import all of the standard library")
    detail = f"programs can't import {', '.join(lost)}, which this Python has"
    mend = "a Python whose library the user that programs run as can read"
    return Row("imports", "missing", f"{detail}: right programs that do count as wrong", mend)


def _probe(kind: SandboxMode) -> str | None:
    """Why that sandbox can't be used here, after trying it; None when it can."""
    box = Sandbox(kind)
    try:
        reason = box.unusable()
    finally:
        box.close()
    return None if reason is None else reason.partition(f"{kind}: ")[2].rstrip(")")


def _hub() -> Row:
    if hub_reachable():
        return Row("hub", "ok", "answers: benchmarks are read from it in full")
    mend = "give evals.benchmarks.NAME.data jsonl files to score full benchmarks"
    return Row("hub", "warn", "does not answer: items come from installed packages", mend)


def _items(name: str) -> Row:
    """What one benchmark finds without the hub."""
    try:
        items = load_items(name, "packages")
    except ItemsError as error:
        return Row(f"items: {name}", "missing", str(error), f"evals.benchmarks.{name}.data: FILE")
    return Row(f"items: {name}", "ok", f"{len(items.rows)} without the hub ({items.source})")
