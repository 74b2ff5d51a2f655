"""What the ways from Transformers' attention interface to riffle.paged_attention share."""

from __future__ import annotations

from typing import Any, Literal

import torch

import riffle
from riffle._transformers_masks import VisibleKeys

# The head_dim that riffle takes: a multiple of the step.
HEAD_DIM_STEP, MAX_HEAD_DIM = 8, 1024


def refuse(module: Any, reason: str) -> ValueError:
    config = getattr(module, "config", None)
    name = getattr(config, "model_type", None) or type(module).__name__
    return ValueError(f"riffle attention does not compute {name} ({type(module).__name__}): {reason}")


def tokens_as_pages(x: torch.Tensor) -> torch.Tensor:
    """x [batch, heads, tokens, head_dim] in place as pages of one token each, [pages, heads, 1, head_dim]: token i of row b
    is page b * (stride of rows) / (stride of tokens) + i."""
    batch, heads, tokens, head_dim = x.shape
    row, head, token, _ = x.stride()
    pages = tokens + (batch - 1) * (row // token)
    return x.as_strided((pages, heads, 1, head_dim), (token, head, token, 1))


def attend(q, keys, values, where: VisibleKeys, layout: Literal["HND", "NHD"], options) -> Any:
    options = {"causal": where.causal, "window": where.window, "mask": where.mask, **options}
    return riffle.paged_attention(
        q, keys, values, where.kv_lens, where.page_table, cu_q_lens=where.cu_q_lens, layout=layout, **options
    )
