"""What may stand before or after a rule, one idea per file."""
