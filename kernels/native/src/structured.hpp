// Reading the layouts for structured masks: nm4, n64, column16 and block16x8, a window at a time.
#pragma once

#include "matrix.hpp"

namespace {
namespace edgesparse {

constexpr int64_t kWindow = 64;  // columns
constexpr int64_t kWindowQuads = kWindow / kQuad;
constexpr int64_t kWindowLanes = kWindowQuads * kCell;

// Chunks of 16 weights a row that a tile of n64 has.
inline int64_t chunks(const edgesparse_matrix& matrix) {
  return matrix.quads / kWindowQuads * matrix.of_64 / 16;
}

// Bytes of a tile's bitmap of kept columns or octets.
inline int64_t kept_nbytes(const edgesparse_matrix& matrix) {
  return matrix.layout == EDGESPARSE_COLUMN16 ? matrix.quads / 2 : matrix.quads / 16;
}

inline bool bit_of(const uint8_t* bits, int64_t i) { return bits[i / 8] >> (i % 8) & 1; }

// Decodes one tile, windows ascending, rows [first_row, last_row) of it.
class WindowReader {
 public:
  WindowReader(const edgesparse_matrix& matrix, int64_t tile, int64_t first_row = 0,
               int64_t last_row = kTileRows)
      : matrix_(matrix), first_row_(first_row), last_row_(last_row) {
    const uint8_t* codes = matrix.codes;
    switch (matrix.layout) {
      case EDGESPARSE_NM4:
        index_ = matrix.index + tile * 8 * matrix.quads;
        codes_ = codes + tile * 16 * matrix.quads;
        break;
      case EDGESPARSE_N64:
        index_ = matrix.index + tile * chunks(matrix) * 3 * kCell;
        codes_ = codes + tile * chunks(matrix) * 2 * kCell;
        break;
      default:
        index_ = matrix.mask + tile * kept_nbytes(matrix);
        codes_ = codes + load_u32(matrix.offsets + 4 * tile);
    }
  }

  // Write the next window's nibbles to lanes [16][64]; what is not kept is 0.
  void next(uint8_t* lanes) {
    std::memset(lanes, 0, kWindowLanes);
    switch (matrix_.layout) {
      case EDGESPARSE_NM4: nm4(lanes); break;
      case EDGESPARSE_N64: n64(lanes); break;
      case EDGESPARSE_COLUMN16: column16(lanes); break;
      default: block16x8(lanes);
    }
    ++window_;
  }

 private:
  void nm4(uint8_t* lanes) const {
    for (int64_t i = 0; i < kWindowQuads; ++i) {
      const int64_t quad = window_ * kWindowQuads + i, octet = quad / 2;
      const uint8_t* places = index_ + octet / 4 * kCell;
      const uint8_t* codes = codes_ + octet / 2 * kCell;
      for (int64_t r = first_row_; r < last_row_; ++r)
        for (int64_t lane = 4 * r + 2 * (quad % 2), l = lane; l < lane + 2; ++l)
          lanes[kCell * i + 4 * r + (places[l] >> (2 * (octet % 4)) & 3)] =
              codes[l] >> (4 * (octet % 2)) & 15;
    }
  }

  void n64(uint8_t* lanes) const {
    for (int64_t i = 0; i < matrix_.of_64; ++i) {
      const int64_t position = window_ * matrix_.of_64 + i, quarter = position % 16 / 4;
      const uint8_t* places = index_ + position / 16 * 3 * kCell;
      const uint8_t* codes = codes_ + position / 16 * 2 * kCell + quarter / 2 * kCell;
      const int64_t half = 4 * (quarter % 2);
      for (int64_t r = first_row_; r < last_row_; ++r) {
        const int64_t l = 4 * r + position % 4;
        const int64_t place = (places[quarter / 2 * kCell + l] >> half & 15) |
                              (places[2 * kCell + l] >> (2 * quarter) & 3) << 4;
        lanes[place / kQuad * kCell + 4 * r + place % kQuad] = codes[l] >> half & 15;
      }
    }
  }

  void column16(uint8_t* lanes) {
    for (int64_t i = 0; i < kWindow; ++i) {
      const int64_t column = window_ * kWindow + i;
      if (column == group_end_) {
        done_ += (rank_ + kQuad - 1) / kQuad;
        rank_ = 0;
        group_end_ += matrix_.group_size;
      }
      if (!bit_of(index_, column)) continue;
      const int64_t quad = done_ + rank_ / kQuad;
      for (int64_t r = first_row_; r < last_row_; ++r)
        lanes[i / kQuad * kCell + 4 * r + i % kQuad] =
            codes_[quad / 2 * kCell + 4 * r + rank_ % kQuad] >> (4 * (quad % 2)) & 15;
      ++rank_;
    }
  }

  void block16x8(uint8_t* lanes) {
    for (int64_t octet = 0; octet < kWindow / 8; ++octet) {
      if (!bit_of(index_, window_ * kWindow / 8 + octet)) continue;
      for (int64_t l = 4 * first_row_; l < 4 * last_row_; ++l) {
        lanes[2 * octet * kCell + l] = codes_[done_ * kCell + l] & 15;
        lanes[(2 * octet + 1) * kCell + l] = codes_[done_ * kCell + l] >> 4;
      }
      ++done_;
    }
  }

  const edgesparse_matrix& matrix_;
  const int64_t first_row_, last_row_;
  const uint8_t *index_, *codes_;
  int64_t window_ = 0;
  int64_t done_ = 0;                           // quads of earlier groups, or blocks
  int64_t rank_ = 0;                           // kept columns of this group so far
  int64_t group_end_ = matrix_.group_size;
};

}  // namespace edgesparse
}  // namespace
