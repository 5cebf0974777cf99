"""`load_checkpoint` of `mixloop.evals.engine` under its former path, for one release."""

from mixloop.evals.engine import load_checkpoint

__all__ = ["load_checkpoint"]
