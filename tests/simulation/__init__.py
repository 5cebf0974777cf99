"""A deterministic simulation of the real controller, in the manner of FoundationDB.

One process, one seed, no wall clock: the real controller (reconcile, journal in SQLite, guards,
policies, records, operations, publication, the drain's row logic) and the trainer's real order
inbox and file contracts run over a file system in memory; trainer, evaluator, tracker and operators
around them are played, and everything that can go wrong does, at times drawn from the seed.

``python -m tests.simulation --help``
"""
