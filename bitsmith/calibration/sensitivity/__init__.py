"""Sensitivity: what each type of each matrix costs, as divergence of the whole model from the original.

Second order, around the original: KL(original || rounded) = 1/2 d F d, where d is the rounding error of all weights and
F is Fisher's information matrix, which is the Hessian of the divergence (Amari 1998; for allocation: HAWQ, Dong et al.
2019).
"""
