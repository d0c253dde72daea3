// The C interface of attention: its arguments checked, and the rows of a byte cache.
#include <cmath>

#include "attention.hpp"
#include "attending.hpp"
#include "rounding.hpp"

namespace {

using namespace edgesparse;

bool is_sound(const edgesparse_attention* a) {
  return a && a->heads > 0 && a->cached_heads > 0 && a->heads % a->cached_heads == 0 &&
         a->tokens >= 0 && a->positions >= 0 && a->width > 0 &&
         (!a->tokens || (a->query && a->out)) && (!a->positions || (a->keys && a->values));
}

}  // namespace

namespace edgesparse_native {
AttendKernel portable_attend() { return edgesparse::attend_heads; }
}  // namespace edgesparse_native

extern "C" {

size_t edgesparse_attention_workspace_nbytes(const edgesparse_attention* attention) {
  return is_sound(attention) ? sizeof(float) * static_cast<size_t>(Attending(*attention).room()) : 0;
}

edgesparse_status edgesparse_attend(const edgesparse_attention* attention, int64_t first_head,
                                    int64_t last_head, void* workspace) {
  if (!is_sound(attention) || first_head < 0 || last_head > attention->cached_heads ||
      (attention->tokens && !workspace))
    return EDGESPARSE_INVALID_ARGUMENT;
  const edgesparse_isa isa = edgesparse_current_isa();
  const bool wide = isa == EDGESPARSE_AVX2 || isa == EDGESPARSE_AVX512;
  const auto wider = wide ? edgesparse_native::avx2_attend() : nullptr;
  (wider ? wider : edgesparse_native::portable_attend())(*attention, first_head, last_head,
                                                         static_cast<float*>(workspace));
  return EDGESPARSE_OK;
}

edgesparse_status edgesparse_quantize_rows(const float* x, int64_t rows, int64_t width,
                                           int8_t* out) {
  if (rows < 0 || width < 0 || (rows && width && (!x || !out))) return EDGESPARSE_INVALID_ARGUMENT;
  for (int64_t row = 0; row < rows; ++row, x += width, out += width + 4) {
    float top = 0.0f;
    for (int64_t k = 0; k < width; ++k) {
      const float magnitude = std::fabs(x[k]);
      top = magnitude > top || magnitude != magnitude ? magnitude : top;
    }
    // A value that is not finite makes the row's scale so, and is seen.
    float scale = top <= 3.4e38f ? top / 127.0f : std::nanf("");
    // Below this the reciprocal would overflow; such a row counts as zeros.
    if (scale < 1.17549435e-38f) scale = 0.0f;
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    for (int64_t k = 0; k < width; ++k)
      out[k] = scale > 0.0f ? static_cast<int8_t>(nearest(x[k] * inverse)) : int8_t{0};
    std::memcpy(out + width, &scale, sizeof scale);
  }
  return EDGESPARSE_OK;
}

}  // extern "C"
