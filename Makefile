# Each target sets up .venv by itself; all that is needed is make and Python 3.11 or newer.
#   MIXLOOP_PYTHON=/path/to/python3    the interpreter for .venv
#   TORCH="torch==2.13.0+cu126 ..."    pip's arguments for another build of torch
#   ARGS="..."                         passed on to the command behind the target

BIN := .venv/bin
ARGS ?=
export TORCH MIXLOOP_PYTHON
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.PHONY: help env demo test test-titan check soak bench bench-evals bench-loader bench-gpu bench-policies bench-real clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train a small model on real text while its mixture is controlled"
	@echo "make test    the tests (no network needed once installed)"
	@echo "make test-titan  the torchtitan adapter under torchtitan, in an environment of its own"
	@echo "make check   lint, format, types, layers, picture, wheel"
	@echo "make soak    the slow proofs"
	@echo "make bench   the benchmarks in bench/"
	@echo "make bench-evals  the evaluation engine against lm-eval's hf model, on SmolLM2-135M"
	@echo "make bench-loader ARGS=\"--peers DIR\"  our loader beside six others, each in its own environment"
	@echo "make bench-gpu  trainer, feeding, adapters and evaluations on a CUDA device; six minutes"
	@echo "make bench-policies  every policy on worlds whose truth is known; hours on a few cores"
	@echo "make bench-real ARGS=\"--out DIR --data DIR\"  every policy on real training; hours on two cores"
	@echo "make clean   remove caches and build outputs; .venv stays"
	@echo "make env     only the set-up: .venv with mixloop[dev,demo]"
	@echo "Options: ARGS=..., MIXLOOP_PYTHON=/path/to/python3, TORCH=\"torch==...\""

env:
	@sh scripts/find_python.sh scripts/setup_env.py

demo: env
	@$(BIN)/mixloop demo $(ARGS)

test: env
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

# its Trainer on two ranks is what is slow there: all of it runs
test-titan: env
	@$(BIN)/python scripts/titan_env.py
	@.venv-titan/bin/python -m pytest tests/trainer/adapters/test_torchtitan.py -m "soak or not soak" $(ARGS)

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/draw_architecture.py --check
	$(BIN)/python scripts/check_wheel.py

soak: env
	@$(BIN)/python -m pytest -m soak --timeout 3600 $(ARGS)
	@$(BIN)/python -m tests.simulation --seeds 10000 --cycles 200 --jobs 2
	@folder=$$(mktemp -d) && $(BIN)/python tests/support/everything.py "$$folder" --seconds 7200 && rm -r "$$folder"

bench: env
	@set -e; for script in bench/*.py; do \
	  case "$$script" in bench/evals.py|bench/latency.py|bench/policies.py|bench/real*.py|bench/regmix.py|bench/loader.py|bench/loader_peers.py|bench/gpu*.py) continue;; esac; \
	  if [ ! -e "$$script" ]; then echo "bench/ holds no scripts"; exit 0; fi; \
	  echo "== $$script"; $(BIN)/python "$$script" $(ARGS); \
	done

# ARGS="--data mmlu=DIR --data gsm8k=FILE --data math=FILE" where the hub can't be reached
bench-evals: env
	@$(BIN)/python -m pip install --quiet "gguf>=0.17"
	@$(BIN)/python scripts/smollm2.py .smollm2
	@$(BIN)/python bench/evals.py .smollm2 $(ARGS)

bench-loader: env
	@$(BIN)/python bench/loader.py $(ARGS)

# ARGS="--data mmlu=DIR --data gsm8k=FILE --data math=FILE", "--only feed", "--device cpu --quick"
bench-gpu: env
	@$(BIN)/python bench/gpu.py $(ARGS)

# ARGS="--jobs 8 --only law --out results.json", "--null", "--policy law --vary sweep"
bench-policies: env
	@$(BIN)/python bench/policies.py $(ARGS)

bench-real: env
	@$(BIN)/python bench/real.py $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find common contract policies evals trainer controller tools cli tests bench examples scripts -name __pycache__ -type d -prune -exec rm -rf {} +
