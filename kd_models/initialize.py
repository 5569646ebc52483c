"""A student that starts from its teacher: its layers refitted one after the other, in closed form.

A student of fewer channels (and blocks) than its teacher takes, for each set of channels S of the teacher, an encoder E:
a choice of them where an activation follows, or, in a residual stream, the directions of most weight. Then each layer
is fitted, in the order of the forward pass, by least squares from the student's own features so far, x, to what its
map should be:

    min over W, b of  sum |W * x + b - t|^2 + ridge |W|^2,     t = E y,   or  (E y - x_skip) / scale

with y the teacher's map before the activation, and, where the layer's map is added to a stream, y the teacher's stream
after that: each block then mends what the blocks before it have missed. Activations are copied, and the last layer is
fitted to the teacher's last map. Slicing, by contrast, copies the teacher's weights for the channels chosen, and half
of each sum is missing.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from kd_models.channels import ADDING, SCALING, ChannelSet, Traced, Walk, channel_pairs, correspondence

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3)


@dataclass
class Fit:
    """What was fitted.

    Attributes:
        r2: Layer -> the part of its target's variance that it explains, on the images it was fitted to.
    """
    r2: dict[str, float] = field(default_factory=dict)


def initialize_from_teacher(net: nn.Module, teacher: nn.Module, images: Tensor, how: str = 'fit',
                            owner: str = 'network_g') -> Fit:
    """Sets the weights of a student from its teacher's, without training.

    Args:
        net: The student, of the teacher's class, with no more channels and blocks in any place.
        teacher: The teacher.
        images: What both take, (N, C, H, W): a few dozen crops of the training images.
        how: `fit`, or `slice`, which copies the weights of the chosen channels.
        owner: What the student is called in messages.

    Returns:
        Fit: How well each layer was fitted; nothing for slices.

    Raises:
        OptionError: The layers of the two do not correspond.
    """
    student, traced = Traced(net, owner), Traced(teacher, 'the teacher')
    pairs = correspondence(student, traced)
    encoders = choose_channels(student, traced, pairs, images, mix=how == 'fit')
    copy_activations(student, traced, pairs, encoders)
    result = Fit()
    if how == 'slice':
        slice_layers(student, traced, pairs, encoders)
    else:
        result = fit_layers(student, traced, pairs, encoders, images)
    net.load_state_dict(student.root.state_dict())
    return result


# ----------------------------------------------------------------------------------------------------- choosing channels

Encoders = dict[ChannelSet, Tensor]


@dataclass
class Moments:
    """Of the channels of one set, over all layers that read them: how they vary, and what the layers make of it.

    Attributes:
        covariance: Of the channels, (C, C).
        metric: (C, C), d^T metric d is the effect of an error d in the channels on the layers that read them.
    """
    covariance: Tensor
    metric: Tensor


def choose_channels(student: Traced, teacher: Traced, pairs: dict[fx.Node, fx.Node], images: Tensor,
                    mix: bool) -> Encoders:
    """For each channel set of the student what it takes of the teacher's, (C_s, C_t).

    Args:
        student: The student.
        teacher: The teacher.
        pairs: Their operations.
        images: What they take.
        mix: Whether channels may be mixed where no activation forbids it; else they are chosen everywhere.
    """
    moments = measure_channels(teacher, images)
    encoders: Encoders = {}
    for mine, its in channel_pairs(student, teacher, pairs).items():
        _encode(mine, its, moments, mix, encoders)
    return encoders


def _encode(mine: ChannelSet, its: ChannelSet, moments: dict[ChannelSet, Moments], mix: bool,
            encoders: Encoders) -> None:
    if mine in encoders:
        return
    if mine.shuffled and its.shuffled:
        inner, factor = mine.shuffled[0].root(), mine.shuffled[1]
        _encode(inner, its.shuffled[0].root(), moments, mix, encoders)
        encoder = encoders[inner]
        encoders[mine] = torch.kron(encoder, torch.eye(factor, dtype=encoder.dtype, device=encoder.device))
        return
    known = moments.get(its)
    if mine.width == its.width or known is None:
        encoders[mine] = torch.eye(its.width)[:mine.width]
    elif mix and mine.mixable and its.mixable:
        encoders[mine] = principal_channels(known, mine.width)
    else:
        encoders[mine] = torch.eye(its.width)[choose(known, mine.width)]
    encoders[mine] = encoders[mine].to(torch.float64)


def measure_channels(teacher: Traced, images: Tensor) -> dict[ChannelSet, Moments]:
    """The moments of each channel set that a layer reads, over the images."""
    walk = Walk(teacher, images)
    sums: dict[ChannelSet, list[Tensor]] = {}
    for node in teacher.nodes:
        if teacher.is_layer(node):
            x = walk.to(node.all_input_nodes[0])
            y = walk.to(node)
            weight = teacher.module(node).weight.double()  # type: ignore[union-attr]
            weight = weight.permute(0, 2, 3, 1).flatten(0, 2)  # (C_out k k, C_in)
            rows = x.movedim(1, -1).flatten(0, -2).double()  # (N H W, C_in)
            rows = rows - rows.mean(0)
            effect = weight / y.double().var((0, 2, 3)).sum().clamp_min(1e-12).sqrt()
            first = 0
            for channels in teacher.sets(node.all_input_nodes[0]):
                mine = slice(first, first + channels.width)
                first += channels.width
                parts = (rows[:, mine].T @ rows[:, mine], effect[:, mine].T @ effect[:, mine],
                         torch.tensor(float(len(rows))))
                old = sums.get(channels)
                sums[channels] = [a + b for a, b in zip(old, parts, strict=True)] if old else list(parts)
        else:
            walk.to(node)
    return {channels: Moments(covariance / count, metric) for channels, (covariance, metric, count) in sums.items()}


def choose(moments: Moments, count: int) -> list[int]:
    """The channels from which the others, as the layers see them, follow best; one after the other.

    Each step takes the channel whose linear prediction of all leaves the smallest error in the metric.
    """
    rest, chosen = moments.covariance.clone(), []
    floor = 1e-9 * rest.diagonal().max()
    for _ in range(count):
        score = ((rest @ moments.metric) * rest.T).sum(1) / rest.diagonal().clamp_min(floor)
        score[chosen] = -1
        best = int(score.argmax())
        chosen.append(best)
        rest -= rest[:, best:best + 1] @ rest[best:best + 1] / rest[best, best].clamp_min(floor)
    return sorted(chosen)


def principal_channels(moments: Moments, count: int) -> Tensor:
    """Orthonormal directions (count, C) from which the channels, as the layers see them, follow best."""
    values, vectors = torch.linalg.eigh(moments.metric)
    half = vectors * values.clamp_min(0).sqrt() @ vectors.T
    directions = torch.linalg.eigh(half @ moments.covariance @ half)[1][:, -count:]
    return torch.linalg.qr(half @ directions)[0].T


# ---------------------------------------------------------------------------------------------------- setting the layers


def _encoder(sets: list[ChannelSet], encoders: Encoders) -> Tensor:
    return torch.block_diag(*(encoders[channels] for channels in sets))


def copy_activations(student: Traced, teacher: Traced, pairs: dict[fx.Node, fx.Node], encoders: Encoders) -> None:
    """Gives activations that learn, such as PReLU, the teacher's values of their channels."""
    for node, match in pairs.items():
        mine, its = student.module(node), teacher.module(match)
        if isinstance(mine, nn.PReLU) and isinstance(its, nn.PReLU):
            encoder = _encoder(student.sets(node), encoders).to(its.weight)
            with torch.no_grad():
                mine.weight.copy_(encoder @ its.weight if its.weight.numel() > 1 else its.weight)


