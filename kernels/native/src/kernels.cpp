// The C interface: checks, preparation of activations, and the choice of instruction set.
#include "edgesparse/kernels.h"

#include <atomic>
#include <cmath>
#include <initializer_list>

#include "dispatch.hpp"
#include "rows.hpp"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace {

using namespace edgesparse;
using edgesparse_native::TileKernel;

constexpr int64_t kMaxElements = int64_t{1} << 40;  // so that no product below overflows

int64_t aligned(int64_t nbytes) { return (nbytes + 63) / 64 * 64; }

bool has(const edgesparse_buffer& buffer, int64_t nbytes) {
  return buffer.nbytes >= static_cast<uint64_t>(nbytes) && (nbytes == 0 || buffer.data != nullptr);
}

const uint8_t* bytes(const edgesparse_buffer& buffer) {
  return static_cast<const uint8_t*>(buffer.data);
}

// Whether the offsets of a plane follow from the mask and the codes are as long as they say.
bool check_plane(const edgesparse_matrix& matrix, int width, const edgesparse_buffer& offsets,
                 const edgesparse_buffer& codes) {
  const int count = streams(width);
  if (matrix.is_dense) return has(codes, matrix.tiles * matrix.quads * kCell / count);
  if (!has(offsets, aligned(4 * (matrix.tiles + 1)))) return false;
  int64_t end = 0;
  for (int64_t tile = 0; tile < matrix.tiles; ++tile) {
    if (load_u32(bytes(offsets) + 4 * tile) != end) return false;
    int64_t lengths[8] = {};
    for (int64_t quad = 0; quad < matrix.quads; ++quad)
      lengths[quad % count] += popcount(cell_mask(matrix, tile, quad));
    int64_t longest = 0;
    for (int j = 0; j < count; ++j) longest = lengths[j] > longest ? lengths[j] : longest;
    end += longest * (width == 16 ? 2 : 1);
    if (end > UINT32_MAX) return false;
  }
  return load_u32(bytes(offsets) + 4 * matrix.tiles) == end && has(codes, aligned(end) + kSlack);
}

bool check_scales(const edgesparse_matrix& matrix, const edgesparse_buffer& scales) {
  const int64_t count = matrix.tiles * matrix.groups * kTileRows;
  if (!has(scales, 2 * count)) return false;
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t half = load_u16(bytes(scales) + 2 * i);
    const bool real = i / kTileRows / matrix.groups * kTileRows + i % kTileRows < matrix.rows;
    if (real ? half == 0 || half >= 0x7C00 : half != 0) return false;
  }
  return true;
}

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

// The nearest integer, ties to even, of |x| < 2^22: the sum has no bits below 1 left.
int32_t nearest(float x) {
  const float shifted = x + 12582912.0f;  // 1.5 * 2^23
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  return bits - 0x4B400000;
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
                     __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni")
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
#endif
    default: return nullptr;
  }
}

edgesparse_isa best() {
  for (const edgesparse_isa isa : {EDGESPARSE_AVX512, EDGESPARSE_AVX2, EDGESPARSE_DOTPROD,
                                   EDGESPARSE_NEON})
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

edgesparse_status edgesparse_open(const edgesparse_pack* pack, edgesparse_matrix* matrix) {
  if (!pack || !matrix) return EDGESPARSE_INVALID_ARGUMENT;
  const int bits = pack->bits;
  const bool known = bits == 2 || bits == 3 || bits == 4 || bits == 8 || (bits == 16 && !pack->is_dense);
  if (!known || pack->rows < 0 || pack->columns < 0 || (bits == 16) != (pack->group_size == 0) ||
      pack->group_size < 0)
    return EDGESPARSE_INVALID_ARGUMENT;
  if (pack->rows > kMaxElements || pack->columns > kMaxElements ||
      (pack->columns && pack->rows > kMaxElements / pack->columns))
    return EDGESPARSE_CORRUPT_PACK;
  edgesparse_matrix m = {};
  m.rows = pack->rows;
  m.columns = pack->columns;
  m.bits = bits;
  m.is_dense = pack->is_dense != 0;
  m.tiles = (m.rows + kTileRows - 1) / kTileRows;
  m.quads = (m.columns + 127) / 128 * 32;
  m.groups = m.columns && bits != 16 ? (m.columns - 1) / pack->group_size + 1 : 0;
  // One scale a row is one group of whole quads, whatever the number of columns.
  m.group_size = pack->group_size >= m.columns && bits != 16 ? m.quads * kQuad : pack->group_size;
  m.mask = bytes(pack->mask);
  m.offsets = bytes(pack->offsets);
  m.codes = bytes(pack->codes);
  m.offsets_high = bytes(pack->offsets_high);
  m.codes_high = bytes(pack->codes_high);
  m.scales = bytes(pack->scales);
  const bool good = (m.is_dense || has(pack->mask, 8 * m.tiles * m.quads)) &&
                    check_plane(m, low_width(m), pack->offsets, pack->codes) &&
                    (bits != 3 || check_plane(m, 1, pack->offsets_high, pack->codes_high)) &&
                    (bits == 16 || check_scales(m, pack->scales));
  if (!good) return EDGESPARSE_CORRUPT_PACK;
  *matrix = m;
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
