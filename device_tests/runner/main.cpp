// edgesparse-run: execute one .pte on one set of inputs, and write what came out.
//
//   edgesparse-run --model m.pte --out DIR [--warmup N] [--runs N] [--limit SECONDS]
//                  [--library op.so]... [--input DTYPE SHAPE FILE]...
//                  [--generate TOKENS]
//
//   edgesparse-run --about
//
// Inputs are raw little-endian arrays in the order of the method "forward". DIR gets output-0.bin,
// output-1.bin, … from the first run, and at the very end result.json: its presence is the proof
// that the run was whole. Errors go to stderr, the exit code says which step failed (job.h).
// With --generate the one input is the prompt of a language model with a cache; output-0.bin is
// then the likeliest continuation, through the methods "prefill" and "forward".
// --about prints what the processor is, as this process sees it.

#include <algorithm>
#include <chrono>
#include <cstring>
#include <cstdio>
#include <dlfcn.h>
#include <unistd.h>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include "job.h"
#include "system.h"

namespace edgesparse {
namespace {

using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::Program;
using Clock = std::chrono::steady_clock;

struct Output {
  std::string dtype;
  std::vector<executorch::aten::SizesType> shape;
};

struct Result {
  double load_ms = 0;
  std::vector<double> latency_ms;
  long base_kib = 0;
  long peak_kib = 0;
  std::vector<Output> outputs;
};

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

void require(Error error, ExitCode code, const std::string& what) {
  if (error == Error::Ok) return;
  char hex[16];
  std::snprintf(hex, sizeof(hex), "0x%x", static_cast<unsigned>(error));
  throw Failure(code, what + ": ExecuTorch error " + hex);
}

// The runtime aborts when it logs an identifier that is not text, so look before it does.
void check_identifier(const std::string& path) {
  char head[8] = {};
  std::ifstream file(path, std::ios::binary);
  if (!file.read(head, sizeof(head)) || std::string(head + 4, 4) != "ET12") {
    throw Failure(kProgram, path + ": not a .pte file");
  }
}

void load_libraries(const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    if (dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) throw Failure(kLibrary, dlerror());
  }
}

void write_file(const std::string& path, const void* data, size_t nbytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(data), static_cast<std::streamsize>(nbytes));
  file.close();
  if (!file) throw Failure(kOutput, path + ": cannot be written (is the disk full?)");
}

std::vector<Output> write_outputs(const std::vector<EValue>& values, const std::string& folder) {
  std::vector<Output> outputs;
  for (const EValue& value : values) {
    if (!value.isTensor()) throw Failure(kOutput, "an output is not a tensor");
    const auto& tensor = value.toTensor();
    const std::string path = folder + "/output-" + std::to_string(outputs.size()) + ".bin";
    write_file(path, tensor.const_data_ptr(), tensor.nbytes());
    outputs.push_back({dtype_name(tensor.scalar_type()),
                       {tensor.sizes().begin(), tensor.sizes().end()}});
  }
  return outputs;
}

std::vector<EValue> execute(Module& module, const std::vector<EValue>& inputs,
                            const char* method = "forward") {
  auto values = module.execute(method, inputs);
  require(values.error(), kExecute, "execute");
  return std::move(values.get());
}

// Reads tokens[0..count) of a call that begins at `position`; returns the likeliest next one.
int64_t read_tokens(Module& module, const char* method, std::vector<int64_t> tokens, size_t count,
                    int64_t position) {
  using executorch::extension::from_blob;
  const auto width = static_cast<executorch::aten::SizesType>(tokens.size());
  const auto ids = from_blob(tokens.data(), {1, width}, executorch::aten::ScalarType::Long);
  const auto place = from_blob(&position, {1}, executorch::aten::ScalarType::Long);
  const auto values = execute(module, {ids, place}, method);
  const auto& logits = values.at(0).toTensor();
  const auto vocabulary = logits.size(logits.dim() - 1);
  const float* row = logits.const_data_ptr<float>() + (count - 1) * vocabulary;
  return std::max_element(row, row + vocabulary) - row;
}

