"""The ``mixloop`` command. Thin: every command imports what it needs when it runs.

Exit codes: 0 done, 1 failed, 2 bad input (one line on stderr, no traceback), 130 interrupted.
"""

from __future__ import annotations

import codecs
import io
import signal
import sys
from collections.abc import Callable, Iterable

import typer

from mixloop.common.errors import BadInput
from mixloop.common.files import DISK_TROUBLES
from mixloop.common.process import handling, interrupt, stop_signals
from mixloop.common.text import clean, in_ascii

from . import audit, data, evaluation, experiments, inspect, operators, policies, run, search

app = typer.Typer(
    name="mixloop",
    help="Closed-loop controller for the data mixture of a language-model pretraining run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

COMMANDS: dict[str, Callable[..., None]] = {  # in the order of `mixloop --help`
    "init": run.init,
    "check": run.check,
    "prepare": data.prepare,
    "verify": data.verify,
    "train": run.train,
    "control": run.control,
    "run": run.run,
    "status": inspect.status,
    "history": inspect.history,
    "explain": inspect.explain,
    "report": inspect.report,
    "eval": evaluation.evaluate,
    "lm-eval": evaluation.lm_eval,
    "compare": inspect.compare,
    "samples": inspect.samples,
    "search": search.search,
    "fork": run.fork,
    "audit": audit.audit,
    "simulate": experiments.simulate,
    "backtest": experiments.backtest,
    "doctor": evaluation.doctor,
    "demo": experiments.demo,
    "pause": operators.pause,
    "resume": operators.resume,
    "set": operators.set_,
    "pin": operators.pin,
    "unpin": operators.unpin,
    "approve": operators.approve,
    "reject": operators.reject,
    "rollback": operators.rollback,
    "sync": operators.sync,
    "export": operators.export,
}
INTERRUPTED = 130  # exit code
SIGNS = "ascii_signs"  # a codec and an error handler
ANY_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}

for name, command in COMMANDS.items():
    if name == "lm-eval":  # takes lm-eval's own options, --help too
        app.command(name, context_settings=ANY_OPTIONS, add_help_option=False)(command)
    else:
        app.command(name)(command)
app.add_typer(policies.app, name="policies")


def main() -> None:
    """Entry of the ``mixloop`` command; what asks it to stop ends it as Ctrl-C does."""
    _speak_ascii()
    polite = set(stop_signals()) - {signal.SIGINT}  # an ignored Ctrl-C, of a background, stays so
    try:
        with handling(polite, interrupt):
            app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _deaf(polite)
        raise
    except BadInput as error:
        typer.echo(f"error: {clean(error)}", err=True)
        sys.exit(2)
    except OSError as error:  # a folder that is missing, full, or somebody else's
        if error.filename is None and error.errno not in DISK_TROUBLES:
            raise
        place = "" if error.filename is None else f"{clean(error.filename)}: "
        typer.echo(f"error: {place}{error.strerror or error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        _deaf(polite)
        typer.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)


def _deaf(numbers: Iterable[int]) -> None:
    """A wish to stop may come several times; the exit code tells that it was heard."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def _speak_ascii() -> None:
    """Where the terminal takes less than Unicode, what comes nearest rather than a traceback.

    ASCII goes by a name of ours: click takes its own for a mistake and would write UTF-8.
    """
    codecs.register_error(SIGNS, in_ascii)
    codecs.register(lambda name: _ascii_signs() if name == SIGNS else None)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            ascii_only = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=SIGNS if ascii_only else stream.encoding, errors=SIGNS)


def _ascii_signs() -> codecs.CodecInfo:
    plain = codecs.lookup("ascii")
    kept = ("encode", "decode", "incrementalencoder", "incrementaldecoder")
    return codecs.CodecInfo(**{key: getattr(plain, key) for key in kept}, name=SIGNS)


if __name__ == "__main__":
    main()
