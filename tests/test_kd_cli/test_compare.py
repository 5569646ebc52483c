"""kd-compare: numbers from hand-made results, pictures, and what it refuses."""
from __future__ import annotations

import csv
import json

import cv2
import numpy as np
import pytest
import yaml

from kd_cli import compare, prepare, results
from kd_cli.figures import widest_difference
from kd_metrics import MetricUnavailable
from kd_utils.options import OptionError
from tests.support import EDSR, TEACHER

METRICS = {'psnr': {'type': 'calculate_psnr', 'crop_border': 2, 'test_y_channel': True},
           'ssim': {'type': 'calculate_ssim', 'crop_border': 2, 'test_y_channel': True}}
PSNR = {'teacher': [34., 36.], 'alone_s1': [30., 32.], 'alone_s2': [31., 33.], 'kd_s1': [31., 32.], 'kd_s2': [33., 34.]}


def write_experiment(root, images, name: str, network: dict, psnr: list[float], seed: int) -> None:
    """What train.py and test.py would have left behind."""
    experiment, result = root / 'experiments' / name, root / 'results' / name
    pictures = result / 'visualization' / 'Tiny'
    for folder in (experiment, pictures):
        folder.mkdir(parents=True)
    options = {'name': name, 'scale': 2, 'manual_seed': seed, 'network_g': network,
               'datasets': {'test_1': {'name': 'Tiny', 'type': 'PairedImageDataset', 'phase': 'test', 'scale': 2,
                                       'dataroot_gt': str(images / 'hr'), 'dataroot_lq': str(images / 'lr'),
                                       'io_backend': {'type': 'disk'}}},
               'val': {'save_img': True, 'suffix': None, 'metrics': METRICS}}
    (experiment / 'options.yml').write_text(yaml.safe_dump(options))
    (result / 'options.yml').write_text(yaml.safe_dump({**options, 'manual_seed': 0}))
    values = {str(i): {'psnr': value, 'ssim': value / 40} for i, value in enumerate(psnr)}
    mean = {metric: float(np.mean([v[metric] for v in values.values()])) for metric in METRICS}
    (result / 'metrics_Tiny.json').write_text(json.dumps({'dataset': 'Tiny', 'mean': mean, 'images': values}))
    lines = [{'iter': i, 'dataset': 'Tiny', 'metrics': {'psnr': psnr[0] - 10 / i}} for i in (1, 2, 4, 4)]
    (experiment / 'validation.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    for i in range(len(psnr)):
        picture = cv2.imread(str(images / 'hr' / f'{i}.png'))
        cv2.imwrite(str(pictures / f'{i}_{name}.png'), np.clip(picture + psnr[0] / 10, 0, 255).astype(np.uint8))


@pytest.fixture
def root(tmp_path, images):
    """A teacher, and two students of two seeds each."""
    for name, psnr in PSNR.items():
        seed = int(name[-1]) if name[-1].isdigit() else 0
        write_experiment(tmp_path, images, name, TEACHER if name == 'teacher' else EDSR, psnr, seed)
    return tmp_path


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(compare, 'TIMING_ROUNDS', 3)


ENTRIES = ['big=teacher', 'alone=alone_s1,alone_s2', 'distilled=kd_s*']


def test_everything_is_written(root, fast, capsys):
    compare.main([*ENTRIES, '--root', str(root), '--bicubic', '--versus', 'distilled', 'alone', '--size', '8x12'])
    out = root / 'results' / 'compare'
    printed, table = capsys.readouterr().out, (out / 'table.md').read_text()
    assert {path.name for path in out.iterdir()} == {'table.md', 'table.csv', 'comparison.json', 'comparison.png',
                                                     'curve.png'}
    assert 'ms/image' in printed and 'ms/image' not in table  # a time without its machine means nothing
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]]
            for cells in (line.strip('| ').split('|') for line in table.splitlines() if line.startswith('|'))}
    assert rows['alone'][3:] == ['31.50 ± 0.71', '0.7875 ± 0.0177', '2']
    assert rows['big'][2:] == ['1.00', '35.00', '0.8750', '1']
    assert 'psnr, distilled minus alone: +1 (by seed: +0.5, +1.5)' in table
    assert '8x12' in table
    for name in ('comparison.png', 'curve.png'):
        assert min(cv2.imread(str(out / name)).shape[:2]) > 300


