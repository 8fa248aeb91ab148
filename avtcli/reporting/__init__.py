"""Reports on runs from what their folders keep: settings and figures side by side."""
