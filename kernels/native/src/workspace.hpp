// Prepared activations. For each row m of the batch:
//
//   float32   x, padded with zeros to whole quads of every stream
//   int8      digits [padded], then scale and digit sum of each group
//   int16     high digits [padded], low digits [padded], then scale and both sums of each group
//
// x is close to scale * digit, or scale * (256 * high + low).
#pragma once

#include "matrix.hpp"

namespace {
namespace edgesparse {

struct Workspace {
  int64_t padded;         // columns
  int64_t planes;         // of digits
  int64_t row_nbytes;
  const uint8_t* begin;

  Workspace(const edgesparse_matrix& matrix, edgesparse_activations activations, const void* at)
      : padded(matrix.quads * kQuad),
        planes(activations == EDGESPARSE_INT16 ? 2 : 1),
        begin(static_cast<const uint8_t*>(at)) {
    const int64_t nbytes = activations == EDGESPARSE_FLOAT32
                               ? padded * 4
                               : planes * padded + matrix.groups * 4 * (1 + planes);
    row_nbytes = (nbytes + 63) / 64 * 64;
    groups_ = matrix.groups;
  }

  const uint8_t* row(int64_t m) const { return begin + m * row_nbytes; }
  const int8_t* digits(int64_t m, int64_t plane) const {
    return reinterpret_cast<const int8_t*>(row(m)) + plane * padded;
  }
  float scale(int64_t m, int64_t group) const {
    float value;
    std::memcpy(&value, row(m) + planes * padded + 4 * group, sizeof value);
    return value;
  }
  int32_t sum(int64_t m, int64_t plane, int64_t group) const {
    return static_cast<int32_t>(
        load_u32(row(m) + planes * padded + 4 * (groups_ * (1 + plane) + group)));
  }

 private:
  int64_t groups_;
};

}  // namespace edgesparse
}  // namespace
