// Attention compiled for an instruction set; null where it is not built for this architecture.
#pragma once

#include "edgesparse/kernels.h"

namespace edgesparse_native {

using AttendKernel = void (*)(const edgesparse_attention& attention, int64_t first_head,
                              int64_t last_head, float* room);

AttendKernel portable_attend();
AttendKernel avx2_attend();

}  // namespace edgesparse_native
