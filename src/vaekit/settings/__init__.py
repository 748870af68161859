"""Every setting as a frozen dataclass, the catalogue of models, and the presets. Imports no torch."""
