// AArch64 NEON; with the dot product instructions, and those that multiply matrices of int8, where the
// file that includes this is built with them.
#pragma once

#include <arm_neon.h>

#include "expand_table.hpp"
#include "linear.hpp"

namespace {
namespace edgesparse {

struct Neon : Portable {
  static constexpr bool kOffset = false;
  static constexpr bool kFused = true;

  struct Sums {
    int32x4_t four[4];  // rows 4 i to 4 i + 3
  };
  struct Lanes {
    int8x16_t part[4];  // 16 times the code, which costs one instruction and no sign extension
  };

  struct Bytes {
    uint8x16_t part[4];
  };
  struct Pair {
    Sums even, odd;
  };

  static void octet(const uint8_t* codes, Lanes& low, Lanes& high) {
    for (int i = 0; i < 4; ++i) low.part[i] = low_nibbles(vld1q_u8(codes + 16 * i));
    for (int i = 0; i < 4; ++i) high.part[i] = high_nibbles(vld1q_u8(codes + 16 * i));
  }
  static void expand_octet(const uint8_t*& evens, const uint8_t*& odds, const uint8_t* masks,
                           Lanes& low, Lanes& high) {
    const uint64x2_t counts = vreinterpretq_u64_u8(vcntq_u8(vld1q_u8(masks)));
    __asm__("" : "+r"(masks));  // else clang takes the words out of the vector, which costs its units
    const uint64_t even = load_u64(masks), odd = load_u64(masks + 8);
    const uint64_t even_sums = prefix_sums(vgetq_lane_u64(counts, 0));
    const uint64_t odd_sums = prefix_sums(vgetq_lane_u64(counts, 1));
    for (int i = 0; i < 4; ++i) low.part[i] = low_nibbles(sixteen(evens, even_sums, even, 16 * i));
    for (int i = 0; i < 4; ++i) high.part[i] = high_nibbles(sixteen(odds, odd_sums, odd, 16 * i));
    evens += even_sums >> 56;
    odds += odd_sums >> 56;
  }
  static void dot_octet(Pair& sums, const Lanes& low, const Lanes& high, const int8_t* digits) {
    const int8x8_t eight = vld1_s8(digits);
    for (int i = 0; i < 4; ++i) {
      sums.even.four[i] = multiply_add<0>(sums.even.four[i], low.part[i], eight);
      sums.odd.four[i] = multiply_add<1>(sums.odd.four[i], high.part[i], eight);
    }
  }
  static void dot_low(Pair& sums, const Lanes& low, const int8_t* digits) {
    dot_lanes(sums.even, low, digits);
  }
  static void dot_high(Pair& sums, const Lanes& high, const int8_t* digits) {
    dot_lanes(sums.odd, high, digits);
  }
  static Pair start(int32_t value) {
    const int32x4_t all = vdupq_n_s32(value), none = vdupq_n_s32(0);
    return {{{all, all, all, all}}, {{none, none, none, none}}};
  }
  static Sums total(const Pair& pair) {
    Sums sums;
    for (int i = 0; i < 4; ++i)
      sums.four[i] = vshrq_n_s32(vaddq_s32(pair.even.four[i], pair.odd.four[i]), 4);
    return sums;
  }

