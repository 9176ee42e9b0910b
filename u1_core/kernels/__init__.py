"""One-pass kernels in Triton for what lies between a layer's products. The plain form of each is in `u1_core.model`."""
