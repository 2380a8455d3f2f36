"""Messages as bytes: pickled frames with large arrays beside them."""
