#include "dispatch.hpp"

#if defined(__aarch64__)
#include "neon.hpp"
namespace edgesparse_native {
TileKernel neon_kernel() { return edgesparse::linear_tiles<edgesparse::Neon>; }
}  // namespace edgesparse_native
#else
namespace edgesparse_native {
TileKernel neon_kernel() { return nullptr; }
}  // namespace edgesparse_native
#endif
