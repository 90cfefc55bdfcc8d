"""From published archives and label files to prepared images and leak-free splits, and the embedded demo."""
