"""Rotary embedding of the interleaved kind, which models with MLA have, where vLLM's kernel for CPUs gets it wrong.

With queries of three axes [tokens, heads, head_dim] and more than one head, vLLM 0.32's `rotary_embedding` on CPUs takes the
angles of other tokens. Compiled models do not run it; models run with enforce_eager do, and then generate nonsense.
"""

from __future__ import annotations

import functools

from riffle.vllm._interfaces import expect_parameters, find


def mend() -> None:
    """Has such queries rotated by vLLM's own formula in PyTorch. Once; later calls change nothing."""
    owner = find("vllm.model_executor.layers.rotary_embedding.base", "RotaryEmbedding")
    original = owner.__dict__.get("forward_cpu")
    if original is None or hasattr(original, "riffle"):
        return
    expect_parameters(original, "self", "positions", "query", "key")
    expect_parameters(owner.forward_native, "self", "positions", "query", "key")

    @functools.wraps(original)
    def forward_cpu(self, positions, query, key=None):
        rotate = original if self.is_neox_style or query.dim() < 3 else type(self).forward_native
        return rotate(self, positions, query, key)

    forward_cpu.riffle = True
    owner.forward_cpu = forward_cpu