std::vector<int64_t> generate(Module& module, const Input& prompt, int tokens) {
  const auto meta = module.method_meta("prefill");
  require(meta.error(), kMethod, "method_meta prefill");
  const auto first = meta->input_tensor_meta(0);
  require(first.error(), kMethod, "input_tensor_meta prefill");
  const size_t width = static_cast<size_t>(first->sizes()[1]);
  std::vector<int64_t> text(prompt.bytes.size() / sizeof(int64_t));
  std::memcpy(text.data(), prompt.bytes.data(), prompt.bytes.size());

  std::vector<int64_t> made;
  size_t position = 0;
  int64_t next = 0;
  while (position < text.size()) {
    const size_t count = std::min(width, text.size() - position);
    std::vector<int64_t> part(width, 0);  // what fills it up is overwritten before it is seen
    std::copy_n(text.begin() + position, count, part.begin());
    next = read_tokens(module, "prefill", part, count, static_cast<int64_t>(position));
    position += count;
  }
  while (made.size() < static_cast<size_t>(tokens)) {
    made.push_back(next);
    next = read_tokens(module, "forward", {next}, 1, static_cast<int64_t>(position++));
  }
  return made;
}

Result run(Job& job) {
  load_libraries(job.libraries);
  check_identifier(job.model);
  Result result;
  result.base_kib = status_kib("VmRSS:");
  reset_peak();

  const auto loading = Clock::now();
  // The methods of a language model share their cache only with shared arenas.
  Module module(job.model, Module::LoadMode::Mmap, nullptr, nullptr, nullptr, job.generate > 0);
  require(module.load(Program::Verification::InternalConsistency), kProgram, "load");
  require(module.load_method("forward"), kMethod, "load_method forward");
  result.load_ms = milliseconds_since(loading);

  if (job.generate > 0) {
    const auto made = generate(module, job.inputs[0], job.generate);
    write_file(job.out + "/output-0.bin", made.data(), made.size() * sizeof(made[0]));
    result.outputs = {{"int64", {static_cast<executorch::aten::SizesType>(made.size())}}};
    result.peak_kib = status_kib("VmHWM:");
    return result;
  }

  const auto meta = module.method_meta("forward");
  require(meta.error(), kMethod, "method_meta forward");
  if (meta->num_inputs() != job.inputs.size()) {
    throw Failure(kInput, "the model takes " + std::to_string(meta->num_inputs()) +
                              " inputs, the case has " + std::to_string(job.inputs.size()));
  }
  std::vector<TensorPtr> tensors;
  std::vector<EValue> inputs;
  for (Input& input : job.inputs) {
    tensors.push_back(
        executorch::extension::from_blob(input.bytes.data(), input.shape, input.type));
    inputs.emplace_back(tensors.back());
  }

  result.outputs = write_outputs(execute(module, inputs), job.out);
  for (int i = 1; i < job.warmup; ++i) execute(module, inputs);
  for (int i = 0; i < job.runs; ++i) {
    const auto start = Clock::now();
    execute(module, inputs);
    result.latency_ms.push_back(milliseconds_since(start));
  }
  result.peak_kib = status_kib("VmHWM:");
  return result;
}

template <typename Items, typename Print>
std::string json_list(const Items& items, Print print) {
  std::string text;
  for (const auto& item : items) text += (text.empty() ? "" : ", ") + print(item);
  return "[" + text + "]";
}

const auto quoted = [](const std::string& text) { return "\"" + text + "\""; };

std::string about() {
  return "{\"architecture\": " + quoted(architecture()) +
         ", \"cpu_features\": " + json_list(cpu_features(), quoted) + "}\n";
}

std::string to_json(const Result& result) {
  const auto number = [](auto value) { return std::to_string(value); };
  const auto output = [&](const Output& o) {
    return "{\"dtype\": " + quoted(o.dtype) + ", \"shape\": " + json_list(o.shape, number) + "}";
  };
  return "{\"load_ms\": " + number(result.load_ms) +
         ", \"latency_ms\": " + json_list(result.latency_ms, number) +
         ", \"base_kib\": " + number(result.base_kib) +
         ", \"peak_kib\": " + number(result.peak_kib) +
         ", \"outputs\": " + json_list(result.outputs, output) + "}\n";
}

}  // namespace
}  // namespace edgesparse

int main(int argc, char** argv) {
  using namespace edgesparse;
  if (argc == 2 && std::string(argv[1]) == "--about") return std::fputs(about().c_str(), stdout) < 0;
  try {
    Job job = parse_job(argc, argv);
    alarm(static_cast<unsigned>(job.limit));  // a hang ends here, whoever started it
    const std::string json = to_json(run(job));
    write_file(job.out + "/result.json", json.data(), json.size());
    return kFine;
  } catch (const Failure& failure) {
    std::fprintf(stderr, "error: %s\n", failure.what());
    return failure.code;
  }
}
