"""What every other part uses: errors, lazy imports, atomic files, devices, processes, the console."""
