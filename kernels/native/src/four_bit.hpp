// One row of integer activations and 4-bit codes, from packed bytes to products without a stop in the
// cache. Beside what tiles.hpp asks of an `Isa`:
//
//   Isa::Lanes     a cell in registers
//   Isa::Pair      sums of products with low and with high nibbles; Isa::start makes them, Isa::total
//                  ends them, as the sums of products of codes
//   Isa::octet     the low and the high nibbles of 64 bytes, as Isa::dot_octet wants them
//   Isa::expand_octet   likewise, of two streams where the masks are set; the streams move on
//   Isa::kStaged   whether Isa::Orders, for the octets until sums get wider, is to be computed from
//                  their masks first and given to Isa::expand_octet
//   Isa::dot_octet      adds the products of both and eight digits
//   Isa::kNarrow   0, or after how many octets Isa::widen must follow: until then sums have 16 bits
#pragma once

#include "tile_sums.hpp"

namespace {
namespace edgesparse {

// Call `step` for every octet of [octet, end), which adds to `pairs`; sums get wider in time. Before
// those that come until then `stage` is called, with the first of them and their number.
template <class Isa, int Planes, class Stage, class Step>
void each_octet(typename Isa::Pair (&pairs)[Planes], int64_t octet, int64_t end, Stage stage,
                Step step) {
  while (octet < end) {
    const int64_t stop = Isa::kNarrow ? min(octet + Isa::kNarrow, end) : end;
    stage(octet, stop - octet);
    for (; octet < stop; ++octet) step(octet);
    if constexpr (Isa::kNarrow > 0)
      for (auto& pair : pairs) Isa::widen(pair);
  }
}

// One row of integer activations in `Planes` planes, 4-bit codes, groups of whole octets. `IsDense` is
// known when the loop is compiled: a branch in it costs a phone a tenth of its speed.
template <class Isa, int Planes, bool IsDense>
void four_bit_tile(const edgesparse_matrix& matrix, const Workspace& prepared, int64_t tile,
                   int64_t m, const float* bias, float* out) {
  constexpr int64_t kAhead = 4096;  // bytes; codes are asked for long before they are used
  TileSums<Isa, Planes> sums(matrix, prepared, tile, m);
  const uint8_t* evens = tile_begin(matrix, tile, 4, false);
  const uint8_t* odds = evens;
  const uint8_t* masks = IsDense ? nullptr : matrix.mask + 8 * tile * matrix.quads;
  [[maybe_unused]] typename Isa::Orders orders;
  const int8_t* digits[2] = {prepared.digits(m, 0), prepared.digits(m, Planes - 1)};
  const int64_t group_octets = matrix.group_size / 8, octets = matrix.quads / 2;
  for (int64_t group = 0; group < matrix.groups; ++group) {
    typename Isa::Pair pairs[Planes];
    for (int plane = 0; plane < Planes; ++plane)
      pairs[plane] = Isa::start(Isa::kOffset ? -8 * prepared.sum(m, plane, group) : 0);
    const int64_t begin = group * group_octets, end = min(begin + group_octets, octets);
    const auto stage = [&](int64_t octet, int64_t count) {
      if constexpr (!IsDense && Isa::kStaged) orders.stage(masks, octet, count);
    };
    each_octet<Isa>(pairs, begin, end, stage, [&](int64_t octet) {
      typename Isa::Lanes low, high;
      __builtin_prefetch(evens + kAhead);
      if constexpr (IsDense) {
        Isa::octet(evens, low, high);
        evens += kCell;
      } else if constexpr (Isa::kStaged) {
        Isa::expand_octet(evens, odds, masks + 16 * octet, orders.of(octet), low, high);
      } else {
        Isa::expand_octet(evens, odds, masks + 16 * octet, low, high);
      }
      for (int plane = 0; plane < Planes; ++plane)
        Isa::dot_octet(pairs[plane], low, high, digits[plane] + 8 * octet);
    });
    sums.add(group, pairs);
  }
  sums.store(bias, out);
}

template <class Isa, bool IsDense>
auto four_bit_kernel(int64_t planes) {
  return planes == 2 ? four_bit_tile<Isa, 2, IsDense> : four_bit_tile<Isa, 1, IsDense>;
}

}  // namespace edgesparse
}  // namespace
