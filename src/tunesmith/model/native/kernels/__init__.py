"""Element-wise, dequantisation, loss and attention kernels: in Triton for CUDA, with a plain-torch twin."""
