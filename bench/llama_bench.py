#!/usr/bin/env python3
"""llama-server with libggml-cpu-riffle.so and without, in turn: tokens a second at several depths.

    bench/llama_bench.py --prepare          writes models and caches (some minutes and gigabytes, once)
    bench/llama_bench.py [--quick]          measures what bench/results/llama.json does not have yet
    bench/llama_bench.py --seconds 200      ... and stops after that time; run it again to go on
    bench/llama_bench.py --only 8b.*prefill ... and no other points than those that match
    bench/llama_bench.py --table            prints the results as docs/llama.cpp.md has them
    bench/llama_bench.py --picture FILE     draws decode against depth (needs matplotlib)

`make bench-llama` builds the file, fetches llama.cpp and does all of it. Three servers run at once, of which one works at a time: with
the file, without it (flash attention on, llama.cpp's default), and with flash attention off. Their caches are filled from files, so that
no depth has to be computed: 1024 tokens of a prefill, again and again. Each measurement is the best of three, or the first if it
takes more than three seconds, and counts only if the servers agree on the token that follows.
"""

import argparse
import atexit
import contextlib
import json
import pathlib
import re
import signal
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "integrations" / "llama.cpp" / "tests")]
import llama_models  # noqa: E402
from llama_server import Server, cache_folder  # noqa: E402

FOLDER = ROOT / "build" / "llama" / "bench"
RESULTS = ROOT / "bench" / "results" / "llama.json"
GEMMA = "gemma-3-270m"
DEPTHS = [512, 4096, 16384, 32768, 65536]
GEMMA_DEPTHS = [512, 4096, 16384, 32000]  # it was trained for 32768
SETTINGS = {"Riffle": ("on", "on"), "default": ("off", "on"), "flash attention off": ("off", "off")}
BASE = 1024  # tokens of a real prefill
DECODED = 9
PREFILLED = 512


def points(quick: bool) -> list[tuple[str, str, int, int, str]]:
    """Model, type of the cache, sequences, depth, work."""
    if quick:
        return [("llama-8b-shape", "f16", 1, 4096, "decode"), (GEMMA, "f16", 1, 4096, "decode")]
    models = [*llama_models.SHAPES, GEMMA]
    depths = {model: GEMMA_DEPTHS if model == GEMMA else DEPTHS for model in models}
    found = [(model, "f16", 1, depth, "decode") for model in models for depth in depths[model]]
    found += [(model, "f16", 8, 4096, "decode") for model in llama_models.SHAPES]
    found += [(model, cache, 1, depth, "decode") for model in models for cache in ("q8_0", "q4_0") for depth in depths[model]
              if (model, cache) != (GEMMA, "q4_0")]  # 0.54 apart, further than `agree` lets pass
    found += [(model, "f16", 1, depth, "prefill") for model in models for depth in (512, 4096, 16384)]
    return found


def settings(cache: str) -> list[str]:
    """Values in blocks need flash attention."""
    return [name for name, (_, flash) in SETTINGS.items() if cache == "f16" or flash == "on"]


def model_file(model: str) -> pathlib.Path:
    if model == GEMMA:
        return cache_folder() / "models" / "gemma-3-270m-q4_k_m.gguf"
    path = FOLDER / f"{model}.gguf"
    if not path.exists():
        llama_models.write_model(model, path)
    return path


def start(setting: str, model: str, cache: str, sequences: int, context: int) -> Server:
    which, flash = SETTINGS[setting]
    more = ["-b", "2048", "-ub", "512", "-np", str(sequences), "-c", str(context), "-fa", flash, "-ctk", cache, "-ctv", cache]
    more += ["--kv-unified", "--no-cache-idle-slots"] * (sequences > 1)  # unified: llama-server's own choice
    return Server(which, model_file(model), *more, "--slot-save-path", f"{FOLDER}/")


