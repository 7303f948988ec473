"""A policy set that breaks a rule of loading is refused, and the message says where and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from policies.engine import SHIPPED, PolicySet
from policies.lint import SCHEMA_FILE, read_sources, sources_digest, split_policies
from state.errors import InputError

Sources = dict[str, str]
EXTRA = "extra.cedar"


def added(text: str) -> Callable[[Sources], Sources]:
    return lambda sources: {**sources, EXTRA: text}


def replaced(file: str, old: str, new: str) -> Callable[[Sources], Sources]:
    def change(sources: Sources) -> Sources:
        assert old in sources[file]
        return {**sources, file: sources[file].replace(old, new)}

    return change


def without(file: str) -> Callable[[Sources], Sources]:
    return lambda sources: {name: text for name, text in sources.items() if name != file}


NOTED = '@id("extra") @why("because")\n'
HALTED_WHEN = "when { context.halted }\nunless"
EVERYTHING_HALTED = "forbid (principal, action, resource)\nwhen { context.halted }"
ONE_ACTION = 'action == Action::"promote",'


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(
            added(
                NOTED + "forbid (principal, action, resource) when { context.labelled_rows * 4611686018427387904 > 1 };"
            ),
            ["cannot be decided", "extra", "overflow"],
            id="rule-that-errs",
        ),
        pytest.param(
            added("// a comment\n\n" + NOTED + "forbid (principal action, resource);"),
            ["extra.cedar:3 policy 'extra'", "does not parse", "Correct the policy"],
            id="syntax-error",
        ),
        pytest.param(
            added(NOTED + "forbid (principal, action, resource) when { context.invented };"),
            ["extra.cedar:1 policy 'extra'", "invented"],
            id="fact-that-the-schema-does-not-know",
        ),
        pytest.param(
            added(NOTED + 'forbid (principal, action == Action::"launch", resource);'),
            ["extra.cedar:1", "launch"],
            id="action-that-the-schema-does-not-know",
        ),
        pytest.param(
            added(NOTED + 'forbid (principal, action, resource) when { context.step_pct > "5" };'),
            ["extra.cedar:1", "String"],
            id="type-error",
        ),
        pytest.param(
            added('@why("because")\nforbid (principal, action, resource) when { context.halted };'),
            ["extra.cedar:1", "has no @id"],
            id="no-id",
        ),
        pytest.param(
            added('@id("extra")\nforbid (principal, action, resource) when { context.halted };'),
            ["extra.cedar:1 policy 'extra'", "has no @why"],
            id="no-why",
        ),
        pytest.param(
            added('@id("extra") @why("  ")\nforbid (principal, action, resource) when { context.halted };'),
            ["has no @why"],
            id="blank-why",
        ),
        pytest.param(
            added('@id("step-size") @why("because")\nforbid (principal, action, resource) when { context.halted };'),
            ["rollout.cedar:", "'step-size'", "the same @id stands at extra.cedar:1"],
            id="id-twice",
        ),
        pytest.param(
            added('@id("no-permit") @why("because")\nforbid (principal, action, resource) when { context.halted };'),
            ["reserved"],
            id="reserved-id",
        ),
        pytest.param(
            added('@id("a|b") @why("because")\nforbid (principal, action, resource) when { context.halted };'),
            ["'a|b'", "lower-case words"],
            id="id-that-is-no-slug",
        ),
        pytest.param(
            added(NOTED + 'permit (principal, action == Action::"promote", resource);'),
            ["extra.cedar:1", "permits without a condition"],
            id="unconditional-permit",
        ),
        pytest.param(
            added(NOTED + 'permit (principal, action == Action::"promote", resource) when { true };'),
            ["permits without a condition"],
            id="permit-when-true",
        ),
        pytest.param(
            added(NOTED + "permit (principal, action, resource) when { context.asked_by_person };"),
            ["permits every action"],
            id="permit-of-every-action",
        ),
        pytest.param(
            added(NOTED + "permit (principal == ?principal, action, resource);"),
            ["extra.cedar:1", "not one static policy"],
            id="template",
        ),
        pytest.param(
            added(
                NOTED + '@needs_approval("approver")\nforbid (principal, action, resource) when { context.dry_run };'
            ),
            ["an approval could not lift it", 'approved_by.contains("approver")'],
            id="approval-that-lifts-nothing",
        ),
        pytest.param(
            added(
                NOTED + '@needs_approval("approver")\nforbid (principal, action, resource) when { context.dry_run } '
                'unless { context.approved_by.contains("operator") };'
            ),
            ["an approval could not lift it"],
            id="approval-of-another-role",
        ),
        pytest.param(
            added(
                NOTED + '@needs_approval("king")\nforbid (principal, action, resource) when { context.dry_run } '
                'unless { context.approved_by.contains("king") };'
            ),
            ["names 'king'", "approver"],
            id="approval-by-a-role-that-nobody-has",
        ),
        pytest.param(
            added(
                NOTED + '@needs_approval("approver")\npermit (principal, action == Action::"promote", resource) '
                'unless { context.approved_by.contains("approver") };'
            ),
            ["stands on a permit"],
            id="approval-on-a-permit",
        ),
        pytest.param(without("killswitch.cedar"), ["'kill-switch'", "Restore killswitch.cedar"], id="no-kill-switch"),
        pytest.param(
            replaced("killswitch.cedar", HALTED_WHEN, "when { context.halted && context.dry_run }\nunless"),
            ["killswitch.cedar:3 policy 'kill-switch'", "does not stop everything"],
            id="kill-switch-under-a-condition",
        ),
        pytest.param(
            replaced("killswitch.cedar", EVERYTHING_HALTED, EVERYTHING_HALTED.replace("action,", ONE_ACTION)),
            ["does not stop everything"],
            id="kill-switch-for-one-action",
        ),
        pytest.param(
            replaced(
                "killswitch.cedar",
                HALTED_WHEN,
                'when { context.halted }\nunless { action == Action::"promote" }\nunless',
            ),
            ["does not stop promote", "Exempt nothing but"],
            id="kill-switch-with-an-exemption",
        ),
        pytest.param(
            replaced("killswitch.cedar", HALTED_WHEN, "when { context.halted }\nunless { context.paired_win }\nunless"),
            ["does not stop"],
            id="kill-switch-that-facts-can-lift",
        ),
        pytest.param(
            lambda sources: {
                name: text.replace('Action::"scale"', 'Action::"shadow"') for name, text in sources.items()
            },
            ["no policy names the action scale"],
            id="action-that-no-policy-names",
        ),
        pytest.param(replaced(SCHEMA_FILE, "entity Model", "entiti Model"), [SCHEMA_FILE], id="schema-does-not-parse"),
        pytest.param(lambda sources: {**sources, SCHEMA_FILE: ""}, ["declares no action"], id="schema-emptied"),
        pytest.param(
            lambda sources: {**sources, SCHEMA_FILE: "// nothing\n"}, ["declares no action"], id="schema-is-a-comment"
        ),
        pytest.param(
            replaced(SCHEMA_FILE, "  dry_run: Bool,", "  dry_run: Bool,\n  surprise: Bool,"),
            [SCHEMA_FILE, "cannot be decided", "surprise"],
            id="schema-with-a-fact-that-nobody-fills",
        ),
        pytest.param(
            replaced(SCHEMA_FILE, "  restarts_today: Long,", "  restarts_today: String,"),
            ["budgets.cedar:", "'restarts-per-day'"],
            id="schema-with-another-type",
        ),
    ],
)
def test_a_broken_set_is_refused(change: Callable[[Sources], Sources], named: list[str]) -> None:
    with pytest.raises(InputError) as refusal:
        PolicySet.from_sources(change(read_sources(SHIPPED)))

    assert [text for text in named if text not in str(refusal.value)] == []
    assert refusal.value.remedy


def test_the_line_of_a_policy_deep_in_a_file_is_named() -> None:
    sources = read_sources(SHIPPED)
    broken = sources["rollout.cedar"].replace("context.step_pct > 50", "context.step_pct > fifty")
    line = next(n for n, text in enumerate(broken.splitlines(), 1) if text == '@id("step-size")')

    with pytest.raises(InputError, match=f"rollout.cedar:{line} policy 'step-size'"):
        PolicySet.from_sources({**sources, "rollout.cedar": broken})


@pytest.mark.parametrize("file", [SCHEMA_FILE, "budgets.cedar"])
def test_a_set_that_is_not_the_approved_one_is_refused(tmp_path: Path, file: str) -> None:
    approved = PolicySet.load().sha256
    for name, text in read_sources(SHIPPED).items():
        (tmp_path / name).write_text(text + ("\n// edited\n" if name == file else ""))

    with pytest.raises(InputError, match="is the approved one"):
        PolicySet.load(tmp_path, approved)


def test_the_same_files_elsewhere_are_the_same_set(tmp_path: Path) -> None:
    approved = PolicySet.load().sha256
    for name, text in read_sources(SHIPPED).items():
        (tmp_path / name).write_text(text)
    (tmp_path / "notes.txt").write_text("not part of the set")

    assert PolicySet.load(tmp_path, approved).sha256 == approved


def test_the_digest_covers_names_too() -> None:
    sources = read_sources(SHIPPED)
    renamed = {("a.cedar" if name == "data.cedar" else name): text for name, text in sources.items()}

    assert sources_digest(renamed) != sources_digest(sources)


def test_a_folder_without_what_a_set_needs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such policy folder"):
        PolicySet.load(tmp_path / "absent")
    with pytest.raises(InputError, match="missing"):
        PolicySet.load(tmp_path)
    (tmp_path / SCHEMA_FILE).write_text("entity Agent;")
    with pytest.raises(InputError, match=r"holds no \*.cedar file"):
        PolicySet.load(tmp_path)
    (tmp_path / "a.cedar").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"a\.cedar: cannot be read"):
        PolicySet.load(tmp_path)


def test_semicolons_in_strings_and_comments_do_not_cut_a_policy() -> None:
    text = '// first; comment\n@why("a; \\"b\\"; // c") permit (x); // after;\n\n  forbid (y);\n// end;\n'

    assert list(split_policies(text)) == [(2, '@why("a; \\"b\\"; // c") permit (x);'), (4, "forbid (y);")]


def test_text_after_the_last_policy_is_a_policy_that_does_not_end() -> None:
    assert list(split_policies("permit (x);\n\nforbid (y)")) == [(1, "permit (x);"), (3, "forbid (y)")]
