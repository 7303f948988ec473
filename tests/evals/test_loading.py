"""Scenario files: what is wrong is named by file, line and field, before anything runs."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evals.loading import SCENARIOS, SCHEMA_FILE, load_all, load_scenario, schema_text, spec_of
from evals.scenario import Scenario
from state.errors import InputError
from state.spec import RecipeTraining

GOOD = """\
id: turned
title: The concept turns
family: drift
difficulty: easy
days: 20
models:
  - {name: churn, tables: {crm: [spend, visits]}}
timeline:
  - {day: 5, inject: concept, magnitude: 0.6}
truth: {cause: [concept_drift]}
wanted:
  - {state: champion, version: newer}
deadline_days: 15
"""


_VALIDATOR = jsonschema.Draft202012Validator(json.loads(schema_text()))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "turned.yaml"
    path.write_text(text)
    return path


def test_a_good_scenario_is_read(tmp_path: Path) -> None:
    scenario = load_scenario(write(tmp_path, GOOD))

    assert scenario.id == "turned"
    assert scenario.timeline[0].inject == "concept"
    assert scenario.models[0].tables == {"crm": ["spend", "visits"]}


@pytest.mark.parametrize(("old", "new", "message"), [
    pytest.param("difficulty: easy", "difficult: easy", ":4: difficult is not a field of a scenario", id="unknown-field"),
    pytest.param("inject: concept", "inject: earthquake", ":9: timeline[0] is 'earthquake', not one of", id="unknown-fault"),
    pytest.param("magnitude: 0.6", "magnitud: 0.6", ":9: timeline[0].magnitud is not a field", id="unknown-field-of-a-fault"),
    pytest.param("day: 5", "day: 25", ":9: timeline[0].day: 25 is after the end; the scenario has 20 days", id="after-the-end"),
    pytest.param("magnitude: 0.6", "until_day: 3", "timeline[0].until_day: 3 is not after day 5", id="ends-before-it-begins"),
    pytest.param("magnitude: 0.6", "model: fraud", "timeline[0].model: 'fraud' is no model", id="no-such-model"),
    pytest.param("concept, magnitude: 0.6", "unit, magnitude: 9, features: [height]", "no model has a feature 'height'",
                 id="no-such-feature"),
    pytest.param("concept, magnitude: 0.6", "unit, magnitude: 9, table: erp", "timeline[0].table: no model reads from 'erp'",
                 id="no-such-table"),
    pytest.param("magnitude: 0.6", "release: kept", "timeline[0].release: only `skew` can have", id="release-of-nothing"),
    pytest.param("[spend, visits]", "[spend, height]", "models[0].tables.crm: no feature 'height'", id="table-of-nothing"),
    pytest.param(
        "deadline_days: 15", "must_not: [{effect: promote}]\ndeadline_days: 15",
        "wanted[0] wants another champion, and must_not forbids `promote`", id="contradiction",
    ),
    pytest.param(
        "{day: 5, inject: concept, magnitude: 0.6}", "{day: 5, inject: platform, method: mash.set_weights, kind: outage}",
        "timeline[0].method: there is no port 'mash'", id="no-such-port",
    ),
    pytest.param(
        "{day: 5, inject: concept, magnitude: 0.6}", "{day: 5, inject: edit_route, weights: {champion: 50}}",
        "timeline[0].weights: they sum to 50, not to 100", id="weights",
    ),
    pytest.param(
        "inject: concept, magnitude: 0.6", "inject: segment, features: [plan], level: gold",
        "timeline[0].level: 'plan' has no level 'gold'; it has a, b, c, d", id="no-such-level",
    ),
    pytest.param(
        "inject: concept, magnitude: 0.6", "inject: segment, features: [mobile], level: yes-please",
        "timeline[0].level: 'mobile' has no level 'yes-please'; it has true, false", id="no-such-level-of-a-flag",
    ),
    pytest.param(
        "inject: concept, magnitude: 0.6", "inject: segment, features: [spend], level: a",
        "timeline[0].level: 'spend' is numeric and has no levels", id="level-of-a-number",
    ),
    pytest.param(
        "inject: concept, magnitude: 0.6", "inject: new_level, features: [plan], level: b",
        "timeline[0].level: 'b' is no new level", id="new-level-that-is-known",
    ),
    pytest.param(
        "version: newer}", "version: newer}\n  - {state: champion, version: first}",
        ":13: wanted[1] and wanted[0] cannot both hold", id="two-champions",
    ),
    pytest.param(
        "state: champion, version: newer}", "state: traffic}\n  - {state: traffic, model: churn, champion_percent: 50}",
        "wanted[1] and wanted[0] cannot both hold", id="two-shares",
    ),
    pytest.param(
        "version: newer}", "version: newer}\n  - {state: incident, count: 1}\n  - {state: incident, count: 2}",
        "wanted[2] and wanted[1] cannot both hold", id="two-counts",
    ),
    pytest.param("days: 20\n", "days: 20\nseeds: [1, 1]\n", "seeds[1]: 1 is there twice", id="seed-twice"),
    pytest.param("days: 20\n", "", "days is missing", id="missing"),
    pytest.param("days: 20", "days: '20'", ":5: days is '20'", id="a-text-is-no-number"),
    pytest.param("days: 20", "days: 20\nstart: 9999-12-31", "start is 9999-12-31, not between", id="no-such-year"),
    pytest.param("days: 20", "days: 20\ngoal: make it nice", ":6: goal: ", id="words-that-are-no-goal"),
    pytest.param("name: churn,", "name: churn, signal: .inf,", "models[0].signal is inf", id="endless"),
    pytest.param("name: churn,", "name: churn, intercept: .nan,", "models[0].intercept is nan", id="no-number"),
    pytest.param("name: churn,", "name: churn, spec: {model: x},", "models[0].spec.model is that of", id="foreign-part"),
    pytest.param("concept, magnitude: 0.6", "missing, magnitude: 5", "[0].magnitude: 5 is not from 0 to 1", id="magnitude"),
    pytest.param(
        "inject: concept, magnitude: 0.6", "inject: unit, magnitude: 9, features: [plan]",
        "timeline[0].features: `unit` changes numeric features, and 'plan' is categorical", id="type-of-a-feature",
    ),
    pytest.param(
        "inject: concept, magnitude: 0.6", "inject: platform, method: mesh.fly, kind: outage",
        "timeline[0].method: no call is named 'mesh.fly'; there are mesh.find", id="no-such-call",
    ),
    *(
        pytest.param(
            "deadline_days: 15", f"must_not: [{{effect: {effect}}}]\ndeadline_days: 15",
            f"wanted[0] wants another champion, and must_not forbids `{effect}`", id=f"no-{effect}",
        )
        for effect in ("train", "register", "stage", "traffic_to_candidate")
    ),
    pytest.param("deadline_days: 15", "budgets: {trainings: 0}\ndeadline_days: 15", "budgets.trainings is 0", id="budget"),
    pytest.param(
        "deadline_days: 15", "must: [{effect: tell, from_day: 4}]\nmust_not: [{effect: tell, from_day: 3}]\ndeadline_days: 15",
        "must[0] asks for `tell`, and must_not forbids it", id="must-inside-must-not",
    ),
    pytest.param(
        "deadline_days: 15", "must: [{effect: tell, for_days: 4}]\ndeadline_days: 15",
        "must[0].for_days: it counts from an injection", id="for-days-of-nothing",
    ),
    pytest.param("truth: {cause", "truth: &a {models: [*a], cause", "an alias stands inside", id="endless-alias"),
])  # fmt: skip
def test_a_fault_is_named_by_line_and_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_scenario(write(tmp_path, GOOD.replace(old, new)))

    assert message in str(caught.value)
    assert str(tmp_path / "turned.yaml") in str(caught.value)


_FAULT = "inject: concept, magnitude: 0.6"


@pytest.mark.parametrize(("entry", "message"), [
    pytest.param("inject: concept, magnitude: 0", "magnitude: `concept` by 0 changes nothing", id="no-turn"),
    pytest.param("inject: unit, magnitude: 1", "magnitude: `unit` by 1 changes nothing", id="the-same-unit"),
    pytest.param("inject: concept, features: [spend]", "features: `concept` is about whole rows or labels", id="concept-of-one"),
    pytest.param("inject: prior, features: [spend]", "features: `prior` is about whole rows or labels", id="prior-of-a-feature"),
    pytest.param("inject: unit, magnitude: 9, level: a", "level: `unit` is not about a level", id="level-of-a-unit"),
    pytest.param("inject: no_rows, ramp_days: 3", "ramp_days: `no_rows` comes whole", id="ramp"),
    pytest.param("inject: skew, features: [plan], magnitude: 0.5", "`skew` changes numeric features", id="skew-of-a-category"),
    pytest.param("inject: new_level, table: crm", "would find none", id="table-without-a-category"),
    pytest.param(
        "inject: segment, features: [plan, mobile], level: a", "level: a segment is one feature", id="segment-of-two",
    ),
    pytest.param(
        "inject: platform, method: metrics.sample, kind: slow",
        "kind: `slow` does nothing to metrics.sample; it hits features.rollback, pipelines.submit", id="slow-metrics",
    ),
    pytest.param(
        "inject: platform, method: 'metrics.*', kind: nan, effects_only: true", "effects_only: metrics.sample changes nothing",
        id="effects-of-a-look",
    ),
    pytest.param("inject: platform, method: '*', kind: outage, polls: 4", "polls: only `slow` waits", id="polls"),
    pytest.param("inject: export, difference: 0.00001", "difference: 1e-05 is within the 0.0001", id="export-within"),
    pytest.param("inject: server, version: champion", "version: nothing is said to be wrong with it", id="sound-server"),
    pytest.param("inject: unhalt", "inject: the kill switch was not thrown before", id="unhalt"),
    pytest.param("inject: policy_edit, file: other.cedarschema, text: ''", "nothing reads 'other.cedarschema'", id="schema"),
    pytest.param("inject: resume", "inject: nobody holds the model before", id="resume"),
    pytest.param("inject: release, trained_from_day: 2", "trained_from_day: 2 leaves 3 days of rows", id="too-new"),
    pytest.param("inject: release, trained_from_day: 30", "trained_from_day: 30 leaves 0 days", id="from-the-future"),
    pytest.param("inject: release, trained_until_day: 9", "trained_until_day: 9 is after day 5", id="trained-tomorrow"),
    pytest.param("inject: release, trained_until_day: -50", "leaves 10 days of history to train on; 19", id="too-early"),
    pytest.param("inject: goal, text: 'retrain fraud'", "text: 'fraud' is no model", id="goal-for-another"),
    pytest.param(
        """inject: goal, text: '{"intent": "retrain", "window": "P7D"}'""", "text: window is not carried out yet", id="window",
    ),
    pytest.param("""inject: goal, text: "keep churn's rmse below 2\"""", "text: rmse is not what churn is judged by", id="rmse"),
])  # fmt: skip
def test_an_entry_that_would_change_nothing_is_refused(tmp_path: Path, entry: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_scenario(write(tmp_path, GOOD.replace(_FAULT, entry)))

    assert f"turned.yaml:9: timeline[0].{message}" in str(caught.value) or message in str(caught.value)
    assert "turned.yaml:9" in str(caught.value)


@pytest.mark.parametrize(("old", "new", "message"), [
    pytest.param("version: newer", "version: released", ":12: wanted[0].version: the timeline has no `release`", id="released"),
    pytest.param(
        "deadline_days: 15", "people: [{name: lead}, {name: lead, actions: [promote]}]\ndeadline_days: 15",
        ":13: people[1]: 'lead' answers for the same in people[0]", id="somebody-twice",
    ),
    pytest.param("state: champion, version: newer", "state: stopped", "the timeline has no `policy_edit`", id="stopped"),
    pytest.param(
        "state: champion, version: newer", "state: incident, resolution: [gone]", "resolution: 'gone' is none", id="gone",
    ),
    pytest.param(
        "state: champion, version: newer", "state: incident, status: open, resolution: [recovered]",
        "an incident has none while it is open", id="resolved-and-open",
    ),
    pytest.param("[concept_drift]", "[]\n", "by truth.cause none is right", id="an-incident-that-is-none"),
    pytest.param(
        "state: champion, version: newer}",
        "state: quarantined, days: [6], exactly: true}\n  - {state: quarantined, days: [7]}",
        "wanted[1] and wanted[0] cannot both hold", id="other-days",
    ),
    pytest.param(
        "state: champion, version: newer}", "state: waiting}\nmust_not: [{effect: stage}]", "must_not forbids `stage`",
        id="waits",
    ),
    pytest.param(
        "deadline_days: 15", "must: [{effect: train, version: first}]\ndeadline_days: 15",
        "must[0].version: `train` is not about a version", id="version-of-a-training",
    ),
    pytest.param(
        "deadline_days: 15", "must: [{effect: roll_back_features}]\ndeadline_days: 15",
        "the timeline has no `skew` with `release: kept`", id="features-that-stay",
    ),
    pytest.param("days: 20", "days: 20\ngoal: retrain churn", "'retrain' is done once", id="goal-that-does-not-stand"),
    pytest.param("days: 20", "days: 20\ngoal: \"keep churn's mae below 2\"", "goal: mae is not what", id="goal-not-judged"),
    pytest.param("days: 20", "days: 20\nneeds: language_model", "needs: no goal of the timeline is in free words", id="words"),
    pytest.param("name: churn,", "name: churn, rows_per_day: 1,", "make about 59 labelled rows of history; 200", id="few-rows"),
    pytest.param("name: churn,", "name: churn, history_days: 15,", "15 days are too few to train a first champion", id="history"),
    pytest.param(
        "name: churn,", "name: churn, spec: {training: {window: P10D}},", "spec.training: a window of 10 days is too short",
        id="window",
    ),
    pytest.param(
        "name: churn,", "name: churn, spec: {freeze: []},",
        ":7: models[0].spec.freeze is not a field of a model spec. Did you mean freezes?", id="part-of-a-spec",
    ),
    pytest.param(
        "name: churn,", "name: churn, spec: {tier: top, monitoring: {cadence: P0D}},",
        "models[0].spec.tier is 'top', not one of 'low', 'standard' or 'critical'", id="every-fault-of-a-spec",
    ),
    pytest.param("name: churn,", "name: churn, intercept: -40,", "intercept: -40 leaves one class only", id="one-class"),
    pytest.param("name: churn,", "name: churn, rows_per_day: 100000, history_days: 900,", "about 92,000,000 rows", id="huge"),
    pytest.param("name: churn,", "name: churn, spec: {task: multiclass},", "spec.task: the simulated world has", id="task"),
    pytest.param("name: churn,", "name: churn, spec: {autonomy: {promot: approve}},", "autonomy: 'promot' is no", id="autonomy"),
])  # fmt: skip
def test_what_no_crew_could_bring_about_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = GOOD.replace(old, new)
    if "an incident" in message or "by truth" in message or "resolution" in message:
        text = text.replace("state: champion, version: newer", "state: incident")
    with pytest.raises(InputError) as caught:
        load_scenario(write(tmp_path, text))

    assert message in str(caught.value)


def test_of_several_models_an_entry_says_which_one_it_is_about(tmp_path: Path) -> None:
    models = "  - {name: churn, tables: {crm: [spend, visits]}}\n  - {name: fraud}"
    two = GOOD.replace("  - {name: churn, tables: {crm: [spend, visits]}}", models)

    for entry in ("inject: edit_route, weights: {champion: 100}", "inject: restart_proxy, when: canary"):
        with pytest.raises(InputError, match=r"timeline\[0\].model: of 2 models, say which"):
            load_scenario(write(tmp_path, two.replace(_FAULT, entry)))
    with pytest.raises(InputError, match=r"timeline\[0\].model: `halt` is about all models"):
        load_scenario(write(tmp_path, two.replace(_FAULT, "inject: halt, model: fraud")))
    with pytest.raises(InputError, match="fraud does not read from 'crm'"):
        load_scenario(write(tmp_path, two.replace(_FAULT, "inject: unit, magnitude: 9, table: crm, model: fraud")))


def test_somebody_may_stand_for_some_actions_and_again_for_the_rest(tmp_path: Path) -> None:
    people = "people: [{name: lead, actions: [promote], answer: reject}, {name: lead}]\n"

    assert len(load_scenario(write(tmp_path, GOOD + people)).people) == 2


def test_a_released_version_is_newer_than_the_first_one(tmp_path: Path) -> None:
    text = GOOD.replace(_FAULT, "inject: release").replace(
        "deadline_days", "must_not: [{effect: train}]\ndeadline_days"
    )

    assert load_scenario(write(tmp_path, text)).must_not[0].effect == "train"


def test_parts_of_a_spec_change_only_what_they_name(tmp_path: Path) -> None:
    spec = "spec: {training: {folds: 3}, objective: {value: 0.6}, rollout: {bake: P1D}},"
    scenario = load_scenario(write(tmp_path, GOOD.replace("name: churn,", f"name: churn, {spec}")))

    found = spec_of(scenario.models[0])
    assert isinstance(found.training, RecipeTraining)
    assert (found.training.folds, found.training.candidates[0].name) == (3, "logistic")
    assert (found.objective.metric, found.objective.value) == ("roc_auc", 0.6)
    assert found.rollout.steps == [10, 30]


def test_every_field_of_the_published_schema_that_needs_words_has_them() -> None:
    change = json.loads(schema_text())["$defs"]["DataChange"]["properties"]

    assert change["magnitude"]["description"].startswith("concept: 0-1 of a quarter turn")


def test_a_few_aliases_cannot_make_a_huge_file(tmp_path: Path) -> None:
    bomb = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"{c}: &{c} [{', '.join(['*' + chr(ord(c) - 1)] * 9)}]\n" for c in "bcdefghi"
    )

    with pytest.raises(InputError, match="more than 100000 fields"):
        load_scenario(write(tmp_path, bomb))


