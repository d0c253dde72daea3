// One row of integer activations and a structured mask: nothing is expanded. nm4 and n64 gather the
// digits that the kept weights meet, column16 packs those of a tile's columns and goes on as dense,
// block16x8 visits kept blocks. Beside what four_bit.hpp asks of an `Isa`:
//
//   Isa::Bytes     64 bytes in registers
//   Isa::repeat4   four digits for each row
//   Isa::pick8     digits by the places of octet `Octet` of an nm4 index
//   Isa::pick64    digits of a window by the places of quarter `Quarter` of an n64 index
//   Isa::add_products   adds the products of both nibbles and digits to an Isa::Pair
//   Isa::pack      the digits whose bit is set, moved together: up to 64, of which more are written
//   Isa::offset_sum   what the offset of the lanes adds to a sum of products with these digits
#pragma once

#include "four_bit.hpp"

namespace {
namespace edgesparse {

// The chosen loops of an instruction set; one row `m` of the batch, one tile.
using GatherKernel = void (*)(const edgesparse_matrix& matrix, const Workspace& prepared,
                              int64_t tile, int64_t m, const float* bias, float* out);

// Whether groups are whole steps of the loops below.
inline bool can_gather(const edgesparse_matrix& matrix) {
  const int64_t group = matrix.group_size;
  switch (matrix.layout) {
    case EDGESPARSE_NM4: return group % 32 == 0;
    case EDGESPARSE_N64: return group % (matrix.of_64 % 16 ? 2 * kWindow : kWindow) == 0;
    case EDGESPARSE_COLUMN16:
    case EDGESPARSE_BLOCK16X8: return group % 8 == 0;
    default: return false;
  }
}

constexpr int64_t kCodesAhead = 4096;  // bytes

template <class Isa, int Planes>
void nm4_tile(const edgesparse_matrix& matrix, const Workspace& prepared, int64_t tile, int64_t m,
              const float* bias, float* out) {
  const uint8_t* codes = matrix.codes + tile * 16 * matrix.quads;
  const uint8_t* index = matrix.index + tile * 8 * matrix.quads;
  TileSums<Isa, Planes> sums(matrix, prepared, tile, m);
  const int64_t steps = matrix.quads / 8, group_steps = matrix.group_size / 32;
  for (int64_t group = 0, step = 0; group < matrix.groups; ++group) {
    typename Isa::Pair pairs[Planes] = {};
    for (const int64_t end = min(step + group_steps, steps); step < end; ++step) {
      __builtin_prefetch(codes + kCodesAhead);
      __builtin_prefetch(codes + kCodesAhead + kCell);
      __builtin_prefetch(index + kCodesAhead / 2);
      const typename Isa::Bytes places = Isa::load_bytes(index);
      typename Isa::Lanes low, high, low2, high2;
      Isa::octet(codes, low, high);
      Isa::octet(codes + kCell, low2, high2);
      for (int plane = 0; plane < Planes; ++plane) {
        const int8_t* x = prepared.digits(m, plane) + 32 * step;
        Isa::add_products(pairs[plane], low, Isa::template pick8<0>(x, places), high,
                          Isa::template pick8<1>(x + 8, places));
        Isa::add_products(pairs[plane], low2, Isa::template pick8<2>(x + 16, places), high2,
                          Isa::template pick8<3>(x + 24, places));
      }
      codes += 2 * kCell;
      index += kCell;
    }
    sums.add(group, pairs);
  }
  sums.store(bias, out);
}

template <class Isa, int Planes>
void n64_tile(const edgesparse_matrix& matrix, const Workspace& prepared, int64_t tile, int64_t m,
              const float* bias, float* out) {
  const int64_t count = chunks(matrix), halves = matrix.of_64 / 8;
  const uint8_t* codes = matrix.codes + tile * count * 2 * kCell;
  const uint8_t* index = matrix.index + tile * count * 3 * kCell;
  TileSums<Isa, Planes> sums(matrix, prepared, tile, m);
  int64_t column = 0, left = halves;  // of the window at `column`, half chunks
  const auto next_half = [&] {
    const int64_t at = column;
    if (--left == 0) left = halves, column += kWindow;
    return at;
  };
  const int64_t group_chunks = matrix.group_size / kWindow * matrix.of_64 / 16;
  for (int64_t group = 0, chunk = 0; group < matrix.groups; ++group) {
    typename Isa::Pair pairs[Planes] = {};
    for (const int64_t end = min(chunk + group_chunks, count); chunk < end; ++chunk) {
      for (int i = 0; i < 2; ++i) __builtin_prefetch(codes + kCodesAhead + kCell * i);
      for (int i = 0; i < 3; ++i) __builtin_prefetch(index + kCodesAhead + kCell * i);
      const int64_t former = next_half(), latter = next_half();
      typename Isa::Lanes low, high, low2, high2;
      Isa::octet(codes, low, high);
      Isa::octet(codes + kCell, low2, high2);
      for (int plane = 0; plane < Planes; ++plane) {
        const int8_t* x = prepared.digits(m, plane);
        Isa::add_products(pairs[plane], low, Isa::template pick64<0>(x + former, index), high,
                          Isa::template pick64<1>(x + former, index));
        Isa::add_products(pairs[plane], low2, Isa::template pick64<2>(x + latter, index), high2,
                          Isa::template pick64<3>(x + latter, index));
      }
      codes += 2 * kCell;
      index += 3 * kCell;
    }
    sums.add(group, pairs);
  }
  sums.store(bias, out);
}

// The set bits of [begin, end) of a bitmap, end - begin <= 64 and both multiples of 8.
inline uint64_t bits_between(const uint8_t* bits, int64_t begin, int64_t end) {
  uint64_t word = 0;
  std::memcpy(&word, bits + begin / 8, static_cast<size_t>((end - begin) / 8));
  return word;
}

template <class Isa, int Planes>
void block16x8_tile(const edgesparse_matrix& matrix, const Workspace& prepared, int64_t tile,
                    int64_t m, const float* bias, float* out) {
  const uint8_t* codes = matrix.codes + load_u32(matrix.offsets + 4 * tile);
  const uint8_t* kept = matrix.mask + tile * kept_nbytes(matrix);
  TileSums<Isa, Planes> sums(matrix, prepared, tile, m);
  const int64_t octets = matrix.quads / 2, group_octets = matrix.group_size / 8;
  for (int64_t group = 0; group < matrix.groups; ++group) {
    typename Isa::Pair pairs[Planes] = {};
    const int64_t begin = group * group_octets, end = min(begin + group_octets, octets);
    for (int64_t byte = begin / 8; byte < (end + 7) / 8; ++byte) {
      unsigned bits = kept[byte];
      if (8 * byte < begin) bits &= 255u << (begin - 8 * byte);
      if (8 * byte + 8 > end) bits &= (1u << (end - 8 * byte)) - 1;
      for (; bits; bits &= bits - 1) {
        __builtin_prefetch(codes + kCodesAhead);
        typename Isa::Lanes low, high;
        Isa::octet(codes, low, high);
        const int64_t column = 8 * (8 * byte + __builtin_ctz(bits));
        for (int plane = 0; plane < Planes; ++plane) {
          const int8_t* x = prepared.digits(m, plane) + column;
          Isa::add_products(pairs[plane], low, Isa::repeat4(x), high, Isa::repeat4(x + kQuad));
        }
        codes += kCell;
      }
    }
    sums.add(group, pairs);
  }
  sums.store(bias, out);
}

}  // namespace edgesparse
}  // namespace
