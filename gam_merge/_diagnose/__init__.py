"""What adapters hold and have in common: measured, judged, drawn."""
