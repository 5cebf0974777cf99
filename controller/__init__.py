"""The reconcile loop, the journal, tracking, and the `mixloop` command."""
