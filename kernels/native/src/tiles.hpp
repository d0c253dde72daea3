// The product, written once over a small vector interface `Isa`:
//
//   Isa::kOffset   true: lanes hold code + 2^(bits - 1), unsigned; the digit sums take it off again
//   Isa::expand    64 lanes from a stream: the bits `low` of the bytes >> shift, where the mask is set
//   Isa::Sums      16 int32, one for each row of a tile
//   Isa::dot       sums[r] += the four lanes of row r times four digits
//   Isa::kNarrow   not 0: Isa::narrow_quads does that for several quads of at most 4 bits
//   Isa::kFours    true: Isa::dot_fours does that for four rows of digits and all quads of a chunk
//
// The integers do not depend on the instruction set, and floats are computed from them in one order
// without fused multiply-add, so integer activations give the same bits everywhere.
#pragma once

#include <cmath>

#include "structured.hpp"
#include "workspace.hpp"

namespace {
namespace edgesparse {

constexpr int64_t kChunk = 32;  // quads decoded at once: 2 KiB of lanes, which stay in the L1 cache

// The streams of one plane of a tile, each at its next code.
struct Streams {
  const uint8_t* next[8];
  int width;

  Streams(const edgesparse_matrix& matrix, int64_t tile, int plane_width, bool high)
      : width(plane_width) {
    const uint8_t* begin = tile_begin(matrix, tile, plane_width, high);
    for (int j = 0; j < streams(plane_width); ++j) next[j] = begin;
  }
};

// Cells of the dense and the bitmask layout, in the order of a tile.
template <class Isa>
class StreamCells {
 public:
  StreamCells(const edgesparse_matrix& matrix, int64_t tile)
      : matrix_(matrix),
        tile_(tile),
        low_(matrix, tile, low_width(matrix), false),
        high_(matrix, tile, 1, matrix.bits == 3) {}

  // Decode the next `count` quads, from `quad` on, to lanes [count][64].
  void next(int64_t quad, int64_t count, uint8_t* lanes) {
    const int step = streams(low_.width);
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t mask = cell_mask(matrix_, tile_, quad + i);
      const int j = static_cast<int>((quad + i) & (step - 1));
      Isa::expand(low_.next[j], mask, low_.width * j, (1 << low_.width) - 1, lanes + kCell * i);
      low_.next[j] += popcount(mask);
      if (matrix_.bits == 3) add_high(quad + i, mask, lanes + kCell * i);
    }
    Isa::to_signed(lanes, count * kCell, static_cast<uint8_t>(1 << (matrix_.bits - 1)));
  }

 private:
  void add_high(int64_t quad, uint64_t mask, uint8_t* lanes) {
    uint8_t bit[kCell];
    const int j = static_cast<int>(quad & 7);
    Isa::expand(high_.next[j], mask, j, 1, bit);
    high_.next[j] += popcount(mask);
    for (int64_t l = 0; l < kCell; ++l) lanes[l] = static_cast<uint8_t>(lanes[l] | bit[l] << 2);
  }

  const edgesparse_matrix& matrix_;
  int64_t tile_;
  Streams low_, high_;
};

// Cells of the other layouts, likewise.
template <class Isa>
class WindowCells {
 public:
  WindowCells(const edgesparse_matrix& matrix, int64_t tile) : reader_(matrix, tile) {}

  void next(int64_t quad, int64_t count, uint8_t* lanes) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t within = (quad + i) % kWindowQuads;
      if (within == 0) reader_.next(window_);
      std::memcpy(lanes + kCell * i, window_ + kCell * within, kCell);
    }
    Isa::to_signed(lanes, count * kCell, 8);
  }

 private:
  WindowReader reader_;
  uint8_t window_[kWindowLanes];
};

// Scales of the 16 rows of a tile for one group.
template <class Isa>
void load_scales(const edgesparse_matrix& matrix, int64_t tile, int64_t group, float* scales) {
  Isa::halves(matrix.scales + 2 * kTileRows * (tile * matrix.groups + group), scales);
}

inline void store_rows(const edgesparse_matrix& matrix, int64_t tile, const float* sums,
                       const float* bias, float* out) {
  const int64_t begin = tile * kTileRows, count = min(kTileRows, matrix.rows - begin);
  for (int64_t r = 0; r < count; ++r) out[begin + r] = sums[r] + (bias ? bias[begin + r] : 0.0f);
}

template <class Isa>
void dot_quads(typename Isa::Sums& sums, const uint8_t* lanes, const int8_t* digits, int64_t quads,
               int bits) {
  if constexpr (Isa::kNarrow > 0)
    if (bits <= 4) return Isa::narrow_quads(sums, lanes, digits, quads);
  for (int64_t i = 0; i < quads; ++i) Isa::dot(sums, lanes + kCell * i, digits + kQuad * i, bits);
}

