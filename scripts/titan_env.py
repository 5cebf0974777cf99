"""Make `.venv-titan` ready: torchtitan, and what it wants older than we do, on top of `.venv`.

torchtitan pins `datasets` below the release we test with, so that it has an environment of its own;
whatever doesn't conflict (torch, mixloop itself) is `.venv`'s, by a path file. Run with `.venv`'s
Python; a second call returns at once. Takes half a minute and a gigabyte.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-titan"
# its models import triton, which torch for CUDA brings along
WANTED = ["torchtitan==0.3.*", "triton"]


def main() -> None:
    """Create the environment, unless it holds what is wanted."""
    stamp = VENV / "installed"
    wanted = "\n".join([*WANTED, sysconfig.get_paths()["purelib"]])
    if stamp.exists() and stamp.read_text() == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", VENV], check=True)
    packages = next(VENV.glob("lib/python*/site-packages"))
    # with the path files there, by which an editable mixloop is found
    base = sysconfig.get_paths()["purelib"]
    (packages / "base.pth").write_text(f"import site; site.addsitedir({base!r})\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    command = [*pip, "--python", str(VENV / "bin" / "python"), "install", "-qq", *WANTED]
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit("torchtitan: pip failed, its message is above")
    stamp.write_text(wanted)


if __name__ == "__main__":
    main()