  static Bytes load_bytes(const uint8_t* from) {
    Bytes bytes;
    for (int i = 0; i < 4; ++i) bytes.part[i] = vld1q_u8(from + 16 * i);
    return bytes;
  }
  static Bytes repeat4(const int8_t* x) {
    const uint8x16_t four =
        vreinterpretq_u8_u32(vdupq_n_u32(load_u32(reinterpret_cast<const uint8_t*>(x))));
    return {{four, four, four, four}};
  }
  template <int Octet>
  static Bytes pick8(const int8_t* x, const Bytes& places) {
    const uint8x16_t eight =
        vcombine_u8(vld1_u8(reinterpret_cast<const uint8_t*>(x)), vdup_n_u8(0));
    const uint8x16_t second = vreinterpretq_u8_u32(vdupq_n_u32(0x04040000));
    Bytes picked;
    for (int i = 0; i < 4; ++i) {
      const uint8x16_t place = vbslq_u8(vdupq_n_u8(3), down<2 * Octet>(places.part[i]), second);
      picked.part[i] = vqtbl1q_u8(eight, place);
    }
    return picked;
  }
  template <int Quarter>
  static Bytes pick64(const int8_t* x, const uint8_t* index) {
    const auto* at = reinterpret_cast<const uint8_t*>(x);
    const uint8x16x4_t window = {
        {vld1q_u8(at), vld1q_u8(at + 16), vld1q_u8(at + 32), vld1q_u8(at + 48)}};
    Bytes picked;
    for (int i = 0; i < 4; ++i) {
      const uint8x16_t low = vld1q_u8(index + Quarter / 2 * kCell + 16 * i);
      // Two bits of every other quarter, so that what a shift leaves above or below them is 0.
      uint8x16_t high = vandq_u8(vld1q_u8(index + 2 * kCell + 16 * i),
                                 vdupq_n_u8(Quarter % 2 ? 0xCC : 0x33));
      __asm__("" : "+w"(high));  // else clang shifts first and masks each quarter by itself
      picked.part[i] = vqtbl4q_u8(window, place64<Quarter>(low, high));
    }
    return picked;
  }
  static void add_products(Pair& sums, const Lanes& low, const Bytes& first, const Lanes& high,
                           const Bytes& second) {
    for (int i = 0; i < 4; ++i) {
      sums.even.four[i] =
          multiply_add(sums.even.four[i], low.part[i], vreinterpretq_s8_u8(first.part[i]));
      sums.odd.four[i] =
          multiply_add(sums.odd.four[i], high.part[i], vreinterpretq_s8_u8(second.part[i]));
    }
  }
  static int64_t pack(const int8_t* x, int64_t count, uint64_t bits, int8_t* to) {
    const int8_t* begin = to;
    for (int64_t i = 0; i < count; i += 8, bits >>= 8) {
      const unsigned mask = bits & 255;
      vst1_s8(to, vtbl1_s8(vld1_s8(x + i), vreinterpret_s8_u8(vld1_u8(kPack.shuffle[mask]))));
      to += kPack.count[mask];
    }
    return to - begin;
  }
  static int32_t offset_sum(const int8_t*, int64_t) { return 0; }
  static void halves(const uint8_t* from, float* to) {
    for (int i = 0; i < 4; ++i)
      vst1q_f32(to + 4 * i, vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from + 8 * i))));
  }

  static void expand(const uint8_t* codes, uint64_t mask, int shift, int low, uint8_t* lanes) {
    const int8x16_t amount = vdupq_n_s8(static_cast<int8_t>(-shift));
    const uint8x16_t bits = vdupq_n_u8(static_cast<uint8_t>(low));
    const uint64_t sums = prefix_sums_of(mask);
    for (int i = 0; i < 64; i += 16)
      vst1q_u8(lanes + i, vandq_u8(vshlq_u8(sixteen(codes, sums, mask, i), amount), bits));
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
      sums.four[i] = multiply_add(sums.four[i], codes, wide);
    }
  }

#if defined(__ARM_FEATURE_MATMUL_INT8)
  static constexpr bool kFours = true;
  // One instruction multiplies two rows of weights, eight columns each, by two rows of digits: twice
  // the products of a dot product. Eight columns of a row are four bytes of two neighbouring cells.
  static void dot_fours(int32_t* const* totals, const uint8_t* lanes, const int8_t* const* digits,
                        int64_t quads) {
    int32x4_t sums[2][8] = {};  // [pair of digits][pair of rows]: row, row, next row, next row
    int64_t quad = 0;
    for (; quad + 2 <= quads; quad += 2, lanes += 2 * kCell) {
      int8x16_t pairs[2];
      for (int p = 0; p < 2; ++p)
        pairs[p] = vcombine_s8(vld1_s8(digits[2 * p] + kQuad * quad),
                               vld1_s8(digits[2 * p + 1] + kQuad * quad));
      for (int i = 0; i < 4; ++i) {
        const int32x4_t cell = vreinterpretq_s32_u8(vld1q_u8(lanes + 16 * i));
        const int32x4_t next = vreinterpretq_s32_u8(vld1q_u8(lanes + kCell + 16 * i));
        const int8x16_t upper = vreinterpretq_s8_s32(vzip1q_s32(cell, next));
        const int8x16_t lower = vreinterpretq_s8_s32(vzip2q_s32(cell, next));
        for (int p = 0; p < 2; ++p) {
          sums[p][2 * i] = vmmlaq_s32(sums[p][2 * i], upper, pairs[p]);
          sums[p][2 * i + 1] = vmmlaq_s32(sums[p][2 * i + 1], lower, pairs[p]);
        }
      }
    }
    for (int j = 0; j < 4; ++j) {
      Sums total = load(totals[j]);
      if (quad < quads) dot(total, lanes, digits[j] + kQuad * quad, 8);
      for (int i = 0; i < 4; ++i) {
        const int32x4_t a = sums[j / 2][2 * i], b = sums[j / 2][2 * i + 1];
        total.four[i] = vaddq_s32(total.four[i], j % 2 ? vuzp2q_s32(a, b) : vuzp1q_s32(a, b));
      }
      store(total, totals[j]);
    }
  }
