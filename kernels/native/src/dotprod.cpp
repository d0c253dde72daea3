#include "dispatch.hpp"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include "neon.hpp"
namespace edgesparse_native {
TileKernel dotprod_kernel() { return edgesparse::linear_tiles<edgesparse::Neon>; }
}  // namespace edgesparse_native
#else
namespace edgesparse_native {
TileKernel dotprod_kernel() { return nullptr; }
}  // namespace edgesparse_native
#endif
