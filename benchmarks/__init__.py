"""Cost of ddln beside the alternatives, one question a module: `make bench`."""
