"""Pipelines with what the local runner gets wrong. No postponed annotations: kfp reads the real types."""

# mypy: disable-error-code="untyped-decorator"
from kfp import dsl


@dsl.component(base_image="python:3.11-slim", install_kfp_package=False)
def step(text: str) -> str:
    return text


@dsl.pipeline(name="conditional")
def conditional(text: str) -> None:
    first = step(text=text)
    with dsl.If(first.output == "yes"):
        step(text="then")


@dsl.pipeline(name="retried")
def retried(text: str) -> None:
    step(text=text).set_retry(2)


@dsl.pipeline(name="looped")
def looped() -> None:
    with dsl.ParallelFor(["a", "b"]) as item:
        step(text=item)


@dsl.pipeline(name="exiting")
def exiting(text: str) -> None:
    with dsl.ExitHandler(step(text="end")):
        step(text=text)