def test_numbers_of_the_files(root, fast):
    report = compare.compare(root, ENTRIES, root / 'out', bicubic=True, reference='alone', size=(16, 16))
    by_label = {row['label']: row for row in report['networks']}
    assert by_label['alone']['time_ratio'] == by_label['distilled']['time_ratio'] == 1  # one network, timed once
    assert by_label['alone']['metrics']['psnr'] == {'mean': 31.5, 'std': pytest.approx(2**-0.5)}  # sample deviation
    assert by_label['big']['metrics']['psnr'] == {'mean': 35, 'std': None}
    first = 3 * 3 * 3 * 8 + 8  # EDSR's first convolution
    assert by_label['alone']['params'] > first
    assert by_label['big']['macs'] > by_label['alone']['macs'] > 16 * 16 * 3 * 3 * 3 * 8
    assert [run['seed'] for run in by_label['distilled']['runs']] == [1, 2]
    with open(root / 'out' / 'table.csv') as file:
        rows = {row['network']: row for row in csv.DictReader(file)}
    assert float(rows['distilled']['psnr_mean']) == 32.5
    assert float(rows['bicubic']['psnr_mean']) == pytest.approx(
        np.mean([values['psnr'] for values in report['bicubic'].values()]))
    assert json.loads((root / 'out' / 'comparison.json').read_text())['networks'][0]['runs'][0]['curve']['4'] == 31.5


def test_bicubic_from_a_folder_equals_the_one_made_here(root, images):
    (root / 'bicubic').mkdir()
    for i in range(2):
        lr = cv2.imread(str(images / 'lr' / f'{i}.png'))
        cv2.imwrite(str(root / 'bicubic' / f'{i}.png'), prepare.resize(lr, 2))
    group = results.load_groups(root, ['teacher'], None)[0][0]
    made, read = (compare.score_bicubic(results.Pictures(root, group.runs[0], 'Tiny', folder), group.runs[0])
                  for folder in (None, root / 'bicubic'))
    assert made == read
    assert 20 < made['0']['psnr'] < 60


def test_bootstrap_is_deterministic_and_holds_the_mean():
    differences = np.array([0.1, 0.3, -0.1, 0.2])
    low, high = compare.bootstrap_interval(differences)
    assert (low, high) == compare.bootstrap_interval(differences)
    assert -0.1 <= low < differences.mean() < high <= 0.3
    assert compare.bootstrap_interval(np.array([0.2, 0.2])) == pytest.approx((0.2, 0.2))


def test_versus_is_paired_by_seed(root):
    alone, distilled = results.load_groups(root, ['alone=alone_s*', 'distilled=kd_s2,kd_s1'], None)[0]
    result = compare.versus(distilled, alone, 'psnr')
    assert result['difference'] == 1
    assert result['per_seed'] == {'2': 1.5, '1': 0.5}
    with pytest.raises(OptionError, match='has the seeds 1'):
        compare.versus(results.Group('x', alone.runs[:1]), distilled, 'psnr')


def test_the_crop_is_where_images_differ():
    a = np.zeros((40, 60, 3), np.uint8)
    b = a.copy()
    b[21:30, 33:40] = 200
    top, left, score = widest_difference([a, b], 16, 2)
    assert (top, left) == (14, 24) and score > 0  # the first of the windows that hold all of it
    assert widest_difference([a, b], 100, 2)[:2] == (0, 0)


def test_a_label_may_be_tested_only(root, fast, capsys):
    """A teacher that was downloaded has results and no training."""
    for path in (root / 'experiments' / 'teacher').iterdir():
        path.unlink()
    (root / 'experiments' / 'teacher').rmdir()
    compare.main(['teacher', 'alone=alone_s*', '--root', str(root), '--size', '8x8'])
    assert 'curve.png' in capsys.readouterr().out


def ensemble(root, name):
    path = root / 'results' / name / 'options.yml'
    options = yaml.safe_load(path.read_text())
    options['val']['self_ensemble'] = True
    path.write_text(yaml.safe_dump(options))


