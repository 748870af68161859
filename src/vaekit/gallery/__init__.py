"""The pictures and the report that a run can give: `draw(run, "latents")`."""
