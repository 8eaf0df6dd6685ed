"""The documentation is rendered by the command that pipelines/README.md names, without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.components import python_path

pytest.importorskip("pdoc", reason="needs the extra test")
from tests.docs import PUBLIC

ROOT = Path(__file__).parent.parent
RECIPES = (ROOT / "pipelines" / "README.md").read_text(encoding="utf-8")


def test_every_public_module_has_a_page_and_the_recipes_are_on_one(tmp_path: Path):
    (command,) = re.findall(r"`(python -m tests\.docs) build/docs`", RECIPES)
    environment = {"PYTHONPATH": python_path(), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *command.split()[1:], str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for name in PUBLIC:
        page = tmp_path / f"{name.replace('.', '/')}.html"
        assert "<h1" in page.read_text(encoding="utf-8"), name
    recipes = (tmp_path / "pipelines.html").read_text(encoding="utf-8")
    for heading in re.findall(r"^## (.+)$", RECIPES, re.MULTILINE):
        assert f'id="{heading.lower().replace(" ", "-").replace(",", "")}"' in recipes, heading
    first = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'id="a-first-pipeline"' in first
    for anchor in re.findall(r'href="pipelines\.html#([^"]+)"', first):
        assert f'id="{anchor}"' in recipes, anchor
    assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', recipes)


def test_what_is_rendered_is_kept_out_of_the_repository():
    assert "build/" in (ROOT / ".gitignore").read_text().split()
