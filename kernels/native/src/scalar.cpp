// Any processor.
#include "dispatch.hpp"
#include "tiles.hpp"

namespace edgesparse_native {
TileKernel scalar_kernel() { return edgesparse::linear_tiles<edgesparse::Portable>; }
}  // namespace edgesparse_native
