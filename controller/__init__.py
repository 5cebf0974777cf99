"""The daemon that closes the loop, what it keeps, and what people see of it.

Use the `mixloop` command; each package below has a face of its own.
"""
