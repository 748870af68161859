"""Where images come from: folders, archives, arrays, objects, downloads, and the catalogue of named data sets."""
