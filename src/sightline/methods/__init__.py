"""Every method, as arithmetic over what was captured. Importing this package fills the registry."""

from sightline.methods import (
    adaptive_paths,
    attention,
    combine,
    full_gradient,
    gradient_cams,
    input_gradients,
    perturbation,
    rerun_cams,
    subspace_cams,
    surrogates,
)
from sightline.methods.registry import Method, list_methods, method, run

__all__ = [
    "Method",
    "adaptive_paths",
    "attention",
    "combine",
    "full_gradient",
    "gradient_cams",
    "input_gradients",
    "list_methods",
    "method",
    "perturbation",
    "rerun_cams",
    "run",
    "subspace_cams",
    "surrogates",
]
