"""A hosted Gradio Space: put this folder's files at the top of the Space."""

from sightline.app.serve import run

run([], host="0.0.0.0", open_to_all=True, said=print)
