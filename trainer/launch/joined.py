"""Ranks that torchrun or srun has started: they compare their configurations and share one run."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.collectives import all_gather_json, decide_on_rank_0
from trainer.config.schema import Config
from trainer.errors import EXIT_STOPPED, RankFailure, UserError
from trainer.faults.signals import create_failure_file, remove_stop_file, stop_requested
from trainer.launch.error_file import record_error
from trainer.launch.peers import is_network_error
from trainer.run.directory import Run, open_run
from trainer.world import World


@contextmanager
def reported_to_agent(world: World) -> Iterator[None]:
    """Write a failure to the file that torch's elastic agent reads; after a stop request it counts as stopped."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().initialize()
    if world.launcher == "torchrun":
        # Left by earlier ranks, which stopped because a node joined or left.
        remove_stop_file()
    try:
        yield
    except Exception as error:
        if stop_requested():
            sys.exit(EXIT_STOPPED)
        record_error(error)
        # A rank that has lost a peer says nothing about why.
        if not isinstance(error, RankFailure) and not is_network_error(error):
            create_failure_file()
        raise


def open_shared_run(config: Config, mapping: Mapping[str, Any]) -> tuple[Path, Run | None]:
    """Rank 0 opens the run and broadcasts its directory. Called on all ranks, inside the process group.

    Returns: (run directory, the open run on rank 0 and None elsewhere).
    Raises: UserError: the ranks composed different configurations, or rank 0 could not open the run.
    """
    _compare_configurations(mapping)
    run: Run | None = None

    def open_here() -> str:
        nonlocal run
        run = open_run(config, mapping)
        return str(run.directory)

    return Path(decide_on_rank_0(open_here)), run


def _compare_configurations(mapping: Mapping[str, Any]) -> None:
    """Ranks that were started with different commands would train different experiments as one."""
    # The same network may have another name on each node.
    shared = {**mapping, "launch": {**mapping["launch"], "interface": None}}
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()
    digests = all_gather_json(digest)
    different = [str(rank) for rank, other in enumerate(digests) if other != digests[0]]
    if different:
        ranks = f"rank {different[0]}" if len(different) == 1 else f"ranks {', '.join(different)}"
        raise UserError(
            f"{ranks} composed another configuration than rank 0",
            "start every rank with the same command, the same code and the same environment variables",
        )
