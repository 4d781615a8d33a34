"""What people run: engine command lines and cluster objects, made from a plan."""
