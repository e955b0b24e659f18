"""Recipes: from the name of one, and of a data set, to a plan that the training loop can run."""
