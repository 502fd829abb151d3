"""From what was asked (`Settings`) and what is here (`Here`) to what will be done (`Plan`).

A plan is a value that can be printed; making one starts nothing. Only `here.gather` looks at the world.
"""
