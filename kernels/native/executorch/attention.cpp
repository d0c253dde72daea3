// ExecuTorch operators for a cache of keys and values:
//
//   edgesparse::attention.out(Tensor query, Tensor keys, Tensor values, Tensor mask, float scaling,
//       *, Tensor(a!) out) -> Tensor(a!)
//   edgesparse::cache_rows.out(Tensor x, *, Tensor(a!) out) -> Tensor(a!)
//
// Keys and values are read where they lie in the cache, float32 or int8 with a scale to a row.
#include "arguments.hpp"

#include <atomic>
#include <memory>
#include <new>

namespace edgesparse_executorch {
namespace {

constexpr int64_t kProductsPerTask = 1 << 15;
constexpr int64_t kScaleNbytes = 4;

bool describe(const Tensor& query, const Tensor& keys, const Tensor& values, const Tensor& mask,
              edgesparse_attention* attention) {
  if (query.dim() != 4 || keys.dim() != 4 || query.size(0) != 1 || keys.size(0) != 1) return false;
  attention->heads = query.size(1);
  attention->tokens = query.size(2);
  attention->width = query.size(3);
  attention->cached_heads = keys.size(1);
  attention->positions = keys.size(2);
  attention->byte_cache = keys.scalar_type() == ScalarType::Char;
  const int64_t row = attention->width + (attention->byte_cache ? kScaleNbytes : 0);
  return query.scalar_type() == ScalarType::Float && mask.scalar_type() == ScalarType::Float &&
         (attention->byte_cache || keys.scalar_type() == ScalarType::Float) &&
         values.scalar_type() == keys.scalar_type() && keys.size(3) == row &&
         values.nbytes() == keys.nbytes() &&
         mask.numel() == attention->tokens * attention->positions;
}

}  // namespace

// The namespace in which generated bindings look for kernels.
namespace native {

Tensor& attention_out(KernelRuntimeContext& context, const Tensor& query, const Tensor& keys,
                      const Tensor& values, const Tensor& mask, double scaling, Tensor& out) {
  edgesparse_attention attention = {};
  EDGESPARSE_REQUIRE(describe(query, keys, values, mask, &attention),
                     "edgesparse::attention: shapes or types that do not belong together");
  const SizesType sizes[] = {1, static_cast<SizesType>(attention.tokens),
                             static_cast<SizesType>(attention.heads),
                             static_cast<SizesType>(attention.width)};
  EDGESPARSE_REQUIRE(executorch::runtime::resize_tensor(out, {sizes, 4}) == Error::Ok &&
                         out.scalar_type() == ScalarType::Float,
                     "edgesparse::attention: out cannot have the size of the result");
  attention.scaling = static_cast<float>(scaling);
  attention.query = query.const_data_ptr<float>();
  attention.keys = keys.const_data_ptr();
  attention.values = values.const_data_ptr();
  attention.mask = mask.const_data_ptr<float>();
  attention.out = out.mutable_data_ptr<float>();

  const size_t nbytes = edgesparse_attention_workspace_nbytes(&attention);
  EDGESPARSE_REQUIRE(nbytes > 0, "edgesparse::attention: heads must share the cache equally");
  std::atomic<bool> failed{false}, full{false};
  const int64_t per_head = attention.heads / attention.cached_heads * attention.tokens *
                               attention.positions * attention.width + 1;
  executorch::extension::parallel_for(
      0, attention.cached_heads, (kProductsPerTask - 1) / per_head + 1,
      [&](int64_t first, int64_t last) {
        const std::unique_ptr<uint8_t[]> workspace(new (std::nothrow) uint8_t[nbytes]);
        if (!workspace) full = true;
        else if (edgesparse_attend(&attention, first, last, workspace.get()) != EDGESPARSE_OK)
          failed = true;
      });
  ET_KERNEL_CHECK_MSG(context, !full, MemoryAllocationFailed, out,
                      "edgesparse::attention: no memory for %zu bytes of scores", nbytes);
  EDGESPARSE_REQUIRE(!failed, "edgesparse::attention: the kernel refused its arguments");
  return out;
}

Tensor& cache_rows_out(KernelRuntimeContext& context, const Tensor& x, Tensor& out) {
  EDGESPARSE_REQUIRE(x.scalar_type() == ScalarType::Float && x.dim() > 0 &&
                         out.scalar_type() == ScalarType::Char,
                     "edgesparse::cache_rows: x must be float32, the result int8");
  const int64_t width = x.size(x.dim() - 1);
  EDGESPARSE_REQUIRE(resize(x, width + kScaleNbytes, false, out) == Error::Ok,
                     "edgesparse::cache_rows: out cannot have the size of the result");
  const int64_t rows = width ? x.numel() / width : 0;
  EDGESPARSE_REQUIRE(edgesparse_quantize_rows(x.const_data_ptr<float>(), rows, width,
                                              out.mutable_data_ptr<int8_t>()) == EDGESPARSE_OK,
                     "edgesparse::cache_rows: the kernel refused its arguments");
  return out;
}

}  // namespace native
}  // namespace edgesparse_executorch

#if !defined(EDGESPARSE_NO_REGISTRATION)
EXECUTORCH_LIBRARY(edgesparse, "attention.out", edgesparse_executorch::native::attention_out);
EXECUTORCH_LIBRARY(edgesparse, "cache_rows.out", edgesparse_executorch::native::cache_rows_out);
#endif
