"""Generators of what goes wrong: pictures, models, recipes, moments. `python -m fuzz KIND` tries many of a kind."""
