"""A Beam YAML pipeline from a file, built with this package's steps; errors name the line."""

from __future__ import annotations

import datetime
import os
import re
import traceback
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam
import jinja2
import yaml
from apache_beam.io.filesystems import FileSystems
from apache_beam.yaml import yaml_provider, yaml_transform
from jinja2.sandbox import SandboxedEnvironment

from beam_llm.errors import LLMError, UsageError
from beam_llm.fronts.yaml import PROVIDERS_FILE
from beam_llm.prompting.sandbox import BoundedEnvironment, render_bounded

_JINJA_HINT = (
    "Beam runs the file through Jinja2 first: write a prompt's own braces as "
    "{% raw %}{{ field }}{% endraw %}"
)


class YamlPipeline(NamedTuple):
    """A file as Beam's YAML reads it.

    Attributes:
      path: of the file.
      spec: its mapping, with line numbers.
      lines_before: lines of comments at its top, which Beam removes before it counts.
    """

    path: str
    spec: Any
    lines_before: int

    @property
    def options(self) -> dict[str, Any]:
        """The pipeline options that the file gives."""
        given = yaml_transform.SafeLineLoader.strip_metadata(self.spec.get("options") or {})
        if not isinstance(given, dict):
            raise UsageError(f"{self._name}: options is not a mapping: write options: {{name: 1}}")
        return {str(name): value for name, value in given.items()}

    @property
    def _name(self) -> str:
        return os.path.basename(self.path)

    def expand(self, pipeline: Any) -> None:
        """Builds the file's steps into a pipeline.

        Raises:
          UsageError: with whatever is wrong with them, and its line.
        """
        try:
            own_steps = yaml_provider.merge_providers(
                yaml_provider.parse_providers(self.path, [{"include": PROVIDERS_FILE}])
            )
            yaml_transform.expand_pipeline(
                pipeline, self.spec, providers=own_steps, pipeline_path=self.path
            )
        except Exception as error:  # whatever Beam, its providers and their steps raise
            raise UsageError(
                with_line(self._name, _message_with_cause(error), self.lines_before)
            ) from error


def read_yaml(path: str, text: str) -> YamlPipeline:
    """The pipeline that a file's text describes.

    Raises:
      UsageError: it is not Jinja2, not YAML, or not a pipeline.
    """
    name = os.path.basename(path)
    lines_before = _comment_lines(text)
    folder = os.path.dirname(path) or "."
    # So that a file can include this package's steps wherever it is installed.
    known = {"beam_llm": PROVIDERS_FILE}
    try:
        expanded = _render_file(text, known, folder)
        _refuse_amplified(name, yaml.compose(expanded, Loader=yaml.SafeLoader), lines_before)
        # Only now that aliases are counted, since this loader copies what they stand for.
        spec = yaml.load(expanded, Loader=yaml_transform.SafeLineLoader)
    except jinja2.TemplateSyntaxError as error:
        where = f"{name}:{error.lineno + lines_before}"
        raise UsageError(f"{where}: {error.message}; {_JINJA_HINT}") from None
    except jinja2.exceptions.SecurityError as error:
        where = f"{name}{_template_line(error, lines_before)}"
        raise UsageError(f"{where}: its Jinja2 is not run: {error}") from None
    except jinja2.TemplateError as error:
        where = f"{name}{_template_line(error, lines_before)}"
        raise UsageError(f"{where}: {error}; {_JINJA_HINT}") from None
    except yaml.YAMLError as error:
        where = f"{name}{_line_of(error, expanded, lines_before)}"
        raise UsageError(f"{where}: not YAML: {_problem_text(error)}") from None
    except RecursionError:
        raise UsageError(f"{name}: nested too deeply: write it flatter") from None
    except UsageError:
        raise
    except Exception as error:  # a template's own arithmetic, an odd date, a key that is a list
        where = f"{name}{_template_line(error, lines_before)}"
        raise UsageError(f"{where}: {type(error).__name__}: {_problem_text(error)}") from None
    if not isinstance(spec, dict) or not isinstance(spec.get("pipeline"), (dict, list)):
        raise UsageError(
            f"{name}: there is no pipeline in it: write pipeline: {{type: chain, transforms: […]}}"
        )
    return YamlPipeline(path, spec, lines_before)


