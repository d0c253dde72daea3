// Open mutations of a pack, and compute from those that are taken, under the sanitizers:
//
//   edgesparse_fuzz_packs COUNT SEED < case      the beginning of a case of run_case.cpp
//
// Each input has one to four mutations: bytes flipped, a buffer cut or lengthened, numbers that break
// arithmetic written into a buffer or put in the place of a size. Nothing may happen but a refusal or
// a product of some numbers; the sanitizers end the process on anything else. Output: how many were
// tried, and refused.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "edgesparse/kernels.h"

namespace {

constexpr int64_t kMostFloats = 1 << 22;  // what a mutated shape may ask this program to allocate
constexpr int kBuffers = 7;
constexpr int64_t kNumbers[] = {0, 1, -1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 128, 255, 256,
                                (1LL << 31) - 1, 1LL << 31, 1LL << 32, 1LL << 62, INT64_MIN};

using Random = std::mt19937_64;

int64_t below(Random& random, int64_t limit) {
  return limit > 0 ? static_cast<int64_t>(random() % static_cast<uint64_t>(limit)) : 0;
}

struct Case {
  int64_t sizes[5];  // rows columns group_size bits layout
  std::vector<uint8_t> buffers[kBuffers];
};

int64_t number() {
  int64_t value;
  if (std::fread(&value, sizeof value, 1, stdin) != 1) std::exit(3);
  return value;
}

Case read_case() {
  Case valid;
  for (int64_t& size : valid.sizes) size = number();
  for (int i = 0; i < 4; i++) number();  // batch, activations, instruction set, count
  for (auto& buffer : valid.buffers) {
    buffer.resize(static_cast<size_t>(number()));
    if (std::fread(buffer.data(), 1, buffer.size(), stdin) != buffer.size()) std::exit(3);
  }
  return valid;
}

void mutate(Case& input, Random& random) {
  auto& buffer = input.buffers[below(random, kBuffers)];
  const int64_t nbytes = static_cast<int64_t>(buffer.size());
  const int64_t extreme = kNumbers[below(random, sizeof kNumbers / sizeof *kNumbers)];
  switch (below(random, 6)) {
    case 0:
      if (nbytes) buffer[below(random, nbytes)] ^= 1 << below(random, 8);
      break;
    case 1:
      for (int64_t i = below(random, nbytes), end = i + 16; i < end && i < nbytes; i++)
        buffer[i] = static_cast<uint8_t>(random());
      break;
    case 2:
      buffer.resize(below(random, nbytes + 1));
      break;
    case 3:
      buffer.resize(nbytes + below(random, 130), static_cast<uint8_t>(random()));
      break;
    case 4: {
      const int64_t width = 1LL << below(random, 4);
      if (nbytes >= width) std::memcpy(&buffer[below(random, nbytes - width + 1)], &extreme, width);
      break;
    }
    default: {
      int64_t& size = input.sizes[below(random, 5)];
      const auto near = static_cast<uint64_t>(size) + static_cast<uint64_t>(below(random, 9)) - 4;
      size = below(random, 2) ? extreme : static_cast<int64_t>(near);
    }
  }
}

// Memory of exactly its size, so that the sanitizer sees a byte too many; alignment is any.
struct Exact {
  explicit Exact(const std::vector<uint8_t>& from) : data(nullptr), nbytes(from.size()) {
    if (nbytes) std::memcpy(data = static_cast<char*>(std::malloc(nbytes)), from.data(), nbytes);
  }
  ~Exact() { std::free(data); }
  Exact(const Exact&) = delete;
  char* data;
  size_t nbytes;
};

// Compute a product and look rows up, in every way this matrix and processor can.
void compute(const edgesparse_matrix& matrix, Random& random) {
  const int64_t batch = 1 + below(random, 3);
  if (matrix.columns * batch > kMostFloats || matrix.rows * batch > kMostFloats) return;
  std::vector<float> x(batch * matrix.columns), out(batch * matrix.rows);
  for (float& value : x) value = static_cast<float>(below(random, 2001) - 1000) / 100;
  const auto isa = static_cast<edgesparse_isa>(below(random, 6));
  const auto activations = static_cast<edgesparse_activations>(below(random, 3));
  if (edgesparse_choose_isa(isa)) return;
  if (edgesparse_supports(&matrix, activations)) {
    std::vector<uint8_t> bytes(edgesparse_workspace_nbytes(&matrix, batch, activations));
    Exact workspace(bytes);
    if (!edgesparse_prepare(&matrix, x.data(), batch, activations, workspace.data))
      edgesparse_linear(&matrix, workspace.data, batch, activations, 0, matrix.tiles, nullptr,
                        out.data());
  }
  const int64_t indices[] = {0, matrix.rows - 1, matrix.rows, -1};
  std::vector<float> rows(matrix.columns);
  for (const int64_t& index : indices) edgesparse_embedding(&matrix, &index, 1, rows.data());
}

bool open_and_compute(const Case& input, Random& random) {
  const Exact mask(input.buffers[0]), offsets(input.buffers[1]), codes(input.buffers[2]),
      offsets_high(input.buffers[3]), codes_high(input.buffers[4]), scales(input.buffers[5]),
      index(input.buffers[6]);
  edgesparse_pack pack = {};
  pack.rows = input.sizes[0];
  pack.columns = input.sizes[1];
  pack.group_size = input.sizes[2];
  pack.bits = static_cast<int32_t>(input.sizes[3]);
  pack.layout = static_cast<int32_t>(input.sizes[4]);
  pack.mask = {mask.data, mask.nbytes};
  pack.offsets = {offsets.data, offsets.nbytes};
  pack.codes = {codes.data, codes.nbytes};
  pack.offsets_high = {offsets_high.data, offsets_high.nbytes};
  pack.codes_high = {codes_high.data, codes_high.nbytes};
  pack.scales = {scales.data, scales.nbytes};
  pack.index = {index.data, index.nbytes};
  edgesparse_matrix matrix;
  if (edgesparse_open(&pack, &matrix)) return false;
  compute(matrix, random);
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 3;
  const Case valid = read_case();
  const int64_t count = std::atoll(argv[1]);
  int64_t refused = 0;
  Random random(std::strtoull(argv[2], nullptr, 10));
  if (!open_and_compute(valid, random)) return 2;
  for (int64_t i = 0; i < count; i++) {
    Case input = valid;
    for (int64_t left = 1 + below(random, 4); left; left--) mutate(input, random);
    refused += !open_and_compute(input, random);
  }
  std::printf("%lld %lld\n", static_cast<long long>(count), static_cast<long long>(refused));
  return 0;
}
