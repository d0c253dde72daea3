// Run attention on a case from standard input and write its floats to standard output. Numbers are
// int64:
//
//   heads cached_heads tokens positions width byte_cache isa has_mask
//   then scaling float32, query, keys, values, and the mask if there is one
//
// Output: out [tokens][heads][width], then the query's rows as those of a byte cache. Exit 2: refused.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "edgesparse/kernels.h"

namespace {

template <class Item>
std::vector<Item> read_items(size_t count) {
  std::vector<Item> items(count);
  if (count && std::fread(items.data(), sizeof(Item), count, stdin) != count) std::exit(3);
  return items;
}

void write_all(const void* from, size_t nbytes) {
  if (nbytes && std::fwrite(from, 1, nbytes, stdout) != nbytes) std::exit(3);
}

}  // namespace

int main() {
  const auto sizes = read_items<int64_t>(8);
  edgesparse_attention a = {};
  a.heads = sizes[0], a.cached_heads = sizes[1], a.tokens = sizes[2];
  a.positions = sizes[3], a.width = sizes[4], a.byte_cache = static_cast<int32_t>(sizes[5]);
  if (edgesparse_choose_isa(static_cast<edgesparse_isa>(sizes[6]))) return 2;
  a.scaling = read_items<float>(1)[0];
  const auto rows = static_cast<size_t>(a.heads * a.tokens), width = static_cast<size_t>(a.width);
  const size_t cached = static_cast<size_t>(a.cached_heads * a.positions) *
                        (a.byte_cache ? width + 4 : 4 * width);
  const auto query = read_items<float>(rows * width);
  const auto keys = read_items<char>(cached), values = read_items<char>(cached);
  const auto mask = read_items<float>(sizes[7] ? static_cast<size_t>(a.tokens * a.positions) : 0);
  std::vector<float> out(rows * width);
  a.query = query.data(), a.keys = keys.data(), a.values = values.data(), a.out = out.data();
  a.mask = sizes[7] ? mask.data() : nullptr;

  std::vector<char> workspace(edgesparse_attention_workspace_nbytes(&a));
  for (int64_t head = 0; head < a.cached_heads; ++head)
    if (edgesparse_attend(&a, head, head + 1, workspace.data())) return 2;
  std::vector<int8_t> quantized(rows * (width + 4));
  if (edgesparse_quantize_rows(query.data(), static_cast<int64_t>(rows), a.width, quantized.data()))
    return 2;
  write_all(out.data(), 4 * out.size());
  write_all(quantized.data(), quantized.size());
  return 0;
}
