"""The one exception that means: the user gave us something wrong, and this line says what."""

from __future__ import annotations


class BadInput(Exception):  # noqa: N818 - says what is wrong, not that we failed
    """Bad input. The message is one line naming the file, the key, the value and the mend.

    The command prints it without a traceback and ends with exit code 2.
    """
