// Reading a checked pack: words of any alignment, half floats, where a tile's codes begin.
#pragma once

#include <cstdint>
#include <cstring>

#include "edgesparse/kernels.h"

// Every instruction set's kernels are compiled with other flags from the same headers. Names with
// internal linkage keep the linker from giving one's code to another.
namespace {
namespace edgesparse {

constexpr int64_t kTileRows = 16;
constexpr int64_t kQuad = 4;
constexpr int64_t kCell = 64;
constexpr int64_t kSlack = 64;

template <class Word>
Word load_word(const uint8_t* at) {
  Word word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

inline uint64_t load_u64(const uint8_t* at) { return load_word<uint64_t>(at); }
inline uint32_t load_u32(const uint8_t* at) { return load_word<uint32_t>(at); }
inline uint16_t load_u16(const uint8_t* at) { return load_word<uint16_t>(at); }

// Finite float16 as float; exact.
inline float half_to_float(uint16_t half) {
  const uint32_t exponent = (half >> 10) & 31, mantissa = half & 1023;
  // Subnormals are mantissa * 2^-24, exact in float.
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-08f;
    return half & 0x8000 ? -magnitude : magnitude;
  }
  const uint32_t word =
      (static_cast<uint32_t>(half & 0x8000) << 16) | ((exponent + 112) << 23) | (mantissa << 13);
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

inline int64_t popcount(uint64_t word) { return __builtin_popcountll(word); }

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Streams that share the bytes of a plane of `width` bits.
inline int streams(int width) { return width >= 8 ? 1 : 8 / width; }

inline bool is_dense(const edgesparse_matrix& matrix) { return matrix.layout == EDGESPARSE_DENSE; }

// Whether the layout is for masks of one shape: see structured.hpp.
inline bool is_structured(const edgesparse_matrix& matrix) {
  return matrix.layout >= EDGESPARSE_NM4;
}

// Mask word of a cell; all ones in the dense layout.
inline uint64_t cell_mask(const edgesparse_matrix& matrix, int64_t tile, int64_t quad) {
  return is_dense(matrix) ? ~uint64_t{0} : load_u64(matrix.mask + 8 * (tile * matrix.quads + quad));
}

// First byte of a tile in the plane of `width` bits.
inline const uint8_t* tile_begin(const edgesparse_matrix& matrix, int64_t tile, int width,
                                 bool high) {
  const uint8_t* codes = high ? matrix.codes_high : matrix.codes;
  if (is_dense(matrix)) return codes + tile * (kCell * matrix.quads / streams(width));
  return codes + load_u32((high ? matrix.offsets_high : matrix.offsets) + 4 * tile);
}

inline int low_width(const edgesparse_matrix& matrix) { return matrix.bits == 3 ? 2 : matrix.bits; }

}  // namespace edgesparse
}  // namespace
