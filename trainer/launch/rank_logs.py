"""Log files of the ranks."""

from __future__ import annotations

import logging
import os
import sys
from io import TextIOWrapper
from pathlib import Path

from trainer.run.files import LOGS_DIR, open_plain
from trainer.world import World

LOG_FLAGS = os.O_WRONLY | os.O_APPEND


class RankLog(logging.FileHandler):
    """The log of a rank; a class of its own distinguishes it from handlers of a script that calls the trainer."""

    def _open(self) -> TextIOWrapper:
        """As logging's, but a symbolic link is not followed."""
        descriptor = open_plain(Path(self.baseFilename), LOG_FLAGS | os.O_CREAT)
        return TextIOWrapper(os.fdopen(descriptor, "ab", buffering=0), encoding="utf-8", write_through=True)


def set_up_rank_logs(run_dir: Path, world: World) -> None:
    """Log to this rank's own file; on all ranks but rank 0, redirect stdout and stderr there too."""
    path = run_dir / LOGS_DIR / f"rank-{world.rank}.log"
    path.parent.mkdir(exist_ok=True)
    handler = RankLog(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger()
    for old in [h for h in logger.handlers if isinstance(h, RankLog)]:
        logger.removeHandler(old)
        old.close()
    logger.addHandler(handler)
    logging.captureWarnings(True)
    logging.getLogger("trainer").setLevel(logging.INFO)
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        noisy = logging.getLogger(name)
        noisy.handlers.clear()
        noisy.propagate = True
    if world.rank != 0:
        sys.stdout.flush()
        sys.stderr.flush()
        descriptor = open_plain(path, LOG_FLAGS)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
