"""One file per kind of device; rows of ``edgesparse_device.device.DEVICES``."""
