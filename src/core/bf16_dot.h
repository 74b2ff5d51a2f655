// Which SIMD targets have dot products of bf16.
#pragma once

// For #if in code that is compiled once per target: whether the target multiplies pairs of bf16
// into f32 by one instruction. (In Highway 1.2, HWY_NATIVE_DOT_BF16 is also true for NEON without
// bf16 if NEON_BF16 was compiled before.)
#define RIFFLE_BF16_DOT ((HWY_ARCH_X86 && HWY_NATIVE_DOT_BF16) || HWY_TARGET == HWY_NEON_BF16)
