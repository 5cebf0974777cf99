"""A deterministic simulation of the real controller, in the manner of FoundationDB.

One process, one seed, no wall clock, thread, uuid or hash order: everything that can go wrong does,
at times drawn from the seed. Each run is at least 150 looks of a controller under faults; then the
faults are switched off, and it has to come to its end within 150 looks of the trainer's.

Real: the controller with its loop, reconcile, the journal in SQLite, records, observation, guards,
decisions, requests, the publication with its fsyncs and rename, the policy child's `decide`, the
drain's loop and its sink, the scorecard file; the trainer's order inbox, its rules of acceptance,
`schedule.jsonl`, `status.json`, manifests.

Played: training (a ledger that counts), evaluation (a formula), MLflow's client (a store in memory
with MLflow's rules of identity), the processes of policy, experiments and drain (inside this one,
with their hangs, deaths and deadlines), people. Files lie in memory, where what was written is told
from what was fsynced, for files and folders; the journal is a real SQLite file without fsync.

``python -m tests.simulation --help``
"""
