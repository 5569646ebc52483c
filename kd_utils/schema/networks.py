"""Checks of the model, its networks, its teachers, and the paths of their weights."""
from __future__ import annotations

import re

from kd_utils.schema.arguments import arguments_of, swallows_keys
from kd_utils.schema.checks import Checks, join
from kd_utils.schema.kinds import require
from kd_utils.schema.lookups import (
    ARCH_REGISTRY,
    MODEL_REGISTRY,
    get,
    is_foreign,
    is_from,
    losses_of_ours,
    measured_teachers,
    registered,
    teacher_caches,
    teacher_key,
    teacher_name,
    terms_of,
)
from kd_utils.schema.messages import Options
from kd_utils.schema.tables import (
    CACHE,
    FOLDERS,
    NO_FOLDER,
    OUR_TRAIN_KEYS,
    PATH,
    STOCK_LOSSES,
    TEACHER,
    path_keys,
)


class NetworkChecks(Checks):
    """The part of the check that is about networks."""

    def check_model(self) -> None:
        name = self.opt.get('model_type')
        self.model = self.lookup('model_type', 'model', name, registered(MODEL_REGISTRY))
        self.ours = not is_foreign(name)
        if self.ours:
            self.losses.update(self.model.losses)
            self.terms = terms_of(self.opt)

    def check_stock_model(self) -> None:
        """Refuses keys that BasicSR's own models would leave unread without a word."""
        if self.ours or not is_from(('basicsr', ), self.model):
            return
        if get(self.opt, 'datasets.train.type') == 'FaceScaleDataset':
            self.refuse('`datasets.train.type`: FaceScaleDataset gives each face its scale, which '
                        f'{self.opt["model_type"]} does not hand to the network. Set `model_type: DistillationModel`.')
        keys = [f'{name}_opt' for name in {*self.losses, *losses_of_ours()} if name not in STOCK_LOSSES]
        keys = [f'train.{key}' for key in (*keys, *OUR_TRAIN_KEYS)] if self.training else []
        name = self.model.__name__
        if name in ('RealESRGANModel', 'RealESRNetModel') and self.training and not self.opt['num_gpu']:
            self.refuse(f'{name} of BasicSR needs a GPU. Set `model_type: DistillationModel`, which does the same on '
                        'any device.')
        ours = ('teacher', 'teachers', 'degradation', 'val.self_ensemble', 'logger.keep_last', 'logger.keep_best')
        for key in (*ours, *keys):
            if get(self.opt, key) is not None:
                self.refuse(f'`{key}` is not read by {self.opt["model_type"]}, which is BasicSR\'s own. '
                            f'Set `model_type: DistillationModel`, or take `{key}` out.')

    def networks(self) -> dict[str, str]:
        """The networks at the top of the file as a table: a model of another project may have any number of them."""
        return {} if self.ours else {key: 'dict?' for key in self.opt if str(key).startswith('network_')}

    def check_networks(self, prefix: str, section: Options) -> None:
        for key, network in section.items():
            if str(key).startswith('network_') and network:
                self.check_network(join(prefix, key), network)

    def check_network(self, key: str, network: Options) -> None:
        require(key, 'dict', network)
        arch = self.lookup(f'{key}.type', 'network', network.get('type'), registered(ARCH_REGISTRY))
        # BasicSR's own models add nothing to what is written; a model of another project may
        missing = self.refuse if is_from(('basicsr', ), self.model) else None
        self.constructor(key, network, arguments_of(arch), swallows_keys(arch), self.refuse, missing)

    def check_teachers(self) -> None:
        named = self.opt.get('teachers') or {}
        for name, section in named.items():
            if not re.fullmatch(r'[A-Za-z]\w*', str(name)) or name in ('teacher', 'gt'):
                self.refuse(f'`teachers.{name}` is no name for a teacher. Write a word of letters, digits and `_`, '
                            'other than `teacher` and `gt`.')
            require(f'teachers.{name}', 'dict', section)
        sections = {'teacher': self.opt.get('teacher'), **{f'teachers.{name}': named[name] for name in named}}
        for key, section in sections.items():
            if section:
                self.check_teacher(key, section)

    def check_teacher(self, key: str, teacher: Options) -> None:
        self.table(key, teacher, self.extended('teacher', TEACHER), self.training)
        self.check_networks(key, teacher)
        path = teacher.get('path') or {}
        self.table(f'{key}.path', path, path_keys('gd'), self.training)
        self.check_owners(f'{key}.', teacher)
        measured = {teacher_key(name) for name in measured_teachers(self.opt)}
        for label in 'gd' if self.training or key in measured else '':
            network = teacher.get(f'network_{label}')
            if network and not network.get('pretrained') and not path.get(f'pretrain_network_{label}'):
                self.refuse_in_ours(f'`{key}.path.pretrain_network_{label}` is missing, and an untrained network '
                                    f'teaches nothing. Name the file with the weights of `{key}.network_{label}`.')
        if self.ours and self.training and teacher.get('cache') is not None:
            self.check_cache(key)

    def check_cache(self, key: str) -> None:
        cache = get(self.opt, f'{key}.cache')
        if isinstance(cache, dict):
            self.table(f'{key}.cache', cache, CACHE, self.training)
        kind = str(get(self.opt, 'datasets.train.type')).removesuffix('_basicsr')
        if kind != 'PairedImageDataset':
            self.refuse(f'`{key}.cache` keeps one image of the teacher for each training image, which fits the fixed '
                        f'pairs of PairedImageDataset only. {kind} may degrade or crop otherwise at each draw. '
                        f'Use PairedImageDataset with prepared LR images, or take `{key}.cache` out.')
        if teacher_name(key) not in teacher_caches(self.opt):
            self.warnings.append(f"`{key}.cache` is of no use: no loss asks for the teacher's images.")

    def check_path(self) -> None:
        path = self.opt.get('path') or {}
        labels = {'g', 'd', *(key.removeprefix('network_') for key in self.networks())}
        table = self.extended('path', {**PATH, **FOLDERS, **path_keys(labels)})
        self.table('path', path, table, self.training)
        for key, value in path.items():
            if key not in table and not any(word in str(key) for word in NO_FOLDER):
                require(f'path.{key}', 'path', value)  # BasicSR makes a folder of it
        self.check_owners('', self.opt)
        if not self.training and self.opt.get('network_g') and not path.get('pretrain_network_g'):
            self.warnings.append('`path.pretrain_network_g` is missing: a network with random weights is measured.')

    def check_owners(self, prefix: str, section: Options) -> None:
        """Refuses a path of weights whose network the section does not have."""
        for key, value in (section.get('path') or {}).items():
            network = str(key).removeprefix('pretrain_')
            if value is not None and network.startswith('network_') and not section.get(network):
                self.refuse_in_ours(f'`{prefix}path.{key}` has weights for `{prefix}{network}`, which is missing. '
                                    'Add the network, or take the weights out.')
