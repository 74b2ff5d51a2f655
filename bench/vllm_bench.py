"""vLLM's engine with its own attention and with Riffle's, in turn in ONE engine: a Llama-3-8B-shaped model of 4 layers.

    make bench-vllm                                             # all of it, some 25 minutes on two cores
    .venv-vllm/bin/python bench/vllm_bench.py --only 'bf16 .* decode' --seconds 160
    .venv-vllm/bin/python bench/vllm_bench.py --table
    .venv/bin/python bench/vllm_bench.py --picture docs/vllm.svg    # after scripts/venv.sh bench, for matplotlib

A point is a type of cache, a number of sequences, a depth (tokens in the cache, or of the prompt) and a kind of work. Every
generation fills the cache with the same keys and values, each way in its own format, then decodes a few tokens; vLLM and
Riffle take turns, and the best of each is kept. What attention gives in the first step must be the same up to bfloat16's
rounding, and the tokens are compared. Points that build/vllm/bench.json has are not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import re
import statistics
import sys
import time

FOLDER = pathlib.Path(__file__).parents[1] / "build" / "vllm"
RESULTS = FOLDER / "bench.json"
WAYS = ("vLLM", "Riffle")
CACHES = {"bf16": "auto", "fp8": "fp8_e4m3"}
DEPTHS = (128, 1024, 4096, 16384, 65536)
SEQUENCES = (1, 8, 32)
LAYERS, KV_HEADS, HEAD_SIZE = 4, 8, 128
BLOCK = 128
BATCH = 2048  # tokens of a step at most: chunks of a prompt
MOST = 8 * 16384 + 48 * BLOCK  # tokens of a cache: 2.2 GB of bfloat16
FILLED = 4096  # random keys and values, written over and over
DECODED = 8
CONFIG = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=LAYERS,
    num_attention_heads=32, num_key_value_heads=KV_HEADS, head_dim=HEAD_SIZE, vocab_size=128256, max_position_embeddings=131072,
    rms_norm_eps=1e-5, rope_theta=500000.0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False, torch_dtype="bfloat16",
)  # fmt: skip


def points() -> list[tuple[str, int, int, str]]:
    decode = [(cache, sequences, depth, "decode") for cache in CACHES for sequences in SEQUENCES for depth in DEPTHS if sequences * depth <= MOST]
    return decode + [(cache, 1, depth, "prefill") for cache in CACHES for depth in (2048, 8192)]


class Engine:
    """One engine whose layers attend in either way."""

    def __init__(self, cache: str, sequences: int):
        import torch
        from riffle.vllm import _attention_backend
        from vllm import LLM

        # Every layer is left to vLLM while the engine starts, so that vLLM's kernels are set up; `use` decides later.
        _attention_backend._reason = lambda *_: "vLLM's turn"
        _attention_backend._warn_once = lambda *_: None
        folder = FOLDER / "models" / "llama_8b_shape"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        self.cache, self.sequences = cache, sequences
        token_bytes = (1 if cache == "fp8" else 2) * LAYERS * KV_HEADS * 2 * HEAD_SIZE
        self.llm = LLM(
            model=str(folder), load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True, block_size=BLOCK,
            max_model_len=max(DEPTHS) + 1024, max_num_seqs=sequences, max_num_batched_tokens=BATCH, enable_prefix_caching=False,
            kv_cache_dtype=CACHES[cache], num_gpu_blocks_override=MOST // BLOCK, kv_cache_memory_bytes=token_bytes * MOST,
            kv_transfer_config=dict(kv_connector="DecodeBenchConnector", kv_role="kv_both"), seed=0,
        )  # fmt: skip
        self.core = self.llm.llm_engine.engine_core.engine_core
        runner = self.core.model_executor.driver_worker.worker.model_runner
        self.layers = {name: layer for name, layer in runner.compilation_config.static_forward_context.items() if hasattr(layer, "impl")}
        self.builders = [builder for groups in runner.attn_groups for group in groups for builder in group.metadata_builders]
        assert len(self.layers) == LAYERS and self.builders
        random = torch.Generator().manual_seed(0)
        shape = (2, FILLED, KV_HEADS, HEAD_SIZE)
        self.content = torch.randn(shape, generator=random).to(torch.float8_e4m3fn).to(torch.bfloat16).unbind()  # a cache of either type holds it
        self.attention = 0.0
        self.outputs: list | None = None
        for layer in self.layers.values():
            self._watch(layer)
        self._fill_by_writing()

    def _watch(self, layer) -> None:
        """Adds up the time of a layer's calls, writes included, and keeps what they return while it is wanted."""
        impl = layer.impl
        forward, write = impl.forward, impl.do_kv_cache_update

        def timed_forward(*args, **options):
            begin = time.perf_counter()
            result = forward(*args, **options)
            self.attention += time.perf_counter() - begin
            if self.outputs is not None:
                self.outputs.append(result.clone())
            return result

        def timed_write(*args, **options):
            begin = time.perf_counter()
            write(*args, **options)
            self.attention += time.perf_counter() - begin

        impl.forward, impl.do_kv_cache_update = timed_forward, timed_write

    def _fill_by_writing(self) -> None:
        """The connector's cache of a new sequence holds keys and values that are written as a step writes them."""
        import torch
        from vllm.distributed.kv_transfer.kv_connector.v1 import decode_bench_connector as connector

        def fill(_, metadata) -> None:
            for blocks_of_groups, _tokens in metadata.reqs_to_fill.values():
                for layer in self.layers.values():
                    slots = (torch.tensor(blocks_of_groups[0])[:, None] * BLOCK + torch.arange(BLOCK)).flatten()
                    for part in slots.split(FILLED):
                        key, value = (x[: part.numel()] for x in self.content)
                        layer.impl.do_kv_cache_update(layer, key, value, layer.kv_cache, part)

        matched = connector.DecodeBenchConnectorScheduler.get_num_new_matched_tokens
        connector.DecodeBenchConnectorWorker.start_fill_kv = fill
        connector.DecodeBenchConnectorScheduler.get_num_new_matched_tokens = (
            lambda scheduler, request, computed: (0, False) if self.prefill else matched(scheduler, request, computed)
        )
        self.prefill = False

    def use(self, way: str) -> None:
        native = way == "vLLM"
        for layer in self.layers.values():
            layer.impl.left_to_vllm = "vLLM's turn" if native else None
        for builder in self.builders:
            builder.has_native = native

    def generate(self, way: str, depth: int, work: str, new: int) -> tuple[list[float], list[float], list[list[int]]]:
        """Seconds of each step, those in attention, and the tokens."""
        from vllm import SamplingParams

        self.use(way)
        self.prefill = work == "prefill"
        sampling = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        engine = self.llm.llm_engine
        for i in range(self.sequences):
            prompt = [(7 * j + 13 * i) % 100000 + 10 for j in range(depth)]
            engine.add_request(f"{way} {time.monotonic_ns()}", dict(prompt_token_ids=prompt), sampling)
        steps, attention, tokens = [], [], {}
        while engine.has_unfinished_requests():
            self.attention, begin = 0.0, time.perf_counter()
            outputs = engine.step()
            steps.append(time.perf_counter() - begin)
            attention.append(self.attention)
            for output in outputs:
                tokens[output.request_id] = list(output.outputs[0].token_ids)
        return steps, attention, [tokens[name] for name in sorted(tokens)]

    def measure(self, depth: int, work: str, rounds: int) -> dict:
        """Tokens a second and milliseconds in attention, the best of several turns, and how far the answers are apart."""
        speed, attention = dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, float("inf"))
        seen = {}
        begin = time.monotonic()
        for turn in range(rounds + 1):
            for way in WAYS if turn % 2 else reversed(WAYS):
                self.outputs = [] if turn == 0 else None
                steps, spent, tokens = self.generate(way, depth, work, 1 if work == "prefill" else DECODED + 1)
                if turn == 0:
                    seen[way] = self.outputs, tokens
                if work == "prefill":
                    speed[way] = max(speed[way], depth / sum(steps))
                    attention[way] = min(attention[way], sum(spent))
                elif turn > 0:  # the first step fills the cache
                    assert len(steps) == DECODED + 1, "a sequence had to wait"
                    speed[way] = max(speed[way], self.sequences / statistics.median(steps[1:]))
                    attention[way] = min(attention[way], statistics.median(spent[1:]))
            if work == "prefill" and time.monotonic() - begin > 60:
                break
        return dict(**agree(seen), tokens_per_second={way: round(x, 2) for way, x in speed.items()},
                    attention_ms={way: round(1e3 * x, 3) for way, x in attention.items()})  # fmt: skip


