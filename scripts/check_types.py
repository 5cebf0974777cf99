"""mypy on the rooms that the given files lie in: what pre-commit runs.

    python scripts/check_types.py trainer/run/resume.py policies/guards/hard.py

mypy follows the imports, so that what a room needs of others is checked too; `make check` looks at
everything.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """mypy's exit status."""
    rooms = sorted({Path(file).parts[0] for file in sys.argv[1:]})
    packages = [word for room in rooms for word in ("-p", f"mixloop.{room}")]
    if not packages:
        return 0
    command = [sys.executable, "-m", "mypy", *packages]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
