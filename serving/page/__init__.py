"""The page at `/`: static files in the package, and the state that they show."""
