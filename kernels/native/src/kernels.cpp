// The C interface, but for opening: preparation of activations, and the choice of instruction set.
#include "edgesparse/kernels.h"

#include <atomic>
#include <cmath>
#include <initializer_list>

#include "dispatch.hpp"
#include "rounding.hpp"
#include "rows.hpp"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace {

using namespace edgesparse;
using edgesparse_native::TileKernel;

// Largest magnitude of a group, or -1 when a value is not finite. Magnitudes are compared by their
// bits, which order 0 < finite < infinity < NaN; and a loop of integers is one compilers vectorise.
float largest(const float* x, int64_t count) {
  int32_t top = 0;
  for (int64_t k = 0; k < count; ++k) {
    int32_t bits;
    std::memcpy(&bits, x + k, sizeof bits);
    bits &= 0x7FFFFFFF;
    top = bits > top ? bits : top;
  }
  if (top >= 0x7F800000) return -1.0f;
  float magnitude;
  std::memcpy(&magnitude, &top, sizeof magnitude);
  return magnitude;
}

// Digits of one row; see workspace.hpp. Rounding is to nearest, ties to even.
void quantize_row(const edgesparse_matrix& matrix, const float* x, int planes, uint8_t* row) {
  const int64_t padded = matrix.quads * kQuad;
  const float range = planes == 2 ? 32512.0f : 127.0f;
  for (int64_t i = 0; i < planes * padded; ++i) row[i] = 0;
  for (int64_t group = 0; group < matrix.groups; ++group) {
    const int64_t begin = group * matrix.group_size;
    const int64_t end = min(begin + matrix.group_size, matrix.columns);
    const float top = largest(x + begin, end - begin);
    float scale = top / range;
    // Below this the reciprocal would overflow; such a group counts as zeros.
    const bool zero = !(scale >= 1.17549435e-38f);
    if (zero) scale = top < 0.0f ? std::nanf("") : 0.0f;
    const float inverse = zero ? 0.0f : 1.0f / scale;
    int32_t sums[2] = {0, 0};
    for (int64_t k = begin; k < end; ++k) {
      const int32_t value = zero ? 0 : nearest(x[k] * inverse);
      const int32_t high = planes == 2 ? (value + 128) >> 8 : value;
      row[k] = static_cast<uint8_t>(high);
      sums[0] += high;
      if (planes == 2) {
        const int32_t low = value - high * 256;
        row[padded + k] = static_cast<uint8_t>(low);
        sums[1] += low;
      }
    }
    uint8_t* after = row + planes * padded;
    std::memcpy(after + 4 * group, &scale, 4);
    for (int p = 0; p < planes; ++p)
      std::memcpy(after + 4 * (matrix.groups * (1 + p) + group), &sums[p], 4);
  }
}

TileKernel kernel_of(edgesparse_isa isa) {
  switch (isa) {
    case EDGESPARSE_SCALAR: return edgesparse_native::scalar_kernel();
#if defined(__x86_64__)
    case EDGESPARSE_AVX2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
                 ? edgesparse_native::avx2_kernel() : nullptr;
    case EDGESPARSE_AVX512:
      return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
                     __builtin_cpu_supports("avx512vnni")
                 ? edgesparse_native::avx512_kernel() : nullptr;
#endif
#if defined(__aarch64__)
    case EDGESPARSE_NEON: return edgesparse_native::neon_kernel();
    case EDGESPARSE_DOTPROD:
#if defined(__linux__)
      return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? edgesparse_native::dotprod_kernel() : nullptr;
#else
      return edgesparse_native::dotprod_kernel();  // every 64-bit Apple processor since the A11
#endif
    case EDGESPARSE_I8MM:
#if defined(__linux__) && defined(HWCAP2_I8MM)
      return getauxval(AT_HWCAP2) & HWCAP2_I8MM ? edgesparse_native::i8mm_kernel() : nullptr;
#else
      return nullptr;  // no way to ask
#endif
#endif
    default: return nullptr;
  }
}

edgesparse_isa best() {
  for (const edgesparse_isa isa : {EDGESPARSE_AVX512, EDGESPARSE_AVX2, EDGESPARSE_I8MM,
                                   EDGESPARSE_DOTPROD, EDGESPARSE_NEON})
    if (kernel_of(isa)) return isa;
  return EDGESPARSE_SCALAR;
}