#endif

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
  static void dot_lanes(Sums& sums, const Lanes& lanes, const int8_t* digits) {
    const int8x16_t wide = vreinterpretq_s8_u32(
        vdupq_n_u32(load_u32(reinterpret_cast<const uint8_t*>(digits))));
    for (int i = 0; i < 4; ++i) sums.four[i] = multiply_add(sums.four[i], lanes.part[i], wide);
  }

  // Six bits: four of a nibble of `low`, and above them the two of this quarter in `high`.
  template <int Quarter>
  static uint8x16_t place64(uint8x16_t low, uint8x16_t high) {
    if constexpr (Quarter == 0) return vsliq_n_u8(vandq_u8(low, vdupq_n_u8(15)), high, 4);
    else if constexpr (Quarter == 1) return vsriq_n_u8(vshlq_n_u8(high, 2), low, 4);
    else if constexpr (Quarter == 2) return vbslq_u8(vdupq_n_u8(15), low, high);
    else return vsriq_n_u8(vshrq_n_u8(high, 2), low, 4);
  }

  template <int Bits>
  static uint8x16_t down(uint8x16_t bytes) {
    if constexpr (Bits == 0) return bytes;
    else return vshrq_n_u8(bytes, Bits);
  }

  // Four sums, each plus four products.
  static int32x4_t multiply_add(int32x4_t sums, int8x16_t codes, int8x16_t digits) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sums, codes, digits);
#else
    const int16x8_t a = vmull_s8(vget_low_s8(codes), vget_low_s8(digits));
    const int16x8_t b = vmull_high_s8(codes, digits);
    // Rows are four products: pairs into 32 bits, then pairs of pairs.
    return vaddq_s32(sums, vpaddq_s32(vpaddlq_s16(a), vpaddlq_s16(b)));
#endif
  }

  // Likewise, with four of eight digits.
  template <int Half>
  static int32x4_t multiply_add(int32x4_t sums, int8x16_t codes, int8x8_t digits) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_lane_s32(sums, codes, digits, Half);
#else
    const int32x4_t four = vdupq_lane_s32(vreinterpret_s32_s8(digits), Half);
    return multiply_add(sums, codes, vreinterpretq_s8_s32(four));
#endif
  }

  static int8x16_t low_nibbles(uint8x16_t bytes) {
    return vreinterpretq_s8_u8(vshlq_n_u8(bytes, 4));
  }
  static int8x16_t high_nibbles(uint8x16_t bytes) {
    return vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(0xF0)));
  }

  // Byte i: the sum of bytes 0 to i. Of the bits set in each byte of a mask, the last is that of all.
  static uint64_t prefix_sums(uint64_t counts) { return counts * 0x0101010101010101u; }
  static uint64_t prefix_sums_of(uint64_t mask) {
    return prefix_sums(vget_lane_u64(vreinterpret_u64_u8(vcnt_u8(vcreate_u8(mask))), 0));
  }

  // Lanes `bit` to `bit` + 15.
  static uint8x16_t sixteen(const uint8_t* codes, uint64_t sums, uint64_t mask, int bit) {
    const uint8x16_t bytes = vld1q_u8(codes + (bit ? sums >> (bit - 8) & 255 : 0));
    const uint8x16_t low = vld1q_u8(kExpand.low[mask >> bit & 255]);
    const uint8x16_t high = vld1q_u8(kExpand.high[mask >> (bit + 8) & 255]);
    return vqtbl1q_u8(bytes, vaddq_u8(low, high));
  }

  static void accumulate(float* to, int32x4_t codes, float32x4_t x) {
    vst1q_f32(to, vfmaq_f32(vld1q_f32(to), vcvtq_f32_s32(codes), x));
  }
};

}  // namespace edgesparse
}  // namespace
