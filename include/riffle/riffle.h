// The whole public API.
#pragma once

#include "riffle/attention.h"
#include "riffle/compress_kv.h"
#include "riffle/error.h"
#include "riffle/indexer.h"
#include "riffle/indices.h"
#include "riffle/kv_cache.h"
#include "riffle/linear_topk.h"
#include "riffle/roofline.h"
#include "riffle/runtime.h"
#include "riffle/sampling.h"
#include "riffle/sparse_attention.h"
#include "riffle/topk.h"
#include "riffle/types.h"
#include "riffle/version.h"
#include "riffle/write_kv.h"
