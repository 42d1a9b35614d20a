"""Plain torch versions of every op: slow, readable, and the definition of what a fast kernel must compute.

Several ops take `row_tile`. None asks for the fastest torch call. A number asks for results that depend on nothing but the
row itself: not on how many rows share the batch, on chunking, or on the query length. Matrix libraries choose another
kernel, hence another rounding, for another number of rows; so with `row_tile` every matrix product runs on tiles of
exactly that many rows (padded with zeros), and transcendental functions are taken in double precision, where the vector and the scalar
tail of a loop agree after rounding.
"""

from openglm.ops.reference import attention, experts, highest, linear, norm, rope, swiglu

__all__ = ["attention", "experts", "highest", "linear", "norm", "rope", "swiglu"]
