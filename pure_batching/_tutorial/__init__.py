"""The batching tutorial's training, which `python -m pure_batching` runs; it uses the library as a user would."""
