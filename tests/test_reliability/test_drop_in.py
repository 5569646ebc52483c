"""Under BasicSR's own loop: what a state restores there."""
from pathlib import Path

import basicsr.train
import torch
from basicsr.utils import check_resume

from kd_models.distillation_model import DistillationModel
from kd_utils import checkpoint
from tests.test_reliability.harness import Experiment


def everything(model):
    """Fingerprints of what a state is to restore."""
    parts = {'net_g': model.net_g.state_dict(), 'net_g_ema': model.net_g_ema.state_dict(),
             'net_d': model.net_d.state_dict(), 'aux': model.aux.state_dict(), 'own': model.own_state(),
             'optimizers': [optimizer.state_dict() for optimizer in model.optimizers],
             'schedulers': [[scheduler.last_epoch, scheduler._last_lr] for scheduler in model.schedulers],
             'best': model.best_metric_results}
    return ' '.join(f'{name}:{checkpoint.fingerprint(part)[:8]}' for name, part in parts.items())


def load_resume_state(opt):
    """BasicSR's, with `map_location='cpu'`: its own asks for the current GPU."""
    folder = f'{opt["path"]["experiments_root"]}/training_states'
    newest = max(float(path.stem) for path in Path(folder).glob('*.state'))
    opt['path']['resume_state'] = f'{folder}/{newest:.0f}.state'
    state = torch.load(opt['path']['resume_state'], map_location='cpu')
    check_resume(opt, state['iter'])
    return state


def observed():
    """Prints what is there when the model is saved and resumed."""
    save, resume = DistillationModel.save, DistillationModel.resume_training

    def saved(model, epoch, current_iter):
        save(model, epoch, current_iter)
        print(f'saved {current_iter} {everything(model)}', flush=True)

    def resumed(model, state):
        resume(model, state)
        print(f'resumed {state["iter"]} {everything(model)}', flush=True)
    DistillationModel.save, DistillationModel.resume_training = saved, resumed


def test_saved_and_resumed_by_the_stock_loop(tmp_path, images):
    experiment = Experiment(tmp_path, images, train__total_iter=6, val__val_freq=2, logger__save_checkpoint_freq=3)
    stock = ('--loop', 'basicsr')
    # BasicSR saves before it validates, so the best metrics of iteration 3's state are those of iteration 2
    first = experiment.start(*stock, '--force_yml', 'train:total_iter=3', before=observed)
    assert first.wait() == 0, first.text()[-3000:]
    saved = [line.split(' ', 2)[2] for line in first.text().splitlines() if line.startswith('saved 3 ')]

    def resumable():
        basicsr.train.load_resume_state = load_resume_state
        observed()
    second = experiment.start(*stock, '--auto_resume', before=resumable)
    assert second.wait() == 0, second.text()[-3000:]
    resumed = [line.split(' ', 2)[2] for line in second.text().splitlines() if line.startswith('resumed 3 ')]
    assert len(saved) == 1 and saved == resumed
    assert experiment.states() == [3, 6] and set(experiment.curve()) >= {(2, 'Tiny'), (4, 'Tiny'), (6, 'Tiny')}
