"""Write deployments below RUN/deploy: staged beside their place, then renamed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trainer.deploy.container import write_docker, write_kubernetes
from trainer.deploy.hub import write_hub
from trainer.deploy.source import Source
from trainer.deploy.triton import write_triton
from trainer.errors import UserError
from trainer.run.files import replace_folder

DEPLOY_DIR = "deploy"
# Each writes into an empty folder. Raises: UserError: the exports do not fit.
WRITERS: Mapping[str, Callable[[Source, Environment, Path], None]] = {
    "hub": write_hub,
    "triton": write_triton,
    "docker": write_docker,
    "kubernetes": write_kubernetes,
}


def deploy(source: Source, targets: Sequence[str]) -> list[Path]:
    """Write each target. Returns: their folders. Raises: UserError: no export fits, or a file cannot be written."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("assets")),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folders = []
    for target in targets:
        place = source.run_dir / DEPLOY_DIR / target
        staged = place.with_name(f".{target}")
        try:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
            WRITERS[target](source, environment, staged)
            replace_folder(staged, place)
        except OSError as error:
            raise UserError(f"{place}: cannot be written ({error.strerror})") from error
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        folders.append(place)
    return folders
