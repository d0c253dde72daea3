// The kernels of one instruction set, as a table; one is chosen when the process starts.
#pragma once

#include "edgesparse/kernels.h"

namespace edgesparse_native {

using TileKernel = void (*)(const edgesparse_matrix& matrix, const void* workspace, int64_t batch,
                            edgesparse_activations activations, int64_t first_tile,
                            int64_t last_tile, const float* bias, float* out);

// Each may be null: not built for this architecture.
TileKernel scalar_kernel();
TileKernel avx2_kernel();
TileKernel avx512_kernel();
TileKernel neon_kernel();
TileKernel dotprod_kernel();
TileKernel i8mm_kernel();

}  // namespace edgesparse_native
