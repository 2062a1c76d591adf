"""Pictures from numbers: colours, overlays, panels. Knows nothing of models."""