class _FileEnvironment(BoundedEnvironment):
    """A bounded environment, since a file may be somebody else's. Unlike a prompt, a file may
    change its own lists."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return SandboxedEnvironment.is_safe_attribute(self, obj, attr, value)


def _render_file(text: str, variables: dict[str, Any], folder: str) -> str:
    """The file after Jinja2: the result of `yaml_transform.expand_jinja`, which has no bounds."""
    environment = _FileEnvironment(
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(partial(_read_included, folder)),
    )
    template = environment.from_string(_without_comments(text))
    return render_bounded(template.generate, datetime=datetime, **variables)


def _read_included(folder: str, name: str) -> str | None:
    """A file that another one includes: from the working directory, the other file's folder, or
    Beam's package."""
    beams = os.path.dirname(os.path.dirname(beam.__file__))
    for place in (name, *(os.path.join(root, name) for root in (folder, beams))):
        if FileSystems.exists(place):
            with FileSystems.open(place) as file:
                return _without_comments(file.read().decode())
    return None


def _template_line(error: Exception, lines_before: int) -> str:
    """`:3`, the line at which the file's Jinja2 failed; empty where it was not the Jinja2."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == "<template>":  # Jinja2's name for the file
            return f":{line + lines_before}"
    return ""


def _line_of(error: yaml.YAMLError, text: str, lines_before: int) -> str:
    """`:3`, the line of a YAML error; empty where the error doesn't tell."""
    position = getattr(error, "position", None)  # of a character that YAML refuses
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if position is not None:
        line = text.count("\n", 0, position)
    elif mark is not None:
        line = mark.line
    else:
        return ""
    # Lines are counted from 0, without the comments that Beam has removed.
    return f":{line + 1 + lines_before}"


MOST_NODES = 100_000
"""The most values in a file, including those that its aliases stand for: Beam's loader copies each.
"""


def _refuse_amplified(name: str, root: Any, lines_before: int) -> None:
    """Refuses aliases of aliases: with them a file of a few lines can stand for more than any
    memory holds.

    Raises:
      UsageError: there are too many values, or one contains itself.
    """
    sizes: dict[int, int] = {}

    def size_of(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST_NODES  # until it is known: the node may contain itself
            pairs = node.value if isinstance(node, yaml.CollectionNode) else ()
            inner = (one for pair in pairs for one in (pair if type(pair) is tuple else (pair,)))
            sizes[id(node)] = 1 + sum(map(size_of, inner))
            if sizes[id(node)] > MOST_NODES:
                where = f"{name}:{node.start_mark.line + 1 + lines_before}"
                raise UsageError(
                    f"{where}: this stands for more than {MOST_NODES:,} values, or for itself: "
                    "write it without aliases (*name)"
                )
        return sizes[id(node)]

    if root is not None:
        size_of(root)


def _comment_lines(text: str) -> int:
    """How many lines of comments and blanks Beam removes at the top."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.strip() and not line.strip().startswith("#"):
            return number
    return len(lines)


def _without_comments(text: str) -> str:
    return "".join(text.splitlines(keepends=True)[_comment_lines(text) :])


def _problem_text(error: BaseException) -> str:
    text = " ".join(str(getattr(error, "problem", None) or error).split())
    return text[:300]


def _message_with_cause(error: BaseException) -> str:
    """Beam's message, with that of one of this package's steps where Beam's hides it."""
    text = " ".join(str(error).split())
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LLMError) and str(cause)[:60] not in text:
            text = f"{text} ({' '.join(str(cause).split())})"
        cause = cause.__cause__ or cause.__context__
    return text[:1000] or type(error).__name__


_LINE = re.compile(r"\bline (\d+)")
_WRAPPED = re.compile(
    r"^(?:Invalid transform specification at|Error applying transform) (.*?) ?at line \d+: "
)
# What jsonschema adds to its first sentence: the complete rule, and the value that breaks it.
_SCHEMA = re.compile(r" (?:around line \d+ )?Failed validating .*? On instance(\S*?): .*")

# What Beam's loader puts into each mapping.
_OWN_KEYS = re.compile(r"(?:, )?'__line__': \d+(?:, '__uuid__': '[^']*')?")


def with_line(name: str, text: str, lines_before: int) -> str:
    """`pipeline.yaml:7: "Label": batch_size is …`, with lines as the file has them."""
    text = _LINE.sub(lambda found: f"line {int(found[1]) + lines_before}", text)
    found = _LINE.search(text)
    where = f"{name}:{found[1]}" if found else name
    text = _OWN_KEYS.sub("", _SCHEMA.sub(r" (at \1)", text))
    short = _WRAPPED.sub(lambda match: f"{match[1]}: " if match[1] else "", text)
    return f"{where}: {short}"
