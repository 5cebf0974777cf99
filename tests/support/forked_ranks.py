"""Runs training jobs one after the other, each on ranks forked from one warm interpreter.

``python forked_ranks.py RUNS.json``, a list of ``[ranks, job file, trace file or null]``. Starting
two interpreters with torch and transformers takes longer than all that is tested with them.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

from mixloop.trainer.train import main


def run(ranks: int, arguments: list[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            if ranks > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                os.environ |= {"WORLD_SIZE": str(ranks)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            code = main(arguments)
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        sys.exit(f"{arguments}: ranks ended with {codes}")


if __name__ == "__main__":
    # what the ranks share; no thread is started before they fork
    import torch.distributed.checkpoint
    import torch.distributed.fsdp  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    for ranks, job, trace in json.loads(Path(sys.argv[1]).read_text()):
        run(ranks, [job] if trace is None else [job, "--trace", trace])
