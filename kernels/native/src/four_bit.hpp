// One row of integer activations and 4-bit codes, from packed bytes to products without a stop in the
// cache. Beside what tiles.hpp asks of an `Isa`:
//
//   Isa::Lanes     a cell in registers
//   Isa::low       the low nibbles of 64 bytes, Isa::high the high ones; as `dot_lanes` wants them
//   Isa::expand_low, Isa::expand_high   likewise, of a stream, where the mask is set
//   Isa::total     the sums of both, as sums of products of codes
//   Isa::kOctets   true: Isa::expand_octet and Isa::dot_octet do that for two quads at once
#pragma once

#include "tiles.hpp"

namespace {
namespace edgesparse {

// The products of two quads, the first in the low nibbles, and eight digits.
template <class Isa>
void dot_octet(typename Isa::Sums& even, const typename Isa::Lanes& low, typename Isa::Sums& odd,
               const typename Isa::Lanes& high, const int8_t* digits) {
  if constexpr (Isa::kOctets) {
    Isa::dot_octet(even, low, odd, high, digits);
  } else {
    Isa::dot_lanes(even, low, digits);
    Isa::dot_lanes(odd, high, digits + kQuad);
  }
}

// The next two cells of both streams, each at its next code.
template <class Isa>
void expand_octet(const uint8_t*& evens, const uint8_t*& odds, const uint8_t* masks,
                  typename Isa::Lanes& low, typename Isa::Lanes& high) {
  if constexpr (Isa::kOctets) {
    Isa::expand_octet(evens, odds, masks, low, high);
  } else {
    const uint64_t even_mask = load_u64(masks), odd_mask = load_u64(masks + 8);
    low = Isa::expand_low(evens, even_mask);
    high = Isa::expand_high(odds, odd_mask);
    evens += popcount(even_mask);
    odds += popcount(odd_mask);
  }
}

// One row of integer activations in `Planes` planes, 4-bit codes, groups of whole octets. `IsDense` is
// known when the loop is compiled: a branch in it costs a phone a tenth of its speed.
template <class Isa, int Planes, bool IsDense>
void four_bit_tile(const edgesparse_matrix& matrix, const Workspace& prepared, int64_t tile,
                   int64_t m, const float* bias, float* out) {
  constexpr int64_t kAhead = 4096;  // bytes; codes are asked for long before they are used
  float sums[kTileRows] = {};
  const uint8_t* evens = tile_begin(matrix, tile, 4, false);
  const uint8_t* odds = evens;
  const uint8_t* masks = IsDense ? nullptr : matrix.mask + 8 * tile * matrix.quads;
  const int8_t* digits[2] = {prepared.digits(m, 0), prepared.digits(m, Planes - 1)};
  const int64_t group_octets = matrix.group_size / 8, octets = matrix.quads / 2;
  for (int64_t group = 0; group < matrix.groups; ++group) {
    typename Isa::Sums even[2], odd[2];
    for (int plane = 0; plane < Planes; ++plane) {
      even[plane] = Isa::start(Isa::kOffset ? -8 * prepared.sum(m, plane, group) : 0);
      odd[plane] = Isa::start(0);
    }
    const int64_t begin = group * group_octets, end = min(begin + group_octets, octets);
    for (int64_t octet = begin; octet < end; ++octet) {
      typename Isa::Lanes low, high;
      __builtin_prefetch(evens + kAhead);
      if constexpr (IsDense) {
        low = Isa::low(evens);
        high = Isa::high(evens);
        evens += kCell;
      } else {
        expand_octet<Isa>(evens, odds, masks + 16 * octet, low, high);
      }
      for (int plane = 0; plane < Planes; ++plane)
        dot_octet<Isa>(even[plane], low, odd[plane], high, digits[plane] + 8 * octet);
    }
    alignas(64) int32_t totals[2][kTileRows];
    for (int plane = 0; plane < Planes; ++plane)
      Isa::store(Isa::total(even[plane], odd[plane]), totals[plane]);
    float scales[kTileRows];
    load_scales<Isa>(matrix, tile, group, scales);
    const float scale = prepared.scale(m, group);
    for (int64_t r = 0; r < kTileRows; ++r) {
      float total = static_cast<float>(totals[0][r]);
      if (Planes == 2) total = total * 256.0f + static_cast<float>(totals[1][r]);
      sums[r] = sums[r] + total * (scales[r] * scale);
    }
  }
  store_rows(matrix, tile, sums, bias, out + m * matrix.rows);
}

template <class Isa, bool IsDense>
auto four_bit_kernel(int64_t planes) {
  return planes == 2 ? four_bit_tile<Isa, 2, IsDense> : four_bit_tile<Isa, 1, IsDense>;
}

}  // namespace edgesparse
}  // namespace
