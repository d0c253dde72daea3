// The product, written once over a small vector interface `Isa`:
//
//   Isa::kOffset   true: lanes hold code + 2^(bits - 1), unsigned; the digit sums take it off again
//   Isa::expand    64 lanes from a stream: the bits `low` of the bytes >> shift, where the mask is set
//   Isa::Sums      16 int32, one for each row of a tile
//   Isa::dot       sums[r] += the four lanes of row r times four digits
//
// and, where Isa::kFused, 4-bit codes from packed bytes to products without a stop in the cache:
//
//   Isa::Lanes     a cell in registers
//   Isa::low       the low nibbles of 64 bytes, Isa::high the high ones; as `dot_lanes` wants them
//   Isa::expand_low, Isa::expand_high   likewise, of a stream, where the mask is set
//   Isa::total     the sums of both, as sums of products of codes
//
// The integers do not depend on the instruction set, and floats are computed from them in one order
// without fused multiply-add, so integer activations give the same bits everywhere.
#pragma once

#include <cmath>

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

template <class Isa>
class Decoder {
 public:
  Decoder(const edgesparse_matrix& matrix, int64_t tile)
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

// Scales of the 16 rows of a tile for one group.
inline void load_scales(const edgesparse_matrix& matrix, int64_t tile, int64_t group, float* scales) {
  const uint8_t* at = matrix.scales + 2 * kTileRows * (tile * matrix.groups + group);
  for (int64_t r = 0; r < kTileRows; ++r) scales[r] = half_to_float(load_u16(at + 2 * r));
}

inline void store_rows(const edgesparse_matrix& matrix, int64_t tile, const float* sums,
                       const float* bias, float* out) {
  const int64_t begin = tile * kTileRows, count = min(kTileRows, matrix.rows - begin);
  for (int64_t r = 0; r < count; ++r) out[begin + r] = sums[r] + (bias ? bias[begin + r] : 0.0f);
}

constexpr int64_t kBatch = 8;  // rows of activations that share one decoding of a tile

// Integer activations: rows [first, first + count) of the batch, count <= kBatch, one tile.
template <class Isa>
void integer_tile(const edgesparse_matrix& matrix, const Workspace& prepared, int64_t tile,
                  int64_t first, int64_t count, const float* bias, float* out) {
  alignas(64) uint8_t lanes[kChunk * kCell];
  float sums[kBatch][kTileRows] = {};
  Decoder<Isa> decoder(matrix, tile);
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
      for (int64_t m = 0; m < count; ++m)
        for (int64_t plane = 0; plane < prepared.planes; ++plane) {
          typename Isa::Sums dots = Isa::load(totals[m][plane]);
          const int8_t* digits = prepared.digits(first + m, plane) + kQuad * quad;
          for (int64_t i = 0; i < quads; ++i)
            Isa::dot(dots, lanes + kCell * i, digits + kQuad * i, matrix.bits);
          Isa::store(dots, totals[m][plane]);
        }
    }
    float scales[kTileRows];
    load_scales(matrix, tile, group, scales);
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

// One row of integer activations in `Planes` planes, 4-bit codes, groups of whole octets.
template <class Isa, int Planes>
void four_bit_tile(const edgesparse_matrix& matrix, const Workspace& prepared, int64_t tile,
                   int64_t m, const float* bias, float* out) {
  constexpr int64_t kAhead = 4096;  // bytes; codes are asked for long before they are used
  float sums[kTileRows] = {};
  const uint8_t* evens = tile_begin(matrix, tile, 4, false);
  const uint8_t* odds = evens;
  const uint8_t* masks = matrix.is_dense ? nullptr : matrix.mask + 8 * tile * matrix.quads;
  const int8_t* digits[2] = {prepared.digits(m, 0), prepared.digits(m, Planes - 1)};
  const int64_t group_octets = matrix.group_size / 8, octets = matrix.quads / 2;
  for (int64_t group = 0; group < matrix.groups; ++group) {
    typename Isa::Sums even[2], odd[2];
    for (int plane = 0; plane < Planes; ++plane) {
      even[plane] = Isa::start(Isa::kOffset ? -8 * prepared.sum(m, plane, group) : 0);
      odd[plane] = Isa::start(0);
    }
    const int64_t begin = group * group_octets, end = min(begin + group_octets, octets);
    for (int64_t octet = begin; octet < end; ++octet) {
      typename Isa::Lanes low, high;
      __builtin_prefetch(evens + kAhead);
      if (matrix.is_dense) {
        low = Isa::low(evens);
        high = Isa::high(evens);
        evens += kCell;
      } else {
        const uint64_t even_mask = load_u64(masks + 16 * octet);
        const uint64_t odd_mask = load_u64(masks + 16 * octet + 8);
        low = Isa::expand_low(evens, even_mask);
        high = Isa::expand_high(odds, odd_mask);
        evens += popcount(even_mask);
        odds += popcount(odd_mask);
      }
      for (int plane = 0; plane < Planes; ++plane) {
        Isa::dot_lanes(even[plane], low, digits[plane] + 8 * octet);
        Isa::dot_lanes(odd[plane], high, digits[plane] + 8 * octet + 4);
      }
    }
    alignas(64) int32_t totals[2][kTileRows];
    for (int plane = 0; plane < Planes; ++plane)
      Isa::store(Isa::total(even[plane], odd[plane]), totals[plane]);
    float scales[kTileRows];
    load_scales(matrix, tile, group, scales);
    const float scale = prepared.scale(m, group);
    for (int64_t r = 0; r < kTileRows; ++r) {
      float total = static_cast<float>(totals[0][r]);
      if (Planes == 2) total = total * 256.0f + static_cast<float>(totals[1][r]);
      sums[r] = sums[r] + total * (scales[r] * scale);
    }
  }
  store_rows(matrix, tile, sums, bias, out + m * matrix.rows);
}

// float32 activations with groups of whole quads.
template <class Isa>
void float_tile(const edgesparse_matrix& matrix, const Workspace& prepared, int64_t tile,
                int64_t first, int64_t count, const float* bias, float* out) {
  alignas(64) uint8_t lanes[kChunk * kCell];
  float sums[kBatch][kTileRows] = {};
  Decoder<Isa> decoder(matrix, tile);
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
    load_scales(matrix, tile, group, scales);
    for (int64_t m = 0; m < count; ++m)
      for (int64_t r = 0; r < kTileRows; ++r) {
        const float* four = totals[m] + kQuad * r;
        sums[m][r] += ((four[0] + four[1]) + (four[2] + four[3])) * scales[r];
      }
  }
  for (int64_t m = 0; m < count; ++m)
    store_rows(matrix, tile, sums[m], bias, out + (first + m) * matrix.rows);
}

