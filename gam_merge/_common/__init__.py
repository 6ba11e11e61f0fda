"""What every room uses: errors, files, tensors, names. Knows nothing of adapters."""
