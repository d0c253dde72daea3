// Run one case from standard input and write its floats to standard output, so that the kernels can be
// tried on another processor, or an emulated one, against results from here. Numbers are int64:
//
//   rows columns group_size bits layout batch activations isa count
//   then mask offsets codes offsets_high codes_high scales index, each its length and its bytes
//   then x [batch][columns] and `count` indices
//
// Output: out [batch][rows], then rows [count][columns]. Exit 2: refused.
//
// Each buffer is copied to the very end of a page whose successor must not be touched; with the address
// sanitizer to memory of its own, of which neither side may be touched.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "edgesparse/kernels.h"

namespace {

void read_all(void* to, size_t nbytes) {
  if (nbytes && std::fread(to, 1, nbytes, stdin) != nbytes) std::exit(3);
}

int64_t number() {
  int64_t value;
  read_all(&value, sizeof value);
  return value;
}

#if defined(__SANITIZE_ADDRESS__)
char* guarded(size_t nbytes) { return static_cast<char*>(std::malloc(nbytes ? nbytes : 1)); }
#else
// `nbytes` bytes that end where a guard page begins.
char* guarded(size_t nbytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t pages = (nbytes + page - 1) / page;
  void* map = mmap(nullptr, (pages + 1) * page, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) std::exit(3);
  char* begin = static_cast<char*>(map);
  if (mprotect(begin + pages * page, page, PROT_NONE)) std::exit(3);
  return begin + pages * page - nbytes;
}
#endif

edgesparse_buffer buffer() {
  const size_t nbytes = static_cast<size_t>(number());
  if (!nbytes) return {nullptr, 0};
  char* data = guarded(nbytes);
  read_all(data, nbytes);
  return {data, nbytes};
}

}  // namespace

int main() {
  edgesparse_pack pack = {};
  pack.rows = number();
  pack.columns = number();
  pack.group_size = number();
  pack.bits = static_cast<int32_t>(number());
  pack.layout = static_cast<int32_t>(number());
  const int64_t batch = number();
  const auto activations = static_cast<edgesparse_activations>(number());
  const auto isa = static_cast<edgesparse_isa>(number());
  const int64_t count = number();
  for (edgesparse_buffer* each : {&pack.mask, &pack.offsets, &pack.codes, &pack.offsets_high,
                                  &pack.codes_high, &pack.scales, &pack.index})
    *each = buffer();

  edgesparse_matrix matrix;
  if (edgesparse_open(&pack, &matrix) || edgesparse_choose_isa(isa)) return 2;
  const size_t cells = static_cast<size_t>(batch * pack.columns);
  auto* x = reinterpret_cast<float*>(guarded(4 * cells));
  read_all(x, 4 * cells);
  std::vector<int64_t> indices(static_cast<size_t>(count));
  read_all(indices.data(), 8 * indices.size());

  const size_t nbytes = edgesparse_workspace_nbytes(&matrix, batch, activations);
  char* workspace = guarded(nbytes);
  const size_t products = static_cast<size_t>(batch * pack.rows);
  auto* out = reinterpret_cast<float*>(guarded(4 * products));
  if (edgesparse_prepare(&matrix, x, batch, activations, workspace)) return 2;
  if (edgesparse_linear(&matrix, workspace, batch, activations, 0, matrix.tiles, nullptr, out))
    return 2;
  const size_t looked_up = static_cast<size_t>(count * pack.columns);
  auto* rows = reinterpret_cast<float*>(guarded(4 * looked_up));
  if (edgesparse_embedding(&matrix, indices.data(), count, rows)) return 2;
  std::fwrite(out, 4, products, stdout);
  std::fwrite(rows, 4, looked_up, stdout);
  return 0;
}
