// Expanding and packing bytes by mask without an instruction for it: tables of shuffles, 8 at a time.
#pragma once

#include <array>

#include "matrix.hpp"

namespace {
namespace edgesparse {

struct ExpandTable {
  // Byte i of shuffle[m]: which code lane i takes, or 0x80, which every shuffle turns into 0.
  alignas(64) uint8_t shuffle[256][8];

  constexpr ExpandTable() : shuffle() {
    for (int mask = 0; mask < 256; ++mask) {
      uint8_t next = 0;
      for (int lane = 0; lane < 8; ++lane)
        shuffle[mask][lane] = mask >> lane & 1 ? next++ : uint8_t{0x80};
    }
  }
};

constexpr ExpandTable kExpand;

struct PackTable {
  // Byte i of shuffle[m]: the i-th lane whose bit is set, or 0x80; count[m]: how many there are.
  alignas(64) uint8_t shuffle[256][8];
  uint8_t count[256];

  constexpr PackTable() : shuffle(), count() {
    for (int mask = 0; mask < 256; ++mask) {
      uint8_t next = 0;
      for (uint8_t lane = 0; lane < 8; ++lane)
        if (mask >> lane & 1) shuffle[mask][next++] = lane;
      count[mask] = next;
      while (next < 8) shuffle[mask][next++] = 0x80;
    }
  }
};

constexpr PackTable kPack;

// Byte i: how many bits are set in the bytes 0 to i of `mask`.
inline uint64_t running_popcounts(uint64_t mask) {
  mask -= mask >> 1 & 0x5555555555555555u;
  mask = (mask & 0x3333333333333333u) + (mask >> 2 & 0x3333333333333333u);
  return ((mask + (mask >> 4)) & 0x0F0F0F0F0F0F0F0Fu) * 0x0101010101010101u;
}

}  // namespace edgesparse
}  // namespace
