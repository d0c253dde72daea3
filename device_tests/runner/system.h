// What the runner says about the machine it finds itself on: memory, processor features.
#pragma once

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace edgesparse {

// A field of /proc/self/status in KiB, such as VmHWM; 0 where there is none.
inline long status_kib(const char* field) {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.rfind(field, 0) == 0) return std::atol(line.c_str() + std::strlen(field) + 1);
  }
  return 0;
}

// Forget the peak reached so far, so that VmHWM is the peak of the model; ignored if refused.
inline void reset_peak() {
  std::ofstream("/proc/self/clear_refs") << "5";
}

// The vector features kernels choose by, as this process (possibly emulated) sees them.
inline std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
#if defined(__aarch64__)
  // Bits of the kernel's uapi/asm/hwcap.h, spelled out: older libc headers lack the newer ones.
  struct Bit {
    const char* name;
    int word;
    int bit;
  };
  static const Bit bits[] = {{"asimd", 0, 1},   {"asimdhp", 0, 10}, {"asimddp", 0, 20},
                             {"sve", 0, 22},    {"sve2", 1, 1},     {"i8mm", 1, 13},
                             {"bf16", 1, 14}};
  const unsigned long words[] = {getauxval(AT_HWCAP), getauxval(AT_HWCAP2)};
  for (const Bit& bit : bits) {
    if (words[bit.word] >> bit.bit & 1) found.push_back(bit.name);
  }
#elif defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("sse4.1")) found.push_back("sse4.1");
  if (__builtin_cpu_supports("avx2")) found.push_back("avx2");
  if (__builtin_cpu_supports("fma")) found.push_back("fma");
  if (__builtin_cpu_supports("avx512f")) found.push_back("avx512f");
  if (__builtin_cpu_supports("avx512vnni")) found.push_back("avx512vnni");
  if (__builtin_cpu_supports("avx512vbmi2")) found.push_back("avx512vbmi2");
#endif
  return found;
}

inline const char* architecture() {
#if defined(__aarch64__)
  return "aarch64";
#elif defined(__x86_64__)
  return "x86_64";
#else
  return "unknown";
#endif
}

}  // namespace edgesparse
