"""Curves on logarithmic axes as an SVG file: rows of panels with one legend. Needs nothing but Python's own library."""

import math
from html import escape

COLOURS = ("#1f6fb4", "#d1495b", "#2a9d6f", "#8a5fbf", "#c77d1e", "#4d5a66")
WIDTH, HEIGHT = 380, 270
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 40, 46
LEGEND = 36
STYLE = (
    "text{font:12px system-ui,'Segoe UI','DejaVu Sans',sans-serif;fill:#333}"
    ".title{font-weight:600;fill:#111}.grid{stroke:#e4e7ea}.frame{stroke:#9aa3ab;fill:none}"
    ".guide{stroke:#9aa3ab;stroke-dasharray:4 4;fill:none}.line{fill:none;stroke-width:2;stroke-linejoin:round}"
)


class Axis:
    """A logarithmic axis between two ticks that hold all values, drawn from `start` to `end`."""

    def __init__(self, values, ticks, start, end):
        below = [tick for tick in ticks if tick <= min(values)]
        above = [tick for tick in ticks if tick >= max(values)]
        self.ticks = [tick for tick in ticks if below[-1] <= tick <= above[0]]
        self.low, self.high, self.start, self.end = below[-1], above[0], start, end

    def at(self, value):
        if self.low == self.high:
            return (self.start + self.end) / 2
        return self.start + (self.end - self.start) * math.log(value / self.low) / math.log(self.high / self.low)


def decimal_ticks():
    """1, 2 and 5 times the powers of ten."""
    return [digit * 10.0**power for power in range(-9, 13) for digit in (1, 2, 5)]


def number(value):
    return f"{value:g}" if value < 1e4 else f"{value:,.0f}"


def panel(x, y, title, across, series, values):
    """One panel at (x, y). `series` is [(colour, dash, [(x, y), …])]; its vertical axis holds `values`."""
    points = [point for _, _, some in series for point in some]
    left, right, top, bottom = x + LEFT, x + WIDTH - RIGHT, y + TOP, y + HEIGHT - BOTTOM
    horizontal = Axis([p[0] for p in points], sorted({p[0] for p in points}), left, right)
    vertical = Axis(values, decimal_ticks(), bottom, top)
    out = [f'<text class="title" x="{left}" y="{y + 24}">{escape(title)}</text>']
    for tick in horizontal.ticks:
        at = horizontal.at(tick)
        out.append(f'<path class="grid" d="M{at:.1f} {top}V{bottom}"/><text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{number(tick)}</text>')
    for tick in vertical.ticks:
        at = vertical.at(tick)
        out.append(f'<path class="grid" d="M{left} {at:.1f}H{right}"/><text x="{left - 7}" y="{at + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    out.append(f'<text x="{(left + right) / 2}" y="{bottom + 36}" text-anchor="middle">{escape(across)}</text>')
    out.append(f'<path class="frame" d="M{left} {top}V{bottom}H{right}"/>')
    out.append(proportion(min(some[0] for _, _, some in series), horizontal, vertical))
    for colour, dash, some in series:
        path = "L".join(f"{horizontal.at(a):.1f} {vertical.at(b):.1f}" for a, b in some)
        out.append(f'<path class="line" stroke="{colour}"{dash} d="M{path}"/>')
        out += [f'<circle cx="{horizontal.at(a):.1f}" cy="{vertical.at(b):.1f}" r="3.2" fill="{colour}"><title>{number(a)}: {b:.4g}</title></circle>'
                for a, b in some]
    return "".join(out)


def proportion(first, horizontal, vertical):
    """A line of values that grow in proportion, beside a curve that begins at `first`, cut off at the panel's edges."""
    factor = 0.7 * first[1] / first[0]
    low, high = max(horizontal.low, vertical.low / factor), min(horizontal.high, vertical.high / factor)
    ends = [f"{horizontal.at(a):.1f} {vertical.at(a * factor):.1f}" for a in (low, high)]
    return f'<path class="guide" d="M{"L".join(ends)}"/>' if low < high else ""


def rows_of_panels(names, rows):
    """An SVG of rows of panels, each (title, what is across, {name: [(x, y), …] by increasing x}). A row shares its vertical axis."""
    looks = {name: (COLOURS[i % len(COLOURS)], "" if i < len(COLOURS) else ' stroke-dasharray="7 3"') for i, name in enumerate(names)}
    wide, high = WIDTH * max(map(len, rows)), HEIGHT * len(rows) + LEGEND
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}"><style>{STYLE}</style>'
           f'<rect width="{wide}" height="{high}" fill="#fff"/>']
    x = LEFT
    legend = [(name, f'class="line" stroke="{looks[name][0]}"{looks[name][1]}') for name in names] + [("in proportion", 'class="guide"')]
    for name, look in legend:
        out.append(f'<path {look} d="M{x} 22h22"/><text x="{x + 28}" y="26">{escape(name)}</text>')
        x += 48 + 7 * len(name)
    for i, row in enumerate(rows):
        values = [b for _, _, curves in row for some in curves.values() for _, b in some]
        for j, (title, across, curves) in enumerate(row):
            series = [(*looks[name], curves[name]) for name in names]
            out.append(panel(j * WIDTH, i * HEIGHT + LEGEND, title, across, series, values))
    return "".join(out) + "</svg>\n"
