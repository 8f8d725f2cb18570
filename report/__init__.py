"""What a run leaves for people: one self-contained HTML page, and the same as JSON.

A caller builds a `report.record.RunRecord`, then calls `report.html.write_report`; the figures of the
page are also available as PNG (`report.plots`), so that an MLflow run can log the very same pictures.
The page loads nothing: no script, font, style sheet or picture from elsewhere.
"""
