"""lm-eval's own command with the model `mixloop` known to it.

    python -m mixloop.evals.harness run --model mixloop --model_args pretrained=DIR --tasks piqa

takes every argument of `lm_eval`. lm-eval looks models up in a registry that other packages can't
add to from outside, so the registering has to happen in the same process, here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from mixloop.evals.engine import CheckpointLM, load_checkpoint

_ARGUMENTS = ("dtype", "max_length", "batch_tokens", "seed", "device", "add_bos_token")


@register_model("mixloop")
class Mixloop(TemplateLM):  # type: ignore[misc]  # lm_eval publishes no types
    """What lm-eval makes a model from: `pretrained` is a folder or a name on the hub.

    Further arguments are `dtype`, `device`, `max_length`, `batch_tokens` (tokens of a forward
    pass), `seed` and `add_bos_token` (without it no tokenizer puts tokens of its own into a text).
    lm-eval's `batch_size` means nothing here.
    """

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> CheckpointLM:
        """From `key=value,key=value`, see :meth:`create_from_arg_obj`."""
        from lm_eval.utils import simple_parse_args_string

        arguments = cast(dict[str, Any], simple_parse_args_string(arg_string))
        return cls.create_from_arg_obj(arguments, additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> CheckpointLM:
        """The engine for these arguments.

        Raises:
            ValueError: an argument that isn't known, or no `pretrained`.
            CheckpointError: the checkpoint can't be loaded.
        """
        stock = {k: v for k, v in (additional_config or {}).items() if v is not None}
        options = {key: stock[key] for key in _ARGUMENTS if key in stock} | arg_dict
        pretrained = options.pop("pretrained", None)
        unknown = sorted(options.keys() - set(_ARGUMENTS))
        if pretrained is None or unknown:
            wrong = f"unknown argument {unknown[0]!r}" if unknown else "no pretrained=FOLDER"
            raise ValueError(
                f"model mixloop: {wrong}; it takes pretrained, {', '.join(_ARGUMENTS)}"
            )
        add_bos = options.pop("add_bos_token", None)
        return load_checkpoint(_folder(str(pretrained)), add_bos=add_bos, **options)


def _folder(pretrained: str) -> Path:
    """The checkpoint's folder; a name on the hub is downloaded."""
    if Path(pretrained).is_dir():
        return Path(pretrained)
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
    return Path(snapshot_download(pretrained, allow_patterns=patterns))


def main() -> None:
    """lm-eval's command line; `--model mixloop` where no model is named."""
    from lm_eval.__main__ import cli_evaluate

    # lm-eval takes its arguments with and without the word `run`
    words = sys.argv[1:]
    asks = bool(words) and words[0] not in ("ls", "validate", "-h", "--help")
    if asks and not any(word == "--model" or word.startswith("--model=") for word in words):
        sys.argv += ["--model", "mixloop"]
    cli_evaluate()


if __name__ == "__main__":
    main()
