"""``experiment``: decides on what short branches from the run's own checkpoints show.

It never plans from the run's past scores, and runs nothing itself: it asks, and reads what came.
"""