def base_state(model: str, cache: str) -> pathlib.Path:
    """The cache of a prefill, as llama-server saves it."""
    path = FOLDER / f"{model}-{cache}.state"
    if not path.exists():
        first = 300 if model != GEMMA else 2000
        with start("Riffle", model, cache, 1, 2048) as server:
            server.post("/completion", {"prompt": [first + i for i in range(BASE)], "n_predict": 0, "id_slot": 0, "cache_prompt": True})
            server.post("/slots/0?action=save", {"filename": path.name + ".part"})
        path.with_name(path.name + ".part").rename(path)
    return path


class Bench:
    """Servers of all settings for one model, type of cache and number of sequences."""

    def __init__(self, model: str, cache: str, sequences: int, depth: int):
        self.state = llama_models.State(base_state(model, cache))
        self.sequences = sequences
        self.servers = {}
        context = sequences * (depth + 1024)
        self.running = contextlib.ExitStack()
        atexit.register(self.running.close)
        for name in settings(cache):
            self.servers[name] = self.running.enter_context(start(name, model, cache, sequences, context))

    def close(self) -> None:
        self.running.close()

    def restore(self, depth: int) -> list[int]:
        tokens: list[int] = []
        for transposed in (False, True):
            names = [name for name in self.servers if (SETTINGS[name][1] == "off") == transposed]
            if not names:
                continue
            with tempfile.NamedTemporaryFile(dir=FOLDER, suffix=".state") as file:
                tokens = self.state.write(pathlib.Path(file.name), depth, 1, transposed)
                for name in names:
                    for slot in range(self.sequences):
                        request = {"filename": pathlib.Path(file.name).name}
                        reply = self.servers[name].post(f"/slots/{slot}?action=restore", request)
                        assert reply["n_restored"] == depth, reply
        return tokens

    def ask(self, name: str, tokens: list[int], more: int, count: int, salt: int = 0, **options) -> list[dict]:
        """Every sequence goes on from its cache by `more` new tokens, others for each salt, and decodes `count`, all at once."""
        replies: list[dict] = [{} for _ in range(self.sequences)]

        def one(slot: int) -> None:
            new = [5000 + 7 * i + slot + 101 * salt for i in range(more)]
            request = {"prompt": tokens + new, "n_predict": count, "id_slot": slot, "cache_prompt": True}
            request.update({"temperature": 0, "ignore_eos": True, **options})
            replies[slot] = self.servers[name].post("/completion", request)

        threads = [threading.Thread(target=one, args=(slot,)) for slot in range(self.sequences)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return replies

    def agree(self, tokens: list[int]) -> float:
        """The largest difference of the likeliest token's log-probability, which must be small."""
        seen = {}
        for name in self.servers:
            replies = self.ask(name, tokens, 1, 1, n_probs=5)
            assert all(reply["timings"]["prompt_n"] == 1 for reply in replies), "the cache was not used"
            seen[name] = [{top["id"]: top["logprob"] for top in reply["completion_probabilities"][0]["top_logprobs"]} for reply in replies]
        worst = 0.0
        for slot in range(self.sequences):
            mine = seen["Riffle"][slot]
            for name in self.servers:
                other = seen[name][slot]
                both = mine.keys() & other.keys()
                assert len(both) >= 2, f"Riffle and {name} differ: {mine} and {other}"
                worst = max(worst, *(abs(mine[token] - other[token]) for token in both))
        assert worst < 0.5, f"log-probabilities differ by {worst}: {seen}"
        return worst

    def measure(self, tokens: list[int], work: str) -> dict[str, float]:
        best = dict.fromkeys(self.servers, 0.0)
        enough = set()
        for salt in range(1, 4):
            for name in [name for name in self.servers if name not in enough]:
                begin = time.monotonic()
                if work == "prefill":
                    (reply,) = self.ask(name, tokens, PREFILLED, 1, salt)  # none of them are in the cache
                    assert reply["timings"]["prompt_n"] == PREFILLED
                    speed = PREFILLED / reply["timings"]["prompt_ms"] * 1e3
                else:
                    replies = self.ask(name, tokens, 1, DECODED)
                    # Sequences decode together; one that began earlier waits for others' first tokens.
                    slowest = max(reply["timings"]["predicted_ms"] for reply in replies)
                    speed = self.sequences * (DECODED - 1) / slowest * 1e3
                best[name] = max(best[name], speed)
                if time.monotonic() - begin > 3:
                    enough.add(name)
        return best


def read_results() -> list[dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def key(result: dict) -> tuple:
    return tuple(result[name] for name in ("model", "cache", "sequences", "depth", "work"))


def measure_all(wanted: list, seconds: float) -> None:
    results = read_results()
    done = {key(result) for result in results}
    begin = time.monotonic()
    bench: Bench | None = None
    of = None
    for point in wanted:
        model, cache, sequences, depth, work = point
        if point in done:
            continue
        # What one point takes at most here.
        if time.monotonic() - begin + (90 if work == "prefill" else 45) > seconds:
            print("stopped in time; run it again to go on")
            break
        if bench is None or of != (model, cache, sequences):
            if bench is not None:
                bench.close()
            deepest = max(p[3] for p in wanted if p[:3] == (model, cache, sequences))
            bench, of = Bench(model, cache, sequences, deepest), (model, cache, sequences)
        tokens = bench.restore(depth)
        difference = bench.agree(tokens)
        speeds = {name: round(speed, 2) for name, speed in bench.measure(tokens, work).items()}
        names = ("model", "cache", "sequences", "depth", "work")
        results.append({**dict(zip(names, point, strict=True)), "difference": round(difference, 4), "tokens_per_second": speeds})
        RESULTS.write_text("[\n" + ",\n".join(json.dumps(result) for result in results) + "\n]\n")
        print(point, speeds, flush=True)
    if bench is not None:
        bench.close()


def table() -> None:
    for work in ("decode", "prefill"):
        print(f"\n| {work} | cache | sequences | depth | default | flash attention off | Riffle | times the better | times the default |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        order = points(quick=False)
        known = [result for result in read_results() if result["work"] == work and key(result) in order]
        for result in sorted(known, key=lambda result: order.index(key(result))):
            speeds = result["tokens_per_second"]
            riffle, default, off = (speeds.get(name) for name in ("Riffle", "default", "flash attention off"))
            shown = "cannot" if off is None else f"{off:.1f}"
            cells = [result["model"], result["cache"], result["sequences"], result["depth"], f"{default:.1f}", shown, f"{riffle:.1f}"]
            cells += [f"{riffle / max(default, off or 0):.2f}", f"{riffle / default:.2f}"]
            print("| " + " | ".join(map(str, cells)) + " |")


def picture(path: str) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "riffle"
    from matplotlib import pyplot

    models = [*llama_models.SHAPES, GEMMA]
    figure, axes = pyplot.subplots(1, len(models), figsize=(11, 3.4))
    styles = {"Riffle": "o-", "default": "s--", "flash attention off": "^:"}
    for axis, model in zip(axes, models, strict=True):
        for name, style in styles.items():
            results = [r for r in read_results() if key(r)[:3] == (model, "f16", 1) and r["work"] == "decode"]
            results.sort(key=lambda r: r["depth"])
            axis.plot([r["depth"] for r in results], [r["tokens_per_second"][name] for r in results], style, label=name)
        axis.set(title=model, xlabel="tokens in the cache (f16)", xscale="log", ylim=(0, None))
        axis.set_xticks(DEPTHS, [str(depth) for depth in DEPTHS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("tokens a second, 2 threads")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--only", default="", metavar="REGEX", help="of 'MODEL CACHE SEQUENCES DEPTH WORK'")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--picture")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = [point for point in points(arguments.quick) if re.search(arguments.only, " ".join(map(str, point)))]
    if arguments.prepare:
        for model, cache in dict.fromkeys(point[:2] for point in wanted):
            print(base_state(model, cache), flush=True)
    elif arguments.table:
        table()
    elif arguments.picture:
        picture(arguments.picture)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # servers end with their contexts
        measure_all(wanted, arguments.seconds)


if __name__ == "__main__":
    main()
