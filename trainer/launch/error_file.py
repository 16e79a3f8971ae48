"""The file in which a rank reports its error to torch's elastic agent."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "TORCHELASTIC_ERROR_FILE"


def record_error(error: BaseException) -> None:
    """Write the error file, whole or not at all. The process should end after it.

    torch writes in place. The agent ends the other ranks as soon as one has failed, and fails itself on the empty file
    of a rank that was killed while it wrote.
    """
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    file = os.environ.get(VARIABLE)
    if file is None:
        return
    partial = f"{file}.partial"
    os.environ[VARIABLE] = partial
    get_error_handler().record_exception(error)
    os.environ[VARIABLE] = file
    Path(partial).replace(file)
