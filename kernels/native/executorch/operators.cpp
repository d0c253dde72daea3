// ExecuTorch operators that compute from packed weights, over the plain C kernels:
//
//   edgesparse::linear.activations_out(Tensor x, Tensor[] buffers, str format, int[] shape,
//       int group_size, str activations, Tensor? bias, *, Tensor(a!) out) -> Tensor(a!)
//   edgesparse::embedding.out(Tensor indices, Tensor[] buffers, str format, int[] shape,
//       int group_size, *, Tensor(a!) out) -> Tensor(a!)
//
// Weights are used where the program has them, in its memory-mapped file: nothing is copied or
// repacked. Header-only use of ExecuTorch, so one build serves every runtime with the same EValue
// and Tensor layout (1.4 and 1.5 are tested); the runtime's symbols are found when it is loaded.
#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/kernel/kernel_includes.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include <atomic>
#include <memory>
#include <new>

#include "edgesparse/kernels.h"
#include "opened.hpp"

namespace edgesparse_executorch {
namespace {

using executorch::aten::ArrayRef;
using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;

constexpr int64_t kWeightsPerTask = 1 << 17;  // below this a second thread costs more than it gives
constexpr ssize_t kMaxDim = 8;

edgesparse_buffer buffer_of(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.nbytes()};
}

// The layout and the bits of a format's name, as in edgesparse/formats; false for another name.
bool parse(std::string_view format, edgesparse_pack* pack) {
  pack->bits = 4;
  if (format == "nm4") pack->layout = EDGESPARSE_NM4;
  else if (format == "n64") pack->layout = EDGESPARSE_N64;
  else if (format == "column16") pack->layout = EDGESPARSE_COLUMN16;
  else if (format == "block16x8") pack->layout = EDGESPARSE_BLOCK16X8;
  else {
    const bool is_dense = format.substr(0, 5) == "dense";
    if (!is_dense && format.substr(0, 7) != "bitmask") return false;
    const std::string_view bits = format.substr(is_dense ? 5 : 7);
    pack->layout = is_dense ? EDGESPARSE_DENSE : EDGESPARSE_BITMASK;
    pack->bits = bits == "16" ? 16 : bits.size() == 1 ? bits[0] - '0' : 0;
  }
  return true;
}

// Fill `pack` from an operator's arguments; false when their number or the format's name is wrong.
bool describe(ArrayRef<Tensor> buffers, std::string_view format, ArrayRef<int64_t> shape,
              int64_t group_size, edgesparse_pack* pack) {
  *pack = {};
  if (!parse(format, pack) || shape.empty()) return false;
  pack->rows = shape[0];
  pack->columns = 1;
  for (size_t i = 1; i < shape.size(); ++i) {
    if (shape[i] < 0 || (pack->columns && shape[i] > INT64_MAX / pack->columns)) return false;
    pack->columns *= shape[i];
  }
  pack->group_size = group_size;
  // The order of the byte maps in edgesparse/formats.
  size_t next = 0;
  const auto take = [&](edgesparse_buffer* into) {
    if (next < buffers.size()) *into = buffer_of(buffers[next]);
    ++next;
  };
  const bool has_index = pack->layout == EDGESPARSE_NM4 || pack->layout == EDGESPARSE_N64;
  const bool has_offsets = !has_index && pack->layout != EDGESPARSE_DENSE;
  if (has_index) take(&pack->index);
  if (has_offsets) take(&pack->mask);
  if (has_offsets) take(&pack->offsets);
  take(&pack->codes);
  if (pack->bits == 3 && has_offsets) take(&pack->offsets_high);
  if (pack->bits == 3) take(&pack->codes_high);
  if (pack->bits != 16) take(&pack->scales);
  return next == buffers.size();
}

bool parse(std::string_view name, edgesparse_activations* activations) {
  if (name == "float32") *activations = EDGESPARSE_FLOAT32;
  else if (name == "int8") *activations = EDGESPARSE_INT8;
  else if (name == "int16") *activations = EDGESPARSE_INT16;
  else return false;
  return true;
}

// Give `out` the sizes of `like` with its last one replaced, or one more when `append`.
Error resize(const Tensor& like, int64_t last, bool append, Tensor& out) {
  SizesType sizes[kMaxDim];
  const ssize_t kept = like.dim() - (append ? 0 : 1);
  if (kept < 0 || kept >= kMaxDim) return Error::InvalidArgument;
  for (ssize_t i = 0; i < kept; ++i) sizes[i] = static_cast<SizesType>(like.size(i));
  sizes[kept] = static_cast<SizesType>(last);
  return executorch::runtime::resize_tensor(out, {sizes, static_cast<size_t>(kept + 1)});
}

#define EDGESPARSE_REQUIRE(condition, ...) \
  ET_KERNEL_CHECK_MSG(context, condition, InvalidArgument, out, __VA_ARGS__)

}  // namespace

