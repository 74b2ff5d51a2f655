#!/usr/bin/env python3
"""Draws docs/architecture.svg: the rooms of the sources, and which room includes headers of which.

    scripts/architecture.py             writes the picture
    scripts/architecture.py --check     exit code 1 if the picture in docs/ is not that of the sources
    scripts/architecture.py --list      prints the arrows, with an include that makes each

An arrow that follows from two others is left out: a -> c where a -> b -> c. Rooms that include each other are an error.
Needs nothing but Python.
"""

import argparse
import pathlib
import re
import sys
from xml.sax.saxutils import escape

ROOT = pathlib.Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^">]+)[">]', re.M)
SUFFIXES = {".h", ".cc", ".cpp", ".c"}
SEARCHED = ["", "include", "src", "engine", "testing"]  # where an include is looked for, below the root

# Outside of src/, where every folder is a room.
ROOMS = ["include/riffle", "engine", "cli", "python", "examples", "integrations", "testing", "tests", "bench", "fuzz"]
PURPOSE = {
    "include/riffle": "the public API",
    "src/core": "order, threads, targets",
    "src/select": "bounds, compress, sorts",
    "src/topk": "exact top-k",
    "src/attention": "paged attention",
    "src/sparse": "sparse attention",
    "src/c_api": "the C API",
    "src/kv_cache": "the page pool",
    "src/lm_head": "linear layer and top-k",
    "src/sampling": "the next token",
    "engine": "a GGUF model, on the API",
    "cli": "the riffle command",
    "python": "bindings and package",
    "examples": "short programs",
    "integrations": "inside other engines",
    "testing": "references, test data",
    "tests": "one program a subject",
    "bench": "Google Benchmark",
    "fuzz": "libFuzzer targets",
}
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 176, 48, 22, 58, 16
POINT = 10  # the width left free for an arrow that passes a row of boxes


def source_files(room):
    return sorted(p for p in (ROOT / room).rglob("*") if p.suffix in SUFFIXES and p.is_file())


def find_rooms():
    rooms = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "src").iterdir()) if p.is_dir()] + ROOMS
    return [room for room in rooms if (ROOT / room).is_dir() and source_files(room)]


def find_arrows(rooms):
    """{(from, to): the first include that makes the arrow}."""
    room_of = {path: room for room in rooms for path in source_files(room)}
    arrows = {}
    for path, room in room_of.items():
        for name in INCLUDE.findall(path.read_text(encoding="utf8", errors="replace")):
            candidates = [path.parent / name, *(ROOT / folder / name for folder in SEARCHED)]
            target = next((room_of[c.resolve()] for c in candidates if c.resolve() in room_of), None)
            if target not in (None, room):
                arrows.setdefault((room, target), f"{path.relative_to(ROOT)}: {name}")
    return arrows


def find_levels(rooms, arrows):
    """0 for rooms that include no other; else one more than the highest that a room includes."""
    levels = {}

    def level(room, above):
        if room in above:
            cycle = " -> ".join([*above[above.index(room) :], room])
            sys.exit(f"architecture.py: rooms that include each other: {cycle}")
        if room not in levels:
            levels[room] = 1 + max((level(to, [*above, room]) for of, to in sorted(arrows) if of == room), default=-1)
        return levels[room]

    for room in rooms:
        level(room, [])
    return levels


def leave_out_implied(arrows):
    def reached(room):
        found, at = set(), [to for of, to in arrows if of == room]
        while at:
            room = at.pop()
            if room not in found:
                found.add(room)
                at += [to for of, to in arrows if of == room]
        return found

    targets = {of: {to for f, to in arrows if f == of} for of, _ in arrows}
    return sorted((of, to) for of, to in arrows if not any(to in reached(other) for other in targets[of] - {to}))


def split_long(arrows, levels):
    """Arrows as paths [from, ..., to]; between levels that are apart a path has a point (a tuple) in each level it passes."""
    return [
        [of, *((of, to, level) for level in range(levels[of] - 1, levels[to], -1)), to] for of, to in arrows
    ]


