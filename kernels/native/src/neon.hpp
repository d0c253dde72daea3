// AArch64 NEON; with the dot product instructions where the file that includes this is built with them.
#pragma once

#include <arm_neon.h>

#include "expand_table.hpp"
#include "tiles.hpp"

namespace {
namespace edgesparse {

struct Neon : Portable {
  static constexpr bool kOffset = false;

  struct Sums {
    int32x4_t four[4];  // rows 4 i to 4 i + 3
  };

  static void expand(const uint8_t* codes, uint64_t mask, int shift, int low, uint8_t* lanes) {
    const int8x16_t amount = vdupq_n_s8(static_cast<int8_t>(-shift));
    const uint8x16_t bits = vdupq_n_u8(static_cast<uint8_t>(low));
    const uint64_t counts = vget_lane_u64(vreinterpret_u64_u8(vcnt_u8(vcreate_u8(mask))), 0);
    const uint64_t before = (counts * 0x0101010101010101u) << 8;
    for (int i = 0; i < 64; i += 16) {
      const uint8x8_t a = eight(codes, before, mask, i), b = eight(codes, before, mask, i + 8);
      vst1q_u8(lanes + i, vandq_u8(vshlq_u8(vcombine_u8(a, b), amount), bits));
    }
  }

  static void to_signed(uint8_t* lanes, int64_t count, uint8_t sign) {
    const uint8x16_t bit = vdupq_n_u8(sign);
    for (int64_t l = 0; l < count; l += 16)
      vst1q_u8(lanes + l, vsubq_u8(veorq_u8(vld1q_u8(lanes + l), bit), bit));
  }

  static Sums load(const int32_t* from) {
    return {{vld1q_s32(from), vld1q_s32(from + 4), vld1q_s32(from + 8), vld1q_s32(from + 12)}};
  }
  static void store(const Sums& sums, int32_t* to) {
    for (int i = 0; i < 4; ++i) vst1q_s32(to + 4 * i, sums.four[i]);
  }

  static void dot(Sums& sums, const uint8_t* lanes, const int8_t* digits, int /*bits*/) {
    const int8x16_t wide = vreinterpretq_s8_u32(
        vdupq_n_u32(load_u32(reinterpret_cast<const uint8_t*>(digits))));
    for (int i = 0; i < 4; ++i) {
      const int8x16_t codes = vreinterpretq_s8_u8(vld1q_u8(lanes + 16 * i));
#if defined(__ARM_FEATURE_DOTPROD)
      sums.four[i] = vdotq_s32(sums.four[i], codes, wide);
#else
      const int16x8_t a = vmull_s8(vget_low_s8(codes), vget_low_s8(wide));
      const int16x8_t b = vmull_high_s8(codes, wide);
      // Rows are four products: pairs into 32 bits, then pairs of pairs.
      const int32x4_t pairs = vpaddq_s32(vpaddlq_s16(a), vpaddlq_s16(b));
      sums.four[i] = vaddq_s32(sums.four[i], pairs);
#endif
    }
  }

  static void float_dots(float* totals, const uint8_t* lanes, const uint8_t* x, int64_t quads,
                         float /*offset*/) {
    for (int64_t q = 0; q < quads; ++q) {
      const float32x4_t four = vreinterpretq_f32_u8(vld1q_u8(x + 16 * q));
      for (int i = 0; i < 4; ++i) {
        const int8x16_t codes = vreinterpretq_s8_u8(vld1q_u8(lanes + kCell * q + 16 * i));
        const int16x8_t low = vmovl_s8(vget_low_s8(codes)), high = vmovl_high_s8(codes);
        float* to = totals + 16 * i;
        accumulate(to, vmovl_s16(vget_low_s16(low)), four);
        accumulate(to + 4, vmovl_high_s16(low), four);
        accumulate(to + 8, vmovl_s16(vget_low_s16(high)), four);
        accumulate(to + 12, vmovl_high_s16(high), four);
      }
    }
  }

 private:
  static void accumulate(float* to, int32x4_t codes, float32x4_t x) {
    vst1q_f32(to, vfmaq_f32(vld1q_f32(to), vcvtq_f32_s32(codes), x));
  }

  // Lanes `bit` to `bit` + 7.
  static uint8x8_t eight(const uint8_t* codes, uint64_t before, uint64_t mask, int bit) {
    const uint8x8_t bytes = vld1_u8(codes + (before >> bit & 255));
    return vtbl1_u8(bytes, vld1_u8(kExpand.shuffle[mask >> bit & 255]));
  }
};

}  // namespace edgesparse
}  // namespace
