"""What the training options of this package's models must be to each other."""
from __future__ import annotations

from typing import Any

from kd_utils.schema.checks import Checks
from kd_utils.schema.kinds import require
from kd_utils.schema.lookups import (
    get,
    measured_teachers,
    requirements_of,
    teacher_key,
    teacher_sections,
    teachers_of_loss,
)
from kd_utils.schema.messages import Options, nearest_or_all
from kd_utils.schema.stages import distils_discriminator, trains_discriminator
from kd_utils.schema.tables import ADVERSARIAL_KEYS, STAGE


class Rules:
    """What the training options of our models must be to each other."""

    def __init__(self, checker: Checks) -> None:
        self.opt, self.train = checker.opt, checker.opt['train']
        self.losses, self.warnings, self.refuse = checker.losses, checker.warnings, checker.refuse
        self.checker = checker
        self.configured = [name for name in self.losses if self.train.get(f'{name}_opt') is not None]
        # those of the discriminator go with its update, and are named in no stage
        self.generators = [name for name in self.configured if self.term(name).side == 'generator']
        self.features = [name for name in self.generators if self.term(name).reads_features]

    def term(self, name: str) -> Any:
        """What the model says of a loss."""
        return self.checker.terms[name]

    def check(self) -> None:
        for name in self.configured:
            self.check_requirements(name)
        given = self.train.get('stages') or []
        for i, stage in enumerate(given):
            self.check_stage(f'train.stages[{i}]', stage)
        self.check_sum(given)
        self.check_names(given)
        stages = {f'train.stages[{i}]': stage for i, stage in enumerate(given)}
        stages = stages or {'train': {'losses': self.generators}}
        self.check_adversary(stages)
        self.check_turns(stages)
        self.check_starts(stages)
        self.warn_of_unused(list(stages.values()))
        self.warn_of_idle_adversary(stages)

    def check_requirements(self, name: str) -> None:
        """A loss needs its sections; those of a teacher are of the teacher that it names."""
        for required in requirements_of(self.opt).get(name, ()):
            root, _, rest = required.partition('.')
            keys = [required] if root != 'teacher' else \
                ['.'.join(filter(None, (teacher_key(teacher), rest))) for teacher in teachers_of_loss(self.opt, name)]
            for key in keys:
                if not get(self.opt, key):
                    self.refuse_requirement(name, key)

    def refuse_requirement(self, name: str, key: str) -> None:
        state, remedy = ('missing or 0', 'Write a number such as 0.999 there') if key == 'train.ema_decay' \
            else ('missing', 'Add it')
        named = [found.removeprefix('teachers.') for found in teacher_sections(self.opt) if found != 'teacher']
        if key == 'teacher' and named:
            remedy += f', or name one of `teachers` in the loss, as in `teacher: {named[0]}`'
        # `~` also switches off what the model has on by itself
        self.refuse(f'`train.{name}_opt` needs `{key}`, which is {state}. {remedy}, or `{name}_opt: ~`.')

    def check_stage(self, key: str, stage: Options) -> None:
        self.checker.table(key, stage, self.checker.extended('train.stages', STAGE), True)
        for name in stage['losses']:
            if name not in self.losses:
                self.refuse(f'`{key}.losses` names `{name}`, which is no loss.{nearest_or_all(name, self.generators)}')
            if name not in self.configured:
                self.refuse(f'`{key}.losses` names `{name}`, which has no options. Add `train.{name}_opt`.')
            if name not in self.generators:
                self.refuse(f'`{key}.losses` names `{name}`, which is of the discriminator and goes with `train_d`. '
                            'Take it out of the list.')
        if len(set(stage['losses'])) < len(stage['losses']):
            self.refuse(f'`{key}.losses` names a loss twice. Write each once, and factors under `weights`.')
        for name, weight in (stage.get('weights') or {}).items():
            if name not in stage['losses']:
                self.refuse(f'`{key}.weights` names `{name}`, which is not on in this stage.'
                            f'{nearest_or_all(name, stage["losses"])}')
            require(f'{key}.weights.{name}', 'weight', weight)

    def check_sum(self, stages: list[Options]) -> None:
        total, given = sum(int(stage['iters']) for stage in stages), int(self.train['total_iter'])
        if stages and total != given:
            self.refuse(f'`train.stages` add up to {total} iterations, but `train.total_iter` is {given}. '
                        f'Make them equal, for example `total_iter: {total}`.')

    def check_names(self, stages: list[Options]) -> None:
        names = [stage['name'] for stage in stages]
        for i, name in enumerate(names):
            if name in names[:i]:
                self.refuse(f'`train.stages[{i}].name`: there is a stage `{name}` before. '
                            'Give each stage a name of its own.')

    def check_adversary(self, stages: dict[str, Options]) -> None:
        for key, stage in stages.items():
            self.check_adversarial_stage(key, stage)
        trained = [key for key, stage in stages.items() if trains_discriminator(stage)]
        if trained and not self.train.get('optim_d'):
            self.refuse(f'`{trained[0]}` trains the discriminator, but `train.optim_d` is missing. '
                        'Add it, for example with the values of `train.optim_g`.')
        if self.train.get('optim_d') and not trained:
            self.refuse('`train.optim_d` is there, but nothing trains the discriminator. '
                        'Add `train.gan_opt` (and `train_d: true` to a stage), or take `train.optim_d` out.')

    def check_adversarial_stage(self, key: str, stage: Options) -> None:
        gan, train_d = 'gan' in stage['losses'], trains_discriminator(stage)
        what = f'`{key}` trains the discriminator' if train_d else f'`{key}` has the loss `gan`'
        if not stage['losses'] and not train_d:
            self.refuse(f'`{key}` trains nothing. Give it a loss (of those with options: '
                        f'{", ".join(self.generators) or "none yet, such as pixel_opt"}), or `train_d: true`.')
        if stage['losses'] in (['self_distill'], ('self_distill', )):
            self.refuse(f'`{key}` has the loss `self_distill` alone, which keeps a generator where it is. '
                        'Add another one, such as `pixel` or `gan`.')
        if train_d and 'gan' not in self.configured:
            self.refuse(f'{what}, but `train.gan_opt` is missing. Add it.')
        if gan and stage.get('discriminator') == 'teacher':
            if not get(self.opt, 'teacher.network_d'):
                self.refuse(f'`{key}.discriminator: teacher` needs `teacher.network_d`, which is missing. '
                            'Add it, or write `discriminator: student`.')
            gan = False
        if (gan or train_d) and not self.opt.get('network_d'):
            self.refuse(f'{what}, but `network_d` is missing. '
                        'Add it, for example `network_d: {type: UNetDiscriminatorSN, num_in_ch: 3, num_feat: 64}`.')

    def check_turns(self, stages: dict[str, Options]) -> None:
        """While the discriminator is trained, these keys leave the generator only some of the iterations."""
        total = int(self.train['total_iter'])
        for key in ('net_d_iters', 'net_d_init_iters'):
            both = any(stage['losses'] and trains_discriminator(stage) for stage in stages.values())
            in_all = key == 'net_d_iters' and self.train.get(key) == 1  # however few they are
            if both and not in_all and self.train.get(key, 0) >= total:
                self.refuse(f'`train.{key}` is {self.train[key]} of {total} iterations, so the generator would never '
                            'learn while the discriminator does. Write a smaller number.')

    def check_starts(self, stages: dict[str, Options]) -> None:
        """A loss that begins after its last iteration would never be on."""
        for name in (name for name in self.configured if 'start_iter' in self.term(name).option_keys):
            start, end, last = self.train[f'{name}_opt'].get('start_iter', 0), 0, 0
            for stage in stages.values():
                end += int(stage.get('iters', self.train['total_iter']))
                last = end if name in stage['losses'] else last
            if last and start >= last:
                self.refuse(f'`train.{name}_opt.start_iter` is {start}, and the last iteration with this loss is '
                            f'{last}, so it would never be on. Write a smaller number, or `{name}_opt: ~`.')

    def warn_of_unused(self, stages: list[Options]) -> None:
        used = {name for stage in stages for name in stage['losses']}
        trained = [stage for stage in stages if trains_discriminator(stage)]
        if trained:
            used.add('gan')
        if any(distils_discriminator(stage, self.features) for stage in trained):
            used.update(name for name in self.configured if name not in self.generators)
        asked = self.asked_teachers(stages)
        self.warnings += [f'`train.{name}_opt` is on in no stage.' for name in self.configured if name not in used]
        if any(stage.get('ema') == 'fresh' for stage in stages) and not self.train.get('ema_decay'):
            self.warnings.append('`ema: fresh` of a stage is of no use without `train.ema_decay`.')
        if get(self.opt, 'datasets.train.type') != 'RealESRGANDataset':
            self.warnings += [f'`{key}` is of no use: it belongs to the degradation of a RealESRGANDataset.'
                              for key in ('degradation', 'queue_size', 'gt_usm') if key in self.opt]
        if self.train.get('ema_ramp_up') and not self.train.get('ema_decay'):
            self.warnings.append('`train.ema_ramp_up` is of no use without `train.ema_decay`.')
        self.warnings += [f'`{key}` is there, but no loss or metric asks it: nothing is distilled.'
                          for key in teacher_sections(self.opt) if key not in asked]
        upcycled = [name for name in self.configured if get(self.train, f'{name}_opt.inputs') in ('upcycled', 'both')]
        if self.train.get('upcycling') is not None and not upcycled:
            self.warnings.append('`train.upcycling` is of no use: no loss has `inputs: upcycled` or `both`.')

    def asked_teachers(self, stages: list[Options]) -> set[str]:
        """The sections of the teachers that a loss, a stage or a metric asks."""
        requirements = requirements_of(self.opt)
        asked = {teacher_key(teacher) for name in self.configured for teacher in teachers_of_loss(self.opt, name)
                 if any(required.startswith('teacher') for required in requirements.get(name, ()))}
        if any(stage.get('discriminator') == 'teacher' for stage in stages):
            asked.add('teacher')
        return asked | {teacher_key(name) for name in measured_teachers(self.opt)}

    def warn_of_idle_adversary(self, stages: dict[str, Options]) -> None:
        for key, stage in stages.items():
            if stage.get('discriminator') == 'teacher' and 'gan' not in stage['losses']:
                self.warnings.append(f'`{key}.discriminator: teacher` is of no use without `gan` in `{key}.losses`.')
        if not any(trains_discriminator(stage) or 'gan' in stage['losses'] for stage in stages.values()):
            self.warnings += [f'`train.{key}` is of no use: there is no `gan`, and no discriminator is trained.'
                              for key in ADVERSARIAL_KEYS if key in self.train]
