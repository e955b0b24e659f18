"""The HTTP transport: translates to and from `serving.gateway`, and adds nothing of its own."""
