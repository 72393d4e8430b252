"""Pages of the notebooks, with the outputs that they keep."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from repository import COOKBOOKS, ROOT


def notebook_pages() -> Iterator[tuple[str, str]]:
    """Places on the site and contents of all notebooks."""
    for script in COOKBOOKS:
        path = ROOT / "notebooks" / f"{script.stem}.ipynb"
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        note = f"*This page is `notebooks/{path.name}`, executed by the tests of the project.*"
        parts = [_cell(cell) for cell in cells]
        parts.insert(1, note)
        yield f"notebooks/{script.stem}.md", "\n\n".join(filter(None, parts)) + "\n"


def _cell(cell: Mapping[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    outputs = [_output(output) for output in cell["outputs"]]
    return "\n\n".join([f"```python\n{source}\n```", *filter(None, outputs)])


def _output(output: Mapping[str, Any]) -> str:
    """What a cell printed, or its picture."""
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text']).rstrip()}\n```"
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join(data["image/png"].split())
        return f"![Output of the cell](data:image/png;base64,{picture})"
    return ""
