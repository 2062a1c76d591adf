"""The audit of a run: where the heat lies over a whole data set, what the model relies on, and what to do about it."""
