"""Pairs of examples: made by a formula, or given."""
