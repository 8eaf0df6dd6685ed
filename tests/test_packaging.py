"""What is shipped, what the repository holds, and what the documents say of it."""

from __future__ import annotations

import email
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import beam_llm

ROOT = Path(__file__).parent.parent
SOURCES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "beam_llm").rglob("*.py")}
DATA = {
    "beam_llm/py.typed",
    "beam_llm/cli/reporting/page.html",
    "beam_llm/fronts/providers.yaml",
    *(
        f"beam_llm/testing/data/{name}"
        for name in ("LICENSE.reviews.txt", "README.md", "reviews.jsonl")
    ),
}


SAMPLE = "from importlib.resources import files; print(len((files('beam_llm.testing') / 'data/reviews.jsonl').read_bytes().splitlines()))"


def run(*command: object, cwd: Path = ROOT) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist, and the wheel that is made from it, as an index would serve them."""
    folder = tmp_path_factory.mktemp("dist")
    checkout = folder / "checkout"
    shutil.copytree(
        ROOT / "beam_llm", checkout / "beam_llm", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    run(
        sys.executable,
        "-c",
        f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})",
        cwd=checkout,
    )
    (sdist,) = folder.glob("*.tar.gz")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, sdist)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def test_the_sdist_holds_the_package_and_what_builds_it(built):
    with tarfile.open(built[0]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    own = {name for name in names if not name.startswith("beam_llm.egg-info/")}
    assert own == {
        *SOURCES,
        *DATA,
        "pyproject.toml",
        "setup.py",
        "setup.cfg",
        "README.md",
        "LICENSE",
        "PKG-INFO",
    }


def test_the_wheel_holds_the_package_its_licences_and_its_types(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
        metadata = email.message_from_bytes(
            wheel.read(next(name for name in names if name.endswith("/METADATA")))
        )
    assert {name for name in names if ".dist-info/" not in name} == {*SOURCES, *DATA}
    assert any(name.endswith("LICENSE") for name in names)
    assert (metadata["Name"], metadata["Version"]) == ("beam-llm", beam_llm.__version__)
    assert "Apache-2.0" in (metadata["License"] or "") + (metadata["License-Expression"] or "")
    assert metadata["Requires-Python"]


def test_the_wheel_works_where_there_is_no_checkout(built, tmp_path):
    """A fresh environment that has the dependencies; the package itself comes from the wheel."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    (packages,) = home.glob("lib/python*/site-packages")
    python = home / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-compile",
        built[1],
    )
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    loaded = run(
        python,
        "-c",
        "import sys, beam_llm; print(beam_llm.__file__); print(*sys.modules)",
        cwd=tmp_path,
    )
    where, modules = loaded.strip().split("\n")
    assert Path(where).is_relative_to(packages)
    assert not {"apache_beam", "openai", "genai_prices", "aiohttp"} & set(modules.split())
    assert run(home / "bin" / "beam-llm", "--help", cwd=tmp_path) == run(
        python, "-m", "beam_llm", "--help", cwd=tmp_path
    )
    assert int(run(python, "-c", SAMPLE, cwd=tmp_path)) >= 2000


# The repository
# -------------------------------------------------------------------------------------------------------

AT_THE_TOP = {
    ".ci", ".gitignore", "CHANGELOG.md", "LICENSE", "README.md", "beam_llm", "pipelines", "pyproject.toml", "setup.py", "tests",
}  # fmt: skip


PLACES = re.compile(r"(?<![\w.:}-])/(?:home|Users)/\w+/")


@pytest.fixture(scope="module")
def tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    return [
        ROOT / name
        for name in run("git", "ls-files", "-z").split("\0")
        if name and (ROOT / name).exists()
    ]


@pytest.mark.parametrize("text", ["see /home/someone/x", "'/Users/someone/y'"])
def test_a_place_is_known_when_it_is_seen(text):
    assert PLACES.search(text)


def test_only_what_has_to_is_at_the_top(tracked):
    assert {path.relative_to(ROOT).parts[0] for path in tracked} <= AT_THE_TOP


def test_no_file_names_the_machine_it_was_written_on(tracked):
    texts = {path: path.read_text(errors="replace") for path in tracked if path != Path(__file__)}
    found = {
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path, text in texts.items()
        for match in PLACES.finditer(text)
    }
    assert not found


# The documents
# --------------------------------------------------------------------------------------------------------


def commands_of(text: str) -> list[str]:
    """The command lines of a document's shell blocks, joined where they are continued."""
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.M | re.S)
    return [
        line.removeprefix("$ ").strip()
        for block in blocks
        for line in block.replace("\\\n", " ").split("\n")
        if line.strip()
    ]


def test_the_readmes_test_command_is_the_one_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text().strip().split("\n")[-1]
    said = [
        re.sub(r"\s+", " ", command) for command in commands_of((ROOT / "README.md").read_text())
    ]
    assert any(ci in command for command in said), f"README.md lacks a command with: {ci}"


def test_the_readme_begins_with_one_command_that_installs_and_runs_the_demo():
    first = commands_of((ROOT / "README.md").read_text())[0]
    assert "python3 -m venv" in first
    assert first.endswith("beam-llm demo")


def test_the_version_is_written_in_one_place_only():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "beam_llm.__version__"}


def test_every_dependency_has_a_reason():
    lines = (
        (ROOT / "pyproject.toml")
        .read_text()
        .partition("dependencies = [\n")[2]
        .partition("\n]")[0]
        .split("\n")
    )
    assert [line for line in lines if "#" not in line] == []
