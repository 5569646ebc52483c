"""Every damaged option file is refused in one message, which names the damage and ends in advice."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from basicsr.archs import build_network
from PIL import Image

import kd_cli.test
import kd_cli.train
from kd_cli.loop import _read_options, train_pipeline
from kd_utils.checkpoint import CheckpointError
from kd_utils.options import OptionError, load_yaml
from kd_utils.schema import get, teacher_sections
from tests.test_reliability.damage import (
    FILES,
    KINDS,
    ROOT,
    Damage,
    Source,
    damaged,
    is_needed,
    referred,
    sections,
    sources,
    supplied,
)
from tests.test_reliability.harness import STRESS, counted, report

ADVICE = re.compile(r'(Add|Call|Choose from|Correct|Did you mean|Download|Give|Make|Move|Name|Put|Rename|Run|Set|Take|'
                    r'Use|Write)\b')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A working directory with images and weights of all the names in the shipped files."""
    root = tmp_path_factory.mktemp('malformed')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv('KD_DATA', 'data')
        for file in FILES:
            make_files(load_yaml(file))
        yield root


def make_files(opt: dict) -> None:
    side = get(opt, 'network_g.out_size') or get(opt, 'network_g.size') or 480
    for dataset in opt['datasets'].values():
        if 'dataroot_gt' in dataset and get(dataset, 'io_backend.type') == 'lmdb':
            write(Path(dataset['dataroot_gt'], 'data.mdb'))
            write(Path(dataset['dataroot_gt'], 'meta_info.txt'), '0.png\n')
        elif 'dataroot_gt' in dataset:
            save_image(dataset['dataroot_gt'], side)
        if 'dataroot_lq' in dataset:
            save_image(dataset['dataroot_lq'], side // dataset.get('scale', opt['scale']))
        if 'meta_info' in dataset:
            write(Path(dataset['meta_info']), '0.png\n')
    for section in (opt['path'], *(teacher['path'] for teacher in teacher_sections(opt).values())):
        for key, path in section.items():
            if key.startswith('pretrain_network') and path:
                write(Path(path))
    for metric in (get(opt, 'val.metrics') or {}).values():
        if 'real' in metric:
            save_image(metric['real'], 32)


def write(path: Path, text: str = '') -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def save_image(folder: str, side: int) -> None:
    path = Path(folder, '0.png')
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (side, side)).save(path)


def read(text: str, is_train: bool, root: Path) -> None:
    """All that the commands do before they build anything."""
    (root / 'damaged.yml').write_text(text)
    _read_options(['-opt', 'damaged.yml'], str(root), is_train)


def refusal(damage: Damage, root: Path) -> str:
    """The message; empty if the file is accepted."""
    try:
        read(damage.text, damage.is_train, root)
    except (OptionError, CheckpointError) as error:
        return str(error)
    return ''


def fault(message: str, names: tuple[str, ...]) -> str:
    """What is wrong with a message, empty if nothing is."""
    if not message:
        return 'accepted'
    if '\n' in message:
        return 'several lines'
    if not any(name in message for name in names):
        return 'the damage is not named'
    sentences = re.split(r'(?<=[.?]) (?=[A-Z`])', message)
    return '' if any(map(ADVICE.match, sentences[-2:])) else 'no advice'


def test_shipped_files_are_accepted(folder):
    """So that what follows is refused for its damage."""
    for source in sources():
        read(source.text, source.is_train, folder)


def test_damaged_files_are_refused(folder):
    before, kinds, files, faults = sorted(folder.rglob('*')), Counter(), set(), []
    for damage in damaged(counted(390, 15000)):
        try:
            message = refusal(damage, folder)
            wrong = fault(message, damage.names)
        except Exception as error:
            message, wrong = repr(error), 'a traceback'
        kinds[damage.kind] += 1
        files.add(damage.file)
        if wrong:
            faults.append(f'{wrong}: {damage.file.relative_to(ROOT)}, {damage.kind}, {damage.where}: {message}')
    report(f'{sum(kinds.values())} damaged option files, {len(faults)} not refused well: '
           + ', '.join(f'{number} {kind}' for kind, number in kinds.most_common()))
    assert not faults, '\n'.join(faults)
    assert kinds.keys() == KINDS.keys() and files == set(FILES) and sum(kinds.values()) >= 200
    assert {*folder.rglob('*')} - {*before} <= {folder / 'damaged.yml'}  # nothing is made, no code has run


def test_what_a_method_supplies_is_said():
    """A dropped section in whose place the method of the file puts another one."""
    count = 0
    for source in sources():
        needed = {*referred(source), 'train.optim_g'}
        for entry in sections(source) if source.is_train else ():
            messages = supplied(source, entry) if entry.full in needed else None
            if messages is not None:
                count += 1
                assert any(f'`{entry.full}` is not in the file' in text for text in messages), (source.file, entry.full)
    assert count > 20


