"""`glm bench gpu ROW`: the model at full size on one GPU, with weights made there; one module per row of measurements.

    plan      which rows there are: time budgets, columns of their tables, marks
    run       one row: case after case, kept as soon as measured, gone on with after an interruption, ended in time
    place     where it runs: a GPU, or for a rehearsal the CPU, with Triton's interpreter and stand-ins for what CUDA alone has

`ceilings`, `kernels`, `decode`, `mtp`, `prefill` and `beside_transformers` are the rows. A rehearsal proves the scripts: its
shapes are tiny, its figures mean nothing and say so, and no mark is taken from them.
"""
