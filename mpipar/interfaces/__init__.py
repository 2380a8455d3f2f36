"""Other people's interfaces on our runtime; all of them share the workers of one crew."""
