"""Every method, as arithmetic over what was captured. Importing this package fills the registry."""

from sightline.methods import attention, combine, full_gradient, gradient_cams, rerun_cams, subspace_cams
from sightline.methods.registry import Method, list_methods, method, run

__all__ = [
    "Method",
    "attention",
    "combine",
    "full_gradient",
    "gradient_cams",
    "list_methods",
    "method",
    "rerun_cams",
    "run",
    "subspace_cams",
]
