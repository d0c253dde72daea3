// Expanding and packing bytes by mask without an instruction for it: tables of shuffles.
#pragma once

#include <array>

#include "matrix.hpp"

namespace {
namespace edgesparse {

// Sixteen lanes take at most sixteen bytes that lie together, so one load and one shuffle serve two
// bytes of a mask: `low[first] + high[second]` is the order, byte by byte.
struct ExpandTable {
  // Which code a lane takes, or at least 0x80, which every shuffle turns into 0. The upper eight lanes
  // start behind the codes of the lower eight: `low` says there how many those are.
  alignas(64) uint8_t low[256][16];
  alignas(64) uint8_t high[256][16];

  constexpr ExpandTable() : low(), high() {
    for (int mask = 0; mask < 256; ++mask) {
      uint8_t next = 0;
      for (int lane = 0; lane < 8; ++lane) {
        const uint8_t code = mask >> lane & 1 ? next++ : uint8_t{0x80};
        low[mask][lane] = high[mask][8 + lane] = code;
      }
      for (int lane = 8; lane < 16; ++lane) low[mask][lane] = next;
    }
  }
};

constexpr ExpandTable kExpand;

// One row of a cell, by the four bits of its mask: how many codes it takes, and which of them each
// column takes, or 0x80.
struct RowTable {
  alignas(16) uint8_t count[16];
  alignas(16) uint8_t place[kQuad][16];

  constexpr RowTable() : count(), place() {
    for (int mask = 0; mask < 16; ++mask)
      for (int column = 0; column < kQuad; ++column)
        place[column][mask] = mask >> column & 1 ? count[mask]++ : uint8_t{0x80};
  }
};

constexpr RowTable kRows;

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

}  // namespace edgesparse
}  // namespace
