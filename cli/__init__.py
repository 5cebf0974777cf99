"""The `mixloop` command: options in, tables or JSON out; nothing else."""
