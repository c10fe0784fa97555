"""The service's log: a JSON object a line, on standard error."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import sys
from collections.abc import Iterator

LOGGER = logging.getLogger("fastddpm.serving")
OTHERS = ("uvicorn", "asyncio", "py.warnings")
"""Loggers whose lines are written likewise."""
LEVELS = ("debug", "info", "warning", "error")


class JsonLines(logging.Formatter):
    """``{"time", "level", "message", ...}``: what a record has as its ``fields`` stands behind."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as one line."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        said = {"time": moment.isoformat(timespec="milliseconds"), "level": record.levelname.lower()}
        line = {**said, "message": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


@contextlib.contextmanager
def json_lines(level: str) -> Iterator[None]:
    """The service's log is written, from a level of `LEVELS` on, until the end of the body."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    loggers = [LOGGER, *map(logging.getLogger, OTHERS)]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level.upper() if logger is LOGGER else logging.WARNING)
        logger.propagate = False
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, (was, propagates) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(was)
            logger.propagate = propagates
