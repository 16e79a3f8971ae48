"""Ranks that run several command lines one after the other in one process group: starting them is what takes time.

As a script it is one rank under torchrun: `several_lines.py LINES.json`, a list of {"directory": ..., "words": [...]}.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def on_ranks(num_ranks: int, folder: Path, lines: list[tuple[Path, list[str]]]) -> list[int]:
    """Run command lines, each (directory, words), on ranks under torchrun. Returns: the exit code of each."""
    from warm import run_warm

    file = folder / "lines.json"
    file.write_text(json.dumps([{"directory": str(directory), "words": words} for directory, words in lines]))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    done = run_warm([*launcher, str(Path(__file__)), str(file)], cwd=folder, timeout_s=900)
    assert done.returncode == 0, done.stdout + done.stderr
    codes = [json.loads(Path(f"{file}.{rank}").read_text()) for rank in range(num_ranks)]
    assert all(others == codes[0] for others in codes), done.stdout + done.stderr
    return codes[0]


def run_lines(file: Path) -> None:
    """Run all lines on this rank and write their exit codes beside the file."""
    import torch.distributed as dist

    from trainer.cli import main

    begin = dist.init_process_group

    def begin_once(*arguments: Any, **options: Any) -> None:
        if not dist.is_initialized():
            begin(*arguments, **options)

    # One group for all lines: DeepSpeed keeps the first one it sees.
    dist.init_process_group, dist.destroy_process_group = begin_once, lambda group=None: None
    codes = []
    for line in json.loads(file.read_text()):
        os.chdir(line["directory"])
        codes.append(main(line["words"]))
        dist.barrier()
    Path(f"{file}.{dist.get_rank()}").write_text(json.dumps(codes))
    os._exit(0)


if __name__ == "__main__":
    run_lines(Path(sys.argv[1]))
