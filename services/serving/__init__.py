"""Online inference: the application and its Ray Serve deployment."""
