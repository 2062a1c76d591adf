"""How to speak to a model: find it, load it, feed it a photograph, name its layers and classes."""
