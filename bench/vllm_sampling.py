"""Sampling in vLLM's engine: vLLM's own sampler and Riffle's, in turn in ONE engine of Gemma 3 270M in bfloat16.

    .venv-vllm/bin/python bench/vllm_sampling.py --only '262144 32'     # after scripts/model.sh
    .venv-vllm/bin/python bench/vllm_sampling.py --table

A point is a vocabulary, a number of rows (sequences that decode) and the parameters of their requests. The model is real, so
that its logits are those of text; of 128256 tokens it has the first of its own 262144. Both ways decode a few tokens in turn;
medians of steps, and of the sampler in them, are kept, the best of several turns. In the first turn each token is checked to be one
that vLLM's filters leave. Points that build/vllm/sampling.json has are not measured again.
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

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "build" / "vllm" / "sampling.json"
WAYS = ("vLLM", "Riffle")
VOCABULARIES = (262144, 128256)
ROWS = (32, 1)
DECODED = 8
WORKS = {
    "top-p 0.95": dict(top_p=0.95),
    "top-k 64, top-p 0.95": dict(top_k=64, top_p=0.95),
    "temperature": {},
    "greedy": dict(temperature=0),
    "top-p 0.95, 20 log-probabilities": dict(top_p=0.95, logprobs=20),
}


def points() -> list[tuple[int, int, str]]:
    return [(vocabulary, rows, work) for vocabulary in VOCABULARIES for rows in ROWS for work in WORKS]


class Engine:
    """One engine that samples in either way."""

    def __init__(self, vocabulary: int):
        # Installs Riffle's sampler and can take it out again. vLLM is imported here, after its environment is set.
        import sampler_case
        import torch
        from vllm import LLM

        self.case = sampler_case
        self.prompts = _prompts(vocabulary)
        self.llm = LLM(
            model=str(_model(vocabulary)), dtype="bfloat16", skip_tokenizer_init=True, enforce_eager=True, max_model_len=256, max_num_seqs=max(ROWS),
            enable_prefix_caching=False, seed=0,
        )  # fmt: skip
        self.runner = self.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
        self.sampler_seconds = 0.0
        self.seen: tuple[torch.Tensor, torch.Tensor] | None = None
        self.check: dict | None = None
        runner = self.runner

        def timed_sample(logits, *arguments, **options):
            check = self.check
            raw = logits.clone() if check is not None else None
            begin = time.perf_counter()
            output = type(runner)._sample(runner, logits, *arguments, **options)
            self.sampler_seconds += time.perf_counter() - begin
            if raw is not None and check is not None:
                _check(raw, output, **check)
            return output

        runner._sample = timed_sample

    @contextlib.contextmanager
    def way(self, name: str):
        with self.case.native() if name == "vLLM" else contextlib.nullcontext():
            inner = self.runner.sampler.topk_topp_sampler
            inner.forward = inner.forward_cpu  # bound where the sampler was made
            yield

    def generate(self, way: str, rows: int, work: str) -> tuple[list[float], list[float]]:
        """Seconds of each decode step, and of the sampler in it."""
        from vllm import SamplingParams

        sampling = SamplingParams(**{"temperature": 1.0, **WORKS[work]}, max_tokens=DECODED + 1, ignore_eos=True, detokenize=False)
        engine = self.llm.llm_engine
        with self.way(way):
            for prompt in self.prompts[:rows]:
                engine.add_request(f"{way} {time.monotonic_ns()}", dict(prompt_token_ids=prompt), sampling)
            steps, sampler = [], []
            while engine.has_unfinished_requests():
                self.sampler_seconds, begin = 0.0, time.perf_counter()
                engine.step()
                steps.append(time.perf_counter() - begin)
                sampler.append(self.sampler_seconds)
        assert len(steps) == DECODED + 1, "a sequence had to wait"
        return steps[1:], sampler[1:]

    def measure(self, rows: int, work: str, rounds: int) -> dict:
        step, sampler = dict.fromkeys(WAYS, float("inf")), dict.fromkeys(WAYS, float("inf"))
        for turn in range(rounds + 1):
            for way in WAYS if turn % 2 else reversed(WAYS):
                self.check = dict(WORKS[work]) if turn == 0 else None
                steps, spent = self.generate(way, rows, work)
                if turn > 0:
                    step[way], sampler[way] = min(step[way], statistics.median(steps)), min(sampler[way], statistics.median(spent))
        return dict(step_ms={way: round(1e3 * x, 3) for way, x in step.items()}, sampler_ms={way: round(1e3 * x, 3) for way, x in sampler.items()})


def _check(logits, output, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, logprobs: int | None = None) -> None:
    """Asserts that every token is one that vLLM's filters leave, or as large as one: of equal logits either may be left out."""
    import torch
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

    rows, tokens = logits.shape[0], output.sampled_token_ids.long()
    raw = logits.float()
    if temperature == 0:
        assert torch.equal(tokens.squeeze(1), raw.argmax(1))
    else:
        k = None if top_k is None else torch.full((rows,), top_k)
        p = None if top_p is None else torch.full((rows,), top_p)
        left = apply_top_k_top_p_pytorch(raw.clone(), k, p)
        least = torch.where(left == -torch.inf, torch.inf, left).amin(1, keepdim=True)
        assert (raw.gather(1, tokens) >= least).all()
    if logprobs is not None:
        found = output.logprobs_tensors
        torch.testing.assert_close(found.logprobs, raw.log_softmax(1).gather(1, found.logprob_token_ids.long()), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found.logprobs[:, 1:], raw.log_softmax(1).topk(logprobs).values, rtol=1e-4, atol=1e-3)


