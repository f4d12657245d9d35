"""Measures `omniges preprocess` beside a straightforward conversion, per stage, and in memory.

``python benchmarks/preprocess.py`` writes a synthetic corpus, converts it as a whole process through the installed
command and, in turns, with librosa, scipy and praatio in one process (`straightforward.py`), and prints what both
took. Timings are wall-clock medians of repeated runs with their spread: nothing here is a pass or a fail.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from corpora import MAX_COPIES, find_recordings, fit_for_links, link_corpus, make_corpus, say, spread
from machine import describe_machine
from measure import Usage, run_measured
from report import print_report

from omniges.errors import OmnigesError
from omniges.pipeline.convert import ConvertSettings
from omniges.pipeline.discover import Recording
from omniges.pipeline.protocol import encode_recording
from omniges.pipeline.supervisor import WORKER_COMMAND, Supervisor

HERE: Final = Path(__file__).resolve().parent
COMMAND: Final = Path(sys.executable).with_name("omniges")
LONG_RECORDING_S: Final = 660.0
