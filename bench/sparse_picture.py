#!/usr/bin/env python3
"""Draws docs/sparse_step.svg from bench/results/sparse.txt: a decode step of one layer against the length of the context, sparse beside
dense, and the memory of a selection beside that of stored scores.

    bench/sparse_picture.py            writes the picture
    bench/sparse_picture.py --check    exit code 1 if the picture in docs/ is not that of the result

Needs nothing but Python.
"""

import argparse
import math
import sys

from figures import ROOT, read_cases, seconds

PICTURE = ROOT / "docs" / "sparse_step.svg"
K, QUERIES = 2048, 16  # of a work item of the indexer
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 400, 300, 62, 34, 12, 42
COLORS = {"dense": "#b04a3a", "sparse": "#2a6f97"}


def steps():
    """{context: (seconds of dense attention, seconds of a sparse step)}"""
    cases = read_cases("sparse.txt")
    times = {}
    for name in cases:
        if name.startswith("step-"):
            context = int(name[5:-1]) * 1024
            times[context] = tuple(seconds(cases[kind + name[4:]]["time"]) for kind in ("dense", "step"))
    return dict(sorted(times.items()))


def list_bytes():
    """What a thread keeps while it selects for a work item: keys and numbers of the candidates of each query (indexer_plan.cc)."""
    limit = K + K // 4 + 16
    return QUERIES * 8 * (2 * limit + 512)


def tokens(n):
    return f"{n // 1048576}M" if n >= 1048576 else f"{n // 1024}k"


def duration(x):
    return f"{x:g} s" if x >= 1 else f"{x * 1e3:g} ms"


def size(x):
    return f"{x / 1e6:g} MB" if x >= 1e6 else f"{x / 1e3:g} kB"


def panel(x0, title, curves, label):
    """curves: {name: {context: value}}, both axes logarithmic."""
    contexts = sorted(next(iter(curves.values())))
    values = [v for curve in curves.values() for v in curve.values()]
    low, high = 10.0 ** math.floor(math.log10(min(values))), 10.0 ** math.ceil(math.log10(max(values)))
    right, bottom = x0 + WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(n):
        return x0 + LEFT + (right - x0 - LEFT) * math.log(n / contexts[0]) / math.log(contexts[-1] / contexts[0])

    def y(v):
        return bottom - (bottom - TOP) * math.log(v / low) / math.log(high / low)

    parts = [f'<text x="{x0 + LEFT}" y="20" font-weight="bold">{title}</text>']
    tick = low
    while tick <= high * 1.001:
        parts.append(f'<line x1="{x0 + LEFT}" y1="{y(tick):.1f}" x2="{right}" y2="{y(tick):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x0 + LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{label(tick)}</text>')
        tick *= 10
    for n in contexts[::2]:
        parts.append(f'<text x="{x(n):.1f}" y="{bottom + 18}" text-anchor="middle">{tokens(n)}</text>')
    parts.append(f'<text x="{(x0 + LEFT + right) / 2:.1f}" y="{HEIGHT - 6}" text-anchor="middle">tokens of context</text>')
    for (name, curve), color in zip(curves.items(), COLORS.values()):
        points = " ".join(f"{x(n):.1f},{y(v):.1f}" for n, v in sorted(curve.items()))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(n):.1f}" cy="{y(v):.1f}" r="3" fill="{color}"/>' for n, v in sorted(curve.items())]
        last = contexts[-1]
        parts.append(f'<text x="{x(last):.1f}" y="{y(curve[last]) - 8:.1f}" text-anchor="end" fill="{color}">{name}</text>')
    return parts


def picture():
    times = steps()
    cost = {"dense attention": {n: dense for n, (dense, _) in times.items()},
            "sparse step": {n: step for n, (_, step) in times.items()}}
    memory = {"scores of 16 queries": {n: 4.0 * n * QUERIES for n in times}, "IndexerTopK, a thread": {n: float(list_bytes()) for n in times}}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{2 * WIDTH}" height="{HEIGHT}" fill="white"/>',
        *panel(0, "Decode step of a layer, 128 heads", cost, duration),
        *panel(WIDTH, "Memory of a selection, k = 2048", memory, size),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    drawn = picture()
    if parser.parse_args().check:
        return int(PICTURE.read_text() != drawn)
    PICTURE.write_text(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
