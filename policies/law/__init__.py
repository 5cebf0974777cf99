"""Policy `law`: mixing laws fitted to the run so far, the rest of the budget planned by them.

It never proposes what its laws can't tell apart from standing still.
"""
