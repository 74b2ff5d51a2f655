"""Rotary embedding of queries [tokens, heads, head_dim] on CPUs, as models with MLA have them.

vLLM 0.32's `rotary_embedding` for CPUs takes three axes for [batch, tokens, heads * head_dim]: with more than one head it rotates
by the angles of other tokens. Compiled models do not run it; models run with enforce_eager do, and then generate nonsense.
"""

from __future__ import annotations

from riffle.vllm._interfaces import InterfaceMismatch, expect_parameters, find, warn, wrap_classmethod


def patch_rotary_embedding(platform: type) -> None:
    """Makes every worker of vLLM repair it before the model is made, when it asks the platform for replacements of Triton's kernels."""

    def outer(original):
        original()
        try:
            _patch()
        except InterfaceMismatch as error:
            warn(f"rotary embedding is left as it is: {error}")

    find(platform.__module__, platform.__name__, "register_triton_kernel_overrides")
    wrap_classmethod(platform, "register_triton_kernel_overrides", outer)


def _patch() -> None:
    """Hands such queries and keys over with two axes. Once; later calls change nothing."""
    owner = find("vllm.model_executor.layers.rotary_embedding.base", "RotaryEmbedding")
    original = owner.__dict__.get("forward_cpu")
    if original is None or original.__module__ == __name__:
        return
    expect_parameters(original, "self", "positions", "query", "key")

    def forward_cpu(self, positions, query, key=None):
        if positions.dim() != 1 or query.dim() != 3:
            return original(self, positions, query, key)
        rotated, keys = original(self, positions, query.flatten(1), None if key is None else key.flatten(1))
        return rotated.view(query.shape), None if key is None else keys.view(key.shape)

    owner.forward_cpu = forward_cpu
