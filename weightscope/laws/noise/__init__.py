"""What a matrix of independent Gaussian entries gives: the null that every figure is read against.

Three sources, the cheapest that is accurate: the Marchenko-Pastur and Tracy-Widom laws with their
finite-size corrections (``expected``), a table of quantiles simulated once (``tabulated``), and
simulation on the spot for spectra of fewer than 20 eigenvalues (``simulation``).
"""
