// Keys, or values, as operands of the kernels: in place, or decoded. Included once per SIMD target.
#if defined(RIFFLE_ATTENTION_KV_SOURCE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RIFFLE_ATTENTION_KV_SOURCE_INL_H_
#undef RIFFLE_ATTENTION_KV_SOURCE_INL_H_
#else
#define RIFFLE_ATTENTION_KV_SOURCE_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "attention/decode_bf16-inl.h"
#include "attention/decode_f32-inl.h"
#include "attention/dot-inl.h"
#include "attention/find_rows-inl.h"
#include "attention/kv_rows.h"
#include "attention/pack_values-inl.h"
#include "attention/scales-inl.h"
#include "core/bf16_dot.h"

HWY_BEFORE_NAMESPACE();
namespace riffle::attention::HWY_NAMESPACE {

// Whether kernels of `Math` read rows of this code in place.
constexpr bool InPlace(F32Math, RowCode code) { return code == RowCode::kF32; }
#if RIFFLE_BF16_DOT
constexpr bool InPlace(BF16Math, RowCode code) { return code == RowCode::kBF16; }
#endif

// F32Math multiplies elements by their scales as it decodes them. BF16Math leaves elements exact;
// their scales multiply scores and probabilities.
template <class Math>
class KvSource {
  using Operand = typename Math::Operand;
  static constexpr bool kUnscaledOperands = Math::kPerOperand == 2;

 public:
  // `scales` has room for ScaleFloats(kv).
  KvSource(const AttentionArgs& args, const KvPages& kv, float* scales)
      : args_(args), kv_(kv), decode_(FindDecoder(Math(), kv.code)), scales_(scales) {}

  static int64_t ScaleFloats(const KvPages& kv) {
    return int64_t{kv.scales_per_row} * (HasOffsets(kv.code) ? 2 : 1) * kBlock;
  }

  // How many scales of a row multiply its scores or probabilities.
  int scales_per_row() const { return kUnscaledOperands ? kv_.scales_per_row : 0; }
  int elements_per_scale() const { return kv_.elements_per_scale; }
  bool in_place() const { return InPlace(Math(), kv_.code); }
  RowCode code() const { return kv_.code; }
  // Whether an operand may be NaN or infinite.
  bool HasNonFiniteOperands() const { return !kUnscaledOperands || HasNonFinite(kv_.code); }

  // Scale g of each of the block's 64 keys. Pre: FindScales has run for the block's groups.
  const float* Scales(int g) const { return scales_ + g * kBlock; }

  // Loads the scales of group `group` of a block, whose rows are `rows`, if scales_per_row() > 0.
  void FindScales(const RowsAt& at, [[maybe_unused]] const KvRows& rows, int group) const {
    if (scales_per_row() > 0) {
      float* to = scales_ + group * kGroupKeys;
#if HWY_CAP_GE512
      if (IsBlocks(kv_.code)) {
        LoadScalesOfBlocks(kv_, rows, kBlock, to);
        return;
      }
#endif
      FindScalesIn(at, kBlock, to);
    }
  }

  void Rows(const RowsAt& at, KvRows* rows) const { Find(kv_, at, rows); }

  // Rows that kernels can read: in place, or decoded into buffer[16][stride].
  void Readable(const RowsAt& at, int stride, Operand* buffer, KvRows* rows) const {
    if (in_place()) {
      return Rows(at, rows);
    }
    Decode(at, stride, buffer);
    for (int i = 0; i < kGroupKeys; ++i) {
      rows->row[i] = reinterpret_cast<const uint8_t*>(buffer + i * stride);
    }
  }

  // Decodes 16 rows to to[16][stride].
  void Decode(const RowsAt& at, int stride, Operand* to) const {
    KvRows rows;
    Rows(at, &rows);
    if constexpr (kUnscaledOperands) {
      decode_(kv_, rows, stride, to);
    } else {
      if (kv_.scales_per_row > 0) {
        FindScalesIn(at, kGroupKeys, scales_);
      }
      decode_(kv_, rows, scales_, stride, to);
    }
  }

  // Packs 16 rows to to[16 / kPerOperand][stride]: an operand has kPerOperand keys of one column.
  //   buffer  [16][dim / kPerOperand]
  void PackColumns(const RowsAt& at, int stride, Operand* buffer, Operand* to) const {
    if constexpr (kUnscaledOperands) {
      KvRows rows;
      Readable(at, kv_.dim / Math::kPerOperand, buffer, &rows);
      InterleaveRows(rows, kv_.dim, stride, to);
    } else {
      Decode(at, stride, to);
    }
  }

 private:
  void FindScalesIn(const RowsAt& at, int stride, float* to) const {
    const RowRun run = FindRun(args_, kv_.scales, at.seq, at.head, at.begin, at.seen);
    if (run.data != nullptr) {
      LoadScales(kv_, stride, to, [&](int64_t offset, float* numbers) HWY_ATTR {
        LoadNumbersOfRun(kv_.scale_dtype, run, offset, numbers);
      });
      return;
    }
    KvRows rows;
    Find(kv_.scales, at, &rows);
    LoadScales(kv_, stride, to, [&](int64_t offset, float* numbers) HWY_ATTR {
      LoadNumbers(kv_.scale_dtype, rows, offset, numbers);
    });
  }

  void Find(const KvBytes& bytes, const RowsAt& at, KvRows* rows) const {
    FindRowsSimd(args_, bytes, at, rows);
  }

  const AttentionArgs& args_;
  const KvPages& kv_;
  const decltype(FindDecoder(Math(), RowCode::kF32)) decode_;
  float* const scales_;
};

}  // namespace riffle::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
