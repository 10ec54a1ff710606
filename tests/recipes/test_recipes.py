from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scalekd import recipes
from scalekd.errors import UserError
from scalekd.recipes import GROUPS, Recipe, dump, load, names


@pytest.mark.parametrize("name", names())
def test_every_shipped_recipe_loads_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load(name, {})
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(recipe))
    assert load(file, {}) == recipe


def test_the_defaults_are_the_papers() -> None:
    recipe = Recipe()
    assert (recipe.alpha_spatial, recipe.alpha_frequency, recipe.softmax_scale) == (0.08, 0.06, 5.0)
    assert (recipe.temperature, recipe.ofa_gamma, recipe.views) == (1.0, 1.5, ("spatial", "frequency"))


def test_every_key_belongs_to_one_group_and_says_what_it_means() -> None:
    grouped = [name for group in GROUPS for name in group.model_fields]
    assert sorted(grouped) == sorted(Recipe.model_fields)
    assert all(field.description for field in Recipe.model_fields.values())


def test_overrides_win() -> None:
    assert load("imagenette", {"epochs": 3}).epochs == 3


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"epcohs": 3}, ("epcohs", "did you mean 'epochs'")),
        ({"lr": -1}, ("lr", "-1")),
        ({"method": "magic"}, ("method", "magic")),
        ({"views": []}, ("views",)),
        ({"query": "proxy", "tpp": False}, ("query",)),
        ({"crop_scale": [0.5, 0.2]}, ("crop_scale",)),
        ({"epochs": 4, "warmup_epochs": 4}, ("warmup_epochs",)),
    ],
)
def test_a_wrong_key_or_value_is_named(keys: dict[str, object], parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refusal:
        load(None, keys)
    assert "\n" not in str(refusal.value)
    for part in parts:
        assert part in str(refusal.value)


@given(key=st.text(max_size=20), value=st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10))
def test_any_other_key_is_refused_in_one_line(key: str, value: object) -> None:
    if key not in Recipe.model_fields:
        with pytest.raises(UserError, match="unknown key"):
            load(None, {key: value})


@pytest.mark.parametrize(
    ("text", "part"),
    [("- a\n- b", "mapping"), ("lr: [", "not valid YAML"), ("!!python/name:os.system", "not valid YAML")],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=part):
        load(file, {})


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'imagenette'"):
        load("imagenete", {})
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "none.yaml", {})


FOLDER = Path(recipes.__file__).parent


