"""Device test runs: an artifact, real inputs and reference outputs, on every device that is there.

    bundle      an artifact with cases: inputs and the packed model's outputs, all plain data
    device      what a device is, and the registry: host, qemu-arm64, adb:SERIAL, ssh:HOST, mac
    running     bundle × devices → records, resumable
    record      what one run on one device showed
    comparing   two records → what got worse

Nothing heavy is imported until a device runs.
"""
