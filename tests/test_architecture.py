"""The import rule of the house, and what importing the package loads."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "beam_llm"

# Lower rooms first. A room may import those below it and never one beside it or above.
LAYERS = [
    {"errors", "leftovers", "provider_table"},
    {"events", "values", "redaction"},
    {"telemetry", "caps"},
    {"config"},
    {"protocols"},
    {"pricing"},
    {"prompting"},
    {"stores"},
    {"ledger"},
    {"planning", "results"},
    {"calls", "jobs", "providers"},
    {"transforms"},
    {"fronts"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
ENTRANCES = {"__init__", "__main__"}

# One process has all of them, and parses each file once.
pytestmark = pytest.mark.xdist_group("architecture")


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def _modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if _room(path) not in ENTRANCES)


def _rooms_used(path: Path) -> set[str]:
    parts = {name.split(".")[1] for name in _imports(path) if name.startswith("beam_llm.")}
    return {part for part in parts if part in LEVEL or part == "testing"} - {_room(path)}


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below_it(path):
    room, used = _room(path), _rooms_used(path)
    if room == "testing":
        assert "cli" not in used
        return
    assert room in LEVEL, f"{room} has no place in the layers: add it to LAYERS"
    allowed_testing = {"testing"} if room == "cli" else set()
    wrong = {
        other
        for other in used - allowed_testing
        if other == "testing" or LEVEL[other] >= LEVEL[room]
    }
    assert not wrong, f"{path.name} imports {sorted(wrong)}"


def test_no_class_of_jobs_is_longer_than_250_lines():
    for path in sorted((PACKAGE / "jobs").glob("*.py")):
        for node in _tree(path).body:
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 250, f"{node.name} in {path.name}"


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_beam_is_imported_by_transforms_and_the_command_line_only_and_sdks_in_their_own_file(path):
    roots = {name.split(".")[0] for name in _imports(path)}
    if _room(path) not in ("transforms", "fronts", "cli"):
        assert "apache_beam" not in roots
    if path.relative_to(PACKAGE).parts[:2] != ("providers", "openai"):
        assert "openai" not in roots


def test_a_store_is_named_by_the_registry_only():
    named = {f"beam_llm.stores.{path.stem}" for path in (PACKAGE / "stores").glob("*.py")} - {
        "beam_llm.stores.__init__"
    }
    for path in _modules():
        if _room(path) != "stores":
            assert not named & _imports(path), (
                f"{path.name} knows one store from another: ask the store"
            )


def test_the_fakes_and_the_emulator_need_no_pytest():
    code = "import sys, beam_llm.testing, beam_llm.testing.fakes, beam_llm.testing.fake_batches; print('pytest' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )


# What only a provider can know
# ─────────────────────────────────────────────────────────────────────────────────────────────────

NEUTRAL = {
    "calls",
    "config",
    "errors",
    "events",
    "jobs",
    "ledger",
    "planning",
    "pricing",
    "prompting",
    "protocols",
    "redaction",
    "results",
    "values",
}
PROVIDER_WORDS = re.compile(
    r"openai|azure|anthropic|\bgpt-|x-ratelimit|retry-after|\bHTTP \d"
    r"|\b(?:validating|in_progress|finalizing|batch_expired|token_limit_exceeded|content_filter|tool_calls|json_object)\b",
    re.IGNORECASE,
)
STATUSES = {
    400,
    401,
    403,
    404,
    408,
    409,
    413,
    422,
    425,
    429,
    498,
    500,
    501,
    502,
    503,
    504,
    524,
    529,
}
LIBRARIES = {"bpe_openai"}


def _neutral_modules() -> list[Path]:
    return [path for path in _modules() if _room(path) in NEUTRAL]


def _docstrings(tree: ast.AST) -> set[int]:
    """Strings that stand alone, and so are read by people only."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


@pytest.mark.parametrize(
    "path", _neutral_modules(), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_word_of_a_provider_stands_outside_of_providers(path):
    tree = _tree(path)
    read_by_people = _docstrings(tree)
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in read_by_people
    }
    texts |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    texts |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {text for text in texts - LIBRARIES if PROVIDER_WORDS.search(text)} == set()


