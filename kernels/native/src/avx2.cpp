// AVX2: bytes are expanded by shuffles, in an order computed from the masks.
#include "dispatch.hpp"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#include "expand_table.hpp"
#include "linear.hpp"

namespace {
namespace edgesparse {

struct Avx2 : Portable {
  static constexpr bool kOffset = true;
  static constexpr bool kFused = true;
  static constexpr bool kStaged = true;

  struct Sums {
    __m256i low, high;
  };
  struct Lanes {
    __m256i first, second;  // code + 8
  };
  using Bytes = Lanes;
  // Four octets are 16 products for a sum of 16 bits, each of at most 15 * 128: 30,720 together.
  static constexpr int64_t kNarrow = 4;
  struct Pair {
    Sums wide, narrow;
  };

  static void octet(const uint8_t* codes, Lanes& low, Lanes& high) {
    const Lanes bytes = offset_codes(load_bytes(codes));
    low = low_nibbles(bytes);
    high = high_nibbles(bytes);
  }
  // Orders of some octets, computed before the first of them is expanded: then codes are all that an
  // octet waits for. In one loop with the products the two chains fill the schedulers of vector units.
  class Orders {
   public:
    void stage(const uint8_t* masks, int64_t first, int64_t count) {
      first_ = first;
      for (int64_t i = 0; i < count; ++i) {
        const CellOrders cells(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(masks + 16 * (first + i))));
        store_both(cells.first(), of_[i]);
        store_both(cells.second(), of_[i] + 2);
      }
      // Else GCC 12 moves sums from register to register in the loop that follows: a twentieth more.
      asm volatile("" : : : "memory");
    }
    const __m256i* of(int64_t octet) const { return of_[octet - first_]; }

   private:
    int64_t first_;
    __m256i of_[kNarrow][4];
  };
  static void expand_octet(const uint8_t*& evens, const uint8_t*& odds, const uint8_t* masks,
                           const __m256i* orders, Lanes& low, Lanes& high) {
    low = low_nibbles(offset_codes(expand_cell(evens, masks, {orders[0], orders[1]})));
    high = high_nibbles(offset_codes(expand_cell(odds, masks + 8, {orders[2], orders[3]})));
  }
  static Pair start(int32_t value) {
    const __m256i all = _mm256_set1_epi32(value), none = _mm256_setzero_si256();
    return {{all, all}, {none, none}};
  }
  static void dot_octet(Pair& sums, const Lanes& low, const Lanes& high, const int8_t* digits) {
    const Bytes first = repeat4(digits), second = repeat4(digits + kQuad);
    add_narrow(sums.narrow, low, first);
    add_narrow(sums.narrow, high, second);
  }
  static void dot_low(Pair& sums, const Lanes& low, const int8_t* digits) {
    add_narrow(sums.narrow, low, repeat4(digits));
    widen(sums);
  }
  static void dot_high(Pair& sums, const Lanes& high, const int8_t* digits) {
    dot_low(sums, high, digits);
  }
  static void widen(Pair& sums) { add_wide(sums.wide, sums.narrow); }

