"""The files of a scaling study: every sample as JSON, a plot, and a page."""

from __future__ import annotations

import base64
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trainer.bench.plot import draw
from trainer.bench.result import UNITS, Result, rows_of
from trainer.errors import UserError
from trainer.run.files import write_json, write_text


def write_result(result: Result, out: Path) -> None:
    """Write result.json, scaling.png and index.html into a folder. Raises: UserError: it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "result.json", asdict(result))
        draw(result, out / "scaling.png")
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).with_name("assets")), undefined=StrictUndefined, autoescape=True
        )
        picture = base64.b64encode((out / "scaling.png").read_bytes()).decode()
        page = environment.get_template("scaling.html").render(
            result=result, picture=picture, rows=rows_of(result), unit=UNITS[result.kind]
        )
        write_text(out / "index.html", page)
    except OSError as error:
        raise UserError(f"out={out}: cannot be written ({error.strerror})") from error
