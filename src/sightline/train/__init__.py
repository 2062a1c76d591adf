"""Training a classifier on folders of pictures, and watching where it looks while it learns."""
