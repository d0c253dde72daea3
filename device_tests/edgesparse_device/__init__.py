"""edgesparse_device."""
