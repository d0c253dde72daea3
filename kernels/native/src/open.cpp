// Opening a pack: everything the kernels rely on is checked here, once.
#include "edgesparse/kernels.h"
#include "structured.hpp"

namespace {

using namespace edgesparse;

constexpr int64_t kMaxElements = int64_t{1} << 40;  // so that no product below overflows

int64_t aligned(int64_t nbytes) { return (nbytes + 63) / 64 * 64; }

bool has(const edgesparse_buffer& buffer, int64_t nbytes) {
  return buffer.nbytes >= static_cast<uint64_t>(nbytes) && (nbytes == 0 || buffer.data != nullptr);
}

const uint8_t* bytes(const edgesparse_buffer& buffer) {
  return static_cast<const uint8_t*>(buffer.data);
}

// Whether the offsets of a plane follow from the mask and the codes are as long as they say.
bool check_plane(const edgesparse_matrix& matrix, int width, const edgesparse_buffer& offsets,
                 const edgesparse_buffer& codes) {
  const int count = streams(width);
  if (is_dense(matrix)) return has(codes, matrix.tiles * matrix.quads * kCell / count);
  if (!has(offsets, aligned(4 * (matrix.tiles + 1)))) return false;
  int64_t end = 0;
  for (int64_t tile = 0; tile < matrix.tiles; ++tile) {
    if (load_u32(bytes(offsets) + 4 * tile) != end) return false;
    int64_t lengths[8] = {};
    for (int64_t quad = 0; quad < matrix.quads; ++quad)
      lengths[quad % count] += popcount(cell_mask(matrix, tile, quad));
    int64_t longest = 0;
    for (int j = 0; j < count; ++j) longest = lengths[j] > longest ? lengths[j] : longest;
    end += longest * (width == 16 ? 2 : 1);
    if (end > UINT32_MAX) return false;
  }
  return load_u32(bytes(offsets) + 4 * matrix.tiles) == end && has(codes, aligned(end) + kSlack);
}

// Quads that the kept columns of a tile fill, groups of scales apart.
int64_t column_quads(const edgesparse_matrix& matrix, const uint8_t* kept) {
  int64_t quads = 0;
  for (int64_t begin = 0; begin < matrix.columns; begin += matrix.group_size) {
    int64_t count = 0;
    for (int64_t k = begin; k < min(begin + matrix.group_size, matrix.columns);) {
      const bool whole = k % 8 == 0 && k + 8 <= min(begin + matrix.group_size, matrix.columns);
      count += whole ? popcount(kept[k / 8]) : bit_of(kept, k);
      k += whole ? 8 : 1;
    }
    quads += (count + kQuad - 1) / kQuad;
  }
  return quads;
}

// column16 and block16x8: offsets follow from the bitmap, which keeps nothing outside of the matrix.
bool check_kept(const edgesparse_matrix& matrix, const edgesparse_buffer& kept,
                const edgesparse_buffer& offsets, const edgesparse_buffer& codes) {
  const bool by_column = matrix.layout == EDGESPARSE_COLUMN16;
  const int64_t nbytes = kept_nbytes(matrix), units = 8 * nbytes;
  const int64_t real = by_column ? matrix.columns : (matrix.columns + 7) / 8;
  if (!has(kept, matrix.tiles * nbytes) || !has(offsets, aligned(4 * (matrix.tiles + 1))))
    return false;
  int64_t end = 0;
  for (int64_t tile = 0; tile < matrix.tiles; ++tile) {
    const uint8_t* bits = bytes(kept) + tile * nbytes;
    if (load_u32(bytes(offsets) + 4 * tile) != end) return false;
    for (int64_t i = real; i < units; ++i)
      if (bit_of(bits, i)) return false;
    int64_t blocks = 0;
    if (by_column) blocks = (column_quads(matrix, bits) + 1) / 2;
    else for (int64_t i = 0; i < nbytes; ++i) blocks += popcount(bits[i]);
    end += blocks * kCell;
    if (end > UINT32_MAX) return false;
  }
  return load_u32(bytes(offsets) + 4 * matrix.tiles) == end && has(codes, end);
}

// nm4 and n64, whose places cannot point outside of a quad or a window. The n of n64 is not stored:
// the length of the codes says it.
bool check_places(edgesparse_matrix* matrix, const edgesparse_buffer& index,
                  const edgesparse_buffer& codes) {
  const int64_t cells = matrix->tiles * matrix->quads;
  if (matrix->layout == EDGESPARSE_NM4) return has(index, 8 * cells) && has(codes, 16 * cells);
  const int64_t windows = cells / kWindowQuads;
  if (!windows) return true;
  const auto unit = static_cast<uint64_t>(windows * kCell);
  const uint64_t eighths = codes.nbytes / unit;
  if (codes.nbytes % unit || !eighths || eighths > 7) return false;
  matrix->of_64 = static_cast<int32_t>(8 * eighths);
  const int64_t count = matrix->tiles * chunks(*matrix);
  return has(codes, 2 * kCell * count) && has(index, 3 * kCell * count);
}

bool check_layout(edgesparse_matrix* matrix, const edgesparse_pack& pack) {
  const edgesparse_matrix& m = *matrix;
  switch (m.layout) {
    case EDGESPARSE_NM4:
    case EDGESPARSE_N64: return check_places(matrix, pack.index, pack.codes);
    case EDGESPARSE_COLUMN16:
    case EDGESPARSE_BLOCK16X8: return check_kept(m, pack.mask, pack.offsets, pack.codes);
    default:
      return (is_dense(m) || has(pack.mask, 8 * m.tiles * m.quads)) &&
             check_plane(m, low_width(m), pack.offsets, pack.codes) &&
             (m.bits != 3 || check_plane(m, 1, pack.offsets_high, pack.codes_high));
  }
}

// Whether there is such a layout with codes of so many bits.
bool is_known(const edgesparse_pack& pack) {
  const int bits = pack.bits;
  if (pack.layout == EDGESPARSE_BITMASK && bits == 16) return pack.group_size == 0;
  if (pack.group_size <= 0) return false;
  if (pack.layout == EDGESPARSE_BITMASK || pack.layout == EDGESPARSE_DENSE)
    return bits == 2 || bits == 3 || bits == 4 || bits == 8;
  return pack.layout >= EDGESPARSE_NM4 && pack.layout <= EDGESPARSE_BLOCK16X8 && bits == 4;
}

bool check_scales(const edgesparse_matrix& matrix, const edgesparse_buffer& scales) {
  const int64_t count = matrix.tiles * matrix.groups * kTileRows;
  if (!has(scales, 2 * count)) return false;
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t half = load_u16(bytes(scales) + 2 * i);
    const bool real = i / kTileRows / matrix.groups * kTileRows + i % kTileRows < matrix.rows;
    if (real ? half == 0 || half >= 0x7C00 : half != 0) return false;
  }
  return true;
}

}  // namespace

