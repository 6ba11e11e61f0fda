"""What may stand before or after a rule, one a file."""
