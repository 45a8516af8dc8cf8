"""Draws columns of a CSV file over its first one, as SVG: one panel for each COLUMN[+COLUMN…][:LABEL[:FACTOR]].

plot.py CSV SVG TITLE COLUMN…
"""

import math
import sys
from html import escape

WIDTH, PANEL, LEFT, RIGHT, GAP = 900, 110, 70, 20, 34
COLOURS = ("#1f77b4", "#d62728", "#2ca02c")


def short(value):
    for bound, unit in ((1e6, " M"), (1e4, " k")):
        if abs(value) >= bound:
            return f"{value / (1e6 if unit == ' M' else 1e3):.3g}{unit}"
    return f"{value:.4g}"


def panel(top, times, series, label, names):
    known = [value for values in series for value in values if math.isfinite(value)]
    low, high = 0.0, max(known, default=1) * 1.05 or 1.0
    span = times[-1] - times[0] or 1

    def x(time):
        return LEFT + (WIDTH - LEFT - RIGHT) * (time - times[0]) / span

    def y(value):
        return top + PANEL - PANEL * (value - low) / (high - low)

    parts = [f'<rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" height="{PANEL}" fill="none" stroke="#ccc"/>']
    for part in (0, 0.5, 1):
        value = low + (high - low) * part
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{short(value)}</text>')
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#eee"/>')
    legend = label
    for number, (name, values) in enumerate(zip(names, series)):
        points = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in zip(times, values) if math.isfinite(v))
        parts.append(f'<polyline fill="none" stroke="{COLOURS[number % 3]}" stroke-width="1.2" points="{points}"/>')
    if len(names) > 1:
        coloured = (f'<tspan fill="{COLOURS[number % 3]}">{escape(name)}</tspan>' for number, name in enumerate(names))
        legend = f"{escape(label)}: " + ", ".join(coloured)
    else:
        legend = escape(label)
    parts.append(f'<text x="{LEFT}" y="{top - 6}" font-weight="bold">{legend}</text>')
    return parts


def main(source, target, title, columns):
    with open(source) as file:
        names = file.readline().strip().split(",")
        rows = [[float(value) for value in line.split(",")] for line in file]
    if not rows:
        raise SystemExit(f"{source} has no rows")
    minutes = [row[0] / 60 for row in rows]
    height = 40 + len(columns) * (PANEL + GAP) + 20
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
             f'font-size="11">', '<rect width="100%" height="100%" fill="#fff"/>',
             f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>']
    for number, column in enumerate(columns):
        fields, label, factor = (column.split(":") + ["", ""])[:3]
        fields = fields.split("+")
        series = [[row[names.index(field)] * float(factor or 1) for row in rows] for field in fields]
        parts += panel(50 + number * (PANEL + GAP), minutes, series, label or column, fields)
    bottom = height - 12
    for part in range(7):
        time = minutes[0] + (minutes[-1] - minutes[0]) * part / 6
        x = LEFT + (WIDTH - LEFT - RIGHT) * part / 6
        parts.append(f'<text x="{x:.1f}" y="{bottom}" text-anchor="middle">{time:.3g} min</text>')
    with open(target, "w") as file:
        file.write("\n".join(parts + ["</svg>"]) + "\n")


if __name__ == "__main__":
    if len(sys.argv) < 5:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
