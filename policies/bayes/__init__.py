"""Policy `bayes`: Bayesian optimisation over the simplex inside a trust region.

The winner is chosen by posterior mean, never by the best score seen.
"""
