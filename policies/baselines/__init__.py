"""Published and trivial methods to compare with: static, proportional, odm, ado, olmix.

They follow their papers and are not tuned further.
"""
