"""mixloop inside other trainers: one module for each, imported only where it is used."""