def test_self_ensemble_is_labelled_and_not_mixed_with_plain_tests(root, fast, capsys):
    for name in ('alone_s1', 'alone_s2'):
        ensemble(root, name)
    compare.main(['alone=alone_s*', '--root', str(root), '--size', '8x8'])
    assert 'With x8 self-ensemble, eight passes per image; MACs and time are of one.' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        compare.main(['alone=alone_s*', 'kd=kd_s1', '--root', str(root)])
    assert 'was tested with `val.self_ensemble`, the other without. Test both alike.' in capsys.readouterr().err
    compare.main(['kd=kd_s1', '--root', str(root), '--size', '8x8'])
    assert 'self-ensemble' not in capsys.readouterr().out


def test_images_are_optional(root, fast, capsys):
    (root / 'results' / 'teacher' / 'visualization' / 'Tiny' / '0_teacher.png').unlink()
    compare.main(['teacher', '--root', str(root), '--size', '8x8'])
    assert 'save_img: true' in capsys.readouterr().out


@pytest.mark.parametrize('entries, message', [
    (['alone_s3'], r'There is no experiment `alone_s3`.*Did you mean `alone_s\d`'),
    (['a=teacher', 'a=alone_s1'], 'label `a` is there twice'),
    (['both=teacher,alone_s1'], 'different networks'),
    (['untested'], 'has no results. Run: python test.py'),
    (['teacher', 'fewer'], 'other images'),
    (['teacher', 'shaved'], 'define `psnr` differently'),
])
def test_refusals(root, images, entries, message):
    (root / 'experiments' / 'untested').mkdir()
    (root / 'experiments' / 'untested' / 'options.yml').write_text('name: untested')
    write_experiment(root, images, 'fewer', TEACHER, [30.], 0)
    write_experiment(root, images, 'shaved', TEACHER, [34., 36.], 0)
    options = (root / 'results' / 'shaved' / 'options.yml')
    options.write_text(options.read_text().replace('crop_border: 2', 'crop_border: 4'))
    with pytest.raises(OptionError, match=message):
        results.load_groups(root, entries, None)


def test_a_wildcard_takes_no_output_folder_for_an_experiment(root, images, fast, capsys):
    for name in ('alone_s1', 'alone_s2', 'kd_s1', 'kd_s2', 'teacher'):
        (root / 'results' / f'{name}_archived_20240101_000000').mkdir()
    for name in ('compare', 'demo'):
        (root / 'results' / name).mkdir()
    (root / 'experiments' / 'demo_logs').mkdir()
    assert results.find_runs(root, ['*']) == {'*': sorted(PSNR)}
    with pytest.raises(OptionError, match='There is no experiment `compare`.*options.yml'):
        results.find_runs(root, ['compare'])


def test_a_test_by_another_model_is_told_from_none(root):
    path = root / 'results' / 'teacher'
    (path / 'metrics_Tiny.json').unlink()
    (path / 'options.yml').write_text((path / 'options.yml').read_text() + 'model_type: SRModel\n')
    with pytest.raises(OptionError, match='with model_type: SRModel, left no .* Test it with model_type: Distill'):
        results.load_groups(root, ['teacher'], None)


@pytest.mark.parametrize('content', ['', '{"dataset": "Tiny", "mean": {"psnr": 3', '[]', '{}', '{"images": {}}',
                                     '{"images": {"0": 3}}', '{"images": {"0": {"psnr": 3}, "1": {}}}',
                                     '{"images": {"0": {"psnr": 3}, "1": {"ssim": 1}}}', 'å'])
def test_damaged_metrics_are_named(root, content, capsys):
    (root / 'results' / 'alone_s1' / 'metrics_Tiny.json').write_bytes(content.encode('latin-1'))
    with pytest.raises(SystemExit):
        compare.main(['alone_s*', '--root', str(root)])
    error = capsys.readouterr().err
    assert 'alone_s1/metrics_Tiny.json is damaged' in error and 'Test `alone_s1` again' in error
    assert error.count('\n') == 1


def curve_of(root, text: str) -> dict[int, float]:
    """The curve of alone_s1 with that validation.jsonl."""
    (root / 'experiments' / 'alone_s1' / 'validation.jsonl').write_text(text)
    groups, _ = results.load_groups(root, ['alone_s1'], None)
    results.load_curves(root, groups, None, None)
    return groups[0].runs[0].curve


