"""Rotary embedding of queries [tokens, heads, head_dim] on CPUs, as models with MLA have them.

vLLM 0.32's `rotary_embedding` for CPUs takes three axes for [batch, tokens, heads * head_dim]: with more than one head it rotates
by the angles of other tokens. Compiled models do not run it; models run with enforce_eager do, and then generate nonsense.
"""

from __future__ import annotations

import functools

from riffle.vllm._interfaces import expect_parameters, find, wrap_classmethod


def mend_rotation(platform: type) -> None:
    """Has every worker of vLLM mend it before there is a model, when it asks the platform for stand-ins of Triton's kernels."""

    def outer(original):
        original()
        _mend()

    find(platform.__module__, platform.__name__, "register_triton_kernel_overrides")
    wrap_classmethod(platform, "register_triton_kernel_overrides", outer)


def _mend() -> None:
    """Hands such queries and keys over with two axes. Once; later calls change nothing."""
    owner = find("vllm.model_executor.layers.rotary_embedding.base", "RotaryEmbedding")
    original = owner.__dict__.get("forward_cpu")
    if original is None or hasattr(original, "riffle"):
        return
    expect_parameters(original, "self", "positions", "query", "key")

    @functools.wraps(original)
    def forward_cpu(self, positions, query, key=None):
        if positions.dim() != 1 or query.dim() != 3:
            return original(self, positions, query, key)
        rotated, keys = original(self, positions, query.flatten(1), None if key is None else key.flatten(1))
        return rotated.view(query.shape), None if key is None else keys.view(key.shape)

    forward_cpu.riffle = True
    owner.forward_cpu = forward_cpu
