"""Other projects' names for keys and values of this package: they are renamed, and the log says so of each."""
from __future__ import annotations

from collections.abc import Iterable

from kd_utils.schema import LOSS_REGISTRY, OptionError, Options, get, is_foreign, registered, require

# Other projects' names for what is here: key -> key. Applied to the models of this package only.
ALIASES: dict[str, str] = {
    # MCAD-KD, github.com/seanko29/mcadkd
    'network_t': 'teacher.network_g',
    'path.pretrain_network_t': 'teacher.path.pretrain_network_g',
    'path.param_key_t': 'teacher.path.param_key_g',
    'path.strict_load_t': 'teacher.path.strict_load_g',
    'discriminator': 'network_d',
    'train.resp_kd_opt': 'train.response_kd_opt',
    'train.adversarial_opt': 'train.gan_opt',
    # older files of BasicSR, its one of StyleGAN2 among them
    'path.pretrain_model_g': 'path.pretrain_network_g',
    'path.pretrain_model_d': 'path.pretrain_network_d',
    'path.strict_load': 'path.strict_load_g',
}
# Such a key -> what else it means there: key -> value, where the file does not say it.
IMPLIED: dict[str, dict[str, str]] = {
    'path.pretrain_network_t': {'teacher.path.param_key_g': 'params'},
}
# key -> {value: value}
VALUE_ALIASES: dict[str, dict[str, str]] = {
    'model_type': {'MCADKD': 'MCADKDModel'},
}
# key -> (its values that mean something else there, the key that means it here)
MOVED_VALUES: dict[str, tuple[tuple[str, ...], str]] = {
    'train.contrastive_opt.type': (('image', 'patch', 'hybrid'), 'train.contrastive_opt.level'),
}


def apply_aliases(opt: Options) -> list[str]:
    """Renames other projects' keys and values in place, unless the model is another project's own.

    Returns:
        list[str]: A message for each.

    Raises:
        OptionError: The old and the new key are both there.
    """
    messages = []
    for key, values in VALUE_ALIASES.items():
        section, name, value = *_owner(opt, key), get(opt, key)
        if isinstance(value, str) and value in values:
            section[name] = values[value]
            messages.append(f'`{key}: {value}` is read as `{key}: {values[value]}`.')
    if is_foreign(opt.get('model_type')):
        return messages
    applied = []
    for old, new in {**ALIASES, **_moved(opt)}.items():
        section, name = _owner(opt, old)
        if name not in section:
            continue
        if get(opt, new) is not None:
            raise OptionError(f'`{old}` and `{new}` are the same option. Take `{old}` out.')
        *parents, last = new.split('.')
        section_of(opt, parents)[last] = section.pop(name)
        applied.append(old)
        messages.append(f'`{old}` is read as `{new}`.')
    return messages + imply(opt, applied)


def our_name(key: str, value: object) -> tuple[str, str]:
    """What a dotted key is called here, with that value, and the alias that it begins with, empty for a key of ours."""
    moved = {old: new for old, (values, new) in MOVED_VALUES.items() if key == old and value in values}
    for old, new in {**ALIASES, **moved}.items():
        if f'{key}.'.startswith(f'{old}.'):
            return new + key[len(old):], old
    return key, ''


def imply(opt: Options, applied: Iterable[str]) -> list[str]:
    """Writes what aliases that were applied mean besides, where nothing else is there; a message for each."""
    messages = []
    for key, value in {key: value for old in applied for key, value in IMPLIED.get(old, {}).items()}.items():
        if get(opt, key) is None:
            *parents, last = key.split('.')
            section_of(opt, parents)[last] = value
            messages.append(f'`{key}` is taken to be `{value}`, as where this file comes from.')
    return messages


def _moved(opt: Options) -> dict[str, str]:
    """The keys whose value here means something else: old key -> new key.

    Raises:
        OptionError: The value means nothing in either place.
    """
    moved = {}
    for old, (values, new) in MOVED_VALUES.items():
        value = get(opt, old)
        if value in values:
            moved[old] = new
        elif isinstance(value, str) and value not in registered(LOSS_REGISTRY):
            raise OptionError(f'`{old}` cannot be `{value}`. Write one of: {", ".join(values)}, or the name of a loss, '
                              'such as MultiScaleContrastiveLoss.')
    return moved


def _owner(opt: Options, key: str) -> tuple[Options, str]:
    """The section that a dotted key is in, an empty one where there is none, and the key's last part."""
    section, _, name = key.rpartition('.')
    owner = get(opt, section) if section else opt
    return (owner if isinstance(owner, dict) else {}), name


def section_of(opt: Options, keys: list[str]) -> Options:
    """The section of that name, made if it is not there."""
    for i, key in enumerate(keys):
        if opt.get(key) is None:
            opt[key] = {}
        opt = opt[key]
        require('.'.join(keys[:i + 1]), 'dict', opt)
    return opt
