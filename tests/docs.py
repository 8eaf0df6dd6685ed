"""`python -m tests.docs [FOLDER]`: renders the documentation as pages to look at: README.md, the
recipes of pipelines/README.md, and the docstrings of what others may build on (default: build/docs,
which git ignores).

Needs `pip install -e '.[test]'`. Whatever pdoc warns of ends it, such as a name that is not there.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
import warnings
from pathlib import Path

import pdoc

import beam_llm

PUBLIC = (
    *("beam_llm", "beam_llm.config", "beam_llm.errors", "beam_llm.values", "beam_llm.protocols"),
    *("beam_llm.events", "beam_llm.pricing", "beam_llm.provider_table", "beam_llm.stores"),
    *("beam_llm.transforms.predict", "beam_llm.transforms.preview", "beam_llm.fronts.yaml"),
    *("beam_llm.testing", "beam_llm.testing.plugin", "beam_llm.testing.contracts.stores"),
    *("beam_llm.testing.contracts.completions", "beam_llm.testing.contracts.batches"),
    "pipelines",
)
"""What others build on: all else is ours to change."""


def render(folder: Path) -> None:
    """Writes the pages."""
    # Looked up when they are first used, which pdoc doesn't: see `beam_llm.__getattr__`.
    for name in beam_llm.__all__:
        vars(beam_llm)[name] = getattr(beam_llm, name)
    for name in PUBLIC:
        _resolve_annotations(importlib.import_module(name))
    pdoc.render.configure(docformat="google", footer_text=f"beam-llm {beam_llm.__version__}")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"pdoc\.")
        pdoc.pdoc(*PUBLIC, output_directory=folder)
    _fill_first_page(folder / "index.html")


def _fill_first_page(index: Path) -> None:
    """README on the page that opens first, which pdoc leaves empty."""
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    text = pdoc.render_helpers.to_html(readme.replace("](pipelines/README.md", "](pipelines.html"))
    empty = '<main class="pdoc"></main>'
    page = index.read_text(encoding="utf-8")
    assert empty in page
    filled = f'<main class="pdoc"><section class="docstring">{text}</section></main>'
    index.write_text(page.replace(empty, filled), encoding="utf-8")


def _resolve_annotations(module: typing.Any) -> None:
    """pdoc reads a NamedTuple's types where its `__new__` was made, which is no module."""
    for _, found in inspect.getmembers(module, inspect.isclass):
        if issubclass(found, tuple) and hasattr(found, "_fields"):
            found.__new__.__annotations__ = typing.get_type_hints(found)


if __name__ == "__main__":
    render(Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs"))
