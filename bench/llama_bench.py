#!/usr/bin/env python3
"""llama-bench with libggml-cpu-riffle.so and without, in turn: tokens a second at several depths.

    bench/llama_bench.py [--model FILE ...] [--depth N ...] [--cache TYPE ...] [--prefill]

`make bench-llama` builds the file and fetches llama.cpp. Both of llama.cpp's settings are measured,
flash attention on (its default) and off; a quantized cache has the first only.
"""

import argparse
import json
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]
RUN = ROOT / "scripts" / "llama_run.sh"


def measure(which: str, model: pathlib.Path, depth: int, cache: str, flash: str, prefill: bool, repeats: int) -> float:
    """Tokens a second."""
    work = ["-p", "512", "-n", "0"] if prefill else ["-p", "0", "-n", "16"]
    out = subprocess.run(
        [RUN, which, "llama-bench", "-m", model.resolve(), "-t", "2", "-d", str(depth), "-r", str(repeats), "-o", "json"]
        + ["-ctk", cache, "-ctv", cache, "-fa", flash, *work],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return json.loads(out)[0]["avg_ts"]


def main() -> None:
    host = subprocess.check_output([ROOT / "scripts" / "llama_host.sh", "--path"], text=True).strip()
    models = pathlib.Path(host).parent / "models"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, nargs="+", default=[models / "gemma-3-270m-q4_k_m.gguf"])
    parser.add_argument("--depth", type=int, nargs="+", default=[0, 4096, 16384])
    parser.add_argument("--cache", nargs="+", default=["f16", "q8_0"])
    parser.add_argument("--prefill", action="store_true", help="512 tokens at once, not one at a time")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    print("| model | cache | depth | llama.cpp, flash attention on | off | with Riffle | times the better |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for model in arguments.model:
        for cache in arguments.cache:
            for depth in arguments.depth:
                rest = (model, depth, cache)
                last = (arguments.prefill, arguments.repeats)
                on = measure("off", *rest, "on", *last)
                off = measure("off", *rest, "off", *last) if cache in ("f16", "bf16", "f32") else None
                riffle = measure("on", *rest, "on", *last)
                shown = "cannot" if off is None else f"{off:.1f}"
                times = riffle / max(on, off or 0)
                print(f"| {model.stem} | {cache} | {depth} | {on:.1f} | {shown} | {riffle:.1f} | {times:.2f} |", flush=True)


if __name__ == "__main__":
    main()
