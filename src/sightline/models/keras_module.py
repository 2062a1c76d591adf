"""A Keras model as a torch module: each of its layers is a module of ours, and Keras' own objects are never changed.

Keras runs a model over lists and nodes that torch doesn't know, so that no hook on a copy of its modules would fire. Here
`Step`s stand for the layers, which `twin` copies as any other module, and a forward runs on shallow copies of Keras' layers
that lead through the steps. Weights are the model's own, and what a layer would write (moving statistics, seeds, losses)
stays in a `keras.StatelessScope`, which holds for one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from types import MethodType
from typing import Any, cast

from torch import Tensor, nn

from sightline.errors import ModelError

# What the choice of a layer has to know: which of Keras' layers compute what torch's do.
_STANDS_FOR: dict[str, type[nn.Module]] = {
    **dict.fromkeys(("Conv2D", "DepthwiseConv2D", "SeparableConv2D"), nn.Conv2d),
    "Conv2DTranspose": nn.ConvTranspose2d,
    "MaxPooling2D": nn.MaxPool2d,
    "AveragePooling2D": nn.AvgPool2d,
    "UpSampling2D": nn.Upsample,
    # In evaluation they hand on what they were given.
    **dict.fromkeys(("Identity", "Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout"), nn.Identity),
    **dict.fromkeys(("ActivityRegularization", "RandomFlip", "RandomRotation", "RandomZoom"), nn.Identity),
    **dict.fromkeys(("RandomTranslation", "RandomContrast", "RandomBrightness"), nn.Identity),
}
_ENDS = ("softmax", "sigmoid")


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """What a step stands for. Without a dictionary of attributes, so that `twin` shares it as it is.

    Attributes:
        layer: Keras' own.
        variables: its own variables, not those of the layers in it, by the name of the step's parameter or buffer.
        modules: the torch modules in it, by the name under which the step has them, too.
        permutes: whether it has its channels last.
    """

    layer: Any
    variables: Mapping[str, Any]
    modules: Mapping[str, nn.Module]
    permutes: bool


class Step(nn.Module):
    """One Keras layer or operation, or a model of them. Pictures go in and come out as torch has them, (B, C, h, w)."""

    stands_for: type[nn.Module] = nn.Module

    def __init__(self, layer: Any, permutes: bool) -> None:
        super().__init__()
        self.training = False
        trained, kept = (getattr(layer, f"_{kind}_variables", ()) for kind in ("trainable", "non_trainable"))
        modules = {
            name: one for name, one in getattr(layer, "_modules", {}).items()
            if isinstance(one, nn.Module) and not isinstance(one, nn.ParameterDict) and not is_layer(one)
        }  # fmt: skip
        variables: dict[str, Any] = {}
        if not modules:  # else they are those of the modules
            for variable in (*trained, *kept):
                variables[_free(variable.name, variables)] = variable
        for at, (name, variable) in enumerate(variables.items()):
            if at < len(trained):
                self._parameters[name] = variable.value
            else:  # moving statistics and the like, which a layer may write into
                self._buffers[name] = variable.value
        self._modules.update(modules)
        self._held = _Held(layer, variables, modules, permutes)

    def forward(self, *args: Any, keras: Any = None, **options: Any) -> Any:
        if keras is not None:
            return self._called(keras, args, options)
        with _without_trace(self):  # alone, outside of its model
            return self._called(_copies(self, {})[id(self._held.layer)], args, options)

    def _called(self, keras: Any, args: Any, options: Any) -> Any:
        args, options = (self.permuted(one, _LAST) for one in (args, options))
        # Past Keras' own __call__, which has led here; an operation has no forward.
        run = getattr(type(keras), "forward", None)
        output = run(keras, *args, **options) if run is not None else keras(*args, **options)
        return self.permuted(output, _FIRST)

    def permuted(self, value: Any, order: Sequence[int]) -> Any:
        """The same with every picture in it laid out otherwise; a view."""
        if not self._held.permutes:
            return value
        if isinstance(value, Tensor):
            return value.permute(*order) if value.dim() == 4 else value
        if isinstance(value, dict):
            return {key: self.permuted(one, order) for key, one in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self.permuted(one, order) for one in value)
        return value


class Whole(Step):
    """A whole Keras model: takes pictures (B, C, H, W), gives logits, also where the model ends in a softmax or sigmoid."""

    channels_first = False

    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        logits: dict[int, tuple[Tensor, Tensor]] = {}
        with _without_trace(self):
            model = _copies(self, logits)[id(self._held.layer)]
            output = model(x if self.channels_first else x.permute(*_LAST), training=False)
        return self.permuted(_exchanged(output, logits), _FIRST)


_LAST, _FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def is_keras(value: Any) -> bool:
    """Whether an object is of Keras' making; imports nothing."""
    return any(kind.__module__.partition(".")[0] in ("keras", "tf_keras") for kind in type(value).__mro__)


def is_layer(value: Any) -> bool:
    """Whether it is a Keras layer or model."""
    return is_keras(value) and hasattr(value, "_layers") and hasattr(value, "call")