extern "C" edgesparse_status edgesparse_open(const edgesparse_pack* pack, edgesparse_matrix* matrix) {
  if (!pack || !matrix) return EDGESPARSE_INVALID_ARGUMENT;
  const int bits = pack->bits;
  if (!is_known(*pack) || pack->rows < 0 || pack->columns < 0) return EDGESPARSE_INVALID_ARGUMENT;
  if (pack->rows > kMaxElements || pack->columns > kMaxElements ||
      (pack->columns && pack->rows > kMaxElements / pack->columns))
    return EDGESPARSE_CORRUPT_PACK;
  edgesparse_matrix m = {};
  m.rows = pack->rows;
  m.columns = pack->columns;
  m.bits = bits;
  m.layout = pack->layout;
  m.tiles = (m.rows + kTileRows - 1) / kTileRows;
  m.quads = (m.columns + 127) / 128 * 32;
  m.groups = m.columns && bits != 16 ? (m.columns - 1) / pack->group_size + 1 : 0;
  // One scale a row is one group of whole quads, whatever the number of columns.
  m.group_size = pack->group_size >= m.columns && bits != 16 ? m.quads * kQuad : pack->group_size;
  m.mask = bytes(pack->mask);
  m.offsets = bytes(pack->offsets);
  m.codes = bytes(pack->codes);
  m.offsets_high = bytes(pack->offsets_high);
  m.codes_high = bytes(pack->codes_high);
  m.scales = bytes(pack->scales);
  m.index = bytes(pack->index);
  if (!check_layout(&m, *pack) || (bits != 16 && !check_scales(m, pack->scales)))
    return EDGESPARSE_CORRUPT_PACK;
  *matrix = m;
  return EDGESPARSE_OK;
}
