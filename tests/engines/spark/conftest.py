"""Spark as an engine under test: one small local session, without what only large data need."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

from features import spark
from features.tables import Tables

NAME = "spark"
# feature -> why it may differ. Strict: everything else must be equal.
GAPS: dict[str, str] = {}
# Neither compiling methods far nor verifying Spark's own classes pays within two minutes.
JAVA = (
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-XX:+UnlockDiagnosticVMOptions",
    "-XX:-BytecodeVerificationRemote",
)
# Compiling queries takes longer than running them on tables of a few hundred rows.
SETTINGS = {
    "spark.sql.shuffle.partitions": "2",
    "spark.default.parallelism": "1",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.driver.extraJavaOptions": f"'{' '.join(JAVA)}'",
}


class Engine:
    """Starts at the first test that needs it, and is closed after the last."""

    def __init__(self, folder: Path) -> None:
        settings = " ".join(f"--conf {key}={value}" for key, value in SETTINGS.items())
        here = {
            "SPARK_MASTER": "local[2]",
            "PYSPARK_SUBMIT_ARGS": f"--driver-memory 1g {settings} pyspark-shell",
        }
        with patch.dict(os.environ, here), patch.object(spark, "WORK", folder):
            self.session = spark.connect()._session
        self.work = patch.object(spark, "WORK", folder)
        self.work.start()

    @staticmethod
    def missing() -> str | None:
        """Why the engine cannot run here; None if it can."""
        return spark.unavailable()

    def tables(self, tables: Tables) -> Tables:
        """The same tables, where the engine is given them."""
        return tables  # a build moves them itself

    def close(self) -> None:
        self.work.stop()
        self.session.stop()
        spark.connect.cache_clear()
