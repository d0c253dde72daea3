// A thin C interface to ggml's matrix product, so that the bench can time it in its own process.
//
//   c++ -O2 -shared -fPIC -I INCLUDE ggml_product.cpp -L LIB -lggml -lggml-cpu -lggml-base -o ggml_product.so
//
// `copies` matrices of the same weights are kept, to stream them from memory in turn.
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace {

struct Product {
  ggml_backend_t backend;
  ggml_threadpool_t pool;
  std::vector<ggml_cgraph*> graphs;
  ggml_tensor* x;
  std::vector<ggml_tensor*> y;
};

ggml_context* context() { return ggml_init({64 * 1024 * 1024, nullptr, true}); }

ggml_backend_buffer_type_t buffer_type(const std::string& name) {
  if (name == "CPU") return ggml_backend_cpu_buffer_type();
  auto* registry = ggml_backend_cpu_reg();
  auto* device = ggml_backend_reg_dev_get(registry, 0);
  auto extras = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
      ggml_backend_reg_get_proc_address(registry, "ggml_backend_dev_get_extra_bufts"));
  for (auto* each = extras ? extras(device) : nullptr; each && *each; ++each)
    if (name == ggml_backend_buft_name(*each)) return *each;
  return nullptr;
}

}  // namespace

extern "C" {

// `type` is "q4_0", "q4_K", …; `buffer` is "CPU", "CPU_REPACK" or "AMX". Null if there is no such.
void* peer_open(const char* type, const char* buffer, int64_t rows, int64_t columns,
                const float* weights, int64_t batch, int threads, int copies) {
  ggml_type kind = GGML_TYPE_COUNT;
  for (int i = 0; i < GGML_TYPE_COUNT; ++i)
    if (ggml_type_name(static_cast<ggml_type>(i)) &&
        std::strcmp(ggml_type_name(static_cast<ggml_type>(i)), type) == 0)
      kind = static_cast<ggml_type>(i);
  auto* memory = buffer_type(buffer);
  if (kind == GGML_TYPE_COUNT || !memory) return nullptr;
  auto* p = new Product{ggml_backend_cpu_init(), nullptr, {}, nullptr, {}};
  auto options = ggml_threadpool_params_default(threads);
  p->pool = ggml_threadpool_new(&options);
  ggml_backend_cpu_set_n_threads(p->backend, threads);
  ggml_backend_cpu_set_threadpool(p->backend, p->pool);

  auto* stored = context();
  std::vector<ggml_tensor*> matrices;
  for (int i = 0; i < copies; ++i)
    matrices.push_back(ggml_new_tensor_2d(stored, kind, columns, rows));
  if (!ggml_backend_alloc_ctx_tensors_from_buft(stored, memory)) return nullptr;
  std::vector<uint8_t> quantized(ggml_nbytes(matrices[0]));
  ggml_quantize_chunk(kind, weights, quantized.data(), 0, rows, columns, nullptr);
  for (auto* matrix : matrices)
    ggml_backend_tensor_set(matrix, quantized.data(), 0, quantized.size());

  auto* computed = context();
  p->x = ggml_new_tensor_2d(computed, GGML_TYPE_F32, columns, batch);
  for (auto* matrix : matrices) {
    p->y.push_back(ggml_mul_mat(computed, matrix, p->x));
    p->graphs.push_back(ggml_new_graph(computed));
    ggml_build_forward_expand(p->graphs.back(), p->y.back());
  }
  ggml_backend_alloc_ctx_tensors_from_buft(computed, ggml_backend_cpu_buffer_type());
  return p;
}

void peer_run(void* handle, int copy, const float* x, float* y) {
  auto* p = static_cast<Product*>(handle);
  std::memcpy(p->x->data, x, ggml_nbytes(p->x));
  ggml_backend_graph_compute(p->backend, p->graphs[static_cast<size_t>(copy)]);
  std::memcpy(y, p->y[static_cast<size_t>(copy)]->data, ggml_nbytes(p->y[0]));
}
}
