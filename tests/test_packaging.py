"""What pyproject.toml says about the packages is what lies in the folders."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("common", "contract", "policies", "evals", "trainer", "controller", "tools", "cli")


def setuptools_table() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found: dict[str, Any] = table["tool"]["setuptools"]
    return found


def folders_with_modules() -> set[Path]:
    return {path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")}


def test_every_folder_with_modules_is_a_named_package() -> None:
    """One left out works in an editable install and is missing from the wheel."""
    named = {"mixloop." + ".".join(folder.parts) for folder in folders_with_modules()}
    assert set(setuptools_table()["packages"]) == named


def test_rooms_are_mapped_to_their_folders() -> None:
    expected = {f"mixloop.{room}": room for room in ROOMS}
    assert setuptools_table()["package-dir"] == expected


@pytest.mark.parametrize("room", ROOMS)
def test_type_checkers_see_the_room_through_a_link(room: str) -> None:
    link = ROOT / ".dev" / "mixloop" / room
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == ROOT / room


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_typed_packages(room: str) -> None:
    assert (ROOT / room / "py.typed").is_file()
    assert (ROOT / room / "__init__.py").is_file()
    assert not (ROOT / "mixloop" / "__init__.py").exists()


def test_rooms_import_without_the_heavy_libraries() -> None:
    program = (
        "import sys, mixloop.controller, mixloop.trainer, mixloop.evals, mixloop.policies\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'datasets', 'mlflow', 'matplotlib'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def found_python(**environment: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", "scripts/find_python.sh", "-c", "import sys; print(sys.version_info[:2])"]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_set_up_takes_the_python_it_is_told(tmp_path: Path) -> None:
    done = found_python(MIXLOOP_PYTHON=sys.executable, PATH=str(tmp_path))
    assert done.stdout.strip() == str(sys.version_info[:2])


def test_set_up_passes_over_a_python_that_does_not_start(tmp_path: Path) -> None:
    broken = tmp_path / "python3.11"  # like a version manager's launcher with nothing behind it
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    (tmp_path / "python3").symlink_to(sys.executable)
    assert found_python(PATH=str(tmp_path)).stdout.strip() == str(sys.version_info[:2])


def test_set_up_without_a_right_python_says_what_to_do(tmp_path: Path) -> None:
    nothing = found_python(PATH=str(tmp_path))
    assert nothing.returncode == 2
    assert "MIXLOOP_PYTHON=/path/to/python3" in nothing.stderr
    wrong = found_python(PATH=str(tmp_path), MIXLOOP_PYTHON="/bin/false")
    assert wrong.returncode == 2
    assert "/bin/false is not a Python 3.11 or newer" in wrong.stderr