std::atomic<int> chosen{-1};

}  // namespace

extern "C" {

edgesparse_isa edgesparse_current_isa(void) {
  int isa = chosen.load(std::memory_order_relaxed);
  if (isa < 0) chosen.store(isa = best(), std::memory_order_relaxed);
  return static_cast<edgesparse_isa>(isa);
}

edgesparse_status edgesparse_choose_isa(edgesparse_isa isa) {
  if (!kernel_of(isa)) return EDGESPARSE_UNSUPPORTED;
  chosen.store(isa, std::memory_order_relaxed);
  return EDGESPARSE_OK;
}

int edgesparse_supports(const edgesparse_matrix* matrix, edgesparse_activations activations) {
  if (activations == EDGESPARSE_FLOAT32) return 1;
  // The sums of a group must fit in 32 bits: |code + offset| < 256, |digit| <= 128.
  return matrix->bits != 16 && matrix->group_size % kQuad == 0 && matrix->group_size <= 65536;
}

size_t edgesparse_workspace_nbytes(const edgesparse_matrix* matrix, int64_t batch,
                                   edgesparse_activations activations) {
  const Workspace layout(*matrix, activations, nullptr);
  return static_cast<size_t>(layout.row_nbytes * batch);
}

edgesparse_status edgesparse_prepare(const edgesparse_matrix* matrix, const float* x, int64_t batch,
                                     edgesparse_activations activations, void* workspace) {
  if (!matrix || batch < 0 || (batch && (!x || !workspace))) return EDGESPARSE_INVALID_ARGUMENT;
  if (!edgesparse_supports(matrix, activations)) return EDGESPARSE_UNSUPPORTED;
  const Workspace layout(*matrix, activations, workspace);
  for (int64_t m = 0; m < batch; ++m) {
    uint8_t* row = static_cast<uint8_t*>(workspace) + m * layout.row_nbytes;
    const float* from = x + m * matrix->columns;
    if (activations == EDGESPARSE_FLOAT32) {
      std::memset(row, 0, static_cast<size_t>(4 * layout.padded));
      if (matrix->columns) std::memcpy(row, from, static_cast<size_t>(4 * matrix->columns));
    } else {
      quantize_row(*matrix, from, static_cast<int>(layout.planes), row);
    }
  }
  return EDGESPARSE_OK;
}

edgesparse_status edgesparse_linear(const edgesparse_matrix* matrix, const void* workspace,
                                    int64_t batch, edgesparse_activations activations,
                                    int64_t first_tile, int64_t last_tile, const float* bias,
                                    float* out) {
  if (!matrix || batch < 0 || first_tile < 0 || last_tile > matrix->tiles ||
      (batch && matrix->rows && (!workspace || !out)))
    return EDGESPARSE_INVALID_ARGUMENT;
  if (!edgesparse_supports(matrix, activations)) return EDGESPARSE_UNSUPPORTED;
  if (matrix->bits != 16 && matrix->group_size % kQuad == 0) {
    kernel_of(edgesparse_current_isa())(*matrix, workspace, batch, activations, first_tile,
                                        last_tile, bias, out);
    return EDGESPARSE_OK;
  }
  const Workspace prepared(*matrix, activations, workspace);
  for (int64_t row = first_tile * kTileRows; row < min(last_tile * kTileRows, matrix->rows); ++row)
    for (int64_t m = 0; m < batch; ++m)
      out[m * matrix->rows + row] =
          row_dot(*matrix, row, prepared.row(m)) + (bias ? bias[row] : 0.0f);
  return EDGESPARSE_OK;
}

edgesparse_status edgesparse_embedding(const edgesparse_matrix* matrix, const int64_t* indices,
                                       int64_t count, float* out) {
  if (!matrix || count < 0 || (count && (!indices || !out))) return EDGESPARSE_INVALID_ARGUMENT;
  for (int64_t i = 0; i < count; ++i)
    if (indices[i] < 0 || indices[i] >= matrix->rows) return EDGESPARSE_INVALID_ARGUMENT;
  for (int64_t i = 0; i < count; ++i) decode_row(*matrix, indices[i], out + i * matrix->columns);
  return EDGESPARSE_OK;
}

}  // extern "C"
