"""Networks that BasicSR lacks, registered by the file-name scan of kd_models."""
import kd_utils  # noqa: F401  makes basicsr importable
from kd_arch import stylegan2_ops

stylegan2_ops.install()  # BasicSR's StyleGAN2 networks run without its compiled extension
