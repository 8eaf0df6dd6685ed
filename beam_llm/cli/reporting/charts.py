"""Charts as inline SVG, without a script. Horizontal sizes are parts of the width, so that texts
keep their size on a phone and on a wide screen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from markupsafe import Markup

from beam_llm.cli.reporting.page import Chart, Span
from beam_llm.cli.words import duration

_HEIGHT = 150
_ROW = 26


def bars(chart: Chart) -> Markup:
    """Bars side by side, with the highest value and ticks written beside them."""
    most = max((bar.height for bar in chart.bars), default=0.0) or 1.0
    width = 100 / max(len(chart.bars), 1)
    # Markup's `join` and `format` escape what is put in: labels hold what servers and users wrote.
    shapes = Markup().join(
        _bar(number * width, width, bar.height / most, bar.marked / most, bar.label)
        for number, bar in enumerate(chart.bars)
    )
    return _svg(
        _HEIGHT + 40,
        chart.summary,
        Markup('<text x="0" y="12" class="tick">{}</text>').format(chart.most)
        + shapes
        + Markup('<line x1="0" x2="100%" y1="{0}" y2="{0}" class="axis"/>').format(_HEIGHT + 20)
        + _ticks(chart.ticks, _HEIGHT + 36),
    )


def _bar(left: float, width: float, part: float, marked: float, label: str) -> Markup:
    height, red = part * _HEIGHT, min(marked, part) * _HEIGHT
    shape = Markup('<rect x="{:.3f}%" y="{:.1f}" width="{:.3f}%" height="{:.1f}" class="{}"/>')
    gap = width * 0.12
    base = _HEIGHT + 20
    shapes = shape.format(left + gap / 2, base - height, width - gap, height, "bar")
    if red:
        shapes += shape.format(left + gap / 2, base - red, width - gap, red, "bar bad")
    return Markup("<g><title>{}</title>{}</g>").format(label, shapes)


def _ticks(texts: Sequence[str], y: float) -> Markup:
    last = max(len(texts) - 1, 1)
    # In the middle of their ticks, the outer two would be cut off at the edges.
    anchors = ["start", *["middle"] * (len(texts) - 2), "end"] if len(texts) > 1 else ["start"]
    return Markup().join(
        Markup('<text x="{:.2f}%" y="{}" text-anchor="{}" class="tick">{}</text>').format(
            number / last * 100, y, anchor, text
        )
        for number, (text, anchor) in enumerate(zip(texts, anchors, strict=False))
    )


def time_line(jobs: Sequence[Span], now: float) -> Markup:
    """One row per job: waiting to be created, then at the provider, up to its end or to `now`."""
    start = min((job.planned for job in jobs), default=0.0)
    end = max([now if job.ended is None else job.ended for job in jobs], default=start)
    seconds = max(end - start, 1.0)

    def place(at: float) -> float:
        return min(max((at - start) / seconds, 0.0), 1.0) * 100

    rows = Markup().join(
        _row(number, job, place, now if job.ended is None else job.ended)
        for number, job in enumerate(jobs)
    )
    y = len(jobs) * 2 * _ROW
    ticks = [_clock(start)[11:], f"+ {duration(seconds / 2)}", f"+ {duration(seconds)}"]
    what = f"{len(jobs)} jobs from {_clock(start)} on, in all {duration(seconds)}"
    axis = Markup('<line x1="0" x2="100%" y1="{0}" y2="{0}" class="axis"/>').format(y + 2)
    return _svg(y + 22, what, rows + axis + _ticks(ticks, y + 18))


def _row(number: int, job: Span, place: Callable[[float], float], end: float) -> Markup:
    top = number * 2 * _ROW
    created = end if job.created is None else job.created
    shape = Markup('<rect x="{:.3f}%" y="{}" width="{:.3f}%" height="12" rx="2" class="{}"/>')
    first, middle, last = place(job.planned), place(created), place(end)
    shapes = shape.format(first, top + 22, max(middle - first, 0.0), "span waiting")
    # A job that ended at once has to be visible all the same.
    shapes += shape.format(middle, top + 22, max(last - middle, 0.4), f"span {job.state}")
    text = Markup('<text x="0" y="{}" class="row">{}</text>').format(top + 16, job.name)
    return Markup("<g><title>{}</title>{}{}</g>").format(job.label, text, shapes)


def interval(low: float, rate: float, high: float) -> Markup:
    """A share between 0 and 1 on a line, with its confidence interval."""
    what = f"{rate:.3f}, between {low:.3f} and {high:.3f}"
    return _svg(
        16,
        what,
        Markup('<line x1="0" x2="100%" y1="8" y2="8" class="axis"/>')
        + Markup(
            '<rect x="{:.2f}%" y="4" width="{:.2f}%" height="8" rx="2" class="range"/>'
        ).format(low * 100, max(high - low, 0.005) * 100)
        + Markup('<circle cx="{:.2f}%" cy="8" r="4" class="dot"/>').format(rate * 100),
    )


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at)) + " UTC"


def _svg(height: float, summary: str, inside: Markup) -> Markup:
    """An SVG element of full width."""
    return Markup('<svg width="100%" height="{}" role="img" aria-label="{}">{}</svg>').format(
        f"{height:g}", summary, inside
    )
