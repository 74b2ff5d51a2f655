"""A logits processor for vLLM's server: the logits of a request with vllm_xargs {"nan": N} turn into NaN at its Nth token."""

import math

from vllm.v1.sample.logits_processor import AdapterLogitsProcessor


class NanOnRequest(AdapterLogitsProcessor):
    def is_argmax_invariant(self):
        return False

    def new_req_logits_processor(self, params):
        at = (params.extra_args or {}).get("nan")
        if at is None:
            return None

        def process(output_ids, logits):
            return logits.fill_(math.nan) if len(output_ids) >= int(at) else logits

        return process
