"""Small things that every room needs: units, errors, files, processes, statistics.

Its modules are its face: import them one by one. It knows no room and no library beyond pydantic,
and scipy where a quantile is asked for.
"""
