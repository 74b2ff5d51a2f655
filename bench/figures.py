#!/usr/bin/env python3
"""Every published figure comes from one file of bench/results: this program makes the files, and the tables from them.

    bench/figures.py                      renders the tables and figures of the pages from bench/results
    bench/figures.py --check              says whether they are what bench/results has, and changes nothing
    bench/figures.py --run                first runs every command of bench/results/*.txt again, by build/release/riffle
    bench/figures.py --run --only linear  the commands that contain a text
    bench/figures.py --run --runs 3       the middle one of three runs, by the sum of its times

A result begins with the command that printed it, behind "$ ". In a page two comments hold what is rendered:

    <!-- table: attention D1 D2 -->   ... <!-- end -->       a table of cases of a result, one of TABLES below
    <!--= topk.txt rows32-bf16 time -->...<!--/-->           one cell of a result

Let nothing else run while it measures. Sentences beside a table are for you to hold against it.
"""

import argparse
import os
import pathlib
import re
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
TABLE = re.compile(r"(<!-- table: (.+?) -->\n)(.*?)(^<!-- end -->$)", re.M | re.S)
CELL = re.compile(r"(<!--= (\S+) (\S+) (\S+) -->)(.*?)(<!--/-->)", re.S)
TIME = re.compile(r"\b([\d.]+(?:e\+\d+)?) (ns|us|ms|s)\b")
GLUE = re.compile(r"(?<=\d) (?=(?:ns|us|ms|s|x)\b)|(?<=x) (?=\d)|(?<=%) (?=2M)")  # spaces within a cell of `riffle bench`
UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
LABELS = {
    "per-row-32": "32 ranges of 129280, k = 1024, f32",
    "per-row-1": "1 range of 129280, k = 1024, f32",
    "D1": "D1: decode, 32 sequences of 4096",
    "D2": "D2: decode, 1 of 131072",
    "D3": "D3: decode, 8 of 2048, in cache",
    "D4": "D4: decode, 64 of 1 to 4096",
    "P1": "P1: prefill, 2048 tokens",
    "P2": "P2: 512 tokens after 8192",
}


# ---- Results


def seconds(text):
    """The first time in a text."""
    match = TIME.search(text)
    return float(match[1]) * UNITS[match[2]] if match else None


def read_cases(name):
    """{case: {column: cell}} of a result, whether `riffle bench` or a table in Markdown."""
    cases, header = {}, []
    for line in (RESULTS / name).read_text().splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
        else:
            cells = [cell.replace("~", " ") for cell in GLUE.sub("~", line).split()] or [""]
        if cells[0] in ("name", "case"):
            header = cells if line.startswith("|") else columns(line)
        elif len(cells) == len(header) and not cells[0].startswith("-"):
            cases.setdefault(cells[0], dict(zip(header, cells)))
    return cases


def columns(line):
    """The header of `riffle bench`. Its second share is that of the peak."""
    names = line.replace("/ normal", "normal").split()
    return ["peak share" if name == "share" and "share" in names[:i] else name for i, name in enumerate(names)]


# ---- Tables


def percent(share, of):
    return f"{share.removesuffix('%')} % of the {of}" if share != "-" else "-"


def label(name, case):
    return LABELS.get(name) or f"{case['shape']}, k = {case['k']}, {case['type']}"


def topk_table(names):
    cases = read_cases("topk.txt")
    yield "work", "time", "reading", "share"
    for name in names:
        yield [label(name, cases[name]), *(cases[name][c].replace("%", " %") for c in ("time", "read", "share"))]


def limit(case):
    """A case's share of the nearer one of its two limits, read bandwidth and arithmetic."""
    read, peak = (float(case[c].rstrip("%")) if case[c] != "-" else 0.0 for c in ("share", "peak share"))
    return percent(case["share"], "read") if read >= peak else percent(case["peak share"], "peak")


def ratio(cell, own):
    """How many times as long as riffle, in the same run, another library takes."""
    time, base = seconds(cell), seconds(own)
    return f"{float(f'{time / base:.3g}'):g} x" if time and base else cell.lstrip("- ").strip("()") or "-"


