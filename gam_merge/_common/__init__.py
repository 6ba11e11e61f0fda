"""Used by every room: errors, files, tensors, names. It knows nothing about adapters."""
