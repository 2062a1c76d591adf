"""Runs over whole data sets: planned, cut into shards that are done or not, and going on wherever they were stopped."""
