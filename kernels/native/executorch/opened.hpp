// Packs that were checked once are not checked again: the check reads the whole mask, which would
// cost a third of a product. A kernel has no place of its own in the runtime, so what is known is
// kept here, by address and by a fingerprint of the offsets and of words across the mask: another
// program mapped at the address of one that is gone is checked anew.
#pragma once

#include <cstring>
#include <mutex>

#include "edgesparse/kernels.h"

namespace edgesparse_executorch {
namespace {

struct Opened {
  edgesparse_pack pack;
  uint64_t fingerprint;
  edgesparse_matrix matrix;
};

inline uint64_t mix(uint64_t seed, uint64_t word) {
  seed ^= word;
  return seed * 0x9E3779B97F4A7C15u + (seed >> 29);
}

inline uint64_t sample(uint64_t seed, const edgesparse_buffer& buffer, size_t step) {
  const auto* at = static_cast<const uint8_t*>(buffer.data);
  for (size_t i = 0; at && i + 8 <= buffer.nbytes; i += step) {
    uint64_t word;
    std::memcpy(&word, at + i, sizeof word);
    seed = mix(seed, word);
  }
  return seed;
}

inline uint64_t fingerprint(const edgesparse_pack& pack) {
  const size_t step = pack.mask.nbytes / 64 / 8 * 8;
  uint64_t seed = sample(1, pack.offsets, 8);
  seed = sample(seed, pack.offsets_high, 8);
  return sample(seed, pack.mask, step ? step : 8);
}

inline bool same(const edgesparse_pack& a, const edgesparse_pack& b) {
  const auto equal = [](const edgesparse_buffer& x, const edgesparse_buffer& y) {
    return x.data == y.data && x.nbytes == y.nbytes;
  };
  return a.rows == b.rows && a.columns == b.columns && a.group_size == b.group_size &&
         a.bits == b.bits && a.layout == b.layout && equal(a.mask, b.mask) &&
         equal(a.offsets, b.offsets) && equal(a.codes, b.codes) &&
         equal(a.offsets_high, b.offsets_high) && equal(a.codes_high, b.codes_high) &&
         equal(a.scales, b.scales) && equal(a.index, b.index);
}

// Packs that are known, by the address of their codes. With one place for an address two weights of a
// model can want the same one and be checked at every token in turns; so each has a few.
class Known {
 public:
  // The entry of `pack`, or the one to overwrite with it.
  Opened& entry(const edgesparse_pack& pack) {
    const uint64_t home = mix(7, reinterpret_cast<uintptr_t>(pack.codes.data)) >> 40;
    Opened* vacant = nullptr;
    for (uint64_t i = 0; i < kPlaces; ++i) {
      Opened& at = table_[(home + i) % kEntries];
      if (same(at.pack, pack)) return at;
      if (!vacant && !at.pack.codes.data) vacant = &at;
    }
    return vacant ? *vacant : table_[home % kEntries];
  }

 private:
  static constexpr uint64_t kEntries = 1024, kPlaces = 16;
  Opened table_[kEntries];
};

// Check `pack` unless it is known, and describe it in `matrix`; false when its buffers are wrong.
inline bool open_once(const edgesparse_pack& pack, edgesparse_matrix* matrix) {
  static Known known;
  static std::mutex mutex;
  const uint64_t print = fingerprint(pack);
  const std::lock_guard<std::mutex> lock(mutex);
  Opened& entry = known.entry(pack);
  if (entry.pack.codes.data && entry.fingerprint == print && same(entry.pack, pack)) {
    *matrix = entry.matrix;
    return true;
  }
  if (edgesparse_open(&pack, matrix) != EDGESPARSE_OK) return false;
  entry = {pack, print, *matrix};
  return true;
}

}  // namespace
}  // namespace edgesparse_executorch
