"""Model specs from YAML, and errors that a person can act upon."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from console.specs import load_spec
from state.errors import InputError
from state.spec import FilesData

GOOD = """\
model: churn
owner: team
task: binary
data:
  kind: files
  path: rows.csv
  time: when
  label: {column: paid, delay: P7D}
features:
  - {name: amount, type: numeric}
  - {name: shop, type: categorical}
training:
  kind: recipe
  candidates:
    - {name: hgb, estimator: hist_gradient_boosting}
objective: {metric: roc_auc, op: ">=", value: 0.7}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "churn.yaml"
    path.write_text(text)
    return path


def refused(tmp_path: Path, text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load_spec(write(tmp_path, text))
    return caught.value


def test_a_good_spec_comes_with_its_folder_and_digest(tmp_path: Path) -> None:
    loaded = load_spec(write(tmp_path, GOOD))
    assert loaded.spec.feature_names() == ["amount", "shop"]
    assert loaded.spec.data.label.delay == timedelta(days=7)
    assert isinstance(loaded.spec.data, FilesData)
    assert loaded.base_path == tmp_path
    assert len(loaded.sha256) == 64
    assert loaded.notes == ()
    assert load_spec(write(tmp_path, GOOD + "# a comment\n")).sha256 != loaded.sha256


@pytest.mark.parametrize(("old", "new", "message", "remedy"), [
    pytest.param(
        "metric: roc_auc", "metric: auc", "churn.yaml:16: objective.metric is 'auc'", "roc_auc", id="unknown-metric"
    ),
    pytest.param("owner: team\n", "", "churn.yaml:1: owner is missing", "Add `owner`", id="missing-field"),
    pytest.param("owner:", "ower:", "churn.yaml:2: ower is not a field", "Did you mean owner?", id="misspelt-field"),
    pytest.param(
        "  time: when", "  tiem: when", "churn.yaml:7: data.tiem is not a field", "mean time?", id="nested"
    ),
    pytest.param("P7D", "week", "churn.yaml:8: data.label.delay is 'week'", "P14D is 14 days", id="duration"),
    pytest.param("P7D", "7", "churn.yaml:8: data.label.delay is 7, not a duration", "P14D is 14 days", id="bare-number"),
    pytest.param("P7D", "-P7D", "data.label.delay is -7 days, 0:00:00: input should be greater", "Correct", id="negative"),
    pytest.param(
        "task: binary", "task: binary\nmonitoring: {block: P0D}", "monitoring.block is 0:00:00: input should be greater",
        "Correct", id="block-of-nothing",
    ),
    pytest.param(
        "task: binary", "task: binary\nmonitoring: {block: P200000000D}", "monitoring.block is 200000000 days, 0:00:00: input",
        "Correct", id="block-beyond-the-calendar",
    ),
    pytest.param(
        "type: categorical", "type: category", "churn.yaml:11: features[1].type is 'category'",
        "Did you mean categorical?", id="feature-type",
    ),
    pytest.param("name: shop", "name: amount", "amount is listed more than once", "Correct", id="feature-twice"),
    pytest.param("name: shop", "name: paid", "'paid' is the label", "Correct", id="label-as-feature"),
    pytest.param(
        "name: shop", "name: version", "churn.yaml:11: features[1].name is 'version'", "Rename", id="reserved-name"
    ),
    pytest.param("name: shop", "name: when", "features[1].name is 'when', the event time", "Derive", id="time-feature"),
    pytest.param("model: churn", "model: My Model", "churn.yaml:1: model is 'My Model'", "lower-case", id="name"),
    pytest.param("kind: files", "kind: file", "data is 'file'", "Did you mean files?", id="unknown-kind"),
    pytest.param("  kind: files\n", "", "churn.yaml:4: data.kind is missing", "kind: files", id="no-kind"),
    pytest.param("task: binary", "task: regression", "objective.metric is 'roc_auc'", "Correct", id="task-and-metric"),
    pytest.param("value: 0.7", "value: high", "churn.yaml:16: objective.value is 'high'", "Correct", id="not-a-number"),
    pytest.param("owner: team", "owner: team\nowner: me", "churn.yaml:3: 'owner' is set twice", "one", id="key-twice"),
    pytest.param("task: binary", "task: [binary", "churn.yaml:4:5: not valid YAML", "indentation", id="bad-yaml"),
    pytest.param("owner: team", "owner: !!python/name:os.system", "not a plain YAML", "text", id="python-tag"),
])  # fmt: skip
def test_a_fault_is_named_with_line_field_value_and_remedy(
    tmp_path: Path, old: str, new: str, message: str, remedy: str
) -> None:
    assert old in GOOD
    error = refused(tmp_path, GOOD.replace(old, new))
    assert message in error.message
    assert remedy in error.remedy


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("P7D", "week").replace("owner:", "ower:").replace("type: numeric", "type: number")
    message = refused(tmp_path, text).message
    assert [f"churn.yaml:{line}:" in message for line in (1, 2, 8, 10)] == [True] * 4


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "churn\n", "5\n"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "churn.yaml" in refused(tmp_path, text).message


def test_a_missing_or_binary_file_is_refused_with_a_hint(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(InputError, match=r"Did you mean churn\.yaml"):
        load_spec(tmp_path / "chrun.yaml")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1\x80\xff\x00")
    with pytest.raises(InputError, match="not UTF-8 text"):
        load_spec(tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="cannot be read"):
        load_spec(tmp_path)


def test_kinds_that_are_not_served_yet_pass_with_a_note(tmp_path: Path) -> None:
    text = GOOD.replace("kind: recipe\n  candidates:\n    - {name: hgb, estimator: hist_gradient_boosting}",
                        "kind: command\n  image: team/train:1\n  command: [train]")  # fmt: skip
    loaded = load_spec(write(tmp_path, text + "serving: {kind: endpoint, url: 'http://models/churn'}\n"))
    assert [note.split(":")[0] for note in loaded.notes] == ["training.kind command", "serving.kind endpoint"]


def test_a_deeply_nested_file_ends_in_an_error_of_ours(tmp_path: Path) -> None:
    assert "churn.yaml" in refused(tmp_path, "a: " + "[" * 1_500).message


def test_steps_that_the_shipped_policy_denies_are_noted_before_a_rollout_waits_at_them(tmp_path: Path) -> None:
    steps = GOOD + "rollout: {steps: [5, 20]}\n"

    assert load_spec(write(tmp_path, steps)).notes == ()
    (note,) = load_spec(write(tmp_path, steps + "tier: critical\n")).notes
    assert "from 20 to 50 %" in note
    assert "25 points" in note


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        pytest.param("[shops]", "'shops' is not a feature", id="unknown"),
        pytest.param("[shop, amount]", "'amount' is numeric", id="numeric"),
        pytest.param("[shop, shop]", "listed more than once", id="twice"),
    ],
)
def test_segments_are_levels_of_categorical_or_boolean_features(tmp_path: Path, segments: str, message: str) -> None:
    error = refused(tmp_path, GOOD + f"monitoring: {{segments: {segments}}}\n")

    assert "churn.yaml" in str(error)
    assert "monitoring.segments" in str(error)
    assert message in str(error)


def test_segments_may_be_named_or_left_out_altogether(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, GOOD)).spec.monitoring.segments is None
    assert load_spec(write(tmp_path, GOOD + "monitoring: {segments: []}\n")).spec.monitoring.segments == []
