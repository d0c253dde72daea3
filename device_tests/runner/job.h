// What one run of the runner is asked to do, and the exit codes with which it answers.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include <executorch/runtime/core/exec_aten/exec_aten.h>

namespace edgesparse {

// Read by edgesparse_device/outcome.py; a number, once given, keeps its meaning.
enum ExitCode {
  kFine = 0,
  kUsage = 2,
  kLibrary = 10,
  kProgram = 11,
  kMethod = 12,
  kInput = 13,
  kExecute = 14,
  kOutput = 15,
};

// Ends the run: main() prints the message and exits with the code.
struct Failure : std::runtime_error {
  Failure(ExitCode c, const std::string& message) : std::runtime_error(message), code(c) {}
  ExitCode code;
};

struct Input {
  executorch::aten::ScalarType type;
  std::vector<executorch::aten::SizesType> shape;
  std::string path;
  std::vector<char> bytes;  // little-endian, row-major
};

struct Job {
  std::string model;
  std::string out;  // folder for output-0.bin, output-1.bin, …, result.json
  int warmup = 1;
  int runs = 5;
  int generate = 0;  // tokens to continue the one input, a prompt, by; 0 runs "forward" on the inputs
  int limit = 0;  // seconds after which SIGALRM ends the process; 0 is no limit
  std::vector<std::string> libraries;
  std::vector<Input> inputs;
};

struct Dtype {
  executorch::aten::ScalarType type;
  size_t nbytes;
};

inline const std::map<std::string, Dtype>& dtypes() {
  using executorch::aten::ScalarType;
  static const std::map<std::string, Dtype> table = {
      {"float32", {ScalarType::Float, 4}}, {"float64", {ScalarType::Double, 8}},
      {"float16", {ScalarType::Half, 2}},  {"int64", {ScalarType::Long, 8}},
      {"int32", {ScalarType::Int, 4}},     {"int16", {ScalarType::Short, 2}},
      {"int8", {ScalarType::Char, 1}},     {"uint8", {ScalarType::Byte, 1}},
      {"bool", {ScalarType::Bool, 1}},
  };
  return table;
}

inline std::string dtype_name(executorch::aten::ScalarType type) {
  for (const auto& [name, dtype] : dtypes()) {
    if (dtype.type == type) return name;
  }
  throw Failure(kOutput, "an output has a type this runner cannot write");
}

// "1x16" → {1, 16}; "" is a scalar.
inline std::vector<executorch::aten::SizesType> parse_shape(const std::string& text) {
  std::vector<executorch::aten::SizesType> shape;
  size_t start = 0;
  while (start < text.size()) {
    const size_t end = std::min(text.find('x', start), text.size());
    char* rest = nullptr;
    const std::string digits = text.substr(start, end - start);
    const long size = std::strtol(digits.c_str(), &rest, 10);
    if (digits.empty() || *rest != '\0' || size < 0) {
      throw Failure(kUsage, "shape '" + text + "': expected sizes joined by x, such as 1x16");
    }
    shape.push_back(static_cast<executorch::aten::SizesType>(size));
    start = end + 1;
  }
  return shape;
}

inline int parse_count(const std::string& option, const std::string& text) {
  char* rest = nullptr;
  const long value = std::strtol(text.c_str(), &rest, 10);
  if (text.empty() || *rest != '\0' || value < 0 || value > 1000000) {
    throw Failure(kUsage, option + " '" + text + "': expected a count");
  }
  return static_cast<int>(value);
}

inline Input read_input(const std::string& dtype, const std::string& shape,
                        const std::string& path) {
  const auto found = dtypes().find(dtype);
  if (found == dtypes().end()) throw Failure(kUsage, "unknown dtype '" + dtype + "'");
  Input input{found->second.type, parse_shape(shape), path, {}};
  size_t expected = found->second.nbytes;
  for (const auto size : input.shape) expected *= static_cast<size_t>(size);
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Failure(kInput, path + ": cannot be read");
  input.bytes.assign(std::istreambuf_iterator<char>(file), {});
  if (input.bytes.size() != expected) {
    throw Failure(kInput, path + ": " + std::to_string(input.bytes.size()) + " bytes, " + dtype +
                              " of shape " + shape + " needs " + std::to_string(expected));
  }
  return input;
}

inline Job parse_job(int argc, char** argv) {
  Job job;
  int next = 1;
  const auto take = [&](const std::string& option) -> std::string {
    if (next >= argc) throw Failure(kUsage, option + ": a value is missing");
    return argv[next++];
  };
  while (next < argc) {
    const std::string option = argv[next++];
    if (option == "--model") {
      job.model = take(option);
    } else if (option == "--out") {
      job.out = take(option);
    } else if (option == "--warmup") {
      job.warmup = parse_count(option, take(option));
    } else if (option == "--runs") {
      job.runs = parse_count(option, take(option));
    } else if (option == "--generate") {
      job.generate = parse_count(option, take(option));
    } else if (option == "--limit") {
      job.limit = parse_count(option, take(option));
    } else if (option == "--library") {
      job.libraries.push_back(take(option));
    } else if (option == "--input") {
      const std::string dtype = take(option), shape = take(option);
      job.inputs.push_back(read_input(dtype, shape, take(option)));
    } else {
      throw Failure(kUsage, "unknown option '" + option + "'");
    }
  }
  if (job.model.empty() || job.out.empty()) throw Failure(kUsage, "--model and --out are needed");
  if (job.generate > 0 && (job.inputs.size() != 1 || job.inputs[0].bytes.empty() ||
                           job.inputs[0].type != executorch::aten::ScalarType::Long)) {
    throw Failure(kUsage, "--generate: expected one input, the int64 tokens of a prompt");
  }
  if (job.runs < 1) throw Failure(kUsage, "--runs: expected at least 1");
  return job;
}

}  // namespace edgesparse
