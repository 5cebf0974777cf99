"""Evaluation: a checkpoint folder in, a scorecard out. Light to import: no torch, no lm-eval."""
