"""The trainer's room: file contracts, mixing order, token stores and the reference training loop.

Importing it loads nothing heavy; `contract` and `order` work without torch.
"""
