"""The studio in the browser."""

from __future__ import annotations

import os

# Before gradio is imported anywhere: nothing is told to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
