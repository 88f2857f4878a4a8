"""A plot of lines as SVG, without a library."""

import math
from collections.abc import Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 210, 20, 50
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666")
"""Told apart by colour-blind people, too (Okabe and Ito)."""
_LABEL_PX = 16

Points = Sequence[tuple[float, float]]


def line_plot(lines: Mapping[str, Points], x_name: str, y_name: str) -> str:
    """Each line with its name at its end. There is at least one, and each has a point. x is above 0 and on a
    logarithmic scale, marked where points are; y is above 0 and on a linear one from 0."""
    xs = sorted({x for points in lines.values() for x, _ in points})
    most = max(y for points in lines.values() for _, y in points)
    step = _nice_step(most)
    steps = math.ceil(most / step)

    def across(x: float) -> float:
        span = math.log(xs[-1] / xs[0]) or 1.0
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log(x / xs[0]) / span

    def down(y: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * y / (steps * step)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for number in range(steps + 1):
        y = down(number * step)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{number * step:g}", "end"))
    parts += [_text(across(x), _HEIGHT - _BOTTOM + 18, f"{x:g}", "middle") for x in xs]
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, x_name, "middle"))
    parts.append(_text(14, (_TOP + _HEIGHT - _BOTTOM) / 2, y_name, "middle", turned=True))
    labels = _apart({name: down(points[-1][1]) for name, points in lines.items()})
    for index, (name, points) in enumerate(lines.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(_text(_WIDTH - _RIGHT + 12, labels[name] + 4, name, "start", colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#333333", *, turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{turn}>{escape(text)}</text>'


def _nice_step(most: float) -> float:
    """1, 2 or 5 times a power of ten, of which four to ten reach `most`."""
    power = 10 ** math.floor(math.log10(most / 4))
    return float(next(factor * power for factor in (5, 2, 1) if factor * power <= most / 4))


def _apart(wanted: Mapping[str, float]) -> dict[str, float]:
    """Heights of labels near the wanted ones, none over another."""
    placed: dict[str, float] = {}
    lowest = -math.inf
    for name, y in sorted(wanted.items(), key=lambda item: item[1]):
        lowest = placed[name] = max(y, lowest + _LABEL_PX)
    return placed
