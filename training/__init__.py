"""Builds, trains and publishes SavedModels; meets `serving` only on disk."""
