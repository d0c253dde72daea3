// A thin C interface to llama.cpp's decoding, so that the bench can time it in its own process.
//
//   c++ -O2 -shared -fPIC -I INCLUDE llama_decode.cpp -L LIB -lllama -lggml -lggml-base -o llama_decode.so
#include <cstdint>

#include "llama.h"

namespace {

struct Decoder {
  llama_model* model;
  llama_context* context;
};

}  // namespace

extern "C" {

// Null if the file cannot be read.
void* decode_open(const char* path, int threads, int capacity) {
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  auto* model = llama_model_load_from_file(path, llama_model_default_params());
  if (!model) return nullptr;
  auto options = llama_context_default_params();
  options.n_ctx = static_cast<uint32_t>(capacity);
  options.n_threads = options.n_threads_batch = threads;
  return new Decoder{model, llama_init_from_model(model, options)};
}

// Reads `count` tokens after those before them; returns the likeliest next one.
int32_t decode_next(void* handle, int32_t* tokens, int32_t count) {
  auto* decoder = static_cast<Decoder*>(handle);
  if (llama_decode(decoder->context, llama_batch_get_one(tokens, count)) != 0) return -1;
  const float* logits = llama_get_logits_ith(decoder->context, -1);
  const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(decoder->model));
  int best = 0;
  for (int i = 1; i < vocabulary; ++i)
    if (logits[i] > logits[best]) best = i;
  return best;
}

void decode_reset(void* handle) {
  llama_memory_clear(llama_get_memory(static_cast<Decoder*>(handle)->context), true);
}
}