def test_without_other_sections_a_file_is_another_one(folder):
    """The rule of what may be dropped: without such a section the file is valid, or refused as well as the damaged."""
    left = [(source, entry) for source in sources() for entry in sections(source)
            if len(entry.path) < 4 and not is_needed(source, entry)]
    step = max(1, len(left) // counted(40, len(left)))
    outcomes = Counter()
    for source, entry in left[::step]:
        message = refusal(Damage(source.file, 'dropped', entry.full, source.without(entry), ()), folder)
        names = (entry.full, entry.name, 'trains nothing')
        assert not message or not fault(message, names), (source.file, entry.full, message)
        outcomes[bool(message)] += 1
    assert outcomes[False] > outcomes[True]


def commands() -> list[Damage]:
    """Ten files, of different kinds."""
    chosen: dict[str, Damage] = {}
    for damage in damaged(60, seed=1):
        chosen.setdefault(damage.kind, damage)
    return list(chosen.values())[:10]


@pytest.mark.parametrize('number', range(10))
def test_commands_refuse_in_one_line(folder, capfd, number):
    damage = commands()[number]
    (folder / 'damaged.yml').write_text(damage.text)
    before = sorted(folder.rglob('*'))
    if STRESS or number % 5 == 0:
        result = subprocess.run([sys.executable, ROOT / ('train.py' if damage.is_train else 'test.py'), '-opt',
                                 'damaged.yml'], capture_output=True, text=True, timeout=300,
                                env={**os.environ, 'OMP_NUM_THREADS': '1'})
        code, output, errors = result.returncode, result.stdout, result.stderr
    else:
        main = (kd_cli.train if damage.is_train else kd_cli.test).main
        with pytest.raises(SystemExit) as end:
            main(['-opt', 'damaged.yml'], str(folder))
        code, (output, errors) = end.value.code, capfd.readouterr()
    lines = [line for line in errors.splitlines() if line.startswith('error:')]
    assert code == 2 and len(lines) == 1 and 'Traceback' not in output + errors, output + errors
    assert not fault(lines[0], damage.names), (damage.kind, damage.where, lines)
    assert sorted(folder.rglob('*')) == before


@pytest.mark.parametrize('layers', [
    ('body.00', 'body.0'), ('bdoy.0', 'body.0'), ('body.0', 'body.999'), ('body.0', 'conv_last'), ('body', 'body.17'),
    ('body.0', 'upsampler.0')])
def test_layers_that_do_not_exist(folder, layers):
    """Found when the networks are built: teacher layer: student layer."""
    file = ROOT / 'options/train/KD/kd_realesr_general_x4v3_compact16.yml'
    opt = load_yaml(file)
    weights = folder / 'teacher.pth'
    if not weights.exists():
        with torch.random.fork_rng():
            torch.save({'params': build_network(dict(opt['teacher']['network_g'])).state_dict()}, weights)
    place = '    type: MLPFeatureLoss\n'
    text = file.read_text().replace(place, f'{place}    layers: {{{layers[0]}: {layers[1]}}}\n')
    text = text.replace('${KD_DATA}/weights/sr/realesr-general-x4v3_fp16.pth', str(weights))
    (folder / 'damaged.yml').write_text(text)
    with pytest.raises(OptionError) as error:
        train_pipeline(str(folder / 'run'), ['-opt', 'damaged.yml'])
    assert not fault(str(error.value), tuple(f'`{layer}`' for layer in layers)), str(error.value)
    assert '`train.feature_kd_opt.layers`' in str(error.value) and not (folder / 'run').exists()


@pytest.mark.parametrize('file, damage, name', [
    ('train/SDAKD/gcfsr_512.yml', ('model_type: DistillationModel', 'model_type: [DistillationModel]'), '`model_type`'),
    ('train/AdvKD/advkd_celebahq256_unconditional.yml', ('PhaseDecoder', 'PhaseDeccoder'), '`network_g.type`'),
    ('train/AdvKD/advkd_x4_practical.yml', ('\ntrain:', '\ntrian:'), 'trian'),
    ('train/AdvKD/advkd_x4_faithful.yml', ('  train:', '  trian:'), '`datasets.train'),
    ('test/AdvKD/advkd_small32_unconditional.yml', ('  size:', '  siez:'), 'siez'),
])
def test_what_a_method_derives_from_the_damage_is_not_blamed(folder, file, damage, name):
    """Nor does its derivation end in a traceback."""
    text = Source(ROOT / 'options' / file).text
    assert damage[0] in text
    with pytest.raises(OptionError) as error:
        read(text.replace(*damage, 1), file.startswith('train'), folder)
    assert not fault(str(error.value), (name, )), str(error.value)