def slice_layers(student: Traced, teacher: Traced, pairs: dict[fx.Node, fx.Node], encoders: Encoders) -> None:
    """Gives each layer the teacher's weights between the chosen channels."""
    for node in student.layers:
        into = _encoder(student.sets(node.all_input_nodes[0]), encoders)
        out = _encoder(student.sets(node), encoders)
        mine, its = student.module(node), teacher.module(pairs[node])
        weight = torch.einsum('oO,OIhw,iI->oihw', out, its.weight.double(), into)
        set_layer(mine, weight, None if its.bias is None else out @ its.bias.double())


def fit_layers(student: Traced, teacher: Traced, pairs: dict[fx.Node, fx.Node], encoders: Encoders,
               images: Tensor) -> Fit:
    """Fits the layers in the order of the forward pass; see the module."""
    chains = {node: list(_chain(student, node)) for node in student.layers}
    asked = [pairs[chain[-1]] for chain in chains.values()]
    of_student, of_teacher = Walk(student, images), Walk(teacher, images, asked.__contains__)
    result = Fit()
    for node in student.nodes:
        if node in chains:
            end = chains[node][-1]
            target = of_teacher.to(pairs[end])
            encoder = _encoder(student.sets(end), encoders).to(target)
            target = torch.einsum('oO,nOhw->nohw', encoder, target)
            for step in reversed(chains[node][1:]):
                target = _before(step, node, chains[node], target, of_student)
            x = of_student.values[node.all_input_nodes[0]]
            module = student.module(node)
            result.r2[str(node.target)] = fit_layer(module, x, target)
            asked.remove(pairs[end])
            if pairs[end] not in asked:
                of_teacher.forget(pairs[end])
        of_student.run(node)
    return result


