// AVX-512 with VBMI2 (expand bytes) and VNNI (dot product of unsigned and signed bytes).
#include "dispatch.hpp"

#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>

#include "linear.hpp"

namespace {
namespace edgesparse {

struct Avx512 : Portable {
  static constexpr bool kOffset = true;
  static constexpr bool kFused = true;
  using Sums = __m512i;
  using Lanes = __m512i;  // low: code + 8; high: 16 (code + 8)
  using Bytes = __m512i;
  struct Pair {
    __m512i even, odd, minus;
  };

  static void octet(const uint8_t* codes, Lanes& low, Lanes& high) {
    low = low_nibbles(codes);
    high = high_nibbles(codes);
  }
  // Nibbles first: an expand that loads takes longer than a load and an expand.
  static void expand_octet(const uint8_t*& evens, const uint8_t*& odds, const uint8_t* masks,
                           Lanes& low, Lanes& high) {
    const uint64_t even = load_u64(masks), odd = load_u64(masks + 8);
    low = _mm512_mask_expand_epi8(_mm512_set1_epi8(8), even, low_nibbles(evens));
    high = _mm512_mask_expand_epi8(_mm512_set1_epi8(-128), odd, high_nibbles(odds));
    evens += popcount(even);
    odds += popcount(odd);
  }
  static Pair start(int32_t value) {
    return {_mm512_set1_epi32(value), _mm512_setzero_si512(), _mm512_setzero_si512()};
  }
  static void dot_octet(Pair& sums, Lanes low, Lanes high, const int8_t* digits) {
    dot_low(sums, low, digits);
    dot_high(sums, high, digits + kQuad);
  }
  static void dot_low(Pair& sums, Lanes low, const int8_t* digits) {
    sums.even = _mm512_dpbusd_epi32(sums.even, low, repeat4(digits));
  }
  static void dot_high(Pair& sums, Lanes high, const int8_t* digits) {
    sums.odd = _mm512_dpbusd_epi32(sums.odd, high, repeat4(digits));
  }

  static Bytes load_bytes(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static Bytes repeat4(const int8_t* x) { return _mm512_set1_epi32(static_cast<int>(load_u32(u8(x)))); }
  template <int Octet>
  static Bytes pick8(const int8_t* x, Bytes places) {
    const __m512i eight = _mm512_set1_epi64(static_cast<int64_t>(load_u64(u8(x))));
    // (places & 3) | second quad
    return _mm512_shuffle_epi8(
        eight, _mm512_ternarylogic_epi32(_mm512_srli_epi16(places, 2 * Octet), _mm512_set1_epi8(3),
                                         _mm512_set1_epi32(0x04040000), 0xEA));
  }
  template <int Quarter>
  static Bytes pick64(const int8_t* x, const uint8_t* index) {
    const __m512i low = _mm512_loadu_si512(index + Quarter / 2 * kCell);
    const __m512i high = _mm512_loadu_si512(index + 2 * kCell);
    constexpr int kUp = Quarter < 2 ? 4 - 2 * Quarter : 0, kDown = Quarter == 3 ? 2 : 0;
    // The low 4 bits of one, the next 2 of the other; the permutation looks at no more.
    return _mm512_permutexvar_epi8(
        _mm512_ternarylogic_epi32(
            _mm512_set1_epi8(15), _mm512_srli_epi16(low, Quarter % 2 * 4),
            _mm512_srli_epi16(_mm512_slli_epi16(high, kUp), kDown), 0xCA),
        _mm512_loadu_si512(x));
  }
  static void add_products(Pair& sums, Lanes low, Bytes first, Lanes high, Bytes second) {
    const __m512i eights = _mm512_set1_epi8(8);
    sums.even = _mm512_dpbusd_epi32(sums.even, low, first);
    sums.odd = _mm512_dpbusd_epi32(sums.odd, high, second);
    sums.minus = _mm512_dpbusd_epi32(sums.minus, eights, first);
    sums.minus = _mm512_dpbusd_epi32(sums.minus, eights, second);
  }
  static Sums total(const Pair& sums) {
    const __m512i both = _mm512_add_epi32(sums.even, _mm512_srai_epi32(sums.odd, 4));
    return _mm512_sub_epi32(both, sums.minus);
  }
  static int64_t pack(const int8_t* x, int64_t count, uint64_t bits, int8_t* to) {
    const __m512i digits = _mm512_maskz_loadu_epi8(~uint64_t{0} >> (64 - count), x);
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi8(bits, digits));
    return popcount(bits);
  }
  static int32_t offset_sum(const int8_t* x, int64_t count) {
    __m512i sums = _mm512_setzero_si512();
    for (int64_t i = 0; i < count; i += kCell)
      sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(8), _mm512_loadu_si512(x + i));
    return _mm512_reduce_add_epi32(sums);
  }
  static void halves(const uint8_t* from, float* to) {
    __m256i words;
    std::memcpy(&words, from, sizeof words);
    _mm512_storeu_ps(to, _mm512_cvtph_ps(words));
  }

