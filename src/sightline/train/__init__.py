"""Training a classifier on folders of pictures, with a look at where it looks after each epoch."""
