// Rounding without a library and without a mode of the processor.
#pragma once

#include <cstdint>
#include <cstring>

namespace {
namespace edgesparse {

// The nearest integer, ties to even, of |x| < 2^22: the sum has no bits below 1 left.
inline int32_t nearest(float x) {
  const float shifted = x + 12582912.0f;  // 1.5 * 2^23
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  return bits - 0x4B400000;
}

}  // namespace edgesparse
}  // namespace
