"""Other ways to compute the same, a file a library."""