template <class Isa>
void linear_tiles(const edgesparse_matrix& matrix, const void* workspace, int64_t batch,
                  edgesparse_activations activations, int64_t first_tile, int64_t last_tile,
                  const float* bias, float* out) {
  const Workspace prepared(matrix, activations, workspace);
  if constexpr (Isa::kFused) {
    if (batch == 1 && matrix.bits == 4 && matrix.group_size % 8 == 0 &&
        activations != EDGESPARSE_FLOAT32) {
      const auto tile_kernel =
          prepared.planes == 2 ? four_bit_tile<Isa, 2> : four_bit_tile<Isa, 1>;
      for (int64_t tile = first_tile; tile < last_tile; ++tile)
        tile_kernel(matrix, prepared, tile, 0, bias, out);
      return;
    }
  }
  for (int64_t tile = first_tile; tile < last_tile; ++tile)
    for (int64_t m = 0; m < batch; m += kBatch) {
      const int64_t count = min(kBatch, batch - m);
      if (activations == EDGESPARSE_FLOAT32)
        float_tile<Isa>(matrix, prepared, tile, m, count, bias, out);
      else
        integer_tile<Isa>(matrix, prepared, tile, m, count, bias, out);
    }
}

// What every instruction set can leave to the compiler.
struct Portable {
  static constexpr bool kOffset = false;
  static constexpr bool kFused = false;

  struct Sums {
    int32_t row[kTileRows];
  };

  static void expand(const uint8_t* codes, uint64_t mask, int shift, int low, uint8_t* lanes) {
    for (int64_t l = 0; l < kCell; ++l) {
      const unsigned bit = static_cast<unsigned>(mask >> l) & 1;
      // A lane that is not kept reads the next code, which is there (slack), and drops it.
      lanes[l] = static_cast<uint8_t>((*codes >> shift & low) * bit);
      codes += bit;
    }
  }

  static void to_signed(uint8_t* lanes, int64_t count, uint8_t sign) {
    for (int64_t l = 0; l < count; ++l) lanes[l] = static_cast<uint8_t>((lanes[l] ^ sign) - sign);
  }

  static Sums load(const int32_t* from) {
    Sums sums;
    std::memcpy(&sums, from, sizeof sums);
    return sums;
  }

  static void store(const Sums& sums, int32_t* to) { std::memcpy(to, &sums, sizeof sums); }

  static void dot(Sums& sums, const uint8_t* lanes, const int8_t* digits, int /*bits*/) {
    for (int64_t r = 0; r < kTileRows; ++r)
      for (int64_t c = 0; c < kQuad; ++c)
        sums.row[r] += static_cast<int8_t>(lanes[kQuad * r + c]) * digits[c];
  }

  static void float_dots(float* totals, const uint8_t* lanes, const uint8_t* x, int64_t quads,
                         float /*offset*/) {
    for (int64_t i = 0; i < quads; ++i) {
      float four[kQuad];
      std::memcpy(four, x + 4 * kQuad * i, sizeof four);
      for (int64_t l = 0; l < kCell; ++l)
        totals[l] += static_cast<float>(static_cast<int8_t>(lanes[kCell * i + l])) * four[l % kQuad];
    }
  }
};

}  // namespace edgesparse
}  // namespace
