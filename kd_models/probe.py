"""What a network is without running it: parameters, multiply-adds, output and feature shapes."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kd_models.taps import Taps
from kd_utils.options import OptionError

Call = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Probe:
    """The measurements of one network.

    Attributes:
        params: Number of parameters.
        macs: Multiply-adds of convolutions, linear layers and attention for one input of `size`.
        size: The input's shape, (N, C, H, W).
        shape: The output's shape.
        taps: Shape of each named feature map.
        overwritten: Names of the maps that the network overwrites in place.
        megabytes: Size of the weights on disk in fp32, in MiB.
    """
    params: int
    macs: int
    size: tuple[int, ...]
    shape: tuple[int, ...]
    taps: dict[str, tuple[int, ...]] = field(default_factory=dict)
    overwritten: frozenset[str] = frozenset()

    @property
    def megabytes(self) -> float:
        return self.params * 4 / 2**20


def probe(net: nn.Module, size: tuple[int, ...] = (1, 3, 64, 64), layers: Iterable[str] = (),
          call: Call | None = None, owner: str = 'the network', training: bool = False) -> Probe:
    """Measures a copy of `net` on the meta device, where nothing is computed; the network itself where that fails.

    Args:
        net: Any network; it is left as it is.
        size: Input shape (N, C, H, W).
        layers: Module paths of feature maps.
        call: How the network is called, such as an `Adapter`; plainly by default.
        owner: What the network is called in error messages.
        training: Whether it is in train mode.

    Raises:
        OptionError: A layer does not exist, or the network does not take such an input.
    """
    try:
        return _measure(deepcopy(net).to('meta').train(training), size, layers, call, owner)
    except OptionError:
        raise
    except Exception:  # noqa: BLE001  plain tensors outside the module's buffers, NumPy inside forward, weight_norm ...
        pass
    modes = {module: module.training for module in net.modules()}
    try:
        return _measure(net.eval(), size, layers, call, owner)  # in eval, where nothing of it changes
    except OptionError:
        raise
    except Exception as error:  # noqa: BLE001
        raise OptionError(f'{owner} ({type(net).__name__}) does not take an input of shape {size}: '
                          f'{str(error).splitlines()[0] if str(error) else type(error).__name__}. '
                          'Change its options, or `gt_size` and `scale`, so that it does.') from None
    finally:
        for module, mode in modes.items():
            module.training = mode


def _measure(net: nn.Module, size: tuple[int, ...], layers: Iterable[str], call: Call | None, owner: str) -> Probe:
    device = next((p.device for p in net.parameters()), torch.device('cpu'))
    images = torch.zeros(size, device=device)
    taps = Taps(net, layers, owner)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output, maps = taps.run(lambda: call(net, images) if call else net(images))
    return Probe(params=sum(p.numel() for p in net.parameters()), macs=counter.get_total_flops() // 2, size=tuple(size),
                 shape=tuple(output.shape), taps={path: tuple(x.shape) for path, x in maps.items()},
                 overwritten=frozenset(taps.found_overwritten))
