"""Feature maps of a network by module path, taken from the same pass as its output."""
from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import Tensor, nn

from kd_utils.options import OptionError, nearest


class Taps:
    """Reads what the named modules return during one forward pass.

    A tap is a module's own output, even where the next operation overwrites it in place (RRDBNet, SRVGGNetCompact and
    the U-Net discriminator all do): such maps are cloned. Hooks live only during the pass, so that copies of the
    network carry none.

    Args:
        net: The network.
        paths: Module paths as in `net.named_modules()`, such as `body.5` or `conv_after_body`.
        owner: What the network is called in error messages.
        overwritten: Which of them are overwritten in place; None where that is to be found out, as `probe` does.

    Attributes:
        found_overwritten: Those of the paths whose maps were overwritten in the passes so far, where `overwritten` is
            None.

    Raises:
        OptionError: A path is not a module of the network.
    """

    def __init__(self, net: nn.Module, paths: Iterable[str], owner: str = 'the network',
                 overwritten: Collection[str] | None = None) -> None:
        modules = dict(net.named_modules())
        self.net = net
        self.paths = list(paths)
        self.owner = owner
        for path in self.paths:
            if path not in modules or not path:
                raise OptionError(f'{owner} ({type(net).__name__}) has no layer `{path}`.{nearest(path, modules)} '
                                  'Name one of these or one inside: '
                                  f'{", ".join(name for name, _ in net.named_children())}.')
        self._modules = {path: modules[path] for path in self.paths}
        self._watching = overwritten is None
        self._results: dict[str, tuple[Tensor, int]] = {}  # of a pass that is watched
        self._cloned = set(self.paths if overwritten is None else overwritten)
        self.found_overwritten: set[str] = set()

    @classmethod
    def union(cls, taps: Sequence[Taps]) -> Taps:
        """The layers of several taps of one network, each once."""
        paths = dict.fromkeys(path for one in taps for path in one.paths)
        return cls(taps[0].net, paths, taps[0].owner, {path for one in taps for path in one._cloned})

    def run(self, forward: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Calls `forward` and returns its result with the maps, each as (N, C, H, W).

        Token sequences (N, L, C) come as (N, C, L, 1), vectors (N, C) as (N, C, 1, 1).

        Raises:
            OptionError: A module was not called once, or did not return one tensor.
        """
        seen: dict[str, list[Tensor]] = {path: [] for path in self.paths}
        handles = [module.register_forward_hook(self._hook(seen[path], path))
                   for path, module in self._modules.items()]
        try:
            output = forward()
        finally:
            for handle in handles:
                handle.remove()
        maps = {path: self._single(path, calls) for path, calls in seen.items()}
        return output, maps

    def _hook(self, calls: list[Tensor], path: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, result: Tensor) -> None:
            if not torch.is_tensor(result):
                raise OptionError(f'Layer `{path}` of {self.owner} returns a {type(result).__name__}, not a tensor. '
                                  'Name a layer inside it, such as its last convolution.')
            calls.append(result.clone() if path in self._cloned else result)
            if self._watching:
                self._results[path] = result, result._version
        return hook

    def _single(self, path: str, calls: list[Tensor]) -> Tensor:
        if len(calls) != 1:
            raise OptionError(f'Layer `{path}` of {self.owner} is called {len(calls)} times in one pass. '
                              'Name a layer that is called once.')
        if self._watching:
            result, version = self._results.pop(path)  # a map must not outlive its pass
            if result._version != version:
                self.found_overwritten.add(path)
        return _as_map(calls[0], path)


def _as_map(x: Tensor, path: str) -> Tensor:
    if x.dim() == 4:
        return x
    if x.dim() == 3:
        return x.transpose(1, 2).unsqueeze(-1)  # tokens (N, L, C) -> (N, C, L, 1)
    if x.dim() == 2:
        return x[:, :, None, None]  # (N, C) -> (N, C, 1, 1)
    raise OptionError(f'Layer `{path}` returns a tensor of shape {tuple(x.shape)}. '
                      'Name a layer that returns (N, C, H, W), (N, L, C) or (N, C).')
