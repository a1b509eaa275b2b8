"""Packaging. Ranges live here; the versions we test with are pinned in constraints.txt."""

import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "cache_store/__init__.py").read_text(encoding="utf-8"))

CORE = ["numpy>=1.26", "lmdb>=1.6", "msgpack>=1.0", "xxhash>=3.4", "fsspec>=2024.6"]
COMMAND = ["typer>=0.12", "rich>=13"]
TORCH = ["torch>=2.9"]
TABLES = ["pyarrow>=18", "pyiceberg[sql-sqlite]>=0.10", "fastavro>=1.9"]
MODEL = [*TORCH, *TABLES, *COMMAND, "safetensors>=0.5"]
JOBS = [*MODEL, "apache-beam>=2.70"]
FLIGHT = [*COMMAND, "pyarrow>=18", "prometheus-client>=0.20"]
SERVE = [*TORCH, *FLIGHT, "safetensors>=0.5", "faiss-cpu>=1.9"]
REPORT = [*TABLES, *COMMAND, "matplotlib>=3.9", "jinja2>=3.1"]
OTEL = ["opentelemetry-sdk>=1.27", "opentelemetry-exporter-otlp-proto-http>=1.27"]
TENSORBOARD = ["tensorboard>=2.16"]
MLFLOW = ["mlflow-skinny>=3", "alembic>=1.13", "sqlalchemy>=2"]  # the last two for sqlite:///FILE

setup(
    name="vista-cache",
    version=VERSION[1],
    description="Two-stage embedding cache for lifelong user histories",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="vista contributors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["recommender systems", "user history", "feature store", "sequence features"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Database",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    # ``tools`` is there for the command; benchmarks, studies and drills are for a checkout.
    packages=find_packages(
        include=[
            f"{name}{below}"
            for name in ("vista", "cache_store", "beam_jobs", "tools")
            for below in ("", ".*")
        ],
        exclude=["tools.bench*", "tools.studies*", "tools.drills*"],
    ),
    # Plain C for ctypes, faster copies; where it cannot be built, NumPy does the same (cache_store/native/library.py).
    ext_modules=[
        Extension(
            "cache_store.native._native",
            ["cache_store/native/native.c"],
            extra_compile_args=["-O3"],
            optional=True,
        )
    ],
    package_data={
        "vista": ["py.typed", "data/logs/layouts/*.toml"],
        "cache_store": ["py.typed", "native/native.c"],
        "beam_jobs": ["py.typed"],
        "tools.report": ["pages/*.j2"],
    },
    # The lookup library alone; the rest is what the extras name.
    install_requires=CORE,
    extras_require={
        "torch": TORCH,
        "model": MODEL,
        "jobs": JOBS,
        "flight": FLIGHT,  # `vista serve` alone: no PyTorch
        "serve": SERVE,
        "pandas": ["pandas>=2.2", "pyarrow>=18"],
        "report": REPORT,
        "all": sorted({*MODEL, *JOBS, *SERVE, *REPORT, *FLIGHT}),
        "gpu": ["triton>=3.2; sys_platform=='linux'"],
        "prometheus": ["prometheus-client>=0.20"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "triton>=3.2; sys_platform=='linux'",
            "ruff>=0.6",
            "redis>=5",
            "confluent-kafka>=2.4",
            "mypy>=1.18",
            "pdoc>=15",
            "pandas>=2.2",
            "cryptography>=42",
            *OTEL,
            *TENSORBOARD,
            *MLFLOW,
        ],
        "otel": OTEL,
        "tensorboard": TENSORBOARD,
        "mlflow": MLFLOW,
        "follow": ["redis>=5", "confluent-kafka>=2.4"],
        "spark": ["pyspark>=4.0"],  # and Java 17
        "ray": ["ray>=2.40"],
        "dask": ["distributed>=2024.8"],
        "bench": ["rocksdict>=0.3.23", "redis>=5"],
    },
    entry_points={"console_scripts": ["vista = tools.start:main"]},
)
