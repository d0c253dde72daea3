// ExecuTorch operators that compute from packed weights, over the plain C kernels:
//
//   edgesparse::linear.activations_out(Tensor x, Tensor[] buffers, str format, int[] shape,
//       int group_size, str activations, Tensor? bias, *, Tensor(a!) out) -> Tensor(a!)
//   edgesparse::routed.out(Tensor x, Tensor indices, Tensor[] buffers, str formats, int[] shape,
//       int[] group_sizes, str activations, Tensor? bias, *, Tensor(a!) out) -> Tensor(a!)
//   edgesparse::embedding.out(Tensor indices, Tensor[] buffers, str format, int[] shape,
//       int group_size, *, Tensor(a!) out) -> Tensor(a!)
//
// Weights are used where the program has them, in its memory-mapped file: nothing is copied or
// repacked. Header-only use of ExecuTorch, so one build serves every runtime with the same EValue
// and Tensor layout (1.4 and 1.5 are tested); the runtime's symbols are found when it is loaded.
#include "arguments.hpp"

#include <atomic>
#include <cstring>
#include <memory>
#include <new>

#include "opened.hpp"

namespace edgesparse_executorch {
namespace {

constexpr int64_t kWeightsPerTask = 1 << 16;  // below this a second thread costs more than it gives

// out[m] = weight x[m] + bias, with the threads of the runtime.
Error multiply(const edgesparse_matrix& matrix, const float* x, int64_t batch,
               edgesparse_activations activations, const float* bias, float* out) {
  const size_t nbytes = edgesparse_workspace_nbytes(&matrix, batch, activations);
  const std::unique_ptr<uint8_t[]> workspace(new (std::nothrow) uint8_t[nbytes + 1]);
  if (!workspace) return Error::MemoryAllocationFailed;
  if (edgesparse_prepare(&matrix, x, batch, activations, workspace.get()) != EDGESPARSE_OK)
    return Error::InvalidArgument;
  std::atomic<bool> failed{false};
  const int64_t per_tile = matrix.columns * EDGESPARSE_TILE_ROWS * (batch ? batch : 1);
  const int64_t grain = per_tile ? (kWeightsPerTask - 1) / per_tile + 1 : 1;
  executorch::extension::parallel_for(0, matrix.tiles, grain, [&](int64_t first, int64_t last) {
    if (edgesparse_linear(&matrix, workspace.get(), batch, activations, first, last, bias, out) !=
        EDGESPARSE_OK)
      failed = true;
  });
  return failed ? Error::InvalidArgument : Error::Ok;
}

// The part of `names` before the next comma, which is taken off.
std::string_view next_name(std::string_view* names) {
  const std::string_view name = names->substr(0, names->find(','));
  names->remove_prefix(name.size() < names->size() ? name.size() + 1 : names->size());
  return name;
}

// The rows of x that one of several weights meets, and where their results go.
struct Routed {
  const float* x;
  const int64_t* chosen;
  int64_t rows, columns, outputs;
  float* out;

  int64_t count(int64_t weight) const {
    int64_t found = 0;
    for (int64_t r = 0; r < rows; ++r) found += chosen[r] == weight;
    return found;
  }

