"""Which extra has a package that is not there."""

from __future__ import annotations

EXTRAS = {"typer": "all", "rich": "all", "torch": "model", "pyarrow": "model", "pyiceberg": "model",
          "safetensors": "model", "fastavro": "model", "apache_beam": "jobs", "faiss": "serve", "matplotlib": "report",
          "jinja2": "report", "prometheus_client": "flight", "tensorboard": "tensorboard", "mlflow": "mlflow",
          "alembic": "mlflow", "opentelemetry": "otel"}  # fmt: skip
"""Package to the extra that has it."""


def told(error: ModuleNotFoundError) -> str:
    """What to do about a module that is not there."""
    name = (error.name or "").partition(".")[0]
    if (error.name or "").startswith("tools."):
        return f"{error.name} is not in the package: benchmarks, studies and drills run from a checkout of the project"
    if name in EXTRAS:
        return f"expected {name}, found none installed; run pip install 'vista-cache[{EXTRAS[name]}]'"
    return str(error)
