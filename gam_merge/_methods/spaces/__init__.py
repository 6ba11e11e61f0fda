"""What rules on entries look at, one space per file."""
