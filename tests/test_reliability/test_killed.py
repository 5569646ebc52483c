"""kill -9 while checkpoints are being written, and files that were damaged afterwards."""
import os
import random
import time

import pytest

from kd_cli.resume import find_resume_state
from kd_utils import checkpoint
from kd_utils.checkpoint import CheckpointError
from kd_utils.options import OptionError, parse_options
from tests.test_reliability.harness import Experiment, assert_same_end, counted, report


def announce_saves(pipe):
    """Lets this process send a byte before each file that it writes."""
    save = checkpoint.save

    def announced(data, path):
        os.write(pipe, b's')
        return save(data, path)
    checkpoint.save = announced


def test_killed_in_the_middle_of_saves(tmp_path, images):
    """The final weights, state and curve are those of the run that nobody disturbed."""
    kills, draw = counted(12, 200), random.Random(0)
    total = kills + 8
    whole, killed = (Experiment(tmp_path / name, images, train__total_iter=total, val__val_freq=7,
                                logger__keep_last=3) for name in ('whole', 'killed'))
    start = time.monotonic()
    whole.start().wait(600)
    per_file = (time.monotonic() - start) / total / 3
    saves = done = unfinished = 0
    while done < kills:
        reader, writer = os.pipe()
        child = killed.start('--auto_resume', before=lambda pipe=writer: announce_saves(pipe))
        os.close(writer)
        # in the middle of the first files of this process, so that there is work left for all kills
        files = draw.randint(1, 5)
        for _ in range(files):
            if not os.read(reader, 1):
                break
            saves += 1
        time.sleep(draw.random() * min(per_file, 0.02))
        os.close(reader)
        code = child.kill()
        assert code == -9, child.text()[-3000:]
        done += 1
        unfinished += any(killed.folder.glob('*/*.tmp'))
    assert killed.start('--auto_resume').wait(600) == 0
    assert not list(killed.folder.glob('*/*.tmp'))
    assert_same_end(whole, killed)
    report(f'kill -9: {done} kills in {saves} files being written, {unfinished} of them left half-written, '
           f'{total} iterations: weights, state and curve equal the undisturbed run')


@pytest.fixture(scope='module')
def finished(tmp_path_factory, images):
    experiment = Experiment(tmp_path_factory.mktemp('finished'), images, train__total_iter=3, val__val_freq=1)
    assert experiment.start().wait() == 0
    return experiment


def resumed(experiment, *arguments):
    """The iteration from which it would go on."""
    opt, _ = parse_options(['-opt', str(experiment.yaml), '--auto_resume', *arguments], str(experiment.root))
    state = find_resume_state(opt)
    return state and state['iter']


def newest_files(experiment):
    return [experiment.folder / name for name in ('models/net_g_3.pth', 'models/net_d_3.pth',
                                                  'training_states/3.state')]


@pytest.mark.parametrize('size', [0, 1, 0.5, -1, None], ids=['empty', '1_byte', 'half', 'without_last_byte', 'gone'])
def test_cut_files_are_named_and_the_checkpoint_before_is_taken(finished, warnings_logged, size):
    assert resumed(finished) == 3
    for path in newest_files(finished):
        content = path.read_bytes()
        path.unlink()
        if size is not None:
            path.write_bytes(content[:int(len(content) * size) if isinstance(size, float) else size])
        warnings_logged.clear()
        found = resumed(finished)
        path.write_bytes(content)
        gone_state = size is None and path.suffix == '.state'  # then there is no such checkpoint
        assert found == 2 and any(path.name in text for text in warnings_logged) != gone_state


def test_one_flipped_bit_is_noticed(finished, warnings_logged):
    flips, draw, harmless = counted(20, 400), random.Random(0), 0
    expected = checkpoint.fingerprint(checkpoint.load_state(newest_files(finished)[-1]))
    for path in newest_files(finished):
        content = path.read_bytes()
        for _ in range(flips):
            damaged = bytearray(content)
            damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            found = resumed(finished)
            if found == 3:  # the zip file's own bookkeeping, not what is stored in it
                assert path.suffix == '.state' and checkpoint.fingerprint(checkpoint.load_state(path)) == expected
                harmless += 1
        path.write_bytes(content)
    report(f'bit flips: {3 * flips} in 3 files, {3 * flips - harmless} noticed, {harmless} in the bookkeeping of the '
           'state, whose content was proven equal')


def test_a_named_state_that_is_damaged_is_refused(finished):
    path = newest_files(finished)[0]
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    opt, _ = parse_options(['-opt', str(finished.yaml), '--force_yml',
                            f'path:resume_state={finished.folder}/training_states/3.state'], str(finished.root))
    with pytest.raises(CheckpointError, match='net_g_3.pth is not the file that belongs to this state'):
        find_resume_state(opt)
    path.write_bytes(content)


def test_other_networks_than_those_of_the_state_are_refused(finished):
    """`strict_load_g: false` is for the weights that a run starts from, not for its own."""
    child = finished.start('--auto_resume', '--force_yml', 'path:strict_load_g=false', 'network_g:num_feat=6')
    assert child.wait() == 2 and 'net_g_3.pth does not fit' in child.text(), child.text()[-2000:]


def test_a_run_of_which_nothing_is_intact_is_not_archived(finished):
    contents = {path: path.read_bytes() for path in finished.folder.glob('training_states/*.state')}
    for path in contents:
        path.write_bytes(b'')
    with pytest.raises(OptionError, match='found 3 states .* none of them is complete'):
        resumed(finished)
    child = finished.start('--auto_resume')
    assert child.wait() == 2 and 'none of them is complete' in child.text()
    assert len([path for path in finished.folder.parent.iterdir() if path.is_dir()]) == 1
    for path, content in contents.items():
        path.write_bytes(content)


def test_a_state_that_carries_code_is_skipped_and_its_code_is_not_run(finished, warnings_logged):
    import torch

    class Evil:
        def __reduce__(self):
            return (os.system, (f'touch {finished.root}/marker', ))
    path = newest_files(finished)[-1]
    content = path.read_bytes()
    torch.save({'iter': 3, 'epoch': 0, 'optimizers': [Evil()], 'schedulers': []}, path)
    assert resumed(finished) == 2 and any('Python objects' in text for text in warnings_logged)
    path.write_bytes(content)
    assert not (finished.root / 'marker').exists()
