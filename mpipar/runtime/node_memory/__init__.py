"""Arrays that the ranks of one host have in one memory."""
