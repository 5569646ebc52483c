"""The ground floor: the host's compatibility, options and checkpoint files. It knows no model, loss or network."""
from kd_utils import compat

compat.install()  # before the first basicsr import of any module above
