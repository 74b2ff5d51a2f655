"""One vLLM engine in a process of its own: reads a job (JSON) from a file, runs it and writes what came out to another.

A job:
  model   the folder
  engine  arguments of vllm.LLM beside those that all jobs share
  runs    a list, one after another in the same engine, each with
            prompts     lists of tokens
            max_tokens  generated for each, whatever they are; 0: embeddings instead
            logprobs    how many of the best to return with each token (optional)
            drop        an argument of riffle.paged_attention that this run leaves out: a control (optional)
"""

from __future__ import annotations

import inspect
import json
import sys


def main() -> None:
    source, target = sys.argv[1:]
    with open(source, encoding="utf-8") as file:
        job = json.load(file)
    result = run(job)
    with open(target, "w", encoding="utf-8") as file:
        json.dump(result, file)


def run(job: dict) -> dict:
    from vllm import LLM

    options = dict(enforce_eager=True, skip_tokenizer_init=True, disable_log_stats=False, seed=0, max_model_len=512, max_num_seqs=32)
    llm = LLM(model=job["model"], **{**options, **job.get("engine", {})})
    runs = []
    for spec in job["runs"]:
        with dropped(spec.get("drop")):
            llm.reset_prefix_cache() if spec.get("forget") else None
            runs.append(embeddings(llm, spec) if spec["max_tokens"] == 0 else generated(llm, spec))
    preemptions = [metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions"]
    return dict(runs=runs, preemptions=sum(preemptions), layers=layers(llm))


class dropped:
    """While it lasts, the backend's calls lack one argument."""

    def __init__(self, name: str | None) -> None:
        self.name = name

    def __enter__(self) -> None:
        if self.name is None:
            return
        import riffle

        self.original = original = riffle.paged_attention
        name = self.name
        assert name in inspect.signature(original).parameters

        def without(*args, **options):
            assert options[name] is not None, f"{name} was not used: nothing to drop"
            return original(*args, **{**options, name: None})

        riffle.paged_attention = without

    def __exit__(self, *error) -> None:
        if self.name is not None:
            import riffle

            riffle.paged_attention = self.original


def generated(llm, spec: dict) -> dict:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=spec["max_tokens"], ignore_eos=True, detokenize=False, logprobs=spec.get("logprobs"))
    outputs = llm.generate([dict(prompt_token_ids=prompt) for prompt in spec["prompts"]], sampling, use_tqdm=False)
    result = dict(tokens=[list(output.outputs[0].token_ids) for output in outputs], cached=[output.num_cached_tokens for output in outputs])
    if spec.get("logprobs"):
        result["logprobs"] = [
            [{token: entry.logprob for token, entry in position.items()} for position in output.outputs[0].logprobs] for output in outputs
        ]
    return result


def embeddings(llm, spec: dict) -> dict:
    outputs = llm.encode([dict(prompt_token_ids=prompt) for prompt in spec["prompts"]], pooling_task="embed", use_tqdm=False)
    return dict(embeddings=[output.outputs.data.tolist() for output in outputs])


def layers(llm) -> dict:
    """Of each attention layer: its implementation, and the shape and dtype of its cache."""
    found = {}
    context = llm.llm_engine.vllm_config.compilation_config.static_forward_context
    for name, layer in context.items():
        if hasattr(layer, "impl"):
            cache = layer.kv_cache
            found[name] = dict(implementation=type(layer.impl).__name__, cache=list(cache.shape), dtype=str(cache.dtype),
                               left_to_vllm=getattr(layer.impl, "left_to_vllm", None))  # fmt: skip
    return found


if __name__ == "__main__":
    main()
