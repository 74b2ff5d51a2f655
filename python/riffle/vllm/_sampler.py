"""vLLM's V1 sampler on Riffle: draws, masks and the best log-probabilities.

The distributions are vLLM's: temperature, then min-p, then top-k, then top-p of what is left. Of logits
that tie with the k-th, Riffle keeps the lower tokens, so that k are kept, and vLLM keeps all.
"""

from __future__ import annotations

from typing import Any

import torch

import riffle
import riffle.torch
from riffle.vllm import _failed_requests, _generators, _speculative, _untouched_logits
from riffle.vllm._draws import batch_arguments, draw, greedy
from riffle.vllm._interfaces import InterfaceMismatch, expect_attributes, expect_parameters, find, replace_function

_MODULE = "vllm.v1.sample.sampler"
_TOPK_TOPP = "vllm.v1.sample.ops.topk_topp_sampler"


def install() -> str | None:
    """Puts Riffle in the place of vLLM's sampling. Returns why not, or None."""
    try:
        hooks = _Hooks()
    except InterfaceMismatch as mismatch:
        return f"not with this version of vLLM: {mismatch}"
    hooks.install()
    _generators.install()
    _speculative.install()
    return None


class _Hooks:
    """The functions of vLLM that are replaced. All are found before any is changed."""

    def __init__(self) -> None:
        self.sampler = find(_MODULE, "Sampler")
        self.topk_topp = find(_TOPK_TOPP, "TopKTopPSampler")
        self.min_p = find("vllm.v1.sample.logits_processor.builtin", "MinPLogitsProcessor")
        self.mask = find(_TOPK_TOPP, "apply_top_k_top_p")
        self.processed_modes = find("vllm.config.model", "PROCESSED_LOGPROBS_MODES")
        expect_parameters(find(_MODULE, "Sampler", "forward"), "self", "logits", "sampling_metadata")
        expect_parameters(find(_MODULE, "Sampler", "sample"), "self", "logits", "sampling_metadata", "logprobs_mode_override")
        expect_parameters(find(_MODULE, "Sampler", "greedy_sample"), "logits")
        expect_parameters(find(_MODULE, "Sampler", "gather_logprobs"), "logprobs", "num_logprobs", "token_ids")
        expect_parameters(find(_TOPK_TOPP, "TopKTopPSampler", "forward_cpu"), "self", "logits", "generators", "k", "p")
        expect_parameters(self.mask, "logits", "k", "p")
        expect_parameters(self.min_p.apply, "self", "logits")
        expect_attributes(self.min_p, "min_p", "min_p_count")
        expect_attributes(self.sampler, "logprobs_mode", "use_fp64_gumbel")
        expect_attributes(self.topk_topp, "logprobs_mode", "use_fp64_gumbel")
        expect_parameters(find("vllm.v1.outputs", "SamplerOutput"), "sampled_token_ids", "logprobs_tensors")
        expect_parameters(find("vllm.v1.outputs", "LogprobsTensors"), "logprob_token_ids", "logprobs", "selected_token_ranks")
        fields = find("vllm.v1.sample.metadata", "SamplingMetadata", "__dataclass_fields__")
        wanted = (
            "temperature", "all_greedy", "all_random", "top_p", "top_k", "generators", "logitsprocs", "max_num_logprobs", "no_penalties",
            "allowed_token_ids_mask", "bad_words_token_ids", "logprob_token_ids", "thinking_budget_state_holder",
        )  # fmt: skip
        missing = [name for name in wanted if name not in fields]
        if missing:
            raise InterfaceMismatch(f"SamplingMetadata has no {', '.join(missing)}")

    def install(self) -> None:
        _failed_requests.install()
        self._install_mask()
        self._install_min_p()
        self._install_topk_topp()
        self._install_sampler()

    def _install_mask(self) -> None:
        """apply_top_k_top_p, for rejection sampling, processed log-probabilities and the V2 runner."""
        native = self.mask

        def apply_top_k_top_p(logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None) -> torch.Tensor:
            if logits.dtype != torch.float32 or logits.ndim != 2 or not logits.is_cpu:
                return native(logits, k, p)
            if k is None and p is None:
                return logits
            return riffle.apply_top_k_top_p_(logits, k, p)

        replace_function(native, apply_top_k_top_p)

    def _install_min_p(self) -> None:
        native = self.min_p.apply

        def apply(processor: Any, logits: torch.Tensor) -> torch.Tensor:
            if logits.dtype != torch.float32 or not logits.is_cpu or not processor.min_p_count:
                return native(processor, logits)
            return riffle.apply_top_k_top_p_(logits, None, None, processor.min_p.view(-1))

        self.min_p.apply = apply

    def _install_topk_topp(self) -> None:
        native = self.topk_topp.forward_cpu
        processed_modes = self.processed_modes

        def forward_cpu(
            sampler: Any, logits: torch.Tensor, generators: dict[int, torch.Generator], k: torch.Tensor | None, p: torch.Tensor | None
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            if sampler.use_fp64_gumbel:
                return native(sampler, logits, generators, k, p)
            processed = None
            if sampler.logprobs_mode in processed_modes:
                logits, k, p = riffle.apply_top_k_top_p_(logits, k, p), None, None
                processed = logits
                if sampler.logprobs_mode == "processed_logprobs":
                    processed = logits.log_softmax(dim=-1, dtype=torch.float32)
            return draw(logits, generators, top_k=k, top_p=p)[0], processed

        self.topk_topp.forward_cpu = forward_cpu

    def _install_sampler(self) -> None:
        cls, min_p, processed_modes = self.sampler, self.min_p, self.processed_modes
        forward, sample, gather_logprobs = cls.forward, cls.sample, cls.gather_logprobs

        def riffle_sample(
            sampler: Any, logits: torch.Tensor, sampling_metadata: Any, logprobs_mode_override: Any = None
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            arguments = batch_arguments(sampling_metadata, min_p)
            if arguments is None or sampler.use_fp64_gumbel or sampler.logprobs_mode in processed_modes:
                return sample(sampler, logits, sampling_metadata, logprobs_mode_override)
            return draw(logits, **arguments)[0], None

        def riffle_gather_logprobs(logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> Any:
            if not 0 < num_logprobs <= logprobs.shape[-1] or logprobs.dtype != torch.float32 or not logprobs.is_cpu:
                return gather_logprobs(logprobs, num_logprobs, token_ids)
            best = riffle.torch.topk(logprobs, num_logprobs)
            token = gather_logprobs(logprobs, 0, token_ids)
            return token._replace(
                logprob_token_ids=torch.cat((token.logprob_token_ids, best.indices.to(torch.int32)), dim=1),
                logprobs=torch.cat((token.logprobs, best.values), dim=1),
            )

        cls.forward = _failed_requests.marking(_untouched_logits.forward(forward, gather_logprobs, min_p))
        cls.sample = riffle_sample
        cls.greedy_sample = staticmethod(lambda logits: greedy(logits)[0])
        cls.gather_logprobs = staticmethod(riffle_gather_logprobs)