def torch_view(model: Any) -> Whole:
    """The torch module that stands for a Keras model on the torch backend.

    Raises:
        ModelError: it isn't built yet, has several inputs, is quantised, or its layers disagree about where channels stand.
    """
    layers = model._flatten_layers()
    # What has no weights after a call isn't used.
    unbuilt = next((one for one in layers if not one.built and (one is model or not model._called)), None)
    if unbuilt is not None:
        raise ModelError(
            f"layer {unbuilt.name!r} of the Keras model {model.name!r} has no weights yet; call the model once on a picture, "
            "model(numpy.zeros((1, height, width, 3))), and give it then"
        )
    quantised = next((one for one in layers if getattr(one, "quantization_mode", None) is not None), None)
    if quantised is not None:
        raise ModelError(
            f"layer {quantised.name!r} of the Keras model {model.name!r} is quantised ({quantised.quantization_mode}) and has "
            "no gradients; use the float model it was made from"
        )
    inputs = inputs_of(model)
    if len(inputs) > 1:
        raise ModelError(
            f"the Keras model {model.name!r} takes {len(inputs)} inputs; give one of a single picture: keras.Model(picture, output)"
        )
    whole = cast(Whole, _step(model, not _works_channels_first(model), {}, Whole))
    whole.channels_first = takes_channels_first(model)
    return whole


def inputs_of(model: Any) -> list[Any]:
    """The symbolic inputs; none where nothing tells them, as in a subclassed model."""
    return list(getattr(model, "inputs", None) or [])


def input_shape(model: Any) -> tuple[int | None, ...]:
    """(B, height, width, channels) or (B, channels, height, width) as the model says it; () where it says nothing."""
    told = [tuple(one.shape) for one in inputs_of(model)] or list((model._build_shapes_dict or {}).values())
    return tuple(told[0]) if told and isinstance(told[0], tuple | list) else ()


def takes_channels_first(model: Any) -> bool:
    """Whether a Keras model takes (B, C, H, W) itself: where its input's shape doesn't tell, by its layers."""
    shape = input_shape(model)
    first, last = (len(shape) == 4 and shape[axis] in (1, 3, 4) for axis in (1, 3))
    return first if first != last else _works_channels_first(model)


def _works_channels_first(model: Any) -> bool:
    """Whether its layers have their channels first."""
    import keras

    told = {
        one.data_format: one.name
        for one in model._flatten_layers()
        if isinstance(getattr(one, "data_format", None), str)
    }
    if len(told) > 1:
        raise ModelError(
            f"the Keras model {model.name!r} has layers of both kinds: {told['channels_first']!r} has its channels first, "
            f"{told['channels_last']!r} last; build it with one image_data_format"
        )
    return bool(next(iter(told), keras.config.image_data_format()) == "channels_first")


def ending(model: Any) -> tuple[str, str] | None:
    """The layer whose activation ends a model of a graph, and "softmax" or "sigmoid"; None where there is none to take off."""
    last = model
    while outputs := (getattr(last, "outputs", None) if hasattr(last, "_layers") else None):
        if len(outputs) != 1:
            return None
        last = outputs[0]._keras_history[0]
    found = _end_of(last)
    return (last.name, found) if found and last is not model else None


def _end_of(layer: Any) -> str | None:
    activation = getattr(layer, "activation", None)
    what = activation if callable(activation) else type(layer)
    name = getattr(what, "__name__", "").lower()
    own = getattr(what, "__module__", "").startswith("keras.")  # another's may do more than its name says
    return name if own and name in _ENDS and getattr(layer, "axis", -1) == -1 else None


def _step(layer: Any, permutes: bool, made: dict[int, Step], kind: type[Step] = Step) -> Step:
    """A step for a layer, with one for each layer in it; a layer that is used twice has one."""
    if id(layer) in made:
        return made[id(layer)]
    step = made[id(layer)] = _kind(kind, type(layer).__name__)(layer, permutes)  # type: ignore[arg-type]
    for part in _parts(layer):
        child = _step(part, permutes, made)
        step._modules[_free(part.name.replace(".", "_"), step._modules)] = child
    return step


def _parts(layer: Any) -> list[Any]:
    """The layers and operations in it, in order."""
    graph = list(getattr(layer, "operations", None) or [])
    seen = {id(one) for one in graph}
    rest = [one for one in getattr(layer, "_layers", ()) if id(one) not in seen]
    return [one for one in (*graph, *rest) if type(one).__name__ != "InputLayer"]


@cache
def _kind(base: type[Step], name: str) -> type[Step]:
    """A step's own class, which goes by the name of Keras' class."""
    return type(name, (base,), {"stands_for": _STANDS_FOR.get(name, nn.Module), "__module__": __name__})


def _free(name: str, taken: Mapping[str, Any]) -> str:
    number, free = 1, name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


