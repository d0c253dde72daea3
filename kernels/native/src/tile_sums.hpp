// From integer sums to the floats of a tile's rows, for one row of activations.
#pragma once

#include "tiles.hpp"

namespace {
namespace edgesparse {

// Adds groups of integer sums to the floats of a tile's rows, in the order all kernels keep.
template <class Isa, int Planes>
class TileSums {
 public:
  TileSums(const edgesparse_matrix& matrix, const Workspace& prepared, int64_t tile, int64_t m)
      : matrix_(matrix), prepared_(prepared), tile_(tile), m_(m) {}

  // Inlined always: where the pairs of a loop have an address, clang keeps them in memory.
  __attribute__((always_inline)) void add(int64_t group, const typename Isa::Pair (&pairs)[Planes],
                                          const int32_t* offsets = nullptr) {
    typename Isa::Sums sums[Planes];
    for (int plane = 0; plane < Planes; ++plane) sums[plane] = Isa::total(pairs[plane]);
    add_sums(group, sums, offsets);
  }

  void store(const float* bias, float* out) const {
    store_rows(matrix_, tile_, sums_, bias, out + m_ * matrix_.rows);
  }

 private:
  void add_sums(int64_t group, const typename Isa::Sums* sums, const int32_t* offsets) {
    alignas(64) int32_t totals[Planes][kTileRows];
    for (int plane = 0; plane < Planes; ++plane) {
      Isa::store(sums[plane], totals[plane]);
      const int32_t offset = offsets ? offsets[plane] : 0;
      for (int64_t r = 0; r < kTileRows; ++r) totals[plane][r] -= offset;
    }
    alignas(64) float scales[kTileRows];
    load_scales<Isa>(matrix_, tile_, group, scales);
    const float scale = prepared_.scale(m_, group);
    for (int64_t r = 0; r < kTileRows; ++r) {
      float total = static_cast<float>(totals[0][r]);
      if (Planes == 2) total = total * 256.0f + static_cast<float>(totals[Planes - 1][r]);
      sums_[r] = sums_[r] + total * (scales[r] * scale);
    }
  }

  const edgesparse_matrix& matrix_;
  const Workspace& prepared_;
  const int64_t tile_, m_;
  alignas(64) float sums_[kTileRows] = {};
};

}  // namespace edgesparse
}  // namespace
