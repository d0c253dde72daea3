#include "dispatch.hpp"

#if defined(__aarch64__) && defined(__ARM_FEATURE_MATMUL_INT8)
#include "neon.hpp"
namespace edgesparse_native {
TileKernel i8mm_kernel() { return edgesparse::linear_tiles<edgesparse::Neon>; }
}  // namespace edgesparse_native
#else
namespace edgesparse_native {
TileKernel i8mm_kernel() { return nullptr; }
}  // namespace edgesparse_native
#endif
