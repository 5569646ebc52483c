"""A network as a list of operations with the channel sets that run through them.

Channels that are added to each other, or that an activation maps one to one, are one set: a residual stream has one
set from its first layer to its last. A student's set corresponds to one of its teacher's, and has fewer channels.
"""
from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from basicsr.archs.arch_util import pixel_unshuffle
from torch import Tensor, fx, nn
from torch.nn import functional as F

from kd_utils.options import OptionError

# Per channel, not linear: these channels cannot be mixed.
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh)
ACTIVATING = (F.relu, F.leaky_relu, F.gelu, F.silu, torch.relu, torch.sigmoid, torch.tanh)
# Per channel and linear.
PASSING = (nn.Identity, nn.Dropout, nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.Upsample)
RESIZING = (F.interpolate, F.avg_pool2d, F.adaptive_avg_pool2d)
ADDING = (operator.add, operator.iadd, torch.add, operator.sub, operator.isub, torch.sub)
SCALING = (operator.mul, operator.imul, torch.mul, operator.truediv, operator.itruediv)


@dataclass(eq=False)
class ChannelSet:
    """Channels that go together.

    Attributes:
        width: How many they are.
        mixable: Whether another basis of them gives a network of the same form: no activation maps them one to one.
        shuffled: The set that they become in a pixel shuffle, and how many of these make one channel there.
        same: The set that this one has been found to be; None for itself.
    """
    width: int
    mixable: bool = True
    shuffled: tuple[ChannelSet, int] | None = None
    same: ChannelSet | None = None

    def root(self) -> ChannelSet:
        """The set that stands for all that were found to be the same."""
        return self if self.same is None else self.same.root()


Layout = tuple[ChannelSet, ...]  # of a feature map: the sets that are concatenated in it


