"""The action catalogue: what may be done, by whom, what it needs, what it makes true, and what it costs.

Preconditions say what makes an action sensible, never whether it is allowed: that is policy's part. Effects
are what a good outcome makes true; the loop observes the facts again after every action and replans.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

from state.plans import ActionKind, AgentName

FactName: TypeAlias = Literal[
    # Data
    "source_reachable",  # the data source answers
    "rows_available",  # rows of the window that the work needs are here
    "hole_found",  # a partition is missing and its source may still have it
    "bad_days_known",  # the days that a data or label fault spoilt are known
    "data_clean",  # no unrepaired, unquarantined fault covers the window
    "data_validated",  # the window passed its checks
    "fault_contained",  # a data or label fault can do no further harm
    "features_ready",  # the features of the window are built
    "features_online",  # the online store holds them
    "feature_skew_found",  # training and serving values of a feature differ
    "features_consistent",  # they agree
    # What to do about a model
    "remedy_known",  # it is known whether the recipe, fitted anew, would serve people better
    "training_justified",  # a backtest win; where outcomes are affected an alarm; a person's goal; or no champion yet
    "only_calibration_lost",  # ranking holds, probabilities do not
    "drift_found",  # a major drift is open
    "drift_harmless",  # labelled outcomes show no harm from it
    "reference_accepted",  # the drifted window is the new reference
    # A version on its way
    "candidate_exists",  # there is a model package to speak about
    "gates_evaluated",  # its quality gates were measured
    "gates_cleared",  # it passed them, or a person's goal wants the version and an approver may waive them
    "candidate_registered",  # it is a version in the registry
    "version_staged",  # its server is ready and stands in the route
    "shadow_compared",  # it answered mirrored traffic for the declared time
    "traffic_shifted",  # it takes the share of traffic that was asked for
    "canary_passed",  # every canary step passed its analysis
    "ab_cleared",  # the live test permits promotion, or there is no champion to test against
    "serving_better_model",  # the version that was wanted is champion and takes all traffic
    # What people are served
    "healthy_champion_known",  # there is a last healthy champion to return to
    "traffic_on_champion",  # all traffic is on a healthy champion
    "rolled_back",  # traffic was taken back by hand or after a bad release
    "version_retired",  # the version's server and route entry are gone
    "server_unhealthy",  # a server fails or does not answer
    "load_too_high",  # the servers are too few for the load
    "serving_healthy",  # servers answer within their bounds
    # People
    "changes_held",  # nothing about the model changes until somebody resumes it
    "hold_ended",  # what led to the hold is gone
    "changes_resumed",  # it may change again
    "owner_told",  # the owner has a message
]
FACT_NAMES: frozenset[FactName] = frozenset(get_args(FactName))
Group: TypeAlias = Literal["read", "reversible", "risky"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionDeclaration:
    kind: ActionKind
    agent: AgentName
    group: Group
    """The Cedar group; the Cedar action has the name of the kind."""
    does: str
    """For people, in the imperative."""
    parameters: tuple[str, ...]
    """Names that its args may have; `after` names the previous verified action on the same target, where an effect
    may rightly recur, and `corrects` the foreign revision that it answers."""
    needs: frozenset[FactName] = frozenset()
    makes: frozenset[FactName]
    ends: frozenset[FactName] = frozenset()
    minutes: float
    """Typical domain time until the outcome is known."""
    compute_minutes: float = 0.0
    risk: int = 0
    """0 nobody can notice, 1 work is lost, 2 a few people are served differently, 3 everybody is."""
    reversible: bool = True
    """False: what it did stays, or is undone only by doing the opposite work again."""
    inverse: ActionKind | None = None
    """What takes it back; None where nothing needs taking back."""

    @property
    def cost(self) -> float:
        """What the planner weighs: minutes, compute and risk in one number, always above 0."""
        return self.minutes + self.compute_minutes + RISK_MINUTES[self.risk]


RISK_MINUTES = (0.0, 15.0, 60.0, 240.0)
"""How many minutes of waiting a risk is worth avoiding."""


_DATA = (
    ActionDeclaration(
        kind="ingest_data", agent="data_validation", group="reversible",
        does="load the rows that are missing here from the source",
        parameters=("history_sha256",),
        needs=frozenset({"source_reachable"}),
        makes=frozenset({"rows_available"}),
        minutes=10, compute_minutes=5,
    ),
    ActionDeclaration(
        kind="validate_data", agent="data_validation", group="read",
        does="check the window's rows against contract and history",
        parameters=("history_sha256", "until", "as_of", "excluded_days"),
        needs=frozenset({"rows_available", "data_clean"}),
        makes=frozenset({"data_validated"}),
        minutes=2, compute_minutes=1,
    ),
    ActionDeclaration(
        kind="quarantine_data", agent="data_validation", group="reversible",
        does="take the spoilt days out of training, evaluation and detectors",
        parameters=("days", "reason"),
        needs=frozenset({"bad_days_known"}),
        makes=frozenset({"data_clean", "fault_contained"}),
        minutes=1, risk=1,
    ),
    ActionDeclaration(
        kind="backfill_data", agent="data_validation", group="reversible",
        does="fetch the missing partition again",
        parameters=("days", "history_sha256"),
        needs=frozenset({"source_reachable", "hole_found"}),
        makes=frozenset({"rows_available", "data_clean", "fault_contained"}), ends=frozenset({"hole_found"}),
        minutes=30, compute_minutes=5,
    ),
)  # fmt: skip
_FEATURES = (
    ActionDeclaration(
        kind="engineer_features", agent="feature_engineering", group="reversible",
        does="build the features of the window",
        parameters=("history_sha256", "features_sha256", "until"),
        needs=frozenset({"data_validated"}),
        makes=frozenset({"features_ready"}),
        minutes=5, compute_minutes=5,
    ),
    ActionDeclaration(
        kind="materialize_features", agent="feature_engineering", group="reversible",
        does="publish the features to the online store",
        parameters=("features_sha256", "until"),
        needs=frozenset({"features_ready"}),
        makes=frozenset({"features_online"}),
        minutes=10, compute_minutes=10, risk=1, inverse="rollback_features",
    ),
    ActionDeclaration(
        kind="rollback_features", agent="feature_engineering", group="risky",
        does="return the feature view to its previous revision",
        parameters=("feature_view", "revision", "after"),
        needs=frozenset({"feature_skew_found"}),
        makes=frozenset({"fault_contained", "features_consistent"}),
        ends=frozenset({"features_online", "feature_skew_found"}),
        minutes=5, risk=2, inverse="materialize_features",
    ),
)  # fmt: skip
_TRAINING = (
    ActionDeclaration(
        kind="backtest_recipe", agent="training", group="reversible",
        does="find out whether the recipe, fitted anew, beats the champion on newer rows",
        parameters=("recipe_sha256", "champion", "fit_until", "compare_from", "compare_until", "as_of", "excluded_days",
                    "start", "change_from", "segment", "min_gain"),
        needs=frozenset({"data_validated"}),
        makes=frozenset({"remedy_known", "training_justified"}),
        minutes=15, compute_minutes=15,
    ),
    ActionDeclaration(
        kind="train_candidates", agent="training", group="reversible",
        does="train the spec's candidates on the window and keep the best",
        parameters=("recipe_sha256", "start", "end", "as_of", "excluded_days", "seed"),
        needs=frozenset({"features_ready", "training_justified"}),
        makes=frozenset({"candidate_exists"}),
        minutes=20, compute_minutes=20, risk=1,
    ),
    ActionDeclaration(
        kind="recalibrate", agent="training", group="reversible",
        does="fit the champion's probabilities to newer outcomes, as a new candidate",
        parameters=("version", "start", "end", "as_of", "excluded_days"),
        needs=frozenset({"features_ready", "only_calibration_lost"}),
        makes=frozenset({"candidate_exists"}),
        minutes=5, compute_minutes=5, risk=1,
    ),
    ActionDeclaration(
        kind="evaluate_candidate", agent="training", group="read",
        does="measure the quality gates of the candidate",
        parameters=("candidate", "champion", "compare_from", "compare_until", "as_of", "excluded_days"),
        needs=frozenset({"candidate_exists"}),
        makes=frozenset({"gates_evaluated", "gates_cleared"}),
        minutes=3, compute_minutes=2,
    ),
    ActionDeclaration(
        kind="register_candidate", agent="training", group="reversible",
        does="make the candidate a version in the registry",
        parameters=("mlflow_run_id", "model"),
        needs=frozenset({"candidate_exists", "gates_evaluated", "gates_cleared"}),
        makes=frozenset({"candidate_registered"}),
        minutes=1,
    ),
)  # fmt: skip
_ROLLOUT = (
    ActionDeclaration(
        kind="stage_version", agent="deployment", group="reversible",
        does="start the version's server and give it a place in the route without traffic",
        parameters=("rollout", "version"),
        needs=frozenset({"gates_evaluated", "gates_cleared", "candidate_registered"}),
        makes=frozenset({"version_staged"}), ends=frozenset({"version_retired"}),
        minutes=3, risk=1, inverse="retire_version",
    ),
    ActionDeclaration(
        kind="shadow", agent="deployment", group="reversible",
        does="mirror live requests to the version and compare its answers",
        parameters=("rollout", "version", "percent", "after"),
        needs=frozenset({"version_staged"}),
        makes=frozenset({"shadow_compared"}),
        minutes=1_440, compute_minutes=10, risk=1,
    ),
    ActionDeclaration(
        kind="shift_traffic", agent="deployment", group="risky",
        does="give the version its next share of traffic and analyse it",
        parameters=("rollout", "version", "weights", "after", "corrects"),
        needs=frozenset({"gates_evaluated", "gates_cleared", "version_staged"}),
        makes=frozenset({"traffic_shifted", "canary_passed"}), ends=frozenset({"traffic_on_champion", "rolled_back"}),
        minutes=2_880, risk=2, inverse="rollback",
    ),
    ActionDeclaration(
        kind="run_ab_test", agent="deployment", group="risky",
        does="split the traffic by entity and test the outcomes of both arms",
        parameters=("rollout", "version", "weights", "after"),
        needs=frozenset({"version_staged", "canary_passed"}),
        makes=frozenset({"ab_cleared"}), ends=frozenset({"traffic_on_champion"}),
        minutes=20_160, risk=2, inverse="rollback",
    ),
    ActionDeclaration(
        kind="promote", agent="deployment", group="risky",
        does="give the version all traffic and make it champion",
        parameters=("rollout", "version", "previous", "weights", "after"),
        needs=frozenset({"gates_evaluated", "version_staged", "ab_cleared"}),
        makes=frozenset({"serving_better_model", "traffic_on_champion"}), ends=frozenset({"rolled_back"}),
        minutes=4_320, risk=3, inverse="rollback",
    ),
    ActionDeclaration(
        kind="rollback", agent="deployment", group="reversible",
        does="return all traffic to the last healthy champion",
        parameters=("rollout", "version", "to", "weights", "after"),
        needs=frozenset({"healthy_champion_known"}),
        makes=frozenset({"traffic_on_champion", "rolled_back"}),
        ends=frozenset({"traffic_shifted", "canary_passed", "ab_cleared", "serving_better_model"}),
        minutes=1, risk=2,
    ),
    ActionDeclaration(
        kind="retire_version", agent="deployment", group="risky",
        does="take the version out of the route and stop its server",
        parameters=("rollout", "version", "after"),
        needs=frozenset({"version_staged", "traffic_on_champion"}),
        makes=frozenset({"version_retired"}),
        ends=frozenset({"version_staged", "shadow_compared", "canary_passed", "ab_cleared"}),
        minutes=1, risk=1, inverse="stage_version",
    ),
)  # fmt: skip
_SERVING = (
    ActionDeclaration(
        kind="restart_server", agent="deployment", group="risky",
        does="start the version's server anew",
        parameters=("version", "after", "cause"),
        needs=frozenset({"server_unhealthy"}),
        makes=frozenset({"serving_healthy"}), ends=frozenset({"server_unhealthy"}),
        minutes=2, risk=2, reversible=False,
    ),
    ActionDeclaration(
        kind="scale", agent="deployment", group="reversible",
        does="change the number of the version's servers",
        parameters=("version", "replicas", "after"),
        needs=frozenset({"load_too_high"}),
        makes=frozenset({"serving_healthy"}), ends=frozenset({"load_too_high"}),
        minutes=5, compute_minutes=5, risk=1, inverse="scale",
    ),
)  # fmt: skip
_PEOPLE = (
    ActionDeclaration(
        kind="accept_drift", agent="monitoring", group="reversible",
        does="take the drifted window as the new reference",
        parameters=("cause", "after"),
        needs=frozenset({"drift_found", "drift_harmless"}),
        makes=frozenset({"reference_accepted"}), ends=frozenset({"drift_found"}),
        minutes=1, risk=1, inverse="accept_drift",
    ),
    ActionDeclaration(
        kind="hold", agent="monitoring", group="reversible",
        does="let nothing about the model change until somebody resumes it",
        parameters=("cause", "after"),
        makes=frozenset({"fault_contained", "changes_held"}), ends=frozenset({"changes_resumed"}),
        minutes=1, risk=2, inverse="resume",  # held, it no longer learns, and only a person ends that
    ),
    ActionDeclaration(
        kind="resume", agent="monitoring", group="reversible",
        does="let the model change again",
        parameters=("cause", "after"),
        needs=frozenset({"changes_held", "hold_ended"}),
        makes=frozenset({"changes_resumed"}), ends=frozenset({"changes_held"}),
        minutes=1, inverse="hold",
    ),
    ActionDeclaration(
        kind="notify", agent="monitoring", group="read",
        does="tell the owner",
        parameters=("topic", "to", "text"),
        makes=frozenset({"owner_told"}),
        minutes=1, reversible=False,
    ),
)  # fmt: skip

Catalogue: TypeAlias = Mapping[ActionKind, ActionDeclaration]
CATALOGUE: Catalogue = MappingProxyType(
    {declaration.kind: declaration for declaration in (*_DATA, *_FEATURES, *_TRAINING, *_ROLLOUT, *_SERVING, *_PEOPLE)}
)


def without(*kinds: ActionKind, catalogue: Catalogue = CATALOGUE) -> Catalogue:
    """The catalogue less `kinds`: what was tried and did not do what it should, or is not available here."""
    return {kind: declaration for kind, declaration in catalogue.items() if kind not in kinds}