def _model(vocabulary: int) -> pathlib.Path:
    """The folder of Gemma 3 270M, or of the same with the first tokens of its vocabulary alone."""
    import gemma
    from safetensors.torch import load_file, save_file

    whole = gemma.folder()
    config = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    if vocabulary == config["vocab_size"]:
        return whole
    path = whole.with_name(f"gemma3_270m_{vocabulary}")
    if not (path / "config.json").exists():
        path.mkdir(exist_ok=True)
        weights = load_file(whole / "model.safetensors")
        name = "model.embed_tokens.weight"
        weights[name] = weights[name][:vocabulary].clone()
        save_file(weights, path / "model.safetensors", {"format": "pt"})
        (path / "config.json").write_text(json.dumps({**config, "vocab_size": vocabulary}), encoding="utf-8")
    return path


def _prompts(vocabulary: int) -> list[list[int]]:
    """Beginnings of texts, for as many sequences as there are rows at most."""
    import gemma

    texts = gemma.texts()
    prompts = [[gemma.BEGIN, *(token for token in texts[i % len(texts)][i // len(texts) * 3 :][:16] if token < vocabulary)] for i in range(max(ROWS))]
    assert min(map(len, prompts)) > 4
    return prompts


def read_results() -> list[dict]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []


def key(result: dict) -> tuple:
    return result["vocabulary"], result["rows"], result["work"]


def measure_all(wanted: list[tuple[int, int, str]], seconds: float, rounds: int) -> int:
    """Points of the first vocabulary that has any left, for at least a part of `seconds`; how many of all stay to be measured."""
    done = {key(result) for result in read_results()}
    left = [point for point in wanted if point not in done]
    if not left:
        return 0
    begin = time.monotonic()
    engine = Engine(left[0][0])
    for count, (vocabulary, rows, work) in enumerate([point for point in left if point[0] == left[0][0]]):
        if count and time.monotonic() - begin > seconds * 0.7:
            break
        result = dict(vocabulary=vocabulary, rows=rows, work=work, **engine.measure(rows, work, rounds))
        RESULTS.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in [*read_results(), result]) + "\n]\n", encoding="utf-8")
        left.remove((vocabulary, rows, work))
        print(result, flush=True)
    return len(left)


def table() -> None:
    print("| vocabulary | rows | sampling | step, ms: vLLM | Riffle | times | sampler, ms: vLLM | Riffle | of the step: vLLM | Riffle |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    order = points()
    for result in sorted(read_results(), key=lambda result: order.index(key(result))):
        step, sampler = result["step_ms"], result["sampler_ms"]
        cells = [*key(result), f"{step['vLLM']:.1f}", f"{step['Riffle']:.1f}", f"{step['vLLM'] / step['Riffle']:.2f}", f"{sampler['vLLM']:.2f}",
                 f"{sampler['Riffle']:.2f}", *(f"{100 * sampler[way] / step[way]:.1f} %" for way in WAYS)]  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="of 'VOCABULARY ROWS SAMPLING'")
    parser.add_argument("--seconds", type=float, default=160, help="of one engine; run it again to go on")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each way")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        return table()
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="WARNING", RIFFLE_VLLM="attention")
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    sys.path.insert(0, str(ROOT / "python" / "tests_vllm"))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    wanted = [point for point in points() if re.search(arguments.only, " ".join(map(str, point)))]
    left = measure_all(wanted, arguments.seconds, arguments.rounds)
    print(f"{left} of {len(wanted)} points are left" if left else "all points are measured", flush=True)
    os._exit(0)  # an engine's threads and memory need no ceremony


if __name__ == "__main__":
    main()
