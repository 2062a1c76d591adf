"""Every method, as arithmetic over what was captured. Importing this package fills the registry."""

from sightline.methods import gradient_cams
from sightline.methods.registry import Method, list_methods, method, run

__all__ = ["Method", "gradient_cams", "list_methods", "method", "run"]
