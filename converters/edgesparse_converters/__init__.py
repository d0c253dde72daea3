"""edgesparse_converters."""