class Traced:
    """The operations of a network in the order in which they run, and the channel sets of what each returns.

    Args:
        net: A network that takes one image; it is copied, and the copy is in eval.
        owner: What it is called in messages.

    Attributes:
        root: The copy.
        nodes: The operations.
        layouts: Operation -> the channel sets of its result; none for a constant.
        layers: The convolutions.

    Raises:
        OptionError: It has an operation whose channels are not known to correspond to anything.
    """

    def __init__(self, net: nn.Module, owner: str) -> None:
        self.root, self.owner, self.kind = deepcopy(net).eval(), owner, type(net).__name__
        tracer = fx.Tracer(autowrap_functions=(pixel_unshuffle, ))
        try:  # on the copy: EDSR replaces its mean while it runs
            graph = tracer.trace(self.root)
        except Exception as error:  # noqa: BLE001  whatever its forward does with something that is no tensor
            raise self.unfit(f'its forward pass depends on more than the order of its layers '
                             f'({str(error).splitlines()[0]})') from None
        self.scopes = {name: scope[0] for name, scope in tracer.node_name_to_scope.items()}
        self.nodes = [node for node in graph.nodes if node.op != 'output']
        self.result = next(node for node in graph.nodes if node.op == 'output').args[0]
        if not isinstance(self.result, fx.Node):
            raise self.unfit('it returns more than an image')
        self._modules = dict(self.root.named_modules())
        self._overwrite_nothing()
        self.layouts: dict[fx.Node, Layout] = {}
        for node in self.nodes:
            self.layouts[node] = self._layout(node)
        self.layers = [node for node in self.nodes if self.is_layer(node)]
        if len({node.target for node in self.layers}) < len(self.layers):
            raise self.unfit('a layer is called more than once')

    def unfit(self, reason: str) -> OptionError:
        """The refusal, with its reason."""
        return OptionError(f'{self.owner} ({self.kind}) cannot start from a teacher: {reason}. '
                           'Take `init` out, and train it from its usual start.')

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that an operation calls; None for a function."""
        return self._modules[str(node.target)] if node.op == 'call_module' else None

    def is_layer(self, node: fx.Node) -> bool:
        """Whether an operation has weights to be fitted."""
        return isinstance(self.module(node), nn.Conv2d)

    def width(self, node: fx.Node) -> int:
        """How many channels the result of an operation has."""
        return sum(channels.width for channels in self.layouts[node])

    def sets(self, node: fx.Node) -> list[ChannelSet]:
        """The channel sets of an operation's result."""
        return [channels.root() for channels in self.layouts[node]]

    def key(self, node: fx.Node) -> tuple[str, str, int]:
        """What distinguishes an operation: where it stands, what it is, and which of those there it is."""
        scope, name = self.scopes.get(node.name, ''), str(getattr(node.target, '__name__', node.target))
        name = name if node.op in ('call_function', 'call_method') else node.op
        before = self.nodes[:self.nodes.index(node)]
        return scope, name, sum((self.scopes.get(other.name, ''), other.op, other.target)
                                == (scope, node.op, node.target) for other in before)

    def _overwrite_nothing(self) -> None:
        for module in self._modules.values():
            if getattr(module, 'inplace', False):
                module.inplace = False  # type: ignore[assignment]
        for node in self.nodes:
            node.kwargs = {key: False if key == 'inplace' else value for key, value in node.kwargs.items()}

    # ---- channel sets

    def _layout(self, node: fx.Node) -> Layout:
        inputs = [self.layouts[other] for other in node.all_input_nodes if self.layouts[other]]
        if node.op == 'placeholder':
            return (ChannelSet(self._input_width(), mixable=False), )
        if node.op == 'get_attr' or node.op == 'call_method' and node.target == 'type_as':
            return ()
        if node.op == 'call_module':
            return self._layout_of_module(node, inputs[0])
        if node.target in ADDING and inputs:
            return self._joined(node, inputs)
        if node.target in SCALING and inputs:
            layout = self._joined(node, inputs)
            if len(inputs) > 1:
                _unmixable(layout)
            return layout
        if node.target in ACTIVATING:
            _unmixable(inputs[0])
            return inputs[0]
        if node.target in RESIZING:
            return inputs[0]
        if node.target is torch.cat and (node.kwargs.get('dim') == 1 or node.args[1:] == (1, )):
            return tuple(channels for part in node.args[0] for channels in self.layouts[part])  # type: ignore
        if node.target is pixel_unshuffle:
            scale = node.kwargs.get('scale', node.args[-1])
            return (ChannelSet(sum(c.width for c in inputs[0]) * scale**2, mixable=False), )  # type: ignore
        raise self.unfit(f'no rule says which channels `{node.target}` returns')

    def _input_width(self) -> int:
        first = next(module for module in self._modules.values() if isinstance(module, nn.Conv2d))
        shrinks = any(node.target is pixel_unshuffle for node in self.nodes)
        scale = getattr(self.root, 'scale', 0)
        return first.in_channels // ((4 // scale)**2 if shrinks else 1)

    def _layout_of_module(self, node: fx.Node, layout: Layout) -> Layout:
        module = self.module(node)
        if isinstance(module, nn.Conv2d):
            if module.groups != 1 or module.padding_mode != 'zeros' or isinstance(module.padding, str):
                raise self.unfit(f'`{node.target}` is a convolution in groups, or one that pads otherwise than by '
                                 'zeros of a given width')
            return (ChannelSet(module.out_channels), )
        if isinstance(module, ACTIVATIONS):
            _unmixable(layout)
            return layout
        if isinstance(module, nn.PixelShuffle):
            return self._shuffled(node, layout, module.upscale_factor**2)
        if isinstance(module, PASSING):
            return layout
        raise self.unfit(f'`{node.target}` is a {type(module).__name__}, '
                         + ('which normalises over all channels, and a student has fewer'
                            if 'Norm' in type(module).__name__ else 'which has no rule for its channels'))

    def _shuffled(self, node: fx.Node, layout: Layout, factor: int) -> Layout:
        if len(layout) > 1 or layout[0].root().width % factor:
            raise self.unfit(f'`{node.target}` shuffles concatenated maps')
        channels = layout[0].root()
        if channels.shuffled is None:
            channels.shuffled = ChannelSet(channels.width // factor, channels.mixable), factor
        return (channels.shuffled[0], )

    def _joined(self, node: fx.Node, layouts: list[Layout]) -> Layout:
        for other in layouts[1:]:
            if [c.width for c in other] != [c.width for c in layouts[0]]:
                raise self.unfit(f'`{node.name}` joins maps of different channels')
            for mine, its in zip(layouts[0], other, strict=True):
                _join(mine.root(), its.root())
        return layouts[0]


def _join(one: ChannelSet, other: ChannelSet) -> None:
    if one is not other:
        other.same = one
        one.mixable &= other.mixable
        one.shuffled = one.shuffled or other.shuffled


def _unmixable(layout: Layout) -> None:
    for channels in layout:
        channels.root().mixable = False


# -------------------------------------------------------------------------------------------------------- two networks


def correspondence(student: Traced, teacher: Traced) -> dict[fx.Node, fx.Node]:
    """Each operation of the student, with the teacher's at the same place and the same relative depth.

    Raises:
        OptionError: There is none, or the student is deeper or wider somewhere.
    """
    if student.kind != teacher.kind:
        raise OptionError(f'{student.owner} is a {student.kind} and its teacher a {teacher.kind}, whose layers do not '
                          f'correspond. Write `type: {teacher.kind}`, or take `init` out.')
    by_key = {teacher.key(node): node for node in teacher.nodes}
    pairs = {}
    for node in student.nodes:
        scope, name, index = student.key(node)
        match = by_key.get((_same_place(scope, student, teacher), name, index))
        if match is None:
            raise student.unfit(f'its `{node.name}` has no counterpart in the teacher')
        if student.width(node) > teacher.width(match):
            raise OptionError(f'{student.owner} has {student.width(node)} channels in `{node.name}`, and its teacher '
                              f'{teacher.width(match)}. A student that starts from its teacher is no wider: '
                              'write fewer, or take `init` out.')
        pairs[node] = match
    for node in (student.nodes[0], student.result):
        if student.width(node) != teacher.width(pairs[node]):
            raise student.unfit(f'it has {student.width(node)} channels at its '
                                f'{"end" if node is student.result else "beginning"}, and its teacher '
                                f'{teacher.width(pairs[node])}')
    return pairs


def _same_place(path: str, student: Traced, teacher: Traced) -> str:
    """The path in the teacher: where it has more blocks, the one that ends an equal share of the depth."""
    mine: Any = student.root
    its: Any = teacher.root
    parts: list[str] = []
    for part in path.split('.') if path else ():
        if part.isdigit() and len(mine) != len(its):
            part, index = _deeper(part, mine, its, student), int(part)
            mine = mine[index]
        else:
            mine = getattr(mine, part)
        its = getattr(its, part, None)
        if its is None:
            raise student.unfit(f'the teacher has no `{".".join((*parts, part))}`')
        parts.append(part)
    return '.'.join(parts)


def _deeper(index: str, mine: Any, its: Any, student: Traced) -> str:
    """The number, among the teacher's more children, of one of the student's children.

    Children of one kind are blocks: the last of each equal share corresponds. Otherwise a unit begins with a child of
    the kind of the first, as each convolution with its activation does in SRVGGNetCompact; first and last correspond.
    """
    kind, count = type(mine[0]), [len(mine), len(its)]
    if len(mine) > len(its):
        raise student.unfit('it is deeper than its teacher')
    if all(type(child) is kind for child in (*mine, *its)):
        return str(-(-(int(index) + 1) * count[1] // count[0]) - 1)
    starts = [[i for i, child in enumerate(children) if type(child) is kind] for children in (mine, its)]
    unit = max(i for i, start in enumerate(starts[0]) if start <= int(index))
    target = round(unit * (len(starts[1]) - 1) / max(len(starts[0]) - 1, 1))
    return str(starts[1][target] + int(index) - starts[0][unit])


def channel_pairs(student: Traced, teacher: Traced,
                  pairs: dict[fx.Node, fx.Node]) -> dict[ChannelSet, ChannelSet]:
    """Each channel set of the student, with the teacher's that it corresponds to.

    Raises:
        OptionError: A set of the student corresponds to two of its teacher.
    """
    result: dict[ChannelSet, ChannelSet] = {}
    for node, match in pairs.items():
        for mine, its in zip(student.sets(node), teacher.sets(match), strict=True):
            if result.setdefault(mine, its) is not its:
                raise student.unfit(f'the channels of `{node.name}` correspond to several sets of the teacher')
    return result


# ------------------------------------------------------------------------------------------------------------ running


class Walk:
    """Runs a traced network operation by operation on all images, and forgets what nobody will read.

    Args:
        traced: The network.
        images: (N, C, H, W).
        wanted: Operations whose results are kept until `forget`.
        batch: How many images one operation takes at a time.

    Attributes:
        values: Operation -> its result, for the first n images: fewer where maps are larger than the images, so that
            no map has more than four times the pixels of all images.
    """

    def __init__(self, traced: Traced, images: Tensor, wanted: Callable[[fx.Node], bool] = lambda node: False,
                 batch: int = 8) -> None:
        self.traced, self.images, self.batch = traced, images, batch
        self.values: dict[fx.Node, Any] = {}
        self._readers = {node: len(node.users) + wanted(node) for node in traced.nodes}
        self._left: Iterator[fx.Node] = iter(traced.nodes)

    @torch.no_grad()
    def to(self, node: fx.Node) -> Tensor:
        """The result of an operation; all before it have run."""
        while node not in self.values:
            self.run(next(self._left))
        return self.values[node]

    @torch.no_grad()
    def run(self, node: fx.Node) -> None:
        """Runs one operation, whose inputs have been computed."""
        self.values[node] = self._compute(node)
        for other in node.all_input_nodes:
            self.forget(other)

    def forget(self, node: fx.Node) -> None:
        """One reader less."""
        self._readers[node] -= 1
        if not self._readers[node]:
            del self.values[node]

    def _compute(self, node: fx.Node) -> Any:
        if node.op == 'placeholder':
            return self.images
        if node.op == 'get_attr':
            return operator.attrgetter(str(node.target))(self.traced.root)
        maps = [self.values[other] for other in node.all_input_nodes if self.traced.layouts[other]]
        if node.op == 'call_method':
            return getattr(self.values[node.args[0]], str(node.target))(maps[0])  # type: ignore[index]
        count = min(map(len, maps))
        parts: list[Tensor] = []
        while sum(map(len, parts)) < count:
            begin = sum(map(len, parts))
            parts.append(self._call(node, slice(begin, min(begin + self.batch, count))))
            pixels = self.images.shape[0] * self.images[0, 0].numel() * 4
            count = min(count, max(pixels // parts[0][0, 0].numel(), 1))
        return torch.cat(parts)[:count]

    def _call(self, node: fx.Node, images: slice) -> Tensor:
        def value(other: fx.Node) -> Any:
            whole = self.values[other]
            return whole[images] if self.traced.layouts[other] else whole

        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), value)
        return (self.traced.module(node) or node.target)(*args, **kwargs)  # type: ignore[operator]
