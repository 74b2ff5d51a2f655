"""Runs jobs, each with one engine of vLLM in a process of its own.

vLLM is imported once, which takes as long as most jobs; each job is a fork of this process. A line of standard input is a
request (JSON), a line of standard output the exit status of its process:
  job          a file with the job (JSON)
  result, log  files to write: what came out (JSON), what the process printed
  environment  variables of this job

A job:
  model   the folder
  engine  arguments of vllm.LLM beside those that all jobs share
  runs    a list, one after another in the same engine, each with
            prompts     lists of tokens
            max_tokens  generated for each, whatever they are; 0: embeddings instead
            sounds      seconds of sound for each prompt, which is then the decoder's (optional)
            logprobs    how many of the best to return with each token (optional)
            change      arguments of riffle.paged_attention that this run replaces: a control (optional)
            forget      whether cached prefixes are forgotten first (optional)
  leave_every  n: every n-th layer is left to vLLM (optional)
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import sys
import traceback


def main() -> None:
    import_all()
    for line in sys.stdin:
        print(serve(json.loads(line)), flush=True)


def import_all() -> None:
    """What every engine imports. Nothing here may start a thread: the others would be missing in a fork."""
    for module in ("vllm", "vllm.entrypoints.llm", "vllm.v1.engine.core", "vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker",
                   "vllm.v1.worker.cpu_model_runner", "vllm.v1.executor.uniproc_executor", "vllm.model_executor.models.llama",
                   "vllm.model_executor.model_loader.default_loader", "vllm.v1.attention.backends.cpu_attn", "transformers.models.llama"):  # fmt: skip
        importlib.import_module(module)


def serve(request: dict) -> int:
    """Runs a job in a fork of this process; the exit status of that."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(request["environment"])
    try:
        with open(request["job"], encoding="utf-8") as file:
            result = run(json.load(file))
        with open(request["result"], "w", encoding="utf-8") as file:
            json.dump(result, file)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run(job: dict) -> dict:
    from vllm import LLM

    options = dict(enforce_eager=True, skip_tokenizer_init=True, disable_log_stats=False, seed=0, max_model_len=512, max_num_seqs=32)
    if "leave_every" in job:
        leave_every(job["leave_every"])
    llm = LLM(model=job["model"], **{**options, **job.get("engine", {})})
    runs = []
    for spec in job["runs"]:
        if spec.get("forget"):
            llm.reset_prefix_cache()
        with changed(spec.get("change")):
            runs.append(embeddings(llm, spec) if spec["max_tokens"] == 0 else generated(llm, spec))
    counters = {name: sum(metric.value for metric in llm.get_metrics() if metric.name == name)
                for name in ("vllm:num_preemptions", "vllm:spec_decode_num_draft_tokens")}  # fmt: skip
    return dict(runs=runs, preemptions=counters["vllm:num_preemptions"], drafts=counters["vllm:spec_decode_num_draft_tokens"], layers=layers(llm))


@contextlib.contextmanager
def changed(options: dict | None):
    """While it lasts, the backend's calls have other arguments."""
    import riffle

    original = riffle.paged_attention

    def with_changes(*args, **own):
        # In a model with windows, layers without one are not touched.
        if all(own[name] is None for name in options) and None in options.values():
            return original(*args, **own)
        differs.append(any(own[name] is not value for name, value in options.items()))
        return original(*args, **{**own, **options})

    differs: list[bool] = []
    if options:
        riffle.paged_attention = with_changes
    try:
        yield
    finally:
        riffle.paged_attention = original
    assert not options or any(differs), f"the calls have {options} anyway"


def leave_every(n: int) -> None:
    from riffle.vllm import _attention_backend

    layers = itertools.count(1)
    _attention_backend._reason = lambda *args: None if next(layers) % n else "a test"


def generated(llm, spec: dict) -> dict:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=spec["max_tokens"], ignore_eos=True, detokenize=False, logprobs=spec.get("logprobs"))
    prompts = [dict(prompt_token_ids=prompt) for prompt in spec["prompts"]]
    if "sounds" in spec:
        prompts = [dict(encoder_prompt=dict(prompt_token_ids=[0], multi_modal_data=dict(audio=(sound(seconds), 16000))), decoder_prompt=prompt)
                   for prompt, seconds in zip(prompts, spec["sounds"])]  # fmt: skip
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    result = dict(tokens=[list(output.outputs[0].token_ids) for output in outputs], cached=[output.num_cached_tokens for output in outputs])
    if spec.get("logprobs"):
        result["logprobs"] = [
            [{token: entry.logprob for token, entry in position.items()} for position in output.outputs[0].logprobs] for output in outputs
        ]
    return result


def sound(seconds: float):
    """A tone that rises, at 16 kHz; another one for another length."""
    import numpy

    time = numpy.arange(int(seconds * 16000)) / 16000
    return numpy.sin(2000 * time * (seconds + time)).astype(numpy.float32)


def embeddings(llm, spec: dict) -> dict:
    outputs = llm.encode([dict(prompt_token_ids=prompt) for prompt in spec["prompts"]], pooling_task="embed", use_tqdm=False)
    return dict(embeddings=[output.outputs.data.tolist() for output in outputs])


def layers(llm) -> dict:
    """The implementation of each attention layer, and the shape and dtype of its cache."""
    found = {}
    context = llm.llm_engine.vllm_config.compilation_config.static_forward_context
    for name, layer in context.items():
        if hasattr(layer, "impl"):
            cache = layer.kv_cache
            ours = any(kind.__name__ == "RiffleAttentionImpl" for kind in type(layer.impl).__mro__)
            found[name] = dict(implementation=type(layer.impl).__name__, ours=ours, cache=list(cache.shape), dtype=str(cache.dtype),
                               left_to_vllm=getattr(layer.impl, "left_to_vllm", None))  # fmt: skip
    return found


if __name__ == "__main__":
    main()