constexpr int64_t kBatch = 8;  // rows of activations that share one decoding of a tile

// Integer activations: rows [first, first + count) of the batch, count <= kBatch, one tile.
template <class Isa, class Cells>
void integer_tile(const edgesparse_matrix& matrix, const Workspace& prepared, int64_t tile,
                  int64_t first, int64_t count, const float* bias, float* out) {
  alignas(64) uint8_t lanes[kChunk * kCell];
  float sums[kBatch][kTileRows] = {};
  Cells decoder(matrix, tile);
  const int32_t offset = Isa::kOffset ? 1 << (matrix.bits - 1) : 0;
  const int64_t group_quads = matrix.group_size / kQuad;
  for (int64_t group = 0; group < matrix.groups; ++group) {
    const int64_t end = min((group + 1) * group_quads, matrix.quads);
    alignas(64) int32_t totals[kBatch][2][kTileRows];
    for (int64_t m = 0; m < count; ++m)
      for (int64_t plane = 0; plane < prepared.planes; ++plane) {
        const int32_t start = -offset * prepared.sum(first + m, plane, group);
        for (int64_t r = 0; r < kTileRows; ++r) totals[m][plane][r] = start;
      }
    for (int64_t quad = group * group_quads; quad < end; quad += kChunk) {
      const int64_t quads = min(kChunk, end - quad);
      decoder.next(quad, quads, lanes);
      const int64_t fours = Isa::kFours ? count * prepared.planes / 4 * 4 : 0;
      if constexpr (Isa::kFours)
        for (int64_t row = 0; row < fours; row += 4) {
          int32_t* to[4];
          const int8_t* digits[4];
          for (int64_t j = 0; j < 4; ++j) {
            const int64_t m = (row + j) / prepared.planes, plane = (row + j) % prepared.planes;
            to[j] = totals[m][plane];
            digits[j] = prepared.digits(first + m, plane) + kQuad * quad;
          }
          Isa::dot_fours(to, lanes, digits, quads);
        }
      for (int64_t row = fours; row < count * prepared.planes; ++row) {
        const int64_t m = row / prepared.planes, plane = row % prepared.planes;
        typename Isa::Sums dots = Isa::load(totals[m][plane]);
        const int8_t* digits = prepared.digits(first + m, plane) + kQuad * quad;
        dot_quads<Isa>(dots, lanes, digits, quads, matrix.bits);
        Isa::store(dots, totals[m][plane]);
      }
    }
    float scales[kTileRows];
    load_scales<Isa>(matrix, tile, group, scales);
    for (int64_t m = 0; m < count; ++m) {
      const float scale = prepared.scale(first + m, group);
      for (int64_t r = 0; r < kTileRows; ++r) {
        float total = static_cast<float>(totals[m][0][r]);
        if (prepared.planes == 2) total = total * 256.0f + static_cast<float>(totals[m][1][r]);
        sums[m][r] = sums[m][r] + total * (scales[r] * scale);
      }
    }
  }
  for (int64_t m = 0; m < count; ++m)
    store_rows(matrix, tile, sums[m], bias, out + (first + m) * matrix.rows);
}

// float32 activations with groups of whole quads.
template <class Isa, class Cells>
void float_tile(const edgesparse_matrix& matrix, const Workspace& prepared, int64_t tile,
                int64_t first, int64_t count, const float* bias, float* out) {
  alignas(64) uint8_t lanes[kChunk * kCell];
  float sums[kBatch][kTileRows] = {};
  Cells decoder(matrix, tile);
  const float offset = Isa::kOffset ? static_cast<float>(1 << (matrix.bits - 1)) : 0.0f;
  const int64_t group_quads = matrix.group_size / kQuad;
  for (int64_t group = 0; group < matrix.groups; ++group) {
    const int64_t end = min((group + 1) * group_quads, matrix.quads);
    alignas(64) float totals[kBatch][kCell] = {};
    for (int64_t quad = group * group_quads; quad < end; quad += kChunk) {
      const int64_t quads = min(kChunk, end - quad);
      decoder.next(quad, quads, lanes);
      for (int64_t m = 0; m < count; ++m) {
        const uint8_t* x = prepared.row(first + m) + 4 * kQuad * quad;
        Isa::float_dots(totals[m], lanes, x, quads, offset);
      }
    }
    float scales[kTileRows];
    load_scales<Isa>(matrix, tile, group, scales);
    for (int64_t m = 0; m < count; ++m)
      for (int64_t r = 0; r < kTileRows; ++r) {
        const float* four = totals[m] + kQuad * r;
        sums[m][r] += ((four[0] + four[1]) + (four[2] + four[3])) * scales[r];
      }
  }
  for (int64_t m = 0; m < count; ++m)
    store_rows(matrix, tile, sums[m], bias, out + (first + m) * matrix.rows);
}

}  // namespace edgesparse
}  // namespace
