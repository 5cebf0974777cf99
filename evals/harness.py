"""lm-eval's command with the model `mixloop`: ``python -m mixloop.evals.harness run ...``.

What is behind it lies in :mod:`mixloop.evals.engine.lm_eval_command`.
"""

from mixloop.evals.engine import lm_eval_main

if __name__ == "__main__":
    lm_eval_main()