def agree(seen: dict) -> dict:
    """Of the first step: the largest difference of attention's results, as a part of the largest, and how many tokens are the same.

    With random weights the best two logits may be as near to each other as bfloat16's rounding is coarse.
    """
    (theirs, their_tokens), (ours, our_tokens) = (seen[way] for way in WAYS)
    pairs = list(zip(ours, theirs, strict=True))[:LAYERS]
    assert len(pairs) == LAYERS
    difference = max(((a.float() - b.float()).abs().max() / b.float().abs().max()).item() for a, b in pairs)
    assert difference < 0.03, f"attention differs by {difference} of its largest number"
    same = sum(a[0] == b[0] for a, b in zip(our_tokens, their_tokens, strict=True))
    assert same >= 0.9 * len(our_tokens) - 1, (our_tokens, their_tokens)
    return dict(difference=round(difference, 5), same_tokens=f"{same} of {len(our_tokens)}")


def read_results() -> list[dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def key(result: dict) -> tuple:
    return tuple(result[name] for name in ("cache", "sequences", "depth", "work"))


def measure_all(wanted: list[tuple[str, int, int, str]], seconds: float, rounds: int) -> int:
    """The points of the first engine that has any left; how many of all stay to be measured."""
    done = {key(result) for result in read_results()}
    left = [point for point in wanted if point not in done]
    if not left:
        return 0
    begin = time.monotonic()
    cache, sequences = left[0][:2]
    mine = [point for point in left if point[:2] == (cache, sequences)]
    engine = Engine(cache, sequences)
    for count, (_, _, depth, work) in enumerate(mine):
        if count and time.monotonic() - begin > seconds * 0.6:
            break
        result = dict(cache=cache, sequences=sequences, depth=depth, work=work, **engine.measure(depth, work, rounds))
        RESULTS.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in [*read_results(), result]) + "\n]\n")
        left.remove((cache, sequences, depth, work))
        print(result, flush=True)
    return len(left)


