"""Build the model of a job, choose its device and precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixloop.common.errors import one_line
from mixloop.trainer.batches import document_ids, document_mask, position_ids
from mixloop.trainer.config import Job, JobError, ModelSettings
from mixloop.trainer.sources import TokenizerInfo

if TYPE_CHECKING:
    import torch


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device of a rank: `auto` takes CUDA when it is there.

    Raises:
        JobError: a device torch doesn't know or that is absent.
    """
    import torch

    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device("cuda", local_rank) if wanted == "cuda" else torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise JobError(f"settings.device: {wanted!r} is not usable: {first}") from error
    return device


def bf16_pays(device: torch.device) -> bool:
    """Whether bf16 autocast is faster than fp32: on CUDA from Ampere on, on CPUs with AMX.

    A CPU without bf16 matrix units emulates it, at a third of the speed of fp32.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    if device.type == "cpu":
        return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in probes)
    return False


def computes_bf16(precision: str, device: torch.device) -> bool:
    """Whether `auto`, `bf16` or `fp32` means bf16 on this device."""
    return precision == "bf16" or (precision == "auto" and bf16_pays(device))


def autocast(bf16: bool, device: torch.device) -> AbstractContextManager[Any]:
    """Context of the forward pass; weights stay fp32."""
    import torch

    if bf16:
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def build_model(job: Job, tokenizer: TokenizerInfo) -> Any:
    """The job's model in fp32 on the CPU, from scratch (by torch's global RNG) or `init_from`.

    Raises:
        JobError: a model that can't be loaded or doesn't fit the tokenizer or sequence length.
    """
    if job.settings.init_from is not None:
        return _load(job, job.settings.init_from, tokenizer)
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = (job.settings.model or ModelSettings()).model_dump(exclude_none=True)
    shape.setdefault("max_position_embeddings", job.sequence_length)
    if shape["max_position_embeddings"] < job.sequence_length:
        raise JobError(
            f"settings.model.max_position_embeddings: {shape['max_position_embeddings']} is below "
            f"sequence_length {job.sequence_length}"
        )
    theta = shape.pop("rope_theta")
    end = tokenizer.eos_id if tokenizer.eos_id >= 0 else None
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        bos_token_id=end,
        eos_token_id=end,
        use_cache=False,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        **shape,
    )
    return LlamaForCausalLM(config)


def _load(job: Job, folder: Path, tokenizer: TokenizerInfo) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if (folder / "adapter_config.json").exists():
        raise JobError(
            f"settings.init_from: {folder} holds an adapter (adapter_config.json) beside its base "
            "model; save the merged model"
        )
    own = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **own)
        # a config may name kernels of the hub, which are code; transformers' own choice is ours
        config._attn_implementation = config._experts_implementation = None
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True, **own
        )
    # weights of another shape are a RuntimeError
    except (OSError, ValueError, RuntimeError) as error:
        raise JobError(f"settings.init_from: {folder}: {one_line(error)}") from error
    # transformers fills what isn't there with random numbers and goes on
    if lacking := sorted(found["missing_keys"]):
        raise JobError(
            f"settings.init_from: {folder} lacks {len(lacking)} of its model's weights, such as "
            f"{lacking[0]}; save the model's own state dict"
        )
    if model.config.vocab_size < tokenizer.vocab_size:
        raise JobError(
            f"settings.init_from: {folder} has {model.config.vocab_size} token ids, "
            f"the sources' tokenizer {tokenizer.vocab_size}"
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and positions < job.sequence_length:
        raise JobError(
            f"settings.sequence_length: {job.sequence_length} is above the {positions} positions "
            f"of {folder}"
        )
    return model


def parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only; norms and biases are left alone."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def check_document_mask(model: Any) -> None:
    """That a model takes the mask of `sequence_losses` as it is meant.

    Raises:
        JobError: its attention is of another kind.
    """
    kind = getattr(model.config, "_attn_implementation", None)
    layers = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if kind != "sdpa" or layers != {"full_attention"}:
        raise JobError(
            "settings.document_mask: needs a model whose layers all have full attention through "
            f"torch's sdpa (this one: {kind}, {', '.join(sorted(layers))}); leave it out"
        )


def sequence_losses(model: Any, ids: torch.Tensor, eos_id: int | None = None) -> torch.Tensor:
    """Mean next-token loss of each sequence.

    Args:
        model: gives logits [rows, L, vocabulary].
        ids: token ids, shape [rows, L].
        eos_id: if given, attention stays within the documents that it ends, and positions begin
            anew in each.

    Returns:
        Nats per token, shape [rows], each over the L - 1 predictions within its sequence.
    """
    import torch.nn.functional as F  # noqa: N812 -- torch's own name for it

    # targets are shifted rather than logits cut: a slice of the logits, the largest tensor by
    # far, would be copied
    targets = F.pad(ids[:, 1:], (0, 1), value=-100)
    inside = {}
    if eos_id is not None:
        inside["attention_mask"] = document_mask(document_ids(ids, eos_id))
        inside["position_ids"] = position_ids(ids, eos_id).long()
    logits = model(input_ids=ids, use_cache=False, **inside).logits
    losses = F.cross_entropy(
        logits.view(-1, logits.shape[-1]).float(), targets.view(-1), reduction="none"
    )
    return losses.view(ids.shape).sum(dim=1) / (ids.shape[1] - 1)