@pytest.mark.parametrize("file", sorted(FOLDER.rglob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_files_name_no_key_twice(file: Path) -> None:
    text = file.read_text()
    keys = [line.split(":")[0] for line in text.splitlines() if line and line[0].isalpha()]
    assert sorted(keys) == sorted(yaml.safe_load(text))


# The paper's settings: strategy, optimiser, lr, batch, weight decay, epochs, warm-up, clip, EMA, erasing, smoothing.
STRATEGIES: dict[str, tuple[Any, ...]] = {
    "traditional": ("sgd", 0.1, 256, 1e-4, 100, 0, None, None, 0.0, 0.0),
    "traditional, MobileNet": ("sgd", 0.1, 256, 1e-4, 100, 0, None, None, 0.0, 0.1),
    "resnet": ("lamb", 5e-3, 2048, 0.02, 300, 5, 5.0, None, 0.25, 0.0),
    "mobilenet": ("lamb", 2e-3, 2048, 0.004, 300, 5, None, None, 0.0, 0.1),
    "adamw": ("adamw", 1e-3, 1024, 0.05, 300, 20, 5.0, None, 0.25, 0.1),
    "adamw + EMA": ("adamw", 1e-3, 1024, 0.05, 300, 20, 5.0, 0.9999, 0.25, 0.1),
    "mixer": ("adamw", 7e-4, 1536, 0.067, 300, 20, 1.0, 0.9999, 0.25, 0.0),
}
PAIRS = {
    "swin_large-mobilenetv1": ("mobilenetv1_100", "mobilenet", 0.875),
    "swin_large-resnet50": ("resnet50", "resnet", 0.875),
    "swin_large-convnext_tiny": ("convnext_tiny", "adamw + EMA", 0.875),
    "swin_large-mixer_s16": ("mixer_s16_224", "mixer", 0.875),
    "swin_large-mixer_b16": ("mixer_b16_224", "mixer", 0.875),
    "swin_large-vit_small16": ("vit_small_patch16_224", "adamw", 1.0),
    "swin_large-swin_tiny": ("swin_tiny_patch4_window7_224", "adamw + EMA", 1.0),
    "swin_large-vit_base16": ("vit_base_patch16_224", "adamw + EMA", 1.0),
    "eva_large-resnet50": ("resnet50", "resnet", 0.875),
    "eva_large-mixer_b14": ("mixer_b14_224", "mixer", 0.875),
    "eva_large-vit_base14": ("vit_base_patch16_224", "adamw + EMA", 1.0),
    "swin_small-resnet50": ("resnet50", "traditional", 0.875),
    "swin_base-resnet50": ("resnet50", "traditional", 0.875),
    "swin_large-resnet50-traditional": ("resnet50", "traditional", 0.875),
    "swin_large-mobilenetv1-traditional": ("mobilenetv1_100", "traditional, MobileNet", 0.875),
}


def test_every_pair_of_the_paper_is_shipped() -> None:
    assert {name for name in names() if "/" in name} == {f"imagenet/{pair}" for pair in PAIRS}
    assert not any("strategies" in name for name in names())


@pytest.mark.parametrize("pair", PAIRS)
def test_the_pairs_settings_are_the_papers(pair: str) -> None:
    student, strategy, crop_fraction = PAIRS[pair]
    r = load(f"imagenet/{pair}", {})
    assert (r.student, r.crop_fraction, r.method, r.logit_weight) == (student, crop_fraction, "scalekd", None)
    settings = (r.optimizer, r.lr, r.batch, r.weight_decay, r.epochs, r.warmup_epochs, r.clip, r.ema, r.erasing)
    assert (*settings, r.label_smoothing) == STRATEGIES[strategy]
    assert r.teacher is not None
    assert r.teacher.startswith(pair.split("-", maxsplit=1)[0])
    assert r.schedule == ("step" if strategy == "traditional" else "cosine")
    assert r.task_loss == ("bce" if strategy == "resnet" else "cross_entropy")
    assert (r.mixup, r.cutmix, r.resolution, r.micro_batch) == (0, 0, 224, None)
    assert (r.batchnorm_over == "all") == (strategy == "traditional")


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_recipe_builds_on_another(tmp_path: Path) -> None:
    write(tmp_path, mine="base: yours.yaml\nepochs: 7\n", yours="base: imagenet/swin_large-resnet50\nlr: 0.5\n")
    recipe = load(tmp_path / "mine.yaml", {})
    assert (recipe.epochs, recipe.lr, recipe.student, recipe.optimizer) == (7, 0.5, "resnet50", "lamb")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("base: mine.yaml", ("its own base",)),
        ("base: strategies/resnett", ("resnett",)),
        ("base: [a]", ("base must name",)),
        ("method: kd\nviews: [spatial]", ("views is no key of method kd", "scalekd")),
        ("method: dist\nofa_gamma: 2", ("ofa_gamma is no key of method dist",)),
        ("method: none\nlogit_weight: 0.3", ("logit_weight is no key of method none",)),
        ("method: none\nlabels: none", ("labels",)),
        ("method: ofa\nlogit_weight: 0", ("logit_weight", "ofa")),
        ("unlabelled_split: val", ("unlabelled_split", "val")),
        ("student_args: {features_only: true}", ("student_args", "features_only")),
        ("batch: 6\nmicro_batch: 4", ("micro_batch: 4 does not divide the batch of 6",)),
        ("stages: [last]\nquery: learned", ("stages", "tpp")),
        ("stages: [last, last]", ("stages", "once")),
        ("no_decay: [bias, bias]", ("no_decay", "once")),
        ("student_maps: [a]", ("student_maps", "value 2 is missing")),
        ("val_split: ''", ("val_split",)),
    ],
)
def test_what_cannot_be_composed_is_named(tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    write(tmp_path, mine=text)
    with pytest.raises(UserError) as refusal:
        load(tmp_path / "mine.yaml", {})
    assert "\n" not in str(refusal.value)
    for part in parts:
        assert part in str(refusal.value)


def test_another_method_leaves_the_recipes_own_keys_behind(tmp_path: Path) -> None:
    """So that one recipe serves all methods; a flag for a key that the method lacks is still an error."""
    write(tmp_path, mine="views: [spatial]\ntemperature: 2\nepochs: 9\n")
    recipe = load(tmp_path / "mine.yaml", {"method": "kd"})
    assert (recipe.method, recipe.views, recipe.temperature, recipe.epochs) == ("kd", ("spatial", "frequency"), 2.0, 9)
    assert "views" not in dump(recipe)
    with pytest.raises(UserError, match="views is no key of method kd"):
        load(tmp_path / "mine.yaml", {"method": "kd", "views": ["spatial"]})


def test_another_batch_scales_the_learning_rates_and_says_so() -> None:
    said: list[str] = []
    recipe = load("imagenet/swin_large-resnet50", {"batch": 512}, said.append)
    assert (recipe.lr, recipe.warmup_lr, recipe.min_lr) == (1.25e-3, 3.125e-4, 0)
    assert len(said) == 1
    assert "2048" in said[0]
    assert "lr 0.005 -> 0.00125" in said[0]
    said.clear()
    assert load("imagenet/swin_large-resnet50", {"batch": 512, "lr": 1e-3}, said.append).lr == 1e-3
    assert load("imagenet/swin_large-resnet50", {"batch": 2048}, said.append).lr == 5e-3
    assert load(None, {"batch": 512}, said.append).lr == Recipe().lr
    assert not said


def test_the_micro_batch_of_another_batch_is_left_open(tmp_path: Path) -> None:
    write(tmp_path, mine="batch: 64\nmicro_batch: 16\n")
    assert load(tmp_path / "mine.yaml", {}).micro_batch == 16
    said: list[str] = []
    assert load(tmp_path / "mine.yaml", {"batch": 10}, said.append).micro_batch is None
    assert "micro_batch" in said[-1]
    assert load(tmp_path / "mine.yaml", {"batch": 10, "micro_batch": 5}).micro_batch == 5


@given(batch=st.integers(1, 10**5))
def test_scaling_is_linear(batch: int) -> None:
    assert load("imagenet/swin_large-swin_tiny", {"batch": batch}).lr == pytest.approx(1e-3 * batch / 1024)


def test_short_runs_warm_up_less_where_nothing_is_said() -> None:
    assert [load(None, {"epochs": epochs}).warmup_epochs for epochs in (1, 2, 20, "30", 300)] == [0, 0, 2, 3, 5]
    assert load(None, {"epochs": 20, "warmup_epochs": 7}).warmup_epochs == 7


def test_maps_are_indices_or_names() -> None:
    assert load(None, {"student_maps": ["2", "4"]}).student_maps == (2, 4)
    assert load(None, {"student_maps": ["layer3", "4.conv"]}).student_maps == ("layer3", "4.conv")
