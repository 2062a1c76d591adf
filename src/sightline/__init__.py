"""Sightline: which part of an image made a vision model say what it said, and how far to believe the picture."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Names are found where they are used first, so that `import sightline` loads no torch.
_HOME = {
    "Adapter": "models.adapter",
    "Audit": "audit.run",
    "Agreement": "agreements",
    "AttentionCapture": "engine.attention",
    "Capture": "engine.capture",
    "Concepts": "concept",
    "Frames": "frames",
    "Heatmap": "heatmap",
    "Look": "flow",
    "Measured": "metrics.registry",
    "Method": "methods.registry",
    "Metric": "metrics.registry",
    "Probe": "engine.probe",
    "SightlineError": "errors",
    "TrustCard": "trust",
    "View": "models.view",
    "above": "engine.targets",
    "adapt": "models.adapter",
    "agreement": "agreements",
    "answering": "models.answers",
    "attribute": "attribution",
    "audit_moved": "audit.moved",
    "audit_run": "audit.run",
    "binary": "engine.targets",
    "box": "engine.boxes",
    "bands": "models.bands",
    "capture": "attribution",
    "combine": "methods.combine",
    "class_logit": "engine.targets",
    "compare": "flow",
    "concepts": "flow",
    "evaluate": "evaluation",
    "explain": "flow",
    "explain_all": "batch.run",
    "instance": "engine.boxes",
    "explain_frames": "frames",
    "explain_tiles": "tiles",
    "list_methods": "methods",
    "list_metrics": "metrics",
    "load_model": "models.load",
    "look": "flow",
    "log_probability": "engine.targets",
    "margin": "engine.targets",
    "measure": "metrics.measure",
    "method": "methods.registry",
    "metric": "metrics.registry",
    "open_run": "batch.results",
    "parse_target": "engine.spoken",
    "probability": "engine.targets",
    "read_image": "data.images",
    "regression": "engine.targets",
    "save": "heatmap",
    "segment": "engine.regions",
    "share_scale": "heatmap",
    "side_by_side": "heatmap",
    "similarity": "engine.likeness",
    "write_report": "audit.report",
    "zero_shot": "models.prompts",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sightline' has no attribute {name!r}")
    value = getattr(import_module(f"sightline.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__", "errors"]


if TYPE_CHECKING:
    from sightline.agreements import Agreement as Agreement
    from sightline.agreements import agreement as agreement
    from sightline.attribution import attribute as attribute
    from sightline.attribution import capture as capture
    from sightline.audit.moved import audit_moved as audit_moved
    from sightline.audit.report import write_report as write_report
    from sightline.audit.run import Audit as Audit
    from sightline.audit.run import audit_run as audit_run
    from sightline.batch.results import open_run as open_run
    from sightline.batch.run import explain_all as explain_all
    from sightline.concept import Concepts as Concepts
    from sightline.data.images import read_image as read_image
    from sightline.engine.attention import AttentionCapture as AttentionCapture
    from sightline.engine.boxes import box as box
    from sightline.engine.boxes import instance as instance
    from sightline.engine.capture import Capture as Capture
    from sightline.engine.likeness import similarity as similarity
    from sightline.engine.probe import Probe as Probe
    from sightline.engine.regions import segment as segment
    from sightline.engine.spoken import parse_target as parse_target
    from sightline.engine.targets import above as above
    from sightline.engine.targets import binary as binary
    from sightline.engine.targets import class_logit as class_logit
    from sightline.engine.targets import log_probability as log_probability
    from sightline.engine.targets import margin as margin
    from sightline.engine.targets import probability as probability
    from sightline.engine.targets import regression as regression
    from sightline.errors import SightlineError as SightlineError
    from sightline.evaluation import evaluate as evaluate
    from sightline.flow import Look as Look
    from sightline.flow import compare as compare
    from sightline.flow import concepts as concepts
    from sightline.flow import explain as explain
    from sightline.flow import look as look
    from sightline.frames import Frames as Frames
    from sightline.frames import explain_frames as explain_frames
    from sightline.heatmap import Heatmap as Heatmap
    from sightline.heatmap import save as save
    from sightline.heatmap import share_scale as share_scale
    from sightline.heatmap import side_by_side as side_by_side
    from sightline.methods import list_methods as list_methods
    from sightline.methods.combine import combine as combine
    from sightline.methods.registry import Method as Method
    from sightline.methods.registry import method as method
    from sightline.metrics import list_metrics as list_metrics
    from sightline.metrics.measure import measure as measure
    from sightline.metrics.registry import Measured as Measured
    from sightline.metrics.registry import Metric as Metric
    from sightline.metrics.registry import metric as metric
    from sightline.models.adapter import Adapter as Adapter
    from sightline.models.adapter import adapt as adapt
    from sightline.models.answers import answering as answering
    from sightline.models.bands import bands as bands
    from sightline.models.load import load_model as load_model
    from sightline.models.prompts import zero_shot as zero_shot
    from sightline.models.view import View as View
    from sightline.tiles import explain_tiles as explain_tiles
    from sightline.trust import TrustCard as TrustCard