  Error multiply_one(const edgesparse_matrix& matrix, int64_t weight, int64_t count,
                     edgesparse_activations activations, const float* bias, float* room) const {
    float* results = room + count * columns;
    int64_t next = 0;
    for (int64_t r = 0; r < rows; ++r)
      if (chosen[r] == weight)
        std::memcpy(room + columns * next++, x + columns * r, sizeof(float) * columns);
    const Error error = multiply(matrix, room, count, activations, bias, results);
    next = 0;
    for (int64_t r = 0; r < rows; ++r)
      if (chosen[r] == weight)
        std::memcpy(out + outputs * r, results + outputs * next++, sizeof(float) * outputs);
    return error;
  }
};

}  // namespace

// The namespace in which generated bindings look for kernels.
namespace native {

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
  const Error error = multiply(matrix, x.const_data_ptr<float>(), batch, activations,
                               bias ? bias->const_data_ptr<float>() : nullptr,
                               out.mutable_data_ptr<float>());
  ET_KERNEL_CHECK_MSG(context, error != Error::MemoryAllocationFailed, MemoryAllocationFailed, out,
                      "edgesparse::linear: no memory for the activations");
  EDGESPARSE_REQUIRE(error == Error::Ok, "edgesparse::linear: the kernel refused its arguments");
  return out;
}

// Row r of x meets the weight indices[r] of several of one shape: those that were not chosen are
// neither read nor computed.
Tensor& routed_out(KernelRuntimeContext& context, const Tensor& x, const Tensor& indices,
                   ArrayRef<Tensor> buffers, std::string_view formats, ArrayRef<int64_t> shape,
                   ArrayRef<int64_t> group_sizes, std::string_view activations_name,
                   const std::optional<Tensor>& bias, Tensor& out) {
  edgesparse_activations activations;
  EDGESPARSE_REQUIRE(parse(activations_name, &activations) && shape.size() == 2 && shape[0] > 0 &&
                         shape[1] > 0,
                     "edgesparse::routed: weights must be matrices");
  const int64_t count = static_cast<int64_t>(group_sizes.size());
  EDGESPARSE_REQUIRE(x.scalar_type() == ScalarType::Float && x.dim() == 2 &&
                         x.size(1) == shape[1] && out.scalar_type() == ScalarType::Float &&
                         indices.scalar_type() == ScalarType::Long &&
                         indices.numel() == x.size(0),
                     "edgesparse::routed: x must be float32 [R, %lld], indices int64 [R]",
                     static_cast<long long>(shape[1]));
  EDGESPARSE_REQUIRE(!bias || (bias->scalar_type() == ScalarType::Float &&
                               bias->numel() == count * shape[0]),
                     "edgesparse::routed: bias must be float32 [%lld, %lld]",
                     static_cast<long long>(count), static_cast<long long>(shape[0]));
  EDGESPARSE_REQUIRE(resize(x, shape[0], false, out) == Error::Ok,
                     "edgesparse::routed: out cannot have the size of the result");
  const Routed routed{x.const_data_ptr<float>(), indices.const_data_ptr<int64_t>(), x.size(0),
                      shape[1], shape[0], out.mutable_data_ptr<float>()};
  for (int64_t r = 0; r < routed.rows; ++r)
    EDGESPARSE_REQUIRE(routed.chosen[r] >= 0 && routed.chosen[r] < count,
                       "edgesparse::routed: index %lld is outside of %lld weights",
                       static_cast<long long>(routed.chosen[r]), static_cast<long long>(count));
  const std::unique_ptr<float[]> room(
      new (std::nothrow) float[routed.rows * (routed.columns + routed.outputs) + 1]);
  ET_KERNEL_CHECK_MSG(context, room != nullptr, MemoryAllocationFailed, out,
                      "edgesparse::routed: no memory for the activations");
  size_t next = 0;
  for (int64_t weight = 0; weight < count; ++weight) {
    edgesparse_pack pack;
    edgesparse_matrix matrix;
    EDGESPARSE_REQUIRE(describe(buffers, next_name(&formats), shape, group_sizes[weight], &next,
                                &pack),
                       "edgesparse::routed: its packed buffers contradict each other");
    const int64_t rows = routed.count(weight);
    if (!rows) continue;
    EDGESPARSE_REQUIRE(open_once(pack, &matrix) && edgesparse_supports(&matrix, activations),
                       "edgesparse::routed: weight %lld is damaged, or not for these activations",
                       static_cast<long long>(weight));
    const float* added = bias ? bias->const_data_ptr<float>() + weight * shape[0] : nullptr;
    EDGESPARSE_REQUIRE(
        routed.multiply_one(matrix, weight, rows, activations, added, room.get()) == Error::Ok,
        "edgesparse::routed: the kernel refused its arguments");
  }
  EDGESPARSE_REQUIRE(next == buffers.size(),
                     "edgesparse::routed: %zu buffers, its weights have %zu", buffers.size(), next);
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

}  // namespace native
}  // namespace edgesparse_executorch

#if !defined(EDGESPARSE_NO_REGISTRATION)
EXECUTORCH_LIBRARY(edgesparse, "linear.activations_out", edgesparse_executorch::native::linear_out);
EXECUTORCH_LIBRARY(edgesparse, "routed.out", edgesparse_executorch::native::routed_out);
EXECUTORCH_LIBRARY(edgesparse, "embedding.out", edgesparse_executorch::native::embedding_out);
#endif
