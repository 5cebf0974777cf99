"""A model in training: its steps, and what of it a checkpoint holds."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixloop.contract import FileEntry, RunPaths
from mixloop.trainer.batches import Batch
from mixloop.trainer.config import Job, JobError, learning_rate
from mixloop.trainer.run import (
    Collectives,
    LossPerSource,
    Meter,
    checkpoint_store,
    flops_per_token,
    peak_flops,
)
from mixloop.trainer.sources import TokenizerInfo, copy_tokenizer

from . import sharded_state
from .distributed import ParallelModel


class Trainer:
    """Model, optimizer and schedule: everything that a step touches.

    With `eos_id` attention stays within the documents that it ends.
    """

    def __init__(
        self,
        job: Job,
        tokenizer: TokenizerInfo,
        sources: int,
        peers: Collectives,
        eos_id: int | None = None,
    ) -> None:
        import torch

        from .model import build_model, check_document_mask, choose_device, parameter_groups

        settings = job.settings
        self.job = job
        self.peers = peers
        self.device = choose_device(settings.device, int(os.environ.get("LOCAL_RANK", "0")))
        torch.manual_seed(job.seed)  # the same initial weights on every rank
        self.model = build_model(job, tokenizer).train()
        self.eos_id = eos_id
        if eos_id is not None:
            check_document_mask(self.model)
        torch.manual_seed(job.seed + 1 + peers.rank)  # what follows may differ by rank
        flops = flops_per_token(self.model, job.sequence_length)
        self.parallel = ParallelModel(self.model, settings, peers, self.device)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, settings.weight_decay),
            lr=settings.learning_rate,
            betas=settings.betas,
            fused=True,
        )
        self.schedule = learning_rate(settings, job.budget)
        self.losses = LossPerSource(sources, self.device)
        self.meter = Meter(self.device, flops, self._peak(), peers.world)
        self.grad_norm: float | torch.Tensor = math.nan
        self._recent: list[torch.Tensor] = []
        self._folder: Path | None = None
        self._pieces: sharded_state.Pieces | None = None
        self._weights: dict[str, torch.Tensor] | None = None

    def _peak(self) -> float | None:
        import torch

        configured = self.job.settings.peak_flops
        if configured is not None or self.device.type != "cuda" or not self.parallel.bf16:
            return configured
        return peak_flops(torch.cuda.get_device_name(self.device))

    def step(self, batch: Batch, start: int, end: int) -> None:
        """One optimizer step on this rank's part of the samples between two token counts.

        A gradient that is not finite leaves weights and optimizer as they are, on every rank; the
        device decides that, and nothing here waits for it.
        """
        import torch

        from .model import sequence_losses

        rate = self.schedule.rate(start, end)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        micros = len(batch.ids)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for micro in range(micros):
            ids = torch.from_numpy(batch.ids[micro]).to(self.device, non_blocking=True)
            with self.parallel.backward(last=micro == micros - 1):
                with self.parallel.precision():
                    losses = sequence_losses(self.parallel.forward, ids, self.eos_id)
                torch.autograd.backward(losses.mean() / micros)
            self.losses.add(batch.source[micro], losses.detach())
            loss += losses.detach().double().mean() / micros
        norm = self.parallel.clip(self.job.settings.grad_clip or math.inf)
        skipped = torch.logical_not(torch.isfinite(norm)).float()
        # how torch's GradScaler tells a fused optimizer to leave a step out, its count included
        optimizer: Any = self.optimizer
        optimizer.found_inf = skipped
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.grad_norm = norm
        self._recent.append(torch.stack([loss, skipped.double()]))

    def recent(self) -> npt.NDArray[np.float64]:
        """Loss over all ranks, and 1 where it was skipped, of each step since the last call.

        Shape [steps, 2]. Collective; this waits for the device.
        """
        import torch

        if not self._recent:
            return np.zeros((0, 2))
        mine = torch.stack(self._recent).cpu().numpy()
        self._recent.clear()
        return self.peers.sum(mine) / self.peers.world

    def state(self) -> dict[str, Any]:
        """What a checkpoint's state file holds; large parts of a sharded state are written.

        Collective.

        Raises:
            OSError: on every rank: a rank's part could not be written.
        """
        import torch

        rng: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        state: dict[str, Any] = {"rng": self.peers.collect(rng)}
        if self.job.settings.sharded_state:
            self._pieces = sharded_state.write_pieces(
                self._scratch(), self.model, self.optimizer, self.peers
            )
        else:
            state["optimizer"] = self.optimizer.state_dict()
        if self.parallel.sharded:
            self._weights = sharded_state.gather_weights(self.model, self.peers.rank == 0)
        return state

    def _scratch(self) -> Path:
        """An empty place beside the checkpoints for all ranks' parts, swept away after a crash."""
        checkpoints = RunPaths(self.job.dir).checkpoints
        folder = checkpoints / f"{checkpoint_store.SCRATCH}state-{os.getpid()}"
        if self.peers.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        shared: Path = self.peers.share(folder)
        self._folder = shared
        return shared

    def written(self) -> Mapping[str, FileEntry]:
        """Files of the state that `state` has written, with hashes, as named in a checkpoint."""
        return self._pieces.files if self._pieces is not None else {}

    def save(self, folder: Path, state: Mapping[str, Any], tokenizer: Path) -> None:
        """Put weights, tokenizer and state into a checkpoint's folder; rank 0 only."""
        import torch
        from transformers.utils import logging

        logging.disable_progress_bar()
        # one file whatever the size: resume and readers need no index
        self.model.save_pretrained(folder, state_dict=self._weights, max_shard_size="100TB")
        copy_tokenizer(tokenizer, folder)
        torch.save(dict(state), folder / checkpoint_store.STATE_FILE)
        if self._pieces is not None:
            sharded_state.place(self._pieces, folder)

    def release(self) -> None:
        """Let go of what `state` has gathered, saved or not."""
        if self.peers.rank == 0 and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = self._pieces = None
        self._weights = None

    def load(self, folder: Path) -> dict[str, Any]:
        """Take weights, optimizer and random state from a checkpoint. Collective.

        The checkpoint may be of another number of ranks and of another `parallel`.

        Returns:
            What else its state file holds.

        Raises:
            JobError: the checkpoint is of another model.
        """
        import torch

        state: dict[str, Any] = torch.load(
            folder / checkpoint_store.STATE_FILE, map_location="cpu", weights_only=True
        )
        if (folder / sharded_state.FOLDER).is_dir():
            sharded_state.read_pieces(folder, self.model, self.optimizer, self.peers)
        else:
            self._load_single(folder, state["optimizer"])
        rngs = state.pop("rng")
        if self.peers.rank < len(rngs):
            rng = rngs[self.peers.rank]
            torch.set_rng_state(rng["cpu"])
            if self.device.type == "cuda" and "cuda" in rng:
                torch.cuda.set_rng_state(rng["cuda"], self.device)
        return state

    def _load_single(self, folder: Path, optimizer: Mapping[str, Any]) -> None:
        from safetensors.torch import load_model

        weights = folder / "model.safetensors"
        try:
            if self.parallel.sharded:
                sharded_state.spread_weights(self.model, weights)
                optimizer = sharded_state.spread_moments(optimizer, self.optimizer)
            else:
                load_model(self.model, weights, device=str(self.device))
            self.optimizer.load_state_dict(dict(optimizer))
        except (RuntimeError, ValueError, OSError) as error:
            first = str(error).strip().splitlines()[0]
            raise JobError(f"{folder}: not a checkpoint of this model: {first}") from error
