"""The shape of the source: imports point one way, importing is cheap, public names are documented, nothing dangerous is called."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import sightline
from sightline import errors

SOURCE = Path(sightline.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
# What stands left may not import what stands right, not even inside a function.
ORDER = (
    "errors",
    "_optional",
    "_quiet",
    "data",
    "models",
    "engine",
    "methods",
    "attribution",
    "metrics",
    "render",
    "bundle",
    "runs",
    "trust",
    "heatmap",
    "agreements",
    "concept",
    "flow",
    "tiles",
    "frames",
    "identity",
    "evaluation",
    "batch",
    "train",
    "audit",
    "testing",
    "app",
    "cli",
    "__main__",
)
EACH_FILE = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def nodes(file: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(file)))


@cache
def names_in(file: Path) -> frozenset[str]:
    """Every dotted name that is used in a file."""
    return frozenset(name for name, _ in names_used(tree(file)))


def part(file: Path) -> str:
    """`models` for models/load.py, `flow` for flow.py."""
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(node: ast.AST) -> Iterator[str]:
    """Whole names of what an import statement brings: sightline.errors.SightlineError, torch.nn."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def own_parts(node: ast.AST) -> Iterator[str]:
    """The parts of sightline that an import statement needs; a public name counts as the part it lives in."""
    for name in imported(node):
        assert not name.startswith("."), f"relative import {name}; the order is read from whole names"
        first, *rest = name.split(".")
        if first == "sightline" and rest != ["__version__"]:
            # `import sightline` alone gives every name, so it counts as the last but the command line.
            found = rest[0] if rest else "flow"
            yield sightline._HOME[found].split(".")[0] if found in sightline._HOME else found