@pytest.mark.parametrize(
    "path", _neutral_modules(), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_nobody_but_a_provider_looks_at_the_number_of_an_http_status(path):
    looked_at = {
        node.value
        for whole in ast.walk(_tree(path))
        if isinstance(whole, ast.Compare) and "status" in ast.unparse(whole)
        for node in ast.walk(whole)
        if isinstance(node, ast.Constant) and type(node.value) is int
    }
    assert looked_at & STATUSES == set()


# Private names in tests
# ─────────────────────────────────────────────────────────────────────────────────────────────────

TESTS = Path(__file__).parent
PUBLIC_ALL_THE_SAME = {"_replace", "_asdict", "_fields", "_make", "_exit"}
"""Of named tuples, and of `os`."""


def _is_private(name: str) -> bool:
    return re.fullmatch(r"_[A-Za-z]\w*", name) is not None and name not in PUBLIC_ALL_THE_SAME


@functools.cache
def _private_names_of_the_package() -> set[str]:
    """Those that its files define, attributes among them."""
    defined: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(_tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                defined.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                defined.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
    return {name for name in defined if _is_private(name)}


def _taken(node: ast.AST) -> list[str]:
    """The private names that a piece of a test takes from elsewhere: by a dot, by an import, or
    written out for `setattr` and its kin. What an object of the test's own does with itself is free.
    """
    if isinstance(node, ast.Attribute):
        owner = node.value
        is_own = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
        return [] if is_own else [node.attr]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        source = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        return [
            part
            for name in (source, *(each.name for each in node.names))
            for part in name.split(".")
        ]
    if isinstance(node, ast.Call) and _last_name(node.func).endswith("attr"):
        written = [each.value for each in node.args if isinstance(each, ast.Constant)]
        return [part for text in written if isinstance(text, str) for part in text.split(".")]
    return []


def _last_name(node: ast.expr) -> str:
    """`setattr` of `monkeypatch.setattr`."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def private_names_taken(source: str, ours: set[str]) -> list[str]:
    """`line: name` for each private name of the package that a test's source takes, and for each of
    others' without a reason on its line.
    """
    lines, found = source.splitlines(), set()
    for node in ast.walk(ast.parse(source)):
        names = [name for name in _taken(node) if _is_private(name)]
        is_import = isinstance(node, (ast.Import, ast.ImportFrom))
        is_of_others = is_import and "beam_llm" not in ast.unparse(node)
        for name in names:
            reason = lines[node.lineno - 1].partition("  # ")[2]
            # Others have some of our names, too; an import says itself whose they are.
            is_said = is_of_others or "Beam's" in reason or "pytest's" in reason
            if not reason or (name in ours and not is_said):
                found.add(f"{node.lineno}: {name}")
    return sorted(found)


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS))
)
def test_a_test_takes_no_private_name(path):
    """Else nobody could change the inside of a class; what a test needs, an author of a provider
    needs, too.
    """
    assert private_names_taken(path.read_text(), _private_names_of_the_package()) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("client._page(1)", ["1: _page"]),
        ("client._page(1)  # a reason is none for what is ours", ["1: _page"]),
        ("client._page = lambda: 1", ["1: _page"]),
        ("super()._page()", ["1: _page"]),
        ("from beam_llm.x import _page", ["1: _page"]),
        ("import beam_llm._page.x", ["1: _page"]),
        ("from theirs import _page  # they have no public name for it", []),
        ("monkeypatch.setattr(client, '_page', 1)", ["1: _page"]),
        ("monkeypatch.setattr('beam_llm.x._page', 1)", ["1: _page"]),
        ("monkeypatch.setattr(Source, '_page', 1)  # Beam's, not ours", []),
        ("beam._theirs", ["1: _theirs"]),
        ("beam._theirs  # Beam has no public name for it", []),
        ("self._page = cls._page = 1", []),
        ("row._replace(a=1), row.__class__, '_page'", []),
    ],
)
def test_a_private_name_is_noticed_however_it_is_taken(source, found):
    assert private_names_taken(source, {"_page"}) == found


_EXAMPLE = re.compile(
    r"(?:class|def|async def|with|from|import|for|while|assert) |[A-Za-z_][\w.\[\]\"]* = |\w+\("
)


def _examples(path: Path) -> list[str]:
    """The blocks of a file's docstrings that begin like Python."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for node in ast.walk(_tree(path)):
        words = (ast.get_docstring(node) or "") if isinstance(node, kinds) else ""
        for block in re.findall(r"(?:^|\n\n)((?: {4}.*\n?|\n(?= {4}))+)", words):
            code = textwrap.dedent(block)
            if _EXAMPLE.match(code) and "─" not in code:  # else it is a drawing
                found.append(code)
    return found


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_an_example_in_a_docstring_is_python(path):
    for example in _examples(path):
        ast.parse(example.replace("…", "..."))


def test_the_examples_in_docstrings_are_found():
    assert len([example for path in _modules() for example in _examples(path)]) >= 15


def test_importing_the_package_loads_no_beam_no_sdk_and_no_price_table():
    # Less what the interpreter starts with: namespace packages such as `google` are in sys.modules
    # from the first line.
    code = "import sys; known = set(sys.modules); import beam_llm; print(*{m.split('.')[0] for m in set(sys.modules) - known})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"apache_beam", "openai", "genai_prices", "aiohttp", "google"} & set(loaded)


def test_naming_the_transform_loads_no_sdk_and_no_price_table():
    code = "import sys, beam_llm; beam_llm.LLMPredict; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "apache_beam" in loaded
    assert not {"openai", "genai_prices"} & set(loaded)


def test_building_a_pipeline_step_waits_for_no_http_client():
    code = (
        "import sys, unittest.mock, beam_llm, beam_llm.transforms.front_door as front_door\n"
        "with unittest.mock.patch.object(front_door, 'preload'):\n"
        "    beam_llm.LLMPredict('openai:m', 'Label: {{ text }}')\n"
        "print('aiohttp' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )


def test_the_http_client_is_there_soon_after_a_pipeline_step_was_built():
    code = (
        "import sys, threading, beam_llm; beam_llm.LLMPredict('openai:m', 'Label: {{ text }}');"
        " [thread.join() for thread in threading.enumerate() if thread.name == 'beam-llm-preload']; print('aiohttp' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "True\n"
    )


# Tables of contents
# ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "package",
    ["calls", "cli", "fronts", "jobs", "ledger", "prompting", "stores", "testing", "transforms"],
)
def test_a_room_says_what_each_of_its_modules_is(package):
    for entrance in (PACKAGE / package).rglob("__init__.py"):
        if entrance.parent.name == "commands":  # a file for each command, as it says
            continue
        contents = ast.get_docstring(_tree(entrance)) or ""
        modules = {path.stem for path in entrance.parent.glob("[a-z]*.py")}
        packages = {path.parent.name for path in entrance.parent.glob("[a-z]*/__init__.py")}
        unnamed = {name for name in modules | packages if not re.search(rf"\b{name}\b", contents)}
        assert not unnamed, f"{entrance.parent}: {sorted(unnamed)}"