def validation(iteration: int, psnr: float) -> str:
    return json.dumps({'iter': iteration, 'dataset': 'Tiny', 'metrics': {'psnr': psnr}}) + '\n'


def test_a_last_line_cut_short_is_left_out_and_another_is_named(root):
    whole, half = validation(1, 20.) + validation(2, 21.), validation(3, 22.)[:-9]
    assert curve_of(root, whole + half) == {1: 20., 2: 21.}
    assert curve_of(root, half) == {}
    for damaged in (half, half[:-3] + validation(3, 22.)[:-1], '{}', '7'):
        with pytest.raises(OptionError, match='Line 3 of .*validation.jsonl is damaged. Remove'):
            curve_of(root, f'{whole}{damaged}\n{validation(4, 23.)}')


def test_of_an_iteration_validated_twice_the_last_one_counts(root):
    text = validation(1, 20.) + validation(2, 21.) + validation(3, 22.) + validation(2, 25.) + validation(3, 26.)
    assert curve_of(root, text) == {1: 20., 2: 25., 3: 26.}


@pytest.mark.parametrize('count', [-1, 0])
def test_a_picture_without_crops_is_refused(root, count, capsys):
    with pytest.raises(SystemExit):
        compare.main(['teacher', '--root', str(root), '--crops', str(count)])
    assert f'--crops {count} leaves no picture' in capsys.readouterr().err


def test_curves_that_cannot_be_drawn_are_left_out(root, fast):
    """One seed without validations, none in common, and a training that diverged."""
    (root / 'experiments' / 'alone_s1' / 'validation.jsonl').unlink()
    compare.compare(root, ['alone_s*'], root / 'out', size=(8, 8))
    assert not (root / 'out' / 'curve.png').exists()
    curve_of(root, validation(7, 20.))
    compare.compare(root, ['alone_s*'], root / 'out', size=(8, 8))
    assert not (root / 'out' / 'curve.png').exists()
    curve_of(root, validation(1, float('nan')))
    compare.compare(root, ['alone_s1'], root / 'out', size=(8, 8))
    assert (root / 'out' / 'curve.png').exists()


@pytest.fixture
def twins(root, images):
    """The teacher tested on 0.bmp and 0.png, which the test calls `0` and `0.png`."""
    for folder in ('hr', 'lr'):
        (root / folder).mkdir()
        for i, extension in enumerate(('bmp', 'png')):
            cv2.imwrite(str(root / folder / f'0.{extension}'), cv2.imread(str(images / folder / f'{i}.png')))
    result = root / 'results' / 'teacher'
    options = yaml.safe_load((result / 'options.yml').read_text())
    options['datasets']['test_1'].update(dataroot_gt=str(root / 'hr'), dataroot_lq=str(root / 'lr'))
    (result / 'options.yml').write_text(yaml.safe_dump(options))
    metrics = (result / 'metrics_Tiny.json').read_text()
    (result / 'metrics_Tiny.json').write_text(metrics.replace('"1": {', '"0.png": {'))
    pictures = result / 'visualization' / 'Tiny'
    (pictures / '1_teacher.png').rename(pictures / '0.png_teacher.png')
    return root


def test_images_of_one_stem_are_told_apart(twins, images):
    run = results.load_groups(twins, ['teacher'], None)[0][0].runs[0]
    pictures = results.Pictures(twins, run, 'Tiny')
    for name, i in (('0', 0), ('0.png', 1)):
        np.testing.assert_array_equal(pictures.lr(name), cv2.imread(str(images / 'lr' / f'{i}.png')))
        np.testing.assert_array_equal(pictures.gt(name), cv2.imread(str(images / 'hr' / f'{i}.png')))
        assert pictures.output(run, name) is not None


@pytest.mark.parametrize('name', ['7', '1.png', 'folder/1'])
def test_images_that_are_not_in_the_dataset_are_named(root, name):
    path = root / 'results' / 'teacher' / 'metrics_Tiny.json'
    path.write_text(path.read_text().replace('"1": {', f'"{name}": {{'))
    with pytest.raises(OptionError, match=f'`Tiny` are not those that `teacher` was tested on: .* no `{name}`. Put'):
        compare.compare(root, ['teacher'], root / 'out')
    assert not (root / 'out').exists()


