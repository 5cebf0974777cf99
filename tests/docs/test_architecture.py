"""docs/architecture.md names files that are there, and its picture is what the code says."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = "common|contract|policies|evals|trainer|controller|tools|cli"


def test_every_file_it_names_is_there() -> None:
    named = set(re.findall(rf"`((?:{ROOMS})/[\w/]*(?:\.py)?)`", TEXT))
    assert len(named) > 20
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_both_lives_are_read_in_eight_files() -> None:
    for title in ("The life of an order", "The life of a checkpoint"):
        section = TEXT.split(f"## {title}\n")[1].split("\n## ")[0]
        steps = re.findall(r"^\d+\. `([\w/]+\.py)`", section, re.MULTILINE)
        assert len(set(steps)) == len(steps) == 8


def test_the_picture_is_what_the_code_says() -> None:
    command = [sys.executable, "scripts/draw_architecture.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
