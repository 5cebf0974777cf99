"""Make `.venv` ready: create it, choose a torch that fits the machine, install mixloop.

Run by the Makefile with any Python from 3.11 on; needs nothing else. A stamp inside `.venv` records
what was installed, so a second call returns at once; a changed pyproject.toml or another `TORCH`
installs again.

Which torch. PyPI's Linux wheels carry CUDA libraries of several gigabytes. Without an NVIDIA driver
the CPU build is taken instead, as the exact version `X+cpu`: from wherever pip is configured to
look (a local wheel folder given by `find-links`, a mirror), else from PyTorch's own index when that
answers within seconds. With a driver, or on macOS and Windows, pip's default is right. `TORCH`
overrules all this: TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126".
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "mixloop-installed"
EXTRAS = "dev,demo"
TORCH = "2.13.0"  # the version mixloop is tested with
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = 3


def say(text: str) -> None:
    """One line of progress."""
    print(f"mixloop: {text}", flush=True)  # noqa: T201 (a command-line script)


def python() -> str:
    """The environment's interpreter."""
    return str(VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def fingerprint() -> str:
    """What an installation depends on; equal to the stamp when there is nothing to do."""
    parts = [(ROOT / "pyproject.toml").read_bytes(), str(ROOT).encode()]
    parts.append(os.environ.get("TORCH", "").encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def works() -> bool:
    """Whether `.venv` holds an interpreter of a right version that starts and has pip."""
    test = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    if not Path(python()).exists():
        return False
    return subprocess.run([python(), "-c", test], capture_output=True, check=False).returncode == 0


def create() -> None:
    """Create `.venv` afresh."""
    say(f"creating .venv with Python {platform.python_version()} ({sys.executable})")
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        detail = (done.stdout + done.stderr).strip()
        sys.exit(
            f"{detail}\nmixloop: {sys.executable} cannot create a virtual environment: install its "
            "venv module (Debian, Ubuntu: apt install python3-venv) or name another interpreter "
            "with MIXLOOP_PYTHON=/path/to/python3"
        )


def pip(*arguments: str) -> None:
    """Run the environment's pip quietly; end with its error when it fails."""
    command = [python(), "-m", "pip", "--disable-pip-version-check", "install", "-qq", *arguments]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        sys.exit(f"mixloop: pip install {shlex.join(arguments)} failed: its message is above")


def installed_torch() -> str | None:
    """The version of torch in `.venv`, without importing it."""
    program = (
        "import importlib.metadata as m\n"
        "try: print(m.version('torch'))\n"
        "except m.PackageNotFoundError: pass"
    )
    done = subprocess.run([python(), "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip() or None


def has_nvidia_driver() -> bool:
    """Whether this machine shows an NVIDIA driver."""
    traces = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvidia0")
    return bool(shutil.which("nvidia-smi")) or any(Path(trace).exists() for trace in traces)


def answers(url: str) -> bool:
    """Whether a web server answers within a few seconds."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False


def cpu_builds(*arguments: str) -> list[str]:
    """The CPU builds of torch that pip can see, best first: the tested version, then the newest."""
    command = [python(), "-m", "pip", "--disable-pip-version-check", "index", "versions", "torch"]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    listed = re.search(r"^Available versions: (.*)$", done.stdout, re.MULTILINE)
    versions = [version.strip() for version in listed[1].split(",")] if listed else []
    builds = [version for version in versions if version.endswith("+cpu")]
    return sorted(builds, key=lambda version: version != f"{TORCH}+cpu")


def cpu_torch() -> list[str] | None:
    """pip's arguments for a CPU build; None where there is none to be had."""
    if local := cpu_builds():
        return [f"torch=={local[0]}"]
    if answers(f"{CPU_INDEX}/torch/"):
        index = ["--extra-index-url", CPU_INDEX]
        if remote := cpu_builds(*index):
            return [f"torch=={remote[0]}", *index]
    return None


def install_torch() -> None:
    """Install the torch that fits the machine, unless one is there already."""
    chosen = os.environ.get("TORCH", "").strip()
    if chosen:
        say(f"installing {chosen} (as TORCH says)")
        pip(*shlex.split(chosen))
        return
    if there := installed_torch():
        say(f"keeping torch {there}, which is in .venv already")
        return
    if platform.system() != "Linux" or has_nvidia_driver():
        return  # what pip takes by default is right; it comes with mixloop's dependencies
    arguments = cpu_torch()
    if arguments:
        say(f"no NVIDIA driver here: installing the CPU build {arguments[0]}")
        pip(*arguments)
        return
    say(
        f"no NVIDIA driver here, and no CPU build of torch in reach ({CPU_INDEX} does not answer): "
        'pip takes its default, with CUDA libraries of several GB; TORCH="..." chooses another'
    )


def main() -> None:
    """Bring `.venv` up to date; returns at once when it is."""
    wanted = fingerprint()
    usable = works()
    if usable and STAMP.exists() and STAMP.read_text() == wanted:
        return
    start = time.monotonic()
    if not usable:
        create()
    STAMP.unlink(missing_ok=True)
    install_torch()
    say(f"installing mixloop[{EXTRAS}] and what it needs (some minutes the first time)")
    pip("-e", f".[{EXTRAS}]")
    STAMP.write_text(wanted)
    say(f"ready: torch {installed_torch()}, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
