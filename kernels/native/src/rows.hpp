// One row at a time, for any bits and any group size: the embedding, and products nothing else fits.
#pragma once

#include "structured.hpp"
#include "workspace.hpp"

namespace {
namespace edgesparse {

// Call `store(column, nibble)` with the code of every column of a row of a structured layout.
template <class Store>
void row_windows(const edgesparse_matrix& matrix, int64_t row, Store store) {
  const int64_t r = row % kTileRows;
  uint8_t lanes[kWindowLanes];
  WindowReader reader(matrix, row / kTileRows, r, r + 1);
  for (int64_t quad = 0; quad < matrix.quads; ++quad) {
    if (quad % kWindowQuads == 0) reader.next(lanes);
    const uint8_t* codes = lanes + kCell * (quad % kWindowQuads) + kQuad * r;
    for (int64_t c = 0; c < kQuad; ++c) store(kQuad * quad + c, codes[c]);
  }
}

// Call `store(column, word)` with the code of every column of a row, one plane at a time.
template <class Store>
void row_plane(const edgesparse_matrix& matrix, int64_t row, int width, bool high, Store store) {
  if (is_structured(matrix)) return row_windows(matrix, row, store);
  const int64_t tile = row / kTileRows;
  const int lane = static_cast<int>(kQuad * (row % kTileRows));
  const uint64_t before = (uint64_t{1} << lane) - 1;
  const int64_t unit = width == 16 ? 2 : 1;
  for (int j = 0; j < streams(width); ++j) {
    const uint8_t* at = tile_begin(matrix, tile, width, high);
    for (int64_t quad = j; quad < matrix.quads; quad += streams(width)) {
      const uint64_t mask = cell_mask(matrix, tile, quad);
      const uint8_t* code = at + unit * popcount(mask & before);
      for (int c = 0; c < kQuad; ++c) {
        if (!(mask >> (lane + c) & 1)) continue;
        const unsigned word = width == 16 ? load_u16(code) : *code >> (width * j);
        store(kQuad * quad + c, word & ((1u << width) - 1));
        code += unit;
      }
      at += unit * popcount(mask);
    }
  }
}

// Decode a row to float32 [columns].
inline void decode_row(const edgesparse_matrix& matrix, int64_t row, float* out) {
  for (int64_t k = 0; k < matrix.columns; ++k) out[k] = 0.0f;
  if (matrix.bits == 16) {
    row_plane(matrix, row, 16, false, [&](int64_t k, unsigned word) {
      if (k < matrix.columns) out[k] = half_to_float(static_cast<uint16_t>(word));
    });
    return;
  }
  // Codes are at most 8 bits, exact as floats; the sign bit is the highest of the last plane.
  const int sign = 1 << (matrix.bits - 1);
  const bool split = matrix.bits == 3;
  row_plane(matrix, row, low_width(matrix), false, [&](int64_t k, unsigned word) {
    const int code = split ? static_cast<int>(word) : (static_cast<int>(word) ^ sign) - sign;
    if (k < matrix.columns) out[k] = static_cast<float>(code);
  });
  if (split)
    row_plane(matrix, row, 1, true, [&](int64_t k, unsigned bit) {
      if (k < matrix.columns) out[k] -= static_cast<float>(4 * bit);
    });
  const uint8_t* scales = matrix.scales + 2 * (row / kTileRows * matrix.groups * kTileRows);
  for (int64_t group = 0; group < matrix.groups; ++group) {
    const float scale =
        half_to_float(load_u16(scales + 2 * (group * kTileRows + row % kTileRows)));
    const int64_t end = min((group + 1) * matrix.group_size, matrix.columns);
    for (int64_t k = group * matrix.group_size; k < end; ++k) out[k] *= scale;
  }
}

// Sum over k of weight[row][k] * x[k], for any bits and groups; x has [columns] floats.
inline float row_dot(const edgesparse_matrix& matrix, int64_t row, const uint8_t* x) {
  const auto value = [&](int64_t k) {
    float at;
    std::memcpy(&at, x + 4 * k, sizeof at);
    return at;
  };
  float sum = 0.0f;
  if (matrix.bits == 16) {
    row_plane(matrix, row, 16, false, [&](int64_t k, unsigned word) {
      sum += half_to_float(static_cast<uint16_t>(word)) * value(k);
    });
    return sum;
  }
  const uint8_t* scales = matrix.scales + 2 * (row / kTileRows * matrix.groups * kTileRows);
  const auto scaled = [&](int64_t k, int code) {
    if (k >= matrix.columns) return;
    const int64_t group = k / matrix.group_size;
    const float scale =
        half_to_float(load_u16(scales + 2 * (group * kTileRows + row % kTileRows)));
    sum += static_cast<float>(code) * scale * value(k);
  };
  const int sign = 1 << (matrix.bits - 1);
  const bool split = matrix.bits == 3;
  row_plane(matrix, row, low_width(matrix), false, [&](int64_t k, unsigned word) {
    scaled(k, split ? static_cast<int>(word) : (static_cast<int>(word) ^ sign) - sign);
  });
  if (split)
    row_plane(matrix, row, 1, true,
              [&](int64_t k, unsigned bit) { scaled(k, -4 * static_cast<int>(bit)); });
  return sum;
}

}  // namespace edgesparse
}  // namespace
