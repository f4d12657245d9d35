"""One case of lost power: record a run, keep what the model of the disk keeps, go on from there."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from crash_calls import Call, Recorder, kind_of, tapped
from crash_model import PowerLoss, RandomPowerLoss, Tree, order_faults, read_tree, replay, write_tree
from crash_scenarios import Scenario, end_faults, preprocess_here, state_faults

from omniges.errors import OmnigesError

_MAX_IN_A_ROW: Final = 3


@dataclass
class Result:
    """Result of a case: its actions and its faults."""

    index: int
    scenario: str
    moments: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def laid_out(tree: Tree, folder: Path) -> Path:
    """Make a watched folder that holds the tree; the output folder in it."""
    write_tree(tree, folder / "watched")
    return folder / "watched/out"


def recorded(scenario: Scenario, out: Path, *, first: bool) -> list[Call]:
    """The calls of a run in this process."""
    recorder = Recorder()
    with tapped(out.parent, recorder):
        preprocess_here(scenario, out, first=first)
    return recorder.calls


def survive(scenario: Scenario, tree: Tree, calls: list[Call], moment: int, loss: PowerLoss, folder: Path) -> Result:
    """Lose the power before the call `moment` of a recording that began with `tree`, then finish."""
    result = Result(moment, scenario.name, [_name_of(calls, moment)])
    out = laid_out(replay(tree, calls[:moment]).survivors(loss), folder)
    result.faults += state_faults(scenario, out)
    if moment == len(calls) and scenario.begun_root is None and end_faults(scenario, out):
        result.faults.append("lost: a finished run did not survive")
    try:
        preprocess_here(scenario, out)
    except (OmnigesError, ValueError) as error:  # ValueError: JSON or text that could not be read back
        result.faults.append(f"failed: {type(error).__name__}: {error}")
    else:
        result.faults += end_faults(scenario, out)
    return result


def _name_of(calls: list[Call], moment: int) -> str:
    if moment == len(calls):
        return "after the last call"
    return f"before {kind_of(calls[moment])}"


def power_loss_case(scenario: Scenario, work: Path, seed: int, index: int) -> Result:
    """Lose the power up to three times in a row, each time in the run that goes on from the last; then finish."""
    rng = random.Random(f"{seed} {index}")
    result = Result(index, scenario.name)
    out = scenario.begin(work / f"case-{index}")
    in_a_row = rng.choice((1, 1, 2, _MAX_IN_A_ROW))
    for turn in range(in_a_row):
        tree = read_tree(out.parent)
        try:
            calls = recorded(scenario, out, first=turn == 0)
        except OmnigesError as error:
            result.faults.append(f"failed: {error}")
            return result
        result.faults += [f"order: {fault}" for fault in order_faults(calls)]
        if replay(tree, calls).tree() != read_tree(out.parent):
            result.faults.append("failed: the recording is not complete")
        moment = rng.randrange(len(calls) + 1)
        if turn == in_a_row - 1:
            last = survive(scenario, tree, calls, moment, RandomPowerLoss(rng), work / f"case-{index}-{turn}")
            result.moments += last.moments
            result.faults += last.faults
            break
        out = laid_out(replay(tree, calls[:moment]).survivors(RandomPowerLoss(rng)), work / f"case-{index}-{turn}")
        result.moments.append(_name_of(calls, moment))
        result.faults += state_faults(scenario, out)
    return result