@contextmanager
def _without_trace(step: Step) -> Iterator[None]:
    """Layers read the weights of the steps, and write nothing; errors come as they are. All of it for this thread alone."""
    import keras

    filtering = keras.config.is_traceback_filtering_enabled()
    with keras.StatelessScope(initialize_variables=False) as scope:
        for one in step.modules():
            if isinstance(one, Step):
                for name, variable in one._held.variables.items():
                    scope.state_mapping[id(variable)] = one._parameters.get(name, one._buffers.get(name))
        keras.config.disable_traceback_filtering()
        try:
            yield
        finally:
            if filtering:
                keras.config.enable_traceback_filtering()


def _copies(top: Step, logits: dict[int, tuple[Tensor, Tensor]]) -> dict[int, Any]:
    """For each of Keras' layers a shallow copy, by the identity of the layer, that runs through its step and on the other copies.

    What comes into `logits` as it runs: for what a softmax or sigmoid gave, by its identity, what it was given.
    """
    made: dict[int, Any] = {}
    steps: dict[int, Step] = {}

    def led(value: Any) -> Any:
        if id(value) in made:
            return made[id(value)]
        if isinstance(value, nn.Module):
            return copied(value) if is_layer(value) else value
        if isinstance(value, MethodType):
            owner = led(value.__self__)
            return value if owner is value.__self__ else MethodType(value.__func__, owner)
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            parts = [led(one) for one in value]
            same = all(one is other for one, other in zip(parts, value, strict=True))
            return value if same else tuple(parts) if isinstance(value, tuple) else parts
        if isinstance(value, dict):
            found = {key: led(one) for key, one in value.items()}
            return value if all(found[key] is one for key, one in value.items()) else found
        return value

    def copied(layer: Any) -> Any:
        copy = made[id(layer)] = object.__new__(type(layer))
        inside = copy.__dict__
        inside.update(layer.__dict__)
        inside.update(_losses=[], _loss_ids=set(), _losses_override=[])  # emptied at each call
        inside.pop("build", None)  # which would build the original
        inside["_modules"] = {name: led(one) for name, one in layer._modules.items() if name != "_torch_params"}
        if getattr(layer, "_layers", ()):
            inside.update({name: led(value) for name, value in inside.items() if name not in _WITHOUT_LAYERS})
        if hasattr(layer, "_run_through_graph"):
            inside["_run_through_graph"] = partial(_through_graph, copy, made)
        if id(layer) in steps and steps[id(layer)] is not top:
            inside["forward"] = partial(_through, steps[id(layer)], copy, logits)
        return copy

    for step in top.modules():
        if isinstance(step, Step):
            steps[id(step._held.layer)] = step
            made.update({id(one): step._modules[name] for name, one in step._held.modules.items()})
    for step in steps.values():
        layer = step._held.layer
        if not is_layer(layer):
            made[id(layer)] = layer if step is top else partial(_through, step, layer, logits)
    for step in steps.values():
        led(step._held.layer)
    return made


# The record of how layers were called, which is long and leads to no layer that is run from there.
_WITHOUT_LAYERS = frozenset(
    {"_tracker", "_inbound_nodes", "_outbound_nodes", "_nodes", "_nodes_by_depth", "_operations_by_depth"}
    | {"_losses", "_loss_ids", "_losses_override", "_parameters", "_buffers", "_modules"}
)


def _through_graph(copy: Any, made: Mapping[int, Any], inputs: Any, operation_fn: Any = None, **options: Any) -> Any:
    """Keras' own way through the nodes of a graph, with copies in the place of its operations."""

    def copy_of(operation: Any) -> Any:
        found = made.get(id(operation), operation)
        return found if operation_fn is None else operation_fn(found)

    return type(copy)._run_through_graph(copy, inputs, operation_fn=copy_of, **options)


def _through(step: Step, keras: Any, logits: dict[int, tuple[Tensor, Tensor]], *args: Any, **options: Any) -> Any:
    """A layer's forward: through its step, whose hooks see it, and back to Keras' layout."""
    given: list[Tensor] = []
    end = _end_of(step._held.layer)
    if end is not None:
        activation = getattr(keras, "activation", None)
        if callable(activation):
            keras.__dict__["activation"] = partial(_noted, activation, given)
        else:
            given.extend(one for one in args[:1] if isinstance(one, Tensor))
    output = step.permuted(step(*step.permuted(args, _FIRST), keras=keras, **step.permuted(options, _FIRST)), _LAST)
    if len(given) == 1 and isinstance(output, Tensor):
        logits[id(output)] = (output, given[0])  # with the output, whose identity must not be used again meanwhile
    return output


def _noted(activation: Callable[[Any], Any], given: list[Tensor], x: Tensor) -> Any:
    given.append(x)
    return activation(x)


def _exchanged(output: Any, logits: Mapping[int, tuple[Tensor, Tensor]]) -> Any:
    """A model's output with the logits in the place of their softmax or sigmoid."""
    if isinstance(output, dict):
        return {key: _exchanged(one, logits) for key, one in output.items()}
    if isinstance(output, list | tuple):
        return [_exchanged(one, logits) for one in output]
    return logits[id(output)][1] if id(output) in logits else output