def _chain(traced: Traced, node: fx.Node) -> Iterator[fx.Node]:
    """A layer and the sums and factors that its map goes through before anybody reads it."""
    position = {other: i for i, other in enumerate(traced.nodes)}
    yield node
    start = node
    while len(node.users) == 1:
        user = next(iter(node.users))
        others = [other for other in user.all_input_nodes if other is not node]
        scales = user.target in SCALING and not others and user.args[0] is node
        adds = user.target in ADDING and all(position[other] < position[start] for other in others)
        if not (scales or adds):
            return
        node = user
        yield node


def _before(step: fx.Node, layer: fx.Node, chain: list[fx.Node], target: Tensor, walk: Walk) -> Tensor:
    """What enters a sum or a product, from what is to come out of it."""
    name, (one, other) = str(getattr(step.target, '__name__', '')), step.args[:2]
    if 'mul' in name or 'div' in name:
        factor = float(other)  # type: ignore[arg-type]
        return target / factor if 'mul' in name else target * factor
    known = other if one in chain else one
    value = walk.values[known] if isinstance(known, fx.Node) else known
    if isinstance(value, Tensor) and len(value) > 1:
        count = min(len(value), len(target))
        value, target = value[:count], target[:count]
    if 'sub' not in name:
        return target - value
    return target + value if one in chain else value - target


def fit_layer(layer: nn.Conv2d, x: Tensor, target: Tensor, batch: int = 4) -> float:
    """Sets a convolution to what brings `x` (N, C, H, W) closest to `target` (N, C', H', W'); returns R2."""
    count = min(len(x), len(target))
    parts = [_products(layer, x[i:i + batch], target[i:i + batch]) for i in range(0, count, batch)]
    held_out = parts[::8] if len(parts) >= 8 else []
    fitted = [part for part in parts if not any(part is other for other in held_out)]
    ridge = RIDGES[2]
    if held_out:
        ridge = min(RIDGES, key=lambda r: _error(_solve(_sum(fitted), r), _sum(held_out)))
    total = _sum(parts)
    solution = _solve(total, ridge)
    has_bias = layer.bias is not None
    weight = solution[:-1] if has_bias else solution
    set_layer(layer, weight.T.reshape(layer.weight.shape), solution[-1] if has_bias else None)
    return 1 - float(_error(solution, total) / total.variation)


@dataclass
class Products:
    """Normal equations: X^T X, X^T Y, the sums of Y and of its squares, and the number of rows."""
    xx: Tensor
    xy: Tensor
    y: Tensor
    yy: Tensor
    rows: int

    @property
    def variation(self) -> Tensor:
        return (self.yy - self.y**2 / self.rows).sum()


def _products(layer: nn.Conv2d, x: Tensor, y: Tensor) -> Products:
    columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    columns = columns.transpose(1, 2).flatten(0, 1).double()  # (N H W, C k k)
    if layer.bias is not None:
        columns = torch.cat([columns, columns.new_ones(len(columns), 1)], 1)
    rows = y.movedim(1, -1).flatten(0, -2).double()
    return Products(columns.T @ columns, columns.T @ rows, rows.sum(0), (rows**2).sum(0), len(rows))


def _sum(parts: list[Products]) -> Products:
    return Products(sum(p.xx for p in parts), sum(p.xy for p in parts), sum(p.y for p in parts),
                    sum(p.yy for p in parts), sum(p.rows for p in parts))


def _solve(p: Products, ridge: float) -> Tensor:
    damped = p.xx + ridge * p.xx.diagonal().mean() * torch.eye(len(p.xx)).to(p.xx)
    return torch.linalg.solve(damped, p.xy)


def _error(solution: Tensor, p: Products) -> Tensor:
    return (p.yy - 2 * (solution * p.xy).sum(0) + (solution * (p.xx @ solution)).sum(0)).sum()


def set_layer(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(bias)
