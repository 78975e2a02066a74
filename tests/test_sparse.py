"""Sparse products: the dense model's numbers, in every strategy."""
