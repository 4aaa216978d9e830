"""Risk without a slide: clinical variables in, risk report out; nothing is stored."""
