"""Riffle in vLLM's server on CPUs: a plugin that vLLM finds by itself once this package is installed.

vLLM calls `register` in its front end, its engine core and each of its workers (the entry point `vllm.general_plugins`).
Each part of Riffle takes the place of what vLLM does on a CPU:

  attention  decoder, encoder, cross and encoder-only layers
  mla        multi-head latent attention (DeepSeek V2, V3, R1)
  sparse     the sparse attention of DeepSeek V3.2 and GLM-5, which vLLM does not have on CPUs
  sampler    top-k, top-p, min-p and plain sampling

`RIFFLE_VLLM=0` leaves all to vLLM; `RIFFLE_VLLM=attention,sampler` names the parts that are wanted. A line in the log says
what is on, what is left to vLLM and why. A version of vLLM whose interfaces differ is left alone with one warning.
"""

from riffle.vllm._parts import register

__all__ = ["register"]
