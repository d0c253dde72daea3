// The arguments of the operators as the kernels take them.
#pragma once

#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/kernel/kernel_includes.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include <string_view>

#include "edgesparse/kernels.h"

namespace edgesparse_executorch {
namespace {

using executorch::aten::ArrayRef;
using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;

constexpr ssize_t kMaxDim = 8;

inline edgesparse_buffer buffer_of(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.nbytes()};
}

// The layout and the bits of a format's name, as in edgesparse/formats; false for another name.
inline bool parse(std::string_view format, edgesparse_pack* pack) {
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

// Fill `pack` from an operator's arguments, with the buffers from `*next` on, which is moved behind
// them; false when they are too few or the format's name is wrong.
inline bool describe(ArrayRef<Tensor> buffers, std::string_view format, ArrayRef<int64_t> shape,
                     int64_t group_size, size_t* next, edgesparse_pack* pack) {
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
  const auto take = [&](edgesparse_buffer* into) {
    if (*next < buffers.size()) *into = buffer_of(buffers[*next]);
    ++*next;
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
  return *next <= buffers.size();
}

// One pack that all buffers belong to.
inline bool describe(ArrayRef<Tensor> buffers, std::string_view format, ArrayRef<int64_t> shape,
                     int64_t group_size, edgesparse_pack* pack) {
  size_t next = 0;
  return describe(buffers, format, shape, group_size, &next, pack) && next == buffers.size();
}

inline bool parse(std::string_view name, edgesparse_activations* activations) {
  if (name == "float32") *activations = EDGESPARSE_FLOAT32;
  else if (name == "int8") *activations = EDGESPARSE_INT8;
  else if (name == "int16") *activations = EDGESPARSE_INT16;
  else return false;
  return true;
}

// Give `out` the sizes of `like` with its last one replaced, or one more when `append`.
inline Error resize(const Tensor& like, int64_t last, bool append, Tensor& out) {
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
}  // namespace edgesparse_executorch
