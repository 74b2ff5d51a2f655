// What the opaque pointers of the C API point to.
#pragma once

#include "riffle/attention.h"
#include "riffle/c/riffle.h"
#include "riffle/kv_cache.h"
#include "riffle/runtime.h"

struct riffle_thread_pool {
  riffle::ThreadPool pool;
};

struct riffle_attention_plan {
  riffle::AttentionPlan plan;
};

struct riffle_kv_cache {
  riffle::KvCache cache;
};
