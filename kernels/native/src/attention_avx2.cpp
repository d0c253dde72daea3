// The portable loops, compiled for wider registers: the same bits, faster.
#include "attending.hpp"

#if defined(__AVX2__)
#include "attention.hpp"
namespace edgesparse_native {
AttendKernel avx2_attend() { return edgesparse::attend_heads; }
}  // namespace edgesparse_native
#else
namespace edgesparse_native {
AttendKernel avx2_attend() { return nullptr; }
}  // namespace edgesparse_native
#endif
