// Attention of new tokens over a cache of keys and values, as the C interface describes it.
//
// Sums run over lanes of sixteen in a fixed order and nothing is fused, so every instruction set,
// and every processor, gives the same bits. Query heads that share keys meet each of them together:
// a row of the cache is decoded once for all.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "edgesparse/kernels.h"
#include "exponential.hpp"

namespace {
namespace edgesparse {

// Scores below this are masked out, and their positions not read.
constexpr float kMasked = -1e30f;

inline float halves_sum(const float* lanes) {
  float eight[8], four[4];
  for (int l = 0; l < 8; ++l) eight[l] = lanes[l] + lanes[l + 8];
  for (int l = 0; l < 4; ++l) four[l] = eight[l] + eight[l + 4];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

inline float dot(const float* a, const float* b, int64_t count) {
  float lanes[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes)
    for (int l = 0; l < kLanes; ++l) lanes[l] += a[k + l] * b[k + l];
  for (int l = 0; k + l < count; ++l) lanes[l] += a[k + l] * b[k + l];
  return halves_sum(lanes);
}

// Sizes of one call, and where its rows begin.
struct Attending {
  const edgesparse_attention& call;
  int64_t shared;      // query heads of one cached head
  int64_t rows;        // queries of one cached head: its heads times the tokens
  int64_t row_nbytes;  // of the cache

  explicit Attending(const edgesparse_attention& attention)
      : call(attention),
        shared(attention.heads / attention.cached_heads),
        rows(shared * attention.tokens),
        row_nbytes(attention.byte_cache ? attention.width + 4 : 4 * attention.width) {}

  int64_t token(int64_t row) const { return row % call.tokens; }
  const float* query(int64_t head, int64_t row) const {
    return call.query + (head * rows + row) * call.width;
  }
  bool is_masked(int64_t row, int64_t position) const {
    return call.mask && call.mask[token(row) * call.positions + position] < kMasked;
  }
  // Floats of workspace: scores of every row, a decoded row of the cache.
  int64_t room() const { return rows * (call.positions + kLanes) + call.width; }
};

// Return row `position` of a cached head as floats: where it lies if it can be read there, else copied
// or decoded into `room`.
inline const float* cached_row(const Attending& at, const void* cache, int64_t head,
                               int64_t position, float* room) {
  const auto* row = static_cast<const uint8_t*>(cache) +
                    (head * at.call.positions + position) * at.row_nbytes;
  if (!at.call.byte_cache) {
    if (reinterpret_cast<uintptr_t>(row) % alignof(float) == 0)
      return reinterpret_cast<const float*>(row);
    std::memcpy(room, row, static_cast<size_t>(at.row_nbytes));
    return room;
  }
  float scale;
  std::memcpy(&scale, row + at.call.width, sizeof scale);
  const auto* codes = reinterpret_cast<const int8_t*>(row);
  for (int64_t d = 0; d < at.call.width; ++d) room[d] = static_cast<float>(codes[d]) * scale;
  return room;
}

// Positions that some token may look at end here: a causal mask leaves the end of the cache unread.
inline int64_t visible_positions(const Attending& at) {
  if (!at.call.mask) return at.call.positions;
  int64_t end = at.call.positions;
  const auto seen = [&](int64_t position) {
    for (int64_t token = 0; token < at.call.tokens; ++token)
      if (!at.is_masked(token, position)) return true;
    return false;
  };
  while (end > 0 && !seen(end - 1)) --end;
  return end;
}

// Turn the scores of a row into weights that sum to one.
inline void normalize_scores(float* scores, int64_t count) {
  float top = scores[0];
  for (int64_t s = 1; s < count; ++s) top = scores[s] > top ? scores[s] : top;
  float lanes[kLanes] = {};
  for (int64_t s = 0; s < count; s += kLanes) {
    exponentials(scores + s, top);
    const int64_t used = count - s < kLanes ? count - s : kLanes;
    for (int64_t l = used; l < kLanes; ++l) scores[s + l] = 0.0f;
    for (int l = 0; l < kLanes; ++l) lanes[l] += scores[s + l];
  }
  const float inverse = 1.0f / halves_sum(lanes);
  for (int64_t s = 0; s < count; ++s) scores[s] *= inverse;
}

// One cached head and all query heads that share it.
inline void attend_head(const Attending& at, int64_t head, int64_t end, float* room) {
  const int64_t stride = at.call.positions + kLanes, width = at.call.width;
  float* decoded = room + at.rows * stride;
  for (int64_t s = 0; s < end; ++s) {
    const float* key = cached_row(at, at.call.keys, head, s, decoded);
    for (int64_t row = 0; row < at.rows; ++row) {
      const float added = at.call.mask ? at.call.mask[at.token(row) * at.call.positions + s] : 0.0f;
      room[row * stride + s] = at.is_masked(row, s)
                                   ? added
                                   : dot(at.query(head, row), key, width) * at.call.scaling + added;
    }
  }
  // out is [tokens][heads][width]
  const auto result = [&](int64_t row) {
    return at.call.out +
           (at.token(row) * at.call.heads + head * at.shared + row / at.call.tokens) * width;
  };
  for (int64_t row = 0; row < at.rows; ++row) {
    normalize_scores(room + row * stride, end);
    std::memset(result(row), 0, static_cast<size_t>(4 * width));
  }
  for (int64_t s = 0; s < end; ++s) {
    const float* value = cached_row(at, at.call.values, head, s, decoded);
    for (int64_t row = 0; row < at.rows; ++row) {
      const float weight = room[row * stride + s];
      float* to = result(row);
      if (weight != 0.0f)
        for (int64_t d = 0; d < width; ++d) to[d] += weight * value[d];
    }
  }
}

inline void attend_heads(const edgesparse_attention& call, int64_t first, int64_t last,
                         float* room) {
  const Attending at(call);
  const int64_t end = visible_positions(at);
  for (int64_t head = first; head < last; ++head) {
    if (end) {
      attend_head(at, head, end, room);
      continue;
    }
    for (int64_t t = 0; t < call.tokens; ++t)  // nothing to look at
      std::memset(call.out + (t * call.heads + head * at.shared) * call.width, 0,
                  static_cast<size_t>(4 * at.shared * call.width));
  }
}

}  // namespace edgesparse
}  // namespace
