"""Small charts as inline SVG, coloured by the page's style sheet (so light and dark both work)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 500
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 10, 12, 34
# More points than pixels only make the page heavy.
_MOST_POINTS = 600


@dataclass(frozen=True)
class Bar:
    """A value with its interval."""

    label: str
    value: float
    low: float
    high: float
    style: str = "base"  # CSS class


def bars(items: Sequence[Bar], title: str) -> Markup:
    """Horizontal bars from 0 to 1, each with its interval as a whisker and its figures written out."""
    row, left, right = 38, 164, 150
    height = row * len(items) + 28
    span = WIDTH - left - right
    parts = [_open(height, title)]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = left + span * tick
        parts.append(_line("grid", x, 4, x, height - 22))
        parts.append(_text("tick middle", x, height - 8, f"{tick:g}"))
    for index, item in enumerate(items):
        y = 4 + row * index + row / 2
        low, high, value = (left + span * min(max(v, 0), 1) for v in (item.low, item.high, item.value))
        parts.append(_text("label end", left - 12, y + 4, item.label))
        parts.append(
            Markup('<rect class="bar {}" x="{}" y="{:.1f}" width="{:.1f}" height="18" rx="3"/>').format(
                item.style, left, y - 9, max(value - left, 1)
            )
        )
        parts += [_line("whisker", low, y, high, y), _line("whisker", low, y - 5, low, y + 5)]
        parts.append(_line("whisker", high, y - 5, high, y + 5))
        figures = f"{item.value:.3f}  [{item.low:.3f}, {item.high:.3f}]"
        parts.append(_text("value", WIDTH - right + 12, y + 4, figures))
    return Markup("").join([*parts, Markup("</svg>")])


def interval(item: Bar, title: str) -> Markup:
    """One difference on a line from -1 to 1, with 0 marked."""
    height, y = 62, 22
    middle, scale = WIDTH / 2, (WIDTH - 60) / 2
    low, high, value = (middle + scale * min(max(v, -1), 1) for v in (item.low, item.high, item.value))
    parts = [_open(height, title)]
    for tick in (-1, -0.5, 0.5, 1):
        parts.append(_line("grid", middle + scale * tick, 6, middle + scale * tick, height - 22))
    parts.append(_line("zero", middle, 2, middle, height - 20))
    for tick in (-1, -0.5, 0, 0.5, 1):
        parts.append(_text("tick middle", middle + scale * tick, height - 6, f"{tick:+g}" if tick else "0"))
    parts.append(_line(f"range {item.style}", low, y, high, y))
    parts.append(Markup('<circle class="dot {}" cx="{:.1f}" cy="{}" r="6"/>').format(item.style, value, y))
    return Markup("").join([*parts, Markup("</svg>")])


def lines(
    xs: Sequence[float],
    ys: Sequence[float],
    title: str,
    *,
    x_label: str,
    style: str = "loss",
    height: int = 220,
) -> Markup:
    """One curve over its grid; at most one point a pixel. Values that are not finite leave a gap."""
    keep = range(0, len(xs), max(1, math.ceil(len(xs) / _MOST_POINTS)))
    points = [(xs[i], ys[i]) for i in sorted({*keep, len(xs) - 1})]
    finite = [y for _, y in points if math.isfinite(y)]
    if not finite:
        return Markup("")
    bottom, top, ticks = _scale(min([0.0, *finite]), max(finite))
    x_low, x_high = points[0][0], points[-1][0]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return (
            _LEFT + across * (WIDTH - _LEFT - _RIGHT),
            height - _BOTTOM - (y - bottom) / (top - bottom) * (height - _TOP - _BOTTOM),
        )

    parts = [_open(height, title)]
    for tick in ticks:
        y = place(x_low, tick)[1]
        parts.append(_line("grid", _LEFT, y, WIDTH - _RIGHT, y))
        parts.append(_text("tick end", _LEFT - 8, y + 4, f"{tick:g}"))
    for x, anchor in ((x_low, "start"), (x_high, "end")):
        parts.append(_text(f"tick {anchor}", place(x, bottom)[0], height - 12, f"{x:g}"))
    parts.append(_text("tick middle", WIDTH / 2, height - 12, x_label))
    path, pen = [], "M"
    for x, y in points:
        if math.isfinite(y):
            path.append("{}{:.1f} {:.1f}".format(pen, *place(x, y)))
            pen = "L"
        else:
            pen = "M"
    parts.append(Markup('<path class="curve {}" d="{}"/>').format(style, " ".join(path)))
    if len(finite) == 1:
        x, y = place(*next(point for point in points if math.isfinite(point[1])))
        parts.append(Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(style, x, y))
    return Markup("").join([*parts, Markup("</svg>")])


def histogram(values: Sequence[int], title: str, *, x_label: str, height: int = 300) -> Markup:
    """How many values fall into each of at most 24 equal bins."""
    if not values:
        return Markup("")
    low, high = min(values), max(values)
    width = max(1, math.ceil((high - low + 1) / 24))
    counts = [0] * ((high - low) // width + 1)
    for value in values:
        counts[(value - low) // width] += 1
    _, top, ticks = _scale(0, max(counts))
    across = (WIDTH - _LEFT - _RIGHT) / len(counts)
    parts = [_open(height, title)]
    for tick in ticks:
        y = height - _BOTTOM - tick / top * (height - _TOP - _BOTTOM)
        parts.append(_line("grid", _LEFT, y, WIDTH - _RIGHT, y))
        parts.append(_text("tick end", _LEFT - 8, y + 4, f"{tick:g}"))
    for index, count in enumerate(counts):
        tall = count / top * (height - _TOP - _BOTTOM)
        parts.append(
            Markup(
                '<rect class="bar count" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                "<title>{}–{}: {}</title></rect>"
            ).format(
                _LEFT + across * index + 1,
                height - _BOTTOM - tall,
                max(across - 2, 1),
                tall,
                low + index * width,
                low + (index + 1) * width - 1,
                count,
            )
        )
    parts.append(_text("tick start", _LEFT, height - 12, f"{low}"))
    parts.append(_text("tick end", WIDTH - _RIGHT, height - 12, f"{low + len(counts) * width - 1}"))
    parts.append(_text("tick middle", WIDTH / 2, height - 12, x_label))
    return Markup("").join([*parts, Markup("</svg>")])


def _scale(low: float, high: float) -> tuple[float, float, list[float]]:
    """Round bounds around low..high and about four round ticks within them."""
    span = high - low or abs(high) or 1.0
    rough = span / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return first * step, last * step, [round(i * step, 12) for i in range(first, last + 1)]


def _open(height: float, title: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">').format(WIDTH, height, title)


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        style, x1, y1, x2, y2
    )


def _text(style: str, x: float, y: float, text: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(style, x, y, text)
