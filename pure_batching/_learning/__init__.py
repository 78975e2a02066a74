"""Carries, learners, and the gradients of steps and sequences."""
