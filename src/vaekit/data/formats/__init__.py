"""One file per file format: a file or its bytes in, arrays out. Sources of data sets are in `..sources`."""
