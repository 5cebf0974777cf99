"""The mixture under other trainers: transformers, Lightning, torchtitan.

Import the one you need; what an adapter can't do it refuses in one line.
"""
