"""Several devices and processes: the mesh, what is placed where, and how processes agree."""
