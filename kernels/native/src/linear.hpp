// Which loop computes a product.
#pragma once

#include "columns.hpp"
#include "portable.hpp"

namespace {
namespace edgesparse {

template <class Isa, class Cells>
void decoded_tiles(const edgesparse_matrix& matrix, const Workspace& prepared, int64_t batch,
                   edgesparse_activations activations, int64_t first_tile, int64_t last_tile,
                   const float* bias, float* out) {
  for (int64_t tile = first_tile; tile < last_tile; ++tile)
    for (int64_t m = 0; m < batch; m += kBatch) {
      const int64_t count = min(kBatch, batch - m);
      if (activations == EDGESPARSE_FLOAT32)
        float_tile<Isa, Cells>(matrix, prepared, tile, m, count, bias, out);
      else
        integer_tile<Isa, Cells>(matrix, prepared, tile, m, count, bias, out);
    }
}

template <class Isa>
void linear_tiles(const edgesparse_matrix& matrix, const void* workspace, int64_t batch,
                  edgesparse_activations activations, int64_t first_tile, int64_t last_tile,
                  const float* bias, float* out) {
  const Workspace prepared(matrix, activations, workspace);
  if constexpr (Isa::kFused) {
    const bool streams = !is_structured(matrix) && batch == 1 && matrix.bits == 4 &&
                         matrix.group_size % 8 == 0;
    if (activations != EDGESPARSE_FLOAT32 && (streams || can_gather(matrix))) {
      const auto tile_kernel = !streams ? gather_kernel<Isa>(matrix, prepared.planes)
                               : is_dense(matrix) ? four_bit_kernel<Isa, true>(prepared.planes)
                                                  : four_bit_kernel<Isa, false>(prepared.planes);
      // A tile stays in the cache while all rows of the batch meet it.
      for (int64_t tile = first_tile; tile < last_tile; ++tile)
        for (int64_t m = 0; m < batch; ++m) tile_kernel(matrix, prepared, tile, m, bias, out);
      return;
    }
  }
  const auto loop = is_structured(matrix) ? decoded_tiles<Isa, WindowCells<Isa>>
                                          : decoded_tiles<Isa, StreamCells<Isa>>;
  loop(matrix, prepared, batch, activations, first_tile, last_tile, bias, out);
}

}  // namespace edgesparse
}  // namespace
