"""Folders that other libraries made for their own loaders, refused with the way in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def refuse_foreign(folder: Path) -> None:
    """Refuse what is no folder of documents.

    Raises:
        ValueError: it is tokenised already, or a shard format with a loader of its own; one line
            that says what to do with it.
    """
    if (folder / "store.json").is_file():
        raise ValueError(f"{folder}: a token store already; name it as a source of the run")
    if any(folder.glob("*.ds")) or any(folder.glob("*.idx")):
        raise ValueError(
            f"{folder}: tokenised already (datatrove's *.ds, or Megatron's .bin and .idx); name it "
            "as a source of the run, it is read in place"
        )
    index = _index(folder / "index.json")
    if isinstance(index.get("chunks"), list):
        config = index.get("config")
        flat = isinstance(config, dict) and config.get("item_loader") == "TokensLoader"
        blocks = ", item_loader=TokensLoader(2048)" if flat else ""
        raise ValueError(
            f'{folder}: LitData chunks; make JSON lines of them: python -c "import json; from '
            "litdata import StreamingDataset, TokensLoader; [print(json.dumps({'input_ids': "
            f"row.tolist()}})) for row in StreamingDataset('{folder}'{blocks})]\" > litdata.jsonl; "
            "then mixloop prepare litdata.jsonl --ids-key input_ids …"
        )


def _index(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
