"""Model families, one a file. Each takes pixels as uint8 and scales them itself, and answers probabilities."""
