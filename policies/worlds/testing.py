"""The names of `mixloop.policies.worlds.conformance` under their former path, for one release."""

from mixloop.policies.worlds.conformance import check_world

__all__ = ["check_world"]
