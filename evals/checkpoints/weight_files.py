"""The safetensors files of a checkpoint's folder, and the names that weights have in them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from mixloop.common.files import LARGEST_JSON, read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_ADAPTER = "adapter_config.json"

# what torch.compile, DDP, FSDP, activation checkpointing and DeepSpeed put between a model's names
_WRAPPERS = frozenset(
    {
        "_orig_mod",
        "module",
        "_module",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
    }
)
# what older versions of transformers saved beside the weights and now compute: masks and places
_COMPUTED = frozenset({"masked_bias", "causal_mask", "inv_freq", "position_ids"})
_NAMED = 5  # names that an error tells


def weight_files(folder: Path) -> list[str]:
    """Names of the files that hold a checkpoint's weights.

    Raises:
        OSError: there are none, or the index names one that isn't there.
        ValueError: what is there isn't the whole model, or it is in doubt which is.
    """
    if (folder / _ADAPTER).is_file():
        raise ValueError(
            f"{_ADAPTER}: the folder holds an adapter beside its base model; save the merged model"
        )
    whole, index = (folder / WEIGHTS).is_file(), folder / INDEX
    if not index.is_file():
        if not whole:
            raise FileNotFoundError(
                f"no {WEIGHTS} and no {INDEX}: weights are read from safetensors alone"
            )
        return [WEIGHTS]
    names = _indexed(index)
    if whole and WEIGHTS not in names:
        raise ValueError(
            f"{WEIGHTS} and the shards of {INDEX} are both there; remove what is not this model's"
        )
    gone = [name for name in names if not (folder / name).is_file()]
    if gone:
        raise FileNotFoundError(f"{INDEX} names {some(gone)}, which the folder lacks")
    return names


def _indexed(index: Path) -> list[str]:
    try:
        names = set(read_json(index, LARGEST_JSON, follow=True)["weight_map"].values())
        strange = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index.name}: no index of safetensors: {error!r}") from error
    if strange or not names:
        raise ValueError(f"{index.name}: names no file of the folder, or one outside it")
    return sorted(names)


def bare_name(name: str, parts: Collection[str] = ()) -> str:
    """A weight's name without what a wrapper put between its parts; `parts` are no wrapper's."""
    return ".".join(part for part in name.split(".") if part in parts or part not in _WRAPPERS)


def bare_names(names: Iterable[str], expected: Collection[str] = ()) -> dict[str, str]:
    """Names as they were saved, by the model's own.

    Args:
        names: As they were saved: `_orig_mod.model.norm.weight`,
            `model.layers.0._orig_mod.mlp.up_proj.weight`, `module.model.norm.weight`.
        expected: The model's names; a part of these is no wrapper's.

    Raises:
        ValueError: two names become one.
    """
    parts = {part for name in expected for part in name.split(".")}
    bare: dict[str, str] = {}
    for name in names:
        own = bare_name(name, parts)
        if own in bare:
            raise ValueError(f"two weights are {own} once their wrappers' prefixes are left out")
        bare[own] = name
    return bare


def is_weight(name: str, axes: int, expected: Collection[str] = ()) -> bool:
    """Whether a tensor of this name can be trained, unlike masks and places, which are computed.

    Args:
        name: The tensor's.
        axes: How many it has.
        expected: The model's names; what one of them ends with is no name of a mask.
    """
    last = name.rsplit(".", maxsplit=1)[-1]
    computed = _COMPUTED - {own.split(".")[-1] for own in expected}
    # GPT's causal mask is a bias by name; those of layers have one axis
    return last not in computed and not (last == "bias" and axes == 4)


def some(names: Collection[str]) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(list(names)[:_NAMED]) + (f" and {more} more" if more > 0 else "")
