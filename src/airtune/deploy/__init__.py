"""Parts that carry a run onto real devices: keys, messages, pacing, the device's own processes."""