def place(rooms, levels, paths):
    """{room or point: (x, y)}, centres. A row a level, the highest on top, each room below what includes it."""
    top = max(levels.values())
    steps = [step for path in paths for step in zip(path, path[1:])]
    rows = [[room for room in rooms if levels[room] == level] for level in range(top, -1, -1)]
    for point in sorted({point for path in paths for point in path[1:-1]}):
        rows[top - point[2]].append(point)
    width = {item: WIDTH if isinstance(item, str) else POINT for row in rows for item in row}
    total = max(sum(width[item] + GAP_X for item in row) - GAP_X for row in rows)
    at = {}
    for y, row in enumerate(rows):
        wishes = {}
        for item in row:
            above = [at[of][0] for of, to in steps if to == item]
            wishes[item] = round(sum(above) / len(above), 3) if above else total / 2
        ordered = sorted(row, key=lambda item: (wishes[item], row.index(item)))  # noqa: B023
        gap = (total - sum(width[item] for item in row)) / len(row)
        x = gap / 2
        for item in ordered:
            at[item] = (MARGIN + x + width[item] / 2, MARGIN + HEIGHT / 2 + y * (HEIGHT + GAP_Y))
            x += width[item] + gap
    return at, (total + 2 * MARGIN, len(rows) * (HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN)


def curve(points):
    """An SVG path that leaves and meets every point vertically, and goes straight past those in between."""
    path = "M{} {}".format(*map(number, points[0]))
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        middle = (y0 + y1) / 2
        path += "C{} {} {} {} {} {}".format(*map(number, (x0, middle, x1, middle, x1, y1)))
    return path


def number(value):
    return f"{value:.1f}".removesuffix(".0")


def draw():
    rooms = find_rooms()
    arrows = find_arrows(rooms)
    levels = find_levels(rooms, arrows)
    shown = leave_out_implied(arrows)
    paths = split_long(shown, levels)
    at, (width, height) = place(rooms, levels, paths)
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {number(width)} {number(height)}" '
        'font-family="sans-serif" font-size="13">',
        "<title>The rooms of Riffle, and which includes which</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>',
        f'<rect width="{number(width)}" height="{number(height)}" fill="#fff"/>',
    ]
    half = HEIGHT / 2
    for path in paths:
        points = [(at[path[0]][0], at[path[0]][1] + half)]
        for point in path[1:-1]:  # straight past the boxes beside it
            points += [(at[point][0], at[point][1] - half), (at[point][0], at[point][1] + half)]
        points.append((at[path[-1]][0], at[path[-1]][1] - half))
        svg.append(f'<path d="{curve(points)}" fill="none" stroke="#889" stroke-width="1.3" marker-end="url(#head)"/>')
    for room in rooms:
        x, y = at[room][0] - WIDTH / 2, at[room][1] - half
        colour = "#fdf3d7" if room == "include/riffle" else "#e3effa" if room.startswith("src/") else "#eef3ea"
        svg.append(
            f'<rect x="{number(x)}" y="{number(y)}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{colour}" stroke="#556"/>'
        )
        middle = number(x + WIDTH / 2)
        svg.append(f'<text x="{middle}" y="{number(y + 20)}" text-anchor="middle" font-weight="bold">{escape(room)}</text>')
        purpose = escape(PURPOSE.get(room, ""))
        svg.append(f'<text x="{middle}" y="{number(y + 37)}" text-anchor="middle" font-size="11">{purpose}</text>')
    return "\n".join([*svg, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the picture is not current")
    parser.add_argument("--list", action="store_true", help="print the arrows")
    args = parser.parse_args()
    if args.list:
        rooms = find_rooms()
        for (of, to), include in sorted(find_arrows(rooms).items()):
            print(f"{of:15} -> {to:15} {include}")
        return
    picture = draw()
    if args.check:
        if not PICTURE.exists() or PICTURE.read_text() != picture:
            sys.exit("architecture.py: docs/architecture.svg is not that of the sources: run scripts/architecture.py")
    else:
        PICTURE.write_text(picture)


if __name__ == "__main__":
    main()