  static Bytes repeat4(const int8_t* x) {
    const __m256i four = _mm256_set1_epi32(static_cast<int>(load_u32(u8(x))));
    return {four, four};
  }
  template <int Octet>
  static Bytes pick8(const int8_t* x, const Bytes& places) {
    const __m256i eight = _mm256_set1_epi64x(static_cast<int64_t>(load_u64(u8(x))));
    return {_mm256_shuffle_epi8(eight, in_octet<Octet>(places.first)),
            _mm256_shuffle_epi8(eight, in_octet<Octet>(places.second))};
  }
  template <int Quarter>
  static Bytes pick64(const int8_t* x, const uint8_t* index) {
    const Bytes low = load_bytes(index + Quarter / 2 * kCell), high = load_bytes(index + 2 * kCell);
    return {of_window(x, in_window<Quarter>(low.first, high.first)),
            of_window(x, in_window<Quarter>(low.second, high.second))};
  }
  static void add_products(Pair& sums, const Lanes& low, const Bytes& first, const Lanes& high,
                           const Bytes& second) {
    Sums& wide = sums.wide;
    wide.low = _mm256_add_epi32(wide.low, both(low.first, high.first, first.first, second.first));
    wide.high =
        _mm256_add_epi32(wide.high, both(low.second, high.second, first.second, second.second));
  }
  static Sums total(const Pair& sums) { return sums.wide; }
  static int64_t pack(const int8_t* x, int64_t count, uint64_t bits, int8_t* to) {
    const int8_t* begin = to;
    for (int64_t i = 0; i < count; i += 8, bits >>= 8) {
      const unsigned mask = bits & 255;
      const __m128i digits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x + i));
      const __m128i order = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPack.shuffle[mask]));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(digits, order));
      to += kPack.count[mask];
    }
    return to - begin;
  }
  static int32_t offset_sum(const int8_t* x, int64_t count) {
    __m256i sums = _mm256_setzero_si256();
    for (int64_t i = 0; i < count; i += 32) {
      const __m256i digits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
      sums = _mm256_add_epi32(sums, products(_mm256_set1_epi8(8), digits, 4));
    }
    alignas(32) int32_t each[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(each), sums);
    int32_t total = 0;
    for (const int32_t sum : each) total += sum;
    return total;
  }
  static void halves(const uint8_t* from, float* to) {
    const auto* at = reinterpret_cast<const __m128i*>(from);
    _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(at)));
    _mm256_storeu_ps(to + 8, _mm256_cvtph_ps(_mm_loadu_si128(at + 1)));
  }

  static void expand(const uint8_t* codes, uint64_t mask, int shift, int low, uint8_t* lanes) {
    const __m128i amount = _mm_cvtsi32_si128(shift);
    const __m256i bits = _mm256_set1_epi8(static_cast<char>(low));
    const auto* bytes = reinterpret_cast<const uint8_t*>(&mask);
    const CellOrders orders(_mm_set1_epi64x(static_cast<int64_t>(mask)));
    const Lanes cell = expand_cell(codes, bytes, orders.first());
    auto* to = reinterpret_cast<__m256i*>(lanes);
    _mm256_storeu_si256(to, _mm256_and_si256(_mm256_srl_epi16(cell.first, amount), bits));
    _mm256_storeu_si256(to + 1, _mm256_and_si256(_mm256_srl_epi16(cell.second, amount), bits));
  }

  static void to_signed(uint8_t* lanes, int64_t count, uint8_t sign) {
    const __m256i bit = _mm256_set1_epi8(static_cast<char>(sign));
    for (int64_t l = 0; l < count; l += 32) {
      auto* at = reinterpret_cast<__m256i*>(lanes + l);
      _mm256_storeu_si256(at, _mm256_xor_si256(_mm256_loadu_si256(at), bit));
    }
  }

  static Sums load(const int32_t* from) {
    const auto* at = reinterpret_cast<const __m256i*>(from);
    return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
  }
  static void store(const Sums& sums, int32_t* to) {
    auto* at = reinterpret_cast<__m256i*>(to);
    _mm256_storeu_si256(at, sums.low);
    _mm256_storeu_si256(at + 1, sums.high);
  }

  static void dot(Sums& sums, const uint8_t* lanes, const int8_t* digits, int bits) {
    const __m256i four = _mm256_set1_epi32(static_cast<int>(load_u32(
        reinterpret_cast<const uint8_t*>(digits))));
    const auto* at = reinterpret_cast<const __m256i*>(lanes);
    sums.low = _mm256_add_epi32(sums.low, products(_mm256_loadu_si256(at), four, bits));
    sums.high = _mm256_add_epi32(sums.high, products(_mm256_loadu_si256(at + 1), four, bits));
  }

  static void narrow_quads(Sums& sums, const uint8_t* lanes, const int8_t* digits, int64_t quads) {
    Sums narrow = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int64_t quad = 0; quad < quads; add_wide(sums, narrow))
      for (const int64_t stop = min(quad + 2 * kNarrow, quads); quad < stop; ++quad)
        add_narrow(narrow, load_bytes(lanes + kCell * quad), repeat4(digits + kQuad * quad));
  }

  static void float_dots(float* totals, const uint8_t* lanes, const uint8_t* x, int64_t quads,
                         float offset) {
    const __m256 zero = _mm256_set1_ps(offset);
    __m256 sums[8];
    for (int i = 0; i < 8; ++i) sums[i] = _mm256_loadu_ps(totals + 8 * i);
    for (int64_t q = 0; q < quads; ++q) {
      __m128 four;
      std::memcpy(&four, x + 16 * q, sizeof four);
      const __m256 wide = _mm256_set_m128(four, four);
      for (int i = 0; i < 8; ++i) {
        const __m128i codes =
            _mm_loadl_epi64(reinterpret_cast<const __m128i*>(lanes + kCell * q + 8 * i));
        const __m256 weights =
            _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes)), zero);
        sums[i] = _mm256_fmadd_ps(weights, wide, sums[i]);
      }
    }
    for (int i = 0; i < 8; ++i) _mm256_storeu_ps(totals + 8 * i, sums[i]);
  }

  static Bytes load_bytes(const uint8_t* codes) {
    const auto* at = reinterpret_cast<const __m256i*>(codes);
    return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
  }

 private:
  static const uint8_t* u8(const int8_t* x) { return reinterpret_cast<const uint8_t*>(x); }

  // Bytes of the eight digits that the places of an octet mean.
  template <int Octet>
  static __m256i in_octet(__m256i places) {
    const __m256i place = _mm256_and_si256(_mm256_srli_epi16(places, 2 * Octet), _mm256_set1_epi8(3));
    return _mm256_or_si256(place, _mm256_set1_epi32(0x04040000));
  }
  template <int Quarter>
  static __m256i in_window(__m256i low, __m256i high) {
    constexpr int kUp = Quarter < 2 ? 4 - 2 * Quarter : 0, kDown = Quarter == 3 ? 2 : 0;
    const __m256i low_bits =
        _mm256_and_si256(_mm256_srli_epi16(low, Quarter % 2 * 4), _mm256_set1_epi8(15));
    const __m256i high_bits = _mm256_and_si256(
        _mm256_srli_epi16(_mm256_slli_epi16(high, kUp), kDown), _mm256_set1_epi8(0x30));
    return _mm256_or_si256(low_bits, high_bits);
  }
  // Digits of a window of 64 by place: four tables of 16; a place of another table has bit 7 set.
  static __m256i of_window(const int8_t* x, __m256i places) {
    __m256i found = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) {
      const __m256i table = _mm256_broadcastsi128_si256(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 16 * i)));
      const __m256i own = _mm256_xor_si256(places, _mm256_set1_epi8(static_cast<char>(16 * i)));
      const __m256i order = _mm256_adds_epu8(own, _mm256_set1_epi8(0x70));
      found = _mm256_or_si256(found, _mm256_shuffle_epi8(table, order));
    }
    return found;
  }
  // Sums of four products of codes: the offset is taken off while they still fit in 16 bits.
  static __m256i both(__m256i low, __m256i high, __m256i first, __m256i second) {
    const __m256i eights = _mm256_set1_epi8(8);
    const __m256i with = _mm256_add_epi16(_mm256_maddubs_epi16(low, first),
                                          _mm256_maddubs_epi16(high, second));
    const __m256i offset = _mm256_add_epi16(_mm256_maddubs_epi16(eights, first),
                                            _mm256_maddubs_epi16(eights, second));
    return _mm256_madd_epi16(_mm256_sub_epi16(with, offset), _mm256_set1_epi16(1));
  }

  static void add_narrow(Sums& narrow, const Lanes& lanes, const Bytes& digits) {
    narrow.low = _mm256_add_epi16(narrow.low, _mm256_maddubs_epi16(lanes.first, digits.first));
    narrow.high = _mm256_add_epi16(narrow.high, _mm256_maddubs_epi16(lanes.second, digits.second));
  }
  // Which code every lane of two cells takes, counted from the first code of its sixteen lanes, or at
  // least 0x80, which a shuffle turns into 0. Rows are looked up by the four bits of their mask, all of
  // both cells at once and a column at a time; no table in memory, no byte of a mask to address it.
  class CellOrders {
   public:
    explicit CellOrders(__m128i masks) {
      const __m256i rows = row_masks(masks);
      const __m256i counts = look_up(kRows.count, rows);
      // Bytes of a product by ones are sums: the codes of the rows before, of four that share a load.
      // A compiler that knew the factor would take five instructions for it.
      __m256i ones = _mm256_set1_epi32(0x01010100);
      asm("" : "+x"(ones));
      const __m256i before = _mm256_mullo_epi32(counts, ones);
      for (int column = 0; column < kQuad; ++column)
        columns_[column] = _mm256_add_epi8(look_up(kRows.place[column], rows), before);
    }
    Lanes first() const {
      return in_order(_mm256_unpacklo_epi8(columns_[0], columns_[1]),
                      _mm256_unpacklo_epi8(columns_[2], columns_[3]));
    }
    Lanes second() const {
      return in_order(_mm256_unpackhi_epi8(columns_[0], columns_[1]),
                      _mm256_unpackhi_epi8(columns_[2], columns_[3]));
    }

   private:
    // The four bits of every row: of rows 0-3 and 8-11 of both cells, then of the others.
    static __m256i row_masks(__m128i masks) {
      const __m256i places = _mm256_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13,  //
                                              2, 2, 3, 3, 6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15);
      const __m256i twice = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(masks), places);
      const auto either = static_cast<int16_t>(0xF00F);
      // 16 times the upper four bits of a byte moves them to the next one.
      return _mm256_maddubs_epi16(_mm256_and_si256(twice, _mm256_set1_epi16(either)),
                                  _mm256_set1_epi16(16 << 8 | 1));
    }
    static __m256i look_up(const uint8_t* table, __m256i rows) {
      const auto* at = reinterpret_cast<const __m128i*>(table);
      return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128(at)), rows);
    }
    static Lanes in_order(__m256i left, __m256i right) {
      return {_mm256_unpacklo_epi16(left, right), _mm256_unpackhi_epi16(left, right)};
    }

    __m256i columns_[kQuad];
  };

  static void store_both(const Lanes& lanes, __m256i* to) {
    _mm256_store_si256(to, lanes.first);
    _mm256_store_si256(to + 1, lanes.second);
  }
  // Adds sums of 16 bits to wider ones, and begins new ones.
  static void add_wide(Sums& wide, Sums& narrow) {
    const __m256i ones = _mm256_set1_epi16(1), none = _mm256_setzero_si256();
    wide.low = _mm256_add_epi32(wide.low, _mm256_madd_epi16(narrow.low, ones));
    wide.high = _mm256_add_epi32(wide.high, _mm256_madd_epi16(narrow.high, ones));
    narrow = {none, none};
  }
  // The next cell of a stream, which moves on. Sixteen lanes take at most sixteen codes that lie
  // together.
  static Lanes expand_cell(const uint8_t*& codes, const uint8_t* mask, const Lanes& order) {
    const uint8_t *second = codes + popcount(load_u16(mask)), *third = codes + popcount(load_u32(mask));
    const uint8_t* fourth = second + popcount(load_u32(mask + 2));
    const Lanes cell = {_mm256_shuffle_epi8(sixteens(codes, second), order.first),
                        _mm256_shuffle_epi8(sixteens(third, fourth), order.second)};
    codes += popcount(load_u64(mask));
    return cell;
  }
  static __m256i sixteens(const uint8_t* low, const uint8_t* high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(sixteen(low)), sixteen(high), 1);
  }
  static __m128i sixteen(const uint8_t* codes) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
  }
  // Both nibbles from two's complement to code + 8.
  static Lanes offset_codes(const Lanes& bytes) {
    const __m256i signs = _mm256_set1_epi8(static_cast<char>(0x88));
    return {_mm256_xor_si256(bytes.first, signs), _mm256_xor_si256(bytes.second, signs)};
  }
  static Lanes low_nibbles(const Lanes& bytes) {
    const __m256i bits = _mm256_set1_epi8(15);
    return {_mm256_and_si256(bytes.first, bits), _mm256_and_si256(bytes.second, bits)};
  }
  static Lanes high_nibbles(const Lanes& bytes) {
    return low_nibbles({_mm256_srli_epi16(bytes.first, 4), _mm256_srli_epi16(bytes.second, 4)});
  }

  // Sums of four products of unsigned lanes and signed digits.
  static __m256i products(__m256i lanes, __m256i digits, int bits) {
    const __m256i ones = _mm256_set1_epi16(1);
    // Pairs of products of at most 4-bit codes fit in 16 bits; of 8-bit codes they would saturate.
    if (bits <= 4) return _mm256_madd_epi16(_mm256_maddubs_epi16(lanes, digits), ones);
    const __m256i even = _mm256_and_si256(lanes, _mm256_set1_epi16(255));
    const __m256i odd = _mm256_srli_epi16(lanes, 8);
    const __m256i digits_even = _mm256_srai_epi16(_mm256_slli_epi16(digits, 8), 8);
    const __m256i digits_odd = _mm256_srai_epi16(digits, 8);
    return _mm256_add_epi32(_mm256_madd_epi16(even, digits_even),
                            _mm256_madd_epi16(odd, digits_odd));
  }
};

}  // namespace edgesparse
}  // namespace

namespace edgesparse_native {
TileKernel avx2_kernel() { return edgesparse::linear_tiles<edgesparse::Avx2>; }
}  // namespace edgesparse_native
#else
namespace edgesparse_native {
TileKernel avx2_kernel() { return nullptr; }
}  // namespace edgesparse_native
#endif
