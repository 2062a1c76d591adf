"""What tables of Parquet and Arrow have in common: which columns they have, and what a cell holds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from sightline.data.sets.places import check_size, whole
from sightline.errors import ImageError

_TEXT, _BYTES = ("string", "large_string"), ("binary", "large_binary")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are what.

    Attributes:
        image: the column of the pictures.
        listed: they are paths.
        label: the column of the classes.
        id: the column of the ids.
        names: what the numbers of the classes mean; empty where they mean nothing.
    """

    image: str
    listed: bool
    label: str | None
    id: str | None
    names: list[str]

    @property
    def facts(self) -> list[str]:
        """All but the pictures."""
        return list(dict.fromkeys(one for one in (self.label, self.id) if one))

    def texts(self, batch: Any) -> tuple[Iterable[str | None], Iterable[str | None]]:
        """The labels and the ids of the rows. A class of -1, by which data sets mark an unknown one, is none."""
        labels, ids = (
            batch[one].cast("string").to_pylist() if one else repeat(None, len(batch)) for one in (self.label, self.id)
        )
        names = {str(number): name for number, name in enumerate(self.names)}
        return (map(names.get, labels) if names else labels), ids


def columns_of(schema: Any, features: dict[str, Any], where: str) -> Columns:
    """Finds the columns by what Hugging Face says of them, or by their names.

    Raises:
        ImageError: there is no column of pictures, or one holds something else than it should.
    """
    for one in ("image", "path", "label", "id"):
        if schema.names.count(one) > 1:
            raise ImageError(f"{where} has {schema.names.count(one)} columns {one!r}; expected one")
    pictures, classes = (
        [name for name in schema.names if isinstance(features.get(name), dict) and features[name].get("_type") == kind]
        for kind in ("Image", "ClassLabel")
    )
    if len(pictures) > 1 and "image" not in pictures:
        raise ImageError(
            f"{where} has pictures in the columns {', '.join(pictures)}; rename the one that is wanted to image"
        )
    choices = pictures if len(pictures) == 1 else ["image", "path"]
    image = next((one for one in choices if one in schema.names), None)
    if image is None:
        raise ImageError(
            f"{where} has the columns {', '.join(schema.names[:20])}; expected a column image with pictures or their paths"
        )
    label = "label" if "label" in schema.names else classes[0] if len(classes) == 1 else None
    names = features[label].get("names") if label and label in classes else None
    return Columns(
        image,
        _is_listed(schema, image, where),
        _fact(schema, label, where),
        _fact(schema, "id", where),
        list(map(str, names)) if isinstance(names, list) else [],
    )


def features_in(text: bytes) -> dict[str, Any]:
    """What Hugging Face's datasets say of the columns, in the JSON beside a table or in its schema."""
    try:
        said = json.loads(text)
        features = said.get("info", said)["features"]
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError):  # it is of another form
        return {}
    return features if isinstance(features, dict) else {}


def content(cell: Any, root: str, name: str) -> str | bytes:
    """The bytes in a cell, or what its path names."""
    nested = hasattr(cell, "keys") and cell.is_valid
    held = cell["bytes"] if nested else cell
    if held.is_valid:
        check_size(name, held.as_buffer().size)
        return bytes(held.as_py())
    path = path_in(cell)
    if not path:
        raise ImageError(f"{name} has neither bytes nor a path in the table")
    return whole(root, path, -1)


def path_in(cell: Any) -> str | None:
    """The path in a cell, which may stand there instead of the bytes."""
    return cell["path"].as_py() if hasattr(cell, "keys") and cell.is_valid and "path" in cell else None


def _is_listed(schema: Any, image: str, where: str) -> bool:
    from pyarrow import types

    kind = _kind(schema, image)
    nested = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if str(kind.field("bytes").type if nested else kind) in _BYTES:
        return False
    if str(kind) not in _TEXT:
        raise ImageError(
            f"{where}: the column {image} holds {kind}; expected paths, bytes, or a struct of bytes and path"
        )
    return True


def _fact(schema: Any, name: str | None, where: str) -> str | None:
    """The column's name, where there is one that holds something."""
    from pyarrow import types

    if name is None or name not in schema.names or types.is_null(kind := _kind(schema, name)):
        return None
    if not (str(kind) in _TEXT or types.is_integer(kind)):
        raise ImageError(f"{where}: the column {name} holds {kind}; expected text or whole numbers")
    return name


def _kind(schema: Any, name: str) -> Any:
    from pyarrow import types

    kind = schema.field(name).type
    return kind.value_type if types.is_dictionary(kind) else kind
