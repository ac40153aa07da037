"""Named studies: a published claim as a testable sentence, the runs that test it, and the verdict that follows.

A study is one script in ``experiments/``, readable in one sitting. It defines ``STUDY``, and the same call runs it from
its own command line and from ``forgetting study run NAME``. Of a study at a scale is kept, in
``results/<name>/<scale>/``: a folder per grid (see ``results.py``), ``measured`` (what needs weights, which runs do not
keep), ``verdicts.json``, ``summary.csv`` and figures; all but runs and measurements are made again from these alone.
"""

from forgetting.studies.running import conclude, measure_missing, run_grids, run_named, unfinished
from forgetting.studies.scripts import headline, load, main, print_verdicts, scale_of, scripts
from forgetting.studies.sizes import seeds_of, sized
from forgetting.studies.study import MEASURED_WITH, TUNING, Results, Scale, Study

__all__ = [
    "MEASURED_WITH",
    "TUNING",
    "Results",
    "Scale",
    "Study",
    "conclude",
    "headline",
    "load",
    "main",
    "measure_missing",
    "print_verdicts",
    "run_grids",
    "run_named",
    "scale_of",
    "scripts",
    "seeds_of",
    "sized",
    "unfinished",
]