def table() -> None:
    for work in ("decode", "prefill"):
        print(f"\n| {work}: cache | sequences | tokens each | vLLM, tokens/s | Riffle, tokens/s | times | attention, ms: vLLM | Riffle | times |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        order = points()
        known = [result for result in read_results() if result["work"] == work and key(result) in order]
        for result in sorted(known, key=lambda result: order.index(key(result))):
            speed, spent = result["tokens_per_second"], result["attention_ms"]
            cells = [result["cache"], result["sequences"], result["depth"], f"{speed['vLLM']:.1f}", f"{speed['Riffle']:.1f}",
                     f"{speed['Riffle'] / speed['vLLM']:.2f}", f"{spent['vLLM']:.2f}", f"{spent['Riffle']:.2f}",
                     f"{spent['vLLM'] / spent['Riffle']:.2f}"]  # fmt: skip
            print("| " + " | ".join(map(str, cells)) + " |")


def picture(path: str) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "riffle"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(SEQUENCES), figsize=(11, 3.4))
    for axis, sequences in zip(axes, SEQUENCES, strict=True):
        for cache, marker in (("bf16", "o"), ("fp8", "^")):
            for way, line in (("Riffle", "-"), ("vLLM", "--")):
                results = [r for r in read_results() if (r["cache"], r["sequences"], r["work"]) == (cache, sequences, "decode")]
                results.sort(key=lambda r: r["depth"])
                axis.plot([r["depth"] for r in results], [r["tokens_per_second"][way] for r in results], marker + line, label=f"{way}, {cache} cache")
        axis.set(title=f"{sequences} sequence{'s' * (sequences > 1)}", xlabel="tokens in the cache of each", xscale="log", ylim=(0, None))
        axis.set_xticks(DEPTHS, [str(depth) for depth in DEPTHS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("tokens a second")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="of 'CACHE SEQUENCES DEPTH WORK'")
    parser.add_argument("--seconds", type=float, default=160, help="of one engine; run it again to go on")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument("--all", action="store_true", help="engine after engine, each in a process of its own, until every point is measured")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--picture")
    arguments = parser.parse_args()
    if arguments.table:
        return table()
    if arguments.picture:
        return picture(arguments.picture)
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="WARNING",
                      RIFFLE_VLLM="attention")  # fmt: skip
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    wanted = [point for point in points() if re.search(arguments.only, " ".join(map(str, point)))]
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not arguments.all:
        left = measure_all(wanted, arguments.seconds, arguments.rounds)
        print(f"{left} of {len(wanted)} points are left" if left else "all points are measured", flush=True)
        os._exit(0)  # an engine's threads and memory need no ceremony
    import subprocess

    while [point for point in wanted if point not in {key(result) for result in read_results()}]:
        subprocess.run([sys.executable, "-P", *[argument for argument in sys.argv if argument != "--all"]], check=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
