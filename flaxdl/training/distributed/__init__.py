"""Training on several devices and processes: mesh, placement of arrays, and collectives."""
