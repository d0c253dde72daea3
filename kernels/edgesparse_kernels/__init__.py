"""edgesparse_kernels: computing from packed weights, on bare arrays; needs numpy and numba only.

``matrix`` describes a packed matrix, ``matmul`` multiplies by one, ``reference`` is the plain NumPy
version every kernel must equal. Nothing is compiled, and numba not even imported, before first use.
"""
