"""The pages of `predict --report` and `beam-llm report`: what they say, that nothing in them is
anybody else's HTML, and that they can be looked at.
"""

from __future__ import annotations

import html.parser
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_llm.cli.main import main
from beam_llm.cli.reporting.call_log import MOST_SLOTS, CallLog
from beam_llm.cli.reporting.page import (
    Agreement,
    Bar,
    Chart,
    ErrorKind,
    Example,
    Figure,
    Page,
    Span,
    Table,
)
from beam_llm.cli.reporting.render import html as rendered
from beam_llm.prompting.agreement import Share
from beam_llm.testing import Emulator, Fault, plugin
from tests.conftest import component

llm_emulator, start_emulator = plugin.llm_emulator, plugin.start_emulator

EVIL = "</code><script>alert(1)</script>\u202e\x1b[31m<img src=//evil.example/x>"
MOODS = "enum:positive|negative|neutral"
TEXTS = ("wonderful, excellent", "terrible, awful", "it has a screen")
VOID = {"meta", "br", "rect", "line", "circle"}


class Outline(html.parser.HTMLParser):
    """Elements, attributes and texts of a page; fails where an element isn't closed."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += f"{data}\n"


def written(folder: Path, count: int = 60) -> str:
    path = folder / "in.jsonl"
    moods = ("positive", "negative", "neutral")
    rows = [
        {"text": f"{TEXTS[n % 3]} {n}", "label": moods[n % 3], "note": EVIL} for n in range(count)
    ]
    rows.append({"text": f"poisoned {EVIL} secret-of-a-record", "label": "neutral", "note": ""})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


QUESTION = [
    *("--model", "openai:gpt-4.1-mini", "--prompt", "Mood of: {{ text }}", "--output-type", MOODS),
    *("--batch-size", "10", "--quiet"),
]


def run(folder: Path, *arguments: Any, mode: str = "online") -> str:
    batch = ["--mode", "batch_api", "--staging", str(folder / "st"), "--poll-seconds", "0.05"]
    more = batch if mode == "batch_api" else []
    page = folder / f"{mode}.html"
    command = ["predict", written(folder), "--output", str(folder / f"{mode}.jsonl")]
    assert main([*command, "--report", str(page), *QUESTION, *more, *map(str, arguments)]) == 3
    return page.read_text(encoding="utf-8")


# --- what a page says


@pytest.mark.parametrize("mode", ["online", "batch_api"])
def test_a_run_can_be_looked_at_afterwards(
    tmp_path: Path, emulator_with: Callable[..., Emulator], mode: str
) -> None:
    emulator_with(faults=[Fault("poison", text="poisoned"), Fault("prose")])
    page = run(tmp_path, "--truth", "label", mode=mode)
    found = Outline(page)
    for words in (
        "61 records, openai:gpt-4.1-mini",
        "saved: one by one",
        "tokens and cost",
        "refused",
        "in.jsonl:61",
        "Right answers, by the field label",
        "env:OPENAI_API_KEY",
        "apache-beam",
        "Mood of: {{ text }}",
        "with other text around the JSON",
    ):
        assert words in found.text, words
    if mode == "batch_api":
        assert "saved: live" in found.text
        assert "Jobs" in found.text
    else:
        assert "Calls over time" in found.text
        assert "Latency of calls" in found.text


def test_what_others_wrote_is_text_on_the_page_and_nothing_else(
    tmp_path: Path, emulator_with: Callable[..., Emulator]
) -> None:
    emulator_with(faults=[Fault("poison", text="poisoned")])
    page = run(tmp_path)
    found = Outline(page)
    assert "<script>alert(1)</script>" in found.text
    assert not {"script", "img", "link", "iframe", "object", "a"} & set(found.elements)
    assert not {"\x1b", "\u202e"} & set(page)
    assert "emulator-key" not in page


def test_a_page_asks_nobody_for_anything(
    tmp_path: Path, emulator_with: Callable[..., Emulator]
) -> None:
    emulator_with(faults=[Fault("poison", text="poisoned")])
    found = Outline(run(tmp_path))
    names = {name for name, _ in found.attributes}
    assert not {"src", "href", "srcset", "action", "onclick", "onload"} & names
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in found.attributes


def test_redacted_a_page_shows_no_text_of_a_record_or_a_prompt(
    tmp_path: Path, emulator_with: Callable[..., Emulator]
) -> None:
    emulator_with(faults=[Fault("poison", text="poisoned")])
    found = Outline(run(tmp_path, "--redact"))
    assert "secret-of-a-record" not in found.text
    assert "Mood of" not in found.text
    assert "refused" in found.text


def test_three_examples_of_each_kind_are_shown_and_shortened(
    tmp_path: Path, emulator_with: Callable[..., Emulator]
) -> None:
    emulator_with(faults=[Fault("poison", text="awful")])
    found = Outline(run(tmp_path, "--batch-size", 1))
    assert found.text.count("in.jsonl:") == 3
    assert "secret-of-a-record" not in found.text  # beyond the third


def test_the_jobs_of_a_staging_location_can_be_looked_at_later(
    tmp_path: Path, emulator_with: Callable[..., Emulator], capsys: pytest.CaptureFixture[str]
) -> None:
    emulator_with(faults=[Fault("poison", text="poisoned"), Fault("prose")])
    run(tmp_path, mode="batch_api")
    page = tmp_path / "staging.html"
    assert main(["report", "--staging", str(tmp_path / "st"), "--report", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    found = Outline(page.read_text(encoding="utf-8"))
    for words in ("batch job", "60 answered", "saved: live", "openai:gpt-4.1-mini", "refused"):
        assert words in found.text, words


@pytest.mark.parametrize(
    ("page", "words"),
    [
        pytest.param("folder", "is a folder", id="a folder"),
        pytest.param("no/such/page.html", "there is no folder", id="no folder"),
        pytest.param("gs://bucket/page.html", "name a local file", id="remote"),
        pytest.param("mine.html", "is not a report of beam-llm", id="somebody's file"),
    ],
)
def test_where_no_page_can_be_is_told_before_anything_is_paid(
    tmp_path: Path,
    llm_emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    page: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "mine.html").write_text("my own")
    command = ["predict", written(tmp_path), "--output", "out.jsonl", "--report", page, *QUESTION]
    assert main(command) == 2
    assert words in capsys.readouterr().err
    assert llm_emulator.calls == 0
    assert (tmp_path / "mine.html").read_text() == "my own"


def test_a_report_of_ours_is_replaced(tmp_path: Path, llm_emulator: Emulator) -> None:
    command = ["predict", written(tmp_path), "--output", str(tmp_path / "out.jsonl"), "--force"]
    page = tmp_path / "page.html"
    for _ in range(2):
        assert main([*command, "--report", str(page), *QUESTION]) == 0
    assert page.read_text().count("<html") == 1


def test_the_summary_says_how_many_answers_are_right(
    tmp_path: Path, emulator_with: Callable[..., Emulator]
) -> None:
    emulator_with(faults=[Fault("poison", text="poisoned")])
    run(tmp_path, "--truth", "label", "--summary", tmp_path / "s.json")
    truth = json.loads((tmp_path / "s.json").read_text())["truth"]
    assert truth["compared"] == 61
    assert 0 < truth["low"] < truth["rate"] <= truth["high"] <= 1


# --- any data


SUM = "{{ 91193 * 97 }}"
texts = st.text(max_size=20) | st.sampled_from([EVIL, "'\"><b>", SUM, "\ud800", "&amp;"])
times = st.floats(0, 2e9)
pages = st.builds(
    Page,
    title=texts,
    subtitle=texts,
    headline=st.lists(st.builds(Figure, texts, texts, texts, st.sampled_from(["", "bad"]))),
    charts=st.lists(
        st.builds(
            Chart,
            texts,
            st.lists(st.builds(Bar, st.floats(0, 1e9), texts, st.floats(0, 1e9)), max_size=5),
            st.lists(texts, max_size=4),
            texts,
            texts,
        ),
        max_size=2,
    ),
    tables=st.lists(
        st.builds(Table, texts, st.just(("a", "b")), st.lists(st.tuples(texts, texts), max_size=3)),
        max_size=2,
    ),
    warnings=st.lists(texts, max_size=3),
    errors=st.lists(
        st.builds(
            ErrorKind,
            texts,
            st.integers(0, 9),
            texts,
            st.lists(st.builds(Example, texts, texts, texts), max_size=2),
        ),
        max_size=2,
    ),
    jobs=st.lists(
        st.builds(
            Span,
            texts,
            times,
            st.none() | times,
            st.none() | times,
            st.sampled_from(["done", "failed", "open"]),
            texts,
        ),
        max_size=4,
    ),
    agreement=st.lists(
        st.builds(Agreement, texts, st.sampled_from([Share(0, 0), Share(1, 2), Share(5, 5)])),
        max_size=2,
    ),
    settings=st.lists(st.tuples(texts, texts), max_size=3),
    versions=st.lists(st.tuples(texts, texts), max_size=3),
    now=times,
    notes=st.lists(texts, max_size=2),
)
OURS = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "h1", "h2", "p", "ul"),
    *("section", "div", "span", "b", "li", "table", "thead", "tbody", "tr", "th", "td", "svg"),
    *("g", "rect", "text", "line", "circle", "details", "summary", "code", "br", "dl", "dt", "dd"),
}


@given(pages)
@settings(max_examples=40)
def test_whatever_stands_in_a_page_it_is_a_page_of_our_elements(page: Page) -> None:
    drawn = rendered(page)
    assert set(Outline(drawn).elements) <= OURS
    drawn.encode("utf-8")
    assert "8845721" not in drawn, "a text was taken for a template"


# --- calls over time


def answered(log: CallLog, calls: int = 1, **facts: Any) -> None:
    usual = {"records": 10, "errors": 0, "requests": calls, "retries": 0, "latency_ms": [200]}
    log.hear("answered", {**usual, **facts})


def test_calls_are_counted_where_they_fall_and_time_gets_coarser_as_it_gets_long() -> None:
    now = [100.0]
    log = CallLog(lambda: now[0])
    for second in range(1000):
        now[0] = 100.0 + second
        answered(log)
    seconds, slots = log.series()
    assert seconds == 8
    assert len(slots) <= MOST_SLOTS
    assert sum(slot.calls for slot in slots) == 1000
    assert {slot.calls for slot in slots} == {8}


def test_a_long_pause_costs_no_memory() -> None:
    now = [0.0]
    log = CallLog(lambda: now[0])
    answered(log)
    now[0] = 86_400.0 * 30
    answered(log)
    _, slots = log.series()
    assert len(slots) <= MOST_SLOTS
    assert sum(slot.calls for slot in slots) == 2


@pytest.mark.parametrize(("part", "latency"), [(0.5, 200), (0.95, 1000), (0.99, 1000)])
def test_percentiles_are_right_to_a_tenth(part: float, latency: float) -> None:
    log = CallLog()
    answered(log, latency_ms=[200] * 90 + [1000] * 10)
    assert log.percentile(part) == pytest.approx(latency, rel=0.1)
    assert CallLog().percentile(part) is None


# --- looked at


def test_a_page_is_whole_and_readable_on_a_telephone_and_a_wide_screen_by_day_and_by_night(
    tmp_path: Path, emulator_with: Callable[..., Emulator]
) -> None:
    from tests.components.chromium import chromium_binary, looks_at

    component("chromium", chromium_binary)
    emulator_with(faults=[Fault("poison", text="poisoned"), Fault("prose")])
    names = [tmp_path / f"{mode}.html" for mode in ("online", "batch_api")]
    for path in names:
        run(tmp_path, "--truth", "label", mode=path.stem)
    shown = [(p, w, s) for p in names for w in (400, 1400) for s in ("light", "dark")]
    looks = looks_at(shown, _MEASURED, tmp_path)
    for (path, width, scheme), look in zip(shown, looks, strict=True):
        assert look.requests == (path.as_uri(),)
        assert look.complaints == ()
        assert look.facts["width"] <= width, look.facts["widest"]
        assert look.facts["outside"] == []
        assert (look.facts["paper"] < 100) == (scheme == "dark")
        assert look.facts["contrast"] >= 4.5
        assert look.png.startswith(b"\x89PNG")


_MEASURED = """(() => {
  const numbers = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = colour => { const [r, g, b] = numbers(colour).map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const contrast = (one, other) => { const [a, b] = [light(one), light(other)];
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); };
  const style = (name, what) => getComputedStyle(document.querySelector(name))[what];
  const card = style('.card', 'backgroundColor');
  const cards = [...document.querySelectorAll('.card')];
  const outside = cards.flatMap(c => [...c.querySelectorAll('h2, p, b, dd, li, svg')]
    .filter(e => !e.closest('.scroll') && !e.closest('details:not([open])'))
    .filter(e => e.getBoundingClientRect().right > c.getBoundingClientRect().right + 1)
    .map(e => e.textContent.slice(0, 40)));
  return {
    width: document.documentElement.scrollWidth, outside,
    widest: [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll'))
      .map(e => [e.getBoundingClientRect().right, e.tagName, e.textContent.slice(0, 40)])
      .reduce((one, other) => other[0] > one[0] ? other : one),
    paper: numbers(style('body', 'backgroundColor'))[0],
    contrast: Math.min(contrast(style('body', 'color'), card), contrast(style('.soft', 'color'), card),
      ...[...document.querySelectorAll('b.good, b.bad')].map(e => contrast(getComputedStyle(e).color, card))),
  };
})()"""
