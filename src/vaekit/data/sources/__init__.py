"""One file for each format of images, downloads, and the catalogue of data sets."""
