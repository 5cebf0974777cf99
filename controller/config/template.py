"""The commented run.yaml that ``mixloop init`` writes."""

from __future__ import annotations

TEMPLATE = """\
# A mixloop run. `mixloop check FILE` says what is wrong with it before anything starts.
# Token counts take units: 400k, 2M, 250B, 11T. Paths are relative to this file.

run:
  id: smol-1                # names the run, also in MLflow
  dir: runs/smol-1          # everything the run writes
  seed: 7                   # of the data order, the model and the policy

budget: 10B                 # tokens of the whole run

# One entry per corpus: `mixloop prepare FILES --out data/web --tokenizer TOKENIZER`.
# weight: share of training tokens at the start; none given at all: proportional to size.
# standby: weight 0 until a policy brings the source in. tags: what policies may call it by.
sources:
  web:   {path: data/web,   tags: [web],  weight: 0.8}
  code:  {path: data/code,  tags: [code], weight: 0.15}
  maths: {path: data/maths, tags: [math], weight: 0.05}

evals:
  every: 200M               # tokens between scored checkpoints
  # budget: 2%              # of training time: chooses the items, once; those below are then limits
  # backlog: latest         # or all: what is scored when more than two checkpoints wait
  # steering: auto          # or bits_per_byte: never accuracy, exact match or pass@1
  device: cpu               # never a training GPU unless you name one
  # launcher: [srun, -G1, "{command}"] starts the worker elsewhere; ray, with workers: 4, many
  # data: auto (the hub, else what installed packages carry), hub, packages, or local files
  # any task of lm-eval can be named; those under `watch: [hellaswag]` are reported, never steer
  benchmarks:
    mmlu: {items: 1000}
    gsm8k: {items: 400, generate_items: 100}
    math: {items: 400, generate_items: 100}
    humaneval: {}

policy:
  use: rules                # or static, package.module:Class, ./file.py:Class
  with:
    interventions:
      - name: maths-flat
        when: {trend: {benchmark: [gsm8k, math], over: 3, is: not-better}}
        move: {to: maths, from: web, step: 0.05, cap: 0.25}
        cooldown: 400M

guards:
  max_epochs: 5             # no source is repeated more often than this, planned tokens included
  max_change: 0.10          # total variation of one intervention
  dwell: 200M               # tokens between two interventions

tracking:
  experiment: mixloop
  # uri: http://mlflow.example:5000     (default: mlflow.db in the run folder)

trainer:
  limits: {max_change: 0.5} # the trainer's own bounds, whoever writes the order
  model: {hidden_size: 576, intermediate_size: 1536, num_hidden_layers: 30,
          num_attention_heads: 9, num_key_value_heads: 3}
  sequence_length: 2048
  micro_batch: 8
  accumulation: 4           # or `batch: 32`: samples of a step on any number of processes
  # batch_schedule: [{from: 2B, accumulation: 8}]  # larger steps later on
  processes: 1              # more: torchrun with data parallelism
  # parallel: fsdp          # each process holds its part of weights and optimizer
  # activation_checkpointing: true
  # document_mask: true     # attention stays within documents
  learning_rate: 3.0e-3
  warmup: 100M              # tokens
  decay: 2B                 # tokens of annealing at the end
  checkpoint_every: 200M
  keep: 5                   # checkpoints; those still to be scored are kept as well
"""
