"""Laws of spectra: what tails are fitted to, how sure that fit is, and what noise would give."""