def attention_table(names):
    cases, peers = read_cases("attention.txt"), read_cases("attention-peers.md")
    yield "work", "Riffle", "of the limit", "vLLM takes", "torch SDPA, its best call", "ONNX Runtime"
    for name in names:
        others = [ratio(peers[name][peer], peers[name]["riffle"]) for peer in ("vllm", "torch", "onnxruntime")]
        yield [label(name, cases[name]), cases[name]["time"], limit(cases[name]), *others]


def peers_table(_):
    cases = read_cases("peers.md")
    peers = ["torch", "jax", "onnxruntime", "faiss", "numpy"]
    yield ["rows x columns, k, dtype", *peers]
    for name, case in cases.items():
        order = ", ascending" if name.startswith("ascending") else ""
        yield [case["rows x columns, k, dtype"] + order, *(ratio(case[peer], case["riffle"]) for peer in peers)]


def bench_table(result):
    def table(names):
        cases = read_cases(result)
        yield "case", "time", "reading", "of the read", "of the peak"
        for name in names or cases:
            case = cases[name]
            cells = [case[c].replace("%", " %") for c in ("time", "read", "share", "peak share")]
            yield [name, *cells]

    return table


TABLES = {
    "topk": topk_table,
    "attention": attention_table,
    "attention-formats": bench_table("attention-formats.txt"),
    "attention-prefill": bench_table("attention-prefill.txt"),
    "attention-latent": bench_table("attention-latent.txt"),
    "write": bench_table("write.txt"),
    "peers": peers_table,
    "linear": bench_table("linear.txt"),
    "sample": bench_table("sample.txt"),
}


def render_table(spec):
    kind, *names = spec.split()
    head, *rows = TABLES[kind](names)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def render(page):
    page = TABLE.sub(lambda m: m[1] + render_table(m[2]) + m[4], page)
    return CELL.sub(lambda m: m[1] + read_cases(m[2])[m[3]][m[4]].replace("%", " %") + m[6], page)


# ---- Runs


def run(command):
    words = shlex.split(command)
    env = dict(os.environ)
    while "=" in words[0]:
        name, value = words.pop(0).split("=", 1)
        env[name] = value
    env["PATH"] = f"{ROOT / 'build' / 'release'}:{env['PATH']}"
    return subprocess.run(words, env=env, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def middle_run(command, runs):
    outputs = []
    for i in range(runs):
        print(f"{command}  ({i + 1} of {runs})", file=sys.stderr, flush=True)
        outputs.append(run(command))
    return sorted(outputs, key=lambda output: sum(seconds(line) or 0 for line in output.splitlines()))[runs // 2]


def commands():
    """(file, command) of the results that `riffle bench` prints. The others need further libraries, and hours."""
    for path in sorted(RESULTS.glob("*.txt")):
        first = path.read_text().split("\n", 1)[0]
        if first.startswith("$ ") and "riffle bench" in first:
            yield path, first.removeprefix("$ ")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a page is not current")
    parser.add_argument("--run", action="store_true", help="measure first")
    parser.add_argument("--only", default="", metavar="TEXT", help="commands that contain TEXT")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="runs of each command; the middle one is kept")
    args = parser.parse_args()
    chosen = [(path, command) for path, command in commands() if args.only in command]
    if not chosen or args.runs < 1:
        parser.error(f"no command of bench/results contains {args.only!r}" if args.runs > 0 else "--runs < 1")
    for path, command in chosen if args.run and not args.check else []:
        path.write_text(f"$ {command}\n{middle_run(command, args.runs)}")  # written at once, so that an interrupted run keeps what it has
    stale = [path for path in PAGES if render(path.read_text()) != path.read_text()]
    for path in stale:
        if not args.check:
            path.write_text(render(path.read_text()))
        print(f"{path.relative_to(ROOT)}: {'not what bench/results has' if args.check else 'rendered'}")
    if args.check and stale:
        sys.exit("figures.py: run bench/figures.py")


if __name__ == "__main__":
    main()
