"""The studio in the browser."""

from __future__ import annotations

import os

# Before gradio is imported anywhere: no telemetry is sent.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
