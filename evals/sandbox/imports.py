"""What programs can import: all of the standard library that this interpreter has.

A program that is right and can't import what it needs would count as wrong, so a sandbox in which
that is so is none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

_LOOK = """
import sys
from importlib.util import find_spec
for name in {names}:
    if name not in sys.modules and name not in sys.builtin_module_names:
        loader = find_spec(name).loader
        loader.get_code(name) or open(loader.path, "rb").close()
"""
_IMPORT = """
from importlib import import_module
for name in {names}:
    import_module(name)
"""
_TRY = """
import sys
from importlib import import_module
for name in sys.argv[1:]:
    try:
        import_module(name)
    except Exception:
        print(name)
"""
_NO_LIBRARY = {"antigravity"}  # opens a browser


def standard_modules() -> list[str]:
    """The names of the standard library's modules that this interpreter has, private ones not."""
    library = Path(os.__file__).parent
    places = [str(library), str(library / "lib-dynload")]
    return [
        name
        for name in sorted(sys.stdlib_module_names - _NO_LIBRARY)
        if not name.startswith("_")
        and (name in sys.builtin_module_names or PathFinder.find_spec(name, places) is not None)
    ]


def not_found(passes: Callable[[str], bool]) -> list[str]:
    """The standard modules that programs can't find or read; a look, in milliseconds.

    Args:
        passes: Runs a program in the sandbox; whether it came to its end without an error.
    """
    return _failing(standard_modules(), _LOOK, passes)


def not_imported(passes: Callable[[str], bool]) -> list[str]:
    """The standard modules that programs can't import and this interpreter can; seconds.

    Args:
        passes: Runs a program in the sandbox; whether it came to its end without an error.

    Raises:
        OSError: the interpreter can't be started.
    """
    failing = _failing(standard_modules(), _IMPORT, passes)
    if not failing:
        return []
    # those that nobody can import here: built without a library that they want
    command = [os.path.realpath(sys.executable), "-I", "-S", "-B", "-c", _TRY, *failing]
    tried = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    return sorted(set(failing) - set(tried.stdout.split()))


def _failing(names: Sequence[str], program: str, passes: Callable[[str], bool]) -> list[str]:
    """Those that it fails for, by halves: none, or a few, in the ordinary case."""
    if passes(program.format(names=list(names))):
        return []
    if len(names) == 1:
        return list(names)
    half = len(names) // 2
    return _failing(names[:half], program, passes) + _failing(names[half:], program, passes)
