"""What is wrong with the TLS of MLflow's server, in one line with the mend, instead of a chain."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

CERTIFICATES = "MLFLOW_TRACKING_SERVER_CERT_PATH"
_INSECURE = "MLFLOW_TRACKING_INSECURE_TLS"
_PROBE_SECONDS = 4.0


def tls_problem(error: BaseException, uri: str) -> str | None:
    """What an error of MLflow's client says of the server's TLS; None: it is about something else.

    Args:
        error: what was raised.
        uri: `tracking.uri`.
    """
    place = urlsplit(uri)
    where = f"{place.scheme}://{place.netloc.rpartition('@')[2]}"
    named = os.environ.get(CERTIFICATES)
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            mend = {
                9: "wait for that time, or set this machine's clock",
                10: "renew it on the server, or set this machine's clock",
                62: "name the server in tracking.uri as its certificate does",
                64: "name the server in tracking.uri as its certificate does",
            }.get(
                cause.verify_code,
                f"give its authority's certificate by {CERTIFICATES}"
                + (f" (now {named})" if named else ""),
            )
            why = cause.verify_message.rstrip(".")
            return f"{where}: its certificate can't be trusted: {why}; {mend}"
        if isinstance(cause, ssl.SSLError):
            what = (cause.reason or str(cause)).replace("_", " ").lower()
            return f"{where}: no TLS could be agreed on: {what}; is it https that it speaks?"
        if isinstance(cause, OSError) and "TLS CA certificate bundle" in str(cause):
            return f"{CERTIFICATES}: {named!r} is no file of certificates; mend it, or leave it out"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it was made of: requests keeps a cause in an argument or `reason`."""
    waiting: list[BaseException] = [error]
    seen: set[int] = set()
    while waiting:
        cause = waiting.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        inner = (cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args)
        waiting += [part for part in inner if isinstance(part, BaseException)]


def why_not_trusted(uri: str) -> str | None:
    """Whether MLflow's client would talk to an https server now: why not, or None.

    One that is merely down is no reason: whatever waits for it is kept.
    """
    if urlsplit(uri).scheme != "https":
        return None
    import requests

    insecure = os.environ.get(_INSECURE, "").lower() in ("true", "1")
    verify = False if insecure else os.environ.get(CERTIFICATES) or True
    try:
        with requests.get(f"{uri}/version", verify=verify, timeout=_PROBE_SECONDS, stream=True):
            return None
    except Exception as error:  # of the network, whatever it is
        return tls_problem(error, uri)
