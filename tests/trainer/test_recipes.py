"""Each packaged recipe can be trained with, explains itself, and stands in the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from omniges.errors import UsageFault
from omniges.trainer.recipe import load_settings, packaged_recipes

ROOT = Path(__file__).parents[2]
RECIPES = packaged_recipes()


def test_the_table_of_the_docs_has_each_recipe_with_a_command_that_names_it() -> None:
    page = (ROOT / "docs/how-to/recipes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \|.*--recipe ([\w-]+) ", page, re.MULTILINE)
    assert sorted(rows) == [(name, name) for name in sorted(RECIPES)]


@pytest.mark.parametrize("name", RECIPES)
class TestEach:
    def test_is_taken_by_name_and_gives_valid_settings(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir("/")
        by_name = load_settings(Path(name), {})
        assert by_name == load_settings(RECIPES[name], {})
        assert by_name.max_train_steps or by_name.max_minutes

    def test_flags_override_it(self, name: str) -> None:
        assert load_settings(Path(name), {"max_train_steps": 7}).max_train_steps == 7

    def test_says_how_to_run_it_and_what_its_sizes_are_for(self, name: str) -> None:
        lines = RECIPES[name].read_text(encoding="utf-8").splitlines()
        assert any(f"train --recipe {name} " in line for line in lines if line.startswith("#"))
        unexplained = [
            line for line in lines if not line.startswith("#") and "#" not in line and not line.endswith(":")
        ]
        # the steps between checkpoints and validations, and processes, say enough by their names
        assert all(re.match(r"(checkpointing-steps|validation-steps|num-workers):", line) for line in unexplained)


def test_a_name_that_no_recipe_has_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageFault, match=f"--recipe beat3: .*name a recipe of omniges .{', '.join(RECIPES)}.$"):
        load_settings(Path("beat3"), {})


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("seed: 0o17", "seed 0o17"),
        ("max-train-steps: [3]", "max_train_steps"),
        ("pretrained_weights: ema", "pretrained_weights"),
        ("flow: {nothing: 1}", "flow"),
    ],
)
def test_an_error_in_a_recipe_names_the_recipe_and_its_key(tmp_path: Path, line: str, key: str) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"shards: [x]\n{line}\n")
    with pytest.raises(UsageFault) as caught:
        load_settings(recipe, {})
    assert str(caught.value).startswith(f"--recipe {recipe}: {key}")
    assert caught.value.on_command_line is None


def test_an_error_in_a_flag_names_the_flag(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("shards: [x]\nseed: 0o17\n")
    with pytest.raises(UsageFault, match=r"^seed 0o18: expected a whole number") as caught:
        load_settings(recipe, {"seed": "0o18"})
    assert str(caught.value.on_command_line).startswith("--seed 0o18")


def test_a_file_of_ones_own_stays_possible(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("max-train-steps: 3\n")
    assert load_settings(tmp_path / "mine.yaml", {}).max_train_steps == 3


def test_speaker_2_and_all_speakers_learn_all_six_tasks_and_gesture_only_three() -> None:
    shares = {name: load_settings(Path(name), {}).flow_settings().shares for name in RECIPES}
    assert set(shares["gesture-only"]) == {"a2g", "t2g", "ta2g"}
    assert all(len(shares[name]) == 10 for name in RECIPES if name != "gesture-only")