  static void expand(const uint8_t* codes, uint64_t mask, int shift, int low, uint8_t* lanes) {
    const __m512i bytes = _mm512_loadu_si512(codes);
    // Shifting words brings bits of the neighbour in from above; the AND takes them off again.
    const __m512i shifted = _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(shift));
    const __m512i kept = _mm512_and_si512(shifted, _mm512_set1_epi8(static_cast<char>(low)));
    _mm512_storeu_si512(lanes, _mm512_maskz_expand_epi8(mask, kept));
  }

  // Two's complement to code + sign.
  static void to_signed(uint8_t* lanes, int64_t count, uint8_t sign) {
    const __m512i bit = _mm512_set1_epi8(static_cast<char>(sign));
    for (int64_t l = 0; l < count; l += kCell)
      _mm512_storeu_si512(lanes + l, _mm512_xor_si512(_mm512_loadu_si512(lanes + l), bit));
  }

  static Sums load(const int32_t* from) { return _mm512_loadu_si512(from); }
  static void store(const Sums& sums, int32_t* to) { _mm512_storeu_si512(to, sums); }

  static void dot(Sums& sums, const uint8_t* lanes, const int8_t* digits, int /*bits*/) {
    const __m512i four = _mm512_set1_epi32(static_cast<int>(load_u32(
        reinterpret_cast<const uint8_t*>(digits))));
    sums = _mm512_dpbusd_epi32(sums, _mm512_loadu_si512(lanes), four);
  }

  static void float_dots(float* totals, const uint8_t* lanes, const uint8_t* x, int64_t quads,
                         float offset) {
    const __m512 zero = _mm512_set1_ps(offset);
    __m512 sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = _mm512_loadu_ps(totals + 16 * i);
    for (int64_t q = 0; q < quads; ++q) {
      __m128 four;
      std::memcpy(&four, x + 16 * q, sizeof four);
      const __m512 wide = _mm512_broadcast_f32x4(four);
      for (int i = 0; i < 4; ++i) {
        __m128i codes;
        std::memcpy(&codes, lanes + kCell * q + 16 * i, sizeof codes);
        const __m512 weights =
            _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes)), zero);
        sums[i] = _mm512_fmadd_ps(weights, wide, sums[i]);
      }
    }
    for (int i = 0; i < 4; ++i) _mm512_storeu_ps(totals + 16 * i, sums[i]);
  }

 private:
  static Lanes low_nibbles(const uint8_t* codes) {
    const __m512i nibbles = _mm512_and_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8(15));
    return _mm512_xor_si512(nibbles, _mm512_set1_epi8(8));
  }
  static Lanes high_nibbles(const uint8_t* codes) {
    const __m512i nibbles = _mm512_and_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8(-16));
    return _mm512_xor_si512(nibbles, _mm512_set1_epi8(-128));
  }
  static const uint8_t* u8(const int8_t* x) { return reinterpret_cast<const uint8_t*>(x); }
};

}  // namespace edgesparse
}  // namespace

namespace edgesparse_native {
TileKernel avx512_kernel() { return edgesparse::linear_tiles<edgesparse::Avx512>; }
}  // namespace edgesparse_native
#else
namespace edgesparse_native {
TileKernel avx512_kernel() { return nullptr; }
}  // namespace edgesparse_native
#endif
