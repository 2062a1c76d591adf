"""Every metric, as arithmetic over a map and what may be asked about it. Importing this package fills the registry."""

from sightline.metrics import faithfulness, localisation, maps, randomisation
from sightline.metrics.registry import Curve, Measured, Metric, list_metrics, metric

__all__ = [
    "Curve",
    "Measured",
    "Metric",
    "faithfulness",
    "list_metrics",
    "localisation",
    "maps",
    "metric",
    "randomisation",
]
