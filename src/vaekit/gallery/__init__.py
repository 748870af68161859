"""Pictures and the HTML report of a run: `draw(run, "latents")`."""
