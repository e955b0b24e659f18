"""Model families, one a file. Image models take pixels, scale them themselves and answer probabilities."""
