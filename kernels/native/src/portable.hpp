// What every instruction set can leave to the compiler; and all that a processor without one gets.
#pragma once

#include "matrix.hpp"

namespace {
namespace edgesparse {

struct Portable {
  static constexpr bool kOffset = false;
  static constexpr bool kFused = false;
  static constexpr bool kFours = false;
  static constexpr int64_t kNarrow = 0;
  static constexpr bool kStaged = false;
  struct Orders {};

  struct Sums {
    int32_t row[kTileRows];
  };

  static void expand(const uint8_t* codes, uint64_t mask, int shift, int low, uint8_t* lanes) {
    for (int64_t l = 0; l < kCell; ++l) {
      const unsigned bit = static_cast<unsigned>(mask >> l) & 1;
      // A lane that is not kept reads the next code, which is there (slack), and drops it.
      lanes[l] = static_cast<uint8_t>((*codes >> shift & low) * bit);
      codes += bit;
    }
  }

  static void halves(const uint8_t* from, float* to) {
    for (int64_t r = 0; r < kTileRows; ++r) to[r] = half_to_float(load_u16(from + 2 * r));
  }

  static void to_signed(uint8_t* lanes, int64_t count, uint8_t sign) {
    for (int64_t l = 0; l < count; ++l) lanes[l] = static_cast<uint8_t>((lanes[l] ^ sign) - sign);
  }

  static Sums load(const int32_t* from) {
    Sums sums;
    std::memcpy(&sums, from, sizeof sums);
    return sums;
  }

  static void store(const Sums& sums, int32_t* to) { std::memcpy(to, &sums, sizeof sums); }

  static void dot(Sums& sums, const uint8_t* lanes, const int8_t* digits, int /*bits*/) {
    for (int64_t r = 0; r < kTileRows; ++r)
      for (int64_t c = 0; c < kQuad; ++c)
        sums.row[r] += static_cast<int8_t>(lanes[kQuad * r + c]) * digits[c];
  }

  static void float_dots(float* totals, const uint8_t* lanes, const uint8_t* x, int64_t quads,
                         float /*offset*/) {
    for (int64_t i = 0; i < quads; ++i) {
      float four[kQuad];
      std::memcpy(four, x + 4 * kQuad * i, sizeof four);
      for (int64_t l = 0; l < kCell; ++l)
        totals[l] += static_cast<float>(static_cast<int8_t>(lanes[kCell * i + l])) * four[l % kQuad];
    }
  }
};

}  // namespace edgesparse
}  // namespace
