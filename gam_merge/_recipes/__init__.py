"""Recipes: merges as YAML files."""
