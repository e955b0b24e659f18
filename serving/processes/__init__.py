"""The processes of one installation: a model server as a child, several workers, what they share."""
