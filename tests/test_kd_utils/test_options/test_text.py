"""Option files as texts: what is read as what, and which file is found."""
from __future__ import annotations

from pathlib import Path

import pytest

from kd_utils.options import OptionError, find_option_file, load_yaml, parse_yaml, text


@pytest.mark.parametrize(('text', 'value'), [
    ('1e-4', 1e-4), ('1e5', 1e5), ('1.e-3', 1e-3), ('-2E+3', -2000.0), ('.5e1', 5.0), ('!!float 2e-4', 2e-4), ('3', 3),
    ('0.5', 0.5), ('~', None), ('true', True), ('[1, 2e0]', [1, 2.0]), ('{a: 1}', {'a': 1}), ("'1e-4'", '1e-4'),
    ('1e-4x', '1e-4x'), ('e5', 'e5'), ('body.16', 'body.16'),
])
def test_values(text, value):
    result = parse_yaml(text, 'test')
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize('tag', ['!!python/object/apply:os.system', '!!python/object/new:os.system',
                                 '!!python/name:os.system', '!!python/module:os', '!custom'])
def test_yaml_with_code_runs_nothing(write, tmp_path, tag):
    path = write(f'name: a\nx: {tag} ["touch {tmp_path}/marker"]\n')
    with pytest.raises(OptionError) as caught:
        load_yaml(path)
    assert f'opt.yml:2: the tag `{tag}` is not allowed' in str(caught.value)
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize(('text', 'fragments'), [
    ('a: 1\nb:\n  lr: 1\n  lr: 2\n', ['opt.yml:4:', 'the key `lr` is there twice, first in line 3']),
    ('{a: 1, a: 2}', ['opt.yml:1:', '`a` is there twice']),
    ('a: 1\n b: 2\n', ['opt.yml:2:']),
    ('a: [1, 2\nb: 3\n', ['opt.yml:2:']),
    ('a: 1\n\tb: 2\n', ['opt.yml:2:', "'\\t'"]),
    ('a: !!float x\n', ['opt.yml:1:', 'cannot be read']),
    ('a: !!bool maybe\n', ['opt.yml:1:', 'cannot be read']),
    ('a: 1\n---\nb: 2\n', ['opt.yml:2:', 'another document']),
    ('a: *b\n', ['opt.yml:1:', 'undefined alias']),
    ('[1, 2]: 3\n', ['opt.yml:1:', 'unhashable key']),
    ('a: &a [*a]\n', ['refers to itself']),
    ('a: ' + '[' * 3000, ['refers to itself or has more than']),
    ('- 1\n- 2\n', ['holds no options']),
    ('', ['holds no options']),
    ('just words', ['holds no options']),
    ('a: \x01', ['opt.yml', 'Correct the YAML']),
])
def test_broken_yaml_is_refused_with_file_and_line(write, text, fragments):
    with pytest.raises(OptionError) as caught:
        load_yaml(write(text))
    assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_growing_file_is_refused(write):
    lines = ['a0: &a0 [x, x]'] + [f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]' for i in range(1, 10)]
    with pytest.raises(OptionError, match='more than 100000 values'):
        load_yaml(write('\n'.join(lines)))


def test_repeated_sections_are_copies_and_merges_may_override(write):
    opt = load_yaml(write('a: &a {type: Adam, lr: 1}\nb: *a\nc: {<<: *a, lr: 2}\nd: {<<: *a, lr: 3}\n'))
    assert opt['a'] == opt['b'] and opt['a'] is not opt['b']
    assert opt['c'] == {'type': 'Adam', 'lr': 2} and opt['d']['lr'] == 3


def test_binary_and_folder(write, tmp_path):
    (tmp_path / 'binary.yml').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(OptionError, match='UTF-8'):
        load_yaml(tmp_path / 'binary.yml')
    with pytest.raises(OptionError, match='no option file'):
        load_yaml(tmp_path)


def test_environment(write, monkeypatch):
    path = write('a: ${KD_DATA}/x\nb: ["${NET}-${KD_DATA}"]\n')
    monkeypatch.delenv('NET', raising=False)
    with pytest.raises(OptionError, match=r'`b\[0\]` uses \$\{NET\}, an environment variable that is not set'):
        load_yaml(path)
    monkeypatch.setenv('NET', 'edsr')
    assert load_yaml(path) == {'a': 'datasets/x', 'b': ['edsr-datasets']}
    monkeypatch.setenv('KD_DATA', '/data')
    assert load_yaml(path) == {'a': '/data/x', 'b': ['edsr-/data']}


def test_option_files_are_found(write, tmp_path, monkeypatch):
    shipped = tmp_path / 'shipped'
    monkeypatch.setattr(text, '_shipped_folder', lambda: shipped)
    write('name: shipped', 'shipped/train/SDAKD/half.yml')
    write('name: own', 'train_edsr.yml')
    assert find_option_file('train_edsr') == Path('train_edsr.yml')
    assert find_option_file(str(tmp_path / 'train_edsr.yml')).read_text() == 'name: own'
    assert find_option_file('train/SDAKD/half').samefile(shipped / 'train/SDAKD/half.yml')
    write('name: nearer', 'train/SDAKD/half.yml')
    assert find_option_file('train/SDAKD/half.yml').read_text() == 'name: nearer'
    with pytest.raises(OptionError, match='Did you mean `train/SDAKD/half.yml`'):
        find_option_file('train/SDAKD/hlaf.yml')
    with pytest.raises(OptionError, match='Did you mean `train_edsr.yml`'):
        find_option_file('train_edrs.yml')
    with pytest.raises(OptionError, match='Name a YAML file'):
        find_option_file('zzz')


