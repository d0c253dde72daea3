// column16: one row of integer activations. The digits of a tile's columns are packed a piece ahead
// of their use: a load of what was just stored, but not by one store, waits until the stores are done.
#pragma once

#include "gather.hpp"

namespace {
namespace edgesparse {

template <class Isa, int Planes>
class ColumnTile {
 public:
  ColumnTile(const edgesparse_matrix& matrix, const Workspace& prepared, int64_t tile, int64_t m)
      : matrix_(matrix),
        prepared_(prepared),
        m_(m),
        kept_(matrix.mask + tile * kept_nbytes(matrix)),
        codes_(matrix.codes + load_u32(matrix.offsets + 4 * tile)),
        pieces_((matrix.group_size + kPiece - 1) / kPiece),
        sums_(matrix, prepared, tile, m) {}

  void run(const float* bias, float* out) {
    const int64_t count = matrix_.groups * pieces_;
    if (count) pack(0);
    for (int64_t i = 0; i < count; ++i) {
      if (i + 1 < count) pack(i + 1);
      multiply(i);
      if ((i + 1) % pieces_ == 0) finish(i / pieces_);
    }
    sums_.store(bias, out);
  }

 private:
  static constexpr int64_t kPiece = 512;  // columns of a group at once
  static constexpr int64_t kRoom = kPiece + kQuad + 2 * kWindow;

  struct Piece {
    int64_t count;  // digits, those left over by the piece before it included
    alignas(64) int8_t digits[Planes][kRoom];
  };

  // Pack the digits of piece `i`, behind those that filled no quad of the piece before it.
  void pack(int64_t i) {
    Piece& piece = slots_[i & 1];
    const Piece& former = slots_[~i & 1];
    const int64_t part = i % pieces_, group = i / pieces_ * matrix_.group_size;
    const int64_t group_end = min(group + matrix_.group_size, matrix_.quads * kQuad);
    const int64_t begin = group + part * kPiece, end = min(begin + kPiece, group_end);
    const int64_t carried = part ? former.count % kQuad : 0;
    for (int plane = 0; plane < Planes; ++plane) {
      int8_t* to = piece.digits[plane];
      for (int64_t j = 0; j < carried; ++j)
        *to++ = former.digits[plane][former.count - carried + j];
      const int8_t* x = prepared_.digits(m_, plane);
      for (int64_t at = begin; at < end; at += kWindow) {
        const int64_t stop = min(at + kWindow, end);
        to += Isa::pack(x + at, stop - at, bits_between(kept_, at, stop), to);
      }
      std::memset(to, 0, kWindow);
      piece.count = to - piece.digits[plane];
      added_[i & 1][plane] =
          Isa::offset_sum(piece.digits[plane] + carried, piece.count - carried);
    }
  }

  void multiply(int64_t i) {
    const Piece& piece = slots_[i & 1];
    const bool last = (i + 1) % pieces_ == 0;
    const int64_t quads = (piece.count + (last ? kQuad - 1 : 0)) / kQuad;
    for (int plane = 0; plane < Planes; ++plane) offsets_[plane] += added_[i & 1][plane];
    int64_t quad = 0;
    if (is_odd_ && quads) dot_high(piece, quad++);
    const int64_t octets = (quads - quad) / 2;
    const auto no_stage = [](int64_t, int64_t) {};
    each_octet<Isa>(pairs_, 0, octets, no_stage, [&](int64_t octet) {
      __builtin_prefetch(codes_ + kCodesAhead);
      typename Isa::Lanes low, high;
      Isa::octet(codes_, low, high);
      for (int plane = 0; plane < Planes; ++plane)
        Isa::dot_octet(pairs_[plane], low, high, piece.digits[plane] + kQuad * quad + 8 * octet);
      codes_ += kCell;
    });
    quad += 2 * octets;
    if (quad == quads) return;
    typename Isa::Lanes low, high;
    Isa::octet(codes_, low, high);
    for (int plane = 0; plane < Planes; ++plane)
      Isa::dot_low(pairs_[plane], low, piece.digits[plane] + kQuad * quad);
    is_odd_ = true;
  }

  // The quad in the high halves of a block whose low halves were the end of what came before.
  void dot_high(const Piece& piece, int64_t quad) {
    typename Isa::Lanes low, high;
    Isa::octet(codes_, low, high);
    for (int plane = 0; plane < Planes; ++plane)
      Isa::dot_high(pairs_[plane], high, piece.digits[plane] + kQuad * quad);
    codes_ += kCell;
    is_odd_ = false;
  }

  void finish(int64_t group) {
    sums_.add(group, pairs_, offsets_);
    for (int plane = 0; plane < Planes; ++plane) {
      pairs_[plane] = Isa::start(0);
      offsets_[plane] = 0;
    }
  }

  const edgesparse_matrix& matrix_;
  const Workspace& prepared_;
  const int64_t m_;
  const uint8_t* kept_;
  const uint8_t* codes_;
  bool is_odd_ = false;  // the next quad is in the high halves at `codes_`
  const int64_t pieces_;  // of a group
  Piece slots_[2];
  int32_t added_[2][Planes] = {};
  int32_t offsets_[Planes] = {};
  typename Isa::Pair pairs_[Planes] = {};
  TileSums<Isa, Planes> sums_;
};

template <class Isa, int Planes>
void column16_tile(const edgesparse_matrix& matrix, const Workspace& prepared, int64_t tile,
                   int64_t m, const float* bias, float* out) {
  ColumnTile<Isa, Planes>(matrix, prepared, tile, m).run(bias, out);
}

template <class Isa, int Planes>
GatherKernel gather_kernel(int32_t layout) {
  switch (layout) {
    case EDGESPARSE_NM4: return nm4_tile<Isa, Planes>;
    case EDGESPARSE_N64: return n64_tile<Isa, Planes>;
    case EDGESPARSE_COLUMN16: return column16_tile<Isa, Planes>;
    default: return block16x8_tile<Isa, Planes>;
  }
}

template <class Isa>
GatherKernel gather_kernel(const edgesparse_matrix& matrix, int64_t planes) {
  return planes == 2 ? gather_kernel<Isa, 2>(matrix.layout) : gather_kernel<Isa, 1>(matrix.layout);
}

}  // namespace edgesparse
}  // namespace