def test_datasets_are_chosen(root):
    for name in ('alone_s1', 'alone_s2'):
        folder = root / 'results' / name
        (folder / 'metrics_Other.json').write_text((folder / 'metrics_Tiny.json').read_text())
    assert results.choose_dataset(root, ['teacher', 'alone_s1'], None) == 'Tiny'
    with pytest.raises(OptionError, match='Choose one by --dataset'):
        results.choose_dataset(root, ['alone_s1', 'alone_s2'], None)
    with pytest.raises(OptionError, match='`teacher` was not tested on `Other`, only on Tiny'):
        results.choose_dataset(root, ['teacher', 'alone_s1'], 'Other')


@pytest.mark.parametrize('flags, message', [
    (['--versus', 'teacher', 'nobody'], 'There is no label `nobody`'),
    (['--reference', 'nobody'], 'There is no label `nobody`'),
    (['--curve-metric', 'lpips'], 'Choose from: Tiny psnr'),
    (['--bicubic', 'nowhere'], 'missing or no image'),
])
def test_a_mistake_ends_in_one_line(root, flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        compare.main(['teacher', '--root', str(root), *flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def add_metrics_of_the_set(root, only: bool = False) -> None:
    """A metric of the whole set beside those of the images, or alone, in the results of all runs."""
    for i, name in enumerate(PSNR):
        folder = root / 'results' / name
        opt = yaml.safe_load((folder / 'options.yml').read_text())
        opt['val']['metrics'] = {'fid': {'type': 'RandomFID', 'better': 'lower'},
                                 **({} if only else opt['val']['metrics'])}
        (folder / 'options.yml').write_text(yaml.safe_dump(opt, sort_keys=False))
        content = json.loads((folder / 'metrics_Tiny.json').read_text())
        content['mean'] = {'fid': 10. + i, **({} if only else content['mean'])}
        content['images'] = {image: {} if only else values for image, values in content['images'].items()}
        (folder / 'metrics_Tiny.json').write_text(json.dumps(content))


def test_a_metric_of_the_whole_set(root, fast):
    """It is in the table with its spread over the seeds, but not paired by image, and bicubic has none."""
    add_metrics_of_the_set(root)
    report = compare.compare(root, ENTRIES, root / 'out', bicubic=True, pair=['distilled', 'alone'], size=(8, 8))
    assert [row['metrics']['fid']['mean'] for row in report['networks']] == [10., 11.5, 13.5]
    assert [result['metric'] for result in report['versus']] == ['psnr', 'ssim']
    assert set(report['bicubic']['0']) == {'psnr', 'ssim'}
    table = (root / 'out' / 'table.md').read_text()
    assert '11.50 ± 0.71' in table and 'RandomFID' in table


def test_metrics_of_the_set_alone(root, fast):
    add_metrics_of_the_set(root, only=True)
    report = compare.compare(root, ENTRIES, root / 'out', bicubic=True, pair=['distilled', 'alone'], size=(8, 8))
    assert list(report['metrics']) == ['fid'] and report['versus'] == []
    assert (root / 'out' / 'comparison.png').exists()


def test_a_metric_that_one_test_left_out_is_named(root):
    path = root / 'results' / 'kd_s2' / 'metrics_Tiny.json'
    content = json.loads(path.read_text())
    for values in (content['mean'], *content['images'].values()):
        del values['ssim']
    path.write_text(json.dumps(content))
    with pytest.raises(OptionError, match='`kd_s2` has no `ssim`: its test left it out, and its log says why'):
        results.load_groups(root, ENTRIES, None)


def test_a_metric_that_is_unavailable_here_is_left_out_of_bicubic(root, fast, monkeypatch, capsys):
    def unavailable(data, option):
        if option['type'] == 'calculate_ssim':
            raise MetricUnavailable('No weights.')
        return 30.
    monkeypatch.setattr(compare, 'calculate_metric', unavailable)
    report = compare.compare(root, ENTRIES, root / 'out', bicubic=True, size=(8, 8))
    assert report['bicubic']['1'] == {'psnr': 30.}
    assert capsys.readouterr().out.count('No ssim of bicubic interpolation. No weights.') == 1
