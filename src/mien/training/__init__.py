"""Training: recipes, batches of faces, optimizers and the loop."""