def names_used(module: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Every dotted name that is used, with what an import or `as` made of it undone: torch.load, open, PIL.Image.open."""
    origin: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            origin |= {
                alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            origin |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(module):
        attributes, inner = [], node
        while isinstance(inner, ast.Attribute):
            attributes.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            yield ".".join([origin.get(inner.id, inner.id), *reversed(attributes)]), node


def places(*forbidden: str) -> list[str]:
    """Where in the source one of these dotted names is used."""
    return [f"{file.relative_to(SOURCE)}: {name}" for file in FILES for name in forbidden if name in names_in(file)]


def keyword_places(keyword: str, *values: object) -> list[str]:
    """Where a call has this keyword argument (with one of these values, if some are given)."""
    return [
        f"{file.relative_to(SOURCE)}:{node.value.lineno}"
        for file in FILES
        for node in nodes(file)
        if isinstance(node, ast.keyword)
        and node.arg == keyword
        and (not values or not isinstance(node.value, ast.Constant) or node.value.value in values)
    ]


def in_a_fresh_process(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout.strip()


# ------------------------------------------------------------------------------------------------------------ imports


@EACH_FILE
def test_imports_point_from_right_to_left_also_inside_functions(file: Path) -> None:
    here = part(file)
    if file == SOURCE / "__init__.py":
        return  # the front door names everything, lazily
    assert here in ORDER, f"{here} has no place in the order {' | '.join(ORDER)}"
    for node in nodes(file):
        for needed in own_parts(node):
            assert needed in ORDER, f"{here} imports {needed}, which has no place in the order"
            assert ORDER.index(needed) <= ORDER.index(here), f"line {node.lineno}: {here} may not import {needed}"


def test_the_front_door_imports_nothing_of_ours_when_it_is_imported() -> None:
    top = [node for node in tree(SOURCE / "__init__.py").body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [name for node in top for name in own_parts(node)] == []


@EACH_FILE
def test_only_the_command_line_prints(file: Path) -> None:
    if part(file) != "cli":
        assert "print" not in names_in(file)


@pytest.mark.parametrize("module", ["sightline", "sightline.errors", "sightline.cli", "sightline.cli.output"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    heavy = ["torch", "torchvision", "timm", "PIL", "matplotlib", "numpy", "safetensors", "huggingface_hub"]
    loaded = in_a_fresh_process(f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])")
    assert loaded == "[]"


def test_naming_the_public_functions_loads_no_timm_and_no_matplotlib() -> None:
    code = "import sys, sightline; sightline.explain, sightline.adapt; print([n for n in ('timm', 'matplotlib') if n in sys.modules])"
    assert in_a_fresh_process(code) == "[]"


# ------------------------------------------------------------------------------------------------------- public names


def test_all_is_sorted_and_without_doubles() -> None:
    assert sightline.__all__ == sorted(set(sightline.__all__))


@pytest.mark.parametrize("name", sightline.__all__)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    found = getattr(sightline, name)
    document = found.__doc__
    assert document, f"{name} has no docstring"
    assert document.strip()
    assert not document.startswith(f"{name}("), f"{name} has only the docstring that @dataclass makes up"
    assert name in dir(sightline)


@pytest.mark.parametrize("name", sightline.__all__)
def test_every_public_method_and_property_is_documented(name: str) -> None:
    found = getattr(sightline, name)
    if inspect.isclass(found):
        for member, value in vars(found).items():
            if member.startswith("_") or member in getattr(found, "__dataclass_fields__", {}):
                continue  # fields are documented under Attributes
            if inspect.isfunction(value) or isinstance(value, property) or hasattr(value, "attrname"):
                assert inspect.getdoc(value), f"{name}.{member}"


@pytest.mark.parametrize("name", [name for name in sightline.__all__ if name[0].islower()])
def test_every_argument_of_a_public_function_is_documented(name: str) -> None:
    function = getattr(sightline, name)
    document = inspect.getdoc(function) or ""
    if "Args:" not in document:
        return  # short ones say it all in their first line
    block = document.partition("Args:")[2]
    missing = [one for one in inspect.signature(function).parameters if f"{one}:" not in block]
    assert missing == []


def test_type_checkers_see_the_same_public_names() -> None:
    blocks = [
        node
        for node in tree(SOURCE / "__init__.py").body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    assert len(blocks) == 1
    lines = [node for node in blocks[0].body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname or alias.name: node.module for node in lines for alias in node.names}
    assert all(alias.asname == alias.name for node in lines for alias in node.names), "re-exports need `X as X`"
    assert seen == {name: f"sightline.{home}" for name, home in sightline._HOME.items()}


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'explane'"):
        sightline.explane  # noqa: B018


def test_the_package_is_marked_as_typed() -> None:
    assert (SOURCE / "py.typed").is_file()


# ------------------------------------------------------------------------------------------------------------- errors

ERRORS = [one for _, one in inspect.getmembers(errors, inspect.isclass) if one.__module__ == "sightline.errors"]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_documented_drawn_in_the_tree_and_has_a_parent_of_python(error: type[Exception]) -> None:
    assert error.__doc__ and error.__doc__.strip()  # noqa: PT018
    assert issubclass(error, errors.SightlineError)
    assert error.__name__ in (errors.__doc__ or "")
    if error is not errors.SightlineError:
        builtin = [one for one in error.__mro__ if one.__module__ == "builtins" and one not in (Exception, object)]
        assert builtin[0] is not BaseException, "an error is also a ValueError, a LookupError, ..."
        assert issubclass(error, errors.ModelError) or f"({builtin[0].__name__})" in (errors.__doc__ or "")


@EACH_FILE
def test_errors_that_users_meet_are_ours(file: Path) -> None:
    # The first is Python's way; the second becomes an answer of the server; the third never leaves its file.
    allowed = {"__init__.py": {"AttributeError"}, "visitors.py": {"Refused"}, "capture.py": {"_View"}}.get(
        file.name, set()
    )
    for node in nodes(file):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: assert vanishes under python -O"
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            name = node.exc.func.id
            assert hasattr(errors, name) or name in allowed, f"line {node.lineno} raises {name}"


# ------------------------------------------------------------------------------------------------------------- danger


def test_weights_are_opened_in_one_place_and_never_as_code() -> None:
    found = places("torch.load")
    assert found == [str(Path("models/weights.py")) + ": torch.load"]
    calls = [
        node
        for node in ast.walk(tree(SOURCE / "models" / "weights.py"))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert len(calls) == 1
    given = {one.arg: ast.unparse(one.value) for one in calls[0].keywords}
    assert given["weights_only"] == "True"
    assert given["map_location"] == "'cpu'"
    assert given["mmap"] == "False"


def test_nothing_in_the_source_runs_code_from_data() -> None:
    loads = [f"{module}.{name}" for module in ("pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
             for name in ("load", "loads", "Unpickler", "open")]  # fmt: skip
    yaml = [f"yaml.{name}" for name in ("load", "full_load", "unsafe_load", "load_all", "unsafe_load_all")]
    torches = ["torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.hub.set_dir", "torch.jit.load",
               "torch.package.PackageImporter", "torch.serialization.load",
               "torch.serialization.add_safe_globals", "torchvision.models.utils.load_state_dict_from_url"]  # fmt: skip
    system = ["eval", "exec", "compile", "__import__", "os.system", "os.popen", "numpy.fromfile"]
    assert places(*loads, *yaml, *torches, *system) == []


def test_a_program_is_opened_in_one_place_after_the_user_said_that_he_trusts_it() -> None:
    assert places("torch.export.load") == [str(Path("models/program.py")) + ": torch.export.load"]
    source = (SOURCE / "models" / "program.py").read_text(encoding="utf-8")
    assert source.index("if not given.trust_code:") < source.index("torch.export.load(")


def test_nothing_in_the_source_trusts_pickles_remote_code_or_a_shell() -> None:
    assert keyword_places("allow_pickle", True) == []
    assert keyword_places("trust_remote_code") == []
    assert keyword_places("shell", True) == []
    assert keyword_places("weights_only", False, None) == []
    assert keyword_places("pretrained", True) == [], "a library would fetch and open weights by itself"


def test_one_function_opens_pictures() -> None:
    assert set(places("PIL.Image.open", "PIL.ImageFile.Parser", "cv2.imread", "torchvision.io.read_image")) == {
        f"{Path('data/images.py')}: PIL.Image.open"
    }


def test_the_walk_over_the_source_sees_through_aliases() -> None:
    sly = ast.parse(
        "from torch import load as fetch\nimport torch as t\nfetch(1)\nt.load(2)\nimport torch.hub\ntorch.hub.load(3)"
    )
    used = [name for name, _ in names_used(sly)]
    assert used.count("torch.load") == 2
    assert "torch.hub.load" in used
