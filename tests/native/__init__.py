"""Comparisons with BrainScale's own run, which needs the parity environment."""
