"""Every method, as arithmetic over what was captured. Importing this package fills the registry."""

from sightline.methods import attention, combine, full_gradient, gradient_cams, perturbation, rerun_cams, subspace_cams
from sightline.methods.registry import Method, list_methods, method, run

__all__ = [
    "Method",
    "attention",
    "combine",
    "full_gradient",
    "gradient_cams",
    "list_methods",
    "method",
    "perturbation",
    "rerun_cams",
    "run",
    "subspace_cams",
]
