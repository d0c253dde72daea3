// e ** x of sixteen floats, the same bits on every processor.
//
// x = n ln 2 + r with a whole n and |r| <= ln(2) / 2; e ** r is the polynomial of the Cephes library
// (Moshier, netlib.org/cephes), to 2 units in the last place.
#pragma once

#include <cstdint>
#include <cstring>

namespace {
namespace edgesparse {

constexpr int kLanes = 16;

// x[l] = e ** (x[l] - top); what is below e ** -87 counts as nothing, NaN stays.
inline void exponentials(float* x, float top) {
  for (int l = 0; l < kLanes; ++l) {
    const float difference = x[l] - top;
    const float clipped = difference < -87.0f ? -87.0f : difference;
    const float shifted = clipped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: no bits below 1 left
    const float n = shifted - 12582912.0f;
    // ln 2 in two parts, the first short enough that n times it is exact.
    const float r = (clipped - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    const int32_t power = static_cast<int32_t>(static_cast<uint32_t>(bits - 0x4B400000 + 127) << 23);
    float scale;
    std::memcpy(&scale, &power, sizeof scale);
    x[l] = difference < -87.0f ? 0.0f : p * scale;
  }
}

}  // namespace edgesparse
}  // namespace