Tensor& linear_out(KernelRuntimeContext& context, const Tensor& x, ArrayRef<Tensor> buffers,
                   std::string_view format, ArrayRef<int64_t> shape, int64_t group_size,
                   std::string_view activations_name, const std::optional<Tensor>& bias,
                   Tensor& out) {
  edgesparse_pack pack;
  edgesparse_matrix matrix;
  edgesparse_activations activations;
  EDGESPARSE_REQUIRE(describe(buffers, format, shape, group_size, &pack) &&
                         parse(activations_name, &activations) && open_once(pack, &matrix),
                     "edgesparse::linear: its packed buffers contradict each other");
  EDGESPARSE_REQUIRE(edgesparse_supports(&matrix, activations),
                     "edgesparse::linear: these activations need groups of whole quads");
  EDGESPARSE_REQUIRE(x.scalar_type() == ScalarType::Float &&
                         out.scalar_type() == ScalarType::Float && x.dim() > 0 &&
                         x.size(x.dim() - 1) == matrix.columns,
                     "edgesparse::linear: x must be float32 [..., %lld]",
                     static_cast<long long>(matrix.columns));
  EDGESPARSE_REQUIRE(!bias || (bias->scalar_type() == ScalarType::Float &&
                               bias->numel() == matrix.rows),
                     "edgesparse::linear: bias must be float32 [%lld]",
                     static_cast<long long>(matrix.rows));
  EDGESPARSE_REQUIRE(resize(x, matrix.rows, false, out) == Error::Ok,
                     "edgesparse::linear: out cannot have the size of the result");

  int64_t batch = 1;
  for (ssize_t i = 0; i + 1 < x.dim(); ++i) batch *= x.size(i);
  const size_t nbytes = edgesparse_workspace_nbytes(&matrix, batch, activations);
  const std::unique_ptr<uint8_t[]> workspace(new (std::nothrow) uint8_t[nbytes + 1]);
  ET_KERNEL_CHECK_MSG(context, workspace != nullptr, MemoryAllocationFailed, out,
                      "edgesparse::linear: no memory for %zu bytes of activations", nbytes);
  edgesparse_status status = edgesparse_prepare(&matrix, x.const_data_ptr<float>(), batch,
                                                activations, workspace.get());
  EDGESPARSE_REQUIRE(status == EDGESPARSE_OK, "edgesparse::linear: status %d", status);

  const float* added = bias ? bias->const_data_ptr<float>() : nullptr;
  float* result = out.mutable_data_ptr<float>();
  std::atomic<int> failed{0};
  const int64_t per_tile = matrix.columns * EDGESPARSE_TILE_ROWS * (batch ? batch : 1);
  const int64_t grain = per_tile ? (kWeightsPerTask - 1) / per_tile + 1 : 1;
  executorch::extension::parallel_for(0, matrix.tiles, grain, [&](int64_t first, int64_t last) {
    if (edgesparse_linear(&matrix, workspace.get(), batch, activations, first, last, added,
                          result) != EDGESPARSE_OK)
      failed = 1;
  });
  EDGESPARSE_REQUIRE(!failed, "edgesparse::linear: the kernel refused its arguments");
  return out;
}

Tensor& embedding_out(KernelRuntimeContext& context, const Tensor& indices,
                      ArrayRef<Tensor> buffers, std::string_view format, ArrayRef<int64_t> shape,
                      int64_t group_size, Tensor& out) {
  edgesparse_pack pack;
  edgesparse_matrix matrix;
  EDGESPARSE_REQUIRE(describe(buffers, format, shape, group_size, &pack) &&
                         open_once(pack, &matrix),
                     "edgesparse::embedding: its packed buffers contradict each other");
  const bool is_long = indices.scalar_type() == ScalarType::Long;
  EDGESPARSE_REQUIRE((is_long || indices.scalar_type() == ScalarType::Int) &&
                         out.scalar_type() == ScalarType::Float,
                     "edgesparse::embedding: indices must be integers, the result float32");
  EDGESPARSE_REQUIRE(resize(indices, matrix.columns, true, out) == Error::Ok,
                     "edgesparse::embedding: out cannot have the size of the result");
  float* result = out.mutable_data_ptr<float>();
  for (ssize_t i = 0; i < indices.numel(); ++i) {
    const int64_t index =
        is_long ? indices.const_data_ptr<int64_t>()[i] : indices.const_data_ptr<int32_t>()[i];
    const edgesparse_status status =
        edgesparse_embedding(&matrix, &index, 1, result + i * matrix.columns);
    EDGESPARSE_REQUIRE(status == EDGESPARSE_OK,
                       "edgesparse::embedding: index %lld is outside of %lld rows",
                       static_cast<long long>(index), static_cast<long long>(matrix.rows));
  }
  return out;
}

}  // namespace edgesparse_executorch

EXECUTORCH_LIBRARY(edgesparse, "linear.activations_out", edgesparse_executorch::linear_out);
EXECUTORCH_LIBRARY(edgesparse, "embedding.out", edgesparse_executorch::embedding_out);
