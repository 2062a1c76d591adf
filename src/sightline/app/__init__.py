"""The web app: answers (plain functions), page (layout), serve (network)."""
