"""Large sampling jobs: many seeds into a folder of shards, resumable, by one process or many.

    from fastddpm.jobs import Job, TorchDrawer

    drawer = TorchDrawer(fastddpm.load(), guidance_scale=1.5)
    Job(drawer, range(50_000), "digits", class_labels=[seed % 10 for seed in range(50_000)]).run()

Data flows one way: `blocks` cuts the seeds, `drawers` make pixels of a block, `shards` writes them,
`manifest` remembers what is there, `job` draws what is missing, `processes` and `ray_workers` say who draws
what, on which cluster `ray_cluster`; `merging` makes one file of all. See docs/scale.md.
"""

from fastddpm.jobs.blocks import Blocks
from fastddpm.jobs.drawers import Drawer, TorchDrawer
from fastddpm.jobs.errors import JobStopped, OtherSettingsError
from fastddpm.jobs.job import Job
from fastddpm.jobs.onnx_drawer import OnnxDrawer

__all__ = ["Blocks", "Drawer", "Job", "JobStopped", "OnnxDrawer", "OtherSettingsError", "TorchDrawer"]
