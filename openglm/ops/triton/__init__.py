"""GPU kernels in Triton: weights of a layer on the device, and the ops of a decoder layer on them.

The kernels are imported only where a GPU runs the model (or, in tests, Triton's interpreter on the CPU), so that nothing else needs Triton
installed. `matrix` and `host_experts`, which a loader fills, do without it.
"""
