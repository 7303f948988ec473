"""The pipelines as Kubeflow components: straight lines whose bodies call `tools.pipelines.*_step(s)`.

No conditions, retries or exit handlers: the local runner executes both branches and ignores retries
(kfp 2.16.1). A failing quality gate is an output, and what follows from it is decided elsewhere.
No postponed annotations here: kfp reads the real types.
"""

# mypy: disable-error-code="untyped-decorator, no-any-return"
# kfp's decorators are untyped, and a pipeline's `str` is a channel while it is compiled.

from kfp import dsl

IMAGE = "python:3.11-slim"
"""Replaced by the control plane's own image on a cluster; the local runner takes the running interpreter."""


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(
    root: str, spec: str, start: str, end: str, as_of: str, excluded_days: list[str], rows: dsl.Output[dsl.Dataset]
) -> None:
    """Labelled rows of the window, one parquet file, with their digest."""
    from tools.pipelines.data_steps import ingest_rows
    from tools.pipelines.process import end_with_runner

    end_with_runner()
    ingest_rows(root=root, spec=spec, start=start, end=end, as_of=as_of, excluded_days=excluded_days, out=rows.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def validate(spec: str, rows: dsl.Input[dsl.Dataset], report: dsl.Output[dsl.Artifact]) -> None:
    """Refuses rows that no model should be fitted on; reports what it counted."""
    from tools.pipelines.data_steps import validate_rows
    from tools.pipelines.process import end_with_runner

    end_with_runner()
    validate_rows(spec=spec, rows=rows.path, out=report.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def engineer(
    spec: str,
    rows: dsl.Input[dsl.Dataset],
    report: dsl.Input[dsl.Artifact],
    features: dsl.Output[dsl.Artifact],
) -> None:
    """The features' encodings and bounds, fitted once on the window: training and serving read the same ones."""
    from tools.pipelines.data_steps import engineer_features
    from tools.pipelines.process import end_with_runner

    end_with_runner()
    engineer_features(spec=spec, rows=rows.path, report=report.path, out=features.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    spec: str,
    seed: int,
    rows: dsl.Input[dsl.Dataset],
    features: dsl.Input[dsl.Artifact],
    model: dsl.Output[dsl.Model],
) -> None:
    """The candidates in time-ordered cross-validation, and the chosen one fitted on every row, as ONNX."""
    from tools.pipelines.process import end_with_runner
    from tools.pipelines.training_steps import train_candidates

    end_with_runner()
    train_candidates(spec=spec, seed=seed, rows=rows.path, features=features.path, out=model.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(spec: str, model: dsl.Input[dsl.Model], evaluation: dsl.Output[dsl.Metrics]) -> None:
    """Metrics on the holdout, held against the quality gates."""
    from tools.pipelines.data_steps import evaluate_gates
    from tools.pipelines.process import end_with_runner

    end_with_runner()
    evaluate_gates(spec=spec, model=model.path, out=evaluation.path)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def package(
    root: str,
    spec: str,
    key: str,
    tracking_uri: str,
    rows: dsl.Input[dsl.Dataset],
    features: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Metrics],
    model_package: dsl.Output[dsl.Model],
) -> str:
    """The model package, tracked in MLflow under `key`; returns the run's outputs as JSON."""
    from tools.pipelines.package_step import package_model
    from tools.pipelines.process import end_with_runner

    end_with_runner()
    return package_model(
        root=root,
        spec=spec,
        key=key,
        tracking_uri=tracking_uri,
        rows=rows.path,
        features=features.path,
        model=model.path,
        evaluation=evaluation.path,
        out=model_package.path,
    )


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def backtest(
    spec: str,
    fit_until: str,
    compare_from: str,
    champion_package: str,
    challenger_package: str,
    recipe_candidate: str,
    seed: int,
    rows: dsl.Input[dsl.Dataset],
) -> str:
    """Losses of the champion and of the recipe's model on the same newer rows, block by block, as JSON."""
    from tools.pipelines.process import end_with_runner
    from tools.pipelines.training_steps import compare_with_champion

    end_with_runner()
    return compare_with_champion(
        spec=spec,
        fit_until=fit_until,
        compare_from=compare_from,
        champion_package=champion_package,
        challenger_package=challenger_package,
        recipe_candidate=recipe_candidate,
        seed=seed,
        rows=rows.path,
    )


# A pipeline named like one of its components is loaded as that component (kfp 2.16.1).
@dsl.pipeline(name="train-recipe")
def train_pipeline(
    root: str,
    spec: str,
    start: str,
    end: str,
    as_of: str,
    excluded_days: list[str],
    seed: int,
    key: str,
    tracking_uri: str,
) -> str:
    ingested = ingest(root=root, spec=spec, start=start, end=end, as_of=as_of, excluded_days=excluded_days)
    rows = ingested.outputs["rows"]
    validated = validate(spec=spec, rows=rows)
    engineered = engineer(spec=spec, rows=rows, report=validated.outputs["report"])
    features = engineered.outputs["features"]
    trained = train(spec=spec, seed=seed, rows=rows, features=features)
    evaluated = evaluate(spec=spec, model=trained.outputs["model"])
    packaged = package(
        root=root,
        spec=spec,
        key=key,
        tracking_uri=tracking_uri,
        rows=rows,
        features=features,
        model=trained.outputs["model"],
        evaluation=evaluated.outputs["evaluation"],
    )
    return packaged.outputs["Output"]


@dsl.pipeline(name="backtest-recipe")
def backtest_pipeline(
    root: str,
    spec: str,
    start: str,
    fit_until: str,
    compare_from: str,
    compare_until: str,
    as_of: str,
    excluded_days: list[str],
    champion_package: str,
    challenger_package: str,
    recipe_candidate: str,
    seed: int,
) -> str:
    ingested = ingest(root=root, spec=spec, start=start, end=compare_until, as_of=as_of, excluded_days=excluded_days)
    compared = backtest(
        spec=spec,
        fit_until=fit_until,
        compare_from=compare_from,
        champion_package=champion_package,
        challenger_package=challenger_package,
        recipe_candidate=recipe_candidate,
        seed=seed,
        rows=ingested.outputs["rows"],
    )
    return compared.output
