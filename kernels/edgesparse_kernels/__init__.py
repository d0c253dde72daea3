"""edgesparse_kernels."""
