"""The command line: small functions over the library."""
