"""The check of an option file, section by section."""
from __future__ import annotations

from kd_utils.schema.datasets import DatasetChecks
from kd_utils.schema.networks import NetworkChecks
from kd_utils.schema.tables import DIST_PARAMS, LOGGER, REAL_ESRGAN, RUN, TOP, WANDB
from kd_utils.schema.training import TrainingChecks


class Checker(NetworkChecks, TrainingChecks, DatasetChecks):
    """One pass over the options."""

    def check(self) -> list[str]:
        """The warnings; refuses at the first thing that is wrong."""
        self.check_model()
        self.check_sets()
        networks = {key: value for key, value in self.opt.items() if str(key).startswith('network_')}
        self.check_networks('', {key: networks.pop(key) for key in ('network_g', ) if key in networks})
        self.table('', self.opt, self.extended('', {**TOP, **RUN, **REAL_ESRGAN, **self.networks()}), self.training,
                   None if self.strict else self.refuse_in_our_loop)
        self.check_stock_model()
        self.check_teachers()
        self.check_path()
        self.check_datasets()
        self.check_networks('', networks)  # a method may have derived what they lack from all of the above
        self.check_val()
        self.check_simple('logger', LOGGER)
        self.check_retention()
        self.check_simple('logger.wandb', WANDB)
        self.check_wandb()
        self.check_simple('dist_params', DIST_PARAMS)
        if self.training and self.opt.get('train'):
            self.check_train()
        return self.warnings
