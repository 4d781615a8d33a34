"""How many copies has every expert, on which devices, and who moves when the load changes?"""
