"""Build the sdist and the wheel and use the wheel, away from the checkout.

The build runs on a copy of what belongs to the package, so that neither a stale `build/` nor
a file outside the rooms can hide a fault. Then: the wheel holds every module of the rooms and
nothing else; installed into a folder of its own it is what `import mixloop...` finds; its console
script answers.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("common", "contract", "policies", "evals", "trainer", "controller", "tools", "cli")
FILES = ("pyproject.toml", "README.md", "LICENSE")
IMPORTS = """
import importlib, json, sys
rooms = [importlib.import_module("mixloop." + room) for room in sys.argv[1:]]
print(json.dumps([room.__file__ for room in rooms]))
"""


def run(command: list[str], **options: object) -> str:
    """A command's output; ends with all of it when the command fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        sys.exit(f"{done.stdout}{done.stderr}\ncheck_wheel: {' '.join(command)} failed")
    return str(done.stdout)


def build(work: Path) -> Path:
    """The wheel, built from the sdist that is built from a clean copy."""
    source = work / "source"
    source.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, source)
    for room in ROOMS:
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(ROOT / room, source / room, ignore=ignored)
    run([sys.executable, "-m", "build", "--outdir", str(work / "dist"), str(source)])
    (wheel,) = (work / "dist").glob("*.whl")
    return wheel


def wanted() -> set[str]:
    """The wheel's names for every module, face, template and marker in the rooms."""
    paths = (path for room in ROOMS for path in (ROOT / room).rglob("*"))
    kept = (
        path
        for path in paths
        if path.suffix in (".py", ".pyi", ".html", ".yaml") or path.name == "py.typed"
    )
    return {f"mixloop/{path.relative_to(ROOT).as_posix()}" for path in kept}


def check_content(wheel: Path) -> int:
    """Every module is in, nothing else is; returns how many."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    missing = sorted(wanted() - names)
    strangers = sorted(name for name in names if not name.startswith("mixloop/"))
    if missing or strangers:
        sys.exit(
            f"check_wheel: {wheel.name} lacks {missing}, should not hold {strangers}: "
            "see `packages` and `package-data` in pyproject.toml"
        )
    return len(names)


def check_use(wheel: Path, work: Path) -> None:
    """Installed alone, the wheel is what gets imported, and `mixloop --help` answers."""
    site, elsewhere = work / "site", work / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    run([*pip, "--no-deps", "--target", str(site), str(wheel)])
    options = {"cwd": elsewhere, "env": {**os.environ, "PYTHONPATH": str(site)}}
    paths = json.loads(run([sys.executable, "-c", IMPORTS, *ROOMS], **options))
    strays = [path for path in paths if not Path(path).is_relative_to(site)]
    if strays:
        sys.exit(f"check_wheel: imported from {strays}, not from the wheel in {site}")
    help_text = run([str(site / "bin" / "mixloop"), "--help"], **options)
    if "Usage" not in help_text:
        sys.exit(f"check_wheel: mixloop --help printed no usage:\n{help_text}")


def main() -> None:
    """Build, look inside, use."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        wheel = build(work)
        count = check_content(wheel)
        check_use(wheel, work)
        print(f"{wheel.name}: {count} files, imports and `mixloop --help` work")  # noqa: T201 (a command-line script)


if __name__ == "__main__":
    main()