def test_shipped_folder_is_in_the_checkout():
    assert text._shipped_folder() == Path(text.__file__).resolve().parents[2] / 'options'


# ------------------------------------------------------------------------------------------------------------- base


def test_a_variant_is_its_base_with_the_lines_that_differ(write, tmp_path):
    write('a: 1\nb: {x: 1, y: {z: 2}}\nc: [1, 2]\nd: {type: A, p: 1}\ne: {type: A, p: 1}\n', 'base.yml')
    path = write('base: base.yml\na: 2\nb: {y: {w: 3}}\nc: [3]\nd: {q: 2}\ne: {type: B, q: 2}\n', 'variant.yml')
    assert load_yaml(path) == {'a': 2, 'b': {'x': 1, 'y': {'z': 2, 'w': 3}}, 'c': [3],
                               'd': {'type': 'A', 'p': 1, 'q': 2}, 'e': {'type': 'B', 'q': 2}}


def test_a_variant_is_without_what_it_says(write):
    write('a: 1\nb: {x: 1}\nc: {d: 2, e: {f: 3, g: 4}}\n', 'base.yml')
    assert load_yaml(write('base: base\nwithout: [a, b, c.e.f]\nb: {y: 2}\nc: {d: ~}\n', 'variant.yml')) == \
        {'b': {'y': 2}, 'c': {'d': None, 'e': {'g': 4}}}


def test_bases_may_have_bases_beside_them(write, tmp_path):
    (tmp_path / 'deep').mkdir()
    write('a: 1\nb: 1\nc: 1\n', 'first.yml')
    write('base: ../first.yml\nb: 2\nc: 2\n', 'deep/second.yml')
    assert load_yaml(write('base: deep/second.yml\nc: 3\n', 'third.yml')) == {'a': 1, 'b': 2, 'c': 3}


def test_a_shipped_file_can_be_the_base(write):
    opt = load_yaml(write('base: train/MCADKD/mcadkd_edsr_x2\nname: mine\n', 'mine.yml'))
    assert opt['name'] == 'mine' and opt['model_type'] == 'MCADKDModel'


def test_bases_that_cannot_be_are_refused(write):
    with pytest.raises(OptionError, match=r'mine.yml: its `base` cannot be found. There is no option file `nothing`'):
        load_yaml(write('base: nothing\n', 'mine.yml'))
    with pytest.raises(OptionError, match='`base` cannot be 3. Write the name of an option file'):
        load_yaml(write('base: 3\n', 'mine.yml'))
    write('a: 1\nbar: {x: 1}\n', 'base.yml')
    for keys, message in (('a', r'`without` cannot be .a.'), ('[3]', r'`without` cannot be .3.'),
                          ('[b]', 'names `b`, which its `base`, .*base.yml, does not'), ('[bar.y]', 'names `bar.y`'),
                          ('[a.b]', 'names `a.b`')):
        with pytest.raises(OptionError, match=message):
            load_yaml(write(f'base: base\nwithout: {keys}\n', 'mine.yml'))
    with pytest.raises(OptionError, match='`without` takes keys out of a base, and there is no `base`'):
        load_yaml(write('without: [a]\n', 'mine.yml'))
    write('base: two.yml\n', 'one.yml')
    with pytest.raises(OptionError, match=r'two.yml: its `base`, .*one.yml, is in the end based on the file itself'):
        load_yaml(write('base: one.yml\n', 'two.yml') and 'one.yml')
    write('a: [\n', 'broken.yml')
    with pytest.raises(OptionError, match='broken.yml:2'):
        load_yaml(write('base: broken.yml\n', 'mine.yml'))


def test_no_shipped_variant_repeats_what_its_base_says():
    def repeated(base, changes, key=''):
        for name, value in changes.items():
            if isinstance(value, dict) and isinstance(base.get(name), dict) and value.keys() & base[name].keys() \
                    and value.get('type') == base[name].get('type'):
                yield from repeated(base[name], value, f'{key}{name}.')
            elif name in base and base[name] == value:
                yield f'{key}{name}'
    shipped = text._shipped_folder()
    variants = [path for path in sorted(shipped.rglob('*.yml')) if '\nbase: ' in path.read_text()]
    assert len(variants) > 60
    for path in variants:
        changes = text._read(path)
        base = load_yaml(path.parent / changes.pop('base'))
        changes.pop('without', None)
        assert not [key for key in repeated(base, changes) if not key.endswith('type')], path


def test_a_type_that_only_the_variant_writes_keeps_the_bases_keys(write):
    write('loss: {weight: 3}\n', 'base.yml')
    variant = write('base: base\nloss: {type: A, p: 1}\n', 'variant.yml')
    assert load_yaml(variant) == {'loss': {'weight': 3, 'type': 'A', 'p': 1}}
