"""Element-wise, dequantisation, loss and attention kernels: each in Triton for CUDA, with a twin in plain
torch.
"""
