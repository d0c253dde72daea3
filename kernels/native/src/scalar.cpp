// Any processor.
#include "dispatch.hpp"
#include "linear.hpp"

namespace edgesparse_native {
TileKernel scalar_kernel() { return edgesparse::linear_tiles<edgesparse::Portable>; }
}  // namespace edgesparse_native