_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 10**7), st.floats().filter(lambda x: not x.is_integer()),
    st.text(max_size=5), st.sampled_from(["churn", "concept", "first", "champion", "drift", "tell"]),
    st.lists(st.integers(0, 3), max_size=3), st.dictionaries(st.sampled_from(["a", "day", "cause"]), st.integers(0, 3)),
)  # fmt: skip
_FULL = {
    **yaml.safe_load(GOOD), "seeds": [1], "start": "2026-03-02", "people": [{"name": "lead", "after_days": 1}],
    "must": [{"effect": "tell", "from_day": 1}], "must_not": [{"effect": "retire", "until_day": 3}],
    "budgets": {"actions": 9}, "twin": False,
}  # fmt: skip


def _places(value: object, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, inner in items for place in _places(inner, (*at, key)))]


@settings(max_examples=150, deadline=None)
@given(place=st.sampled_from(_places(_FULL)[1:]), value=_VALUES)
def test_the_published_schema_takes_what_the_code_takes(place: tuple[str | int, ...], value: object) -> None:
    document = copy.deepcopy(_FULL)
    part: Any = document
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = value
    taken = True
    try:
        Scenario.model_validate(document)
    except ValidationError:
        taken = False

    # JSON has no word for these, so the schema cannot refuse them.
    assume(not (isinstance(value, float) and not math.isfinite(value)))
    # Formats are notes in JSON Schema; a text that is no date is refused by the code alone.
    assume(place != ("start",))
    assert _VALIDATOR.is_valid(document) == taken


def test_two_scenarios_may_not_share_an_id(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    (tmp_path / "other.yaml").write_text(GOOD)

    with pytest.raises(InputError, match="id 'turned' is that of"):
        load_all([tmp_path])


def test_the_published_schema_is_that_of_the_code_and_holds_for_every_shipped_scenario() -> None:
    assert SCHEMA_FILE.read_text() == schema_text()
    validator = jsonschema.Draft202012Validator(json.loads(schema_text()))
    for path, _ in load_all([SCENARIOS]):
        document = yaml.safe_load(path.read_text())
        assert not list(validator.iter_errors(document)), path
