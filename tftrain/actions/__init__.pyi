from .digests import Digests as Digests
from .early_stopping import EarlyStopping as EarlyStopping
from .exporter import Export as Export
from .histograms import WeightHistograms as WeightHistograms
from .loss_spike import LossSpike as LossSpike
from .profiler import Profiler as Profiler
